// laconic: attention for speech models. SPDX-License-Identifier: MIT
// A warm forward pass allocates nothing, nor do streams once they are made: every form of operator new is counted, and
// what Eigen takes with malloc.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> allocations{0};

}  // namespace

// With malloc forbidden, Eigen asserts before it allocates.
#define EIGEN_RUNTIME_NO_MALLOC
#define eigen_assert(condition) (static_cast<bool>(condition) ? void() : void(++allocations))

#include <laconic/attention/any.hpp>
#include <laconic/backend/autodiff.hpp>
#include <laconic/backend/cpu.hpp>
#include <laconic/decode/source_decoder.hpp>
#include <laconic/model/attention_decoder.hpp>
#include <laconic/model/branchformer.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/e_branchformer.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>

#include "catch.hpp"

#include <optional>

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
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted(n, of(a));
}
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return counted(n, of(a));
}
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

template <class Model>
void check_warm_passes(const EncoderConfig& numbers) {
  using T = typename Model::Scalar;
  const Model model(numbers, Seed(1));
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

/// Twelve streams that come and go, and are pushed in random blocks of at most a chunk, in random order.
template <class Model>
void check_streams(const EncoderConfig& numbers, const StreamConfig& streamed, Index seed) {
  using T = typename Model::Scalar;
  const Model model(numbers, Seed(1));
  const Random random(Seed(2) / seed, "draw");
  std::uint64_t at = 0;
  const auto draw = [&](Index least, Index most) { return least + random.below(most - least + 1, at++); };
  INFO("chunk " << numbers.chunk << ", left context " << numbers.left_context << ", threads " << streamed.threads
                << ", seed " << seed);
  Streams<Model> streams(model, streamed);
  std::optional<Logits<Tensor<T>>> last;  // is kept while the next push runs
  struct Live {
    Index stream, rows;
  };
  std::vector<Live> live, part;
  live.reserve(12);
  const Index longest = streamed.max_frames > 0 ? streamed.max_frames * model.subsampling.factor() : 200;
  long taken = 0;
  Index given = 0;
  for (int round = 0; round < 60; ++round) {
    if (live.size() < 12 && draw(0, 2) > 0)
      for (Index n = draw(1, 12 - static_cast<Index>(live.size())); n > 0; --n)
        taken += allocations_of([&] { live.push_back({streams.open(), 0}); });
    shuffle(live, Random(Seed(3), at));
    part.assign(live.begin(), live.begin() + static_cast<std::ptrdiff_t>(draw(0, static_cast<Index>(live.size()))));
    std::vector<Index> ids, lengths;
    for (std::size_t n = 0; n < part.size(); ++n) {
      ids.push_back(part[n].stream);
      lengths.push_back(
          std::min(draw(0, 3) == 0 ? streams.chunk_rows() : draw(0, streams.chunk_rows()), longest - part[n].rows));
      live[n].rows += lengths.back();
    }
    const Sequences blocks(lengths);
    const Matrix<T> features = Matrix<T>::Random(blocks.rows(), numbers.num_mels);
    taken += allocations_of([&] { last = streams.push(ids, features, blocks); });
    given += last->rows.rows();
    REQUIRE(last->rows.rows() <= streams.max_rows());
    if (draw(0, 4) > 0) continue;
    // Some end, and some are given up.
    part.assign(live.begin(), live.begin() + static_cast<std::ptrdiff_t>(draw(0, static_cast<Index>(live.size()))));
    live.erase(live.begin(), live.begin() + static_cast<std::ptrdiff_t>(part.size()));
    ids.clear();
    for (const Live& l : part) ids.push_back(l.stream);
    const auto half = std::span<const Index>(ids).first(ids.size() / 2),
               rest = std::span<const Index>(ids).subspan(ids.size() / 2);
    taken += allocations_of([&] {
      last = streams.finish(half);
      for (const Index stream : rest) streams.close(stream);
    });
    given += last->rows.rows();
  }
  CHECK(given > 20);
  CHECK(taken == 0);
}

template <class Model>
void check_streams(EncoderConfig numbers) {
  constexpr Index chunks[] = {1, 4, 9, 16}, lefts[] = {8, 0, 20, 64};
  for (Index n = 0; n < 4; ++n) {
    numbers.chunk = chunks[n];
    check_streams<Model>(numbers, {.capacity = 12, .max_frames = 70, .threads = n % 2 == 0 ? 2 : 1}, n);
    if (!Model(numbers, Seed(1)).layers[0].attention().keeps_frames()) continue;
    numbers.left_context = lefts[n];
    check_streams<Model>(numbers,
                         {.capacity = 12, .storage = n == 1 ? Storage::int8 : Storage::full, .threads = n == 3 ? 3 : 1},
                         n + 10);
    numbers.left_context = -1;
  }
}

}  // namespace

TEST_CASE("the counter counts", "[allocation]") {
  CHECK(allocations_of([] {
          int* volatile p = new int(3);
          delete p;
        }) == 1);
  CHECK(allocations_of([] {
          char* volatile p = new char[100];
          delete[] p;
        }) == 1);
  CHECK(allocations_of([] { ::operator delete(::operator new(10, std::align_val_t(64)), std::align_val_t(64)); }) == 1);
  CHECK(allocations_of([] { ::operator delete(::operator new(10, std::nothrow)); }) == 1);
  CHECK(allocations_of([] { Cpu<float>(1).make(3, 4); }) == 2);  // the block, and what arena and blocks share
  CHECK(allocations_of([] { Matrix<float> x(3, 4); }) == 1);
  CHECK(allocations_of([] {}) == 0);
}

TEMPLATE_TEST_CASE("a warm forward pass allocates nothing", "[allocation]", float, double) {
  check_warm_passes<Conformer<Mha<4>, TestType>>(config);
  check_warm_passes<Conformer<Gqa<4, 2, NoPosition>, TestType>>(config);
  check_warm_passes<Conformer<MlaSimple<4, 16, Sinusoidal>, TestType>>(config);
  EncoderConfig samples = config;
  samples.num_mels = 1;
  samples.waveform = {
      .conv_dim = {8, 8}, .conv_kernel = {4, 3}, .conv_stride = {2, 2}, .feat_extract_norm = WaveformNorm::group};
  check_warm_passes<Wav2Vec2Conformer<Mha<4>, TestType>>(samples);
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

TEST_CASE("streams take nothing from the system once they are made", "[allocation][stream]") {
  const EncoderConfig numbers{.num_mels = 16,
                              .d_model = 24,
                              .num_layers = 2,
                              .vocab_size = 11,
                              .ffn_expansion = 2,
                              .conv_kernel = 7,
                              .cgmlp_expansion = 2,
                              .merge_kernel = 5,
                              .subsampling_channels = 4,
                              .convolution = ConvolutionContext::causal};
  check_streams<Conformer<Mha<4>>>(numbers);
  check_streams<Conformer<Gqa<4, 2, Rotary<>>, double>>(numbers);
  check_streams<Branchformer<Mqa<4, Sinusoidal>>>(numbers);
  check_streams<Branchformer<MlaSimple<4, 12>>>(numbers);
  check_streams<EBranchformer<MlaDecoupled<4, 8, 4>>>(numbers);
  check_streams<EBranchformer<LinearAttention<4>>>(numbers);
  for (const auto& name : enum_names(AttentionName())) {
    if (name.value == AttentionName::by_type) continue;
    INFO(name.name);
    EncoderConfig c = numbers;
    c.attention = name.value;
    c.num_heads = 4;
    c.num_kv_heads = name.value == AttentionName::gqa ? 2 : 0;
    c.kv_lora_rank = !name.name.starts_with("mla") ? 0 : name.value == AttentionName::mla_head ? 4 : 10;
    c.qk_rope_head_dim = name.value == AttentionName::mla_decoupled ? 4 : 0;
    check_streams<EBranchformer<AnyAttention>>(c);
  }
}

TEST_CASE("streams that keep many frames take nothing from the system either", "[allocation][stream]") {
  // So many keys that they are cut for whole chunks, or for the few queries of a stream's end alone.
  const Index chunk = GENERATE(40, 60);
  const Conformer<MlaSimple<4, 12>> model({.num_mels = 16,
                                           .d_model = 24,
                                           .num_layers = 2,
                                           .vocab_size = 11,
                                           .conv_kernel = 7,
                                           .subsampling_channels = 4,
                                           .convolution = ConvolutionContext::causal,
                                           .chunk = chunk,
                                           .left_context = 1000},
                                          Seed(1));
  Streams streams(model, {.capacity = 2, .threads = 2});
  const std::vector<Index> ids{streams.open(), streams.open()};
  const Index rows = streams.chunk_rows();
  const Sequences whole{rows, rows}, part{rows / 2, rows / 3};
  const Matrix<float> features = Matrix<float>::Random(2 * rows, 16), rest = features.topRows(part.rows());
  Index given = 0;
  const auto count = [&](const Logits<Tensor<float>>& logits) { given += logits.rows.rows(); };
  CHECK(allocations_of([&] {
          while (given < 2500) count(streams.push(ids, features, whole));
          count(streams.push(ids, rest, part));
          count(streams.finish(ids));
        }) == 0);
  CHECK(given % (2 * chunk) != 0);
}

TEST_CASE("a warm decoder takes nothing from the system for a token", "[allocation][decode]") {
  const LanguageModelConfig language{.vocab_size = 11, .max_positions = 40, .d_model = 16, .num_layers = 2};
  Cpu<float> cpu(1);
  const std::array<Index, 3> slots{0, 1, 2};
  const std::vector<int> ids(slots.size(), 3);
  const Sequences ones{1, 1, 1};
  // Slot 1 reads the first source and the others the second: an order that must be sorted.
  const auto decode = [&](auto& decoder) {
    return allocations_of([&] {
      for (const Index slot : slots) decoder.begin(slot, slot == 1 ? 0 : 1);
      for (int i = 0; i < 20; ++i) decoder.append({ids, ones}, slots);
      decoder.fork(0, 1);
      for (int i = 0; i < 5; ++i) decoder.append({ids, ones}, slots);
    });
  };

  const Gpt<MlaHead<2, 4, 0, NoPosition>> model(language, Seed(1));
  TokenDecoder decoder(cpu, model, {.slots = 3});
  decode(decoder);  // warms up
  CHECK(decode(decoder) == 0);

  using Policy = MlaDecoupled<2, 8, 4>;
  const AttentionDecoder<Policy, Policy> reader({language, {}}, Seed(1));
  SourceDecoder sources(cpu, reader, {.slots = 3});
  sources.listen(cpu.input(Matrix<float>(Matrix<float>::Random(20, 16))), Sequences{12, 8});
  decode(sources);
  CHECK(decode(sources) == 0);
}
