// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// Times the matrix products of encoders, x W^T + b with x (rows, in) and W (out, in), in laconic, Eigen, and OpenBLAS
// and oneDNN if they are installed. Libraries take turns at each shape. A measurement is the mean of as many calls as
// take 3 ms. All calls multiply by one weight, which stays in the caches if it fits; --weights 8 takes eight in turn.
//
//   build/release/bench/products --serve [--threads N] [--rows 1 250] [--shapes 256x1024] [--weights 1] [--rounded]
//                                                                          for bench/peers/compare.py products
#include <laconic/backend/cpu.hpp>
#include <laconic/backend/cpu/weights.hpp>
#include <laconic/nn/linear.hpp>

#include <deque>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "fma_peak.hpp"
#include "product_libraries.hpp"
#include "serve.hpp"

namespace {

using namespace laconic;

struct Options : bench::Options {
  std::vector<Index> rows{1, 4, 8, 16, 64, 250, 1000};
  std::vector<std::string> shapes{"256x256",  "256x1024",  "1024x256",  "512x512",
                                  "512x2048", "1024x1024", "1024x4096", "4096x1024"};
  Index weights = 1;
  bool rounded = false;
};

/// Holds the layers of one shape, unpacked and packed for laconic.
struct Shape {
  Shape(Index in, Index out, const Options& o) {
    for (Index i = 0; i < o.weights; ++i) plain.emplace_back(in, out, Seed(1) / i);
    add("laconic", Storage::full, o.threads);
    if (!o.rounded) return;
    add("laconic, bf16", Storage::bf16, o.threads);
    add("laconic, int8", Storage::int8, o.threads);
  }

  bench::Layers plain;
  std::vector<std::pair<std::string, bench::Layers>> packed;

 private:
  void add(const char* name, Storage storage, int threads) {
    packed.emplace_back(name, plain);
    for (Linear<float>& layer : packed.back().second) Cpu<float>(threads).prepare(layer, storage);
  }
};

/// Holds one product: the calls of all libraries with the same operands.
struct Product {
  Product(const Shape& shape, Index rows, const Options& o, Cpu<float>& cpu)
      : name(text("T=", rows, ' ', shape.plain.front().in(), "->", shape.plain.front().out())),
        flop(2 * rows * shape.plain.front().weight.size()),
        x(Matrix<float>::Random(rows, shape.plain.front().in())) {
    for (const auto& [label, layers] : shape.packed) calls.emplace_back(label, by_laconic(layers, cpu));
    calls.emplace_back("laconic, not packed", by_laconic(shape.plain, cpu));
    bench::add_libraries(calls, x, shape.plain, o.threads);
    check();
    for (const auto& [label, call] : calls) repeats.push_back(bench::calls_for(call));
  }

  std::string name;
  Index flop;
  Matrix<float> x;
  bench::ProductCalls calls;
  std::vector<Index> repeats;

 private:
  bench::ProductCall by_laconic(const bench::Layers& layers, Cpu<float>& cpu) {
    return [&layers, &cpu, input = cpu.input(x), y = Tensor<float>()](Index i) mutable {
      y = {};  // returns its memory to the arena for the next result
      y = layers[static_cast<std::size_t>(i) % layers.size()](cpu, input);
      return std::as_const(y).data();
    };
  }
  /// Throws `Error` if a library computes another result than the last one.
  void check() const {
    const auto result = [&](const bench::ProductCall& call) {
      const Index out = flop / (2 * x.rows() * x.cols());
      return Matrix<float>(matrix_view(call(0), x.rows(), out));
    };
    const Matrix<float> expected = result(calls.back().second);
    for (const auto& [label, call] : calls) {
      const float difference = (result(call) - expected).cwiseAbs().maxCoeff() / expected.cwiseAbs().maxCoeff();
      const float max = label.ends_with("bf16") ? 1e-2f : label.ends_with("int8") ? 5e-2f : 1e-4f;
      require(difference <= max, "products: ", name, " by ", label, " differs by ", difference, ", at most ", max,
              " expected");
    }
  }
};

int run(const Options& o) {
  Cpu<float> cpu(o.threads);
  std::deque<Shape> shapes;
  std::deque<Product> products;
  for (const std::string& shape : o.shapes) {
    Index in = 0, out = 0;
    char between = 0, rest = 0;
    std::istringstream words(shape);
    require(words >> in >> between >> out && between == 'x' && !(words >> rest) && in > 0 && out > 0,
            "products: shape ", shape, " given, INxOUT expected");
    shapes.emplace_back(in, out, o);
    for (const Index rows : o.rows) products.emplace_back(shapes.back(), rows, o, cpu);
  }
  if (!o.serves) return 0;
  return bench::serve(o, [&](Index count) {
    bench::Json answer;
    for (const auto& product : products) answer["flop"][product.name] = product.flop;
    for (Index k = 0; k < count; ++k) {
      answer["peak_gflops"].push_back(bench::fma_peak_gflops(o.threads));
      for (const auto& product : products)
        for (std::size_t c = 0; c < product.calls.size(); ++c) {
          const auto& label = product.calls[c].first;
          const auto& call = product.calls[c].second;  // a lambda cannot capture a structured binding (clang 14)
          const Index repeats = product.repeats[c];
          const double seconds = bench::seconds_of([&] {
            for (Index i = 0; i < repeats; ++i) call(i);
          });
          answer["seconds"][label][product.name].push_back(seconds / static_cast<double>(repeats));
        }
    }
    return answer;
  });
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("matrix products of encoders in several libraries");
  Options o;
  o.add_to(app);
  app.add_option("--rows", o.rows, "rows of x")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--shapes", o.shapes, "INxOUT of the weights")->capture_default_str();
  app.add_option("--weights", o.weights, "different weights that calls take in turn")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_flag("--rounded", o.rounded, "laconic's weights packed as bf16 and int8, too");
  CLI11_PARSE(app, argc, argv);
  return bench::guarded([&] { return run(o); });
}
