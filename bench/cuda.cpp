// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the kernels of the CUDA backend, an encoder and a training step on this machine's GPU, next to what bounds
// them. Built where -DLACONIC_CUDA=ON was given; scripts/gpu-check builds and runs it.
//
//   build/cuda/bench/cuda --benchmark_counters_tabular=true [--benchmark_filter=attend]
//   build/cuda/bench/cuda --benchmark_out=cuda.json
//   python bench/peers/gpu.py --against cuda.json      # the same in PyTorch
//
// Roofs are measured first and printed: copying 512 MiB within the device, counted as read and written, and products of
// 4096 x 4096 x 4096 in float, TF32 and bf16 by cuBLAS. Where it matters, names end with the precision of products
// (ProductPrecision).
// Time is that of 10 calls in a row, of models 2, from the first launch until the last has ended, so that launches
// overlap as in a model. "of_copy" and "of_product" are percentages of these roofs: of the copy's bandwidth at which
// the operands and results of a call, counted once, went through memory, and of the product's operations.
#include <laconic/attention/any.hpp>
#include <laconic/backend/cuda.hpp>
#include <laconic/laconic.hpp>
#include <laconic/model/stream.hpp>
#include <laconic/model/wav2vec2_conformer.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/ctc_loss.hpp>

#include <benchmark/benchmark.h>
#include <cublas_v2.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace laconic;
using Gpu = Cuda<float>;
using Tensor = Gpu::Tensor;

Matrix<float> noise(Index rows, Index cols) { return Matrix<float>::Random(rows, cols); }
double megabytes(std::initializer_list<Index> floats) {
  double sum = 0;
  for (const Index n : floats) sum += 4e-6 * static_cast<double>(n);
  return sum;
}

/// Returns the seconds of a call, of several in a row.
double seconds_of(Gpu& gpu, const std::function<void()>& call, int calls = 10) {
  gpu.stream().wait();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) call();
  gpu.stream().wait();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / calls;
}

constexpr ProductPrecision precisions[] = {ProductPrecision::full, ProductPrecision::tf32, ProductPrecision::bf16};

/// Holds the measured bandwidth of a copy, in MB/s.
double copy_roof = 0;
/// Holds the measured operations of a product, in TFLOP/s, by precision.
std::array<double, std::size(precisions)> product_roofs{};

/// Registers a benchmark that times itself. If it fails, for want of memory for example, the others go on.
benchmark::internal::Benchmark* register_run(const std::string& name, std::function<void(benchmark::State&)> run) {
  const auto guarded = [run = std::move(run)](benchmark::State& state) {
    try {
      run(state);
    } catch (const Error& error) {
      state.SkipWithError(error.what());
    }
  };
  return benchmark::RegisterBenchmark(name.c_str(), guarded)->UseManualTime()->Unit(benchmark::kMicrosecond);
}

/// Registers a benchmark. setup(gpu) returns the call, which owns its operands.
void add(const std::string& name, double flop, double mega, std::function<std::function<void()>(Gpu&)> setup,
         ProductPrecision precision = ProductPrecision::full) {
  const auto run = [=](benchmark::State& state) {
    Gpu gpu(CudaDevice{.precision = precision});
    const auto call = setup(gpu);
    call();  // warm
    double seconds = 0;
    for (auto _ : state) {
      const double one = seconds_of(gpu, call, flop + mega > 0 ? 10 : 2);
      state.SetIterationTime(one);
      seconds += one;
    }
    seconds /= static_cast<double>(state.iterations());
    if (flop > 0) {
      const double tera = 1e-12 * flop / seconds;
      state.counters["TFLOP/s"] = tera;
      state.counters["of_product"] = 100 * tera / product_roofs[static_cast<std::size_t>(precision)];
    }
    if (mega > 0) state.counters["of_copy"] = 100 * mega / seconds / copy_roof;
    state.counters["MB"] = 1e-6 * static_cast<double>(gpu.device_arena().peak_bytes());
  };
  register_run(name, run);
}

/// Registers a benchmark for each precision of products.
void add_each(const std::string& name, double flop, double mega,
              const std::function<std::function<void()>(Gpu&)>& setup) {
  for (const ProductPrecision precision : precisions)
    add(text(name, '/', to_name(precision)), flop, mega, setup, precision);
}

/// Multiplies matrices by cuBLAS: C (rows, out) = A (rows, in) B^T (out, in).
class CublasProduct {
 public:
  CublasProduct(Gpu& gpu, Index rows, Index in, Index out, ProductPrecision precision)
      : rows_(static_cast<int>(rows)),
        in_(static_cast<int>(in)),
        out_(static_cast<int>(out)),
        precision_(precision),
        a_(operand(gpu, rows, in, precision)),
        b_(operand(gpu, out, in, precision)),
        c_(gpu.make(rows, out)) {
    check(cublasCreate(&handle_));
    check(cublasSetStream(handle_, gpu.stream().queue().handle()));
  }
  CublasProduct(const CublasProduct&) = delete;
  CublasProduct& operator=(const CublasProduct&) = delete;
  ~CublasProduct() { cublasDestroy(handle_); }
  void operator()() {
    // Its matrices are column by column.
    const bool is_bf16 = precision_ == ProductPrecision::bf16;
    const cudaDataType_t type = is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasComputeType_t compute =
        precision_ == ProductPrecision::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const float one = 1, zero = 0;
    check(cublasGemmEx(handle_, CUBLAS_OP_T, CUBLAS_OP_N, out_, rows_, in_, &one, b_.data(), type, in_, a_.data(), type,
                       in_, &zero, c_.data(), CUDA_R_32F, out_, compute, CUBLAS_GEMM_DEFAULT));
  }

 private:
  static void check(cublasStatus_t status) {
    require(status == CUBLAS_STATUS_SUCCESS, "cuBLAS: ", cublasGetStatusString(status));
  }
  /// Returns noise, two values of bf16 in the place of a float. (The time of a GPU may depend on the numbers.)
  static Tensor operand(Gpu& gpu, Index rows, Index cols, ProductPrecision precision) {
    Matrix<float> x = noise(rows, cols);
    if (precision == ProductPrecision::bf16)
      for (Index i = 0; i < x.size(); ++i) {
        const std::uint32_t bits = to_bf16(x.data()[i]).bits;
        x.data()[i] = std::bit_cast<float>(bits << 16 | bits);
      }
    return gpu.input(x);
  }
  int rows_, in_, out_;
  ProductPrecision precision_;
  Tensor a_, b_, c_;
  cublasHandle_t handle_ = nullptr;
};

template <class Layer>
std::shared_ptr<Layer> on(Gpu& gpu, Layer layer) {
  gpu.prepare(layer);
  return std::make_shared<Layer>(std::move(layer));
}

/// Linear layers, whose weights are prepared as products read them, and the same products by cuBLAS.
void add_products() {
  for (const auto& [in, out] : {std::pair<Index, Index>{256, 1024}, {1024, 1024}, {1024, 4096}})
    for (const Index rows : {1, 32, 1000, 16000})
      for (const ProductPrecision precision : precisions) {
        const std::string shape = text(in, 'x', out, "/rows:", rows, '/', to_name(precision));
        const double flop = 2.0 * static_cast<double>(rows * in * out);
        const Index of_weight = precision == ProductPrecision::bf16 ? in * out / 2 : in * out;
        add(
            "linear/" + shape, flop, megabytes({rows * in, of_weight, rows * out}),
            [=, in = in, out = out](Gpu& gpu) {
              auto layer = std::make_shared<Linear<float>>(in, out, Seed(1));
              gpu.prepare(*layer, precision == ProductPrecision::bf16 ? Storage::bf16 : Storage::full);
              return [&gpu, x = gpu.input(noise(rows, in)), layer] { (*layer)(gpu, x); };
            },
            precision);
        add(
            "cublas/" + shape, flop, 0,
            [=, in = in, out = out](Gpu& gpu) {
              const auto product = std::make_shared<CublasProduct>(gpu, rows, in, out, precision);
              return [=] { (*product)(); };
            },
            precision);
      }
}

void add_attention() {
  constexpr Index heads = 16, width = 64, channels = heads * width;
  for (const bool positions : {false, true})
    for (const Index rows : {250, 3000}) {
      const double products = positions ? 6 : 4;
      add_each(text("attend/", positions ? "relative" : "none", "/rows:", rows),
               products * static_cast<double>(rows * rows * channels), megabytes({4 * rows * channels}), [=](Gpu& gpu) {
                 const auto x = [&] { return gpu.input(noise(rows, channels)); };
                 RelativeTerm<Tensor, float> term;
                 if (positions) term.table = gpu.input(noise(2 * rows - 1, channels));
                 const AttendShape shape{heads, heads, 0.125};
                 return [&gpu, q = x(), k = x(), v = x(), shape, term, of = Sequences{rows}] {
                   gpu.attend(q, k, v, shape, of, of, term);
                 };
               });
    }
  // One query a stream, over a latent that all heads share, rounded to bf16 in the cache.
  for (const Index shared : {16, 128})
    for (const Index latent : {64, 128, 256, 576})
      for (const auto& [streams, cached] : {std::pair<Index, Index>{1, 65536}, {64, 4096}})
        add_each(text("decode/heads:", shared, "/latent:", latent, '/', streams, 'x', cached),
                 4.0 * static_cast<double>(streams * cached * shared * latent),
                 megabytes({streams * cached * latent / 2}), [=, streams = streams, cached = cached](Gpu& gpu) {
                   auto cache = std::make_shared<Gpu::Cache>(gpu.make_cache(streams, cached, latent, Storage::bf16));
                   auto slots = std::make_shared<std::vector<Index>>();
                   const Sequences one(std::vector<Index>(static_cast<std::size_t>(streams), 1));
                   for (Index n = 0; n < streams; ++n) {
                     slots->push_back(n);
                     gpu.append(*cache, std::array{n}, gpu.input(noise(cached, latent)), Sequences{cached});
                   }
                   const AttendShape shape{shared, 1, 0.125};
                   return [&gpu, cache, slots, one, shape, q = gpu.input(noise(streams, shared * latent)),
                           now = gpu.input(noise(streams, latent))] {
                     const auto keys = gpu.with_cached(*cache, *slots, now, one);
                     gpu.attend(q, keys, keys, shape, one, gpu.cached_lengths(keys, one));
                   };
                 });
}

void add_others() {
  constexpr Index rows = 16000, channels = 512;
  add("layer_norm", 0, megabytes({2 * rows * channels}), [](Gpu& gpu) {
    return
        [&gpu, x = gpu.input(noise(rows, channels)), norm = on(gpu, LayerNorm<float>(channels))] { (*norm)(gpu, x); };
  });
  add("glu", 0, megabytes({3 * rows * channels}),
      [](Gpu& gpu) { return [&gpu, x = gpu.input(noise(rows, 2 * channels))] { gpu.glu(x); }; });
  add("log_softmax", 0, megabytes({2 * rows * channels}),
      [](Gpu& gpu) { return [&gpu, x = gpu.input(noise(rows, channels))] { gpu.log_softmax(x); }; });
}

/// Encoders and training steps, over utterances of 10 s.
void add_models() {
  const auto lengths = [](Index utterances, Index each) {
    return Sequences(std::vector<Index>(static_cast<std::size_t>(utterances), each));
  };
  constexpr Index utterances = 32, frames = 998, labels_each = 60;
  const EncoderConfig config{.d_model = 256, .num_layers = 12, .vocab_size = 29, .num_heads = 4};
  add_each("encoder/256x12/32x10s", 0, 0, [=](Gpu& gpu) {
    return [&gpu, x = noise(utterances * frames, 80), of = lengths(utterances, frames),
            model = on(gpu, Conformer<Mha<dyn>>(config, Seed(1)))] { (*model)(gpu, gpu.input(x), of); };
  });
  // The sizes of facebook/wav2vec2-conformer-rel-pos-large, from samples at 16 kHz.
  const EncoderConfig wav2vec2{.num_mels = 1,
                               .d_model = 1024,
                               .num_layers = 24,
                               .vocab_size = 32,
                               .num_heads = 16,
                               .subsampling = 320,
                               .waveform = {.conv_dim = {512, 512, 512, 512, 512, 512, 512},
                                            .conv_kernel = {10, 3, 3, 3, 3, 2, 2},
                                            .conv_stride = {5, 2, 2, 2, 2, 2, 2},
                                            .conv_bias = true}};
  for (const Index count : {1, 32})
    add_each(text("wav2vec2-conformer/1024x24/", count, "x10s"), 0, 0, [=](Gpu& gpu) {
      return [&gpu, x = noise(count * 160000, 1), of = lengths(count, 160000),
              model = on(gpu, Wav2Vec2Conformer<Mha<dyn>>(wav2vec2, Seed(1)))] { (*model)(gpu, gpu.input(x), of); };
    });
  for (const auto& [d, layers, heads] :
       std::array<std::array<Index, 3>, 4>{{{144, 16, 4}, {256, 12, 4}, {512, 17, 8}, {1024, 24, 16}}})
    add_each(
        text("train_step/", d, 'x', layers, "/32x10s"), 0, 0, [=, d = d, layers = layers, heads = heads](Gpu& gpu) {
          auto model = std::make_shared<Conformer<Mha<dyn>>>(
              EncoderConfig{.d_model = d, .num_layers = layers, .vocab_size = 29, .num_heads = heads}, Seed(1));
          gpu.prepare_training(*model);
          auto optimizer = std::make_shared<AdamW<Gpu>>(gpu, AdamWConfig{.weight_decay = 0.01, .clip_norm = 0});
          auto labels = std::make_shared<Labels>();
          labels->sequences = lengths(utterances, labels_each);
          for (Index i = 0; i < labels->sequences.rows(); ++i) labels->tokens.push_back(1 + static_cast<int>(i % 28));
          return
              [&gpu, model, optimizer, labels, x = noise(utterances * frames, 80), of = lengths(utterances, frames)] {
                Autodiff tape(gpu, Seed(static_cast<std::uint64_t>(optimizer->steps())));
                tape.backward(ctc_loss(tape, (*model)(tape, x, of), *labels));
                optimizer->step(*model, 1e-4);
              };
        });
}

/// Pushes of one chunk of 320 ms to each of so many streams, of an encoder of 12 layers of 256 that keeps 10 s, until
/// their logits are there. A GPU holds as many live streams as it pushes in 320 ms, if there is memory for them.
void add_streams() {
  using Model = Conformer<AnyAttention>;
  struct Choice {
    AttentionName attention;
    Index latent;
  };
  for (const Choice& choice : std::array<Choice, 4>{{{AttentionName::mha, 0},
                                                     {AttentionName::input_latent, 0},
                                                     {AttentionName::mla_simple, 128},
                                                     {AttentionName::mla_simple, 64}}})
    for (const Index count : {1, 64, 1024, 4096}) {
      const auto run = [=](benchmark::State& state) {
        Gpu gpu(CudaDevice{.precision = ProductPrecision::bf16});
        const auto model = on(gpu, Model({.d_model = 256,
                                          .num_layers = 12,
                                          .vocab_size = 29,
                                          .attention = choice.attention,
                                          .num_heads = 4,
                                          .num_kv_heads = choice.attention == AttentionName::input_latent ? 4 : 0,
                                          .kv_lora_rank = choice.latent,
                                          .convolution = ConvolutionContext::causal,
                                          .chunk = 8,
                                          .left_context = 248},
                                         Seed(1)));
        Streams<Model, Gpu> streams(*model, {.capacity = count, .storage = Storage::bf16}, gpu.settings());
        std::vector<Index> ids;
        for (Index n = 0; n < count; ++n) ids.push_back(streams.open());
        const Sequences blocks(std::vector<Index>(ids.size(), streams.chunk_rows()));
        const Matrix<float> x = noise(blocks.rows(), 80);
        const auto push = [&] {
          const auto begin = std::chrono::steady_clock::now();
          const auto logits = streams.push(ids, x, blocks);
          streams.context().stream().wait();
          return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        };
        for (int i = 0; i < 36; ++i) push();  // until the caches are full
        std::vector<double> seconds;
        for (auto _ : state) {
          seconds.push_back(push());
          state.SetIterationTime(seconds.back());
        }
        std::sort(seconds.begin(), seconds.end());
        state.counters["p99_us"] = 1e6 * seconds[(seconds.size() - 1) * 99 / 100];
        state.counters["MB"] = 1e-6 * static_cast<double>(streams.context().device_arena().peak_bytes());
        state.counters["cache_MB"] = 1e-6 * static_cast<double>(streams.attention_bytes());
      };
      const std::string name = text("push/256x12/", to_name(choice.attention),
                                    choice.latent > 0 ? text(":", choice.latent) : "", "/streams:", count, "/bf16");
      register_run(name, run)->Iterations(100);
    }
}

void measure_roofs() {
  Gpu gpu;
  constexpr Index side = 4096, megs = 512;
  const Tensor from = gpu.fill(megs, 1 << 18, 1);
  Tensor to = gpu.make(megs, 1 << 18);
  const auto copy = [&] { gpu.copy_rows(from, to, std::array{RowRange{0, megs, 0}}); };
  copy();
  copy_roof = 2 * megabytes({from.size()}) / seconds_of(gpu, copy);
  std::printf("copy %.0f GB/s, products", 1e-3 * copy_roof);
  for (const ProductPrecision precision : precisions) {
    CublasProduct product(gpu, side, side, side, precision);
    product();
    double& roof = product_roofs[static_cast<std::size_t>(precision)];
    roof = 1e-12 * 2.0 * static_cast<double>(side) * side * side / seconds_of(gpu, [&] { product(); });
    std::printf(" %.0f (%s)", roof, to_name(precision).data());
  }
  std::printf(" TFLOP/s\n");
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  try {
    measure_roofs();
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  add_products();
  add_attention();
  add_others();
  add_models();
  add_streams();
  benchmark::RunSpecifiedBenchmarks();
}
