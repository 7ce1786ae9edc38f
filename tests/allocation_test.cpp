// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A warm forward pass allocates nothing: every form of operator new is counted, and what Eigen takes with malloc.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> allocations{0};

}  // namespace

// With malloc forbidden, Eigen asserts before it allocates.
#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) (static_cast<bool>(condition) ? void() : void(++allocations))

#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/model/conformer.hpp>

#include "catch.hpp"

namespace {

void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  if (alignment < sizeof(void*)) alignment = sizeof(void*);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void* counted_or_throw(std::size_t bytes, std::size_t alignment) {
  void* block = counted(bytes > 0 ? bytes : 1, alignment);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
constexpr std::size_t plain = __STDCPP_DEFAULT_NEW_ALIGNMENT__;
std::size_t of(std::align_val_t alignment) { return static_cast<std::size_t>(alignment); }

}  // namespace

[[gnu::noinline]] void* operator new(std::size_t n) { return counted_or_throw(n, plain); }
[[gnu::noinline]] void* operator new[](std::size_t n) { return counted_or_throw(n, plain); }
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a) { return counted_or_throw(n, of(a)); }
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a) { return counted_or_throw(n, of(a)); }
[[gnu::noinline]] void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return counted(n, plain); }
[[gnu::noinline]] void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return counted(n, plain); }
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return counted(n, of(a)); }
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return counted(n, of(a)); }
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }

using namespace laconic;

namespace {

template <class Run>
long allocations_of(Run&& run) {
  const long before = allocations;
  Eigen::internal::set_is_malloc_allowed(false);
  run();
  Eigen::internal::set_is_malloc_allowed(true);
  return allocations - before;
}

const EncoderConfig config{.num_mels = 40, .d_model = 48, .num_layers = 2, .vocab_size = 11, .conv_kernel = 7};

template <class Policy, class T>
void check_warm_passes(const EncoderConfig& numbers) {
  const Conformer<Policy, T> model(numbers, Seed(1));
  const Sequences sequences{200, 90, 2, 160}, shorter{150, 3, 40, 160}, longer{200, 300, 90, 160};
  const Matrix<T> features = Matrix<T>::Random(longer.rows(), numbers.num_mels);
  const auto part = [&](const Sequences& s) { return Matrix<T>(features.topRows(s.rows())); };
  const Matrix<T> all = part(sequences), few = part(shorter);
  for (const int threads : {1, 3}) {
    Cpu<T> cpu(threads);
    const auto pass = [&](const Matrix<T>& x, const Sequences& s) { return allocations_of([&] { model(cpu, x, s); }); };
    CHECK(pass(all, sequences) > 0);
    const std::size_t reserved = cpu.arena().reserved_bytes();
    CHECK(cpu.arena().used_bytes() == 0);
    for (int i = 0; i < 3; ++i) CHECK(pass(all, sequences) == 0);
    // Other lengths: warm after the first time, and whatever came between.
    pass(few, shorter);
    pass(features, longer);
    const std::size_t grown = cpu.arena().reserved_bytes();
    CHECK(grown > reserved);
    CHECK(pass(all, sequences) == 0);
    CHECK(pass(few, shorter) == 0);
    CHECK(pass(features, longer) == 0);
    CHECK(pass(few, shorter) == 0);
    CHECK(cpu.arena().reserved_bytes() == grown);
    cpu.arena().trim();
    CHECK(cpu.arena().reserved_bytes() == 0);
    CHECK(pass(all, sequences) > 0);
  }
}

}  // namespace

TEST_CASE("the counter counts", "[allocation]") {
  CHECK(allocations_of([] { int* volatile p = new int(3); delete p; }) == 1);
  CHECK(allocations_of([] { char* volatile p = new char[100]; delete[] p; }) == 1);
  CHECK(allocations_of([] { ::operator delete(::operator new(10, std::align_val_t(64)), std::align_val_t(64)); }) == 1);
  CHECK(allocations_of([] { ::operator delete(::operator new(10, std::nothrow)); }) == 1);
  CHECK(allocations_of([] { Cpu<float>(1).make(3, 4); }) == 2);  // the block, and what arena and blocks share
  CHECK(allocations_of([] { Matrix<float> x(3, 4); }) == 1);
  CHECK(allocations_of([] {}) == 0);
}

TEMPLATE_TEST_CASE("a warm forward pass allocates nothing", "[allocation]", float, double) {
  check_warm_passes<Mha<4>, TestType>(config);
  check_warm_passes<Gqa<4, 2, NoPosition>, TestType>(config);
  check_warm_passes<MlaSimple<4, 16, Sinusoidal>, TestType>(config);
}

TEST_CASE("a warm training step takes nothing from the system for its values", "[allocation]") {
  Conformer<Mha<4>> model(config, Seed(1));
  const Sequences sequences{200, 90};
  const Matrix<float> features = Matrix<float>::Random(290, 40);
  Cpu<float> cpu(1);
  const auto step = [&] {
    Autodiff<Cpu<float>> tape(cpu);
    const auto logits = model(tape, features, sequences);
    tape.backward(tape.mean_finite(tape.ctc(logits.rows, logits.sequences, {{1, 2, 3}, Sequences{2, 1}}, 0)));
  };
  step();
  const std::size_t reserved = cpu.arena().reserved_bytes();
  CHECK(reserved > 0);
  step();
  CHECK(cpu.arena().reserved_bytes() == reserved);
  CHECK(cpu.arena().used_bytes() == 0);
}
