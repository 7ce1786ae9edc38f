// laconic: attention for speech models. SPDX-License-Identifier: MIT
// What processes of a job exchange, and how work is dealt to them.
#include <laconic/core/random.hpp>
#include <laconic/distributed/communicator.hpp>

#include "catch.hpp"
#include "thread_processes.hpp"

#include <cstdint>
#include <numeric>

using namespace laconic;

static_assert(Communicator<Alone> && Communicator<AnyCommunicator> && Communicator<ThreadProcess>);

namespace {

/// Values whose sum depends on the order of its terms.
std::vector<float> terms(std::size_t n, int seed) {
  std::vector<float> out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = static_cast<float>(Random(Seed(7), static_cast<std::uint64_t>(seed)).uniform(i) - 0.5);
  return out;
}

std::vector<float> sum_in_pairs(std::vector<std::vector<float>> lists) {
  std::vector<float*> pointers;
  for (auto& one : lists) pointers.push_back(one.data());
  add_in_pairs<float>(pointers, lists[0].size());
  return lists[0];
}

}  // namespace

TEST_CASE("A sum in pairs is the sum of the sums of its blocks, bit for bit", "[distributed]") {
  constexpr std::size_t n = 500;
  bool order_matters = false;
  for (const int count : {1, 2, 3, 5, 8, 11, 16}) {
    std::vector<std::vector<float>> lists;
    for (int i = 0; i < count; ++i) lists.push_back(terms(n, i));
    const auto whole = sum_in_pairs(lists);
    for (std::size_t block = 1; block <= lists.size(); block *= 2) {
      std::vector<std::vector<float>> blocks;
      for (std::size_t begin = 0; begin < lists.size(); begin += block)
        blocks.push_back(
            sum_in_pairs({lists.begin() + static_cast<std::ptrdiff_t>(begin),
                          lists.begin() + static_cast<std::ptrdiff_t>(std::min(lists.size(), begin + block))}));
      CHECK(sum_in_pairs(blocks) == whole);
    }
    std::vector<float> one_by_one = lists[0];
    for (int i = 1; i < count; ++i)
      for (std::size_t k = 0; k < n; ++k) one_by_one[k] += lists[static_cast<std::size_t>(i)][k];
    order_matters = order_matters || one_by_one != whole;
    for (std::size_t k = 0; k < n; ++k) CHECK(std::abs(one_by_one[k] - whole[k]) < 1e-5f);
  }
  CHECK(order_matters);  // or else this test would show nothing
}

TEST_CASE("Shares of processes are blocks in their order, as equal as can be", "[distributed]") {
  for (const std::ptrdiff_t count : {0, 1, 7, 8, 100})
    for (const int size : {1, 2, 3, 8, 200}) {
      std::ptrdiff_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Share share = share_of(count, rank, size);
        CHECK(share.begin == next);
        CHECK(share.end >= share.begin);
        CHECK(share.end - share.begin <= (count + size - 1) / size);
        next = share.end;
      }
      CHECK(next == count);
    }
}

TEST_CASE("Processes exchange values through any communicator", "[distributed]") {
  constexpr int size = 5;
  std::vector<std::vector<float>> lists;
  for (int i = 0; i < size; ++i) lists.push_back(terms(100, i));
  const auto expected = sum_in_pairs(lists);
  std::vector<std::vector<float>> got(size);
  std::vector<std::string> texts(size);
  std::vector<double> sums(size);
  const auto errors = in_processes(size, [&](ThreadProcess& process) {
    AnyCommunicator communicator(process);
    const auto rank = static_cast<std::size_t>(communicator.rank());
    got[rank] = lists[rank];
    communicator.sum(std::span(got[rank]));
    sums[rank] = static_cast<double>(rank);
    communicator.sum(std::span(&sums[rank], 1));
    texts[rank] = std::string(rank * 3, 'a');
    broadcast_text(communicator, texts[rank], 2);
    communicator.barrier();
    if (communicator.size() != size) throw Error("size");
  });
  for (std::size_t rank = 0; rank < size; ++rank) {
    CHECK(errors[rank].empty());
    CHECK(got[rank] == expected);
    CHECK(sums[rank] == 10);
    CHECK(texts[rank] == "aaaaaa");
  }
}

TEST_CASE("A process alone keeps what it has", "[distributed]") {
  AnyCommunicator none;
  Alone alone;
  AnyCommunicator refers(alone);
  for (AnyCommunicator* one : {&none, &refers}) {
    std::vector<float> values{1, 2};
    std::string words = "words";
    one->sum(std::span(values));
    broadcast_text(*one, words, 0);
    one->barrier();
    require_equal_in_all(*one, words, "words");
    CHECK(one->rank() == 0);
    CHECK(one->size() == 1);
    CHECK(values == std::vector<float>{1, 2});
    CHECK(words == "words");
  }
}

TEST_CASE("A process that has something else than the first says so", "[distributed]") {
  const auto errors = in_processes(3, [&](ThreadProcess& process) {
    require_equal_in_all(process, process.rank() == 2 ? "four epochs" : "three epochs", "settings");
  });
  CHECK(errors == std::vector<std::string>{
                      "", "", "process 2 of 3: other settings than in process 0 given, the same expected in all"});
}
