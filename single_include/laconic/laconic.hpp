// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Written by scripts/amalgamate from the files below include/laconic: change those, not this.
#pragma once

// The core in one include: floors 0 to 5 without file formats and audio (laconic/io/, laconic/speech/).

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// Masked scores are -inf and infeasible CTC losses are +inf: a build that assumes there are no infinities breaks both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

namespace laconic::inline v0 {

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

}  // namespace laconic::inline v0

#include <cstddef>

namespace laconic::inline v0 {

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

}  // namespace laconic::inline v0

#include <array>
#include <bit>
#include <cstdint>
#include <new>
#include <utility>

namespace laconic::inline v0 {

class Buffer;

/// Recycles memory: a freed block goes to the list of its size class and serves the next request of that class,
/// so that a computation repeated with the same shapes allocates only the first time.
/// One arena belongs to one thread; kernels may share its blocks among threads, but not take or free them.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { trim(); }

  /// A block of at least `bytes` bytes, aligned to 64. Uninitialised.
  Buffer allocate(std::size_t bytes);

  /// Bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return reserved_; }
  /// Bytes in use now, and the most that ever were.
  std::size_t used_bytes() const { return used_; }
  std::size_t peak_bytes() const { return peak_; }

  /// Gives back what is not in use.
  void trim() {
    for (auto& list : free_)
      while (list != nullptr) {
        Block* block = std::exchange(list, list->next);
        reserved_ -= block->bytes;
        ::operator delete(block, std::align_val_t(alignment));
      }
  }

 private:
  friend class Buffer;
  static constexpr std::size_t alignment = 64;

  struct alignas(alignment) Block {
    Arena* arena;
    Block* next;
    std::size_t bytes;
    std::uint32_t size_class;
    std::uint32_t owners;
  };

  /// Four classes to each power of two: at most a quarter of a block is unused.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  std::array<Block*, 256> free_{};
  std::size_t reserved_ = 0, used_ = 0, peak_ = 0;
};

/// A counted reference to a block of an arena. Copies share the block; the last one gives it back.
/// The arena must live longer than its buffers.
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
    Arena& arena = *block_->arena;
    arena.used_ -= block_->bytes;
    block_->next = std::exchange(arena.free_[block_->size_class], block_);
  }

  void* data() const { return block_ == nullptr ? nullptr : static_cast<void*>(block_ + 1); }
  bool empty() const { return block_ == nullptr; }
  /// True when nobody else holds the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners == 1; }

 private:
  friend class Arena;
  explicit Buffer(Arena::Block* block) : block_(block) {}
  Arena::Block* block_ = nullptr;
};

inline Buffer Arena::allocate(std::size_t bytes) {
  const std::uint32_t size_class = size_class_of(bytes);
  Block* block = free_[size_class];
  if (block != nullptr) {
    free_[size_class] = block->next;
  } else {
    const std::size_t size = class_bytes(size_class);
    block = new (::operator new(size + sizeof(Block), std::align_val_t(alignment))) Block{};
    block->arena = this;
    block->bytes = size;
    block->size_class = size_class;
    reserved_ += size;
  }
  block->owners = 1;
  used_ += block->bytes;
  if (used_ > peak_) peak_ = used_;
  return Buffer(block);
}

}  // namespace laconic::inline v0

#include <optional>
#include <type_traits>

namespace laconic::inline v0 {

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
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum e) { enum_names(e); };

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

}  // namespace laconic::inline v0

#include <Eigen/Core>

namespace laconic::inline v0 {

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

}  // namespace laconic::inline v0

#include <cmath>
#include <numbers>

namespace laconic::inline v0 {

/// What all randomness of a run is derived from.
struct Seed {
  std::uint64_t value = 0;
  constexpr Seed() = default;
  constexpr explicit Seed(std::uint64_t v) : value(v) {}
};

/// Counter-based random numbers: number i of a stream is a function of (seed, stream, i) alone, so results depend
/// neither on threads nor on the order of evaluation. Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers:
/// as easy as 1, 2, 3"); equal to the authors' known answers. Nothing allocates.
class Random {
 public:
  constexpr Random(Seed seed, std::uint64_t stream) : seed_(seed.value), stream_(stream) {}
  /// The stream of a name: a parameter's initial values do not depend on which other parameters exist.
  constexpr Random(Seed seed, std::string_view name) : Random(seed, hash(name)) {}

  /// Four 32-bit numbers for each counter.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::array<std::uint32_t, 4> x{low(counter), high(counter), low(stream_), high(stream_)};
    std::uint32_t k0 = low(seed_), k1 = high(seed_);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * x[0], b = std::uint64_t{0xCD9E8D57} * x[2];
      x = {high(b) ^ x[1] ^ k0, low(b), high(a) ^ x[3] ^ k1, low(a)};
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    return x;
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
  static constexpr std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }
  static constexpr std::uint64_t hash(std::string_view name) {  // FNV-1a
    std::uint64_t h = 0xcbf29ce484222325;
    for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    return h;
  }

  std::uint64_t seed_, stream_;
};

/// Puts the items in random order (Fisher-Yates), the same on every machine for the same seed and stream.
template <class Container>
void shuffle(Container& items, const Random& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.below(static_cast<Index>(i), i))]);
}

}  // namespace laconic::inline v0

#include <initializer_list>
#include <vector>

namespace laconic::inline v0 {

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

}  // namespace laconic::inline v0

#include <algorithm>
#include <span>

namespace laconic::inline v0 {

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

}  // namespace laconic::inline v0

namespace laconic::inline v0 {

/// A value of a CPU computation: a row-major matrix `(rows, cols)` without gaps, in a block of an arena.
/// Copies share the block, which returns to the arena with the last of them; so intermediates are freed as soon as
/// nothing needs them. `borrow` wraps memory of the caller's, which must outlive the tensor.
template <class T>
class Tensor {
 public:
  using Scalar = T;

  Tensor() = default;
  Tensor(Arena& arena, Index rows, Index cols)
      : buffer_(arena.allocate(static_cast<std::size_t>(rows * cols) * sizeof(T))),
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
  Buffer buffer_;
  T* data_ = nullptr;
  Index rows_ = 0, cols_ = 0;
};

}  // namespace laconic::inline v0
