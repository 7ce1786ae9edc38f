// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Counts how many streams fit into a budget of key-value cache, and times pushing them all chunk by chunk, for MHA and
// each latent attention. With several threads the last column says what the processors themselves gain meanwhile: the
// multiply-adds in registers of all threads at once over those of one, measured after each chunk. On a virtual machine
// this changes from minute to minute.
//   usage: streams [--size small|published] [--budget-mib 1024] [--left-context 250] [--threads 1] [--chunks 3]
#include <laconic/attention/any.hpp>
#include <laconic/model/conformer.hpp>
#include <laconic/model/published.hpp>
#include <laconic/model/stream.hpp>

#include <sys/resource.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdio>
#include <numeric>

#include "fma_peak.hpp"

using namespace laconic;

namespace {

struct Options {
  std::string size = "small", cache = "float";
  Index budget_mib = 1024, left_context = 250, chunk = 8, chunks = 3;
  int threads = 1;
};

double peak_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
}

void run(const Options& o, const EncoderConfig& config) {
  using Model = Conformer<AnyAttention>;
  const Storage storage = from_name<Storage>(o.cache).value();
  const Index each = Model::cache_bytes(config, frames(o.left_context), storage);
  const Index capacity = (o.budget_mib << 20) / each;
  Model model(config, Seed(1));
  Cpu<float>().prepare(model);
  Streams streams(model, {.capacity = capacity, .storage = storage, .threads = o.threads});
  std::vector<Index> ids;
  for (Index i = 0; i < capacity; ++i) ids.push_back(streams.open());
  const double chunk_seconds = 0.01 * static_cast<double>(streams.chunk_rows());

  // Round robin in groups, so that the features of all streams need not be in memory at once.
  constexpr Index group = 64;
  const Index rows = streams.chunk_rows();
  Matrix<float> features = Matrix<float>::Random(std::min(group, capacity) * rows, config.num_mels);
  double seconds = 0, together = 0, alone = 0;            // the last two: GFLOP/s of multiply-adds
  for (Index chunk = 0; chunk < o.chunks + 1; ++chunk) {  // the first chunk only fills the window of the subsampling
    for (Index begin = 0; begin < capacity; begin += group) {
      const Index count = std::min(group, capacity - begin);
      const std::vector<Index> lengths(static_cast<std::size_t>(count), rows);
      const Matrix<float> block = features.topRows(count * rows);
      const Sequences blocks(lengths);
      const auto start = std::chrono::steady_clock::now();
      streams.push(std::span(ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)), block,
                   blocks);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (chunk == 0) continue;
      seconds += took;
    }
    if (o.threads == 1) continue;
    alone += bench::fma_peak_gflops(1);
    together += bench::fma_peak_gflops(o.threads);
  }
  const double factor = seconds / (static_cast<double>(o.chunks) * chunk_seconds);
  std::printf("%-14s %12td %9td %9.1f %9.1f %9.2f %12.3f %12.0f %10.2f\n",
              std::string(to_name(config.attention)).c_str(), each, capacity,
              static_cast<double>(streams.attention_bytes()) / (1 << 20),
              static_cast<double>(streams.convolution_bytes() + streams.feature_bytes()) / (1 << 20), peak_gib(),
              factor, static_cast<double>(capacity) / factor, o.threads == 1 ? 1.0 : together / alone);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("how many streams fit into a budget of key-value cache, and how fast they are");
  app.add_option("--size", o.size, "small: 4 x 128, 8 heads; published: 24 x 1024, 16 heads")
      ->capture_default_str()
      ->check(CLI::IsMember({"small", "published"}));
  app.add_option("--cache", o.cache, "how keys and values are stored")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "bf16", "int8"}));
  app.add_option("--budget-mib", o.budget_mib, "budget of key-value cache, in MiB")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--left-context", o.left_context, "encoder frames of 40 ms that are kept")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--chunk", o.chunk, "encoder frames that become final together")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--chunks", o.chunks, "chunks that each stream is pushed")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--threads", o.threads, "threads")->capture_default_str()->check(CLI::PositiveNumber);
  std::string only;
  app.add_option("--attention", only, "only this one");
  CLI11_PARSE(app, argc, argv);
  EncoderConfig encoder = published_model(o.size == "small" ? "conformer_mha_small" : "conformer_mha").config;
  encoder.convolution = ConvolutionContext::chunk;
  encoder.chunk = o.chunk;
  encoder.left_context = o.left_context;
  std::printf("Conformer, %s size, %td MiB of cache as %s, chunks of %td and left context of %td frames, %d threads\n",
              o.size.c_str(), o.budget_mib, o.cache.c_str(), o.chunk, o.left_context, o.threads);
  std::printf("%-14s %12s %9s %9s %9s %9s %12s %12s %10s\n", "attention", "bytes each", "streams", "cache MiB",
              "other MiB", "peak GiB", "RTF of all", "live at once", "processors");
  for (const EncoderConfig& config : quarter_caches(encoder))
    if (only.empty() || only == to_name(config.attention)) run(o, config);
  return 0;
}
