// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Kernels with mistakes, each of which support/kernel_races.cpp must find, and one without, in which it must find
// nothing.

#include <laconic/backend/cuda/kernels/vectors.hpp>
#include <laconic/backend/cuda/tensor_cores.hpp>

#include "catch.hpp"

#include <string>

using namespace laconic;
using namespace laconic::cuda;

namespace {

// What a kernel of this file does wrong.
enum class Mistake {
  none,
  no_barrier,           // a thread reads what another has written
  no_barrier_of_warp,   // the same in a warp
  barrier_of_warp,      // the same of another warp, after a barrier of warps
  written_after_read,   // a thread writes what others read
  read_by_all,          // code between two `each` reads what one has written
  blocks_overlap,       // two blocks write the same value
  block_reads,          // a block reads what another writes
  block_writes,         // a block writes what another reads
  warp_writes,          // a thread writes what another warp has read, and its own after that, before a barrier of warps
  throws,               // the kernel asks for more shared memory than there is, in the middle of a copy
  copy_not_waited_for,  // a copy is used before it is done
  copy_too_early,       // a copy overwrites what is still read
  one_group_too_few,    // of two groups of copies only the first is waited for
  matrix_too_early,     // a warp loads a matrix that another writes
  register_of_another,  // a thread names a register of its neighbour
  beyond_memory,        // a thread reads after the shared memory that the block has
};

template <Mistake mistake>
struct Kernel {
  static constexpr int threads = 64;
  float* data;  // 64 a block, and one more

  LACONIC_DEVICE void operator()(Block& block) const {
    using enum Mistake;
    float* const to = data + block.x() * threads;
    auto* const shared = block.template shared<float>(4 * threads);
    PerThread<float> value(block);
    PerThread<std::uint32_t[4]> registers(block);
    block.each([&](int t) {
      if (mistake == blocks_overlap && t == 0) data[2 * threads] = 1;
      if (mistake == block_reads && t == 0) shared[t] = data[0];
      for (int i = 0; i < 4; ++i) shared[4 * t + i] = static_cast<float>(i);
      value[t] = 0;
      to[t] = 0;
    });
    const auto write = [&](int t) { shared[t] = static_cast<float>(t); };
    const auto read_next = [&](int t) { value[t] += load<4>(shared + (4 * t + 4) % threads)[0]; };
    const auto read_in_warp = [&](int t) { value[t] += shared[t / 32 * 32 + (t + 1) % 32]; };
    if constexpr (mistake == no_barrier || mistake == no_barrier_of_warp)
      block.each_unordered(write);
    else if constexpr (mistake == barrier_of_warp)
      block.each_in_warps(write);
    else
      block.each(write);
    if constexpr (mistake == no_barrier || mistake == barrier_of_warp) block.each(read_next);
    if constexpr (mistake == no_barrier_of_warp) block.each(read_in_warp);
    block.each(read_next);
    block.each_in_warps(write);
    block.each(read_in_warp);
    if constexpr (mistake == written_after_read) {
      block.each_unordered(read_next);
      block.each_in_warps(write);
    }
    if constexpr (mistake == read_by_all) {
      block.each_unordered(write);
      const float first = shared[1];
      block.each([&](int t) { value[t] += first; });
    }

    const auto copy = [&](int at) {
      block.each_unordered([&](int t) {
        if (t < threads / 4) block.copy(shared + at * threads + 4 * t, to + 4 * t, 16);
      });
      block.end_copies();
    };
    const auto read = [&](int at) { block.each_unordered([&](int t) { value[t] += shared[at * threads + t]; }); };
    block.each([](int) {});
    copy(0);
    if constexpr (mistake == throws) block.template shared<float>(4 * threads);
    copy(1);
    if constexpr (mistake == copy_not_waited_for) read(0);
    block.template wait_for_copies<1>();
    read(0);
    if constexpr (mistake == one_group_too_few) read(1);
    if constexpr (mistake == copy_too_early) copy(0);
    block.template wait_for_copies<0>();
    read(0);
    read(1);
    block.each([](int) {});

    if constexpr (mistake == matrix_too_early) block.each_unordered([&](int t) { shared[t ^ 32] = 1; });
    load_matrices(
        block, [&](int t) { return shared + 4 * t; }, [&](int t) -> std::uint32_t* { return registers[t]; });
    block.each([](int) {});
    if constexpr (mistake == register_of_another) block.each([&](int t) { shared[t] = value[(t + 1) % threads]; });
    if constexpr (mistake == beyond_memory) block.each([&](int t) { value[t] += shared[4 * threads + t % 2]; });
    if constexpr (mistake == block_writes) {
      block.each([&](int t) { value[t] += data[2 * threads]; });
      if (block.x() == 1) block.one([&] { data[2 * threads] = 1; });
    }
    if constexpr (mistake == warp_writes) {
      block.each([&](int t) { value[t] += shared[0]; });
      block.each_in_warps([&](int t) { value[t] += shared[0]; });
      block.each([&](int t) {
        if (t == 33) shared[0] = 1;
      });
    }
    const float sum = block.sum(value);
    block.one([&] { to[0] = sum; });
  }
};

template <Mistake mistake>
std::string error_of() {
  const Stream stream(0);
  auto* const data = static_cast<float*>(allocate(0, sizeof(float) * 129));
  stream.zero(data, sizeof(float) * 129);
  std::string out;
  try {
    launch(stream, "kernel", {2}, Kernel<mistake>{data}, 4 * 64 * sizeof(float));
  } catch (const Error& error) {
    out = error.what();
  }
  release(0, data);
  return out;
}

template <Mistake mistake>
void check_found(const std::string& what) {
  const std::string error = error_of<mistake>();
  CAPTURE(what, error);
  CHECK(error.find("race in block") != std::string::npos);
  CHECK(error.find(what) != std::string::npos);
}

}  // namespace

TEST_CASE("Races of emulated kernels are found", "[cuda]") {
  REQUIRE(kernel_observer() != nullptr);
  using enum Mistake;
  CHECK(error_of<none>() == "");
  check_found<no_barrier>("reads what was written");
  check_found<no_barrier_of_warp>("reads what was written");
  check_found<barrier_of_warp>("reads what was written");
  check_found<written_after_read>("writes what was read");
  check_found<read_by_all>("every thread reads what was written");
  check_found<blocks_overlap>("of another block");
  check_found<block_reads>("of another block");
  check_found<block_writes>("of another block");
  check_found<warp_writes>("writes what was read");
  check_found<copy_not_waited_for>("unfinished copy");
  check_found<copy_too_early>("writes what was read");
  check_found<one_group_too_few>("unfinished copy");
  check_found<matrix_too_early>("reads what was written");
  check_found<register_of_another>("uses a register");
  check_found<beyond_memory>("after an array of shared memory");
  CHECK(error_of<throws>().find("bytes of shared memory") != std::string::npos);
  CHECK(error_of<none>() == "");
}
