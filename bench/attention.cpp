// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times softmax attention on one utterance of T frames with heads of width 64, with Transformer-XL relative positions
// (the table is projected beforehand) and without. A measurement is the mean of as many calls as take 3 ms.
//
//   build/release/bench/attention --serve [--threads N] [--heads 4 8] [--frames 250 1000 3000]
//                                                                          for bench/peers/compare.py attention
#include <laconic/backend/cpu.hpp>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "serve.hpp"

namespace {

using namespace laconic;

struct Options : bench::Options {
  std::vector<Index> heads{4, 8}, frames{250, 1000, 3000};
};

/// Holds one attention and its operands.
class Work {
 public:
  static constexpr Index head_dim = 64;

  Work(bool relative, Index heads, Index frames)
      : name(text(relative ? "relative positions" : "no positions", ", ", heads, " heads, T=", frames)),
        heads_(heads),
        frames_({frames}),
        q_(noise(frames)),
        k_(noise(frames)),
        v_(noise(frames)),
        u_({heads, head_dim}),
        w_({heads, head_dim}) {
    if (relative) table_ = noise(2 * frames - 1);
    fill_uniform(u_, 0.5, Random(Seed(1), "u"));
    fill_uniform(w_, 0.5, Random(Seed(1), "w"));
  }

  void operator()(Cpu<float>& cpu) const {
    const AttendShape shape{heads_, heads_, 1 / std::sqrt(static_cast<double>(head_dim))};
    RelativeTerm<Tensor<float>, float> term;
    if (table_.size() > 0) term = {cpu.input(table_), &u_, &w_};
    cpu.attend(cpu.input(q_), cpu.input(k_), cpu.input(v_), shape, frames_, frames_, term);
  }
  /// Returns the peak memory of a first call, in MB.
  double peak_mb(int threads) const {
    Cpu<float> fresh(threads);
    return bench::peak_over([&] { (*this)(fresh); });
  }

  std::string name;

 private:
  Matrix<float> noise(Index rows) const { return Matrix<float>::Random(rows, heads_ * head_dim); }

  Index heads_;
  Sequences frames_;
  Matrix<float> q_, k_, v_, table_;
  Parameter<float> u_, w_;
};

int run(const Options& o) {
  std::deque<Work> works;
  for (const bool relative : {true, false})
    for (const Index heads : o.heads)
      for (const Index frames : o.frames) works.emplace_back(relative, heads, frames);
  bench::Json peak_mb;
  for (const Work& work : works) peak_mb[work.name] = work.peak_mb(o.threads);
  Cpu<float> cpu(o.threads);
  std::vector<Index> calls;
  for (const Work& work : works) calls.push_back(bench::calls_for([&](Index) { work(cpu); }));
  if (!o.serves) return 0;
  return bench::serve(o, [&](Index count) {
    bench::Json answer{{"peak_mb", {{"laconic", peak_mb}}}};
    for (Index k = 0; k < count; ++k)
      for (std::size_t n = 0; n < works.size(); ++n) {
        const double seconds = bench::seconds_of([&] {
          for (Index i = 0; i < calls[n]; ++i) works[n](cpu);
        });
        answer["seconds"]["laconic"][works[n].name].push_back(seconds / static_cast<double>(calls[n]));
      }
    return answer;
  });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("softmax attention with and without relative positions");
  Options o;
  o.add_to(app);
  app.add_option("--heads", o.heads, "heads of width 64")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--frames", o.frames, "frames of the utterance")->capture_default_str()->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return run(o); });
}
