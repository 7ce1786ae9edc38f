// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Written by scripts/amalgamate from the files below include/laconic: change those, not this.
#pragma once
//
// The core in one include: no file formats, no audio (those are <laconic/io/...> and <laconic/speech/...>).

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// The inline namespace of everything. What the instruction set changes, the width of vectors and the alignment of matrices,
// is part of each name: files compiled for different ones do not link, where they would crash.
#if defined(__AVX512F__)
#define LACONIC_ABI v0_avx512
#elif defined(__AVX2__)
#define LACONIC_ABI v0_avx2
#elif defined(__AVX__)
#define LACONIC_ABI v0_avx
#else
#define LACONIC_ABI v0
#endif

// Infeasible CTC losses are infinite, and what is not a number must show: a build that assumes neither exists breaks both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace laconic::inline LACONIC_ABI {

/// What every run-time failure throws. The text says where, what was given and what was expected.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {

inline void append(std::string& out, std::string_view part) { out += part; }
inline void append(std::string& out, char part) { out += part; }

template <class Number>
  requires std::integral<Number> || std::floating_point<Number>
void append(std::string& out, Number part) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, part).ptr;
  out.append(digits, end);
}

}  // namespace detail

/// The parts, written one after the other: `text("rank ", 64, " > ", 32)`.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

/// Throws `Error` with the parts as its text unless `condition` holds. The text is only built when it is needed.
template <class... Parts>
constexpr void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]]
    throw Error(text(parts...));
}

}  // namespace laconic

#include <cstddef>

namespace laconic::inline LACONIC_ABI {

/// Sizes and positions; signed, as in Eigen.
using Index = std::ptrdiff_t;

/// Stands in a type for a number that is known only at run time: `Mha<dyn>`.
inline constexpr Index dyn = -1;

/// A number in a type, or in the object where the type says `dyn` (as `std::extents` does it).
/// A static extent takes no storage with `[[no_unique_address]]` and converts silently to `Extent<dyn>`;
/// the other way is explicit and checked.
template <Index N>
class Extent {
  static_assert(N >= 0, "laconic: an extent is at least 0, or `dyn` for a number known at run time");

 public:
  constexpr Extent() = default;
  constexpr explicit Extent(Index value) {
    require(value == N, "extent: ", value, " given where the type says ", N);
  }
  constexpr operator Index() const { return N; }
  static constexpr bool is_static = true;
};

template <>
class Extent<dyn> {
 public:
  constexpr Extent(Index value) : value_(value) { require(value >= 0, "extent: ", value, " given, at least 0 expected"); }
  template <Index N>
  constexpr Extent(Extent<N>) : value_(N) {}
  constexpr operator Index() const { return value_; }
  static constexpr bool is_static = false;

 private:
  Index value_;
};

/// The extent that type and configuration together say: a configured 0 means "as the type says".
/// Throws where they contradict each other, or where neither says anything.
template <Index N>
constexpr Extent<N> resolve(Index configured, const char* name) {
  if constexpr (N == dyn) {
    require(configured > 0, name, ": the type says `dyn`, so the configuration must say it: ", configured, " given");
    return Extent<dyn>(configured);
  } else {
    require(configured == 0 || configured == N, name, ": ", configured, " configured, but the type says ", N);
    return Extent<N>();
  }
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// Numbers of an attention that its type may leave open (`dyn`). 0 means "as the type says".
struct AttentionConfig {
  Index d_model = 0;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
};

/// All numbers of one attention, from type and configuration together.
struct AttentionDims {
  Index d_model, num_heads, num_kv_heads, kv_lora_rank;
  constexpr Index head_dim() const { return d_model / num_heads; }
  constexpr Index kv_dim() const { return num_kv_heads * head_dim(); }
};

/// H query heads over G key-value heads: G = H is multi-head attention (Vaswani 2017), G = 1 multi-query (Shazeer 2019),
/// between them grouped-query (Ainslie 2023). Query head h reads key-value head h / (H / G).
template <Index H, Index G = H>
struct Heads {
  static_assert(H == dyn || H > 0, "laconic: the number of heads must be positive, or `dyn`");
  static_assert(G == dyn || G > 0, "laconic: the number of key-value heads must be positive, or `dyn`");
  static_assert(H == dyn || G == dyn || H % (G > 0 ? G : 1) == 0,
                "laconic: the number of key-value heads must divide the number of query heads");
  static constexpr Index num_heads = H, num_kv_heads = G;
};

}  // namespace laconic

#include <Eigen/Core>

#include <type_traits>

namespace laconic::inline LACONIC_ABI {

/// An owning row-major matrix `(rows, channels)`: one row a frame.
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

template <class T>
struct View {
  using type = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
};
template <class T>
struct View<const T> {
  using type = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;
};

}  // namespace detail

/// A borrowed row-major matrix whose rows may lie apart (a block of columns). `MatrixView<const T>` only reads.
/// Assigning to one copies values, as with every `Eigen::Map`.
template <class T>
using MatrixView = typename detail::View<T>::type;

template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols, Index stride) {
  return MatrixView<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols) {
  return matrix_view(data, rows, cols, cols);
}
template <class T>
MatrixView<const T> view(const Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}
template <class T>
MatrixView<T> view(Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}

}  // namespace laconic

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>

namespace laconic::inline LACONIC_ABI {

namespace detail {

constexpr std::uint64_t hash(std::string_view name, std::uint64_t h = 0xcbf29ce484222325) {  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

}  // namespace detail

/// What all randomness of a run is derived from. `seed / "layers" / 3` is a seed of its own for that part, so that what
/// one part draws does not depend on which other parts exist.
struct Seed {
  std::uint64_t value = 0;
  constexpr Seed() = default;
  constexpr explicit Seed(std::uint64_t v) : value(v) {}

  friend constexpr Seed operator/(Seed seed, std::string_view part) {
    return Seed(detail::hash(part, (seed.value + 1) * 0x9E3779B97F4A7C15));
  }
  friend constexpr Seed operator/(Seed seed, Index part) {
    return Seed((seed / "#").value + static_cast<std::uint64_t>(part) * 0xD1B54A32D192ED03);
  }
};

/// Counter-based random numbers: number i of a stream is a function of (seed, stream, i) alone, so results depend
/// neither on threads nor on the order of evaluation. Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers:
/// as easy as 1, 2, 3"); equal to the authors' known answers. Nothing allocates.
class Random {
 public:
  constexpr Random(Seed seed, std::uint64_t stream) : seed_(seed.value), stream_(stream) {}
  constexpr Random(Seed seed, std::string_view name) : Random(seed, detail::hash(name)) {}

  /// The blocks of `Count` counters from `first` on, number w of each in w0 .. w3. All in 64 bits, so that a compiler
  /// makes vectors of it.
  template <int Count>
  constexpr void blocks(std::uint64_t first, std::uint64_t* w0, std::uint64_t* w1, std::uint64_t* w2, std::uint64_t* w3) const {
    constexpr std::uint64_t half = 0xffffffff;
    for (int i = 0; i < Count; ++i) {
      w0[i] = (first + static_cast<std::uint64_t>(i)) & half;
      w1[i] = (first + static_cast<std::uint64_t>(i)) >> 32;
      w2[i] = stream_ & half;
      w3[i] = stream_ >> 32;
    }
    std::uint64_t k0 = seed_ & half, k1 = seed_ >> 32;
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < Count; ++i) {
        const std::uint64_t a = 0xD2511F53 * w0[i], b = 0xCD9E8D57 * w2[i];
        w0[i] = (b >> 32) ^ w1[i] ^ k0;
        w1[i] = b & half;
        w2[i] = (a >> 32) ^ w3[i] ^ k1;
        w3[i] = a & half;
      }
      k0 = (k0 + 0x9E3779B9) & half;
      k1 = (k1 + 0xBB67AE85) & half;
    }
  }
  /// Four 32-bit numbers for each counter.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::uint64_t x[4];
    blocks<1>(counter, x, x + 1, x + 2, x + 3);
    return {low(x[0]), low(x[1]), low(x[2]), low(x[3])};
  }

  constexpr std::uint32_t bits(std::uint64_t i) const { return block(i / 4)[i % 4]; }
  /// Uniform in [0, 1), a multiple of 2^-32.
  constexpr double uniform(std::uint64_t i) const { return bits(i) * 0x1p-32; }
  /// Uniform among 0 .. n-1.
  constexpr Index below(Index n, std::uint64_t i) const {
    return static_cast<Index>((static_cast<std::uint64_t>(bits(i)) * static_cast<std::uint64_t>(n)) >> 32);
  }
  /// Standard normal (Box-Muller).
  double normal(std::uint64_t i) const {
    const auto x = block(i / 2);
    const std::size_t pair = 2 * (i % 2);
    const double radius = std::sqrt(-2 * std::log((x[pair] + 1.0) * 0x1p-32));
    return radius * std::cos(2 * std::numbers::pi * (x[pair + 1] * 0x1p-32));
  }

 private:
  static constexpr std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }

  std::uint64_t seed_, stream_;
};

/// Puts the items in random order (Fisher-Yates), the same on every machine for the same seed and stream.
template <class Container>
void shuffle(Container& items, const Random& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.below(static_cast<Index>(i), i))]);
}

}  // namespace laconic

#include <initializer_list>
#include <vector>

namespace laconic::inline LACONIC_ABI {

/// What a parameter is to an optimiser.
enum class Role {
  weight,     ///< trained by its gradient
  statistic,  ///< gathered while training (batch norm); its gradient slot carries the update to be added
};

/// A named value of a model, laid out as PyTorch stores it: a linear weight is `(out, in)`, a depthwise kernel
/// `(channels, 1, kernel)`. `value` shows it as a matrix: the first dimension, times all others.
/// The gradient is scratch of training: a tape fills it also through a const model.
template <class T>
class Parameter {
 public:
  using Scalar = T;

  Parameter() = default;
  /// Zeros. Allocates.
  explicit Parameter(std::initializer_list<Index> shape, Role role = Role::weight) : shape_(shape), role_(role) {
    Index rows = shape_.empty() ? 1 : shape_[0], cols = 1;
    for (std::size_t i = 1; i < shape_.size(); ++i) cols *= shape_[i];
    if (shape_.size() == 1) std::swap(rows, cols);  // a vector is one row
    value.setZero(rows, cols);
  }

  const std::vector<Index>& shape() const { return shape_; }
  Index size() const { return value.size(); }
  Role role() const { return role_; }

  Matrix<T> value;

  /// Frozen parameters get no gradient.
  bool trainable = true;

  bool has_gradient() const { return gradient_.size() == value.size() && value.size() > 0; }
  /// The gradient, zeroed when asked for the first time. Allocates then.
  Matrix<T>& gradient() const {
    if (!has_gradient()) gradient_.setZero(value.rows(), value.cols());
    return gradient_;
  }
  void clear_gradient() const {
    if (has_gradient()) gradient_.setZero();
  }

 private:
  std::vector<Index> shape_;
  Role role_ = Role::weight;
  mutable Matrix<T> gradient_;
};

namespace detail {

template <class>
inline constexpr bool is_parameter = false;
template <class T>
inline constexpr bool is_parameter<Parameter<T>> = true;

/// Calls `visit(dotted_name, parameter)` for every parameter below a module.
template <class Visit>
struct ParameterWalk {
  Visit& visit;
  std::string path;

  template <class Child>
  void operator()(std::string_view name, Child& child) {
    const std::size_t length = path.size();
    if (length > 0) path += '.';
    path += name;
    if constexpr (is_parameter<std::remove_const_t<Child>>)
      visit(std::string_view(path), child);
    else
      std::remove_const_t<Child>::each_parameter(child, *this);
    path.resize(length);
  }
  /// Numbered children: "layers.0", "layers.1" ...
  template <class Child>
  void operator()(std::string_view name, std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
  template <class Child>
  void operator()(std::string_view name, const std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
};

}  // namespace detail

/// Base of every layer and model. `Self` lists its parameters and sub-layers once, by name, in
/// `static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); ... }`;
/// loading, saving, counting, optimising and converting all go through it.
template <class Self>
class Module {
 public:
  /// Calls `visit(std::string_view dotted_name, Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) {
    detail::ParameterWalk<std::remove_reference_t<Visit>> walk{visit, {}};
    Self::each_parameter(static_cast<Self&>(*this), walk);
  }
  template <class Visit>
  void parameters(Visit&& visit) const {
    detail::ParameterWalk<std::remove_reference_t<Visit>> walk{visit, {}};
    Self::each_parameter(static_cast<const Self&>(*this), walk);
  }

  /// Numbers held in trained parameters (statistics of batch norm do not count).
  Index count_parameters() const {
    Index count = 0;
    parameters([&](std::string_view, const auto& p) { count += p.role() == Role::weight ? p.size() : 0; });
    return count;
  }
};

/// Fills with uniform numbers in [-bound, bound).
template <class T>
void fill_uniform(Parameter<T>& parameter, double bound, const Random& random) {
  for (Index i = 0; i < parameter.size(); ++i)
    parameter.value.data()[i] = static_cast<T>(bound * (2 * random.uniform(static_cast<std::uint64_t>(i)) - 1));
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// Whether a layer has a bias.
enum class Bias { no, yes };

/// y = x W^T + b for every row: (rows, in) to (rows, out). Also a convolution of kernel 1 over time, whose weight is
/// stored as `(out, in, 1)`. Initial values as PyTorch's: uniform within 1/sqrt(in).
template <class T>
class Linear : public Module<Linear<T>> {
 public:
  Linear(Index in, Index out, Seed seed, Bias with_bias = Bias::yes) : Linear({out, in}, seed, with_bias) {}
  static Linear pointwise_conv(Index in, Index out, Seed seed) { return Linear({out, in, 1}, seed, Bias::no); }

  Index in() const { return weight.value.cols(); }
  Index out() const { return weight.value.rows(); }
  bool has_bias() const { return bias.size() > 0; }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.linear(x, weight, has_bias() ? &bias : nullptr);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.has_bias()) visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

 private:
  Linear(std::initializer_list<Index> shape, Seed seed, Bias with_bias) : weight(shape) {
    const double bound = 1 / std::sqrt(static_cast<double>(in()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({out()});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

// A key-value policy says what is kept of each frame and how keys and values come from it. It has
//   cache_floats(dims), parameter_count(dims), flops(dims)   constexpr, a frame and layer
//   resolved_rank(config)                                     its latent rank, 0 where it has none
//   Layer<T>, a Module with a constructor (dims, seed):
//     remember(context, x) -> Memory, expand(context, memory) -> KeysAndValues

template <class Tensor>
struct KeysAndValues {
  Tensor k, v;  ///< (rows, num_kv_heads * head_dim) each
};

/// Keys and values as they are: K = x W_K^T + b_K, V = x W_V^T + b_V; both are cached.
struct FullRank {
  static constexpr Index resolved_rank(const AttentionConfig& config) {
    require(config.kv_lora_rank == 0, "kv_lora_rank: ", config.kv_lora_rank, " configured for an attention without a latent");
    return 0;
  }
  static constexpr Index cache_floats(const AttentionDims& d) { return 2 * d.kv_dim(); }
  static constexpr Index parameter_count(const AttentionDims& d) { return 2 * d.kv_dim() * (d.d_model + 1); }
  static constexpr Index flops(const AttentionDims& d) { return 2 * 2 * d.kv_dim() * d.d_model; }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_k(d.d_model, d.kv_dim(), seed / "linear_k"), linear_v(d.d_model, d.kv_dim(), seed / "linear_v") {}

    template <class Context, class Tensor>
    KeysAndValues<Tensor> remember(Context& context, const Tensor& x) const {
      return {linear_k(context, x), linear_v(context, x)};
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, KeysAndValues<Tensor> memory) const {
      return memory;
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k", self.linear_k);
      visit("linear_v", self.linear_v);
    }

    Linear<T> linear_k, linear_v;
  };
};

/// One latent of R numbers a frame, from which all heads' keys and values are expanded: c = x A^T + b_c is cached,
/// K = c B_K^T + b_K, V = c B_V^T + b_V (DeepSeek-V2 2024, equations 9 to 11, without the decoupled rotary key).
template <Index R>
struct SharedLatent {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");

  static constexpr Index resolved_rank(const AttentionConfig& config) {
    const Index rank = resolve<R>(config.kv_lora_rank, "kv_lora_rank");
    require(rank <= config.d_model, "kv_lora_rank: ", rank, " given, at most d_model = ", config.d_model,
            " expected (a larger latent holds nothing more)");
    return rank;
  }
  static constexpr Index cache_floats(const AttentionDims& d) { return d.kv_lora_rank; }
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + 1) + 2 * d.kv_dim() * (d.kv_lora_rank + 1);
  }
  static constexpr Index flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * (d.d_model + 2 * d.kv_dim()); }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down"),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up"),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up") {}

    template <class Context, class Tensor>
    Tensor remember(Context& context, const Tensor& x) const {
      return linear_kv_down(context, x);
    }
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const Tensor& latent) const {
      return {linear_k_up(context, latent), linear_v_up(context, latent)};
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down, linear_k_up, linear_v_up;
  };
};

}  // namespace laconic

#include <algorithm>

namespace laconic::inline LACONIC_ABI {

/// Which keys a query sees. Every mask of a speech model lets each query see one run of keys, so a mask is that run.
struct Mask {
  struct Keys {
    Index begin, end;
  };

  static constexpr Index unlimited = -1;
  Index chunk = unlimited;         ///< frames that are seen together; 1 is causal
  Index left_context = unlimited;  ///< frames seen before the own chunk; unlimited where there are no chunks

  static constexpr Mask bidirectional() { return {}; }
  static constexpr Mask causal() { return {1, unlimited}; }
  static constexpr Mask chunked(Index chunk, Index left_context) { return {chunk, left_context}; }

  constexpr bool is_valid() const {
    if (chunk == unlimited) return left_context == unlimited;
    return chunk > 0 && (left_context == unlimited || left_context >= 0);
  }

  /// The keys that the query at `position` sees, among `num_keys`. A position before the first key is negative.
  constexpr Keys keys(Index position, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = (position < 0 ? (position + 1) / chunk - 1 : position / chunk) * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context), std::min(num_keys, start + chunk)};
  }
};

}  // namespace laconic

#include <bit>
#include <limits>
#include <new>

namespace laconic::inline LACONIC_ABI {

class Buffer;

namespace detail {

struct ArenaBlock;

/// What an arena and its blocks share. It goes with the last of them, so that a block may outlive its arena.
struct ArenaState {
  std::array<ArenaBlock*, 256> free{};
  std::size_t reserved = 0, used = 0, peak = 0;
  bool orphaned = false;
};

inline constexpr std::size_t arena_alignment = 64;

struct alignas(arena_alignment) ArenaBlock {
  ArenaState* state;
  ArenaBlock* next;
  std::size_t bytes;
  std::uint32_t size_class;
  std::uint32_t owners;
};

}  // namespace detail

/// Recycles memory: a freed block goes to the list of its size class and serves the next request of that class,
/// so that a computation repeated with the same shapes allocates only the first time.
/// One arena belongs to one thread; kernels may share its blocks among threads, but not take or free them.
class Arena {
 public:
  Arena() : state_(new detail::ArenaState) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    trim();
    if (state_->used == 0)
      delete state_;
    else
      state_->orphaned = true;
  }

  /// A block of at least `bytes` bytes, aligned to 64. Uninitialised. Throws std::bad_alloc.
  Buffer allocate(std::size_t bytes);

  /// Bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return state_->reserved; }
  /// Bytes in use now, and the most that ever were.
  std::size_t used_bytes() const { return state_->used; }
  std::size_t peak_bytes() const { return state_->peak; }

  /// Gives back what is not in use.
  void trim() {
    for (auto& list : state_->free)
      while (list != nullptr) {
        detail::ArenaBlock* block = std::exchange(list, list->next);
        state_->reserved -= block->bytes;
        release(block);
      }
  }

 private:
  friend class Buffer;

  static void release(detail::ArenaBlock* block) { ::operator delete(block, std::align_val_t(detail::arena_alignment)); }

  /// Four classes to each power of two: at most a quarter of a block is unused.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  detail::ArenaState* state_;
};

/// A counted reference to a block of an arena. Copies share the block; the last one gives it back, to the system if the
/// arena is gone.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer& other) : block_(other.block_) {
    if (block_ != nullptr) ++block_->owners;
  }
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() {
    if (block_ == nullptr || --block_->owners > 0) return;
    detail::ArenaState& state = *block_->state;
    state.used -= block_->bytes;
    if (!state.orphaned) {
      block_->next = std::exchange(state.free[block_->size_class], block_);
      return;
    }
    Arena::release(block_);
    if (state.used == 0) delete &state;
  }

  void* data() const { return block_ == nullptr ? nullptr : static_cast<void*>(block_ + 1); }
  bool empty() const { return block_ == nullptr; }
  /// True when nobody else holds the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners == 1; }

 private:
  friend class Arena;
  explicit Buffer(detail::ArenaBlock* block) : block_(block) {}
  detail::ArenaBlock* block_ = nullptr;
};

inline Buffer Arena::allocate(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 4) throw std::bad_alloc();
  const std::uint32_t size_class = size_class_of(bytes);
  detail::ArenaBlock* block = state_->free[size_class];
  if (block != nullptr) {
    state_->free[size_class] = block->next;
  } else {
    const std::size_t size = class_bytes(size_class);
    block = new (::operator new(size + sizeof(detail::ArenaBlock), std::align_val_t(detail::arena_alignment)))
        detail::ArenaBlock{state_, nullptr, size, size_class, 0};
    state_->reserved += size;
  }
  block->owners = 1;
  state_->used += block->bytes;
  if (state_->used > state_->peak) state_->peak = state_->used;
  return Buffer(block);
}

}  // namespace laconic

#include <span>

namespace laconic::inline LACONIC_ABI {

/// Where each sequence of a packed batch begins and ends. A batch is one matrix `(rows, channels)` in which
/// sequence n is the rows [begin(n), end(n)); nothing is padded.
class Sequences {
 public:
  Sequences() : own_{0}, offsets_(own_) {}
  /// Allocates from the heap.
  explicit Sequences(std::span<const Index> lengths) : own_(lengths.size() + 1), offsets_(own_) { fill(own_, lengths); }
  Sequences(std::initializer_list<Index> lengths) : Sequences(std::span(lengths.begin(), lengths.size())) {}
  Sequences(const Sequences& other)
      : own_(other.own_), buffer_(other.buffer_), offsets_(buffer_.empty() ? std::span<const Index>(own_) : other.offsets_) {}
  Sequences& operator=(Sequences other) noexcept {
    own_.swap(other.own_);
    std::swap(buffer_, other.buffer_);
    offsets_ = buffer_.empty() ? std::span<const Index>(own_) : other.offsets_;
    return *this;
  }

  /// The sequences whose lengths are `map(length)` of these, in memory of the arena: once warm, it allocates nothing.
  template <class Map>
  Sequences map_lengths(Arena& arena, Map&& map) const {
    Sequences out(arena, size());
    auto* offsets = static_cast<Index*>(out.buffer_.data());
    offsets[0] = 0;
    for (Index n = 0; n < size(); ++n) offsets[n + 1] = offsets[n] + std::max<Index>(0, map(length(n)));
    return out;
  }

  Index size() const { return static_cast<Index>(offsets_.size()) - 1; }
  Index rows() const { return offsets_.back(); }
  Index begin(Index n) const { return offsets_[static_cast<std::size_t>(n)]; }
  Index end(Index n) const { return offsets_[static_cast<std::size_t>(n) + 1]; }
  Index length(Index n) const { return end(n) - begin(n); }
  /// The sequence that a row belongs to.
  Index sequence_of(Index row) const {
    return std::upper_bound(offsets_.begin() + 1, offsets_.end() - 1, row) - (offsets_.begin() + 1);
  }
  Index max_length() const {
    Index longest = 0;
    for (Index n = 0; n < size(); ++n) longest = std::max(longest, length(n));
    return longest;
  }
  friend bool operator==(const Sequences& a, const Sequences& b) { return std::ranges::equal(a.offsets_, b.offsets_); }

 private:
  Sequences(Arena& arena, Index size)
      : buffer_(arena.allocate(static_cast<std::size_t>(size + 1) * sizeof(Index))),
        offsets_(static_cast<const Index*>(buffer_.data()), static_cast<std::size_t>(size) + 1) {}

  static void fill(std::vector<Index>& offsets, std::span<const Index> lengths) {
    for (std::size_t n = 0; n < lengths.size(); ++n) {
      require(lengths[n] >= 0, "sequences: length ", lengths[n], " given for sequence ", n, ", at least 0 expected");
      offsets[n + 1] = offsets[n] + lengths[n];
    }
  }

  std::vector<Index> own_;
  Buffer buffer_;
  std::span<const Index> offsets_;
};

}  // namespace laconic

#include <cstring>

// What the primitives of every context are told beside their tensors.

namespace laconic::inline LACONIC_ABI {

/// Activations by their names in the literature. SiLU is also called swish; GELU is the exact one, with erf.
enum class Activation { relu, silu, gelu };

/// A 3 x 3 convolution over (time, frequency) without padding. Rows are frames; columns are (frequency, channel) with
/// the channel innermost. The weight is `(out, in, time, frequency)` as PyTorch stores it.
struct Conv2dShape {
  static constexpr Index kernel = 3;
  Index in_channels, out_channels, in_freqs;
  Index stride = 2;  ///< in time and in frequency

  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  constexpr Index out_freqs() const { return out_length(in_freqs); }
  constexpr Index in_cols() const { return in_freqs * in_channels; }
  constexpr Index out_cols() const { return out_freqs() * out_channels; }
  constexpr Index patch() const { return kernel * kernel * in_channels; }
};

/// What one softmax attention is about, apart from its values.
struct AttendShape {
  Index num_heads, num_kv_heads;
  double scale;  ///< of the scores; 1/sqrt of the width that queries and keys had before any absorption
  Mask mask = {};
};

/// The relative-position part of an attention: the projected table (2 * span - 1, num_heads * head_dim), row span-1 for
/// distance 0 and row 0 for the key span-1 frames to the left, with pos_bias_u and pos_bias_v (null: zeros). Empty where
/// there is none.
template <class Tensor, class T>
struct RelativeTerm {
  Tensor table{};
  const Parameter<T>* pos_bias_u = nullptr;
  const Parameter<T>* pos_bias_v = nullptr;
};

/// The parameters of a batch norm.
template <class T>
struct BatchNormParameters {
  const Parameter<T>&weight, &bias, &running_mean, &running_var;
  double eps, momentum;
};

/// The label sequences of a batch, end to end: sequence n is labels[lengths.begin(n) .. lengths.end(n)).
struct Labels {
  std::vector<int> tokens;
  Sequences sequences;
};

/// Which of n numbers survive dropout: eight decisions of 16 bits from each random block, so the probability is
/// rounded to a multiple of 2^-16 and the survivors are scaled by the rounded one.
class DropoutMask {
 public:
  DropoutMask(double probability, const Random& random)
      : threshold_(static_cast<std::uint32_t>(std::min(65535.0, checked(probability) * 65536 + 0.5))), random_(random) {}

  double scale() const { return 65536.0 / (65536.0 - threshold_); }
  bool any() const { return threshold_ > 0; }
  /// The definition, one decision at a time.
  bool keeps(std::uint64_t i) const {
    const auto block = random_.block(i / 8);
    return ((block[(i % 8) / 2] >> (16 * (i % 2))) & 0xffff) >= threshold_;
  }

  /// y[j] = x[j] * (keeps(first + j) ? scale : 0) for j in [0, n).
  template <class T>
  void apply(Index n, std::uint64_t first, const T* x, T* y) const {
    const T factor = static_cast<T>(scale());
    std::uint16_t bits[together];
    for (Index j = 0; j < n;) {
      const std::uint64_t at = first + static_cast<std::uint64_t>(j);
      const Index skip = static_cast<Index>(at % together), count = std::min(together - skip, n - j);
      draw(at / together, bits);
      const auto put = [&](Index size) {
        for (Index i = 0; i < size; ++i) {
          const T kept = x[j + i] * factor;
          y[j + i] = bits[skip + i] >= threshold_ ? kept : T(0);
        }
      };
      count == together ? put(together) : put(count);  // a constant length makes the better loop
      j += count;
    }
  }

 private:
  static double checked(double probability) {
    require(probability >= 0 && probability < 1, "dropout: probability ", probability, " given, expected from 0 to less than 1");
    return probability;
  }

  /// Decisions drawn at once, so that the random blocks are computed in vectors.
  static constexpr Index together = 128;

  /// The 16 bits of decisions group * together and on.
  void draw(std::uint64_t group, std::uint16_t* bits) const {
    constexpr int count = together / 8;
    std::uint64_t w[4][count], pairs[2 * count];
    random_.template blocks<count>(group * count, w[0], w[1], w[2], w[3]);
    for (int b = 0; b < count; ++b) {
      pairs[2 * b] = w[0][b] | w[1][b] << 32;
      pairs[2 * b + 1] = w[2][b] | w[3][b] << 32;
    }
    static_assert(std::endian::native == std::endian::little, "laconic: the order of the 16-bit halves is that of memory");
    std::memcpy(bits, pairs, sizeof pairs);
  }

  std::uint32_t threshold_;
  Random random_;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

// A position policy says how attention knows the order of frames. It has
//   key_bias_cancels                       a bias on the keys moves all scores of a query alike, so softmax ignores it
//   parameter_count(dims), flops(dims, frames)   constexpr, a layer
//   enter(context, x, sequences)           what happens once, before the first layer: new rows and a table for all layers
//   Layer<T>, a Module with a constructor (dims, seed): term(context, table)   what one layer adds to the scores

/// The sinusoid of Vaswani et al. 2017: sin in even, cos in odd columns, wavelengths 2 pi to 20000 pi.
inline double sinusoid(double position, Index column, Index d_model) {
  const double rate = std::pow(10000.0, -static_cast<double>(column / 2 * 2) / static_cast<double>(d_model));
  return column % 2 == 0 ? std::sin(position * rate) : std::cos(position * rate);
}

/// Rows as they enter the first layer, and the table that all layers share (empty where there is none).
template <class Tensor>
struct Positioned {
  Tensor x, table;
};

/// For policies without parameters.
struct NoPositionLayer {
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims&, Seed) {}
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context&, const Tensor&) const {
      return {};
    }
    static void each_parameter(auto&, auto&&) {}
  };
  static constexpr Index parameter_count(const AttentionDims&) { return 0; }
  static constexpr Index flops(const AttentionDims&, Index) { return 0; }
};

/// Order is known from elsewhere (convolutions) or not at all.
struct NoPosition : NoPositionLayer {
  static constexpr bool key_bias_cancels = true;
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context&, const Tensor& x, const Sequences&) {
    return {x, {}};
  }
};

/// Absolute sinusoids added to the input once (Vaswani et al. 2017, section 3.5).
struct Sinusoidal : NoPositionLayer {
  static constexpr bool key_bias_cancels = true;
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context& context, const Tensor& x, const Sequences& sequences) {
    const auto positions = context.constant(x.rows(), x.cols(), [&](Index row, Index column) {
      return sinusoid(static_cast<double>(row - sequences.begin(sequences.sequence_of(row))), column, x.cols());
    });
    return {context.add(x, positions), {}};
  }
};

/// Scores gain (q + v) . W_pos r(i - j), and content scores use q + u (Dai et al. 2019, section 3.3; as in ESPnet's
/// "latest" and the Hugging Face Conformer). Keys are untouched by position, so any key-value policy goes with it.
struct RelativePosition {
  static constexpr bool key_bias_cancels = true;
  static constexpr Index parameter_count(const AttentionDims& d) { return d.d_model * d.d_model + 2 * d.d_model; }
  static constexpr Index flops(const AttentionDims& d, Index frames) {
    return 2 * (2 * frames - 1) * d.d_model * (d.d_model + frames);
  }

  /// The table (2 * longest - 1, d_model): row `longest` - 1 - r is the sinusoid of distance r = i - j.
  template <class Context, class Tensor>
  static Positioned<Tensor> enter(Context& context, const Tensor& x, const Sequences& sequences) {
    const Index longest = std::max<Index>(1, sequences.max_length()), d_model = x.cols();
    return {x, context.constant(2 * longest - 1, d_model, [&](Index row, Index column) {
              return sinusoid(static_cast<double>(longest - 1 - row), column, d_model);
            })};
  }

  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    Layer(const AttentionDims& d, Seed seed)
        : linear_pos(d.d_model, d.d_model, seed / "linear_pos", Bias::no),
          pos_bias_u({d.num_heads, d.head_dim()}), pos_bias_v({d.num_heads, d.head_dim()}) {}

    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context& context, const Tensor& table) const {
      return {linear_pos(context, table), &pos_bias_u, &pos_bias_v};
    }

    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_pos", self.linear_pos);
      visit("pos_bias_u", self.pos_bias_u);
      visit("pos_bias_v", self.pos_bias_v);
    }

    Linear<T> linear_pos;
    Parameter<T> pos_bias_u, pos_bias_v;
  };
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// A number of encoder frames, to tell it from other numbers: `cache_bytes(config, frames(1000))`.
struct Frames {
  Index count;
};
constexpr Frames frames(Index count) { return {count}; }

template <class Policy, class T>
class AttentionLayer;

/// Softmax attention as a choice of independent policies, with its costs known at compile time. The layer that computes
/// it is `Layer<T>`. Numbers that the type leaves open (`dyn`) come from the configuration.
template <class HeadsPolicy, class KeyValuePolicy, class PositionPolicy = RelativePosition>
struct Attention {
  using Heads = HeadsPolicy;
  using KeyValue = KeyValuePolicy;
  using Position = PositionPolicy;
  template <class T>
  using Layer = AttentionLayer<Attention, T>;

  /// Throws where type and configuration contradict each other or the numbers do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    const Index heads = resolve<Heads::num_heads>(config.num_heads, "num_heads");
    const Index kv_heads = resolve<Heads::num_kv_heads>(
        Heads::num_kv_heads == dyn && config.num_kv_heads == 0 ? heads : config.num_kv_heads, "num_kv_heads");
    require(config.d_model > 0 && config.d_model % heads == 0, "num_heads: ", heads, " heads given, a divisor of d_model = ",
            config.d_model, " expected");
    require(heads % kv_heads == 0, "num_kv_heads: ", kv_heads, " key-value heads given, a divisor of num_heads = ", heads, " expected");
    return {config.d_model, heads, kv_heads, KeyValue::resolved_rank(config)};
  }

  /// Bytes that one layer caches for this many frames.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Index bytes_per_number = 4) {
    return KeyValue::cache_floats(dims(config)) * n.count * bytes_per_number;
  }
  /// Trained numbers of one layer.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    const AttentionDims d = dims(config);
    return 2 * d.d_model * (d.d_model + 1) + KeyValue::parameter_count(d) + Position::parameter_count(d);
  }
  /// Floating-point operations (a multiply-add counts two) of one layer over one whole sequence, every frame seeing all.
  static constexpr Index flops(const AttentionConfig& config, Frames n) {
    const AttentionDims d = dims(config);
    const Index t = n.count;
    return t * (2 * 2 * d.d_model * d.d_model + KeyValue::flops(d)) + 4 * t * t * d.d_model + Position::flops(d, t);
  }
};

// `Mha<dyn>` leaves both numbers of heads open: it is `Gqa<dyn, dyn>`, and MHA where the configuration gives num_kv_heads = 0.
template <Index H, class Position = RelativePosition>
using Mha = Attention<Heads<H, H>, FullRank, Position>;
template <Index H, Index G, class Position = RelativePosition>
using Gqa = Attention<Heads<H, G>, FullRank, Position>;
template <Index H, class Position = RelativePosition>
using Mqa = Attention<Heads<H, 1>, FullRank, Position>;
template <Index H, Index R, class Position = RelativePosition>
using MlaSimple = Attention<Heads<H, H>, SharedLatent<R>, Position>;

/// Self-attention of packed rows, (rows, d_model) to (rows, d_model), by the policy. Parameter names are those of the
/// Hugging Face Conformer.
template <class Policy, class T>
class AttentionLayer : public Module<AttentionLayer<Policy, T>> {
 public:
  AttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : AttentionLayer(Policy::dims(config), dropout, seed) {}

  const AttentionDims& dims() const { return dims_; }

  /// `table` is what Position::enter gave for these sequences.
  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& sequences, const Tensor& table, const Mask& mask = {}) const {
    const auto [k, v] = key_value.expand(context, key_value.remember(context, x));
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, 1 / std::sqrt(static_cast<double>(dims_.head_dim())), mask};
    const auto q = linear_q(context, x);
    const auto term = position.term(context, table);
    return linear_out(context, context.attend(q, k, v, shape, sequences, sequences, term, dropout_));
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("linear_q", self.linear_q);
    std::remove_cvref_t<decltype(self.key_value)>::each_parameter(self.key_value, visit);
    visit("linear_out", self.linear_out);
    std::remove_cvref_t<decltype(self.position)>::each_parameter(self.position, visit);
  }

  Linear<T> linear_q;
  typename Policy::KeyValue::template Layer<T> key_value;
  Linear<T> linear_out;
  typename Policy::Position::template Layer<T> position;

 private:
  AttentionLayer(const AttentionDims& d, double dropout, Seed seed)
      : linear_q(d.d_model, d.d_model, seed / "linear_q"), key_value(d, seed), linear_out(d.d_model, d.d_model, seed / "linear_out"),
        position(d, seed), dims_(d), dropout_(dropout) {}

  AttentionDims dims_;
  double dropout_;
};

}  // namespace laconic

// The contract of contexts. To add a backend, write a class that satisfies `Backend`: models then run on it, and train
// on it through `Autodiff`. What each primitive means is documented once, at `Cpu`.

namespace laconic::inline LACONIC_ABI {

/// Where a model runs: gives tensors `(rows, cols)` and computes the primitives that layers are written in.
template <class C>
concept Context = std::default_initializable<typename C::Tensor> && std::copyable<typename C::Tensor> &&
                  requires(C& c, const typename C::Tensor& x, const Matrix<typename C::Scalar>& matrix,
                           const Parameter<typename C::Scalar>& weight, const Parameter<typename C::Scalar>* bias,
                           const Sequences& sequences, const AttendShape& attend, const Conv2dShape& conv2d, const Labels& labels,
                           const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative,
                           const BatchNormParameters<typename C::Scalar>& norm, double number, Index count) {
  { x.rows() } -> std::convertible_to<Index>;
  { x.cols() } -> std::convertible_to<Index>;
  { x.empty() } -> std::same_as<bool>;
  { c.arena() } -> std::same_as<Arena&>;
  { c.input(matrix) } -> std::same_as<typename C::Tensor>;
  { c.input(Matrix<typename C::Scalar>()) } -> std::same_as<typename C::Tensor>;
  { c.input(x) } -> std::same_as<typename C::Tensor>;
  { c.constant(count, count, [](Index, Index) { return 0.0; }) } -> std::same_as<typename C::Tensor>;
  { c.linear(x, weight, bias) } -> std::same_as<typename C::Tensor>;
  { c.activation(Activation::silu, x) } -> std::same_as<typename C::Tensor>;
  { c.glu(x) } -> std::same_as<typename C::Tensor>;
  { c.layer_norm(x, weight, weight, number) } -> std::same_as<typename C::Tensor>;
  { c.batch_norm(x, norm) } -> std::same_as<typename C::Tensor>;
  { c.conv2d(x, weight, weight, conv2d, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  { c.depthwise_conv(x, weight, bias, sequences, count) } -> std::same_as<typename C::Tensor>;
  { c.attend(x, x, x, attend, sequences, sequences, relative, number) } -> std::same_as<typename C::Tensor>;
  { c.dropout(x, number) } -> std::same_as<typename C::Tensor>;
  { c.add(x, x, number) } -> std::same_as<typename C::Tensor>;
  { c.log_softmax(x) } -> std::same_as<typename C::Tensor>;
  { c.ctc(x, sequences, labels, 0) } -> std::same_as<typename C::Tensor>;
  { c.mean_finite(x) } -> std::same_as<typename C::Tensor>;
};

/// What `attend_backward` gives: the derivatives by queries, keys, values and the table of positions.
template <class D, class Tensor>
concept AttendDerivativeOf = requires(D d) {
  { d.dq } -> std::convertible_to<Tensor>;
  { d.dk } -> std::convertible_to<Tensor>;
  { d.dv } -> std::convertible_to<Tensor>;
  { d.dtable } -> std::convertible_to<Tensor>;
};

/// A context that can also be trained on: it has the derivative of every primitive, and the training form of those that
/// compute something else or keep something for the derivative (batch norm, attention, dropout).
template <class B>
concept Backend = Context<B> && requires(B& b, typename B::Tensor& out, const typename B::Tensor& x,
                                         const Parameter<typename B::Scalar>& weight, const Parameter<typename B::Scalar>* bias,
                                         const Sequences& sequences, const AttendShape& attend, const Conv2dShape& conv2d,
                                         const Labels& labels, const RelativeTerm<typename B::Tensor, typename B::Scalar>& relative,
                                         const BatchNormParameters<typename B::Scalar>& norm, const DropoutMask& mask, double number,
                                         Index count) {
  { b.linear_backward(x, x, weight, bias, true) } -> std::same_as<typename B::Tensor>;
  { b.activation_backward(Activation::silu, x, x) } -> std::same_as<typename B::Tensor>;
  { b.glu_backward(x, x) } -> std::same_as<typename B::Tensor>;
  { b.layer_norm(x, weight, weight, number, &out) } -> std::same_as<typename B::Tensor>;
  { b.layer_norm_backward(x, x, weight, weight, x, true) } -> std::same_as<typename B::Tensor>;
  { b.batch_norm_train(x, norm, out) } -> std::same_as<typename B::Tensor>;
  { b.batch_norm_backward(x, x, norm, x, true) } -> std::same_as<typename B::Tensor>;
  { b.conv2d_backward(x, x, weight, weight, conv2d, sequences, sequences, true) } -> std::same_as<typename B::Tensor>;
  { b.depthwise_conv_backward(x, x, weight, bias, sequences, count, true) } -> std::same_as<typename B::Tensor>;
  { b.attend_train(x, x, x, attend, sequences, sequences, relative, mask, out) } -> std::same_as<typename B::Tensor>;
  { b.attend_backward(x, x, x, x, attend, sequences, sequences, relative, mask, x) } -> AttendDerivativeOf<typename B::Tensor>;
  { b.dropout_train(x, mask) } -> std::same_as<typename B::Tensor>;
  { b.scale(x, number) } -> std::same_as<typename B::Tensor>;
  { b.log_softmax_backward(x, x) } -> std::same_as<typename B::Tensor>;
  { b.ctc(x, sequences, labels, 0, &out) } -> std::same_as<typename B::Tensor>;
  { b.ctc_backward(x, sequences, x) } -> std::same_as<typename B::Tensor>;
  { b.mean_finite_backward(x, x) } -> std::same_as<typename B::Tensor>;
};

}  // namespace laconic

#include <memory>
#include <optional>

namespace laconic::inline LACONIC_ABI {

/// The context that trains: computes with a backend and records each primitive on a tape. `backward(loss)` walks the
/// tape once, adds to the gradient of every trainable parameter, and frees what it has passed. A model is written in
/// terms of a context's primitives, so the same code runs and trains.
///
/// The tape lives in this object: `clear()` or its destruction frees every node. Dropout and the statistics of batch
/// norm follow `training`; call number n of dropout draws from stream n of the seed.
template <Backend B>
class Autodiff {
  using Value = typename B::Tensor;

 public:
  using Scalar = typename B::Scalar;

  /// A value and its place on the tape (-1: a constant, which needs no derivative).
  class Tensor {
   public:
    Tensor() = default;
    Tensor(Value v, Index n) : value(std::move(v)), node(n) {}
    Index rows() const { return value.rows(); }
    Index cols() const { return value.cols(); }
    bool empty() const { return value.empty(); }
    auto view() const { return value.view(); }
    Value value;
    Index node = -1;
  };

  explicit Autodiff(B& backend, Seed seed = Seed(), bool train = true) : training(train), backend_(backend), seed_(seed) {}
  Autodiff(const Autodiff&) = delete;
  Autodiff& operator=(const Autodiff&) = delete;

  const bool training;
  B& backend() { return backend_; }
  Arena& arena() { return backend_.arena(); }

  // -- values -------------------------------------------------------------------------------------------------------
  Tensor input(const Matrix<Scalar>& x) { return {backend_.input(x), -1}; }
  Tensor input(Matrix<Scalar>&& x) { return {backend_.input(std::move(x)), -1}; }
  Tensor input(Tensor x) { return x; }
  template <class Fill>
  Tensor constant(Index rows, Index cols, Fill&& fill) {
    return {backend_.constant(rows, cols, std::forward<Fill>(fill)), -1};
  }
  /// An input whose derivative is wanted: `gradient(variable)` after `backward`.
  Tensor variable(const Matrix<Scalar>& x) { return record(backend_.input(x), nullptr); }
  Tensor variable(Matrix<Scalar>&& x) { return record(backend_.input(std::move(x)), nullptr); }
  /// Empty where the loss does not depend on the variable.
  const Value& gradient(const Tensor& variable) const {
    require(variable.node >= 0, "gradient: of a constant; of a variable expected");
    const Node& node = nodes_[place(variable)];
    require(node.leaf, "gradient: of an intermediate value, which is not kept; of a variable expected");
    return node.gradient;
  }

  /// Derivatives of `weight` times `loss` (1, 1) by everything that it was computed from, which is used up by this.
  void backward(const Tensor& loss, double weight = 1) {
    require(loss.rows() == 1 && loss.cols() == 1, "backward: the loss is (", loss.rows(), ", ", loss.cols(), "), expected (1, 1)");
    require(loss.node >= 0, "backward: the loss does not depend on any trainable parameter or variable");
    unused(loss).gradient = backend_.constant(1, 1, [&](Index, Index) { return weight; });
    for (std::size_t i = nodes_.size(); i-- > 0;) {
      if (nodes_[i].step == nullptr) continue;
      const std::unique_ptr<Step> step = std::move(nodes_[i].step);
      const Value gradient = std::move(nodes_[i].gradient);
      nodes_[i].gradient = Value();
      if (!gradient.empty()) step->backward(gradient);
    }
  }
  /// Forgets everything. Values stay what they are; what is computed from them has no derivative by what was before.
  void clear() {
    cleared_ += static_cast<Index>(nodes_.size());
    nodes_.clear();
  }

  // -- primitives: as in Cpu ----------------------------------------------------------------------------------------
  using P = Parameter<Scalar>;

  Tensor linear(const Tensor& x, const P& weight, const P* bias) {
    return op(backend_.linear(x.value, weight, bias), needs(x) || weight.trainable || (bias != nullptr && bias->trainable),
              [this, x, &weight, bias](const Value& dy) { give(x, backend_.linear_backward(dy, x.value, weight, bias, needs(x))); });
  }
  Tensor activation(Activation kind, const Tensor& x) {
    return op(backend_.activation(kind, x.value), needs(x),
              [this, kind, x](const Value& dy) { give(x, backend_.activation_backward(kind, dy, x.value)); });
  }
  Tensor glu(const Tensor& x) {
    return op(backend_.glu(x.value), needs(x), [this, x](const Value& dy) { give(x, backend_.glu_backward(dy, x.value)); });
  }
  Tensor layer_norm(const Tensor& x, const P& weight, const P& bias, double eps) {
    Value moments;
    Value y = backend_.layer_norm(x.value, weight, bias, eps, &moments);
    return op(std::move(y), needs(x) || weight.trainable || bias.trainable, [this, x, &weight, &bias, moments](const Value& dy) {
      give(x, backend_.layer_norm_backward(dy, x.value, weight, bias, moments, needs(x)));
    });
  }
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<Scalar>& p) {
    Value moments;
    Value y = training ? backend_.batch_norm_train(x.value, p, moments) : backend_.batch_norm(x.value, p);
    return op(std::move(y), needs(x) || p.weight.trainable || p.bias.trainable,
              [this, x, p, moments](const Value& dy) { give(x, backend_.batch_norm_backward(dy, x.value, p, moments, needs(x))); });
  }
  Tensor conv2d(const Tensor& x, const P& weight, const P& bias, const Conv2dShape& shape, const Sequences& from, const Sequences& to) {
    return op(backend_.conv2d(x.value, weight, bias, shape, from, to), needs(x) || weight.trainable || bias.trainable,
              [this, x, &weight, &bias, shape, from, to](const Value& dy) {
                give(x, backend_.conv2d_backward(dy, x.value, weight, bias, shape, from, to, needs(x)));
              });
  }
  Tensor depthwise_conv(const Tensor& x, const P& weight, const P* bias, const Sequences& sequences, Index left) {
    return op(backend_.depthwise_conv(x.value, weight, bias, sequences, left),
              needs(x) || weight.trainable || (bias != nullptr && bias->trainable), [this, x, &weight, bias, sequences, left](const Value& dy) {
                give(x, backend_.depthwise_conv_backward(dy, x.value, weight, bias, sequences, left, needs(x)));
              });
  }
  /// `dropout` is of the attention probabilities, in training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape, const Sequences& q_sequences,
                const Sequences& kv_sequences, const RelativeTerm<Tensor, Scalar>& relative = {}, double dropout = 0) {
    const RelativeTerm<Value, Scalar> term{relative.table.value, relative.pos_bias_u, relative.pos_bias_v};
    const DropoutMask mask = next_mask(dropout);
    Value log_sums;
    Value y = backend_.attend_train(q.value, k.value, v.value, shape, q_sequences, kv_sequences, term, mask, log_sums);
    const auto trains = [](const P* p) { return p != nullptr && p->trainable; };
    const bool needed = needs(q) || needs(k) || needs(v) || needs(relative.table) || trains(relative.pos_bias_u) || trains(relative.pos_bias_v);
    return op(std::move(y), needed, [=, this, table = relative.table](const Value& dy) {
      auto d = backend_.attend_backward(dy, q.value, k.value, v.value, shape, q_sequences, kv_sequences, term, mask, log_sums);
      give(q, std::move(d.dq));
      give(k, std::move(d.dk));
      give(v, std::move(d.dv));
      if (!table.empty()) give(table, std::move(d.dtable));
    });
  }
  Tensor dropout(const Tensor& x, double probability) {
    const DropoutMask mask = next_mask(probability);
    if (!mask.any()) return x;
    return op(backend_.dropout_train(x.value, mask), needs(x),
              [this, x_node = Tensor(Value(), x.node), mask](const Value& dy) { give(x_node, backend_.dropout_train(dy, mask)); });
  }
  Tensor add(const Tensor& x, const Tensor& y, double scale = 1) {
    return op(backend_.add(x.value, y.value, scale), needs(x) || needs(y),
              [this, xn = Tensor(Value(), x.node), yn = Tensor(Value(), y.node), scale](const Value& dz) {
                give(xn, dz);
                if (needs(yn)) give(yn, scale == 1 ? dz : backend_.scale(dz, scale));
              });
  }
  Tensor log_softmax(const Tensor& x) {
    Value y = backend_.log_softmax(x.value);
    return op(y, needs(x), [this, xn = Tensor(Value(), x.node), y](const Value& dy) { give(xn, backend_.log_softmax_backward(dy, y)); });
  }
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank) {
    Value derivative;
    Value losses = backend_.ctc(logits.value, sequences, labels, blank, &derivative);
    return op(std::move(losses), needs(logits), [this, xn = Tensor(Value(), logits.node), sequences, derivative](const Value& dy) {
      give(xn, backend_.ctc_backward(dy, sequences, derivative));
    });
  }
  Tensor mean_finite(const Tensor& x) {
    return op(backend_.mean_finite(x.value), needs(x), [this, x](const Value& dy) { give(x, backend_.mean_finite_backward(dy, x.value)); });
  }

 private:
  struct Step {
    virtual ~Step() = default;
    virtual void backward(const Value& gradient) = 0;
  };
  template <class F>
  struct StepOf final : Step {
    explicit StepOf(F f) : function(std::move(f)) {}
    void backward(const Value& gradient) override { function(gradient); }
    F function;
  };
  struct Node {
    std::unique_ptr<Step> step;  // null for a leaf, and once it is used up
    Value gradient;              // that of a leaf stays
    bool leaf;
  };

  /// Whether a derivative by x is wanted. Not by what was recorded before `clear`.
  bool needs(const Tensor& x) const { return x.node >= cleared_; }
  std::size_t place(const Tensor& x) const {
    require(x.node >= cleared_ && x.node < cleared_ + static_cast<Index>(nodes_.size()),
            "autodiff: a value of another tape, or from before clear()");
    return static_cast<std::size_t>(x.node - cleared_);
  }
  Node& unused(const Tensor& x) {
    Node& node = nodes_[place(x)];
    require(node.leaf || node.step != nullptr, "backward: this value was used up by an earlier backward(); compute it again");
    return node;
  }

  Tensor record(Value value, std::unique_ptr<Step> step) {
    const bool leaf = step == nullptr;
    nodes_.push_back({std::move(step), Value(), leaf});
    return {std::move(value), cleared_ + static_cast<Index>(nodes_.size()) - 1};
  }
  /// A result; its derivative is recorded only if something before it needs one.
  template <class F>
  Tensor op(Value value, bool needed, F&& backward) {
    if (!needed) return {std::move(value), -1};
    return record(std::move(value), std::make_unique<StepOf<std::remove_cvref_t<F>>>(std::forward<F>(backward)));
  }
  /// Adds to the gradient of x.
  void give(const Tensor& x, Value gradient) {
    if (!needs(x)) return;
    Value& sum = unused(x).gradient;
    sum = sum.empty() ? std::move(gradient) : backend_.add(std::move(sum), gradient, 1);
  }
  DropoutMask next_mask(double probability) {
    return DropoutMask(training ? probability : 0.0, Random(seed_, calls_++));
  }

  B& backend_;
  Seed seed_;
  std::uint64_t calls_ = 0;
  std::vector<Node> nodes_;
  Index cleared_ = 0;  // nodes that `clear` has forgotten, which keep their numbers
};

}  // namespace laconic

#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace laconic::inline LACONIC_ABI {

/// Threads the machine offers this process.
inline int hardware_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

namespace kernels {

/// Runs `body(task, thread)` for every task in [0, tasks) on at most `threads` threads, thread < threads.
/// Bodies write to disjoint places and do not throw, so the result cannot depend on how tasks are dealt out.
template <class Body>
void parallel_for(int threads, Index tasks, Body&& body) {
#ifdef _OPENMP
  const int team = static_cast<int>(std::min<Index>(threads, tasks));
  if (team > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (Index task = 0; task < tasks; ++task) body(task, omp_get_thread_num());
    return;
  }
#endif
  (void)threads;
  for (Index task = 0; task < tasks; ++task) body(task, 0);
}

/// Splits [0, size) into blocks of `grain` and runs `body(begin, end)` for each.
template <class Body>
void parallel_blocks(int threads, Index size, Index grain, Body&& body) {
  parallel_for(threads, (size + grain - 1) / grain,
               [&](Index block, int) { body(block * grain, std::min(size, (block + 1) * grain)); });
}

/// body(i) for all i in [0, tasks), which may throw; the first failure, by index, is thrown again here.
template <class Body>
void parallel_or_throw(int threads, Index tasks, Body&& body) {
  std::vector<std::exception_ptr> failures(static_cast<std::size_t>(tasks));
  parallel_for(threads, tasks, [&](Index i, int) {
    try {
      body(static_cast<std::size_t>(i));
    } catch (...) {
      failures[static_cast<std::size_t>(i)] = std::current_exception();
    }
  });
  for (const auto& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

}  // namespace kernels
}  // namespace laconic

#include <xsimd/xsimd.hpp>

#if defined(__clang__)
#define LACONIC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LACONIC_UNROLL _Pragma("GCC unroll 16")
#else
#define LACONIC_UNROLL
#endif

namespace laconic::inline LACONIC_ABI {
namespace kernels {

template <class T>
using Batch = xsimd::batch<T>;
template <class T>
inline constexpr Index lanes = static_cast<Index>(Batch<T>::size);

/// A small array on the stack.
template <class T, Index N>
using Local = T[static_cast<std::size_t>(N)];

template <class T>
Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}
/// Loads `count` < lanes numbers; the other lanes are `fill`.
template <class T>
Batch<T> load_part(const T* from, Index count, T fill = T(0)) {
  Local<T, lanes<T>> part;
  for (Index i = 0; i < lanes<T>; ++i) part[i] = i < count ? from[i] : fill;
  return load(part);
}
template <class T>
void store(T* to, const Batch<T>& x) {
  x.store_unaligned(to);
}
template <class T>
void store_part(T* to, const Batch<T>& x, Index count) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index i = 0; i < count; ++i) to[i] = part[i];
}

/// Sum and maximum over the lanes, always in the same order (xsimd renamed its own between 8 and 9).
template <class T>
T sum_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index step = lanes<T> / 2; step > 0; step /= 2)
    for (Index i = 0; i < step; ++i) part[i] += part[i + step];
  return part[0];
}
template <class T>
T max_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  T most = part[0];
  for (Index i = 1; i < lanes<T>; ++i) most = part[i] > most ? part[i] : most;
  return most;
}

/// out[i] = f(in[i]...) for i in [0, n), by vectors; the tail goes through the same code, padded with zeros.
template <class T, class F, class... In>
void map_span(Index n, T* out, F&& f, const In*... in) {
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(out + i, Batch<T>(f(load(in + i)...)));
  if (i < n) store_part(out + i, Batch<T>(f(load_part(in + i, n - i)...)), n - i);
}

/// The same over several threads.
template <class T, class F, class... In>
void map(int threads, Index n, T* out, F&& f, const In*... in) {
  parallel_blocks(threads, n, 16384, [&](Index begin, Index end) { map_span(end - begin, out + begin, f, (in + begin)...); });
}

/// Sum over i of f(in[i]...).
template <class T, class F, class... In>
T sum_span(Index n, F&& f, const T* first, const In*... in) {
  Batch<T> total(T(0));
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) total += f(load(first + i), load(in + i)...);
  T sum = sum_lanes<T>(total);
  if (i < n) {
    Local<T, lanes<T>> part;
    store(part, Batch<T>(f(load_part(first + i, n - i), load_part(in + i, n - i)...)));
    for (Index j = 0; j < n - i; ++j) sum += part[j];
  }
  return sum;
}

template <class T>
Batch<T> sigmoid(const Batch<T>& x) {
  return Batch<T>(T(1)) / (Batch<T>(T(1)) + xsimd::exp(-x));
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

namespace kernels {

template <class T>
Batch<T> activate(Activation kind, const Batch<T>& x) {
  switch (kind) {
    case Activation::relu: return xsimd::select(x < Batch<T>(T(0)), Batch<T>(T(0)), x);  // what is not a number stays so
    case Activation::silu: return x * sigmoid(x);
    default: return Batch<T>(T(0.5)) * x * (Batch<T>(T(1)) + xsimd::erf(x * Batch<T>(T(0.5 * std::numbers::sqrt2))));
  }
}

/// dy times the derivative of the activation at x.
template <class T>
Batch<T> activate_backward(Activation kind, const Batch<T>& dy, const Batch<T>& x) {
  using B = Batch<T>;
  switch (kind) {
    case Activation::relu: return xsimd::select(x > B(T(0)), dy, B(T(0)));
    case Activation::silu: {
      const B s = sigmoid(x);
      return dy * s * (B(T(1)) + x * (B(T(1)) - s));
    }
    default: {
      const B cdf = B(T(0.5)) * (B(T(1)) + xsimd::erf(x * B(T(0.5 * std::numbers::sqrt2))));
      const B pdf = B(T(0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2)) * xsimd::exp(B(T(-0.5)) * x * x);
      return dy * (cdf + x * pdf);
    }
  }
}

/// GLU (Dauphin 2017): x (rows, 2 cols) = [a, b] to a * sigmoid(b) (rows, cols).
template <class T>
void glu(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(cols, y + r * cols, [](auto a, auto b) { return a * sigmoid(b); }, x + 2 * r * cols, x + (2 * r + 1) * cols);
  });
}

template <class T>
void glu_backward(int threads, Index rows, Index cols, const T* dy, const T* x, T* dx) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T *g = dy + r * cols, *a = x + 2 * r * cols, *b = a + cols;
      map_span(cols, dx + 2 * r * cols, [](auto d, auto q) { return d * sigmoid(q); }, g, b);
      map_span(cols, dx + (2 * r + 1) * cols,
               [](auto d, auto p, auto q) {
                 const auto s = sigmoid(q);
                 return d * p * s * (decltype(s)(T(1)) - s);
               },
               g, a, b);
    }
  });
}

/// Column sums of x (rows, cols), added to `sum`. A fixed order for each column, whatever the number of threads.
template <class T>
void add_column_sums(int threads, Index rows, Index cols, const T* x, T* sum) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> total = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) total[c - begin] += x[r * cols + c];
    for (Index c = begin; c < end; ++c) sum[c] += total[c - begin];
  });
}

template <class T>
void dropout(int threads, Index n, const DropoutMask& mask, const T* x, T* y) {
  parallel_blocks(threads, n, 8192, [&](Index begin, Index end) {
    mask.apply(end - begin, static_cast<std::uint64_t>(begin), x + begin, y + begin);
  });
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// A value of a CPU computation: a row-major matrix `(rows, cols)` without gaps, in a block of an arena.
/// Copies share the block, which returns to the arena with the last of them; so intermediates are freed as soon as
/// nothing needs them. `borrow` wraps memory of the caller's, which must outlive the tensor.
template <class T>
class Tensor {
 public:
  using Scalar = T;

  Tensor() = default;
  Tensor(const Tensor&) = default;
  /// The other is empty afterwards.
  Tensor(Tensor&& other) noexcept
      : buffer_(std::move(other.buffer_)), data_(std::exchange(other.data_, nullptr)), rows_(std::exchange(other.rows_, 0)),
        cols_(std::exchange(other.cols_, 0)) {}
  Tensor& operator=(Tensor other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    return *this;
  }
  Tensor(Arena& arena, Index rows, Index cols)
      : buffer_(arena.allocate(bytes(rows, cols))),
        data_(static_cast<T*>(buffer_.data())),
        rows_(rows),
        cols_(cols) {}

  static Tensor borrow(const Matrix<T>& matrix) {
    Tensor out;
    out.data_ = const_cast<T*>(matrix.data());  // never written: `unique()` is false for borrowed memory
    out.rows_ = matrix.rows();
    out.cols_ = matrix.cols();
    return out;
  }

  Index rows() const { return rows_; }
  Index cols() const { return cols_; }
  Index size() const { return rows_ * cols_; }
  bool empty() const { return data_ == nullptr; }
  /// True when nobody else sees this memory, so that a primitive may overwrite it.
  bool unique() const { return buffer_.unique(); }

  const T* data() const { return data_; }
  T* data() { return data_; }
  const T* row(Index r) const { return data_ + r * cols_; }
  T* row(Index r) { return data_ + r * cols_; }
  MatrixView<const T> view() const { return matrix_view<const T>(data_, rows_, cols_); }
  MatrixView<T> view() { return matrix_view<T>(data_, rows_, cols_); }

 private:
  static std::size_t bytes(Index rows, Index cols) {
    constexpr Index most = std::numeric_limits<Index>::max() / static_cast<Index>(sizeof(T));
    require(rows >= 0 && cols >= 0 && (cols == 0 || rows <= most / cols), "tensor: (", rows, ", ", cols,
            ") given, sizes of at least 0 that fit the memory expected");
    return static_cast<std::size_t>(rows * cols) * sizeof(T);
  }

  Buffer buffer_;
  T* data_ = nullptr;
  Index rows_ = 0, cols_ = 0;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// A matrix to read: element (i, j) is data[i * row_stride + j * col_stride], so a transpose costs nothing.
template <class T>
struct Operand {
  const T* data;
  Index row_stride, col_stride = 1;

  Operand transposed() const { return {data, col_stride, row_stride}; }
  const T* at(Index i, Index j) const { return data + i * row_stride + j * col_stride; }
};

/// The register tile is 8 rows by 3 vectors where there are 32 vector registers and 4 by 3 where there are 16: the
/// largest that leaves room for a row of B and one element of A (Goto and van de Geijn 2008, section 6).
template <class T>
struct GemmTile {
#ifdef __AVX512F__
  static constexpr Index rows = 8;
#elif defined(__aarch64__)
  static constexpr Index rows = 8;
#else
  static constexpr Index rows = 4;
#endif
  static constexpr Index vectors = 3;
  static constexpr Index cols = vectors * lanes<T>;
  /// A packed block of B is depth x panels x cols: it stays in a second-level cache of 512 KiB.
  static constexpr Index depth = 256;
  static constexpr Index panels = 2048 / (vectors * 64);
  static constexpr Index block_cols = panels * cols;
};

namespace detail {

/// C(rows x cols) = [C or bias or 0] + A(rows x depth) B(depth x cols) in registers. B is packed or at least has unit
/// column stride; `cols` may end inside the last vector if B is padded there.
template <Index Rows, Index Vectors, class T>
void gemm_kernel(Operand<T> a, const T* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols, bool from_c,
                 const T* bias) {
  constexpr Index w = lanes<T>;
  Local<Local<Batch<T>, Vectors>, Rows> sum;
  const Index tail = cols - (Vectors - 1) * w;  // columns of the last vector
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) {
      const T* start = from_c ? c + i * c_stride : bias;
      if (start == nullptr)
        sum[i][j] = Batch<T>(T(0));
      else
        sum[i][j] = j + 1 < Vectors || tail == w ? load(start + j * w) : load_part(start + j * w, tail);
    }
  }
  for (Index k = 0; k < depth; ++k) {
    Local<Batch<T>, Vectors> row;
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) row[j] = load(b + j * w);
    LACONIC_UNROLL
    for (Index i = 0; i < Rows; ++i) {
      const Batch<T> x(a.data[i * a.row_stride]);
      LACONIC_UNROLL
      for (Index j = 0; j < Vectors; ++j) sum[i][j] = xsimd::fma(x, row[j], sum[i][j]);
    }
    a.data += a.col_stride;
    b += b_stride;
  }
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) {
      T* to = c + i * c_stride + j * w;
      if (j + 1 < Vectors || tail == w)
        store(to, sum[i][j]);
      else
        store_part(to, sum[i][j], tail);
    }
  }
}

/// All rows of one panel of B: blocks of GemmTile::rows, then 4, 2 and 1.
template <Index Rows, Index Vectors, class T>
void gemm_rows(Index m, Operand<T> a, const T* b, Index b_stride, Index depth, T* c, Index c_stride, Index cols,
               bool from_c, const T* bias) {
  for (; m >= Rows; m -= Rows) {
    gemm_kernel<Rows, Vectors>(a, b, b_stride, depth, c, c_stride, cols, from_c, bias);
    a.data += Rows * a.row_stride;
    c += Rows * c_stride;
  }
  if constexpr (Rows > 1) {
    if (m > 0) gemm_rows<Rows / 2, Vectors>(m, a, b, b_stride, depth, c, c_stride, cols, from_c, bias);
  }
}

/// B(depth x cols) as panels of GemmTile::cols columns, padded with zeros to whole vectors.
template <class T>
void pack(Operand<T> b, Index depth, Index cols, T* to) {
  constexpr Index width = GemmTile<T>::cols, w = lanes<T>;
  for (Index j = 0; j < cols; j += width) {
    const Index used = std::min(width, cols - j), padded = (used + w - 1) / w * w;
    const T* from = b.at(0, j);
    if (b.col_stride == 1) {
      for (Index k = 0; k < depth; ++k) {
        std::memcpy(to + k * padded, from + k * b.row_stride, static_cast<std::size_t>(used) * sizeof(T));
        for (Index i = used; i < padded; ++i) to[k * padded + i] = T(0);
      }
    } else {
      // Blocks of 16 rows of the transpose: each cache line is read whole while its page is at hand.
      for (Index k0 = 0; k0 < depth; k0 += 16) {
        const Index k1 = std::min(depth, k0 + 16);
        for (Index i = 0; i < padded; ++i)
          for (Index k = k0; k < k1; ++k) to[k * padded + i] = i < used ? from[k * b.row_stride + i * b.col_stride] : T(0);
      }
    }
    to += depth * padded;
  }
}

}  // namespace detail

/// Numbers of scratch that `gemm_block` needs.
template <class T>
constexpr Index gemm_scratch() {
  return GemmTile<T>::depth * GemmTile<T>::block_cols;
}

/// C(m x n) = A(m x k) B(k x n), plus C if `accumulate`, else plus `bias` (a row) if given. One thread; no allocation.
/// Every element of C is summed over k in the same order, whatever m and n are and wherever it lies.
template <class T>
void gemm_block(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride, bool accumulate,
                const T* bias, T* scratch) {
  using Tile = GemmTile<T>;
  constexpr Index w = lanes<T>;
  if (k == 0 && !accumulate)
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) c[i * c_stride + j] = bias == nullptr ? T(0) : bias[j];
  for (Index j0 = 0; j0 < n; j0 += Tile::block_cols) {
    const Index cols = std::min(Tile::block_cols, n - j0);
    for (Index k0 = 0; k0 < k; k0 += Tile::depth) {
      const Index depth = std::min(Tile::depth, k - k0);
      // Packing pays once a panel is read a few times; a whole number of vectors can be read where it lies.
      const bool packed = b.col_stride != 1 || m > Tile::rows || cols % w != 0;
      if (packed) detail::pack(Operand<T>{b.at(k0, j0), b.row_stride, b.col_stride}, depth, cols, scratch);
      const bool from_c = accumulate || k0 > 0;
      const T* panel = scratch;
      for (Index j = 0; j < cols; j += Tile::cols) {
        const Index used = std::min(Tile::cols, cols - j), padded = (used + w - 1) / w * w;
        const T* from = packed ? panel : b.at(k0, j0 + j);
        const Index stride = packed ? padded : b.row_stride;
        const T* start = bias == nullptr ? nullptr : bias + j0 + j;
        const Operand<T> left{a.at(0, k0), a.row_stride, a.col_stride};
        T* to = c + j0 + j;
        switch (padded / w) {
          case 1: detail::gemm_rows<Tile::rows, 1>(m, left, from, stride, depth, to, c_stride, used, from_c, start); break;
          case 2: detail::gemm_rows<Tile::rows, 2>(m, left, from, stride, depth, to, c_stride, used, from_c, start); break;
          default: detail::gemm_rows<Tile::rows, 3>(m, left, from, stride, depth, to, c_stride, used, from_c, start); break;
        }
        panel += depth * padded;
      }
    }
  }
}

/// The same on several threads: C is cut along its longer side into pieces of whole register tiles.
template <class T>
void gemm(int threads, Arena& arena, Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride,
          bool accumulate, const T* bias) {
  using Tile = GemmTile<T>;
  if (m == 0 || n == 0) return;
  if (m * n * k < 32 * 32 * 32) threads = 1;  // the work is less than waking a thread
  const bool by_rows = m * Tile::cols >= n * Tile::rows;
  const Index unit = by_rows ? Tile::rows : Tile::cols, size = by_rows ? m : n;
  const Index units = (size + unit - 1) / unit, pieces = std::min<Index>(threads, units);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(pieces * gemm_scratch<T>()) * sizeof(T));
  parallel_for(threads, pieces, [&](Index piece, int) {
    const Index begin = units * piece / pieces * unit, end = std::min(size, units * (piece + 1) / pieces * unit);
    T* own = static_cast<T*>(scratch.data()) + piece * gemm_scratch<T>();
    if (by_rows)
      gemm_block<T>(end - begin, n, k, {a.at(begin, 0), a.row_stride, a.col_stride}, b, c + begin * c_stride, c_stride,
                    accumulate, bias, own);
    else
      gemm_block<T>(m, end - begin, k, a, {b.at(0, begin), b.row_stride, b.col_stride}, c + begin, c_stride, accumulate,
                    bias == nullptr ? nullptr : bias + begin, own);
  });
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// Raw operands of softmax attention over packed rows. Query head h reads key-value head h / (num_heads / num_kv_heads).
/// q (q_rows, num_heads * key_width), k (kv_rows, num_kv_heads * key_width), v (kv_rows, num_kv_heads * value_width).
/// With relative positions (Dai et al. 2019, section 3.3): p (2 * span - 1, num_heads * key_width) holds the projected
/// table, row span-1 - r for key r frames to the left of the query; u and w (one row each) are pos_bias_u and pos_bias_v.
template <class T>
struct AttendOperands {
  AttendShape shape;
  const Sequences *q_sequences, *kv_sequences;
  Index key_width, value_width;
  const T *q, *k, *v;
  const T *p = nullptr, *u = nullptr, *w = nullptr;
  Index span = 0;
  DropoutMask dropout{0.0, Random(Seed(), 0)};

  Index group() const { return shape.num_heads / shape.num_kv_heads; }
  Index q_cols() const { return shape.num_heads * key_width; }
  Index k_cols() const { return shape.num_kv_heads * key_width; }
  Index v_cols() const { return shape.num_kv_heads * value_width; }
  Index out_cols() const { return shape.num_heads * value_width; }
};

/// Queries handled at once: memory grows with tile x keys, never with queries x keys.
inline constexpr Index attend_tile = 64;

/// The scores of one tile: queries [row, row + rows) of one head of one sequence, against keys [key, key + keys).
template <class T>
struct AttendTile {
  const AttendOperands<T>& in;
  Index sequence, head, row, rows, key, keys;
  T* content;     // (rows, key_width): (q + u) scale
  T* positional;  // (rows, key_width): (q + w) scale
  T* scores;      // (rows, keys)
  T* by_position; // (rows, keys + rows - 1): row i, column rows-1 - i + j is the positional score of (i, j)
  T* gemm_space;

  static Index space(const AttendOperands<T>& in) {
    const Index keys = in.kv_sequences->max_length();
    return 2 * attend_tile * in.key_width + attend_tile * (2 * keys + attend_tile) + gemm_scratch<T>();
  }

  AttendTile(const AttendOperands<T>& operands, Index sequence_, Index head_, Index row_, T* memory)
      : in(operands), sequence(sequence_), head(head_), row(row_) {
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    rows = std::min(attend_tile, queries - row);
    const Index past = all - queries;
    const auto first = in.shape.mask.keys(past + row, all), last = in.shape.mask.keys(past + row + rows - 1, all);
    key = first.begin;
    keys = std::max<Index>(0, last.end - first.begin);
    content = memory;
    positional = content + attend_tile * in.key_width;
    scores = positional + attend_tile * in.key_width;
    by_position = scores + attend_tile * in.kv_sequences->max_length();
    gemm_space = by_position + attend_tile * (in.kv_sequences->max_length() + attend_tile);
  }

  Index kv_head() const { return head / in.group(); }
  Index query_row() const { return in.q_sequences->begin(sequence) + row; }
  Index key_row() const { return in.kv_sequences->begin(sequence) + key; }
  Index past() const { return in.kv_sequences->length(sequence) - in.q_sequences->length(sequence); }
  Operand<T> k() const { return {in.k + key_row() * in.k_cols() + kv_head() * in.key_width, in.k_cols()}; }
  Operand<T> v() const { return {in.v + key_row() * in.v_cols() + kv_head() * in.value_width, in.v_cols()}; }
  /// First row of the table that this tile reads: that of its last query and its first key.
  Index table_row() const { return in.span - 1 - (past() + row + rows - 1) + key; }
  Operand<T> p() const { return {in.p + table_row() * in.q_cols() + head * in.key_width, in.q_cols()}; }
  T* shifted(Index i) const { return by_position + i * (keys + rows - 1) + rows - 1 - i; }
  Mask::Keys visible(Index i) const {
    const auto seen = in.shape.mask.keys(past() + row + i, in.kv_sequences->length(sequence));
    return {seen.begin - key, std::max(seen.begin, seen.end) - key};
  }
  std::uint64_t dropout_index(Index i) const {
    return static_cast<std::uint64_t>((query_row() + i) * in.shape.num_heads + head) << 24;
  }

  /// ((q_i + u) . k_j + (q_i + w) . p_{i-j}) scale for the whole tile.
  void compute_scores() {
    const T scale = static_cast<T>(in.shape.scale);
    for (Index i = 0; i < rows; ++i) {
      const T* q = in.q + (query_row() + i) * in.q_cols() + head * in.key_width;
      for (Index c = 0; c < in.key_width; ++c) {
        const Index at = head * in.key_width + c;
        content[i * in.key_width + c] = (q[c] + (in.u == nullptr ? T(0) : in.u[at])) * scale;
        positional[i * in.key_width + c] = (q[c] + (in.w == nullptr ? T(0) : in.w[at])) * scale;
      }
    }
    gemm_block<T>(rows, keys, in.key_width, {content, in.key_width}, k().transposed(), scores, keys, false, nullptr, gemm_space);
    if (in.p == nullptr) return;
    gemm_block<T>(rows, keys + rows - 1, in.key_width, {positional, in.key_width}, p().transposed(), by_position,
                  keys + rows - 1, false, nullptr, gemm_space);
    for (Index i = 0; i < rows; ++i) {
      const T* add = shifted(i);
      map_span(keys, scores + i * keys, [](auto a, auto b) { return a + b; }, scores + i * keys, add);
    }
  }

  /// Scores to probabilities, row by row; gives the logarithm of each row's sum. A row that sees nothing becomes zeros.
  T softmax_row(Index i) {
    T* s = scores + i * keys;
    const auto seen = visible(i);
    std::fill(s, s + seen.begin, T(0));
    std::fill(s + seen.end, s + keys, T(0));
    if (seen.begin == seen.end) return T(0);
    T most = s[seen.begin];
    Index j = seen.begin;
    if (seen.end - j >= lanes<T>) {
      Batch<T> best = load(s + j);
      for (; j + lanes<T> <= seen.end; j += lanes<T>) best = xsimd::max(best, load(s + j));
      most = max_lanes<T>(best);
    }
    for (; j < seen.end; ++j) most = std::max(most, s[j]);
    const Index n = seen.end - seen.begin;
    T* row_scores = s + seen.begin;
    map_span(n, row_scores, [&](auto a) { return xsimd::exp(a - Batch<T>(most)); }, row_scores);
    T sum = sum_span<T>(n, [](auto a) { return a; }, row_scores);
    const Batch<T> inverse(T(1) / sum);
    map_span(n, row_scores, [&](auto a) { return a * inverse; }, row_scores);
    return most + std::log(sum);
  }

  /// Probabilities again, from scores and the logarithm of their sum.
  void probabilities(Index i, T log_sum) {
    T* s = scores + i * keys;
    const auto seen = visible(i);
    std::fill(s, s + seen.begin, T(0));
    std::fill(s + seen.end, s + keys, T(0));
    map_span(seen.end - seen.begin, s + seen.begin, [&](auto a) { return xsimd::exp(a - Batch<T>(log_sum)); }, s + seen.begin);
  }
};

/// out (q_rows, num_heads * value_width); log_sums (q_rows, num_heads) if not null. Milakov and Gimelshein 2018 without
/// the division of keys: a tile sees all its keys at once.
template <class T>
void attend(int threads, Arena& arena, const AttendOperands<T>& in, T* out, T* log_sums) {
  const Index space = AttendTile<T>::space(in), heads = in.shape.num_heads;
  const Index tiles = (in.q_sequences->max_length() + attend_tile - 1) / attend_tile;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, in.q_sequences->size() * heads * tiles, [&](Index task, int thread) {
    const Index row = task % tiles * attend_tile, head = task / tiles % heads, sequence = task / tiles / heads;
    if (row >= in.q_sequences->length(sequence)) return;
    AttendTile<T> tile(in, sequence, head, row, static_cast<T*>(scratch.data()) + thread * space);
    tile.compute_scores();
    for (Index i = 0; i < tile.rows; ++i) {
      const T log_sum = tile.softmax_row(i);
      if (log_sums != nullptr) log_sums[(tile.query_row() + i) * heads + head] = log_sum;
      if (in.dropout.any())
        in.dropout.apply(tile.keys, tile.dropout_index(i), tile.scores + i * tile.keys, tile.scores + i * tile.keys);
    }
    gemm_block<T>(tile.rows, in.value_width, tile.keys, {tile.scores, tile.keys}, tile.v(),
                  out + tile.query_row() * in.out_cols() + head * in.value_width, in.out_cols(), false, nullptr,
                  tile.gemm_space);
  });
}

/// Where the derivatives of `attend` go; all of them are overwritten but du and dw, which are added to. Null du, dw and
/// dp where there are no relative positions.
template <class T>
struct AttendGradients {
  T *dq, *dk, *dv;
  T *dp = nullptr, *du = nullptr, *dw = nullptr;
};

/// Derivative of `attend` from dout, by recomputing each tile's scores from `log_sums`: nothing of size queries x keys
/// is kept. Tasks are (sequence, key-value head); what sequences share (dp, du, dw) is summed in their order afterwards.
template <class T>
void attend_backward(int threads, Arena& arena, const AttendOperands<T>& in, const T* dout, const T* log_sums,
                     const AttendGradients<T>& to) {
  const Index heads = in.shape.num_heads, sequences = in.q_sequences->size();
  const Index longest = std::max<Index>(1, in.kv_sequences->max_length());
  const Index kw = in.key_width, vw = in.value_width, cols = in.q_cols(), span = in.p == nullptr ? 0 : 2 * longest - 1;
  const Index each = AttendTile<T>::space(in) + attend_tile * (2 * longest + attend_tile + 2 * kw);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  // Per sequence: the gradient of the table rows that it reads, and of u and w.
  const Index shared_rows = span + 2;
  const Buffer shared = arena.allocate(static_cast<std::size_t>(in.p == nullptr ? 1 : sequences * shared_rows * cols) * sizeof(T));
  T* shared_data = static_cast<T*>(shared.data());

  parallel_for(threads, sequences * in.shape.num_kv_heads, [&](Index task, int thread) {
    const Index sequence = task / in.shape.num_kv_heads, kv_head = task % in.shape.num_kv_heads;
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    T* memory = static_cast<T*>(scratch.data()) + thread * each;
    T* dscores = memory + AttendTile<T>::space(in);
    T* dby_position = dscores + attend_tile * longest;
    T* dcontent = dby_position + attend_tile * (longest + attend_tile);
    T* dpositional = dcontent + attend_tile * kw;
    T* dtable = shared_data + sequence * shared_rows * cols;
    for (Index j = 0; j < all; ++j) {
      const Index at = in.kv_sequences->begin(sequence) + j;
      std::fill_n(to.dk + at * in.k_cols() + kv_head * kw, kw, T(0));
      std::fill_n(to.dv + at * in.v_cols() + kv_head * vw, vw, T(0));
    }
    for (Index head = kv_head * in.group(); head < (kv_head + 1) * in.group(); ++head) {
      if (in.p != nullptr)
        for (Index r = 0; r < shared_rows; ++r) std::fill_n(dtable + r * cols + head * kw, kw, T(0));
      for (Index row = 0; row < queries; row += attend_tile) {
        AttendTile<T> tile(in, sequence, head, row, memory);
        const Index rows = tile.rows, keys = tile.keys, first = tile.query_row();
        const Operand<T> dy{dout + first * in.out_cols() + head * vw, in.out_cols()};
        tile.compute_scores();
        for (Index i = 0; i < rows; ++i) tile.probabilities(i, log_sums[(first + i) * heads + head]);
        gemm_block<T>(rows, keys, vw, dy, tile.v().transposed(), dscores, keys, false, nullptr, tile.gemm_space);
        // dscores = P (dP - sum P dP), with dP and the P that v saw behind the dropout mask; that P is put in by_position.
        T* dropped = in.dropout.any() ? tile.by_position : tile.scores;
        for (Index i = 0; i < rows; ++i) {
          T *prob = tile.scores + i * keys, *d = dscores + i * keys;
          if (in.dropout.any()) {
            in.dropout.apply(keys, tile.dropout_index(i), d, d);
            in.dropout.apply(keys, tile.dropout_index(i), prob, dropped + i * keys);
          }
          const Batch<T> dot(sum_span<T>(keys, [](auto a, auto b) { return a * b; }, prob, d));
          map_span(keys, d, [&](auto a, auto b) { return a * (b - dot); }, prob, d);
        }
        const Index key_row = tile.key_row();
        gemm_block<T>(keys, vw, rows, Operand<T>{dropped, keys}.transposed(), dy,
                      to.dv + key_row * in.v_cols() + kv_head * vw, in.v_cols(), true, nullptr, tile.gemm_space);
        gemm_block<T>(keys, kw, rows, Operand<T>{dscores, keys}.transposed(), {tile.content, kw},
                      to.dk + key_row * in.k_cols() + kv_head * kw, in.k_cols(), true, nullptr, tile.gemm_space);
        gemm_block<T>(rows, kw, keys, {dscores, keys}, tile.k(), dcontent, kw, false, nullptr, tile.gemm_space);
        if (in.p != nullptr) {
          const Index width = keys + rows - 1;
          std::fill_n(dby_position, rows * width, T(0));
          for (Index i = 0; i < rows; ++i) std::copy_n(dscores + i * keys, keys, dby_position + i * width + rows - 1 - i);
          gemm_block<T>(rows, kw, width, {dby_position, width}, tile.p(), dpositional, kw, false, nullptr, tile.gemm_space);
          const Index table = tile.table_row() - (in.span - longest);  // the same row, counted in a table of `longest`
          gemm_block<T>(width, kw, rows, Operand<T>{dby_position, width}.transposed(), {tile.positional, kw},
                        dtable + table * cols + head * kw, cols, true, nullptr, tile.gemm_space);
        }
        const T scale = static_cast<T>(in.shape.scale);
        for (Index i = 0; i < rows; ++i) {
          T* dq = to.dq + (first + i) * cols + head * kw;
          for (Index c = 0; c < kw; ++c) {
            const T a = dcontent[i * kw + c] * scale;
            const T b = in.p == nullptr ? T(0) : dpositional[i * kw + c] * scale;
            dq[c] = a + b;
            if (in.p != nullptr) {
              dtable[span * cols + head * kw + c] += a;
              dtable[(span + 1) * cols + head * kw + c] += b;
            }
          }
        }
      }
    }
  });
  if (in.p == nullptr) return;
  const Index table_rows = 2 * in.span - 1, offset = in.span - longest;
  parallel_blocks(threads, table_rows, 16, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      T* row = to.dp + r * cols;
      std::fill_n(row, cols, T(0));
      if (r < offset || r >= offset + span) continue;
      for (Index n = 0; n < sequences; ++n)
        map_span(cols, row, [](auto a, auto b) { return a + b; }, row, shared_data + (n * shared_rows + r - offset) * cols);
    }
  });
  for (Index n = 0; n < sequences; ++n) {
    const T* sums = shared_data + (n * shared_rows + span) * cols;
    for (Index c = 0; c < cols; ++c) {
      if (to.du != nullptr) to.du[c] += sums[c];
      if (to.dw != nullptr) to.dw[c] += sums[cols + c];
    }
  }
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

namespace kernels {

/// y[t] = bias + sum_k weight[c, k] x[t + k - left] within each sequence, zero outside: depthwise convolution of rows.
/// `taps` is the weight as (kernel, channels). With `flipped`, the taps run backwards (the derivative by x).
template <class T>
void depthwise_conv(int threads, const Sequences& sequences, Index channels, Index kernel, Index left, bool flipped,
                    const T* x, const T* taps, const T* bias, T* y) {
  for (Index n = 0; n < sequences.size(); ++n) {
    const Index first = sequences.begin(n), length = sequences.length(n);
    parallel_blocks(threads, length, 64, [&](Index begin, Index end) {
      const auto column = [&](Index c, Index count) {
        for (Index t = begin; t < end; ++t) {
          const Index k0 = std::max<Index>(0, left - t), k1 = std::min(kernel, length - t + left);
          Batch<T> sum = bias == nullptr ? Batch<T>(T(0)) : load_part(bias + c, count);
          for (Index k = k0; k < k1; ++k) {
            const T* tap = taps + (flipped ? kernel - 1 - k : k) * channels + c;
            const T* row = x + (first + t + k - left) * channels + c;
            sum = count == lanes<T> ? xsimd::fma(load(tap), load(row), sum)
                                    : xsimd::fma(load_part(tap, count), load_part(row, count), sum);
          }
          store_part(y + (first + t) * channels + c, sum, count);
        }
      };
      for (Index c = 0; c < channels; c += lanes<T>) column(c, std::min(lanes<T>, channels - c));
    });
  }
}

/// dtaps[k, c] += sum_t dy[t, c] x[t + k - left, c].
template <class T>
void depthwise_conv_backward_taps(int threads, const Sequences& sequences, Index channels, Index kernel, Index left,
                                  const T* dy, const T* x, T* dtaps) {
  parallel_blocks(threads, channels, 2 * lanes<T>, [&](Index begin, Index end) {
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), length = sequences.length(n);
      for (Index k = 0; k < kernel; ++k) {
        Local<T, 2 * lanes<T>> sum = {};
        for (Index t = std::max<Index>(0, left - k); t < std::min(length, length + left - k); ++t) {
          const T *g = dy + (first + t) * channels, *row = x + (first + t + k - left) * channels;
          for (Index c = begin; c < end; ++c) sum[c - begin] += g[c] * row[c];
        }
        for (Index c = begin; c < end; ++c) dtaps[k * channels + c] += sum[c - begin];
      }
    }
  });
}

/// The (out, in, time, frequency) weight as (out, time, frequency, in), to match patches that are whole runs of memory;
/// and back, adding.
template <class T>
void conv2d_reorder(const Conv2dShape& s, const T* weight, T* ordered) {
  for (Index o = 0; o < s.out_channels; ++o)
    for (Index i = 0; i < s.in_channels; ++i)
      for (Index k = 0; k < 9; ++k) ordered[(o * 9 + k) * s.in_channels + i] = weight[(o * s.in_channels + i) * 9 + k];
}
template <class T>
void conv2d_add_reordered(const Conv2dShape& s, const T* ordered, T* weight) {
  for (Index o = 0; o < s.out_channels; ++o)
    for (Index i = 0; i < s.in_channels; ++i)
      for (Index k = 0; k < 9; ++k) weight[(o * s.in_channels + i) * 9 + k] += ordered[(o * 9 + k) * s.in_channels + i];
}

/// Frames of output handled at once, so that their patches stay in a second-level cache.
inline Index conv2d_block(const Conv2dShape& s) { return std::max<Index>(1, 256 / std::max<Index>(1, s.out_freqs())); }

/// The patches of output frames [t0, t1) of one sequence: ((t1 - t0) * out_freqs, patch), ordered (time, frequency, in).
template <class T>
void conv2d_patches(const Conv2dShape& s, const T* x, Index t0, Index t1, T* patches) {
  const Index run = Conv2dShape::kernel * s.in_channels;
  for (Index t = t0; t < t1; ++t)
    for (Index f = 0; f < s.out_freqs(); ++f)
      for (Index k = 0; k < Conv2dShape::kernel; ++k) {
        const T* from = x + (t * s.stride + k) * s.in_cols() + f * s.stride * s.in_channels;
        std::copy(from, from + run, patches);
        patches += run;
      }
}

/// y (rows of `to`, out_cols) from x (rows of `from`, in_cols); `ordered` is the reordered weight.
template <class T>
void conv2d(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to, const T* x,
            const T* ordered, const T* bias, T* y) {
  const Index block = conv2d_block(s), rows = block * s.out_freqs();
  const Index each = rows * s.patch() + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  // (patch, out): every block packs the weight anew, which is cheap in this order.
  const Buffer by_patch = arena.allocate(static_cast<std::size_t>(s.patch() * s.out_channels) * sizeof(T));
  T* weight = static_cast<T*>(by_patch.data());
  for (Index i = 0; i < s.patch(); ++i)
    for (Index o = 0; o < s.out_channels; ++o) weight[i * s.out_channels + o] = ordered[o * s.patch() + i];
  for (Index n = 0; n < from.size(); ++n) {
    const Index tasks = (to.length(n) + block - 1) / block;
    parallel_for(threads, tasks, [&](Index task, int thread) {
      T* patches = static_cast<T*>(scratch.data()) + thread * each;
      const Index t0 = task * block, t1 = std::min(to.length(n), t0 + block);
      conv2d_patches(s, x + from.begin(n) * s.in_cols(), t0, t1, patches);
      gemm_block<T>((t1 - t0) * s.out_freqs(), s.out_channels, s.patch(), {patches, s.patch()},
                    {weight, s.out_channels}, y + (to.begin(n) + t0) * s.out_cols(), s.out_channels,
                    false, bias, patches + rows * s.patch());
    });
  }
}

/// dordered (out, patch) += dy^T patches. Threads share the columns of the result, so each sum has one order.
template <class T>
void conv2d_backward_weight(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                            const T* dy, const T* x, T* dordered) {
  const Index block = conv2d_block(s), rows = block * s.out_freqs();
  const Index pieces = std::min<Index>(threads, Conv2dShape::kernel);
  const Index each = rows * s.patch() + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(pieces * each) * sizeof(T));
  parallel_for(threads, pieces, [&](Index piece, int) {
    const Index begin = s.patch() * piece / pieces, end = s.patch() * (piece + 1) / pieces;
    T* patches = static_cast<T*>(scratch.data()) + piece * each;
    for (Index n = 0; n < from.size(); ++n)
      for (Index t0 = 0; t0 < to.length(n); t0 += block) {
        const Index t1 = std::min(to.length(n), t0 + block);
        conv2d_patches(s, x + from.begin(n) * s.in_cols(), t0, t1, patches);
        gemm_block<T>(s.out_channels, end - begin, (t1 - t0) * s.out_freqs(),
                      Operand<T>{dy + (to.begin(n) + t0) * s.out_cols(), s.out_channels}.transposed(),
                      {patches + begin, s.patch()}, dordered + begin, s.patch(), true, nullptr, patches + rows * s.patch());
      }
  });
}

/// dx, which must be zero: the patches' gradients dy W, summed into the frames that they were copied from; earlier output
/// frames first, so that the order of each sum does not depend on the blocks, whose size depends on the threads.
template <class T>
void conv2d_backward_input(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                           const T* dy, const T* ordered, T* dx) {
  constexpr Index kernel = Conv2dShape::kernel;
  const Index block = conv2d_block(s) * threads, run = kernel * s.in_channels;
  const Buffer buffer = arena.allocate(static_cast<std::size_t>(block * s.out_freqs() * s.patch()) * sizeof(T));
  T* patches = static_cast<T*>(buffer.data());
  for (Index n = 0; n < from.size(); ++n)
    for (Index t0 = 0; t0 < to.length(n); t0 += block) {
      const Index t1 = std::min(to.length(n), t0 + block);
      gemm<T>(threads, arena, (t1 - t0) * s.out_freqs(), s.patch(), s.out_channels,
              {dy + (to.begin(n) + t0) * s.out_cols(), s.out_channels}, {ordered, s.patch()}, patches, s.patch(), false,
              nullptr);
      const Index first = t0 * s.stride, frames = (t1 - 1) * s.stride + kernel - first;
      parallel_blocks(threads, frames, 4, [&](Index begin, Index end) {
        for (Index t = first + begin; t < first + end; ++t) {
          T* row = dx + (from.begin(n) + t) * s.in_cols();
          for (Index k = kernel; k-- > 0;) {
            const Index out = (t - k) / s.stride;
            if (t < k || (t - k) % s.stride != 0 || out < t0 || out >= t1) continue;
            for (Index f = 0; f < s.out_freqs(); ++f) {
              const T* g = patches + ((out - t0) * s.out_freqs() + f) * s.patch() + k * run;
              T* d = row + f * s.stride * s.in_channels;
              for (Index i = 0; i < run; ++i) d[i] += g[i];
            }
          }
        }
      });
    }
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

namespace kernels {

inline double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -std::numeric_limits<double>::infinity() ? a : a + std::log1p(std::exp(b - a));
}

/// Numbers of scratch for one sequence of `frames` and `labels`.
inline Index ctc_scratch(Index frames, Index labels) { return (frames + 2) * (2 * labels + 1); }

/// CTC loss of one sequence and its derivative by the logits (Graves et al. 2006, equations 6 to 16), in logarithms and
/// double precision. log_probs and gradient are (frames, vocab); the gradient includes that of log softmax. Where no
/// path exists (frames < labels + adjacent equal labels) the loss is +infinity and the gradient zero.
template <class T>
double ctc(Index frames, Index vocab, const T* log_probs, std::span<const int> labels, int blank, T* gradient,
           double* scratch) {
  constexpr double never = -std::numeric_limits<double>::infinity();
  const Index states = 2 * static_cast<Index>(labels.size()) + 1;
  const auto symbol = [&](Index s) { return s % 2 == 0 ? blank : labels[static_cast<std::size_t>(s / 2)]; };
  const auto skips = [&](Index s) { return s >= 2 && s % 2 == 1 && symbol(s) != symbol(s - 2); };
  double* alpha = scratch;  // (frames, states)
  if (frames == 0) return labels.empty() ? 0.0 : -never;
  for (Index t = 0; t < frames; ++t)
    for (Index s = 0; s < states; ++s) {
      double sum;
      if (t == 0) {
        sum = s < 2 ? 0.0 : never;
      } else {
        const double* before = alpha + (t - 1) * states;
        sum = before[s];
        if (s >= 1) sum = log_add(sum, before[s - 1]);
        if (skips(s)) sum = log_add(sum, before[s - 2]);
      }
      alpha[t * states + s] = sum + static_cast<double>(log_probs[t * vocab + symbol(s)]);
    }
  const double* last = alpha + (frames - 1) * states;
  const double log_likelihood = states > 1 ? log_add(last[states - 1], last[states - 2]) : last[0];
  std::fill(gradient, gradient + frames * vocab, T(0));
  if (log_likelihood == never) return -never;
  // beta[s]: log probability of the rest after frame t, from state s.
  double *beta = scratch + frames * states, *next = beta + states;
  for (Index t = frames - 1; t >= 0; --t) {
    for (Index s = 0; s < states; ++s) {
      if (t == frames - 1) {
        next[s] = s + 2 >= states ? 0.0 : never;
        continue;
      }
      const T* row = log_probs + (t + 1) * vocab;
      double sum = beta[s] + static_cast<double>(row[symbol(s)]);
      if (s + 1 < states) sum = log_add(sum, beta[s + 1] + static_cast<double>(row[symbol(s + 1)]));
      if (s + 2 < states && skips(s + 2)) sum = log_add(sum, beta[s + 2] + static_cast<double>(row[symbol(s + 2)]));
      next[s] = sum;
    }
    std::swap(beta, next);
    for (Index v = 0; v < vocab; ++v) gradient[t * vocab + v] = std::exp(log_probs[t * vocab + v]);
    for (Index s = 0; s < states; ++s)
      gradient[t * vocab + symbol(s)] -= static_cast<T>(std::exp(alpha[t * states + s] + beta[s] - log_likelihood));
  }
  return -log_likelihood;
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {
namespace kernels {

/// Layer normalisation (Ba 2016) of each row; keeps mean and 1/std a row (rows, 2) for the derivative.
template <class T>
void layer_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, T eps, T* y, T* moments) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      const T mean = sum_span<T>(cols, [](auto a) { return a; }, row) / static_cast<T>(cols);
      T square = T(0);
      Batch<T> total(T(0));
      Index c = 0;
      for (; c + lanes<T> <= cols; c += lanes<T>) {
        const auto d = load(row + c) - Batch<T>(mean);
        total = xsimd::fma(d, d, total);
      }
      square = sum_lanes<T>(total);
      for (; c < cols; ++c) square += (row[c] - mean) * (row[c] - mean);
      const T inverse = T(1) / std::sqrt(square / static_cast<T>(cols) + eps);
      if (moments != nullptr) {
        moments[2 * r] = mean;
        moments[2 * r + 1] = inverse;
      }
      const Batch<T> m(mean), s(inverse);
      map_span(cols, y + r * cols, [&](auto a, auto w, auto b) { return xsimd::fma((a - m) * s, w, b); }, row, weight, bias);
    }
  });
}

/// dx for every row; then dweight and dbias, each added to. Null results are left out.
template <class T>
void layer_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight, const T* moments,
                         T* dx, T* dweight, T* dbias) {
  if (dx != nullptr)
    parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const Batch<T> mean(moments[2 * r]), inverse(moments[2 * r + 1]);
        const T *g = dy + r * cols, *row = x + r * cols;
        const T n = static_cast<T>(cols);
        const Batch<T> sum(sum_span<T>(cols, [](auto d, auto w) { return d * w; }, g, weight) / n);
        // Padding lanes have d = w = 0, so their garbage (0 - mean) does not count.
        const Batch<T> dot(
            sum_span<T>(cols, [&](auto d, auto w, auto a) { return d * w * (a - mean) * inverse; }, g, weight, row) / n);
        map_span(cols, dx + r * cols,
                 [&](auto d, auto w, auto a) { return inverse * (d * w - sum - (a - mean) * inverse * dot); }, g, weight, row);
      }
    });
  constexpr Index width = 4 * lanes<T>;
  if (dweight != nullptr || dbias != nullptr)
    parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
      Local<T, width> w = {}, b = {};
      for (Index r = 0; r < rows; ++r)
        for (Index c = begin; c < end; ++c) {
          const T d = dy[r * cols + c];
          b[c - begin] += d;
          w[c - begin] += d * (x[r * cols + c] - moments[2 * r]) * moments[2 * r + 1];
        }
      for (Index c = begin; c < end; ++c) {
        if (dweight != nullptr) dweight[c] += w[c - begin];
        if (dbias != nullptr) dbias[c] += b[c - begin];
      }
    });
}

/// Mean and population variance of each column of x (rows, cols).
template <class T>
void column_moments(int threads, Index rows, Index cols, const T* x, T* mean, T* variance) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> sum = {}, square = {};
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) sum[c - begin] += x[r * cols + c];
    for (Index c = begin; c < end; ++c) mean[c] = sum[c - begin] / static_cast<T>(rows);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T d = x[r * cols + c] - mean[c];
        square[c - begin] += d * d;
      }
    for (Index c = begin; c < end; ++c) variance[c] = square[c - begin] / static_cast<T>(rows);
  });
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, by column (Ioffe and Szegedy 2015). `scale_shift` is 2 cols
/// of scratch.
template <class T>
void batch_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, const T* mean,
                const T* variance, T eps, T* scale_shift, T* y) {
  for (Index c = 0; c < cols; ++c) {
    scale_shift[c] = weight[c] / std::sqrt(variance[c] + eps);
    scale_shift[cols + c] = bias[c] - mean[c] * scale_shift[c];
  }
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(cols, y + r * cols, [](auto a, auto s, auto t) { return xsimd::fma(a, s, t); }, x + r * cols, scale_shift,
               scale_shift + cols);
  });
}

/// Derivative of batch_norm; `of_batch` says that mean and variance are those of x itself.
template <class T>
void batch_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight, const T* mean,
                         const T* variance, T eps, bool of_batch, T* dx, T* dweight, T* dbias) {
  constexpr Index width = 4 * lanes<T>;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    Local<T, width> inverse, sum = {}, dot = {};
    for (Index c = begin; c < end; ++c) inverse[c - begin] = T(1) / std::sqrt(variance[c] + eps);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T d = dy[r * cols + c];
        sum[c - begin] += d;
        dot[c - begin] += d * (x[r * cols + c] - mean[c]) * inverse[c - begin];
      }
    for (Index c = begin; c < end; ++c) {
      if (dweight != nullptr) dweight[c] += dot[c - begin];
      if (dbias != nullptr) dbias[c] += sum[c - begin];
    }
    if (dx == nullptr) return;
    const T n = static_cast<T>(rows);
    for (Index r = 0; r < rows; ++r)
      for (Index c = begin; c < end; ++c) {
        const T s = inverse[c - begin], d = dy[r * cols + c];
        const T centred = of_batch ? d - sum[c - begin] / n - (x[r * cols + c] - mean[c]) * s * dot[c - begin] / n : d;
        dx[r * cols + c] = weight[c] * s * centred;
      }
  });
}

/// Row-wise log softmax.
template <class T>
void log_softmax(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      T most = row[0];
      for (Index c = 1; c < cols; ++c) most = std::max(most, row[c]);
      T sum = T(0);
      for (Index c = 0; c < cols; ++c) sum += std::exp(row[c] - most);
      const T log_sum = most + std::log(sum);
      for (Index c = 0; c < cols; ++c) y[r * cols + c] = row[c] - log_sum;
    }
  });
}

/// dx = dy - softmax * sum(dy), from the result y of log_softmax.
template <class T>
void log_softmax_backward(int threads, Index rows, Index cols, const T* dy, const T* y, T* dx) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      T sum = T(0);
      for (Index c = 0; c < cols; ++c) sum += dy[r * cols + c];
      for (Index c = 0; c < cols; ++c) dx[r * cols + c] = dy[r * cols + c] - std::exp(y[r * cols + c]) * sum;
    }
  });
}

}  // namespace kernels
}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// The context that computes on the CPU: kernels by xsimd, threads by OpenMP, intermediates in an arena (a warm forward
/// pass allocates nothing). Results do not depend on the number of threads. One context belongs to one thread.
///
/// Every primitive takes and gives tensors `(rows, channels)` of packed rows. Arguments taken by value may be
/// overwritten when nobody else holds them. Each `*_backward` gives the derivative by the inputs and adds the
/// derivative by trainable parameters to their gradients.
template <class T = float>
class Cpu {
 public:
  using Scalar = T;
  using Tensor = laconic::Tensor<T>;
  static constexpr bool training = false;

  /// `threads` = 0 takes all that the machine offers.
  explicit Cpu(int threads = 0) : threads_(threads > 0 ? threads : hardware_threads()) {}
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;

  Arena& arena() { return arena_; }
  int threads() const { return threads_; }

  // -- values -------------------------------------------------------------------------------------------------------
  Tensor make(Index rows, Index cols) { return Tensor(arena_, rows, cols); }
  Tensor zeros(Index rows, Index cols) {
    Tensor out = make(rows, cols);
    std::fill_n(out.data(), out.size(), T(0));
    return out;
  }
  /// Borrows the caller's matrix, which must live as long as what is computed from it. Copies a temporary one, which is
  /// also what any other Eigen expression becomes.
  Tensor input(const Matrix<T>& x) { return Tensor::borrow(x); }
  Tensor input(Matrix<T>&& x) {
    Tensor out = make(x.rows(), x.cols());
    out.view() = x;
    return out;
  }
  Tensor input(Tensor x) { return x; }
  /// A value that is filled here and has no derivative: fill(row, col), a function of these alone.
  template <class Fill>
  Tensor constant(Index rows, Index cols, Fill&& fill) {
    Tensor out = make(rows, cols);
    for (Index r = 0; r < rows; ++r)
      for (Index c = 0; c < cols; ++c) out.row(r)[c] = static_cast<T>(fill(r, c));
    return out;
  }

  // -- primitives ---------------------------------------------------------------------------------------------------
  /// x W^T + b. x (rows, in), weight (out, in), bias (out) or null.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias) {
    const Index out = weight.value.rows(), in = weight.value.cols();
    require(x.cols() == in, "linear: input has ", x.cols(), " channels, the weight expects ", in);
    require(bias == nullptr || bias->size() == out, "linear: a bias of ", bias == nullptr ? 0 : bias->size(), " given for ", out, " channels");
    Tensor y = make(x.rows(), out);
    kernels::gemm<T>(threads_, arena_, x.rows(), out, in, {x.data(), in}, weight_operand(weight).transposed(), y.data(), out, false,
                     bias == nullptr ? nullptr : bias->value.data());
    return y;
  }
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, bool needs_dx) {
    const Index out = weight.value.rows(), in = weight.value.cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      kernels::gemm<T>(threads_, arena_, out, in, rows, g.transposed(), {x.data(), in}, weight.gradient().data(), in, true, nullptr);
    if (bias != nullptr && bias->trainable)
      kernels::add_column_sums(threads_, rows, out, dy.data(), bias->gradient().data());
    if (!needs_dx) return {};
    Tensor dx = make(rows, in);
    kernels::gemm<T>(threads_, arena_, rows, in, out, g, weight_operand(weight), dx.data(), in, false, nullptr);
    return dx;
  }

  Tensor activation(Activation kind, Tensor x) {
    Tensor y = x.unique() ? x : make(x.rows(), x.cols());
    kernels::map(threads_, x.size(), y.data(), [kind](auto a) { return kernels::activate(kind, a); }, std::as_const(x).data());
    return y;
  }
  Tensor activation_backward(Activation kind, const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    kernels::map(threads_, x.size(), dx.data(), [kind](auto d, auto a) { return kernels::activate_backward(kind, d, a); },
                 dy.data(), x.data());
    return dx;
  }

  /// (rows, 2 channels) to (rows, channels): the first half times the sigmoid of the second.
  Tensor glu(const Tensor& x) {
    require(x.cols() % 2 == 0, "glu: ", x.cols(), " channels given, an even number expected");
    Tensor y = make(x.rows(), x.cols() / 2);
    kernels::glu(threads_, y.rows(), y.cols(), x.data(), y.data());
    return y;
  }
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    kernels::glu_backward(threads_, dy.rows(), dy.cols(), dy.data(), x.data(), dx.data());
    return dx;
  }

  /// `moments`, if given, receives mean and 1/std of each row, for the derivative.
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps, Tensor* moments = nullptr) {
    require(x.cols() == weight.size() && x.cols() == bias.size(), "layer_norm: input has ", x.cols(), " channels, weight and bias expect ",
            weight.size(), " and ", bias.size());
    Tensor y = make(x.rows(), x.cols());
    if (moments != nullptr) *moments = make(x.rows(), 2);
    kernels::layer_norm(threads_, x.rows(), x.cols(), x.data(), weight.value.data(), bias.value.data(), static_cast<T>(eps),
                        y.data(), moments == nullptr ? nullptr : moments->data());
    return y;
  }
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    kernels::layer_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), weight.value.data(), moments.data(),
                                 dx.data(), gradient(weight), gradient(bias));
    return dx;
  }

  /// With the running statistics (evaluation).
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    return batch_norm_with(x, p, p.running_mean.value.data(), p.running_var.value.data());
  }
  /// With the statistics of the rows themselves, which are given in `moments` (2, channels). The update of the running
  /// statistics goes to their gradient slots (variance unbiased, as PyTorch does it).
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments) {
    const Index cols = x.cols();
    moments = make(2, cols);
    if (x.rows() == 0) return make(0, cols);
    check_batch_norm(cols, p);
    kernels::column_moments(threads_, x.rows(), cols, x.data(), moments.row(0), moments.row(1));
    const T rate = static_cast<T>(p.momentum);
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    // One batch after the other, so that many before an update are what PyTorch does in as many passes.
    const auto gather = [&](const Parameter<T>& statistic, Index row, T factor) {
      if (!statistic.trainable) return;
      T* update = statistic.gradient().data();
      for (Index c = 0; c < cols; ++c) update[c] += rate * (moments.row(row)[c] * factor - (statistic.value.data()[c] + update[c]));
    };
    gather(p.running_mean, 0, T(1));
    gather(p.running_var, 1, unbiased);
    return batch_norm_with(x, p, moments.row(0), moments.row(1));
  }
  /// `moments` as batch_norm_train gave them, or empty for the running statistics.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? make(x.rows(), x.cols()) : Tensor();
    const bool of_batch = !moments.empty();
    kernels::batch_norm_backward(threads_, x.rows(), x.cols(), dy.data(), x.data(), p.weight.value.data(),
                                 of_batch ? moments.row(0) : p.running_mean.value.data(),
                                 of_batch ? moments.row(1) : p.running_var.value.data(), static_cast<T>(p.eps), of_batch,
                                 dx.data(), gradient(p.weight), gradient(p.bias));
    return dx;
  }

  /// x (rows of `from`, shape.in_cols()) to (rows of `to`, shape.out_cols()).
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to) {
    require(shape.stride > 0 && weight.value.rows() == shape.out_channels && weight.value.cols() == shape.patch() &&
                bias.size() == shape.out_channels,
            "conv2d: stride ", shape.stride, ", a weight of (", weight.value.rows(), ", ", weight.value.cols(), ") and a bias of ", bias.size(),
            " given, a positive one, (", shape.out_channels, ", ", shape.patch(), ") and ", shape.out_channels, " expected");
    require(x.cols() == shape.in_cols() && x.rows() == from.rows(), "conv2d: input is (", x.rows(), ", ", x.cols(),
            "), expected (", from.rows(), ", ", shape.in_cols(), ")");
    require(from.size() == to.size(), "conv2d: ", to.size(), " sequences out given for ", from.size(), " in");
    for (Index n = 0; n < from.size(); ++n)
      require(to.length(n) == shape.out_length(from.length(n)), "conv2d: length ", to.length(n), " out given for ", from.length(n),
              " in, ", shape.out_length(from.length(n)), " expected");
    Tensor y = make(to.rows(), shape.out_cols());
    const Tensor ordered = conv2d_weight(weight, shape);
    kernels::conv2d(threads_, arena_, shape, from, to, x.data(), ordered.data(), bias.value.data(), y.data());
    return y;
  }
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (weight.trainable) {
      Tensor ordered = zeros(shape.out_channels, shape.patch());
      kernels::conv2d_backward_weight(threads_, arena_, shape, from, to, dy.data(), x.data(), ordered.data());
      kernels::conv2d_add_reordered(shape, ordered.data(), weight.gradient().data());
    }
    if (bias.trainable)
      kernels::add_column_sums(threads_, dy.rows() * shape.out_freqs(), shape.out_channels, dy.data(), bias.gradient().data());
    if (!needs_dx) return {};
    Tensor dx = zeros(x.rows(), x.cols());
    const Tensor ordered = conv2d_weight(weight, shape);
    kernels::conv2d_backward_input(threads_, arena_, shape, from, to, dy.data(), ordered.data(), dx.data());
    return dx;
  }

  /// Each channel with its own kernel over time, zeros outside a sequence; output t sees inputs t-left .. t-left+kernel-1.
  /// weight (channels, 1, kernel), bias (channels) or null.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Sequences& sequences, Index left) {
    const Index channels = weight.value.rows(), kernel = weight.value.cols();
    require(x.cols() == channels && x.rows() == sequences.rows(), "depthwise_conv: input is (", x.rows(), ", ", x.cols(),
            "), expected (", sequences.rows(), ", ", channels, ")");
    require(bias == nullptr || bias->size() == channels, "depthwise_conv: a bias of ", bias == nullptr ? 0 : bias->size(), " given for ",
            channels, " channels");
    Tensor y = make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, left, false, x.data(), taps.data(),
                            bias == nullptr ? nullptr : bias->value.data(), y.data());
    return y;
  }
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                                 const Sequences& sequences, Index left, bool needs_dx) {
    const Index channels = weight.value.rows(), kernel = weight.value.cols();
    if (weight.trainable) {
      Tensor dtaps = zeros(kernel, channels);
      kernels::depthwise_conv_backward_taps(threads_, sequences, channels, kernel, left, dy.data(), x.data(), dtaps.data());
      weight.gradient() += dtaps.view().transpose();
    }
    if (bias != nullptr && bias->trainable)
      kernels::add_column_sums(threads_, dy.rows(), channels, dy.data(), bias->gradient().data());
    if (!needs_dx) return {};
    Tensor dx = make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(threads_, sequences, channels, kernel, kernel - 1 - left, true, dy.data(), taps.data(),
                            static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

  /// Softmax attention: see AttendShape and RelativeTerm. q (rows, num_heads * K), k (rows, num_kv_heads * K),
  /// v (rows, num_kv_heads * V) to (rows, num_heads * V). Key rows may outnumber query rows (cached frames): the last
  /// query stands at the last key. A query that sees no key gives zeros. Memory grows with rows, not with their square.
  /// The dropout (of probabilities) does nothing outside training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape, const Sequences& q_sequences,
                const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    Tensor out = make(q.rows(), in.out_cols());
    kernels::attend(threads_, arena_, in, out.data(), static_cast<T*>(nullptr));
    return out;
  }
  /// The same with dropout of the attention probabilities, keeping the row sums for the derivative.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape, const Sequences& q_sequences,
                      const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout,
                      Tensor& log_sums) {
    auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    Tensor out = make(q.rows(), in.out_cols());
    log_sums = make(q.rows(), shape.num_heads);
    kernels::attend(threads_, arena_, in, out.data(), log_sums.data());
    return out;
  }
  struct AttendDerivative {
    Tensor dq, dk, dv, dtable;
  };
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                   const Sequences& q_sequences, const Sequences& kv_sequences,
                                   const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout,
                                   const Tensor& log_sums) {
    auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    AttendDerivative d{make(q.rows(), q.cols()), make(k.rows(), k.cols()), make(v.rows(), v.cols()), {}};
    kernels::AttendGradients<T> to{d.dq.data(), d.dk.data(), d.dv.data()};
    if (in.p != nullptr) {
      d.dtable = make(relative.table.rows(), relative.table.cols());
      to.dp = d.dtable.data();
      to.du = relative.pos_bias_u == nullptr ? nullptr : gradient(*relative.pos_bias_u);
      to.dw = relative.pos_bias_v == nullptr ? nullptr : gradient(*relative.pos_bias_v);
    }
    kernels::attend_backward(threads_, arena_, in, dout.data(), log_sums.data(), to);
    return d;
  }

  /// Nothing, outside training.
  Tensor dropout(Tensor x, double) { return x; }
  Tensor dropout_train(const Tensor& x, const DropoutMask& mask) {
    Tensor y = make(x.rows(), x.cols());
    kernels::dropout(threads_, x.size(), mask, x.data(), y.data());
    return y;
  }

  /// x + scale * y.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    require(x.rows() == y.rows() && x.cols() == y.cols(), "add: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ", y.cols(),
            ") given, equal shapes expected");
    Tensor out = x.unique() ? x : make(x.rows(), x.cols());
    const kernels::Batch<T> s(static_cast<T>(scale));
    kernels::map(threads_, x.size(), out.data(), [s](auto a, auto b) { return xsimd::fma(s, b, a); }, std::as_const(x).data(), y.data());
    return out;
  }
  Tensor scale(const Tensor& x, double factor) {
    Tensor y = make(x.rows(), x.cols());
    const kernels::Batch<T> s(static_cast<T>(factor));
    kernels::map(threads_, x.size(), y.data(), [s](auto a) { return s * a; }, x.data());
    return y;
  }

  Tensor log_softmax(const Tensor& x) {
    Tensor y = make(x.rows(), x.cols());
    kernels::log_softmax(threads_, x.rows(), x.cols(), x.data(), y.data());
    return y;
  }
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = make(y.rows(), y.cols());
    kernels::log_softmax_backward(threads_, y.rows(), y.cols(), dy.data(), y.data(), dx.data());
    return dx;
  }

  /// CTC loss (sequences, 1) from unnormalised logits (rows, vocab); +infinity where the labels do not fit the frames.
  /// `gradient`, if given, receives the derivative by the logits, zero for those.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank, Tensor* derivative = nullptr) {
    require(labels.sequences.size() == sequences.size(), "ctc: ", labels.sequences.size(), " label sequences given for ",
            sequences.size(), " sequences of logits");
    require(static_cast<Index>(labels.tokens.size()) == labels.sequences.rows(), "ctc: ", labels.tokens.size(),
            " labels given, their sequences hold ", labels.sequences.rows());
    require(logits.rows() == sequences.rows(), "ctc: ", logits.rows(), " rows of logits given, their sequences have ", sequences.rows());
    require(blank >= 0 && blank < logits.cols(), "ctc: blank ", blank, " given, expected 0 .. ", logits.cols() - 1);
    for (const int token : labels.tokens)
      require(token >= 0 && token < logits.cols() && token != blank, "ctc: label ", token, " given, expected 0 .. ",
              logits.cols() - 1, " except the blank ", blank);
    const Tensor log_probs = log_softmax(logits);
    Tensor losses = make(sequences.size(), 1), own;
    Tensor& d = derivative == nullptr ? own : *derivative;
    d = make(logits.rows(), logits.cols());
    Index most = 1;
    for (Index n = 0; n < sequences.size(); ++n)
      most = std::max(most, kernels::ctc_scratch(sequences.length(n), labels.sequences.length(n)));
    const Buffer scratch = arena_.allocate(static_cast<std::size_t>(threads_ * most) * sizeof(double));
    kernels::parallel_for(threads_, sequences.size(), [&](Index n, int thread) {
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n), static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(kernels::ctc<T>(
          sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank, d.row(sequences.begin(n)),
          static_cast<double*>(scratch.data()) + thread * most));
    });
    return losses;
  }
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = make(derivative.rows(), derivative.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const kernels::Batch<T> factor(dlosses.row(n)[0]);
      kernels::map_span(sequences.length(n) * dx.cols(), dx.row(sequences.begin(n)), [factor](auto a) { return factor * a; },
                        derivative.row(sequences.begin(n)));
    }
    return dx;
  }

  /// The mean of all numbers (1, 1), infinite ones counted as zero, so that one impossible target spoils no batch. What is
  /// not a number stays so: it is a fault, and must show.
  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i) dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 private:
  static kernels::Operand<T> weight_operand(const Parameter<T>& weight) { return {weight.value.data(), weight.value.cols()}; }
  static T* gradient(const Parameter<T>& p) { return p.trainable ? p.gradient().data() : nullptr; }

  static void check_batch_norm(Index channels, const BatchNormParameters<T>& p) {
    for (const Parameter<T>* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var})
      require(one->size() == channels, "batch_norm: input has ", channels, " channels, a parameter expects ", one->size());
  }
  Tensor batch_norm_with(const Tensor& x, const BatchNormParameters<T>& p, const T* mean, const T* variance) {
    check_batch_norm(x.cols(), p);
    Tensor y = make(x.rows(), x.cols());
    Tensor scale_shift = make(2, x.cols());
    kernels::batch_norm(threads_, x.rows(), x.cols(), x.data(), p.weight.value.data(), p.bias.value.data(), mean, variance,
                        static_cast<T>(p.eps), scale_shift.data(), y.data());
    return y;
  }
  Tensor conv2d_weight(const Parameter<T>& weight, const Conv2dShape& shape) {
    Tensor ordered = make(shape.out_channels, shape.patch());
    kernels::conv2d_reorder(shape, weight.value.data(), ordered.data());
    return ordered;
  }
  Tensor depthwise_taps(const Parameter<T>& weight) {
    Tensor taps = make(weight.value.cols(), weight.value.rows());
    taps.view() = weight.value.transpose();
    return taps;
  }
  kernels::AttendOperands<T> attend_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                             const Sequences& q_sequences, const Sequences& kv_sequences,
                                             const RelativeTerm<Tensor, T>& relative) {
    const Index width = shape.num_heads > 0 ? q.cols() / shape.num_heads : 0;
    require(width > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 && q.cols() == width * shape.num_heads &&
                k.cols() == width * shape.num_kv_heads && v.cols() % shape.num_kv_heads == 0,
            "attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", shape.num_heads, " heads over ",
            shape.num_kv_heads, " key-value heads do not divide");
    require(q.rows() == q_sequences.rows() && k.rows() == kv_sequences.rows() && v.rows() == k.rows() &&
                q_sequences.size() == kv_sequences.size(),
            "attend: q, k, v have ", q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ", q_sequences.rows(),
            " and ", kv_sequences.rows());
    require(shape.mask.is_valid(), "attend: a mask of chunk ", shape.mask.chunk, " and left context ", shape.mask.left_context,
            " given, at least 1 and 0 expected, or neither");
    kernels::AttendOperands<T> in{shape, &q_sequences, &kv_sequences, width, v.cols() / shape.num_kv_heads, q.data(), k.data(), v.data()};
    if (!relative.table.empty()) {
      in.p = relative.table.data();
      for (const auto* bias : {relative.pos_bias_u, relative.pos_bias_v})
        require(bias == nullptr || bias->size() == q.cols(), "attend: a position bias of ", bias == nullptr ? 0 : bias->size(), " given, ", q.cols(),
                " expected");
      if (relative.pos_bias_u != nullptr) in.u = relative.pos_bias_u->value.data();
      if (relative.pos_bias_v != nullptr) in.w = relative.pos_bias_v->value.data();
      in.span = (relative.table.rows() + 1) / 2;
      require(relative.table.cols() == q.cols() && relative.table.rows() % 2 == 1 && in.span >= kv_sequences.max_length(),
              "attend: the table of relative positions is (", relative.table.rows(), ", ", relative.table.cols(), "), expected (2 n - 1, ",
              q.cols(), ") with n at least ", kv_sequences.max_length());
      for (Index n = 0; n < q_sequences.size(); ++n)
        require(q_sequences.length(n) <= kv_sequences.length(n), "attend: sequence ", n, " has ", q_sequences.length(n), " queries and ",
                kv_sequences.length(n), " keys, at least as many keys expected with relative positions");
    }
    return in;
  }

  int threads_;
  Arena arena_;
};

}  // namespace laconic

#include <Eigen/Eigenvalues>

namespace laconic::inline LACONIC_ABI {

/// Keys and values by way of one latent: K = x (k_up down)^T, V = x (v_up down)^T.
struct JointFactors {
  Matrix<double> down;                  ///< (rank, d_model), orthonormal rows
  Matrix<double> k_up, v_up;            ///< (key or value channels, rank)
  std::vector<double> singular_values;  ///< of the stacked weights, all d_model of them, falling
  double discarded = 0;                 ///< sum of squares of the singular values beyond the rank
  double predicted_error = 0;           ///< |W - up down| / |W| (Frobenius): that of K and V for white inputs
};

/// Truncated singular value decomposition W = U S V^T of the stacked key and value weights: the best latent of its size
/// for inputs whose channels are uncorrelated and equally strong (Eckart and Young 1936). It needs no calibration.
struct JointSvd {
  /// k (key channels, d_model), v (value channels, d_model), rank 1 .. d_model. Allocates. Throws `Error` for other
  /// ranks and for weights that are not finite. (A template so that only who converts compiles it.)
  template <std::same_as<double> T>
  static JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
    const Index d_model = k.cols();
    require(v.cols() == d_model, "factorize: keys of ", d_model, " and values of ", v.cols(),
            " inputs given, equal numbers expected");
    require(rank > 0 && rank <= d_model, "factorize: rank ", rank, " given, expected 1 .. d_model = ", d_model);
    Matrix<T> stacked(k.rows() + v.rows(), d_model);
    stacked << k, v;
    require(stacked.allFinite(), "factorize: the key or value weights hold numbers that are not finite");

    // V from W^T W, which compiles four times as fast as Eigen's SVD and runs as fast. Nothing is lost by the square:
    // V is orthogonal to rounding, and U S is W V, so that all of W comes back at full rank.
    const Eigen::SelfAdjointEigenSolver<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>> eigen(stacked.transpose() *
                                                                                                stacked);
    require(eigen.info() == Eigen::Success, "factorize: the eigenvalues of the (", d_model, ", ", d_model,
            ") Gram matrix did not converge");
    const Matrix<T> basis = eigen.eigenvectors().rowwise().reverse();  // largest first
    const Matrix<T> up = stacked * basis;

    // All of S goes to `up`: then the latent has the scale of its input, and also channels of singular value 0 (as of
    // repeated heads) can learn; with sqrt(S) on both sides both of their gradients would vanish.
    JointFactors out;
    out.down = basis.leftCols(rank).transpose();
    out.k_up = up.topLeftCorner(k.rows(), rank);
    out.v_up = up.bottomLeftCorner(v.rows(), rank);
    out.singular_values.reserve(static_cast<std::size_t>(d_model));
    for (Index i = 0; i < d_model; ++i) out.singular_values.push_back(up.col(i).norm());
    out.discarded = up.rightCols(d_model - rank).squaredNorm();
    if (out.discarded > 0) out.predicted_error = std::sqrt(out.discarded / stacked.squaredNorm());
    return out;
  }
};

}  // namespace laconic

#include <map>

namespace laconic::inline LACONIC_ABI {

/// How far one thing is from another, as sums of squares, so that deviations add up over layers.
struct Deviation {
  double error = 0, reference = 0;

  void add(double value, double expected) {
    error += (value - expected) * (value - expected);
    reference += expected * expected;
  }
  Deviation& operator+=(const Deviation& other) {
    error += other.error;
    reference += other.reference;
    return *this;
  }
  /// |value - expected| / |expected| (Frobenius).
  double relative() const { return error == 0 ? 0 : std::sqrt(error / reference); }
};

/// Every number of `value` against that of `expected`.
template <class A, class B>
Deviation deviation(const A& value, const B& expected) {
  Deviation out;
  for (Index r = 0; r < expected.rows(); ++r)
    for (Index c = 0; c < expected.cols(); ++c)
      out.add(static_cast<double>(value(r, c)), static_cast<double>(expected(r, c)));
  return out;
}

/// One attention layer before and after; all errors are relative (Frobenius).
struct LayerReport {
  std::string layer;           ///< its name among the parameters: "layers.0.self_attn"
  Index num_kv_heads = 0;      ///< of the converted layer
  Index kv_lora_rank = 0;      ///< of the converted layer, 0 where it has no latent
  double predicted_error = 0;  ///< of keys and values, from the weights alone: right for white inputs
  double key_value_error = 0;  ///< of keys and values without their biases, measured by a forward pass
  double output_error = 0;     ///< of the layer's output, measured by a forward pass
};

/// What a conversion did.
struct ConversionReport {
  std::string input;                ///< what was measured on: "white noise" or "features"
  std::vector<LayerReport> layers;  ///< each layer on the input that it has in the source model (or on white noise)
  double predicted_error = 0;       ///< these three: all layers together
  double key_value_error = 0;
  double output_error = 0;
  double logits_error = 0;          ///< of the whole model's output
};

/// The CPU, keeping what flows into chosen linear layers: `inputs[&layer.weight]` is filled where it exists.
template <class T>
class InputRecorder : public Cpu<T> {
 public:
  using typename Cpu<T>::Tensor;

  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias) {
    if (const auto at = inputs.find(&weight); at != inputs.end()) at->second = x.view();
    return Cpu<T>::linear(x, weight, bias);
  }

  std::map<const Parameter<T>*, Matrix<T>> inputs;
};

/// Keys and values of both layers for the same rows x (rows, d_model), as each query head reads them. Biases are left
/// out, for a conversion may move them: one on the keys changes no probability, one on the values is one on the output.
template <class To, class From, class T>
Deviation key_value_deviation(Cpu<T>& cpu, const AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source,
                              const Matrix<T>& x) {
  Matrix<T> rows = Matrix<T>::Zero(x.rows() + 1, x.cols());  // the row of zeros gives the biases
  rows.topRows(x.rows()) = x;
  const auto expand = [&](const auto& layer) {
    return layer.key_value.expand(cpu, layer.key_value.remember(cpu, cpu.input(rows)));
  };
  const auto now = expand(target), before = expand(source);
  const AttentionDims &to = target.dims(), &from = source.dims();
  Deviation out;
  const auto add = [&](const auto& value, const auto& expected) {
    for (Index r = 0; r < x.rows(); ++r)
      for (Index h = 0; h < from.num_heads; ++h)
        for (Index c = 0; c < from.head_dim(); ++c) {
          const Index a = h / (to.num_heads / to.num_kv_heads) * to.head_dim() + c;
          const Index b = h / (from.num_heads / from.num_kv_heads) * from.head_dim() + c;
          out.add(static_cast<double>(value.row(r)[a] - value.row(x.rows())[a]),
                  static_cast<double>(expected.row(r)[b] - expected.row(x.rows())[b]));
        }
  };
  add(now.k, before.k);
  add(now.v, before.v);
  return out;
}

/// Outputs of both attention layers for the same rows x (rows, d_model) of these sequences.
template <class To, class From, class T>
Deviation output_deviation(Cpu<T>& cpu, const AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source,
                           const Matrix<T>& x, const Sequences& sequences) {
  const auto rows = cpu.input(x);
  const auto table = From::Position::enter(cpu, rows, sequences).table;
  return deviation(target(cpu, rows, sequences, table).view(), source(cpu, rows, sequences, table).view());
}

/// Rows of independent standard normal numbers, the same for the same name.
template <class T>
Matrix<T> white_noise(Index rows, Index cols, std::string_view name) {
  const Random random(Seed(), name);
  Matrix<T> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<T>(random.normal(static_cast<std::uint64_t>(i)));
  return out;
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// Numbers of the converted attention that its type leaves open (`dyn`). 0 means "as the type says", and otherwise a
/// key-value head for every head.
struct ConversionConfig {
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
};

/// `auto [small, report] = convert<Small>(model);`
template <class Target>
struct Conversion {
  Target model;
  ConversionReport report;
};

namespace detail {

template <class Target, class Source>
inline constexpr bool same_model = false;
template <template <class, class> class Model, class To, class From, class T>
inline constexpr bool same_model<Model<To, T>, Model<From, T>> = true;

template <class From, class To>
inline constexpr bool conversion_known = false;
template <>
inline constexpr bool conversion_known<FullRank, FullRank> = true;
template <Index R>
inline constexpr bool conversion_known<FullRank, SharedLatent<R>> = true;
template <Index A, Index B>
inline constexpr bool conversion_known<SharedLatent<A>, SharedLatent<B>> = true;

/// Keys and values as functions of the layer's input: weights (heads * head_dim, d_model), biases as one more column.
struct KeyValueMap {
  Matrix<double> k, v;
  auto k_weight() const { return k.leftCols(k.cols() - 1); }
  auto v_weight() const { return v.leftCols(v.cols() - 1); }
  auto v_bias() const { return v.rightCols(1); }
};

template <class T>
Matrix<double> with_bias(const Linear<T>& linear) {
  Matrix<double> out(linear.out(), linear.in() + 1);
  out << linear.weight.value.template cast<double>(), linear.bias.value.transpose().template cast<double>();
  return out;
}
template <class T>
void assign(Linear<T>& linear, const Matrix<double>& with_bias) {
  linear.weight.value = with_bias.leftCols(linear.in()).template cast<T>();
  linear.bias.value = with_bias.rightCols(1).transpose().template cast<T>();
}
template <class T>
void assign_weight(Linear<T>& linear, const Matrix<double>& weight) {
  linear.weight.value = weight.template cast<T>();
  linear.bias.value.setZero();
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {with_bias(layer.linear_k), with_bias(layer.linear_v)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = with_bias(layer.linear_kv_down);
  const Matrix<double> k_up = with_bias(layer.linear_k_up), v_up = with_bias(layer.linear_v_up);
  const Index rank = down.rows();
  KeyValueMap out{k_up.leftCols(rank) * down, v_up.leftCols(rank) * down};
  out.k.rightCols(1) += k_up.rightCols(1);
  out.v.rightCols(1) += v_up.rightCols(1);
  return out;
}

/// Every head's rows from those of the key-value head that it reads.
inline Matrix<double> repeat_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out(d.d_model, rows.cols());
  const Index dim = d.head_dim(), group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h * dim, dim) = rows.middleRows(h / group * dim, dim);
  return out;
}
/// The mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
inline Matrix<double> mean_heads(const Matrix<double>& rows, const AttentionDims& d) {
  Matrix<double> out = Matrix<double>::Zero(d.kv_dim(), rows.cols());
  const Index dim = d.head_dim(), group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) out.middleRows(h / group * dim, dim) += rows.middleRows(h * dim, dim);
  return out / static_cast<double>(group);
}
inline KeyValueMap repeat_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {repeat_heads(map.k, d), repeat_heads(map.v, d)};
}
inline KeyValueMap mean_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {mean_heads(map.k, d), mean_heads(map.v, d)};
}

/// Makes the layer's keys and values as near to `wanted` as it can; returns the squared error of its weights.
template <class Layer, class Method>
double fit(FullRank, Layer& layer, const KeyValueMap& wanted, const Method&) {
  assign(layer.linear_k, wanted.k);
  assign(layer.linear_v, wanted.v);
  return 0;
}
template <Index R, class Layer, class Method>
double fit(SharedLatent<R>, Layer& layer, const KeyValueMap& wanted, const Method& method) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = method.factorize(k, v, layer.linear_kv_down.out());
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_up, factors.k_up);
  assign_weight(layer.linear_v_up, factors.v_up);
  return factors.discarded;
}

/// Converts keys and values of one layer whose other parameters are already copied. Returns the predicted deviation.
template <class To, class From, class T, class Method>
Deviation convert_layer(std::string_view name, AttentionLayer<To, T>& target, const AttentionLayer<From, T>& source,
                        const Method& method) {
  const AttentionDims &to = target.dims(), &from = source.dims();
  const KeyValueMap before = repeat_heads(key_value_map(typename From::KeyValue{}, source.key_value), from);
  require(before.k.allFinite() && before.v.allFinite(), "convert: keys or values of ", name,
          " have weights that are not finite");
  const KeyValueMap wanted = mean_heads(before, to), shared = repeat_heads(wanted, to);
  Deviation out = deviation(shared.k_weight(), before.k_weight());
  out += deviation(shared.v_weight(), before.v_weight());
  const bool same_latent = from.kv_lora_rank > 0 && from.kv_lora_rank == to.kv_lora_rank;
  if (same_latent && from.num_kv_heads == to.num_kv_heads) return out;  // copied already

  // The mean is a projection: what it discards is orthogonal to what the fit discards, once for each head of a group.
  const double discarded = fit(typename To::KeyValue{}, target.key_value, wanted, method);
  out.error += static_cast<double>(to.num_heads / to.num_kv_heads) * discarded;

  // Probabilities sum to 1, so a bias on the values is one on the output.
  const KeyValueMap now = repeat_heads(key_value_map(typename To::KeyValue{}, target.key_value), to);
  const Matrix<double> moved =
      target.linear_out.weight.value.template cast<double>() * (before.v_bias() - now.v_bias());
  target.linear_out.bias.value += moved.transpose().template cast<T>();
  return out;
}

/// Copies by name. Only keys and values may be missing in the source or have another shape there.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  using P = Parameter<typename Source::Scalar>;
  std::map<std::string, const P*, std::less<>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace(name, &p); });
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& layer) {
    layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
  });
  target.parameters([&](std::string_view name, P& p) {
    const auto found = from.find(name);
    if (found != from.end() && found->second->shape() == p.shape())
      p.value = found->second->value;
    else
      require(std::find(converted.begin(), converted.end(), &p) != converted.end(),
              "convert: the source has no parameter ", name, " of the target's shape");
  });
}

template <class Target, class Source>
constexpr bool types_fit() {
  static_assert(same_model<Target, Source>,
                "laconic: convert changes a model's attention, neither its kind nor its number type");
  using From = typename Source::Policy;
  using To = typename Target::Policy;
  constexpr Index before = From::Heads::num_heads, after = To::Heads::num_heads;
  static_assert(before == after || before == dyn || after == dyn, "laconic: convert keeps the number of query heads");
  static_assert(std::is_same_v<typename From::Position, typename To::Position>,
                "laconic: convert keeps the position policy");
  static_assert(conversion_known<typename From::KeyValue, typename To::KeyValue>,
                "laconic: no conversion is known between these two key-value policies");
  static_assert(To::Position::key_bias_cancels || std::is_same_v<typename To::KeyValue, FullRank>,
                "laconic: a latent drops the bias of the keys, which matters under this position policy");
  return true;
}

/// `measure_on_noise`: the attention layers are measured on white noise, not on what they get from these features.
template <class Target, class Method, class Source>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences,
                           bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = AttentionLayer<typename Source::Policy, T>;
  using To = AttentionLayer<typename Target::Policy, T>;

  auto config = source.config();
  config.num_kv_heads = numbers.num_kv_heads;
  config.kv_lora_rank = numbers.kv_lora_rank;
  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);

  InputRecorder<T> cpu;
  std::vector<const From*> layers;
  Source::each_attention(source, [&](std::string_view, const From& layer) {
    layers.push_back(&layer);
    cpu.inputs[&layer.linear_q.weight];
  });
  const auto logits = source(cpu, features, sequences);
  require(logits.rows.rows() > 0, "convert: ", features.rows(), " rows of features given in ", sequences.size(),
          " sequences, of which the subsampling leaves none");

  Deviation predicted, key_value, output;
  auto layer = layers.begin();
  Target::each_attention(out.model, [&](std::string_view name, To& to) {
    const From& from = **layer++;
    Matrix<T>& x = cpu.inputs[&from.linear_q.weight];
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    const Deviation of_weights = convert_layer(name, to, from, method);
    const Deviation of_key_value = key_value_deviation(cpu, to, from, x);
    const Deviation of_output = output_deviation(cpu, to, from, x, logits.sequences);
    out.report.layers.push_back({std::string(name), to.dims().num_kv_heads, to.dims().kv_lora_rank,
                                 of_weights.relative(), of_key_value.relative(), of_output.relative()});
    predicted += of_weights;
    key_value += of_key_value;
    output += of_output;
  });
  out.report.input = measure_on_noise ? "white noise" : "features";
  out.report.predicted_error = predicted.relative();
  out.report.key_value_error = key_value.relative();
  out.report.output_error = output.relative();
  out.report.logits_error = deviation(out.model(cpu, features, sequences).rows.view(), logits.rows.view()).relative();
  return out;
}

}  // namespace detail

/// The model with another attention: what both have in common is copied, keys and values are converted.
///
///     auto [small, report] = convert<Conformer<MlaSimple<8, 64>>>(model);             // MHA to MLA by the joint SVD
///     auto grouped = convert<Conformer<Gqa<8, dyn>>>(model, JointSvd{}, {.num_kv_heads = 2}).model;
///
/// Full rank to a latent, and a latent to one of another rank: by `method`. More key-value heads to fewer: the mean of
/// those that become one; fewer to more: repeated. Where nothing is lost (rank = d_model, equal heads, a number that
/// moves between type and configuration) the outputs are those of the source up to rounding. A latent gets no biases:
/// softmax ignores one on the keys, and one on the values goes to `linear_out`.
///
/// The report compares both models by forward passes on white noise: 260 rows of features, and as many rows of noise
/// into every attention layer as these leave after the subsampling. Throws `Error` where the numbers do not fit (a
/// latent larger than d_model) or weights are not finite. Allocates.
template <class Target, class Source, class Method = JointSvd>
Conversion<Target> convert(const Source& source, const Method& method = {}, const ConversionConfig& numbers = {}) {
  const auto noise = white_noise<typename Source::Scalar>(260, source.config().num_mels, "features");
  return detail::convert<Target>(source, method, numbers, noise, Sequences{noise.rows()}, true);
}

/// The same, and the report compares both models on these features (rows, num_mels), sequences packed: every attention
/// layer on the input that it has in the source model.
template <class Target, class Source, class Method>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences) {
  return detail::convert<Target>(source, method, numbers, features, sequences, false);
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// A kernel of its own for each channel, over time, within each sequence; as many frames out as in. The kernel is
/// centred, so it sees (kernel - 1) / 2 frames to either side. No bias: a batch norm follows.
template <class T>
class DepthwiseConv : public Module<DepthwiseConv<T>> {
 public:
  DepthwiseConv(Index channels, Index kernel, Seed seed) : weight({channels, 1, kernel}) {
    require(kernel % 2 == 1, "depthwise_conv: kernel ", kernel, " given, an odd number expected");
    fill_uniform(weight, 1 / std::sqrt(static_cast<double>(kernel)), Random(seed, "weight"));
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    return context.depthwise_conv(x, weight, nullptr, sequences, (weight.value.cols() - 1) / 2);
  }

  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// The Conformer's feed-forward module without its norm (Gulati et al. 2020, section 2.3): linear, SiLU, dropout, linear,
/// dropout.
template <class T>
class FeedForward : public Module<FeedForward<T>> {
 public:
  FeedForward(Index d_model, Index hidden, double dropout, Seed seed)
      : intermediate_dense(d_model, hidden, seed / "intermediate_dense"), output_dense(hidden, d_model, seed / "output_dense"), dropout_(dropout) {}

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    auto hidden = context.activation(Activation::silu, intermediate_dense(context, x));
    return context.dropout(output_dense(context, context.dropout(std::move(hidden), dropout_)), dropout_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("intermediate_dense", self.intermediate_dense);
    visit("output_dense", self.output_dense);
  }

  Linear<T> intermediate_dense, output_dense;

 private:
  double dropout_;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// Each row to mean 0 and variance 1, then scaled and shifted by channel (Ba et al. 2016).
template <class T>
class LayerNorm : public Module<LayerNorm<T>> {
 public:
  explicit LayerNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) { weight.value.setOnes(); }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.layer_norm(x, weight, bias, eps_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

 private:
  double eps_;
};

/// Each channel to mean 0 and variance 1 over the rows of the batch in training, by the running statistics otherwise
/// (Ioffe and Szegedy 2015). Rows are packed, so padding cannot enter the statistics.
template <class T>
class BatchNorm : public Module<BatchNorm<T>> {
 public:
  explicit BatchNorm(Index channels, double eps = 1e-5, double momentum = 0.1)
      : weight({channels}), bias({channels}), running_mean({channels}, Role::statistic), running_var({channels}, Role::statistic),
        eps_(eps), momentum_(momentum) {
    weight.value.setOnes();
    running_var.value.setOnes();
  }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.batch_norm(x, BatchNormParameters<T>{weight, bias, running_mean, running_var, eps_, momentum_});
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("running_mean", self.running_mean);
    visit("running_var", self.running_var);
  }

  Parameter<T> weight, bias, running_mean, running_var;

 private:
  double eps_, momentum_;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// A 3 x 3 convolution over (time, frequency) without padding, weight `(out, in, 3, 3)`.
template <class T>
class Conv2d : public Module<Conv2d<T>> {
 public:
  Conv2d(const Conv2dShape& shape, Seed seed)
      : weight({shape.out_channels, shape.in_channels, Conv2dShape::kernel, Conv2dShape::kernel}), bias({shape.out_channels}), shape_(shape) {
    const double bound = 1 / std::sqrt(static_cast<double>(shape.patch()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    fill_uniform(bias, bound, Random(seed, "bias"));
  }
  const Conv2dShape& shape() const { return shape_; }

  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    return context.conv2d(x, weight, bias, shape_, from, to);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight, bias;

 private:
  Conv2dShape shape_;
};

/// Frames (rows, num_mels) to a half or a quarter as many (rows', d_model): two 3 x 3 convolutions with ReLU over (time,
/// mel), then linear (ESPnet's Conv2dSubsampling and Conv2dSubsampling2). Nothing is padded: T frames give
/// ((T - 1) / 2 - 1) / 2, or (T - 1) / 2 - 2. Columns between the layers are (frequency, channel), channel innermost.
template <class T>
class Conv2dSubsampling : public Module<Conv2dSubsampling<T>> {
 public:
  Conv2dSubsampling(Index num_mels, Index channels, Index d_model, Index factor, Seed seed)
      : Conv2dSubsampling(Conv2dShape{1, channels, num_mels, 2}, factor, d_model, seed) {}

  /// Of time and of frequency alike.
  static constexpr Index out_length(Index frames, Index factor) {
    const Index half = Conv2dShape{1, 1, 3, 2}.out_length(frames);
    return Conv2dShape{1, 1, 3, factor / 2}.out_length(half);
  }

  static constexpr Index parameter_count(Index num_mels, Index channels, Index d_model, Index factor) {
    constexpr Index taps = Conv2dShape::kernel * Conv2dShape::kernel;
    return channels * (taps + 1) + channels * (taps * channels + 1) + (channels * out_length(num_mels, factor) + 1) * d_model;
  }

  /// The rows that come out, and where their sequences lie.
  template <class Tensor>
  struct Output {
    Tensor rows;
    Sequences sequences;
  };

  template <class Context, class Tensor>
  Output<Tensor> operator()(Context& context, const Tensor& features, const Sequences& sequences) const {
    require(features.cols() == conv0.shape().in_freqs, "subsampling: features have ", features.cols(), " mels, the model expects ",
            conv0.shape().in_freqs);
    require(features.rows() == sequences.rows(), "subsampling: ", features.rows(), " rows of features given, their sequences have ",
            sequences.rows());
    const auto half = sequences.map_lengths(context.arena(), [&](Index n) { return conv0.shape().out_length(n); });
    const auto out = half.map_lengths(context.arena(), [&](Index n) { return conv1.shape().out_length(n); });
    auto x = context.activation(Activation::relu, conv0(context, features, sequences, half));
    x = context.activation(Activation::relu, conv1(context, x, half, out));
    return {linear(context, x), out};
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("conv0", self.conv0);
    visit("conv1", self.conv1);
    visit("linear", self.linear);
  }

  Conv2d<T> conv0, conv1;
  Linear<T> linear;

 private:
  Conv2dSubsampling(const Conv2dShape& first, Index factor, Index d_model, Seed seed)
      : conv0(first, seed / "conv0"), conv1(second(first, factor), seed / "conv1"),
        linear(conv1.shape().out_cols(), d_model, seed / "linear") {}

  static Conv2dShape second(const Conv2dShape& first, Index factor) {
    require(factor == 2 || factor == 4, "subsampling: factor ", factor, " given, 2 or 4 expected");
    const Conv2dShape shape{first.out_channels, first.out_channels, first.out_freqs(), factor / 2};
    require(shape.out_freqs() > 0, "subsampling: ", first.in_freqs, " mels given, at least 7 expected");
    return shape;
  }
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// All numbers of a Conformer with a CTC head. Those of the attention may be left 0 where its type says them.
struct ConformerConfig {
  Index num_mels = 80;
  Index d_model = 256;
  Index num_layers = 12;
  Index vocab_size = 29;
  Index num_heads = 0;
  Index num_kv_heads = 0;
  Index kv_lora_rank = 0;
  Index ffn_expansion = 4;          ///< width of the feed-forward modules over d_model
  Index conv_kernel = 31;           ///< frames, odd
  Index subsampling = 4;            ///< 2 or 4
  Index subsampling_channels = 0;   ///< 0: d_model
  double dropout = 0.1;

  constexpr AttentionConfig attention() const { return {d_model, num_heads, num_kv_heads, kv_lora_rank}; }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_mels", self.num_mels);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("vocab_size", self.vocab_size);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("ffn_expansion", self.ffn_expansion);
    visit("conv_kernel", self.conv_kernel);
    visit("subsampling", self.subsampling);
    visit("subsampling_channels", self.subsampling_channels);
    visit("dropout", self.dropout);
  }
};

/// The Conformer's convolution module (Gulati et al. 2020, section 2.2), with its norm: pointwise, GLU, depthwise, batch
/// norm, SiLU, pointwise, dropout.
template <class T>
class ConvolutionModule : public Module<ConvolutionModule<T>> {
 public:
  ConvolutionModule(Index d_model, Index kernel, double dropout, Seed seed)
      : layer_norm(d_model), pointwise_conv1(Linear<T>::pointwise_conv(d_model, 2 * d_model, seed / "pointwise_conv1")),
        depthwise_conv(d_model, kernel, seed / "depthwise_conv"), batch_norm(d_model),
        pointwise_conv2(Linear<T>::pointwise_conv(d_model, d_model, seed / "pointwise_conv2")), dropout_(dropout) {}

  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    auto y = context.glu(pointwise_conv1(context, layer_norm(context, x)));
    y = batch_norm(context, depthwise_conv(context, y, sequences));
    y = pointwise_conv2(context, context.activation(Activation::silu, std::move(y)));
    return context.dropout(std::move(y), dropout_);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("layer_norm", self.layer_norm);
    visit("pointwise_conv1", self.pointwise_conv1);
    visit("depthwise_conv", self.depthwise_conv);
    visit("batch_norm", self.batch_norm);
    visit("pointwise_conv2", self.pointwise_conv2);
  }

  LayerNorm<T> layer_norm;
  Linear<T> pointwise_conv1;
  DepthwiseConv<T> depthwise_conv;
  BatchNorm<T> batch_norm;
  Linear<T> pointwise_conv2;

 private:
  double dropout_;
};

/// One block (Gulati et al. 2020, equation 1): half a feed-forward, attention, convolution, half a feed-forward, norm.
template <class AttentionPolicy, class T>
class ConformerBlock : public Module<ConformerBlock<AttentionPolicy, T>> {
 public:
  ConformerBlock(const ConformerConfig& c, Seed seed)
      : ffn1_layer_norm(c.d_model), ffn1(c.d_model, c.ffn_expansion * c.d_model, c.dropout, seed / "ffn1"), self_attn_layer_norm(c.d_model),
        self_attn(c.attention(), c.dropout, seed / "self_attn"), conv_module(c.d_model, c.conv_kernel, c.dropout, seed / "conv_module"),
        ffn2_layer_norm(c.d_model), ffn2(c.d_model, c.ffn_expansion * c.d_model, c.dropout, seed / "ffn2"), final_layer_norm(c.d_model),
        dropout_(c.dropout) {}

  template <class Context, class Tensor>
  Tensor operator()(Context& context, Tensor x, const Sequences& sequences, const Tensor& table) const {
    // Each result before `x` is moved from: arguments are evaluated in any order.
    Tensor y = ffn1(context, ffn1_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    y = self_attn(context, self_attn_layer_norm(context, x), sequences, table);
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    y = conv_module(context, x, sequences);
    x = context.add(std::move(x), y);
    y = ffn2(context, ffn2_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    return final_layer_norm(context, x);
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("ffn1_layer_norm", self.ffn1_layer_norm);
    visit("ffn1", self.ffn1);
    visit("self_attn_layer_norm", self.self_attn_layer_norm);
    visit("self_attn", self.self_attn);
    visit("conv_module", self.conv_module);
    visit("ffn2_layer_norm", self.ffn2_layer_norm);
    visit("ffn2", self.ffn2);
    visit("final_layer_norm", self.final_layer_norm);
  }

  LayerNorm<T> ffn1_layer_norm;
  FeedForward<T> ffn1;
  LayerNorm<T> self_attn_layer_norm;
  AttentionLayer<AttentionPolicy, T> self_attn;
  ConvolutionModule<T> conv_module;
  LayerNorm<T> ffn2_layer_norm;
  FeedForward<T> ffn2;
  LayerNorm<T> final_layer_norm;

 private:
  double dropout_;
};

/// Unnormalised log probabilities (rows, vocab_size) and where their sequences lie.
template <class Tensor>
struct Logits {
  Tensor rows;
  Sequences sequences;
};

/// A Conformer encoder (Gulati et al. 2020) with convolutional subsampling and a CTC head. Parameter names and layout
/// are those of the Hugging Face Conformer.
///
///     Conformer<Mha<8>> model(config, Seed(1));
///     auto logits = model(cpu, features, sequences);   // features (frames, num_mels), sequences packed
///
/// Construction allocates and throws `Error` where the numbers do not fit; the forward pass takes memory from the
/// context's arena only. A sequence too short for the subsampling gives no rows.
template <class AttentionPolicy, class T = float>
class Conformer : public Module<Conformer<AttentionPolicy, T>> {
 public:
  using Scalar = T;
  using Policy = AttentionPolicy;
  using Config = ConformerConfig;

  Conformer(const ConformerConfig& config, Seed seed)
      : subsampling(checked(config).num_mels, channels(config), config.d_model, config.subsampling, seed / "subsampling"),
        layer_norm(config.d_model), lm_head(config.d_model, config.vocab_size, seed / "lm_head"), config_(config) {
    const AttentionDims d = Policy::dims(config.attention());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_, seed / "layers" / i);
  }

  /// With every number said, also those that came from the type.
  const ConformerConfig& config() const { return config_; }

  /// features (rows, num_mels): a Matrix, which must live as long as the tape if there is one, any other Eigen expression
  /// or a tensor of the context.
  template <class Context, class Features>
  auto operator()(Context& context, Features&& features, const Sequences& sequences) const {
    auto [x, out] = subsampling(context, context.input(std::forward<Features>(features)), sequences);
    x = encode(context, context.dropout(std::move(x), config_.dropout), out);
    return Logits<decltype(x)>{lm_head(context, x), out};
  }

  /// The blocks and the norm after them: (rows, d_model) to (rows, d_model).
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences) const {
    require(x.rows() == sequences.rows(), "conformer: ", x.rows(), " rows given, their sequences have ", sequences.rows());
    auto entered = Policy::Position::enter(context, x, sequences);
    x = std::move(entered.x);
    entered.x = Tensor();
    for (const auto& layer : layers) x = layer(context, std::move(x), sequences, entered.table);
    return layer_norm(context, x);
  }

  /// Bytes of key-value cache for this many encoder frames, all layers.
  static constexpr Index cache_bytes(const ConformerConfig& config, Frames n, Index bytes_per_number = 4) {
    return config.num_layers * Policy::cache_bytes(config.attention(), n, bytes_per_number);
  }

  /// Trained numbers of the whole model.
  static constexpr Index parameter_count(const ConformerConfig& config) {
    const ConformerConfig& c = checked(config);
    const Index d = c.d_model, hidden = c.ffn_expansion * d;
    const Index norms = 5 * 2 * d, feed_forwards = 2 * (2 * d * hidden + hidden + d);
    const Index convolution = 2 * d * d + c.conv_kernel * d + 2 * d + d * d;
    const Index block = norms + feed_forwards + convolution + Policy::parameter_count(c.attention());
    return Conv2dSubsampling<T>::parameter_count(c.num_mels, channels(c), d, c.subsampling) + c.num_layers * block + 2 * d +
           (d + 1) * c.vocab_size;
  }

  static void each_parameter(auto& self, auto&& visit) {
    visit("subsampling", self.subsampling);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
    visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i) visit(std::string_view(text("layers.", i, ".self_attn")), self.layers[i].self_attn);
  }

  Conv2dSubsampling<T> subsampling;
  std::vector<ConformerBlock<AttentionPolicy, T>> layers;
  LayerNorm<T> layer_norm;
  Linear<T> lm_head;

 private:
  static constexpr Index channels(const ConformerConfig& config) {
    return config.subsampling_channels > 0 ? config.subsampling_channels : config.d_model;
  }

  /// Looks at every number before anything is built from it. The upper ends are far from any use and keep products small.
  static constexpr const ConformerConfig& checked(const ConformerConfig& config) {
    const auto within = [](Index value, Index least, Index most, const char* name) {
      require(value >= least && value <= most, "conformer: ", name, ' ', value, " given, ", least, " to ", most, " expected");
    };
    within(config.num_mels, 7, 1 << 12, "num_mels");
    within(config.d_model, 1, 1 << 16, "d_model");
    within(config.num_layers, 1, 1 << 12, "num_layers");
    within(config.vocab_size, 2, 1 << 24, "vocab_size");
    within(config.ffn_expansion, 1, 1 << 6, "ffn_expansion");
    within(config.conv_kernel, 1, 1 << 12, "conv_kernel");
    within(config.subsampling_channels, 0, 1 << 16, "subsampling_channels");
    require(config.conv_kernel % 2 == 1, "conformer: conv_kernel ", config.conv_kernel, " given, an odd number expected");
    require(config.subsampling == 2 || config.subsampling == 4, "conformer: subsampling ", config.subsampling, " given, 2 or 4 expected");
    require(config.dropout >= 0 && config.dropout < 1, "conformer: dropout ", config.dropout, " given, expected from 0 to less than 1");
    Policy::dims(config.attention());
    return config;
  }

  ConformerConfig config_;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

struct AdamWConfig {
  double beta1 = 0.9, beta2 = 0.98;
  double eps = 1e-9;
  double weight_decay = 0.01;  ///< of matrices and kernels; vectors (biases, norms) do not decay
  double clip_norm = 5;        ///< of all gradients together; 0: none

  /// Throws where a number makes no sense.
  void check() const {
    require(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adamw: beta1 ", beta1, " and beta2 ", beta2,
            " given, expected from 0 to less than 1");
    require(eps > 0 && std::isfinite(eps), "adamw: eps ", eps, " given, a positive number expected");
    require(weight_decay >= 0 && std::isfinite(weight_decay), "adamw: weight_decay ", weight_decay, " given, at least 0 expected");
    require(clip_norm >= 0 && std::isfinite(clip_norm), "adamw: clip_norm ", clip_norm, " given, at least 0 expected");
  }

  static constexpr void fields(auto& self, auto&& visit) {
    visit("beta1", self.beta1);
    visit("beta2", self.beta2);
    visit("eps", self.eps);
    visit("weight_decay", self.weight_decay);
    visit("clip_norm", self.clip_norm);
  }
};

/// AdamW (Loshchilov and Hutter 2019, algorithm 2) over the parameters of one model, in their order. A step uses up the
/// gradients: they are zero afterwards. Frozen parameters are left alone. Statistics get their gathered update added.
template <class T>
class AdamW {
 public:
  explicit AdamW(const AdamWConfig& config = {}, int threads = 1) : config_(config), threads_(threads) { config_.check(); }

  struct Moments {
    Matrix<T> first, second;
  };
  /// By parameter, in the model's order; empty for those never stepped. For checkpoints.
  std::vector<Moments>& moments() { return moments_; }
  const std::vector<Moments>& moments() const { return moments_; }
  std::int64_t steps() const { return steps_; }
  void set_steps(std::int64_t steps) { steps_ = steps; }

  /// Gives the norm of all gradients before clipping. Where that is not finite the whole step is skipped (weights,
  /// moments and statistics stay) and the caller must say so.
  template <class Model>
  double step(Model& model, double learning_rate) {
    double square = 0;
    model.parameters([&](std::string_view, const Parameter<T>& p) {
      if (p.role() == Role::weight && p.trainable && p.has_gradient()) square += p.gradient().squaredNorm();
    });
    const double norm = std::sqrt(square);
    if (!std::isfinite(norm)) {
      model.parameters([](std::string_view, const Parameter<T>& p) { p.clear_gradient(); });
      return norm;
    }
    ++steps_;
    const double clip = config_.clip_norm > 0 && norm > config_.clip_norm ? config_.clip_norm / norm : 1;
    std::size_t i = 0;
    model.parameters([&](std::string_view, Parameter<T>& p) {
      if (moments_.size() <= i) moments_.emplace_back();
      Moments& m = moments_[i++];
      if (!p.trainable || !p.has_gradient()) return;
      if (p.role() == Role::statistic)
        p.value += p.gradient();
      else
        update(p, m, learning_rate, clip);
      p.clear_gradient();
    });
    return norm;
  }

 private:
  void update(Parameter<T>& p, Moments& m, double learning_rate, double clip) {
    using B = kernels::Batch<T>;
    if (m.first.size() == 0) {
      m.first.setZero(p.value.rows(), p.value.cols());
      m.second.setZero(p.value.rows(), p.value.cols());
    }
    const bool decays = p.shape().size() > 1;
    const double correct1 = 1 - std::pow(config_.beta1, static_cast<double>(steps_));
    const double correct2 = 1 - std::pow(config_.beta2, static_cast<double>(steps_));
    const B scale(static_cast<T>(clip)), b1(static_cast<T>(config_.beta1)), b2(static_cast<T>(config_.beta2));
    const B rest1(static_cast<T>(1 - config_.beta1)), rest2(static_cast<T>(1 - config_.beta2));
    const B rate(static_cast<T>(learning_rate / correct1)), root(static_cast<T>(1 / std::sqrt(correct2)));
    const B eps(static_cast<T>(config_.eps)), keep(static_cast<T>(decays ? 1 - learning_rate * config_.weight_decay : 1));
    T *value = p.value.data(), *gradient = p.gradient().data(), *first = m.first.data(), *second = m.second.data();
    kernels::parallel_blocks(threads_, p.size(), 16384, [&](Index begin, Index end) {
      const Index n = end - begin;
      kernels::map_span(n, first + begin, [&](auto a, auto g) { return b1 * a + rest1 * scale * g; }, first + begin, gradient + begin);
      kernels::map_span(n, second + begin, [&](auto a, auto g) { return b2 * a + rest2 * (scale * g) * (scale * g); }, second + begin,
                        gradient + begin);
      kernels::map_span(n, value + begin,
                        [&](auto w, auto a, auto b) { return keep * w - rate * a / (xsimd::sqrt(b) * root + eps); }, value + begin,
                        first + begin, second + begin);
    });
  }

  AdamWConfig config_;
  int threads_;
  std::int64_t steps_ = 0;
  std::vector<Moments> moments_;
};

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// The mean CTC loss of a batch (1, 1), from the logits a model gave: `ctc_loss(tape, model(tape, x, sequences), labels)`.
/// Utterances whose labels do not fit their frames add nothing, as with PyTorch's zero_infinity. Graves et al. 2006.
template <class Context, class Logits>
auto ctc_loss(Context& context, const Logits& logits, const Labels& labels, int blank = 0) {
  return context.mean_finite(context.ctc(logits.rows, logits.sequences, labels, blank));
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// One value of an enumeration and how files and command lines spell it.
template <class Enum>
struct EnumName {
  Enum value;
  std::string_view name;
};

/// An enumeration whose values have names. Beside `enum class Norm { layer, batch };` stands, once,
///   constexpr auto enum_names(Norm) {
///     return std::to_array<EnumName<Norm>>({{Norm::layer, "layer"}, {Norm::batch, "batch"}});
///   }
/// (inside a class: `friend constexpr`). It is found by argument-dependent lookup.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum e) {
  enum_names(e);
};

/// The name of a value. Throws `Error` for a number that is none of the enumeration's values.
template <NamedEnum Enum>
constexpr std::string_view to_name(Enum value) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.value == value) return entry.name;
  throw Error(text("no name for value ", static_cast<long long>(value), " of an enumeration"));
}

/// The value of a name, if there is one.
template <NamedEnum Enum>
constexpr std::optional<Enum> from_name(std::string_view name) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.name == name) return entry.value;
  return std::nullopt;
}

/// All names, for messages: "layer, batch".
template <NamedEnum Enum>
std::string all_names() {
  std::string out;
  for (const EnumName<Enum>& entry : enum_names(Enum{})) {
    if (!out.empty()) out += ", ";
    out += entry.name;
  }
  return out;
}

}  // namespace laconic

namespace laconic::inline LACONIC_ABI {

/// How the learning rate falls after its linear warm-up.
enum class Decay {
  cosine,  ///< along half a cosine to a hundredth at the last step (Loshchilov and Hutter 2017)
  noam,    ///< with the inverse square root of the step (Vaswani et al. 2017, equation 3; the peak is given directly)
};
constexpr auto enum_names(Decay) {
  return std::to_array<EnumName<Decay>>({{Decay::cosine, "cosine"}, {Decay::noam, "noam"}});
}

/// Learning rate by step: from 0 to `peak` in `warmup_steps`, then down.
struct Schedule {
  double peak = 1e-3;
  std::int64_t warmup_steps = 100;
  Decay decay = Decay::cosine;
  std::int64_t total_steps = 1000;  ///< where the cosine ends; Noam has no end

  static constexpr void fields(auto& self, auto&& visit) {
    visit("peak", self.peak);
    visit("warmup_steps", self.warmup_steps);
    visit("decay", self.decay);
    visit("total_steps", self.total_steps);
  }

  /// The rate of step `step`, counted from 1.
  double operator()(std::int64_t step) const {
    const double s = static_cast<double>(step), w = static_cast<double>(std::max<std::int64_t>(1, warmup_steps));
    if (step <= warmup_steps) return peak * s / w;
    if (decay == Decay::noam) return peak * std::sqrt(w / s);
    const double left = std::max(1.0, static_cast<double>(total_steps - warmup_steps));
    const double progress = std::clamp((s - w) / left, 0.0, 1.0);
    return peak * (0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  }
};

}  // namespace laconic
