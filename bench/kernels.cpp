// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times every kernel of the CPU backend next to its roofline bound on this machine.
//
//   build/release/bench/kernels --benchmark_counters_tabular=true [--benchmark_filter='linear/.*threads:1']
//   build/release/bench/kernels --benchmark_repetitions=5 --benchmark_out=new.json
//   python3 bench/compare_results.py old.json new.json
//
// `of_roof` is in percent: the min time that a call can take, over the time that it took. The label names what bounds
// the min time: multiply-adds of floats ("FMA") or of bytes ("int8") in registers, or reading the bytes of a call from
// "L2" (up to 512 KiB a thread), "L3" or "memory" (from 64 MiB on). These roofs are measured first and printed.
// "GFLOP/s" counts two for each multiply-add that must be done. It counts nothing for exponentials, so kernels that
// compute them stay far below the roof of their bytes. "GB/s" counts every operand and result once. All calls of a
// benchmark take the same operands, which stay in the caches if they fit. Only linear/.../cold takes 64 MiB of weights
// in turn, as a model with few rows does.
#include <laconic/backend/cpu.hpp>
#include <laconic/nn/conv1d.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/nn/subsampling.hpp>
#include <laconic/speech/fbank.hpp>
#include <laconic/train/adamw.hpp>

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "attention_kernels.hpp"
#include "kernel_suite.hpp"
#include "roofs.hpp"

namespace {

using namespace laconic;
using bench::float_bytes, bench::noise, bench::size_of, bench::Suite, bench::Work;

// -- products -------------------------------------------------------------------------------------------------------

struct Form {
  const char* name;
  std::optional<Storage> storage;  // none: unpacked

  double number_bytes() const { return storage == Storage::bf16 ? 2 : int8() ? 1 : float_bytes; }
  bool int8() const { return storage == Storage::int8; }
  template <class Layer>
  Layer of(Layer layer) const {
    if (storage) Cpu<float>().prepare(layer, *storage);
    return layer;
  }
};
constexpr Form unpacked{"unpacked", {}};
constexpr Form forms[] = {{"float", Storage::full}, {"bf16", Storage::bf16}, {"int8", Storage::int8}, unpacked};

struct Shape {
  Index in, out;
  std::string name() const { return text(in, 'x', out); }
};
constexpr Shape shapes[] = {{256, 1024}, {1024, 256}, {512, 512}, {1024, 4096}};

Work product_work(const Form& form, const Shape& s, Index rows) {
  return {.flop = 2 * size_of(rows, s.in) * static_cast<double>(s.out),
          .bytes = float_bytes * size_of(rows, s.in + s.out) + form.number_bytes() * size_of(s.in, s.out),
          .int8 = form.int8()};
}

void add_linear(const Suite& suite) {
  for (const Form& form : forms)
    for (const Shape& s : shapes)
      for (const Index rows : {1, 3, 4, 6, 8, 16, 64, 250, 1000})
        suite.add(text("linear/", form.name, '/', s.name(), "/rows:", rows), product_work(form, s, rows),
                  [=](Cpu<float>& cpu) {
                    return [&cpu, x = noise(rows, s.in), layer = form.of(Linear<float>(s.in, s.out, Seed(1)))] {
                      return layer(cpu, cpu.input(x));
                    };
                  });
}

void add_cold_linear(const Suite& suite) {
  constexpr Shape s{1024, 4096};
  for (const Form& form : forms)
    for (const Index rows : {1, 8}) {
      Work work = product_work(form, s, rows);
      work.working_set = 64 * bench::Roofs::mib;
      suite.add(text("linear/", form.name, '/', s.name(), "/rows:", rows, "/cold"), work, [=](Cpu<float>& cpu) {
        const auto count = static_cast<std::size_t>(work.working_set / (form.number_bytes() * size_of(s.in, s.out)));
        const Linear<float> layer(s.in, s.out, Seed(1));
        std::vector<Linear<float>> layers;
        while (layers.size() <= count) layers.push_back(form.of(layer));
        return [&cpu, x = noise(rows, s.in), layers = std::move(layers), next = std::size_t{0}]() mutable {
          next = (next + 1) % layers.size();
          return layers[next](cpu, cpu.input(x));
        };
      });
    }
}

void add_linear_backward(const Suite& suite) {
  for (const Shape& s : shapes)
    for (const Index rows : {64, 250, 1000, 4000}) {
      // Reads and writes x, dx, dy, the weight, and its gradient, which is read and written.
      const Work work{.flop = 4 * size_of(rows, s.in) * static_cast<double>(s.out),
                      .bytes = float_bytes * (size_of(rows, 2 * s.in + s.out) + 3 * size_of(s.in, s.out))};
      suite.add(text("linear_backward/", s.name(), "/rows:", rows), work, [=](Cpu<float>& cpu) {
        return [&cpu, x = noise(rows, s.in), dy = noise(rows, s.out), layer = Linear<float>(s.in, s.out, Seed(1))] {
          return cpu.linear_backward(cpu.input(dy), cpu.input(x), layer.weight, &layer.bias, true);
        };
      });
    }
}

// -- convolutions ---------------------------------------------------------------------------------------------------

template <class Shape>
Work convolution_work(const Form& form, const Shape& shape, Index rows_in, Index cols_in, Index outputs) {
  const double weight = size_of(shape.out_channels, shape.patch());
  return {.flop = 2 * static_cast<double>(outputs) * weight,
          .bytes = float_bytes * (size_of(rows_in, cols_in) + size_of(outputs, shape.out_channels)) +
                   form.number_bytes() * weight,
          .int8 = form.int8()};
}

/// Adds the subsampling of 10 s, 998 frames of 80 mels.
void add_conv2d(const Suite& suite) {
  constexpr Index channels = 256;
  constexpr Conv2dShape first{1, channels, 80}, second{channels, channels, first.out_freqs()};
  const auto add = [&](const Form& form, const Conv2dShape& shape, Index rows) {
    const Index out = shape.out_length(rows);
    suite.add(text("conv2d/", form.name, '/', shape.in_channels, 'x', channels),
              convolution_work(form, shape, rows, shape.in_cols(), out * shape.out_freqs()), [=](Cpu<float>& cpu) {
                return [&cpu, x = noise(rows, shape.in_cols()), from = Sequences{rows}, to = Sequences{out},
                        layer = form.of(Conv2d<float>(shape, Seed(1)))] { return layer(cpu, cpu.input(x), from, to); };
              });
  };
  for (const Form& form : forms) {
    if (!form.int8()) add(form, first, 998);  // patches of 9 elements are never rounded to bytes
    add(form, second, first.out_length(998));
  }
}

/// Adds the derivatives of the second subsampling convolution by its input and its weight.
void add_conv2d_backward(const Suite& suite) {
  constexpr Conv2dShape shape{256, 256, 39};
  constexpr Index rows = 498, out = shape.out_length(rows);
  Work work = convolution_work(unpacked, shape, 2 * rows, shape.in_cols(), out * shape.out_freqs());
  work.flop *= 2;
  suite.add("conv2d_backward/256x256", work, [=](Cpu<float>& cpu) {
    return [&cpu, shape, x = noise(rows, shape.in_cols()), dy = noise(out, shape.out_cols()), from = Sequences{rows},
            to = Sequences{out}, layer = Conv2d<float>(shape, Seed(1))] {
      return cpu.conv2d_backward(cpu.input(dy), cpu.input(x), layer.weight, layer.bias, shape, from, to, true);
    };
  });
}

/// Adds a convolution of wav2vec 2.0's front end, on 2.5 s in frames of 2.5 ms.
void add_conv1d(const Suite& suite) {
  constexpr Conv1dShape shape{512, 512, 3, 2};
  constexpr Index rows = 1000, out = shape.out_length(rows);
  for (const Form& form : forms)
    suite.add(text("conv1d/", form.name, "/512x512"), convolution_work(form, shape, rows, shape.in_channels, out),
              [=](Cpu<float>& cpu) {
                return [&cpu, x = noise(rows, shape.in_channels), from = Sequences{rows}, to = Sequences{out},
                        layer = form.of(Conv1d<float>(shape, Seed(1), Bias::yes))] {
                  return layer(cpu, cpu.input(x), from, to);
                };
              });
}

void add_depthwise_conv(const Suite& suite) {
  constexpr Index channels = 256, kernel = 31;
  for (const Index rows : {250, 1000}) {
    const Work work{.flop = 2 * size_of(rows, channels) * kernel, .bytes = 2 * float_bytes * size_of(rows, channels)};
    suite.add(text("depthwise_conv/", channels, "/kernel:", kernel, "/rows:", rows), work, [=](Cpu<float>& cpu) {
      Parameter<float> weight({channels, 1, kernel});
      fill_uniform(weight, 1, Random(Seed(1), "weight"));
      return [&cpu, x = noise(rows, channels), weight = std::move(weight), sequences = Sequences{rows}] {
        return cpu.depthwise_conv(cpu.input(x), weight, nullptr, sequences, DepthwiseShape{weight.cols() / 2});
      };
    });
  }
}

// -- elementwise and rows -------------------------------------------------------------------------------------------

/// Adds run(cpu, x) of one matrix, whose result has `out_cols` columns.
template <class Run>
void add_map(const Suite& suite, const std::string& name, Index rows, Index cols, Index out_cols, Run run) {
  suite.add(text(name, '/', cols, "/rows:", rows), {.bytes = float_bytes * size_of(rows, cols + out_cols)},
            [=](Cpu<float>& cpu) { return [&cpu, run, x = noise(rows, cols)] { return run(cpu, cpu.input(x)); }; });
}

void add_maps(const Suite& suite) {
  using Context = Cpu<float>;
  using Rows = Tensor<float>;
  const DropoutMask dropout(0.1, Random(Seed(1), "dropout"));
  for (const Index rows : {250, 1000}) {
    const auto add = [&](const std::string& name, Index cols, Index out_cols, auto run) {
      add_map(suite, name, rows, cols, out_cols, run);
    };
    add("layer_norm", 256, 256, [norm = LayerNorm<float>(256)](Context& cpu, const Rows& x) { return norm(cpu, x); });
    add("batch_norm", 256, 256, [norm = BatchNorm<float>(256)](Context& cpu, const Rows& x) { return norm(cpu, x); });
    add("glu", 512, 256, [](Context& cpu, const Rows& x) { return cpu.glu(x); });
    for (const Activation kind : {Activation::relu, Activation::silu, Activation::gelu})
      add(text("activation/", to_name(kind)), 1024, 1024,
          [=](Context& cpu, const Rows& x) { return cpu.activation(kind, x); });
    add("log_softmax", 500, 500, [](Context& cpu, const Rows& x) { return cpu.log_softmax(x); });
    add("dropout_train", 1024, 1024, [=](Context& cpu, const Rows& x) { return cpu.dropout_train(x, dropout); });
  }
}

void add_ctc(const Suite& suite) {
  constexpr Index utterances = 8, frames = 250, labels_each = 50;
  for (const Index vocab : {29, 500}) {
    const Index rows = utterances * frames;
    suite.add(text("ctc/vocab:", vocab, "/utterances:8/frames:250/labels:50"),
              {.bytes = 2 * float_bytes * size_of(rows, vocab)}, [=](Cpu<float>& cpu) {
                const std::vector<Index> lengths(utterances, frames), label_lengths(utterances, labels_each);
                Labels labels{{}, Sequences(label_lengths)};
                const Random random(Seed(1), "labels");
                for (std::uint64_t i = 0; i < utterances * labels_each; ++i)
                  labels.tokens.push_back(1 + static_cast<int>(random.below(vocab - 1, i)));
                return [&cpu, x = noise(rows, vocab), sequences = Sequences(lengths), labels = std::move(labels)] {
                  Tensor<float> derivative;
                  return cpu.ctc(cpu.input(x), sequences, labels, 0, &derivative);
                };
              });
  }
}

// -- training and features ------------------------------------------------------------------------------------------

/// Adds steps of AdamW: weight, two moments and gradient are read and written, and the gradient is read for its norm
/// before. The moments neither move nor vanish, since denormal values would be slow.
void add_adamw(const Suite& suite) {
  for (const Shape& s : {shapes[0], shapes[3]})
    suite.add(text("adamw/", s.name()), {.bytes = 9 * float_bytes * size_of(s.in, s.out)}, [=](Cpu<float>& cpu) {
      Linear<float> layer(s.in, s.out, Seed(1), Bias::no);
      layer.weight.gradient() = noise(s.out, s.in);
      AdamW optimizer(cpu, {.beta1 = 0.9999999, .beta2 = 0.9999999});
      optimizer.set_state({{{noise(s.out, s.in), noise(s.out, s.in).cwiseAbs()}}});
      return
          [layer = std::move(layer), optimizer = std::move(optimizer)]() mutable { return optimizer.step(layer, 0); };
    });
}

void add_fbank() {
  constexpr Index seconds = 10;
  Suite::add_speech("fbank/seconds:10", seconds, [] {
    return [fbank = Fbank(FbankConfig()), speech = noise(1, 16000 * seconds)] {
      return fbank(std::span(speech.data(), static_cast<std::size_t>(speech.size())));
    };
  });
}

// -------------------------------------------------------------------------------------------------------------------

/// Measures the roofs of one thread, and of two if the machine has them, and writes them to the head of the results.
std::vector<bench::Roofs> measured_roofs() {
  const std::vector<float> x(static_cast<std::size_t>(bench::Roofs::memory_bytes / float_bytes), 1.0f);
  std::vector<bench::Roofs> out;
  const auto tell = [&](const std::string& what, double number) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.1f", number);
    benchmark::AddCustomContext(text("threads:", out.back().threads, '/', what), digits);
  };
  for (int threads = 1; threads <= std::min(2, hardware_threads()); ++threads) {
    out.emplace_back(threads, x);
    tell("GFLOP/s of FMA", out.back().fma_gflops);
    if (out.back().int8_gops > 0) tell("GOP/s of int8", out.back().int8_gops);
    for (const auto& reading : out.back().reading) tell(text("GB/s from ", reading.from), reading.gbs);
  }
  if (out.size() == 2 && out[1].fma_gflops < 1.6 * out[0].fma_gflops)
    std::fprintf(stderr, "***WARNING*** two threads reach %.1f GFLOP/s and one %.1f: another program is running?\n",
                 out[1].fma_gflops, out[0].fma_gflops);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::AddCustomContext("cpu", bench::cpu_name());
  benchmark::AddCustomContext("instructions", xsimd::default_arch::name());
  benchmark::AddCustomContext("compiler", __VERSION__);
  const Suite suite(measured_roofs());
  add_linear(suite);
  add_cold_linear(suite);
  add_linear_backward(suite);
  add_conv2d(suite);
  add_conv2d_backward(suite);
  add_conv1d(suite);
  add_depthwise_conv(suite);
  bench::add_attention(suite);
  bench::add_attention_training(suite);
  bench::add_extend(suite);
  add_maps(suite);
  add_ctc(suite);
  add_adamw(suite);
  add_fbank();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
