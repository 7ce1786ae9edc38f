// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Softmax attention on tensor cores, with operands rounded to Bf16, is that of doubles on the host to the digits of
// Bf16, and gives each sequence the same bits in any batch.
#include "gradient_check.hpp"

#include <laconic/backend/cuda/tensor_cores.hpp>

using namespace laconic;

namespace {

constexpr double tolerance = 1e-2;

/// Says what one attention is computed of.
struct Case {
  Index heads = 2, kv_heads = 2, key_width = 64, value_width = 64, position_width = 0;
  Mask mask{};
  std::vector<Index> queries{64}, keys{64};

  Index span() const { return *std::max_element(keys.begin(), keys.end()) + 3; }
  AttendShape shape() const { return {heads, kv_heads, 1 / std::sqrt(static_cast<double>(key_width)), mask}; }
};

std::string name_of(const Case& c) {
  return text("heads ", c.heads, "/", c.kv_heads, ", widths ", c.key_width, ", ", c.value_width, ", ", c.position_width,
              ", chunk ", c.mask.chunk, ", left ", c.mask.left_context, ", queries ", c.queries[0], ", keys ",
              c.keys[0], " of ", c.keys.size(), " sequences");
}

/// Holds the operands of a case.
struct Operands {
  Matrix<float> q, k, v, table, position_q;
  Parameter<float> u, w;
  Sequences queries, keys;

  explicit Operands(const Case& c) : queries(std::span<const Index>(c.queries)), keys(std::span<const Index>(c.keys)) {
    q = random_matrix<float>(queries.rows(), c.heads * c.key_width, 1);
    k = random_matrix<float>(keys.rows(), c.kv_heads * c.key_width, 2);
    v = random_matrix<float>(keys.rows(), c.kv_heads * c.value_width, 3);
    if (c.position_width == 0) return;
    table = random_matrix<float>(2 * c.span() - 1, c.heads * c.position_width, 4, 0.5);
    position_q = random_matrix<float>(queries.rows(), c.heads * c.position_width, 5);
    u = random_parameter<float>({c.heads * c.key_width}, 6, 0.3);
    w = random_parameter<float>({c.heads * c.position_width}, 7, 0.3);
  }
};

template <class T>
Parameter<T> with_type(const Parameter<float>& p) {
  Parameter<T> out({p.size()});
  out.host() = p.host().template cast<T>();
  return out;
}

/// Returns attention, and its logsumexp if `dropout` is not negative.
template <class Backend>
std::pair<Matrix<double>, Matrix<double>> attend(Backend& backend, const Case& c, const Operands& o,
                                                 double dropout = -1) {
  using T = typename Backend::Scalar;
  const auto tensor = [&](const Matrix<float>& m) { return backend.input(Matrix<T>(m.template cast<T>())); };
  const auto here = [&](const Parameter<float>& p) { return resident(backend, with_type<T>(p)); };
  RelativeTerm<typename Backend::Tensor, T> term;
  Parameter<T> u, w;
  if (c.position_width > 0) {
    u = here(o.u);
    w = here(o.w);
    term = {tensor(o.table), &u, &w, tensor(o.position_q)};
  }
  typename Backend::Tensor logsumexp;
  const auto q = tensor(o.q), k = tensor(o.k), v = tensor(o.v);
  const auto out = dropout < 0 ? backend.attend(q, k, v, c.shape(), o.queries, o.keys, term)
                               : backend.attend_train(q, k, v, c.shape(), o.queries, o.keys, term,
                                                      DropoutMask(dropout, Random(Seed(8), 0)), logsumexp);
  std::pair<Matrix<double>, Matrix<double>> all{Matrix<T>(backend.output(out)).template cast<double>(), {}};
  if (dropout >= 0) all.second = Matrix<T>(backend.output(logsumexp)).template cast<double>();
  return all;
}

double error(const Matrix<double>& got, const Matrix<double>& expected) {
  REQUIRE((got.rows() == expected.rows() && got.cols() == expected.cols()));
  if (expected.size() == 0) return 0;
  if (!got.allFinite()) return 1e300;
  return (got - expected).cwiseAbs().maxCoeff() / std::max(1.0, expected.cwiseAbs().maxCoeff());
}

/// Checks a case against doubles, its bits against those of each sequence alone, and under emulation its bits against
/// those of threads that run backwards.
void check(const Case& c, double dropout = -1) {
  INFO(name_of(c) << ", dropout " << dropout);
  const Operands o(c);
  Cuda<float> cuda(CudaDevice{.precision = ProductPrecision::bf16});
  Cpu<double> cpu;
  const auto got = attend(cuda, c, o, dropout), expected = attend(cpu, c, o, dropout);
  CHECK(error(got.first, expected.first) < tolerance);
  if (dropout >= 0) CHECK(error(got.second, expected.second) < tolerance);
#ifdef LACONIC_CUDA_EMULATED
  cuda::emulated_order() = cuda::Order::backward;
  CHECK(attend(cuda, c, o, dropout).first == got.first);
  cuda::emulated_order() = cuda::Order::forward;
#endif
  if (dropout > 0) return;  // its mask is one of rows
  for (std::size_t n = 0; n < c.keys.size() && c.keys.size() > 1; ++n) {
    const auto i = static_cast<Index>(n);
    Case one = c;
    one.queries = {c.queries[n]};
    one.keys = {c.keys[n]};
    Operands alone(one);
    alone.q = o.q.middleRows(o.queries.begin(i), c.queries[n]);
    alone.k = o.k.middleRows(o.keys.begin(i), c.keys[n]);
    alone.v = o.v.middleRows(o.keys.begin(i), c.keys[n]);
    if (c.position_width > 0) {
      alone.position_q = o.position_q.middleRows(o.queries.begin(i), c.queries[n]);
      alone.table = o.table.middleRows(c.span() - one.span(), 2 * one.span() - 1);
      alone.u = o.u;
      alone.w = o.w;
    }
    CHECK(attend(cuda, one, alone, dropout).first == got.first.middleRows(o.queries.begin(i), c.queries[n]));
  }
}

const Mask masks[] = {Mask::bidirectional(), Mask::causal(), Mask::chunked(20, Mask::unlimited), Mask::chunked(7, 30),
                      Mask::chunked(1, 5)};

}  // namespace

TEST_CASE("attention on tensor cores is the formula for every width", "[cuda]") {
  for (const Index width : {1, 7, 24, 64, 80, 130})
    for (const Index position_width : {Index{0}, width, width + 3})
      check({2, 1, width, width % 5 + width / 2 + 1, position_width, Mask::causal(), {65, 1}, {70, 33}});
  check({2, 2, 130, 200, 16, {}, {40}, {70}});
  check({16, 1, 600, 520, 0, {}, {2, 1}, {130, 70}});
}

TEST_CASE("attention on tensor cores is the formula for every length and mask", "[cuda]") {
  for (const Index length : {1, 15, 63, 64, 65, 200})
    for (const Mask& mask : masks)
      for (const Index position_width : {0, 16})
        check({1, 1, 16, 24, position_width, mask, {length, 3, 0}, {length + (length < 100 ? 0 : 40), 70, 5}});
}

TEST_CASE("attention on tensor cores is the formula for every group of heads", "[cuda]") {
  for (const Index group : {1, 2, 16})
    for (const Index queries : {1, 5, 20}) check({2 * group, 2, 24, 16, 0, masks[3], {queries, 1}, {queries + 90, 5}});
}

TEST_CASE("attention on tensor cores is the formula for keys in splits", "[cuda]") {
  for (const Index group : {1, 4})
    for (const Index position_width : {0, 16})
      check({2 * group, 2, 16, 24, position_width, {}, {1, 6, 17}, {580, 513, 20}});
  check({4, 1, 24, 8, 0, Mask::chunked(3, 200), {9, 30}, {1100, 600}});
}

TEST_CASE("attention on tensor cores is the formula for long sequences", "[cuda]") {
  check({1, 1, 64, 64, 64, {}, {260, 70}, {260, 70}});
  check({2, 1, 96, 96, 0, Mask::causal(), {130, 65}, {200, 65}});
}

TEST_CASE("attention on tensor cores drops weights and gives logsumexp", "[cuda]") {
  for (const double dropout : {0.0, 0.3})
    for (const Mask& mask : masks)
      for (const Index position_width : {0, 16}) check({2, 1, 16, 24, position_width, mask, {70, 3}, {80, 5}}, dropout);
  check({2, 1, 16, 24, 0, {}, {9, 3}, {900, 5}}, 0.0);
}

TEST_CASE("attention on tensor cores reads caches in place", "[cuda]") {
  struct Shape {
    Index heads, kv_heads, key_width, value_width;
    bool one_memory;  ///< the values are the keys
  };
  for (const Storage storage : {Storage::full, Storage::bf16, Storage::int8})
    for (const Shape& shape : {Shape{2, 2, 24, 16, false}, Shape{4, 2, 13, 5, false}, Shape{6, 1, 136, 136, true},
                               Shape{20, 1, 24, 24, true}}) {
      INFO(to_name(storage) << ", widths " << shape.key_width << ", " << shape.value_width);
      Cuda<float> cuda(CudaDevice{.precision = ProductPrecision::bf16});
      Cpu<double> cpu;
      const std::array<Index, 3> all_slots{0, 1, 2};
      const auto run = [&](auto& backend, const Index* only) {
        using T = typename std::remove_reference_t<decltype(backend)>::Scalar;
        const Index key_cols = shape.kv_heads * shape.key_width, value_cols = shape.kv_heads * shape.value_width;
        auto keys = backend.make_cache(3, 90, key_cols, storage),
             values = backend.make_cache(3, 90, value_cols, storage);
        std::vector<Matrix<double>> results;
        for (std::uint64_t round = 0; round < 3; ++round) {  // the ring of slot 0 goes round
          const std::vector<Index> lengths = round == 0   ? std::vector<Index>{80, 30, 0}
                                             : round == 1 ? std::vector<Index>{25, 1, 2}
                                                          : std::vector<Index>{3, 40, 1};
          const Sequences every{std::span<const Index>(lengths)};
          const auto tensor = [&](Index cols, std::uint64_t seed) {
            const Matrix<float> m = random_matrix<float>(every.rows(), cols, seed + 10 * round);
            const Matrix<float> part = only == nullptr ? m : m.middleRows(every.begin(*only), every.length(*only));
            return backend.input(Matrix<T>(part.template cast<T>()));
          };
          const std::vector<Index> one = only == nullptr ? lengths : std::vector<Index>{every.length(*only)};
          const Sequences rows{std::span<const Index>(one)};
          const std::span<const Index> slots =
              only == nullptr ? std::span<const Index>(all_slots) : std::span<const Index>(only, 1);
          const auto q = tensor(shape.heads * shape.key_width, 1), k = tensor(key_cols, 2),
                     v = tensor(value_cols, shape.one_memory ? 2 : 3);
          const auto in_keys = backend.with_cached(keys, slots, k, rows);
          const auto in_values = shape.one_memory ? in_keys : backend.with_cached(values, slots, v, rows);
          const Sequences all = backend.cached_lengths(in_keys, rows);
          const AttendShape of{shape.heads, shape.kv_heads, 1 / std::sqrt(static_cast<double>(shape.key_width)),
                               Mask::chunked(4, 70)};
          const Matrix<T> out = backend.output(backend.attend(q, in_keys, in_values, of, rows, all));
          results.push_back(out.template cast<double>());
          backend.append(keys, slots, k, rows);
          backend.append(values, slots, v, rows);
        }
        return results;
      };
      const auto got = run(cuda, nullptr), expected = run(cpu, nullptr);
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(error(got[i], expected[i]) < tolerance);
      const Index alone = 1;
      const auto of_one = run(cuda, &alone);
      CHECK(of_one[0] == got[0].middleRows(80, 30));
      CHECK(of_one[1] == got[1].middleRows(25, 1));
      CHECK(of_one[2] == got[2].middleRows(3, 40));
    }
}

TEST_CASE("attention on tensor cores gives rows of a stream the bits of the whole pass", "[cuda]") {
  const Case c{2, 2, 24, 16, 0, Mask::causal(), {150}, {150}};
  const Operands o(c);
  Cuda<float> cuda(CudaDevice{.precision = ProductPrecision::bf16});
  const Matrix<double> whole = attend(cuda, c, o).first;
  for (const auto& [first, count] : std::vector<std::pair<Index, Index>>{{0, 1}, {70, 1}, {100, 17}, {63, 2}}) {
    const Case part{2, 2, 24, 16, 0, Mask::causal(), {count}, {first + count}};
    Operands rows(part);
    rows.q = o.q.middleRows(first, count);
    rows.k = o.k.topRows(first + count);
    rows.v = o.v.topRows(first + count);
    CHECK(attend(cuda, part, rows).first == whole.middleRows(first, count));
  }
}

TEST_CASE("derivatives of attention on tensor cores are those of doubles", "[cuda]") {
  for (const Case& c :
       {Case{2, 2, 64, 64, 64, {}, {70, 3}, {70, 5}}, Case{4, 2, 24, 17, 0, Mask::causal(), {65}, {90}},
        Case{2, 1, 7, 80, 9, masks[3], {64, 1, 0}, {64, 66, 2}}, Case{1, 1, 200, 140, 70, {}, {20}, {30}}})
    for (const double dropout : {0.0, 0.3}) {
      INFO(name_of(c) << ", dropout " << dropout);
      const Operands o(c);
      const Matrix<float> dout = random_matrix<float>(o.queries.rows(), c.heads * c.value_width, 9);
      const auto run = [&](auto& backend) {
        using Backend = std::remove_reference_t<decltype(backend)>;
        using T = typename Backend::Scalar;
        const auto tensor = [&](const Matrix<float>& m) { return backend.input(Matrix<T>(m.template cast<T>())); };
        RelativeTerm<typename Backend::Tensor, T> term;
        Parameter<T> u, w;
        ParameterList<T> list({&u, &w});
        if (c.position_width > 0) {
          u = with_type<T>(o.u);
          w = with_type<T>(o.w);
          u.gradient().setZero();
          w.gradient().setZero();
          backend.prepare_training(list);
          term = {tensor(o.table), &u, &w, tensor(o.position_q)};
        }
        typename Backend::Tensor logsumexp;
        const DropoutMask mask(dropout, Random(Seed(8), 0));
        const auto q = tensor(o.q), k = tensor(o.k), v = tensor(o.v);
        backend.attend_train(q, k, v, c.shape(), o.queries, o.keys, term, mask, logsumexp);
        const auto d =
            backend.attend_backward(tensor(dout), q, k, v, c.shape(), o.queries, o.keys, term, mask, logsumexp);
        std::vector<Matrix<double>> all;
        for (const auto* x : {&d.dq, &d.dk, &d.dv, &d.dtable, &d.dposition_q})
          all.push_back(Matrix<T>(backend.output(*x)).template cast<double>());
        if (c.position_width > 0) {
          backend.fetch(list);
          all.push_back(u.gradient().template cast<double>());
          all.push_back(w.gradient().template cast<double>());
        }
        return all;
      };
      Cuda<float> cuda(CudaDevice{.precision = ProductPrecision::bf16});
      Cpu<double> cpu;
      const auto got = run(cuda), expected = run(cpu);
      for (std::size_t i = 0; i < got.size(); ++i) {
        INFO("derivative " << i);
        CHECK(error(got[i], expected[i]) < 2 * tolerance);
      }
#ifdef LACONIC_CUDA_EMULATED
      cuda::emulated_order() = cuda::Order::backward;
      CHECK(run(cuda) == got);
      cuda::emulated_order() = cuda::Order::forward;
#endif
    }
}

#ifdef LACONIC_CUDA_EMULATED
namespace {

/// Loads a (16, 16) matrix transposed, and its transpose as it is, and sums over groups of lanes.
struct LoadBothWays {
  static constexpr int threads = 32;
  std::uint32_t *loaded, *expected;
  float* sums;
  void operator()(cuda::Block& block) const {
    auto* m = block.shared<Bf16>(256);
    auto* transposed = block.shared<Bf16>(256);
    cuda::PerThread<float> values(block);
    block.each([&](int t) {
      for (int i = t; i < 256; i += threads) m[i] = transposed[i % 16 * 16 + i / 16] = to_bf16(static_cast<float>(i));
      values[t] = static_cast<float>(t);
    });
    // Matrix 2 j + i of 8 x 8 values is at row 8 i and column 8 j, and in the transpose the other way round.
    cuda::load_transposed(
        block, [&](int t) { return m + t % 16 * 16 + t / 16 * 8; }, [&](int t) { return loaded + 4 * t; });
    cuda::load_matrices(
        block, [&](int t) { return transposed + (t % 8 + t / 16 * 8) * 16 + t / 8 % 2 * 8; },
        [&](int t) { return expected + 4 * t; });
    cuda::reduce_groups(block, values, [](float a, float b) { return a + b; });
    block.each_in_warps([&](int t) { sums[t] = values[t]; });
  }
};

}  // namespace

TEST_CASE("matrices are loaded transposed, and groups of lanes are summed", "[cuda]") {
  std::vector<std::uint32_t> loaded(128), expected(128);
  std::vector<float> sums(32);
  cuda::launch(cuda::Stream({}), "test", {1}, LoadBothWays{loaded.data(), expected.data(), sums.data()}, 1024);
  CHECK(loaded == expected);
  for (int t = 0; t < 32; ++t) CHECK(sums[static_cast<std::size_t>(t)] == static_cast<float>(t / 4 * 16 + 6));
}
#endif
