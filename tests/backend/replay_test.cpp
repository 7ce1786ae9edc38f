// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Passes that are replayed, with the bits of those that are not; and copies of many ranges of rows. On CUDA, how passes
// are recorded, and what becomes of their graphs.
#include <laconic/attention/any.hpp>
#include <laconic/decode/token_decoder.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/gpt.hpp>
#include <laconic/model/stream.hpp>

#include "backends.hpp"
#include "golden.hpp"
#include "gradient_check.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

using namespace laconic;

namespace {

/// A backend that starts all work at once.
template <class Backend>
struct Unreplayed : Backend {
  using Backend::Backend;
  template <class Pass>
  auto replayed(Pass&& pass) {
    return pass();
  }
};

constexpr EncoderConfig small{.num_mels = 8,
                              .d_model = 8,
                              .num_layers = 2,
                              .vocab_size = 5,
                              .ffn_expansion = 2,
                              .conv_kernel = 5,
                              .subsampling = 2,
                              .subsampling_channels = 3,
                              .convolution = ConvolutionContext::causal,
                              .chunk = 3,
                              .left_context = 5};

template <class Policy, class Backend>
Conformer<Policy> conformer() {
  Conformer<Policy> model(small, Seed(1));
  randomize(model, 5);
  if constexpr (!Backend::computes_on_host) Backend(1).prepare(model);
  return model;
}

/// The logits of pushes of so many streams each, all of as many rows.
template <class Context, class Model>
std::vector<Matrix<float>> pushed(Streams<Model, Context>& streams, const std::vector<Index>& counts) {
  std::vector<Index> all;
  for (Index n = 0; n < 4; ++n) all.push_back(streams.open());
  std::vector<Matrix<float>> out;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const auto count = static_cast<std::size_t>(counts[i]);
    const std::vector<Index> ids(all.begin(), all.begin() + counts[i]), lengths(count, streams.chunk_rows());
    const Sequences blocks(lengths);
    const auto logits = streams.push(ids, random_matrix<float>(blocks.rows(), 8, i), blocks);
    out.push_back(streams.context().output(logits.rows));
  }
  out.push_back(streams.context().output(streams.finish(all).rows));
  return out;
}

template <class Policy, class Backend>
void check_streams() {
  const auto model = conformer<Policy, Backend>();
  using Model = Conformer<Policy>;
  std::vector<Index> counts;
  for (Index i = 0; i < 60; ++i) counts.push_back(i < 30 ? 4 - i % 2 : 1 + (i * 7 + i / 5) % 4);
  Streams<Model, Backend> streams(model, {.capacity = 4, .threads = 1});
  Streams<Model, Unreplayed<Backend>> others(model, {.capacity = 4, .threads = 1});
  const auto got = pushed(streams, counts), expected = pushed(others, counts);
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == expected[i]);
}

/// A pass of more than enough work for a graph: 2^10 (x + shift), with sums of rows that come from the host.
template <class Backend>
typename Backend::Tensor doubled(Backend& backend, const typename Backend::Tensor& x, double factor, float shift) {
  auto y = backend.add(x, backend.input(Matrix<float>::Constant(x.rows(), x.cols(), shift).eval()));
  for (int i = 0; i < 10; ++i) y = backend.scale(std::move(y), factor);
  return y;
}

}  // namespace

TEST_CASE("sorted arenas give the same blocks again", "[replay]") {
  Arena arena;
  std::vector<const void*> first;
  for (int round = 0; round < 4; ++round) {
    std::vector<Buffer> blocks;
    for (std::size_t i = 0; i < 12; ++i) {
      blocks.push_back(arena.allocate(i % 2 == 0 ? 1000 : 5000));
      if (round == 0)
        first.push_back(blocks.back().data());
      else
        CHECK(blocks.back().data() == first[i]);
    }
    if (round == 0) {  // in whatever order the system gave them
      for (const auto parity : {std::size_t{0}, std::size_t{1}}) {
        std::vector<const void*> some;
        for (std::size_t i = parity; i < 12; i += 2) some.push_back(first[i]);
        std::sort(some.begin(), some.end());
        for (std::size_t i = 0; i < some.size(); ++i) first[2 * i + parity] = some[i];
      }
    }
    shuffle(blocks, Random(Seed(1), static_cast<std::uint64_t>(round)));
    blocks.clear();
    const std::size_t reserved = arena.reserved_bytes();
    arena.sort();
    CHECK(arena.reserved_bytes() == reserved);
  }
}

TEMPLATE_LIST_TEST_CASE("ranges of rows are copied", "[replay]", AllBackends) {
  using T = typename TestType::Scalar;
  TestType backend(1);
  for (const Index cols : {1, 3, 4, 8, 80}) {
    const Matrix<T> x = random_matrix<T>(50, cols, 1);
    const auto from = backend.input(x);
    const auto check = [&](const std::vector<RowRange>& ranges) {
      Matrix<T> expected = Matrix<T>::Zero(60, cols), own = x;
      auto to = backend.fill(60, cols, 0), self = backend.add(backend.fill(50, cols, 0), from);
      backend.copy_rows(from, to, ranges);
      backend.copy_rows(self, self, ranges);
      for (const RowRange& r : ranges) {
        expected.middleRows(r.to, r.count) = x.middleRows(r.from, r.count);
        own.middleRows(r.to, r.count) = x.middleRows(r.from, r.count);
      }
      CHECK(backend.output(to) == expected);
      CHECK(backend.output(self) == own);
    };
    check({});
    check({{3, 0, 50}});
    check({{0, 50, 0}});
    check({{7, 20, 3}});                                        // to the front, over itself
    check({{3, 20, 7}});                                        // to the back
    check({{0, 1, 10}, {5, 0, 5}, {1, 2, 30}, {20, 5, 25}});    // one is empty
    check({{3, 5, 0}, {13, 5, 10}, {23, 5, 20}, {35, 9, 30}});  // of several slots, some over themselves
    check({{0, 3, 5}, {13, 5, 10}, {20, 5, 23}, {49, 1, 49}});  // in both directions
    check({{49, 0, 49}, {50, 0, 0}});
  }
  const auto from = backend.fill(3, 2, 0);
  auto to = backend.fill(5, 2, 0), wide = backend.fill(5, 3, 0);
  const auto copy = [&](auto& there, RowRange range) { backend.copy_rows(from, there, std::array{range}); };
  CHECK_THROWS_WITH(copy(to, {2, 2, 0}),
                    "copy_rows: 2 rows from 2 of (3, 2) to 0 of (5, 2) given, rows that both have and equal columns "
                    "expected");
  for (const RowRange wrong : {RowRange{-1, 1, 0}, {0, -1, 0}, {0, 1, -1}, {0, 3, 3}, {0, Index{1} << 62, 0}})
    CHECK_THROWS_AS(copy(to, wrong), Error);
  CHECK_THROWS_AS(copy(wide, {0, 1, 0}), Error);
}

TEMPLATE_LIST_TEST_CASE("streams are the same bits, replayed or not", "[replay]", Backends<float>) {
  check_streams<Mha<4>, TestType>();
  check_streams<Mha<4, Rotary<>>, TestType>();
  check_streams<MlaSimple<4, 5>, TestType>();
}

TEMPLATE_LIST_TEST_CASE("tokens are the same, replayed or not", "[replay]", Backends<float>) {
  for (const auto position : {PositionEmbeddings::learned, PositionEmbeddings::rotary}) {
    LanguageModelConfig config{.vocab_size = 13,
                               .max_positions = 40,
                               .d_model = 16,
                               .num_layers = 2,
                               .attention = AttentionName::mha,
                               .num_heads = 4};
    config.position_embeddings_type = position;
    Gpt<AnyCausalAttention> model(config, Seed(1));
    randomize(model, 3);
    const auto logits_of = [&](auto&& backend) {
      auto copy = model;
      if constexpr (!TestType::computes_on_host) backend.prepare(copy);
      TokenDecoder decoder(backend, copy, {.slots = 2});
      std::vector<Matrix<float>> out;
      const std::array<Index, 2> both{1, 0};
      for (const Index slot : both) decoder.begin(slot);
      const std::vector<int> prompt{1, 2, 3, 4, 5}, next{6, 7};
      out.push_back(backend.output(decoder.append({prompt, Sequences{2, 3}}, both)));
      for (int i = 0; i < 30; ++i) out.push_back(backend.output(decoder.append({next, Sequences{1, 1}}, both)));
      return out;
    };
    const auto got = logits_of(TestType(1)), expected = logits_of(Unreplayed<TestType>(1));
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(got[i] == expected[i]);
  }
}

TEMPLATE_LIST_TEST_CASE("a replayed pass uses what it is given now", "[replay]", Backends<float>) {
  TestType backend(1);
  const Matrix<float> x = random_matrix<float>(6, 5, 1);
  for (int i = 0; i < 6; ++i) {
    const double factor = i % 2 == 0 ? 2 : -0.5;
    const auto shift = static_cast<float>(i);
    const Matrix<float> expected = (x.array() + shift) * static_cast<float>(std::pow(factor, 10));
    const auto kept = i == 3 ? backend.fill(6, 5, 1) : typename TestType::Tensor();  // moves what comes after it
    const auto y = backend.replayed([&] { return doubled(backend, backend.input(x), factor, shift); });
    CHECK(difference<float>(backend.output(y), expected, 1) < 1e-5);
    // The host reads in the middle, and passes are within passes.
    double number = 0;
    const auto z = backend.replayed([&] {
      const auto first = doubled(backend, backend.input(x), factor, shift);
      number = backend.number(backend.mean_finite(first));
      return backend.replayed([&] { return doubled(backend, first, 1, 0); });
    });
    CHECK(number == Approx(static_cast<double>(expected.mean())).epsilon(1e-5));
    CHECK(backend.output(z) == backend.output(y));
  }
}

TEMPLATE_LIST_TEST_CASE("a pass that throws has done what it had run", "[replay]", Backends<float>) {
  TestType backend(1), other(1);
  auto kept = backend.fill(1, 5, 0);
  for (int i = 1; i < 5; ++i) {
    const auto fails = [&] {
      kept = doubled(backend, kept, 1, 1);
      other.replayed([&] { kept = backend.scale(std::move(kept), 1); });  // a pass of another context, within
      throw Error("on purpose");
    };
    CHECK_THROWS_WITH(backend.replayed(fails), "on purpose");
    CHECK(backend.output(kept) == Matrix<float>::Constant(1, 5, static_cast<float>(i)));
    CHECK(backend.replayed([&] { return 7; }) == 7);
  }
}

#ifdef LACONIC_TEST_CUDA

TEST_CASE("passes of the same shapes launch one graph", "[replay][cuda]") {
  using Backend = OnCuda<float>;
  const auto model = conformer<Mha<4>, Backend>();
  Streams<Conformer<Mha<4>>, Backend> streams(model, {.capacity = 4, .threads = 1});
  const cuda::Stream& stream = streams.context().stream();
  const auto counted = [&](Index count) {
    const cuda::GraphCounts before = stream.graph_counts();
    std::vector<Index> ids;
    for (Index n = 0; n < count; ++n) ids.push_back(n);
    const std::vector<Index> lengths(ids.size(), streams.chunk_rows());
    const Sequences blocks(lengths);
    streams.push(ids, Matrix<float>::Ones(blocks.rows(), 8), blocks);
    const cuda::GraphCounts after = stream.graph_counts();
    CHECK(after.lists - before.lists == 1);
    return std::array{after.started - before.started, after.made - before.made, after.launched - before.launched};
  };
  constexpr std::array<Index, 3> started{1, 0, 0}, made{0, 1, 1}, launched{0, 0, 1};
  for (Index n = 0; n < 4; ++n) CHECK(streams.open() == n);
  for (int i = 0; i < 4; ++i) {  // until the caches are full
    const std::vector<Index> all{0, 1, 2, 3}, lengths(4, streams.chunk_rows());
    const Sequences blocks(lengths);
    streams.push(all, Matrix<float>::Ones(blocks.rows(), 8), blocks);
  }
  const auto first = counted(4);
  CHECK((first == started || first == made || first == launched));
  if (first == started) CHECK(counted(4) == made);
  CHECK(counted(4) == launched);
  const auto fewer = counted(3);  // other grids, so another graph; warming up has run some of them
  CHECK((fewer == started || fewer == made));
  if (fewer == started) CHECK(counted(3) == made);
  CHECK(counted(3) == launched);
  CHECK(counted(4) == launched);

  // Only features and logits move.
  const Index before = stream.graph_counts().changed;
  counted(4);
  CHECK(stream.graph_counts().changed - before <= 4);
#ifdef LACONIC_CUDA_EMULATED
  const cuda::WorkCounts from = stream.queue().counts();
  counted(4);
  const cuda::WorkCounts to = stream.queue().counts();
  CHECK(to.uploads - from.uploads == 3);  // features, and where they go, before the pass and after it
  CHECK(to.kernels - from.kernels == 2);
  CHECK(to.copies - from.copies == 0);
#endif
}

TEST_CASE("graphs that are not used make room for others", "[replay][cuda]") {
  using Backend = OnCuda<float>;
  Backend backend(1);
  const auto pass = [&](Index rows, float shift) {
    const auto x = backend.fill(rows, 2, 1);
    const auto y = backend.replayed([&] { return doubled(backend, x, 1, shift); });
    CHECK(backend.output(y) == Matrix<float>::Constant(rows, 2, 1 + shift));
  };
  constexpr auto all = static_cast<Index>(cuda::GraphCache::max_graphs);
  for (int i = 0; i < 3; ++i)
    for (Index rows = 1; rows <= 1 + all; ++rows) pass(rows, static_cast<float>(i));
  CHECK(backend.stream().graph_counts().made == 0);  // each was forgotten before it came again
  for (int i = 0; i < 3; ++i)
    for (Index rows = 1; rows <= all; ++rows) pass(rows, static_cast<float>(i));
  CHECK(backend.stream().graph_counts().made == all);
  CHECK(backend.stream().graph_counts().launched >= 2 * all);
}

TEST_CASE("memory is freed after the recorded work that uses it", "[replay][cuda]") {
  using Backend = OnCuda<float>;
  Backend backend(1);
  const cuda::Stream& stream = backend.stream();
  backend.replayed([] {});  // makes room for what passes upload
  const std::size_t before = backend.device_arena().used_bytes();
  for (int i = 0; i < 3; ++i) {
    const Index lists = stream.graph_counts().lists;
    std::vector<float> got(1000, 1);
    backend.replayed([&] {
      {
        const cuda::DeviceArray<float> memory(stream, 1000);
        for (int n = 0; n < 10; ++n) stream.zero(memory.data(), memory.bytes());
        CHECK(stream.graph_counts().lists == lists);
      }
      CHECK(stream.graph_counts().lists == lists + 1);
      const auto ones = backend.fill(1000, 1, i);
      stream.to_host(got.data(), ones.data(), 4000);
    });
    CHECK(got == std::vector<float>(1000, static_cast<float>(i)));
    CHECK(stream.graph_counts().lists == lists + 2);
  }
  CHECK(backend.device_arena().used_bytes() == before);

  // Another thread that waits for the stream starts nothing of this one's.
  backend.replayed([&] {
    const auto ones = backend.fill(10, 1, 1);
    const Index lists = stream.graph_counts().lists;
    std::thread([&] { stream.wait(); }).join();
    CHECK(stream.graph_counts().lists == lists);
  });
}

TEST_CASE("contexts are made of the settings of others", "[replay][cuda]") {
  using Backend = OnCuda<float>;
  const Cuda<float> rounded(CudaDevice{0, ProductPrecision::bf16});
  CHECK(rounded.settings().number == 0);
  CHECK(Cuda<float>(rounded.settings()).precision() == ProductPrecision::bf16);
  const auto model = conformer<Mha<4>, Backend>();
  using Model = Conformer<Mha<4>>;
  Streams<Model, Cuda<float>> streams(model, {}, rounded.settings()), full(model);
  CHECK(streams.context().precision() == ProductPrecision::bf16);
  CHECK(full.context().precision() == ProductPrecision::full);
}

#endif
