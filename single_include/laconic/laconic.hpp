// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Written by scripts/amalgamate from the files below include/laconic: change those, not this.
#pragma once
//
// Attention, models, streams, the CPU and the tape of training, in one include. Not in it: conversion
// (<laconic/convert/convert.hpp>), losses and optimisers (<laconic/train/...>), decoding (<laconic/decode/...>),
// published sizes (<laconic/model/published.hpp>), files (<laconic/io/...>) and audio (<laconic/speech/...>).

//
// Attention in one include: every policy, their combinations by name, the layer that computes them, and what they cost.

#include <array>

// Checks the compiler. The include of a file that does not exist ends the compilation at this sentence; otherwise
// hundreds of errors would follow it.
#if __cplusplus < 202002L
#error "laconic needs C++20 (-std=c++20) and g++ 12 or clang 14, or newer ones"
#include <C++20>
#elif defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 12
#error "laconic needs g++ 12 or clang 14, or newer ones, with -std=c++20"
#include <compiler>
#endif

// The only place where the version is written: CMake reads it from here.
#define LACONIC_VERSION_MAJOR 0
#define LACONIC_VERSION_MINOR 1
#define LACONIC_VERSION_PATCH 0

// Everything is in the inline namespace LACONIC_ABI. Its name distinguishes all that changes the code compiled from
// these headers: the instruction sets by which xsimd, Eigen and laconic choose, the alignment of Eigen's matrices, and
// OpenMP. Files compiled for different ones do not link; if they did, one file's functions would read the other's
// vectors. A common name is `v0_avx2_fma_openmp`.
#if defined(__AVX512F__)
#define LACONIC_ABI_VECTORS _avx512
#elif defined(__AVX2__)
#define LACONIC_ABI_VECTORS _avx2
#elif defined(__AVX__)
#define LACONIC_ABI_VECTORS _avx
#elif defined(__SSE4_2__)
#define LACONIC_ABI_VECTORS _sse4_2
#elif defined(__SSE4_1__)
#define LACONIC_ABI_VECTORS _sse4_1
#elif defined(__SSSE3__)
#define LACONIC_ABI_VECTORS _ssse3
#elif defined(__SSE3__)
#define LACONIC_ABI_VECTORS _sse3
#elif defined(__SSE2__)
#define LACONIC_ABI_VECTORS _sse2
#elif defined(__ARM_NEON)
#define LACONIC_ABI_VECTORS _neon
#elif defined(__VEC__)
#define LACONIC_ABI_VECTORS _altivec
#else
#define LACONIC_ABI_VECTORS
#endif
#if defined(__ARM_FEATURE_SVE_BITS)
#define LACONIC_VECTOR_BITS __ARM_FEATURE_SVE_BITS
#elif defined(__riscv_v_fixed_vlen)
#define LACONIC_VECTOR_BITS __riscv_v_fixed_vlen
#else
#define LACONIC_VECTOR_BITS 0  // the instruction set determines the width
#endif
#if LACONIC_VECTOR_BITS == 0
#define LACONIC_ABI_WIDTH
#elif LACONIC_VECTOR_BITS == 128
#define LACONIC_ABI_WIDTH _128
#elif LACONIC_VECTOR_BITS == 256
#define LACONIC_ABI_WIDTH _256
#elif LACONIC_VECTOR_BITS == 512
#define LACONIC_ABI_WIDTH _512
#else
#define LACONIC_ABI_WIDTH _wide
#endif
#ifdef __FMA__
#define LACONIC_ABI_FMA _fma
#else
#define LACONIC_ABI_FMA
#endif
#ifdef __FMA4__
#define LACONIC_ABI_FMA4 _fma4
#else
#define LACONIC_ABI_FMA4
#endif
#ifdef __AVXVNNI__
#define LACONIC_ABI_AVXVNNI _avxvnni
#else
#define LACONIC_ABI_AVXVNNI
#endif
#ifdef __AVX512CD__
#define LACONIC_ABI_CD _cd
#else
#define LACONIC_ABI_CD
#endif
#ifdef __AVX512DQ__
#define LACONIC_ABI_DQ _dq
#else
#define LACONIC_ABI_DQ
#endif
#ifdef __AVX512BW__
#define LACONIC_ABI_BW _bw
#else
#define LACONIC_ABI_BW
#endif
#ifdef __AVX512ER__
#define LACONIC_ABI_ER _er
#else
#define LACONIC_ABI_ER
#endif
#ifdef __AVX512PF__
#define LACONIC_ABI_PF _pf
#else
#define LACONIC_ABI_PF
#endif
#ifdef __AVX512IFMA__
#define LACONIC_ABI_IFMA _ifma
#else
#define LACONIC_ABI_IFMA
#endif
#ifdef __AVX512VBMI__
#define LACONIC_ABI_VBMI _vbmi
#else
#define LACONIC_ABI_VBMI
#endif
#ifdef __AVX512VBMI2__
#define LACONIC_ABI_VBMI2 _vbmi2
#else
#define LACONIC_ABI_VBMI2
#endif
#ifdef __AVX512VNNI__
#define LACONIC_ABI_VNNI _vnni
#else
#define LACONIC_ABI_VNNI
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
#define LACONIC_ABI_I8MM _i8mm
#else
#define LACONIC_ABI_I8MM
#endif
#ifdef _OPENMP
#define LACONIC_ABI_OPENMP _openmp
#else
#define LACONIC_ABI_OPENMP
#endif

// The alignment of Eigen's matrices in bytes: Eigen's own default, unless the program sets another.
#if defined(__AVX512F__)
#define LACONIC_EIGEN_DEFAULT 64
#elif defined(__AVX__)
#define LACONIC_EIGEN_DEFAULT 32
#else
#define LACONIC_EIGEN_DEFAULT 16
#endif
#if defined(EIGEN_MAX_ALIGN_BYTES) ? EIGEN_MAX_ALIGN_BYTES == 0 \
                                   : defined(EIGEN_DONT_ALIGN) || defined(EIGEN_DONT_VECTORIZE)
#define LACONIC_ALIGNMENT 0
#define LACONIC_ABI_ALIGNMENT _align0
#elif !defined(EIGEN_MAX_ALIGN_BYTES) || EIGEN_MAX_ALIGN_BYTES == LACONIC_EIGEN_DEFAULT
#define LACONIC_ALIGNMENT LACONIC_EIGEN_DEFAULT
#define LACONIC_ABI_ALIGNMENT
#elif EIGEN_MAX_ALIGN_BYTES == 16
#define LACONIC_ALIGNMENT 16
#define LACONIC_ABI_ALIGNMENT _align16
#elif EIGEN_MAX_ALIGN_BYTES == 32
#define LACONIC_ALIGNMENT 32
#define LACONIC_ABI_ALIGNMENT _align32
#elif EIGEN_MAX_ALIGN_BYTES == 64
#define LACONIC_ALIGNMENT 64
#define LACONIC_ABI_ALIGNMENT _align64
#elif EIGEN_MAX_ALIGN_BYTES == 128
#define LACONIC_ALIGNMENT 128
#define LACONIC_ABI_ALIGNMENT _align128
#else
#error "laconic: EIGEN_MAX_ALIGN_BYTES is 0, 16, 32, 64 or 128"
#endif

#define LACONIC_PASTE(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q) \
  v0##a##b##c##d##e##f##g##h##i##j##k##l##m##n##o##p##q
#define LACONIC_PASTE_EXPANDED(...) LACONIC_PASTE(__VA_ARGS__)
#define LACONIC_ABI                                                                                               \
  LACONIC_PASTE_EXPANDED(LACONIC_ABI_VECTORS, LACONIC_ABI_WIDTH, LACONIC_ABI_FMA, LACONIC_ABI_FMA4,               \
                         LACONIC_ABI_AVXVNNI, LACONIC_ABI_CD, LACONIC_ABI_DQ, LACONIC_ABI_BW, LACONIC_ABI_ER,     \
                         LACONIC_ABI_PF, LACONIC_ABI_IFMA, LACONIC_ABI_VBMI, LACONIC_ABI_VBMI2, LACONIC_ABI_VNNI, \
                         LACONIC_ABI_I8MM, LACONIC_ABI_OPENMP, LACONIC_ABI_ALIGNMENT)

#define LACONIC_QUOTE(...) #__VA_ARGS__
#define LACONIC_QUOTE_EXPANDED(...) LACONIC_QUOTE(__VA_ARGS__)
#define LACONIC_ABI_NAME LACONIC_QUOTE_EXPANDED(LACONIC_ABI)  // LACONIC_ABI as a text

#if defined(__AVX512F__) ? defined(__AVX512VNNI__) : defined(__AVXVNNI__)
#define LACONIC_VNNI 1  // the processor has dot products of bytes (AVX-512 VNNI, or AVX-VNNI)
#else
#define LACONIC_VNNI 0
#endif
#if LACONIC_VNNI || (defined(__AVX512F__) ? defined(__AVX512BW__) : defined(__AVX2__))
#define LACONIC_WHOLE_PRODUCTS 1  // rounded activations meet weights of bytes in whole numbers, faster than in floats
#else
#define LACONIC_WHOLE_PRODUCTS 0
#endif

// Infeasible CTC losses are infinite, and NaN must propagate. A build that assumes that neither exists breaks both.
#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#error "laconic needs infinities: build without -ffast-math (or add -fno-finite-math-only)"
#endif

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Makes a text one readable line, whatever it quotes from a file: control characters become '?', and a text of more
/// than 2000 bytes loses its middle, without cutting a UTF-8 character.
inline std::string one_line(std::string line) {
  for (char& c : line)
    if (static_cast<unsigned char>(c) < ' ' || c == 127) c = '?';
  constexpr std::size_t kept = 1000;
  if (line.size() <= 2 * kept) return line;
  const auto within = [&](std::size_t at) { return (static_cast<unsigned char>(line[at]) & 0xC0) == 0x80; };
  std::size_t begin = kept, end = line.size() - kept;
  while (begin > 0 && within(begin)) --begin;
  while (end + 1 < line.size() && within(end)) ++end;
  return line.replace(begin, end - begin, " ... ");
}

}  // namespace detail

/// Reports a run-time failure. Its text says in one line where it happened, what was given and what was expected.
class Error : public std::runtime_error {
 public:
  /// Makes an error with this text, as `detail::one_line` shortens it.
  explicit Error(std::string line) : std::runtime_error(detail::one_line(std::move(line))) {}
};

namespace detail {

/// Appends a text to a message.
inline void append(std::string& out, std::string_view part) { out += part; }
/// Appends a character to a message.
inline void append(std::string& out, char part) { out += part; }

/// Appends a number to a message, in its shortest exact form.
template <class Number>
requires std::integral<Number> || std::floating_point<Number>
void append(std::string& out, Number part) {
  if constexpr (std::unsigned_integral<Number>) {
    out += std::to_string(static_cast<unsigned long long>(part));
  } else if constexpr (std::integral<Number>) {
    out += std::to_string(static_cast<long long>(part));
  } else {
    char digits[32];
    out.append(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
  }
}

}  // namespace detail

/// Returns the parts, written one after the other: `text("rank ", 64, " > ", 32)`. Allocates.
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

namespace detail {

/// Marks the end of a constant expression whose numbers do not fit. It is not constexpr, so that compilers name it.
inline void these_numbers_do_not_fit() {}

/// Returns a part of a message as a value that a constant expression can hold.
template <class Part>
constexpr auto value_of(const Part& part) {
  if constexpr (std::convertible_to<const Part&, const char*>)
    return static_cast<const char*>(part);
  else if constexpr (std::convertible_to<const Part&, std::string_view>)
    return std::string_view(part);
  else
    return part;
}
/// Takes the parts of a message as values, which clang then prints with the failed constant expression.
template <class... Parts>
constexpr void explain(bool fits, Parts...) {
  if (!fits) these_numbers_do_not_fit();
}

/// Throws `Error` with the parts as its text. It is compiled once for all literals, however long they are.
template <class... Parts>
[[noreturn]] void fail(Parts... parts) {
  throw Error(text(parts...));
}

}  // namespace detail

/// Throws `Error` with the parts as its text unless `condition` holds. The text is built only when it is needed. In a
/// constant expression the compiler's message names the parts instead.
template <class... Parts>
constexpr void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    if (std::is_constant_evaluated()) detail::explain(condition, detail::value_of(parts)...);
    detail::fail(detail::value_of(parts)...);
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic
#include <optional>

namespace laconic {
inline namespace LACONIC_ABI {

/// Pairs a value of an enumeration with its spelling in files and on command lines.
template <class Enum>
struct EnumName {
  Enum value;             ///< the value
  std::string_view name;  ///< its spelling
};

/// Requires an enumeration whose values have names. Next to `enum class Norm { layer, batch };` stands, once,
///   constexpr auto enum_names(Norm) {
///     return std::to_array<EnumName<Norm>>({{Norm::layer, "layer"}, {Norm::batch, "batch"}});
///   }
/// or, inside a class, the same function as `friend constexpr`. Argument-dependent lookup finds it.
template <class Enum>
concept NamedEnum = std::is_enum_v<Enum> && requires(Enum e) {
  enum_names(e);
};

/// Returns the name of a value. Throws `Error` for a number that is none of the enumeration's values.
template <NamedEnum Enum>
constexpr std::string_view to_name(Enum value) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.value == value) return entry.name;
  throw Error(text("no name for value ", static_cast<long long>(value), " of an enumeration"));
}

/// Returns the value that has this name, if there is one.
template <NamedEnum Enum>
constexpr std::optional<Enum> from_name(std::string_view name) {
  for (const EnumName<Enum>& entry : enum_names(Enum{}))
    if (entry.name == name) return entry.value;
  return std::nullopt;
}

/// Returns all names for a message: "layer, batch". Allocates.
template <NamedEnum Enum>
std::string all_names() {
  std::string out;
  for (const EnumName<Enum>& entry : enum_names(Enum{})) {
    if (!out.empty()) out += ", ";
    out += entry.name;
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <cstddef>

namespace laconic {
inline namespace LACONIC_ABI {

/// Counts and positions; signed, as in Eigen.
using Index = std::ptrdiff_t;

/// Selects consecutive rows, columns or other numbered things: begin .. end - 1.
struct Range {
  Index begin,  ///< the first index
      end;      ///< one past the last
  /// Returns the number of indices.
  Index size() const { return end - begin; }
};

/// Stands in a type for a number that is known only at run time: `Mha<dyn>`.
inline constexpr Index dyn = -1;

/// Holds a number in its type, or in the object where the type says `dyn` (as `std::extents` does). A static extent
/// takes no storage with `[[no_unique_address]]` and converts implicitly to `Extent<dyn>`. The other way is explicit
/// and checked.
template <Index N>
class Extent {
  static_assert(N >= 0, "laconic: an extent is at least 0, or `dyn` for a number known at run time");

 public:
  /// Makes the extent N.
  constexpr Extent() = default;
  /// Throws `Error` unless `value` is N.
  constexpr explicit Extent(Index value) { require(value == N, "extent: ", value, " given where the type says ", N); }
  /// Returns the number.
  constexpr operator Index() const { return N; }
  static constexpr bool is_static = true;  ///< whether the type says the number
};

/// Holds a number of at least 0 that is known only at run time.
template <>
class Extent<dyn> {
 public:
  /// Throws `Error` for a negative number.
  constexpr Extent(Index value) : value_(value) {
    require(value >= 0, "extent: ", value, " given, at least 0 expected");
  }
  /// Converts a static extent.
  template <Index N>
  constexpr Extent(Extent<N>) : value_(N) {}
  /// Returns the number.
  constexpr operator Index() const { return value_; }
  static constexpr bool is_static = false;  ///< whether the type says the number

 private:
  Index value_;
};

/// Returns the extent that type and configuration say together. A configured 0 means "as the type says". Throws
/// `Error`, which calls the extent `name`, if they contradict each other or neither says anything.
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

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <algorithm>
#include <initializer_list>

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists a few numbers of a configuration, one for each layer of a stack. It can be a constant expression and never
/// allocates.
class IndexList {
 public:
  using value_type = Index;              ///< the type of an element
  static constexpr Index capacity = 64;  ///< max number of elements

  /// Makes an empty list.
  constexpr IndexList() = default;
  /// Makes a list of these values. Throws `Error` for more than `capacity`.
  constexpr IndexList(std::initializer_list<Index> values) {
    for (const Index value : values) push_back(value);
  }

  /// Appends a value. Throws `Error` if the list is full.
  constexpr void push_back(Index value) {
    require(size_ < capacity, "a list of more than ", capacity, " numbers given");
    values_[static_cast<std::size_t>(size_++)] = value;
  }
  /// Returns the number of elements.
  constexpr Index size() const { return size_; }
  /// Returns element i, unchecked.
  constexpr Index operator[](Index i) const { return values_[static_cast<std::size_t>(i)]; }
  /// Returns a pointer to the first element.
  constexpr const Index* begin() const { return values_.data(); }
  /// Returns a pointer past the last element.
  constexpr const Index* end() const { return values_.data() + size_; }
  /// Says whether two lists have the same elements.
  friend constexpr bool operator==(const IndexList& a, const IndexList& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  std::array<Index, capacity> values_{};
  Index size_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <cmath>
#include <cstdint>
#include <numbers>

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Returns the 64-bit FNV-1a hash of a name, begun at `h`.
constexpr std::uint64_t hash(std::string_view name, std::uint64_t h = 0xcbf29ce484222325) {  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

}  // namespace detail

/// Names the source of all randomness of a run. `seed / "layers" / 3` is a seed of its own for that part, so that what
/// one part draws does not depend on which other parts exist.
struct Seed {
  std::uint64_t value = 0;  ///< the number that a user gives
  /// Makes the seed 0.
  constexpr Seed() = default;
  /// Makes a seed of a number.
  constexpr explicit Seed(std::uint64_t v) : value(v) {}

  /// Returns the seed of a named part.
  friend constexpr Seed operator/(Seed seed, std::string_view part) {
    return Seed(detail::hash(part, (seed.value + 1) * 0x9E3779B97F4A7C15));
  }
  /// Returns the seed of a numbered part.
  friend constexpr Seed operator/(Seed seed, Index part) {
    return Seed((seed / "#").value + static_cast<std::uint64_t>(part) * 0xD1B54A32D192ED03);
  }
};

/// Generates counter-based random numbers. Number i of a stream is a function of (seed, stream, i) only, so results
/// depend neither on threads nor on the order of evaluation. The generator is Philox4x32-10 (Salmon et al. 2011,
/// "Parallel random numbers: as easy as 1, 2, 3") and gives the authors' known answers. Nothing allocates.
class Random {
 public:
  /// Selects a stream by number.
  constexpr Random(Seed seed, std::uint64_t stream) : seed_(seed.value), stream_(stream) {}
  /// Selects a stream by name.
  constexpr Random(Seed seed, std::string_view name) : Random(seed, detail::hash(name)) {}

  /// Computes the blocks of `Count` counters, beginning at `first`: word w of each goes to w0 .. w3. All arithmetic is
  /// in 64 bits, so that a compiler vectorises it.
  template <int Count>
  constexpr void blocks(std::uint64_t first, std::uint64_t* w0, std::uint64_t* w1, std::uint64_t* w2,
                        std::uint64_t* w3) const {
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
  /// Returns the four 32-bit words of one counter.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t counter) const {
    std::uint64_t x[4];
    blocks<1>(counter, x, x + 1, x + 2, x + 3);
    return {low(x[0]), low(x[1]), low(x[2]), low(x[3])};
  }

  /// Returns number i, uniform among all 32-bit words.
  constexpr std::uint32_t bits(std::uint64_t i) const { return block(i / 4)[i % 4]; }
  /// Returns number i, uniform in [0, 1), a multiple of 2^-32.
  constexpr double uniform(std::uint64_t i) const { return bits(i) * 0x1p-32; }
  /// Returns number i, uniform among 0 .. n-1.
  constexpr Index below(Index n, std::uint64_t i) const {
    return static_cast<Index>((static_cast<std::uint64_t>(bits(i)) * static_cast<std::uint64_t>(n)) >> 32);
  }
  /// Returns number i, standard normal (Box-Muller).
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

/// Puts the items in random order (Fisher-Yates). The order is the same on every machine for the same seed and stream.
template <class Container>
void shuffle(Container& items, const Random& random) {
  for (std::size_t i = items.size(); i > 1; --i)
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.below(static_cast<Index>(i), i))]);
}

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <bit>
#include <limits>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how stored values are rounded.
enum class Storage {
  full,  ///< not at all
  bf16,  ///< to 16 bits with the exponent of a float
  int8   ///< to 8 bits with a scale for each row
};
/// Names the values of Storage.
constexpr auto enum_names(Storage) {
  return std::to_array<EnumName<Storage>>({{Storage::full, "float"}, {Storage::bf16, "bf16"}, {Storage::int8, "int8"}});
}

/// Says how a GPU rounds the operands of products of floats before it multiplies them. Sums are in float.
enum class ProductPrecision {
  full,  ///< not at all
  tf32,  ///< to 10 bits of mantissa, for tensor cores
  bf16   ///< to 7 bits of mantissa, for tensor cores
};
/// Names the values of ProductPrecision.
constexpr auto enum_names(ProductPrecision) {
  return std::to_array<EnumName<ProductPrecision>>(
      {{ProductPrecision::full, "float"}, {ProductPrecision::tf32, "tf32"}, {ProductPrecision::bf16, "bf16"}});
}

/// Holds the upper 16 bits of a float.
struct Bf16 {
  std::uint16_t bits;  ///< sign, 8 bits of exponent, 7 of mantissa
};

/// Rounds to nearest, ties to even. NaN stays NaN.
constexpr Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
/// Returns the float, exactly.
constexpr float from_bf16(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

/// Quantises a row to multiples -127 .. 127 of a scale, which the largest magnitude of the row sets.
class ByteRow {
 public:
  /// Takes the largest of the `magnitude` of all values.
  constexpr explicit ByteRow(std::uint32_t largest) {
    if (largest >= 0x7f800000U)
      fault_ = std::numeric_limits<float>::quiet_NaN();
    else
      most_ = std::bit_cast<float>(largest);
  }
  /// Finds the scale of n values.
  template <class T>
  ByteRow(Index n, const T* x) : ByteRow(largest(n, x)) {}
  /// Returns the bits of the magnitude of a value: those of positive floats have the order of the floats.
  template <class T>
  static constexpr std::uint32_t magnitude(T x) {
    return std::bit_cast<std::uint32_t>(static_cast<float>(x)) & 0x7fffffffU;
  }
  /// Returns the scale: the largest magnitude over 127. It is NaN if the row has a NaN or an infinity, so that it
  /// propagates.
  constexpr float scale() const { return most_ / 127 + fault_; }
  /// Returns a value of the row as a multiple of the scale, rounded to nearest.
  template <class T>
  constexpr std::int8_t operator()(T x) const {
    if (fault_ != fault_) return 1;
    return most_ > 0 ? static_cast<std::int8_t>(std::lrint(static_cast<float>(x) * (127 / most_))) : std::int8_t{0};
  }

 private:
  template <class T>
  static std::uint32_t largest(Index n, const T* x) {
    std::uint32_t most = 0;
    for (Index i = 0; i < n; ++i) most = std::max(most, magnitude(x[i]));
    return most;
  }

  float most_ = 0, fault_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

inline constexpr std::size_t line_bytes = 64,  ///< size of a cache line
    large_page_bytes = std::size_t{1} << 21;   ///< size of a large page on most machines

/// Returns the alignment of a block: a cache line, or a large page for a block of at least that size.
inline constexpr std::align_val_t alignment_of(std::size_t bytes) {
  return std::align_val_t(bytes < large_page_bytes ? line_bytes : large_page_bytes);
}
/// Returns uninitialised memory that starts at a cache line. A block of at least a large page starts at one, and the
/// system is told to use large pages for it, because small ones cost a walk through page tables every 4 KiB. Throws
/// std::bad_alloc.
inline void* allocate_aligned(std::size_t bytes) {
  void* memory = ::operator new(bytes, alignment_of(bytes));
#ifdef MADV_HUGEPAGE
  // A hint: it may fail, and it stays with the pages when they are freed. The remainder after the last whole large page
  // stays in small pages.
  if (bytes >= large_page_bytes) ::madvise(memory, bytes / large_page_bytes * large_page_bytes, MADV_HUGEPAGE);
#endif
  return memory;
}
/// Frees memory of `allocate_aligned`, called with the same number of bytes.
inline void free_aligned(void* memory, std::size_t bytes) { ::operator delete(memory, alignment_of(bytes)); }

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

#include <atomic>
#include <functional>

namespace laconic {
inline namespace LACONIC_ABI {

class Buffer;

/// Says where an arena takes its memory from, if not from the host's: the functions of a device.
struct MemorySource {
  /// Returns memory of a device, or throws. Null: there is only memory of the host.
  void* (*allocate)(int device, std::size_t bytes) = nullptr;
  void (*release)(int device, void* memory) = nullptr;  ///< frees it
  int device = 0;                                       ///< the device
};

namespace detail {

struct ArenaBlock;

/// Holds what an arena shares with its blocks. It is deleted with the last of them, so that a block may outlive its
/// arena.
struct ArenaState {
  std::array<ArenaBlock*, 256> free{};  ///< heads of the free lists, by size class
  std::size_t reserved = 0,             ///< bytes taken from the system
      used = 0,                         ///< bytes in use now
      peak = 0;                         ///< max bytes in use at any time
  bool orphaned = false;                ///< the arena is gone, blocks in use are not
  bool settled = false;                 ///< a request may take a block of a larger class
  MemorySource source{};                ///< takes and frees the memory of blocks
};

/// Describes a block. On the host it precedes the memory; memory of a device is apart from it.
struct alignas(line_bytes) ArenaBlock {
  ArenaState* state;         ///< the state that counts this block
  ArenaBlock* next;          ///< the next block of the free list, if this one is free
  void* memory;              ///< the memory
  std::size_t bytes;         ///< size of the memory
  std::uint32_t size_class;  ///< index of its free list
  /// Gives the number of Buffers that refer to it. Threads may copy one that another keeps.
  std::atomic<std::uint32_t> owners;
};

}  // namespace detail

/// Recycles memory. A freed block goes to the free list of its size class and serves the next request of that class, so
/// that a computation repeated with the same shapes allocates only the first time. An arena belongs to one thread:
/// other threads may read its blocks and copy Buffers that it keeps meanwhile, but not take or free blocks.
class Arena {
 public:
  /// Makes an arena without blocks. Allocates its state.
  Arena() : state_(new detail::ArenaState) {}
  /// Makes an arena without blocks that takes memory from a source. Allocates its state.
  explicit Arena(const MemorySource& source) : Arena() { state_->source = source; }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  /// Frees the blocks that are not in use. Each of the others is freed with its last Buffer.
  ~Arena() {
    trim();
    if (state_->used == 0)
      delete state_;
    else
      state_->orphaned = true;
  }

  /// Returns an uninitialised block of at least `bytes` bytes, aligned to 64. Throws std::bad_alloc, or what the source
  /// of memory throws.
  Buffer allocate(std::size_t bytes);

  /// Returns the number of bytes taken from the system, in use or kept for reuse.
  std::size_t reserved_bytes() const { return state_->reserved; }
  /// Returns the number of bytes in use now.
  std::size_t used_bytes() const { return state_->used; }
  /// Returns the max number of bytes that were in use at any time.
  std::size_t peak_bytes() const { return state_->peak; }

  /// Prepares a computation that must not allocate from now on, after its largest cases have run: doubles the free
  /// blocks of every size, and lets requests take larger blocks where those of their own size have run out.
  void settle() { settle(*this); }
  /// Prepares the same as another arena, which has run such cases and may be settled already.
  void settle(const Arena& like);

  /// Puts the blocks that are not in use in the order of their addresses, so that a computation which is repeated with
  /// the same sizes gets the same memory again.
  void sort() {
    for (auto& list : state_->free) {
      detail::ArenaBlock *unsorted = std::exchange(list, nullptr), *latest = nullptr;
      while (unsorted != nullptr) {
        detail::ArenaBlock* const block = unsorted;
        unsorted = block->next;
        const bool is_after = latest != nullptr && std::less<>()(latest->memory, block->memory);
        detail::ArenaBlock** place = is_after ? &latest->next : &list;  // most are in order already
        while (*place != nullptr && std::less<>()((*place)->memory, block->memory)) place = &(*place)->next;
        block->next = std::exchange(*place, block);
        latest = block;
      }
    }
  }
  /// Returns the blocks that are not in use to the system.
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

  detail::ArenaBlock* take(std::uint32_t size_class);
  static void release(detail::ArenaBlock* block) {
    const MemorySource& source = block->state->source;
    if (source.allocate == nullptr) return detail::free_aligned(block, block->bytes + sizeof(detail::ArenaBlock));
    source.release(source.device, block->memory);
    delete block;
  }

  /// Returns the class of a size. Four classes to each power of two leave at most a quarter of a block unused, beyond
  /// the smallest of 256 bytes.
  static constexpr std::uint32_t size_class_of(std::size_t bytes) {
    const std::size_t steps = (bytes < 256 ? 256 : bytes) - 1;
    const auto power = static_cast<std::uint32_t>(std::bit_width(steps) - 1);
    return 4 * power + static_cast<std::uint32_t>((steps >> (power - 2)) & 3);
  }
  /// Returns the size of the blocks of a class.
  static constexpr std::size_t class_bytes(std::uint32_t size_class) {
    return (std::size_t{5} + size_class % 4) << (size_class / 4 - 2);
  }

  detail::ArenaState* state_;
};

/// Refers to a block of an arena and counts the references. Copies share the block. The last one returns it to the
/// arena, or to the system if the arena is gone.
class Buffer {
 public:
  /// Makes a buffer without a block.
  Buffer() = default;
  /// Shares the block of the other.
  Buffer(const Buffer& other) : block_(other.block_) {
    if (block_ != nullptr) block_->owners.fetch_add(1, std::memory_order_relaxed);
  }
  /// Takes over the block of the other, which is empty afterwards.
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  /// Drops its block and takes that of the other.
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  /// Returns the block if this is its last reference.
  ~Buffer() {
    if (block_ == nullptr || block_->owners.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    detail::ArenaState& state = *block_->state;
    state.used -= block_->bytes;
    if (!state.orphaned) {
      block_->next = std::exchange(state.free[block_->size_class], block_);
      return;
    }
    Arena::release(block_);
    if (state.used == 0) delete &state;
  }

  /// Returns the memory, or null without a block.
  void* data() const { return block_ == nullptr ? nullptr : block_->memory; }
  /// Says whether there is no block.
  bool empty() const { return block_ == nullptr; }
  /// Says whether this is the only reference to the block, so that it may be overwritten.
  bool unique() const { return block_ != nullptr && block_->owners.load(std::memory_order_acquire) == 1; }

 private:
  friend class Arena;
  explicit Buffer(detail::ArenaBlock* block) : block_(block) {}
  detail::ArenaBlock* block_ = nullptr;
};

/// Takes a free block of this class, or one from the system.
inline detail::ArenaBlock* Arena::take(std::uint32_t size_class) {
  detail::ArenaBlock* block = state_->free[size_class];
  if (block != nullptr) {
    state_->free[size_class] = block->next;
    return block;
  }
  const std::size_t size = class_bytes(size_class);
  if (state_->source.allocate == nullptr) {
    block = new (detail::allocate_aligned(size + sizeof(detail::ArenaBlock)))
        detail::ArenaBlock{state_, nullptr, nullptr, size, size_class, 0};
    block->memory = block + 1;
  } else {
    const MemorySource& source = state_->source;
    void* memory = nullptr;
    try {
      memory = source.allocate(source.device, size);
    } catch (...) {  // blocks of other sizes may be unused
      trim();
      memory = source.allocate(source.device, size);
    }
    block = new detail::ArenaBlock{state_, nullptr, memory, size, size_class, 0};
  }
  state_->reserved += size;
  return block;
}

/// Brings the free blocks of every size to twice those of an arena that has run the largest cases, or to as many as one
/// has that is settled.
inline void Arena::settle(const Arena& like) {
  if (state_->settled) return;
  const auto count = [](const detail::ArenaBlock* block) {
    Index blocks = 0;
    for (; block != nullptr; block = block->next) ++blocks;
    return blocks;
  };
  for (std::uint32_t size_class = 0; size_class < state_->free.size(); ++size_class) {
    auto& list = state_->free[size_class];
    const Index wanted = count(like.state_->free[size_class]) * (like.state_->settled ? 1 : 2);
    for (Index blocks = count(list); blocks < wanted; ++blocks) {
      detail::ArenaBlock* kept = std::exchange(list, nullptr);
      list = take(size_class);
      list->next = kept;
    }
  }
  state_->settled = true;
}

/// Takes a block of the class of `bytes`, or of a larger one if the arena is settled and that class is empty.
inline Buffer Arena::allocate(std::size_t bytes) {
  if (bytes > std::numeric_limits<std::size_t>::max() / 4) throw std::bad_alloc();
  std::uint32_t size_class = size_class_of(bytes);
  if (state_->settled && state_->free[size_class] == nullptr)
    for (std::uint32_t larger = size_class + 1; larger < state_->free.size(); ++larger)
      if (state_->free[larger] != nullptr) {
        size_class = larger;
        break;
      }
  detail::ArenaBlock* block = take(size_class);
  block->owners = 1;
  state_->used += block->bytes;
  if (state_->used > state_->peak) state_->peak = state_->used;
  return Buffer(block);
}

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <span>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says at which row each sequence of a packed batch begins and ends. A batch is one matrix `(rows, channels)` in which
/// sequence n is the rows [begin(n), end(n)); nothing is padded.
class Sequences {
 public:
  /// Makes a batch of no sequences.
  Sequences() = default;
  /// Makes sequences of these lengths, in rows. Throws `Error` for a negative one. Allocates; copies share the memory.
  explicit Sequences(std::span<const Index> lengths) {
    Arena own;  // its one block outlives it, and ends on whatever thread the last copy does
    *this = make(own, static_cast<Index>(lengths.size()), [&](Index n) {
      const Index length = lengths[static_cast<std::size_t>(n)];
      require(length >= 0, "sequences: length ", length, " given for sequence ", n, ", at least 0 expected");
      return length;
    });
  }
  /// Makes sequences of these lengths, in rows.
  Sequences(std::initializer_list<Index> lengths)
      : Sequences(std::span<const Index>(lengths.begin(), lengths.size())) {}

  /// Makes `size` sequences in memory of the arena, sequence n of length(n) rows (a negative length counts as 0).
  /// Allocates nothing once the arena is warm.
  template <class Length>
  static Sequences make(Arena& arena, Index size, Length&& length) {
    Sequences out(arena, size);
    auto* offsets = static_cast<Index*>(out.buffer_.data());
    offsets[0] = 0;
    for (Index n = 0; n < size; ++n) offsets[n + 1] = offsets[n] + std::max<Index>(0, length(n));
    return out;
  }
  /// Returns sequences whose lengths are `map(length)` of these, in memory of the arena.
  template <class Map>
  Sequences map_lengths(Arena& arena, Map&& map) const {
    return make(arena, size(), [&](Index n) { return map(length(n)); });
  }

  /// Returns the number of sequences.
  Index size() const { return size_; }
  /// Returns the number of rows of all sequences.
  Index rows() const { return offsets_[size_]; }
  /// Returns the first row of sequence n.
  Index begin(Index n) const { return offsets_[n]; }
  /// Returns one past the last row of sequence n.
  Index end(Index n) const { return offsets_[n + 1]; }
  /// Returns the number of rows of sequence n.
  Index length(Index n) const { return end(n) - begin(n); }
  /// Returns the number of the sequence that has this row.
  Index sequence_of(Index row) const { return std::upper_bound(offsets_ + 1, offsets_ + size_, row) - (offsets_ + 1); }
  /// Returns the length of the longest sequence, 0 without any.
  Index max_length() const {
    Index longest = 0;
    for (Index n = 0; n < size(); ++n) longest = std::max(longest, length(n));
    return longest;
  }
  /// Returns the first row of every sequence, and then the number of rows, (size + 1).
  const Index* offsets() const { return offsets_; }
  /// Says whether two batches have sequences of the same lengths.
  friend bool operator==(const Sequences& a, const Sequences& b) {
    return std::equal(a.offsets_, a.offsets_ + a.size_ + 1, b.offsets_, b.offsets_ + b.size_ + 1);
  }

 private:
  Sequences(Arena& arena, Index size)
      : buffer_(arena.allocate(static_cast<std::size_t>(size + 1) * sizeof(Index))),
        offsets_(static_cast<const Index*>(buffer_.data())),
        size_(size) {}

  static constexpr Index none[1] = {0};  // offsets of no sequences

  Buffer buffer_;
  const Index* offsets_ = none;
  Index size_ = 0;
};

/// Calls `visit(n, range)` for every sequence that has some of the given rows of a batch. The range numbers these rows
/// from the beginning of sequence n.
template <class Visit>
void each_part(const Sequences& sequences, Range rows, Visit&& visit) {
  while (rows.begin < rows.end) {
    const Index n = sequences.sequence_of(rows.begin), end = std::min(rows.end, sequences.end(n));
    visit(n, Range{rows.begin - sequences.begin(n), end - sequences.begin(n)});
    rows.begin = end;
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <cstring>
#include <vector>

// The arguments of primitives in addition to their tensors: masks, shapes and options. These are plain structs without
// Eigen, so that the compiler of a device can read them.

namespace laconic {
inline namespace LACONIC_ABI {

template <class T>
class Parameter;

/// Says which rows of a tensor go where in another one.
struct RowRange {
  Index from;   ///< the first row in the source
  Index count;  ///< how many there are
  Index to;     ///< the row of the target that gets the first one
};

/// Says which keys a query sees. Every mask of a speech model shows each query one contiguous range of keys, so a mask
/// is two numbers.
struct Mask {
  /// Holds a range of keys, [begin, end).
  struct Keys {
    Index begin;  ///< the first key that is seen
    Index end;    ///< the key after the last one that is seen
  };

  static constexpr Index unlimited = -1;  ///< no limit
  Index chunk = unlimited;                ///< frames that see each other; 1 is causal
  Index left_context = unlimited;         ///< frames seen before the own chunk; unlimited if there are no chunks

  /// Returns a mask that shows every query all keys.
  static constexpr Mask bidirectional() { return {}; }
  /// Returns a mask that shows a query its own key and all earlier ones.
  static constexpr Mask causal() { return {1, unlimited}; }
  /// Returns a mask that shows a query all keys of its chunk and `left_context` frames before it. Throws `Error` if
  /// chunk is below 1, or if left_context is negative and not `unlimited`.
  static constexpr Mask chunked(Index chunk, Index left_context) {
    require(chunk > 0, "mask: chunk ", chunk, " given, at least 1 expected");
    require(left_context >= 0 || left_context == unlimited, "mask: left_context ", left_context,
            " given, at least 0 expected, or Mask::unlimited");
    return {chunk, left_context};
  }

  /// Returns whether this is a mask that `bidirectional`, `causal` or `chunked` can return.
  constexpr bool is_valid() const {
    if (chunk == unlimited) return left_context == unlimited;
    return chunk > 0 && (left_context == unlimited || left_context >= 0);
  }

  /// Returns the keys that query number `query` sees among `num_keys`, the first `past` of which are before the first
  /// query. Chunks are counted from the first query.
  constexpr Keys keys(Index query, Index past, Index num_keys) const {
    if (chunk == unlimited) return {0, num_keys};
    const Index start = past + query / chunk * chunk;
    return {left_context == unlimited ? 0 : std::max<Index>(0, start - left_context),
            std::clamp<Index>(start + chunk, 0, num_keys)};
  }
};

/// Names the activation functions. SiLU is also called swish; `gelu` is the exact one, with erf; `gelu_new` is GPT-2's
/// approximation by a hyperbolic tangent (Hendrycks and Gimpel 2016, section 2).
enum class Activation { relu, silu, gelu, gelu_new };
/// Returns the activations with their names in configuration files.
constexpr auto enum_names(Activation) {
  return std::to_array<EnumName<Activation>>({{Activation::relu, "relu"},
                                              {Activation::silu, "silu"},
                                              {Activation::gelu, "gelu"},
                                              {Activation::gelu_new, "gelu_new"}});
}

/// Describes a 3 x 3 convolution over (time, frequency) without padding. Rows are frames; columns are (frequency,
/// channel) with the channel innermost. The weight is (out, in, time, frequency), as PyTorch stores it.
struct Conv2dShape {
  static constexpr Index kernel = 3;  ///< taps in time and in frequency
  Index in_channels;                  ///< channels of the input
  Index out_channels;                 ///< channels of the output
  Index in_freqs;                     ///< frequencies of the input
  Index stride = 2;                   ///< in time and in frequency

  /// Returns the outputs along an axis of `in` inputs.
  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  /// Returns the frequencies out.
  constexpr Index out_freqs() const { return out_length(in_freqs); }
  /// Returns the columns of an input row.
  constexpr Index in_cols() const { return in_freqs * in_channels; }
  /// Returns the columns of an output row.
  constexpr Index out_cols() const { return out_freqs() * out_channels; }
  /// Returns the taps of a kernel.
  constexpr Index taps() const { return kernel * kernel; }
  /// Returns the inputs that one output is computed from.
  constexpr Index patch() const { return taps() * in_channels; }
};

/// Describes a convolution over time without padding that connects all channels in to all channels out. Rows are frames
/// or samples. The weight is (out, in, kernel), as PyTorch stores it.
struct Conv1dShape {
  Index in_channels;   ///< channels of the input
  Index out_channels;  ///< channels of the output
  Index kernel;        ///< taps
  Index stride;        ///< input rows from one output to the next

  /// Returns the outputs of a sequence of `in` inputs.
  constexpr Index out_length(Index in) const { return in < kernel ? 0 : (in - kernel) / stride + 1; }
  /// Returns the taps of a kernel.
  constexpr Index taps() const { return kernel; }
  /// Returns the inputs that one output is computed from.
  constexpr Index patch() const { return taps() * in_channels; }
};

/// Describes a softmax attention: heads, scale and mask.
struct AttendShape {
  Index num_heads;     ///< query heads
  Index num_kv_heads;  ///< key-value heads, a divisor of num_heads
  double scale;        ///< factor of the scores: 1/sqrt of the width that queries and keys had before any absorption
  Mask mask = {};      ///< the keys that a query sees
};

/// Holds the relative-position term of an attention (Dai et al. 2019, section 3.3): the projected table (2 * span - 1,
/// num_heads * head_dim) and the biases pos_bias_u and pos_bias_v (null: zeros). Row span - 1 + d of the table is for a
/// key d frames to the right of the query. An empty table means that there is no such term.
template <class Tensor, class T>
struct RelativeTerm {
  Tensor table{};                            ///< the projected table, or empty
  const Parameter<T>* pos_bias_u = nullptr;  ///< added to the queries that meet the keys; null: zeros
  const Parameter<T>* pos_bias_v = nullptr;  ///< added to the queries that meet the table; null: zeros
  Tensor query{};       ///< queries that meet the table, (rows, num_heads * head_dim); empty: those of the attention
  bool packed = false;  ///< whether `prepare_table` of the context made the table
};

/// Describes heads that each have a matrix of their own, or share `num_blocks` matrices: head h takes block h /
/// (num_heads / num_blocks).
struct HeadShape {
  Index num_heads;          ///< heads
  Index num_blocks;         ///< matrices, a divisor of num_heads
  bool transposed = false;  ///< whether the product is x_h W_h, from out channels to in, and not x_h W_h^T
};

/// Says which two channels of a head a rotary position rotates together (Su et al. 2021). `interleaved` pairs
/// neighbours, as the paper and DeepSeek's code do. `halves` pairs channel i of the first half with channel i of the
/// second, as GPT-NeoX and Hugging Face do.
enum class RotaryPairs { interleaved, halves };

/// Names how the rates of rotary positions are changed for sequences longer than those of the training.
enum class RotaryScaling {
  none,    ///< not at all
  linear,  ///< all rates are divided by the factor (Chen et al. 2023)
  llama3,  ///< slow rates are divided, fast ones are not, with a smooth transition (Llama 3.1)
  yarn     ///< as llama3 by other limits, with a factor on cosines and sines (Peng et al. 2023)
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(RotaryScaling) {
  return std::to_array<EnumName<RotaryScaling>>({{RotaryScaling::none, "none"},
                                                 {RotaryScaling::linear, "linear"},
                                                 {RotaryScaling::llama3, "llama3"},
                                                 {RotaryScaling::yarn, "yarn"}});
}

/// Says how fast the pairs of channels of a rotary position rotate. The members have the names and the meaning of
/// transformers' `rope_parameters`.
struct RotaryRates {
  double base = 10000;                          ///< pair m of a width rotates by base^(-2 m / width) a position
  RotaryScaling scaling = RotaryScaling::none;  ///< change of these rates
  double factor = 1;                            ///< divisor of the rates, at least 1
  double low_freq_factor = 1;                   ///< llama3: full rotations below which a rate is divided
  double high_freq_factor = 4;                  ///< llama3: full rotations above which it is not
  double beta_fast = 32;                        ///< yarn: full rotations above which a rate is not divided
  double beta_slow = 1;                         ///< yarn: full rotations below which it is
  double attention_factor = 0;                  ///< yarn: factor of cosines and sines; 0: 0.1 ln(factor) + 1
  Index original_max_positions = 8192;          ///< llama3 and yarn: positions of the training

  /// Returns the rate of pair m of `width` channels, in radians a position.
  double rate(Index m, Index width) const {
    const double plain = std::pow(base, -2 * static_cast<double>(m) / static_cast<double>(width));
    constexpr double two_pi = 2 * std::numbers::pi;
    const double rotations = static_cast<double>(original_max_positions) * plain / two_pi;
    if (scaling == RotaryScaling::linear) return plain / factor;
    if (scaling == RotaryScaling::llama3) {
      const double kept = std::clamp((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor), 0.0, 1.0);
      return kept * plain + (1 - kept) * plain / factor;
    }
    if (scaling == RotaryScaling::yarn) {
      const auto pair_of = [&](double full_rotations) {
        return static_cast<double>(width) *
               std::log(static_cast<double>(original_max_positions) / (full_rotations * two_pi)) / (2 * std::log(base));
      };
      const double low = std::max(0.0, std::floor(pair_of(beta_fast))),
                   high = std::min(static_cast<double>(width - 1), std::ceil(pair_of(beta_slow)));
      const double divided = std::clamp((static_cast<double>(m) - low) / (high > low ? high - low : 0.001), 0.0, 1.0);
      return (1 - divided) * plain + divided * plain / factor;
    }
    return plain;
  }
  /// Returns the factor of cosines and sines.
  double amplitude() const {
    if (scaling != RotaryScaling::yarn) return 1;
    return attention_factor > 0 ? attention_factor : 0.1 * std::log(factor) + 1;
  }

  /// Visits each member with its name, for files.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("base", self.base);
    visit("scaling", self.scaling);
    visit("factor", self.factor);
    visit("low_freq_factor", self.low_freq_factor);
    visit("high_freq_factor", self.high_freq_factor);
    visit("beta_fast", self.beta_fast);
    visit("beta_slow", self.beta_slow);
    visit("attention_factor", self.attention_factor);
    visit("original_max_positions", self.original_max_positions);
  }
  /// Returns these rates if every number makes sense. Throws `Error` otherwise.
  constexpr const RotaryRates& checked() const {
    require(base > 1 && base <= 1e12, "rotary: base ", base, " given, more than 1 and at most 1e12 expected");
    require(factor >= 1 && factor <= 1e6, "rotary: factor ", factor, " given, 1 to 1e6 expected");
    require(low_freq_factor > 0 && high_freq_factor > low_freq_factor, "rotary: low_freq_factor ", low_freq_factor,
            " and high_freq_factor ", high_freq_factor, " given, 0 < low < high expected");
    require(beta_slow > 0 && beta_fast >= beta_slow, "rotary: beta_slow ", beta_slow, " and beta_fast ", beta_fast,
            " given, 0 < slow <= fast expected");
    require(attention_factor >= 0 && attention_factor <= 1e3, "rotary: attention_factor ", attention_factor,
            " given, 0 to 1000 expected");
    require(original_max_positions > 0, "rotary: original_max_positions ", original_max_positions,
            " given, at least 1 expected");
    return *this;
  }
  /// Says whether two have the same members.
  friend constexpr bool operator==(const RotaryRates&, const RotaryRates&) = default;
};

/// Gives the position of packed rows in time: row i of sequence n is at first(n) + step * i, in frames.
struct RowPositions {
  const Sequences& sequences;       ///< the sequences of the rows; must outlive this
  std::span<const Index> firsts{};  ///< the position of each sequence's first row, in frames; empty: 0
  Index step = 1;                   ///< 1, or -1 for distances, which fall from row to row

  /// Returns the position of the first row of sequence n.
  constexpr Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// Describes a depthwise convolution over time, whose output t sees the inputs from t - left on.
struct DepthwiseShape {
  Index left;                     ///< inputs before t that output t sees
  Index chunk = Mask::unlimited;  ///< outputs see no input after the end of their chunk, counted from the first output
  Index past = 0;                 ///< earlier frames at the start of every sequence, which give no output
};

/// Returns the bytes of a cached row of `width` values, each of `number_bytes` in full storage. int8 adds a float
/// scale.
constexpr Index cache_row_bytes(Storage storage, Index width, Index number_bytes = 4) {
  switch (storage) {
    case Storage::bf16:
      return 2 * width;
    case Storage::int8:
      return width + 4;
    default:
      return number_bytes * width;
  }
}

/// Refers to the parameters of a batch norm, each (channels).
template <class T>
struct BatchNormParameters {
  const Parameter<T>& weight;        ///< scale
  const Parameter<T>& bias;          ///< shift
  const Parameter<T>& running_mean;  ///< moving average of the mean
  const Parameter<T>& running_var;   ///< moving average of the unbiased variance
  double eps;                        ///< added to the variance
};

/// Describes one step of AdamW, which is the same for all parameters (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWStep {
  double learning_rate;   ///< factor of the update
  double beta1;           ///< decay of the first moment
  double beta2;           ///< decay of the second moment
  double eps;             ///< added to the denominator
  double weight_decay;    ///< decay of parameters that have two dimensions or more
  double gradient_scale;  ///< factor of all gradients, less than 1 if their norm is clipped
  std::int64_t number;    ///< number of this step, from 1

  /// Returns the factor of the first moment in the update: it corrects that moments begin as zeros.
  double rate() const { return learning_rate / (1 - std::pow(beta1, static_cast<double>(number))); }
  /// Returns the factor of the root of the second moment, which corrects the same.
  double root_scale() const { return 1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(number))); }
  /// Returns the part of the values of a parameter that decay leaves. Only those of two dimensions or more decay.
  double kept(std::size_t dimensions) const { return dimensions > 1 ? 1 - learning_rate * weight_decay : 1; }
};

/// Refers to a parameter that a step changes and to its moments (rows, cols), which are empty before its first step.
template <class Tensor, class T>
struct AdamWUpdate {
  Parameter<T>* parameter;  ///< the parameter
  Tensor* first;            ///< moving average of the gradient
  Tensor* second;           ///< moving average of the squared gradient
};

/// Holds the label sequences of a batch, end to end. Sequence n is tokens[sequences.begin(n) .. sequences.end(n)).
struct Labels {
  std::vector<int> tokens;  ///< the labels of all sequences
  Sequences sequences;      ///< the offsets of each sequence in `tokens`
};

/// Holds the tokens of packed sequences, one id a row. The ids are borrowed.
struct TokenRows {
  std::span<const int> ids;  ///< the id of each row's token
  Sequences sequences;       ///< the rows of each sequence
};

/// Describes a cross entropy over integer targets.
struct CrossEntropyShape {
  double label_smoothing = 0;  ///< probability that is spread evenly over all classes (Szegedy et al. 2016, section 7)
  int ignored = -100;          ///< a target that is not predicted: its row has loss 0 and no derivative

  /// Returns the probability of the target in addition to that of every class.
  double on_target() const { return 1 - label_smoothing; }
  /// Returns the probability of every one of these classes.
  double on_all(Index classes) const { return label_smoothing / static_cast<double>(classes); }
};

/// Decides which elements survive dropout. Each random block gives eight decisions of 16 bits, so the probability is
/// rounded to a multiple of 2^-16; the survivors are scaled by the rounded one.
class DropoutMask {
 public:
  /// Makes the mask of a stream of random numbers. Throws `Error` unless 0 <= probability < 1.
  DropoutMask(double probability, const Random& random)
      : threshold_(static_cast<std::uint32_t>(std::min(65535.0, checked(probability) * 65536 + 0.5))),
        random_(random) {}

  /// Returns the factor of the survivors, 1 / (1 - rounded probability).
  constexpr double scale() const { return 65536.0 / (65536.0 - threshold_); }
  /// Returns which elements from 8 * number on survive: bit k is set if element 8 * number + k does.
  constexpr std::uint32_t kept_of(std::uint64_t number) const {
    const auto block = random_.block(number);
    std::uint32_t kept = 0;
    for (std::uint32_t k = 0; k < 8; ++k)
      kept |= static_cast<std::uint32_t>((block[k / 2] >> (16 * (k % 2)) & 0xffff) >= threshold_) << k;
    return kept;
  }
  /// Returns whether any element can be dropped.
  bool any() const { return threshold_ > 0; }
  /// Returns whether element i survives. This defines the mask; `apply` computes it faster.
  constexpr bool keeps(std::uint64_t i) const { return (keeps_two(i - i % 2) >> i % 2 & 1) != 0; }
  /// Returns whether elements i and i + 1 survive, in bits 0 and 1. i is even.
  constexpr std::uint32_t keeps_two(std::uint64_t i) const {
    const auto block = random_.block(i / 8);
    const std::uint32_t low = (i & 2) != 0 ? block[1] : block[0], high = (i & 2) != 0 ? block[3] : block[2],
                        two = (i & 4) != 0 ? high : low;  // no index, so that a GPU has the block in registers
    return ((two & 0xffff) >= threshold_ ? 1U : 0U) | ((two >> 16) >= threshold_ ? 2U : 0U);
  }

  /// Computes y[j] = x[j] * (keeps(first + j) ? scale() : 0) for j in [0, n). x and y may be the same.
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
    require(probability >= 0 && probability < 1, "dropout: probability ", probability,
            " given, expected from 0 to less than 1");
    return probability;
  }

  /// Gives the number of decisions of one call, so that the random blocks are computed in vectors.
  static constexpr Index together = 128;

  /// Writes the 16 bits of the decisions group * together .. group * together + together - 1.
  void draw(std::uint64_t group, std::uint16_t* bits) const {
    constexpr int count = together / 8;
    std::uint64_t w[4][count], pairs[2 * count];
    random_.template blocks<count>(group * count, w[0], w[1], w[2], w[3]);
    for (int b = 0; b < count; ++b) {
      pairs[2 * b] = w[0][b] | w[1][b] << 32;
      pairs[2 * b + 1] = w[2][b] | w[3][b] << 32;
    }
    static_assert(std::endian::native == std::endian::little,
                  "laconic: the order of the 16-bit halves is that of memory");
    std::memcpy(bits, pairs, sizeof pairs);
  }

  std::uint32_t threshold_;
  Random random_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the attention that a configuration chooses where the type leaves it open (`AnyAttention`).
enum class AttentionName {
  by_type,        ///< the type decides
  mha,            ///< multi-head attention
  gqa,            ///< grouped-query attention
  mqa,            ///< multi-query attention
  mla,            ///< one latent, two steps to every head (`TwoStageLatent`)
  mla_simple,     ///< one latent, one step (`SharedLatent`)
  mla_split,      ///< one latent for keys and one for values (`SplitLatent`)
  mla_head,       ///< latents for every head (`HeadLatent`)
  mla_decoupled,  ///< DeepSeek-V2's latent and rotary key (`DecoupledLatent`)
  input_latent,   ///< the layer's input is cached (`InputLatent`)
  linear          ///< linear attention (`LinearKernel`)
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(AttentionName) {
  using enum AttentionName;
  return std::to_array<EnumName<AttentionName>>({{by_type, "by-type"},
                                                 {mha, "mha"},
                                                 {gqa, "gqa"},
                                                 {mqa, "mqa"},
                                                 {mla, "mla"},
                                                 {mla_simple, "mla-simple"},
                                                 {mla_split, "mla-split"},
                                                 {mla_head, "mla-head"},
                                                 {mla_decoupled, "mla-decoupled"},
                                                 {input_latent, "input-latent"},
                                                 {linear, "linear"}});
}

/// Names the position that a configuration chooses where the type leaves it open (`AnyAttention`).
enum class PositionEmbeddings {
  relative,  ///< Transformer-XL's relative positions
  rotary,    ///< rotation: of an encoder's input before the projections, as the Hugging Face Conformer computes it; of
             ///< a decoder's queries and keys after them
  learned,   ///< a decoder's trained vector for each position, added to the embeddings
  none       ///< no positions: convolutions alone know the order
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(PositionEmbeddings) {
  return std::to_array<EnumName<PositionEmbeddings>>({{PositionEmbeddings::relative, "relative"},
                                                      {PositionEmbeddings::rotary, "rotary"},
                                                      {PositionEmbeddings::learned, "learned"},
                                                      {PositionEmbeddings::none, "none"}});
}

/// Holds the sizes of an attention that its type may leave open (`dyn`). 0 means "as the type says".
struct AttentionConfig {
  Index d_model = 0;       ///< channels of the layer's input and output
  Index num_heads = 0;     ///< query heads
  Index num_kv_heads = 0;  ///< key-value heads, a divisor of num_heads
  /// Rank of the latent; of the keys' latent where values have their own; of each head's where heads have their own.
  Index kv_lora_rank = 0;
  Index v_lora_rank = 0;       ///< rank of the values' latent or latents; 0 where the type leaves it open: kv_lora_rank
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key
  /// Pairs, out of head_dim / 2, whose rates the decoupled rotary key uses; empty: the rates of its own width.
  IndexList rope_pairs{};
  RotaryRates rope{};          ///< how fast the pairs of rotary positions rotate
  Index head_dim = 0;          ///< channels of a head; 0: d_model / num_heads
  bool attention_bias = true;  ///< biases on queries, output, and where the key-value policy has them
  AttentionName attention = AttentionName::by_type;                            ///< the attention by name
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;  ///< the position by name
};

/// Holds all sizes of one attention, resolved from type and configuration. Sizes that a policy does not have are 0.
struct AttentionDims {
  Index d_model;               ///< channels of the layer's input and output
  Index num_heads;             ///< query heads, H
  Index num_kv_heads;          ///< key-value heads, G
  Index head_dim;              ///< channels of a head
  bool bias;                   ///< whether the projections have biases
  Index kv_lora_rank = 0;      ///< as in AttentionConfig
  Index v_lora_rank = 0;       ///< as in AttentionConfig
  Index q_lora_rank = 0;       ///< as in AttentionConfig
  Index qk_rope_head_dim = 0;  ///< as in AttentionConfig
  IndexList rope_pairs{};      ///< as in AttentionConfig
  RotaryRates rope{};          ///< as in AttentionConfig

  /// Returns the channels of all query heads together.
  constexpr Index q_dim() const { return num_heads * head_dim; }
  /// Returns the channels of all key heads together, which is that of all value heads, too.
  constexpr Index kv_dim() const { return num_kv_heads * head_dim; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <Eigen/Core>

namespace laconic {
inline namespace LACONIC_ABI {

static_assert(EIGEN_MAX_ALIGN_BYTES == LACONIC_ALIGNMENT,
              "laconic: EIGEN_MAX_ALIGN_BYTES, EIGEN_DONT_ALIGN and EIGEN_DONT_VECTORIZE are defined before the first "
              "header of laconic, whose names contain the alignment, or not at all");

/// Owns a row-major matrix `(rows, channels)`, one row for each frame.
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace detail {

/// Maps an element type to the type of its view.
template <class T>
struct View {
  using type = Eigen::Map<Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;  ///< a view that can write
};
/// Maps a const element type to the type of its view.
template <class T>
struct View<const T> {
  using type = Eigen::Map<const Matrix<T>, Eigen::Unaligned, Eigen::OuterStride<>>;  ///< a view that only reads
};

}  // namespace detail

/// Borrows a row-major matrix whose rows may be apart in memory (a block of columns). `MatrixView<const T>` only reads.
/// Assigning to a view copies values, as with every `Eigen::Map`.
template <class T>
using MatrixView = typename detail::View<T>::type;

/// Returns a view of `rows` rows of `cols` elements, each `stride` elements after the one before.
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols, Index stride) {
  return MatrixView<T>(data, rows, cols, Eigen::OuterStride<>(stride));
}
/// Returns a view of (rows, cols) contiguous elements.
template <class T>
MatrixView<T> matrix_view(T* data, Index rows, Index cols) {
  return matrix_view(data, rows, cols, cols);
}
/// Returns a view of a whole matrix that only reads.
template <class T>
MatrixView<const T> view(const Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}
/// Returns a view of a whole matrix that can write.
template <class T>
MatrixView<T> view(Matrix<T>& matrix) {
  return matrix_view(matrix.data(), matrix.rows(), matrix.cols());
}

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <memory>

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how an optimiser treats a parameter.
enum class Role {
  weight,     ///< trained by its gradient
  statistic,  ///< gathered while training (batch norm); its gradient slot carries the update to be added
};

/// Says what the layers that own a weight compute with it. A backend chooses by it the form in which it holds the
/// weight.
enum class WeightUse {
  elementwise,     ///< read value by value: biases, norms, depthwise kernels
  linear,          ///< rows x times W^T
  heads,           ///< rows x times W^T, and single heads times their own block of W (`head_linear`)
  conv1d,          ///< products over the taps of a convolution over time
  conv2d,          ///< products over the taps of a 3 x 3 convolution of stride 1
  conv2d_stride_2  ///< products over the taps of a 3 x 3 convolution of stride 2
};

/// Holds the values of one parameter in the form that a backend computes with. The backend makes it, and only the
/// backend reads it.
class ResidentWeight {
 public:
  /// Not copyable: `copy` says what a copy of the parameter holds.
  ResidentWeight(const ResidentWeight&) = delete;
  /// Not assignable.
  ResidentWeight& operator=(const ResidentWeight&) = delete;
  /// Frees the backend's memory.
  virtual ~ResidentWeight() = default;
  /// Returns the address of a constant that identifies the derived class, so that a backend recognises its own weights.
  const void* kind() const { return kind_; }
  /// Returns the name of the backend for messages: "Cpu".
  virtual const char* backend() const = 0;
  /// Returns how the values are rounded.
  virtual Storage storage() const = 0;
  /// Says whether the values can change in this form. If not, copies of a model share it.
  virtual bool can_train() const = 0;
  /// Returns what a copy of the parameter holds. Allocates if the values can change.
  virtual std::shared_ptr<ResidentWeight> copy() const = 0;

 protected:
  /// Makes a weight that `kind` identifies.
  explicit ResidentWeight(const void* kind) : kind_(kind) {}

 private:
  const void* kind_;
};

namespace detail {

/// Owns a resident weight, and copies it as the weight says.
class ResidentPointer {
 public:
  /// Makes a null pointer.
  ResidentPointer() = default;
  /// Owns this weight.
  explicit ResidentPointer(std::shared_ptr<ResidentWeight> weight) : weight_(std::move(weight)) {}
  /// Holds what `ResidentWeight::copy` returns.
  ResidentPointer(const ResidentPointer& other) : weight_(other.weight_ ? other.weight_->copy() : nullptr) {}
  /// Takes over the weight of the other.
  ResidentPointer(ResidentPointer&&) noexcept = default;
  /// Drops its weight and takes that of the other.
  ResidentPointer& operator=(ResidentPointer other) noexcept {
    weight_.swap(other.weight_);
    return *this;
  }
  ~ResidentPointer() = default;
  /// Returns the weight, or null.
  const std::shared_ptr<ResidentWeight>& get() const { return weight_; }

 private:
  std::shared_ptr<ResidentWeight> weight_;
};

}  // namespace detail

/// Holds a named tensor of a model, laid out as PyTorch stores it: a linear weight is `(out, in)`, a depthwise kernel
/// `(channels, 1, kernel)`. The values are in one place at a time: on the host, where `host` reads and edits them as a
/// matrix (the first dimension, the product of the others), or resident in a backend (`Context::prepare`), until
/// `Context::fetch` brings them back. The gradient is where the values are. It is scratch memory of training: a tape
/// fills it through a const model, too.
template <class T>
class Parameter {
 public:
  using Scalar = T;  ///< the type of an element

  // Called, not inlined: models consist of hundreds of parameters, and all of that code took a quarter of a user's time
  // to compile.
  /// Makes a parameter without elements.
  [[gnu::noinline]] Parameter();
  /// Copies the values and the gradient; resident values as their `ResidentWeight::copy` says. Allocates.
  [[gnu::noinline]] Parameter(const Parameter&);
  /// Takes over the other's values, gradient and resident form.
  [[gnu::noinline]] Parameter(Parameter&&) noexcept;
  [[gnu::noinline]] Parameter& operator=(const Parameter&);
  [[gnu::noinline]] Parameter& operator=(Parameter&&) noexcept;
  [[gnu::noinline]] ~Parameter();
  /// Makes a parameter of zeros on the host. Allocates.
  explicit Parameter(std::initializer_list<Index> shape, Role role = Role::weight) : shape_(shape), role_(role) {
    value_.setZero(rows(), cols());
  }

  /// Returns the dimensions as PyTorch has them.
  const std::vector<Index>& shape() const { return shape_; }
  /// Returns the rows of the matrix view: the first dimension, or 1 for a vector.
  Index rows() const { return shape_.size() == 1 ? 1 : shape_.empty() ? 0 : shape_[0]; }
  /// Returns the columns of the matrix view: the product of the other dimensions.
  Index cols() const {
    Index product = shape_.empty() ? 0 : 1;
    for (std::size_t i = shape_.size() < 2 ? 0 : 1; i < shape_.size(); ++i) product *= shape_[i];
    return product;
  }
  /// Returns the number of elements.
  Index size() const { return rows() * cols(); }
  /// Returns how an optimiser treats the parameter.
  Role role() const { return role_; }

  /// Returns the values, (rows, cols). Throws `Error` if they are resident in a backend.
  const Matrix<T>& host() const {
    require_on_host();
    return value_;
  }
  /// Returns the values for editing, (rows, cols). Throws `Error` if they are resident in a backend.
  Matrix<T>& host() {
    require_on_host();
    return value_;
  }

  /// Says whether training changes the values. A frozen parameter gets no gradient.
  bool trainable = true;
  /// Says what the owning layers compute with the values.
  WeightUse use = WeightUse::elementwise;
  /// Says how much a new batch weighs in the moving average that a statistic is.
  double momentum = 0;

  /// Says whether the values can be trained where they are.
  bool can_train() const { return !is_resident() || resident_.get()->can_train(); }
  /// Says whether a backend holds the values.
  bool is_resident() const { return resident_.get() != nullptr; }
  /// Returns the form that a backend holds, or null if the values are on the host. For backends only.
  const std::shared_ptr<ResidentWeight>& resident() const { return resident_.get(); }
  /// Hands the values to a backend: the host keeps neither them nor a gradient. For backends only.
  void make_resident(std::shared_ptr<ResidentWeight> weight) {
    resident_ = detail::ResidentPointer(std::move(weight));
    value_.resize(0, 0);
    gradient_.resize(0, 0);
  }
  /// Brings values (rows, cols) back to the host, and a gradient of the same shape or an empty one. Throws `Error` for
  /// values of another shape. For backends only.
  void make_host(Matrix<T> values, Matrix<T> gradient = {}) {
    require(values.rows() == rows() && values.cols() == cols(), "parameter: values of (", values.rows(), ", ",
            values.cols(), ") given, (", rows(), ", ", cols(), ") expected");
    resident_ = {};
    value_ = std::move(values);
    gradient_ = std::move(gradient);
  }

  /// Says whether there is a gradient on the host.
  bool has_gradient() const { return gradient_.size() == value_.size() && value_.size() > 0; }
  /// Returns the gradient on the host, (rows, cols). The first call allocates it and sets it to zero. Throws `Error` if
  /// the values are resident in a backend.
  Matrix<T>& gradient() const {
    require_on_host();
    if (!has_gradient()) gradient_.setZero(value_.rows(), value_.cols());
    return gradient_;
  }
  /// Sets the gradient on the host to zero, if there is one.
  void clear_gradient() const {
    if (has_gradient()) gradient_.setZero();
  }

 private:
  void require_on_host() const {
    if (is_resident()) [[unlikely]]
      throw Error(text("parameter: values resident in ", resident_.get()->backend(),
                       " given, values on the host expected (fetch)"));
  }

  std::vector<Index> shape_;
  Role role_ = Role::weight;
  Matrix<T> value_;
  mutable Matrix<T> gradient_;
  detail::ResidentPointer resident_;
};

template <class T>
Parameter<T>::Parameter() = default;
template <class T>
Parameter<T>::Parameter(const Parameter&) = default;
template <class T>
Parameter<T>::Parameter(Parameter&&) noexcept = default;
template <class T>
Parameter<T>& Parameter<T>::operator=(const Parameter&) = default;
template <class T>
Parameter<T>& Parameter<T>::operator=(Parameter&&) noexcept = default;
template <class T>
Parameter<T>::~Parameter() = default;

/// Says whether a weight is rounded if weights are stored as `weights`. Weights of matrix products are, except that
/// int8 leaves out convolutions of fewer than 64 values for each output: their largest value would cost the others too
/// much precision.
template <class T>
bool is_rounded(const Parameter<T>& p, Storage weights) {
  constexpr Index few = 64;
  const bool is_product = p.use != WeightUse::elementwise && p.use != WeightUse::heads;
  return weights != Storage::full && is_product && p.size() > 0 &&
         !(weights == Storage::int8 && p.use != WeightUse::linear && p.cols() < few);
}

namespace detail {

/// Says whether a type is a Parameter.
template <class>
inline constexpr bool is_parameter = false;
/// Says that a Parameter is one.
template <class T>
inline constexpr bool is_parameter<Parameter<T>> = true;

/// Calls `visit(dotted_name, parameter)` for every parameter below a module.
template <class Visit>
struct ParameterWalk {
  Visit& visit;      ///< the caller's function
  std::string path;  ///< dotted name of the module being visited

  /// Visits a parameter, or all parameters of a module.
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
  /// Visits numbered modules: "layers.0", "layers.1" ...
  template <class Child>
  void operator()(std::string_view name, std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
  /// Visits numbered modules that are const.
  template <class Child>
  void operator()(std::string_view name, const std::vector<Child>& children) {
    for (std::size_t i = 0; i < children.size(); ++i) (*this)(text(name, '.', i), children[i]);
  }
};

/// Calls a function of the caller with every parameter, whatever its type: a model is walked by one type of visitor,
/// and not compiled again for each.
template <class P>
struct ParameterVisit {
  void* visit;                                ///< the caller's function
  void (*call)(void*, std::string_view, P&);  ///< calls it

  /// Passes a parameter on.
  void operator()(std::string_view name, P& parameter) const { call(visit, name, parameter); }
};

/// Calls `visit(dotted_name, parameter)` for every parameter below a module, of type P unless its numbers are unknown.
template <class P, class Module, class Visit>
void walk_parameters(Module& module, Visit& visit) {
  using Self = std::remove_const_t<Module>;
  if constexpr (std::is_void_v<P>) {
    ParameterWalk<Visit> walk{visit, {}};
    Self::each_parameter(module, walk);
  } else {
    const auto call = [](void* erased, std::string_view name, P& p) { (*static_cast<Visit*>(erased))(name, p); };
    const ParameterVisit<P> passed{const_cast<std::remove_const_t<Visit>*>(&visit), call};
    ParameterWalk<const ParameterVisit<P>> walk{passed, {}};
    Self::each_parameter(module, walk);
  }
}

/// Names the type of a module's parameters, or void if the module does not say it (`Scalar`).
template <class Self>
struct ParameterOf {
  using type = void;
};
template <class Self>
requires requires { typename Self::Scalar; }
struct ParameterOf<Self> {
  using type = Parameter<typename Self::Scalar>;
};

}  // namespace detail

/// Serves as the base of every layer and model. `Self` lists its parameters and sub-layers once, by name, in `static
/// void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); ... }`. Loading, saving, counting,
/// optimising and converting all go through it. A `Self` that names its type of number (`using Scalar = T`) compiles
/// faster.
template <class Self>
class Module {
 public:
  /// Calls `visit(std::string_view dotted_name, Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) {
    detail::walk_parameters<typename detail::ParameterOf<Self>::type>(static_cast<Self&>(*this), visit);
  }
  /// Calls `visit(std::string_view dotted_name, const Parameter<T>&)` for every parameter, in a fixed order.
  template <class Visit>
  void parameters(Visit&& visit) const {
    detail::walk_parameters<const typename detail::ParameterOf<Self>::type>(static_cast<const Self&>(*this), visit);
  }

  /// Returns the number of elements of all parameters that have gradients; statistics of batch norm do not count.
  Index count_parameters() const {
    Index count = 0;
    parameters([&](std::string_view, const auto& p) { count += p.role() == Role::weight ? p.size() : 0; });
    return count;
  }
};

/// Throws `Error`, in the name of `who`, unless all values of a model are on the host. Saving, converting and comparing
/// read them there.
template <class Model>
void require_on_host(const Model& model, const char* who) {
  model.parameters([&](std::string_view name, const auto& p) {
    require(!p.is_resident(), who, ": ", name, " is resident in ", p.is_resident() ? p.resident()->backend() : "",
            " (prepare), a model on the host expected (fetch)");
  });
}

/// Fills a parameter with uniform values in [-bound, bound).
template <class T>
void fill_uniform(Parameter<T>& parameter, double bound, const Random& random) {
  constexpr int together = 16;  // counters whose random blocks are computed together, in vectors
  std::uint64_t w[4][together];
  for (Index begin = 0; begin < parameter.size(); begin += 4 * together) {
    random.blocks<together>(static_cast<std::uint64_t>(begin) / 4, w[0], w[1], w[2], w[3]);
    for (Index i = 0; i < std::min<Index>(4 * together, parameter.size() - begin); ++i)
      parameter.host().data()[begin + i] =
          static_cast<T>(bound * (2 * (static_cast<double>(w[i % 4][i / 4]) * 0x1p-32) - 1));
  }
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says whether a layer has a bias.
enum class Bias {
  no,  ///< without
  yes  ///< with
};

/// Computes y = x W^T + b for every row, (rows, in) to (rows, out). A convolution of kernel 1 over time is the same
/// with a weight stored as `(out, in, 1)`. Initial values are PyTorch's: uniform within 1/sqrt(in).
template <class T>
class Linear : public Module<Linear<T>> {
 public:
  /// Makes an empty layer, without parameters.
  Linear() = default;
  /// Makes the layer with its initial parameters. Allocates.
  Linear(Index in, Index out, Seed seed, Bias with_bias = Bias::yes) : Linear({out, in}, seed, with_bias) {}
  /// Makes a convolution of kernel 1 without bias. Allocates.
  static Linear pointwise_conv(Index in, Index out, Seed seed) { return Linear({out, in, 1}, seed, Bias::no); }

  /// Returns the input channels.
  Index in() const { return weight.cols(); }
  /// Returns the output channels.
  Index out() const { return weight.rows(); }
  /// Returns whether the layer has a bias.
  bool has_bias() const { return bias.size() > 0; }
  /// Returns the bias, or null.
  const Parameter<T>* bias_or_null() const { return has_bias() ? &bias : nullptr; }

  /// Returns x W^T + b.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.linear(x, weight, bias_or_null());
  }
  /// Returns the activation of x W^T + b.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, Activation activation) const {
    return context.linear(x, weight, bias_or_null(), activation);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.has_bias()) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in), or (out, in, 1)
  Parameter<T> bias;    ///< (out), or empty

 private:
  Linear(std::initializer_list<Index> shape, Seed seed, Bias with_bias) : weight(shape) {
    const double bound = 1 / std::sqrt(static_cast<double>(in()));
    weight.use = WeightUse::linear;
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({out()});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
};

/// Says that single heads multiply by the weights of these layers, too (`head_linear`).
template <class... Layers>
void used_by_heads(Layers&... layers) {
  ((layers.weight.use = WeightUse::heads), ...);
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes one matrix that a key-value policy caches.
struct CachePart {
  Index width;              ///< elements a frame
  bool positional = false;  ///< whether it is stored as computed, also where the cache is rounded
};

/// Holds keys (rows, num_kv_heads * key width) and values (rows, num_kv_heads * value width).
template <class Tensor>
struct KeysAndValues {
  Tensor k;  ///< keys
  Tensor v;  ///< values
};

/// Holds the shape of attention over latents: "keys" and "values" after the up-projections were absorbed into queries
/// and output.
struct AbsorbedShape {
  Index num_kv_heads;  ///< heads of the latents
  Index key_width;     ///< channels of a head's keys
  Index value_width;   ///< channels of a head's values
};

namespace detail {

/// Accepts every child of a module. A lambda would do, but not for nvcc 13 within a concept.
struct AcceptsChildren {
  template <class Child>
  void operator()(const char*, Child&) const {}
};

}  // namespace detail

/// Requires the layer that every policy but `Heads` and the score has: a Module constructed from (dims, seed).
template <class P>
concept LayerOfPolicy = std::is_constructible_v < typename P::template Layer<float>,
const AttentionDims&, Seed > &&requires(typename P::template Layer<float>& layer, detail::AcceptsChildren visit) {
  P::template Layer<float>::each_parameter(layer, visit);
};

/// Requires what the absorbed evaluation order costs (DeepSeek-V2 2024, section 2.1.2), of a policy with `is_latent`.
template <class P>
concept AbsorbedCosts = requires(const AttentionDims& dims) {
  { P::latents_are_memory } -> std::convertible_to<bool>;   // `latents` returns parts of the memory unchanged
  { P::absorb_flops(dims) } -> std::convertible_to<Index>;  // of absorb and release together, a query
  { P::absorbed(dims) } -> std::convertible_to<AbsorbedShape>;
};

/// Says what is kept of each frame, and how keys and values are computed from it. Everything is constexpr except
/// `Layer<T>`, a Module constructed from (dims, seed), which has
///   remember(context, key_input, value_input) -> std::array<Tensor, num_parts>   what is cached
///   expand(context, memory) -> KeysAndValues   keys and values of every key-value head
///   value_weight() -> const Parameter<T>&      the first matrix that the value input is multiplied by
/// and, if `is_latent`, the same attention without expanding (DeepSeek-V2 2024, section 2.1.2), most of which
/// `AbsorbingLayer` (latent/absorbing.hpp) provides:
///   absorb(context, q)     queries (rows, num_heads * head_dim), made to be compared with the memory itself
///   latents(context, memory) -> KeysAndValues   memory in the shape of AbsorbedShape; with `latents_are_memory` these
///                                               are parts of the memory, which may lie in caches
///   release(context, out)  from the output of attention over latents to (rows, num_heads * head_dim)
template <class P>
concept KeyValuePolicy = LayerOfPolicy<P> && requires(const AttentionConfig& config, AttentionDims& dims) {
  { P::is_latent } -> std::convertible_to<bool>;
  { P::one_input } -> std::convertible_to<bool>;  // keys and values need the same input
  { P::num_parts } -> std::convertible_to<Index>;
  { P::rotary_part } -> std::convertible_to<std::optional<Index>>;  // the part that a rotary position rotates
  P::set_ranks(config, dims);  // throws Error where type and configuration contradict each other
  { P::parts(dims)[0] } -> std::convertible_to<CachePart>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::remember_flops(dims) } -> std::convertible_to<Index>;  // a frame
  { P::expand_flops(dims) } -> std::convertible_to<Index>;    // a frame
} &&(!P::is_latent || AbsorbedCosts<P>);

/// Throws Error where a rank is configured for a policy that has none.
constexpr void require_no_rank(Index configured, const char* name) {
  require(configured == 0, name, ": ", configured, " configured for an attention that has none");
}
/// Returns Bias::yes if `has`.
constexpr Bias bias_if(bool has) { return has ? Bias::yes : Bias::no; }

/// Caches keys and values themselves: K = x W_K^T + b_K, V = x W_V^T + b_V.
struct FullRank {
  static constexpr bool is_latent = false;                ///< there is no absorbed path
  static constexpr bool one_input = false;                ///< keys and values may have different inputs
  static constexpr Index num_parts = 2;                   ///< matrices in the cache
  static constexpr std::optional<Index> rotary_part = 0;  ///< the keys

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims&) {
    require_no_rank(c.kv_lora_rank, "kv_lora_rank");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) { return {{{d.kv_dim()}, {d.kv_dim()}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return 2 * d.kv_dim() * (d.d_model + d.bias); }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * 2 * d.kv_dim() * d.d_model; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims&) { return 0; }

  /// Projects the input to keys and values. Allocates its parameters at construction only.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_k(d.d_model, d.kv_dim(), seed / "linear_k", bias_if(d.bias)),
          linear_v(d.d_model, d.kv_dim(), seed / "linear_v", bias_if(d.bias)) {}

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k(context, key_input), linear_v(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context&, const std::array<Tensor, 2>& memory) const {
      return {memory[0], memory[1]};
    }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_v.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k", self.linear_k);
      visit("linear_v", self.linear_v);
    }

    Linear<T> linear_k;  ///< from d_model to the keys of all heads
    Linear<T> linear_v;  ///< from d_model to the values of all heads
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns a latent rank from type and configuration. Throws Error if it exceeds `max`, at which a latent is lossless.
template <Index R>
constexpr Index resolve_rank(Index configured, const char* name, Index max, const char* max_name) {
  const Index rank = resolve<R>(configured, name);
  require(rank <= max, name, ": ", rank, " given, at most ", max_name, " = ", max,
          " expected (a larger latent holds nothing more)");
  return rank;
}

/// Holds what most latents say of themselves: their memory is the latents, and no rotary position may rotate it, since
/// a rotated key differs from frame to frame and is no function of the latent.
struct LatentPolicy {
  static constexpr bool is_latent = true;           ///< there is an absorbed path
  static constexpr bool latents_are_memory = true;  ///< `latents` returns parts of the memory unchanged
  static constexpr std::optional<Index> rotary_part = std::nullopt;  ///< no part may be rotated
};

/// Evaluates attention over latents without expanding them (DeepSeek-V2 2024, section 2.1.2), for a layer that says
/// which linear layers lead from its latents to the keys and to the values of a head, in this order:
///   static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
///   static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
/// q . (c B_K^T) = (q B_K) . c, so the queries absorb the expansion of the keys; probabilities sum over frames, so the
/// expansion of the values is applied once, to the output. A bias of the keys moves all scores of a query by the same
/// amount, which softmax ignores; a bias of the values is added once, since probabilities sum to 1.
template <class Layer>
class AbsorbingLayer {
 public:
  /// Returns queries (rows, num_heads * latent width) from queries (rows, num_heads * head_dim).
  template <class Context, class Tensor>
  Tensor absorb(Context& context, const Tensor& q) const {
    const auto steps = Layer::key_up(self());
    Tensor x = q;
    for (auto step = steps.rbegin(); step != steps.rend(); ++step)
      x = context.head_linear(x, (*step)->weight, nullptr, {heads_.num_heads, heads_.num_blocks, true});
    return x;
  }
  /// Returns the first and the last part of the memory, which are those of keys and of values, or one for both.
  template <class Context, class Tensor, std::size_t N>
  KeysAndValues<Tensor> latents(Context&, const std::array<Tensor, N>& memory) const {
    return {memory.front(), memory.back()};
  }
  /// Returns the output (rows, num_heads * head_dim) from that of attention over latents, (rows, num_heads * latent
  /// width).
  template <class Context, class Tensor>
  Tensor release(Context& context, const Tensor& out) const {
    return expand_heads(context, out, Layer::value_up(self()), heads_);
  }

 protected:
  /// `heads`: the query heads, and how many blocks of matrices they share.
  explicit AbsorbingLayer(const HeadShape& heads) : heads_(heads) {}

  /// Marks the expansions as weights that heads multiply by one at a time. Called once they are constructed.
  void use_by_heads() {
    for (auto* step : Layer::key_up(static_cast<Layer&>(*this))) used_by_heads(*step);
    for (auto* step : Layer::value_up(static_cast<Layer&>(*this))) used_by_heads(*step);
  }

  /// Applies the steps to every head, each with its block of the weights: (rows, heads * in) to (rows, heads * out).
  template <class Context, class Tensor, class Steps>
  static Tensor expand_heads(Context& context, Tensor x, const Steps& steps, const HeadShape& heads) {
    for (const auto* step : steps) x = context.head_linear(x, step->weight, step->bias_or_null(), heads);
    return x;
  }

  /// Returns the query heads, and how many blocks of matrices they share.
  const HeadShape& heads() const { return heads_; }

 private:
  const Layer& self() const { return static_cast<const Layer&>(*this); }

  HeadShape heads_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches one latent of R elements a frame, from which the keys and values of all heads are expanded:
/// c = x A^T + b_c, K = c B_K^T + b_K, V = c B_V^T + b_V (DeepSeek-V2 2024, equations 9 to 11, without the decoupled
/// rotary key).
template <Index R>
struct SharedLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.kv_lora_rank * (d.d_model + d.bias) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * d.d_model; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return 2 * d.kv_lora_rank * 2 * d.kv_dim(); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.kv_lora_rank; }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  /// Projects the input to the latent, and the latent to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {linear_k_up(context, memory[0]), linear_v_up(context, memory[0])};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Linear<T> linear_k_up;     ///< from the latent to keys
    Linear<T> linear_v_up;     ///< from the latent to values
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Normalises each row to mean 0 and variance 1, then scales and shifts each channel (Ba et al. 2016): (rows, channels)
/// to (rows, channels).
template <class T>
class LayerNorm : public Module<LayerNorm<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels) { return 2 * channels; }

  /// Makes the layer with its initial parameters. Allocates.
  explicit LayerNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.layer_norm(x, weight, bias, eps_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< scale (channels)
  Parameter<T> bias;    ///< shift (channels)

 private:
  double eps_;
};

/// Divides each row by the root of its mean square, then scales each channel (Zhang and Sennrich 2019): (rows,
/// channels) to (rows, channels).
template <class T>
class RmsNorm : public Module<RmsNorm<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels) { return channels; }

  /// Makes the layer with its initial parameters. Allocates.
  explicit RmsNorm(Index channels, double eps = 1e-6) : weight({channels}), eps_(eps) { weight.host().setOnes(); }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.rms_norm(x, weight, eps_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;  ///< scale (channels)

 private:
  double eps_;
};

/// Stands for no norm where one can be chosen.
template <class T>
class NoNorm : public Module<NoNorm<T>> {
 public:
  /// Returns 0.
  static constexpr Index parameter_count(Index) { return 0; }
  /// Makes nothing.
  explicit NoNorm(Index) {}
  /// Returns x.
  template <class Context, class Tensor>
  Tensor operator()(Context&, const Tensor& x) const {
    return x;
  }
  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto&, auto&&) {}
};

/// Normalises each channel to mean 0 and variance 1 over the rows of its sequence, then scales and shifts it: group
/// norm (Wu and He 2018) with a group for every channel. Needs whole sequences.
template <class T>
class SequenceNorm : public Module<SequenceNorm<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  explicit SequenceNorm(Index channels, double eps = 1e-5) : weight({channels}), bias({channels}), eps_(eps) {
    weight.host().setOnes();
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& sequences) const {
    return context.sequence_norm(x, weight, bias, eps_, sequences);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< scale (channels)
  Parameter<T> bias;    ///< shift (channels)

 private:
  double eps_;
};

/// Normalises each channel to mean 0 and variance 1, then scales and shifts it (Ioffe and Szegedy 2015): by the
/// statistics of the batch's rows in training, by the running statistics otherwise. Rows are packed, so padding cannot
/// enter the statistics.
template <class T>
class BatchNorm : public Module<BatchNorm<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  explicit BatchNorm(Index channels, double eps = 1e-5, double momentum = 0.1)
      : weight({channels}),
        bias({channels}),
        running_mean({channels}, Role::statistic),
        running_var({channels}, Role::statistic),
        eps_(eps) {
    weight.host().setOnes();
    running_var.host().setOnes();
    running_mean.momentum = running_var.momentum = momentum;
  }

  /// Returns the normalised rows.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    return context.batch_norm(x, BatchNormParameters<T>{weight, bias, running_mean, running_var, eps_});
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
    visit("running_mean", self.running_mean);
    visit("running_var", self.running_var);
  }

  Parameter<T> weight;        ///< scale (channels)
  Parameter<T> bias;          ///< shift (channels)
  Parameter<T> running_mean;  ///< running mean (channels), a statistic
  Parameter<T> running_var;   ///< running variance (channels), a statistic

 private:
  double eps_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches what DeepSeek-V2 does (2024, section 2.1): one latent of R elements with a norm on it, and one rotary key of
/// RopeDim elements a frame that all heads share: c = norm(x A^T), k_R = rotary(x W_KR^T + b_KR). Keys are
/// [c B_K^T, k_R], so no rotation stands between latent and key. If configured, the rotary key and the expansions have
/// biases.
template <Index R, Index RopeDim, template <class> class Norm = RmsNorm>
struct DecoupledLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(RopeDim == dyn || (RopeDim > 0 && RopeDim % 2 == 0),
                "laconic: a rotary key rotates pairs, so its width must be even, or `dyn`");
  static constexpr bool one_input = true;                 ///< keys and values need the same input
  static constexpr bool latents_are_memory = false;       ///< they are computed from the memory
  static constexpr Index num_parts = 2;                   ///< matrices in the cache
  static constexpr std::optional<Index> rotary_part = 1;  ///< the rotary key

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    d.qk_rope_head_dim = resolve<RopeDim>(c.qk_rope_head_dim, "qk_rope_head_dim");
    require(d.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim: ", d.qk_rope_head_dim, " given, an even number expected");
    d.rope_pairs = c.rope_pairs;
    require(d.rope_pairs.size() == 0 || 2 * d.rope_pairs.size() == d.qk_rope_head_dim,
            "rope_pairs: ", d.rope_pairs.size(), " given, half of qk_rope_head_dim = ", d.qk_rope_head_dim,
            " expected");
    for (const Index pair : d.rope_pairs)
      require(pair >= 0 && 2 * pair < d.head_dim, "rope_pairs: ", pair,
              " given, 0 to less than half of head_dim = ", d.head_dim, " expected");
    require_no_rank(c.v_lora_rank, "v_lora_rank");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.kv_lora_rank}, {d.qk_rope_head_dim, true}}};
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model + d.bias * d.qk_rope_head_dim +
           Norm<float>::parameter_count(d.kv_lora_rank) + 2 * d.kv_dim() * (d.kv_lora_rank + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.qk_rope_head_dim) * d.d_model;
  }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return SharedLatent<R>::expand_flops(d); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return SharedLatent<R>::absorb_flops(d); }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {1, d.kv_lora_rank + d.qk_rope_head_dim, d.kv_lora_rank};
  }

  /// Projects the input to the latent and to the rotary key, and the latent to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", Bias::no),
          kv_norm(d.kv_lora_rank),
          linear_k_rope(d.d_model, d.qk_rope_head_dim, seed / "linear_k_rope", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", bias_if(d.bias)),
          linear_v_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_up", bias_if(d.bias)) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {kv_norm(context, linear_kv_down(context, value_input)), linear_k_rope(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(linear_k_up(context, memory[0]), memory[1], this->heads().num_blocks, 1),
              linear_v_up(context, memory[0])};
    }
    /// Returns keys (rows, latent and rotary key) and values (rows, latent), one head of each.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> latents(Context& context, const std::array<Tensor, 2>& memory) const {
      return {context.concat(memory[0], memory[1]), memory[0]};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("kv_norm", self.kv_norm);
      visit("linear_k_rope", self.linear_k_rope);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Norm<T> kv_norm;           ///< the norm of the latent
    Linear<T> linear_k_rope;   ///< from d_model to the rotary key
    Linear<T> linear_k_up;     ///< from the latent to keys
    Linear<T> linear_v_up;     ///< from the latent to values
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches a latent of R elements for the keys and one of ValueRank elements for the values of every key-value head, and
/// expands all heads by the same matrices: K_i = c_K,i E_K^T with E_K (head_dim, R), V_i likewise. A ValueRank of 0 is
/// R. A low-rank expansion of a wider latent, V_i = c_i E_1^T E_2^T, would represent the same functions with more
/// parameters, because c_i E_1^T is linear in the input, too. Absorbed, it is multi-head attention whose heads have R
/// channels of keys and ValueRank of values.
template <Index R, Index ValueRank = 0>
struct HeadLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static_assert(ValueRank == dyn || ValueRank >= 0,
                "laconic: the rank of the values must be positive, 0 for that of the keys, or `dyn`");
  static constexpr bool one_input = false;  ///< keys and values may have different inputs
  static constexpr Index num_parts = 2;     ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<R>(c.kv_lora_rank, "kv_lora_rank", d.head_dim, "head_dim");
    const bool as_keys = ValueRank == 0 || (ValueRank == dyn && c.v_lora_rank == 0);
    require(ValueRank != 0 || c.v_lora_rank == 0 || c.v_lora_rank == d.kv_lora_rank, "v_lora_rank: ", c.v_lora_rank,
            " configured, but the type says that of the keys, ", d.kv_lora_rank);
    d.v_lora_rank =
        as_keys ? d.kv_lora_rank : resolve_rank<ValueRank>(c.v_lora_rank, "v_lora_rank", d.head_dim, "head_dim");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.num_kv_heads * d.kv_lora_rank}, {d.num_kv_heads * d.v_lora_rank}}};
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.v_lora_rank) * (d.num_kv_heads * (d.d_model + d.bias) + d.head_dim);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * d.num_kv_heads * (d.kv_lora_rank + d.v_lora_rank) * d.d_model;
  }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.kv_dim();
  }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.q_dim();
  }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) {
    return {d.num_kv_heads, d.kv_lora_rank, d.v_lora_rank};
  }

  /// Projects the inputs to the latents of every head, and these to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, 1}),
          linear_k_down(d.d_model, d.num_kv_heads * d.kv_lora_rank, seed / "linear_k_down", bias_if(d.bias)),
          linear_v_down(d.d_model, d.num_kv_heads * d.v_lora_rank, seed / "linear_v_down", bias_if(d.bias)),
          k_expand(d.kv_lora_rank, d.head_dim, seed / "k_expand", Bias::no),
          v_expand(d.v_lora_rank, d.head_dim, seed / "v_expand", Bias::no),
          num_kv_heads_(d.num_kv_heads) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k_down(context, key_input), linear_v_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      const HeadShape each{num_kv_heads_, 1};
      return {this->expand_heads(context, memory[0], key_up(*this), each),
              this->expand_heads(context, memory[1], value_up(*this), each)};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.k_expand}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.v_expand}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_v_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k_down", self.linear_k_down);
      visit("linear_v_down", self.linear_v_down);
      visit("k_expand", self.k_expand);
      visit("v_expand", self.v_expand);
    }

    Linear<T> linear_k_down;  ///< from d_model to the latents of all heads' keys
    Linear<T> linear_v_down;  ///< from d_model to the latents of all heads' values
    Linear<T> k_expand;       ///< from a head's latent to its keys
    Linear<T> v_expand;       ///< from a head's latent to its values

   private:
    Index num_kv_heads_;
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches the layer's input, from which keys and values are computed as `FullRank` does: a lossless latent of d_model
/// elements a frame, and one that all layers with the same input share (the cross-attention of a decoder).
struct InputLatent : LatentPolicy {
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { FullRank::set_ranks(c, d); }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.d_model}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return FullRank::parameter_count(d); }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims&) { return 0; }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) { return FullRank::remember_flops(d); }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) { return 2 * 2 * d.q_dim() * d.d_model; }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.d_model, d.d_model}; }

  /// Computes keys and values from the cached input.
  template <class T>
  class Layer : public FullRank::Layer<T>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : FullRank::Layer<T>(d, seed), AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context&, const Tensor&, const Tensor& value_input) const {
      return {value_input};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      return {this->linear_k(context, memory[0]), this->linear_v(context, memory[0])};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v}; }
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches a latent of RK elements for the keys and one of RV for the values: c_K = x A_K^T + b, K = c_K B_K^T, V
/// likewise (Palu, Chang et al. 2024). Keys and values may therefore come from different inputs.
template <Index RK, Index RV = RK>
struct SplitLatent : LatentPolicy {
  static_assert((RK == dyn || RK > 0) && (RV == dyn || RV > 0), "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool one_input = false;  ///< keys and values may have different inputs
  static constexpr Index num_parts = 2;     ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.kv_lora_rank = resolve_rank<RK>(c.kv_lora_rank, "kv_lora_rank", c.d_model, "d_model");
    d.v_lora_rank = resolve_rank<RV>(RV == dyn && c.v_lora_rank == 0 ? d.kv_lora_rank : c.v_lora_rank, "v_lora_rank",
                                     c.d_model, "d_model");
    require_no_rank(c.qk_rope_head_dim, "qk_rope_head_dim");
  }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 2> parts(const AttentionDims& d) {
    return {{{d.kv_lora_rank}, {d.v_lora_rank}}};
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return (d.kv_lora_rank + d.v_lora_rank) * (d.d_model + d.bias + d.kv_dim());
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.d_model;
  }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.kv_dim();
  }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * (d.kv_lora_rank + d.v_lora_rank) * d.q_dim();
  }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.v_lora_rank}; }

  /// Projects the inputs to their latents, and these to keys and values.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_k_down(d.d_model, d.kv_lora_rank, seed / "linear_k_down", bias_if(d.bias)),
          linear_v_down(d.d_model, d.v_lora_rank, seed / "linear_v_down", bias_if(d.bias)),
          linear_k_up(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_up", Bias::no),
          linear_v_up(d.v_lora_rank, d.kv_dim(), seed / "linear_v_up", Bias::no) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 2> remember(Context& context, const Tensor& key_input, const Tensor& value_input) const {
      return {linear_k_down(context, key_input), linear_v_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 2>& memory) const {
      return {linear_k_up(context, memory[0]), linear_v_up(context, memory[1])};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_up}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_up}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_v_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_k_down", self.linear_k_down);
      visit("linear_v_down", self.linear_v_down);
      visit("linear_k_up", self.linear_k_up);
      visit("linear_v_up", self.linear_v_up);
    }

    Linear<T> linear_k_down;  ///< from d_model to the latent of keys
    Linear<T> linear_v_down;  ///< from d_model to the latent of values
    Linear<T> linear_k_up;    ///< from the latent to keys
    Linear<T> linear_v_up;    ///< from the latent to values
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Caches one latent for all heads, as `SharedLatent` does, and expands it in two steps for each:
/// K_i = (c W_KA,i + b) W_KB,i + b, V likewise. It represents the functions of `SharedLatent`; training takes another
/// way to them.
template <Index R>
struct TwoStageLatent : LatentPolicy {
  static_assert(R == dyn || R > 0, "laconic: the latent rank must be positive, or `dyn`");
  static constexpr bool one_input = true;  ///< keys and values need the same input
  static constexpr Index num_parts = 1;    ///< matrices in the cache

  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) { SharedLatent<R>::set_ranks(c, d); }
  /// Returns the matrices in the cache.
  static constexpr std::array<CachePart, 1> parts(const AttentionDims& d) { return {{{d.kv_lora_rank}}}; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return SharedLatent<R>::parameter_count(d) + 2 * d.kv_dim() * (d.head_dim + d.bias);
  }
  /// Returns the operations that `remember` takes a frame.
  static constexpr Index remember_flops(const AttentionDims& d) { return SharedLatent<R>::remember_flops(d); }
  /// Returns the operations that `expand` takes a frame.
  static constexpr Index expand_flops(const AttentionDims& d) {
    return 2 * 2 * d.kv_dim() * (d.kv_lora_rank + d.head_dim);
  }
  /// Returns the operations that `absorb` and `release` take a query.
  static constexpr Index absorb_flops(const AttentionDims& d) {
    return 2 * 2 * d.q_dim() * (d.kv_lora_rank + d.head_dim);
  }
  /// Returns the shape of attention over the latents.
  static constexpr AbsorbedShape absorbed(const AttentionDims& d) { return {1, d.kv_lora_rank, d.kv_lora_rank}; }

  /// Projects the input to the latent, and the latent to keys and values in two steps.
  template <class T>
  class Layer : public Module<Layer<T>>, public AbsorbingLayer<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : AbsorbingLayer<Layer>({d.num_heads, d.num_kv_heads}),
          linear_kv_down(d.d_model, d.kv_lora_rank, seed / "linear_kv_down", bias_if(d.bias)),
          linear_k_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_k_a", bias_if(d.bias)),
          linear_k_b(d.head_dim, d.kv_dim(), seed / "linear_k_b", bias_if(d.bias)),
          linear_v_a(d.kv_lora_rank, d.kv_dim(), seed / "linear_v_a", bias_if(d.bias)),
          linear_v_b(d.head_dim, d.kv_dim(), seed / "linear_v_b", bias_if(d.bias)) {
      this->use_by_heads();
    }

    /// Returns what is cached of the inputs (rows, d_model).
    template <class Context, class Tensor>
    std::array<Tensor, 1> remember(Context& context, const Tensor&, const Tensor& value_input) const {
      return {linear_kv_down(context, value_input)};
    }
    /// Returns the keys and values of all key-value heads.
    template <class Context, class Tensor>
    KeysAndValues<Tensor> expand(Context& context, const std::array<Tensor, 1>& memory) const {
      const HeadShape each{this->heads().num_blocks, this->heads().num_blocks};
      return {this->expand_heads(context, linear_k_a(context, memory[0]), std::array{&linear_k_b}, each),
              this->expand_heads(context, linear_v_a(context, memory[0]), std::array{&linear_v_b}, each)};
    }
    /// Lists the linear layers from the latent to the keys (see AbsorbingLayer).
    static auto key_up(auto& self) { return std::array{&self.linear_k_a, &self.linear_k_b}; }
    /// Lists the linear layers from the latent to the values (see AbsorbingLayer).
    static auto value_up(auto& self) { return std::array{&self.linear_v_a, &self.linear_v_b}; }
    /// Returns the first weight that the value input is multiplied by.
    const Parameter<T>& value_weight() const { return linear_kv_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_kv_down", self.linear_kv_down);
      visit("linear_k_a", self.linear_k_a);
      visit("linear_k_b", self.linear_k_b);
      visit("linear_v_a", self.linear_v_a);
      visit("linear_v_b", self.linear_v_b);
    }

    Linear<T> linear_kv_down;  ///< from d_model to the latent
    Linear<T> linear_k_a;      ///< from the latent to all heads
    Linear<T> linear_k_b;      ///< from a head to its keys; the weight stacks (head_dim, head_dim) of every head
    Linear<T> linear_v_a;      ///< from the latent to all heads
    Linear<T> linear_v_b;      ///< from a head to its values; the weight stacks (head_dim, head_dim) of every head
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a number of encoder frames, to tell it from other numbers: `cache_bytes(config, frames(1000))`.
struct Frames {
  Index count;  ///< encoder frames
};
/// Returns `count` as a number of frames.
constexpr Frames frames(Index count) { return {count}; }

/// Chooses between the two exact evaluation orders of attention over a latent: expand keys and values of every head, or
/// absorb the expansion into queries and output.
enum class AttentionPath {
  by_cost,   ///< the order with fewer operations for this mask and cache; never depends on the batch
  expanded,  ///< keys and values are expanded
  absorbed   ///< queries and output absorb the expansion
};

/// Computes what one attention layer costs, as constant expressions. `Policy` is the `Attention` that derives from it.
template <class Policy>
struct AttentionCost {
  /// Returns the bytes that one layer caches for `n` frames. Linear attention has a state of fixed size instead, which
  /// is never stored rounded. Throws Error where type and configuration contradict each other.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    const AttentionDims d = Policy::dims(config);
    if constexpr (Policy::Score::is_linear) return state_size(d) * 4;
    Index bytes = 0;
    for (const CachePart& part : Policy::KeyValue::parts(d))
      bytes += cache_row_bytes(part.positional ? Storage::full : storage, part.width);
    return n.count * bytes;
  }
  /// Returns the trained parameters of one layer. Throws Error where type and configuration contradict each other.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    const AttentionDims d = Policy::dims(config);
    return Policy::Query::parameter_count(d) + Policy::KeyValue::parameter_count(d) +
           Policy::Position::parameter_count(d) + d.d_model * (d.q_dim() + d.bias);
  }
  /// Returns the floating-point operations (a multiply-add counts two) of one layer over one whole sequence of `n`
  /// frames, on the path that it takes. Throws Error where type and configuration contradict each other.
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    const AttentionDims d = Policy::dims(config);
    const Index t = n.count;
    const Index projections =
        t * (Policy::Query::flops(d) + Policy::KeyValue::remember_flops(d) + 2 * d.q_dim() * d.d_model) +
        Policy::Position::flops(d, t);
    if constexpr (Policy::Score::is_linear)
      return projections + 2 * t * (d.num_heads + d.num_kv_heads) * d.head_dim * (d.head_dim + 1);
    else
      return projections + core_flops(d, masked_work(mask, t, t), absorbing_is_cheaper(d, whole_work(mask)));
  }

  /// Returns the floating-point operations of one layer over a stream's chunk of `chunk` frames after `kept` cached
  /// ones, on the path that it takes, without the term of position. Throws Error where type and configuration
  /// contradict each other.
  static constexpr Index stream_flops(const AttentionConfig& config, Index chunk, Index kept) {
    const AttentionDims d = Policy::dims(config);
    const Index projections =
        chunk * (Policy::Query::flops(d) + Policy::KeyValue::remember_flops(d) + 2 * d.q_dim() * d.d_model);
    if constexpr (Policy::Score::is_linear) {
      return projections + 2 * chunk * (d.num_heads + d.num_kv_heads) * d.head_dim * (d.head_dim + 1);
    } else {
      const Work work = stream_work(chunk, kept);
      return projections + core_flops(d, work, absorbing_is_cheaper(d, work));
    }
  }

  /// Counts what is to be attended.
  struct Work {
    Index q_rows;   ///< rows of queries
    Index kv_rows;  ///< rows of keys
    Index pairs;    ///< pairs of query and key that the mask shows
  };
  /// Returns the operations after the projections of x on the expanded path. The term of position, which is the same on
  /// both paths, is left out.
  static constexpr Index expanded_flops(const AttentionDims& d, const Work& work) {
    return work.kv_rows * Policy::KeyValue::expand_flops(d) +
           2 * d.num_heads * work.pairs * (2 * d.head_dim + d.qk_rope_head_dim);
  }
  /// Returns the operations after the projections of x on the absorbed path, without the term of position. Latents are
  /// read once for all heads, but their rows are wider than a head's.
  static constexpr Index absorbed_flops(const AttentionDims& d, const Work& work) {
    static_assert(Policy::KeyValue::is_latent, "laconic: only attention over a latent has an absorbed path");
    const AbsorbedShape a = Policy::KeyValue::absorbed(d);
    return work.q_rows * Policy::KeyValue::absorb_flops(d) +
           2 * d.num_heads * work.pairs * (a.key_width + a.value_width);
  }
  /// Returns whether the absorbed path has fewer operations than the expanded one.
  static constexpr bool absorbing_is_cheaper(const AttentionDims& d, const Work& work) {
    if constexpr (Policy::KeyValue::is_latent) return absorbed_flops(d, work) < expanded_flops(d, work);
    return false;
  }
  /// Returns the work that decides the path of whole sequences: one chunk under a mask of chunks with limited left
  /// context, and a long sequence otherwise, since short ones cost little on either path.
  static constexpr Work whole_work(const Mask& mask) {
    constexpr Index many = Index{1} << 16;
    if (mask.chunk == Mask::unlimited || mask.left_context == Mask::unlimited) return {many, many, many * many};
    return {mask.chunk, mask.chunk, mask.chunk * (mask.chunk + mask.left_context)};
  }
  /// Returns the work of a stream's chunk after `kept` cached frames: either path expands or reads all of them again.
  static constexpr Work stream_work(Index chunk, Index kept) { return {chunk, kept + chunk, chunk * (kept + chunk)}; }
  /// Returns the work of one sequence of which `queries` rows are new and `keys` rows can be seen, the last of them the
  /// new ones.
  static constexpr Work masked_work(const Mask& mask, Index queries, Index keys) {
    return {queries, keys, visible_pairs(mask, queries, keys)};
  }
  /// Returns the pairs of query and key that the mask shows in one sequence.
  static constexpr Index visible_pairs(const Mask& mask, Index queries, Index keys) {
    if (mask.chunk == Mask::unlimited) return queries * keys;
    require(mask.chunk > 0, "mask: chunk ", mask.chunk, " given, at least 1 expected");
    Index pairs = 0;
    for (Index i = 0; i < queries; i += mask.chunk) {
      const auto seen = mask.keys(i, keys - queries, keys);
      pairs += std::min(mask.chunk, queries - i) * (seen.end - seen.begin);
    }
    return pairs;
  }

  /// Returns the elements of the state of linear attention.
  static constexpr Index state_size(const AttentionDims& d) { return d.num_kv_heads * d.head_dim * (d.head_dim + 1); }

 private:
  static constexpr Index core_flops(const AttentionDims& d, const Work& work, bool absorb) {
    if constexpr (Policy::KeyValue::is_latent) {
      if (absorb) return absorbed_flops(d, work);
    }
    return expanded_flops(d, work);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how many heads there are.
template <class P>
concept HeadsPolicy = requires {
  { P::num_heads } -> std::convertible_to<Index>;     // query heads, or `dyn`
  { P::num_kv_heads } -> std::convertible_to<Index>;  // key-value heads, or `dyn`
};

/// Groups H query heads over G key-value heads: query head h reads key-value head h / (H / G). G = H is multi-head
/// attention (Vaswani et al. 2017), G = 1 multi-query (Shazeer 2019), anything between grouped-query (Ainslie et al.
/// 2023).
template <Index H, Index G = H>
struct Heads {
  static_assert(H == dyn || H > 0, "laconic: the number of heads must be positive, or `dyn`");
  static_assert(G == dyn || G > 0, "laconic: the number of key-value heads must be positive, or `dyn`");
  static_assert(H == dyn || G == dyn || H % (G > 0 ? G : 1) == 0,
                "laconic: the number of key-value heads must divide the number of query heads");
  static constexpr Index num_heads = H;     ///< query heads, or `dyn`
  static constexpr Index num_kv_heads = G;  ///< key-value heads, or `dyn`
};

}  // namespace LACONIC_ABI
}  // namespace laconic

// The contract between models and backends. It is closed: models, streams, training, conversion and evaluation call the
// primitives below and nothing else of a backend. docs/backend.md shows how to add a primitive or a backend.
//
// Conventions of all primitives:
// - A tensor is a matrix (rows, channels) of packed rows. `Sequences` says which rows belong to which sequence.
// - A primitive may overwrite an argument that it takes by value if no other tensor shares its memory (`unique`).
// - A primitive throws `Error` for sizes that do not fit. The message says what was given and what was expected.
// - Memory comes from the pool of the context. A repeated call with the same sizes allocates nothing from the system,
//   except where a primitive says "Allocates".
// - The result for a sequence depends on that sequence only, not on the rest of the batch or the number of threads.
// - K is the width of a query or key head, V the width of a value head. Positions are in frames.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// Declares a model of one parameter, with which the concepts check that a context prepares models.
template <class T>
struct OneParameter : Module<OneParameter<T>> {
  Parameter<T> weight{};  ///< the only parameter
  /// Calls visit(name, parameter) for the only parameter.
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }
};

}  // namespace detail

/// Requires what a model needs to run over whole sequences.
template <class C>
concept Context = std::default_initializable<typename C::Tensor> && std::copyable<typename C::Tensor> &&
    requires(C& c, const typename C::Tensor& x, typename C::Tensor& out, const Matrix<typename C::Scalar>& matrix,
             detail::OneParameter<typename C::Scalar>& model, const Parameter<typename C::Scalar>& weight,
             const Parameter<typename C::Scalar>* bias, const Sequences& sequences, const AttendShape& attend,
             const Conv2dShape& conv2d, const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative, const HeadShape& heads,
             const DepthwiseShape& depthwise, RotaryPairs pairs, const BatchNormParameters<typename C::Scalar>& norm,
             double number, Index count, Storage storage, std::span<Index> columns, const RowPositions& positions,
             const IndexList& pair_list, std::span<typename C::Scalar> values, std::span<const int> tokens,
             const CrossEntropyShape& entropy, const RotaryRates& rates) {
  // -- tensors ------------------------------------------------------------------------------------------------------
  // rows: the number of rows of a tensor.
  { x.rows() } -> std::convertible_to<Index>;
  // cols: the number of columns of a tensor.
  { x.cols() } -> std::convertible_to<Index>;
  // empty: whether a tensor has no value.
  { x.empty() } -> std::same_as<bool>;
  // training: whether primitives compute their training form, in which dropout drops values and batch_norm uses the
  // statistics of the batch and updates the running ones.
  { c.training } -> std::convertible_to<bool>;
  // computes_on_host: whether primitives accept parameters that are on the host. If not, models are prepared first.
  { C::computes_on_host } -> std::convertible_to<bool>;
  // threads: the number of host threads that the context uses.
  { c.threads() } -> std::convertible_to<int>;
  // arena: host memory for the offsets of sequences.
  { c.arena() } -> std::same_as<Arena&>;
  // input: returns rows of the host as a tensor. A borrowed matrix must outlive everything that is computed from it; a
  // temporary matrix is copied. Given a tensor, returns it unchanged.
  { c.input(matrix) } -> std::same_as<typename C::Tensor>;
  { c.input(Matrix<typename C::Scalar>()) } -> std::same_as<typename C::Tensor>;
  { c.input(x) } -> std::same_as<typename C::Tensor>;
  // output: returns the values as a matrix of the host. Waits until they are computed. Allocates.
  { c.output(x) } -> std::same_as<Matrix<typename C::Scalar>>;
  // read: writes the values, row by row, to memory of the host. Waits until they are computed. Throws `Error` unless
  // there is room for exactly all of them.
  {c.read(x, values)};
  // number: returns the value of a (1, 1) tensor. Throws `Error` for any other shape.
  { c.number(x) } -> std::same_as<double>;
  // argmax: writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN. Throws
  // `Error` unless there is room for one column per row and x has a column.
  {c.argmax(x, columns)};
  // fill: returns a tensor (rows, cols) whose elements all have this value. It has no derivative.
  { c.fill(count, count, number) } -> std::same_as<typename C::Tensor>;
  // sinusoids: returns (rows, width) of the positions (in frames) of rows: sin(position * r_m) in column 2 m and
  // cos(position * r_m) in column 2 m + 1, with r_m = 10000^(-2 m / width) (Vaswani et al. 2017, section 3.5). Angle,
  // sine and cosine are computed in double. It has no derivative.
  { c.sinusoids(positions, count) } -> std::same_as<typename C::Tensor>;
  // rotary_table: returns the table (rows, width) that `rotate` reads: cos(position * r_m) of width / 2 pairs, then
  // their sines, with r_m = rates.rate(m, rate_width), which is 10000^(-2 m / rate_width) by default (Su et al. 2021,
  // section 3.2.2), both times rates.amplitude(). Pair i has m = pairs[i], or m = i if no pairs are given. Angle, sine
  // and cosine are computed in double. It has no derivative. Throws `Error` if width is odd, if rate_width is less than
  // width, or if there are pairs but not width / 2 of them.
  { c.rotary_table(positions, count, count, pair_list, rates) } -> std::same_as<typename C::Tensor>;

  // -- parameters ---------------------------------------------------------------------------------------------------
  // prepare: moves the parameters of a model into the form that this context runs fastest. `storage` says how the
  // weights that products read are rounded (not at all by default). Until `fetch`, the model can only be run, and only
  // by this kind of context; copies of it share the weights. Allocates. Throws `Error` if a parameter is resident
  // already, or if parameters that are not of float are to be rounded.
  {c.prepare(model)};
  {c.prepare(model, storage)};
  // fetch: moves the parameters of a model that are resident in this context back to the host. Rounded values stay
  // rounded. Allocates.
  {c.fetch(model)};

  // -- products -----------------------------------------------------------------------------------------------------
  // linear: returns x W^T + b, then the activation if one is given. x (rows, in), weight (out, in), bias (out) or null,
  // result (rows, out).
  { c.linear(x, weight, bias, Activation::silu) } -> std::same_as<typename C::Tensor>;
  // head_linear: returns y_h = x_h W_h^T + b_h for every head h, each with its own matrix or one that a block of heads
  // shares (see HeadShape). x (rows, num_heads * in), weight (num_blocks * out, in), bias (num_blocks * out) or null,
  // result (rows, num_heads * out). Transposed, it returns y_h = x_h W_h without a bias, from (rows, num_heads * out)
  // to (rows, num_heads * in).
  { c.head_linear(x, weight, bias, heads) } -> std::same_as<typename C::Tensor>;
  // embed: returns row ids[r] of a weight (vocabulary, channels) in row r, (ids, channels). The weight may also be that
  // of a linear layer. Throws `Error` for an id that the weight has no row of.
  { c.embed(tokens, weight) } -> std::same_as<typename C::Tensor>;

  // -- elementwise --------------------------------------------------------------------------------------------------
  // activation: returns ReLU, SiLU or a GELU of each element (see Activation).
  { c.activation(Activation::silu, x) } -> std::same_as<typename C::Tensor>;
  // glu: returns a * sigmoid(b) (rows, channels) of x = [a, b] (rows, 2 * channels) (Dauphin et al. 2017).
  { c.glu(x) } -> std::same_as<typename C::Tensor>;
  // add: returns x + number * y, where x and y have the same shape.
  { c.add(x, x, number) } -> std::same_as<typename C::Tensor>;
  // add_row: returns x (rows, channels) with a parameter (channels) added to every row.
  { c.add_row(x, weight) } -> std::same_as<typename C::Tensor>;
  // multiply: returns the elementwise product of x and y, which have the same shape.
  { c.multiply(x, x) } -> std::same_as<typename C::Tensor>;
  // scale: returns number * x.
  { c.scale(x, number) } -> std::same_as<typename C::Tensor>;
  // mix: returns sigmoid(gate_n) x + (1 - sigmoid(gate_n)) y for the rows of each sequence n. x and y (rows, channels),
  // gate (sequences, 1).
  { c.mix(x, x, x, sequences) } -> std::same_as<typename C::Tensor>;
  // dropout: in training, zeroes each element with probability `number` and scales the others so that the expectation
  // is x (see DropoutMask). Otherwise returns x.
  { c.dropout(x, number) } -> std::same_as<typename C::Tensor>;
  // concat: returns [a_h, b_h] for every head h. a (rows, num_heads * A); b (rows, num_heads * B), or (rows, B) shared
  // by all heads if its number of heads is 1; result (rows, num_heads * (A + B)).
  { c.concat(x, x, count, count) } -> std::same_as<typename C::Tensor>;
  // columns: returns the columns first .. first + count - 1 of x.
  { c.columns(x, count, count) } -> std::same_as<typename C::Tensor>;

  // -- norms --------------------------------------------------------------------------------------------------------
  // layer_norm: returns (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of each row (Ba
  // et al. 2016). weight and bias (channels); eps is `number`, as in all norms.
  { c.layer_norm(x, weight, weight, number) } -> std::same_as<typename C::Tensor>;
  // rms_norm: returns x / sqrt(mean(x^2) + eps) * weight, with the mean over each row (Zhang and Sennrich 2019).
  { c.rms_norm(x, weight, number) } -> std::same_as<typename C::Tensor>;
  // batch_norm: returns (x - mean) / sqrt(variance + eps) * weight + bias, with the running mean and variance of each
  // channel (Ioffe and Szegedy 2015). All parameters (channels).
  { c.batch_norm(x, norm) } -> std::same_as<typename C::Tensor>;
  // sequence_norm: returns (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and variance of each
  // channel over the rows of its sequence. weight and bias (channels).
  { c.sequence_norm(x, weight, weight, number, sequences) } -> std::same_as<typename C::Tensor>;

  // -- convolutions -------------------------------------------------------------------------------------------------
  // conv1d: returns a convolution over time without padding (see Conv1dShape). x (rows of the first sequences,
  // in_channels), weight (out, in, kernel), bias (out) or null, result (rows of the second sequences, out_channels).
  // Each second length must be shape.out_length of the first.
  { c.conv1d(x, weight, bias, conv1d, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  // conv2d: returns a 3 x 3 convolution over (time, frequency) without padding (see Conv2dShape), then the activation
  // if one is given. x (rows of the first sequences, in_cols()), weight (out, in, 3, 3), bias (out), result (rows of
  // the second sequences, out_cols()). Each second length must be shape.out_length of the first.
  { c.conv2d(x, weight, weight, conv2d, sequences, sequences, Activation::relu) } -> std::same_as<typename C::Tensor>;
  // depthwise_conv: returns y[t, c] = bias[c] + sum_k weight[c, k] x[past + t + k - left, c] within each sequence, with
  // zeros outside it and after the chunk of t (see DepthwiseShape). x (rows, channels), weight (channels, 1, kernel),
  // bias (channels) or null; the result has `past` rows less in each sequence.
  { c.depthwise_conv(x, weight, bias, sequences, depthwise) } -> std::same_as<typename C::Tensor>;

  // -- attention ----------------------------------------------------------------------------------------------------
  // attend: returns softmax attention under a mask (Vaswani et al. 2017), out_i = sum_j softmax_j(scale * q_i . k_j)
  // v_j for every head, with relative positions in the scores if there is a term (Dai et al. 2019; see AttendShape and
  // RelativeTerm). q (rows, num_heads * K), k (rows, num_kv_heads * K), v (rows, num_kv_heads * V), result (rows,
  // num_heads * V). The first sequences are those of the queries and the second those of the keys. A sequence may have
  // more keys than queries: its last query is at the position of its last key. A query that sees no key gives zeros.
  // Memory grows linearly with the rows. In training, `number` is the dropout probability of the attention weights.
  { c.attend(x, x, x, attend, sequences, sequences, relative, number) } -> std::same_as<typename C::Tensor>;
  // linear_attend: returns linear attention with the feature map phi(x) = elu(x) + 1 (Katharopoulos et al. 2020,
  // equation 5), out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j phi(q_i) . phi(k_j) + 1e-6). Shapes are those of
  // `attend`. The scale is not used. Throws `Error` if the mask limits the left context.
  { c.linear_attend(x, x, x, attend, sequences) } -> std::same_as<typename C::Tensor>;
  // rotate: returns x with each pair of channels of each head rotated by the angle of its row, the rotary position
  // embedding (Su et al. 2021; see RotaryPairs). x (rows, heads * width), table (rows, width): width / 2 cosines, then
  // as many sines.
  { c.rotate(x, x, pairs) } -> std::same_as<typename C::Tensor>;

  // -- losses -------------------------------------------------------------------------------------------------------
  // log_softmax: returns x - logsumexp(x) for each row.
  { c.log_softmax(x) } -> std::same_as<typename C::Tensor>;
  // ctc: returns the CTC losses (sequences, 1), in nats, of unnormalised logits (rows, classes) with this blank (Graves
  // et al. 2006). A loss is +infinity if the labels do not fit into the frames. Throws `Error` for a label that is the
  // blank or no class.
  { c.ctc(x, sequences, labels, 0) } -> std::same_as<typename C::Tensor>;
  // cross_entropy: returns -log softmax(x)[target] of each row, in nats, (rows, 1), of unnormalised logits (rows,
  // classes). With label smoothing s, the target distribution is 1 - s on the target plus s / classes on every class.
  // An ignored target gives 0. Throws `Error` for any other target that is no class.
  { c.cross_entropy(x, tokens, entropy) } -> std::same_as<typename C::Tensor>;
  // mean_finite: returns the mean (1, 1) of all elements, where infinite ones count as 0, so that one target without a
  // path does not spoil a batch. NaN stays NaN.
  { c.mean_finite(x) } -> std::same_as<typename C::Tensor>;
};

/// Requires what streams of encoders and decoders need in addition to `Context`: caches of the rows of earlier calls,
/// and attention over them.
template <class C>
concept StreamingContext = Context<C> && std::movable<typename C::Cache> && std::movable<typename C::CachedRows> &&
    requires(C& c, const C& like, typename C::Tensor& out, const typename C::Tensor& x, typename C::Cache& cache,
             const typename C::Cache& kept, const typename C::CachedRows& rows,
             const Parameter<typename C::Scalar>& weight, std::span<const Index> slots, const Sequences& sequences,
             const AttendShape& attend, const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative,
             Index count, Storage storage, std::span<const RowRange> ranges) {
  // settle: prepares passes that must not allocate, after the largest ones have run in this context, or in another one:
  // doubles its unused memory of every size, or brings it to that of the other.
  {c.settle(c)};
  // settings: what another context like this one is constructed from: the threads of the host, or a device.
  {C(like.settings())};
  // replayed: returns pass(), a value or nothing. A pass that runs the same primitives on the same shapes again and
  // again, such as that of a push of streams, costs the host less so: a device may put the work off until the pass ends
  // or the host reads a result, and then do it as one, as an earlier pass did. Results are the same bits. If the pass
  // throws, all that it had run before is done. Views of caches that it makes are not used after it.
  {
    c.replayed([] { return true; })
    } -> std::same_as<bool>;
  {c.replayed([] {})};
  // make: returns a tensor (rows, cols) with unspecified values.
  { c.make(count, count) } -> std::same_as<typename C::Tensor>;
  // copy_rows: copies ranges of rows of x to another tensor, or to x itself. There, the two places of one range may
  // overlap; what one range writes, no other may read. No two ranges may write the same row. Throws `Error` for rows
  // that either tensor does not have.
  {c.copy_rows(x, out, ranges)};

  // -- caches -------------------------------------------------------------------------------------------------------
  // make_cache: returns a cache of `slots` slots, each with room for the last `capacity` rows of `width` values, stored
  // as `storage` says. Allocates; it is the only primitive of caches that does.
  { c.make_cache(count, count, count, storage) } -> std::same_as<typename C::Cache>;
  // slots: the number of slots of a cache.
  { kept.slots() } -> std::convertible_to<Index>;
  // width: the values of a cached row.
  { kept.width() } -> std::convertible_to<Index>;
  // bytes: the bytes held for the rows of all slots.
  { kept.bytes() } -> std::convertible_to<Index>;
  // count: the rows that a slot holds.
  { kept.count(count) } -> std::convertible_to<Index>;
  // clear: empties a slot.
  {c.clear(cache, count)};
  // fill_zeros: fills a slot with rows of zeros.
  {c.fill_zeros(cache, count)};
  // fork: copies the first slot to the second.
  {c.fork(cache, count, count)};
  // append: appends the rows of sequence n to slots[n]. The oldest rows beyond the capacity are dropped.
  {c.append(cache, slots, x, sequences)};
  // with_cached: returns a view of the rows in slots[n], followed by the rows of x of sequence n, for every n. It
  // copies nothing, so cache, slots and x must outlive it.
  { c.with_cached(kept, slots, x, sequences) } -> std::same_as<typename C::CachedRows>;
  // cached_lengths: returns the sequences of such a view. The length of each counts its cached and its new rows.
  { c.cached_lengths(rows, sequences) } -> std::same_as<Sequences>;
  // gathered: returns such a view copied into one tensor. The first sequences are those of the new rows, the second the
  // view's cached_lengths.
  { c.gathered(rows, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  // extend: returns the gathered rows of with_cached and their sequences, then appends the rows of x to the cache.
  { c.extend(cache, slots, x, sequences).rows } -> std::convertible_to<typename C::Tensor>;
  { c.extend(cache, slots, x, sequences).sequences } -> std::convertible_to<Sequences>;
  // update: calls change(rows) with the one row that each slot holds (slots, width), and stores the changed rows.
  {c.update(cache, slots, [](typename C::Tensor&) {})};

  // -- attention over cached rows -----------------------------------------------------------------------------------
  // attend: computes `attend` of Context with keys and values that are read in place from a cache. The second sequences
  // count cached and new rows.
  { c.attend(x, rows, rows, attend, sequences, sequences, relative) } -> std::same_as<typename C::Tensor>;
  // linear_attend: computes `linear_attend` of Context with a state in `out`: on entry the sums over earlier rows,
  // (sequences, num_kv_heads * K * (V + 1)); on return the sums that include these rows. The rows begin a chunk.
  { c.linear_attend(x, x, x, attend, sequences, &out) } -> std::same_as<typename C::Tensor>;
  // prepare_table: returns a projected table of relative positions in the layout that `attend` reads fastest
  // (RelativeTerm::packed), for `count` heads.
  { c.prepare_table(x, count) } -> std::same_as<typename C::Tensor>;
  // keeps: whether `kept_for` may keep what is derived from this weight from call to call, which holds if the weight
  // cannot change.
  { c.keeps(weight) } -> std::convertible_to<bool>;
  // kept_for: returns make(n) for some n >= `count`, kept from an earlier call if there is one. make(n) is a tensor
  // that is derived from the weight and n and serves smaller n, too. The context keeps it as long as the weight exists.
  {
    c.kept_for(weight, count, [](Index) { return typename C::Tensor(); })
    } -> std::same_as<typename C::Tensor>;
};

/// Names what a context is constructed from: the number of threads of the host, or a device.
template <class C>
using SettingsOf = decltype(std::declval<const C&>().settings());

/// Requires the derivatives that `attend_backward` returns: by queries (dq), keys (dk), values (dv), the table of
/// positions (dtable), and the queries that meet the table if they are separate ones (dposition_q).
template <class D, class Tensor>
concept AttendDerivativeOf = requires(D d) {
  { d.dq } -> std::convertible_to<Tensor>;
  { d.dk } -> std::convertible_to<Tensor>;
  { d.dv } -> std::convertible_to<Tensor>;
  { d.dtable } -> std::convertible_to<Tensor>;
  { d.dposition_q } -> std::convertible_to<Tensor>;
};

/// Requires what training needs in addition to `Context`: the derivative of every primitive, the training form of
/// primitives that compute something else or keep a value for the derivative, and the updates of parameters. `Autodiff`
/// records on it.
///
/// Each `*_backward` takes the derivative of the loss by the result first, then the arguments of the primitive. Where
/// its last argument is a bool (needs_dx), it returns the derivative by x, or an empty tensor if that is false. It adds
/// the derivatives by trainable parameters to their gradients.
template <class C>
concept TrainingContext = Context<C> &&
    requires(C& c, typename C::Tensor& out, const typename C::Tensor& x,
             detail::OneParameter<typename C::Scalar>& model, const Parameter<typename C::Scalar>& weight,
             Parameter<typename C::Scalar>& target, const Parameter<typename C::Scalar>* bias,
             const Sequences& sequences, const AttendShape& attend, const Conv2dShape& conv2d,
             const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative,
             const BatchNormParameters<typename C::Scalar>& norm, const DropoutMask& mask, double number, Index count,
             const HeadShape& heads, const DepthwiseShape& depthwise, RotaryPairs pairs, std::span<const int> tokens,
             const CrossEntropyShape& entropy, std::span<const Parameter<typename C::Scalar>* const> parameters,
             std::span<const AdamWUpdate<typename C::Tensor, typename C::Scalar>> updates, const AdamWStep& step,
             std::span<typename C::Scalar> values) {
  // -- parameters ---------------------------------------------------------------------------------------------------
  // prepare_training: moves the parameters of a model, with their gradients, into the form that this context trains. A
  // context that computes on the host also trains parameters on the host. Allocates.
  {c.prepare_training(model)};
  // gradient_norm: returns the root of the sum of squares of all gradients of these parameters. A parameter without a
  // gradient adds nothing.
  { c.gradient_norm(parameters) } -> std::same_as<double>;
  // clear_gradients: zeroes the gradients of these parameters.
  {c.clear_gradients(parameters)};
  // take_gradients: copies the gradients of these parameters, one after the other, to the host and zeroes them. One
  // that there is not yet counts as zeros. Throws `Error` unless there are as many values as elements.
  {c.take_gradients(parameters, values)};
  // put_gradients: the inverse of take_gradients. Zeros make no gradient where there is none, and a frozen parameter
  // gets none.
  {c.put_gradients(parameters, std::span<const typename C::Scalar>(values))};
  // adamw: updates each trainable parameter that has a gradient by one step of AdamW (Loshchilov and Hutter 2019,
  // algorithm 2), then zeroes the gradient. A statistic gets its accumulated update added instead. Moments are made in
  // the first step of a parameter.
  {c.adamw(updates, step)};
  // copy_values: copies the values of the first parameter to the second. Throws `Error` if their shapes differ.
  {c.copy_values(weight, target)};

  // -- derivatives --------------------------------------------------------------------------------------------------
  // linear_backward: returns dx = dy W, and adds dy^T x and the column sums of dy to the gradients of weight and bias.
  { c.linear_backward(x, x, weight, bias, true) } -> std::same_as<typename C::Tensor>;
  // head_linear_backward: returns dx, and adds the derivatives by weight and bias to their gradients.
  { c.head_linear_backward(x, x, weight, bias, heads, true) } -> std::same_as<typename C::Tensor>;
  // embed_backward: adds each row of dy to the gradient of the weight's row that it came from.
  {c.embed_backward(x, tokens, weight)};
  // activation_backward: returns dy times the derivative of the activation at x. For ReLU, x may also be the result.
  { c.activation_backward(Activation::silu, x, x) } -> std::same_as<typename C::Tensor>;
  // glu_backward: returns dx (rows, 2 * channels) from dy (rows, channels) and x.
  { c.glu_backward(x, x) } -> std::same_as<typename C::Tensor>;
  // add_row_backward: adds the column sums of dy to the gradient of the row. The derivative by x is dy.
  {c.add_row_backward(x, weight)};
  // mix_backward: returns dx, dy and dgate from dout and the arguments of `mix`.
  { c.mix_backward(x, x, x, x, sequences).dgate } -> std::convertible_to<typename C::Tensor>;
  // concat_backward: returns da and db from the derivative by the result, the columns of a and of b, and both numbers
  // of heads.
  { c.concat_backward(x, count, count, count, count).da } -> std::convertible_to<typename C::Tensor>;
  // columns_backward: returns dx from the derivative by the result, the first column, and the number of columns of x.
  // It is zero outside the columns.
  { c.columns_backward(x, count, count) } -> std::same_as<typename C::Tensor>;
  // dropout_train: applies a dropout mask, which it draws again in each call. It is its own derivative.
  { c.dropout_train(x, mask) } -> std::same_as<typename C::Tensor>;
  // layer_norm: writes mean and 1/std of each row to `out` (rows, 2), for the derivative.
  { c.layer_norm(x, weight, weight, number, &out) } -> std::same_as<typename C::Tensor>;
  // layer_norm_backward: takes the arguments of `layer_norm` without eps, and its `out`.
  { c.layer_norm_backward(x, x, weight, weight, x, true) } -> std::same_as<typename C::Tensor>;
  // rms_norm: writes 1/rms of each row to `out` (rows, 1), for the derivative.
  { c.rms_norm(x, weight, number, &out) } -> std::same_as<typename C::Tensor>;
  // rms_norm_backward: takes the arguments of `rms_norm` without eps, and its `out`.
  { c.rms_norm_backward(x, x, weight, x, true) } -> std::same_as<typename C::Tensor>;
  // batch_norm_train: normalises by the mean and variance of x itself, and writes both to `out` (2, channels). If the
  // last argument is true, it adds the update of the running statistics to their gradients (the variance unbiased, as
  // in PyTorch).
  { c.batch_norm_train(x, norm, out, true) } -> std::same_as<typename C::Tensor>;
  // batch_norm_backward: takes the `out` of batch_norm_train, or an empty tensor if the running statistics were used.
  { c.batch_norm_backward(x, x, norm, x, true) } -> std::same_as<typename C::Tensor>;
  // sequence_norm: writes mean and variance of each channel to `out` (2 * sequences, channels), two rows for each
  // sequence, for the derivative.
  { c.sequence_norm(x, weight, weight, number, sequences, &out) } -> std::same_as<typename C::Tensor>;
  // sequence_norm_backward: takes the arguments of `sequence_norm`, and its `out`.
  { c.sequence_norm_backward(x, x, weight, weight, number, sequences, x, true) } -> std::same_as<typename C::Tensor>;
  // conv1d_backward: takes the arguments of `conv1d`.
  { c.conv1d_backward(x, x, weight, bias, conv1d, sequences, sequences, true) } -> std::same_as<typename C::Tensor>;
  // conv2d_backward: takes the arguments of `conv2d` without its activation.
  { c.conv2d_backward(x, x, weight, weight, conv2d, sequences, sequences, true) } -> std::same_as<typename C::Tensor>;
  // depthwise_conv_backward: takes the arguments of `depthwise_conv`. Throws `Error` if the shape has past rows.
  { c.depthwise_conv_backward(x, x, weight, bias, sequences, depthwise, true) } -> std::same_as<typename C::Tensor>;
  // attend_train: computes `attend` with dropout of the attention weights, and writes the logsumexp of the scores of
  // each row and head to `out` (rows, num_heads), for the derivative.
  { c.attend_train(x, x, x, attend, sequences, sequences, relative, mask, out) } -> std::same_as<typename C::Tensor>;
  // attend_backward: returns the derivatives by q, k, v, the table and its queries (see AttendDerivativeOf) from dout,
  // the arguments of attend_train, and its `out`. It adds the derivatives by the position biases to their gradients.
  {
    c.attend_backward(x, x, x, x, attend, sequences, sequences, relative, mask, x)
    } -> AttendDerivativeOf<typename C::Tensor>;
  // linear_attend_backward: returns dq, dk and dv from dout and the arguments of `linear_attend` without states.
  { c.linear_attend_backward(x, x, x, x, attend, sequences).dq } -> std::convertible_to<typename C::Tensor>;
  // rotate: rotates back if `number` is -1, which is the derivative of a rotation.
  { c.rotate(x, x, pairs, number) } -> std::same_as<typename C::Tensor>;
  // softmax: returns the softmax of each row, without a derivative. Distillation compares a student with its teacher by
  // softmax, dot and squared_norm.
  { c.softmax(x) } -> std::same_as<typename C::Tensor>;
  // dot: returns the sum of the elementwise product of x and y, computed in double.
  { c.dot(x, x) } -> std::same_as<double>;
  // squared_norm: returns the sum of squares of all elements.
  { c.squared_norm(x) } -> std::same_as<double>;
  // log_softmax_backward: returns dx = dy - exp(y) sum(dy) for each row, from dy and the result y.
  { c.log_softmax_backward(x, x) } -> std::same_as<typename C::Tensor>;
  // ctc: writes the derivative of the losses by the logits to `out`, zeros for targets without a path.
  { c.ctc(x, sequences, labels, 0, &out) } -> std::same_as<typename C::Tensor>;
  // ctc_backward: returns the `out` of `ctc`, scaled by the derivative by each loss.
  { c.ctc_backward(x, sequences, x) } -> std::same_as<typename C::Tensor>;
  // cross_entropy: writes the log softmax of each row to `out` (rows, classes), for the derivative.
  { c.cross_entropy(x, tokens, entropy, &out) } -> std::same_as<typename C::Tensor>;
  // cross_entropy_backward: returns the derivative by the logits from that by the losses (rows, 1) and from `out`.
  { c.cross_entropy_backward(x, x, tokens, entropy) } -> std::same_as<typename C::Tensor>;
  // mean_finite_backward: returns dy / size for finite elements of x and NaN, and 0 for infinite ones.
  { c.mean_finite_backward(x, x) } -> std::same_as<typename C::Tensor>;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what all layers of one forward pass share. A pass over whole sequences has no slots. In a stream, rows are the
/// new ones, and `slots` says for each sequence where the layers' states hold the earlier ones.
template <class Tensor>
struct Pass {
  const Sequences& sequences;              ///< the sequences of the rows
  Mask mask{};                             ///< the frames that each frame sees
  Tensor table{};                          ///< the table of positions that layers share
  std::span<const Index> slots{};          ///< the slot of each sequence in the states; empty: whole sequences
  std::span<const Index> firsts{};         ///< the position of each sequence's first row in its stream; empty: 0
  std::vector<Tensor>* outputs = nullptr;  ///< receives the output of each block, if not null

  /// Returns the position of the first row of sequence n in its stream.
  Index first(Index n) const { return firsts.empty() ? 0 : firsts[static_cast<std::size_t>(n)]; }
};

/// Describes what the states of a model's layers must hold.
struct StateShape {
  Index slots;                      ///< streams
  Index left_context;               ///< frames that attention keeps
  std::optional<Index> chunk;       ///< max frames of one stream in a pass; none: each pass has its own number
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
};

/// Says whether S is a pointer to a state. Layers with a state take a pointer to it, or `nullptr` where sequences are
/// whole: then there is no state, and no cost.
template <class State>
inline constexpr bool has_state = !std::is_null_pointer_v<State>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how attention knows the order of frames. A position policy has
///   key_bias_cancels       a bias on the keys moves all scores of a query by the same amount, so softmax ignores it
///   is_relative            scores gain a term of the distance between query and key
///   turns_input            the input of queries and keys is rotated before their projections
///   turns_keys             queries and keys are rotated after their projections
///   pairs                  a RotaryPairs, where one of the two is true: the channels that are rotated together
///   parameter_count(dims), flops(dims, frames)   of one layer
///   enter(context, x, pass)              changes the rows once, before the first layer
///   table(context, dims, width, pass)    computes what all layers share; `width` channels are rotated
///   Layer<T>, a Module constructed from (dims, seed), with
///     term(context, dims, pass)          what one layer adds to the scores
///     keeps_term(context)                whether the context keeps that from call to call, so that no table is needed
///     term_of(prepared_table(context, dims, n))    the term in a stream, for up to n frames, where `is_relative`
template <class P>
concept PositionPolicy = LayerOfPolicy<P> && requires(const AttentionDims& dims, Index count) {
  { P::key_bias_cancels } -> std::convertible_to<bool>;
  { P::is_relative } -> std::convertible_to<bool>;
  { P::turns_input } -> std::convertible_to<bool>;
  { P::turns_keys } -> std::convertible_to<bool>;
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::flops(dims, count) } -> std::convertible_to<Index>;  // a layer, over so many frames
} &&(!(P::turns_input || P::turns_keys) || std::same_as<decltype(P::pairs), const RotaryPairs>);

/// Does nothing: policies derive from it and replace what they do.
struct PlainPosition {
  static constexpr bool key_bias_cancels = true;  ///< softmax ignores a bias on the keys
  static constexpr bool is_relative = false;      ///< scores gain a term of distance
  static constexpr bool turns_input = false;      ///< the input of queries and keys is rotated
  static constexpr bool turns_keys = false;       ///< queries and keys are rotated
  /// Returns 0.
  static constexpr Index parameter_count(const AttentionDims&) { return 0; }
  /// Returns 0.
  static constexpr Index flops(const AttentionDims&, Index) { return 0; }

  /// Returns x.
  template <class Context, class Tensor>
  static Tensor enter(Context&, Tensor x, const Pass<Tensor>&) {
    return x;
  }
  /// Returns an empty tensor.
  template <class Context, class Tensor>
  static Tensor table(Context&, const AttentionDims&, Index, const Pass<Tensor>&) {
    return {};
  }

  /// Adds nothing to the scores.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes a layer without parameters.
    Layer(const AttentionDims&, Seed) {}
    /// Returns an empty term.
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context&, const AttentionDims&, const Pass<Tensor>&) const {
      return {};
    }
    /// Returns false.
    template <class Context>
    bool keeps_term(const Context&) const {
      return false;
    }
    /// Returns an empty term.
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(const Tensor&) const {
      return {};
    }
    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto&, auto&&) {}
  };
};

/// Adds no positions: the order of frames is known from convolutions, or not at all.
struct NoPosition : PlainPosition {};

/// Adds absolute sinusoids to the input once (Vaswani et al. 2017, section 3.5).
struct Sinusoidal : PlainPosition {
  /// Returns x plus the sinusoids of its positions in their streams.
  template <class Context, class Tensor>
  static Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) {
    const auto positions = context.sinusoids({pass.sequences, pass.firsts}, x.cols());
    return context.add(std::move(x), positions);
  }
};

/// Adds (q + v) . W_pos r(i - j) to the scores, and uses q + u in those of content (Dai et al. 2019, section 3.3; as in
/// ESPnet's "latest" and the Hugging Face Conformer). Keys do not depend on position, so every key-value policy goes
/// with it.
struct RelativePosition : PlainPosition {
  static constexpr bool is_relative = true;  ///< scores gain a term of distance
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return d.q_dim() * d.d_model + 2 * d.q_dim(); }
  /// Returns the floating-point operations of the term over `frames` frames.
  static constexpr Index flops(const AttentionDims& d, Index frames) {
    return 2 * (2 * frames - 1) * d.q_dim() * (d.d_model + frames);
  }

  /// Returns the sinusoids of distances n - 1 down to -(n - 1), (2 n - 1, d_model), for sequences of up to n frames.
  template <class Context>
  static auto distances(Context& context, const AttentionDims& d, Index n) {
    const Index first = n - 1;
    const Sequences all = Sequences::make(context.arena(), 1, [&](Index) { return 2 * n - 1; });
    return context.sinusoids({all, {&first, 1}, -1}, d.d_model);
  }
  /// Returns the sinusoids of all distances of the pass, (2 frames - 1, d_model).
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index, const Pass<Tensor>& pass) {
    return distances(context, d, frames(pass));
  }
  /// Returns the frames of the longest sequence, at least 1.
  template <class Tensor>
  static Index frames(const Pass<Tensor>& pass) {
    return std::max<Index>(1, pass.sequences.max_length());
  }

  /// Projects the sinusoids for one layer.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_pos(d.d_model, d.q_dim(), seed / "linear_pos", Bias::no),
          pos_bias_u({d.num_heads, d.head_dim}),
          pos_bias_v({d.num_heads, d.head_dim}) {}

    /// Returns the term that the scores of this layer gain.
    template <class Context, class Tensor>
    RelativeTerm<Tensor, T> term(Context& context, const AttentionDims& d, const Pass<Tensor>& pass) const {
      if constexpr (StreamingContext<Context>)
        if (keeps_term(context))
          return term_of(context.kept_for(linear_pos.weight, frames(pass),
                                          [&](Index n) { return prepared_table(context, d, n); }));
      return {linear_pos(context, pass.table), &pos_bias_u, &pos_bias_v};
    }
    /// Returns whether the context keeps the projected table from call to call: a prepared weight never changes.
    template <class Context>
    bool keeps_term([[maybe_unused]] const Context& context) const {
      if constexpr (StreamingContext<Context>) return context.keeps(linear_pos.weight);
      return false;
    }
    /// Returns the table as this layer projects it, prepared for many calls with sequences of up to n frames.
    template <class Context>
    auto prepared_table(Context& context, const AttentionDims& d, Index n) const {
      return context.prepare_table(linear_pos(context, distances(context, d, n)), d.num_heads);
    }
    /// Returns the term of a prepared table.
    template <class Tensor>
    RelativeTerm<Tensor, T> term_of(Tensor prepared) const {
      return {std::move(prepared), &pos_bias_u, &pos_bias_v, {}, true};
    }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_pos", self.linear_pos);
      visit("pos_bias_u", self.pos_bias_u);
      visit("pos_bias_v", self.pos_bias_v);
    }

    Linear<T> linear_pos;     ///< from d_model to num_heads * head_dim
    Parameter<T> pos_bias_u;  ///< added to the queries that meet keys, (num_heads, head_dim)
    Parameter<T> pos_bias_v;  ///< added to the queries that meet distances, (num_heads, head_dim)
  };
};

/// Computes the angles that rotary policies share.
struct RotaryTable : PlainPosition {
  /// Returns the table of rotations (rows, width): cosines of the pairs, then their sines.
  template <class Context, class Tensor>
  static Tensor table(Context& context, const AttentionDims& d, Index width, const Pass<Tensor>& pass) {
    const Index rate_width = d.rope_pairs.size() > 0 ? d.head_dim : width;
    return context.rotary_table({pass.sequences, pass.firsts}, width, rate_width, d.rope_pairs, d.rope);
  }
};

/// Rotates queries and keys by their position after their projections, so that scores depend on the distance (Su et al.
/// 2021). A decoupled latent has parts of its own that are rotated instead.
template <RotaryPairs Pairs = RotaryPairs::interleaved>
struct Rotary : RotaryTable {
  static constexpr bool key_bias_cancels = false;  ///< rotation makes the bias depend on the frame
  static constexpr bool turns_keys = true;         ///< queries and keys are rotated
  static constexpr RotaryPairs pairs = Pairs;      ///< the channels of a pair
};

/// Rotates the input of queries and keys by its position, head by head, before their projections, as the Hugging Face
/// Conformer does. Values see the input itself, and scores depend on both positions, not only on their distance.
template <RotaryPairs Pairs = RotaryPairs::halves>
struct InputRotary : RotaryTable {
  static constexpr bool turns_input = true;    ///< the input of queries and keys is rotated
  static constexpr RotaryPairs pairs = Pairs;  ///< the channels of a pair
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds queries, and their part that a decoupled rotary position rotates.
template <class Tensor>
struct Queries {
  Tensor content;  ///< (rows, num_heads * head_dim)
  Tensor rope;     ///< (rows, num_heads * qk_rope_head_dim), or empty
};

/// Projects `in` channels to the queries of all heads. Both query policies end in it.
template <class T>
class QueryExpansion : public Module<QueryExpansion<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  QueryExpansion(const AttentionDims& d, Index in, Seed seed)
      : linear_q(in, d.q_dim(), seed / "linear_q", bias_if(d.bias)) {
    if (d.qk_rope_head_dim > 0)
      linear_q_rope = Linear<T>(in, d.num_heads * d.qk_rope_head_dim, seed / "linear_q_rope", bias_if(d.bias));
  }
  /// Returns the queries of all heads.
  template <class Context, class Tensor>
  Queries<Tensor> operator()(Context& context, const Tensor& x) const {
    return {linear_q(context, x), linear_q_rope.out() > 0 ? linear_q_rope(context, x) : Tensor()};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("linear_q", self.linear_q);
    if (self.linear_q_rope.out() > 0) visit("linear_q_rope", self.linear_q_rope);
  }

  Linear<T> linear_q;       ///< to num_heads * head_dim
  Linear<T> linear_q_rope;  ///< to num_heads * qk_rope_head_dim, or empty
};

/// Returns the trained parameters of a `QueryExpansion` of `in` channels.
constexpr Index query_expansion_parameters(const AttentionDims& d, Index in) {
  return d.num_heads * (d.head_dim + d.qk_rope_head_dim) * (in + d.bias);
}

/// Says how queries are computed. Everything is constexpr except `Layer<T>`, a Module constructed from (dims, seed),
/// which has
///   operator()(context, x) -> Queries<Tensor>   the queries of rows x (rows, d_model)
///   input_weight() -> const Parameter<T>&       the first matrix that x is multiplied by
template <class P>
concept QueryPolicy = LayerOfPolicy<P> && requires(const AttentionConfig& config, AttentionDims& dims) {
  P::set_ranks(config, dims);  // throws Error where type and configuration contradict each other
  { P::parameter_count(dims) } -> std::convertible_to<Index>;
  { P::flops(dims) } -> std::convertible_to<Index>;  // a frame
};

/// Projects queries in one step: q = x W_Q^T + b_Q.
struct FullQuery {
  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims&) {
    require_no_rank(c.q_lora_rank, "q_lora_rank");
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) { return query_expansion_parameters(d, d.d_model); }
  /// Returns the operations a frame.
  static constexpr Index flops(const AttentionDims& d) {
    return 2 * d.num_heads * (d.head_dim + d.qk_rope_head_dim) * d.d_model;
  }

  /// Projects the input to the queries.
  template <class T>
  class Layer : public QueryExpansion<T> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed) : QueryExpansion<T>(d, d.d_model, seed) {}
    /// Returns the first weight that the input is multiplied by.
    const Parameter<T>& input_weight() const { return this->linear_q.weight; }
  };
};

/// Projects queries through a latent of R elements: q = norm(x W_DQ^T) W_UQ^T (DeepSeek-V2 2024, equations 12 and 13).
template <Index R, template <class> class Norm = RmsNorm>
struct LowRankQuery {
  static_assert(R == dyn || R > 0, "laconic: the rank of the queries must be positive, or `dyn`");
  /// Resolves the ranks into the dims. Throws Error where type and configuration contradict each other.
  static constexpr void set_ranks(const AttentionConfig& c, AttentionDims& d) {
    d.q_lora_rank = resolve<R>(c.q_lora_rank, "q_lora_rank");
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const AttentionDims& d) {
    return d.q_lora_rank * d.d_model + Norm<float>::parameter_count(d.q_lora_rank) +
           query_expansion_parameters(d, d.q_lora_rank);
  }
  /// Returns the operations a frame.
  static constexpr Index flops(const AttentionDims& d) {
    return 2 * d.q_lora_rank * (d.d_model + d.num_heads * (d.head_dim + d.qk_rope_head_dim));
  }

  /// Projects the input to the latent, and the latent to the queries.
  template <class T>
  class Layer : public Module<Layer<T>> {
   public:
    /// Makes the layer with its initial parameters. Allocates.
    Layer(const AttentionDims& d, Seed seed)
        : linear_q_down(d.d_model, d.q_lora_rank, seed / "linear_q_down", Bias::no),
          q_norm(d.q_lora_rank),
          up(d, d.q_lora_rank, seed) {}

    /// Returns the queries of all heads.
    template <class Context, class Tensor>
    Queries<Tensor> operator()(Context& context, const Tensor& x) const {
      return up(context, q_norm(context, linear_q_down(context, x)));
    }
    /// Returns the first weight that the input is multiplied by.
    const Parameter<T>& input_weight() const { return linear_q_down.weight; }

    /// Visits the parameters with their names (see Module).
    static void each_parameter(auto& self, auto&& visit) {
      visit("linear_q_down", self.linear_q_down);
      visit("q_norm", self.q_norm);
      QueryExpansion<T>::each_parameter(self.up, visit);
    }

    Linear<T> linear_q_down;  ///< from d_model to the latent
    Norm<T> q_norm;           ///< the norm of the latent
    QueryExpansion<T> up;     ///< from the latent to the queries
  };
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how queries score keys. There are two, since each is a primitive of every backend.
template <class P>
concept ScorePolicy = requires {
  { P::is_linear } -> std::convertible_to<bool>;
};

/// Scores keys by softmax of scaled products (Vaswani et al. 2017, equation 1).
struct Softmax {
  static constexpr bool is_linear = false;  ///< all keys are read again for every query
};

/// Scores keys by products of features elu + 1, without softmax, so that the past is a state of fixed size
/// (Katharopoulos et al. 2020). The state cannot forget: a mask with a limited left context is refused.
struct LinearKernel {
  static constexpr bool is_linear = true;  ///< the past is a state of fixed size
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

template <class Policy, class T>
class AttentionLayer;

/// Combines independent policies into one attention, whose costs are known at compile time (`AttentionCost`) and whose
/// layer is `Layer<T>`. Sizes that the type leaves open (`dyn`) come from the configuration. Combinations that have no
/// meaning do not compile.
template <class Heads_, class KeyValue_, class Position_ = RelativePosition, class Query_ = FullQuery,
          class Score_ = Softmax>
struct Attention : AttentionCost<Attention<Heads_, KeyValue_, Position_, Query_, Score_>> {
  // Asserted, not demanded of the arguments: a sentence then is the first message, and the compiler adds what is
  // missing.
  static_assert(HeadsPolicy<Heads_>,
                "laconic: the first policy of an attention lacks what the concept HeadsPolicy says: see "
                "attention/heads.hpp");
  static_assert(
      KeyValuePolicy<KeyValue_>,
      "laconic: the key-value policy lacks what the concept KeyValuePolicy says: see attention/key_value.hpp");
  static_assert(PositionPolicy<Position_>,
                "laconic: the position policy lacks what the concept PositionPolicy says: see attention/position.hpp");
  static_assert(QueryPolicy<Query_>,
                "laconic: the query policy lacks what the concept QueryPolicy says: see attention/query.hpp");
  static_assert(ScorePolicy<Score_>,
                "laconic: the score policy lacks what the concept ScorePolicy says: see attention/score.hpp");

  using Heads = Heads_;        ///< query heads over key-value heads
  using KeyValue = KeyValue_;  ///< the cache, and how keys and values come from it
  using Position = Position_;  ///< how the order of frames is known
  using Query = Query_;        ///< how queries are projected
  using Score = Score_;        ///< `Softmax` or `LinearKernel`
  template <class T>
  using Layer = AttentionLayer<Attention, T>;  ///< the layer that computes it in numbers of type T

  static_assert(!(KeyValue::one_input && Position::turns_input),
                "laconic: one latent for keys and values does not go with InputRotary, which projects them from "
                "different inputs; a split one does");
  static_assert(!Position::turns_keys || KeyValue::rotary_part.has_value(),
                "laconic: a rotary key differs from frame to frame and is no function of this latent; a decoupled "
                "latent has a key for it");
  static_assert(Position::turns_keys || KeyValue::rotary_part != 1,
                "laconic: a decoupled latent has a rotary key, so its position is Rotary");
  static_assert(
      !(Score::is_linear && KeyValue::is_latent),
      "laconic: linear attention caches a state, neither keys nor values, so a latent has no meaning with it");
  static_assert(
      !(Score::is_linear && (Position::is_relative || Position::turns_keys)),
      "laconic: linear attention never compares one query with one key, so their distance has no place in it");

  /// Returns all sizes from type and configuration. Throws Error where they contradict each other or do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    const Index heads = resolve<Heads::num_heads>(config.num_heads, "num_heads");
    const Index kv_heads = resolve<Heads::num_kv_heads>(
        Heads::num_kv_heads == dyn && config.num_kv_heads == 0 ? heads : config.num_kv_heads, "num_kv_heads");
    require(config.d_model > 0 && (config.head_dim > 0 || config.d_model % heads == 0), "num_heads: ", heads,
            " heads given, a divisor of d_model = ", config.d_model, " expected");
    require(heads % kv_heads == 0, "num_kv_heads: ", kv_heads,
            " key-value heads given, a divisor of num_heads = ", heads, " expected");
    AttentionDims d{config.d_model, heads, kv_heads, config.head_dim > 0 ? config.head_dim : config.d_model / heads,
                    config.attention_bias};
    d.rope = config.rope.checked();
    KeyValue::set_ranks(config, d);
    Query::set_ranks(config, d);
    require(d.rope_pairs == config.rope_pairs, "rope_pairs: ", config.rope_pairs.size(),
            " configured for an attention without a rotary key of its own");
    if (Position::turns_input)
      require(d.q_dim() == d.d_model && d.head_dim % 2 == 0, "head_dim: ", d.head_dim, " given, an even one that ",
              heads, " heads fill d_model = ", d.d_model, " with expected");
    if (Position::turns_keys)
      require(rotary_width(d) % 2 == 0, "head_dim: ", d.head_dim, " given, an even one expected to turn pairs");
    return d;
  }

  /// Returns the width that a rotary position rotates: a head, or the part that is set aside for it.
  static constexpr Index rotary_width(const AttentionDims& d) {
    return d.qk_rope_head_dim > 0 ? d.qk_rope_head_dim : d.head_dim;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Multi-head attention (Vaswani et al. 2017). `Mha<dyn>` leaves both numbers of heads open, as `Gqa<dyn, dyn>` does,
/// and is MHA where the configuration gives num_kv_heads = 0.
template <Index H, class Position = RelativePosition>
using Mha = Attention<Heads<H, H>, FullRank, Position>;
/// Grouped-query attention of H query heads over G key-value heads (Ainslie et al. 2023).
template <Index H, Index G, class Position = RelativePosition>
using Gqa = Attention<Heads<H, G>, FullRank, Position>;
/// Multi-query attention: all query heads read one key-value head (Shazeer 2019).
template <Index H, class Position = RelativePosition>
using Mqa = Attention<Heads<H, 1>, FullRank, Position>;
/// Latent attention with a two-step expansion of every head from one latent of rank R.
template <Index H, Index R, class Position = RelativePosition>
using Mla = Attention<Heads<H, H>, TwoStageLatent<R>, Position>;
/// Latent attention with one latent of rank R (DeepSeek-V2 2024, without the rotary key).
template <Index H, Index R, class Position = RelativePosition>
using MlaSimple = Attention<Heads<H, H>, SharedLatent<R>, Position>;
/// Latent attention with one latent for keys and one for values (Palu, Chang et al. 2024).
template <Index H, Index RK, Index RV = RK, class Position = RelativePosition>
using MlaSplit = Attention<Heads<H, H>, SplitLatent<RK, RV>, Position>;
/// Latent attention with latents for every head, of rank R for keys and of rank ValueRank for values; 0: as for keys.
template <Index H, Index R, Index ValueRank = 0, class Position = RelativePosition>
using MlaHead = Attention<Heads<H, H>, HeadLatent<R, ValueRank>, Position>;
/// DeepSeek-V2's attention: one latent of rank R and one rotary key of RopeDim elements (2024, section 2.1).
template <Index H, Index R, Index RopeDim, class Query = FullQuery, template <class> class Norm = RmsNorm>
using MlaDecoupled = Attention<Heads<H, H>, DecoupledLatent<R, RopeDim, Norm>, Rotary<>, Query>;
/// Multi-head or grouped-query attention that caches the layer's input in place of keys and values.
template <Index H, Index G = H, class Position = RelativePosition>
using CachedInput = Attention<Heads<H, G>, InputLatent, Position>;
/// Linear attention, whose past is a state of fixed size (Katharopoulos et al. 2020).
template <Index H, Index G = H, class Position = NoPosition>
using LinearAttention = Attention<Heads<H, G>, FullRank, Position, FullQuery, LinearKernel>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

// The part of each policy's contract that needs a context: what `AttentionLayer` calls. The rest is in the concepts of
// the policies themselves. A class cannot be asked for a member function template, only for a call with given types; so
// these are checked where a model is first run on a context.

/// Requires of the layer of key-value policy P that it computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept KeyValueLayer = requires(const L& layer, C& context, const typename C::Tensor& x,
                                 const std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>& memory) {
  {
    layer.remember(context, x, x)
    } -> std::same_as<std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>>;
  { layer.expand(context, memory) } -> std::same_as<KeysAndValues<typename C::Tensor>>;
  { layer.value_weight() } -> std::same_as<const Parameter<typename C::Scalar>&>;
};

/// Requires of the layer of a latent P that attention over its latents computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept AbsorbedLayer = requires(const L& layer, C& context, const typename C::Tensor& x,
                                 const std::array<typename C::Tensor, static_cast<std::size_t>(P::num_parts)>& memory) {
  { layer.absorb(context, x) } -> std::same_as<typename C::Tensor>;
  { layer.latents(context, memory) } -> std::same_as<KeysAndValues<typename C::Tensor>>;
  { layer.release(context, x) } -> std::same_as<typename C::Tensor>;
};

/// Requires of the layer of query policy P that it computes on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept QueryLayer = requires(const L& layer, C& context, const typename C::Tensor& x) {
  { layer(context, x) } -> std::same_as<Queries<typename C::Tensor>>;
  { layer.input_weight() } -> std::same_as<const Parameter<typename C::Scalar>&>;
};

/// Requires of position policy P and of its layer that both compute on context C.
template <class P, class C, class L = typename P::template Layer<typename C::Scalar>>
concept PositionLayer = requires(const L& layer, C& context, const typename C::Tensor& x, const AttentionDims& dims,
                                 Index width, const Pass<typename C::Tensor>& pass) {
  { P::enter(context, x, pass) } -> std::same_as<typename C::Tensor>;
  { P::table(context, dims, width, pass) } -> std::same_as<typename C::Tensor>;
  { layer.term(context, dims, pass) } -> std::same_as<RelativeTerm<typename C::Tensor, typename C::Scalar>>;
  { layer.keeps_term(context) } -> std::same_as<bool>;
  { layer.term_of(x) } -> std::same_as<RelativeTerm<typename C::Tensor, typename C::Scalar>>;
};

namespace detail {

/// Ends the compilation with a sentence where a layer lacks what attention calls on context C.
template <class Policy, class C>
constexpr bool computes_on() {
  using KeyValue = typename Policy::KeyValue;
  static_assert(KeyValueLayer<KeyValue, C>,
                "laconic: the layer of this key-value policy lacks remember, expand or value_weight, or they return "
                "other types: see KeyValueLayer in attention/layer_concepts.hpp");
  if constexpr (KeyValue::is_latent)
    static_assert(AbsorbedLayer<KeyValue, C>,
                  "laconic: the layer of this latent lacks absorb, latents or release, or they return other types: see "
                  "AbsorbedLayer in attention/layer_concepts.hpp; AbsorbingLayer provides them");
  static_assert(QueryLayer<typename Policy::Query, C>,
                "laconic: the layer of this query policy lacks operator() or input_weight, or they return other types: "
                "see QueryLayer in attention/layer_concepts.hpp");
  static_assert(PositionLayer<typename Policy::Position, C>,
                "laconic: this position policy lacks enter or table, or its layer lacks term, keeps_term or term_of, "
                "or they return other types: see PositionLayer in attention/layer_concepts.hpp; PlainPosition has all");
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires that C is a context that computes models whose elements are of type T.
template <class C, class T>
concept ContextOf = !std::is_const_v<C> && std::same_as<typename C::Scalar, T> && requires {
  typename C::Tensor;
};

namespace detail {

/// Ends the compilation with one sentence if C is no `ContextOf<T>`. As the first statement of a function,
/// static_assert(detail::is_context_of<Context, T>()) gives the first of all messages.
template <class C, class T>
constexpr bool is_context_of() {
  if constexpr (requires { typename C::Tensor; }) {
    static_assert(!std::is_const_v<C>,
                  "laconic: a context changes while it computes, so no model runs on a const one: pass it as Cpu<>&, "
                  "not as const Cpu<>&");
    static_assert(std::is_same_v<typename C::Scalar, T>,
                  "laconic: model and context compute with different number types; Cpu<double> runs models of double, "
                  "such as Conformer<Mha<8>, double>");
  } else {
    static_assert(!std::is_same_v<C, C>,
                  "laconic: the first argument of a model is the context that computes it, such as Cpu<> or Autodiff");
  }
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the attention of packed rows that the policy describes, (rows, d_model) to (rows, d_model). Parameter names
/// are those of the Hugging Face Conformer, and DeepSeek's where that has none. Construction allocates, and throws
/// Error where the sizes do not fit; calls take memory from the context's pool only.
template <class Policy_, class T>
class AttentionLayer : public Module<AttentionLayer<Policy_, T>> {
 public:
  using Scalar = T;                                            ///< the type of its parameters
  using Policy = Policy_;                                      ///< the `Attention` that it computes
  using KeyValue = typename Policy::KeyValue;                  ///< its key-value policy
  using Position = typename Policy::Position;                  ///< its position policy
  static constexpr bool is_linear = Policy::Score::is_linear;  ///< whether the past is a state of fixed size

  /// Makes a layer with random parameters; `dropout` is that of probabilities in training. Allocates. Throws Error
  /// where type and configuration contradict each other.
  AttentionLayer(const AttentionConfig& config, double dropout, Seed seed)
      : AttentionLayer(Resolved{Policy::dims(config)}, dropout, seed) {}

  /// Returns all sizes.
  const AttentionDims& dims() const { return dims_; }
  /// Returns whether a stream's state grows with the frames that it keeps.
  static constexpr bool keeps_frames() { return !is_linear; }

  /// Holds what streams keep of earlier frames. Takes memory at construction only.
  template <class Context>
  class State {
   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const AttentionLayer& layer, const StateShape& shape) {
      if (shape.chunk) work_ = Policy::stream_work(*shape.chunk, shape.left_context);
      const AttentionDims& d = layer.dims();
      if constexpr (is_linear) {
        caches_[0] = context.make_cache(shape.slots, 1, Policy::state_size(d));
        for (Index slot = 0; slot < shape.slots; ++slot) clear(context, slot);
      } else {
        const auto parts = KeyValue::parts(d);
        for (std::size_t i = 0; i < parts.size(); ++i)
          caches_[i] = context.make_cache(shape.slots, shape.left_context, parts[i].width,
                                          parts[i].positional ? Storage::full : shape.storage);
      }
      if constexpr (Position::is_relative)
        table_ = layer.position.prepared_table(context, d, shape.left_context + shape.chunk.value_or(0));
    }
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      for (auto& cache : caches_) is_linear ? context.fill_zeros(cache, slot) : context.clear(cache, slot);
    }
    /// Fills a slot as if there had been frames of zeros before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      for (auto& cache : caches_) context.fill_zeros(cache, slot);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      for (auto& cache : caches_) context.fork(cache, from, to);
    }
    /// Returns the bytes that the caches hold, all slots.
    Index cache_bytes() const {
      Index sum = 0;
      for (const auto& cache : caches_) sum += cache.bytes();
      return sum;
    }

   private:
    friend AttentionLayer;
    std::array<typename Context::Cache, static_cast<std::size_t>(is_linear ? 1 : KeyValue::num_parts)> caches_;
    typename Context::Tensor table_;
    std::optional<typename Policy::Work> work_;  // that of every chunk
  };

  /// Returns the rows as the position policy changes them once, before the first layer.
  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return Position::enter(context, std::move(x), pass);
  }
  /// Returns the table of positions that all layers share, or an empty tensor: in a stream, relative positions have
  /// theirs in the state, and those of prepared weights have it in the context.
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    if (Position::is_relative && (!pass.slots.empty() || position.keeps_term(context))) return {};
    return Position::table(context, dims_, Policy::rotary_width(dims_), pass);
  }

  /// Returns the self-attention of x (rows, d_model) on the given path. With a pointer to a state, x follows what the
  /// state holds, which then holds x, too.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr,
                    AttentionPath path = AttentionPath::by_cost) const {
    static_assert(detail::is_context_of<Context, T>() && detail::computes_on<Policy, Context>());
    const Tensor rotated = rotated_input(context, x, pass);
    Queries<Tensor> q = query(context, rotated);
    auto memory = key_value.remember(context, rotated, x);
    if constexpr (Position::turns_keys) {
      rotate_queries(context, q, pass.table);
      rotate_keys(context, memory, pass.table);
    }
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, scale(), pass.mask};
    if constexpr (is_linear) {
      const auto kv = key_value.expand(context, memory);
      if constexpr (has_state<S>) {
        Tensor out;
        context.update(state->caches_[0], pass.slots, [&](Tensor& states) {
          out = context.linear_attend(q.content, kv.k, kv.v, shape, pass.sequences, &states);
        });
        return linear_out(context, out);
      } else {
        return linear_out(context, context.linear_attend(q.content, kv.k, kv.v, shape, pass.sequences));
      }
    } else if constexpr (has_state<S>) {
      const auto with_cached = [&](Index first, const auto& fresh, const Sequences& sequences) {
        std::array<typename Context::CachedRows, std::tuple_size_v<decltype(memory)>> rows;
        const auto slots =
            pass.slots.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(sequences.size()));
        for (std::size_t i = 0; i < fresh.size(); ++i)
          rows[i] = context.with_cached(state->caches_[i], slots, fresh[i], sequences);
        return rows;
      };
      const Sequences seen = context.cached_lengths(with_cached(0, memory, pass.sequences)[0], pass.sequences);
      const auto absorbs_one = [&](Index n) {
        const Index rows = pass.sequences.length(n), all = seen.length(n);
        return absorbs(context, path, state->work_ ? *state->work_ : Policy::masked_work(pass.mask, rows, all));
      };
      const Tensor out = attend_each(context, q, memory, shape, pass.sequences, pass.sequences, seen,
                                     position.term_of(state->table_), absorbs_one, with_cached);
      for (std::size_t i = 0; i < memory.size(); ++i)
        context.append(state->caches_[i], pass.slots, memory[i], pass.sequences);
      return linear_out(context, out);
    } else {
      const auto term = position.term(context, dims_, pass);
      return linear_out(context, attend(context, q, memory, shape, pass.sequences, pass.sequences, term,
                                        absorbs(context, path, Policy::whole_work(pass.mask))));
    }
  }

  /// Returns the memory that `cross` needs of the rows (rows, d_model) of sources, such as an encoder's output. It is
  /// computed once for all queries. With `InputLatent` it is the rows themselves, which all layers of a decoder then
  /// share. Rotary keys are rotated by their position in their source. Throws Error for rows of another width.
  template <class Context, class Tensor>
  auto remember(Context& context, const Tensor& source, const Sequences& sources) const {
    static_assert(detail::is_context_of<Context, T>() && detail::computes_on<Policy, Context>());
    auto memory = key_value.remember(context, source, source);
    if constexpr (Position::turns_keys) rotate_keys(context, memory, table(context, Pass<Tensor>{sources}));
    return memory;
  }
  /// Returns the cross-attention of x (rows, d_model): its rows, in `queries`, see all rows of the source in the
  /// sequence of the same number. Hypotheses of a beam are rows of one sequence, since queries do not see each other.
  /// Rotary keys need the table of the positions of x, counted from the beginning of their own sequence (see `table`).
  /// The path of each source depends on its own rows and queries alone; a tape takes one for all. Throws Error for
  /// sizes that do not fit.
  template <class Context, class Tensor, class Memory>
  Tensor cross(Context& context, const Tensor& x, const Sequences& queries, const Memory& memory,
               const Sequences& sources, const Tensor& table = {}, AttentionPath path = AttentionPath::by_cost) const {
    static_assert(!Position::is_relative && !Position::turns_input,
                  "laconic: cross-attention has NoPosition, for there is no distance between frames of two sequences, "
                  "or a rotary key, which has a position in each");
    static_assert(!is_linear, "laconic: cross-attention is softmax attention");
    const auto absorbs_one = [&](Index n) {
      return absorbs(context, path, Policy::masked_work({}, queries.length(n), sources.length(n)));
    };
    Queries<Tensor> q = query(context, x);
    if constexpr (Position::turns_keys) {
      require(!table.empty(), "cross-attention: no table of positions given, that of the queries (`table`) expected");
      rotate_queries(context, q, table);
    }
    const AttendShape shape{dims_.num_heads, dims_.num_kv_heads, scale(), {}};
    return linear_out(context,
                      attend_each(context, q, memory, shape, queries, sources, sources, RelativeTerm<Tensor, T>{},
                                  absorbs_one, [](Index, const Memory& rows, const Sequences&) { return rows; }));
  }

  /// Returns the first weight that the layer's unchanged input is multiplied by.
  const Parameter<T>& input_weight() const {
    if constexpr (Position::turns_input) return key_value.value_weight();
    return query.input_weight();
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    std::remove_cvref_t<decltype(self.query)>::each_parameter(self.query, visit);
    std::remove_cvref_t<decltype(self.key_value)>::each_parameter(self.key_value, visit);
    visit("linear_out", self.linear_out);
    std::remove_cvref_t<decltype(self.position)>::each_parameter(self.position, visit);
  }

  typename Policy::Query::template Layer<T> query;  ///< from the input to queries
  typename KeyValue::template Layer<T> key_value;   ///< from the input to memory, keys and values
  Linear<T> linear_out;                             ///< from all heads to d_model
  typename Position::template Layer<T> position;    ///< the term that scores gain by positions

 private:
  struct Resolved {
    AttentionDims dims;
  };
  AttentionLayer(const Resolved& resolved, double dropout, Seed seed)
      : AttentionLayer(resolved, resolved.dims, dropout, seed) {}
  AttentionLayer(const Resolved&, const AttentionDims& d, double dropout, Seed seed)
      : query(d, seed),
        key_value(d, seed),
        linear_out(d.q_dim(), d.d_model, seed / "linear_out", bias_if(d.bias)),
        position(d, seed),
        dims_(d),
        dropout_(dropout) {}

  /// Returns the scale of the scores, 1 / sqrt of the width that queries and keys have before any absorption.
  double scale() const { return 1 / std::sqrt(static_cast<double>(dims_.head_dim + dims_.qk_rope_head_dim)); }

  template <class Context, class Tensor>
  static void rotate_queries(Context& context, Queries<Tensor>& q, const Tensor& table) {
    Tensor& part = q.rope.empty() ? q.content : q.rope;
    part = context.rotate(std::move(part), table, Position::pairs);
  }
  template <class Context, class Memory, class Tensor>
  static void rotate_keys(Context& context, Memory& memory, const Tensor& table) {
    Tensor& part = memory[static_cast<std::size_t>(*KeyValue::rotary_part)];
    part = context.rotate(std::move(part), table, Position::pairs);
  }
  template <class Context, class Tensor>
  Tensor rotated_input(Context& context, const Tensor& x, const Pass<Tensor>& pass) const {
    if constexpr (Position::turns_input) return context.rotate(x, pass.table, Position::pairs);
    return x;
  }

  /// Returns whether to take the absorbed path. Dropout of probabilities is defined on the expanded path only, so
  /// training stays on that.
  template <class Context>
  bool absorbs(const Context& context, AttentionPath path, const typename Policy::Work& work) const {
    if (path != AttentionPath::by_cost) return path == AttentionPath::absorbed;
    return !context.training && Policy::absorbing_is_cheaper(dims_, work);
  }

  /// Attends, each sequence on its own path, so that its bits do not depend on the others. Neighbours on one path are
  /// attended together; nothing is copied where all take the same. `memory` has the rows of `fresh`, and
  /// view(first, rows, fresh) returns what `attend` reads for sequences from `first` on.
  template <class Context, class Tensor, class Memory, class Absorbs, class View>
  Tensor attend_each(Context& context, const Queries<Tensor>& q, const Memory& memory, const AttendShape& shape,
                     const Sequences& queries, const Sequences& fresh, const Sequences& keys,
                     const RelativeTerm<Tensor, T>& term, [[maybe_unused]] const Absorbs& absorbs_one,
                     const View& view) const {
    const auto together = [&](bool absorb) {
      return attend(context, q, view(0, memory, fresh), shape, queries, keys, term, absorb);
    };
    if constexpr (!KeyValue::is_latent) {
      return together(false);
    } else {
      const auto end_of = [&](Index begin, bool absorb) {
        Index end = begin + 1;
        while (end < queries.size() && absorbs_one(end) == absorb) ++end;
        return end;
      };
      const bool first = queries.size() > 0 && absorbs_one(0);
      if (queries.size() == 0 || end_of(0, first) == queries.size()) return together(first);
      if constexpr (!StreamingContext<Context>) {
        return together(false);  // tapes do not cut rows; both paths are exact
      } else {
        Tensor out = context.make(queries.rows(), dims_.q_dim());
        for (Index begin = 0, end = 0; begin < queries.size(); begin = end) {
          const bool absorb = absorbs_one(begin);
          end = end_of(begin, absorb);
          const auto cut = [&](const Sequences& all) {
            return Sequences::make(context.arena(), end - begin, [&](Index i) { return all.length(begin + i); });
          };
          const auto cut_rows = [&](const Tensor& x, const Sequences& all) {
            Tensor part;
            if (x.empty()) return part;
            part = context.make(all.end(end - 1) - all.begin(begin), x.cols());
            context.copy_rows(x, part, std::array{RowRange{all.begin(begin), part.rows(), 0}});
            return part;
          };
          Memory part;
          for (std::size_t i = 0; i < part.size(); ++i) part[i] = cut_rows(memory[i], fresh);
          const Tensor rows = attend(context, {cut_rows(q.content, queries), cut_rows(q.rope, queries)},
                                     view(begin, part, cut(fresh)), shape, cut(queries), cut(keys), term, absorb);
          context.copy_rows(rows, out, std::array{RowRange{0, rows.rows(), queries.begin(begin)}});
        }
        return out;
      }
    }
  }

  template <class Context, class Tensor, class Memory>
  Tensor attend(Context& context, const Queries<Tensor>& q, const Memory& memory, AttendShape shape,
                const Sequences& queries, const Sequences& keys, RelativeTerm<Tensor, T> term,
                [[maybe_unused]] bool absorb) const {
    const auto with_rope = [&](const Tensor& content) {
      return q.rope.empty() ? content : context.concat(content, q.rope, dims_.num_heads, dims_.num_heads);
    };
    if constexpr (KeyValue::is_latent) {
      if (absorb) {
        require(!(context.training && dropout_ > 0),
                "attention: the absorbed path has no dropout of probabilities, which this layer trains with");
        Tensor content = q.content;
        if (term.pos_bias_u != nullptr) content = context.add_row(content, *term.pos_bias_u);
        if (!term.table.empty()) term.query = q.content;
        term.pos_bias_u = nullptr;
        const auto [k, v] =
            key_value.latents(context, rows_of<KeyValue::latents_are_memory>(context, memory, queries, keys));
        shape.num_kv_heads = KeyValue::absorbed(dims_).num_kv_heads;
        return key_value.release(
            context, context.attend(with_rope(key_value.absorb(context, content)), k, v, shape, queries, keys, term));
      }
    }
    const auto [k, v] = key_value.expand(context, rows_of<!KeyValue::is_latent>(context, memory, queries, keys));
    return context.attend(with_rope(q.content), k, v, shape, queries, keys, term, dropout_);
  }

  /// Returns the memory as tensors, or unchanged where attention reads it in caches.
  template <bool InPlace, class Context, class Memory>
  static auto rows_of(Context& context, const Memory& memory, const Sequences& fresh, const Sequences& all) {
    if constexpr (InPlace || std::is_same_v<typename Memory::value_type, typename Context::Tensor>) {
      return memory;
    } else {
      std::array<typename Context::Tensor, std::tuple_size_v<Memory>> out;
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = context.gathered(memory[i], fresh, all);
      return out;
    }
  }

  AttentionDims dims_;
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <variant>

namespace laconic {
inline namespace LACONIC_ABI {

template <class Any, class T>
class AnyLayer;

namespace detail {

/// Returns what an attention layer gives. A function of its own, neither a member nor inline, so that a program can
/// compile each attention once (`extern template`) and not again for every encoder.
template <class Layer, class Context, class Tensor, class S>
Tensor layer_output(const Layer& layer, Context& context, const Tensor& x, const Pass<Tensor>& pass, S state) {
  if constexpr (has_state<S>)
    return layer(context, x, pass, state);
  else
    return layer(context, x, pass);
}

/// Pairs a policy with the names that mean it. A rotary position has to be named, too; a decoupled latent has its own.
template <class Policy_, AttentionName... Names>
struct NamedPolicy {
  using Policy = Policy_;  ///< the policy
  /// Says whether the configuration has to name a rotary position.
  static constexpr bool rotates =
      Policy::Position::turns_input || (Policy::Position::turns_keys && !Policy::KeyValue::is_latent);
  /// Returns whether the configuration names it.
  static constexpr bool is(const AttentionConfig& c) { return goes_with(c) && ((c.attention == Names) || ...); }
  /// Returns whether the policy has the positions that the configuration names.
  static constexpr bool goes_with(const AttentionConfig& c) {
    return (c.position_embeddings_type == PositionEmbeddings::rotary) == rotates &&
           !(c.position_embeddings_type == PositionEmbeddings::none && Policy::Position::is_relative);
  }
};

/// Lists named policies, of which `visit` calls back with the first that the configuration names.
template <class First, class... Rest>
struct NamedPolicies {
  template <class T>
  using Variant = std::variant<AttentionLayer<typename First::Policy, T>, AttentionLayer<typename Rest::Policy, T>...>;

  template <class F>
  static constexpr decltype(auto) visit(const AttentionConfig& config, F&& f) {
    if (!(First::is(config) || ... || Rest::is(config))) refuse(config);
    if constexpr (sizeof...(Rest) > 0) {
      if (!First::is(config)) return NamedPolicies<Rest...>::visit(config, std::forward<F>(f));
    }
    return f(std::type_identity<typename First::Policy>());
  }

 private:
  /// Throws Error with the names that go with the positions of the configuration.
  [[noreturn]] static void refuse(const AttentionConfig& config) {
    std::string names;
    AttentionConfig named = config;
    for (const EnumName<AttentionName>& entry : enum_names(AttentionName{})) {
      named.attention = entry.value;
      if ((First::is(named) || ... || Rest::is(named))) names += text(names.empty() ? "" : ", ", entry.name);
    }
    const bool none = config.position_embeddings_type == PositionEmbeddings::none;
    throw Error(text("attention: ", to_name(config.attention), " with ",
                     none ? "no" : to_name(config.position_embeddings_type), " positions given, one of ", names,
                     " expected with these positions"));
  }
};

/// Says whether a configuration names the policy, as with AnyAttention.
template <class Policy>
inline constexpr bool names_its_policy = requires {
  typename Policy::Policies;
};
/// Calls f(std::type_identity<Policy>()) with the policy that the configuration names for an open type, or with the
/// type's own.
template <class Policy, class F>
constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
  if constexpr (names_its_policy<Policy>)
    return Policy::with_policy(config, std::forward<F>(f));
  else
    return f(std::type_identity<Policy>());
}

}  // namespace detail

/// Takes the attention of a list that the configuration names, as `dyn` takes sizes: one compiled model then serves
/// them all. `AnyAttention` and `AnyCausalAttention` derive from it.
template <class Self, class Policies_>
struct AnyAttentionOf {
  using Policies = Policies_;  ///< the policies that a configuration can name
  /// The layer that computes it in numbers of type T.
  template <class T>
  using Layer = AnyLayer<Self, T>;

  /// Returns f(std::type_identity<Policy>()) for the policy that is named. Throws Error where none is.
  template <class F>
  static constexpr decltype(auto) with_policy(const AttentionConfig& config, F&& f) {
    return Policies::visit(config, std::forward<F>(f));
  }

  /// Returns the configuration with the key-value heads that the name means. Throws Error where the configuration
  /// contradicts the name, or lacks a size.
  static constexpr AttentionConfig named(AttentionConfig config) {
    using enum AttentionName;
    const Index given = config.num_kv_heads;
    const auto name = to_name(config.attention);
    const bool has_groups = config.attention == gqa || config.attention == linear || config.attention == input_latent;
    if (!has_groups) {
      config.num_kv_heads = config.attention == mqa ? 1 : config.num_heads;
      require(given == 0 || given == config.num_kv_heads, "num_kv_heads: ", given, " given, but ", name, " has ",
              config.num_kv_heads, " here");
    }
    require(config.attention != gqa || given > 0, "num_kv_heads: gqa needs a number of key-value heads, a divisor of ",
            config.num_heads);
    const bool has_latent = config.attention == mla || config.attention == mla_simple ||
                            config.attention == mla_split || config.attention == mla_head ||
                            config.attention == mla_decoupled;
    require(!has_latent || config.kv_lora_rank > 0, "kv_lora_rank: ", config.kv_lora_rank, " given, but ", name,
            " needs a latent rank");
    return config;
  }

  /// Returns all sizes. Throws Error where they do not fit.
  static constexpr AttentionDims dims(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::dims(named(config)); });
  }
  /// Returns the bytes that one layer caches for `n` frames: see AttentionCost.
  static constexpr Index cache_bytes(const AttentionConfig& config, Frames n, Storage storage = Storage::full) {
    return with_policy(config,
                       [&]<class P>(std::type_identity<P>) { return P::cache_bytes(named(config), n, storage); });
  }
  /// Returns the trained parameters of one layer.
  static constexpr Index parameter_count(const AttentionConfig& config) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::parameter_count(named(config)); });
  }
  /// Returns the floating-point operations of one layer over a sequence of `n` frames: see AttentionCost.
  static constexpr Index flops(const AttentionConfig& config, Frames n, const Mask& mask = {}) {
    return with_policy(config, [&]<class P>(std::type_identity<P>) { return P::flops(named(config), n, mask); });
  }
};

/// Names the attention of an encoder. Positions are relative, except where an attention has its own (rotary for a
/// decoupled latent, none for linear attention), where the configuration says rotary, with which full, grouped and
/// split attention go, and where it says none, with which full and grouped attention and a shared latent go.
struct AnyAttention
    : AnyAttentionOf<AnyAttention,
                     detail::NamedPolicies<
                         detail::NamedPolicy<Gqa<dyn, dyn>, AttentionName::mha, AttentionName::gqa, AttentionName::mqa>,
                         detail::NamedPolicy<Mla<dyn, dyn>, AttentionName::mla>,
                         detail::NamedPolicy<MlaSimple<dyn, dyn>, AttentionName::mla_simple>,
                         detail::NamedPolicy<MlaSplit<dyn, dyn, dyn>, AttentionName::mla_split>,
                         detail::NamedPolicy<MlaHead<dyn, dyn, dyn>, AttentionName::mla_head>,
                         detail::NamedPolicy<MlaDecoupled<dyn, dyn, dyn>, AttentionName::mla_decoupled>,
                         detail::NamedPolicy<CachedInput<dyn, dyn>, AttentionName::input_latent>,
                         detail::NamedPolicy<LinearAttention<dyn, dyn>, AttentionName::linear>,
                         detail::NamedPolicy<Gqa<dyn, dyn, InputRotary<>>, AttentionName::mha, AttentionName::gqa,
                                             AttentionName::mqa>,
                         detail::NamedPolicy<MlaSplit<dyn, dyn, dyn, InputRotary<>>, AttentionName::mla_split>,
                         detail::NamedPolicy<Gqa<dyn, dyn, NoPosition>, AttentionName::mha, AttentionName::gqa,
                                             AttentionName::mqa>,
                         detail::NamedPolicy<MlaSimple<dyn, dyn, NoPosition>, AttentionName::mla_simple>>> {};

/// Names the attention of a decoder. It adds no positions by itself, except where it has its own (rotary for a
/// decoupled latent) and where the configuration says rotary, with which full and grouped attention go.
struct AnyCausalAttention
    : AnyAttentionOf<
          AnyCausalAttention,
          detail::NamedPolicies<detail::NamedPolicy<Gqa<dyn, dyn, NoPosition>, AttentionName::mha, AttentionName::gqa,
                                                    AttentionName::mqa>,
                                detail::NamedPolicy<MlaSimple<dyn, dyn, NoPosition>, AttentionName::mla_simple>,
                                detail::NamedPolicy<MlaSplit<dyn, dyn, dyn, NoPosition>, AttentionName::mla_split>,
                                detail::NamedPolicy<MlaHead<dyn, dyn, dyn, NoPosition>, AttentionName::mla_head>,
                                detail::NamedPolicy<MlaDecoupled<dyn, dyn, dyn>, AttentionName::mla_decoupled>,
                                detail::NamedPolicy<Gqa<dyn, dyn, Rotary<RotaryPairs::halves>>, AttentionName::mha,
                                                    AttentionName::gqa, AttentionName::mqa>>> {};

/// Holds the attention layer of the policy that the configuration names among those of Any, and forwards to it.
template <class Any, class T>
class AnyLayer : public Module<AnyLayer<Any, T>> {
 public:
  using Scalar = T;  ///< the type of its parameters
  /// One of the layers.
  using Variant = typename Any::Policies::template Variant<T>;

  /// Makes the layer that the configuration names. Allocates. Throws Error where the sizes do not fit.
  AnyLayer(const AttentionConfig& config, double dropout, Seed seed)
      : layer(Any::with_policy(config, [&]<class P>(std::type_identity<P>) {
          return Variant(std::in_place_type<AttentionLayer<P, T>>, Any::named(config), dropout, seed);
        })) {}

  /// Returns all sizes.
  const AttentionDims& dims() const {
    return std::visit([](const auto& l) -> const AttentionDims& { return l.dims(); }, layer);
  }
  /// Returns whether a stream's state grows with the frames that it keeps.
  bool keeps_frames() const {
    return std::visit([](const auto& l) { return l.keeps_frames(); }, layer);
  }

  /// Holds what streams keep of earlier frames. Takes memory at construction only.
  template <class Context>
  class State {
    template <class>
    struct StatesOf;
    template <class... Layers>
    struct StatesOf<std::variant<Layers...>> {
      using type = std::variant<typename Layers::template State<Context>...>;
    };

   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const AnyLayer& any, const StateShape& shape)
        : state_(std::visit(
              [&]<class L>(const L& l) {
                return States(std::in_place_type<typename L::template State<Context>>, context, l, shape);
              },
              any.layer)) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      std::visit([&](auto& s) { s.clear(context, slot); }, state_);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      std::visit([&](auto& s) { s.fill_zeros(context, slot); }, state_);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      std::visit([&](auto& s) { s.fork(context, from, to); }, state_);
    }
    /// Returns the bytes that the caches hold, all slots.
    Index cache_bytes() const {
      return std::visit([](const auto& s) { return s.cache_bytes(); }, state_);
    }
    /// Returns the state of a layer of type L.
    template <class L>
    auto* of(const L&) {
      return &std::get<typename L::template State<Context>>(state_);
    }

   private:
    using States = typename StatesOf<Variant>::type;
    States state_;
  };

  /// Returns the rows as the position policy changes them once, before the first layer.
  template <class Context, class Tensor>
  Tensor enter(Context& context, Tensor x, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.enter(context, std::move(x), pass); }, layer);
  }
  /// Returns the table of positions that all layers share, or an empty tensor.
  template <class Context, class Tensor>
  Tensor table(Context& context, const Pass<Tensor>& pass) const {
    return std::visit([&](const auto& l) { return l.table(context, pass); }, layer);
  }
  /// Returns the self-attention of x (rows, d_model): see AttentionLayer.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    return std::visit(
        [&](const auto& l) {
          if constexpr (has_state<S>)
            return detail::layer_output(l, context, x, pass, state->of(l));
          else
            return detail::layer_output(l, context, x, pass, nullptr);
        },
        layer);
  }
  /// Returns the first weight that the layer's unchanged input is multiplied by.
  const Parameter<T>& input_weight() const {
    return std::visit([](const auto& l) -> const Parameter<T>& { return l.input_weight(); }, layer);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    std::visit([&](auto& l) { std::remove_cvref_t<decltype(l)>::each_parameter(l, visit); }, self.layer);
  }

  Variant layer;  ///< the layer
};

/// The layer of an encoder whose attention the configuration names.
template <class T>
using AnyAttentionLayer = AnyLayer<AnyAttention, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <unordered_set>

namespace laconic {
inline namespace LACONIC_ABI {

/// Trains models: computes with a backend and records each primitive on a tape. `backward(loss)` walks the tape once,
/// adds to the gradient of every trainable parameter, and frees the nodes that it has passed. A model is written in
/// terms of a context's primitives, so the same code runs and trains.
///
/// This object owns the tape: `clear()` and destruction free every node. Dropout and the statistics of batch norm
/// follow `training`. Call number n of dropout draws from stream n of the seed.
template <TrainingContext B>
class Autodiff {
  using Value = typename B::Tensor;

 public:
  /// Names the type of the elements.
  using Scalar = typename B::Scalar;

  /// Holds a value and its place on the tape.
  class Tensor {
   public:
    /// Makes an empty tensor.
    Tensor() = default;
    /// Holds a value of the backend that node n computed, or a constant if n is -1.
    Tensor(Value v, Index n) : value(std::move(v)), node(n) {}
    /// Returns the number of rows.
    Index rows() const { return value.rows(); }
    /// Returns the number of columns.
    Index cols() const { return value.cols(); }
    /// Returns whether there is no value.
    bool empty() const { return value.empty(); }
    /// Returns the value as a matrix that cannot be changed, if the backend's tensors are on the host.
    auto view() const { return value.view(); }
    Value value;      ///< the value, a tensor of the backend
    Index node = -1;  ///< the number of the node that computed it; -1: a constant, which has no derivative
  };

  /// Makes an empty tape over a backend, which must outlive it. `train` says whether primitives compute their training
  /// form.
  explicit Autodiff(B& backend, Seed seed = Seed(), bool train = true)
      : training(train), backend_(backend), seed_(seed) {}
  Autodiff(const Autodiff&) = delete;
  Autodiff& operator=(const Autodiff&) = delete;

  /// Says whether primitives compute their training form: dropout, and the batch's statistics in batch norm.
  const bool training;
  /// Says whether encoders keep only the input of each block and recompute the block in the backward pass (see
  /// `recompute`). It needs up to a third more time, and the memory of one block's intermediate values instead of all.
  bool recompute_blocks = false;
  /// Returns the backend.
  B& backend() { return backend_; }
  /// Returns the backend's host memory.
  Arena& arena() { return backend_.arena(); }
  /// Returns the number of threads of the backend.
  int threads() const { return backend_.threads(); }
  /// Says whether the backend computes with parameters on the host.
  static constexpr bool computes_on_host = B::computes_on_host;

  // -- parameters ---------------------------------------------------------------------------------------------------
  /// Prepares a model to be trained. Throws `Error` for a `storage` that rounds its parameters.
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    require(storage == Storage::full, "prepare: ", to_name(storage), " given, weights in full expected to train");
    backend_.prepare_training(model);
  }
  /// Moves the parameters of a model back to the host.
  template <class Model>
  void fetch(Model& model) {
    backend_.fetch(model);
  }

  // -- values -------------------------------------------------------------------------------------------------------
  /// Returns a borrowed matrix as a constant. The matrix must outlive everything that is computed from it.
  Tensor input(const Matrix<Scalar>& x) { return {backend_.input(x), -1}; }
  /// Returns a copy of a temporary matrix as a constant.
  Tensor input(Matrix<Scalar>&& x) { return {backend_.input(std::move(x)), -1}; }
  /// Returns a tensor unchanged.
  Tensor input(Tensor x) { return x; }
  /// Returns a value of the backend as a constant, which has no derivative.
  Tensor constant(Value x) { return {std::move(x), -1}; }
  /// Returns a constant (rows, cols) whose elements all have this value.
  Tensor fill(Index rows, Index cols, double value) { return {backend_.fill(rows, cols, value), -1}; }
  /// Returns the sinusoids of positions (rows, width) as a constant.
  Tensor sinusoids(const RowPositions& positions, Index width) { return {backend_.sinusoids(positions, width), -1}; }
  /// Returns the table of `rotate` (rows, width) as a constant.
  Tensor rotary_table(const RowPositions& positions, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& rates = {}) {
    return {backend_.rotary_table(positions, width, rate_width, pairs, rates), -1};
  }
  /// Returns the values as a matrix of the host. Allocates.
  Matrix<Scalar> output(const Tensor& x) { return backend_.output(x.value); }
  /// Writes the values, row by row, to memory of the host.
  void read(const Tensor& x, std::span<Scalar> values) { backend_.read(x.value, values); }
  /// Returns the value of a (1, 1) tensor.
  double number(const Tensor& x) { return backend_.number(x.value); }
  /// Writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN.
  void argmax(const Tensor& x, std::span<Index> columns) { backend_.argmax(x.value, columns); }
  /// Returns a borrowed matrix as a variable, whose derivative `gradient` returns after `backward`.
  Tensor variable(const Matrix<Scalar>& x) { return record(backend_.input(x), nullptr); }
  /// Returns a copy of a temporary matrix as a variable, whose derivative `gradient` returns after `backward`.
  Tensor variable(Matrix<Scalar>&& x) { return record(backend_.input(std::move(x)), nullptr); }
  /// Returns the derivative by a variable, which is empty if the loss does not depend on it. Throws `Error` for a
  /// constant and for an intermediate value, whose derivative is not kept.
  const Value& gradient(const Tensor& variable) const {
    require(variable.node >= 0, "gradient: of a constant; of a variable expected");
    const Node& node = nodes_[place(variable)];
    require(node.leaf, "gradient: of an intermediate value, which is not kept; of a variable expected");
    return node.gradient;
  }

  /// Computes the derivatives of weight * loss (1, 1) and adds them to the gradients of all trainable parameters and
  /// variables that the loss depends on. The recorded nodes can be used once only.
  void backward(const Tensor& loss, double weight = 1) {
    start(loss, weight);
    walk_back(0, [](std::size_t) {});
  }
  /// Computes the derivatives, and calls `computed(std::span<const Parameter<Scalar>* const>)` after each node of the
  /// tape, a recomputed part being one, with the trainable parameters, maybe none, whose gradients are complete by
  /// then. Each that was used comes once.
  template <class Computed>
  void backward(const Tensor& loss, double weight, Computed&& computed) {
    start(loss, weight);
    const FirstUses first = first_uses();
    std::size_t left = first.nodes.size();
    walk_back(0, [&](std::size_t node) {
      const std::size_t end = left;
      while (left > 0 && first.nodes[left - 1] >= node) --left;
      computed(std::span(first.parameters).subspan(left, end - left));
    });
  }
  /// Clears the tape. Earlier values stay valid, but what is computed from them later has no derivative by anything
  /// before.
  void clear() {
    cleared_ += static_cast<Index>(nodes_.size());
    nodes_.clear();
    uses_.clear();
  }

  /// Returns f(x), for which the tape keeps only x: the backward pass recomputes the intermediate values (Chen et al.
  /// 2016). Values, derivatives and statistics are bit for bit those of f(x) if f is deterministic. f takes and returns
  /// a Tensor, and must own everything that it uses.
  template <class F>
  Tensor recompute(const Tensor& x, F f) {
    const std::size_t begin = nodes_.size(), first_use = uses_.size();
    const std::uint64_t first_call = calls_;
    Tensor y = f(x);
    const bool recorded = needs(y) && place(y) >= begin;
    nodes_.resize(begin);
    if (!recorded) uses_.resize(first_use);
    if (!recorded) return y;
    for (std::size_t i = first_use; i < uses_.size(); ++i) uses_[i].node = begin;  // of the node that stands for all
    return op(std::move(y.value), true, [this, x, first_call, f = std::move(f)](Value dy) {
      const std::size_t at = nodes_.size(), uses = uses_.size();
      const bool wanted = needs(x);
      const Tensor start = wanted ? record(x.value, nullptr) : x;
      // The gradient that x has already comes first, so that sums have the same order as without recomputation.
      if (wanted) nodes_[at].gradient = std::move(unused(x).gradient);
      give(again(f, start, first_call), std::move(dy));
      walk_back(at, [](std::size_t) {});
      if (wanted) unused(x).gradient = std::move(nodes_[at].gradient);
      nodes_.resize(at);
      uses_.resize(uses);
    });
  }

  // -- primitives, as documented at Context -------------------------------------------------------------------------
  /// Names the type of a parameter.
  using P = Parameter<Scalar>;

  /// Returns x W^T + b, then the activation if one is given, and records its derivative.
  Tensor linear(const Tensor& x, const P& weight, const P* bias, std::optional<Activation> kind = {}) {
    if (kind) return activation(*kind, linear(x, weight, bias));
    return op(backend_.linear(x.value, weight, bias), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias](const Value& dy) {
                give(x, backend_.linear_backward(dy, x.value, weight, bias, needs(x)));
              });
  }
  /// Returns ReLU, SiLU or GELU of each element, and records its derivative.
  Tensor activation(Activation kind, const Tensor& x) {
    return op(backend_.activation(kind, x.value), needs(x),
              [this, kind, x](Value dy) { give(x, backend_.activation_backward(kind, std::move(dy), x.value)); });
  }
  /// Returns a * sigmoid(b) of x = [a, b], and records its derivative.
  Tensor glu(const Tensor& x) {
    return op(backend_.glu(x.value), needs(x),
              [this, x](const Value& dy) { give(x, backend_.glu_backward(dy, x.value)); });
  }
  /// Returns the layer norm of each row, and records its derivative.
  Tensor layer_norm(const Tensor& x, const P& weight, const P& bias, double eps) {
    Value moments;
    Value y = backend_.layer_norm(x.value, weight, bias, eps, &moments);
    return op(std::move(y), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, moments](const Value& dy) {
                give(x, backend_.layer_norm_backward(dy, x.value, weight, bias, moments, needs(x)));
              });
  }
  /// Returns the root-mean-square norm of each row, and records its derivative.
  Tensor rms_norm(const Tensor& x, const P& weight, double eps) {
    Value inverses;
    Value y = backend_.rms_norm(x.value, weight, eps, &inverses);
    return op(std::move(y), any(needs(x), trains(weight)), [this, x, &weight, inverses](const Value& dy) {
      give(x, backend_.rms_norm_backward(dy, x.value, weight, inverses, needs(x)));
    });
  }
  /// Returns the batch norm of each channel, and records its derivative. In training it uses the statistics of the
  /// batch and accumulates the update of the running statistics, unless these are frozen.
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<Scalar>& p) {
    Value moments;
    const bool of_batch = training && p.running_mean.trainable;  // frozen running statistics are used instead
    Value y = of_batch ? backend_.batch_norm_train(x.value, p, moments, !again_) : backend_.batch_norm(x.value, p);
    return op(std::move(y), any(needs(x), trains(p.weight), trains(p.bias)), [this, x, p, moments](const Value& dy) {
      give(x, backend_.batch_norm_backward(dy, x.value, p, moments, needs(x)));
    });
  }
  /// Returns the norm of each channel over each sequence, and records its derivative.
  Tensor sequence_norm(const Tensor& x, const P& weight, const P& bias, double eps, const Sequences& sequences) {
    Value moments;
    Value y = backend_.sequence_norm(x.value, weight, bias, eps, sequences, &moments);
    return op(std::move(y), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, eps, sequences, moments](const Value& dy) {
                give(x, backend_.sequence_norm_backward(dy, x.value, weight, bias, eps, sequences, moments, needs(x)));
              });
  }
  /// Returns a convolution over time, and records its derivative.
  Tensor conv1d(const Tensor& x, const P& weight, const P* bias, const Conv1dShape& shape, const Sequences& from,
                const Sequences& to) {
    return op(backend_.conv1d(x.value, weight, bias, shape, from, to), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias, shape, from, to](const Value& dy) {
                give(x, backend_.conv1d_backward(dy, x.value, weight, bias, shape, from, to, needs(x)));
              });
  }
  /// Returns a 3 x 3 convolution over (time, frequency), then the activation if one is given, and records its
  /// derivative.
  Tensor conv2d(const Tensor& x, const P& weight, const P& bias, const Conv2dShape& shape, const Sequences& from,
                const Sequences& to, std::optional<Activation> kind = {}) {
    // The result of ReLU shows where its derivative is 0, so its input need not be kept.
    const bool relu = kind == Activation::relu;
    if (kind && !relu) return activation(*kind, conv2d(x, weight, bias, shape, from, to));
    Value y = backend_.conv2d(x.value, weight, bias, shape, from, to, kind);
    return op(y, any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, &bias, shape, from, to, y = relu ? y : Value()](Value dy) {
                if (!y.empty()) dy = backend_.activation_backward(Activation::relu, std::move(dy), y);
                give(x, backend_.conv2d_backward(dy, x.value, weight, bias, shape, from, to, needs(x)));
              });
  }
  /// Returns a depthwise convolution over time, and records its derivative.
  Tensor depthwise_conv(const Tensor& x, const P& weight, const P* bias, const Sequences& sequences,
                        const DepthwiseShape& shape) {
    return op(backend_.depthwise_conv(x.value, weight, bias, sequences, shape),
              any(needs(x), trains(weight), trains(bias)), [this, x, &weight, bias, sequences, shape](const Value& dy) {
                give(x, backend_.depthwise_conv_backward(dy, x.value, weight, bias, sequences, shape, needs(x)));
              });
  }
  /// Returns softmax attention, and records its derivative. `dropout` is the dropout probability of the attention
  /// weights in training.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, Scalar>& relative = {}, double dropout = 0) {
    const RelativeTerm<Value, Scalar> term{relative.table.value, relative.pos_bias_u, relative.pos_bias_v,
                                           relative.query.value, relative.packed};
    const DropoutMask mask = next_mask(dropout);
    Value logsumexp;
    Value y = backend_.attend_train(q.value, k.value, v.value, shape, q_sequences, kv_sequences, term, mask, logsumexp);
    const bool needed = any(needs(q), needs(k), needs(v), needs(relative.table), needs(relative.query),
                            trains(relative.pos_bias_u), trains(relative.pos_bias_v));
    return op(std::move(y), needed,
              [=, this, table = relative.table, query = Tensor(Value(), relative.query.node)](const Value& dy) {
                auto d = backend_.attend_backward(dy, q.value, k.value, v.value, shape, q_sequences, kv_sequences, term,
                                                  mask, logsumexp);
                give(q, std::move(d.dq));
                give(k, std::move(d.dk));
                give(v, std::move(d.dv));
                if (!table.empty()) give(table, std::move(d.dtable));
                if (!term.query.empty()) give(query, std::move(d.dposition_q));
              });
  }
  /// Returns linear attention, and records its derivative.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences) {
    return op(backend_.linear_attend(q.value, k.value, v.value, shape, sequences), needs(q) || needs(k) || needs(v),
              [=, this](const Value& dy) {
                auto d = backend_.linear_attend_backward(dy, q.value, k.value, v.value, shape, sequences);
                give(q, std::move(d.dq));
                give(k, std::move(d.dk));
                give(v, std::move(d.dv));
              });
  }
  /// Returns the product of every head with its matrix, and records its derivative.
  Tensor head_linear(const Tensor& x, const P& weight, const P* bias, const HeadShape& shape) {
    return op(backend_.head_linear(x.value, weight, bias, shape), any(needs(x), trains(weight), trains(bias)),
              [this, x, &weight, bias, shape](const Value& dy) {
                give(x, backend_.head_linear_backward(dy, x.value, weight, bias, shape, needs(x)));
              });
  }
  /// Returns row ids[r] of a weight in row r, and records its derivative.
  Tensor embed(std::span<const int> ids, const P& weight) {
    return op(backend_.embed(ids, weight), trains(weight),
              [this, kept = std::vector<int>(ids.begin(), ids.end()), &weight](const Value& dy) {
                backend_.embed_backward(dy, kept, weight);
              });
  }
  /// Returns x rotated by a table of angles, and records its derivative by x.
  Tensor rotate(const Tensor& x, const Tensor& table, RotaryPairs pairs) {
    return op(backend_.rotate(x.value, table.value, pairs), needs(x),
              [this, xn = Tensor(Value(), x.node), table, pairs](const Value& dy) {
                give(xn, backend_.rotate(dy, table.value, pairs, -1));
              });
  }
  /// Returns [a_h, b_h] for every head h, and records its derivative.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    return op(backend_.concat(a.value, b.value, num_heads, b_heads), needs(a) || needs(b),
              [this, an = Tensor(Value(), a.node), bn = Tensor(Value(), b.node), ac = a.cols(), bc = b.cols(),
               num_heads, b_heads](const Value& dy) {
                auto d = backend_.concat_backward(dy, ac, bc, num_heads, b_heads);
                give(an, std::move(d.da));
                give(bn, std::move(d.db));
              });
  }
  /// Returns x with elements dropped in training, and records its derivative.
  Tensor dropout(Tensor x, double probability) {
    const DropoutMask mask = next_mask(probability);
    if (!mask.any()) return x;
    const Tensor xn(Value(), x.node);
    return op(backend_.dropout_train(std::move(x.value), mask), needs(xn),
              [this, xn, mask](Value dy) { give(xn, backend_.dropout_train(std::move(dy), mask)); });
  }
  /// Returns x + scale * y, and records its derivative.
  Tensor add(const Tensor& x, const Tensor& y, double scale = 1) {
    return op(backend_.add(x.value, y.value, scale), needs(x) || needs(y),
              [this, xn = Tensor(Value(), x.node), yn = Tensor(Value(), y.node), scale](const Value& dz) {
                give(xn, dz);
                if (needs(yn)) give(yn, scale == 1 ? dz : backend_.scale(dz, scale));
              });
  }
  /// Returns x with a parameter added to every row, and records its derivative.
  Tensor add_row(const Tensor& x, const P& row) {
    return op(backend_.add_row(x.value, row), any(needs(x), trains(row)),
              [this, xn = Tensor(Value(), x.node), &row](const Value& dy) {
                backend_.add_row_backward(dy, row);
                give(xn, dy);
              });
  }
  /// Returns the elementwise product of x and y, and records its derivative.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    return op(backend_.multiply(x.value, y.value), needs(x) || needs(y), [this, x, y](const Value& dz) {
      if (needs(x)) give(x, backend_.multiply(dz, y.value));
      if (needs(y)) give(y, backend_.multiply(dz, x.value));
    });
  }
  /// Returns the columns first .. first + count - 1 of x, and records its derivative.
  Tensor columns(const Tensor& x, Index first, Index count) {
    return op(backend_.columns(x.value, first, count), needs(x),
              [this, xn = Tensor(Value(), x.node), first, cols = x.cols()](const Value& dy) {
                give(xn, backend_.columns_backward(dy, first, cols));
              });
  }
  /// Returns sigmoid(gate) x + (1 - sigmoid(gate)) y with one gate for each sequence, and records its derivative.
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    return op(backend_.mix(x.value, y.value, gate.value, sequences), needs(x) || needs(y) || needs(gate),
              [=, this](const Value& dout) {
                auto d = backend_.mix_backward(dout, x.value, y.value, gate.value, sequences);
                give(x, std::move(d.dx));
                give(y, std::move(d.dy));
                give(gate, std::move(d.dgate));
              });
  }
  /// Returns factor * x, and records its derivative.
  Tensor scale(const Tensor& x, double factor) {
    return op(backend_.scale(x.value, factor), needs(x), [this, xn = Tensor(Value(), x.node), factor](Value dy) {
      give(xn, backend_.scale(std::move(dy), factor));
    });
  }
  /// Returns the log softmax of each row, and records its derivative.
  Tensor log_softmax(const Tensor& x) {
    Value y = backend_.log_softmax(x.value);
    return op(y, needs(x), [this, xn = Tensor(Value(), x.node), y](const Value& dy) {
      give(xn, backend_.log_softmax_backward(dy, y));
    });
  }
  /// Returns the CTC losses (sequences, 1), and records their derivative.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank) {
    Value derivative;
    Value losses = backend_.ctc(logits.value, sequences, labels, blank, &derivative);
    return op(std::move(losses), needs(logits),
              [this, xn = Tensor(Value(), logits.node), sequences, derivative](const Value& dy) {
                give(xn, backend_.ctc_backward(dy, sequences, derivative));
              });
  }
  /// Returns the cross entropies (rows, 1), and records their derivative.
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape) {
    Value log_probs;
    Value losses = backend_.cross_entropy(logits.value, targets, shape, &log_probs);
    return op(
        std::move(losses), needs(logits),
        [this, xn = Tensor(Value(), logits.node), log_probs, kept = std::vector<int>(targets.begin(), targets.end()),
         shape](const Value& dy) { give(xn, backend_.cross_entropy_backward(dy, log_probs, kept, shape)); });
  }
  /// Returns the mean of all elements with infinite ones as 0, and records its derivative.
  Tensor mean_finite(const Tensor& x) {
    return op(backend_.mean_finite(x.value), needs(x),
              [this, x](const Value& dy) { give(x, backend_.mean_finite_backward(dy, x.value)); });
  }

 private:
  /// Computes the derivatives by a primitive's arguments from the derivative by its result.
  struct Step {
    virtual ~Step() = default;
    virtual void backward(Value gradient) = 0;
  };
  /// Holds a callable as a step.
  template <class F>
  struct StepOf final : Step {
    explicit StepOf(F f) : function(std::move(f)) {}
    void backward(Value gradient) override { function(std::move(gradient)); }
    F function;
  };
  /// Holds a step and the gradient of its result.
  struct Node {
    std::unique_ptr<Step> step;  // null for a leaf, and after it was used
    Value gradient;              // kept for a leaf only
    bool leaf;
  };

  /// Holds a trainable parameter and the place of a node that was computed with it.
  struct Use {
    const P* parameter;
    std::size_t node;
  };
  /// Holds trainable parameters, and for each the place of the first node that was computed with it.
  struct FirstUses {
    std::vector<const P*> parameters;
    std::vector<std::size_t> nodes;
  };

  /// Returns whether a parameter gets a gradient, and keeps that the next node uses it. Throws `Error` if it is
  /// trainable but was prepared to run.
  bool trains(const P& p) {
    require(!p.trainable || p.can_train(),
            "autodiff: a weight prepared to run given, one on the host or prepared for training expected");
    if (p.trainable) uses_.push_back({&p, nodes_.size()});
    return p.trainable;
  }
  bool trains(const P* p) { return p != nullptr && trains(*p); }
  /// Returns whether any of these is true. All are computed, unlike the operands of ||.
  template <class... Bools>
  static bool any(Bools... given) {
    return (given || ...);
  }
  /// Returns whether a derivative by x is needed, which is false for constants and for values from before `clear`.
  bool needs(const Tensor& x) const { return x.node >= cleared_; }
  std::size_t place(const Tensor& x) const {
    require(x.node >= cleared_ && x.node < cleared_ + static_cast<Index>(nodes_.size()),
            "autodiff: a value of another tape, or from before clear()");
    return static_cast<std::size_t>(x.node - cleared_);
  }
  Node& unused(const Tensor& x) {
    Node& node = nodes_[place(x)];
    require(node.leaf || node.step != nullptr,
            "backward: this value was used up by an earlier backward(); compute it again");
    return node;
  }

  /// Returns f(x) computed as before: with the same dropout, and without a second update of statistics.
  template <class F>
  Tensor again(F& f, const Tensor& x, std::uint64_t first_call) {
    struct Restore {
      Autodiff& tape;
      std::uint64_t calls;
      bool again;
      ~Restore() {
        tape.calls_ = calls;
        tape.again_ = again;
      }
    };
    const Restore restore{*this, std::exchange(calls_, first_call), std::exchange(again_, true)};
    return f(x);
  }

  /// Gives the loss its derivative, from which the walk back begins.
  void start(const Tensor& loss, double weight) {
    require(loss.rows() == 1 && loss.cols() == 1, "backward: the loss is (", loss.rows(), ", ", loss.cols(),
            "), expected (1, 1)");
    require(loss.node >= 0, "backward: the loss does not depend on any trainable parameter or variable");
    unused(loss).gradient = backend_.fill(1, 1, weight);
  }
  /// Returns the trainable parameters in the order of the first nodes that use them, and the places of these.
  FirstUses first_uses() const {
    FirstUses out;
    std::unordered_set<const P*> seen;
    for (const Use& use : uses_) {
      if (!seen.insert(use.parameter).second) continue;
      out.parameters.push_back(use.parameter);
      out.nodes.push_back(use.node);
    }
    return out;
  }
  /// Runs the steps from the end of the tape back to node `begin`, each of which is used up, and calls `passed(place)`
  /// after each.
  template <class Passed>
  void walk_back(std::size_t begin, Passed&& passed) {
    for (std::size_t i = nodes_.size(); i-- > begin;) {
      if (nodes_[i].step != nullptr) {
        const std::unique_ptr<Step> step = std::move(nodes_[i].step);
        Value gradient = std::move(nodes_[i].gradient);
        nodes_[i].gradient = Value();
        if (!gradient.empty()) step->backward(std::move(gradient));
      }
      passed(i);
    }
  }

  Tensor record(Value value, std::unique_ptr<Step> step) {
    const bool leaf = step == nullptr;
    nodes_.push_back({std::move(step), Value(), leaf});
    return {std::move(value), cleared_ + static_cast<Index>(nodes_.size()) - 1};
  }
  /// Returns a result. Its derivative is recorded only if one of its arguments needs one.
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
  std::vector<Use> uses_;  // in the order of their nodes
  bool again_ = false;     // whether `recompute` is recomputing
  Index cleared_ = 0;      // nodes that `clear` has dropped; their numbers are not reused
};

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of attention primitives, which all backends share. Each throws `Error` for what does not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `attend` without its relative term. k and v are views of cached and new rows, or of rows
/// only (their cache is null).
template <class Tensor, class CachedRows>
void attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
            const Sequences& q_sequences, const Sequences& kv_sequences) {
  const Index width = shape.num_heads > 0 ? q.cols() / shape.num_heads : 0;
  require(width > 0 && shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 &&
              q.cols() == width * shape.num_heads && k.rows.cols() == width * shape.num_kv_heads &&
              v.rows.cols() % shape.num_kv_heads == 0,
          "attend: q, k, v have ", q.cols(), ", ", k.rows.cols(), ", ", v.rows.cols(), " channels, which ",
          shape.num_heads, " heads over ", shape.num_kv_heads, " key-value heads do not divide");
  // With caches, the new keys and values are the rows of the queries.
  const bool cached = k.cache != nullptr;
  const Sequences& fresh = cached ? q_sequences : kv_sequences;
  require(q.rows() == q_sequences.rows() && k.rows.rows() == fresh.rows() && v.rows.rows() == k.rows.rows() &&
              q_sequences.size() == kv_sequences.size() && cached == (v.cache != nullptr),
          "attend: q, k, v have ", q.rows(), ", ", k.rows.rows(), ", ", v.rows.rows(), " rows; their sequences have ",
          q_sequences.rows(), " and ", fresh.rows());
  require(shape.mask.is_valid(), "attend: a mask of chunk ", shape.mask.chunk, " and left context ",
          shape.mask.left_context, " given, at least 1 and 0 expected, or neither");
  for (Index n = 0; cached && n < kv_sequences.size(); ++n)
    for (const auto* rows : {&k, &v}) {
      const Index count = rows->cache->count(rows->slots[static_cast<std::size_t>(n)]);
      require(count + fresh.length(n) == kv_sequences.length(n), "attend: sequence ", n, " has ", count,
              " cached rows and ", fresh.length(n), " new ones, ", kv_sequences.length(n), " expected");
    }
}

/// Checks the relative term of `attend`, whose table has `table_rows` distances, and its queries, which are those of
/// the term or else q.
template <class Tensor, class T>
void relative_term(const Tensor& q, const RelativeTerm<Tensor, T>& relative, Index table_rows, const AttendShape& shape,
                   const Sequences& q_sequences, const Sequences& kv_sequences) {
  const Tensor& query = relative.query.empty() ? q : relative.query;
  require(query.rows() == q.rows() && query.cols() % shape.num_heads == 0,
          "attend: the queries for relative positions are (", query.rows(), ", ", query.cols(), "), expected ",
          q.rows(), " rows for ", shape.num_heads, " heads");
  const auto bias = [](const Parameter<T>* p, Index cols) {
    require(p == nullptr || p->size() == cols, "attend: a position bias of ", p == nullptr ? 0 : p->size(), " given, ",
            cols, " expected");
  };
  bias(relative.pos_bias_u, q.cols());
  bias(relative.pos_bias_v, query.cols());
  require(
      relative.table.cols() == query.cols() && table_rows % 2 == 1 && (table_rows + 1) / 2 >= kv_sequences.max_length(),
      "attend: the table of relative positions is (", table_rows, ", ", relative.table.cols(), "), expected (2 n - 1, ",
      query.cols(), ") with n at least ", kv_sequences.max_length());
  for (Index n = 0; n < q_sequences.size(); ++n)
    require(q_sequences.length(n) <= kv_sequences.length(n), "attend: sequence ", n, " has ", q_sequences.length(n),
            " queries and ", kv_sequences.length(n), " keys, at least as many keys expected with relative positions");
}

/// Checks the relative term of attention that is trained.
template <class Tensor, class T>
void trainable_term(const RelativeTerm<Tensor, T>& relative) {
  require(!relative.packed, "attend: a packed table given, which can only be run; one as it is expected to train");
}

/// Checks the arguments of `prepare_table`.
template <class Tensor>
void prepare_table(const Tensor& table, Index num_heads) {
  require(num_heads > 0 && table.cols() % num_heads == 0, "prepare_table: ", table.cols(), " channels given for ",
          num_heads, " heads");
}

/// Checks the arguments of `linear_attend` without its states.
template <class Tensor>
void linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                   const Sequences& sequences) {
  const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads;
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && q.cols() % heads == 0 &&
              k.cols() == q.cols() / heads * kv_heads && v.cols() % kv_heads == 0,
          "linear_attend: q, k, v have ", q.cols(), ", ", k.cols(), ", ", v.cols(), " channels, which ", heads,
          " heads over ", kv_heads, " key-value heads do not divide");
  require(q.rows() == sequences.rows() && k.rows() == q.rows() && v.rows() == q.rows(), "linear_attend: q, k, v have ",
          q.rows(), ", ", k.rows(), ", ", v.rows(), " rows; their sequences have ", sequences.rows());
  require(shape.mask.is_valid() && shape.mask.left_context == Mask::unlimited, "linear_attend: a mask of chunk ",
          shape.mask.chunk, " and left context ", shape.mask.left_context,
          " given; its state cannot forget, so an unlimited left context is expected");
}
/// Checks the states of `linear_attend`, `cols` values for each sequence.
template <class Tensor>
void linear_attend_states(const Tensor& states, const Sequences& sequences, Index cols) {
  require(states.rows() == sequences.size() && states.cols() == cols, "linear_attend: states of (", states.rows(), ", ",
          states.cols(), ") given, (", sequences.size(), ", ", cols, ") expected");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of elementwise primitives and of those that move values, which all backends share. Each
// throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `read`.
template <class Tensor>
void read(const Tensor& x, std::size_t room) {
  require(static_cast<Index>(room) == x.size(), "read: room for ", room, " values given, (", x.rows(), ", ", x.cols(),
          ") expected");
}
/// Checks the arguments of `number`.
template <class Tensor>
void number(const Tensor& x) {
  require(x.size() == 1, "number: (", x.rows(), ", ", x.cols(), ") given, (1, 1) expected");
}
/// Checks the arguments of `argmax`.
template <class Tensor>
void argmax(const Tensor& x, std::size_t room) {
  require(static_cast<Index>(room) == x.rows() && x.cols() > 0, "argmax: room for ", room, " columns given for (",
          x.rows(), ", ", x.cols(), "), as many as rows expected, and at least one column");
}
/// Checks the arguments of `copy_rows`.
template <class Tensor>
void copy_rows(const Tensor& from, const Tensor& to, std::span<const RowRange> ranges) {
  for (const RowRange& range : ranges)
    require(range.from >= 0 && range.count >= 0 && range.to >= 0 && range.from <= from.rows() - range.count &&
                range.to <= to.rows() - range.count && from.cols() == to.cols(),
            "copy_rows: ", range.count, " rows from ", range.from, " of (", from.rows(), ", ", from.cols(), ") to ",
            range.to, " of (", to.rows(), ", ", to.cols(), ") given, rows that both have and equal columns expected");
}
/// Checks the arguments of `glu`.
template <class Tensor>
void glu(const Tensor& x) {
  require(x.cols() % 2 == 0, "glu: ", x.cols(), " channels given, an even number expected");
}
/// Checks that a primitive, which is named, has two arguments of the same shape.
template <class Tensor>
void equal_shapes(const char* who, const Tensor& x, const Tensor& y) {
  require(x.rows() == y.rows() && x.cols() == y.cols(), who, ": (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ",
          y.cols(), ") given, equal shapes expected");
}
/// Checks the arguments of `add_row`.
template <class Tensor, class T>
void add_row(const Tensor& x, const Parameter<T>& row) {
  require(x.cols() == row.size(), "add_row: input has ", x.cols(), " channels, the row has ", row.size());
}
/// Checks the arguments of `columns`.
template <class Tensor>
void columns(const Tensor& x, Index first, Index count) {
  require(first >= 0 && count > 0 && first + count <= x.cols(), "columns: ", first, " to ", first + count, " of ",
          x.cols(), " wanted");
}
/// Checks the arguments of `mix`.
template <class Tensor>
void mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
  require(x.rows() == y.rows() && x.cols() == y.cols() && x.rows() == sequences.rows() &&
              gate.rows() == sequences.size() && gate.cols() == 1,
          "mix: (", x.rows(), ", ", x.cols(), ") and (", y.rows(), ", ", y.cols(), ") with gates (", gate.rows(), ", ",
          gate.cols(), ") given, ", sequences.rows(), " rows of equal width and (", sequences.size(), ", 1) expected");
}
/// Checks the arguments of `rotate`.
template <class Tensor>
void rotate(const Tensor& x, const Tensor& table) {
  require(table.cols() > 0 && table.cols() % 2 == 0 && x.cols() % table.cols() == 0 && table.rows() == x.rows(),
          "rotate: (", x.rows(), ", ", x.cols(), ") given with a table of (", table.rows(), ", ", table.cols(),
          "), as many rows and a multiple of an even number of columns expected");
}
/// Checks the arguments of `concat`.
template <class Tensor>
void concat(const Tensor& a, const Tensor& b, Index num_heads, Index b_heads) {
  require(a.rows() == b.rows() && num_heads > 0 && a.cols() % num_heads == 0 &&
              (b_heads == num_heads || b_heads == 1) && b.cols() % b_heads == 0,
          "concat: (", a.rows(), ", ", a.cols(), ") and (", b.rows(), ", ", b.cols(), ") given for ", num_heads,
          " and ", b_heads, " heads");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

// Threads and clock of POSIX: <thread> and <chrono> would be a tenth of what <laconic/laconic.hpp> costs to compile.
#include <pthread.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Tells the processor that this thread waits for another one.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Returns the number of the machine's processors.
inline int processors() { return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN))); }

/// Returns nanoseconds by a clock that is never set back, or those for which this thread ran (CLOCK_THREAD_CPUTIME_ID).
inline std::int64_t nanoseconds(clockid_t clock = CLOCK_MONOTONIC) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

/// Watches how often other programs take the processor of one thread, which calls all functions.
class ProcessorWatch {
 public:
  /// Says whether it is time to look again.
  bool is_due(std::int64_t now) const { return now - seen_ > ms; }

  /// Looks, and says whether this thread was put aside for more than a quarter of its time of late, once for each such
  /// time. Time in which it waited for something itself does not count. Where the system does not tell (RUSAGE_THREAD),
  /// it never was.
  bool is_often_put_aside() {
#ifdef RUSAGE_THREAD
    const std::int64_t now = nanoseconds(), ran = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
    rusage usage{};  // its times would be those of the last tick of the system
    ::getrusage(RUSAGE_THREAD, &usage);
    if (std::exchange(waits_, usage.ru_nvcsw) == usage.ru_nvcsw) {
      awake_of_late_ += now - seen_;
      away_of_late_ += now - seen_ - (ran - ran_);
    }
    seen_ = now;
    ran_ = ran;
    const bool is_often = 4 * away_of_late_ > std::max(awake_of_late_, of_late / 2);
    if (is_often) awake_of_late_ = away_of_late_ = 0;  // what was seen is told once
    if (awake_of_late_ > of_late) {
      awake_of_late_ /= 2;
      away_of_late_ /= 2;
    }
    return is_often;
#else
    return false;
#endif
  }

 private:
  static constexpr std::int64_t ms = 1'000'000, of_late = 60 * ms;

  std::int64_t seen_ = 0, ran_ = 0;  // when it looked last, and for how long the thread had run then
  long waits_ = -1;                  // how often it had waited
  std::int64_t awake_of_late_ = 0, away_of_late_ = 0;
};

/// Makes this thread run regions alone while it lives, as within the tasks of another region.
class InsideRegion {
 public:
  /// Marks this thread.
  InsideRegion() : before_(std::exchange(here(), true)) {}
  InsideRegion(const InsideRegion&) = delete;
  InsideRegion& operator=(const InsideRegion&) = delete;
  /// Restores the mark of before.
  ~InsideRegion() { here() = before_; }

  /// Returns the mark of this thread.
  static bool& here() {
    thread_local bool inside = false;
    return inside;
  }

 private:
  bool before_;
};

/// Runs regions on the threads of the process: the thread that opens a region works in it, and others help it. A region
/// is over when its work is done, not when every thread has come: a helper that the system has put aside joins late or
/// never. Where threads are often put aside, regions have one thread fewer for a while (see `give_way`). Threads that
/// wait look for work for a millisecond and then sleep, sooner where the machine has other work (see `spin`). The
/// opener waits as long as its own tasks took, at least, and then sleeps, which gives its processor to a helper that
/// was put aside. Several threads may open regions at a time; helpers go where there is work.
///
/// Helpers are started when regions first want them and stopped when the process ends. There are at most as many as the
/// machine has processors beside the opener, or as the largest region asks for. After a fork the child has none, and
/// its regions run on their openers alone.
class ThreadTeam {
 public:
  /// Gives the max number of threads in a region.
  static constexpr int max_threads = 64;

  /// Returns the team of this process.
  static ThreadTeam& of_process() {
    static ThreadTeam team;
    return team;
  }
  ThreadTeam() = default;
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;
  /// Stops the helpers. Regions that are opened later run on their openers alone.
  ~ThreadTeam() {
    if (process_ != ::getpid()) return;  // the helpers are those of the parent of a fork
    stopping_ = true;
    ++opened_;
    opened_.notify_all();
    lock();  // for good: no helper is started any more
    for (int i = 0; i < helpers_; ++i) {
      const pthread_t thread = started_[static_cast<std::size_t>(i)].thread;
      if (::pthread_equal(thread, ::pthread_self()) != 0)
        ::pthread_detach(thread);  // a task ends the process
      else
        ::pthread_join(thread, nullptr);
    }
  }

  /// Calls work(what, thread) on this thread with thread 0, and with other numbers below `threads`, 2 to max_threads,
  /// on helpers that come while this thread works. Returns when all of them are done. `work` takes tasks until none is
  /// left and must not throw.
  void run(int threads, void (*work)(void* what, int thread), void* what) {
    const std::int64_t begin = nanoseconds();
    thread_local ProcessorWatch watch;
    if (begin < limited_until_.load(std::memory_order_relaxed))
      threads = std::min(threads, limit_.load(std::memory_order_relaxed));
    if (watch.is_due(begin) && watch.is_often_put_aside()) give_way(threads);
    Region* region = threads < 2 || stopping_.load(std::memory_order_relaxed) ? nullptr : take_region();
    if (region == nullptr) return work_as(0, work, what);
    region->work = work;
    region->what = what;
    region->numbers.store(1, std::memory_order_relaxed);
    region->state.store(is_open | static_cast<std::uint32_t>(threads - 1) << room_shift);
    start_helpers(threads - 1);
    ++opened_;
    for (int i = std::min(threads - 1, sleeping_.load()); i > 0; --i) opened_.notify_one();

    work_as(0, work, what);

    // A helper's last task may take about as long as the opener's did.
    std::uint32_t state = region->state.fetch_and(~is_open);
    const auto is_done = [&] { return ((state = region->state.load()) & count_mask) == 0; };
    if ((state & count_mask) != 0 && !spin(is_done, nanoseconds() - begin)) {
      region->state.fetch_or(is_waited_for);
      while (!is_done()) region->state.wait(state);
    }
    wanted_ -= threads - 1;
    region->state.store(0);
  }

 private:
  // The state of a region is 0 where nobody uses it, and otherwise holds the number of helpers that are in it, in the
  // lowest bits, the number that may be, in the highest, and these marks.
  static constexpr std::uint32_t count_mask = 0xff, is_taken = 1u << 8, is_open = 1u << 9, is_waited_for = 1u << 10;
  static constexpr int room_shift = 16;

  struct alignas(line_bytes) Region {
    std::atomic<std::uint32_t> state{0};
    std::atomic<std::uint64_t> numbers{0};  // a bit for each number of a thread that is in use
    void (*work)(void*, int) = nullptr;
    void* what = nullptr;
  };

  struct Helper {
    ThreadTeam* team;
    int number;
    pthread_t thread;
    int threads;  // of the last region that it was in
  };

  static void work_as(int thread, void (*work)(void*, int), void* what) noexcept {
    const InsideRegion inside;
    work(what, thread);
  }

  /// Waits for a condition without giving up the processor: a millisecond, which is longer than the time between the
  /// kernels of a pass, or 50 microseconds where the machine has other work, and `least`. That it has shows in a thread
  /// that was put aside while it waited, and counts for a second. Returns whether the condition holds.
  template <class Condition>
  bool spin(Condition&& holds, std::int64_t least = 0) {
    constexpr std::int64_t us = 1000, second = 1'000'000 * us;
    if (helpers_.load(std::memory_order_relaxed) >= processors_) return holds();  // some would spin in others' way
    std::int64_t now = nanoseconds();
    const bool busy = now < busy_until_.load(std::memory_order_relaxed);
    const std::int64_t end = now + std::max((busy ? 50 : 1000) * us, least);
    while (now < end) {
      for (int i = 0; i < 16; ++i) {
        if (holds()) return true;
        pause();
      }
      const std::int64_t before = std::exchange(now, nanoseconds());
      if (now - before > 100 * us) busy_until_.store(now + second, std::memory_order_relaxed);
    }
    return false;
  }

  /// Returns a region that nobody uses, or null.
  Region* take_region() {
    for (Region& region : regions_) {
      std::uint32_t free = 0;
      if (region.state.load(std::memory_order_relaxed) == 0 && region.state.compare_exchange_strong(free, is_taken))
        return &region;
    }
    return nullptr;
  }

  void lock() {
    while (locked_.test_and_set(std::memory_order_acquire)) locked_.wait(true);
  }
  void unlock() {
    locked_.clear(std::memory_order_release);
    locked_.notify_one();
  }

  /// Starts helpers for a region that wants so many, if all open regions together want more than there are.
  void start_helpers(int region_wants) {
    const int wanted = std::min({wanted_ += region_wants, std::max(processors_ - 1, region_wants), max_threads - 1});
    if (helpers_ >= wanted || refused_ || locked_.test_and_set(std::memory_order_acquire)) return;
    for (; helpers_ < wanted && process_ == ::getpid(); ++helpers_) {
      Helper& helper = started_[static_cast<std::size_t>(helpers_)];
      helper.team = this;
      helper.number = helpers_;
      if (::pthread_create(&helper.thread, nullptr, help_as, &helper) != 0) {
        refused_ = true;  // no threads or no memory: regions do with the threads that are there
        break;
      }
    }
    unlock();
  }

  static void* help_as(void* helper) {
    static_cast<Helper*>(helper)->team->help(*static_cast<Helper*>(helper));
    return nullptr;
  }

  /// Is what a helper does: waits for regions and works in them, until the process ends.
  void help(Helper& helper) {
    ProcessorWatch watch;
    for (;;) {
      const std::uint32_t seen = opened_;
      if (stopping_) return;
      for (Region& region : regions_) join(region, helper);
      const bool found = spin([&] { return opened_.load(std::memory_order_relaxed) != seen; });
      if (watch.is_due(nanoseconds()) && watch.is_often_put_aside()) give_way(helper.threads);
      if (found) continue;
      ++sleeping_;
      opened_.wait(seen);
      --sleeping_;
    }
  }

  /// Gives regions one thread fewer than `threads` for 300 milliseconds, which is several times what it takes to notice
  /// that a thread is often put aside.
  void give_way(int threads) {
    if (threads < 2) return;
    limit_.store(threads - 1, std::memory_order_relaxed);
    limited_until_.store(nanoseconds() + 300'000'000, std::memory_order_relaxed);
  }

  /// Works in a region if it is open and has room. A helper gets the same number in each region of one size, so that it
  /// meets what its processor's caches hold.
  static void join(Region& region, Helper& helper) {
    std::uint32_t state = region.state.load(std::memory_order_relaxed), room = 0;
    do {
      room = state >> room_shift;
      if ((state & is_open) == 0 || (state & count_mask) >= room) return;
    } while (!region.state.compare_exchange_weak(state, state + 1, std::memory_order_acquire));
    int number = 1 + helper.number % static_cast<int>(room);
    while ((region.numbers.fetch_or(std::uint64_t{1} << number, std::memory_order_acq_rel) >> number & 1) != 0)
      number = 1 + number % static_cast<int>(room);
    work_as(number, region.work, region.what);
    helper.threads = 1 + static_cast<int>(room);
    region.numbers.fetch_and(~(std::uint64_t{1} << number), std::memory_order_acq_rel);
    if ((region.state.fetch_sub(1) & (is_waited_for | count_mask)) == (is_waited_for | 1)) region.state.notify_one();
  }

  const int processors_ = processors();
  std::array<Region, 16> regions_{};
  alignas(line_bytes) std::atomic<std::uint32_t> opened_{0};    // regions so far; helpers wait for it to change
  alignas(line_bytes) std::atomic<int> sleeping_{0};            // helpers that must be woken
  std::atomic<int> wanted_{0};                                  // helpers for all regions that are open
  std::atomic<int> helpers_{0};                                 // those that were started
  std::atomic<bool> stopping_{false}, refused_{false};          // refused: the system gives no more threads
  std::atomic<std::int64_t> busy_until_{0}, limited_until_{0};  // by `nanoseconds`
  std::atomic<int> limit_{max_threads};                         // threads of a region until then
  std::atomic_flag locked_{};                                   // guards the start of helpers
  const pid_t process_ = ::getpid();                            // whose helpers they are
  std::array<Helper, max_threads - 1> started_{};
};

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the number of threads that OpenMP offers this process (OMP_NUM_THREADS sets it), or without OpenMP the
/// number of the machine's processors.
inline int hardware_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return laconic::detail::processors();
#endif
}

/// Returns the number of threads that a context or an optimiser shall use: `threads`, or all that the machine offers
/// for 0. Throws `Error` for a number that is negative or beyond 4096.
inline int checked_threads(int threads) {
  constexpr int most = 4096;
  require(threads >= 0 && threads <= most, "threads: ", threads, " given, 1 to ", most,
          " expected, or 0 for all that the machine offers");
  return threads > 0 ? threads : hardware_threads();
}

namespace kernels {

/// Returns part i of `count` of [0, size), in whole units. The parts are as equal as they can be.
inline Range equal_part(Index size, Index unit, Index i, Index count) {
  const Index units = (size + unit - 1) / unit;
  return {units * i / count * unit, std::min(size, units * (i + 1) / count * unit)};
}

/// Holds the tasks next .. end - 1, which threads take from the front.
struct alignas(laconic::detail::line_bytes) TaskQueue {
  std::atomic<Index> next{0};  ///< the next task to take
  Index end = 0;               ///< one past the last task
};

/// Returns whether a region opened here would run within another one, of laconic or of the user's OpenMP.
inline bool is_nested() {
#ifdef _OPENMP
  if (omp_in_parallel() != 0) return true;
#endif
  return laconic::detail::InsideRegion::here();
}

namespace detail {

/// Does what `parallel_for` says of run(body, task, thread), compiled once for all bodies.
inline void run_tasks(int threads, Index tasks, void (*run)(void* body, Index task, int thread), void* body) {
  using laconic::detail::ThreadTeam;
  struct Region {
    void (*run)(void*, Index, int);
    void* body;
    int team;
    std::array<TaskQueue, ThreadTeam::max_threads> queues;
  };
  const int team = static_cast<int>(std::min<Index>(std::min(threads, ThreadTeam::max_threads), tasks));
  if (team <= 1 || is_nested()) {
    for (Index task = 0; task < tasks; ++task) run(body, task, 0);
    return;
  }
  Region region{run, body, team, {}};
  for (int i = 0; i < team; ++i) {
    const Range stretch = equal_part(tasks, 1, i, team);
    region.queues[static_cast<std::size_t>(i)].next.store(stretch.begin, std::memory_order_relaxed);
    region.queues[static_cast<std::size_t>(i)].end = stretch.end;
  }
  const auto work = [](void* what, int thread) {
    Region& its = *static_cast<Region*>(what);
    for (int i = 0; i < its.team; ++i) {
      TaskQueue& queue = its.queues[static_cast<std::size_t>((thread + i) % its.team)];
      while (queue.next.load(std::memory_order_relaxed) < queue.end) {
        const Index task = queue.next.fetch_add(1, std::memory_order_relaxed);
        if (task < queue.end) its.run(its.body, task, thread);
      }
    }
  };
  ThreadTeam::of_process().run(team, work, &region);
}

}  // namespace detail

/// Runs `body(task, thread)` for every task in [0, tasks) on at most `threads` threads, with thread < threads, or on
/// this thread alone within another region. Bodies must write to disjoint places and not throw, so the result cannot
/// depend on which thread runs which task. Each thread starts on its own contiguous range of tasks and then steals from
/// the others. From kernel to kernel that range is the same rows, which the caches of its core then hold. Reading what
/// another core wrote is slow, above all between cores that do not share an L3. The first regions start threads, which
/// allocates (see ThreadTeam).
template <class Body>
void parallel_for(int threads, Index tasks, Body&& body) {
  using Given = std::remove_reference_t<Body>;
  const auto run = [](void* what, Index task, int thread) { (*static_cast<Given*>(what))(task, thread); };
  detail::run_tasks(threads, tasks, run, const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

/// Splits [0, size) into blocks of `grain` and runs `body(begin, end)` for each, as `parallel_for` does.
template <class Body>
void parallel_blocks(int threads, Index size, Index grain, Body&& body) {
  parallel_for(threads, (size + grain - 1) / grain,
               [&](Index block, int) { body(block * grain, std::min(size, (block + 1) * grain)); });
}

/// Splits [0, size) into blocks of whole units whose sizes differ by at most one unit. Every thread gets the same
/// number of blocks, unless there are fewer units than that.
class Blocks {
 public:
  /// Splits into blocks of at most `block` elements, which must be at least 1 and a multiple of `unit`.
  Blocks(Index size, Index block, Index unit, int threads) : size_(size), unit_(unit) {
    const Index units = (size + unit - 1) / unit, count = (size + block - 1) / block;
    most_ = std::min(block, units * unit);
    count_ = std::min(units, (count + threads - 1) / threads * threads);
  }
  /// Returns the number of blocks.
  Index count() const { return count_; }
  /// Returns an upper bound of a block's size. It never shrinks as `size` grows, so memory for the largest case is
  /// enough for all others.
  Index most() const { return most_; }
  /// Returns block i.
  Range operator[](Index i) const { return equal_part(size_, unit_, i, count_); }

 private:
  Index size_, unit_, most_ = 0, count_ = 0;
};

/// Runs `body(i)`, or `body(i, thread)` as `parallel_for` does, for every i in [0, tasks), which may throw. After all
/// have run, throws the failure of the lowest index again. Allocates.
template <class Body>
void parallel_or_throw(int threads, Index tasks, Body&& body) {
  const auto failures = std::make_unique<std::exception_ptr[]>(static_cast<std::size_t>(tasks));
  parallel_for(threads, tasks, [&](Index i, int thread) {
    try {
      if constexpr (std::is_invocable_v<Body&, std::size_t, std::size_t>)
        body(static_cast<std::size_t>(i), static_cast<std::size_t>(thread));
      else
        body(static_cast<std::size_t>(i));
    } catch (...) {
      failures[static_cast<std::size_t>(i)] = std::current_exception();
    }
  });
  for (Index i = 0; i < tasks; ++i)
    if (const auto& failure = failures[static_cast<std::size_t>(i)]) std::rethrow_exception(failure);
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

#include <xsimd/xsimd.hpp>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__clang__)
#define LACONIC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LACONIC_UNROLL _Pragma("GCC unroll 16")
#else
#define LACONIC_UNROLL
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Names the vector of elements of the widest instruction set that is compiled for.
template <class T>
using Batch = xsimd::batch<T>;
/// Gives the number of elements of a vector.
template <class T>
inline constexpr Index lanes = static_cast<Index>(Batch<T>::size);

/// Names a small array on the stack.
template <class T, Index N>
using Local = T[static_cast<std::size_t>(N)];

/// Loads a vector, without requirements on alignment.
template <class T>
Batch<T> load(const T* from) {
  return Batch<T>::load_unaligned(from);
}
/// Loads `count` < lanes elements; the other lanes are `fill`.
template <class T>
Batch<T> load_part(const T* from, Index count, T fill = T(0)) {
  Local<T, lanes<T>> part;
  for (Index i = 0; i < lanes<T>; ++i) part[i] = i < count ? from[i] : fill;
  return load(part);
}
/// Stores a vector, without requirements on alignment.
template <class T>
void store(T* to, const Batch<T>& x) {
  x.store_unaligned(to);
}
/// Stores the first `count` elements of a vector.
template <class T>
void store_part(T* to, const Batch<T>& x, Index count) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index i = 0; i < count; ++i) to[i] = part[i];
}

#ifdef __AVX512F__
/// Loads `count` <= lanes elements with a mask; the other lanes are `fill`.
inline Batch<float> load_part(const float* from, Index count, float fill = 0) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1), from);
}
/// Stores the first `count` elements of a vector with a mask.
inline void store_part(float* to, const Batch<float>& x, Index count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), x);
}
#elif defined(__AVX2__)
/// Returns a mask of the first `count` <= 8 lanes.
inline __m256i first_lanes(Index count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/// Loads `count` <= lanes elements with a mask; the other lanes are `fill`.
inline Batch<float> load_part(const float* from, Index count, float fill = 0) {
  const __m256i some = first_lanes(count);
  return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(from, some), _mm256_castsi256_ps(some));
}
/// Stores the first `count` elements of a vector with a mask.
inline void store_part(float* to, const Batch<float>& x, Index count) {
  _mm256_maskstore_ps(to, first_lanes(count), x);
}
#endif

/// Returns a vector that the compiler holds in a register. g++ 12 otherwise reads some operands from memory again in
/// each multiply-add, and loads become the limit.
template <class T>
Batch<T> in_register(const Batch<T>& x) {
#if defined(__GNUC__) && defined(__SSE2__)
  auto value = x.data;
  asm("" : "+v"(value));
  return Batch<T>(value);
#else
  return x;
#endif
}

/// Adds x y to `sum`. With 16 vector registers the instruction is named, or g++ 12 moves sums about and to memory.
template <class T>
[[gnu::always_inline]] inline void multiply_add(Batch<T>& sum, const Batch<T>& x, const Batch<T>& y) {
#if defined(__GNUC__) && defined(__FMA__) && !defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>)
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum.data) : "x"(x.data), "x"(y.data));
  else
    asm("vfmadd231pd %2, %1, %0" : "+x"(sum.data) : "x"(x.data), "x"(y.data));
#else
  sum = xsimd::fma(x, y, sum);
#endif
}

/// Returns the sum over the lanes, always in the same order. (xsimd renamed its own function between versions 8 and 9.)
template <class T>
T sum_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  for (Index step = lanes<T> / 2; step > 0; step /= 2)
    for (Index i = 0; i < step; ++i) part[i] += part[i + step];
  return part[0];
}
/// Returns the max over the lanes.
template <class T>
T max_lanes(const Batch<T>& x) {
  Local<T, lanes<T>> part;
  store(part, x);
  T max = part[0];
  for (Index i = 1; i < lanes<T>; ++i) max = part[i] > max ? part[i] : max;
  return max;
}

#ifdef __AVX512F__
/// Returns the sum over the lanes by one reduction.
template <>
inline float sum_lanes<float>(const Batch<float>& x) {
  return _mm512_reduce_add_ps(x);
}
/// Returns the max over the lanes by one reduction.
template <>
inline float max_lanes<float>(const Batch<float>& x) {
  return _mm512_reduce_max_ps(x);
}
#elif defined(__AVX2__)
/// Returns the sum over the lanes, in the order of the other sets.
template <>
inline float sum_lanes<float>(const Batch<float>& x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
               two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// Returns the max over the lanes.
template <>
inline float max_lanes<float>(const Batch<float>& x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)),
               two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#endif

/// Returns e^x.
template <class T>
Batch<T> exp(const Batch<T>& x) {
  return xsimd::exp(x);
}
#ifdef __AVX512F__
/// Returns e^x as 2^n e^r, with n an integer and |r| at most half of ln 2, where a polynomial of degree 7 is off by at
/// most 1.3 units in the last place (simd_test). exp(-infinity) is 0, and NaN stays NaN.
template <>
inline Batch<float> exp<float>(const Batch<float>& x) {
  const auto number = [](float value) { return _mm512_set1_ps(value); };
  // NaN stays NaN: min and max return their second operand then.
  const __m512 bounded = _mm512_max_ps(number(-104.0f), _mm512_min_ps(number(89.0f), x));
  const __m512 n = xsimd::nearbyint(Batch<float>(_mm512_mul_ps(bounded, number(1.44269504f))));
  __m512 r = _mm512_fnmadd_ps(n, number(0.693359375f), bounded);
  r = _mm512_fnmadd_ps(n, number(-2.12194440e-4f), r);
  __m512 p = number(1.9875691500e-4f);
  for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, number(next));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, number(1.0f)));
  return _mm512_scalef_ps(p, n);
}
#endif

/// Computes out[i] = f(in[i]...) for i in [0, n) by vectors. The tail takes the same code, padded with zeros. One
/// thread; no allocation.
template <class T, class F, class... In>
void map_span(Index n, T* out, F&& f, const In*... in) {
  Index i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) store(out + i, Batch<T>(f(load(in + i)...)));
  if (i < n) store_part(out + i, Batch<T>(f(load_part(in + i, n - i)...)), n - i);
}

/// Computes out[i] = f(in[i]...) for i in [0, n) on several threads. No allocation.
template <class T, class F, class... In>
void map(int threads, Index n, T* out, F&& f, const In*... in) {
  parallel_blocks(threads, n, 16384,
                  [&](Index begin, Index end) { map_span(end - begin, out + begin, f, (in + begin)...); });
}

/// Returns the sum over i in [0, n) of f(in[i]...), in four partial sums that hide the latency of addition, always in
/// the same order. One thread; no allocation.
template <class T, class F, class... In>
T sum_span(Index n, F&& f, const T* first, const In*... in) {
  constexpr Index sums = 4;
  Batch<T> total[sums] = {Batch<T>(T(0)), Batch<T>(T(0)), Batch<T>(T(0)), Batch<T>(T(0))};
  Index i = 0;
  for (; i + sums * lanes<T> <= n; i += sums * lanes<T>)
    for (Index j = 0; j < sums; ++j) {
      const Index at = i + j * lanes<T>;
      total[j] += f(load(first + at), load(in + at)...);
    }
  for (; i + lanes<T> <= n; i += lanes<T>) total[0] += f(load(first + i), load(in + i)...);
  T sum = sum_lanes<T>((total[0] + total[1]) + (total[2] + total[3]));
  if (i < n) {
    Local<T, lanes<T>> part;
    store(part, Batch<T>(f(load_part(first + i, n - i), load_part(in + i, n - i)...)));
    for (Index j = 0; j < n - i; ++j) sum += part[j];
  }
  return sum;
}

/// Returns 1 / (1 + e^-x).
template <class T>
Batch<T> sigmoid(const Batch<T>& x) {
  return Batch<T>(T(1)) / (Batch<T>(T(1)) + exp<T>(-x));
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

// What laconic::compiled holds: kernels, the slices of `Cpu` and solvers, compiled once for float and double. Who links
// it has LACONIC_COMPILED defined and compiles none of them again. Its sources in src/compiled define
// LACONIC_COMPILED_NUMBER, the type that they compile for. With neither, these macros do nothing.

/// LACONIC_COMPILE(name, ...), after a function template, says that laconic::compiled holds name<float, ...> and
/// name<double, ...>. LACONIC_COMPILE_CLASS says it of the members of a class template, and LACONIC_COMPILE_DOUBLE of
/// name<double> alone.
#define LACONIC_COMPILE_FOR(number, name, ...) \
  template decltype(name<number __VA_OPT__(, ) __VA_ARGS__>) name<number __VA_OPT__(, ) __VA_ARGS__>
#if defined(LACONIC_COMPILED_NUMBER)
#define LACONIC_COMPILE(...) LACONIC_COMPILE_FOR(LACONIC_COMPILED_NUMBER, __VA_ARGS__)
#define LACONIC_COMPILE_DOUBLE(name) LACONIC_COMPILE_FOR(double, name)
#define LACONIC_COMPILE_CLASS(name) template class name<LACONIC_COMPILED_NUMBER>
#elif defined(LACONIC_COMPILED)
#define LACONIC_COMPILE(...)                      \
  extern LACONIC_COMPILE_FOR(float, __VA_ARGS__); \
  extern LACONIC_COMPILE_FOR(double, __VA_ARGS__)
#define LACONIC_COMPILE_DOUBLE(name) extern LACONIC_COMPILE_FOR(double, name)
#define LACONIC_COMPILE_CLASS(name)  \
  extern template class name<float>; \
  extern template class name<double>
#else
#define LACONIC_COMPILE(...) static_assert(true)
#define LACONIC_COMPILE_DOUBLE(name) static_assert(true)
#define LACONIC_COMPILE_CLASS(name) static_assert(true)
#endif

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns 2 u and its derivative by x, where GPT-2's approximation of GELU is x sigmoid(2 u): u = sqrt(2 / pi) (x +
/// 0.044715 x^3) (Hendrycks and Gimpel 2016, section 2).
template <class T>
std::pair<Batch<T>, Batch<T>> gelu_new_argument(const Batch<T>& x) {
  using B = Batch<T>;
  // Beyond these the sigmoid is 0 or 1 and the slope does not matter, but must not overflow.
  const B factor(T(2 * std::numbers::sqrt2 * std::numbers::inv_sqrtpi)), cubic(T(0.044715));
  const B limited = xsimd::select(x > B(T(1e4)), B(T(1e4)), xsimd::select(x < B(T(-1e4)), B(T(-1e4)), x));
  const B square = limited * limited;
  return {factor * limited * xsimd::fma(cubic, square, B(T(1))), factor * xsimd::fma(B(T(3)) * cubic, square, B(T(1)))};
}

/// Returns ReLU max(x, 0), SiLU x sigmoid(x), GELU x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016), or GPT-2's
/// approximation of GELU, of a vector.
template <class T>
Batch<T> activate(Activation kind, const Batch<T>& x) {
  switch (kind) {
    case Activation::relu:
      return xsimd::select(x < Batch<T>(T(0)), Batch<T>(T(0)), x);  // NaN stays NaN
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu_new:
      return x * sigmoid(gelu_new_argument<T>(x).first);
    default:
      return Batch<T>(T(0.5)) * x * (Batch<T>(T(1)) + xsimd::erf(x * Batch<T>(T(0.5 * std::numbers::sqrt2))));
  }
}

/// Returns dy times the derivative of the activation at x.
template <class T>
Batch<T> activate_backward(Activation kind, const Batch<T>& dy, const Batch<T>& x) {
  using B = Batch<T>;
  switch (kind) {
    case Activation::relu:
      return xsimd::select(x > B(T(0)), dy, B(T(0)));
    case Activation::silu: {
      const B s = sigmoid(x);
      return dy * s * (B(T(1)) + x * (B(T(1)) - s));
    }
    case Activation::gelu_new: {
      const auto [argument, slope] = gelu_new_argument<T>(x);
      const B s = sigmoid(argument);
      return dy * s * (B(T(1)) + x * (B(T(1)) - s) * slope);
    }
    default: {
      const B cdf = B(T(0.5)) * (B(T(1)) + xsimd::erf(x * B(T(0.5 * std::numbers::sqrt2))));
      const B pdf = B(T(0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2)) * exp<T>(B(T(-0.5)) * x * x);
      return dy * (cdf + x * pdf);
    }
  }
}

/// Applies an activation, if there is one, to each finished tile of a product (see gemm_panels).
struct ActivationEpilogue {
  std::optional<Activation> kind;  ///< the activation, or none

  /// Applies the activation to c (rows, cols), whose rows are c_stride apart.
  template <class T>
  void operator()(Index, Index, T* c, Index c_stride, Index rows, Index cols) const {
    if (!kind) return;
    for (Index r = 0; r < rows; ++r)
      map_span(
          cols, c + r * c_stride, [kind = *kind](auto a) { return activate(kind, a); }, c + r * c_stride);
  }
};

/// Computes the gated linear unit y = a sigmoid(b) (rows, cols) of x = [a, b] (rows, 2 * cols) (Dauphin et al. 2017).
/// Parallel over rows; no allocation.
template <class T>
void glu(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(
          cols, y + r * cols, [](auto a, auto b) { return a * sigmoid(b); }, x + 2 * r * cols, x + (2 * r + 1) * cols);
  });
}

/// Computes the derivative dx (rows, 2 * cols) of `glu` from dy (rows, cols). Parallel over rows; no allocation.
template <class T>
void glu_backward(int threads, Index rows, Index cols, const T* dy, const T* x, T* dx) {
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T *g = dy + r * cols, *a = x + 2 * r * cols, *b = a + cols;
      map_span(
          cols, dx + 2 * r * cols, [](auto d, auto q) { return d * sigmoid(q); }, g, b);
      map_span(
          cols, dx + (2 * r + 1) * cols,
          [](auto d, auto p, auto q) {
            const auto s = sigmoid(q);
            return d * p * s * (decltype(s)(T(1)) - s);
          },
          g, a, b);
    }
  });
}

/// Adds the column sums of x (rows, cols) to `sum` (cols). The order of each sum is fixed, whatever the number of
/// threads. Parallel over columns; no allocation.
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

/// Computes y[i] = x[i] * (mask.keeps(i) ? mask.scale() : 0) for i in [0, n). Parallel over elements; no allocation.
template <class T>
void dropout(int threads, Index n, const DropoutMask& mask, const T* x, T* y) {
  parallel_blocks(threads, n, 8192, [&](Index begin, Index end) {
    mask.apply(end - begin, static_cast<std::uint64_t>(begin), x + begin, y + begin);
  });
}

LACONIC_COMPILE(glu);
LACONIC_COMPILE(glu_backward);
LACONIC_COMPILE(add_column_sums);
LACONIC_COMPILE(dropout);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of products with weights, which all backends share. Each throws `Error` for sizes that do not
// fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that weights of T can be rounded as `storage` says.
template <class T>
void prepare(Storage storage) {
  require(storage == Storage::full || std::is_same_v<T, float>, "prepare: ", to_name(storage),
          " given for a model that is not of float");
}
/// Checks the arguments of `linear`.
template <class Tensor, class T>
void linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias) {
  const Index out = weight.rows(), in = weight.cols();
  require(x.cols() == in, "linear: input has ", x.cols(), " channels, the weight expects ", in);
  require(bias == nullptr || bias->size() == out, "linear: a bias of ", bias == nullptr ? 0 : bias->size(),
          " given for ", out, " channels");
}
/// Checks the arguments of `embed`.
template <class T>
void embed(std::span<const int> ids, const Parameter<T>& weight) {
  for (const int id : ids)
    require(id >= 0 && id < weight.rows(), "embed: id ", id, " given, 0 to ", weight.rows() - 1, " expected");
}

/// Holds the sizes of the matrix of a head, (out, in).
struct HeadSizes {
  Index out;  ///< rows
  Index in;   ///< columns
};
/// Checks the input and the weight of `head_linear` and returns the sizes of its matrices.
template <class Tensor, class T>
HeadSizes head_sizes(const Tensor& x, const Parameter<T>& weight, const HeadShape& shape) {
  const HeadSizes sizes{shape.num_blocks > 0 ? weight.rows() / shape.num_blocks : 0, weight.cols()};
  require(shape.num_heads > 0 && sizes.out > 0 && shape.num_heads % shape.num_blocks == 0 &&
              weight.rows() == shape.num_blocks * sizes.out &&
              x.cols() == shape.num_heads * (shape.transposed ? sizes.out : sizes.in),
          "head_linear: an input of ", x.cols(), " channels and a weight of (", weight.rows(), ", ", weight.cols(),
          ") given, which ", shape.num_heads, " heads with ", shape.num_blocks, " matrices do not fit");
  return sizes;
}
/// Checks the arguments of `head_linear` and returns the sizes of its matrices.
template <class Tensor, class T>
HeadSizes head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
  const HeadSizes sizes = head_sizes(x, weight, shape);
  require(bias == nullptr || (bias->size() == weight.rows() && !shape.transposed), "head_linear: a bias of ",
          bias == nullptr ? 0 : bias->size(), " given, ", shape.transposed ? 0 : weight.rows(), " expected");
  return sizes;
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds a value of a CPU computation: a contiguous row-major matrix `(rows, cols)` in a block of an arena. Copies
/// share the block, which returns to the arena with the last of them, so that an intermediate is freed as soon as
/// nothing needs it.
template <class T>
class Tensor {
 public:
  using Scalar = T;  ///< the type of an element

  /// Makes an empty tensor.
  Tensor() = default;
  /// Shares the memory of the other.
  Tensor(const Tensor&) = default;
  /// Takes over the memory of the other, which is empty afterwards.
  Tensor(Tensor&& other) noexcept
      : buffer_(std::move(other.buffer_)),
        data_(std::exchange(other.data_, nullptr)),
        rows_(std::exchange(other.rows_, 0)),
        cols_(std::exchange(other.cols_, 0)) {}
  /// Drops its memory and takes that of the other.
  Tensor& operator=(Tensor other) noexcept {
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    return *this;
  }
  /// Takes an uninitialised block (rows, cols) of the arena. Throws `Error` for a negative size or one beyond the
  /// address space.
  Tensor(Arena& arena, Index rows, Index cols)
      : buffer_(arena.allocate(bytes(rows, cols))), data_(static_cast<T*>(buffer_.data())), rows_(rows), cols_(cols) {}

  /// Wraps the memory of a matrix, which must outlive the tensor. Copies nothing.
  static Tensor borrow(const Matrix<T>& matrix) {
    Tensor out;
    out.data_ = const_cast<T*>(matrix.data());  // never written: `unique()` is false for borrowed memory
    out.rows_ = matrix.rows();
    out.cols_ = matrix.cols();
    return out;
  }

  /// Returns the number of rows.
  Index rows() const { return rows_; }
  /// Returns the number of columns.
  Index cols() const { return cols_; }
  /// Returns the number of elements.
  Index size() const { return rows_ * cols_; }
  /// Says whether there is no memory.
  bool empty() const { return data_ == nullptr; }
  /// Says whether this is the only reference to the memory, so that a primitive may overwrite it.
  bool unique() const { return buffer_.unique(); }

  /// Returns the first element.
  const T* data() const { return data_; }
  /// Returns the first element for writing.
  T* data() { return data_; }
  /// Returns the first element of row r.
  const T* row(Index r) const { return data_ + r * cols_; }
  /// Returns the first element of row r for writing.
  T* row(Index r) { return data_ + r * cols_; }
  /// Returns the elements as a matrix.
  MatrixView<const T> view() const { return matrix_view<const T>(data_, rows_, cols_); }
  /// Returns the elements as a matrix for writing.
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

}  // namespace LACONIC_ABI
}  // namespace laconic

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Refers to a matrix to read: element (i, j) is data[i * row_stride + j * col_stride], so a transpose costs nothing.
template <class T>
struct Operand {
  const T* data;         ///< element (0, 0)
  Index row_stride;      ///< elements from row to row
  Index col_stride = 1;  ///< elements from column to column

  /// Returns the transpose.
  Operand transposed() const { return {data, col_stride, row_stride}; }
  /// Returns the address of element (i, j).
  const T* at(Index i, Index j) const { return data + i * row_stride + j * col_stride; }
};

/// Holds the block sizes of matrix products. The register tile of the micro-kernel is 8 rows by 3 vectors with 32
/// vector registers and 4 by 3 with 16: the largest that leaves room for a row of B and one element of A (Goto and van
/// de Geijn 2008, section 6).
template <class T>
struct GemmTile {
  static constexpr Index vectors = 3;  ///< vectors of a row of the register tile
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr Index rows = 8;  ///< rows of the register tile
  /// Gives the rows of a block of A (block_rows x depth), which meets one panel of B after the other: 512 KiB in float.
  static constexpr Index block_rows = 256;
  static constexpr Index depth = 512;  ///< columns of a block of A
  /// Gives the rows of B that a step of the micro-kernel takes, with no prefetch.
  static constexpr Index unrolled = 2;
  /// Gives the bytes of a panel from which on a single row meets two panels at once. The next two lie elsewhere: after
  /// short panels this costs more (22% of a product with 144 inputs) than two panels save.
  static constexpr Index long_panel = 64 << 10;
  /// Gives the columns of B from which on a transposed A is copied. With fewer the copy takes up to 16% of the product.
  static constexpr Index copying_cols = 1024;
#else  // measured on a processor with 512 KiB of second-level cache, as most without AVX-512
  static constexpr Index rows = 4;
  static constexpr Index block_rows = 128;
  static constexpr Index depth = 1024;
#ifdef __FMA__
  // A fifth fewer instructions. Where two threads share a core, each can issue half as many, and these are the limit.
  static constexpr Index unrolled = 4;
#else
  static constexpr Index unrolled = 1;
#endif
  static constexpr Index long_panel = 0;
  static constexpr Index copying_cols = 48;
#endif
  /// Gives the columns of the register tile, and of a panel.
  static constexpr Index cols = vectors * lanes<T>;
  /// Gives the max number of panels that a single row meets at once. With one it would wait for its own sums; two
  /// panels are also two streams from memory.
  static constexpr Index row_panels = 2;
  /// Gives the columns of B that `gemm_block` packs at once.
  static constexpr Index block_cols = 5 * cols;
};

/// Returns the columns of a panel for so many columns of B: whole vectors.
template <class T>
constexpr Index padded_cols(Index cols) {
  return (cols + lanes<T> - 1) / lanes<T> * lanes<T>;
}

/// Refers to a packed B (depth x cols), which the micro-kernel reads from end to end: panels of GemmTile::cols columns,
/// each row after row. The last panel is padded with zeros to whole vectors. `Number` is the stored type.
template <class T, class Number = T>
struct Panels {
  const Number* data;  ///< the first panel
  Index depth;         ///< rows of B
  Index cols;          ///< columns of B, without padding

  /// Returns the elements of the panels of a matrix (depth x cols).
  static constexpr Index size(Index depth, Index cols) { return depth * padded_cols<T>(cols); }
  /// Returns row k of the panel that begins at column j.
  const Number* at(Index k, Index j) const { return data + j * depth + k * width(j); }
  /// Returns the columns of the panel that begins at column j, padding included.
  Index width(Index j) const { return padded_cols<T>(std::min(GemmTile<T>::cols, cols - j)); }
};

namespace detail {

/// Names a vector of four elements that both GCC and clang shuffle.
template <class T>
struct Quad;
/// Names a vector of four floats.
template <>
struct Quad<float> {
  /// Names four floats.
  typedef float Row __attribute__((vector_size(16)));
};
/// Names a vector of four doubles.
template <>
struct Quad<double> {
  /// Names four doubles.
  typedef double Row __attribute__((vector_size(32)));
};

/// Computes to (4 x 4) = from^T. Rows are from_stride and to_stride apart.
template <class T>
void transpose_4x4(const T* from, Index from_stride, T* to, Index to_stride) {
  using Row = typename Quad<T>::Row;
  Row a, b, c, d;
  std::memcpy(&a, from, sizeof a);
  std::memcpy(&b, from + from_stride, sizeof b);
  std::memcpy(&c, from + 2 * from_stride, sizeof c);
  std::memcpy(&d, from + 3 * from_stride, sizeof d);
  const Row ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
            cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Row rows[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (Index i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &rows[i], sizeof(Row));
}

/// Loads a vector of elements.
template <class T>
Batch<T> load_as(const T* from) {
  return load(from);
}
/// Loads a vector of bf16 elements and widens them.
template <class T>
Batch<T> load_as(const Bf16* from) {
  Local<T, lanes<T>> wide;
  for (Index i = 0; i < lanes<T>; ++i) wide[i] = static_cast<T>(from_bf16(from[i]));
  return load(wide);
}
#ifdef __AVX512F__
template <>
inline Batch<float> load_as<float>(const Bf16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#elif defined(__AVX2__)
template <>
inline Batch<float> load_as<float>(const Bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif

/// Returns the address `offset` elements after `from`, which may be outside the array: it is prefetched, not read.
template <class Number>
const void* address(const Number* from, Index offset) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(from) +
                                       static_cast<std::uintptr_t>(offset) * sizeof(Number));
}

/// Prefetches the row of B that a tile of `Rows` rows will read next but many: `Count` elements of each panel. `row` is
/// the current one, in the first of these panels. The micro-kernel reads it less than a microsecond later: if few rows
/// of A meet weights in memory, the hardware prefetcher does not keep up.
template <Index Rows, Index Panels, Index Count, class Number>
[[gnu::always_inline]] inline void prefetch_panels(const Number* row, Index panel_stride, Index row_stride) {
  // A few rows read B as fast as the second-level cache gives it: a line that was prefetched to there would come from
  // it twice, which took a third of the speed of one row on a Xeon. More rows have the time.
  constexpr int locality = Rows <= 3 ? 3 : 2;
  constexpr Index number = static_cast<Index>(sizeof(Number)), line = laconic::detail::line_bytes / number;
  constexpr Index rows_ahead = Rows <= 3 ? 4608 / (Count * number) : 48;
  LACONIC_UNROLL
  for (Index panel = 0; panel < Panels; ++panel) {
    LACONIC_UNROLL
    for (Index i = 0; i < Count; i += line)
      __builtin_prefetch(address(row, panel * panel_stride + rows_ahead * row_stride + i), 0, locality);
  }
}

/// Adds the product of a column of A (Rows), whose elements are `row_stride` apart, and a row of B (Vectors) to a tile.
/// If Vectors is more than a panel has, the row is in several panels, `panel_stride` elements apart.
template <Index Rows, Index Vectors, class T, class Number>
[[gnu::always_inline]] inline void add_outer_product(Local<Local<Batch<T>, Vectors>, Rows>& sum, const T* column,
                                                     Index row_stride, const Number* row, Index panel_stride) {
  constexpr Index of_panel = GemmTile<T>::vectors;
  Local<Batch<T>, Vectors> y;
  LACONIC_UNROLL
  for (Index j = 0; j < Vectors; ++j)
    y[j] = in_register(load_as<T>(row + j / of_panel * panel_stride + j % of_panel * lanes<T>));
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    const Batch<T> x(column[i * row_stride]);
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j)
      if constexpr (Rows <= 2)  // few sums: the compiler keeps them in registers
        sum[i][j] = xsimd::fma(x, y[j], sum[i][j]);
      else
        multiply_add(sum[i][j], x, y[j]);
  }
}

/// Computes C (rows x cols) = [C or bias or 0] + A (rows x depth) B (depth x cols) in registers: the micro-kernel. B is
/// packed, or at least has unit column stride. `cols` may end inside the last vector if B is padded there. If Vectors
/// is more than a panel has, B is several panels, `panel_stride` elements apart. `prefetches` tells whether B is
/// probably not in a cache. Inlined by g++ 12, some tiles keep their sums in memory, at less than half the speed.
template <Index Rows, Index Vectors, class T, class Number>
[[gnu::noinline]] void gemm_kernel(Operand<T> a, const Number* b, Index b_stride, Index panel_stride, Index depth, T* c,
                                   Index c_stride, Index cols, bool from_c, const T* bias, bool prefetches) {
  constexpr Index w = lanes<T>, of_panel = std::min(Vectors, GemmTile<T>::vectors);  // vectors of a panel
  Local<Local<Batch<T>, Vectors>, Rows> sum;
  const Index tail = cols - (Vectors - 1) * w;  // columns of the last vector
  // Results are written at the end, where each store would wait for its cache line.
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) __builtin_prefetch(address(c, i * c_stride + j * w), 1, 3);
  }
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
  Index k = 0;
  if constexpr (constexpr Index together = GemmTile<T>::unrolled; together > 1 && Rows > 2)
    if (a.col_stride == 1 && !prefetches)
      for (; k + together <= depth; k += together, b += together * b_stride) {
        LACONIC_UNROLL
        for (Index t = 0; t < together; ++t)
          add_outer_product<Rows, Vectors>(sum, a.data + k + t, a.row_stride, b + t * b_stride, panel_stride);
      }
  for (; k < depth; ++k, b += b_stride) {
    prefetch_panels<Rows, Vectors / of_panel, of_panel * w>(b, panel_stride, b_stride);
    add_outer_product<Rows, Vectors>(sum, a.data + k * a.col_stride, a.row_stride, b, panel_stride);
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

/// Calls run(count), with an integral constant, for a count that is known at run time: 1 to Max.
template <Index Max, class Run>
void with_constant(Index count, Run&& run) {
  if constexpr (Max > 1)
    if (count < Max) return with_constant<Max - 1>(count, run);
  run(std::integral_constant<Index, Max>());
}

/// Divides m rows among register tiles of at most Rows rows and calls tile(first, rows), rows an integral constant, for
/// each. The last two tiles are equally high: one of a single row would wait for its own sums.
template <Index Rows, class Tile>
void each_row_tile(Index m, Tile&& tile) {
  Index i = 0;
  for (; m - i >= 2 * Rows || m - i == Rows; i += Rows) tile(i, std::integral_constant<Index, Rows>());
  for (Index tiles = (m - i + Rows - 1) / Rows; tiles > 0; --tiles) {
    const Index rows = (m - i + tiles - 1) / tiles;
    with_constant<Rows>(rows, [&](auto constant) { tile(i, constant); });
    i += rows;
  }
}

/// Packs `used` columns of B (depth rows), from column 0 on, into a panel with rows `stride` apart. Columns from `used`
/// to `padded` are zeros.
template <class T>
void pack_panel(Operand<T> b, Index depth, Index used, Index padded, T* to, Index stride) {
  if (b.col_stride == 1) {
    for (Index k = 0; k < depth; ++k) {
      std::memcpy(to + k * stride, b.data + k * b.row_stride, static_cast<std::size_t>(used) * sizeof(T));
      for (Index i = used; i < padded; ++i) to[k * stride + i] = T(0);
    }
    return;
  }
  // Blocks of 16 rows of the transpose: each cache line is read whole while its page is in the TLB.
  for (Index k0 = 0; k0 < depth; k0 += 16) {
    const Index k1 = std::min(depth, k0 + 16);
    Index i = 0;
    if (b.row_stride == 1 && k1 - k0 == 16)
      for (; i + 4 <= used; i += 4)
        for (Index k = k0; k < k1; k += 4) transpose_4x4(b.at(k, i), b.col_stride, to + k * stride + i, stride);
    for (; i < padded; ++i)
      for (Index k = k0; k < k1; ++k) to[k * stride + i] = i < used ? *b.at(k, i) : T(0);
  }
}

/// Computes all rows of C for the rows k0 .. k0 + depth - 1 of one panel of B, at which `b` points. `used` are the
/// columns of the panel without padding.
template <class T, class Number>
void gemm_panel(Index m, Operand<T> a, const Number* b, Index b_stride, Index depth, T* c, Index c_stride, Index used,
                bool from_c, const T* bias) {
  with_constant<GemmTile<T>::vectors>(padded_cols<T>(used) / lanes<T>, [&](auto vectors) {
    each_row_tile<GemmTile<T>::rows>(m, [&](Index i, auto rows) {
      gemm_kernel<decltype(rows)::value, decltype(vectors)::value>(Operand<T>{a.at(i, 0), a.row_stride, a.col_stride},
                                                                   b, b_stride, 0, depth, c + i * c_stride, c_stride,
                                                                   used, from_c, bias, i == 0);
    });
  });
}

/// Sets C (m x n) to the bias, or to zeros if it is null: the product of depth 0.
template <class T>
void fill_product(Index m, Index n, T* c, Index c_stride, const T* bias) {
  for (Index i = 0; i < m; ++i)
    for (Index j = 0; j < n; ++j) c[i * c_stride + j] = bias == nullptr ? T(0) : bias[j];
}

}  // namespace detail

/// Prefetches the first `width` elements of the rows begin .. end - 1, which may be after the last row. It helps with
/// rows that are read soon, several at once or far apart, which the hardware prefetcher does not foresee.
template <class T>
void prefetch_rows(Operand<T> rows, Index begin, Index end, Index width) {
  constexpr Index line = laconic::detail::line_bytes / static_cast<Index>(sizeof(T));
  for (Index i = begin; i < end; ++i)
    for (Index c = 0; c < width; c += line) __builtin_prefetch(detail::address(rows.data, i * rows.row_stride + c));
}

/// Packs B (depth x cols) into panels at `to`, which has room for Panels::size(depth, cols) elements. A task is a
/// panel; no allocation.
template <class T>
Panels<T> pack(int threads, Operand<T> b, Index depth, Index cols, T* to) {
  constexpr Index width = GemmTile<T>::cols;
  parallel_for(threads, (cols + width - 1) / width, [&](Index panel, int) {
    const Index j = panel * width, used = std::min(width, cols - j), padded = padded_cols<T>(used);
    detail::pack_panel(Operand<T>{b.at(0, j), b.row_stride, b.col_stride}, depth, used, padded, to + j * depth, padded);
  });
  return {to, depth, cols};
}

/// Does nothing with a finished tile of C.
struct NoEpilogue {
  /// Leaves the tile unchanged.
  template <class T>
  void operator()(Index, Index, T*, Index, Index, Index) const {}
};

/// Returns the panels that so many rows of A meet at once, whose columns take `column_bytes` each.
template <class T>
constexpr Index panels_together(Index rows, Index column_bytes) {
  using Tile = GemmTile<T>;
  return rows == 1 && column_bytes * Tile::cols >= Tile::long_panel ? Tile::row_panels : 1;
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null. B is in
/// panels, of which the rows `ks` and the columns `js` are read; js.begin is the first column of a panel. a, c and bias
/// begin at these rows and columns. epilogue(row, col, c, c_stride, rows, cols) is called for each finished tile of C
/// while it is in the cache. Each element of C is accumulated over k in the same order, whatever m and n are and
/// wherever it is. One thread; no allocation. The blocking is that of Goto and van de Geijn (2008).
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm_panels(Index m, Operand<T> a, const Panels<T, Number>& b, Range ks, Range js, T* c, Index c_stride,
                 bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  using Tile = GemmTile<T>;
  if (ks.size() == 0 && !accumulate) detail::fill_product(m, js.size(), c, c_stride, bias);
  const Index blocks = (m + Tile::block_rows - 1) / Tile::block_rows;
  for (Index block = 0; block < blocks; ++block) {
    const Range of_block = equal_part(m, Tile::rows, block, blocks);
    const Index i = of_block.begin, rows = of_block.size();
    const Index together = panels_together<T>(rows, b.depth * static_cast<Index>(sizeof(Number))) * Tile::cols;
    for (Index j = 0, used; j < js.size(); j += used) {
      used = std::min(j + together <= js.size() ? together : Tile::cols, js.size() - j);
      T* to = c + i * c_stride + j;
      for (Index k = 0; k < ks.size(); k += Tile::depth) {
        const Operand<T> from{a.at(i, k), a.row_stride, a.col_stride};
        const Number* panel = b.at(ks.begin + k, js.begin + j);
        const Index depth = std::min(Tile::depth, ks.size() - k);
        const bool from_c = accumulate || k > 0;
        const T* start = bias == nullptr ? nullptr : bias + j;
        if (rows == 1 && used == together)
          detail::with_constant<Tile::row_panels>(used / Tile::cols, [&](auto panels) {
            detail::gemm_kernel<1, decltype(panels)::value * Tile::vectors>(
                from, panel, Tile::cols, b.depth * Tile::cols, depth, to, c_stride, used, from_c, start, true);
          });
        else
          detail::gemm_panel(rows, from, panel, b.width(js.begin + j), depth, to, c_stride, used, from_c, start);
      }
      epilogue(i, j, to, c_stride, rows, used);
    }
  }
}

/// Divides a product of m rows, `cols` columns and this depth among all threads: calls body(rows, cols) for each tile.
/// Tiles are cut by rows as long as there are enough of them, since each panel of B that is read then meets more rows,
/// and otherwise by columns, too.
template <class T, class Body>
void share_product(int threads, Index m, Index cols, Index depth, Body&& body) {
  using Tile = GemmTile<T>;
  if (m == 0 || cols == 0) return;
  if (threads == 1 || m * cols * depth < 32 * 32 * 32)  // less work than waking a thread
    return body(Range{0, m}, Range{0, cols});
  const Index panels = (cols + Tile::cols - 1) / Tile::cols;
  constexpr Index min_rows = 64;  // fewer would not repay the panels, which every part reads
  Index row_parts = std::clamp<Index>(m / min_rows, 1, threads);
  if (row_parts == threads) row_parts *= (m + threads * Tile::block_rows - 1) / (threads * Tile::block_rows);
  const Index col_parts = std::min((threads + row_parts - 1) / row_parts, panels);
  parallel_for(threads, row_parts * col_parts, [&](Index part, int) {
    body(equal_part(m, Tile::rows, part / col_parts, row_parts),
         equal_part(cols, Tile::cols, part % col_parts, col_parts));
  });
}

/// Computes C (m x n) = A B with B in panels, as `gemm_panels` with all its rows and columns, on several threads. No
/// allocation; call it from one thread.
template <class T, class Number, class Epilogue = NoEpilogue>
void gemm_packed(int threads, Index m, Operand<T> a, const Panels<T, Number>& b, T* c, Index c_stride, bool accumulate,
                 const T* bias, const Epilogue& epilogue = {}) {
  share_product<T>(threads, m, b.cols, b.depth, [&](Range rows, Range cols) {
    gemm_panels(rows.size(), Operand<T>{a.at(rows.begin, 0), a.row_stride, a.col_stride}, b, {0, b.depth}, cols,
                c + rows.begin * c_stride + cols.begin, c_stride, accumulate,
                bias == nullptr ? nullptr : bias + cols.begin,
                [&](Index i, Index j, T* to, Index stride, Index height, Index width) {
                  epilogue(rows.begin + i, cols.begin + j, to, stride, height, width);
                });
  });
}

/// Returns the elements of scratch that `gemm_block` needs.
template <class T>
constexpr Index gemm_scratch() {
  return GemmTile<T>::depth * GemmTile<T>::block_cols;
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null, with B
/// unpacked. It packs a (depth x block_cols) block of B at a time into `scratch`, or reads B in place if that is as
/// fast. One thread; no allocation.
template <class T>
void gemm_block(Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride, bool accumulate,
                const T* bias, T* scratch) {
  using Tile = GemmTile<T>;
  if (k == 0 && !accumulate) detail::fill_product(m, n, c, c_stride, bias);
  for (Index j0 = 0; j0 < n; j0 += Tile::block_cols) {
    const Index cols = std::min(Tile::block_cols, n - j0);
    for (Index k0 = 0; k0 < k; k0 += Tile::depth) {
      const Index depth = std::min(Tile::depth, k - k0);
      // Packing pays if a panel is read several times. Whole vectors of contiguous columns can be read in place.
      const bool packed = b.col_stride != 1 || m > 2 * Tile::rows || cols % lanes<T> != 0;
      if (packed) pack(1, Operand<T>{b.at(k0, j0), b.row_stride, b.col_stride}, depth, cols, scratch);
      const Panels<T> panels{scratch, depth, cols};
      for (Index j = 0; j < cols; j += Tile::cols)
        detail::gemm_panel<T>(m, {a.at(0, k0), a.row_stride, a.col_stride}, packed ? panels.at(0, j) : b.at(k0, j0 + j),
                              packed ? panels.width(j) : b.row_stride, depth, c + j0 + j, c_stride,
                              std::min(Tile::cols, cols - j), accumulate || k0 > 0,
                              bias == nullptr ? nullptr : bias + j0 + j);
    }
  }
}

/// Copies A (m x k), a transpose (row stride 1), to `to` (m, k). A task is 64 rows; no allocation.
template <class T>
void transpose_rows(int threads, Index m, Index k, Operand<T> a, T* to) {
  parallel_blocks(threads, m, 64, [&](Index begin, Index end) {
    detail::pack_panel(Operand<T>{a.at(begin, 0), a.row_stride, a.col_stride}, end - begin, k, k, to + begin * k, k);
  });
}

/// Computes C (m x n) = A (m x k) B (k x n), plus C if `accumulate`, else plus `bias` (n) unless it is null, then the
/// epilogue, on several threads. It packs B first, and A if it is a transpose of many columns, whose elements would lie
/// far apart for each panel of B, into memory from `arena`. Call it from one thread.
template <class T, class Epilogue = NoEpilogue>
void gemm(int threads, Arena& arena, Index m, Index n, Index k, Operand<T> a, Operand<T> b, T* c, Index c_stride,
          bool accumulate, const T* bias, const Epilogue& epilogue = {}) {
  if (m == 0 || n == 0) return;
  const auto floats = [&](Index count) { return arena.allocate(static_cast<std::size_t>(count) * sizeof(T)); };
  const int packing = m * n * k < 32 * 32 * 32 ? 1 : threads;
  const Buffer packed = floats(Panels<T>::size(k, n));
  const auto panels = pack(packing, b, k, n, static_cast<T*>(packed.data()));
  Buffer rows;
  if (a.row_stride == 1 && a.col_stride >= 64 && n >= GemmTile<T>::copying_cols) {
    rows = floats(m * k);
    transpose_rows(packing, m, k, a, static_cast<T*>(rows.data()));
    a = {static_cast<const T*>(rows.data()), k};
  }
  gemm_packed(threads, m, a, panels, c, c_stride, accumulate, bias, epilogue);
}

LACONIC_COMPILE(pack);
LACONIC_COMPILE(gemm, NoEpilogue);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Calls body(n, rows of sequence n) for all rows of all sequences, at most `grain` rows in a task.
template <class Body>
void parallel_rows(int threads, const Sequences& sequences, Index grain, Body&& body) {
  parallel_blocks(threads, sequences.rows(), grain, [&](Index begin, Index end) {
    each_part(sequences, {begin, end}, body);
  });
}

/// Computes y[t, c] = bias[c] + sum_k weight[c, k] x[past + t + k - left, c] within each sequence, with zeros outside
/// it and after the chunk of t. x (rows of `sequences`, channels); y has `past` rows less in each sequence; taps
/// (kernel, channels) is the transposed weight; bias (channels) or null. If `flipped`, the taps run backwards and
/// frames before the own chunk are not seen: the derivative by x. Parallel over rows; no allocation.
template <class T>
void depthwise_conv(int threads, const Sequences& sequences, Index channels, Index kernel, const DepthwiseShape& shape,
                    bool flipped, const T* x, const T* taps, const T* bias, T* y) {
  const Index shift = shape.past - shape.left;
  parallel_rows(threads, sequences, 64, [&](Index n, Range rows_of_x) {
    const T* input = x + sequences.begin(n) * channels;
    T* output = y + (sequences.begin(n) - n * shape.past) * channels;
    const Index length = sequences.length(n), begin = std::max<Index>(0, rows_of_x.begin - shape.past),
                end = rows_of_x.end - shape.past;
    const auto taps_seen = [&](Index t) {
      Range seen{std::max<Index>(0, -shift - t), std::min(kernel, length - shift - t)};
      if (shape.chunk != Mask::unlimited && flipped) seen.begin = std::max(seen.begin, shape.left - t % shape.chunk);
      if (shape.chunk != Mask::unlimited && !flipped)
        seen.end = std::min(seen.end, shape.left + shape.chunk - t % shape.chunk);
      return seen;
    };
    // Register blocking: outputs that see all taps are computed together, enough to hide the latency of an addition.
    constexpr Index together = 8;
    const auto outputs = [&](Index t, auto size, Range seen) {
      constexpr Index count = decltype(size)::value;
      for (Index c = 0; c < channels; c += lanes<T>) {
        const Index some = std::min(lanes<T>, channels - c);
        const bool whole = some == lanes<T>;
        const auto part = [&](const T* from) { return whole ? load(from) : load_part(from, some); };
        const Batch<T> start = bias == nullptr ? Batch<T>(T(0)) : part(bias + c);
        Local<Batch<T>, count> sum;
        for (Index i = 0; i < count; ++i) sum[i] = start;
        for (Index k = seen.begin; k < seen.end; ++k) {
          const Batch<T> tap = part(taps + (flipped ? kernel - 1 - k : k) * channels + c);
          const T* row = input + (t + k + shift) * channels + c;
          LACONIC_UNROLL
          for (Index i = 0; i < count; ++i) sum[i] = xsimd::fma(tap, part(row + i * channels), sum[i]);
        }
        for (Index i = 0; i < count; ++i) {
          T* to = output + (t + i) * channels + c;
          whole ? store(to, sum[i]) : store_part(to, sum[i], some);
        }
      }
    };
    for (Index t = begin; t < end;) {
      bool all = t + together <= end;
      for (Index i = 0; all && i < together; ++i) all = taps_seen(t + i).size() == kernel;
      if (all)
        outputs(t, std::integral_constant<Index, together>(), Range{0, kernel});
      else
        outputs(t, std::integral_constant<Index, 1>(), taps_seen(t));
      t += all ? together : 1;
    }
  });
}

/// Computes dtaps[k, c] += sum_t dy[t, c] x[t + k - left, c] without past rows. dy and x (rows, channels), dtaps
/// (kernel, channels). Parallel over channels, so the order of each sum is fixed; no allocation.
template <class T>
void depthwise_conv_backward_taps(int threads, const Sequences& sequences, Index channels, Index kernel,
                                  const DepthwiseShape& shape, const T* dy, const T* x, T* dtaps) {
  parallel_blocks(threads, channels, 2 * lanes<T>, [&](Index begin, Index end) {
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), length = sequences.length(n);
      for (Index k = 0; k < kernel; ++k) {
        const Index ahead = k - shape.left;
        Local<T, 2 * lanes<T>> sum = {};
        for (Index t = std::max<Index>(0, -ahead); t < std::min(length, length - ahead); ++t) {
          if (shape.chunk != Mask::unlimited && t % shape.chunk + ahead >= shape.chunk) continue;
          const T *g = dy + (first + t) * channels, *row = x + (first + t + ahead) * channels;
          for (Index c = begin; c < end; ++c) sum[c - begin] += g[c] * row[c];
        }
        for (Index c = begin; c < end; ++c) dtaps[k * channels + c] += sum[c - begin];
      }
    }
  });
}

/// Reorders a convolution's weight (out, in, taps) to `ordered` (out, taps, in), which matches patches that are
/// contiguous in memory.
template <class T>
void reorder_taps(Index out, Index in, Index taps, const T* weight, T* ordered) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) ordered[(o * taps + k) * in + i] = weight[(o * in + i) * taps + k];
}
/// Reorders `ordered` (out, taps, in) back to a weight (out, in, taps).
template <class T>
void restore_taps(Index out, Index in, Index taps, const T* ordered, T* weight) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) weight[(o * in + i) * taps + k] = ordered[(o * taps + k) * in + i];
}
/// Adds `ordered` (taps, in, out) to the gradient of a weight (out, in, taps).
template <class T>
void add_reordered_taps(Index out, Index in, Index taps, const T* ordered, T* weight) {
  for (Index o = 0; o < out; ++o)
    for (Index i = 0; i < in; ++i)
      for (Index k = 0; k < taps; ++k) weight[(o * in + i) * taps + k] += ordered[(k * in + i) * out + o];
}

/// Returns the output frames of a block, whose patches stay in a second-level cache.
inline Index conv2d_block(const Conv2dShape& s) { return std::max<Index>(1, 256 / std::max<Index>(1, s.out_freqs())); }

/// Writes the patches of the output frames [t0, t1) of one sequence (im2col): patches ((t1 - t0) * out_freqs, patch),
/// each ordered (time, frequency, in). x (rows, in_cols). One thread; no allocation.
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

/// Computes y (rows of `to`, out_cols) from x (rows of `from`, in_cols) as products of patches with the weight.
/// multiply(patches, count, y, space) computes (count, out_channels) of `count` patches; it gets `space` bytes of
/// scratch for each patch. A task is a block of output frames. Takes scratch from `arena`; call it from one thread.
template <class T, class Multiply>
void conv2d(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to, const T* x,
            T* y, Index space, const Multiply& multiply) {
  const Blocks blocks(to.rows(), conv2d_block(s), 1, threads);
  const Index rows = blocks.most() * s.out_freqs();
  const Index patch_bytes = s.patch() * static_cast<Index>(sizeof(T)), each = rows * (patch_bytes + space);
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each));
  parallel_for(threads, blocks.count(), [&](Index task, int thread) {
    std::byte* memory = static_cast<std::byte*>(scratch.data()) + thread * each;
    T* patches = reinterpret_cast<T*>(memory);
    const Range frames = blocks[task];
    Index done = 0;
    each_part(to, frames, [&](Index n, Range of_sequence) {
      conv2d_patches(s, x + from.begin(n) * s.in_cols(), of_sequence.begin, of_sequence.end,
                     patches + done * s.out_freqs() * s.patch());
      done += of_sequence.size();
    });
    multiply(patches, frames.size() * s.out_freqs(), y + frames.begin * s.out_cols(), memory + rows * patch_bytes);
  });
}

/// Computes dordered (patch, out) += patches^T dy, with dy (rows of `to`, out_cols) and x (rows of `from`, in_cols). A
/// task is a range of columns of the result, so each sum has one order and dy is read once. Takes scratch from `arena`;
/// call it from one thread.
template <class T>
void conv2d_backward_weight(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                            const T* dy, const T* x, T* dordered) {
  const Index block = conv2d_block(s), rows = block * s.out_freqs();
  const Blocks pieces(s.out_channels, std::max(lanes<T>, padded_cols<T>(s.out_channels)), lanes<T>, threads);
  const Index each = rows * s.patch() + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(pieces.count() * each) * sizeof(T));
  parallel_for(threads, pieces.count(), [&](Index piece, int) {
    const Range cols = pieces[piece];
    T* patches = static_cast<T*>(scratch.data()) + piece * each;
    for (Index n = 0; n < from.size(); ++n)
      for (Index t0 = 0; t0 < to.length(n); t0 += block) {
        const Index t1 = std::min(to.length(n), t0 + block);
        conv2d_patches(s, x + from.begin(n) * s.in_cols(), t0, t1, patches);
        gemm_block<T>(s.patch(), cols.size(), (t1 - t0) * s.out_freqs(), Operand<T>{patches, s.patch()}.transposed(),
                      {dy + (to.begin(n) + t0) * s.out_cols() + cols.begin, s.out_channels}, dordered + cols.begin,
                      s.out_channels, true, nullptr, patches + rows * s.patch());
      }
  });
}

/// Adds the gradients of the patches, dy W, to the frames of dx that they were copied from. dy (rows of `to`,
/// out_cols), ordered (out, patch), dx (rows of `from`, in_cols), which must be zero on entry. Earlier output frames
/// are added first, so the order of each sum depends neither on blocks nor on threads. Takes scratch from `arena`; call
/// it from one thread.
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

/// Computes dordered (patch, out) += patches^T dy. The patches are rows of x (rows of `from`, in_channels) read in
/// place, `stride` rows apart; dy (rows of `to`, out_channels). Takes scratch from `arena`; call it from one thread.
template <class T>
void conv1d_backward_weight(int threads, Arena& arena, const Conv1dShape& s, const Sequences& from, const Sequences& to,
                            const T* dy, const T* x, T* dordered) {
  for (Index n = 0; n < from.size(); ++n)
    gemm<T>(threads, arena, s.patch(), s.out_channels, to.length(n),
            Operand<T>{x + from.begin(n) * s.in_channels, s.stride * s.in_channels}.transposed(),
            {dy + to.begin(n) * s.out_channels, s.out_channels}, dordered, s.out_channels, true, nullptr);
}

/// Computes dx += dy W_k for one tap k after the other. The rows of dx that a tap reaches are `stride` rows apart, and
/// none is reached twice. dy (rows of `to`, out_channels), ordered (out, patch), dx (rows of `from`, in_channels),
/// which must be zero on entry. Takes scratch from `arena`; call it from one thread.
template <class T>
void conv1d_backward_input(int threads, Arena& arena, const Conv1dShape& s, const Sequences& from, const Sequences& to,
                           const T* dy, const T* ordered, T* dx) {
  for (Index n = 0; n < from.size(); ++n)
    for (Index k = 0; k < s.kernel; ++k)
      gemm<T>(threads, arena, to.length(n), s.in_channels, s.out_channels,
              {dy + to.begin(n) * s.out_channels, s.out_channels}, {ordered + k * s.in_channels, s.patch()},
              dx + (from.begin(n) + k) * s.in_channels, s.stride * s.in_channels, true, nullptr);
}

LACONIC_COMPILE(depthwise_conv);
LACONIC_COMPILE(depthwise_conv_backward_taps);
LACONIC_COMPILE(conv2d_backward_weight);
LACONIC_COMPILE(conv2d_backward_input);
LACONIC_COMPILE(conv1d_backward_weight);
LACONIC_COMPILE(conv1d_backward_input);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

// The instructions by which rounded activations meet weights of bytes, with sums of 32 bits.

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the inputs of a weight of bytes that lie together: those that one instruction multiplies and adds up, four
/// bytes with VNNI and two numbers of 16 bits otherwise.
inline constexpr Index bytes_group = LACONIC_VNNI ? 4 : 2;

#if LACONIC_WHOLE_PRODUCTS

/// Names a vector of whole numbers.
using WholeVector = Batch<std::int32_t>;
/// Names a rounded activation: -127 to 127 with `activation_zero` added.
using RoundedNumber = std::conditional_t<LACONIC_VNNI, std::uint8_t, std::int16_t>;
/// Gives the activation that stands for zero. VNNI multiplies unsigned bytes by signed ones.
inline constexpr std::int32_t activation_zero = LACONIC_VNNI ? 128 : 0;

#ifdef __AVX512F__

/// Stores whole numbers in bytes, or in 16 bits.
inline void store_narrow(__m512i x, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}
inline void store_narrow(__m512i x, std::int16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(x));
}

#if LACONIC_VNNI
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`.
inline WholeVector load_group(const std::int8_t* from) { return _mm512_loadu_si512(from); }
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm512_dpbusd_epi32(sum, x, w);
}
#else
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`, and widens them.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(x, w));
}
#endif

#else

/// Stores whole numbers in bytes, or in 16 bits.
inline void store_narrow(__m256i x, std::int16_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}
inline void store_narrow(__m256i x, std::uint8_t* to) {
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
}

#if LACONIC_VNNI
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm256_dpbusd_avx_epi32(sum, x, w);
}
#else
/// Loads the bytes of one group of inputs for a vector of outputs, for `add_products`, and widens them.
inline WholeVector load_group(const std::int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
/// Returns sum + the products of a group, added up for each output.
inline WholeVector add_products(WholeVector sum, WholeVector x, WholeVector w) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w));
}
#endif

#endif

/// Returns a vector in which each output meets the same group of activations, whose bits these are.
inline WholeVector spread_group(std::int32_t bits) { return WholeVector(bits); }
/// Returns what `activation_zero` adds to sums: that many times the sum of each output's row.
inline WholeVector zero_of(const std::int32_t* sums) { return load(sums) * WholeVector(activation_zero); }

/// Rounds `count` floats times `factor`, or a whole vector if there are more, to whole numbers in `to`, which has room
/// for a vector. Lanes from `count` on become zeros.
inline void round_some(const float* x, Index count, float factor, RoundedNumber* to) {
  const Batch<float> some = count < lanes<float> ? load_part(x, count) : load(x);
  store_narrow(xsimd::nearbyint_as_int(some * Batch<float>(factor)) + WholeVector(activation_zero), to);
}

#endif

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

// Products with weights that are packed once, before they are used: panels of floats, of bf16, or of bytes with a scale
// for each output (int8).

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the rows of the register tile of bytes: one less than of floats where products need one of 16 registers before
/// they are added.
inline constexpr Index int8_tile_rows = GemmTile<float>::rows - (!LACONIC_VNNI && GemmTile<float>::rows == 4 ? 1 : 0);

/// Describes the layout of a packed weight (out, in). Bytes are in groups of `bytes_group` inputs, as the instruction
/// that multiplies them reads them, followed by the scale and the sum of each output's row.
struct PackedLayout {
  Storage storage;  ///< how elements are stored
  Index out;        ///< outputs
  Index in;         ///< inputs

  /// Returns the inputs, padded to whole groups.
  Index grouped_in() const { return (in + bytes_group - 1) / bytes_group * bytes_group; }
  /// Returns the offset of a byte within its panel, which is `width` outputs wide.
  static Index place(Index i, Index o, Index width) {
    return (i / bytes_group * width + o) * bytes_group + i % bytes_group;
  }
  /// Returns the outputs, padded to whole vectors of floats.
  Index padded_out() const { return padded_cols<float>(out); }
  /// Returns the offset of the panel that begins at output j, in elements.
  Index at(Index j) const { return j * (storage == Storage::int8 ? grouped_in() : in); }
  /// Returns the columns of the panel that begins at output j, padding included.
  Index width(Index j) const { return padded_cols<float>(std::min(GemmTile<float>::cols, out - j)); }
  /// Returns the bytes of the packed weight, with `number_bytes` for an element in full storage.
  Index bytes(Index number_bytes) const {
    if (storage == Storage::full) return Panels<float>::size(in, out) * number_bytes;
    return storage == Storage::bf16 ? at(padded_out()) * 2 : at(padded_out()) + 8 * padded_out();
  }
  /// Returns the scale of each output (padded_out), for int8.
  const float* scales(const std::byte* data) const { return reinterpret_cast<const float*>(data + at(padded_out())); }
  /// Returns the sum of the bytes of each output's row (padded_out), for int8.
  const std::int32_t* sums(const std::byte* data) const {
    return reinterpret_cast<const std::int32_t*>(scales(data) + padded_out());
  }
};

/// Refers to a weight that `pack_weight` packed.
struct PackedWeight {
  Storage storage = Storage::full;  ///< how elements are stored
  const std::byte* data = nullptr;  ///< the packed weight
};

/// Packs `weight` (out, in) into `to`, which has PackedLayout::bytes, for `multiply`. A task is a panel; no allocation.
/// Throws `Error` if int8 is given more inputs than a sum of 32 bits can hold.
template <class T>
void pack_weight(int threads, Storage storage, Index out, Index in, const T* weight, std::byte* to) {
  constexpr Index max_inputs = 1 << 17;  // products of bytes that a sum of 32 bits can hold
  require(storage != Storage::int8 || in <= max_inputs, "prepare: ", in, " inputs given, at most ", max_inputs,
          " expected for int8");
  const PackedLayout layout{storage, out, in};
  if (storage == Storage::full) {
    pack(threads, Operand<T>{weight, in}.transposed(), in, out, reinterpret_cast<T*>(to));
    return;
  }
  constexpr Index cols = GemmTile<float>::cols;
  parallel_for(threads, (out + cols - 1) / cols, [&](Index panel, int) {
    const Index j = panel * cols, width = layout.width(j);
    if (storage == Storage::bf16) {
      auto* halves = reinterpret_cast<Bf16*>(to) + layout.at(j);
      for (Index i = 0; i < in; ++i)
        for (Index o = 0; o < width; ++o)
          halves[i * width + o] = to_bf16(j + o < out ? static_cast<float>(weight[(j + o) * in + i]) : 0.0f);
      return;
    }
    auto* bytes = reinterpret_cast<std::int8_t*>(to) + layout.at(j);
    for (Index o = 0; o < width; ++o) {
      const ByteRow row(j + o < out ? in : 0, weight + (j + o < out ? (j + o) * in : 0));
      std::int32_t sum = 0;
      for (Index i = 0; i < layout.grouped_in(); ++i) {
        const std::int8_t rounded = j + o < out && i < in ? row(weight[(j + o) * in + i]) : std::int8_t{0};
        bytes[layout.place(i, o, width)] = rounded;
        sum += rounded;
      }
      const_cast<float*>(layout.scales(to))[j + o] = row.scale();
      const_cast<std::int32_t*>(layout.sums(to))[j + o] = sum;
    }
  });
}

/// Writes one row of a packed weight (out, in) to `to` (in): the original values in full storage, otherwise the rounded
/// ones. No allocation.
template <class T>
void unpack_row(const PackedWeight& packed, Index out, Index in, Index row, T* to) {
  const bool full = packed.storage == Storage::full;
  const PackedLayout layout{packed.storage, out, in};
  const Index cols = full ? GemmTile<T>::cols : GemmTile<float>::cols, j = row / cols * cols, o = row - j;
  const Index width = full ? padded_cols<T>(std::min(cols, out - j)) : layout.width(j);
  for (Index i = 0; i < in; ++i)
    if (full)
      to[i] = reinterpret_cast<const T*>(packed.data)[j * in + i * width + o];
    else if (packed.storage == Storage::bf16)
      to[i] = static_cast<T>(from_bf16(reinterpret_cast<const Bf16*>(packed.data)[layout.at(j) + i * width + o]));
    else
      to[i] =
          static_cast<T>(layout.scales(packed.data)[row] * static_cast<float>(reinterpret_cast<const std::int8_t*>(
                                                               packed.data)[layout.at(j) + layout.place(i, o, width)]));
}
/// Writes a packed weight back to `weight` (out, in). One thread; no allocation.
template <class T>
void unpack_weight(const PackedWeight& packed, Index out, Index in, T* weight) {
  for (Index row = 0; row < out; ++row) unpack_row(packed, out, in, row, weight + row * in);
}

#if !LACONIC_WHOLE_PRODUCTS

/// Computes y (m, out) = x (m, in) W^T + bias with a weight of bytes, then the epilogue. Each task widens a (128 x
/// cols) slab of its panel to floats, which stays in the cache while all rows meet it. Takes scratch from `arena`; call
/// it from one thread.
template <class Epilogue>
void multiply_int8(int threads, Arena& arena, Index m, Operand<float> x, const PackedLayout& layout,
                   const std::byte* data, const float* bias, float* y, const Epilogue& epilogue) {
  using Tile = GemmTile<float>;
  constexpr Index depth = 128;
  const Index panels = (layout.out + Tile::cols - 1) / Tile::cols;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * depth * Tile::cols) * sizeof(float));
  parallel_for(threads, panels, [&](Index panel, int thread) {
    float* slice = static_cast<float*>(scratch.data()) + thread * depth * Tile::cols;
    const Index j = panel * Tile::cols, width = layout.width(j);
    const auto* from = reinterpret_cast<const std::int8_t*>(data) + layout.at(j);
    const float* scale = layout.scales(data) + j;
    for (Index i0 = 0; i0 < layout.in; i0 += depth) {
      const Index count = std::min(depth, layout.in - i0);
      for (Index i = 0; i < count; ++i)
        for (Index o = 0; o < width; ++o)
          slice[i * width + o] = scale[o] * static_cast<float>(from[layout.place(i0 + i, o, width)]);
      detail::gemm_panel(m, Operand<float>{x.data + i0, x.row_stride}, slice, width, count, y + j, layout.out,
                         std::min(Tile::cols, layout.out - j), i0 > 0, bias == nullptr ? nullptr : bias + j);
    }
    epilogue(Index{0}, j, y + j, layout.out, m, std::min(Tile::cols, layout.out - j));
  });
}

#else

/// Rounds a row x (in) to whole numbers up to 127 and returns its scale: max |x| / 127. A NaN or infinity in the row
/// makes the scale NaN. `to` has room for whole vectors.
inline float round_row(Index in, const float* x, RoundedNumber* to) {
  using B = Batch<float>;
  B max_abs(0.0f), faults(0.0f);  // NaN and infinity make `faults` NaN
  Index i = 0;
  const auto look = [&](const B& some) {
    max_abs = xsimd::max(max_abs, xsimd::abs(some));
    faults = xsimd::fma(some, B(0.0f), faults);
  };
  for (; i + lanes<float> <= in; i += lanes<float>) look(load(x + i));
  if (i < in) look(load_part(x + i, in - i));
  const float largest = max_lanes<float>(max_abs), fault = sum_lanes<float>(faults);
  const float inverse = largest > 1e-30f && fault == 0 ? 127 / largest : 0;
  for (i = 0; i < in; i += lanes<float>) round_some(x + i, in - i, inverse, to + i);
  return largest / 127 + fault;
}

/// Computes y (Rows, used) = row_scale * column_scale * (a b) + bias: the micro-kernel for bytes. a (Rows, groups *
/// bytes_group) is rounded, b one panel, or several, `panel_stride` bytes apart, if Vectors is more than a panel has.
template <Index Rows, Index Vectors>
[[gnu::noinline]] void int8_kernel(const RoundedNumber* a, Index a_stride, Index groups, const std::int8_t* b,
                                   Index panel_stride, const float* row_scales, const float* scales,
                                   const std::int32_t* sums, const float* bias, float* y, Index y_stride, Index used) {
  constexpr Index w = lanes<float>, step = w * bytes_group, of_panel = std::min(Vectors, GemmTile<float>::vectors);
  constexpr auto rows = static_cast<std::size_t>(Rows), vectors = static_cast<std::size_t>(Vectors);
  WholeVector sum[rows][vectors];
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) sum[i][j] = WholeVector(0);
  }
  for (Index g = 0; g < groups; ++g) {
    WholeVector row[vectors];
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j)
      row[j] = in_register(load_group(b + j / of_panel * panel_stride + (g * of_panel + j % of_panel) * step));
    detail::prefetch_panels<Rows, Vectors / of_panel, of_panel * step>(b + g * of_panel * step, panel_stride,
                                                                       of_panel * step);
    LACONIC_UNROLL
    for (Index i = 0; i < Rows; ++i) {
      std::int32_t group;
      std::memcpy(&group, a + i * a_stride + bytes_group * g, sizeof group);
      const WholeVector x = spread_group(group);
      LACONIC_UNROLL
      for (Index j = 0; j < Vectors; ++j) sum[i][j] = add_products(sum[i][j], x, row[j]);
    }
  }
  // The sums go through memory here, or the compiler keeps them in memory during the loop.
  alignas(WholeVector) Local<Local<std::int32_t, Vectors * w>, Rows> done;
  LACONIC_UNROLL
  for (Index i = 0; i < Rows; ++i) {
    LACONIC_UNROLL
    for (Index j = 0; j < Vectors; ++j) std::memcpy(done[i] + w * j, &sum[i][j], sizeof(WholeVector));
  }
  for (Index j = 0; j < used; j += w) {
    const Index count = std::min<Index>(w, used - j);
    const Batch<float> scale = load(scales + j),
                       start = bias == nullptr ? Batch<float>(0.0f) : load_part(bias + j, count);
    const WholeVector zero = zero_of(sums + j);
    for (Index i = 0; i < Rows; ++i) {
      const Batch<float> product = xsimd::to_float(WholeVector::load_aligned(done[i] + j) - zero);
      store_part(y + i * y_stride + j, xsimd::fma(product, scale * Batch<float>(row_scales[i]), start), count);
    }
  }
}

/// Holds rows of x rounded to whole numbers, in memory of the caller: first the scales, then the rows.
struct RoundedRows {
  float* scales;           ///< the scale of each row
  RoundedNumber* numbers;  ///< the rows
  Index stride;            ///< numbers from row to row

  /// Returns the numbers from row to row for so many inputs.
  static Index stride_of(Index in) { return padded_cols<float>(in); }
  /// Returns the bytes of memory for m rows.
  static Index space(Index m, Index in) {
    return m * (stride_of(in) * static_cast<Index>(sizeof(RoundedNumber)) + static_cast<Index>(sizeof(float)));
  }
  /// Places m rows in `memory`. Rounds nothing yet.
  RoundedRows(Index m, Index in, void* memory)
      : scales(static_cast<float*>(memory)),
        numbers(reinterpret_cast<RoundedNumber*>(scales + m)),
        stride(stride_of(in)) {}
  /// Rounds these rows of x (m, in).
  void round(Range rows, Index in, const float* x, Index x_stride) {
    for (Index i = rows.begin; i < rows.end; ++i) scales[i] = round_row(in, x + i * x_stride, numbers + i * stride);
  }
};

/// Computes y = x W^T + bias for the rows `rows` of rounded x and the columns `cols`, which are whole panels of a
/// weight of bytes, then the epilogue. One thread; no allocation.
template <class Epilogue>
void int8_panels(Range rows, const RoundedRows& x, const PackedLayout& layout, const std::byte* data, Range cols,
                 const float* bias, float* y, const Epilogue& epilogue) {
  if (rows.size() == 0) return;
  using Tile = GemmTile<float>;
  const Index together = panels_together<float>(rows.size(), layout.grouped_in()) * Tile::cols,
              panel_stride = layout.grouped_in() * Tile::cols;
  for (Index j = cols.begin, used; j < cols.end; j += used) {
    used = std::min(j + together <= layout.out && j + together <= cols.end ? together : Tile::cols, layout.out - j);
    const auto* panel = reinterpret_cast<const std::int8_t*>(data) + layout.at(j);
    float* to = y + rows.begin * layout.out + j;
    const auto tile = [&](Index i, auto height, auto vectors) {
      i += rows.begin;
      int8_kernel<decltype(height)::value, decltype(vectors)::value>(
          x.numbers + i * x.stride, x.stride, layout.grouped_in() / bytes_group, panel, panel_stride, x.scales + i,
          layout.scales(data) + j, layout.sums(data) + j, bias == nullptr ? nullptr : bias + j, y + i * layout.out + j,
          layout.out, used);
    };
    if (rows.size() == 1 && used == together)
      detail::with_constant<Tile::row_panels>(used / Tile::cols, [&](auto panels) {
        tile(0, std::integral_constant<Index, 1>(),
             std::integral_constant<Index, decltype(panels)::value * Tile::vectors>());
      });
    else
      detail::with_constant<Tile::vectors>(layout.width(j) / lanes<float>, [&](auto vectors) {
        detail::each_row_tile<int8_tile_rows>(rows.size(), [&](Index i, auto height) { tile(i, height, vectors); });
      });
    epilogue(rows.begin, j, to, layout.out, rows.size(), used);
  }
}

/// Computes y (m, out) = x (m, in) W^T + bias with a weight of bytes, then the epilogue. Each row of x is rounded to
/// whole numbers by its own scale first. Takes scratch from `arena`; call it from one thread.
template <class Epilogue>
void multiply_int8(int threads, Arena& arena, Index m, Operand<float> x, const PackedLayout& layout,
                   const std::byte* data, const float* bias, float* y, const Epilogue& epilogue) {
  const Buffer space = arena.allocate(static_cast<std::size_t>(RoundedRows::space(m, layout.in)));
  RoundedRows rounded(m, layout.in, space.data());
  parallel_blocks(threads, m, 16, [&](Index begin, Index end) {
    rounded.round({begin, end}, layout.in, x.data, x.row_stride);
  });
  share_product<float>(threads, m, layout.out, layout.in, [&](Range rows, Range cols) {
    int8_panels(rows, rounded, layout, data, cols, bias, y, epilogue);
  });
}

#endif

/// Computes y (m, out) = x (m, in) W^T + bias (out, or null) with a packed weight, then the epilogue. x has unit column
/// stride. Takes scratch from `arena` for int8; call it from one thread.
template <class T, class Epilogue>
void multiply(int threads, Arena& arena, Index m, Operand<T> x, Index out, Index in, const PackedWeight& weight,
              const T* bias, T* y, const Epilogue& epilogue) {
  const std::byte* data = weight.data;
  if (weight.storage == Storage::full)
    return gemm_packed(threads, m, x, Panels<T>{reinterpret_cast<const T*>(data), in, out}, y, out, false, bias,
                       epilogue);
  if constexpr (std::is_same_v<T, float>) {
    if (weight.storage == Storage::bf16)
      gemm_packed(threads, m, x, Panels<T, Bf16>{reinterpret_cast<const Bf16*>(data), in, out}, y, out, false, bias,
                  epilogue);
    else if (m > 0)
      multiply_int8(threads, arena, m, x, {weight.storage, out, in}, data, bias, y, epilogue);
  }
}

/// Returns the bytes of scratch that `multiply_rows` needs for a row.
inline Index multiply_rows_space([[maybe_unused]] Index in, [[maybe_unused]] const PackedWeight& weight) {
#if LACONIC_WHOLE_PRODUCTS
  if (weight.storage == Storage::int8) return RoundedRows::space(1, in);
#endif
  return 0;
}
/// Computes y (m, out) = x (m, in) W^T + bias (out, or null) with a packed weight, then the epilogue. `space` has
/// multiply_rows_space bytes for each row. int8 is allowed only with LACONIC_WHOLE_PRODUCTS. One thread;
/// no allocation.
template <class T, class Epilogue>
void multiply_rows(Index m, Operand<T> x, Index out, Index in, const PackedWeight& weight, const T* bias, T* y,
                   const Epilogue& epilogue, [[maybe_unused]] void* space) {
  const std::byte* data = weight.data;
  const Range ks{0, in}, js{0, out};
  if (weight.storage == Storage::full)
    return gemm_panels(m, x, Panels<T>{reinterpret_cast<const T*>(data), in, out}, ks, js, y, out, false, bias,
                       epilogue);
  if constexpr (std::is_same_v<T, float>) {
    if (weight.storage == Storage::bf16)
      return gemm_panels(m, x, Panels<T, Bf16>{reinterpret_cast<const Bf16*>(data), in, out}, ks, js, y, out, false,
                         bias, epilogue);
#if LACONIC_WHOLE_PRODUCTS
    RoundedRows rounded(m, in, space);
    rounded.round({0, m}, in, x.data, x.row_stride);
    int8_panels({0, m}, rounded, {weight.storage, out, in}, data, js, bias, y, epilogue);
#endif
  }
}

LACONIC_COMPILE(pack_weight);
LACONIC_COMPILE(unpack_row);
LACONIC_COMPILE(unpack_weight);
LACONIC_COMPILE(gemm, ActivationEpilogue);
LACONIC_COMPILE(multiply, NoEpilogue);
LACONIC_COMPILE(multiply, ActivationEpilogue);
LACONIC_COMPILE(multiply_rows, ActivationEpilogue);

}  // namespace kernels

}  // namespace LACONIC_ABI
}  // namespace laconic

// The 3 x 3 convolution of stride 2 with 25 products where the plain one has 36.
//
// Two outputs next to each other in time share an input: y0 = x0 w0 + x1 w1 + x2 w2 and y1 = x2 w0 + x3 w1 + x4 w2. The
// even taps are a filter of two taps over the even inputs, for which three products do the work of four (Winograd 1980;
// Lavin and Gray 2016, F(2, 2)):
//   y0 = (x0 - x2) w0 + x2 (w0 + w2)                + x1 w1
//   y1 =                x2 (w0 + w2) + (x4 - x2) w2          + x3 w1
// The five products are "components" 0 .. 4 below. In frequency alike: 25 components of a tile of 2 x 2 outputs, whose
// sums over channels are matrix products. Components that add to the same outputs are one product of all their
// channels.

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Returns whether a convolution is computed by Winograd tiles. They do not pay for few input channels.
constexpr bool is_tiled(const Conv2dShape& shape) { return shape.stride == 2 && shape.in_channels >= 16; }

/// Describes the tiles of 2 x 2 outputs of a sequence, their 25 components, and the 9 groups of components that add to
/// the same outputs.
struct ConvTiles {
  static constexpr Index components = 5;                 ///< components along an axis
  static constexpr Index all = components * components;  ///< components of a tile
  static constexpr Index groups = 9;                     ///< groups of components

  /// Describes the tiles of a sequence of `length` output frames.
  ConvTiles(const Conv2dShape& s, Index length)
      : shape(s), out_length(length), out_freqs(s.out_freqs()), times((length + 1) / 2), freqs((out_freqs + 1) / 2) {}

  const Conv2dShape& shape;  ///< the convolution
  Index out_length;          ///< output frames
  Index out_freqs;           ///< output frequencies
  Index times;               ///< rows of tiles, which are numbered row by row
  Index freqs;               ///< columns of tiles

  /// Returns the number of tiles.
  Index count() const { return times * freqs; }
  /// Calls visit(row, column) for each of these tiles.
  template <class Visit>
  void each(Range tiles, Visit&& visit) const {
    if (tiles.size() == 0) return;
    Index row = tiles.begin / freqs, column = tiles.begin % freqs;
    for (Index tile = tiles.begin; tile < tiles.end; ++tile) {
      visit(row, column);
      if (++column < freqs) continue;
      column = 0;
      ++row;
    }
  }
  /// Lists the components along one axis that add to the first output, to both outputs, and to the second output.
  static constexpr std::array<std::array<Index, 2>, 3> members{{{0, 3}, {1, -1}, {2, 4}}};
  /// Returns the components along one axis of an axis group: 2, 1 and 2.
  static constexpr Index member_count(Index axis_group) { return axis_group == 1 ? 1 : 2; }
  /// Returns the components of group 3 g + h, which has those of axis group g in time and h in frequency.
  static constexpr Index size(Index group) { return member_count(group / 3) * member_count(group % 3); }
  /// Returns the number of the first component of a group.
  static constexpr Index first(Index group) {
    Index sum = 0;
    for (Index g = 0; g < group; ++g) sum += size(g);
    return sum;
  }

  /// Calls visit(member, a, b) for each member of a group, which is component a in time and b in frequency.
  template <class Visit>
  static constexpr void each_member(Index group, Visit&& visit) {
    Index place = 0;
    for (Index i = 0; i < member_count(group / 3); ++i)
      for (Index j = 0; j < member_count(group % 3); ++j)
        visit(place++, members[static_cast<std::size_t>(group / 3)][static_cast<std::size_t>(i)],
              members[static_cast<std::size_t>(group % 3)][static_cast<std::size_t>(j)]);
  }
  /// Returns the input along an axis that component a begins with.
  static constexpr Index plus(Index a) { return std::array<Index, 5>{0, 2, 4, 1, 3}[static_cast<std::size_t>(a)]; }
  /// Returns whether component a is input plus(a) minus input 2, and not input plus(a) only.
  static constexpr bool less_middle(Index a) { return a == 0 || a == 2; }
  /// Returns whether the weight of component a includes this tap.
  static constexpr bool has_tap(Index a, Index tap) {
    return a > 2 ? tap == 1 : (tap == 0 && a < 2) || (tap == 2 && a > 0);
  }
};

/// Describes the component a in time and b in frequency, which is member `member` of its group.
struct ConvComponent {
  Index group;   ///< the group
  Index member;  ///< the place in the group
  Index a;       ///< the component in time
  Index b;       ///< the component in frequency
};
/// Lists all components, group by group.
inline constexpr auto conv_components = [] {
  std::array<ConvComponent, ConvTiles::all> out{};
  for (Index group = 0; group < ConvTiles::groups; ++group)
    ConvTiles::each_member(group, [&](Index member, Index a, Index b) {
      out[static_cast<std::size_t>(ConvTiles::first(group) + member)] = {group, member, a, b};
    });
  return out;
}();
/// Lists all components by number 5 a + b.
inline constexpr auto conv_component_at = [] {
  std::array<ConvComponent, ConvTiles::all> out{};
  for (const ConvComponent& c : conv_components) out[static_cast<std::size_t>(5 * c.a + c.b)] = c;
  return out;
}();

/// Calls visit(weight, taps, used) for every weight of the components (25 * in_channels, out_channels): `taps` points
/// to the 9 taps of its channels in (out, in, 3, 3), and `used` holds the numbers 3 p + q of the taps that it is the
/// sum of. Parallel over input channels; no allocation.
template <class Weight, class Tap, class Visit>
void each_tile_weight(int threads, const Conv2dShape& s, Weight* weights, Tap* taps, Visit&& visit) {
  parallel_blocks(threads, s.in_channels, 16, [&](Index begin, Index end) {
    for (Index place = 0; place < ConvTiles::all; ++place) {
      const ConvComponent& component = conv_components[static_cast<std::size_t>(place)];
      std::array<Index, 4> used{};
      std::size_t count = 0;
      for (Index p = 0; p < 3; ++p)
        for (Index q = 0; q < 3; ++q)
          if (ConvTiles::has_tap(component.a, p) && ConvTiles::has_tap(component.b, q)) used[count++] = 3 * p + q;
      for (Index c = begin; c < end; ++c)
        for (Index o = 0; o < s.out_channels; ++o)
          visit(weights[(place * s.in_channels + c) * s.out_channels + o], taps + (o * s.in_channels + c) * 9,
                std::span(used).first(count));
    }
  });
}
/// Computes the weights of the components (25 * in_channels, out_channels) from taps (out, in, 3, 3). Parallel over
/// input channels; no allocation.
template <class T>
void tile_weights(int threads, const Conv2dShape& s, const T* taps, T* weights) {
  each_tile_weight(threads, s, weights, taps, [](T& weight, const T* of_channels, std::span<const Index> used) {
    T sum = 0;
    for (const Index tap : used) sum += of_channels[tap];
    weight = sum;
  });
}
/// Adds to dtaps (out, in, 3, 3) from the derivative by the components' weights (25 * in_channels, out_channels).
/// Parallel over input channels; no allocation.
template <class T>
void add_tile_weights(int threads, const Conv2dShape& s, const T* dweights, T* dtaps) {
  each_tile_weight(threads, s, dweights, dtaps, [](T dweight, T* of_channels, std::span<const Index> used) {
    for (const Index tap : used) of_channels[tap] += dweight;
  });
}

/// Returns the offset of the panels of a group, in elements.
template <class T>
Index tile_panels_at(const Conv2dShape& s, Index group) {
  return Panels<T>::size(ConvTiles::first(group) * s.in_channels, s.out_channels);
}
/// Returns the elements of the panels of all groups.
template <class T>
Index tile_panels_size(const Conv2dShape& s) {
  return Panels<T>::size(ConvTiles::all * s.in_channels, s.out_channels);
}
/// Packs the weights of the components (25 * in_channels, out_channels) into panels, group by group. A task is a panel;
/// no allocation.
template <class T>
void pack_tile_weights(int threads, const Conv2dShape& s, const T* weights, T* to) {
  for (Index group = 0; group < ConvTiles::groups; ++group)
    pack(threads, Operand<T>{weights + ConvTiles::first(group) * s.in_channels * s.out_channels, s.out_channels},
         ConvTiles::size(group) * s.in_channels, s.out_channels, to + tile_panels_at<T>(s, group));
}

/// Writes the taps (out, in, 3, 3) back from the panels of the components. Each tap is the only one of some component.
template <class T>
void untile_weights(const Conv2dShape& s, const T* panels, T* taps) {
  constexpr Index of_tap[3] = {0, 3, 2};  // the component whose only tap is this one
  for (Index p = 0; p < 3; ++p)
    for (Index q = 0; q < 3; ++q) {
      const ConvComponent& c = conv_component_at[static_cast<std::size_t>(5 * of_tap[p] + of_tap[q])];
      const Panels<T> group{panels + tile_panels_at<T>(s, c.group), ConvTiles::size(c.group) * s.in_channels,
                            s.out_channels};
      for (Index o = 0; o < s.out_channels; ++o) {
        const Index j = o / GemmTile<T>::cols * GemmTile<T>::cols;
        for (Index i = 0; i < s.in_channels; ++i)
          taps[(o * s.in_channels + i) * 9 + 3 * p + q] = group.at(c.member * s.in_channels + i, j)[o - j];
      }
    }
}

/// Writes these channels of one component of the tile at (row, column) of a sequence x (rows, in_cols). `zeros`
/// (in_channels) stands for inputs outside the sequence. One thread; no allocation.
template <class T>
void tile_component(const ConvTiles& t, Index a, Index b, Index row, Index column, Range channels, Index rows,
                    const T* x, const T* zeros, T* to) {
  const Index time = 4 * row, freq = 4 * column;
  const auto input = [&](Index r, Index s) {
    const bool inside = time + r < rows && freq + s < t.shape.in_freqs;
    return (inside ? x + (time + r) * t.shape.in_cols() + (freq + s) * t.shape.in_channels : zeros) + channels.begin;
  };
  const Index r = ConvTiles::plus(a), s = ConvTiles::plus(b);
  const bool in_time = ConvTiles::less_middle(a), in_freq = ConvTiles::less_middle(b);
  if (in_time && in_freq)
    map_span(
        channels.size(), to, [](auto x0, auto x1, auto x2, auto x3) { return (x0 - x1) - (x2 - x3); }, input(r, s),
        input(r, 2), input(2, s), input(2, 2));
  else if (in_time || in_freq)
    map_span(
        channels.size(), to, [](auto x0, auto x1) { return x0 - x1; }, input(r, s),
        in_time ? input(2, s) : input(r, 2));
  else
    std::copy_n(input(r, s), channels.size(), to);
}

/// Writes these channels of the derivative by a group's sum for the tile at (row, column), from dy (rows, out_cols) of
/// a sequence. `zeros` (out_channels) stands for outputs outside the sequence. One thread; no allocation.
template <class T>
void tile_output_gradient(const ConvTiles& t, Index group, Index row, Index column, Range channels, const T* dy,
                          const T* zeros, T* to) {
  const Index time = 2 * row, freq = 2 * column;
  const auto output = [&](Index i, Index j) {
    const bool inside = time + i < t.out_length && freq + j < t.out_freqs;
    return (inside ? dy + ((time + i) * t.out_freqs + freq + j) * t.shape.out_channels : zeros) + channels.begin;
  };
  const Index g = group / 3, h = group % 3, i = g / 2, j = h / 2;  // the only output of an axis, where it is one
  if (g == 1 && h == 1)
    map_span(
        channels.size(), to, [](auto a, auto b, auto c, auto d) { return (a + b) + (c + d); }, output(0, 0),
        output(0, 1), output(1, 0), output(1, 1));
  else if (g == 1 || h == 1)
    map_span(
        channels.size(), to, [](auto a, auto b) { return a + b; }, g == 1 ? output(0, j) : output(i, 0),
        g == 1 ? output(1, j) : output(i, 1));
  else
    std::copy_n(output(i, j), channels.size(), to);
}

/// Computes y (rows of `to`, out_cols) from x (rows of `from`, in_cols) with packed weights of the components, plus
/// bias (out_channels), then the activation if one is given. The tiles of all sequences are numbered end to end; a task
/// is a block of tiles. Takes scratch from `arena`; call it from one thread.
template <class T>
void conv2d_tiles(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                  const T* x, const T* panels, const T* bias, std::optional<Activation> activation, T* y) {
  const Sequences tiles = to.map_lengths(arena, [&](Index length) { return ConvTiles(s, length).count(); });
  const Index max_depth = ConvTiles::size(0) * s.in_channels;  // the depth of the first group, the largest
  // Enough tiles that the weights, which do not fit the second-level cache, are seldom read again, and few enough that
  // the components of a group fit it.
  const Blocks blocks(tiles.rows(), std::clamp<Index>((Index{1} << 17) / max_depth / 8 * 8, 8, 128), 8, threads);
  const Index sums = blocks.most() * s.out_channels;
  const Index each = blocks.most() * max_depth + ConvTiles::groups * sums + s.in_channels;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  parallel_for(threads, blocks.count(), [&](Index task, int thread) {
    T* components = static_cast<T*>(scratch.data()) + thread * each;
    T *sum = components + blocks.most() * max_depth, *zeros = sum + ConvTiles::groups * sums;
    const Range block = blocks[task];
    std::fill_n(zeros, s.in_channels, T(0));
    for (Index group = 0; group < ConvTiles::groups; ++group) {
      const Index depth = ConvTiles::size(group) * s.in_channels;
      T* out = components;
      each_part(tiles, block, [&](Index n, Range of_sequence) {
        const ConvTiles t(s, to.length(n));
        t.each(of_sequence, [&](Index row, Index column) {
          ConvTiles::each_member(group, [&](Index member, Index a, Index b) {
            tile_component(t, a, b, row, column, {0, s.in_channels}, from.length(n), x + from.begin(n) * s.in_cols(),
                           zeros, out + member * s.in_channels);
          });
          out += depth;
        });
      });
      gemm_panels(block.size(), Operand<T>{components, depth},
                  Panels<T>{panels + tile_panels_at<T>(s, group), depth, s.out_channels}, {0, depth},
                  {0, s.out_channels}, sum + group * sums, s.out_channels, false, static_cast<const T*>(nullptr));
    }
    const T* of_tile = sum;
    each_part(tiles, block, [&](Index n, Range of_sequence) {
      const ConvTiles t(s, to.length(n));
      t.each(of_sequence, [&](Index row, Index column) {
        for (Index i = 0; i < 2; ++i)
          for (Index j = 0; j < 2; ++j) {
            const Index time = 2 * row + i, freq = 2 * column + j;
            if (time >= t.out_length || freq >= t.out_freqs) continue;
            const auto part = [&](Index g, Index h) { return of_tile + (3 * g + h) * sums; };
            map_span(
                s.out_channels, y + (to.begin(n) + time) * s.out_cols() + freq * s.out_channels,
                [&](auto a, auto b, auto c, auto d, auto e) {
                  const auto total = e + ((a + b) + (c + d));
                  return activation ? activate(*activation, total) : total;
                },
                part(2 * i, 2 * j), part(2 * i, 1), part(1, 2 * j), part(1, 1), bias);
          }
        of_tile += s.out_channels;
      });
    });
  });
}

/// Accumulates the derivative dx of one pixel (time, frequency) from the gradients of the components of all tiles that
/// read it, with their signs.
template <class T>
class PixelGradient {
 public:
  /// Names a component that reads an input, and whether it subtracts it.
  struct Share {
    Index component;  ///< the component along an axis
    bool negative;    ///< whether it subtracts the input
  };
  /// Returns the components along an axis that read input `place` of a tile. Two components subtract the middle input.
  static std::span<const Share> shares(Index place) {
    static constexpr std::array<Share, 7> all{
        {{0, false}, {3, false}, {0, true}, {1, false}, {2, true}, {4, false}, {2, false}}};
    static constexpr std::array<Index, 6> begin{0, 1, 2, 5, 6, 7};
    const auto first = static_cast<std::size_t>(begin[static_cast<std::size_t>(place)]),
               end = static_cast<std::size_t>(begin[static_cast<std::size_t>(place) + 1]);
    return std::span(all).subspan(first, end - first);
  }

  /// Adds the gradients of the components that read input (r, s) of a tile. of_group(group) points to the gradients of
  /// a group for this tile.
  template <class OfGroup>
  void add(OfGroup&& of_group, Index channels, Index r, Index s) {
    for (const Share a : shares(r))
      for (const Share b : shares(s)) {
        const ConvComponent& place = conv_component_at[static_cast<std::size_t>(5 * a.component + b.component)];
        from_[count_] = of_group(place.group) + place.member * channels;
        negative_[count_++] = a.negative != b.negative;
      }
  }
  /// Adds the accumulated gradients (channels) to dx.
  void add_to(Index channels, T* dx) const {
    for (Index c = 0; c < channels; c += lanes<T>) {
      const Index some = std::min(lanes<T>, channels - c);
      const bool whole = some == lanes<T>;
      const auto part = [&](const T* at) { return whole ? load(at) : load_part(at, some); };
      Batch<T> sum = part(dx + c);
      for (std::size_t i = 0; i < count_; ++i) sum = negative_[i] ? sum - part(from_[i] + c) : sum + part(from_[i] + c);
      whole ? store(dx + c, sum) : store_part(dx + c, sum, some);
    }
  }

 private:
  std::array<const T*, 16> from_{};
  std::array<bool, 16> negative_{};
  std::size_t count_ = 0;
};

/// Computes dweights (25 * in_channels, out_channels) += the derivative by the components' weights, from dy (rows of
/// `to`, out_cols) and x (rows of `from`, in_cols). A task makes one component and the gradients that it meets, and
/// multiplies them while both are in its cache. Earlier tiles are added first, so results do not depend on threads.
/// Takes scratch from `arena`; call it from one thread.
template <class T>
void conv2d_tiles_backward_weights(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from,
                                   const Sequences& to, const T* dy, const T* x, T* dweights) {
  const Sequences tiles = to.map_lengths(arena, [&](Index length) { return ConvTiles(s, length).count(); });
  // Blocks of tiles whose component and gradients fit a second-level cache.
  const Blocks blocks(tiles.rows(), std::clamp<Index>(98304 / (s.in_channels + s.out_channels) / 8 * 8, 64, 512), 8, 1);
  // Components are divided by channels, too, if there are few of them for the threads.
  const Index parts = std::clamp<Index>((4 * threads + ConvTiles::all - 1) / ConvTiles::all, 1, s.in_channels),
              max_channels = (s.in_channels + parts - 1) / parts;
  const Index each =
      blocks.most() * max_channels + Panels<T>::size(blocks.most(), s.out_channels) + s.in_channels + s.out_channels;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  for (Index block = 0; block < blocks.count(); ++block)
    parallel_for(threads, ConvTiles::all * parts, [&](Index task, int thread) {
      const Index place = task / parts, part = task % parts, count = blocks[block].size();
      const ConvComponent& of = conv_components[static_cast<std::size_t>(place)];
      const Range channels = equal_part(s.in_channels, 1, part, parts);
      T* components = static_cast<T*>(scratch.data()) + thread * each;
      T* const gradients = components + blocks.most() * max_channels;
      T* const zeros = gradients + Panels<T>::size(blocks.most(), s.out_channels);
      std::fill_n(zeros, s.in_channels + s.out_channels, T(0));
      T *component = components, *gradient = gradients;
      each_part(tiles, blocks[block], [&](Index n, Range of_sequence) {
        const ConvTiles t(s, to.length(n));
        t.each(of_sequence, [&](Index row, Index column) {
          tile_component(t, of.a, of.b, row, column, channels, from.length(n), x + from.begin(n) * s.in_cols(), zeros,
                         component);
          component += channels.size();
        });
      });
      const Panels<T> panels{gradients, count, s.out_channels};
      for (Index j = 0; j < s.out_channels; j += GemmTile<T>::cols) {
        const Index used = std::min(GemmTile<T>::cols, s.out_channels - j), width = panels.width(j);
        each_part(tiles, blocks[block], [&](Index n, Range of_sequence) {
          const ConvTiles t(s, to.length(n));
          t.each(of_sequence, [&](Index row, Index column) {
            tile_output_gradient(t, of.group, row, column, {j, j + used}, dy + to.begin(n) * s.out_cols(), zeros,
                                 gradient);
            std::fill(gradient + used, gradient + width, T(0));
            gradient += width;
          });
        });
      }
      gemm_panels(channels.size(), Operand<T>{components, channels.size()}.transposed(), panels, {0, count},
                  {0, s.out_channels}, dweights + (place * s.in_channels + channels.begin) * s.out_channels,
                  s.out_channels, true, static_cast<const T*>(nullptr));
    });
}

/// Computes dx (rows of `from`, in_cols), which must be zero on entry, from dy (rows of `to`, out_cols) and the
/// components' weights (25 * in_channels, out_channels). Earlier tiles are added first, so results do not depend on
/// threads. Takes scratch from `arena`; call it from one thread.
template <class T>
void conv2d_tiles_backward_input(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from,
                                 const Sequences& to, const T* dy, const T* weights, T* dx) {
  constexpr Index groups = ConvTiles::groups;
  const Index freqs = ConvTiles(s, 0).freqs;
  if (freqs == 0) return;
  // Blocks of rows of tiles, of all sequences end to end: enough rows for each thread to make reading the weights pay,
  // and no more, so that the gradients of a block stay in the cache.
  const Sequences times = to.map_lengths(arena, [&](Index length) { return ConvTiles(s, length).times; });
  const Index piece = std::max<Index>(1, 64 / freqs);
  const Blocks blocks(times.rows(), piece * threads, 1, 1);
  const auto depth = [&](Index group) { return ConvTiles::size(group) * s.in_channels; };
  const auto start = [&](Index group) { return ConvTiles::first(group) * s.in_channels; };
  // The weights of each group, transposed.
  std::array<Panels<T>, groups> panels{};
  Index size = 0;
  for (Index group = 0; group < groups; ++group) size += Panels<T>::size(s.out_channels, depth(group));
  const Buffer packed = arena.allocate(static_cast<std::size_t>(size) * sizeof(T));
  T* at = static_cast<T*>(packed.data());
  for (Index group = 0; group < groups; ++group) {
    const Operand<T> of_group{weights + start(group) * s.out_channels, s.out_channels};
    panels[static_cast<std::size_t>(group)] = pack(threads, of_group.transposed(), s.out_channels, depth(group), at);
    at += Panels<T>::size(s.out_channels, depth(group));
  }
  const Index max_tiles = blocks.most() * freqs, sums = piece * freqs * s.out_channels;
  const Buffer memory = arena.allocate(
      static_cast<std::size_t>(max_tiles * ConvTiles::all * s.in_channels + threads * sums + s.out_channels) *
      sizeof(T));
  T *gradients = static_cast<T*>(memory.data()), *scratch = gradients + max_tiles * ConvTiles::all * s.in_channels,
    *zeros = scratch + threads * sums;
  std::fill_n(zeros, s.out_channels, T(0));
  for (Index b = 0; b < blocks.count(); ++b) {
    const Range block = blocks[b];
    const Blocks pieces(block.size(), piece, 1, threads);
    parallel_for(threads, pieces.count(), [&](Index task, int thread) {
      T* const sum = scratch + thread * sums;
      const Range rows{block.begin + pieces[task].begin, block.begin + pieces[task].end};
      for (Index group = 0; group < groups; ++group) {
        T* out = sum;
        each_part(times, rows, [&](Index n, Range of_sequence) {
          const ConvTiles t(s, to.length(n));
          t.each({of_sequence.begin * freqs, of_sequence.end * freqs}, [&](Index row, Index column) {
            tile_output_gradient(t, group, row, column, {0, s.out_channels}, dy + to.begin(n) * s.out_cols(), zeros,
                                 out);
            out += s.out_channels;
          });
        });
        gemm_panels(rows.size() * freqs, Operand<T>{sum, s.out_channels}, panels[static_cast<std::size_t>(group)],
                    {0, s.out_channels}, {0, depth(group)},
                    gradients + max_tiles * start(group) + (rows.begin - block.begin) * freqs * depth(group),
                    depth(group), false, static_cast<const T*>(nullptr));
      }
    });
    parallel_for(threads, block.size(), [&](Index task, int) {
      const Index n = times.sequence_of(block.begin + task), own = block.begin + task - times.begin(n);
      // The rows of tiles of this sequence that are in the block.
      const Range here{std::max<Index>(0, block.begin - times.begin(n)),
                       std::min(times.length(n), block.end - times.begin(n))};
      const Index before = (times.begin(n) - block.begin) * freqs;
      const Index stop = 4 * (own + 1) + (own + 1 == here.end ? 1 : 0);
      for (Index time = 4 * own; time < std::min(from.length(n), stop); ++time)
        for (Index freq = 0; freq < s.in_freqs; ++freq) {
          PixelGradient<T> pixel;
          for (const Index i : {time / 4 - 1, time / 4})
            for (const Index j : {freq / 4 - 1, freq / 4}) {
              const Index r = time - 4 * i, q = freq - 4 * j;
              if (r > 4 || q > 4 || i < here.begin || i >= here.end || j < 0 || j >= freqs) continue;
              const auto of_group = [&](Index group) {
                return gradients + max_tiles * start(group) + (before + i * freqs + j) * depth(group);
              };
              pixel.add(of_group, s.in_channels, r, q);
            }
          pixel.add_to(s.in_channels, dx + (from.begin(n) + time) * s.in_cols() + freq * s.in_channels);
        }
    });
  }
}

LACONIC_COMPILE(tile_weights);
LACONIC_COMPILE(add_tile_weights);
LACONIC_COMPILE(pack_tile_weights);
LACONIC_COMPILE(untile_weights);
LACONIC_COMPILE(conv2d_tiles);
LACONIC_COMPILE(conv2d_tiles_backward_weights);
LACONIC_COMPILE(conv2d_tiles_backward_input);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

// The forms in which the CPU holds a weight: how each is made, found by the kernels, and read back.

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the forms of a weight on the CPU.
enum class WeightForm {
  plain,   ///< row-major, as on the host
  panels,  ///< W^T in panels, for rows times W^T
  taps,    ///< a convolution's weight ordered (out, taps, in), transposed, in panels
  tiles    ///< the components of a Winograd convolution (kernels/winograd_conv2d.hpp) in panels
};

/// Holds a weight that is resident in `Cpu`.
template <class T>
class CpuWeight final : public ResidentWeight, public std::enable_shared_from_this<CpuWeight<T>> {
 public:
  /// Holds the values unpacked. If `trains` is true, they can change and have a gradient, which is made when it is
  /// first asked for.
  CpuWeight(Matrix<T> values, Matrix<T> gradient_values, bool trains)
      : ResidentWeight(&tag), value(std::move(values)), gradient(std::move(gradient_values)), trains_(trains) {}
  /// Holds a packed weight, which cannot change.
  CpuWeight(WeightForm weight_form, Storage weight_storage, std::shared_ptr<const std::byte> memory)
      : ResidentWeight(&tag), form(weight_form), data(std::move(memory)), storage_(weight_storage) {}

  /// Returns the CPU's form of a resident parameter. Throws `Error` if another backend holds it, or this one with
  /// another scalar type.
  static CpuWeight& of(const Parameter<T>& p) {
    ResidentWeight& weight = *p.resident();
    require(weight.kind() == &tag, "weight: one resident in ", weight.backend(), " given, one of this Cpu expected");
    return static_cast<CpuWeight&>(weight);
  }

  /// Returns the name of the backend.
  const char* backend() const override { return "Cpu"; }
  /// Returns how the values are stored.
  Storage storage() const override { return storage_; }
  /// Returns whether the values can change.
  bool can_train() const override { return trains_; }
  /// Returns a copy if the values can change, and otherwise this weight itself.
  std::shared_ptr<ResidentWeight> copy() const override {
    if (trains_) return std::make_shared<CpuWeight>(value, gradient, true);
    return std::const_pointer_cast<CpuWeight>(this->shared_from_this());  // never written
  }

  const WeightForm form = WeightForm::plain;      ///< the form of the values
  const std::shared_ptr<const std::byte> data{};  ///< the packed values; null in plain form
  Matrix<T> value{};                              ///< the values in plain form; otherwise empty
  Matrix<T> gradient{};                           ///< the gradient in plain form, once it was used; otherwise empty

 private:
  static constexpr char tag = 0;
  Storage storage_ = Storage::full;
  bool trains_ = false;
};

namespace kernels {

/// Returns the values of a parameter, row-major (rows, cols). Throws `Error` if they are packed.
template <class T>
const T* values_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  require(weight.form == WeightForm::plain,
          "weight: one that is packed for products given (prepare), one as it is on the host expected");
  return weight.value.data();
}
/// Returns the values of a parameter, to be changed. Throws `Error` if they were prepared to run.
template <class T>
T* editable_values_of(Parameter<T>& p) {
  if (!p.is_resident()) return p.host().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  return CpuWeight<T>::of(p).value.data();
}
/// Returns the gradient of a parameter (rows, cols), zeroed in the first call, or null if the parameter is frozen.
/// Throws `Error` if the parameter was prepared to run.
template <class T>
T* gradient_of(const Parameter<T>& p) {
  if (!p.trainable) return nullptr;
  if (!p.is_resident()) return p.gradient().data();
  require(p.can_train(), "weight: one prepared to run given, one that can be trained expected");
  CpuWeight<T>& weight = CpuWeight<T>::of(p);
  if (weight.gradient.size() == 0) weight.gradient.setZero(p.rows(), p.cols());
  return weight.gradient.data();
}
/// Returns the gradient of a parameter, or null if it has none yet.
template <class T>
Matrix<T>* existing_gradient_of(const Parameter<T>& p) {
  if (!p.is_resident()) return p.has_gradient() ? &p.gradient() : nullptr;
  Matrix<T>& gradient = CpuWeight<T>::of(p).gradient;
  return gradient.size() > 0 ? &gradient : nullptr;
}
/// Returns the packed form of a parameter, or null if its values are unpacked.
template <class T>
const CpuWeight<T>* packed_form_of(const Parameter<T>& p) {
  if (!p.is_resident()) return nullptr;
  const CpuWeight<T>& weight = CpuWeight<T>::of(p);
  return weight.form == WeightForm::plain ? nullptr : &weight;
}

/// Copies row ids[r] of a weight (vocabulary, channels), packed for products or not, to row r of `to`. Parallel over
/// rows; no allocation. Throws `Error` for the packed weight of a convolution.
template <class T>
void gather_rows(int threads, const Parameter<T>& p, std::span<const int> ids, T* to) {
  const CpuWeight<T>* packed = packed_form_of(p);
  require(packed == nullptr || packed->form == WeightForm::panels,
          "embed: the packed weight of a convolution given, a matrix expected");
  const T* values = packed == nullptr ? values_of(p) : nullptr;
  const Index cols = p.cols();
  parallel_blocks(threads, static_cast<Index>(ids.size()), 16, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const Index id = ids[static_cast<std::size_t>(r)];
      if (packed == nullptr)
        std::copy_n(values + id * cols, cols, to + r * cols);
      else
        unpack_row(PackedWeight{packed->storage(), packed->data.get()}, p.rows(), cols, id, to + r * cols);
    }
  });
}

/// Allocates memory for the weights of a model end to end, in blocks of large pages. Each piece keeps its block alive.
class WeightMemory {
 public:
  /// Returns `bytes` of memory, aligned to 64 bytes and uninitialised. Allocates.
  std::shared_ptr<std::byte> take(Index bytes) {
    constexpr Index line = laconic::detail::line_bytes;
    const Index rounded = (bytes + line - 1) / line * line;
    if (2 * rounded > block_) return allocate(rounded);
    if (left_ < rounded) {
      next_ = allocate(block_);
      left_ = block_;
      block_ = std::min<Index>(2 * block_, 32 << 20);
    }
    left_ -= rounded;
    std::shared_ptr<std::byte> piece = next_;
    next_ = {piece, piece.get() + rounded};
    return piece;
  }

 private:
  static std::shared_ptr<std::byte> allocate(Index bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    return {static_cast<std::byte*>(laconic::detail::allocate_aligned(size)),
            [size](std::byte* p) { laconic::detail::free_aligned(p, size); }};
  }

  std::shared_ptr<std::byte> next_{};
  Index left_ = 0, block_ = laconic::detail::large_page_bytes;  // bytes left in this block, and bytes of the next
};

/// Makes a parameter resident in the form that its use is computed fastest in, rounded as `storage` says if products
/// read it. Allocates. Throws `Error` if a parameter is to be rounded and not of float.
template <class T>
void prepare_weight(WeightMemory& memory, int threads, Storage storage, Parameter<T>& p) {
  checks::prepare<T>(storage);
  if (p.use == WeightUse::elementwise || p.use == WeightUse::heads || p.size() == 0)
    return p.make_resident(std::make_shared<CpuWeight<T>>(std::move(p.host()), Matrix<T>(), false));
  const Index out = p.rows(), in = p.shape()[1], taps = p.cols() / in;
  // The patches of a convolution are rounded to bytes only if products of whole numbers are fast.
  const bool stays = storage == Storage::int8 && p.use != WeightUse::linear && !LACONIC_WHOLE_PRODUCTS;
  const Storage form = is_rounded(p, storage) && !stays ? storage : Storage::full;
  const Conv2dShape shape{in, out, 0};
  if (p.use == WeightUse::conv2d_stride_2 && is_tiled(shape) && form == Storage::full) {
    Matrix<T> components(ConvTiles::all * in, out);
    tile_weights(threads, shape, p.host().data(), components.data());
    const auto data = memory.take(tile_panels_size<T>(shape) * static_cast<Index>(sizeof(T)));
    pack_tile_weights(threads, shape, components.data(), reinterpret_cast<T*>(data.get()));
    return p.make_resident(std::make_shared<CpuWeight<T>>(WeightForm::tiles, form, data));
  }
  Matrix<T> ordered;
  if (taps > 1) {
    ordered.resize(p.rows(), p.cols());
    reorder_taps(out, in, taps, p.host().data(), ordered.data());
    p.host().swap(ordered);
  }
  const auto data = memory.take(PackedLayout{form, out, p.cols()}.bytes(sizeof(T)));
  pack_weight(threads, form, out, p.cols(), p.host().data(), data.get());
  const WeightForm weight_form = p.use == WeightUse::linear ? WeightForm::panels : WeightForm::taps;
  p.make_resident(std::make_shared<CpuWeight<T>>(weight_form, form, data));
}

/// Moves the values of a parameter back to the host, and its gradient if it has one. Rounded values stay rounded.
/// Allocates.
template <class T>
void fetch_weight(Parameter<T>& p) {
  if (!p.is_resident()) return;
  CpuWeight<T>& weight = CpuWeight<T>::of(p);
  const Index out = p.rows(), in = p.shape().size() > 1 ? p.shape()[1] : p.cols(), taps = in > 0 ? p.cols() / in : 0;
  if (weight.form == WeightForm::plain) {
    if (weight.can_train()) return p.make_host(std::move(weight.value), std::move(weight.gradient));
    return p.make_host(weight.value);  // copies of the model may share it
  }
  Matrix<T> values(p.rows(), p.cols());
  if (weight.form == WeightForm::tiles) {
    untile_weights({in, out, 0}, reinterpret_cast<const T*>(weight.data.get()), values.data());
  } else if (weight.form == WeightForm::taps) {
    Matrix<T> ordered(p.rows(), p.cols());
    unpack_weight(PackedWeight{weight.storage(), weight.data.get()}, out, p.cols(), ordered.data());
    restore_taps(out, in, taps, ordered.data(), values.data());
  } else {
    unpack_weight(PackedWeight{weight.storage(), weight.data.get()}, out, in, values.data());
  }
  p.make_host(std::move(values));
}

LACONIC_COMPILE(gather_rows);
LACONIC_COMPILE(prepare_weight);
LACONIC_COMPILE(fetch_weight);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Keeps what a context derives from resident weights (`kept_for`) from call to call, until weights that no longer
/// exist make room for another one.
template <class Tensor>
class KeptTensors {
 public:
  /// Returns make(n) for some n >= size, kept from an earlier call with this weight if there is one that is large
  /// enough.
  template <class Make>
  Tensor get(const std::shared_ptr<const ResidentWeight>& weight, Index size, Make&& make) {
    const auto entry = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& one) {
      return !one.weight.owner_before(weight) && !weight.owner_before(one.weight);
    });
    if (entry != kept_.end() && entry->size >= size) return entry->value;
    if (entry == kept_.end()) {
      std::erase_if(kept_, [](const Kept& one) { return one.weight.expired(); });
      kept_.push_back({weight, size, make(size)});
      return kept_.back().value;
    }
    // Growth by a quarter keeps small increases from calling make each time.
    const Index larger = std::max(size, entry->size + entry->size / 4);
    entry->value = make(larger);
    entry->size = larger;
    return entry->value;
  }

 private:
  struct Kept {
    std::weak_ptr<const ResidentWeight> weight;
    Index size;
    Tensor value;
  };
  std::vector<Kept> kept_{};
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what all slices of `Cpu` share: threads, memory, and what is kept for weights. It implements the primitives of
/// tensors and parameters.
template <class T>
class CpuCore {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Makes a core with `threads` threads; 0 takes all that the machine offers. Throws `Error` unless 0 <= threads <=
  /// 4096.
  explicit CpuCore(int threads) : threads_(checked_threads(threads)) {}
  CpuCore(const CpuCore&) = delete;
  CpuCore& operator=(const CpuCore&) = delete;

  /// Returns the memory of tensors and scratch.
  Arena& arena() { return arena_; }
  /// Returns the number of threads, which is 1 within the tasks of a region.
  int threads() const { return kernels::is_nested() ? 1 : threads_; }

  /// Prepares passes that must not allocate, after the largest ones have run: doubles the free memory of every size, or
  /// brings it to that of a context that has run them.
  void settle(const CpuCore& like) { arena_.settle(like.arena_); }

  /// Returns what another context like this one is constructed from: the number of threads.
  int settings() const { return threads_; }
  /// Returns pass(): on the processor, starting work costs nothing.
  template <class Pass>
  auto replayed(Pass&& pass) {
    return pass();
  }

  /// Returns a tensor (rows, cols) with unspecified values.
  Tensor make(Index rows, Index cols) { return Tensor(arena_, rows, cols); }
  /// Returns a tensor (rows, cols) of zeros.
  Tensor zeros(Index rows, Index cols) { return fill(rows, cols, 0); }
  /// Returns a tensor that borrows a matrix, which must outlive everything that is computed from it.
  Tensor input(const Matrix<T>& x) { return Tensor::borrow(x); }
  /// Returns a tensor that copies a temporary matrix.
  Tensor input(const Matrix<T>&& x) {
    Tensor out = make(x.rows(), x.cols());
    out.view() = x;
    return out;
  }
  /// Returns a tensor unchanged.
  Tensor input(Tensor x) { return x; }
  /// Returns the values as a matrix. Allocates.
  Matrix<T> output(const Tensor& x) { return x.view(); }
  /// Writes the values, row by row, to memory of the host. Throws `Error` unless there is room for exactly all of them.
  void read(const Tensor& x, std::span<T> values) {
    checks::read(x, values.size());
    std::copy_n(x.data(), x.size(), values.data());
  }
  /// Returns the value of a (1, 1) tensor. Throws `Error` for any other shape.
  double number(const Tensor& x) {
    checks::number(x);
    return static_cast<double>(x.row(0)[0]);
  }
  /// Writes, for each row, the first column of its max, or -1 - c where c is the column of its first NaN.
  void argmax(const Tensor& x, std::span<Index> columns) {
    checks::argmax(x, columns.size());
    for (Index r = 0; r < x.rows(); ++r) {
      const T* row = x.row(r);
      Index best = 0;
      for (Index c = 0; c < x.cols() && best >= 0; ++c) {
        if (row[c] != row[c])
          best = -1 - c;
        else if (row[c] > row[best])
          best = c;
      }
      columns[static_cast<std::size_t>(r)] = best;
    }
  }
  /// Copies ranges of rows. Within one tensor a range may overlap itself, but no row that another range reads or
  /// writes. Throws `Error` for rows that either tensor does not have.
  void copy_rows(const Tensor& from, Tensor& to, std::span<const RowRange> ranges) {
    checks::copy_rows(from, to, ranges);
    for (const RowRange& range : ranges)
      if (range.count > 0 && from.cols() > 0)
        std::memmove(to.row(range.to), from.row(range.from),
                     static_cast<std::size_t>(range.count * from.cols()) * sizeof(T));
  }
  /// Returns a tensor (rows, cols) whose elements all have this value.
  Tensor fill(Index rows, Index cols, double value) {
    Tensor out = make(rows, cols);
    std::fill_n(out.data(), out.size(), static_cast<T>(value));
    return out;
  }

  /// Packs the parameters of a model for products, rounded as `storage` says. Allocates. Throws `Error` if some are
  /// resident already.
  template <class Model>
  void prepare(Model& model, Storage storage = Storage::full) {
    require_on_host(model, "prepare");
    kernels::WeightMemory memory;
    model.parameters([&](std::string_view, Parameter<T>& p) { kernels::prepare_weight(memory, threads_, storage, p); });
  }
  /// Makes the parameters of a model resident with their gradients, in the form of the host. Allocates. Throws `Error`
  /// if some are resident already.
  template <class Model>
  void prepare_training(Model& model) {
    require_on_host(model, "prepare_training");
    model.parameters([](std::string_view, Parameter<T>& p) {
      Matrix<T> gradient = p.has_gradient() ? std::move(p.gradient()) : Matrix<T>();
      p.make_resident(std::make_shared<CpuWeight<T>>(std::move(p.host()), std::move(gradient), true));
    });
  }
  /// Moves the parameters of a model back to the host. Allocates.
  template <class Model>
  void fetch(Model& model) {
    model.parameters([](std::string_view, Parameter<T>& p) { kernels::fetch_weight(p); });
  }

  /// Returns whether what is derived from a weight may be kept from call to call, which holds if the weight cannot
  /// change.
  bool keeps(const Parameter<T>& weight) const { return !weight.can_train(); }
  /// Returns make(n) for some n >= size, kept from an earlier call with this weight if there is one that is large
  /// enough.
  template <class Make>
  Tensor kept_for(const Parameter<T>& weight, Index size, Make&& make) {
    return kept_.get(weight.resident(), size, std::forward<Make>(make));
  }

  /// Adds the sums of the columns of dy (rows, cols) to the gradient of a parameter (cols) that was added to every row.
  void add_column_sums(const Tensor& dy, const Parameter<T>& row) {
    if (T* gradient = kernels::gradient_of(row))
      kernels::add_column_sums(threads_, dy.rows(), dy.cols(), dy.data(), gradient);
  }

 private:
  int threads_;
  Arena arena_;
  KeptTensors<Tensor> kept_;
};

LACONIC_COMPILE_CLASS(CpuCore);

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Writes a row x (width) to `to` in its stored form. int8 stores a float scale, then the bytes.
template <class T>
void store_row(Storage storage, Index width, const T* x, std::byte* to) {
  if (storage == Storage::full) {
    std::memcpy(to, x, static_cast<std::size_t>(width) * sizeof(T));
  } else if (storage == Storage::bf16) {
    for (Index i = 0; i < width; ++i) {
      const Bf16 rounded = to_bf16(static_cast<float>(x[i]));
      std::memcpy(to + 2 * i, &rounded, 2);
    }
  } else {
    const ByteRow row(width, x);
    const float scale = row.scale();
    std::memcpy(to, &scale, sizeof scale);
    auto* numbers = reinterpret_cast<std::int8_t*>(to + sizeof scale);
    for (Index i = 0; i < width; ++i) numbers[i] = row(x[i]);
  }
}
/// Reads the columns first .. first + width - 1 of a stored row into x.
template <class T>
void load_row(Storage storage, Index first, Index width, const std::byte* from, T* x) {
  if (storage == Storage::full) {
    std::memcpy(x, from + first * static_cast<Index>(sizeof(T)), static_cast<std::size_t>(width) * sizeof(T));
  } else if (storage == Storage::bf16) {
    for (Index i = 0; i < width; ++i) {
      Bf16 rounded;
      std::memcpy(&rounded, from + 2 * (first + i), 2);
      x[i] = static_cast<T>(from_bf16(rounded));
    }
  } else {
    float scale;
    std::memcpy(&scale, from, sizeof scale);
    const auto* numbers = reinterpret_cast<const std::int8_t*>(from + sizeof scale) + first;
    for (Index i = 0; i < width; ++i) x[i] = static_cast<T>(scale * static_cast<float>(numbers[i]));
  }
}

}  // namespace kernels

/// Holds the last rows of many streams: for each slot a ring of up to `capacity` rows of `width` values. Its memory is
/// allocated at construction. Storing rounds as `storage` says; reading returns the rounded values. Slots may be used
/// by different threads at the same time.
template <class T>
class RowCache {
 public:
  /// Makes a cache without slots.
  RowCache() = default;
  /// Makes a cache of empty slots. Allocates.
  RowCache(Index slots, Index capacity, Index width, Storage storage = Storage::full)
      : capacity_(capacity),
        width_(width),
        row_bytes_(cache_row_bytes(storage, width, sizeof(T))),
        storage_(storage),
        memory_(static_cast<std::size_t>(slots * capacity * row_bytes_)),
        rings_(static_cast<std::size_t>(slots)) {}

  /// Returns the number of slots.
  Index slots() const { return static_cast<Index>(rings_.size()); }
  /// Returns the rows that a slot has room for.
  Index capacity() const { return capacity_; }
  /// Returns the values of a row.
  Index width() const { return width_; }
  /// Returns how rows are stored.
  Storage storage() const { return storage_; }
  /// Returns the bytes of a stored row.
  Index row_bytes() const { return row_bytes_; }
  /// Returns the bytes held for the rows of all slots.
  Index bytes() const { return static_cast<Index>(memory_.size()); }
  /// Returns the rows that a slot holds.
  Index count(Index slot) const { return ring(slot).count; }

  /// Empties a slot.
  void clear(Index slot) { ring(slot) = {}; }
  /// Fills a slot with `capacity` rows of zeros.
  void fill_zeros(Index slot) {
    ring(slot) = {0, capacity_};
    std::fill_n(memory_.data() + slot * capacity_ * row_bytes_, capacity_ * row_bytes_, std::byte{0});
  }

  /// Copies slot `from` to slot `to`.
  void fork(Index from, Index to) {
    if (from == to) return;
    ring(to) = ring(from);
    each_run(from, 0, count(from), [&](Index first, Index rows, const std::byte* stored) {
      std::copy_n(stored, rows * row_bytes_, at(to, (ring(from).begin + first) % capacity_));
    });
  }

  /// Calls visit(first, count, stored) for the rows begin .. end - 1 of a slot, oldest first, in contiguous runs:
  /// `stored` points to `count` stored rows from row `first` on.
  template <class Visit>
  void each_run(Index slot, Index begin, Index end, Visit&& visit) const {
    const Ring& r = ring(slot);
    for (Index i = begin, count; i < end; i += count) {
      const Index row = (r.begin + i) % capacity_;
      count = std::min(end - i, capacity_ - row);
      visit(i, count, at(slot, row));
    }
  }
  /// Writes the rows of a slot, oldest first, to x (count, width).
  void read(Index slot, T* x) const {
    each_run(slot, 0, count(slot), [&](Index first, Index rows, const std::byte* stored) {
      for (Index i = 0; i < rows; ++i)
        kernels::load_row(storage_, 0, width_, stored + i * row_bytes_, x + (first + i) * width_);
    });
  }
  /// Appends x (rows, width) to a slot. The oldest rows beyond the capacity are dropped.
  void append(Index slot, Index rows, const T* x) {
    Ring& r = ring(slot);
    for (Index i = std::max<Index>(0, rows - capacity_); i < rows; ++i) {
      kernels::store_row(storage_, width_, x + i * width_, at(slot, (r.begin + r.count) % capacity_));
      if (r.count < capacity_)
        ++r.count;
      else
        r.begin = (r.begin + 1) % capacity_;
    }
  }

 private:
  /// Holds the first row of a ring and its number of rows.
  struct Ring {
    Index begin = 0, count = 0;
  };
  Ring& ring(Index slot) { return rings_[static_cast<std::size_t>(slot)]; }
  const Ring& ring(Index slot) const { return rings_[static_cast<std::size_t>(slot)]; }
  std::byte* at(Index slot, Index row) { return memory_.data() + (slot * capacity_ + row) * row_bytes_; }
  const std::byte* at(Index slot, Index row) const { return memory_.data() + (slot * capacity_ + row) * row_bytes_; }

  Index capacity_ = 0, width_ = 0, row_bytes_ = 0;
  Storage storage_ = Storage::full;
  std::vector<std::byte> memory_;
  std::vector<Ring> rings_;
};

/// Refers to the rows that a cache holds in one slot for each sequence, followed by new rows.
template <class T>
struct CachedRows {
  Tensor<T> rows{};                    ///< the new rows of all sequences
  const RowCache<T>* cache = nullptr;  ///< the cache; null: there are only the new rows
  std::span<const Index> slots{};      ///< the slot of each sequence
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the queries of a tile. Memory grows with tile x keys, never with queries x keys. It is a multiple of the rows
/// and columns of every register tile.
inline constexpr Index attend_tile = 48;
static_assert(attend_tile % GemmTile<float>::cols == 0 && attend_tile % GemmTile<double>::cols == 0);

/// Returns the number of tiles of so many queries.
constexpr Index attend_tiles(Index queries) { return (queries + attend_tile - 1) / attend_tile; }
/// Returns the queries of a full tile, which are all if there is one tile.
constexpr Index tile_height(Index queries) { return std::min(attend_tile, queries); }

/// Refers to the keys or values of all heads (rows, cols): for each sequence the rows in its slot of a cache, if there
/// is one, followed by its new rows.
template <class T>
struct AttendRows {
  const T* data;                       ///< the new rows, sequence after sequence
  Index cols;                          ///< columns of all heads
  const Sequences* sequences;          ///< the sequences of the new rows
  const RowCache<T>* cache = nullptr;  ///< earlier rows, or null
  std::span<const Index> slots{};      ///< the slot of each sequence

  /// Returns whether cached rows are stored rounded, and so must be converted to be read.
  bool is_rounded() const { return cache != nullptr && cache->storage() != Storage::full; }
  /// Returns the number of cached rows of a sequence.
  Index cached(Index sequence) const {
    return cache == nullptr ? 0 : cache->count(slots[static_cast<std::size_t>(sequence)]);
  }
  /// Returns the new rows of a sequence from column `col` on. Without a cache these are all its rows.
  Operand<T> whole(Index sequence, Index col) const { return {data + sequences->begin(sequence) * cols + col, cols}; }

  /// Calls visit(first, count, rows) for the columns col .. col + width - 1 of the rows range.begin .. range.end - 1 of
  /// a sequence, in order: `rows` is an operand of `count` rows from row `first` on. Rows are read in place, or
  /// converted into `space` (attend_tile, width) if they are stored rounded.
  template <class Visit>
  void each_run(Index sequence, Range range, Index col, Index width, T* space, Visit&& visit) const {
    const Index past = cached(sequence);
    if (range.begin < past)
      cache->each_run(slots[static_cast<std::size_t>(sequence)], range.begin, std::min(range.end, past),
                      [&](Index first, Index count, const std::byte* stored) {
                        if (!is_rounded())
                          return visit(first, count, Operand<T>{reinterpret_cast<const T*>(stored) + col, cols});
                        for (Index i = 0; i < count; i += attend_tile) {
                          const Index some = std::min(attend_tile, count - i);
                          for (Index r = 0; r < some; ++r)
                            load_row(cache->storage(), col, width, stored + (i + r) * cache->row_bytes(),
                                     space + r * width);
                          visit(first + i, some, Operand<T>{space, width});
                        }
                      });
    const Index begin = std::max(range.begin, past);
    if (begin < range.end) visit(begin, range.end - begin, Operand<T>{whole(sequence, col).at(begin - past, 0), cols});
  }
};

/// Holds the operands of softmax attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads).
///
/// The score of query i and key j of a head is scale * ((q_i + u) . k_j + (position_q_i + w) . p_(i - j)), the second
/// term only with relative positions (Dai et al. 2019, section 3.3). Row span - 1 - r of p is for a key r frames to the
/// left of the query. `pack_table` may have packed p.
template <class T>
struct AttendOperands {
  AttendShape shape;              ///< heads, scale and mask
  const Sequences* q_sequences;   ///< sequences of the queries
  const Sequences* kv_sequences;  ///< sequences of keys and values, cached ones included
  Index key_width;                ///< columns of a query or key head
  Index value_width;              ///< columns of a value head
  const T* q;                     ///< (q_rows, num_heads * key_width)
  AttendRows<T> k;                ///< (kv_rows, num_kv_heads * key_width)
  AttendRows<T> v;                ///< (kv_rows, num_kv_heads * value_width)
  const T* p = nullptr;           ///< projected table, (2 * span - 1, num_heads * position_width), or null
  const T* u = nullptr;           ///< pos_bias_u, (num_heads * key_width), or null for zeros
  const T* w = nullptr;           ///< pos_bias_v, (num_heads * position_width), or null for zeros
  const T* position_q = nullptr;  ///< queries that meet p, (q_rows, num_heads * position_width)
  Index span = 0;                 ///< distances of p on either side, 0 included
  Index position_width = 0;       ///< columns of a head of p
  bool packed_table = false;      ///< whether `pack_table` packed p
  DropoutMask dropout{0.0, Random(Seed(), 0)};  ///< dropout of the attention weights

  /// Returns the query heads that share a key-value head.
  Index group() const { return shape.num_heads / shape.num_kv_heads; }
  /// Returns the columns of q.
  Index q_cols() const { return shape.num_heads * key_width; }
  /// Returns the columns of k.
  Index k_cols() const { return shape.num_kv_heads * key_width; }
  /// Returns the columns of v.
  Index v_cols() const { return shape.num_kv_heads * value_width; }
  /// Returns the columns of the result.
  Index out_cols() const { return shape.num_heads * value_width; }
  /// Returns the columns of p.
  Index p_cols() const { return shape.num_heads * position_width; }
};

/// Packs the rows origin .. origin + cols - 1 of one head's table (rows, width) as columns of panels (width, cols).
/// Columns for rows that the table does not have are zeros. One thread; no allocation.
template <class T>
void pack_distances(Operand<T> table, Index rows, Index width, Index origin, Index cols, T* to) {
  for (Index j = 0; j < cols; j += GemmTile<T>::cols) {
    const Index used = std::min(GemmTile<T>::cols, cols - j), padded = padded_cols<T>(used);
    T* panel = to + j * width;
    const Index begin = std::clamp<Index>(-origin - j, 0, used), end = std::clamp(rows - origin - j, begin, used);
    if (end - begin < padded) std::fill_n(panel, padded * width, T(0));
    const Operand<T> from = table.transposed();
    detail::pack_panel(Operand<T>{from.at(0, origin + j + begin), from.row_stride, from.col_stride}, width, end - begin,
                       end - begin, panel + begin, padded);
  }
}

/// Returns the columns of the panels of one head for a table of so many rows. Tiles read up to a vector after the last
/// row.
template <class T>
constexpr Index packed_table_cols(Index rows) {
  return rows + lanes<T>;
}
/// Returns the rows, as wide as the table, that hold the panels of all heads.
template <class T>
constexpr Index packed_table_rows(Index rows) {
  return rows + 2 * lanes<T>;
}
/// Packs a table of distances (rows, heads * width) for many calls: the panels of each head, one head after the other.
/// to (packed_table_rows(rows), heads * width). A task is a head; no allocation.
template <class T>
void pack_table(int threads, Index rows, Index heads, Index width, const T* table, T* to) {
  parallel_for(threads, heads, [&](Index head, int) {
    const Index cols = packed_table_cols<T>(rows);
    pack_distances(Operand<T>{table + head * width, heads * width}, rows, width, 0, cols,
                   to + head * Panels<T>::size(width, cols));
  });
}

/// Packs the operands that the tiles of a sequence share: a range of keys and values of a key-value head, and the table
/// of distances of a head. Used by one thread, in memory of the caller.
template <class T>
class AttendPanels {
 public:
  /// Returns the elements of memory that the panels of up to `keys` keys need.
  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index positions = table_cols(in.q_sequences->max_length(), keys);
    return Panels<T>::size(in.key_width, keys) + values_space(in, keys) + run_space(in) +
           (in.p == nullptr || in.packed_table ? 0 : Panels<T>::size(in.position_width, positions));
  }

  /// Packs the keys `range` of a sequence into `memory`. range.begin is a multiple of the columns of a panel.
  AttendPanels(const AttendOperands<T>& in, Index sequence, Index kv_head, Range range, T* memory)
      : in_(in), sequence_(sequence), kv_head_(kv_head), range_(range), memory_(memory) {
    pack_keys();
  }

  /// Returns the keys that are packed.
  Range range() const { return range_; }
  /// Returns the keys as panels (key_width, range).
  const Panels<T>& keys() const { return keys_; }
  /// Returns the keys in place, without a cache.
  Operand<T> k() const { return in_.k.whole(sequence_, kv_head_ * in_.key_width); }

  /// Packs the values as panels (range, value_width), for products of several tiles.
  void pack_values() {
    values_ = {values_memory(), range_.size(), in_.value_width};
    each_run_of_values(range_, [&](Index first, Index some, Operand<T> rows) {
      for (Index j = 0; j < in_.value_width; j += GemmTile<T>::cols) {
        const Index used = std::min(GemmTile<T>::cols, in_.value_width - j), padded = padded_cols<T>(used);
        detail::pack_panel(Operand<T>{rows.at(0, j), rows.row_stride}, some, used, padded,
                           values_memory() + j * range_.size() + (first - range_.begin) * padded, padded);
      }
    });
  }
  /// Packs the values as panels (value_width, range), without a cache and for a range of all keys.
  void pack_values_transposed() {
    values_ = pack(1, in_.v.whole(sequence_, kv_head_ * in_.value_width).transposed(), in_.value_width, range_.size(),
                   values_memory());
  }
  /// Returns the panels of values that were packed last.
  const Panels<T>& values() const { return values_; }
  /// Calls visit(first, count, rows) for values that are not packed (see AttendRows::each_run).
  template <class Visit>
  void each_run_of_values(Range keys, Visit&& visit) const {
    in_.v.each_run(sequence_, keys, kv_head_ * in_.value_width, in_.value_width, run_memory(), visit);
  }
  /// Returns the memory of the values' panels, which `gemm_block` takes as scratch if values are not packed.
  T* values_memory() const { return memory_ + Panels<T>::size(in_.key_width, range_.size()); }

  /// Packs the distances of a head as panels (position_width, distances). Column 0 of a packed table is its row 0.
  /// Otherwise column 0 is the distance from the last query of a full last tile to the first key of the range, so that
  /// tiles begin at panels.
  void pack_positions(Index head) {
    const Index width = in_.position_width, rows = 2 * in_.span - 1;
    if (in_.packed_table) {
      const Index cols = packed_table_cols<T>(rows);
      positions_ = {in_.p + head * Panels<T>::size(width, cols), width, cols};
      return;
    }
    const Index queries = in_.q_sequences->length(sequence_), past = in_.kv_sequences->length(sequence_) - queries,
                cols = table_cols(queries, range_.size()),
                origin = in_.span - past - attend_tiles(queries) * tile_height(queries) + range_.begin;
    T* to = run_memory() + run_space(in_);
    pack_distances(Operand<T>{in_.p + head * width, in_.p_cols()}, rows, width, origin, cols, to);
    positions_ = {to, width, cols};
  }
  /// Returns the panels of distances that were packed last.
  const Panels<T>& positions() const { return positions_; }

 private:
  static Index table_cols(Index queries, Index keys) {
    return attend_tiles(queries) * tile_height(queries) + padded_cols<T>(keys);
  }
  static Index values_space(const AttendOperands<T>& in, Index keys) {
    return std::max({Panels<T>::size(keys, in.value_width), Panels<T>::size(in.value_width, keys), gemm_scratch<T>()});
  }
  static Index run_space(const AttendOperands<T>& in) { return attend_tile * std::max(in.key_width, in.value_width); }
  T* run_memory() const { return values_memory() + values_space(in_, range_.size()); }

  void pack_keys() {
    constexpr Index cols = GemmTile<T>::cols;
    const Index width = in_.key_width, count = range_.size(), last = (count - 1) / cols * cols;
    keys_ = {memory_, width, count};
    const Index used = count - last, padded = padded_cols<T>(used);
    for (Index k = 0; used < padded && k < width; ++k)
      std::fill_n(memory_ + last * width + k * padded + used, padded - used, T(0));
    in_.k.each_run(
        sequence_, range_, kv_head_ * width, width, run_memory(), [&](Index key, Index some, Operand<T> rows) {
          constexpr Index together = 8;
          const Index first = key - range_.begin;
          for (Index at = first, end; at < first + some; at = end) {
            const Index panel = at / cols * cols;
            end = std::min({first + some, panel + cols, at + together});
            prefetch_rows(rows, end - first, std::min(some, end - first + together), width);
            detail::pack_panel(Operand<T>{rows.at(at - first, 0), rows.row_stride}.transposed(), width, end - at,
                               end - at, memory_ + panel * width + (at - panel), keys_.width(panel));
          }
        });
  }

  const AttendOperands<T>& in_;
  Index sequence_, kv_head_;
  Range range_;
  T* memory_;
  Panels<T> keys_{}, values_{}, positions_{};
};

/// Computes the scores of one tile: the queries [row, row + rows) of one head of one sequence against the keys [key,
/// key + keys), which are those of the panels that any of the queries sees. Used by one thread, in memory of the
/// caller.
template <class T>
struct AttendTile {
  const AttendOperands<T>& in;    ///< the operands
  const AttendPanels<T>& panels;  ///< the panels that this tile reads
  Index sequence;                 ///< the sequence of the tile
  Index head;                     ///< the query head of the tile
  Index row;                      ///< the first query, counted in its sequence
  Index rows;                     ///< queries
  Index key;                      ///< the first key, counted in its sequence
  Index keys;                     ///< keys
  Index height;                   ///< queries of a full tile
  Index stride;                   ///< columns of a row of scores: keys, padded to whole vectors
  T* content;                     ///< (q + u) scale, (rows, key_width)
  T* positional;                  ///< (position_q + w) scale, (rows, position_width)
  T* scores;                      ///< scores, later their exponentials or weights, (rows, stride)
  T* by_position;                 ///< positional score of (i, j) in row i, column lead + rows - 1 - i + j
  Index lead = 0;                 ///< columns of by_position before the first distance
  Index position_stride = 0;      ///< columns of by_position

  /// Returns the elements of memory that a tile of up to `keys` keys needs.
  static Index space(const AttendOperands<T>& in, Index keys) {
    const Index cols = padded_cols<T>(keys) + GemmTile<T>::cols;
    return attend_tile * (in.key_width + in.position_width + cols + (in.p == nullptr ? 0 : cols + 2 * attend_tile));
  }

  /// Sets up the tile of the queries from row `row_` on. Computes nothing yet.
  AttendTile(const AttendOperands<T>& operands, const AttendPanels<T>& packed, Index sequence_, Index head_, Index row_,
             T* memory)
      : in(operands), panels(packed), sequence(sequence_), head(head_), row(row_) {
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    height = tile_height(queries);
    rows = std::min(height, queries - row);
    const auto first = in.shape.mask.keys(row, all - queries, all),
               last = in.shape.mask.keys(row + rows - 1, all - queries, all);
    const Range range = panels.range();
    key = std::clamp(first.begin, range.begin, range.end) / GemmTile<T>::cols * GemmTile<T>::cols;  // a panel begins
    keys = std::max(key, std::min(last.end, range.end)) - key;
    stride = padded_cols<T>(keys);
    content = memory;
    positional = content + attend_tile * in.key_width;
    scores = positional + attend_tile * in.position_width;
    by_position = scores + attend_tile * stride;
  }

  /// Returns the row of q of the first query.
  Index query_row() const { return in.q_sequences->begin(sequence) + row; }
  /// Returns the row of k of the first key, without a cache.
  Index key_row() const { return in.kv_sequences->begin(sequence) + key; }
  /// Returns the keys before the first query of the sequence.
  Index past() const { return in.kv_sequences->length(sequence) - in.q_sequences->length(sequence); }
  /// Returns the keys of the tile in place, without a cache.
  Operand<T> k() const { return {panels.k().at(key, 0), in.k_cols()}; }
  /// Returns the first row of the table that this tile reads, which is for its last query and its first key.
  Index table_row() const { return in.span - 1 - (past() + row + rows - 1) + key; }
  /// Returns the rows of the table from `table_row` on in place.
  Operand<T> p() const { return {in.p + table_row() * in.p_cols() + head * in.position_width, in.p_cols()}; }
  /// Returns the keys that query i of the tile sees, counted from the first key of the tile.
  Mask::Keys visible(Index i) const {
    const auto seen = in.shape.mask.keys(row + i, past(), in.kv_sequences->length(sequence));
    const Index begin = std::clamp<Index>(seen.begin - key, 0, keys);
    return {begin, std::clamp(seen.end - key, begin, keys)};
  }
  /// Returns the index of the dropout decision for query i and the first key of the tile. The decisions of a query are
  /// numbered by the keys of its sequence, so that they do not depend on where tiles begin.
  std::uint64_t dropout_index(Index i) const {
    return (static_cast<std::uint64_t>((query_row() + i) * in.shape.num_heads + head) << 24) +
           static_cast<std::uint64_t>(key);
  }

  /// Computes scores_ij = scale (q_i + u) . k_j for the whole tile, and by_position for scale (position_q_i + w) . p_(i
  /// - j).
  void multiply() {
    scale_queries(in.q, in.u, in.key_width, content);
    const Index own = key - panels.range().begin;
    gemm_panels(rows, Operand<T>{content, in.key_width}, panels.keys(), {0, in.key_width}, {own, own + stride}, scores,
                stride, false, static_cast<const T*>(nullptr));
    if (in.p == nullptr) return;
    scale_queries(in.position_q, in.w, in.position_width, positional);
    constexpr Index cols = GemmTile<T>::cols;
    const Index first = in.packed_table
                            ? table_row()
                            : (attend_tiles(in.q_sequences->length(sequence)) - 1) * height - row + own + height - rows,
                start = first / cols * cols;  // where a panel begins
    lead = first - start;
    position_stride = lead + rows + stride;
    gemm_panels(rows, Operand<T>{positional, in.position_width}, panels.positions(), {0, in.position_width},
                {start, start + position_stride}, by_position, position_stride, false, static_cast<const T*>(nullptr));
  }

  /// Computes to (rows, width) = (q + bias) scale for the queries and the head of the tile.
  void scale_queries(const T* q, const T* bias, Index width, T* to) const {
    const T scale = static_cast<T>(in.shape.scale);
    for (Index i = 0; i < rows; ++i) {
      const T* from = q + ((query_row() + i) * in.shape.num_heads + head) * width;
      for (Index c = 0; c < width; ++c)
        to[i * width + c] = (from[c] + (bias == nullptr ? T(0) : bias[head * width + c])) * scale;
    }
  }

  /// Holds the max of a row of scores and the sum of exp(score - max). They are minus infinity and 0 if the query sees
  /// no key.
  struct RowSum {
    T max;  ///< the max score
    T sum;  ///< the sum of exp(score - max)
  };
  /// Adds the positional scores of row i, replaces its scores by exp(score - max), and returns max and sum. Keys that
  /// the query does not see become 0.
  RowSum exponents(Index i) {
    T* s = scores + i * stride;
    if (hide(i)) return {-std::numeric_limits<T>::infinity(), T(0)};
    Batch<T> best(-std::numeric_limits<T>::infinity());
    if (in.p == nullptr) {
      for (Index j = 0; j < stride; j += lanes<T>) best = xsimd::max(best, load(s + j));
    } else {
      const T* add = shifted(i);
      for (Index j = 0; j < stride; j += lanes<T>) {
        const Batch<T> sum = load(s + j) + load(add + j);
        store(s + j, sum);
        best = xsimd::max(best, sum);
      }
    }
    const T max = max_lanes<T>(best);
    return {max, exponents_below(s, max)};
  }
  /// Replaces the scores of row i by its attention weights exp(score - logsumexp). Keys that the query does not see
  /// become 0.
  void probabilities(Index i, T logsumexp) {
    T* s = scores + i * stride;
    if (hide(i)) return;
    if (in.p != nullptr) {
      const T* add = shifted(i);
      for (Index j = 0; j < stride; j += lanes<T>) store(s + j, load(s + j) + load(add + j));
    }
    exponents_below(s, logsumexp);
  }

 private:
  const T* shifted(Index i) const { return by_position + i * position_stride + lead + rows - 1 - i; }

  /// Sets the scores of keys that query i does not see to minus infinity. If it sees none, sets all to 0 and returns
  /// true.
  bool hide(Index i) {
    T* s = scores + i * stride;
    const auto seen = visible(i);
    if (seen.begin >= seen.end) {
      std::fill_n(s, stride, T(0));
      return true;
    }
    std::fill(s, s + seen.begin, -std::numeric_limits<T>::infinity());
    std::fill(s + seen.end, s + stride, -std::numeric_limits<T>::infinity());
    return false;
  }
  /// Replaces the scores s (stride) by exp(score - max), and returns their sum.
  T exponents_below(T* s, T max) const {
    const Batch<T> top(max);
    Batch<T> total(T(0));
    for (Index j = 0; j < stride; j += lanes<T>) {
      const Batch<T> e = exp<T>(load(s + j) - top);
      store(s + j, e);
      total += e;
    }
    return sum_lanes<T>(total);
  }
};

LACONIC_COMPILE(pack_table);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Points to the derivatives that `attend_backward` computes. It adds to du and dw and overwrites the others.
template <class T>
struct AttendGradients {
  T* dq;                     ///< by q, (q_rows, num_heads * key_width)
  T* dk;                     ///< by k, (kv_rows, num_kv_heads * key_width)
  T* dv;                     ///< by v, (kv_rows, num_kv_heads * value_width)
  T* dp = nullptr;           ///< by the table, (2 * span - 1, num_heads * position_width); null without a table
  T* du = nullptr;           ///< by pos_bias_u, (num_heads * key_width), or null
  T* dw = nullptr;           ///< by pos_bias_v, (num_heads * position_width), or null
  T* dposition_q = nullptr;  ///< by position_q, (q_rows, num_heads * position_width); null if q meets the table
};

/// Computes the derivatives of `attend` from dout (q_rows, num_heads * value_width). With the attention weights P and
/// dP = dout V^T: dS = P (dP - sum P dP), dV = P^T dout, dQ = scale dS K and dK = scale dS^T Q, to which relative
/// positions add their terms. It recomputes P tile by tile from q, k and logsumexp (q_rows, num_heads), so nothing of
/// size queries x keys is kept (Dao et al. 2022). A task is one key-value head of one sequence. The derivatives that
/// sequences share (dp, du, dw) are summed over sequences afterwards, in a fixed order. Takes scratch from `arena`;
/// call it from one thread.
template <class T>
void attend_backward(int threads, Arena& arena, const AttendOperands<T>& in, const T* dout, const T* logsumexp,
                     const AttendGradients<T>& to) {
  const Index heads = in.shape.num_heads, sequences = in.q_sequences->size();
  const Index longest = std::max<Index>(1, in.kv_sequences->max_length());
  const Index kw = in.key_width, vw = in.value_width, pw = in.position_width, cols = in.q_cols(), p_cols = in.p_cols();
  const Index span = in.p == nullptr ? 0 : 2 * longest - 1;
  const Index packed = AttendPanels<T>::space(in, longest), tile_space = packed + AttendTile<T>::space(in, longest);
  const Index max_keys = padded_cols<T>(longest) + GemmTile<T>::cols;
  const Index each = tile_space + attend_tile * (3 * max_keys + attend_tile + kw + pw) + gemm_scratch<T>();
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  // For each sequence: the gradients of the table rows that it reads, of w, and of u.
  const Index shared_size = (span + 1) * p_cols + cols;
  const Buffer shared =
      arena.allocate(static_cast<std::size_t>(in.p == nullptr ? 1 : sequences * shared_size) * sizeof(T));
  T* shared_data = static_cast<T*>(shared.data());

  parallel_for(threads, sequences * in.shape.num_kv_heads, [&](Index task, int thread) {
    const Index sequence = task / in.shape.num_kv_heads, kv_head = task % in.shape.num_kv_heads;
    const Index queries = in.q_sequences->length(sequence), all = in.kv_sequences->length(sequence);
    T* memory = static_cast<T*>(scratch.data()) + thread * each;
    T* dscores = memory + tile_space;
    T* dropped_scores = dscores + attend_tile * max_keys;
    T* dby_position = dropped_scores + attend_tile * max_keys;
    T* dcontent = dby_position + attend_tile * (max_keys + attend_tile);
    T* dpositional = dcontent + attend_tile * kw;
    T* gemm_space = dpositional + attend_tile * pw;
    AttendPanels<T> panels(in, sequence, kv_head, {0, all}, memory);
    panels.pack_values_transposed();
    T* dtable = shared_data + sequence * shared_size;
    T* dw = dtable + span * p_cols + kv_head * in.group() * pw;
    T* du = dtable + (span + 1) * p_cols + kv_head * in.group() * kw;
    if (in.p != nullptr) {
      std::fill_n(dw, in.group() * pw, T(0));
      std::fill_n(du, in.group() * kw, T(0));
    }
    for (Index j = 0; j < all; ++j) {
      const Index at = in.kv_sequences->begin(sequence) + j;
      std::fill_n(to.dk + at * in.k_cols() + kv_head * kw, kw, T(0));
      std::fill_n(to.dv + at * in.v_cols() + kv_head * vw, vw, T(0));
    }
    for (Index head = kv_head * in.group(); head < (kv_head + 1) * in.group(); ++head) {
      if (in.p != nullptr) {
        panels.pack_positions(head);
        for (Index r = 0; r < span; ++r) std::fill_n(dtable + r * p_cols + head * pw, pw, T(0));
      }
      for (Index row = 0; row < queries; row += attend_tile) {
        AttendTile<T> tile(in, panels, sequence, head, row, memory + packed);
        const Index rows = tile.rows, keys = tile.keys, stride = tile.stride, first = tile.query_row();
        const Operand<T> dy{dout + first * in.out_cols() + head * vw, in.out_cols()};
        tile.multiply();
        for (Index i = 0; i < rows; ++i) tile.probabilities(i, logsumexp[(first + i) * heads + head]);
        gemm_panels(rows, dy, panels.values(), {0, vw}, {tile.key, tile.key + stride}, dscores, stride, false,
                    static_cast<const T*>(nullptr));
        // dscores = P (dP - sum P dP). dP, and the P that multiplies v, are taken after the dropout mask.
        T* dropped = in.dropout.any() ? dropped_scores : tile.scores;
        for (Index i = 0; i < rows; ++i) {
          T *prob = tile.scores + i * stride, *d = dscores + i * stride;
          if (in.dropout.any()) {
            in.dropout.apply(keys, tile.dropout_index(i), d, d);
            in.dropout.apply(keys, tile.dropout_index(i), prob, dropped + i * stride);
          }
          const Batch<T> dot(sum_span<T>(
              keys, [](auto a, auto b) { return a * b; }, prob, d));
          map_span(
              keys, d, [&](auto a, auto b) { return a * (b - dot); }, prob, d);
        }
        const Index key_row = tile.key_row();
        gemm_block<T>(keys, vw, rows, Operand<T>{dropped, stride}.transposed(), dy,
                      to.dv + key_row * in.v_cols() + kv_head * vw, in.v_cols(), true, nullptr, gemm_space);
        gemm_block<T>(keys, kw, rows, Operand<T>{dscores, stride}.transposed(), {tile.content, kw},
                      to.dk + key_row * in.k_cols() + kv_head * kw, in.k_cols(), true, nullptr, gemm_space);
        gemm_block<T>(rows, kw, keys, {dscores, stride}, tile.k(), dcontent, kw, false, nullptr, gemm_space);
        if (in.p != nullptr) {
          const Index width = keys + rows - 1;
          std::fill_n(dby_position, rows * width, T(0));
          for (Index i = 0; i < rows; ++i)
            std::copy_n(dscores + i * stride, keys, dby_position + i * width + rows - 1 - i);
          gemm_block<T>(rows, pw, width, {dby_position, width}, tile.p(), dpositional, pw, false, nullptr, gemm_space);
          const Index table = tile.table_row() - (in.span - longest);  // the same row, counted in a table of `longest`
          gemm_block<T>(width, pw, rows, Operand<T>{dby_position, width}.transposed(), {tile.positional, pw},
                        dtable + table * p_cols + head * pw, p_cols, true, nullptr, gemm_space);
        }
        const T scale = static_cast<T>(in.shape.scale);
        const auto in_group = head - kv_head * in.group();
        for (Index i = 0; i < rows; ++i) {
          T* dq = to.dq + (first + i) * cols + head * kw;
          for (Index c = 0; c < kw; ++c) dq[c] = dcontent[i * kw + c] * scale;
          if (in.p == nullptr) continue;
          for (Index c = 0; c < kw; ++c) du[in_group * kw + c] += dq[c];
          T* dposition = to.dposition_q == nullptr ? nullptr : to.dposition_q + (first + i) * p_cols + head * pw;
          for (Index c = 0; c < pw; ++c) {
            const T d = dpositional[i * pw + c] * scale;
            dw[in_group * pw + c] += d;
            if (dposition != nullptr)
              dposition[c] = d;
            else
              dq[c] += d;
          }
        }
      }
    }
  });
  if (in.p == nullptr) return;
  const Index table_rows = 2 * in.span - 1, offset = in.span - longest;
  parallel_blocks(threads, table_rows, 16, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      T* row = to.dp + r * p_cols;
      std::fill_n(row, p_cols, T(0));
      if (r < offset || r >= offset + span) continue;
      for (Index n = 0; n < sequences; ++n)
        map_span(
            p_cols, row, [](auto a, auto b) { return a + b; }, row,
            shared_data + n * shared_size + (r - offset) * p_cols);
    }
  });
  for (Index n = 0; n < sequences; ++n) {
    const T* sums = shared_data + n * shared_size + span * p_cols;
    for (Index c = 0; to.dw != nullptr && c < p_cols; ++c) to.dw[c] += sums[c];
    for (Index c = 0; to.du != nullptr && c < cols; ++c) to.du[c] += sums[p_cols + c];
  }
}

LACONIC_COMPILE(attend_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the min number of keys that are split into tasks of their own, if the queries fit into one tile (flash
/// decoding).
inline constexpr Index attend_split_from = 20 * attend_tile;
/// Gives the max number of keys of a split. Keys and values of heads up to a width of 64 fit a second-level cache
/// together.
inline constexpr Index attend_split_keys = attend_split_from / 2;

/// Divides the keys of each sequence into splits, holds the partial results, and merges them (Dao et al. 2023,
/// "Flash-Decoding"). Only the shape of a sequence decides, so results depend neither on threads nor on other
/// sequences. With dropout there is one split: a training pass has many queries.
template <class T>
class AttendSplits {
 public:
  /// Takes memory for the partial results from `arena`.
  AttendSplits(Arena& arena, const AttendOperands<T>& in)
      : in_(in),
        splits_(
            Sequences::make(arena, in.q_sequences->size(), [&](Index n) { return is_split(n) ? max_splits(n) : 1; })),
        // Sequences with too many queries to be split get memory, too, so that a later call with fewer queries
        // allocates nothing: a stream of long chunks has few queries only at its end.
        rows_(Sequences::make(arena, in.q_sequences->size(),
                              [&](Index n) {
                                const Index queries = std::min(attend_tile, in.q_sequences->length(n));
                                return has_many_keys(n) ? max_splits(n) * queries : 0;
                              })),
        memory_(arena.allocate(static_cast<std::size_t>(rows_.rows() * (in.out_cols() + 2 * in.shape.num_heads)) *
                               sizeof(T))) {}

  /// Returns the splits of all sequences, end to end.
  const Sequences& all() const { return splits_; }
  /// Returns whether the keys of sequence n are in more than one split.
  bool is_split(Index n) const { return has_many_keys(n) && in_.q_sequences->length(n) <= attend_tile; }
  /// Returns the keys of a split of sequence n.
  Range keys(Index n, Index split) const {
    return equal_part(in_.kv_sequences->length(n), attend_tile, split, splits_.length(n));
  }
  /// Returns the max number of keys of a task. A sequence that is split counts as the longest one that is not, so that
  /// the scratch never shrinks as keys are added.
  Index max_keys() const {
    Index keys = 0;
    for (Index n = 0; n < splits_.size(); ++n)
      keys = std::max(keys, is_split(n) ? attend_split_from : in_.kv_sequences->length(n));
    return keys;
  }

  /// Returns the sum over a split of exp(score - max) v, (value_width), for a query and a head.
  T* values(Index n, Index split, Index query, Index head) const {
    return data() + at(n, split, query, head) * in_.value_width;
  }
  /// Returns the max score of a split for a query and a head.
  T& max_score(Index n, Index split, Index query, Index head) const {
    return data()[rows_.rows() * in_.out_cols() + at(n, split, query, head)];
  }
  /// Returns the sum over a split of exp(score - max) for a query and a head.
  T& sum(Index n, Index split, Index query, Index head) const {
    return data()[rows_.rows() * (in_.out_cols() + in_.shape.num_heads) + at(n, split, query, head)];
  }

  /// Computes the attention of all split sequences from their partial results. out (q_rows, num_heads * value_width);
  /// logsumexp (q_rows, num_heads) or null.
  void merge(int threads, T* out, T* logsumexp) const {
    if (splits_.rows() == splits_.size()) return;
    // Blocks of rows whose work is worth waking a thread.
    const Index grain = 32 * 32 * 32 / (splits_.max_length() * in_.out_cols() + 1) + 1;
    parallel_blocks(threads, in_.q_sequences->rows(), grain, [&](Index begin, Index end) {
      each_part(*in_.q_sequences, {begin, end}, [&](Index n, Range rows) {
        for (Index query = rows.begin; is_split(n) && query < rows.end; ++query)
          for (Index head = 0; head < in_.shape.num_heads; ++head) {
            const Index to = (in_.q_sequences->begin(n) + query) * in_.shape.num_heads + head;
            const T row_logsumexp = merge(n, query, head, out + to * in_.value_width);
            if (logsumexp != nullptr) logsumexp[to] = row_logsumexp;
          }
      });
    });
  }

 private:
  bool has_many_keys(Index n) const { return in_.kv_sequences->length(n) >= attend_split_from && !in_.dropout.any(); }
  Index max_splits(Index n) const { return (in_.kv_sequences->length(n) + attend_split_keys - 1) / attend_split_keys; }
  T* data() const { return static_cast<T*>(memory_.data()); }
  Index at(Index n, Index split, Index query, Index head) const {
    return (rows_.begin(n) + split * in_.q_sequences->length(n) + query) * in_.shape.num_heads + head;
  }
  /// Merges the splits of one query and head into out (value_width), and returns the logsumexp of its scores. It
  /// overwrites the max scores by the weights of the splits.
  T merge(Index n, Index query, Index head, T* out) const {
    T best = -std::numeric_limits<T>::infinity(), total = 0;
    const auto each_seen = [&](auto&& visit) {  // splits of which the query sees nothing have a sum of 0
      for (Index split = 0; split < splits_.length(n); ++split)
        if (sum(n, split, query, head) != 0) visit(split);
    };
    each_seen([&](Index split) { best = std::max(best, max_score(n, split, query, head)); });
    each_seen([&](Index split) {
      T& weight = max_score(n, split, query, head);
      weight = std::exp(weight - best);
      total += weight * sum(n, split, query, head);
    });
    std::fill_n(out, in_.value_width, T(0));
    each_seen([&](Index split) {
      map_span(
          in_.value_width, out,
          [w = Batch<T>(max_score(n, split, query, head) / total)](auto a, auto b) { return a + w * b; }, out,
          values(n, split, query, head));
    });
    return best + std::log(total);
  }

  const AttendOperands<T>& in_;
  Sequences splits_;
  Sequences rows_;  // the queries of each sequence, once for each split
  Buffer memory_;   // products with values, then max scores, then sums, for all rows and heads
};

/// Computes softmax attention: out_i = sum_j exp(s_ij - m_i) v_j / sum_j exp(s_ij - m_i) for every head, with the
/// scores s_ij of `AttendTile` and their max m_i (Milakov and Gimelshein 2018). A tile of queries meets all its keys at
/// once, unless these are split (see AttendSplits). A task packs the keys and values that it reads. out (q_rows,
/// num_heads * value_width); logsumexp (q_rows, num_heads) or null. Takes scratch from `arena`; call it from one
/// thread.
template <class T>
void attend(int threads, Arena& arena, const AttendOperands<T>& in, T* out, T* logsumexp) {
  const Index heads = in.shape.num_heads, kv_heads = in.shape.num_kv_heads, group = in.group();
  const AttendSplits<T> splits(arena, in);
  const Index packs = splits.all().rows() * kv_heads;
  if (packs == 0) return;
  // Each task packs the keys that it reads, so queries are shared among tasks only if threads would have no task.
  const Index shares = std::clamp<Index>((threads + packs - 1) / packs, 1,
                                         std::max<Index>(1, group * attend_tiles(in.q_sequences->max_length())));
  const Index keys = splits.max_keys(), packed = AttendPanels<T>::space(in, keys),
              tile_space = AttendTile<T>::space(in, keys), space = packed + tile_space + attend_tile;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, packs * shares, [&](Index task, int thread) {
    const Index share = task % shares, kv_head = task / shares % kv_heads, piece = task / shares / kv_heads,
                sequence = splits.all().sequence_of(piece), split = piece - splits.all().begin(sequence),
                queries = in.q_sequences->length(sequence), tiles = attend_tiles(queries);
    const Range units = equal_part(group * tiles, 1, share, shares);
    if (units.size() == 0) return;
    T* memory = static_cast<T*>(scratch.data()) + thread * space;
    T* inverses = memory + packed + tile_space;
    AttendPanels<T> panels(in, sequence, kv_head, splits.keys(sequence, split), memory);
    // With few queries, values that are not rounded are read in place as fast as they are packed.
    const bool packs_values = in.v.is_rounded() || (units.size() > 1 && queries > GemmTile<T>::rows);
    if (packs_values) panels.pack_values();
    const bool splits_keys = splits.is_split(sequence);
    for (Index unit = units.begin; unit < units.end; ++unit) {
      const Index head = kv_head * group + unit / tiles;
      if (in.p != nullptr && (unit == units.begin || unit % tiles == 0)) panels.pack_positions(head);
      AttendTile<T> tile(in, panels, sequence, head, unit % tiles * attend_tile, memory + packed);
      tile.multiply();
      for (Index i = 0; i < tile.rows; ++i) {
        const auto [max, sum] = tile.exponents(i);
        if (splits_keys) {
          splits.max_score(sequence, split, i, head) = max;
          splits.sum(sequence, split, i, head) = sum;
          continue;
        }
        inverses[i] = sum == 0 ? T(0) : T(1) / sum;
        if (logsumexp != nullptr) logsumexp[(tile.query_row() + i) * heads + head] = max + std::log(sum);
        T* row = tile.scores + i * tile.stride;
        if (in.dropout.any()) in.dropout.apply(tile.keys, tile.dropout_index(i), row, row);
      }
      T* to = splits_keys ? splits.values(sequence, split, 0, head)
                          : out + tile.query_row() * in.out_cols() + head * in.value_width;
      const Operand<T> weights{tile.scores, tile.stride};
      if (packs_values) {
        const Index first = tile.key - panels.range().begin;
        gemm_panels(tile.rows, weights, panels.values(), {first, first + tile.keys}, {0, in.value_width}, to,
                    in.out_cols(), false, static_cast<const T*>(nullptr));
      } else if (tile.keys == 0) {
        detail::fill_product(tile.rows, in.value_width, to, in.out_cols(), static_cast<const T*>(nullptr));
      } else {
        panels.each_run_of_values({tile.key, tile.key + tile.keys}, [&](Index first, Index some, Operand<T> values) {
          gemm_block<T>(tile.rows, in.value_width, some, {weights.at(0, first - tile.key), tile.stride}, values, to,
                        in.out_cols(), first > tile.key, nullptr, panels.values_memory());
        });
      }
      if (splits_keys) continue;
      for (Index i = 0; i < tile.rows; ++i) {
        T* row = to + i * in.out_cols();
        const Batch<T> inverse(inverses[i]);
        map_span(
            in.value_width, row, [inverse](auto a) { return a * inverse; }, row);
      }
    }
  });
  splits.merge(threads, out, logsumexp);
}

LACONIC_COMPILE(attend);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Returns the feature map of linear attention, elu(x) + 1 (Katharopoulos et al. 2020, section 3.2.1). It is always
/// positive: elu is not formed, because exp(x) - 1 + 1 is 0 for small exp(x).
template <class T>
Batch<T> elu_plus_one(const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), exp<T>(x), x + Batch<T>(T(1)));  // NaN stays NaN
}

/// Returns dy times the derivative of the feature map at x.
template <class T>
Batch<T> elu_plus_one_backward(const Batch<T>& dy, const Batch<T>& x) {
  return xsimd::select(x < Batch<T>(T(0)), dy * exp<T>(x), dy);
}

/// Holds the operands of linear attention over packed rows. Query head h reads key-value head h / (num_heads /
/// num_kv_heads). The left context of the mask is unlimited.
template <class T>
struct LinearAttendOperands {
  Index num_heads;             ///< query heads
  Index num_kv_heads;          ///< key-value heads, a divisor of num_heads
  Mask mask;                   ///< the keys that a query sees
  const Sequences* sequences;  ///< sequences of the rows
  Index key_width;             ///< columns of a query or key head
  Index value_width;           ///< columns of a value head
  const T* q;                  ///< (rows, num_heads * key_width)
  const T* k;                  ///< (rows, num_kv_heads * key_width)
  const T* v;                  ///< (rows, num_kv_heads * value_width)

  /// Returns the query heads that share a key-value head.
  Index group() const { return num_heads / num_kv_heads; }
  /// Returns the columns of q.
  Index q_cols() const { return num_heads * key_width; }
  /// Returns the columns of k.
  Index k_cols() const { return num_kv_heads * key_width; }
  /// Returns the columns of v.
  Index v_cols() const { return num_kv_heads * value_width; }
  /// Returns the columns of the result.
  Index out_cols() const { return num_heads * value_width; }
  /// Returns the elements of the state of one key-value head.
  Index state_size() const { return key_width * (value_width + 1); }
};

/// Gives the addend of the denominators.
inline constexpr double linear_attend_eps = 1e-6;
/// Gives the queries and keys of a tile.
inline constexpr Index linear_attend_tile = 64;

/// Computes one key-value head of one sequence, for the query heads that read it. Values have an extra column of ones,
/// so that numerator and denominator are one sum: the state is phi(K)^T [V, 1] (key_width, value_width + 1) over the
/// keys so far. Used by one thread, in memory of the caller.
template <class T>
struct LinearAttendSweep {
  /// Holds the queries [row, row + rows): whole chunks, or a range of one. All of them see the keys before `base`, some
  /// of them see the keys [base, base + tail), and none sees a later key.
  struct Block {
    Index row;   ///< the first query
    Index rows;  ///< queries
    Index base;  ///< keys that all queries see
    Index tail;  ///< keys after these that some queries see
  };

  const LinearAttendOperands<T>& in;  ///< the operands
  Index kv_head;                      ///< the key-value head
  Index first;                        ///< the first row of the sequence
  Index length;                       ///< rows of the sequence
  Index chunk;                        ///< frames of a chunk, at most `length`
  Index kw;                           ///< key_width
  Index vw;                           ///< value_width
  Index width;                        ///< value_width + 1
  T* phi_q;                           ///< features of packed queries, (tile, key_width)
  T* phi_k;                           ///< features of packed keys, (tile, key_width)
  T* values;                          ///< packed values and ones, (tile, width)
  T* sums;                            ///< numerators and denominators, later their derivatives, (tile, width)
  T* scores;                          ///< phi(q_i) . phi(k_j), (rows, tail)
  T* dscores;                         ///< derivatives by the scores, (rows, tail)
  T* state;                           ///< phi(K)^T [V, 1], (key_width, width)
  T* gemm_space;                      ///< scratch of `gemm_block`
  Index packed_key = 0;               ///< the first packed key
  Index packed = 0;                   ///< packed keys

  /// Returns the elements of memory that a sweep needs.
  static Index space(const LinearAttendOperands<T>& in) {
    return 2 * linear_attend_tile * (in.key_width + in.value_width + 1 + linear_attend_tile) + in.state_size() +
           gemm_scratch<T>();
  }

  /// Sets up a key-value head of a sequence. The state is not initialised.
  LinearAttendSweep(const LinearAttendOperands<T>& operands, Index sequence, Index kv_head_, T* memory)
      : in(operands),
        kv_head(kv_head_),
        first(in.sequences->begin(sequence)),
        length(in.sequences->length(sequence)),
        kw(in.key_width),
        vw(in.value_width),
        width(vw + 1) {
    chunk = in.mask.chunk == Mask::unlimited ? length : std::min(in.mask.chunk, length);
    phi_q = memory;
    phi_k = phi_q + linear_attend_tile * kw;
    values = phi_k + linear_attend_tile * kw;
    sums = values + linear_attend_tile * width;
    scores = sums + linear_attend_tile * width;
    dscores = scores + linear_attend_tile * linear_attend_tile;
    state = dscores + linear_attend_tile * linear_attend_tile;
    gemm_space = state + in.state_size();
  }

  /// Returns the end of the keys that query i sees.
  Index end(Index i) const { return std::min(length, (i / chunk + 1) * chunk); }
  /// Returns the block of query i. Several small chunks make one block and large ones are cut, so the tail is shorter
  /// than a tile.
  Block block(Index i) const {
    const bool small = chunk < linear_attend_tile;
    const Index max_rows = small ? linear_attend_tile / chunk * chunk : linear_attend_tile,
                start = small ? 0 : i / chunk * chunk;
    const Index row = start + (i - start) / max_rows * max_rows,
                rows = std::min(max_rows, (small ? length : end(i)) - row);
    return {row, rows, end(row), end(row + rows - 1) - end(row)};
  }
  /// Returns the first query head that reads this key-value head.
  Index first_head() const { return kv_head * in.group(); }
  /// Returns the query head after the last one that reads this key-value head.
  Index last_head() const { return first_head() + in.group(); }
  /// Returns the offset of query i of a head in q.
  Index q_at(Index i, Index head) const { return (first + i) * in.q_cols() + head * kw; }
  /// Returns the offset of key j in k.
  Index k_at(Index j) const { return (first + j) * in.k_cols() + kv_head * kw; }
  /// Returns the offset of value j in v.
  Index v_at(Index j) const { return (first + j) * in.v_cols() + kv_head * vw; }
  /// Returns the offset of row i of a head in the result.
  Index out_at(Index i, Index head) const { return (first + i) * in.out_cols() + head * vw; }

  /// Computes C (m x n) = A (m x depth) B (depth x n), plus C if `accumulate`.
  void multiply(Index m, Index n, Index depth, Operand<T> a, Operand<T> b, T* c, Index c_stride,
                bool accumulate) const {
    gemm_block<T>(m, n, depth, a, b, c, c_stride, accumulate, nullptr, gemm_space);
  }

  /// Writes the features of the queries of a block and a head to phi_q.
  void pack_queries(const Block& b, Index head) {
    for (Index i = 0; i < b.rows; ++i)
      map_span(
          kw, phi_q + i * kw, [](auto x) { return elu_plus_one(x); }, in.q + q_at(b.row + i, head));
  }
  /// Writes features and values of the keys [key, key + keys) to phi_k and values, except those that are there already.
  void pack_keys(Index key, Index keys) {
    if (key != packed_key) packed = 0;
    for (packed_key = key; packed < keys; ++packed) {
      map_span(
          kw, phi_k + packed * kw, [](auto x) { return elu_plus_one(x); }, in.k + k_at(key + packed));
      std::copy_n(in.v + v_at(key + packed), vw, values + packed * width);
      values[packed * width + vw] = T(1);
    }
  }
  /// Adds the keys [from, to) to the state.
  void advance(Index from, Index to) {
    for (; from < to; from += linear_attend_tile) {
      const Index keys = std::min(linear_attend_tile, to - from);
      pack_keys(from, keys);
      multiply(kw, width, keys, Operand<T>{phi_k, kw}.transposed(), {values, width}, state, width, true);
    }
  }
  /// Computes to (rows, tail) = queries keys^T over `depth` columns, with 0 for keys that a query does not see.
  void compute_visible(const Block& b, Index depth, const T* queries, const T* keys, T* to) const {
    multiply(b.rows, b.tail, depth, {queries, depth}, Operand<T>{keys, depth}.transposed(), to, b.tail, false);
    for (Index i = 0; i < b.rows; ++i)
      std::fill(to + i * b.tail + end(b.row + i) - b.base, to + (i + 1) * b.tail, T(0));
  }
  /// Computes numerators and denominators of the packed queries. The state holds the keys before b.base, and the keys
  /// of the tail are packed.
  void compute_sums(const Block& b) {
    multiply(b.rows, width, kw, {phi_q, kw}, {state, width}, sums, width, false);
    if (b.tail > 0) {
      compute_visible(b, kw, phi_q, phi_k, scores);
      multiply(b.rows, width, b.tail, {scores, b.tail}, {values, width}, sums, width, true);
    }
    for (Index i = 0; i < b.rows; ++i) sums[i * width + vw] += static_cast<T>(linear_attend_eps);
  }
  /// Calls body(block, head) for every block, from the first to the last, and every head, after computing its sums.
  template <class Body>
  void forward(Body&& body) {
    Block b{0, 0, 0, 0};
    for (Index row = 0, base = 0; row < length; row += b.rows, base = b.base) {
      b = block(row);
      advance(base, b.base);
      pack_keys(b.base, b.tail);
      for (Index head = first_head(); head < last_head(); ++head) {
        pack_queries(b, head);
        compute_sums(b);
        body(b, head);
      }
    }
  }
};

/// Computes linear attention (Katharopoulos et al. 2020, equation 5): out_i = sum_j (phi(q_i) . phi(k_j)) v_j / (sum_j
/// phi(q_i) . phi(k_j) + eps) over the keys j that query i sees. out (rows, num_heads * value_width). states, if not
/// null, (sequences, num_kv_heads * state_size), holds the sums over earlier rows on entry and the sums that include
/// these rows on return; the rows then begin a chunk. A task is a key-value head of a sequence. Takes scratch from
/// `arena`; call it from one thread.
template <class T>
void linear_attend(int threads, Arena& arena, const LinearAttendOperands<T>& in, T* out, T* states) {
  using Sweep = LinearAttendSweep<T>;
  const Index space = Sweep::space(in), kv_heads = in.num_kv_heads;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, in.sequences->size() * kv_heads, [&](Index task, int thread) {
    Sweep sweep(in, task / kv_heads, task % kv_heads, static_cast<T*>(scratch.data()) + thread * space);
    if (sweep.length == 0) return;
    if (states == nullptr)
      std::fill_n(sweep.state, in.state_size(), T(0));
    else
      sweep.state = states + task * in.state_size();
    sweep.forward([&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* sum = sweep.sums + i * sweep.width;
        const Batch<T> inverse(T(1) / sum[sweep.vw]);
        map_span(
            sweep.vw, out + sweep.out_at(b.row + i, head), [&](auto a) { return a * inverse; }, sum);
      }
    });
    if (states != nullptr) sweep.advance(sweep.block(sweep.length - 1).base, sweep.length);
  });
}

/// Computes dq, dk and dv of `linear_attend` without states from dout (rows, num_heads * value_width), and overwrites
/// them. A forward sweep gives dq. A backward sweep with the sums over queries, phi(Q)^T [dN, dD], gives dk and dv,
/// with N and D the numerators and denominators. In addition to the tiles it keeps two elements for each row and head.
/// A task is a key-value head of a sequence. Takes scratch from `arena`; call it from one thread.
template <class T>
void linear_attend_backward(int threads, Arena& arena, const LinearAttendOperands<T>& in, const T* dout, T* dq, T* dk,
                            T* dv) {
  using Sweep = LinearAttendSweep<T>;
  const Index space = Sweep::space(in), kv_heads = in.num_kv_heads;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  // 1 / D and dD for each row and head.
  const Buffer kept = arena.allocate(static_cast<std::size_t>(in.sequences->rows() * in.num_heads * 2) * sizeof(T));
  parallel_for(threads, in.sequences->size() * kv_heads, [&](Index task, int thread) {
    Sweep sweep(in, task / kv_heads, task % kv_heads, static_cast<T*>(scratch.data()) + thread * space);
    const Index kw = sweep.kw, vw = sweep.vw, width = sweep.width, length = sweep.length;
    if (length == 0) return;
    const auto kept_at = [&](Index i, Index head) {
      return static_cast<T*>(kept.data()) + ((sweep.first + i) * in.num_heads + head) * 2;
    };
    const auto by_feature = [](auto d, auto x) { return elu_plus_one_backward(d, x); };
    // Writes [dN, dD] of the block's queries to `sums`.
    const auto load_gradients = [&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* factors = kept_at(b.row + i, head);
        map_span(
            vw, sweep.sums + i * width, [&](auto a) { return a * Batch<T>(factors[0]); },
            dout + sweep.out_at(b.row + i, head));
        sweep.sums[i * width + vw] = factors[1];
      }
    };

    std::fill_n(sweep.state, in.state_size(), T(0));
    sweep.forward([&](const auto& b, Index head) {
      for (Index i = 0; i < b.rows; ++i) {
        const T* sum = sweep.sums + i * width;
        const T inverse = T(1) / sum[vw];
        const T dot = sum_span<T>(
            vw, [](auto a, auto c) { return a * c; }, sum, dout + sweep.out_at(b.row + i, head));
        kept_at(b.row + i, head)[0] = inverse;
        kept_at(b.row + i, head)[1] = -dot * inverse * inverse;
      }
      load_gradients(b, head);
      T* to = dq + sweep.q_at(b.row, head);
      sweep.multiply(b.rows, kw, width, {sweep.sums, width}, Operand<T>{sweep.state, width}.transposed(), to,
                     in.q_cols(), false);
      if (b.tail > 0) {
        sweep.compute_visible(b, width, sweep.sums, sweep.values, sweep.dscores);
        sweep.multiply(b.rows, kw, b.tail, {sweep.dscores, b.tail}, {sweep.phi_k, kw}, to, in.q_cols(), true);
      }
      for (Index i = 0; i < b.rows; ++i, to += in.q_cols())
        map_span(kw, to, by_feature, to, in.q + sweep.q_at(b.row + i, head));
    });

    // From here on the state holds the sums over the queries after a block, all of which see the keys [from, to).
    std::fill_n(sweep.state, in.state_size(), T(0));
    const auto give = [&](Index from, Index to) {
      for (; from < to; from += linear_attend_tile) {
        const Index keys = std::min(linear_attend_tile, to - from);
        sweep.pack_keys(from, keys);
        sweep.multiply(keys, kw, width, {sweep.values, width}, Operand<T>{sweep.state, width}.transposed(),
                       dk + sweep.k_at(from), in.k_cols(), false);
        sweep.multiply(keys, vw, kw, {sweep.phi_k, kw}, {sweep.state, width}, dv + sweep.v_at(from), in.v_cols(),
                       false);
      }
    };
    Index base = length;
    for (Index stop = length; stop > 0;) {
      const auto b = sweep.block(stop - 1);
      give(b.base, base);
      sweep.pack_keys(b.base, b.tail);
      for (Index head = sweep.first_head(); head < sweep.last_head(); ++head) {
        sweep.pack_queries(b, head);
        load_gradients(b, head);
        if (b.tail > 0) {
          sweep.compute_visible(b, kw, sweep.phi_q, sweep.phi_k, sweep.scores);
          sweep.compute_visible(b, width, sweep.sums, sweep.values, sweep.dscores);
          sweep.multiply(b.tail, kw, b.rows, Operand<T>{sweep.dscores, b.tail}.transposed(), {sweep.phi_q, kw},
                         dk + sweep.k_at(b.base), in.k_cols(), true);
          sweep.multiply(b.tail, vw, b.rows, Operand<T>{sweep.scores, b.tail}.transposed(), {sweep.sums, width},
                         dv + sweep.v_at(b.base), in.v_cols(), true);
        }
        sweep.multiply(kw, width, b.rows, Operand<T>{sweep.phi_q, kw}.transposed(), {sweep.sums, width}, sweep.state,
                       width, true);
      }
      base = b.base;
      stop = b.row;
    }
    give(0, base);
    for (Index j = 0; j < length; ++j)
      map_span(kw, dk + sweep.k_at(j), by_feature, dk + sweep.k_at(j), in.k + sweep.k_at(j));
  });
}

LACONIC_COMPILE(linear_attend);
LACONIC_COMPILE(linear_attend_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the attention primitives of `Cpu`.
template <class T>
class CpuAttention {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of a cache of rows.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Returns softmax attention (rows, num_heads * V). q (rows, num_heads * K), k (rows, num_kv_heads * K), v (rows,
  /// num_kv_heads * V). Throws `Error` for shapes that do not fit.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    return attend(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  /// Returns softmax attention over keys and values that are read in place from a cache. `kv_sequences` counts cached
  /// and new rows.
  Tensor attend(const Tensor& q, const CachedRows& k, const CachedRows& v, const AttendShape& shape,
                const Sequences& q_sequences, const Sequences& kv_sequences,
                const RelativeTerm<Tensor, T>& relative = {}, double = 0) {
    const auto in = attend_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    Tensor out = core_.make(q.rows(), in.out_cols());
    kernels::attend(core_.threads(), core_.arena(), in, out.data(), static_cast<T*>(nullptr));
    return out;
  }
  /// Returns softmax attention with dropout of its weights, and the logsumexp of the scores of each row and head (rows,
  /// num_heads). Throws `Error` for a packed table.
  Tensor attend_train(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                      const Sequences& q_sequences, const Sequences& kv_sequences,
                      const RelativeTerm<Tensor, T>& relative, const DropoutMask& dropout, Tensor& logsumexp) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    Tensor out = core_.make(q.rows(), in.out_cols());
    logsumexp = core_.make(q.rows(), shape.num_heads);
    kernels::attend(core_.threads(), core_.arena(), in, out.data(), logsumexp.data());
    return out;
  }
  /// Holds the derivatives of `attend`, each with the shape of its argument.
  struct AttendDerivative {
    Tensor dq;           ///< derivative by the queries
    Tensor dk;           ///< derivative by the keys
    Tensor dv;           ///< derivative by the values
    Tensor dtable;       ///< derivative by the table of positions; empty without one
    Tensor dposition_q;  ///< derivative by the queries that meet the table; empty if they are q
  };
  /// Returns the derivatives of `attend_train` and adds those by the position biases to their gradients. It recomputes
  /// the weights from q, k and logsumexp, so nothing of size queries x keys is kept.
  AttendDerivative attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const AttendShape& shape, const Sequences& q_sequences,
                                   const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative,
                                   const DropoutMask& dropout, const Tensor& logsumexp) {
    auto in = whole_operands(q, k, v, shape, q_sequences, kv_sequences, relative);
    in.dropout = dropout;
    AttendDerivative d{
        core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()), core_.make(v.rows(), v.cols()), {}, {}};
    kernels::AttendGradients<T> to{d.dq.data(), d.dk.data(), d.dv.data()};
    if (in.p != nullptr) {
      d.dtable = core_.make(relative.table.rows(), relative.table.cols());
      to.dp = d.dtable.data();
      if (!relative.query.empty()) {
        d.dposition_q = core_.make(relative.query.rows(), relative.query.cols());
        to.dposition_q = d.dposition_q.data();
      }
      to.du = relative.pos_bias_u == nullptr ? nullptr : kernels::gradient_of(*relative.pos_bias_u);
      to.dw = relative.pos_bias_v == nullptr ? nullptr : kernels::gradient_of(*relative.pos_bias_v);
    }
    kernels::attend_backward(core_.threads(), core_.arena(), in, dout.data(), logsumexp.data(), to);
    return d;
  }

  /// Returns a table of relative positions in panels, as `attend` reads it. table (2 * span - 1, num_heads * head_dim).
  Tensor prepare_table(const Tensor& table, Index num_heads) {
    checks::prepare_table(table, num_heads);
    Tensor out = core_.make(kernels::packed_table_rows<T>(table.rows()), table.cols());
    kernels::pack_table(core_.threads(), table.rows(), num_heads, table.cols() / num_heads, table.data(), out.data());
    return out;
  }

  /// Returns linear attention (rows, num_heads * V). `states`, if not null, is (sequences, num_kv_heads * K * (V + 1))
  /// and is updated. Throws `Error` for shapes that do not fit and for a mask with a limited left context.
  Tensor linear_attend(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                       const Sequences& sequences, Tensor* states = nullptr) {
    const auto in = linear_operands(q, k, v, shape, sequences);
    if (states != nullptr) checks::linear_attend_states(*states, sequences, in.num_kv_heads * in.state_size());
    Tensor out = core_.make(q.rows(), in.num_heads * in.value_width);
    kernels::linear_attend(core_.threads(), core_.arena(), in, out.data(),
                           states == nullptr ? nullptr : states->data());
    return out;
  }
  /// Holds the derivatives of `linear_attend`, each with the shape of its argument.
  struct LinearAttendDerivative {
    Tensor dq;  ///< derivative by the queries
    Tensor dk;  ///< derivative by the keys
    Tensor dv;  ///< derivative by the values
  };
  /// Returns the derivatives of `linear_attend` without states.
  LinearAttendDerivative linear_attend_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                                const AttendShape& shape, const Sequences& sequences) {
    LinearAttendDerivative d{core_.make(q.rows(), q.cols()), core_.make(k.rows(), k.cols()),
                             core_.make(v.rows(), v.cols())};
    kernels::linear_attend_backward(core_.threads(), core_.arena(), linear_operands(q, k, v, shape, sequences),
                                    dout.data(), d.dq.data(), d.dk.data(), d.dv.data());
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuAttention(CpuCore<T>& core) : core_(core) {}

 private:
  kernels::AttendOperands<T> whole_operands(const Tensor& q, const Tensor& k, const Tensor& v, const AttendShape& shape,
                                            const Sequences& q_sequences, const Sequences& kv_sequences,
                                            const RelativeTerm<Tensor, T>& relative) {
    checks::trainable_term(relative);
    return attend_operands(q, CachedRows{k}, CachedRows{v}, shape, q_sequences, kv_sequences, relative);
  }
  kernels::AttendOperands<T> attend_operands(const Tensor& q, const CachedRows& keys, const CachedRows& values,
                                             const AttendShape& shape, const Sequences& q_sequences,
                                             const Sequences& kv_sequences, const RelativeTerm<Tensor, T>& relative) {
    checks::attend(q, keys, values, shape, q_sequences, kv_sequences);
    const Sequences& fresh = keys.cache != nullptr ? q_sequences : kv_sequences;
    const auto rows_of = [&](const CachedRows& x) {
      return kernels::AttendRows<T>{x.rows.data(), x.rows.cols(), &fresh, x.cache, x.slots};
    };
    kernels::AttendOperands<T> in{
        shape,    &q_sequences,  &kv_sequences,  q.cols() / shape.num_heads, values.rows.cols() / shape.num_kv_heads,
        q.data(), rows_of(keys), rows_of(values)};
    if (relative.table.empty()) return in;
    const Index table_rows = relative.table.rows() - (relative.packed ? kernels::packed_table_rows<T>(0) : 0);
    checks::relative_term(q, relative, table_rows, shape, q_sequences, kv_sequences);
    const Tensor& query = relative.query.empty() ? q : relative.query;
    const auto values_of = [](const Parameter<T>* p) { return p == nullptr ? nullptr : kernels::values_of(*p); };
    in.p = relative.table.data();
    in.u = values_of(relative.pos_bias_u);
    in.w = values_of(relative.pos_bias_v);
    in.position_q = query.data();
    in.position_width = query.cols() / shape.num_heads;
    in.packed_table = relative.packed;
    in.span = (table_rows + 1) / 2;
    return in;
  }
  kernels::LinearAttendOperands<T> linear_operands(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const AttendShape& shape, const Sequences& sequences) {
    checks::linear_attend(q, k, v, shape, sequences);
    const Index heads = shape.num_heads, kv_heads = shape.num_kv_heads;
    return {heads,    kv_heads, shape.mask, &sequences, q.cols() / heads, v.cols() / kv_heads,
            q.data(), k.data(), v.data()};
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuAttention);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of caches, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that a cache has these slots.
template <class Cache>
void slots(const Cache& cache, std::span<const Index> slots) {
  for (const Index slot : slots)
    require(slot >= 0 && slot < cache.slots(), "cache: slot ", slot, " given, 0 to ", cache.slots() - 1, " expected");
}
/// Checks the rows of sequences that belong to slots of a cache.
template <class Cache, class Tensor>
void cached_rows(const Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
  require(
      static_cast<Index>(slots.size()) == sequences.size() && x.cols() == cache.width() && x.rows() == sequences.rows(),
      "cache: (", x.rows(), ", ", x.cols(), ") in ", sequences.size(), " sequences given, (", sequences.rows(), ", ",
      cache.width(), ") in ", slots.size(), " expected");
  checks::slots(cache, slots);
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the caches of `Cpu` for streams and decoders.
template <class T>
class CpuCaches {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of a cache of rows.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Returns a cache of `slots` slots with `capacity` rows of `width` values each. Allocates.
  Cache make_cache(Index slots, Index capacity, Index width, Storage storage = Storage::full) {
    return Cache(slots, capacity, width, storage);
  }
  /// Empties a slot.
  void clear(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.clear(slot);
  }
  /// Fills a slot with rows of zeros.
  void fill_zeros(Cache& cache, Index slot) {
    checks::slots(cache, {&slot, 1});
    cache.fill_zeros(slot);
  }
  /// Copies slot `from` to slot `to`.
  void fork(Cache& cache, Index from, Index to) {
    checks::slots(cache, {&from, 1});
    checks::slots(cache, {&to, 1});
    cache.fork(from, to);
  }

  /// Returns a view of the rows in slots[n], followed by the rows of x of sequence n. Copies nothing. Throws `Error`
  /// for shapes or slots that do not fit.
  CachedRows with_cached(const Cache& cache, std::span<const Index> slots, const Tensor& x,
                         const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    return {x, &cache, slots};
  }
  /// Returns the sequences of a view, which count cached and new rows.
  Sequences cached_lengths(const CachedRows& x, const Sequences& sequences) {
    return Sequences::make(core_.arena(), sequences.size(), [&](Index n) {
      return x.cache->count(x.slots[static_cast<std::size_t>(n)]) + sequences.length(n);
    });
  }
  /// Returns a view copied into one tensor. `all` are its cached_lengths.
  Tensor gathered(const CachedRows& x, const Sequences& sequences, const Sequences& all) {
    Tensor out = core_.make(all.rows(), x.rows.cols());
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int) {
      const Index slot = x.slots[static_cast<std::size_t>(n)], past = x.cache->count(slot);
      T* to = out.row(all.begin(n));
      x.cache->read(slot, to);
      std::copy_n(x.rows.row(sequences.begin(n)), sequences.length(n) * x.rows.cols(), to + past * x.rows.cols());
    });
    return out;
  }
  /// Appends the rows of sequence n to slots[n]; the oldest rows beyond the capacity are dropped.
  void append(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    checks::cached_rows(cache, slots, x, sequences);
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int) {
      cache.append(slots[static_cast<std::size_t>(n)], sequences.length(n), x.row(sequences.begin(n)));
    });
  }
  /// Holds the result of `extend`.
  struct Extended {
    Tensor rows;          ///< cached rows and new rows of every sequence
    Sequences sequences;  ///< the sequences of these rows
  };
  /// Returns the cached rows and the rows of x as one tensor, then appends the rows of x to the cache.
  Extended extend(Cache& cache, std::span<const Index> slots, const Tensor& x, const Sequences& sequences) {
    const CachedRows rows = with_cached(cache, slots, x, sequences);
    Sequences all = cached_lengths(rows, sequences);
    Tensor out = gathered(rows, sequences, all);
    append(cache, slots, x, sequences);
    return {std::move(out), std::move(all)};
  }
  /// Calls change(rows) with the one row that each slot holds (slots, width), and stores the changed rows.
  template <class Change>
  void update(Cache& cache, std::span<const Index> slots, Change&& change) {
    checks::slots(cache, slots);
    Tensor rows = core_.make(static_cast<Index>(slots.size()), cache.width());
    for (std::size_t n = 0; n < slots.size(); ++n) cache.read(slots[n], rows.row(static_cast<Index>(n)));
    change(rows);
    for (std::size_t n = 0; n < slots.size(); ++n) cache.append(slots[n], 1, rows.row(static_cast<Index>(n)));
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuCaches(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuCaches);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of convolutions, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the sequences in and out of a convolution, which is named.
template <class Shape>
void convolved(const char* name, const Shape& shape, const Sequences& from, const Sequences& to) {
  require(from.size() == to.size(), name, ": ", to.size(), " sequences out given for ", from.size(), " in");
  for (Index n = 0; n < from.size(); ++n)
    require(to.length(n) == shape.out_length(from.length(n)), name, ": length ", to.length(n), " out given for ",
            from.length(n), " in, ", shape.out_length(from.length(n)), " expected");
}
/// Checks the arguments of `conv1d`.
template <class Tensor, class T>
void conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
            const Sequences& from, const Sequences& to) {
  require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
              (bias == nullptr || bias->size() == shape.out_channels),
          "conv1d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
          bias == nullptr ? 0 : bias->size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(),
          ") and none or ", shape.out_channels, " expected");
  require(x.cols() == shape.in_channels && x.rows() == from.rows(), "conv1d: input is (", x.rows(), ", ", x.cols(),
          "), expected (", from.rows(), ", ", shape.in_channels, ")");
  convolved("conv1d", shape, from, to);
}
/// Checks the arguments of `conv2d`.
template <class Tensor, class T>
void conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
            const Sequences& from, const Sequences& to) {
  require(shape.stride > 0 && weight.rows() == shape.out_channels && weight.cols() == shape.patch() &&
              bias.size() == shape.out_channels,
          "conv2d: stride ", shape.stride, ", a weight of (", weight.rows(), ", ", weight.cols(), ") and a bias of ",
          bias.size(), " given, a positive one, (", shape.out_channels, ", ", shape.patch(), ") and ",
          shape.out_channels, " expected");
  require(x.cols() == shape.in_cols() && x.rows() == from.rows(), "conv2d: input is (", x.rows(), ", ", x.cols(),
          "), expected (", from.rows(), ", ", shape.in_cols(), ")");
  convolved("conv2d", shape, from, to);
}
/// Checks the arguments of `depthwise_conv`.
template <class Tensor, class T>
void depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Sequences& sequences,
                    const DepthwiseShape& shape) {
  const Index channels = weight.rows();
  require(x.cols() == channels && x.rows() == sequences.rows(), "depthwise_conv: input is (", x.rows(), ", ", x.cols(),
          "), expected (", sequences.rows(), ", ", channels, ")");
  require(bias == nullptr || bias->size() == channels, "depthwise_conv: a bias of ", bias == nullptr ? 0 : bias->size(),
          " given for ", channels, " channels");
  require((shape.chunk == Mask::unlimited || shape.chunk > 0) && shape.past >= 0, "depthwise_conv: chunk ", shape.chunk,
          " and past ", shape.past, " given, at least 1 and 0 expected");
  for (Index n = 0; shape.past > 0 && n < sequences.size(); ++n)
    require(sequences.length(n) >= shape.past, "depthwise_conv: sequence ", n, " has ", sequences.length(n),
            " rows, at least ", shape.past, " expected");
}
/// Checks the shape of `depthwise_conv_backward`.
inline void depthwise_conv_backward(const DepthwiseShape& shape) {
  require(shape.past == 0, "depthwise_conv: its derivative is known for whole sequences only, ", shape.past,
          " past rows given");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the convolutions of `Cpu`.
template <class T>
class CpuConvolution {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns a convolution over time (rows of `to`, out_channels). Throws `Error` for shapes that do not fit.
  Tensor conv1d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const Conv1dShape& shape,
                const Sequences& from, const Sequences& to) {
    checks::conv1d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_channels);
    Buffer space;
    const kernels::PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    // The inputs of an output frame are contiguous, so the rows of x are read in place, `stride` rows apart.
    for (Index n = 0; n < from.size(); ++n)
      kernels::multiply(core_.threads(), core_.arena(), to.length(n),
                        kernels::Operand<T>{x.row(from.begin(n)), shape.stride * shape.in_channels}, shape.out_channels,
                        depth, packed, bias == nullptr ? nullptr : kernels::values_of(*bias), y.row(to.begin(n)),
                        kernels::NoEpilogue());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv1d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         const Conv1dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (weight.trainable) {
      Tensor ordered = core_.zeros(shape.patch(), shape.out_channels);
      kernels::conv1d_backward_weight(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                      ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.zeros(x.rows(), x.cols());
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv1d_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(), ordered.data(),
                                   dx.data());
    return dx;
  }

  /// Returns a 3 x 3 convolution over (time, frequency) (rows of `to`, out_cols()), then the activation if one is
  /// given. A stride of 2 with enough channels is computed by Winograd tiles. Throws `Error` for shapes that do not
  /// fit.
  Tensor conv2d(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Conv2dShape& shape,
                const Sequences& from, const Sequences& to, std::optional<Activation> activation = {}) {
    checks::conv2d(x, weight, bias, shape, from, to);
    Tensor y = core_.make(to.rows(), shape.out_cols());
    const CpuWeight<T>* prepared = kernels::packed_form_of(weight);
    const bool by_tiles = prepared != nullptr ? prepared->form == WeightForm::tiles : kernels::is_tiled(shape);
    if (by_tiles) {
      require(kernels::is_tiled(shape), "conv2d: a weight packed for tiles given, whose stride is 2; ", shape.stride,
              " expected");
      Buffer memory;
      const T* panels = prepared != nullptr ? reinterpret_cast<const T*>(prepared->data.get()) : nullptr;
      if (prepared == nullptr) {
        memory = core_.arena().allocate(static_cast<std::size_t>(kernels::tile_panels_size<T>(shape)) * sizeof(T));
        kernels::pack_tile_weights(core_.threads(), shape, tile_weights(weight, shape).data(),
                                   static_cast<T*>(memory.data()));
        panels = static_cast<const T*>(memory.data());
      }
      kernels::conv2d_tiles(core_.threads(), core_.arena(), shape, from, to, x.data(), panels, kernels::values_of(bias),
                            activation, y.data());
      return y;
    }
    Buffer space;
    const kernels::PackedWeight packed = packed_form(weight, shape, space);
    const Index depth = shape.patch();
    const kernels::ActivationEpilogue epilogue{activation};
    kernels::conv2d(core_.threads(), core_.arena(), shape, from, to, x.data(), y.data(),
                    kernels::multiply_rows_space(depth, packed),
                    [&](const T* patches, Index count, T* out, void* scratch) {
                      kernels::multiply_rows(count, kernels::Operand<T>{patches, depth}, shape.out_channels, depth,
                                             packed, kernels::values_of(bias), out, epilogue, scratch);
                    });
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor conv2d_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                         const Conv2dShape& shape, const Sequences& from, const Sequences& to, bool needs_dx) {
    if (bias.trainable)
      kernels::add_column_sums(core_.threads(), dy.rows() * shape.out_freqs(), shape.out_channels, dy.data(),
                               kernels::gradient_of(bias));
    Tensor dx = needs_dx ? core_.zeros(x.rows(), x.cols()) : Tensor();
    if (kernels::is_tiled(shape)) {
      if (weight.trainable) {
        Tensor dweights = core_.zeros(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
        kernels::conv2d_tiles_backward_weights(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                               dweights.data());
        kernels::add_tile_weights(core_.threads(), shape, std::as_const(dweights).data(), kernels::gradient_of(weight));
      }
      if (needs_dx)
        kernels::conv2d_tiles_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(),
                                             tile_weights(weight, shape).data(), dx.data());
      return dx;
    }
    if (weight.trainable) {
      Tensor ordered = core_.zeros(shape.patch(), shape.out_channels);
      kernels::conv2d_backward_weight(core_.threads(), core_.arena(), shape, from, to, dy.data(), x.data(),
                                      ordered.data());
      add_gradient(weight, shape, ordered);
    }
    if (!needs_dx) return {};
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::conv2d_backward_input(core_.threads(), core_.arena(), shape, from, to, dy.data(), ordered.data(),
                                   dx.data());
    return dx;
  }

  /// Returns a depthwise convolution over time, with `past` rows less in each sequence. Throws `Error` for shapes that
  /// do not fit.
  Tensor depthwise_conv(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                        const Sequences& sequences, const DepthwiseShape& shape) {
    const Index channels = weight.rows(), kernel = weight.cols();
    checks::depthwise_conv(x, weight, bias, sequences, shape);
    Tensor y = core_.make(x.rows() - sequences.size() * shape.past, channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(core_.threads(), sequences, channels, kernel, shape, false, x.data(), taps.data(),
                            bias == nullptr ? nullptr : kernels::values_of(*bias), y.data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Throws `Error` for shapes with past rows.
  Tensor depthwise_conv_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight,
                                 const Parameter<T>* bias, const Sequences& sequences, const DepthwiseShape& shape,
                                 bool needs_dx) {
    const Index channels = weight.rows(), kernel = weight.cols();
    checks::depthwise_conv_backward(shape);
    if (weight.trainable) {
      Tensor dtaps = core_.zeros(kernel, channels);
      kernels::depthwise_conv_backward_taps(core_.threads(), sequences, channels, kernel, shape, dy.data(), x.data(),
                                            dtaps.data());
      matrix_view(kernels::gradient_of(weight), channels, kernel) += dtaps.view().transpose();
    }
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(x.rows(), channels);
    const Tensor taps = depthwise_taps(weight);
    kernels::depthwise_conv(core_.threads(), sequences, channels, kernel,
                            DepthwiseShape{kernel - 1 - shape.left, shape.chunk}, true, dy.data(), taps.data(),
                            static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuConvolution(CpuCore<T>& core) : core_(core) {}

 private:
  /// Returns the packed form of a weight: the prepared one, or one that is packed now into `space`.
  template <class Shape>
  kernels::PackedWeight packed_form(const Parameter<T>& weight, const Shape& shape, Buffer& space) {
    if (const CpuWeight<T>* prepared = kernels::packed_form_of(weight)) {
      require(prepared->form == WeightForm::taps,
              "convolution: a packed weight of another layer given, one with taps expected");
      return {prepared->storage(), prepared->data.get()};
    }
    const Index depth = shape.patch(), cols = shape.out_channels;
    space = core_.arena().allocate(static_cast<std::size_t>(kernels::Panels<T>::size(depth, cols)) * sizeof(T));
    const Tensor ordered = ordered_weight(weight, shape);
    kernels::pack(core_.threads(), kernels::Operand<T>{ordered.data(), depth}.transposed(), depth, cols,
                  static_cast<T*>(space.data()));
    return {Storage::full, static_cast<const std::byte*>(space.data())};
  }
  Tensor tile_weights(const Parameter<T>& weight, const Conv2dShape& shape) {
    Tensor weights = core_.make(kernels::ConvTiles::all * shape.in_channels, shape.out_channels);
    kernels::tile_weights(core_.threads(), shape, kernels::values_of(weight), weights.data());
    return weights;
  }
  template <class Shape>
  Tensor ordered_weight(const Parameter<T>& weight, const Shape& shape) {
    Tensor ordered = core_.make(shape.out_channels, shape.patch());
    kernels::reorder_taps(shape.out_channels, shape.in_channels, shape.taps(), kernels::values_of(weight),
                          ordered.data());
    return ordered;
  }
  template <class Shape>
  static void add_gradient(const Parameter<T>& weight, const Shape& shape, const Tensor& ordered) {
    kernels::add_reordered_taps(shape.out_channels, shape.in_channels, shape.taps(), ordered.data(),
                                kernels::gradient_of(weight));
  }
  Tensor depthwise_taps(const Parameter<T>& weight) {
    Tensor taps = core_.make(weight.cols(), weight.rows());
    taps.view() = matrix_view<const T>(kernels::values_of(weight), weight.rows(), weight.cols()).transpose();
    return taps;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuConvolution);

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Gives the max number of rows for which `head_linear` packs x and not the weight.
template <class T>
inline constexpr Index few_rows = 2 * GemmTile<T>::rows;
/// Returns the elements of scratch that `multiply_few_rows` needs.
template <class T>
constexpr Index few_rows_scratch(Index out, Index in) {
  return Panels<T>::size(in, few_rows<T>) + out * few_rows<T>;
}
/// Computes y (rows, out) = x (rows, in) W^T + bias for at most few_rows rows, as y^T = W x^T: it packs x, which is
/// smaller than the weight (out, in). Sums are accumulated in the same order as in `gemm_block`. scratch has
/// few_rows_scratch(out, in) elements. One thread; no allocation.
template <class T>
void multiply_few_rows(Index rows, Index out, Index in, Operand<T> x, const T* weight, const T* bias, T* y,
                       Index y_stride, T* scratch) {
  const Panels<T> panels = pack(1, x.transposed(), in, rows, scratch);
  T* const sums = scratch + Panels<T>::size(in, few_rows<T>);
  for (Index c = 0; c < out; ++c) std::fill_n(sums + c * rows, rows, bias == nullptr ? T(0) : bias[c]);
  for (Index c = 0; c < out; c += GemmTile<T>::rows) {
    const Index some = std::min(GemmTile<T>::rows, out - c);
    prefetch_rows(Operand<T>{weight, in}, c + some, c + 2 * some, in);
    gemm_panels(some, Operand<T>{weight + c * in, in}, panels, {0, in}, {0, rows}, sums + c * rows, rows, true,
                static_cast<const T*>(nullptr));
  }
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < out; ++c) y[r * y_stride + c] = sums[c * rows + r];
}

/// Computes y_h = x_h W_h^T + b_h for every head h, or y_h = x_h W_h if transposed. weight (num_blocks * out, in), bias
/// (num_blocks * out) or null; x (rows, num_heads * in) and y (rows, num_heads * out), or x (rows, num_heads * out) and
/// y (rows, num_heads * in) if transposed. A task is 64 rows of a head. Takes scratch from `arena`; call it from one
/// thread.
template <class T>
void head_linear(int threads, Arena& arena, const HeadShape& shape, Index rows, Index out, Index in, const T* x,
                 const T* weight, const T* bias, T* y) {
  const Index from = shape.transposed ? out : in, to = shape.transposed ? in : out;
  const auto matrix = [&](Index block) {
    const Operand<T> w{weight + block * out * in, in};
    return shape.transposed ? w : w.transposed();
  };
  if (shape.num_blocks == 1) {  // with one matrix, heads are more rows
    gemm<T>(threads, arena, rows * shape.num_heads, to, from, {x, from}, matrix(0), y, to, false, bias);
    return;
  }
  constexpr Index tile = 64;
  const Index tiles = (rows + tile - 1) / tile, x_cols = shape.num_heads * from, y_cols = shape.num_heads * to;
  const Index space = std::max(gemm_scratch<T>(), few_rows_scratch<T>(out, in));
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * space) * sizeof(T));
  parallel_for(threads, shape.num_heads * tiles, [&](Index task, int thread) {
    const Index head = task / tiles, row = task % tiles * tile, block = head / (shape.num_heads / shape.num_blocks);
    const Operand<T> of_head{x + row * x_cols + head * from, x_cols};
    const Index some = std::min(tile, rows - row);
    const T* const of_block = bias == nullptr ? nullptr : bias + block * to;
    T *const out_of_head = y + row * y_cols + head * to, *const own = static_cast<T*>(scratch.data()) + thread * space;
    if (!shape.transposed && some <= few_rows<T>)
      multiply_few_rows(some, out, in, of_head, weight + block * out * in, of_block, out_of_head, y_cols, own);
    else
      gemm_block<T>(some, to, from, of_head, matrix(block), out_of_head, y_cols, false, of_block, own);
  });
}

/// Adds the derivatives of `head_linear` by weight and bias to dweight (num_blocks * out, in) and dbias (num_blocks *
/// out), each of which may be null. Takes scratch from `arena`; call it from one thread.
template <class T>
void head_linear_backward_weight(int threads, Arena& arena, const HeadShape& shape, Index rows, Index out, Index in,
                                 const T* dy, const T* x, T* dweight, T* dbias) {
  const Index group = shape.num_heads / shape.num_blocks, x_cols = shape.num_heads * (shape.transposed ? out : in),
              y_cols = shape.num_heads * (shape.transposed ? in : out);
  for (Index head = 0; head < shape.num_heads; ++head) {
    const Operand<T> a{x + head * (shape.transposed ? out : in), x_cols},
        g{dy + head * (shape.transposed ? in : out), y_cols};
    T* to = dweight == nullptr ? nullptr : dweight + head / group * out * in;
    if (to != nullptr && shape.transposed)
      gemm<T>(threads, arena, out, in, rows, a.transposed(), g, to, in, true, nullptr);
    else if (to != nullptr)
      gemm<T>(threads, arena, out, in, rows, g.transposed(), a, to, in, true, nullptr);
    for (Index r = 0; dbias != nullptr && r < rows; ++r)
      for (Index c = 0; c < out; ++c) dbias[head / group * out + c] += dy[r * y_cols + head * out + c];
  }
}

/// Rotates each pair of channels (a, b) of each head to (a cos - b s, a s + b cos), s = direction * sin, by the angle
/// of its row (Su et al. 2021); direction -1 rotates back. table (rows, width) holds width / 2 cosines, then as many
/// sines. x and y (rows, num_heads * width) may be the same. Parallel over rows; no allocation.
template <class T>
void rotate(int threads, Index rows, Index num_heads, Index width, RotaryPairs pairs, T direction, const T* x,
            const T* table, T* y) {
  const Index half = width / 2, step = pairs == RotaryPairs::interleaved ? 2 : 1,
              apart = pairs == RotaryPairs::interleaved ? 1 : half;
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T *cosine = table + r * width, *sine = cosine + half;
      for (Index h = 0; h < num_heads; ++h) {
        const T* from = x + (r * num_heads + h) * width;
        T* to = y + (r * num_heads + h) * width;
        for (Index i = 0; i < half; ++i) {
          const T a = from[i * step], b = from[i * step + apart], s = direction * sine[i];
          to[i * step] = a * cosine[i] - b * s;
          to[i * step + apart] = a * s + b * cosine[i];
        }
      }
    }
  });
}

/// Computes y_h = [a_h, b_h] for every head h. a (rows, num_heads * a_width), b (rows, num_heads * b_width), or (rows,
/// b_width) if `shared`, y (rows, num_heads * (a_width + b_width)). Parallel over rows; no allocation.
template <class T>
void concat(int threads, Index rows, Index num_heads, Index a_width, Index b_width, bool shared, const T* a, const T* b,
            T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      for (Index h = 0; h < num_heads; ++h) {
        T* to = y + (r * num_heads + h) * (a_width + b_width);
        std::copy_n(a + (r * num_heads + h) * a_width, a_width, to);
        std::copy_n(b + (shared ? r : r * num_heads + h) * b_width, b_width, to + a_width);
      }
  });
}
/// Computes da and db from dy, with the shapes of `concat`. If b is `shared`, db is the sum over heads. Parallel over
/// rows; no allocation.
template <class T>
void concat_backward(int threads, Index rows, Index num_heads, Index a_width, Index b_width, bool shared, const T* dy,
                     T* da, T* db) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      for (Index h = 0; h < num_heads; ++h) {
        const T* from = dy + (r * num_heads + h) * (a_width + b_width);
        std::copy_n(from, a_width, da + (r * num_heads + h) * a_width);
        T* to = db + (shared ? r : r * num_heads + h) * b_width;
        if (shared && h > 0)
          for (Index c = 0; c < b_width; ++c) to[c] += from[a_width + c];
        else
          std::copy_n(from + a_width, b_width, to);
      }
  });
}

LACONIC_COMPILE(head_linear);
LACONIC_COMPILE(head_linear_backward_weight);
LACONIC_COMPILE(rotate);
LACONIC_COMPILE(concat);
LACONIC_COMPILE(concat_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the primitives of `Cpu` that compute elementwise or move values between columns.
template <class T>
class CpuElementwise {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns ReLU, SiLU or GELU of each element.
  Tensor activation(Activation kind, Tensor x) {
    const auto activate = [kind](auto a) { return kernels::activate(kind, a); };
    return mapped(x.unique() ? x : core_.make(x.rows(), x.cols()), activate, x);
  }
  /// Returns dy times the derivative of the activation at x. For ReLU, x may also be the result.
  Tensor activation_backward(Activation kind, Tensor dy, const Tensor& x) {
    const auto derivative = [kind](auto d, auto a) { return kernels::activate_backward(kind, d, a); };
    return mapped(dy.unique() ? dy : core_.make(x.rows(), x.cols()), derivative, dy, x);
  }

  /// Returns a * sigmoid(b) (rows, channels) of x = [a, b] (rows, 2 * channels). Throws `Error` for an odd number of
  /// columns.
  Tensor glu(const Tensor& x) {
    checks::glu(x);
    Tensor y = core_.make(x.rows(), x.cols() / 2);
    kernels::glu(core_.threads(), y.rows(), y.cols(), x.data(), y.data());
    return y;
  }
  /// Returns the derivative of `glu` by x (rows, 2 * channels).
  Tensor glu_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    kernels::glu_backward(core_.threads(), dy.rows(), dy.cols(), dy.data(), x.data(), dx.data());
    return dx;
  }

  /// Returns x, since this context does not train.
  Tensor dropout(Tensor x, double) { return x; }
  /// Returns x with the elements that the mask drops zeroed and the others scaled.
  Tensor dropout_train(Tensor x, const DropoutMask& mask) {
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    kernels::dropout(core_.threads(), x.size(), mask, std::as_const(x).data(), y.data());
    return y;
  }

  /// Returns x + scale * y. Throws `Error` for different shapes.
  Tensor add(Tensor x, const Tensor& y, double scale = 1) {
    checks::equal_shapes("add", x, y);
    const kernels::Batch<T> s(static_cast<T>(scale));
    const auto sum = [s](auto a, auto b) { return xsimd::fma(s, b, a); };
    return mapped(x.unique() ? x : core_.make(x.rows(), x.cols()), sum, x, y);
  }
  /// Returns x (rows, channels) with `row` (channels) added to every row.
  Tensor add_row(Tensor x, const Parameter<T>& row) {
    checks::add_row(x, row);
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    const Tensor& from = x;
    kernels::parallel_blocks(core_.threads(), x.rows(), 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r)
        kernels::map_span(
            x.cols(), y.row(r), [](auto a, auto b) { return a + b; }, from.row(r), kernels::values_of(row));
    });
    return y;
  }
  /// Adds the column sums of dy to the gradient of `row`.
  void add_row_backward(const Tensor& dy, const Parameter<T>& row) { core_.add_column_sums(dy, row); }
  /// Returns the elementwise product of x and y. Throws `Error` for different shapes.
  Tensor multiply(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("multiply", x, y);
    return mapped(
        core_.make(x.rows(), x.cols()), [](auto a, auto b) { return a * b; }, x, y);
  }
  /// Returns the columns first .. first + count - 1 of x. Throws `Error` for columns that x does not have.
  Tensor columns(const Tensor& x, Index first, Index count) {
    checks::columns(x, first, count);
    Tensor out = core_.make(x.rows(), count);
    out.view() = std::as_const(x).view().middleCols(first, count);
    return out;
  }
  /// Returns the derivative of `columns` by x (rows, cols), which is zero outside the columns.
  Tensor columns_backward(const Tensor& dy, Index first, Index cols) {
    Tensor dx = core_.zeros(dy.rows(), cols);
    dx.view().middleCols(first, dy.cols()) = dy.view();
    return dx;
  }
  /// Returns sigmoid(gate_n) x + (1 - sigmoid(gate_n)) y for the rows of each sequence n. gate (sequences, 1).
  Tensor mix(const Tensor& x, const Tensor& y, const Tensor& gate, const Sequences& sequences) {
    checks::mix(x, y, gate, sequences);
    Tensor out = core_.make(x.rows(), x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      out.view().middleRows(first, count) =
          weight * x.view().middleRows(first, count) + (T(1) - weight) * y.view().middleRows(first, count);
    }
    return out;
  }
  /// Holds the derivatives of `mix`, each with the shape of its argument.
  struct MixDerivative {
    Tensor dx;     ///< derivative by x
    Tensor dy;     ///< derivative by y
    Tensor dgate;  ///< derivative by the gate
  };
  /// Returns the derivatives of `mix` by x, y and gate.
  MixDerivative mix_backward(const Tensor& dout, const Tensor& x, const Tensor& y, const Tensor& gate,
                             const Sequences& sequences) {
    MixDerivative d{core_.make(x.rows(), x.cols()), core_.make(x.rows(), x.cols()), core_.make(gate.rows(), 1)};
    for (Index n = 0; n < sequences.size(); ++n) {
      const T weight = T(1) / (T(1) + std::exp(-gate.row(n)[0]));
      const Index first = sequences.begin(n), count = sequences.length(n);
      const auto g = dout.view().middleRows(first, count);
      d.dx.view().middleRows(first, count) = weight * g;
      d.dy.view().middleRows(first, count) = (T(1) - weight) * g;
      d.dgate.row(n)[0] = weight * (T(1) - weight) *
                          g.cwiseProduct(x.view().middleRows(first, count) - y.view().middleRows(first, count)).sum();
    }
    return d;
  }
  /// Returns factor * x.
  Tensor scale(Tensor x, double factor) {
    const kernels::Batch<T> s(static_cast<T>(factor));
    return mapped(
        x.unique() ? x : core_.make(x.rows(), x.cols()), [s](auto a) { return s * a; }, x);
  }

  /// Returns x with the pairs of channels of each head rotated by the angles in `table` (rows, width), or rotated back
  /// if `direction` is -1.
  Tensor rotate(Tensor x, const Tensor& table, RotaryPairs pairs, double direction = 1) {
    checks::rotate(x, table);
    Tensor y = x.unique() ? x : core_.make(x.rows(), x.cols());
    kernels::rotate(core_.threads(), x.rows(), x.cols() / table.cols(), table.cols(), pairs, static_cast<T>(direction),
                    std::as_const(x).data(), table.data(), y.data());
    return y;
  }

  /// Returns [a_h, b_h] for every head h, where b has as many heads as a, or one for all.
  Tensor concat(const Tensor& a, const Tensor& b, Index num_heads = 1, Index b_heads = 1) {
    checks::concat(a, b, num_heads, b_heads);
    const Index a_width = a.cols() / num_heads, b_width = b.cols() / b_heads;
    Tensor y = core_.make(a.rows(), num_heads * (a_width + b_width));
    kernels::concat(core_.threads(), a.rows(), num_heads, a_width, b_width, b_heads != num_heads, a.data(), b.data(),
                    y.data());
    return y;
  }
  /// Holds the derivatives of `concat`, each with the shape of its argument.
  struct ConcatDerivative {
    Tensor da;  ///< derivative by a
    Tensor db;  ///< derivative by b
  };
  /// Returns the derivatives of `concat` by a and b, which have these columns.
  ConcatDerivative concat_backward(const Tensor& dy, Index a_cols, Index b_cols, Index num_heads, Index b_heads) {
    ConcatDerivative d{core_.make(dy.rows(), a_cols), core_.make(dy.rows(), b_cols)};
    kernels::concat_backward(core_.threads(), dy.rows(), num_heads, a_cols / num_heads, b_cols / b_heads,
                             b_heads != num_heads, dy.data(), d.da.data(), d.db.data());
    return d;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuElementwise(CpuCore<T>& core) : core_(core) {}

 private:
  /// Writes f(inputs...) of each element to `out`, which may be the first input, and returns it.
  template <class F, class... Inputs>
  Tensor mapped(Tensor out, F f, const Inputs&... inputs) {
    kernels::map(core_.threads(), out.size(), out.data(), f, inputs.data()...);
    return out;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuElementwise);

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the products of `Cpu` with weights.
template <class T>
class CpuLinear {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns x W^T + b (rows, out), then the activation if one is given. x (rows, in), weight (out, in) packed or not,
  /// bias (out) or null. Throws `Error` for shapes that do not fit.
  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    const Index out = weight.rows(), in = weight.cols();
    checks::linear(x, weight, bias);
    Tensor y = core_.make(x.rows(), out);
    const T* start = bias == nullptr ? nullptr : kernels::values_of(*bias);
    const CpuWeight<T>* packed = kernels::packed_form_of(weight);
    require(packed == nullptr || packed->form == WeightForm::panels,
            "linear: the packed weight of a convolution given, a matrix expected");
    if (packed != nullptr)
      kernels::multiply(core_.threads(), core_.arena(), x.rows(), kernels::Operand<T>{x.data(), in}, out, in,
                        kernels::PackedWeight{packed->storage(), packed->data.get()}, start, y.data(),
                        kernels::ActivationEpilogue{activation});
    else
      kernels::gemm<T>(core_.threads(), core_.arena(), x.rows(), out, in, {x.data(), in},
                       kernels::Operand<T>{kernels::values_of(weight), in}.transposed(), y.data(), out, false, start,
                       kernels::ActivationEpilogue{activation});
    return y;
  }
  /// Returns row ids[r] of a weight (vocabulary, channels) in row r. Throws `Error` for an id that it has no row of.
  Tensor embed(std::span<const int> ids, const Parameter<T>& weight) {
    checks::embed(ids, weight);
    Tensor y = core_.make(static_cast<Index>(ids.size()), weight.cols());
    kernels::gather_rows(core_.threads(), weight, ids, y.data());
    return y;
  }
  /// Adds each row of dy to the gradient of the weight's row that it came from. The order of each sum is that of the
  /// rows, whatever the number of threads.
  void embed_backward(const Tensor& dy, std::span<const int> ids, const Parameter<T>& weight) {
    T* gradient = kernels::gradient_of(weight);
    if (gradient == nullptr) return;
    const Index cols = weight.cols();
    kernels::parallel_blocks(core_.threads(), cols, 64, [&](Index begin, Index end) {
      for (Index r = 0; r < dy.rows(); ++r)
        for (Index c = begin; c < end; ++c) gradient[ids[static_cast<std::size_t>(r)] * cols + c] += dy.row(r)[c];
    });
  }
  /// Returns dx = dy W, or nothing if `needs_dx` is false, and adds dy^T x and the column sums of dy to the gradients
  /// of weight and bias.
  Tensor linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                         bool needs_dx) {
    const Index out = weight.rows(), in = weight.cols(), rows = x.rows();
    const kernels::Operand<T> g{dy.data(), out};
    if (weight.trainable)
      kernels::gemm<T>(core_.threads(), core_.arena(), out, in, rows, g.transposed(), {x.data(), in},
                       kernels::gradient_of(weight), in, true, nullptr);
    if (bias != nullptr) core_.add_column_sums(dy, *bias);
    if (!needs_dx) return {};
    Tensor dx = core_.make(rows, in);
    kernels::gemm<T>(core_.threads(), core_.arena(), rows, in, out, g,
                     kernels::Operand<T>{kernels::values_of(weight), in}, dx.data(), in, false, nullptr);
    return dx;
  }

  /// Returns y_h = x_h W_h^T + b_h for every head h, or x_h W_h if transposed. Throws `Error` for shapes that do not
  /// fit.
  Tensor head_linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias, const HeadShape& shape) {
    const auto [out, in] = checks::head_linear(x, weight, bias, shape);
    Tensor y = core_.make(x.rows(), shape.num_heads * (shape.transposed ? in : out));
    kernels::head_linear(core_.threads(), core_.arena(), shape, x.rows(), out, in, x.data(), kernels::values_of(weight),
                         bias == nullptr ? nullptr : kernels::values_of(*bias), y.data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor head_linear_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                              HeadShape shape, bool needs_dx) {
    const auto [out, in] = checks::head_sizes(x, weight, shape);
    kernels::head_linear_backward_weight(core_.threads(), core_.arena(), shape, x.rows(), out, in, dy.data(), x.data(),
                                         kernels::gradient_of(weight),
                                         bias == nullptr ? nullptr : kernels::gradient_of(*bias));
    if (!needs_dx) return {};
    shape.transposed = !shape.transposed;
    Tensor dx = core_.make(x.rows(), x.cols());
    kernels::head_linear(core_.threads(), core_.arena(), shape, x.rows(), out, in, dy.data(),
                         kernels::values_of(weight), static_cast<const T*>(nullptr), dx.data());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuLinear(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuLinear);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of losses, which all backends share. Each throws `Error` for sizes that do not fit and for
// classes that there are not.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `ctc`.
template <class Tensor>
void ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank) {
  require(labels.sequences.size() == sequences.size(), "ctc: ", labels.sequences.size(), " label sequences given for ",
          sequences.size(), " sequences of logits");
  require(static_cast<Index>(labels.tokens.size()) == labels.sequences.rows(), "ctc: ", labels.tokens.size(),
          " labels given, their sequences hold ", labels.sequences.rows());
  require(logits.rows() == sequences.rows(), "ctc: ", logits.rows(), " rows of logits given, their sequences have ",
          sequences.rows());
  require(blank >= 0 && blank < logits.cols(), "ctc: blank ", blank, " given, expected 0 .. ", logits.cols() - 1);
  for (const int token : labels.tokens)
    require(token >= 0 && token < logits.cols() && token != blank, "ctc: label ", token, " given, expected 0 .. ",
            logits.cols() - 1, " except the blank ", blank);
}
/// Checks the arguments of `cross_entropy`.
template <class Tensor>
void cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape) {
  require(static_cast<Index>(targets.size()) == logits.rows(), "cross_entropy: ", targets.size(), " targets given for ",
          logits.rows(), " rows of logits");
  require(shape.label_smoothing >= 0 && shape.label_smoothing < 1, "cross_entropy: label_smoothing ",
          shape.label_smoothing, " given, expected from 0 to less than 1");
  for (const int target : targets)
    require(target == shape.ignored || (target >= 0 && target < logits.cols()), "cross_entropy: target ", target,
            " given, expected 0 .. ", logits.cols() - 1, ", or ", shape.ignored, ", which is ignored");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns log(exp(a) + exp(b)).
inline double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == -std::numeric_limits<double>::infinity() ? a : a + std::log1p(std::exp(b - a));
}

/// Returns the elements of scratch that `ctc` needs for a sequence.
inline Index ctc_scratch(Index frames, Index labels) { return (frames + 2) * (2 * labels + 1); }

/// Returns the CTC loss of one sequence, in nats, and writes its derivative by the logits (Graves et al. 2006,
/// equations 6 to 16), in logarithms and double precision. log_probs and gradient (frames, vocab); the gradient
/// includes that of log softmax. If no path exists (frames < labels + equal neighbours among the labels), the loss is
/// +infinity and the gradient zero. scratch has ctc_scratch(frames, labels) elements. One thread; no allocation.
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

LACONIC_COMPILE(ctc);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace kernels {

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each row of x (rows, cols) (Ba et al. 2016).
/// weight and bias (cols). Writes mean and 1/std of each row to moments (rows, 2) unless it is null. Parallel over
/// rows; no allocation.
template <class T>
void layer_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, T eps, T* y,
                T* moments) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      const T mean = sum_span<T>(
                         cols, [](auto a) { return a; }, row) /
                     static_cast<T>(cols);
      const T square = sum_span<T>(
          cols,
          [m = Batch<T>(mean)](auto a) {
            const auto d = a - m;
            return d * d;
          },
          row);
      const T inverse = T(1) / std::sqrt(square / static_cast<T>(cols) + eps);
      if (moments != nullptr) {
        moments[2 * r] = mean;
        moments[2 * r + 1] = inverse;
      }
      const Batch<T> m(mean), s(inverse);
      map_span(
          cols, y + r * cols, [&](auto a, auto w, auto b) { return xsimd::fma((a - m) * s, w, b); }, row, weight, bias);
    }
  });
}

/// Computes y = x / sqrt(mean(x^2) + eps) * weight for each row of x (rows, cols) (Zhang and Sennrich 2019). weight
/// (cols). Writes 1/rms of each row to inverses (rows) unless it is null. Parallel over rows; no allocation.
template <class T>
void rms_norm(int threads, Index rows, Index cols, const T* x, const T* weight, T eps, T* y, T* inverses) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      const T square = sum_span<T>(
                           cols, [](auto a) { return a * a; }, row) /
                       static_cast<T>(cols);
      const T inverse = T(1) / std::sqrt(square + eps);
      if (inverses != nullptr) inverses[r] = inverse;
      map_span(
          cols, y + r * cols, [s = Batch<T>(inverse)](auto a, auto w) { return a * s * w; }, row, weight);
    }
  });
}

/// Computes dx (rows, cols) of `rms_norm`, and adds to dweight (cols); each may be null. Parallel over rows, then over
/// columns; no allocation.
template <class T>
void rms_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight, const T* inverses,
                       T* dx, T* dweight) {
  if (dx != nullptr)
    parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const T *g = dy + r * cols, *row = x + r * cols, inverse = inverses[r];
        const T dot = sum_span<T>(
                          cols, [](auto d, auto w, auto a) { return d * w * a; }, g, weight, row) /
                      static_cast<T>(cols);
        const Batch<T> s(inverse), along(dot * inverse * inverse * inverse);
        map_span(
            cols, dx + r * cols, [&](auto d, auto w, auto a) { return d * w * s - a * along; }, g, weight, row);
      }
    });
  constexpr Index width = 4 * lanes<T>;
  if (dweight != nullptr)
    parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
      Local<T, width> sum = {};
      for (Index r = 0; r < rows; ++r)
        for (Index c = begin; c < end; ++c) sum[c - begin] += dy[r * cols + c] * x[r * cols + c] * inverses[r];
      for (Index c = begin; c < end; ++c) dweight[c] += sum[c - begin];
    });
}

/// Computes dx (rows, cols) of `layer_norm`, and adds to dweight and dbias (cols); each may be null. Parallel over
/// rows, then over columns; no allocation.
template <class T>
void layer_norm_backward(int threads, Index rows, Index cols, const T* dy, const T* x, const T* weight,
                         const T* moments, T* dx, T* dweight, T* dbias) {
  if (dx != nullptr)
    parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const Batch<T> mean(moments[2 * r]), inverse(moments[2 * r + 1]);
        const T *g = dy + r * cols, *row = x + r * cols;
        const T n = static_cast<T>(cols);
        const Batch<T> sum(sum_span<T>(
                               cols, [](auto d, auto w) { return d * w; }, g, weight) /
                           n);
        // Padding lanes have d = w = 0, so (0 - mean) in them adds nothing.
        const Batch<T> dot(
            sum_span<T>(
                cols, [&](auto d, auto w, auto a) { return d * w * (a - mean) * inverse; }, g, weight, row) /
            n);
        map_span(
            cols, dx + r * cols,
            [&](auto d, auto w, auto a) { return inverse * (d * w - sum - (a - mean) * inverse * dot); }, g, weight,
            row);
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

/// Computes mean and population variance (cols) of each column of x (rows, cols). Rows are summed in blocks, and the
/// blocks in double, so that minutes of audio, millions of rows, lose hardly a digit. Parallel over columns, so the
/// order of each sum is fixed; no allocation.
template <class T>
void column_moments(int threads, Index rows, Index cols, const T* x, T* mean, T* variance) {
  constexpr Index width = 4 * lanes<T>, block = 256;
  parallel_blocks(threads, cols, width, [&](Index begin, Index end) {
    // Returns the mean over the rows of f(value, column).
    const auto mean_of = [&](auto&& f, T* to) {
      Local<double, width> total = {};
      for (Index r0 = 0; r0 < rows; r0 += block) {
        Local<T, width> sum = {};
        for (Index r = r0; r < std::min(rows, r0 + block); ++r)
          for (Index c = begin; c < end; ++c) sum[c - begin] += f(x[r * cols + c], c);
        for (Index c = begin; c < end; ++c) total[c - begin] += static_cast<double>(sum[c - begin]);
      }
      for (Index c = begin; c < end; ++c) to[c] = static_cast<T>(total[c - begin] / static_cast<double>(rows));
    };
    mean_of([](T value, Index) { return value; }, mean);
    mean_of([&](T value, Index c) { return (value - mean[c]) * (value - mean[c]); }, variance);
  });
}

/// Computes y = (x - mean) / sqrt(variance + eps) * weight + bias for each column of x (rows, cols) (Ioffe and Szegedy
/// 2015). weight, bias, mean and variance (cols); scale_shift is scratch of 2 * cols elements. Parallel over rows; no
/// allocation.
template <class T>
void batch_norm(int threads, Index rows, Index cols, const T* x, const T* weight, const T* bias, const T* mean,
                const T* variance, T eps, T* scale_shift, T* y) {
  for (Index c = 0; c < cols; ++c) {
    scale_shift[c] = weight[c] / std::sqrt(variance[c] + eps);
    scale_shift[cols + c] = bias[c] - mean[c] * scale_shift[c];
  }
  parallel_blocks(threads, rows, 64, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r)
      map_span(
          cols, y + r * cols, [](auto a, auto s, auto t) { return xsimd::fma(a, s, t); }, x + r * cols, scale_shift,
          scale_shift + cols);
  });
}

/// Computes dx (rows, cols) of `batch_norm`, and adds to dweight and dbias (cols); each may be null. `of_batch` says
/// that mean and variance are those of x, and so depend on it. Parallel over columns; no allocation.
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

/// Computes y = x - logsumexp(x) for each row of x (rows, cols). Parallel over rows; no allocation.
template <class T>
void log_softmax(int threads, Index rows, Index cols, const T* x, T* y) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const T* row = x + r * cols;
      Batch<T> best(row[0]);
      Index c = 0;
      for (; c + lanes<T> <= cols; c += lanes<T>) best = xsimd::max(best, load(row + c));
      if (c < cols) best = xsimd::max(best, load_part(row + c, cols - c, row[0]));
      const T max = max_lanes<T>(best);
      const T logsumexp = max + std::log(sum_span<T>(
                                    cols, [m = Batch<T>(max)](auto a) { return exp<T>(a - m); }, row));
      map_span(
          cols, y + r * cols, [l = Batch<T>(logsumexp)](auto a) { return a - l; }, row);
    }
  });
}

/// Computes dx = dy - exp(y) sum(dy) for each row, from the result y of `log_softmax`; all (rows, cols). Parallel over
/// rows; no allocation.
template <class T>
void log_softmax_backward(int threads, Index rows, Index cols, const T* dy, const T* y, T* dx) {
  parallel_blocks(threads, rows, 32, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) {
      const Batch<T> sum(sum_span<T>(
          cols, [](auto d) { return d; }, dy + r * cols));
      map_span(
          cols, dx + r * cols, [sum](auto d, auto l) { return d - exp<T>(l) * sum; }, dy + r * cols, y + r * cols);
    }
  });
}

LACONIC_COMPILE(layer_norm);
LACONIC_COMPILE(layer_norm_backward);
LACONIC_COMPILE(rms_norm);
LACONIC_COMPILE(rms_norm_backward);
LACONIC_COMPILE(column_moments);
LACONIC_COMPILE(batch_norm);
LACONIC_COMPILE(batch_norm_backward);
LACONIC_COMPILE(log_softmax);
LACONIC_COMPILE(log_softmax_backward);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the losses of `Cpu`.
template <class T>
class CpuLosses {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns x - logsumexp(x) for each row.
  Tensor log_softmax(const Tensor& x) {
    Tensor y = core_.make(x.rows(), x.cols());
    kernels::log_softmax(core_.threads(), x.rows(), x.cols(), x.data(), y.data());
    return y;
  }
  /// Returns the softmax of each row.
  Tensor softmax(const Tensor& x) {
    Tensor y = log_softmax(x);
    y.view() = y.view().array().exp().matrix();
    return y;
  }
  /// Returns the sum of the elementwise product of x and y, computed in double. Throws `Error` for different shapes.
  double dot(const Tensor& x, const Tensor& y) {
    checks::equal_shapes("dot", x, y);
    return x.view().template cast<double>().cwiseProduct(y.view().template cast<double>()).sum();
  }
  /// Returns the sum of squares of all elements.
  double squared_norm(const Tensor& x) { return static_cast<double>(x.view().squaredNorm()); }
  /// Returns the derivative of `log_softmax` by its input, from its result y.
  Tensor log_softmax_backward(const Tensor& dy, const Tensor& y) {
    Tensor dx = core_.make(y.rows(), y.cols());
    kernels::log_softmax_backward(core_.threads(), y.rows(), y.cols(), dy.data(), y.data(), dx.data());
    return dx;
  }

  /// Returns the CTC losses (sequences, 1) of logits (rows, classes), and writes the derivative of the losses by the
  /// logits if `derivative` is not null. Throws `Error` for sizes that do not fit and for labels that are the blank or
  /// no class.
  Tensor ctc(const Tensor& logits, const Sequences& sequences, const Labels& labels, int blank,
             Tensor* derivative = nullptr) {
    checks::ctc(logits, sequences, labels, blank);
    const Tensor log_probs = log_softmax(logits);
    Tensor losses = core_.make(sequences.size(), 1), own;
    Tensor& d = derivative == nullptr ? own : *derivative;
    d = core_.make(logits.rows(), logits.cols());
    Index max_scratch = 1;
    for (Index n = 0; n < sequences.size(); ++n)
      max_scratch = std::max(max_scratch, kernels::ctc_scratch(sequences.length(n), labels.sequences.length(n)));
    const Buffer scratch =
        core_.arena().allocate(static_cast<std::size_t>(core_.threads() * max_scratch) * sizeof(double));
    kernels::parallel_for(core_.threads(), sequences.size(), [&](Index n, int thread) {
      const std::span tokens(labels.tokens.data() + labels.sequences.begin(n),
                             static_cast<std::size_t>(labels.sequences.length(n)));
      losses.row(n)[0] = static_cast<T>(
          kernels::ctc<T>(sequences.length(n), logits.cols(), log_probs.row(sequences.begin(n)), tokens, blank,
                          d.row(sequences.begin(n)), static_cast<double*>(scratch.data()) + thread * max_scratch));
    });
    return losses;
  }
  /// Returns the derivative that `ctc` wrote, scaled by dlosses (sequences, 1).
  Tensor ctc_backward(const Tensor& dlosses, const Sequences& sequences, const Tensor& derivative) {
    Tensor dx = core_.make(derivative.rows(), derivative.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const kernels::Batch<T> factor(dlosses.row(n)[0]);
      kernels::map_span(
          sequences.length(n) * dx.cols(), dx.row(sequences.begin(n)), [factor](auto a) { return factor * a; },
          derivative.row(sequences.begin(n)));
    }
    return dx;
  }

  /// Returns the cross entropies (rows, 1) of logits (rows, classes) with targets, in nats, and writes the log softmax
  /// if `log_probs` is not null. Throws `Error` for a target that is no class and not ignored.
  Tensor cross_entropy(const Tensor& logits, std::span<const int> targets, const CrossEntropyShape& shape,
                       Tensor* log_probs = nullptr) {
    checks::cross_entropy(logits, targets, shape);
    Tensor y = log_softmax(logits), losses = core_.make(logits.rows(), 1);
    const T on_target = static_cast<T>(shape.on_target()), on_all = static_cast<T>(shape.on_all(logits.cols()));
    for (Index r = 0; r < logits.rows(); ++r) {
      const int target = targets[static_cast<std::size_t>(r)];
      T& loss = losses.row(r)[0];
      loss = target == shape.ignored ? T(0) : -on_target * y.row(r)[target];
      if (on_all > 0 && target != shape.ignored) loss -= on_all * y.view().row(r).sum();
    }
    if (log_probs != nullptr) *log_probs = std::move(y);
    return losses;
  }
  /// Returns the derivative of `cross_entropy` by the logits, from that by the losses (rows, 1) and the log softmax.
  Tensor cross_entropy_backward(const Tensor& dlosses, const Tensor& log_probs, std::span<const int> targets,
                                const CrossEntropyShape& shape) {
    Tensor dx = core_.make(log_probs.rows(), log_probs.cols());
    const T on_target = static_cast<T>(shape.on_target()), on_all = static_cast<T>(shape.on_all(log_probs.cols()));
    kernels::parallel_blocks(core_.threads(), dx.rows(), 16, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) {
        const int target = targets[static_cast<std::size_t>(r)];
        const T d = target == shape.ignored ? T(0) : dlosses.row(r)[0];
        const kernels::Batch<T> factor(d), all(on_all);
        kernels::map_span(
            dx.cols(), dx.row(r), [factor, all](auto l) { return factor * (kernels::exp<T>(l) - all); },
            log_probs.row(r));
        if (d != 0) dx.row(r)[target] -= d * on_target;
      }
    });
    return dx;
  }

  /// Returns the mean (1, 1) of all elements, where infinite ones count as 0.
  Tensor mean_finite(const Tensor& x) {
    double sum = 0;
    for (Index i = 0; i < x.size(); ++i) sum += std::isinf(x.data()[i]) ? 0.0 : static_cast<double>(x.data()[i]);
    Tensor y = core_.make(1, 1);
    y.row(0)[0] = static_cast<T>(sum / static_cast<double>(std::max<Index>(1, x.size())));
    return y;
  }
  /// Returns dy / size for finite elements of x and NaN, and 0 for infinite ones.
  Tensor mean_finite_backward(const Tensor& dy, const Tensor& x) {
    Tensor dx = core_.make(x.rows(), x.cols());
    for (Index i = 0; i < x.size(); ++i)
      dx.data()[i] = std::isinf(x.data()[i]) ? T(0) : dy.row(0)[0] / static_cast<T>(x.size());
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuLosses(CpuCore<T>& core) : core_(core) {}

 private:
  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuLosses);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of norms, which all backends share. Each throws `Error` for sizes that do not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `layer_norm`.
template <class Tensor, class T>
void layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias) {
  require(x.cols() == weight.size() && x.cols() == bias.size(), "layer_norm: input has ", x.cols(),
          " channels, weight and bias expect ", weight.size(), " and ", bias.size());
}
/// Checks the arguments of `rms_norm`.
template <class Tensor, class T>
void rms_norm(const Tensor& x, const Parameter<T>& weight) {
  require(x.cols() == weight.size(), "rms_norm: input has ", x.cols(), " channels, the weight expects ", weight.size());
}
/// Checks the arguments of `batch_norm`.
template <class Tensor, class T>
void batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
  for (const Parameter<T>* one : {&p.weight, &p.bias, &p.running_mean, &p.running_var})
    require(one->size() == x.cols(), "batch_norm: input has ", x.cols(), " channels, a parameter expects ",
            one->size());
}
/// Checks the arguments of `sequence_norm`.
template <class Tensor, class T>
void sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, const Sequences& sequences) {
  require(x.cols() == weight.size() && x.cols() == bias.size() && x.rows() == sequences.rows(),
          "sequence_norm: input is (", x.rows(), ", ", x.cols(), "), expected (", sequences.rows(), ", ", weight.size(),
          ")");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the norms of `Cpu`.
template <class T>
class CpuNorms {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the layer norm of each row of x (rows, channels), and writes mean and 1/std of each row (rows, 2) if
  /// `moments` is not null.
  Tensor layer_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                    Tensor* moments = nullptr) {
    checks::layer_norm(x, weight, bias);
    Tensor y = core_.make(x.rows(), x.cols());
    if (moments != nullptr) *moments = core_.make(x.rows(), 2);
    kernels::layer_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(weight),
                        kernels::values_of(bias), static_cast<T>(eps), y.data(),
                        moments == nullptr ? nullptr : moments->data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor layer_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                             const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    kernels::layer_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(weight),
                                 moments.data(), dx.data(), kernels::gradient_of(weight), kernels::gradient_of(bias));
    return dx;
  }

  /// Returns the root-mean-square norm of each row of x (rows, channels), and writes 1/rms of each row (rows, 1) if
  /// `inverses` is not null.
  Tensor rms_norm(const Tensor& x, const Parameter<T>& weight, double eps, Tensor* inverses = nullptr) {
    checks::rms_norm(x, weight);
    Tensor y = core_.make(x.rows(), x.cols());
    if (inverses != nullptr) *inverses = core_.make(x.rows(), 1);
    kernels::rms_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(weight), static_cast<T>(eps),
                      y.data(), inverses == nullptr ? nullptr : inverses->data());
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivative by weight to its gradient.
  Tensor rms_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Tensor& inverses,
                           bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    kernels::rms_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(weight),
                               inverses.data(), dx.data(), kernels::gradient_of(weight));
    return dx;
  }

  /// Returns the batch norm of each channel of x (rows, channels) by the running statistics.
  Tensor batch_norm(const Tensor& x, const BatchNormParameters<T>& p) {
    return batch_norm_with(x, p, kernels::values_of(p.running_mean), kernels::values_of(p.running_var));
  }
  /// Returns the batch norm of each channel by the statistics of x, and writes them to `moments` (2, channels). If
  /// `gather` is true, adds the update of the running statistics to their gradients.
  Tensor batch_norm_train(const Tensor& x, const BatchNormParameters<T>& p, Tensor& moments, bool gather = true) {
    const Index cols = x.cols();
    moments = core_.make(2, cols);
    if (x.rows() == 0) return core_.make(0, cols);
    checks::batch_norm(x, p);
    kernels::column_moments(core_.threads(), x.rows(), cols, x.data(), moments.row(0), moments.row(1));
    const T unbiased = static_cast<T>(x.rows()) / static_cast<T>(std::max<Index>(1, x.rows() - 1));
    // Each batch updates what the batches before it accumulated, so that several batches before a step give what as
    // many forward passes give in PyTorch.
    const auto add_update = [&](const Parameter<T>& statistic, Index row, T factor) {
      if (!statistic.trainable || !gather) return;
      const T rate = static_cast<T>(statistic.momentum);
      T* update = kernels::gradient_of(statistic);
      const T* value = kernels::values_of(statistic);
      for (Index c = 0; c < cols; ++c) update[c] += rate * (moments.row(row)[c] * factor - (value[c] + update[c]));
    };
    add_update(p.running_mean, 0, T(1));
    add_update(p.running_var, 1, unbiased);
    return batch_norm_with(x, p, moments.row(0), moments.row(1));
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  /// Empty `moments` say that the running statistics were used.
  Tensor batch_norm_backward(const Tensor& dy, const Tensor& x, const BatchNormParameters<T>& p, const Tensor& moments,
                             bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    const bool of_batch = !moments.empty();
    kernels::batch_norm_backward(core_.threads(), x.rows(), x.cols(), dy.data(), x.data(), kernels::values_of(p.weight),
                                 of_batch ? moments.row(0) : kernels::values_of(p.running_mean),
                                 of_batch ? moments.row(1) : kernels::values_of(p.running_var), static_cast<T>(p.eps),
                                 of_batch, dx.data(), kernels::gradient_of(p.weight), kernels::gradient_of(p.bias));
    return dx;
  }

  /// Returns the norm of each channel over the rows of each sequence, and writes mean and variance (2 * sequences,
  /// channels) if `moments` is not null.
  Tensor sequence_norm(const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias, double eps,
                       const Sequences& sequences, Tensor* moments = nullptr) {
    checks::sequence_norm(x, weight, bias, sequences);
    Tensor y = core_.make(x.rows(), x.cols()), of = core_.make(2 * sequences.size(), x.cols()),
           scale_shift = core_.make(2, x.cols());
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::column_moments(core_.threads(), rows, x.cols(), x.row(first), of.row(2 * n), of.row(2 * n + 1));
      kernels::batch_norm(core_.threads(), rows, x.cols(), x.row(first), kernels::values_of(weight),
                          kernels::values_of(bias), of.row(2 * n), of.row(2 * n + 1), static_cast<T>(eps),
                          scale_shift.data(), y.row(first));
    }
    if (moments != nullptr) *moments = std::move(of);
    return y;
  }
  /// Returns dx, or nothing if `needs_dx` is false, and adds the derivatives by weight and bias to their gradients.
  Tensor sequence_norm_backward(const Tensor& dy, const Tensor& x, const Parameter<T>& weight, const Parameter<T>& bias,
                                double eps, const Sequences& sequences, const Tensor& moments, bool needs_dx) {
    Tensor dx = needs_dx ? core_.make(x.rows(), x.cols()) : Tensor();
    for (Index n = 0; n < sequences.size(); ++n) {
      const Index first = sequences.begin(n), rows = sequences.length(n);
      if (rows == 0) continue;
      kernels::batch_norm_backward(core_.threads(), rows, x.cols(), dy.row(first), x.row(first),
                                   kernels::values_of(weight), moments.row(2 * n), moments.row(2 * n + 1),
                                   static_cast<T>(eps), true, needs_dx ? dx.row(first) : nullptr,
                                   kernels::gradient_of(weight), kernels::gradient_of(bias));
    }
    return dx;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuNorms(CpuCore<T>& core) : core_(core) {}

 private:
  Tensor batch_norm_with(const Tensor& x, const BatchNormParameters<T>& p, const T* mean, const T* variance) {
    checks::batch_norm(x, p);
    Tensor y = core_.make(x.rows(), x.cols());
    Tensor scale_shift = core_.make(2, x.cols());
    kernels::batch_norm(core_.threads(), x.rows(), x.cols(), x.data(), kernels::values_of(p.weight),
                        kernels::values_of(p.bias), mean, variance, static_cast<T>(p.eps), scale_shift.data(),
                        y.data());
    return y;
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuNorms);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of tables of positions, which all backends share.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks the arguments of `rotary_table`. Throws `Error` for sizes that do not fit and for rates that make no sense.
inline void rotary_table(Index width, Index rate_width, const IndexList& pairs, const RotaryRates& rates) {
  require(width % 2 == 0, "rotary_table: width ", width, " given, an even number expected");
  require(pairs.size() == 0 || 2 * pairs.size() == width, "rotary_table: ", pairs.size(),
          " pairs given, none or half of the width ", width, " expected");
  require(rate_width >= width, "rotary_table: rates of width ", rate_width, " given, at least ", width, " expected");
  rates.checked();
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

namespace kernels {

/// Returns the rate at which pair m of `width` channels rotates with position, 10000^(-2 m / width), in radians per
/// frame (Vaswani et al. 2017, section 3.5).
inline double sinusoid_rate(Index m, Index width) {
  return std::pow(10000.0, -2 * static_cast<double>(m) / static_cast<double>(width));
}
/// Writes the rates of all pairs of `width` channels to rates ((width + 1) / 2).
inline void sinusoid_rates(Index width, double* rates) {
  for (Index m = 0; 2 * m < width; ++m) rates[m] = sinusoid_rate(m, width);
}

/// Calls write(row, position) for every row, in parallel over rows. A task has 16 rows only, since a sine and a cosine
/// take about 20 ns a column.
template <class Write>
void each_position(int threads, const RowPositions& at, Write&& write) {
  constexpr Index rows = 16;
  parallel_blocks(threads, at.sequences.rows(), rows, [&](Index begin, Index end) {
    each_part(at.sequences, {begin, end}, [&](Index n, Range part) {
      for (Index i = part.begin; i < part.end; ++i)
        write(at.sequences.begin(n) + i, static_cast<double>(at.first(n) + at.step * i));
    });
  });
}

/// Computes y (rows, width): sin(position * rate) in even columns and cos(position * rate) in odd ones, with the rate
/// of the column's pair. Parallel over rows; no allocation.
template <class T>
void sinusoids(int threads, const RowPositions& at, Index width, const double* rates, T* y) {
  each_position(threads, at, [&](Index row, double position) {
    T* out = y + row * width;
    for (Index c = 0; c < width; ++c) {
      const double angle = position * rates[c / 2];
      out[c] = static_cast<T>(c % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  });
}

/// Computes y (rows, width): amplitude * cos(position * rate) of width / 2 pairs, then as many sines. Parallel over
/// rows; no allocation.
template <class T>
void rotary_table(int threads, const RowPositions& at, Index width, const double* rates, double amplitude, T* y) {
  const Index half = width / 2;
  each_position(threads, at, [&](Index row, double position) {
    T* out = y + row * width;
    for (Index i = 0; i < half; ++i) out[i] = static_cast<T>(amplitude * std::cos(position * rates[i]));
    for (Index i = 0; i < half; ++i) out[half + i] = static_cast<T>(amplitude * std::sin(position * rates[i]));
  });
}

LACONIC_COMPILE(sinusoids);
LACONIC_COMPILE(rotary_table);

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the tables of positions of `Cpu`.
template <class T>
class CpuPositions {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the sinusoids (rows, width) of the positions of rows.
  Tensor sinusoids(const RowPositions& at, Index width) {
    const Buffer rates = room(width);
    kernels::sinusoid_rates(width, rates_of(rates));
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::sinusoids(core_.threads(), at, width, rates_of(rates), out.data());
    return out;
  }
  /// Returns the table of `rotate` (rows, width): cosines of width / 2 pairs, then their sines. Throws `Error` for
  /// sizes that do not fit.
  Tensor rotary_table(const RowPositions& at, Index width, Index rate_width, const IndexList& pairs,
                      const RotaryRates& how = {}) {
    checks::rotary_table(width, rate_width, pairs, how);
    const Buffer rates = room(width);
    for (Index i = 0; 2 * i < width; ++i) rates_of(rates)[i] = how.rate(pairs.size() > 0 ? pairs[i] : i, rate_width);
    Tensor out = core_.make(at.sequences.rows(), width);
    kernels::rotary_table(core_.threads(), at, width, rates_of(rates), how.amplitude(), out.data());
    return out;
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuPositions(CpuCore<T>& core) : core_(core) {}

 private:
  Buffer room(Index width) { return core_.arena().allocate(static_cast<std::size_t>(width + 1) / 2 * sizeof(double)); }
  static double* rates_of(const Buffer& rates) { return static_cast<double*>(rates.data()); }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuPositions);

}  // namespace LACONIC_ABI
}  // namespace laconic

// The checks of arguments of the updates of parameters, which all backends share. Each throws `Error` for sizes that do
// not fit.

namespace laconic {
inline namespace LACONIC_ABI {
namespace checks {

/// Checks that there are as many values as these parameters have elements.
template <class T>
void gradients(std::span<const Parameter<T>* const> parameters, std::size_t values) {
  Index elements = 0;
  for (const Parameter<T>* p : parameters) elements += p->size();
  require(static_cast<Index>(values) == elements, "gradients: ", values, " values given, ", elements, " expected");
}
/// Checks the arguments of `copy_values`.
template <class T>
void copy_values(const Parameter<T>& from, const Parameter<T>& to) {
  require(from.shape() == to.shape(), "copy_values: a parameter of (", from.rows(), ", ", from.cols(), ") given, (",
          to.rows(), ", ", to.cols(), ") expected");
}

}  // namespace checks
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Implements the updates of parameters of `Cpu`.
template <class T>
class CpuTraining {
 public:
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;

  /// Returns the root of the sum of squares of all gradients of these parameters.
  double gradient_norm(std::span<const Parameter<T>* const> parameters) {
    double square = 0;
    for (const Parameter<T>* p : parameters)
      if (const Matrix<T>* gradient = kernels::existing_gradient_of(*p)) square += gradient->squaredNorm();
    return std::sqrt(square);
  }
  /// Zeroes the gradients of these parameters.
  void clear_gradients(std::span<const Parameter<T>* const> parameters) {
    for (const Parameter<T>* p : parameters)
      if (Matrix<T>* gradient = kernels::existing_gradient_of(*p)) gradient->setZero();
  }
  /// Copies the gradients of these parameters, one after the other, to `values` and zeroes them. Throws `Error` unless
  /// there are as many values as elements.
  void take_gradients(std::span<const Parameter<T>* const> parameters, std::span<T> values) {
    checks::gradients(parameters, values.size());
    T* to = values.data();
    for (const Parameter<T>* p : parameters) {
      if (Matrix<T>* gradient = kernels::existing_gradient_of(*p)) {
        std::copy_n(gradient->data(), p->size(), to);
        gradient->setZero();
      } else {
        std::fill_n(to, p->size(), T{0});
      }
      to += p->size();
    }
  }
  /// Copies values to the gradients of these parameters, one after the other. Zeros make no gradient where there is
  /// none. Throws `Error` unless there are as many values as elements.
  void put_gradients(std::span<const Parameter<T>* const> parameters, std::span<const T> values) {
    checks::gradients(parameters, values.size());
    const T* from = values.data();
    for (const Parameter<T>* p : parameters) {
      if (kernels::existing_gradient_of(*p) != nullptr ||
          std::any_of(from, from + p->size(), [](T g) { return g != 0; }))
        if (T* gradient = kernels::gradient_of(*p)) std::copy_n(from, p->size(), gradient);
      from += p->size();
    }
  }
  /// Updates each trainable parameter that has a gradient by one step of AdamW, then zeroes the gradient. A statistic
  /// gets its accumulated update added instead.
  void adamw(std::span<const AdamWUpdate<Tensor, T>> updates, const AdamWStep& step) {
    for (const AdamWUpdate<Tensor, T>& update : updates) {
      Parameter<T>& p = *update.parameter;
      Matrix<T>* gradient = p.trainable ? kernels::existing_gradient_of(p) : nullptr;
      if (gradient == nullptr) continue;
      T* value = kernels::editable_values_of(p);
      if (p.role() == Role::statistic)
        matrix_view(value, p.rows(), p.cols()) += *gradient;
      else
        change(p, value, gradient->data(), *update.first, *update.second, step);
      gradient->setZero();
    }
  }
  /// Copies the values of one parameter to another. Throws `Error` if their shapes differ.
  void copy_values(const Parameter<T>& from, Parameter<T>& to) {
    checks::copy_values(from, to);
    std::copy_n(kernels::values_of(from), from.size(), kernels::editable_values_of(to));
  }

 protected:
  /// Binds this slice to the core of its context.
  explicit CpuTraining(CpuCore<T>& core) : core_(core) {}

 private:
  /// Updates a parameter and its moments from its gradient, which are made zeros before the first step.
  void change(const Parameter<T>& p, T* value, const T* gradient, Tensor& first_moment, Tensor& second_moment,
              const AdamWStep& step) {
    using B = kernels::Batch<T>;
    if (first_moment.empty()) {
      first_moment = core_.zeros(p.rows(), p.cols());
      second_moment = core_.zeros(p.rows(), p.cols());
    }
    const B scale(static_cast<T>(step.gradient_scale)), b1(static_cast<T>(step.beta1)), b2(static_cast<T>(step.beta2));
    const B rest1(static_cast<T>(1 - step.beta1)), rest2(static_cast<T>(1 - step.beta2));
    const B rate(static_cast<T>(step.rate())), root(static_cast<T>(step.root_scale()));
    const B eps(static_cast<T>(step.eps)), keep(static_cast<T>(step.kept(p.shape().size())));
    T *first = first_moment.data(), *second = second_moment.data();
    kernels::parallel_blocks(core_.threads(), p.size(), 16384, [&](Index begin, Index end) {
      const Index n = end - begin;
      kernels::map_span(
          n, first + begin, [&](auto a, auto g) { return b1 * a + rest1 * scale * g; }, first + begin,
          gradient + begin);
      kernels::map_span(
          n, second + begin, [&](auto a, auto g) { return b2 * a + rest2 * (scale * g) * (scale * g); }, second + begin,
          gradient + begin);
      kernels::map_span(
          n, value + begin, [&](auto w, auto a, auto b) { return keep * w - rate * a / (xsimd::sqrt(b) * root + eps); },
          value + begin, first + begin, second + begin);
    });
  }

  CpuCore<T>& core_;
};

LACONIC_COMPILE_CLASS(CpuTraining);

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes on the CPU: kernels with xsimd, threads of the process, tensors in an arena, so that a warm forward pass
/// allocates nothing. It accepts parameters on the host and those that it has prepared itself. Results do not depend on
/// the number of threads. One context belongs to one thread. The concepts `Context`, `StreamingContext` and
/// `TrainingContext` (backend/context.hpp) document what each primitive computes.
template <class T = float>
class Cpu : public CpuCore<T>,
            public CpuLinear<T>,
            public CpuNorms<T>,
            public CpuPositions<T>,
            public CpuElementwise<T>,
            public CpuConvolution<T>,
            public CpuAttention<T>,
            public CpuCaches<T>,
            public CpuLosses<T>,
            public CpuTraining<T> {
 public:
  /// Names the type of the elements.
  using Scalar = T;
  /// Names the type of the values that primitives take and return.
  using Tensor = laconic::Tensor<T>;
  /// Names the type of the caches of streams.
  using Cache = RowCache<T>;
  /// Names the type of a view of cached rows and the rows after them.
  using CachedRows = laconic::CachedRows<T>;

  /// Says that primitives compute their forward form: dropout returns its input and batch_norm uses the running
  /// statistics.
  static constexpr bool training = false;
  /// Says that primitives accept parameters that are on the host.
  static constexpr bool computes_on_host = true;

  /// Makes a context with `threads` threads; 0 takes all that the machine offers. Throws `Error` unless 0 <= threads <=
  /// 4096.
  explicit Cpu(int threads = 0)
      : CpuCore<T>(threads),
        CpuLinear<T>(core()),
        CpuNorms<T>(core()),
        CpuPositions<T>(core()),
        CpuElementwise<T>(core()),
        CpuConvolution<T>(core()),
        CpuAttention<T>(core()),
        CpuCaches<T>(core()),
        CpuLosses<T>(core()),
        CpuTraining<T>(core()) {}

 private:
  CpuCore<T>& core() { return *this; }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a 64-bit hash that tells data apart. It is not cryptographic.
class Hash {
 public:
  /// Adds the number of bytes, then the bytes. Returns the hash itself, for chained calls.
  Hash& add(const void* data, std::size_t bytes) {
    add(bytes);
    for (std::size_t i = 0; i < bytes; i += sizeof(std::uint64_t)) {
      std::uint64_t word = 0;
      std::memcpy(&word, static_cast<const char*>(data) + i, std::min(bytes - i, sizeof word));
      add(word);
    }
    return *this;
  }
  /// Adds one word. Returns the hash itself, for chained calls.
  Hash& add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x9E3779B97F4A7C15;
    value_ ^= value_ >> 29;
    return *this;
  }
  /// Returns the hash of all that was added, which depends on the order.
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Lists types, for `sweep`.
template <class... Ts>
struct Types {
  static constexpr std::size_t size = sizeof...(Ts);  ///< the number of types
};

namespace detail {

/// Holds a string as a template argument.
template <std::size_t N>
struct FixedString {
  char text[N]{};  ///< the characters, with a 0 at the end
  /// Copies a string literal.
  constexpr FixedString(const char (&literal)[N]) {
    for (std::size_t i = 0; i < N; ++i) text[i] = literal[i];
  }
};

template <class List>
struct Sweep;
template <class... Ts>
struct Sweep<Types<Ts...>> {
  template <class F>
  static constexpr void run(F&& f) {
    (f(Ts{}), ...);
  }
};

}  // namespace detail

/// Pairs a type with a name, for tables: Named<"MHA", Mha<16>>.
template <detail::FixedString Text, class T>
struct Named {
  using type = T;                                     ///< the type
  static constexpr std::string_view name{Text.text};  ///< the name
};

/// Calls f(T{}) for each type of a list, in order: one program then compiles, counts and measures them all. The types
/// are empty ones, such as `Named`.
///
///     sweep<Types<Named<"MHA", Mha<16>>, Named<"MLA", MlaSimple<16, 256>>>>([]<class V>(V) {
///       std::printf("%s: %td\n", V::name.data(), V::type::cache_bytes(config, frames(1000)));
///     });
template <class List, class F>
constexpr void sweep(F&& f) {
  detail::Sweep<List>::run(f);
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the normalisation in the waveform front end.
enum class WaveformNorm {
  layer,  ///< layer norm after every convolution
  group   ///< per-channel norm over time, after the first convolution only
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(WaveformNorm) {
  return std::to_array<EnumName<WaveformNorm>>({{WaveformNorm::layer, "layer"}, {WaveformNorm::group, "group"}});
}

/// Describes convolutions over samples that take the place of log-mel features (wav2vec 2.0, Baevski et al. 2020,
/// section 2). Names are Hugging Face's.
struct WaveformConfig {
  IndexList conv_dim{};     ///< output channels of each convolution; empty: there are no such convolutions
  IndexList conv_kernel{};  ///< kernel of each convolution, in samples of its input
  IndexList conv_stride{};  ///< stride of each convolution, in samples of its input
  bool conv_bias = false;   ///< whether the convolutions have biases
  WaveformNorm feat_extract_norm = WaveformNorm::layer;   ///< normalisation after the convolutions
  Activation feat_extract_activation = Activation::gelu;  ///< activation after each convolution

  /// Returns whether there are no convolutions over samples.
  constexpr bool empty() const { return conv_dim.size() == 0; }
  /// Returns the shape of convolution i.
  constexpr Conv1dShape layer(Index i) const {
    return {i == 0 ? 1 : conv_dim[i - 1], conv_dim[i], conv_kernel[i], conv_stride[i]};
  }
  /// Returns the samples between two output frames, or 0 where strides or their product exceed any use.
  constexpr Index stride() const {
    Index out = 1;
    for (const Index one : conv_stride) out = one > 0 && one <= 16 && out < (Index{1} << 48) ? out * one : 0;
    return out;
  }
  /// Returns the samples that the first output frame needs.
  constexpr Index window() const {
    Index out = 1;
    for (Index i = conv_dim.size(); i-- > 0;) out = (out - 1) * conv_stride[i] + conv_kernel[i];
    return out;
  }

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("conv_dim", self.conv_dim);
    visit("conv_kernel", self.conv_kernel);
    visit("conv_stride", self.conv_stride);
    visit("conv_bias", self.conv_bias);
    visit("feat_extract_norm", self.feat_extract_norm);
    visit("feat_extract_activation", self.feat_extract_activation);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the frames that a convolution over time sees.
enum class ConvolutionContext {
  centred,  ///< as many before as after; cannot be streamed
  causal,   ///< none after
  chunk     ///< as centred, but none after the end of the own chunk (Li et al. 2023, "Dynamic chunk convolution")
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(ConvolutionContext) {
  return std::to_array<EnumName<ConvolutionContext>>({{ConvolutionContext::centred, "centred"},
                                                      {ConvolutionContext::causal, "causal"},
                                                      {ConvolutionContext::chunk, "chunk"}});
}

/// Convolves each channel of each sequence over time by a kernel of its own: (rows, channels) to (rows, channels).
template <class T>
class DepthwiseConv : public Module<DepthwiseConv<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates. Throws Error for an even kernel.
  DepthwiseConv(Index channels, Index kernel, ConvolutionContext sees, Seed seed, Bias with_bias = Bias::no)
      : weight({channels, 1, kernel}), sees_(sees) {
    require(kernel % 2 == 1, "depthwise_conv: kernel ", kernel, " given, an odd number expected");
    const double bound = 1 / std::sqrt(static_cast<double>(kernel));
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({channels});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index channels, Index kernel, Bias with_bias = Bias::no) {
    return channels * (kernel + (with_bias == Bias::yes ? 1 : 0));
  }

  /// Returns the frames that an output sees before its own.
  Index left() const { return sees_ == ConvolutionContext::causal ? weight.cols() - 1 : (weight.cols() - 1) / 2; }

  /// Holds the last `left()` frames of every stream, zeros before its first one. Takes memory at construction only.
  template <class Context>
  class State {
   public:
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const DepthwiseConv& conv, const StateShape& shape)
        : cache_(context.make_cache(shape.slots, conv.left(), conv.weight.rows())) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) { context.fill_zeros(cache_, slot); }
    /// Returns the bytes that the cache holds, all slots.
    Index cache_bytes() const { return cache_.bytes(); }

   private:
    friend DepthwiseConv;
    typename Context::Cache cache_;
  };

  /// Returns the convolution of x (rows, channels). With a pointer to a state, x follows what the state holds. Throws
  /// Error for a centred convolution under a mask of chunks.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Parameter<T>* b = bias.size() > 0 ? &bias : nullptr;
    require(sees_ != ConvolutionContext::centred || pass.mask.chunk == Mask::unlimited,
            "depthwise_conv: a centred convolution sees beyond its chunk; under a mask of chunks, causal or chunk is "
            "expected");
    DepthwiseShape shape{left(), sees_ == ConvolutionContext::chunk ? pass.mask.chunk : Mask::unlimited, 0};
    if constexpr (has_state<S>) {
      const auto extended = context.extend(state->cache_, pass.slots, x, pass.sequences);
      shape.past = left();
      return context.depthwise_conv(extended.rows, weight, b, extended.sequences, shape);
    } else {
      return context.depthwise_conv(x, weight, b, pass.sequences, shape);
    }
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.bias.size() > 0) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (channels, 1, kernel)
  Parameter<T> bias;    ///< (channels), or empty

 private:
  ConvolutionContext sees_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names the encoders, for files and command lines.
enum class EncoderName {
  conformer,          ///< `Conformer`
  branchformer,       ///< `Branchformer`
  e_branchformer,     ///< `EBranchformer`
  wav2vec2_conformer  ///< `Wav2Vec2Conformer`
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(EncoderName) {
  return std::to_array<EnumName<EncoderName>>({{EncoderName::conformer, "conformer"},
                                               {EncoderName::branchformer, "branchformer"},
                                               {EncoderName::e_branchformer, "e-branchformer"},
                                               {EncoderName::wav2vec2_conformer, "wav2vec2-conformer"}});
}

/// Names the ways in which a Branchformer merges attention and cgMLP (Peng et al. 2022, section 3.4).
enum class BranchMerge {
  concat,          ///< concatenates the channels before a linear layer
  fixed_average,   ///< averages with fixed weights
  learned_average  ///< averages with weights that are computed from each utterance
};
/// Lists the names as configurations spell them.
constexpr auto enum_names(BranchMerge) {
  return std::to_array<EnumName<BranchMerge>>({{BranchMerge::concat, "concat"},
                                               {BranchMerge::fixed_average, "fixed-average"},
                                               {BranchMerge::learned_average, "learned-average"}});
}

/// Holds all sizes of an encoder with a CTC head. Those of the attention may stay 0 where its type gives them.
struct EncoderConfig {
  Index num_mels = 80;                               ///< mel bins of the features; 1 where the encoder takes samples
  Index d_model = 256;                               ///< channels of encoder frames
  Index num_layers = 12;                             ///< blocks
  Index vocab_size = 29;                             ///< tokens, the CTC blank included
  AttentionName attention = AttentionName::by_type;  ///< the attention by name
  Index num_heads = 0;                               ///< query heads
  Index num_kv_heads = 0;                            ///< key-value heads, a divisor of num_heads
  Index kv_lora_rank = 0;                            ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;                             ///< rank of the values' latent: see AttentionConfig
  IndexList kv_lora_ranks{};                         ///< kv_lora_rank of each layer; empty: kv_lora_rank
  IndexList v_lora_ranks{};    ///< v_lora_rank of each layer; empty: kv_lora_ranks, or v_lora_rank without these
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key
  IndexList rope_pairs{};      ///< pairs whose rates the decoupled rotary key uses: see AttentionConfig
  /// The position by name, where the attention leaves it open.
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::relative;
  Activation hidden_act = Activation::silu;  ///< activation in feed-forward and convolution modules
  double layer_norm_eps = 1e-5;  ///< epsilon of the norms before and after the blocks; in the blocks it is 1e-5
  Index ffn_expansion = 4;       ///< width of the feed-forward modules over d_model (none in a Branchformer)
  Index intermediate_size = 0;   ///< width of the feed-forward modules; 0: ffn_expansion * d_model
  Index conv_kernel = 31;        ///< frames, odd: kernel of the convolution module, or in the cgMLP
  Index cgmlp_expansion = 6;     ///< width of the cgMLP over d_model (Branchformer and E-Branchformer)
  BranchMerge merge = BranchMerge::concat;  ///< how a Branchformer merges its branches
  double cgmlp_weight = 0.5;                ///< weight of the cgMLP in a fixed average
  Index merge_kernel = 3;                   ///< frames, odd: kernel of an E-Branchformer's merge
  Index subsampling = 4;           ///< rows of features an encoder frame, 2 or 4; of samples, the product of strides
  Index subsampling_channels = 0;  ///< channels of the subsampling's convolutions; 0: d_model
  double dropout = 0.1;            ///< probability of dropout in training
  ConvolutionContext convolution = ConvolutionContext::centred;  ///< the frames that convolutions over time see
  Index chunk = 0;            ///< encoder frames that are seen together; 0: whole utterances
  Index left_context = -1;    ///< encoder frames seen before the own chunk; -1: all
  WaveformConfig waveform{};  ///< convolutions over samples; empty where the encoder takes features

  /// Returns the sizes of the attention, with the ranks that all layers share.
  constexpr AttentionConfig attention_config() const {
    return {.d_model = d_model,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .kv_lora_rank = kv_lora_rank,
            .v_lora_rank = v_lora_rank,
            .q_lora_rank = q_lora_rank,
            .qk_rope_head_dim = qk_rope_head_dim,
            .rope_pairs = rope_pairs,
            .attention = attention,
            .position_embeddings_type = position_embeddings_type};
  }
  /// Returns this configuration with the ranks of layer i.
  constexpr EncoderConfig for_layer(Index i) const {
    EncoderConfig out = *this;
    if (kv_lora_ranks.size() > 0) out.kv_lora_rank = kv_lora_ranks[i];
    if (kv_lora_ranks.size() > 0 || v_lora_ranks.size() > 0)
      out.v_lora_rank = v_lora_ranks.size() > 0 ? v_lora_ranks[i] : 0;
    return out;
  }
  /// Returns the sum of count(attention_config) over the layers.
  template <class Count>
  constexpr Index over_layers(Count&& count) const {
    if (kv_lora_ranks.size() == 0 && v_lora_ranks.size() == 0) return num_layers * count(attention_config());
    Index sum = 0;
    for (Index i = 0; i < num_layers; ++i) sum += count(for_layer(i).attention_config());
    return sum;
  }
  /// Returns the mask that `chunk` and `left_context` describe.
  constexpr Mask mask() const {
    return chunk > 0 ? Mask::chunked(chunk, left_context < 0 ? Mask::unlimited : left_context) : Mask();
  }
  /// Returns the channels of the subsampling's convolutions.
  constexpr Index channels() const { return subsampling_channels > 0 ? subsampling_channels : d_model; }

  /// Returns the width of the feed-forward modules.
  constexpr Index feed_forward_width() const {
    return intermediate_size > 0 ? intermediate_size : ffn_expansion * d_model;
  }

  /// Returns whether files of earlier versions lack this member, which then has its default.
  static constexpr bool may_lack(std::string_view name) { return name == "intermediate_size"; }
  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_mels", self.num_mels);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("vocab_size", self.vocab_size);
    visit("attention", self.attention);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("kv_lora_ranks", self.kv_lora_ranks);
    visit("v_lora_ranks", self.v_lora_ranks);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("rope_pairs", self.rope_pairs);
    visit("position_embeddings_type", self.position_embeddings_type);
    visit("hidden_act", self.hidden_act);
    visit("layer_norm_eps", self.layer_norm_eps);
    visit("ffn_expansion", self.ffn_expansion);
    visit("intermediate_size", self.intermediate_size);
    visit("conv_kernel", self.conv_kernel);
    visit("cgmlp_expansion", self.cgmlp_expansion);
    visit("merge", self.merge);
    visit("cgmlp_weight", self.cgmlp_weight);
    visit("merge_kernel", self.merge_kernel);
    visit("subsampling", self.subsampling);
    visit("subsampling_channels", self.subsampling_channels);
    visit("dropout", self.dropout);
    visit("convolution", self.convolution);
    visit("chunk", self.chunk);
    visit("left_context", self.left_context);
    visit("waveform", self.waveform);
  }

  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const EncoderConfig& checked() const {
    const auto within = [](Index value, Index min, Index max, const char* name) {
      require(value >= min && value <= max, "encoder: ", name, ' ', value, " given, ", min, " to ", max, " expected");
    };
    within(num_mels, waveform.empty() ? 7 : 1, waveform.empty() ? 1 << 12 : 1, "num_mels");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(vocab_size, 2, 1 << 24, "vocab_size");
    require(position_embeddings_type != PositionEmbeddings::learned,
            "encoder: position_embeddings_type learned given, relative, rotary or none expected");
    within(num_heads, 0, 1 << 16, "num_heads");
    within(num_kv_heads, 0, 1 << 16, "num_kv_heads");
    within(kv_lora_rank, 0, 1 << 16, "kv_lora_rank");
    within(v_lora_rank, 0, 1 << 16, "v_lora_rank");
    within(q_lora_rank, 0, 1 << 16, "q_lora_rank");
    within(qk_rope_head_dim, 0, 1 << 16, "qk_rope_head_dim");
    within(ffn_expansion, 1, 1 << 6, "ffn_expansion");
    within(intermediate_size, 0, 1 << 22, "intermediate_size");
    within(conv_kernel, 1, 1 << 12, "conv_kernel");
    within(cgmlp_expansion, 1, 1 << 6, "cgmlp_expansion");
    within(merge_kernel, 1, 1 << 12, "merge_kernel");
    within(subsampling_channels, 0, 1 << 16, "subsampling_channels");
    within(chunk, 0, 1 << 20, "chunk");
    within(left_context, -1, 1 << 20, "left_context");
    for (const IndexList* ranks : {&kv_lora_ranks, &v_lora_ranks})
      require(ranks->size() == 0 || ranks->size() == num_layers, "encoder: ranks of ", ranks->size(),
              " layers given for ", num_layers);
    require(conv_kernel % 2 == 1, "encoder: conv_kernel ", conv_kernel, " given, an odd number expected");
    require(merge_kernel % 2 == 1, "encoder: merge_kernel ", merge_kernel, " given, an odd number expected");
    require(cgmlp_expansion * d_model % 2 == 0, "encoder: a cgMLP of ", cgmlp_expansion * d_model,
            " channels given, an even number expected");
    require(layer_norm_eps > 0 && layer_norm_eps < 1, "encoder: layer_norm_eps ", layer_norm_eps,
            " given, more than 0 and less than 1 expected");
    if (waveform.empty()) {
      require(subsampling == 2 || subsampling == 4, "encoder: subsampling ", subsampling, " given, 2 or 4 expected");
    } else {
      const Index layers = waveform.conv_dim.size();
      within(layers, 1, 12, "conv_dim's length");
      require(waveform.conv_kernel.size() == layers && waveform.conv_stride.size() == layers, "encoder: conv_dim of ",
              layers, " layers, conv_kernel of ", waveform.conv_kernel.size(), " and conv_stride of ",
              waveform.conv_stride.size(), " given, equal numbers expected");
      for (Index i = 0; i < layers; ++i) {
        within(waveform.conv_dim[i], 1, 1 << 16, "conv_dim");
        within(waveform.conv_kernel[i], 1, 1 << 12, "conv_kernel");
        within(waveform.conv_stride[i], 1, 16, "conv_stride");
      }
      require(subsampling == waveform.stride(), "encoder: subsampling ", subsampling,
              " given, but the strides multiply to ", waveform.stride());
    }
    require(dropout >= 0 && dropout < 1, "encoder: dropout ", dropout, " given, expected from 0 to less than 1");
    require(cgmlp_weight >= 0 && cgmlp_weight <= 1, "encoder: cgmlp_weight ", cgmlp_weight, " given, 0 to 1 expected");
    require(chunk > 0 || left_context < 0, "encoder: left_context ", left_context, " given without a chunk");
    return *this;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Gates by a convolution (Sakuma et al. 2022; Peng et al. 2022, section 3.3), (rows, channels) to (rows, channels /
/// 2): the second half of the channels, normed and convolved over time, multiplies the first.
template <class T>
class ConvolutionalSpatialGatingUnit : public Module<ConvolutionalSpatialGatingUnit<T>> {
 public:
  /// Makes a unit whose gate starts near 1. Allocates.
  ConvolutionalSpatialGatingUnit(Index channels, Index kernel, ConvolutionContext sees, double dropout, Seed seed)
      : norm(channels / 2), conv(channels / 2, kernel, sees, seed / "conv", Bias::yes), dropout_(dropout) {
    const Random random(seed / "conv", "weight");
    for (Index i = 0; i < conv.weight.size(); ++i)
      conv.weight.host().data()[i] = static_cast<T>(1e-6 * random.normal(static_cast<std::uint64_t>(i)));
    conv.bias.host().setOnes();
  }

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Index half = x.cols() / 2;
    const Tensor gate = conv(context, norm(context, context.columns(x, half, half)), pass, state);
    return context.dropout(context.multiply(context.columns(x, 0, half), gate), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("conv", self.conv);
  }

  LayerNorm<T> norm;      ///< the norm of the gate
  DepthwiseConv<T> conv;  ///< the convolution of the gate

 private:
  double dropout_;
};

/// Computes the cgMLP (Peng et al. 2022, section 3.3), (rows, d_model) to (rows, d_model): linear, GELU, gating unit,
/// linear.
template <class T>
class ConvolutionalGatingMlp : public Module<ConvolutionalGatingMlp<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  ConvolutionalGatingMlp(const EncoderConfig& c, Seed seed)
      : channel_proj1(c.d_model, units(c), seed / "channel_proj1"),
        csgu(units(c), c.conv_kernel, c.convolution, c.dropout, seed / "csgu"),
        channel_proj2(units(c) / 2, c.d_model, seed / "channel_proj2") {}

  /// Returns the channels between the linear layers.
  static constexpr Index units(const EncoderConfig& c) { return c.cgmlp_expansion * c.d_model; }
  /// Returns the trained parameters.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, u = units(c);
    return (d + 1) * u + u + DepthwiseConv<T>::parameter_count(u / 2, c.conv_kernel, Bias::yes) + (u / 2 + 1) * d;
  }
  /// Returns the floating-point operations for `frames` frames.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return 2 * frames * units(c) * (c.d_model + c.conv_kernel / 2 + c.d_model / 2);
  }

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    const Tensor hidden = channel_proj1(context, x, Activation::gelu);
    return channel_proj2(context, csgu(context, hidden, pass, state));
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("channel_proj1", self.channel_proj1);
    visit("csgu", self.csgu);
    visit("channel_proj2", self.channel_proj2);
  }

  Linear<T> channel_proj1;                 ///< from d_model to `units` channels
  ConvolutionalSpatialGatingUnit<T> csgu;  ///< the gate
  Linear<T> channel_proj2;                 ///< from half of them to d_model
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes both branches of a Branchformer block, attention and cgMLP, each after a norm of the same rows.
template <class AttentionPolicy, class T>
class Branches : public Module<Branches<AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  Branches(const EncoderConfig& c, Seed seed)
      : norm_mha(c.d_model),
        attn(c.attention_config(), c.dropout, seed / "attn"),
        norm_mlp(c.d_model),
        cgmlp(c, seed / "cgmlp"),
        dropout_(c.dropout) {}

  /// Returns the trained parameters without those of the attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    return 2 * 2 * c.d_model + ConvolutionalGatingMlp<T>::parameter_count(c);
  }

  /// Holds the output of both branches.
  template <class Tensor>
  struct Output {
    Tensor attention;  ///< (rows, d_model)
    Tensor cgmlp;      ///< (rows, d_model)
  };
  /// Returns the output of both branches. `state` is a pointer to the block's State, or `nullptr`.
  template <class Context, class Tensor, class S>
  Output<Tensor> operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state) const {
    const Tensor a = norm_mha(context, x), b = norm_mlp(context, x);
    Output<Tensor> out;
    if constexpr (has_state<S>)
      out = {attn(context, a, pass, &state->attention), cgmlp(context, b, pass, &state->conv)};
    else
      out = {attn(context, a, pass), cgmlp(context, b, pass)};
    out.attention = context.dropout(std::move(out.attention), dropout_);
    out.cgmlp = context.dropout(std::move(out.cgmlp), dropout_);
    return out;
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_mha", self.norm_mha);
    visit("attn", self.attn);
    visit("norm_mlp", self.norm_mlp);
    visit("cgmlp", self.cgmlp);
  }

  LayerNorm<T> norm_mha;            ///< the norm before attention
  AttentionType attn;               ///< the attention
  LayerNorm<T> norm_mlp;            ///< the norm before the cgMLP
  ConvolutionalGatingMlp<T> cgmlp;  ///< the cgMLP

 private:
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs blocks one after the other, and a norm after the last: (rows, d_model) to (rows, d_model). Models derive from
/// it, add the blocks, and name its parameters. A block has
///   attention()                          its self-attention, of the same policy in all blocks
///   operator()(context, x, pass, state)  what it computes, with `nullptr` for the state of whole sequences
///   State<Context>                       what a stream keeps: `attention`, clear, fill_zeros, convolution_bytes, and
///                                        fork where sequences are decoded by a beam
template <class Block_, class Norm>
class Stack {
 public:
  using Block = Block_;  ///< the type of the blocks

  /// Holds what streams keep, block by block. Takes memory at construction only.
  template <class Context>
  struct State {
    /// Makes the states of all blocks for `shape.slots` streams. Allocates.
    State(Context& context, const Stack& stack, const StateShape& shape) {
      layers.reserve(stack.layers.size());
      for (const Block& block : stack.layers) layers.emplace_back(context, block, shape);
    }
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      for (auto& layer : layers) layer.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) {
      for (auto& layer : layers) layer.fill_zeros(context, slot);
    }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) {
      for (auto& layer : layers) layer.fork(context, from, to);
    }
    /// Returns the bytes that the attention of all blocks holds, all slots.
    Index attention_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.attention.cache_bytes();
      return sum;
    }
    /// Returns the bytes that the convolutions of all blocks hold, all slots.
    Index convolution_bytes() const {
      Index sum = 0;
      for (const auto& layer : layers) sum += layer.convolution_bytes();
      return sum;
    }

    std::vector<typename Block::template State<Context>> layers;  ///< the state of each block
  };

  std::vector<Block> layers;  ///< the blocks, first to last
  Norm layer_norm;            ///< the norm after the last block

 protected:
  /// Makes a stack without blocks.
  explicit Stack(Norm norm) : layer_norm(std::move(norm)) {}

  /// Returns the rows after all blocks and the norm. `state` is a pointer to a State, or `nullptr` for whole sequences.
  /// Appends the output of each block to `pass.outputs` where that is given.
  template <class Context, class Tensor, class S>
  Tensor run(Context& context, Tensor x, Pass<Tensor> pass, S state) const {
    const auto& attention = layers.front().attention();
    x = attention.enter(context, std::move(x), pass);
    pass.table = attention.table(context, pass);
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if constexpr (has_state<S>)
        x = layers[i](context, std::move(x), pass, &state->layers[i]);
      else
        x = whole_block(context, layers[i], std::move(x), pass);
      if (pass.outputs != nullptr) pass.outputs->push_back(x);
    }
    return layer_norm(context, x);
  }

 private:
  /// Runs a block over whole sequences, and keeps only its input on a tape that is to recompute blocks.
  template <class Context, class Tensor>
  static Tensor whole_block(Context& context, const Block& block, Tensor x, const Pass<Tensor>& pass) {
    if constexpr (requires { context.recompute_blocks; })
      if (context.recompute_blocks)
        return context.recompute(
            x, [&context, &block, sequences = pass.sequences, mask = pass.mask, table = pass.table](const Tensor& in) {
              return block(context, in, Pass<Tensor>{sequences, mask, table}, nullptr);
            });
    return block(context, std::move(x), pass, nullptr);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a 3 x 3 convolution over (time, frequency) without padding, then ReLU: (rows, in_cols) to (fewer rows,
/// out_cols), see Conv2dShape.
template <class T>
class Conv2d : public Module<Conv2d<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  Conv2d(const Conv2dShape& shape, Seed seed)
      : weight({shape.out_channels, shape.in_channels, Conv2dShape::kernel, Conv2dShape::kernel}),
        bias({shape.out_channels}),
        shape_(shape) {
    weight.use = shape.stride == 2 ? WeightUse::conv2d_stride_2 : WeightUse::conv2d;
    const double bound = 1 / std::sqrt(static_cast<double>(shape.patch()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    fill_uniform(bias, bound, Random(seed, "bias"));
  }
  /// Returns the shape.
  const Conv2dShape& shape() const { return shape_; }

  /// Returns the convolution of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    return context.conv2d(x, weight, bias, shape_, from, to, Activation::relu);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in, 3, 3)
  Parameter<T> bias;    ///< (out)

 private:
  Conv2dShape shape_;
};

/// Subsamples features (rows, num_mels) by 2 or 4 to encoder frames (fewer rows, d_model): two 3 x 3 convolutions with
/// ReLU over (time, mel), then a linear layer (ESPnet's Conv2dSubsampling and Conv2dSubsampling2). Nothing is padded: T
/// rows give ((T - 1) / 2 - 1) / 2 frames by 4, or (T - 1) / 2 - 2 by 2. Columns between the layers are (frequency,
/// channel), channel innermost.
template <class T>
class Conv2dSubsampling : public Module<Conv2dSubsampling<T>> {
 public:
  /// Makes the layers with their initial parameters. Allocates. Throws Error for a factor other than 2 and 4, and for
  /// fewer than 7 mels.
  Conv2dSubsampling(Index num_mels, Index channels, Index d_model, Index factor, Seed seed)
      : Conv2dSubsampling(Conv2dShape{1, channels, num_mels, 2}, factor, d_model, seed) {}

  /// Returns the frames that `frames` rows give; the same holds for frequencies.
  static constexpr Index out_length(Index frames, Index factor) {
    const Index half = Conv2dShape{1, 1, 3, 2}.out_length(frames);
    return Conv2dShape{1, 1, 3, factor / 2}.out_length(half);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index num_mels, Index channels, Index d_model, Index factor) {
    constexpr Index taps = Conv2dShape::kernel * Conv2dShape::kernel;
    return channels * (taps + 1) + channels * (taps * channels + 1) +
           (channels * out_length(num_mels, factor) + 1) * d_model;
  }

  /// Returns the floating-point operations (a multiply-add counts two) for `frames` output frames.
  static constexpr Index flops(Index num_mels, Index channels, Index d_model, Index factor, Index frames) {
    constexpr Index taps = Conv2dShape::kernel * Conv2dShape::kernel;
    const Index half = factor / 2 * (frames - 1) + Conv2dShape::kernel,
                half_freqs = Conv2dShape{1, 1, num_mels, 2}.out_freqs();
    const Index freqs = out_length(num_mels, factor);
    return 2 * channels * (half * half_freqs * taps + frames * freqs * (taps * channels + d_model));
  }

  /// Returns the rows between two output frames.
  Index factor() const { return conv0.shape().stride * conv1.shape().stride; }
  /// Returns the rows that the first output frame needs.
  Index window() const { return (Conv2dShape::kernel - 1) * conv0.shape().stride + Conv2dShape::kernel; }

  /// Holds encoder frames and their sequences.
  template <class Tensor>
  struct Output {
    Tensor rows;          ///< (rows, d_model)
    Sequences sequences;  ///< the rows of each sequence
  };

  /// Returns the encoder frames of packed features. Throws Error where the sizes do not fit.
  template <class Context, class Tensor>
  Output<Tensor> operator()(Context& context, const Tensor& features, const Sequences& sequences) const {
    require(features.cols() == conv0.shape().in_freqs, "subsampling: features have ", features.cols(),
            " mels, the model expects ", conv0.shape().in_freqs);
    require(features.rows() == sequences.rows(), "subsampling: ", features.rows(),
            " rows of features given, their sequences have ", sequences.rows());
    const auto half = sequences.map_lengths(context.arena(), [&](Index n) { return conv0.shape().out_length(n); });
    const auto out = half.map_lengths(context.arena(), [&](Index n) { return conv1.shape().out_length(n); });
    auto x = conv0(context, features, sequences, half);
    x = conv1(context, x, half, out);
    return {linear(context, x), out};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("conv0", self.conv0);
    visit("conv1", self.conv1);
    visit("linear", self.linear);
  }

  Conv2d<T> conv0;   ///< the first convolution
  Conv2d<T> conv1;   ///< the second convolution
  Linear<T> linear;  ///< from the last convolution's channels and frequencies to d_model

 private:
  Conv2dSubsampling(const Conv2dShape& first, Index factor, Index d_model, Seed seed)
      : conv0(first, seed / "conv0"),
        conv1(second(first, factor), seed / "conv1"),
        linear(conv1.shape().out_cols(), d_model, seed / "linear") {}

  static Conv2dShape second(const Conv2dShape& first, Index factor) {
    require(factor == 2 || factor == 4, "subsampling: factor ", factor, " given, 2 or 4 expected");
    const Conv2dShape shape{first.out_channels, first.out_channels, first.out_freqs(), factor / 2};
    require(shape.out_freqs() > 0, "subsampling: ", first.in_freqs, " mels given, at least 7 expected");
    return shape;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds unnormalised log probabilities of packed sequences.
template <class Tensor>
struct Logits {
  Tensor rows;          ///< (rows, vocab_size)
  Sequences sequences;  ///< the rows of each sequence
};

/// Describes what lies before the blocks of an encoder of log-mel features. The kinds of such encoders derive from it.
struct FeatureFront {
  /// Returns the convolutional subsampling. Throws Error where the configuration has convolutions over samples.
  template <class T>
  static Conv2dSubsampling<T> front(const EncoderConfig& c, Seed seed) {
    require(c.waveform.empty(), "encoder: convolutions over samples given, but this encoder takes features");
    return {c.num_mels, c.channels(), c.d_model, c.subsampling, seed / "subsampling"};
  }
  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameters(const EncoderConfig& c) {
    return Conv2dSubsampling<float>::parameter_count(c.num_mels, c.channels(), c.d_model, c.subsampling);
  }
  /// Returns the floating-point operations before the blocks, for `frames` encoder frames.
  static constexpr Index front_flops(const EncoderConfig& c, Index frames) {
    return Conv2dSubsampling<float>::flops(c.num_mels, c.channels(), c.d_model, c.subsampling, frames);
  }
  /// Returns the encoder frames that `rows` rows of features give.
  static constexpr Index out_length(const EncoderConfig& c, Index rows) {
    return Conv2dSubsampling<float>::out_length(rows, c.subsampling);
  }
  static constexpr const char* front_name = "subsampling";  ///< prefix of the parameters before the blocks
  static constexpr const char* layers_name = "layers";      ///< prefix of the blocks' parameters
  static constexpr const char* norm_name = "layer_norm";    ///< prefix of the parameters of the norm after the blocks
};

/// Encodes speech for CTC: convolutional subsampling, a stack of blocks with a norm, and a linear head. `Conformer`,
/// `Branchformer`, `EBranchformer` and `Wav2Vec2Conformer` are encoders of their kinds of blocks. A kind has
///   Block<AttentionPolicy, T>, a Module constructed from (config, seed): see Stack
///   parameter_count(config), flops(config, frames)   of a block without its attention
///   require_streamable(config)                       throws where a block sees what a stream cannot have
///   front<T>(config, seed) and so on                 what lies before the blocks: see FeatureFront
///
///     Conformer<Mha<8>> model(config, Seed(1));
///     auto logits = model(cpu, features, sequences);   // features (frames, num_mels), sequences packed
///
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only. A sequence too short for the subsampling gives no rows.
template <class Kind, class AttentionPolicy, class T = float>
class Encoder : public Module<Encoder<Kind, AttentionPolicy, T>>,
                public Stack<typename Kind::template Block<AttentionPolicy, T>, LayerNorm<T>> {
  using Blocks = Stack<typename Kind::template Block<AttentionPolicy, T>, LayerNorm<T>>;

 public:
  using Scalar = T;                ///< the type of its parameters
  using Policy = AttentionPolicy;  ///< the attention of its blocks
  using Config = EncoderConfig;    ///< the type of its configuration
  /// The type of what lies before the blocks.
  using Subsampling = decltype(Kind::template front<T>(std::declval<const EncoderConfig&>(), Seed()));
  using Blocks::layers, Blocks::layer_norm;
  using typename Blocks::Block;

  /// Makes an encoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  Encoder(const EncoderConfig& config, Seed seed)
      : Blocks(LayerNorm<T>(config.checked().d_model, config.layer_norm_eps)),
        subsampling(Kind::template front<T>(config, seed)),
        lm_head(config.d_model, config.vocab_size, seed / "lm_head"),
        config_(config) {
    if (config.chunk > 0) Kind::require_streamable(config);
    const AttentionDims d = Policy::dims(config.for_layer(0).attention_config());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    config_.v_lora_rank = d.v_lora_rank;
    config_.q_lora_rank = d.q_lora_rank;
    config_.qk_rope_head_dim = d.qk_rope_head_dim;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_.for_layer(i), seed / "layers" / i);
    require(layers.front().attention().keeps_frames() || config.left_context < 0, "encoder: left_context ",
            config.left_context, " given, but the state of linear attention cannot forget; -1 expected");
  }

  /// Returns the configuration with every size resolved, also those that came from the type.
  const EncoderConfig& config() const { return config_; }
  /// Throws Error where a block sees what a stream cannot have.
  void require_streamable() const { Kind::require_streamable(config_); }

  /// Returns the logits of features (rows, num_mels): a Matrix, which must outlive the tape if there is one, any other
  /// Eigen expression, or a tensor of the context. `mask` says what encoder frames see. The output of each block,
  /// (rows, d_model), is appended to `outputs` where that is given.
  template <class Context, class Features>
  requires ContextOf<Context, T>
  auto operator()(Context& context, Features&& features, const Sequences& sequences, const Mask& mask,
                  std::vector<typename Context::Tensor>* outputs = nullptr) const {
    auto [x, out] = hidden(context, std::forward<Features>(features), sequences, mask, outputs);
    return Logits<decltype(x)>{lm_head(context, x), out};
  }
  /// Returns encoder frames (rows, d_model) of features, after the blocks and the norm, and their sequences: what
  /// `lm_head` and a decoder read. Arguments as above.
  template <class Context, class Features>
  auto hidden(Context& context, Features&& features, const Sequences& sequences, const Mask& mask,
              std::vector<typename Context::Tensor>* outputs = nullptr) const {
    auto [x, out] = subsampling(context, context.input(std::forward<Features>(features)), sequences);
    Pass<decltype(x)> pass{out, mask};
    pass.outputs = outputs;
    x = encode(context, context.dropout(std::move(x), config_.dropout), std::move(pass), nullptr);
    return std::pair(std::move(x), out);
  }
  /// Returns encoder frames of features under the configuration's mask.
  template <class Context, class Features>
  auto hidden(Context& context, Features&& features, const Sequences& sequences) const {
    return hidden(context, std::forward<Features>(features), sequences, config_.mask());
  }
  /// Returns the logits of features under the configuration's mask.
  template <class Context, class Features>
  requires ContextOf<Context, T>
  auto operator()(Context& context, Features&& features, const Sequences& sequences) const {
    return (*this)(context, std::forward<Features>(features), sequences, config_.mask());
  }
  /// Ends the compilation with a sentence where the context does not fit the model.
  template <class Context, class... Arguments>
  requires(!ContextOf<Context, T>) auto operator()(Context&, Arguments&&...) const {
    static_assert(detail::is_context_of<Context, T>());
  }

  /// Returns encoder frames (rows, d_model) after the blocks and the norm.
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences, const Mask& mask) const {
    return encode(context, std::move(x), Pass<Tensor>{sequences, mask}, nullptr);
  }
  /// Returns encoder frames (rows, d_model) after the blocks and the norm, under the configuration's mask.
  template <class Context, class Tensor>
  Tensor encode(Context& context, Tensor x, const Sequences& sequences) const {
    return encode(context, std::move(x), sequences, config_.mask());
  }
  /// Returns encoder frames (rows, d_model) after the blocks and the norm. With a pointer to a state, x holds whole
  /// chunks that follow what the state holds, or the last rows of their stream.
  template <class Context, class Tensor, class S>
  Tensor encode(Context& context, Tensor x, Pass<Tensor> pass, S state) const {
    static_assert(detail::is_context_of<Context, T>());
    require(x.rows() == pass.sequences.rows(), "encoder: ", x.rows(), " rows given, their sequences have ",
            pass.sequences.rows());
    if (pass.mask.chunk != Mask::unlimited) require_streamable();
    return this->run(context, std::move(x), std::move(pass), state);
  }

  /// Holds what streams keep, block by block. Takes memory at construction only.
  template <class Context>
  struct State : Blocks::template State<Context> {
    /// Makes states for `shape.slots` streams. Allocates. Throws Error where a block sees what a stream cannot have.
    State(Context& context, const Encoder& model, const StateShape& shape)
        : Blocks::template State<Context>(context, streamable(model), shape) {}

   private:
    static const Encoder& streamable(const Encoder& model) {
      model.require_streamable();
      return model;
    }
  };

  /// Returns the bytes of key-value cache for `n` encoder frames, all layers.
  static constexpr Index cache_bytes(const EncoderConfig& config, Frames n, Storage storage = Storage::full) {
    return config.over_layers([&](const AttentionConfig& c) { return Policy::cache_bytes(c, n, storage); });
  }

  /// Returns the encoder frames that `rows` rows of features give.
  static constexpr Index out_length(const EncoderConfig& config, Index rows) { return Kind::out_length(config, rows); }

  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameter_count(const EncoderConfig& config) {
    return Kind::front_parameters(config.checked());
  }
  /// Returns the trained parameters of the whole model.
  static constexpr Index parameter_count(const EncoderConfig& config) {
    const EncoderConfig& c = config.checked();
    return Kind::front_parameters(c) + c.num_layers * Kind::parameter_count(c) +
           c.over_layers([](const AttentionConfig& a) { return Policy::parameter_count(a); }) + 2 * c.d_model +
           (c.d_model + 1) * c.vocab_size;
  }

  /// Returns the floating-point operations (a multiply-add counts two) in matrix products and convolutions, for one
  /// utterance of `n` encoder frames.
  static constexpr Index flops(const EncoderConfig& config, Frames n) {
    const EncoderConfig& c = config.checked();
    return Kind::front_flops(c, n.count) + c.num_layers * Kind::flops(c, n.count) +
           c.over_layers([&](const AttentionConfig& a) { return Policy::flops(a, n, c.mask()); }) +
           2 * n.count * c.d_model * c.vocab_size;
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit(Kind::front_name, self.subsampling);
    visit(Kind::layers_name, self.layers);
    visit(Kind::norm_name, self.layer_norm);
    visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i)
      visit(std::string_view(text(Kind::layers_name, '.', i, '.', Kind::attention_name)), self.layers[i].attention());
  }

  Subsampling subsampling;  ///< the layers before the blocks
  Linear<T> lm_head;        ///< from d_model to vocab_size

 private:
  EncoderConfig config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one Branchformer block (Peng et al. 2022, section 3), (rows, d_model) to (rows, d_model): attention and
/// cgMLP in parallel, their merge, and a norm. Parameter names are ESPnet's.
template <class AttentionPolicy, class T>
class BranchformerBlock : public Module<BranchformerBlock<AttentionPolicy, T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  BranchformerBlock(const EncoderConfig& c, Seed seed)
      : branches(c, seed),
        merge_proj((c.merge == BranchMerge::concat ? 2 : 1) * c.d_model, c.d_model, seed / "merge_proj"),
        norm_final(c.d_model),
        merge_(c.merge),
        cgmlp_weight_(c.cgmlp_weight),
        dropout_(c.dropout) {
    if (merge_ != BranchMerge::learned_average) return;
    pooling_proj1 = Linear<T>(c.d_model, 1, seed / "pooling_proj1");
    pooling_proj2 = Linear<T>(c.d_model, 1, seed / "pooling_proj2");
    weight_proj1 = Linear<T>(c.d_model, 1, seed / "weight_proj1");
    weight_proj2 = Linear<T>(c.d_model, 1, seed / "weight_proj2");
  }

  /// Returns the self-attention.
  auto& attention() { return branches.attn; }
  /// Returns the self-attention.
  const auto& attention() const { return branches.attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const BranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape), conv(context, block.branches.cgmlp.csgu.conv, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;  ///< the past of the convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    auto [attention, cgmlp] = branches(context, x, pass, state);
    const Tensor y = merge_proj(context, merged(context, std::move(attention), cgmlp, pass));
    return norm_final(context, context.add(std::move(x), context.dropout(y, dropout_)));
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    Branches<AttentionPolicy, T>::each_parameter(self.branches, visit);
    if (self.merge_ == BranchMerge::learned_average) {
      visit("pooling_proj1", self.pooling_proj1);
      visit("pooling_proj2", self.pooling_proj2);
      visit("weight_proj1", self.weight_proj1);
      visit("weight_proj2", self.weight_proj2);
    }
    visit("merge_proj", self.merge_proj);
    visit("norm_final", self.norm_final);
  }

  Branches<AttentionPolicy, T> branches;  ///< attention and cgMLP
  Linear<T> pooling_proj1;                ///< pooling of attention for a learned average, else empty
  Linear<T> pooling_proj2;                ///< pooling of the cgMLP for a learned average, else empty
  Linear<T> weight_proj1;                 ///< weight of attention in a learned average, else empty
  Linear<T> weight_proj2;                 ///< weight of the cgMLP in a learned average, else empty
  Linear<T> merge_proj;                   ///< from the merged branches to d_model
  LayerNorm<T> norm_final;                ///< the last norm

 private:
  template <class Context, class Tensor>
  Tensor merged(Context& context, Tensor attention, const Tensor& cgmlp, const Pass<Tensor>& pass) const {
    switch (merge_) {
      case BranchMerge::concat:
        return context.concat(attention, cgmlp);
      case BranchMerge::fixed_average:
        return context.add(context.scale(attention, 1 - cgmlp_weight_), cgmlp, cgmlp_weight_);
      default: {
        const Tensor a = gate(context, attention, pooling_proj1, weight_proj1, pass.sequences);
        const Tensor b = gate(context, cgmlp, pooling_proj2, weight_proj2, pass.sequences);
        // Softmax over two is the sigmoid of their difference.
        return context.mix(attention, cgmlp, context.add(a, b, -1), pass.sequences);
      }
    }
  }
  /// Returns one value for each sequence, (sequences, 1): `weight` of its rows, averaged by the softmax of their
  /// products with `pooling`. This is attention of one query a sequence; the pooling's bias moves all its scores by the
  /// same amount.
  template <class Context, class Tensor>
  Tensor gate(Context& context, const Tensor& x, const Linear<T>& pooling, const Linear<T>& weight,
              const Sequences& sequences) const {
    const Index n = sequences.size();
    const Sequences one = sequences.map_lengths(context.arena(), [](Index) { return 1; });
    const Tensor zeros = context.fill(n, x.cols(), 0);
    const AttendShape shape{1, 1, 1 / std::sqrt(static_cast<double>(x.cols()))};
    return weight(context, context.attend(context.add_row(zeros, pooling.weight), x, x, shape, one, sequences));
  }

  BranchMerge merge_;
  double cgmlp_weight_, dropout_;
};

/// Describes Branchformer blocks after convolutional subsampling, for `Encoder`.
struct BranchformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = BranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";  ///< prefix of the attention's parameters in a block

  /// Returns the input channels of the linear layer after the merge.
  static constexpr Index merge_width(const EncoderConfig& c) {
    return (c.merge == BranchMerge::concat ? 2 : 1) * c.d_model;
  }
  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    return Branches<Mha<1>, float>::parameter_count(c) + (merge_width(c) + 1) * c.d_model + 2 * c.d_model +
           (c.merge == BranchMerge::learned_average ? 4 * (c.d_model + 1) : 0);
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    return ConvolutionalGatingMlp<float>::flops(c, frames) + 2 * frames * merge_width(c) * c.d_model;
  }
  /// Throws Error for centred convolutions and for a learned average.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "branchformer: a centred convolution cannot be streamed; causal or chunk expected");
    require(c.merge != BranchMerge::learned_average,
            "branchformer: a learned average weighs the branches by the whole utterance, so it cannot be streamed; "
            "concat or fixed-average expected");
  }
};

/// Encodes log-mel features by a Branchformer (Peng et al. 2022) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using Branchformer = Encoder<BranchformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the Conformer's feed-forward module without its norm (Gulati et al. 2020, section 2.3), (rows, d_model) to
/// (rows, d_model): linear, activation (SiLU in the paper), dropout, linear, dropout.
template <class T>
class FeedForward : public Module<FeedForward<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index d_model, Index hidden) {
    return 2 * d_model * hidden + hidden + d_model;
  }

  /// Makes the layer with its initial parameters. Allocates.
  FeedForward(Index d_model, Index hidden, Activation activation, double dropout, Seed seed)
      : intermediate_dense(d_model, hidden, seed / "intermediate_dense"),
        output_dense(hidden, d_model, seed / "output_dense"),
        activation_(activation),
        dropout_(dropout) {}

  /// Returns the output of the module.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    auto hidden = intermediate_dense(context, x, activation_);
    return context.dropout(output_dense(context, context.dropout(std::move(hidden), dropout_)), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("intermediate_dense", self.intermediate_dense);
    visit("output_dense", self.output_dense);
  }

  Linear<T> intermediate_dense;  ///< from d_model to the hidden width
  Linear<T> output_dense;        ///< from the hidden width to d_model

 private:
  Activation activation_;
  double dropout_;
};

/// Computes a gated feed-forward module (Shazeer 2020, "GLU variants"; SwiGLU with SiLU), (rows, d_model) to (rows,
/// d_model): down(activation(gate(x)) * up(x)), without biases. Parameter names are Llama's.
template <class T>
class GatedFeedForward : public Module<GatedFeedForward<T>> {
 public:
  /// Returns the trained parameters.
  static constexpr Index parameter_count(Index d_model, Index hidden) { return 3 * d_model * hidden; }

  /// Makes the layer with its initial parameters. Allocates.
  GatedFeedForward(Index d_model, Index hidden, Activation activation, double dropout, Seed seed)
      : gate_proj(d_model, hidden, seed / "gate_proj", Bias::no),
        up_proj(d_model, hidden, seed / "up_proj", Bias::no),
        down_proj(hidden, d_model, seed / "down_proj", Bias::no),
        activation_(activation),
        dropout_(dropout) {}

  /// Returns the output of the module.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x) const {
    const auto gate = gate_proj(context, x, activation_);
    return context.dropout(down_proj(context, context.multiply(gate, up_proj(context, x))), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("gate_proj", self.gate_proj);
    visit("up_proj", self.up_proj);
    visit("down_proj", self.down_proj);
  }

  Linear<T> gate_proj;  ///< from d_model to the hidden width, before the activation
  Linear<T> up_proj;    ///< from d_model to the hidden width
  Linear<T> down_proj;  ///< from the hidden width to d_model

 private:
  Activation activation_;
  double dropout_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes the Conformer's convolution module (Gulati et al. 2020, section 2.2), (rows, d_model) to (rows, d_model):
/// layer norm, pointwise convolution, GLU, depthwise convolution, batch norm, activation (SiLU in the paper), pointwise
/// convolution, dropout.
template <class T>
class ConvolutionModule : public Module<ConvolutionModule<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  ConvolutionModule(const EncoderConfig& c, Seed seed)
      : layer_norm(c.d_model),
        pointwise_conv1(Linear<T>::pointwise_conv(c.d_model, 2 * c.d_model, seed / "pointwise_conv1")),
        depthwise_conv(c.d_model, c.conv_kernel, c.convolution, seed / "depthwise_conv"),
        batch_norm(c.d_model),
        pointwise_conv2(Linear<T>::pointwise_conv(c.d_model, c.d_model, seed / "pointwise_conv2")),
        hidden_act_(c.hidden_act),
        dropout_(c.dropout) {}

  /// Returns the output of the module. With a pointer to a state, x follows what the state holds.
  template <class Context, class Tensor, class S = std::nullptr_t>
  Tensor operator()(Context& context, const Tensor& x, const Pass<Tensor>& pass, S state = nullptr) const {
    auto y = context.glu(pointwise_conv1(context, layer_norm(context, x)));
    y = batch_norm(context, depthwise_conv(context, y, pass, state));
    y = pointwise_conv2(context, context.activation(hidden_act_, std::move(y)));
    return context.dropout(std::move(y), dropout_);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("layer_norm", self.layer_norm);
    visit("pointwise_conv1", self.pointwise_conv1);
    visit("depthwise_conv", self.depthwise_conv);
    visit("batch_norm", self.batch_norm);
    visit("pointwise_conv2", self.pointwise_conv2);
  }

  LayerNorm<T> layer_norm;          ///< the first norm
  Linear<T> pointwise_conv1;        ///< from d_model to twice as many channels
  DepthwiseConv<T> depthwise_conv;  ///< the convolution over time
  BatchNorm<T> batch_norm;          ///< the norm after it
  Linear<T> pointwise_conv2;        ///< from d_model to d_model

 private:
  Activation hidden_act_;
  double dropout_;
};

/// Computes one Conformer block (Gulati et al. 2020, equation 1), (rows, d_model) to (rows, d_model): half a
/// feed-forward, attention, convolution, half a feed-forward, norm. Parameter names and layout are those of the Hugging
/// Face Conformer.
template <class AttentionPolicy, class T>
class ConformerBlock : public Module<ConformerBlock<AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  ConformerBlock(const EncoderConfig& c, Seed seed)
      : ffn1_layer_norm(c.d_model),
        ffn1(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "ffn1"),
        self_attn_layer_norm(c.d_model),
        self_attn(c.attention_config(), c.dropout, seed / "self_attn"),
        conv_module(c, seed / "conv_module"),
        ffn2_layer_norm(c.d_model),
        ffn2(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "ffn2"),
        final_layer_norm(c.d_model),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return self_attn; }
  /// Returns the self-attention.
  const auto& attention() const { return self_attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const ConformerBlock& block, const StateShape& shape)
        : attention(context, block.self_attn, shape), conv(context, block.conv_module.depthwise_conv, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes(); }

    typename AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;    ///< the past of the convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    // Each result before `x` is moved from: arguments are evaluated in any order.
    Tensor y = ffn1(context, ffn1_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    if constexpr (has_state<S>)
      y = self_attn(context, self_attn_layer_norm(context, x), pass, &state->attention);
    else
      y = self_attn(context, self_attn_layer_norm(context, x), pass);
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    if constexpr (has_state<S>)
      y = conv_module(context, x, pass, &state->conv);
    else
      y = conv_module(context, x, pass);
    x = context.add(std::move(x), y);
    y = ffn2(context, ffn2_layer_norm(context, x));
    x = context.add(std::move(x), y, 0.5);
    return final_layer_norm(context, x);
  }

  /// Visits the parameters with their names (see Module).
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

  LayerNorm<T> ffn1_layer_norm;       ///< the norm before the first feed-forward
  FeedForward<T> ffn1;                ///< the first feed-forward
  LayerNorm<T> self_attn_layer_norm;  ///< the norm before attention
  AttentionType self_attn;            ///< the attention
  ConvolutionModule<T> conv_module;   ///< the convolution module with its norm
  LayerNorm<T> ffn2_layer_norm;       ///< the norm before the second feed-forward
  FeedForward<T> ffn2;                ///< the second feed-forward
  LayerNorm<T> final_layer_norm;      ///< the last norm

 private:
  double dropout_;
};

/// Describes Conformer blocks after convolutional subsampling, for `Encoder`.
struct ConformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = ConformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "self_attn";  ///< prefix of the attention's parameters in a block

  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, hidden = c.feed_forward_width();
    return 5 * 2 * d + 2 * (2 * d * hidden + hidden + d) + 3 * d * d + c.conv_kernel * d + 2 * d;
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    const Index d = c.d_model;
    return 2 * frames * (2 * 2 * c.feed_forward_width() * d + 3 * d * d + c.conv_kernel * d);
  }
  /// Throws Error for centred convolutions.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "conformer: a centred convolution cannot be streamed; causal or chunk expected");
  }
};

/// Encodes log-mel features by a Conformer (Gulati et al. 2020) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using Conformer = Encoder<ConformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one E-Branchformer block (Kim et al. 2022), (rows, d_model) to (rows, d_model): half a feed-forward, both
/// branches, their merge with a depthwise convolution, half a feed-forward, norm. Parameter names are ESPnet's; those
/// in the feed-forwards are Hugging Face's.
template <class AttentionPolicy, class T>
class EBranchformerBlock : public Module<EBranchformerBlock<AttentionPolicy, T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  EBranchformerBlock(const EncoderConfig& c, Seed seed)
      : norm_ff_macaron(c.d_model),
        feed_forward_macaron(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "feed_forward_macaron"),
        branches(c, seed),
        depthwise_conv_fusion(2 * c.d_model, c.merge_kernel, c.convolution, seed / "depthwise_conv_fusion", Bias::yes),
        merge_proj(2 * c.d_model, c.d_model, seed / "merge_proj"),
        norm_ff(c.d_model),
        feed_forward(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "feed_forward"),
        norm_final(c.d_model),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return branches.attn; }
  /// Returns the self-attention.
  const auto& attention() const { return branches.attn; }

  /// Holds what streams keep of earlier frames.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` streams. Allocates.
    State(Context& context, const EBranchformerBlock& block, const StateShape& shape)
        : attention(context, block.branches.attn, shape),
          conv(context, block.branches.cgmlp.csgu.conv, shape),
          fusion(context, block.depthwise_conv_fusion, shape) {}
    /// Empties a slot for a new stream.
    void clear(Context& context, Index slot) {
      attention.clear(context, slot);
      conv.clear(context, slot);
      fusion.clear(context, slot);
    }
    /// Fills a slot as if frames of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Returns the bytes that the convolutions hold, all slots.
    Index convolution_bytes() const { return conv.cache_bytes() + fusion.cache_bytes(); }

    typename Branches<AttentionPolicy, T>::AttentionType::template State<Context> attention;  ///< the past of attention
    typename DepthwiseConv<T>::template State<Context> conv;    ///< the past of the cgMLP's convolution
    typename DepthwiseConv<T>::template State<Context> fusion;  ///< the past of the merge's convolution
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    Tensor y = feed_forward_macaron(context, norm_ff_macaron(context, x));
    x = context.add(std::move(x), y, 0.5);
    const auto [attention, cgmlp] = branches(context, x, pass, state);
    Tensor both = context.concat(attention, cgmlp);
    if constexpr (has_state<S>)
      y = depthwise_conv_fusion(context, both, pass, &state->fusion);
    else
      y = depthwise_conv_fusion(context, both, pass);
    y = merge_proj(context, context.add(std::move(both), y));
    x = context.add(std::move(x), context.dropout(std::move(y), dropout_));
    y = feed_forward(context, norm_ff(context, x));
    x = context.add(std::move(x), y, 0.5);
    return norm_final(context, x);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm_ff_macaron", self.norm_ff_macaron);
    visit("feed_forward_macaron", self.feed_forward_macaron);
    Branches<AttentionPolicy, T>::each_parameter(self.branches, visit);
    visit("depthwise_conv_fusion", self.depthwise_conv_fusion);
    visit("merge_proj", self.merge_proj);
    visit("norm_ff", self.norm_ff);
    visit("feed_forward", self.feed_forward);
    visit("norm_final", self.norm_final);
  }

  LayerNorm<T> norm_ff_macaron;            ///< the norm before the first feed-forward
  FeedForward<T> feed_forward_macaron;     ///< the first feed-forward
  Branches<AttentionPolicy, T> branches;   ///< attention and cgMLP
  DepthwiseConv<T> depthwise_conv_fusion;  ///< the convolution of both branches
  Linear<T> merge_proj;                    ///< from both branches to d_model
  LayerNorm<T> norm_ff;                    ///< the norm before the second feed-forward
  FeedForward<T> feed_forward;             ///< the second feed-forward
  LayerNorm<T> norm_final;                 ///< the last norm

 private:
  double dropout_;
};

/// Describes E-Branchformer blocks after convolutional subsampling, for `Encoder`.
struct EBranchformerKind : FeatureFront {
  /// The block of an attention policy in numbers of type T.
  template <class AttentionPolicy, class T>
  using Block = EBranchformerBlock<AttentionPolicy, T>;
  static constexpr const char* attention_name = "attn";  ///< prefix of the attention's parameters in a block

  /// Returns the trained parameters of a block without its attention.
  static constexpr Index parameter_count(const EncoderConfig& c) {
    const Index d = c.d_model, hidden = c.feed_forward_width();
    return Branches<Mha<1>, float>::parameter_count(c) + 3 * 2 * d + 2 * (2 * d * hidden + hidden + d) +
           DepthwiseConv<float>::parameter_count(2 * d, c.merge_kernel, Bias::yes) + (2 * d + 1) * d;
  }
  /// Returns the floating-point operations of a block without its attention.
  static constexpr Index flops(const EncoderConfig& c, Index frames) {
    const Index d = c.d_model;
    return ConvolutionalGatingMlp<float>::flops(c, frames) +
           2 * frames * (2 * 2 * c.feed_forward_width() * d + 2 * d * c.merge_kernel + 2 * d * d);
  }
  /// Throws Error for centred convolutions.
  static constexpr void require_streamable(const EncoderConfig& c) {
    require(c.convolution != ConvolutionContext::centred,
            "e-branchformer: a centred convolution cannot be streamed; causal or chunk expected");
  }
};

/// Encodes log-mel features by an E-Branchformer (Kim et al. 2022) with convolutional subsampling and a CTC head.
template <class AttentionPolicy, class T = float>
using EBranchformer = Encoder<EBranchformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds all sizes of a decoder-only language model. Those of the attention may stay 0 where its type gives them.
struct LanguageModelConfig {
  Index vocab_size = 50257;                          ///< tokens
  Index max_positions = 1024;                        ///< tokens that the model sees at a time
  Index d_model = 768;                               ///< channels between the blocks
  Index num_layers = 12;                             ///< blocks
  AttentionName attention = AttentionName::by_type;  ///< the attention by name
  Index num_heads = 0;                               ///< query heads
  Index num_kv_heads = 0;                            ///< key-value heads, a divisor of num_heads
  Index head_dim = 0;                                ///< channels of a head; 0: d_model / num_heads
  Index kv_lora_rank = 0;                            ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;                             ///< rank of the values' latent: see AttentionConfig
  Index q_lora_rank = 0;                             ///< rank of the queries
  Index qk_rope_head_dim = 0;                        ///< width of the decoupled rotary key
  IndexList rope_pairs{};                            ///< pairs of the decoupled rotary key: see AttentionConfig
  RotaryRates rope{};                                ///< how fast the pairs of rotary positions rotate
  /// How the order of tokens is known: by `learned` vectors that are added to the embeddings, or by `rotary` positions.
  PositionEmbeddings position_embeddings_type = PositionEmbeddings::learned;
  bool attention_bias = true;                    ///< biases in the attention
  Activation hidden_act = Activation::gelu_new;  ///< activation of the feed-forward modules
  Index intermediate_size = 0;                   ///< width of the feed-forward modules; 0: 4 * d_model
  double layer_norm_eps = 1e-5;                  ///< epsilon of the norms
  bool tied_embeddings = true;                   ///< whether the logits are products with the embeddings themselves
  double dropout = 0;                            ///< probability of dropout in training

  /// Returns the sizes of the attention.
  constexpr AttentionConfig attention_config() const {
    return {.d_model = d_model,
            .num_heads = num_heads,
            .num_kv_heads = num_kv_heads,
            .kv_lora_rank = kv_lora_rank,
            .v_lora_rank = v_lora_rank,
            .q_lora_rank = q_lora_rank,
            .qk_rope_head_dim = qk_rope_head_dim,
            .rope_pairs = rope_pairs,
            .rope = rope,
            .head_dim = head_dim,
            .attention_bias = attention_bias,
            .attention = attention,
            .position_embeddings_type = position_embeddings_type};
  }
  /// Returns the mask under which a token sees itself and the tokens before it.
  static constexpr Mask mask() { return Mask::causal(); }
  /// Returns the width of the feed-forward modules.
  constexpr Index feed_forward_width() const { return intermediate_size > 0 ? intermediate_size : 4 * d_model; }

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("vocab_size", self.vocab_size);
    visit("max_positions", self.max_positions);
    visit("d_model", self.d_model);
    visit("num_layers", self.num_layers);
    visit("attention", self.attention);
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("head_dim", self.head_dim);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
    visit("rope_pairs", self.rope_pairs);
    visit("rope", self.rope);
    visit("position_embeddings_type", self.position_embeddings_type);
    visit("attention_bias", self.attention_bias);
    visit("hidden_act", self.hidden_act);
    visit("intermediate_size", self.intermediate_size);
    visit("layer_norm_eps", self.layer_norm_eps);
    visit("tied_embeddings", self.tied_embeddings);
    visit("dropout", self.dropout);
  }

  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const LanguageModelConfig& checked() const {
    const auto within = [](Index value, Index min, Index max, const char* name) {
      require(value >= min && value <= max, "language model: ", name, ' ', value, " given, ", min, " to ", max,
              " expected");
    };
    within(vocab_size, 1, 1 << 24, "vocab_size");
    within(max_positions, 1, 1 << 24, "max_positions");
    within(d_model, 1, 1 << 16, "d_model");
    within(num_layers, 1, 1 << 12, "num_layers");
    within(num_heads, 0, 1 << 16, "num_heads");
    within(num_kv_heads, 0, 1 << 16, "num_kv_heads");
    within(head_dim, 0, 1 << 16, "head_dim");
    within(kv_lora_rank, 0, 1 << 16, "kv_lora_rank");
    within(v_lora_rank, 0, 1 << 16, "v_lora_rank");
    within(q_lora_rank, 0, 1 << 16, "q_lora_rank");
    within(qk_rope_head_dim, 0, 1 << 16, "qk_rope_head_dim");
    within(intermediate_size, 0, 1 << 22, "intermediate_size");
    within(num_heads * head_dim, 0, 1 << 20, "num_heads * head_dim");
    require(position_embeddings_type == PositionEmbeddings::learned ||
                position_embeddings_type == PositionEmbeddings::rotary,
            "language model: position_embeddings_type ", to_name(position_embeddings_type),
            " given, learned or rotary expected");
    require(layer_norm_eps > 0 && layer_norm_eps < 1, "language model: layer_norm_eps ", layer_norm_eps,
            " given, more than 0 and less than 1 expected");
    require(dropout >= 0 && dropout < 1, "language model: dropout ", dropout, " given, expected from 0 to less than 1");
    return *this;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Looks up a row for each id: ids to (ids, width). A model may multiply by the weight, too: with the layer's `linear`,
/// the same matrix turns rows back into logits of all ids (tied embeddings, Press and Wolf 2017). Initial values are
/// GPT-2's: normal with a standard deviation of 0.02.
template <class T>
class Embedding : public Module<Embedding<T>> {
 public:
  /// Makes an empty layer, without parameters.
  Embedding() = default;
  /// Makes the layer with its initial parameters. `use` is WeightUse::linear where products read the weight, too.
  /// Allocates.
  Embedding(Index count, Index width, Seed seed, WeightUse use = WeightUse::elementwise) : weight({count, width}) {
    weight.use = use;
    const Random random(seed, "weight");
    for (Index i = 0; i < weight.size(); ++i)
      weight.host().data()[i] = static_cast<T>(0.02 * random.normal(static_cast<std::uint64_t>(i)));
  }

  /// Returns the number of ids.
  Index count() const { return weight.rows(); }

  /// Returns the row of each id. Throws Error for an id that has none.
  template <class Context>
  auto operator()(Context& context, std::span<const int> ids) const {
    return context.embed(ids, weight);
  }
  /// Returns, for each row of a pass, the row of its position in its sequence: learned positions.
  template <class Context, class Tensor>
  Tensor of_positions(Context& context, const Pass<Tensor>& pass) const {
    const Index rows = pass.sequences.rows();
    const Buffer memory = context.arena().allocate(static_cast<std::size_t>(std::max<Index>(1, rows)) * sizeof(int));
    auto* ids = static_cast<int*>(memory.data());
    for (Index n = 0; n < pass.sequences.size(); ++n)
      for (Index i = 0; i < pass.sequences.length(n); ++i)
        ids[pass.sequences.begin(n) + i] = static_cast<int>(pass.first(n) + i);
    return (*this)(context, std::span<const int>(ids, static_cast<std::size_t>(rows)));
  }
  /// Returns x W^T: the product of each row of x (rows, width) with the rows of all ids, (rows, count).
  template <class Context, class Tensor>
  auto linear(Context& context, const Tensor& x) const {
    return context.linear(x, weight, nullptr);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }

  Parameter<T> weight;  ///< (count, width)
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes a block with a norm before each of its parts, (rows, d_model) to (rows, d_model): x + attention(norm(x)),
/// then x + feed-forward(norm(x)) (GPT-2, Radford et al. 2019, section 2.3; Llama, Touvron et al. 2023, section 2.2).
/// The kind of model says which norm and which feed-forward module: see LanguageModel.
template <class Kind, class AttentionPolicy, class T>
class PreNormBlock : public Module<PreNormBlock<Kind, AttentionPolicy, T>> {
 public:
  using AttentionType = typename AttentionPolicy::template Layer<T>;  ///< the layer of the attention policy
  using Norm = typename Kind::template Norm<T>;                       ///< the layer of both norms

  /// Makes the layer with its initial parameters. Allocates.
  PreNormBlock(const LanguageModelConfig& c, Seed seed)
      : attention_norm(c.d_model, c.layer_norm_eps),
        self_attn(c.attention_config(), c.dropout, seed / Kind::attention_name),
        feed_forward_norm(c.d_model, c.layer_norm_eps),
        mlp(c.d_model, c.feed_forward_width(), c.hidden_act, c.dropout, seed / "mlp"),
        dropout_(c.dropout) {}

  /// Returns the self-attention.
  auto& attention() { return self_attn; }
  /// Returns the self-attention.
  const auto& attention() const { return self_attn; }

  /// Holds what sequences keep of earlier tokens.
  template <class Context>
  struct State {
    /// Makes the state of `shape.slots` sequences. Allocates.
    State(Context& context, const PreNormBlock& block, const StateShape& shape)
        : attention(context, block.self_attn, shape) {}
    /// Empties a slot for a new sequence.
    void clear(Context& context, Index slot) { attention.clear(context, slot); }
    /// Fills a slot as if tokens of zeros had come before, as many as are kept.
    void fill_zeros(Context& context, Index slot) { attention.fill_zeros(context, slot); }
    /// Makes slot `to` hold what slot `from` holds.
    void fork(Context& context, Index from, Index to) { attention.fork(context, from, to); }
    /// Returns 0, since there are no convolutions.
    Index convolution_bytes() const { return 0; }

    typename AttentionType::template State<Context> attention;  ///< the past of attention
  };

  /// Returns the output of the block. `state` is a pointer to a State, or `nullptr` for whole sequences.
  template <class Context, class Tensor, class S>
  Tensor operator()(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    return feed_forward(context, attend(context, std::move(x), pass, state));
  }
  /// Returns x + attention(norm(x)), the first half of the block.
  template <class Context, class Tensor, class S>
  Tensor attend(Context& context, Tensor x, const Pass<Tensor>& pass, S state) const {
    Tensor y;
    if constexpr (has_state<S>)
      y = self_attn(context, attention_norm(context, x), pass, &state->attention);
    else
      y = self_attn(context, attention_norm(context, x), pass);
    return context.add(std::move(x), context.dropout(std::move(y), dropout_));
  }
  /// Returns x + feed-forward(norm(x)), the second half of the block.
  template <class Context, class Tensor>
  Tensor feed_forward(Context& context, Tensor x) const {
    const Tensor y = mlp(context, feed_forward_norm(context, x));
    return context.add(std::move(x), y);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(const LanguageModelConfig& c) {
    return 2 * Norm::parameter_count(c.d_model) + AttentionPolicy::parameter_count(c.attention_config()) +
           Kind::template FeedForward<T>::parameter_count(c.d_model, c.feed_forward_width());
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit(Kind::attention_norm_name, self.attention_norm);
    visit(Kind::attention_name, self.self_attn);
    visit(Kind::feed_forward_norm_name, self.feed_forward_norm);
    visit("mlp", self.mlp);
  }

  Norm attention_norm;                         ///< the norm before attention
  AttentionType self_attn;                     ///< the attention
  Norm feed_forward_norm;                      ///< the norm before the feed-forward module
  typename Kind::template FeedForward<T> mlp;  ///< the feed-forward module

 private:
  double dropout_;
};

/// Predicts the next token of each token (GPT-2, Radford et al. 2019): embeddings, a stack of causal blocks with a
/// norm, and logits of all tokens.
///
///     Gpt<Mha<12, NoPosition>> model(config, Seed(1));
///     auto logits = model(cpu, {ids, Sequences{5, 9}});   // ids of 14 tokens; logits (14, vocab_size)
///
/// A token never sees a later one. With `learned` positions a vector for each position is added to the embeddings,
/// unless the attention has a rotary key of its own; an attention with rotary positions goes with `rotary` only.
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only. `TokenDecoder` (decode/token_decoder.hpp) runs it token by token.
template <class Kind, class AttentionPolicy, class T = float>
class LanguageModel : public Module<LanguageModel<Kind, AttentionPolicy, T>>,
                      public Stack<PreNormBlock<Kind, AttentionPolicy, T>, typename Kind::template Norm<T>> {
  using Norm = typename Kind::template Norm<T>;
  using Blocks = Stack<PreNormBlock<Kind, AttentionPolicy, T>, Norm>;

 public:
  using Scalar = T;                    ///< the type of its parameters
  using Policy = AttentionPolicy;      ///< the attention of its blocks
  using Config = LanguageModelConfig;  ///< the type of its configuration
  using Blocks::layers, Blocks::layer_norm;
  using typename Blocks::Block;
  /// Holds what sequences keep, block by block. Takes memory at construction only.
  template <class Context>
  using State = typename Blocks::template State<Context>;

  /// Makes a model with random parameters. Allocates. Throws Error for sizes that do not fit.
  LanguageModel(const LanguageModelConfig& config, Seed seed)
      : Blocks(Norm(config.checked().d_model, config.layer_norm_eps)),
        wte(config.vocab_size, config.d_model, seed / "wte",
            config.tied_embeddings ? WeightUse::linear : WeightUse::elementwise),
        config_(config) {
    detail::with_policy<Policy>(config.attention_config(), [&]<class P>(std::type_identity<P>) {
      const bool rotary = config.position_embeddings_type == PositionEmbeddings::rotary;
      require(rotary ? P::Position::turns_keys : !detail::NamedPolicy<P>::rotates,
              "language model: position_embeddings_type ", to_name(config.position_embeddings_type), " given, ",
              detail::NamedPolicy<P>::rotates ? "rotary" : "learned", " expected for this attention");
    });
    const AttentionDims d = Policy::dims(config.attention_config());
    config_.num_heads = d.num_heads;
    config_.num_kv_heads = d.num_kv_heads;
    config_.kv_lora_rank = d.kv_lora_rank;
    config_.v_lora_rank = d.v_lora_rank;
    config_.q_lora_rank = d.q_lora_rank;
    config_.qk_rope_head_dim = d.qk_rope_head_dim;
    layers.reserve(static_cast<std::size_t>(config.num_layers));
    for (Index i = 0; i < config.num_layers; ++i) layers.emplace_back(config_, seed / "layers" / i);
    if (learns_positions(config)) wpe = Embedding<T>(config.max_positions, config.d_model, seed / "wpe");
    if (!config.tied_embeddings) lm_head = Linear<T>(config.d_model, config.vocab_size, seed / "lm_head", Bias::no);
  }

  /// Returns the configuration with every size resolved, also those that came from the type.
  const LanguageModelConfig& config() const { return config_; }
  /// Says whether the order of tokens is known by learned vectors: unless it is rotary, or the attention has a rotary
  /// key of its own (a decoupled latent).
  static constexpr bool learns_positions(const LanguageModelConfig& config) {
    return config.position_embeddings_type == PositionEmbeddings::learned &&
           detail::with_policy<Policy>(config.attention_config(),
                                       []<class P>(std::type_identity<P>) { return !P::Position::turns_keys; });
  }

  /// Returns the logits (rows, vocab_size) of the token after each token. Throws Error for an id that is no token and
  /// for a sequence longer than max_positions.
  template <class Context>
  requires ContextOf<Context, T>
  auto operator()(Context& context, const TokenRows& tokens) const {
    Pass<typename Context::Tensor> pass{tokens.sequences, Mask::causal()};
    return logits(context, hidden(context, tokens.ids, std::move(pass), nullptr));
  }
  /// Ends the compilation with a sentence where the context does not fit the model.
  template <class Context, class... Arguments>
  requires(!ContextOf<Context, T>) auto operator()(Context&, Arguments&&...) const {
    static_assert(detail::is_context_of<Context, T>());
  }

  /// Returns the rows (rows, d_model) from which `logits` predicts. With a pointer to a state, the tokens follow those
  /// that the state holds, and the pass says where.
  template <class Context, class Tensor, class S>
  Tensor hidden(Context& context, std::span<const int> ids, Pass<Tensor> pass, S state) const {
    Tensor x = embedded(context, ids, pass);
    return this->run(context, std::move(x), std::move(pass), state);
  }
  /// Returns the rows (rows, d_model) of tokens before the first block: embeddings and positions.
  template <class Context, class Tensor>
  Tensor embedded(Context& context, std::span<const int> ids, const Pass<Tensor>& pass) const {
    require(static_cast<Index>(ids.size()) == pass.sequences.rows(), "language model: ", ids.size(),
            " tokens given, their sequences have ", pass.sequences.rows());
    for (Index n = 0; n < pass.sequences.size(); ++n)
      require(pass.first(n) + pass.sequences.length(n) <= config_.max_positions, "language model: sequence ", n, " of ",
              pass.first(n) + pass.sequences.length(n),
              " tokens given, at most max_positions = ", config_.max_positions, " expected");
    Tensor x = wte(context, ids);
    if (wpe.count() > 0) x = context.add(std::move(x), wpe.of_positions(context, pass));
    return context.dropout(std::move(x), config_.dropout);
  }
  /// Returns the logits (rows, vocab_size) of rows that `hidden` gave.
  template <class Context, class Tensor>
  Tensor logits(Context& context, const Tensor& rows) const {
    return config_.tied_embeddings ? wte.linear(context, rows) : lm_head(context, rows);
  }

  /// Returns the bytes of key-value cache for `n` tokens of one sequence, all layers.
  static constexpr Index cache_bytes(const LanguageModelConfig& config, Frames n, Storage storage = Storage::full) {
    return config.num_layers * Policy::cache_bytes(config.attention_config(), n, storage);
  }
  /// Returns the trained parameters of the whole model. Tied embeddings count once.
  static constexpr Index parameter_count(const LanguageModelConfig& config) {
    const LanguageModelConfig& c = config.checked();
    const Index d = c.d_model;
    return c.vocab_size * d * (c.tied_embeddings ? 1 : 2) + c.num_layers * Block::parameter_count(c) +
           Norm::parameter_count(d) + (learns_positions(c) ? c.max_positions * d : 0);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("wte", self.wte);
    if (self.wpe.count() > 0) visit("wpe", self.wpe);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
    if (!self.config_.tied_embeddings) visit("lm_head", self.lm_head);
  }
  /// Calls `visit(dotted_name, attention_layer)` for every layer.
  static void each_attention(auto& self, auto&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i)
      visit(std::string_view(text("layers.", i, '.', Kind::attention_name)), self.layers[i].attention());
  }

  Embedding<T> wte;   ///< the embedding of each token, (vocab_size, d_model)
  Embedding<T> wpe;   ///< the vector of each position, (max_positions, d_model), or empty
  Linear<T> lm_head;  ///< from d_model to vocab_size, or empty where embeddings are tied

 private:
  LanguageModelConfig config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes GPT-2, for `LanguageModel`. The names below are those of transformers.
struct GptKind {
  /// The norms in the blocks and after them.
  template <class T>
  using Norm = LayerNorm<T>;
  /// The feed-forward modules.
  template <class T>
  using FeedForward = laconic::FeedForward<T>;
  static constexpr const char* attention_norm_name = "ln_1";     ///< prefix of the norm before attention
  static constexpr const char* attention_name = "attn";          ///< prefix of the attention
  static constexpr const char* feed_forward_norm_name = "ln_2";  ///< prefix of the norm before the feed-forward module
};

/// Predicts the next token as GPT-2 does (Radford et al. 2019): layer norms, and feed-forward modules with GELU.
template <class AttentionPolicy, class T = float>
using Gpt = LanguageModel<GptKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the sizes of the cross-attention of a decoder. They may stay 0 where its type gives them.
struct CrossAttentionConfig {
  Index num_heads = 0;         ///< query heads
  Index num_kv_heads = 0;      ///< key-value heads, a divisor of num_heads
  Index kv_lora_rank = 0;      ///< rank of the latent: see AttentionConfig
  Index v_lora_rank = 0;       ///< rank of the values' latent: see AttentionConfig
  Index q_lora_rank = 0;       ///< rank of the queries
  Index qk_rope_head_dim = 0;  ///< width of the decoupled rotary key

  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("num_heads", self.num_heads);
    visit("num_kv_heads", self.num_kv_heads);
    visit("kv_lora_rank", self.kv_lora_rank);
    visit("v_lora_rank", self.v_lora_rank);
    visit("q_lora_rank", self.q_lora_rank);
    visit("qk_rope_head_dim", self.qk_rope_head_dim);
  }
};

/// Holds all sizes of a decoder that reads an encoder's output.
struct AttentionDecoderConfig {
  LanguageModelConfig text;      ///< everything but the cross-attention
  CrossAttentionConfig cross{};  ///< the cross-attention; its width and biases are those of `text`

  /// Returns the sizes of the cross-attention.
  constexpr AttentionConfig cross_config() const {
    return {.d_model = text.d_model,
            .num_heads = cross.num_heads,
            .num_kv_heads = cross.num_kv_heads,
            .kv_lora_rank = cross.kv_lora_rank,
            .v_lora_rank = cross.v_lora_rank,
            .q_lora_rank = cross.q_lora_rank,
            .qk_rope_head_dim = cross.qk_rope_head_dim,
            .attention_bias = text.attention_bias};
  }
  /// Returns this configuration if every size is in its range. Throws Error otherwise. The upper ends exceed any use
  /// and keep products from overflowing.
  constexpr const AttentionDecoderConfig& checked() const {
    text.checked();
    CrossAttentionConfig::fields(cross, [](const char* name, const Index& value) {
      require(value >= 0 && value <= 1 << 16, "attention decoder: ", name, ' ', value,
              " given for the cross-attention, 0 to ", 1 << 16, " expected");
    });
    return *this;
  }
  /// Visits each member with its name, for files and command lines.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("text", self.text);
    visit("cross", self.cross);
  }
};

/// Computes x + attention(norm(x)) over the rows of a source: the cross-attention of a decoder's block.
template <class Policy, class T>
class CrossAttention : public Module<CrossAttention<Policy, T>> {
 public:
  using AttentionType = typename Policy::template Layer<T>;  ///< the layer of the attention policy

  /// Makes the layer with its initial parameters. Allocates.
  CrossAttention(const AttentionDecoderConfig& c, Seed seed)
      : norm(c.text.d_model, c.text.layer_norm_eps),
        attention(c.cross_config(), c.text.dropout, seed / "attention"),
        dropout_(c.text.dropout) {}

  /// Returns x (rows, d_model) with what its rows, in `queries`, read from the memory of the sources.
  template <class Context, class Tensor, class Memory>
  Tensor operator()(Context& context, Tensor x, const Sequences& queries, const Memory& memory,
                    const Sequences& sources, const Tensor& table) const {
    Tensor y = attention.cross(context, norm(context, x), queries, memory, sources, table);
    return context.add(std::move(x), context.dropout(std::move(y), dropout_));
  }
  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("attention", self.attention);
  }

  LayerNorm<T> norm;        ///< the norm before it
  AttentionType attention;  ///< the attention

 private:
  double dropout_;
};

/// Predicts tokens from the tokens before them and from the output of an encoder (Vaswani et al. 2017, section 3.1,
/// with a norm before each part): a GPT with a cross-attention between self-attention and feed-forward of each block.
///
///     AttentionDecoder<Mha<4, NoPosition>, MlaSimple<4, 32, NoPosition>> decoder(config, Seed(1));
///     const auto memory = decoder.remember(cpu, encoded, sources);
///     auto logits = decoder(cpu, {ids, Sequences{5, 9}}, memory, sources);   // sequence n reads source n
///
/// The memory of the sources is computed once for all tokens. With `CachedInput` it is the encoder's output itself, and
/// all layers share it. Construction allocates, and throws Error where the sizes do not fit; the forward pass takes
/// memory from the context's pool only. `SourceDecoder` (decode/source_decoder.hpp) runs it token by token.
template <class SelfPolicy, class CrossPolicy, class T = float>
class AttentionDecoder : public Module<AttentionDecoder<SelfPolicy, CrossPolicy, T>> {
 public:
  using Scalar = T;                              ///< the type of its parameters
  using Config = AttentionDecoderConfig;         ///< the type of its configuration
  using Text = Gpt<SelfPolicy, T>;               ///< the part that knows no source
  using Cross = CrossAttention<CrossPolicy, T>;  ///< the part that reads it
  /// Holds what sequences keep of earlier tokens, block by block.
  template <class Context>
  using State = typename Text::template State<Context>;

  /// Makes a decoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  AttentionDecoder(const AttentionDecoderConfig& config, Seed seed) : text(config.checked().text, seed / "text") {
    cross.reserve(text.layers.size());
    for (Index i = 0; i < config.text.num_layers; ++i) cross.emplace_back(config, seed / "cross" / i);
    const AttentionDims& d = cross.front().attention.dims();
    cross_config_ = {d.num_heads, d.num_kv_heads, d.kv_lora_rank, d.v_lora_rank, d.q_lora_rank, d.qk_rope_head_dim};
  }

  /// Returns the configuration with every size resolved, also those that came from the types.
  AttentionDecoderConfig config() const { return {text.config(), cross_config_}; }

  /// Returns what the cross-attention of each block needs of the rows (rows, d_model) of sources. Allocates a list of
  /// as many entries as there are blocks. Throws Error for rows of another width.
  template <class Context, class Tensor>
  auto remember(Context& context, const Tensor& source, const Sequences& sources) const {
    std::vector<decltype(cross.front().attention.remember(context, source, sources))> memory;
    memory.reserve(cross.size());
    for (const Cross& layer : cross) memory.push_back(layer.attention.remember(context, source, sources));
    return memory;
  }

  /// Returns the logits (rows, vocab_size) of the token after each token; sequence n of the tokens reads source n.
  /// Throws Error for an id that is no token and for a sequence longer than max_positions.
  template <class Context, class Memory>
  requires ContextOf<Context, T>
  auto operator()(Context& context, const TokenRows& tokens, const Memory& memory, const Sequences& sources) const {
    Pass<typename Context::Tensor> pass{tokens.sequences, Mask::causal()};
    return text.logits(context,
                       hidden(context, tokens.ids, std::move(pass), tokens.sequences, memory, sources, nullptr));
  }

  /// Returns the rows (rows, d_model) from which `text.logits` predicts. With a pointer to a state, the tokens follow
  /// those that the state holds. `queries` says which of the rows read which source. Throws Error for sizes that do not
  /// fit.
  template <class Context, class Tensor, class Memory, class S>
  Tensor hidden(Context& context, std::span<const int> ids, Pass<Tensor> pass, const Sequences& queries,
                const Memory& memory, const Sequences& sources, S state) const {
    require(memory.size() == cross.size(), "attention decoder: memory of ", memory.size(), " blocks given, ",
            cross.size(), " expected");
    require(queries.size() == sources.size() && queries.rows() == pass.sequences.rows(),
            "attention decoder: ", queries.rows(), " rows for ", queries.size(), " sources given, ",
            pass.sequences.rows(), " rows for ", sources.size(), " sources expected");
    Tensor x = text.embedded(context, ids, pass);
    const auto& attention = text.layers.front().attention();
    x = attention.enter(context, std::move(x), pass);
    pass.table = attention.table(context, pass);
    const Tensor table = cross.front().attention.table(context, pass);
    for (std::size_t i = 0; i < cross.size(); ++i) {
      if constexpr (has_state<S>)
        x = text.layers[i].attend(context, std::move(x), pass, &state->layers[i]);
      else
        x = text.layers[i].attend(context, std::move(x), pass, nullptr);
      x = cross[i](context, std::move(x), queries, memory[i], sources, table);
      x = text.layers[i].feed_forward(context, std::move(x));
    }
    return text.layer_norm(context, x);
  }

  /// Returns the bytes that one sequence of `n` tokens caches, all layers.
  static constexpr Index cache_bytes(const AttentionDecoderConfig& config, Frames n, Storage storage = Storage::full) {
    return Text::cache_bytes(config.text, n, storage);
  }
  /// Returns the bytes of memory of one source of `n` rows, all layers. What all layers share counts once.
  static constexpr Index memory_bytes(const AttentionDecoderConfig& config, Frames n) {
    const Index layers = std::is_same_v<typename CrossPolicy::KeyValue, InputLatent> ? 1 : config.text.num_layers;
    return layers * CrossPolicy::cache_bytes(config.checked().cross_config(), n);
  }
  /// Returns the trained parameters of the whole decoder.
  static constexpr Index parameter_count(const AttentionDecoderConfig& config) {
    return Text::parameter_count(config.checked().text) +
           config.text.num_layers * (2 * config.text.d_model + CrossPolicy::parameter_count(config.cross_config()));
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("text", self.text);
    visit("cross", self.cross);
  }

  Text text;                 ///< embeddings, self-attention, feed-forward and logits
  std::vector<Cross> cross;  ///< the cross-attention of each block

 private:
  CrossAttentionConfig cross_config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Writes down what an encoder hears or sees: an encoder, such as `Conformer` or `PatchEncoder`, and an
/// `AttentionDecoder` of the same width.
///
///     EncoderDecoder<Conformer<Mha<4>>, AttentionDecoder<Mha<4, NoPosition>, Mha<4, NoPosition>>> model(...);
///     auto logits = model(cpu, features, sequences, {ids, Sequences{5, 9}});   // sequence n of ids writes utterance n
///
/// A Conformer keeps its CTC head, so both can be trained and decoded together (Watanabe et al. 2017).
template <class Encoder_, class Decoder_>
class EncoderDecoder : public Module<EncoderDecoder<Encoder_, Decoder_>> {
 public:
  using Scalar = typename Encoder_::Scalar;  ///< the type of its parameters
  using Encoder = Encoder_;                  ///< the type of the encoder
  using Decoder = Decoder_;                  ///< the type of the decoder
  /// Holds all sizes.
  struct Config {
    typename Encoder::Config encoder;  ///< sizes of the encoder
    typename Decoder::Config decoder;  ///< sizes of the decoder

    /// Visits each member with its name, for files and command lines.
    static constexpr void fields(auto& self, auto&& visit) {
      visit("encoder", self.encoder);
      visit("decoder", self.decoder);
    }
  };

  /// Makes a model with random parameters. Allocates. Throws Error for sizes that do not fit.
  EncoderDecoder(const Config& config, Seed seed)
      : encoder(config.encoder, seed / "encoder"), decoder(config.decoder, seed / "decoder") {
    const Index from = encoder.layer_norm.weight.size(), to = decoder.text.layer_norm.weight.size();
    require(from == to, "encoder-decoder: an encoder of d_model ", from, " and a decoder of d_model ", to,
            " given, equal ones expected");
  }

  /// Returns the configuration with every size resolved.
  Config config() const { return {encoder.config(), decoder.config()}; }

  /// Returns the logits (rows, vocab_size) of the token after each token. Input and sequences are those of the
  /// encoder's `hidden`; sequence n of the tokens reads sequence n.
  template <class Context, class Input>
  requires ContextOf<Context, Scalar>
  auto operator()(Context& context, Input&& input, const Sequences& sequences, const TokenRows& tokens) const {
    auto [rows, sources] = encoder.hidden(context, std::forward<Input>(input), sequences);
    return decoder(context, tokens, decoder.remember(context, rows, sources), sources);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("encoder", self.encoder);
    visit("decoder", self.decoder);
  }

  Encoder encoder;  ///< from the input to rows (rows, d_model)
  Decoder decoder;  ///< from these and tokens to logits
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Describes Llama, for `LanguageModel`. The names below are those of transformers.
struct LlamaKind {
  /// The norms in the blocks and after them.
  template <class T>
  using Norm = RmsNorm<T>;
  /// The feed-forward modules.
  template <class T>
  using FeedForward = laconic::GatedFeedForward<T>;
  static constexpr const char* attention_norm_name = "input_layernorm";  ///< prefix of the norm before attention
  static constexpr const char* attention_name = "self_attn";             ///< prefix of the attention
  static constexpr const char* feed_forward_norm_name =
      "post_attention_layernorm";  ///< prefix of the norm before the feed-forward module
};

/// Predicts the next token as Llama does (Touvron et al. 2023): RMS norms, gated feed-forward modules, and rotary
/// positions in the attention.
template <class AttentionPolicy, class T = float>
using Llama = LanguageModel<LlamaKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Encodes images that are cut into patches (Dosovitskiy et al. 2021): a linear layer, a learned vector for each place
/// of a patch, and a stack of blocks in which every patch sees every other.
///
///     PatchEncoder<Mha<4, NoPosition>> encoder({.patch_size = 49, .blocks = config}, Seed(1));
///     auto [rows, sequences] = encoder.hidden(cpu, patches, Sequences{16, 16});   // patches (32, 49), two images
///
/// Construction allocates, and throws Error where the sizes do not fit; the forward pass takes memory from the
/// context's pool only.
template <class AttentionPolicy, class T = float>
class PatchEncoder : public Module<PatchEncoder<AttentionPolicy, T>>,
                     public Stack<PreNormBlock<GptKind, AttentionPolicy, T>, LayerNorm<T>> {
  using Blocks = Stack<PreNormBlock<GptKind, AttentionPolicy, T>, LayerNorm<T>>;

 public:
  /// Holds all sizes.
  struct Config {
    Index patch_size = 0;        ///< elements of a patch
    LanguageModelConfig blocks;  ///< sizes of the blocks; an image has at most max_positions patches

    /// Visits each member with its name, for files and command lines.
    static constexpr void fields(auto& self, auto&& visit) {
      visit("patch_size", self.patch_size);
      visit("blocks", self.blocks);
    }
  };
  using Scalar = T;                ///< the type of its parameters
  using Policy = AttentionPolicy;  ///< the attention of its blocks
  using Blocks::layers, Blocks::layer_norm;

  /// Makes an encoder with random parameters. Allocates. Throws Error for sizes that do not fit.
  PatchEncoder(const Config& config, Seed seed)
      : Blocks(LayerNorm<T>(config.blocks.checked().d_model, config.blocks.layer_norm_eps)),
        patches(checked(config.patch_size), config.blocks.d_model, seed / "patches"),
        places(config.blocks.max_positions, config.blocks.d_model, seed / "places"),
        config_(config) {
    layers.reserve(static_cast<std::size_t>(config.blocks.num_layers));
    for (Index i = 0; i < config.blocks.num_layers; ++i) layers.emplace_back(config.blocks, seed / "layers" / i);
  }

  /// Returns the configuration.
  const Config& config() const { return config_; }

  /// Returns the rows (rows, d_model) of patches (rows, patch_size), and their sequences, which are those given.
  /// Throws Error for an image of too many patches.
  template <class Context, class Patches>
  requires ContextOf<Context, T>
  auto hidden(Context& context, Patches&& input, const Sequences& sequences) const {
    require(sequences.max_length() <= config_.blocks.max_positions, "patch encoder: an image of ",
            sequences.max_length(), " patches given, at most max_positions = ", config_.blocks.max_positions,
            " expected");
    auto x = patches(context, context.input(std::forward<Patches>(input)));
    Pass<decltype(x)> pass{sequences};
    x = context.add(std::move(x), places.of_positions(context, pass));
    x = this->run(context, context.dropout(std::move(x), config_.blocks.dropout), std::move(pass), nullptr);
    return std::pair(std::move(x), sequences);
  }

  /// Returns the trained parameters.
  static constexpr Index parameter_count(const Config& config) {
    checked(config.patch_size);
    const LanguageModelConfig& c = config.blocks.checked();
    const Index d = c.d_model;
    return (config.patch_size + 1) * d + c.max_positions * d + c.num_layers * Blocks::Block::parameter_count(c) +
           LayerNorm<T>::parameter_count(d);
  }

  /// Visits the parts with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("patches", self.patches);
    visit("places", self.places);
    visit("layers", self.layers);
    visit("layer_norm", self.layer_norm);
  }

  Linear<T> patches;    ///< from patch_size to d_model
  Embedding<T> places;  ///< the vector of each place, (max_positions, d_model)

 private:
  static constexpr Index checked(Index patch_size) {
    require(patch_size > 0 && patch_size <= 1 << 16, "patch encoder: patch_size ", patch_size, " given, 1 to ", 1 << 16,
            " expected");
    return patch_size;
  }
  Config config_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of streams. Chunk and left context are the model's own where none is given; a model trained with
/// chunks of many sizes takes others.
struct StreamConfig {
  Index capacity = 1;                   ///< streams at once
  std::optional<Index> chunk{};         ///< encoder frames that become final together
  std::optional<Index> left_context{};  ///< encoder frames kept before the chunk, or `Mask::unlimited`
  /// Max encoder frames of a stream; needed where all are kept. A larger chunk or left context takes no more memory.
  Index max_frames = 0;
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
  int threads = 0;                  ///< 0: all that the machine offers
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs many streams of one encoder together: each takes features as they come, and returns the logits of the frames
/// that became final. The logits equal those of the whole utterance under the mask of the same chunks.
///
///     Streams streams(model, {.capacity = 100});
///     const Index a = streams.open(), b = streams.open();
///     auto logits = streams.push(std::array{a, b}, features, Sequences{12, 40});  // 12 rows for a, 40 for b
///     auto last = streams.finish(std::array{a, b});  // what is left of both; they are closed
///
/// Construction allocates, and runs the model on zeros to find how much. Afterwards `push` and `finish` take no memory
/// from the system, as tests show, while no call returns more than `max_rows` rows of logits (docs/architecture.md,
/// Streams). A model whose chunk is longer than `StreamConfig::max_frames` is run on whole streams, and takes memory
/// for the frames that come.
///
/// Streams compute in contexts of their own, one for each thread. A push deals its streams out: each thread takes some
/// through the whole model, so that threads meet once a push. Few streams are not dealt out, but share the threads in
/// each primitive. The results are the same bits.
template <class Model, StreamingContext Context = Cpu<typename Model::Scalar>>
class Streams {
  static_assert(detail::is_context_of<Context, typename Model::Scalar>());

 public:
  using T = typename Model::Scalar;         ///< the type of the model's parameters
  using Tensor = typename Context::Tensor;  ///< the type of logits

  /// Makes room for `config.capacity` streams of the model, which must outlive them. Allocates. Throws Error for
  /// settings out of range and where the model cannot be streamed. `settings` are those of the contexts, such as
  /// `settings()` of another one; by default they take `config.threads`, or the device that is a context's default.
  explicit Streams(const Model& model, const StreamConfig& config = {},
                   const std::optional<SettingsOf<Context>>& settings = {})
      : model_(model),
        workers_(workers_of(config, settings ? *settings : default_settings(config))),
        context_(workers_.front()->context),
        mask_(resolved_mask(model.config(), config)),
        max_frames_(config.max_frames),
        keeps_all_((mask_.left_context == Mask::unlimited || reaches_all(mask_.left_context)) &&
                   model.layers.front().attention().keeps_frames()),
        is_whole_(reaches_all(config.chunk.value_or(model.config().chunk))),
        window_(model.subsampling.window() + (mask_.chunk - 1) * model.subsampling.factor()),
        together_(std::clamp<Index>(rows_of_pass() / mask_.chunk, 1, config.capacity)),
        state_(context_, model, StateShape{config.capacity, kept_frames(), mask_.chunk, config.storage}),
        pending_(context_.fill(config.capacity * window_, model.config().num_mels, 0)),
        slots_(static_cast<std::size_t>(config.capacity)) {
    free_.reserve(slots_.size());
    for (Index s = config.capacity; s-- > 0;) free_.push_back(s);
    for (auto& worker : workers_) worker->reserve(static_cast<std::size_t>(together_), slots_.size());
    if (!is_whole_) warm_up();  // nobody may ever speak for so long
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// Opens a stream and returns its number, 0 to capacity - 1. Throws Error where all are in use.
  Index open() {
    require(!free_.empty(), "streams: all ", slots_.size(), " are in use");
    const Index stream = free_.back();
    free_.pop_back();
    slots_[static_cast<std::size_t>(stream)] = Slot{true, 0, 0, 0, 0, 0};
    state_.clear(context_, stream);
    return stream;
  }
  /// Closes a stream and drops what it has not returned yet. Throws Error where it is not open.
  void close(Index stream) {
    slot(stream).open = false;
    free_.push_back(stream);
  }

  /// Takes features (rows, num_mels), those of streams[0], then those of streams[1] and so on, as `blocks` says.
  /// Returns the logits of the frames that became final, in the same order. Throws Error where the sizes do not fit and
  /// where a stream is not open or is named twice.
  Logits<Tensor> push(std::span<const Index> streams, const Matrix<T>& features, const Sequences& blocks) {
    return run(streams, context_.input(features), blocks, false);
  }
  /// Returns the logits of the frames that are left, and closes the streams. Throws Error where one is not open.
  Logits<Tensor> finish(std::span<const Index> streams) {
    const Sequences none =
        Sequences::make(context_.arena(), static_cast<Index>(streams.size()), [](Index) { return 0; });
    auto out = run(streams, context_.make(0, model_.config().num_mels), none, true);
    for (const Index stream : streams) close(stream);
    return out;
  }

  /// Returns the context of what `push` gives, to read it.
  Context& context() { return context_; }
  /// Returns the mask of the streams.
  const Mask& mask() const { return mask_; }
  /// Returns the max number of frames that attention keeps of a stream.
  Index kept_frames() const {
    if (!model_.layers.front().attention().keeps_frames()) return 0;
    require(!keeps_all_ || (max_frames_ > 0 && max_frames_ <= 1 << 24),
            "streams: all frames are kept, so max_frames must say how many at most: ", max_frames_, " given");
    return keeps_all_ ? max_frames_ : mask_.left_context;
  }
  /// Returns the bytes that keys and values, or latents, take, all streams.
  Index attention_bytes() const { return state_.attention_bytes(); }
  /// Returns the bytes that convolutions keep, all streams.
  Index convolution_bytes() const { return state_.convolution_bytes(); }
  /// Returns the bytes of the features that wait for their chunk, all streams.
  Index feature_bytes() const { return pending_.rows() * pending_.cols() * static_cast<Index>(sizeof(T)); }
  /// Returns the rows of features that the first chunk needs.
  Index first_rows() const { return window_; }
  /// Returns the rows of features that every further chunk needs.
  Index chunk_rows() const { return mask_.chunk * model_.subsampling.factor(); }
  /// Returns the rows of logits that one call may return without taking memory: a chunk of every stream.
  Index max_rows() const { return mask_.chunk * static_cast<Index>(slots_.size()); }

 private:
  /// Max frames of all passes at a time, where each has 2 * rows_apart of them. That limits their memory; more make
  /// them no faster.
  static constexpr Index rows_together = 512;
  /// Min frames of a thread where threads take streams of their own. With fewer, each of them would read all weights
  /// for little work.
  static constexpr Index rows_apart = 32;
  static constexpr Index max_chunk = 1 << 20;  // frames, also of what is kept, as in EncoderConfig

  struct Slot {
    bool open;
    Index frames;    // encoder frames given
    Index pending;   // rows of features that wait in its window
    Index next;      // row of the block that comes next
    Index sequence;  // of this push
    Index row;       // of the output that comes next
  };

  /// Holds what one thread needs to take streams through the model.
  struct Worker {
    explicit Worker(const SettingsOf<Context>& settings) : context(settings) {}
    /// Takes memory for passes of so many streams, and pushes of so many.
    void reserve(std::size_t pass, std::size_t push) {
      ready.reserve(pass);
      firsts.reserve(pass);
      for (auto* ranges : {&inputs, &outputs, &left}) ranges->reserve(pass);
      taken.reserve(push);
    }
    Context context;
    std::span<const Index> streams{};  // of this push
    std::vector<Index> ready, firsts;  // of its next pass: the streams, and their first frames
    std::vector<RowRange> taken,       // rows of a push that go to `pending_`
        inputs, outputs, left;         // of its next pass: from `pending_`, of logits, and what stays there
    std::exception_ptr failure;
  };
  using Workers = std::vector<std::unique_ptr<Worker>>;

  static SettingsOf<Context> default_settings(const StreamConfig& c) {
    if constexpr (std::is_same_v<SettingsOf<Context>, int>)
      return c.threads;
    else
      return {};
  }
  static Workers workers_of(const StreamConfig& c, const SettingsOf<Context>& settings) {
    require(c.capacity > 0 && c.capacity <= 1 << 24, "streams: capacity ", c.capacity, " given, 1 to ", 1 << 24,
            " expected");
    Workers out;
    do {
      out.push_back(std::make_unique<Worker>(settings));
    } while (static_cast<Index>(out.size()) <
             std::min<Index>({out.front()->context.threads(), c.capacity, detail::ThreadTeam::max_threads}));
    return out;
  }
  /// Returns the max frames of one pass.
  Index rows_of_pass() const {
    return std::max<Index>(rows_together / static_cast<Index>(workers_.size()), 2 * rows_apart);
  }
  static Mask resolved_mask(const EncoderConfig& model, const StreamConfig& c) {
    const Index chunk = c.chunk.value_or(model.chunk), left = c.left_context.value_or(model.left_context);
    require(!c.chunk || (chunk > 0 && chunk <= max_chunk), "streams: chunk ", chunk, " given, 1 to ", max_chunk,
            " expected, or none for the model's own");
    require(chunk > 0, "streams: chunk 0 given, but the model sees whole utterances and has none of its own; 1 to ",
            max_chunk, " expected");
    require(left >= -1 && left <= max_chunk, "streams: left_context ", left, " given, 0 to ", max_chunk,
            " expected, -1 for all, or none for the model's own");
    // A chunk beyond the longest stream is all of it, and asks for no more memory.
    return Mask::chunked(c.max_frames > 0 ? std::min(chunk, c.max_frames) : chunk, left < 0 ? Mask::unlimited : left);
  }
  /// Says whether so many frames are more than any stream may have.
  bool reaches_all(Index frames) const { return max_frames_ > 0 && frames > max_frames_; }
  Slot& slot(Index stream) {
    require(stream >= 0 && stream < static_cast<Index>(slots_.size()) && slots_[static_cast<std::size_t>(stream)].open,
            "streams: stream ", stream, " is not open");
    return slots_[static_cast<std::size_t>(stream)];
  }

  /// Returns the frames that a stream can return after `more` rows of features.
  Index frames_with(const Slot& s, Index more, bool last) const {
    const Index rows = s.pending + more, factor = model_.subsampling.factor();
    if (last) return rows < model_.subsampling.window() ? 0 : (rows - model_.subsampling.window()) / factor + 1;
    return rows < window_ ? 0 : ((rows - window_) / (mask_.chunk * factor) + 1) * mask_.chunk;
  }

  Logits<Tensor> run(std::span<const Index> streams, const Tensor& features, const Sequences& blocks, bool last) {
    const Index rows = features.rows(), mels = features.cols();
    require(blocks.size() == static_cast<Index>(streams.size()) && rows == blocks.rows() &&
                mels == model_.config().num_mels,
            "streams: features (", rows, ", ", mels, ") in ", blocks.size(), " blocks given, (", blocks.rows(), ", ",
            model_.config().num_mels, ") in ", streams.size(), " expected");
    for (std::size_t n = 0; n < streams.size(); ++n) slot(streams[n]).sequence = -1;
    for (std::size_t n = 0; n < streams.size(); ++n) {
      Slot& s = slot(streams[n]);
      require(s.sequence < 0, "streams: stream ", streams[n], " is named twice");
      s.sequence = static_cast<Index>(n);
      s.next = blocks.begin(s.sequence);
      const Index frames = frames_with(s, blocks.length(s.sequence), last);
      require(!(keeps_all_ || is_whole_) || s.frames + frames <= max_frames_, "streams: stream ", streams[n],
              " would have ", s.frames + frames, " frames, at most max_frames = ", max_frames_, " expected");
    }
    Logits<Tensor> out{{}, Sequences::make(context_.arena(), blocks.size(), [&](Index n) {
                         return frames_with(slot(streams[static_cast<std::size_t>(n)]), blocks.length(n), last);
                       })};
    out.rows = context_.make(out.sequences.rows(), model_.config().vocab_size);
    for (const Index stream : streams) slot(stream).row = out.sequences.begin(slot(stream).sequence);

    // Each part has about as many frames, in whole streams.
    const Index frames = out.sequences.rows();
    Index active = 0;
    for (Index n = 0; n < blocks.size(); ++n) active += out.sequences.length(n) > 0;
    const Index parts =
        std::clamp<Index>(std::min(frames / rows_apart, active), 1, static_cast<Index>(workers_.size()));
    const auto part_of = [&](std::size_t n) {
      return frames == 0 ? 0 : std::min(parts - 1, out.sequences.begin(static_cast<Index>(n)) * parts / frames);
    };
    for (std::size_t n = 0, begin = 0; n < streams.size(); ++n)
      if (n + 1 == streams.size() || part_of(n + 1) != part_of(n)) {
        workers_[static_cast<std::size_t>(part_of(n))]->streams = streams.subspan(begin, n + 1 - begin);
        begin = n + 1;
      }
    kernels::parallel_for(context_.threads(), parts, [&](Index part, int) {
      Worker& worker = *workers_[static_cast<std::size_t>(part)];
      try {
        advance(worker, features, blocks, last, out.rows);
      } catch (...) {
        worker.failure = std::current_exception();
      }
    });
    std::exception_ptr failure;
    for (auto& worker : workers_)
      if (auto own = std::exchange(worker->failure, nullptr); own && !failure) failure = own;
    if (failure) std::rethrow_exception(failure);
    return out;
  }

  /// Takes the streams of a worker through the model, in rounds of at most one chunk a stream, until none has one.
  void advance(Worker& worker, const Tensor& features, const Sequences& blocks, bool last, Tensor& out) {
    const auto streams = std::exchange(worker.streams, {});
    worker.ready.clear();  // of a pass that failed
    worker.taken.clear();
    const auto copy_taken = [&] {
      if (!worker.taken.empty()) worker.context.copy_rows(features, pending_, worker.taken);
      worker.taken.clear();
    };
    for (bool any = true; any;) {
      any = false;
      for (std::size_t n = 0; n < streams.size(); ++n) {
        Slot& s = slot(streams[n]);
        take_rows(worker, s, streams[n], blocks.end(s.sequence));
        if (s.pending == window_ || (last && s.pending >= model_.subsampling.window()))
          worker.ready.push_back(streams[n]);
        if (static_cast<Index>(worker.ready.size()) < together_ && n + 1 < streams.size()) continue;
        copy_taken();
        if (worker.ready.empty()) continue;
        step(worker, out);
        any = true;
      }
    }
  }

  void take_rows(Worker& worker, Slot& s, Index stream, Index end) {
    const Index count = std::min(window_ - s.pending, end - s.next);
    if (count <= 0) return;
    worker.taken.push_back({s.next, count, stream * window_ + s.pending});
    s.pending += count;
    s.next += count;
  }

  /// Runs one pass over the streams of a worker that are ready.
  void step(Worker& worker, Tensor& out) {
    worker.context.replayed([&] { pass(worker, out); });
    worker.ready.clear();
  }
  void pass(Worker& worker, Tensor& out) {
    Context& context = worker.context;
    const auto slot_of = [&](Index n) -> Slot& {
      return slots_[static_cast<std::size_t>(worker.ready[static_cast<std::size_t>(n)])];
    };
    const Index count = static_cast<Index>(worker.ready.size());
    const Sequences inputs = Sequences::make(context.arena(), count, [&](Index n) { return slot_of(n).pending; });
    Tensor features = context.make(inputs.rows(), pending_.cols());
    worker.firsts.clear();
    for (auto* ranges : {&worker.inputs, &worker.outputs, &worker.left}) ranges->clear();
    for (Index n = 0; n < count; ++n) {
      const Index first = worker.ready[static_cast<std::size_t>(n)] * window_;
      worker.inputs.push_back({first, slot_of(n).pending, inputs.begin(n)});
      worker.firsts.push_back(slot_of(n).frames);
    }
    context.copy_rows(pending_, features, worker.inputs);
    auto [x, sequences] = model_.subsampling(context, features, inputs);
    Pass<Tensor> of{sequences, mask_, {}, worker.ready, worker.firsts};
    const Tensor logits = model_.lm_head(context, model_.encode(context, std::move(x), of, &state_));
    for (Index n = 0; n < count; ++n) {
      Slot& s = slot_of(n);
      const Index rows = sequences.length(n), first = worker.ready[static_cast<std::size_t>(n)] * window_;
      worker.outputs.push_back({sequences.begin(n), rows, s.row});
      s.row += rows;
      s.frames += rows;
      const Index used = rows * model_.subsampling.factor();
      s.pending -= used;
      worker.left.push_back({first + used, s.pending, first});
    }
    context.copy_rows(logits, out, worker.outputs);
    context.copy_rows(pending_, pending_, worker.left);
  }

  /// Runs passes of 1, 2, 4 ... streams with empty and with full caches, so that the arena has what any pass needs: on
  /// all threads, and on one, unless there is no other. The arenas of all workers then get as much.
  void warm_up() {
    const auto passes = [&](Index most) {
      for (Index count = 1; count < most; count *= 2) warm_up(count);
      warm_up(most);
    };
    const bool deals = workers_.size() > 1;
    passes(deals ? std::clamp<Index>(2 * rows_apart / mask_.chunk, 1, together_) : together_);
    if (deals) {
      const detail::InsideRegion alone;
      passes(together_);
    }
    for (auto& s : slots_) s.open = false;
    {
      const Tensor logits = context_.make(max_rows(), model_.config().vocab_size);  // the first worker's alone
      for (std::size_t i = 1; i < workers_.size(); ++i) workers_[i]->context.settle(context_);
    }
    context_.settle(context_);
  }
  void warm_up(Index count) {
    Worker& first = *workers_.front();
    for (const bool full : {false, true}) {
      Tensor out = context_.make(full ? max_rows() : count * mask_.chunk, model_.config().vocab_size);
      for (Index n = 0; n < count; ++n) {
        slots_[static_cast<std::size_t>(n)] = Slot{true, 0, window_, 0, 0, n * mask_.chunk};
        full ? state_.fill_zeros(context_, n) : state_.clear(context_, n);
        first.ready.push_back(n);
      }
      step(first, out);
    }
  }

  const Model& model_;
  Workers workers_;
  Context& context_;  // of the first worker
  Mask mask_;
  Index max_frames_;
  bool keeps_all_, is_whole_;  // whether attention keeps all frames, and whether a chunk is all of a stream
  Index window_, together_;
  typename Model::template State<Context> state_;
  Tensor pending_;  // (streams * window, num_mels)
  std::vector<Slot> slots_;
  std::vector<Index> free_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Convolves over time without padding: (rows, in) to (fewer rows, out).
template <class T>
class Conv1d : public Module<Conv1d<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  Conv1d(const Conv1dShape& shape, Seed seed, Bias with_bias)
      : weight({shape.out_channels, shape.in_channels, shape.kernel}), shape_(shape) {
    weight.use = WeightUse::conv1d;
    const double bound = 1 / std::sqrt(static_cast<double>(shape.patch()));
    fill_uniform(weight, bound, Random(seed, "weight"));
    if (with_bias == Bias::yes) {
      bias = Parameter<T>({shape.out_channels});
      fill_uniform(bias, bound, Random(seed, "bias"));
    }
  }
  /// Returns the shape.
  const Conv1dShape& shape() const { return shape_; }

  /// Returns the convolution of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  auto operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    return context.conv1d(x, weight, bias.size() > 0 ? &bias : nullptr, shape_, from, to);
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    if (self.bias.size() > 0) visit("bias", self.bias);
  }

  Parameter<T> weight;  ///< (out, in, kernel)
  Parameter<T> bias;    ///< (out), or empty

 private:
  Conv1dShape shape_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Computes one convolution over samples, the norm after it if there is one, and the activation.
template <class T>
class WaveformLayer : public Module<WaveformLayer<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  WaveformLayer(const WaveformConfig& c, Index i, Seed seed)
      : conv(c.layer(i), seed / "conv", c.conv_bias ? Bias::yes : Bias::no),
        layer_norm(norm_after(c, i)),
        activation_(c.feat_extract_activation) {}

  /// Returns the output of the sequences `from`, whose lengths become those of `to`.
  template <class Context, class Tensor>
  Tensor operator()(Context& context, const Tensor& x, const Sequences& from, const Sequences& to) const {
    Tensor y = conv(context, x, from, to);
    if (const auto* of_frames = std::get_if<LayerNorm<T>>(&layer_norm)) y = (*of_frames)(context, y);
    if (const auto* over_time = std::get_if<SequenceNorm<T>>(&layer_norm)) y = (*over_time)(context, y, to);
    return context.activation(activation_, std::move(y));
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("conv", self.conv);
    std::visit([&](auto& norm) { visit("layer_norm", norm); }, self.layer_norm);
  }

  Conv1d<T> conv;                                                     ///< the convolution
  std::variant<NoNorm<T>, LayerNorm<T>, SequenceNorm<T>> layer_norm;  ///< the norm after it

 private:
  static std::variant<NoNorm<T>, LayerNorm<T>, SequenceNorm<T>> norm_after(const WaveformConfig& c, Index i) {
    if (c.feat_extract_norm == WaveformNorm::layer) return LayerNorm<T>(c.conv_dim[i]);
    if (i == 0) return SequenceNorm<T>(c.conv_dim[0]);
    return NoNorm<T>(c.conv_dim[i]);
  }

  Activation activation_;
};

/// Computes encoder frames (fewer rows, d_model) of samples (rows, 1): convolutions, a norm and a linear layer (wav2vec
/// 2.0, Baevski et al. 2020, section 2, as in Hugging Face transformers).
template <class T>
class WaveformFront : public Module<WaveformFront<T>> {
 public:
  /// Makes the layer with its initial parameters. Allocates.
  WaveformFront(const EncoderConfig& c, Seed seed)
      : masked_spec_embed({c.d_model}),
        layer_norm(last_dim(c), c.layer_norm_eps),
        projection(last_dim(c), c.d_model, seed / "feature_projection" / "projection"),
        config_(c.waveform) {
    masked_spec_embed.trainable = false;
    for (Index i = 0; i < config_.conv_dim.size(); ++i)
      conv_layers.emplace_back(config_, i, seed / "feature_extractor" / i);
  }

  /// Returns the samples between two output frames.
  Index factor() const { return config_.stride(); }
  /// Returns the samples that the first output frame needs.
  Index window() const { return config_.window(); }

  /// Holds encoder frames and their sequences.
  template <class Tensor>
  struct Output {
    Tensor rows;          ///< (rows, d_model)
    Sequences sequences;  ///< the rows of each sequence
  };

  /// Returns the encoder frames of packed samples. Throws Error where the sizes do not fit.
  template <class Context, class Tensor>
  Output<Tensor> operator()(Context& context, const Tensor& samples, const Sequences& sequences) const {
    require(samples.cols() == 1, "wav2vec2: samples have ", samples.cols(), " channels, 1 expected");
    require(samples.rows() == sequences.rows(), "wav2vec2: ", samples.rows(), " samples given, their sequences have ",
            sequences.rows());
    Tensor x = samples;
    const Sequences* from = &sequences;  // a copy of what the caller owns would take memory
    Sequences at;
    for (const WaveformLayer<T>& layer : conv_layers) {
      const auto to = from->map_lengths(context.arena(), [&](Index n) { return layer.conv.shape().out_length(n); });
      x = layer(context, x, *from, to);
      at = to;
      from = &at;
    }
    return {projection(context, layer_norm(context, x)), at};
  }

  /// Visits the parameters with their names (see Module).
  static void each_parameter(auto& self, auto&& visit) {
    visit("masked_spec_embed", self.masked_spec_embed);
    visit("feature_extractor.conv_layers", self.conv_layers);
    visit("feature_projection.layer_norm", self.layer_norm);
    visit("feature_projection.projection", self.projection);
  }

  Parameter<T> masked_spec_embed;             ///< stands for masked frames in pretraining; kept for files only
  std::vector<WaveformLayer<T>> conv_layers;  ///< the convolutions
  LayerNorm<T> layer_norm;                    ///< the norm after them
  Linear<T> projection;                       ///< from the last convolution's channels to d_model

 private:
  static Index last_dim(const EncoderConfig& c) {
    require(!c.waveform.empty(), "wav2vec2: no convolutions over samples given (conv_dim), at least one expected");
    return c.waveform.conv_dim[c.waveform.conv_dim.size() - 1];
  }

  WaveformConfig config_;
};

/// Describes Conformer blocks after convolutions over samples, with the parameter names of Hugging Face's
/// `Wav2Vec2ConformerForCTC`, for `Encoder`.
struct Wav2Vec2ConformerKind : ConformerKind {
  /// Returns the convolutions over samples. Throws Error where the configuration has none.
  template <class T>
  static WaveformFront<T> front(const EncoderConfig& c, Seed seed) {
    return {c, seed};
  }
  /// Returns the trained parameters before the blocks.
  static constexpr Index front_parameters(const EncoderConfig& c) {
    const WaveformConfig& w = c.waveform;
    Index sum = c.d_model, channels = 0;
    for (Index i = 0; i < w.conv_dim.size(); ++i) {
      channels = w.conv_dim[i];
      const Index norm = w.feat_extract_norm == WaveformNorm::layer || i == 0 ? 2 * channels : 0;
      sum += channels * (w.layer(i).patch() + (w.conv_bias ? 1 : 0)) + norm;
    }
    return sum + 2 * channels + (channels + 1) * c.d_model;
  }
  /// Returns the floating-point operations before the blocks, for `frames` encoder frames.
  static constexpr Index front_flops(const EncoderConfig& c, Index frames) {
    const WaveformConfig& w = c.waveform;
    Index sum = 2 * frames * w.conv_dim[w.conv_dim.size() - 1] * c.d_model;
    for (Index i = w.conv_dim.size(), n = frames; i-- > 0; n = (n - 1) * w.conv_stride[i] + w.conv_kernel[i])
      sum += 2 * n * w.conv_dim[i] * w.layer(i).patch();
    return sum;
  }
  /// Returns the encoder frames that `rows` samples give.
  static constexpr Index out_length(const EncoderConfig& c, Index rows) {
    for (Index i = 0; i < c.waveform.conv_dim.size(); ++i) rows = c.waveform.layer(i).out_length(rows);
    return rows;
  }
  /// Throws Error for centred convolutions and for a norm over time.
  static constexpr void require_streamable(const EncoderConfig& c) {
    ConformerKind::require_streamable(c);
    require(c.waveform.feat_extract_norm != WaveformNorm::group,
            "wav2vec2: a norm over time cannot be streamed; one of every frame expected");
  }
  static constexpr const char* front_name = "wav2vec2_conformer";                    ///< as in FeatureFront
  static constexpr const char* layers_name = "wav2vec2_conformer.encoder.layers";    ///< as in FeatureFront
  static constexpr const char* norm_name = "wav2vec2_conformer.encoder.layer_norm";  ///< as in FeatureFront
};

/// Encodes samples by the Conformer of Hugging Face's wav2vec2-conformer checkpoints with its CTC head. Samples (rows,
/// 1) are at 16 kHz, normalised to mean 0 and variance 1; the model sees whole utterances. `EncoderConfig::waveform`
/// describes its convolutions, and `num_mels` is 1.
template <class AttentionPolicy, class T = float>
using Wav2Vec2Conformer = Encoder<Wav2Vec2ConformerKind, AttentionPolicy, T>;

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how layers share the floats that may be cached of a frame. Energy is the sum of squared singular values.
enum class RankAllocation {
  uniform,        ///< evenly
  energy,         ///< so that each layer keeps an equal fraction of its energy, as X-EcoMLA does by a threshold
  water_filling,  ///< min loss of energy over all layers: the largest squares of all layers come first
  fisher          ///< as water-filling, with energies weighed by the layers' Fisher information
};
constexpr auto enum_names(RankAllocation) {
  using enum RankAllocation;
  return std::to_array<EnumName<RankAllocation>>(
      {{uniform, "uniform"}, {energy, "energy"}, {water_filling, "water-filling"}, {fisher, "fisher"}});
}

/// Returns the rank of each layer's latent. `spectra` are the layers' singular values, falling
/// (`JointFactors::singular_values`). Their squares are multiplied by the layers' `weights`, which `fisher` needs
/// (`fisher_information`) and the others do not take. `budget` is the number of floats that all layers together may
/// cache of a frame; it is never exceeded. Ranks are positive multiples of `multiple` (which suits vector registers),
/// and at most the number of singular values. Channels that would hold no energy are not allocated. Allocates memory.
/// Throws `Error` unless such ranks exist and the values are finite and at least 0.
inline std::vector<Index> allocate_ranks(std::span<const std::vector<double>> spectra, Index budget, Index multiple,
                                         RankAllocation how, std::span<const double> weights = {}) {
  const auto layers = static_cast<Index>(spectra.size());
  require(layers > 0, "allocate_ranks: no layers given");
  require(multiple > 0, "allocate_ranks: ranks that are multiples of ", multiple, " given, positive numbers expected");
  require(budget / multiple >= layers, "allocate_ranks: a budget of ", budget, " floats a frame given for ", layers,
          " layers, at least ", multiple, " each expected");
  require(how == RankAllocation::fisher ? weights.size() == spectra.size() : weights.empty(),
          "allocate_ranks: ", to_name(how), " with ", weights.size(), " weights given for ", spectra.size(), " layers");
  for (const double weight : weights)
    require(weight >= 0 && weight < 1e300, "allocate_ranks: a weight of ", weight,
            " given, a finite one of at least 0 expected");

  // Energy of each block of `multiple` singular values.
  std::vector<std::vector<double>> blocks(spectra.size());
  std::vector<double> energies(spectra.size()), tails(spectra.size());
  for (std::size_t l = 0; l < spectra.size(); ++l) {
    const std::vector<double>& s = spectra[l];
    const auto size = static_cast<Index>(s.size());
    const double weight = weights.empty() ? 1 : weights[l];
    require(size >= multiple, "allocate_ranks: layer ", l, " has ", size, " singular values, at least ", multiple,
            " expected");
    for (Index i = 0; i < size; ++i) {
      const double value = s[static_cast<std::size_t>(i)];
      require(value >= 0 && value * value < 1e300, "allocate_ranks: singular value ", i, " of layer ", l, " is ", value,
              ", a finite one of at least 0 expected");
      if (i % multiple == 0 && i + multiple <= size) blocks[l].push_back(0);
      if (i / multiple < static_cast<Index>(blocks[l].size())) blocks[l].back() += weight * value * value;
      energies[l] += weight * value * value;
    }
    tails[l] = energies[l] - blocks[l][0];
  }

  std::vector<std::size_t> given(spectra.size(), 1);
  if (how == RankAllocation::uniform) {
    for (std::size_t l = 0; l < spectra.size(); ++l)
      given[l] = std::min(blocks[l].size(), static_cast<std::size_t>(budget / multiple / layers));
  } else {
    // One block after the other to whom it helps most. Since the blocks of a layer fall, no other choice loses less.
    for (Index left = budget / multiple - layers; left > 0; --left) {
      std::size_t best = 0;
      double most = 0;
      for (std::size_t l = 0; l < spectra.size(); ++l) {
        if (given[l] == blocks[l].size() || blocks[l][given[l]] <= 0) continue;
        const double gain = how == RankAllocation::energy ? tails[l] / energies[l] : blocks[l][given[l]];
        if (gain > most) {
          most = gain;
          best = l;
        }
      }
      if (most == 0) break;
      tails[best] -= blocks[best][given[best]++];
    }
  }
  std::vector<Index> ranks;
  for (const std::size_t count : given) ranks.push_back(static_cast<Index>(count) * multiple);
  return ranks;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Decorates a context: it also keeps the input of chosen linear layers, as host matrices. `Recorder<Cpu<float>> cpu;`
///
///     cpu.record(layer.weight);
///     model(cpu, features, sequences);
///     const Matrix<float>& rows = cpu.input_of(layer.weight);
template <class Context>
class Recorder : public Context {
 public:
  using typename Context::Tensor;
  using T = typename Context::Scalar;  ///< the type of an element
  using Context::Context;

  /// Makes the context keep, from now on, the last rows that are multiplied by this weight.
  void record(const Parameter<T>& weight) {
    if (find(weight) == inputs_.end()) inputs_.emplace_back(&weight, Matrix<T>());
  }
  /// Returns the last rows (rows, in) that were multiplied by this weight; an empty matrix before the first. Throws
  /// `Error` for a weight that is not recorded.
  Matrix<T>& input_of(const Parameter<T>& weight) {
    const auto found = find(weight);
    require(found != inputs_.end(), "recorder: a weight (", weight.rows(), ", ", weight.cols(),
            ") given that is not recorded");
    return found->second;
  }

  Tensor linear(const Tensor& x, const Parameter<T>& weight, const Parameter<T>* bias,
                std::optional<Activation> activation = {}) {
    if (const auto found = find(weight); found != inputs_.end()) found->second = this->output(x);
    return Context::linear(x, weight, bias, activation);
  }

 private:
  using Inputs = std::vector<std::pair<const Parameter<T>*, Matrix<T>>>;
  typename Inputs::iterator find(const Parameter<T>& weight) {
    return std::find_if(inputs_.begin(), inputs_.end(), [&](const auto& one) { return one.first == &weight; });
  }

  Inputs inputs_;
};

/// Shows a model or a layer whose values are on the host in a form that a context can run: itself, or a prepared copy.
/// The original must live as long.
template <class Context, class Model>
class Runnable {
 public:
  /// Keeps a reference to the model, and makes a copy unless the context computes on the host.
  Runnable(Context& context, const Model& model) : model_(&model) {
    if constexpr (!Context::computes_on_host) {
      copy_ = std::make_unique<Model>(model);
      context.prepare(*copy_);
      model_ = copy_.get();
    }
  }
  /// Returns the model or layer to run.
  const Model& operator*() const { return *model_; }

 private:
  const Model* model_;
  std::unique_ptr<Model> copy_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

#include <Eigen/Eigenvalues>

#include <numeric>
#include <tuple>

// Dense linear algebra of conversions: whole matrices of double in, whole matrices out. Eigen's expressions of products
// and solvers take long to compile, so each of its kernels is instantiated in one function here and nowhere else. All
// are templates, although `T` is always double, so that only programs that convert compile them.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Returns the same values as double.
template <class T>
Matrix<double> to_double(const Matrix<T>& values) {
  Matrix<double> out(values.rows(), values.cols());
  std::copy_n(values.data(), values.size(), out.data());
  return out;
}
/// Overwrites `values` by what is wanted, rounded to its type.
template <class T>
void round_to(Matrix<T>& values, const Matrix<double>& wanted) {
  values.resize(wanted.rows(), wanted.cols());
  std::transform(wanted.data(), wanted.data() + wanted.size(), values.data(),
                 [](double x) { return static_cast<T>(x); });
}

/// Returns `count` rows of a matrix from row `begin` on.
template <class T>
Matrix<T> rows_of(const Matrix<T>& matrix, Index begin, Index count) {
  Matrix<T> out(count, matrix.cols());
  std::copy_n(matrix.data() + begin * matrix.cols(), out.size(), out.data());
  return out;
}
/// Overwrites rows of a matrix from row `begin` on by all rows of `values`.
template <class T>
void set_rows(Matrix<T>& matrix, Index begin, const Matrix<T>& values) {
  std::copy_n(values.data(), values.size(), matrix.data() + begin * matrix.cols());
}
/// Returns `count` columns of a matrix from column `begin` on.
template <class T>
Matrix<T> columns_of(const Matrix<T>& matrix, Index begin, Index count) {
  Matrix<T> out(matrix.rows(), count);
  for (Index r = 0; r < matrix.rows(); ++r)
    std::copy_n(matrix.data() + r * matrix.cols() + begin, count, out.data() + r * count);
  return out;
}
/// Overwrites columns of a matrix from column `begin` on by all columns of `values`.
template <class T>
void set_columns(Matrix<T>& matrix, Index begin, const Matrix<T>& values) {
  for (Index r = 0; r < matrix.rows(); ++r)
    std::copy_n(values.data() + r * values.cols(), values.cols(), matrix.data() + r * matrix.cols() + begin);
}
/// Returns the rows of both matrices, those of `first` above.
template <class T>
Matrix<T> above(const Matrix<T>& first, const Matrix<T>& second) {
  Matrix<T> out(first.rows() + second.rows(), first.cols());
  set_rows(out, 0, first);
  set_rows(out, first.rows(), second);
  return out;
}
template <class T>
Matrix<T> transposed(const Matrix<T>& matrix) {
  Matrix<T> out(matrix.cols(), matrix.rows());
  for (Index r = 0; r < matrix.rows(); ++r)
    for (Index c = 0; c < matrix.cols(); ++c) out.data()[c * matrix.rows() + r] = matrix.data()[r * matrix.cols() + c];
  return out;
}
/// Returns factor * matrix.
template <class T>
Matrix<T> scaled(T factor, Matrix<T> matrix) {
  std::for_each_n(matrix.data(), matrix.size(), [=](T& x) { x *= factor; });
  return matrix;
}
/// Returns a matrix whose column i is multiplied by factor i.
template <class T>
Matrix<T> scaled_columns(Matrix<T> matrix, const Matrix<T>& factors) {
  for (Index r = 0; r < matrix.rows(); ++r)
    for (Index c = 0; c < matrix.cols(); ++c) matrix.data()[r * matrix.cols() + c] *= factors.data()[c];
  return matrix;
}

/// Says whether all numbers are finite.
template <class T>
bool all_finite(const Matrix<T>& matrix) {
  return std::all_of(matrix.data(), matrix.data() + matrix.size(), [](T x) { return std::isfinite(x); });
}
/// Returns the sum of all products of elements of equal positions, in matrices of equal shapes.
template <std::same_as<double> T>
T inner_product(const Matrix<T>& a, const Matrix<T>& b) {
  return std::inner_product(a.data(), a.data() + a.size(), b.data(), T{0});
}
/// Returns the sum of the squares of all elements.
template <std::same_as<double> T>
T energy(const Matrix<T>& matrix) {
  return inner_product(matrix, matrix);
}

/// Adds a * b to `sum`, which must not be a or b.
template <std::same_as<double> T>
void add_product(Matrix<T>& sum, const Matrix<T>& a, const Matrix<T>& b) {
  sum.noalias() += a * b;
}
/// Returns a * b.
template <std::same_as<double> T>
Matrix<T> product(const Matrix<T>& a, const Matrix<T>& b) {
  Matrix<T> out(a.rows(), b.cols());
  out.setZero();
  add_product(out, a, b);
  return out;
}
/// Returns (a * b)^T as Eigen computes a * b for a matrix stored by columns. The order of its sums is another than that
/// of `product`, so the last bits differ.
template <std::same_as<double> T>
Matrix<T> transposed_product(const Matrix<T>& a, const Matrix<T>& b) {
  if (a.rows() == 1 || b.cols() == 1) return transposed(product(a, b));
  return product(transposed(b), transposed(a));
}
/// Returns a * b, summed in the order of `transposed_product`.
template <std::same_as<double> T>
Matrix<T> product_by_columns(const Matrix<T>& a, const Matrix<T>& b) {
  return transposed(transposed_product(a, b));
}
/// Returns matrix^T * matrix.
template <std::same_as<double> T>
Matrix<T> gram(const Matrix<T>& matrix) {
  return product(transposed(matrix), matrix);
}
template <std::same_as<double> T>
Matrix<T> gram_by_columns(const Matrix<T>& matrix) {
  return product_by_columns(transposed(matrix), matrix);
}
/// Returns a - b * c.
template <std::same_as<double> T>
Matrix<T> difference(Matrix<T> a, const Matrix<T>& b, const Matrix<T>& c) {
  add_product(a, scaled(T{-1}, b), c);
  return a;
}

/// A matrix stored by columns, and a vector, as Eigen's solvers take them.
template <class T>
using Columns = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
template <class T>
using ColumnVector = Eigen::Matrix<T, Eigen::Dynamic, 1>;

/// Shows the transpose of a matrix, as one that is stored by columns.
template <class T>
auto by_columns(const Matrix<T>& transpose) {
  return Eigen::Map<const Columns<T>>(transpose.data(), transpose.cols(), transpose.rows());
}

/// Returns tr(W G W^T): the mean square of x W^T, summed over its channels, for inputs x of second moment G. An empty G
/// means white inputs.
template <std::same_as<double> T>
T output_energy(const Matrix<T>& weight, const Matrix<T>& second_moment) {
  if (second_moment.size() == 0) return energy(weight);
  return std::max(inner_product(product_by_columns(weight, second_moment), weight),
                  T{0});  // rounding could make it less
}

/// Adds factor * x to `sum`, both of `size` elements.
template <std::same_as<double> T>
void add_scaled(T* sum, T factor, const T* x, Index size) {
  Eigen::Map<ColumnVector<T>>(sum, size) += factor * Eigen::Map<const ColumnVector<T>>(x, size);
}
/// Returns the sum of the products of `size` elements.
template <std::same_as<double> T>
T dot(const T* a, const T* b, Index size) {
  return Eigen::Map<const ColumnVector<T>>(a, size).dot(Eigen::Map<const ColumnVector<T>>(b, size));
}

/// Multiplies a vector of `size` elements by the reflection I - t v v^T, whose v begins with 1 and goes on with `tail`.
template <std::same_as<double> T>
void reflect(T* vector, const T* tail, T t, Index size) {
  const T along = t * (vector[0] + dot(tail, vector + 1, size - 1));
  vector[0] -= along;
  add_scaled(vector + 1, -along, tail, size - 1);
}
/// Finds the reflection I - t v v^T that leaves a vector of `size` elements only its first one. Overwrites the others
/// by those of v, which begins with 1. Returns t and what the first element becomes.
template <std::same_as<double> T>
std::pair<T, T> find_reflection(T* vector, Index size) {
  T t, length;
  Eigen::Map<ColumnVector<T>>(vector, size).makeHouseholderInPlace(t, length);
  return {t, length};
}

/// A symmetric matrix as H_0 H_1 ... T (H_0 H_1 ...)^T: T has a diagonal and one beside it. H_k is the reflection
/// I - t_k v v^T, whose v is 1 in element k + 1 and holds, after it, what row k of `tails` holds there.
template <class T>
struct Tridiagonal {
  ColumnVector<T> diagonal, beside, t;
  Matrix<T> tails;
};
/// Reduces a symmetric matrix (Golub and Van Loan, Matrix Computations, algorithm 8.3.1); only what is right of the
/// diagonal is read. Eigen's Tridiagonalization and HouseholderSequence took half the time that a conversion took to
/// compile.
template <std::same_as<double> T>
Tridiagonal<T> tridiagonal(Matrix<T> symmetric) {
  const Index size = symmetric.rows();
  Tridiagonal<T> out{ColumnVector<T>(size), ColumnVector<T>(size - 1), ColumnVector<T>(size - 1), {}};
  std::vector<T> products(static_cast<std::size_t>(size));
  for (Index k = 0; k + 1 < size; ++k) {
    T* const v = symmetric.data() + k * size + k + 1;
    const Index rest = size - k - 1;
    std::tie(out.t[k], out.beside[k]) = find_reflection(v, rest);
    v[0] = 1;
    // (I - t v v^T) A (I - t v v^T) = A - v w^T - w v^T, where w = p - t/2 (p v) v and p = t A v.
    T* const w = products.data();
    std::fill_n(w, rest, T{0});
    const auto row = [&](Index i) { return symmetric.data() + (k + 1 + i) * (size + 1); };
    for (Index i = 0; i < rest; ++i) {
      w[i] += dot(row(i), v + i, rest - i);
      add_scaled(w + i + 1, v[i], row(i) + 1, rest - i - 1);
    }
    std::for_each_n(w, rest, [&](T& x) { x *= out.t[k]; });
    add_scaled(w, -out.t[k] / 2 * dot(w, v, rest), v, rest);
    for (Index i = 0; i < rest; ++i) {
      add_scaled(row(i), -v[i], w + i, rest - i);
      add_scaled(row(i), -w[i], v + i, rest - i);
    }
  }
  for (Index i = 0; i < size; ++i) out.diagonal[i] = symmetric(i, i);
  out.tails = std::move(symmetric);
  return out;
}

/// Eigenvalues of a symmetric matrix, rising, and its eigenvectors in columns.
template <class T>
struct SymmetricEigen {
  std::vector<T> values;
  Matrix<T> vectors;
};
template <std::same_as<double> T>
SymmetricEigen<T> eigenvectors(const Matrix<T>& symmetric) {
  const Index size = symmetric.rows();
  T scale = 0;  // of elements up to 1 no square overflows
  std::for_each_n(symmetric.data(), symmetric.size(), [&](T x) { scale = std::max(scale, std::abs(x)); });
  if (scale < std::numeric_limits<T>::min()) scale = 1;
  const Tridiagonal<T> reduced = tridiagonal(scaled(1 / scale, symmetric));
  Eigen::SelfAdjointEigenSolver<Columns<T>> eigen;
  eigen.computeFromTridiagonal(reduced.diagonal, reduced.beside);
  require(eigen.info() == Eigen::Success, "factorize: the eigenvalues of the (", symmetric.rows(), ", ",
          symmetric.cols(), ") Gram matrix did not converge");
  Matrix<T> vectors(size, size);
  std::copy_n(eigen.eigenvectors().data(), vectors.size(), vectors.data());
  for (Index k = size - 2; k >= 0; --k)
    for (Index r = 0; r < size; ++r)
      reflect(vectors.data() + r * size + k + 1, reduced.tails.data() + k * size + k + 2, reduced.t[k], size - k - 1);
  SymmetricEigen<T> out{{eigen.eigenvalues().data(), eigen.eigenvalues().data() + size}, transposed(vectors)};
  for (T& value : out.values) value *= scale;
  return out;
}
/// Returns the eigenvectors of a symmetric matrix in columns, those of the largest eigenvalues first.
template <std::same_as<double> T>
Matrix<T> principal_directions(const Matrix<T>& symmetric) {
  Matrix<T> out = eigenvectors(symmetric).vectors;
  for (Index r = 0; r < out.rows(); ++r) std::reverse(out.data() + r * out.cols(), out.data() + (r + 1) * out.cols());
  return out;
}

/// Returns the square root of a symmetric matrix of positive eigenvalues, and the inverse of that root.
template <std::same_as<double> T>
std::pair<Matrix<T>, Matrix<T>> square_roots(const Matrix<T>& symmetric) {
  const SymmetricEigen<T> eigen = eigenvectors(symmetric);
  const Index size = symmetric.rows();
  Matrix<T> lengths(1, size), inverses(1, size);
  for (Index i = 0; i < size; ++i) {
    lengths(0, i) = std::sqrt(eigen.values[static_cast<std::size_t>(i)]);
    inverses(0, i) = std::sqrt(1 / eigen.values[static_cast<std::size_t>(i)]);
  }
  const auto combined = [&](const Matrix<T>& factors) {
    return product_by_columns(scaled_columns(eigen.vectors, factors), transposed(eigen.vectors));
  };
  return {combined(lengths), combined(inverses)};
}

/// Returns as many orthonormal columns, which span at least what these columns span.
template <std::same_as<double> T>
Matrix<T> orthonormal(const Matrix<T>& matrix) {
  Matrix<T> tails = transposed(matrix);
  const Index size = tails.cols();
  ColumnVector<T> t(std::min(tails.rows(), size));
  for (Index k = 0; k < t.size(); ++k) {
    T* const vector = tails.data() + k * size + k;
    t[k] = find_reflection(vector, size - k).first;
    for (Index r = k + 1; r < tails.rows(); ++r) reflect(tails.data() + r * size + k, vector + 1, t[k], size - k);
  }
  Matrix<T> out = Matrix<T>::Zero(tails.rows(), size);
  for (Index i = 0; i < t.size(); ++i) out.data()[i * size + i] = 1;
  for (Index k = t.size() - 1; k >= 0; --k)  // rows before k are unit vectors, which it leaves
    for (Index r = k; r < out.rows(); ++r)
      reflect(out.data() + r * size + k, tails.data() + k * size + k + 1, t[k], size - k);
  return transposed(out);
}

/// Returns the square of the length of column i.
template <std::same_as<double> T>
T column_energy(const Matrix<T>& matrix, Index i) {
  T sum = 0;
  for (Index r = 0; r < matrix.rows(); ++r) sum += matrix(r, i) * matrix(r, i);
  return sum;
}
/// Appends the lengths of all columns.
template <std::same_as<double> T>
void append_column_lengths(std::vector<T>& out, const Matrix<T>& matrix) {
  for (Index i = 0; i < matrix.cols(); ++i) out.push_back(std::sqrt(column_energy(matrix, i)));
}
/// Multiplies column i by a factor.
template <class T>
void scale_column(Matrix<T>& matrix, Index i, T factor) {
  for (Index r = 0; r < matrix.rows(); ++r) matrix.data()[r * matrix.cols() + i] *= factor;
}

LACONIC_COMPILE_DOUBLE(add_product);
LACONIC_COMPILE_DOUBLE(product);
LACONIC_COMPILE_DOUBLE(transposed_product);
LACONIC_COMPILE_DOUBLE(output_energy);
LACONIC_COMPILE_DOUBLE(eigenvectors);
LACONIC_COMPILE_DOUBLE(principal_directions);
LACONIC_COMPILE_DOUBLE(square_roots);
LACONIC_COMPILE_DOUBLE(orthonormal);
LACONIC_COMPILE_DOUBLE(column_energy);
LACONIC_COMPILE_DOUBLE(append_column_lengths);

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says where the singular values S of W = U S V^T go. The product is the same, but the scale of the latent is not, on
/// which a norm, storage in 8 bits and the learning rate of fine-tuning depend. By default the latent has the scale of
/// its input, and channels of singular value 0 (as of repeated heads) can still learn, because their down-projection is
/// not 0.
enum class SingularValues {
  up,    ///< into the up-projections
  down,  ///< into the down-projection
  both   ///< square roots into each
};
constexpr auto enum_names(SingularValues) {
  using enum SingularValues;
  return std::to_array<EnumName<SingularValues>>({{up, "up"}, {down, "down"}, {both, "both"}});
}

/// Holds a factorization of keys and values through one latent: K = x (k_up down)^T, V = x (v_up down)^T.
struct JointFactors {
  Matrix<double> down;                  ///< down-projection, (rank, d_model), orthonormal rows
  Matrix<double> k_up,                  ///< up-projection of keys, (key channels, rank), scaled by singular values
      v_up;                             ///< up-projection of values, (value channels, rank), scaled alike
  std::vector<double> singular_values;  ///< falling, also those beyond the rank; JointSvd: all d_model of [W_K; W_V]
  double discarded = 0;                 ///< |W - up down|^2: the sum of squared singular values beyond the rank
  double predicted_error = 0;           ///< |W - up down| / |W| (Frobenius): the error of K and V for white inputs
};

// Functions that all methods share. They are templates, so that only programs that convert compile them.
namespace detail {

/// Returns keys above values, (key and value channels, d_model). Throws `Error` for a rank out of range and for weights
/// that are not finite.
template <std::same_as<double> T>
Matrix<T> stacked(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
  const Index d_model = k.cols();
  require(v.cols() == d_model, "factorize: keys of ", d_model, " and values of ", v.cols(),
          " inputs given, equal numbers expected");
  require(rank > 0 && rank <= d_model, "factorize: rank ", rank, " given, expected 1 .. d_model = ", d_model);
  Matrix<T> out = above(k, v);
  require(all_finite(out), "factorize: the key or value weights hold numbers that are not finite");
  return out;
}

/// Returns the singular value decomposition of up * down, keys above values in `up`. Nothing of the product is lost.
template <std::same_as<double> T>
JointFactors product_svd(const Matrix<T>& up, const Matrix<T>& down, Index k_rows) {
  const Matrix<T> rows = orthonormal(transposed(down)), core = product(up, product_by_columns(down, rows));
  const Matrix<T> turn = principal_directions(gram(core)), turned = product(core, turn);
  JointFactors out;
  out.down = transposed_product(rows, turn);
  out.k_up = rows_of(turned, 0, k_rows);
  out.v_up = rows_of(turned, k_rows, up.rows() - k_rows);
  return out;
}

/// Sets the error of a factorization of k and v for inputs of these second moments (empty: white). It is computed from
/// the factors, whatever method made them.
template <std::same_as<double> T>
void measure(JointFactors& factors, const Matrix<T>& k, const Matrix<T>& v, const Matrix<T>& key_input,
             const Matrix<T>& value_input) {
  const Matrix<T> of_keys = difference(k, factors.k_up, factors.down),
                  of_values = difference(v, factors.v_up, factors.down);
  factors.discarded = output_energy(of_keys, key_input) + output_energy(of_values, value_input);
  const double all = output_energy(k, key_input) + output_energy(v, value_input);
  factors.predicted_error = factors.discarded > 0 ? std::sqrt(factors.discarded / all) : 0;
}

/// Moves the singular values, which are the lengths of the columns of `up`, to where they are wanted.
template <std::same_as<double> T>
void place(Matrix<T>& down, Matrix<T>& k_up, Matrix<T>& v_up, SingularValues where) {
  if (where == SingularValues::up) return;
  std::vector<T> lengths;
  for (Index i = 0; i < down.rows(); ++i) lengths.push_back(std::sqrt(column_energy(k_up, i) + column_energy(v_up, i)));
  const T least = 1e-12 * *std::max_element(lengths.begin(), lengths.end());
  for (Index i = 0; i < down.rows(); ++i) {
    const T length = lengths[static_cast<std::size_t>(i)],
            moved = where == SingularValues::both ? std::sqrt(length) : length;
    if (length <= least) continue;  // holds nothing; as it is, it can learn
    for (Index c = 0; c < down.cols(); ++c) down(i, c) *= moved;
    for (Matrix<T>* up : {&k_up, &v_up})
      for (Index r = 0; r < up->rows(); ++r) (*up)(r, i) /= moved;
  }
}

/// Mixes the channels of a latent by Hadamard matrices (entries +-1/sqrt(n)), each over as many channels as the largest
/// power of 2 that divides their number: down' = H down, up' = up H^T. The function is the same, and what is cached has
/// no few strong channels (as QuaRot does before quantising, Ashkboos et al. 2024).
template <std::same_as<double> T>
void mix_channels(Matrix<T>& down, Matrix<T>& k_up, Matrix<T>& v_up) {
  const Index rank = down.rows(), block = rank & -rank;
  const auto mix = [](T& one, T& other) {
    const T sum = (one + other) / std::sqrt(T{2}), difference = (one - other) / std::sqrt(T{2});
    one = sum;
    other = difference;
  };
  for (Index step = 1; step < block; step *= 2)
    for (Index i = 0; i < rank; ++i)
      if ((i & step) == 0) {
        for (Index c = 0; c < down.cols(); ++c) mix(down(i, c), down(i + step, c));
        for (Matrix<T>* up : {&k_up, &v_up})
          for (Index r = 0; r < up->rows(); ++r) mix((*up)(r, i), (*up)(r, i + step));
      }
}

}  // namespace detail

/// Computes the truncated singular value decomposition W = U S V^T of the stacked key and value weights: the best
/// latent of its size for inputs whose channels are uncorrelated and equally strong (Eckart and Young 1936). It needs
/// no calibration.
struct JointSvd {
  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model. Allocates.
  /// Throws `Error` for other ranks and for weights that are not finite.
  template <std::same_as<double> T>
  static JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) {
    const Matrix<T> stacked = detail::stacked(k, v, rank);
    const Index d_model = k.cols();
    // V from W^T W, which compiles four times as fast as Eigen's SVD and runs as fast. Nothing is lost by the square:
    // V is orthogonal to rounding, and U S is W V, so that all of W comes back at full rank.
    const Matrix<T> basis = detail::principal_directions(detail::gram(stacked));
    const Matrix<T> up = detail::product(stacked, basis), kept = detail::columns_of(up, 0, rank);

    JointFactors out;
    out.down = detail::transposed(detail::columns_of(basis, 0, rank));
    out.k_up = detail::rows_of(kept, 0, k.rows());
    out.v_up = detail::rows_of(kept, k.rows(), v.rows());
    detail::append_column_lengths(out.singular_values, up);
    out.discarded = detail::energy(detail::columns_of(up, rank, d_model - rank));
    if (out.discarded > 0) out.predicted_error = std::sqrt(out.discarded / detail::energy(stacked));
    return out;
  }
};

/// Computes the decomposition of JointSvd from a few products with random vectors (Halko, Martinsson and Tropp 2011,
/// algorithms 4.4 and 5.1). It works with rank + oversampling columns instead of d_model, and pays where the rank is
/// far below d_model. The error is within 1% of the optimum, even if singular values hardly fall, as those of random
/// matrices (docs/conversion.md). Equal seeds give equal factors.
struct RandomizedSvd {
  Index oversampling = 10;     ///< columns of the sketch beyond the rank; an eighth of the rank if that is more
  Index power_iterations = 4;  ///< power iterations, each of which damps small singular values against large ones
  Seed seed{};                 ///< seed of the random vectors

  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model.
  /// `singular_values` are those of the sketch, and the error is that of the factors, not an estimate. Allocates.
  /// Throws `Error` for other ranks, weights that are not finite, and negative settings.
  template <std::same_as<double> T>
  JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank) const {
    require(oversampling >= 0 && power_iterations >= 0, "factorize: oversampling ", oversampling, " and ",
            power_iterations, " power iterations given, at least 0 expected of both");
    const Matrix<T> stacked = detail::stacked(k, v, rank);
    const Index more = std::max(oversampling, rank / 8);
    if (more >= std::min(stacked.rows(), stacked.cols()) - rank)
      return JointSvd::factorize(k, v, rank);  // nothing to save

    const Random random(seed, "RandomizedSvd");
    Matrix<T> noise(stacked.rows(), rank + more);
    for (Index i = 0; i < noise.size(); ++i) noise.data()[i] = random.normal(static_cast<std::uint64_t>(i));
    // Orthonormal again after each half step: else all columns turn to the first singular vector, and rounding takes
    // the rest.
    const Matrix<T> columns = detail::transposed(stacked);
    Matrix<T> rows = detail::orthonormal(detail::product(columns, noise));
    for (Index i = 0; i < power_iterations; ++i)
      rows = detail::orthonormal(detail::product(columns, detail::orthonormal(detail::product(stacked, rows))));

    const Matrix<T> core = detail::product(stacked, rows), turn = detail::principal_directions(detail::gram(core)),
                    up = detail::product(core, turn), kept = detail::columns_of(up, 0, rank);
    JointFactors out;
    out.down = detail::transposed_product(rows, detail::columns_of(turn, 0, rank));
    out.k_up = detail::rows_of(kept, 0, k.rows());
    out.v_up = detail::rows_of(kept, k.rows(), v.rows());
    detail::append_column_lengths(out.singular_values, up);
    detail::measure(out, k, v, {}, {});
    return out;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the statistics of one layer on calibration speech. All matrices are empty without calibration; the metrics are
/// also empty unless the method is score-aware.
struct LayerStatistics {
  Matrix<double> key_input,   ///< mean of x^T x over the rows x that keys are computed from, (d_model, d_model)
      value_input;            ///< mean of x^T x over the rows x that values are computed from, (d_model, d_model)
  Matrix<double> key_metric,  ///< weights of the errors of each head's keys, (heads * head_dim, head_dim)
      value_metric;           ///< weights of the errors of each head's values, (heads * head_dim, head_dim)
};

/// Holds speech to calibrate on.
template <class T>
struct Calibration {
  Matrix<T> features;   ///< packed rows, (rows, num_mels)
  Sequences sequences;  ///< the utterances of the rows
};

/// Holds a text to calibrate a language model on.
struct CalibrationTokens {
  std::vector<int> ids;  ///< packed tokens, one a row
  Sequences sequences;   ///< the sequences of the rows, each at most as long as the model sees at a time
};

namespace detail {

/// Weighs the errors of heads: errors e count as e M e^T with each head's metric M. With L = M^(1/2), they are
/// errors of L W. A metric of one head serves all heads; without any, all errors count alike.
template <std::same_as<double> T>
class HeadWeights {
 public:
  explicit HeadWeights(const Matrix<T>& metric) {
    if (metric.size() == 0) return;
    const Index dim = metric.cols(), heads = metric.rows() / dim;
    T trace = 0;
    for (Index i = 0; i < metric.rows(); ++i) trace += metric(i, i % dim);
    // Directions that no query of the calibration looked in may be asked for later, so they weigh a little. That also
    // keeps L far from singular.
    const T least = trace > 0 ? 1e-6 * trace / static_cast<T>(metric.rows()) : 1;
    root_ = inverse_ = Matrix<T>(metric.rows(), dim);
    for (Index h = 0; h < heads; ++h) {
      const SymmetricEigen<T> eigen = eigenvectors(rows_of(metric, h * dim, dim));
      const Matrix<T> rows = transposed(eigen.vectors);
      Matrix<T> values(1, dim), inverses(1, dim);
      for (Index i = 0; i < dim; ++i) {
        values(0, i) = std::sqrt(std::max(eigen.values[static_cast<std::size_t>(i)], T{0}) + least);
        inverses(0, i) = 1 / values(0, i);
      }
      set_rows(root_, h * dim, product_by_columns(scaled_columns(eigen.vectors, values), rows));
      set_rows(inverse_, h * dim, product_by_columns(scaled_columns(eigen.vectors, inverses), rows));
    }
  }

  Matrix<T> apply(const Matrix<T>& rows) const { return root_.size() == 0 ? rows : blockwise(root_, rows); }
  Matrix<T> undo(const Matrix<T>& rows) const { return root_.size() == 0 ? rows : blockwise(inverse_, rows); }
  /// Scales the weights so that these rows have energy 1 for inputs of this second moment.
  void normalise(const Matrix<T>& rows, const Matrix<T>& second_moment) {
    if (root_.size() == 0) return;
    const T energy = output_energy(apply(rows), second_moment);
    if (!(energy > 0)) return;
    const T length = std::sqrt(energy);
    std::for_each_n(root_.data(), root_.size(), [=](T& x) { x /= length; });
    inverse_ = scaled(length, std::move(inverse_));
  }

 private:
  static Matrix<T> blockwise(const Matrix<T>& blocks, const Matrix<T>& rows) {
    const Index dim = blocks.cols();
    Matrix<T> out(rows.rows(), rows.cols());
    for (Index at = 0; at < rows.rows(); at += dim)
      set_rows(out, at, product_by_columns(rows_of(blocks, at % blocks.rows(), dim), rows_of(rows, at, dim)));
    return out;
  }

  Matrix<T> root_, inverse_;
};

}  // namespace detail

/// Finds the best latent of its size for the inputs that a layer has in calibration speech, or, with
/// CalibrationTokens, in a text: principal components of the outputs Y = x W^T (as TransMLA does, Meng et al. 2025).
/// The optimum is that of whitening the inputs (SVD-LLM, Palu), but nothing is inverted, so fewer frames than d_model
/// suffice: in directions without input the strongest weights are kept if the rank leaves room. With `score_aware`,
/// errors count by their effect. Errors of keys count in the scores, by the energy of the queries that meet them: M =
/// mean of (q + u)^T (q + u) for each head. Errors of values count after the output projection: M = W_O^T W_O. The two
/// have different units, so each is divided by its total energy.
///
///     ActivationPca<float> method{.calibration = {features, sequences}, .score_aware = true};
///     auto [small, report] = convert<Small>(model, method, numbers, other_features, other_sequences);
///
///     auto gpt = convert<Small>(model, ActivationPca<float, CalibrationTokens>{{ids, {1024, 1024}}}).model;
template <class Scalar = float, class Input = Calibration<Scalar>>
struct ActivationPca {
  Input calibration;         ///< speech or text of the domain in which the model will be used
  bool score_aware = false;  ///< weigh errors by their effect on scores and output

  /// Factorizes k (key channels, d_model) and v (value channels, d_model) at a rank from 1 to d_model, for inputs of
  /// these statistics. `singular_values` of the result are the roots of the mean squares of all d_model principal
  /// components of the outputs, weighted if `score_aware`. `discarded` and `predicted_error` are those of keys and
  /// values for such inputs, not weighted. Without statistics it calls JointSvd. Allocates. Throws `Error` for other
  /// ranks, weights that are not finite, and statistics of another width.
  template <std::same_as<double> T>
  JointFactors factorize(const Matrix<T>& k, const Matrix<T>& v, Index rank, const LayerStatistics& statistics) const {
    const Matrix<T>& input = v.rows() > 0 ? statistics.value_input : statistics.key_input;
    if (input.size() == 0) return JointSvd::factorize(k, v, rank);
    require(input.rows() == k.cols(), "factorize: statistics of ", input.rows(), " inputs given, ", k.cols(),
            " expected");
    detail::HeadWeights<T> of_keys(statistics.key_metric), of_values(statistics.value_metric);
    of_keys.normalise(k, input);
    of_values.normalise(v, input);
    const Matrix<T> weighted = detail::stacked(of_keys.apply(k), of_values.apply(v), rank);

    // The outputs fill d_model dimensions at most: their components are found in coordinates of these, which is fewer
    // than there are outputs, and d_model components then hold all of W whatever the inputs were.
    const Index d_model = k.cols(), outputs = weighted.rows();
    Matrix<T> axes = Matrix<T>::Identity(outputs, d_model), coordinates = Matrix<T>::Zero(d_model, d_model);
    if (outputs > d_model) {
      axes = detail::orthonormal(weighted);
      coordinates = detail::product_by_columns(detail::transposed(axes), weighted);
    } else {
      detail::set_rows(coordinates, 0, weighted);
    }
    const Matrix<T> rows = detail::transposed(coordinates),
                    moment = detail::product(detail::product_by_columns(coordinates, input), rows);
    // In directions without any energy the weights decide, with too little weight to be seen elsewhere.
    Matrix<T> little = Matrix<T>::Zero(d_model, d_model);
    detail::add_product(little, detail::scaled(1e-10 * input.trace() / static_cast<T>(d_model), coordinates), rows);
    const Matrix<T> directions = detail::principal_directions<T>(moment + little),
                    kept = detail::columns_of(directions, 0, rank);

    // With components P of L W x, down = P^T L W and up = L^-1 P. Where the latent's components have any energy, this
    // is also the up that fits the unweighted outputs best: both are the only solution of L up = P.
    const Matrix<T> components = detail::product(axes, kept),
                    down = detail::product(detail::transposed(kept), coordinates);
    const Matrix<T> up = detail::above(of_keys.undo(detail::rows_of(components, 0, k.rows())),
                                       of_values.undo(detail::rows_of(components, k.rows(), v.rows())));
    JointFactors out = detail::product_svd(up, down, k.rows());
    const Matrix<T> energies = detail::transposed_product(moment, directions),
                    squares = detail::by_columns(energies).cwiseProduct(directions).colwise().sum();
    for (Index i = 0; i < d_model; ++i) out.singular_values.push_back(std::sqrt(std::max(squares(0, i), T{0})));
    detail::measure(out, k, v, input, input);
    return out;
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Calls f(layer) with the layer that an AnyAttentionLayer holds, or with the layer itself.
template <class Layer, class F>
decltype(auto) with_layer(Layer& layer, F&& f) {
  if constexpr (requires { layer.layer; })
    return std::visit(std::forward<F>(f), layer.layer);
  else
    return f(layer);
}

/// Returns the configuration with the ranks of these numbers.
template <class Config, class Numbers>
Config with_ranks(Config config, const Numbers& numbers) {
  config.kv_lora_rank = numbers.kv_lora_rank;
  config.v_lora_rank = numbers.v_lora_rank;
  if constexpr (requires { config.kv_lora_ranks; }) {
    config.kv_lora_ranks = numbers.kv_lora_ranks;
    config.v_lora_ranks = numbers.v_lora_ranks;
  } else {
    require(numbers.kv_lora_ranks.size() == 0 && numbers.v_lora_ranks.size() == 0,
            "convert: ranks of each layer given for a model whose layers have equal ranks");
  }
  return config;
}

/// Copies parameters by name. Only keys and values, and a rotary part of queries, may be missing in the source or have
/// another shape there; throws `Error` for any other.
template <class Target, class Source>
void copy_parameters(Target& target, const Source& source) {
  require_on_host(source, "convert");
  using P = Parameter<typename Source::Scalar>;
  std::vector<std::pair<std::string, const P*>> from;
  source.parameters([&](std::string_view name, const P& p) { from.emplace_back(name, &p); });
  std::sort(from.begin(), from.end());
  std::vector<const P*> converted;
  Target::each_attention(target, [&](std::string_view, const auto& any) {
    with_layer(any, [&](const auto& layer) {
      layer.key_value.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
      if constexpr (requires { layer.query.linear_q_rope; })
        layer.query.linear_q_rope.parameters([&](std::string_view, const P& p) { converted.push_back(&p); });
    });
  });
  target.parameters([&](std::string_view name, P& p) {
    const auto found = std::lower_bound(from.begin(), from.end(), name,
                                        [](const auto& one, std::string_view wanted) { return one.first < wanted; });
    if (found != from.end() && found->first == name && found->second->shape() == p.shape())
      p.host() = found->second->host();
    else
      require(std::find(converted.begin(), converted.end(), &p) != converted.end(),
              "convert: the source has no parameter ", name, " of the target's shape");
  });
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Adds x^T x to `sum`, which is empty before the first rows.
template <class T>
void add_second_moment(Matrix<double>& sum, const Matrix<T>& x) {
  if (sum.size() == 0) sum.setZero(x.cols(), x.cols());
  const Matrix<double> rows = to_double(x);
  add_product(sum, transposed(rows), rows);
}

/// Returns what queries and keys of this layer are computed from: x, or x as its position turns it.
template <class Context, class Policy, class T>
Matrix<T> key_input(Context& context, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x,
                    const Sequences& sequences) {
  if constexpr (Policy::Position::turns_input) {
    Pass<typename Context::Tensor> pass{sequences, {}};
    pass.table = layer.table(context, pass);
    return context.output(context.rotate(context.input(x), pass.table, Policy::Position::pairs));
  }
  return x;
}

/// Adds what keys and values of this layer are computed from for its input x, and its queries if they are wanted.
template <class Context, class Policy, class T>
void observe(Context& context, const AttentionLayer<Policy, T>& layer, const Matrix<T>& x, const Sequences& sequences,
             bool queries, LayerStatistics& sums) {
  using Position = typename Policy::Position;
  const Matrix<T> turned = key_input(context, layer, x, sequences);
  add_second_moment(sums.value_input, x);
  if (Position::turns_input) add_second_moment(sums.key_input, turned);
  if (!queries) return;
  auto q = layer.query(context, context.input(turned)).content;
  if constexpr (Position::is_relative) q = context.add_row(q, layer.position.pos_bias_u);
  const AttentionDims& d = layer.dims();
  if (sums.key_metric.size() == 0) sums.key_metric.setZero(d.q_dim(), d.head_dim);
  const Matrix<double> rows = to_double(context.output(q));
  for (Index h = 0; h < d.num_heads; ++h) {
    const Matrix<double> head = gram_by_columns(columns_of(rows, h * d.head_dim, d.head_dim));
    for (Index i = 0; i < head.size(); ++i) sums.key_metric.data()[h * head.size() + i] += head.data()[i];
  }
}

/// Adds the same for a layer that may hold any attention.
template <class Context, class Layer, class T>
void observe_attention(Context& context, const Layer& any, const Matrix<T>& x, const Sequences& sequences, bool queries,
                       LayerStatistics& sums) {
  with_layer(any, [&](const auto& layer) { observe(context, layer, x, sequences, queries, sums); });
}

/// Refers to speech that a model is run on.
template <class T>
struct SpeechInput {
  const Matrix<T>& features;   ///< packed rows, (rows, num_mels)
  const Sequences& sequences;  ///< the utterances of the rows
};

/// Returns the logits of a model for speech, which has `features`, or for tokens, which have `ids`.
template <class Context, class Model, class Input>
auto run_on(Context& context, const Model& model, const Input& input) {
  if constexpr (requires { input.features; })
    return model(context, input.features, input.sequences);
  else
    return Logits<typename Context::Tensor>{model(context, TokenRows{input.ids, input.sequences}), input.sequences};
}
/// Returns the input's rows: of features, or tokens.
template <class Input>
Index rows_of_input(const Input& input) {
  if constexpr (requires { input.features; })
    return input.features.rows();
  else
    return static_cast<Index>(input.ids.size());
}
/// Throws `Error`, in the name of `who`, if a model gave no rows for this input.
template <class Input>
void require_rows(const char* who, const Input& input, Index rows) {
  constexpr bool is_speech = requires { input.features; };
  require(rows > 0, who, ": ", rows_of_input(input), is_speech ? " rows of features" : " tokens", " given in ",
          input.sequences.size(), " sequences, ",
          is_speech ? "of which the subsampling leaves none" : "at least one expected");
}

/// Returns the statistics of each attention layer of this model on this speech or text. Runs the model sequence by
/// sequence, so that it takes little memory. Throws `Error` if the model has no rows for it or a statistic is not
/// finite.
template <class Context, class Source, class Input>
std::vector<LayerStatistics> calibrate(Recorder<Context>& recorder, const Source& source, const Input& input,
                                       bool score_aware) {
  using T = typename Source::Scalar;
  constexpr bool is_speech = requires { input.features; };
  require(rows_of_input(input) == input.sequences.rows(), "calibration: ", rows_of_input(input),
          is_speech ? " rows of features" : " tokens", " given, their sequences have ", input.sequences.rows());
  const Runnable run(recorder, source);
  std::vector<LayerStatistics> out;
  Source::each_attention(*run, [&](std::string_view, const auto& layer) {
    out.emplace_back();
    recorder.record(layer.input_weight());
  });
  Index frames = 0;
  for (Index n = 0; n < input.sequences.size(); ++n) {
    const Index begin = input.sequences.begin(n), length = input.sequences.length(n);
    const Sequences one{length};
    Sequences sequences;
    if constexpr (requires { input.features; }) {
      const Matrix<T> features = rows_of(input.features, begin, length);
      sequences = run_on(recorder, *run, SpeechInput<T>{features, one}).sequences;
    } else {
      const auto ids = std::span(input.ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(length));
      sequences = run_on(recorder, *run, TokenRows{ids, one}).sequences;
    }
    if (sequences.rows() == 0) continue;
    frames += sequences.rows();
    auto sums = out.begin();
    Source::each_attention(*run, [&](std::string_view, const auto& any) {
      const Matrix<T> x = std::move(recorder.input_of(any.input_weight()));
      observe_attention(recorder, any, x, sequences, score_aware, *sums++);
    });
  }
  require_rows("calibration", input, frames);

  auto sums = out.begin();
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    LayerStatistics& s = *sums++;
    if (s.key_input.size() == 0) s.key_input = s.value_input;
    for (Matrix<double>* sum : {&s.key_input, &s.value_input, &s.key_metric})
      std::for_each_n(sum->data(), sum->size(), [=](double& x) { x /= static_cast<double>(frames); });
    require(all_finite(s.key_input) && all_finite(s.key_metric), "calibration: ", name,
            " has inputs or queries that are not finite");
    if (!score_aware) return;
    const Matrix<double> weight =
        with_layer(any, [](const auto& layer) { return to_double(layer.linear_out.weight.host()); });
    const Index dim = s.key_metric.cols();
    s.value_metric.resize(weight.cols(), dim);
    for (Index at = 0; at < weight.cols(); at += dim)
      set_rows(s.value_metric, at, gram_by_columns(columns_of(weight, at, dim)));
  });
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Compares one attention layer before and after a conversion. Errors are relative, |new - old| / |old| (Frobenius),
/// unless their note says otherwise.
struct LayerReport {
  std::string layer;           ///< name among the parameters: "layers.0.self_attn"
  Index num_kv_heads = 0;      ///< key-value heads of the converted layer
  Index kv_lora_rank = 0;      ///< rank of the converted layer's latent; 0: no latent
  Index v_lora_rank = 0;       ///< rank of the values' latent; 0: they have none of their own
  double k_factor_error = 0,   ///< error of the key weights, |W - up down| / |W|
      v_factor_error = 0;      ///< error of the value weights, |W - up down| / |W|
  double predicted_error = 0;  ///< expected error of keys and values for white inputs, or those of the calibration
  double key_value_error = 0;  ///< error of keys and values without their biases, measured by a forward pass
  double output_error = 0;     ///< error of the layer's output, measured by a forward pass
  double output_mse = 0;       ///< mean squared error of the output
  double output_mae = 0;       ///< mean absolute error of the output
  double output_cosine = 1;    ///< cosine of the angle between both outputs, each as one vector
};

/// Compares a converted model with its source.
struct ConversionReport {
  std::string input;                ///< "white noise", "features" or "tokens": the input of the forward passes
  std::vector<LayerReport> layers;  ///< each layer on the input that it has in the source model (or on white noise)
  double predicted_error = 0;       ///< LayerReport::predicted_error over all layers
  double key_value_error = 0;       ///< LayerReport::key_value_error over all layers
  double output_error = 0;          ///< LayerReport::output_error over all layers
  double output_mse = 0;            ///< LayerReport::output_mse over all layers
  double output_mae = 0;            ///< LayerReport::output_mae over all layers
  double output_cosine = 1;         ///< LayerReport::output_cosine over all layers
  double logits_error = 0;          ///< relative error of the model's logits
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of a conversion, and the sizes of the converted attention that its type leaves open (`dyn`). A
/// size of 0 means "as the type says".
struct ConversionConfig {
  Index num_kv_heads = 0;  ///< key-value heads; 0 in an open type: one for each query head
  Index kv_lora_rank = 0;  ///< rank of the latent, or of the keys' latent where values have their own
  Index v_lora_rank = 0;   ///< rank of the values' latent; 0 in an open type: kv_lora_rank
  AttentionName attention = AttentionName::by_type;  ///< the target's attention, where its type is AnyAttention
  IndexList kv_lora_ranks{},  ///< one kv_lora_rank for each layer (`allocate_ranks`); empty: the same for all
      v_lora_ranks{};         ///< one v_lora_rank for each layer; empty: the same for all
  SingularValues singular_values = SingularValues::up;  ///< place of the singular values in the factors
  /// Divides the errors of keys and of values in a joint latent by the energy of each (Meng et al. 2025). Without it,
  /// the stronger of the two takes most of the latent.
  bool balance = false;
  /// Mixes the channels of a latent by a Hadamard matrix. SVD puts most of the energy into the first channels, which
  /// wastes the range of 8 bits on the others. It is free, because it is folded into the weights. `mla-head` has none.
  bool hadamard = false;
};

/// Holds a converted model and the report on it: `auto [small, report] = convert<Small>(model);`
template <class Target>
struct Conversion {
  Target model;             ///< the converted model, its parameters on the host
  ConversionReport report;  ///< predicted and measured errors
};

}  // namespace LACONIC_ABI
}  // namespace laconic

// Keys and values of an attention as linear functions of the layer's input: read off, and fitted.

namespace laconic {
inline namespace LACONIC_ABI {
/// Holds keys and values as functions of the layer's input: weights (heads * head_dim, d_model), biases as one more
/// column.
struct KeyValueMap {
  Matrix<double> k;  ///< keys
  Matrix<double> v;  ///< values
  /// Returns the weights of keys, without the biases.
  Matrix<double> k_weight() const { return detail::columns_of(k, 0, k.cols() - 1); }
  /// Returns the weights of values, without the biases.
  Matrix<double> v_weight() const { return detail::columns_of(v, 0, v.cols() - 1); }
  /// Returns the biases of values (rows, 1).
  Matrix<double> v_bias() const { return detail::columns_of(v, v.cols() - 1, 1); }
};

/// Holds the method and the settings by which keys and values of one layer are fitted.
struct Fitting {
  /// Factorizes keys and values through one latent of this rank, by the method of the conversion.
  std::function<JointFactors(const Matrix<double>& k, const Matrix<double>& v, Index rank,
                             const LayerStatistics& statistics)>
      factorize;
  SingularValues singular_values;  ///< the factor that the singular values go to
  bool balance;                    ///< whether keys and values are scaled to weigh the same
  bool hadamard;                   ///< whether the channels of the latent are mixed
  LayerStatistics statistics;      ///< statistics of the layer on calibration speech; empty without any
};

/// Returns a linear layer as a matrix (out, in + 1), its bias (or zeros) as the last column. Allocates. Throws `Error`
/// if its parameters are not on the host.
template <class T>
Matrix<double> weight_and_bias(const Linear<T>& linear) {
  Matrix<double> out = Matrix<double>::Zero(linear.out(), linear.in() + 1);
  detail::set_columns(out, 0, detail::to_double(linear.weight.host()));
  for (Index i = 0; linear.has_bias() && i < linear.out(); ++i)
    out(i, linear.in()) = static_cast<double>(linear.bias.host()(0, i));
  return out;
}
/// Sets a linear layer to a matrix (out, in + 1), whose last column is the bias; a layer without bias ignores it.
/// Throws `Error` if its parameters are not on the host.
template <class T>
void set_weight_and_bias(Linear<T>& linear, const Matrix<double>& values) {
  detail::round_to(linear.weight.host(), detail::columns_of(values, 0, linear.in()));
  if (linear.has_bias())
    detail::round_to(linear.bias.host(), detail::transposed(detail::columns_of(values, linear.in(), 1)));
}

namespace detail {

template <class T>
void assign_weight(Linear<T>& linear, const Matrix<double>& weight) {
  round_to(linear.weight.host(), weight);
  if (linear.has_bias()) linear.bias.host().setZero();
}
/// Adds (out, 1) to the bias of a layer, if it has one.
template <class T>
void add_to_bias(Linear<T>& linear, const Matrix<double>& moved) {
  for (Index i = 0; linear.has_bias() && i < moved.rows(); ++i) linear.bias.host()(0, i) += static_cast<T>(moved(i, 0));
}

/// Returns `second` after `first`, both with a bias as their last column. If `second` has a matrix for every block of
/// rows of `first`, each follows its own block.
template <std::same_as<double> T>
Matrix<T> composed(const Matrix<T>& second, const Matrix<T>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows() / blocks;
  const Matrix<T> weight = columns_of(second, 0, in);
  Matrix<T> both(second.rows(), first.cols());
  for (Index b = 0; b < blocks; ++b)
    set_rows(both, b * out, product_by_columns(rows_of(weight, b * out, out), rows_of(first, b * in, in)));
  for (Index i = 0; i < both.rows(); ++i) both(i, first.cols() - 1) += second(i, in);
  return both;
}
/// Returns `second` after every block of rows of `first`, both with a bias as their last column.
template <std::same_as<double> T>
Matrix<T> composed_each(const Matrix<T>& second, const Matrix<T>& first) {
  const Index in = second.cols() - 1, blocks = first.rows() / in, out = second.rows();
  Matrix<T> both(blocks * out, first.cols());
  for (Index b = 0; b < blocks; ++b) set_rows(both, b * out, composed(second, rows_of(first, b * in, in)));
  return both;
}

template <class Layer>
KeyValueMap key_value_map(FullRank, const Layer& layer) {
  return {weight_and_bias(layer.linear_k), weight_and_bias(layer.linear_v)};
}
template <class Layer>
KeyValueMap key_value_map(InputLatent, const Layer& layer) {
  return key_value_map(FullRank(), layer);
}
template <Index R, class Layer>
KeyValueMap key_value_map(SharedLatent<R>, const Layer& layer) {
  const Matrix<double> down = weight_and_bias(layer.linear_kv_down);
  return {composed(weight_and_bias(layer.linear_k_up), down), composed(weight_and_bias(layer.linear_v_up), down)};
}
template <Index R, class Layer>
KeyValueMap key_value_map(TwoStageLatent<R>, const Layer& layer) {
  const Matrix<double> down = weight_and_bias(layer.linear_kv_down);
  return {composed(weight_and_bias(layer.linear_k_b), composed(weight_and_bias(layer.linear_k_a), down)),
          composed(weight_and_bias(layer.linear_v_b), composed(weight_and_bias(layer.linear_v_a), down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(SplitLatent<RK, RV>, const Layer& layer) {
  return {composed(weight_and_bias(layer.linear_k_up), weight_and_bias(layer.linear_k_down)),
          composed(weight_and_bias(layer.linear_v_up), weight_and_bias(layer.linear_v_down))};
}
template <Index RK, Index RV, class Layer>
KeyValueMap key_value_map(HeadLatent<RK, RV>, const Layer& layer) {
  return {composed_each(weight_and_bias(layer.k_expand), weight_and_bias(layer.linear_k_down)),
          composed_each(weight_and_bias(layer.v_expand), weight_and_bias(layer.linear_v_down))};
}

/// Returns the rows of every query head, copied from the key-value head that it reads.
template <std::same_as<double> T>
Matrix<T> repeat_heads(const Matrix<T>& rows, const AttentionDims& d) {
  Matrix<T> out(d.d_model, rows.cols());
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads;
  for (Index h = 0; h < d.num_heads; ++h) set_rows(out, h * dim, rows_of(rows, h / group * dim, dim));
  return out;
}
/// Returns the mean of the heads that will read one key-value head (Ainslie et al. 2023, section 2.1).
template <std::same_as<double> T>
Matrix<T> mean_heads(const Matrix<T>& rows, const AttentionDims& d) {
  Matrix<T> out = Matrix<T>::Zero(d.kv_dim(), rows.cols());
  const Index group = d.num_heads / d.num_kv_heads, numbers = d.head_dim * rows.cols();
  for (Index h = 0; h < d.num_heads; ++h)
    for (Index i = 0; i < numbers; ++i) out.data()[h / group * numbers + i] += rows.data()[h * numbers + i];
  std::for_each_n(out.data(), out.size(), [=](T& x) { x /= static_cast<T>(group); });
  return out;
}
inline KeyValueMap repeat_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {repeat_heads(map.k, d), repeat_heads(map.v, d)};
}
inline KeyValueMap mean_heads(const KeyValueMap& map, const AttentionDims& d) {
  return {mean_heads(map.k, d), mean_heads(map.v, d)};
}

/// Factorizes keys and values through one latent, balanced, placed and mixed as the settings say.
template <std::same_as<double> T>
JointFactors joint(const Matrix<T>& k, const Matrix<T>& v, Index rank, const Fitting& how) {
  const LayerStatistics& s = how.statistics;
  const T of_k = output_energy(k, s.key_input), of_v = output_energy(v, s.value_input);
  JointFactors out;
  if (how.balance && of_k > 0 && of_v > 0) {
    const T rho = std::sqrt(of_k / of_v);
    Matrix<T> keys = k;
    std::for_each_n(keys.data(), keys.size(), [=](T& x) { x /= rho; });
    const JointFactors balanced = how.factorize(keys, v, rank, s);
    out = product_svd(above(scaled(rho, balanced.k_up), balanced.v_up), balanced.down, k.rows());
    measure(out, k, v, s.key_input, s.value_input);
  } else {
    out = how.factorize(k, v, rank, s);
  }
  place(out.down, out.k_up, out.v_up, how.singular_values);
  if (how.hadamard) mix_channels(out.down, out.k_up, out.v_up);
  return out;
}

/// Makes the layer's keys and values as near to `wanted` as its policy allows, and returns the squared error that is
/// left.
template <class Layer>
double fit(FullRank, Layer& layer, const KeyValueMap& wanted, const Fitting&) {
  set_weight_and_bias(layer.linear_k, wanted.k);
  set_weight_and_bias(layer.linear_v, wanted.v);
  return 0;
}
template <class Layer>
double fit(InputLatent, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  return fit(FullRank(), layer, wanted, how);
}
template <Index R, class Layer>
double fit(SharedLatent<R>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = joint(k, v, layer.linear_kv_down.out(), how);
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_up, factors.k_up);
  assign_weight(layer.linear_v_up, factors.v_up);
  return factors.discarded;
}
template <Index R, class Layer>
double fit(TwoStageLatent<R>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const JointFactors factors = joint(k, v, layer.linear_kv_down.out(), how);
  const Index dim = layer.linear_k_b.in();
  Matrix<double> identities = Matrix<double>::Zero(k.rows(), dim);
  for (Index i = 0; i < k.rows(); ++i) identities(i, i % dim) = 1;
  assign_weight(layer.linear_kv_down, factors.down);
  assign_weight(layer.linear_k_a, factors.k_up);
  assign_weight(layer.linear_k_b, identities);
  assign_weight(layer.linear_v_a, factors.v_up);
  assign_weight(layer.linear_v_b, identities);
  return factors.discarded;
}
template <Index RK, Index RV, class Layer>
double fit(SplitLatent<RK, RV>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight(), nothing(0, k.cols());
  const JointFactors keys = joint(k, nothing, layer.linear_k_down.out(), how);
  const JointFactors values = joint(nothing, v, layer.linear_v_down.out(), how);
  assign_weight(layer.linear_k_down, keys.down);
  assign_weight(layer.linear_k_up, keys.k_up);
  assign_weight(layer.linear_v_down, values.down);
  assign_weight(layer.linear_v_up, values.v_up);
  return keys.discarded + values.discarded;
}

/// Fits one expansion (head_dim, rank) for all heads and a latent of each head, and returns the squared error that is
/// left. The left singular vectors of the heads' matrices side by side, (head_dim, heads * d_model), span their best
/// common column space, and each head's latent is its projection to that space. Calibrated, each matrix is multiplied
/// from the right by a root of the second moment of the inputs, and from the left by a root of the heads' mean metric,
/// because one expansion can depend on one metric only.
template <class T, std::same_as<double> D>
double fit_heads(Linear<T>& down, Linear<T>& expand, const Matrix<D>& weight, const Matrix<D>& input,
                 const Matrix<D>& metric, const Fitting& how) {
  const Index dim = expand.out(), rank = expand.in(), heads = weight.rows() / dim, d_model = weight.cols();
  Matrix<D> mean = rows_of(metric, 0, std::min(dim, metric.rows()));
  for (Index i = mean.size(); i < metric.size(); ++i) mean.data()[i % mean.size()] += metric.data()[i];
  const HeadWeights<D> weights(mean);
  const Matrix<D> weighted = weights.apply(weight);
  Matrix<D> seen = weighted;
  if (input.size() > 0) {
    const SymmetricEigen<D> eigen = eigenvectors(input);
    Matrix<D> lengths(1, d_model);
    for (Index i = 0; i < d_model; ++i)
      lengths(0, i) = std::sqrt(std::max(eigen.values[static_cast<std::size_t>(i)], D{0}));
    seen = product_by_columns(weighted, scaled_columns(eigen.vectors, lengths));
  }
  Matrix<D> stacked(heads * d_model, dim);
  for (Index h = 0; h < heads; ++h) set_rows(stacked, h * d_model, transposed(rows_of(seen, h * dim, dim)));
  const JointFactors factors = how.factorize(stacked, Matrix<D>(0, dim), rank, {});

  Matrix<D> latents(heads * rank, d_model), expansion = weights.undo(transposed(factors.down));
  for (Index h = 0; h < heads; ++h)
    set_rows(latents, h * rank, product_by_columns(factors.down, rows_of(weighted, h * dim, dim)));
  double discarded = factors.discarded;
  if (input.size() > 0) {
    discarded = 0;
    for (Index h = 0; h < heads; ++h)
      discarded +=
          output_energy(difference(rows_of(weight, h * dim, dim), expansion, rows_of(latents, h * rank, rank)), input);
  }

  // So far all singular values are in the way down. (A channel that holds nothing stays: its expansion is not 0, so it
  // can learn.)
  std::vector<D> squares(static_cast<std::size_t>(rank));
  for (Index i = 0; i < heads * rank; ++i)
    squares[static_cast<std::size_t>(i % rank)] += latents.row(i).squaredNorm() / static_cast<D>(heads);
  const D least = 1e-24 * *std::max_element(squares.begin(), squares.end());
  for (Index i = 0; i < heads * rank; ++i) {
    const D square = squares[static_cast<std::size_t>(i % rank)];
    if (how.singular_values == SingularValues::down || square <= least) continue;
    const D moved = how.singular_values == SingularValues::up ? std::sqrt(square) : std::sqrt(std::sqrt(square));
    std::for_each_n(latents.data() + i * d_model, d_model, [=](D& x) { x /= moved; });
    if (i < rank) scale_column(expansion, i, moved);
  }
  assign_weight(down, latents);
  assign_weight(expand, expansion);
  return discarded;
}
template <Index RK, Index RV, class Layer>
double fit(HeadLatent<RK, RV>, Layer& layer, const KeyValueMap& wanted, const Fitting& how) {
  const Matrix<double> k = wanted.k_weight(), v = wanted.v_weight();
  const LayerStatistics& s = how.statistics;
  return fit_heads(layer.linear_k_down, layer.k_expand, k, s.key_input, s.key_metric, how) +
         fit_heads(layer.linear_v_down, layer.v_expand, v, s.value_input, s.value_metric, how);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

// Which attentions can be converted into which.

namespace laconic {
inline namespace LACONIC_ABI {

template <class Kind, class AttentionPolicy, class T>
class LanguageModel;

namespace detail {

template <class Target, class Source>
inline constexpr bool same_model = false;
template <class Kind, class To, class From, class T>
inline constexpr bool same_model<Encoder<Kind, To, T>, Encoder<Kind, From, T>> = true;
template <class Kind, class To, class From, class T>
inline constexpr bool same_model<LanguageModel<Kind, To, T>, LanguageModel<Kind, From, T>> = true;

/// Says whether keys and values are linear functions of the layer's input: `key_value_map` reads them off, and `fit`
/// sets them. Those of other policies are found in the policy's namespace.
template <class KeyValue>
inline constexpr bool is_linear_map = requires(typename KeyValue::template Layer<float>& layer,
                                               const KeyValueMap& wanted, const Fitting& how) {
  { key_value_map(KeyValue{}, std::as_const(layer)) } -> std::same_as<KeyValueMap>;
  { fit(KeyValue{}, layer, wanted, how) } -> std::same_as<double>;
};

/// Says whether keys and values come out of a latent by linear maps.
template <class KeyValue>
inline constexpr bool has_linear_latent =
    is_linear_map<KeyValue>&& KeyValue::is_latent && !std::is_same_v<KeyValue, InputLatent>;
/// Says whether the channels of the latent can be mixed by a Hadamard matrix.
template <class KeyValue>
inline constexpr bool can_mix = has_linear_latent<KeyValue>;
template <Index RK, Index RV>
inline constexpr bool can_mix<HeadLatent<RK, RV>> = false;

/// Says whether two policies have equal scores and positions, and keys and values that can be carried over.
template <class From, class To>
inline constexpr bool conversion_known =
    is_linear_map<typename From::KeyValue>&& is_linear_map<typename To::KeyValue>&& std::is_same_v<
        typename From::Position, typename To::Position>&& std::is_same_v<typename From::Score, typename To::Score>;

/// Says whether two policies are one template with different numbers.
template <class, class>
inline constexpr bool same_kind = false;
template <template <Index...> class KeyValue, Index... A, Index... B>
inline constexpr bool same_kind<KeyValue<A...>, KeyValue<B...>> = true;

/// Says whether the types leave room for fewer key-value heads than the source has.
template <class To, class From>
inline constexpr bool can_merge = true;
template <class To, class From>
requires requires { To::Heads::num_kv_heads + From::Heads::num_kv_heads; }
inline constexpr bool can_merge<To, From> = To::Heads::num_kv_heads == dyn || From::Heads::num_kv_heads == dyn ||
                                            From::Heads::num_kv_heads > To::Heads::num_kv_heads;

/// Throws `Error` unless a conversion is known between these attentions, which the types may leave open.
template <class To, class From>
void require_known(const AttentionConfig& to, const AttentionConfig& from) {
  const bool known = with_policy<To>(to, [&]<class A>(std::type_identity<A>) {
    return with_policy<From>(from, []<class B>(std::type_identity<B>) { return conversion_known<B, A>; });
  });
  require(known, "convert: no conversion is known between these two attentions (", to_name(from.attention), " to ",
          to_name(to.attention), ")");
}

template <class Target, class Source>
constexpr bool types_fit() {
  static_assert(same_model<Target, Source>,
                "laconic: convert changes a model's attention, neither its kind nor its number type");
  using From = typename Source::Policy;
  using To = typename Target::Policy;
  if constexpr (!names_its_policy<From> && !names_its_policy<To>) {
    constexpr Index before = From::Heads::num_heads, after = To::Heads::num_heads;
    static_assert(before == after || before == dyn || after == dyn, "laconic: convert keeps the number of query heads");
    static_assert(std::is_same_v<typename From::Position, typename To::Position>,
                  "laconic: convert keeps the position policy");
    static_assert(conversion_known<From, To>, "laconic: no conversion is known between these two attentions");
    static_assert(To::Position::key_bias_cancels || std::is_same_v<typename To::KeyValue, FullRank>,
                  "laconic: a latent drops the bias of the keys, which matters under this position policy");
  }
  return true;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

// Many key-value heads to few: the mean of heads, or heads that are turned to agree before.

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Holds keys and values of fewer heads, and the matrices by which every query head has them: k_i = k_turn_i k', v_i =
/// v_turn_i v'. The matrices are empty if each head has them as they are.
struct HeadMerge {
  KeyValueMap wanted;
  Matrix<double> k_turn{}, v_turn{};  ///< (num_heads * head_dim, head_dim)

  bool turns() const { return k_turn.size() > 0; }
  /// Returns the rows of every query head (num_heads * head_dim, n) from those of the merged heads.
  template <std::same_as<double> T>
  static Matrix<T> spread(const Matrix<T>& turn, const Matrix<T>& merged, const AttentionDims& d) {
    Matrix<T> out = repeat_heads(merged, d);
    for (Index at = 0; turn.size() > 0 && at < out.rows(); at += d.head_dim)
      set_rows(out, at, product_by_columns(rows_of(turn, at, d.head_dim), rows_of(out, at, d.head_dim)));
    return out;
  }
};

/// Returns the orthogonal matrix nearest to this one (Frobenius).
template <std::same_as<double> D>
Matrix<D> nearest_orthogonal(const Matrix<D>& matrix) {
  // With V from M^T M, the columns of M V are those of U, as long as their singular values.
  const Matrix<D> v = principal_directions(gram(matrix)), columns = product(matrix, v);
  Matrix<D> u = orthonormal(columns);
  for (Index i = 0; i < u.cols(); ++i) {
    D cosine = 0;
    for (Index r = 0; r < u.rows(); ++r) cosine += u(r, i) * columns(r, i);
    if (cosine < 0) scale_column(u, i, D{-1});
  }
  return product(u, transposed(v));
}

/// Merges heads for the inputs that the layer has in calibration speech. Keys are rotated by orthogonal matrices, which
/// positions can follow, to agree best with the mean of their group (generalised Procrustes analysis, Gower 1975; for
/// attention Jin et al. 2024); rotations and mean are computed in alternation. Values are free, because the output
/// projection can undo any matrix: a group's are projected to the head_dim principal components of its outputs.
template <std::same_as<double> D>
HeadMerge align_heads(const KeyValueMap& before, const AttentionDims& d, const LayerStatistics& seen,
                      const Matrix<D>& output_weight) {
  const Index dim = d.head_dim, group = d.num_heads / d.num_kv_heads, inputs = before.k.cols() - 1;
  const Matrix<D> k = before.k_weight(), v = before.v_weight();
  HeadMerge out;
  out.wanted.k = Matrix<D>::Zero(d.kv_dim(), inputs + 1);
  out.wanted.v = Matrix<D>::Zero(d.kv_dim(), inputs + 1);
  out.k_turn.resize(d.q_dim(), dim);
  out.v_turn.resize(d.q_dim(), dim);
  const auto set_weight = [&](Matrix<D>& wanted, Index g, const Matrix<D>& weight) {
    for (Index r = 0; r < dim; ++r)
      std::copy_n(weight.data() + r * inputs, inputs, wanted.data() + (g * dim + r) * (inputs + 1));
  };
  for (Index g = 0; g < d.num_kv_heads; ++g) {
    const Index first = g * group * dim;
    std::vector<Matrix<D>> heads, turns(static_cast<std::size_t>(group));
    for (Index i = 0; i < group; ++i) heads.push_back(rows_of(k, first + i * dim, dim));
    Matrix<D> mean = heads[0];
    double error = -1;
    for (Index round = 0; round < 100; ++round) {
      Matrix<D> next = Matrix<D>::Zero(dim, inputs);
      double rest = 0;
      const Matrix<D> met = product(seen.key_input, transposed(mean));
      for (std::size_t i = 0; i < heads.size(); ++i) {
        turns[i] = nearest_orthogonal(product(heads[i], met));
        const Matrix<D> turned = product_by_columns(transposed(turns[i]), heads[i]);
        for (Index n = 0; n < next.size(); ++n) next.data()[n] += turned.data()[n] / static_cast<D>(group);
      }
      mean = next;
      for (std::size_t i = 0; i < heads.size(); ++i)
        rest += output_energy(difference(heads[i], turns[i], mean), seen.key_input);
      if (round > 0 && error - rest <= 1e-9 * error) break;
      error = rest;
    }
    for (Index i = 0; i < group; ++i) set_rows(out.k_turn, first + i * dim, turns[static_cast<std::size_t>(i)]);
    set_weight(out.wanted.k, g, mean);

    // Errors of values count after the output projection.
    const Index rows = group * dim;
    Matrix<D> metric(rows, dim);
    for (Index i = 0; i < group; ++i)
      set_rows(metric, i * dim, gram_by_columns(columns_of(output_weight, first + i * dim, dim)));
    const HeadWeights<D> weights(metric);
    const Matrix<D> weighted = weights.apply(rows_of(v, first, rows));
    const Matrix<D> components = columns_of(
        principal_directions(product(product_by_columns(weighted, seen.value_input), transposed(weighted))), 0, dim);
    const Matrix<D> spread = weights.undo(components), merged = product(transposed(components), weighted);
    // In units in which the output projection keeps its size, so that training goes on as before.
    Matrix<D> scale = gram_by_columns(spread);
    std::for_each_n(scale.data(), scale.size(), [=](D& x) { x /= static_cast<D>(group); });
    const auto [root, inverse] = square_roots(scale);
    set_rows(out.v_turn, first, product_by_columns(spread, inverse));
    set_weight(out.wanted.v, g, product_by_columns(root, merged));
  }
  return out;
}

/// Says whether queries, positions and the output can follow when keys and values are rotated.
template <class Policy>
inline constexpr bool can_turn_heads =
    !Policy::Score::is_linear && Policy::Position::key_bias_cancels && !Policy::Position::turns_keys;

/// Rotates queries, positions and output of a layer as keys and values of its heads are rotated.
template <class Policy, class T>
void turn_heads(AttentionLayer<Policy, T>& layer, const HeadMerge& merge) {
  const Index dim = layer.dims().head_dim;
  const auto turn = [&](Parameter<T>& rows) {  // of all heads, one below the other
    Matrix<double> turned = to_double(rows.host());
    for (Index at = 0; at < merge.k_turn.rows(); at += dim)
      set_rows(turned, at, product_by_columns(transposed(rows_of(merge.k_turn, at, dim)), rows_of(turned, at, dim)));
    round_to(rows.host(), turned);
  };
  const auto turn_each = [&](Matrix<T>& numbers) {  // head_dim numbers a head
    for (Index at = 0; at < merge.k_turn.rows(); at += dim) {
      Matrix<double> one(1, dim);
      std::copy_n(numbers.data() + at, dim, one.data());
      one = product(one, rows_of(merge.k_turn, at, dim));
      for (Index i = 0; i < dim; ++i) numbers.data()[at + i] = static_cast<T>(one(0, i));
    }
  };
  auto& query = [&]() -> auto& {
    if constexpr (requires { layer.query.up; })
      return layer.query.up;
    else
      return layer.query;
  }
  ();
  turn(query.linear_q.weight);
  if (query.linear_q.has_bias()) turn_each(query.linear_q.bias.host());
  if constexpr (Policy::Position::is_relative) {
    turn(layer.position.linear_pos.weight);
    turn_each(layer.position.pos_bias_u.host());
    turn_each(layer.position.pos_bias_v.host());
  }
  Matrix<double> out = to_double(layer.linear_out.weight.host());
  for (Index at = 0; at < merge.v_turn.rows(); at += dim)
    set_columns(out, at, product_by_columns(columns_of(out, at, dim), rows_of(merge.v_turn, at, dim)));
  round_to(layer.linear_out.weight.host(), out);
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds how far values are from expected ones, as sums, so that deviations add up over layers. A deviation that is
/// computed from weights has `error` and `reference` only.
struct Deviation {
  double error = 0,   ///< sum of (value - expected)^2
      reference = 0,  ///< sum of expected^2
      absolute = 0,   ///< sum of |value - expected|
      square = 0,     ///< sum of value^2
      product = 0;    ///< sum of value * expected
  Index count = 0;    ///< compared pairs

  /// Adds one pair to all sums.
  void add(double value, double expected) {
    error += (value - expected) * (value - expected);
    reference += expected * expected;
    absolute += std::abs(value - expected);
    square += value * value;
    product += value * expected;
    ++count;
  }
  /// Adds the sums of another deviation.
  Deviation& operator+=(const Deviation& other) {
    error += other.error;
    reference += other.reference;
    absolute += other.absolute;
    square += other.square;
    product += other.product;
    count += other.count;
    return *this;
  }
  /// Returns |value - expected| / |expected| (Frobenius), 0 without any error.
  double relative() const { return error == 0 ? 0 : std::sqrt(error / reference); }
  /// Returns the mean squared error, 0 without pairs.
  double mean_squared() const { return count == 0 ? 0 : error / static_cast<double>(count); }
  /// Returns the mean absolute error, 0 without pairs.
  double mean_absolute() const { return count == 0 ? 0 : absolute / static_cast<double>(count); }
  /// Returns the cosine of the angle between both, each as one vector; 1 without any error. It is blind to a scale,
  /// which the relative error shows.
  double cosine() const { return error == 0 ? 1 : product / std::sqrt(square * reference); }
};

/// Compares every element of `value` with that of `expected`, which has the same shape.
template <class A, class B>
Deviation deviation(const A& value, const B& expected) {
  Deviation out;
  for (Index r = 0; r < expected.rows(); ++r)
    for (Index c = 0; c < expected.cols(); ++c)
      out.add(static_cast<double>(value(r, c)), static_cast<double>(expected(r, c)));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns (rows, cols) independent standard normal values, which depend on the name only. Allocates.
template <class T>
Matrix<T> white_noise(Index rows, Index cols, std::string_view name) {
  const Random random(Seed(), name);
  Matrix<T> out(rows, cols);
  for (Index i = 0; i < out.size(); ++i) out.data()[i] = static_cast<T>(random.normal(static_cast<std::uint64_t>(i)));
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Sets the errors of outputs in the report of a layer or of a whole conversion.
void set_output(auto& report, const Deviation& of_output) {
  report.output_error = of_output.relative();
  report.output_mse = of_output.mean_squared();
  report.output_mae = of_output.mean_absolute();
  report.output_cosine = of_output.cosine();
}

/// Holds keys and values of some rows as each query head reads them.
template <class T>
struct KeyValueRows {
  Matrix<T> k,  ///< keys, (rows, num_heads * head_dim)
      v;        ///< values, (rows, num_heads * head_dim)
};

/// Returns the keys that a layer computes from rows `turned` (rows, d_model), which differ from x if positions rotate
/// inputs, and the values that it computes from rows x (rows, d_model). Biases are left out, because a conversion may
/// move them: one on the keys changes no probability, one on the values is one on the output. Allocates.
template <class Context, class Policy, class T>
KeyValueRows<T> key_value_rows(Context& context, const AttentionLayer<Policy, T>& on_host, const Matrix<T>& x,
                               const Matrix<T>& turned) {
  const Runnable run(context, on_host);
  const auto& key_value = (*run).key_value;
  const auto with_zeros = [](const Matrix<T>& from) {  // the row of zeros gives the biases
    Matrix<T> rows = Matrix<T>::Zero(from.rows() + 1, from.cols());
    std::copy_n(from.data(), from.size(), rows.data());
    return rows;
  };
  const Matrix<T> of_values = with_zeros(x), of_keys = with_zeros(turned);
  const auto all =
      key_value.expand(context, key_value.remember(context, context.input(of_keys), context.input(of_values)));
  const AttentionDims& d = on_host.dims();
  const auto of_heads = [&](const Matrix<T>& rows) {
    Matrix<T> out(x.rows(), d.q_dim());
    for (Index r = 0; r < out.rows(); ++r)
      for (Index h = 0; h < d.num_heads; ++h) {
        const Index begin = h / (d.num_heads / d.num_kv_heads) * d.head_dim;
        for (Index c = 0; c < d.head_dim; ++c)
          out(r, h * d.head_dim + c) = rows(r, begin + c) - rows(x.rows(), begin + c);
      }
    return out;
  };
  return {of_heads(context.output(all.k)), of_heads(context.output(all.v))};
}
/// Compares keys and values with expected ones of the same shape.
template <class T>
Deviation deviation(const KeyValueRows<T>& value, const KeyValueRows<T>& expected) {
  Deviation out = deviation(value.k, expected.k);
  return out += deviation(value.v, expected.v);
}

/// Compares keys and values of both layers for the same rows x (rows, d_model).
template <class Context, class To, class From, class T>
Deviation key_value_deviation(Context& context, const AttentionLayer<To, T>& target,
                              const AttentionLayer<From, T>& source, const Matrix<T>& x) {
  return deviation(key_value_rows(context, target, x, x), key_value_rows(context, source, x, x));
}

/// Returns the output of an attention layer for rows x (rows, d_model) of these sequences.
template <class Context, class Layer, class T>
Matrix<T> attention_output(Context& context, const Layer& on_host, const Matrix<T>& x, const Sequences& sequences,
                           const Mask& mask) {
  const Runnable run(context, on_host);
  const Layer& layer = *run;
  Pass<typename Context::Tensor> pass{sequences, mask};
  pass.table = layer.table(context, pass);
  return context.output(layer(context, context.input(x), pass));
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Identifies a key-value policy whatever its numbers are.
template <template <Index...> class KeyValue>
inline constexpr char family_of_numbers = 0;
template <class>
inline constexpr const char* key_value_family = nullptr;
template <template <Index...> class KeyValue, Index... Numbers>
inline constexpr const char* key_value_family<KeyValue<Numbers...>> = &family_of_numbers<KeyValue>;

/// Holds the part of a source's layer that a conversion needs, without the layer's policy: a conversion then compiles
/// the steps that follow once for each policy, not once for each pair of policies.
template <class T>
struct SourceLayer {
  AttentionDims dims{};
  const char* family = nullptr;
  KeyValueMap map;       ///< keys and values of every query head
  Matrix<T> turned;      ///< rows that keys are computed from, (rows, d_model)
  KeyValueRows<T> rows;  ///< keys and values of the rows that are measured
  Matrix<T> output;      ///< outputs of the layer for these rows, (rows, d_model)
};
/// Reads keys and values of a layer for every query head.
template <class Policy, class T>
KeyValueMap full_map(std::string_view name, const AttentionLayer<Policy, T>& layer) {
  KeyValueMap out = repeat_heads(key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
  require(all_finite(out.k) && all_finite(out.v), "convert: keys or values of ", name,
          " have weights that are not finite");
  return out;
}
/// Reads a source's layer, and measures it on rows x (rows, d_model) of these sequences.
template <class Context, class Policy, class T>
SourceLayer<T> open_layer(Context& context, std::string_view name, const AttentionLayer<Policy, T>& layer,
                          const Matrix<T>& x, const Sequences& sequences, const Mask& mask) {
  SourceLayer<T> out;
  out.dims = layer.dims();
  out.family = key_value_family<typename Policy::KeyValue>;
  if constexpr (is_linear_map<typename Policy::KeyValue>) {
    out.map = full_map(name, layer);
    out.turned = key_input(context, *Runnable(context, layer), x, sequences);
    out.rows = key_value_rows(context, layer, x, out.turned);
  }
  out.output = attention_output(context, layer, x, sequences, mask);
  return out;
}

/// Holds the predicted deviation of a converted layer, and how its heads were merged.
struct ConvertedLayer {
  Deviation deviation;
  HeadMerge merge;
  double k_factor_error = 0, v_factor_error = 0;
};

/// Returns |merged rows for every query head - expected| / |expected| of weights; the last column holds biases.
template <std::same_as<double> T>
T weight_error(const Matrix<T>& turn, const Matrix<T>& merged, const Matrix<T>& expected, const AttentionDims& d) {
  const Index inputs = expected.cols() - 1;
  const Matrix<T> weights = columns_of(expected, 0, inputs);
  Matrix<T> off = columns_of(HeadMerge::spread(turn, merged, d), 0, inputs);
  std::transform(off.data(), off.data() + off.size(), weights.data(), off.data(), std::minus<>());
  const T norm = std::sqrt(energy(weights));
  return norm > 0 ? std::sqrt(energy(off)) / norm : 0;
}

/// Fits keys and values of one layer to those of the source; its other parameters are already copied, and where both
/// have the same latent, these too. `may_merge`: whether the types leave room for fewer key-value heads than the source
/// has.
template <bool may_merge, class To, class T>
ConvertedLayer convert_layer(AttentionLayer<To, T>& target, const SourceLayer<T>& source, Fitting how) {
  const AttentionDims &to = target.dims(), &from = source.dims;
  const KeyValueMap& before = source.map;
  LayerStatistics& seen = how.statistics;
  const auto output_bias = [&](const KeyValueMap& map) {  // what biases of values come to in the output
    return product(to_double(target.linear_out.weight.host()), map.v_bias());
  };
  const Matrix<double> of_bias = output_bias(before);
  ConvertedLayer out;
  HeadMerge& merge = out.merge;
  if constexpr (may_merge && can_turn_heads<To>)
    if (from.num_kv_heads > to.num_kv_heads && seen.key_input.size() > 0)
      merge = align_heads(before, to, seen, to_double(target.linear_out.weight.host()));
  if (!merge.turns()) merge.wanted = mean_heads(before, to);
  const auto energies = [&](const Matrix<double>& k, const Matrix<double>& v) {
    return output_energy(k, seen.key_input) + output_energy(v, seen.value_input);
  };
  const auto error_of = [&](const KeyValueMap& merged) {
    const auto error = [&](const Matrix<double>& turn, const Matrix<double>& now, const Matrix<double>& expected) {
      Matrix<double> all = HeadMerge::spread(turn, now, to);
      for (Index i = 0; i < all.size(); ++i) all.data()[i] -= expected.data()[i];
      return columns_of(all, 0, all.cols() - 1);
    };
    return energies(error(merge.k_turn, merged.k, before.k), error(merge.v_turn, merged.v, before.v));
  };
  out.deviation = {error_of(merge.wanted), energies(before.k_weight(), before.v_weight())};
  require(can_mix<typename To::KeyValue> || !how.hadamard,
          "convert: hadamard given for an attention that has no latent whose channels can be mixed");
  const bool is_copied = source.family != nullptr && source.family == key_value_family<typename To::KeyValue> &&
                         from.kv_lora_rank > 0 && from.kv_lora_rank == to.kv_lora_rank &&
                         from.v_lora_rank == to.v_lora_rank && from.num_kv_heads == to.num_kv_heads;
  if (is_copied && !how.hadamard && how.singular_values == SingularValues::up) return out;

  for (const auto& [metric, turn] :
       {std::pair{&seen.key_metric, &merge.k_turn}, std::pair{&seen.value_metric, &merge.v_turn}}) {
    if (metric->size() == 0) continue;
    for (Index at = 0; may_merge && merge.turns() && at < metric->rows(); at += to.head_dim) {
      const Matrix<double> one = rows_of(*turn, at, to.head_dim);
      set_rows(*metric, at,
               product_by_columns(product_by_columns(transposed(one), rows_of(*metric, at, to.head_dim)), one));
    }
    *metric = mean_heads(*metric, to);
  }
  const double discarded = fit(typename To::KeyValue{}, target.key_value, merge.wanted, how);
  const KeyValueMap now = key_value_map(typename To::KeyValue{}, target.key_value);
  // The mean is a projection: what it discards is orthogonal to what the fit discards, once for each head of a group.
  // What heads that were turned lose is not.
  out.deviation.error = merge.turns()
                            ? error_of(now)
                            : out.deviation.error + static_cast<double>(to.num_heads / to.num_kv_heads) * discarded;
  out.k_factor_error = weight_error(merge.k_turn, now.k, before.k, to);
  out.v_factor_error = weight_error(merge.v_turn, now.v, before.v, to);

  if constexpr (may_merge && can_turn_heads<To>)
    if (merge.turns()) turn_heads(target, merge);
  // Probabilities sum to 1, so a bias on the values is one on the output.
  if (target.linear_out.has_bias()) {
    const Matrix<double> of_new_bias = output_bias(repeat_heads(now, to));
    Matrix<double> moved = of_bias;
    for (Index i = 0; i < moved.size(); ++i) moved.data()[i] -= of_new_bias.data()[i];
    add_to_bias(target.linear_out, moved);
  }
  return out;
}

/// Returns keys and values of the source's heads from those of merged ones.
template <class T>
void turn_back(KeyValueRows<T>& rows, const HeadMerge& merge) {
  const Index dim = merge.k_turn.cols();
  for (const auto& [values, turn] : {std::pair{&rows.k, &merge.k_turn}, std::pair{&rows.v, &merge.v_turn}})
    for (Index at = 0; at < turn->rows(); at += dim)
      values->middleCols(at, dim) =
          (values->middleCols(at, dim) * turn->middleRows(at, dim).transpose().template cast<T>()).eval();
}

/// Holds a layer's line of the report, and the deviations that add up over layers.
struct LayerConversion {
  LayerReport report;
  Deviation predicted, key_value, output;
};
/// Converts one attention layer, or one that holds any attention, and compares it with the source's on rows x (rows,
/// d_model) of these sequences. It does not depend on the encoder, which compiles nothing of this.
template <bool may_merge, class To, class From, class Context, class T>
LayerConversion convert_attention(Recorder<Context>& recorder, std::string_view name, To& target, const From& source,
                                  const Matrix<T>& x, const Sequences& sequences, const Mask& mask,
                                  const Fitting& how) {
  Context& context = recorder;
  const SourceLayer<T> from =
      with_layer(source, [&](const auto& layer) { return open_layer(recorder, name, layer, x, sequences, mask); });
  LayerConversion out;
  LayerReport& report = out.report;
  report.layer = name;
  with_layer(target, [&]<class Policy>(AttentionLayer<Policy, T>& to) {
    if constexpr (is_linear_map<typename Policy::KeyValue>) {
      const ConvertedLayer converted = convert_layer<may_merge>(to, from, how);
      KeyValueRows<T> rows = key_value_rows(context, to, x, from.turned);
      if constexpr (may_merge) turn_back(rows, converted.merge);
      out.predicted = converted.deviation;
      out.key_value = deviation(rows, from.rows);
      report.k_factor_error = converted.k_factor_error;
      report.v_factor_error = converted.v_factor_error;
      report.predicted_error = out.predicted.relative();
      report.key_value_error = out.key_value.relative();
    }
    out.output = deviation(attention_output(context, to, x, sequences, mask), from.output);
    report.num_kv_heads = to.dims().num_kv_heads;
    report.kv_lora_rank = to.dims().kv_lora_rank;
    report.v_lora_rank = to.dims().v_lora_rank;
    set_output(report, out.output);
  });
  return out;
}

}  // namespace detail
}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

template <class Method>
JointFactors factorize(const Method& method, const Matrix<double>& k, const Matrix<double>& v, Index rank,
                       const LayerStatistics& statistics) {
  if constexpr (requires { method.calibration; })
    return method.factorize(k, v, rank, statistics);
  else
    return method.factorize(k, v, rank);
}
/// Returns the statistics of each layer that a method needs; none where it needs none.
template <class Context, class Source, class Method>
std::vector<LayerStatistics> statistics_of(Recorder<Context>& recorder, const Source& source, const Method& method) {
  if constexpr (requires { method.calibration; })
    return calibrate(recorder, source, method.calibration, method.score_aware);
  else
    return {};
}

/// Returns keys and values of a layer, which may hold any attention, for every query head.
template <class Layer>
KeyValueMap map_of_attention(std::string_view name, const Layer& any) {
  return with_layer(any, [&]<class Policy, class T>(const AttentionLayer<Policy, T>& layer) {
    constexpr bool is_known = is_linear_map<typename Policy::KeyValue>;
    require(is_known, "key_value_spectra: keys and values of ", name, " are no linear functions of its input");
    if constexpr (is_known)
      return repeat_heads(key_value_map(typename Policy::KeyValue{}, layer.key_value), layer.dims());
    else
      return KeyValueMap();
  });
}

}  // namespace detail

/// Returns, for each layer, the singular values of a joint latent of keys and values that the method would cut,
/// falling. `allocate_ranks` gives each layer its rank by them. Allocates. Throws `Error` where keys and values are no
/// linear functions of a layer's input or parameters are not on the host.
///
///     ConversionConfig numbers;
///     for (const Index rank : allocate_ranks(key_value_spectra(model), budget, 8, RankAllocation::water_filling))
///       numbers.kv_lora_ranks.push_back(rank);
template <class Source, class Method = JointSvd, class Context = Cpu<typename Source::Scalar>>
std::vector<std::vector<double>> key_value_spectra(const Source& source, const Method& method = {}) {
  require_on_host(source, "key_value_spectra");
  Recorder<Context> recorder;
  const std::vector<LayerStatistics> statistics = detail::statistics_of(recorder, source, method);
  std::vector<std::vector<double>> out;
  Source::each_attention(source, [&](std::string_view name, const auto& any) {
    const KeyValueMap map = detail::map_of_attention(name, any);
    const Matrix<double> k = map.k_weight(), v = map.v_weight();
    const LayerStatistics& seen = statistics.empty() ? LayerStatistics() : statistics[out.size()];
    out.push_back(detail::factorize(method, k, v, k.cols(), seen).singular_values);
  });
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {
namespace detail {

/// Converts with a method that is no template argument, so that another method compiles nothing of this again.
/// `statistics` holds those of each layer for a calibrated method and is empty for others. With `measure_on_noise`, the
/// attention layers are measured on white noise instead of their inputs for this speech or text.
template <class Target, class Context, class Source, class Input>
Conversion<Target> convert_model(Recorder<Context>& recorder, const Source& source, Fitting how,
                                 const std::vector<LayerStatistics>& statistics, const ConversionConfig& numbers,
                                 const Input& input, bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  using T = typename Source::Scalar;
  using From = typename Source::Policy::template Layer<T>;
  using To = typename Target::Policy::template Layer<T>;
  constexpr bool may_merge = can_merge<typename Target::Policy, typename Source::Policy>;

  auto config = with_ranks(source.config(), numbers);
  config.num_kv_heads = numbers.num_kv_heads;
  config.attention = numbers.attention;
  require_known<typename Target::Policy, typename Source::Policy>(config.attention_config(),
                                                                  source.config().attention_config());
  Conversion<Target> out{Target(config, Seed()), {}};
  copy_parameters(out.model, source);

  Context& context = recorder;
  std::vector<const From*> layers;
  std::vector<Matrix<T>*> inputs;
  Source::each_attention(source, [&](std::string_view, const From& layer) { layers.push_back(&layer); });
  const Runnable run(recorder, source);
  Source::each_attention(*run, [&](std::string_view, const From& layer) { recorder.record(layer.input_weight()); });
  Source::each_attention(
      *run, [&](std::string_view, const From& layer) { inputs.push_back(&recorder.input_of(layer.input_weight())); });
  const auto logits = run_on(recorder, *run, input);
  require_rows("convert", input, logits.rows.rows());
  const auto source_logits = context.output(logits.rows);

  const Mask mask = source.config().mask();
  Deviation predicted, key_value, output;
  Target::each_attention(out.model, [&](std::string_view name, To& any_target) {
    const std::size_t l = out.report.layers.size();
    const From& any_source = *layers[l];
    Matrix<T> x = std::move(*inputs[l]);
    if (measure_on_noise) x = white_noise<T>(x.rows(), x.cols(), name);
    if (!statistics.empty()) how.statistics = statistics[l];
    const LayerConversion layer =
        convert_attention<may_merge>(recorder, name, any_target, any_source, x, logits.sequences, mask, how);
    out.report.layers.push_back(layer.report);
    predicted += layer.predicted;
    key_value += layer.key_value;
    output += layer.output;
  });
  out.model.parameters([](std::string_view name, const Parameter<T>& p) {
    require(all_finite(p.host()), "convert: ", name,
            " would hold values that are not finite: the source's weights are "
            "too large, smaller ones expected");
  });
  require(all_finite(source_logits),
          "convert: logits of the source that are not finite given: its weights are too "
          "large to compute with, smaller ones expected");
  constexpr bool is_speech = requires { input.features; };
  out.report.input = measure_on_noise ? "white noise" : is_speech ? "features" : "tokens";
  out.report.predicted_error = predicted.relative();
  out.report.key_value_error = key_value.relative();
  set_output(out.report, output);
  const Runnable converted(context, out.model);
  const auto converted_logits = run_on(context, *converted, input);
  out.report.logits_error = deviation(context.output(converted_logits.rows), source_logits).relative();
  return out;
}

template <class Target, class Context, class Method, class Source, class Input>
Conversion<Target> convert_on(Recorder<Context>& recorder, const Source& source, const Method& method,
                              const ConversionConfig& numbers, const Input& input, bool measure_on_noise) {
  static_assert(types_fit<Target, Source>());
  const Fitting how{[&method](const auto&... problem) { return factorize(method, problem...); },
                    numbers.singular_values,
                    numbers.balance,
                    numbers.hadamard,
                    {}};
  return convert_model<Target>(recorder, source, how, statistics_of(recorder, source, method), numbers, input,
                               measure_on_noise);
}

}  // namespace detail

/// Returns the model with another attention: parameters that both have are copied, keys and values are converted.
///
///     auto [small, report] = convert<Conformer<MlaSimple<8, 64>>>(model);             // MHA to MLA by the joint SVD
///     auto grouped = convert<Conformer<Gqa<8, dyn>>>(model, JointSvd{}, {.num_kv_heads = 2}).model;
///
/// All attentions can be converted whose keys and values are linear functions of the input. `method` makes latents, in
/// the form that the target has: joint, split into keys and values, or per head. `JointSvd` and `RandomizedSvd` look at
/// the weights only, `ActivationPca` also at speech; any class with their `factorize` is a method. Key-value heads
/// that are merged become their mean (Ainslie et al. 2023), and a calibrated method first rotates them to agree; fewer
/// heads are repeated to give more. A conversion that loses nothing (rank = d_model, equal heads, a size that moves
/// between type and configuration) gives the outputs of the source up to rounding. A latent gets no biases: softmax
/// ignores one on the keys, and one on the values goes to `linear_out`.
///
/// The report compares both models by forward passes on white noise: features for 64 frames (a language model: 64
/// random tokens), and as many rows of noise into every attention layer. Allocates. Throws `Error` where the sizes do
/// not fit (a latent larger than d_model), weights are not finite, or parameters are not on the host.
template <class Target, class Source, class Method = JointSvd, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method = {}, const ConversionConfig& numbers = {}) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers);
}

/// Converts as above. The report compares both models on these features (rows, num_mels) of packed sequences, every
/// attention layer on the input that it has in the source model.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const Matrix<typename Source::Scalar>& features, const Sequences& sequences) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers, features, sequences);
}

/// Converts a language model. The report compares both models on this text, every attention layer on the input that it
/// has in the source model.
template <class Target, class Source, class Method, class Context = Cpu<typename Source::Scalar>>
Conversion<Target> convert(const Source& source, const Method& method, const ConversionConfig& numbers,
                           const TokenRows& tokens) {
  Recorder<Context> recorder;
  return convert<Target>(recorder, source, method, numbers, tokens);
}

/// Converts as the first function does; forward passes of calibration and report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers) {
  static_assert(detail::types_fit<Target, Source>());
  if constexpr (requires { source.subsampling; }) {
    const Index rows = source.subsampling.window() + 63 * source.subsampling.factor();
    const auto noise = white_noise<typename Source::Scalar>(rows, source.config().num_mels, "features");
    const Sequences one{noise.rows()};
    return detail::convert_on<Target>(context, source, method, numbers,
                                      detail::SpeechInput<typename Source::Scalar>{noise, one}, true);
  } else {
    const Random random(Seed(), "tokens");
    std::vector<int> ids(static_cast<std::size_t>(std::min<Index>(64, source.config().max_positions)));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int>(random.below(source.config().vocab_size, i));
    return detail::convert_on<Target>(context, source, method, numbers,
                                      TokenRows{ids, Sequences{static_cast<Index>(ids.size())}}, true);
  }
}
/// Converts a language model and reports on this text; forward passes of calibration and report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers, const TokenRows& tokens) {
  return detail::convert_on<Target>(context, source, method, numbers, tokens, false);
}
/// Converts and reports on these features (rows, num_mels) of packed sequences; forward passes of calibration and
/// report run in this context.
template <class Target, class Context, class Source, class Method>
Conversion<Target> convert(Recorder<Context>& context, const Source& source, const Method& method,
                           const ConversionConfig& numbers, const Matrix<typename Source::Scalar>& features,
                           const Sequences& sequences) {
  return detail::convert_on<Target>(context, source, method, numbers,
                                    detail::SpeechInput<typename Source::Scalar>{features, sequences}, false);
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Requires what greedy decoding, sampling and beam search need: the logits that follow the tokens of a slot.
///   append(tokens, slots)   appends the tokens of sequence n to slots[n] and returns the logits (slots, vocab_size) of
///                           the token after the last of each
///   begin(slot, n)          empties a slot for sequence n of a caller's list
///   fork(from, to)          makes slot `to` hold what slot `from` holds
///   slots(), vocab_size(), room(slot)   the number of slots, of tokens, and of tokens that a slot can still take
///   context()               the context of the logits
template <class D>
concept TokenPredictor = requires(D& d, const D& constant, const TokenRows& tokens, std::span<const Index> slots,
                                  Index slot) {
  { d.append(tokens, slots) } -> std::convertible_to<typename D::Tensor>;
  d.begin(slot, slot);
  d.fork(slot, slot);
  { constant.slots() } -> std::convertible_to<Index>;
  { constant.vocab_size() } -> std::convertible_to<Index>;
  { constant.room(slot) } -> std::convertible_to<Index>;
  d.context();
};

/// Holds the sizes of a TokenDecoder.
struct TokenDecoderConfig {
  Index slots = 1;                  ///< sequences at a time
  Index max_tokens = 0;             ///< tokens of a sequence; 0: the model's max_positions
  Storage storage = Storage::full;  ///< how keys, values and latents are stored
};

/// Runs a language model token by token: each slot holds the keys and values, or the latents, of one sequence, so that
/// a token costs one pass over one row.
///
///     TokenDecoder decoder(cpu, model, {.slots = 2});
///     auto logits = decoder.append({prompt, Sequences{5}}, std::array{Index{0}});   // (1, vocab_size)
///
/// Construction allocates. A warm `append` takes memory from the context's pool only. The logits are those of a pass
/// over the whole sequence; with attention over latents, up to rounding. Latents are expanded for a long prompt and not
/// for single tokens, whichever costs each sequence less, whatever the others do.
template <class Model, StreamingContext Context_ = Cpu<typename Model::Scalar>>
class TokenDecoder {
 public:
  using Context = Context_;                 ///< the context that computes
  using Tensor = typename Context::Tensor;  ///< the type of logits

  /// Makes empty slots for a model. Context and model must outlive this. Allocates. Throws Error for sizes out of
  /// range.
  TokenDecoder(Context& context, const Model& model, const TokenDecoderConfig& config = {})
      : context_(context),
        model_(model),
        max_tokens_(checked(model, config)),
        state_(context, model, StateShape{config.slots, max_tokens_, std::nullopt, config.storage}),
        counts_(static_cast<std::size_t>(config.slots)) {
    firsts_.reserve(counts_.size());
    lasts_.reserve(counts_.size());
  }

  /// Returns the context that computes.
  Context& context() { return context_; }
  /// Returns the number of slots.
  Index slots() const { return static_cast<Index>(counts_.size()); }
  /// Returns the number of tokens that the model knows.
  Index vocab_size() const { return model_.config().vocab_size; }
  /// Returns the tokens that a slot holds.
  Index count(Index slot) const { return counts_[checked_slot(slot)]; }
  /// Returns the tokens that a slot can still take.
  Index room(Index slot) const { return max_tokens_ - count(slot); }
  /// Returns the bytes that the slots hold, all layers.
  Index cache_bytes() const { return state_.attention_bytes(); }

  /// Empties a slot for a new sequence, whatever its number.
  void begin(Index slot, Index = 0) {
    counts_[checked_slot(slot)] = 0;
    state_.clear(context_, slot);
  }
  /// Makes slot `to` hold what slot `from` holds.
  void fork(Index from, Index to) {
    counts_[checked_slot(to)] = counts_[checked_slot(from)];
    if (from != to) state_.fork(context_, from, to);
  }

  /// Appends the tokens of sequence n, at least one, to slots[n]. Returns the logits (slots, vocab_size) of the token
  /// that follows the last of each. Throws Error for a slot that does not exist, is named twice or has no room, for an
  /// id that is no token, and for a sequence without tokens. Where computing fails, for lack of memory or for an id
  /// that is no token, the slots are empty afterwards.
  Tensor append(const TokenRows& tokens, std::span<const Index> slots) {
    const Sequences& sequences = tokens.sequences;
    require(sequences.size() == static_cast<Index>(slots.size()), "token decoder: ", sequences.size(),
            " sequences given for ", slots.size(), " slots");
    firsts_.clear();
    for (std::size_t n = 0; n < slots.size(); ++n) {
      const Index more = sequences.length(static_cast<Index>(n));
      require(more > 0, "token decoder: no tokens given for slot ", slots[n], ", at least one expected");
      require(more <= room(slots[n]), "token decoder: ", more, " tokens given for slot ", slots[n],
              ", which has room for ", room(slots[n]));
      for (std::size_t i = 0; i < n; ++i)
        require(slots[i] != slots[n], "token decoder: slot ", slots[n], " is named twice");
      firsts_.push_back(count(slots[n]));
    }
    for (const int id : tokens.ids)
      require(id >= 0 && id < vocab_size(), "token decoder: id ", id, " given, 0 to ", vocab_size() - 1, " expected");
    try {
      return context_.replayed([&] {
        Pass<Tensor> pass{sequences, Mask::causal(), {}, slots, firsts_};
        const Tensor rows = model_.hidden(context_, tokens.ids, std::move(pass), &state_);
        for (std::size_t n = 0; n < slots.size(); ++n)
          counts_[static_cast<std::size_t>(slots[n])] += sequences.length(static_cast<Index>(n));
        if (rows.rows() == sequences.size()) return model_.logits(context_, rows);
        Tensor last = context_.make(sequences.size(), rows.cols());
        lasts_.clear();
        for (Index n = 0; n < sequences.size(); ++n) lasts_.push_back({sequences.end(n) - 1, 1, n});
        context_.copy_rows(rows, last, lasts_);
        return model_.logits(context_, last);
      });
    } catch (...) {  // some layers may hold the tokens and others not
      for (const Index slot : slots) begin(slot);
      throw;
    }
  }

 private:
  static Index checked(const Model& model, const TokenDecoderConfig& config) {
    const Index max = model.config().max_positions;
    require(config.slots > 0 && config.slots <= 1 << 24, "token decoder: ", config.slots, " slots given, 1 to ",
            1 << 24, " expected");
    require(config.max_tokens >= 0 && config.max_tokens <= max, "token decoder: max_tokens ", config.max_tokens,
            " given, 1 to max_positions = ", max, " expected, or 0 for these");
    const Index tokens = config.max_tokens > 0 ? config.max_tokens : max;
    const Index bytes = Model::cache_bytes(model.config(), frames(tokens), config.storage);
    require(bytes <= (Index{1} << 50) / config.slots, "token decoder: ", config.slots, " slots of ", bytes,
            " bytes given, at most 2^50 bytes together expected");
    return tokens;
  }
  std::size_t checked_slot(Index slot) const {
    require(slot >= 0 && slot < slots(), "token decoder: slot ", slot, " given, 0 to ", slots() - 1, " expected");
    return static_cast<std::size_t>(slot);
  }

  Context& context_;
  const Model& model_;
  Index max_tokens_;
  typename Model::template State<Context> state_;
  std::vector<Index> counts_, firsts_;
  std::vector<RowRange> lasts_;  // the last rows of sequences
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how a beam search runs.
struct BeamConfig {
  Index beams = 4;                 ///< hypotheses that are kept at each step
  Index max_new_tokens = 100;      ///< tokens after the prompt
  std::optional<int> end_token{};  ///< ends a hypothesis, and is its last token
  double length_penalty = 1;       ///< a score is log probability / tokens^length_penalty; 0: the log probability
};

/// Holds one result of a beam search.
struct Hypothesis {
  std::vector<int> tokens;  ///< the tokens after the prompt
  double score;             ///< log probability / tokens^length_penalty
};

/// Leaves the decoder's log probabilities as they are: see beam_search.
struct DecoderScore {
  /// There is nothing to keep.
  struct State {};
  /// Returns the state of the empty hypothesis.
  State start() const { return {}; }
  /// Changes nothing.
  template <class T>
  void add(const State&, std::span<T>) const {}
  /// Returns the state of a hypothesis with one more token.
  State extend(const State&, int) const { return {}; }
};

/// Continues a prompt by beam search and returns the hypotheses, best first, at most `beams`. The steps are those of
/// Hugging Face's `generate` with early_stopping = False. The decoder needs a slot for each beam; beams share what they
/// have in common by `fork`. `sequence` is the number that `begin` is told: for a SourceDecoder, that of the source.
/// A scorer, such as CtcPrefixScorer, changes the log probabilities of the tokens that follow a hypothesis. Allocates.
/// Throws Error for an empty prompt and for numbers that make no sense.
template <TokenPredictor Decoder, class Scorer = DecoderScore>
std::vector<Hypothesis> beam_search(Decoder& decoder, std::span<const int> prompt, const BeamConfig& config = {},
                                    Index sequence = 0, const Scorer& scorer = {}) {
  using T = typename Decoder::Context::Scalar;
  const Index vocab = decoder.vocab_size(), beams = config.beams;
  require(beams > 0 && beams <= decoder.slots(), "beam search: ", beams, " beams given, 1 to the decoder's ",
          decoder.slots(), " slots expected");
  require(config.max_new_tokens >= 0, "beam search: max_new_tokens ", config.max_new_tokens,
          " given, at least 0 expected");
  require(std::isfinite(config.length_penalty), "beam search: length_penalty ", config.length_penalty,
          " given, a finite number expected");
  require(!prompt.empty(), "beam search: an empty prompt given, at least one token expected");

  struct Beam {
    std::vector<int> tokens;
    double log_prob;
    Index slot;
    typename Scorer::State state;
  };
  struct Candidate {
    double log_prob;
    Index beam;
    int token;
  };
  std::vector<Beam> live;
  live.push_back({{}, 0.0, 0, scorer.start()});
  std::vector<Hypothesis> done;
  const auto score = [&](double log_prob, std::size_t length) {
    return log_prob / std::pow(static_cast<double>(std::max<std::size_t>(1, length)), config.length_penalty);
  };
  const auto better = [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; };
  const auto finish = [&](std::vector<int> tokens, double log_prob) {
    const double s = score(log_prob, tokens.size());
    done.insert(std::upper_bound(done.begin(), done.end(), Hypothesis{{}, s}, better), {std::move(tokens), s});
    if (static_cast<Index>(done.size()) > beams) done.pop_back();
  };

  decoder.begin(0, sequence);
  auto& context = decoder.context();
  auto logits = decoder.append({prompt, Sequences{static_cast<Index>(prompt.size())}}, std::array{Index{0}});
  std::vector<T> values;
  std::vector<Candidate> candidates;
  std::vector<int> ids;
  std::vector<Index> slots;
  for (Index step = 0; step < config.max_new_tokens; ++step) {
    values.resize(live.size() * static_cast<std::size_t>(vocab));
    context.read(context.log_softmax(logits), std::span<T>(values));
    require(std::none_of(values.begin(), values.end(), [](T x) { return std::isnan(x); }),
            "beam search: logits that are NaN given, numbers expected");
    for (std::size_t b = 0; b < live.size(); ++b)
      scorer.add(live[b].state,
                 std::span(values).subspan(b * static_cast<std::size_t>(vocab), static_cast<std::size_t>(vocab)));
    candidates.clear();
    for (std::size_t b = 0; b < live.size(); ++b)
      for (Index v = 0; v < vocab; ++v)
        candidates.push_back(
            {live[b].log_prob +
                 static_cast<double>(values[b * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(v)]),
             static_cast<Index>(b), static_cast<int>(v)});
    // Twice as many as beams: as many of them may end a hypothesis.
    const std::size_t wanted = std::min(candidates.size(), static_cast<std::size_t>(2 * beams));
    std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(wanted), candidates.end(),
                      [](const Candidate& a, const Candidate& b) {
                        if (a.log_prob != b.log_prob) return a.log_prob > b.log_prob;
                        return a.beam != b.beam ? a.beam < b.beam : a.token < b.token;
                      });
    std::vector<Beam> next;
    for (std::size_t i = 0; i < wanted && static_cast<Index>(next.size()) < beams; ++i) {
      const Candidate& c = candidates[i];
      std::vector<int> tokens = live[static_cast<std::size_t>(c.beam)].tokens;
      tokens.push_back(c.token);
      if (c.token == config.end_token) {
        if (static_cast<Index>(i) < beams) finish(std::move(tokens), c.log_prob);
      } else {
        next.push_back({std::move(tokens), c.log_prob, c.beam,
                        scorer.extend(live[static_cast<std::size_t>(c.beam)].state,
                                      c.token)});  // its parent's number until it has a slot
      }
    }
    if (next.empty()) return done;
    const bool full = static_cast<Index>(done.size()) == beams;
    if (full && done.back().score >= score(next.front().log_prob, next.front().tokens.size())) return done;

    // The first child of a beam goes on in its slot; others get a copy in a slot that no beam goes on in.
    std::vector<bool> used(static_cast<std::size_t>(beams), false), taken(live.size(), false);
    std::vector<std::size_t> copies;
    for (std::size_t i = 0; i < next.size(); ++i) {
      const auto parent = static_cast<std::size_t>(next[i].slot);
      next[i].slot = live[parent].slot;
      if (taken[parent]) {
        copies.push_back(i);
      } else {
        taken[parent] = true;
        used[static_cast<std::size_t>(next[i].slot)] = true;
      }
    }
    for (const std::size_t i : copies) {
      const auto free = static_cast<Index>(std::find(used.begin(), used.end(), false) - used.begin());
      decoder.fork(next[i].slot, free);
      used[static_cast<std::size_t>(free)] = true;
      next[i].slot = free;
    }
    live = std::move(next);
    if (step + 1 == config.max_new_tokens || decoder.room(live.front().slot) == 0) break;
    ids.clear();
    slots.clear();
    for (const Beam& beam : live) {
      ids.push_back(beam.tokens.back());
      slots.push_back(beam.slot);
    }
    const Sequences ones = Sequences::make(context.arena(), static_cast<Index>(live.size()), [](Index) { return 1; });
    logits = decoder.append({ids, ones}, slots);
  }
  for (Beam& beam : live) finish(std::move(beam.tokens), beam.log_prob);
  return done;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Scores hypotheses of a beam search by what a CTC head says of the same utterance: a hypothesis has (1 - weight)
/// times the decoder's log probability plus weight times log of the probability that the text begins with it, summed
/// over all alignments (Watanabe et al. 2017, section III.C; its algorithm 2). The blank is the token that begins and
/// ends a sequence of the decoder.
///
///     const auto best = beam_search(decoder, std::array{0}, config, n, CtcPrefixScorer(log_probs, 0.3));
class CtcPrefixScorer {
 public:
  /// Holds log probabilities of a hypothesis.
  struct State {
    std::vector<double> blank,  ///< that frames 0 to t hold just the hypothesis and end in a blank
        all;                    ///< that frames 0 to t hold just the hypothesis
    int last = -1;              ///< the last token
    double score = 0;           ///< that the text begins with the hypothesis
  };

  /// Scores by log probabilities (frames, vocab_size) of one utterance, which are copied. weight from 0 to 1.
  /// Allocates. Throws Error for a number out of range, for an utterance without frames, and for values that are no log
  /// probabilities.
  template <class T>
  CtcPrefixScorer(const Matrix<T>& log_probs, double weight, int blank = 0)
      : frames_(log_probs.rows()), vocab_(log_probs.cols()), blank_(blank), weight_(weight) {
    require(weight >= 0 && weight <= 1, "CTC prefix scorer: weight ", weight, " given, 0 to 1 expected");
    require(frames_ > 0, "CTC prefix scorer: no frames given, at least one expected");
    require(blank >= 0 && blank < vocab_, "CTC prefix scorer: blank ", blank, " given, 0 to ", vocab_ - 1, " expected");
    log_probs_.assign(log_probs.data(), log_probs.data() + log_probs.size());
    require(std::none_of(log_probs_.begin(), log_probs_.end(), [](double x) { return std::isnan(x) || x > 1e-3; }),
            "CTC prefix scorer: values that are NaN or above 0 given, log probabilities expected");
  }

  /// Returns the state of the empty hypothesis. Allocates.
  State start() const {
    State out;
    double sum = 0;
    for (Index t = 0; t < frames_; ++t) out.blank.push_back(sum += at(t, blank_));
    out.all = out.blank;
    return out;
  }
  /// Turns the decoder's log probabilities of the tokens that may follow into increments of the joint score. Throws
  /// Error where the decoder knows another number of tokens than the CTC head.
  template <class T>
  void add(const State& state, std::span<T> log_probs) const {
    require(static_cast<Index>(log_probs.size()) == vocab_, "CTC prefix scorer: a decoder of ", log_probs.size(),
            " tokens given, ", vocab_, " expected, as the CTC head has");
    for (Index token = 0; token < vocab_; ++token) {
      T& value = log_probs[static_cast<std::size_t>(token)];
      const double longer = prefix(state, static_cast<int>(token));
      double joint = weight_ < 1 ? (1 - weight_) * static_cast<double>(value) : 0;
      if (weight_ > 0) joint += longer == nothing ? nothing : weight_ * (longer - state.score);
      value = static_cast<T>(joint);
    }
  }
  /// Returns the state of a hypothesis with one more token, which does not end it. Allocates. Throws Error for the
  /// blank: the search must end a hypothesis with it (BeamConfig::end_token).
  State extend(const State& state, int token) const {
    require(token != blank_, "CTC prefix scorer: token ", token,
            " goes on with a hypothesis, but it is the blank; it must be the search's end_token");
    State out;
    out.last = token;
    out.score = prefix(state, token);
    double in_token = nothing, in_blank = nothing;
    for (Index t = 0; t < frames_; ++t) {
      const double before = in_token;
      in_token = kernels::log_add(in_token, reaching(state, token, t)) + at(t, token);
      in_blank = kernels::log_add(in_blank, before) + at(t, blank_);
      out.blank.push_back(in_blank);
      out.all.push_back(kernels::log_add(in_token, in_blank));
    }
    return out;
  }
  /// Returns the log probability of all texts that begin with the hypothesis and this token; for the blank, of the
  /// hypothesis itself as the whole text.
  double prefix(const State& state, int token) const {
    if (token == blank_) return state.all.back();
    double sum = nothing;
    for (Index t = 0; t < frames_; ++t) sum = kernels::log_add(sum, reaching(state, token, t) + at(t, token));
    return sum;
  }

 private:
  static constexpr double nothing = -std::numeric_limits<double>::infinity();

  double at(Index frame, int token) const { return log_probs_[static_cast<std::size_t>(frame * vocab_ + token)]; }
  /// Returns the log probability that the frames before t hold just the hypothesis, and a new token may begin at t: the
  /// same token again needs a blank between.
  double reaching(const State& state, int token, Index t) const {
    if (t == 0) return state.last < 0 ? 0 : nothing;
    const auto before = static_cast<std::size_t>(t - 1);
    return token == state.last ? state.blank[before] : state.all[before];
  }

  Index frames_, vocab_;
  int blank_;
  double weight_;
  std::vector<double> log_probs_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how the next token is drawn from its logits. The steps are those of Hugging Face's `generate`, in this order.
struct SamplingConfig {
  double temperature = 1;  ///< divides the logits; 0 takes the most probable token (greedy)
  Index top_k = 0;         ///< keeps the k most probable tokens (Fan et al. 2018); 0: all
  /// Keeps the most probable tokens whose probabilities sum to at least this (nucleus sampling, Holtzman et al. 2020).
  double top_p = 1;

  /// Throws Error for a number that makes no sense.
  void check() const {
    require(std::isfinite(temperature) && temperature >= 0, "sampling: temperature ", temperature,
            " given, a number of at least 0 expected");
    require(top_k >= 0, "sampling: top_k ", top_k, " given, at least 0 expected");
    require(top_p > 0 && top_p <= 1, "sampling: top_p ", top_p, " given, more than 0 and at most 1 expected");
  }
};

/// Draws tokens from logits. Memory is taken at construction only.
class Sampler {
 public:
  /// Makes a sampler for `vocab_size` tokens. Allocates. Throws Error for numbers that make no sense.
  Sampler(const SamplingConfig& config, Index vocab_size)
      : config_(config), order_(checked(config, vocab_size)), probabilities_(order_.size()) {}

  /// Returns a token drawn from these logits by a number in [0, 1). Among equal logits, the lower id comes first.
  /// Throws Error for logits of another number, for one that is NaN, and where the largest is infinite.
  template <class T>
  int operator()(std::span<const T> logits, double uniform) {
    require(logits.size() == order_.size(), "sampler: ", logits.size(), " logits given, ", order_.size(), " expected");
    const auto best = std::max_element(logits.begin(), logits.end());
    const auto finite = [](T x) { return !std::isnan(x); };
    require(std::all_of(logits.begin(), logits.end(), finite) && std::isfinite(*best),
            "sampler: logits that are NaN or infinite given, finite numbers expected");
    if (config_.temperature == 0) return static_cast<int>(best - logits.begin());

    std::iota(order_.begin(), order_.end(), 0);
    auto end = order_.end();
    if (config_.top_k > 0 || config_.top_p < 1) {  // otherwise the order does not matter
      const auto before = [&](int a, int b) {
        const T x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
        return x > y || (x == y && a < b);
      };
      if (config_.top_k > 0 && config_.top_k < static_cast<Index>(order_.size())) {
        end = order_.begin() + config_.top_k;
        std::nth_element(order_.begin(), end, order_.end(), before);
      }
      std::sort(order_.begin(), end, before);
    }

    const auto count = static_cast<std::size_t>(end - order_.begin());
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto logit = static_cast<double>(logits[static_cast<std::size_t>(order_[i])]);
      sum += probabilities_[i] = std::exp((logit - static_cast<double>(*best)) / config_.temperature);
    }
    std::size_t kept = 0;
    double kept_sum = 0;
    while (kept < count && (config_.top_p == 1 || kept == 0 || kept_sum < config_.top_p * sum))
      kept_sum += probabilities_[kept++];
    double left = uniform * kept_sum;
    for (std::size_t i = 0; i + 1 < kept; ++i) {
      left -= probabilities_[i];
      if (left < 0) return order_[i];
    }
    return order_[kept - 1];
  }

 private:
  static std::size_t checked(const SamplingConfig& config, Index vocab_size) {
    config.check();
    require(vocab_size > 0, "sampler: ", vocab_size, " tokens given, at least 1 expected");
    return static_cast<std::size_t>(vocab_size);
  }

  SamplingConfig config_;
  std::vector<int> order_;
  std::vector<double> probabilities_;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Says how sequences are continued.
struct GenerationConfig {
  Index max_new_tokens = 100;        ///< tokens after the prompt; a slot without room ends a sequence sooner
  std::optional<int> end_token{};    ///< ends a sequence, and is its last token
  SamplingConfig sampling{0, 0, 1};  ///< how each token is drawn; greedy by default
  Seed seed{};                       ///< the source of all draws
};

/// Continues prompts by greedy decoding or sampling, as many at a time as the decoder has slots. Returns the new tokens
/// of each. What a sequence draws depends on the seed and on its number only, not on the others. A warm decoder takes
/// no memory for a token; the results are allocated. Throws Error for an empty prompt, and for one that has no room.
template <TokenPredictor Decoder>
std::vector<std::vector<int>> generate(Decoder& decoder, std::span<const std::vector<int>> prompts,
                                       const GenerationConfig& config = {}) {
  using T = typename Decoder::Context::Scalar;
  require(config.max_new_tokens >= 0, "generate: max_new_tokens ", config.max_new_tokens,
          " given, at least 0 expected");
  for (std::size_t n = 0; n < prompts.size(); ++n)
    require(!prompts[n].empty(), "generate: prompt ", n, " is empty, at least one token expected");
  const auto vocab = static_cast<std::size_t>(decoder.vocab_size()), slots = static_cast<std::size_t>(decoder.slots());
  Sampler sample(config.sampling, decoder.vocab_size());
  std::vector<std::vector<int>> out(prompts.size());
  std::vector<T> logits(slots * vocab);
  std::vector<Index> live, free;
  std::vector<std::size_t> sequence_of(slots);
  std::vector<int> ids;
  live.reserve(slots);
  ids.reserve(slots);
  for (std::size_t s = slots; s-- > 0;) free.push_back(static_cast<Index>(s));

  // Takes the next token of each of these slots from the logits. goes_on(slot) is called for those that do.
  const auto take = [&](std::span<const Index> slots_of_rows, const auto& tensor, auto&& goes_on) {
    const std::span<T> values(logits.data(), slots_of_rows.size() * vocab);
    decoder.context().read(tensor, values);
    for (std::size_t r = 0; r < slots_of_rows.size(); ++r) {
      const Index slot = slots_of_rows[r];
      const std::size_t n = sequence_of[static_cast<std::size_t>(slot)];
      const Random random(config.seed / static_cast<Index>(n), "generate");
      const int token = sample(std::span<const T>(values.subspan(r * vocab, vocab)), random.uniform(out[n].size()));
      out[n].push_back(token);
      const bool ends = token == config.end_token || static_cast<Index>(out[n].size()) >= config.max_new_tokens ||
                        decoder.room(slot) == 0;
      if (ends)
        free.push_back(slot);
      else
        goes_on(slot);
    }
  };

  std::size_t next = 0;
  while (next < prompts.size() || !live.empty()) {
    for (; next < prompts.size() && !free.empty(); ++next) {
      if (config.max_new_tokens == 0) continue;
      const std::array<Index, 1> slot{free.back()};
      free.pop_back();
      sequence_of[static_cast<std::size_t>(slot[0])] = next;
      decoder.begin(slot[0], static_cast<Index>(next));
      const auto tensor = decoder.append({prompts[next], Sequences{static_cast<Index>(prompts[next].size())}}, slot);
      out[next].reserve(static_cast<std::size_t>(std::min(config.max_new_tokens, decoder.room(slot[0]) + 1)));
      take(slot, tensor, [&](Index s) { live.push_back(s); });
    }
    if (live.empty()) continue;
    ids.clear();
    for (const Index slot : live) ids.push_back(out[sequence_of[static_cast<std::size_t>(slot)]].back());
    const Sequences ones =
        Sequences::make(decoder.context().arena(), static_cast<Index>(live.size()), [](Index) { return 1; });
    const auto tensor = decoder.append({ids, ones}, live);
    std::size_t kept = 0;
    take(live, tensor, [&](Index s) { live[kept++] = s; });
    live.resize(kept);
  }
  return out;
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Runs an AttentionDecoder token by token. Each slot holds the earlier tokens of one sequence and reads one source;
/// slots that read the same source, such as the beams of a search, share its memory. `slots` of the configuration
/// counts all beams of all sources that are decoded together.
///
///     SourceDecoder decoder(cpu, model.decoder, {.slots = 4});
///     decoder.listen(encoded, sources);                       // the output of an encoder
///     auto best = beam_search(decoder, std::array{start}, config, 2);   // of source 2
///
/// `generate` gives prompt n source n. Construction and `listen` allocate; a warm `append` takes memory from the
/// context's pool only.
template <class Decoder, StreamingContext Context_ = Cpu<typename Decoder::Scalar>>
class SourceDecoder {
 public:
  using Context = Context_;                 ///< the context that computes
  using Tensor = typename Context::Tensor;  ///< the type of logits

  /// Makes empty slots and no sources. Context and decoder must outlive this. Allocates. Throws Error for sizes out of
  /// range.
  SourceDecoder(Context& context, const Decoder& decoder, const TokenDecoderConfig& config = {})
      : reader_{decoder}, tokens_(context, reader_, config) {
    reader_.source_of.assign(static_cast<std::size_t>(slots()), Reader::none);
    order_.reserve(static_cast<std::size_t>(slots()));
    sorted_.reserve(static_cast<std::size_t>(slots()));
    places_.reserve(static_cast<std::size_t>(slots()));
  }
  SourceDecoder(const SourceDecoder&) = delete;
  SourceDecoder& operator=(const SourceDecoder&) = delete;

  /// Takes the rows (rows, d_model) of new sources in place of the old ones, computes what the decoder needs of them,
  /// and empties all slots. Allocates. Throws Error for rows that do not fit and for a source without rows; the old
  /// sources then remain.
  void listen(const Tensor& rows, const Sequences& sources) {
    require(rows.rows() == sources.rows(), "source decoder: ", rows.rows(), " rows given, their sequences have ",
            sources.rows());
    for (Index n = 0; n < sources.size(); ++n)
      require(sources.length(n) > 0, "source decoder: source ", n, " has no rows, at least one expected");
    reader_.listen(context(), rows, sources);
    for (Index slot = 0; slot < slots(); ++slot) tokens_.begin(slot);
  }

  /// Returns the context that computes.
  Context& context() { return tokens_.context(); }
  /// Returns the number of slots.
  Index slots() const { return tokens_.slots(); }
  /// Returns the number of sources.
  Index sources() const { return reader_.sources.size(); }
  /// Returns the number of tokens that the decoder knows.
  Index vocab_size() const { return tokens_.vocab_size(); }
  /// Returns the tokens that a slot holds.
  Index count(Index slot) const { return tokens_.count(slot); }
  /// Returns the tokens that a slot can still take.
  Index room(Index slot) const { return tokens_.room(slot); }
  /// Returns the bytes that the slots hold, all layers.
  Index cache_bytes() const { return tokens_.cache_bytes(); }

  /// Empties a slot, which reads source n from now on. Throws Error for a source that does not exist.
  void begin(Index slot, Index n) {
    require(n >= 0 && n < sources(), "source decoder: source ", n, " given, ", sources(), " sources are there");
    tokens_.begin(slot);
    reader_.source_of[static_cast<std::size_t>(slot)] = n;
  }
  /// Makes slot `to` hold what slot `from` holds, and read its source.
  void fork(Index from, Index to) {
    tokens_.fork(from, to);
    reader_.source_of[static_cast<std::size_t>(to)] = reader_.source_of[static_cast<std::size_t>(from)];
  }

  /// Appends the tokens of sequence n to slots[n] and returns the logits that follow: see TokenDecoder. Throws Error,
  /// too, for a slot without a source.
  Tensor append(const TokenRows& tokens, std::span<const Index> slots) {
    for (const Index slot : slots)
      require(slot >= 0 && slot < this->slots() && reader_.source(slot) < sources(), "source decoder: slot ", slot,
              " given, one that has begun to read a source expected");
    const auto earlier = [&](Index a, Index b) { return reader_.source(a) < reader_.source(b); };
    if (std::is_sorted(slots.begin(), slots.end(), earlier)) return tokens_.append(tokens, slots);

    // Rows that read one source must lie together.
    require(tokens.sequences.size() == static_cast<Index>(slots.size()), "source decoder: ", tokens.sequences.size(),
            " sequences given for ", slots.size(), " slots");
    require(static_cast<Index>(tokens.ids.size()) == tokens.sequences.rows(), "source decoder: ", tokens.ids.size(),
            " tokens given, their sequences have ", tokens.sequences.rows());
    order_.resize(slots.size());
    for (std::size_t i = 0; i < slots.size(); ++i) order_[i] = static_cast<Index>(i);
    const auto place = [&](Index i) { return std::pair(reader_.source(slots[static_cast<std::size_t>(i)]), i); };
    std::sort(order_.begin(), order_.end(), [&](Index a, Index b) { return place(a) < place(b); });
    sorted_.clear();
    ids_.clear();
    for (const Index n : order_) {
      sorted_.push_back(slots[static_cast<std::size_t>(n)]);
      const auto own = tokens.ids.subspan(static_cast<std::size_t>(tokens.sequences.begin(n)),
                                          static_cast<std::size_t>(tokens.sequences.length(n)));
      ids_.insert(ids_.end(), own.begin(), own.end());
    }
    const Sequences sequences = Sequences::make(context().arena(), tokens.sequences.size(), [&](Index i) {
      return tokens.sequences.length(order_[static_cast<std::size_t>(i)]);
    });
    const Tensor logits = tokens_.append({ids_, sequences}, sorted_);
    Tensor out = context().make(logits.rows(), logits.cols());
    places_.clear();
    for (std::size_t i = 0; i < order_.size(); ++i) places_.push_back({static_cast<Index>(i), 1, order_[i]});
    context().copy_rows(logits, out, places_);
    return out;
  }

 private:
  /// The decoder with its sources, as the language model that TokenDecoder runs.
  struct Reader {
    using Scalar = typename Decoder::Scalar;
    using Memory = decltype(std::declval<const Decoder&>().remember(
        std::declval<Context&>(), std::declval<const Tensor&>(), std::declval<const Sequences&>()));
    template <class C>
    struct State : Decoder::template State<C> {
      State(C& context, const Reader& reader, const StateShape& shape)
          : Decoder::template State<C>(context, reader.decoder.text, shape) {}
    };

    explicit Reader(const Decoder& d) : decoder(d) {}

    void listen(Context& context, const Tensor& rows, const Sequences& given) {
      std::vector<Index> lengths;
      for (Index n = 0; n < given.size(); ++n) lengths.push_back(given.length(n));
      Sequences next(lengths);
      memory = decoder.remember(context, rows, next);
      sources = std::move(next);
      std::fill(source_of.begin(), source_of.end(), none);
    }
    Index source(Index slot) const { return source_of[static_cast<std::size_t>(slot)]; }

    const LanguageModelConfig& config() const { return decoder.text.config(); }
    static Index cache_bytes(const LanguageModelConfig& config, Frames n, Storage storage) {
      return Decoder::Text::cache_bytes(config, n, storage);
    }
    Tensor hidden(Context& c, std::span<const int> ids, Pass<Tensor> pass, State<Context>* state) const {
      const Sequences queries = Sequences::make(c.arena(), sources.size(), [&](Index n) {
        Index rows = 0;
        for (std::size_t i = 0; i < pass.slots.size(); ++i)
          if (source(pass.slots[i]) == n) rows += pass.sequences.length(static_cast<Index>(i));
        return rows;
      });
      return decoder.hidden(c, ids, std::move(pass), queries, memory, sources, state);
    }
    Tensor logits(Context& c, const Tensor& rows) const { return decoder.text.logits(c, rows); }

    static constexpr Index none = Index{1} << 60;  // more than any source
    const Decoder& decoder;
    Memory memory;
    Sequences sources;
    std::vector<Index> source_of;  // of each slot
  };

  Reader reader_;
  TokenDecoder<Reader, Context> tokens_;
  std::vector<Index> order_, sorted_;
  std::vector<int> ids_;
  std::vector<RowRange> places_;  // of logits, in the order that was asked for
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names an encoder of known sizes.
struct PublishedModel {
  std::string_view name;  ///< such as "conformer_mla_small"
  EncoderName encoder;    ///< the kind of encoder
  EncoderConfig config;   ///< its sizes
};

namespace detail {

/// Returns the configuration with an attention: two key-value heads for GQA, a latent of this rank for MLA.
constexpr EncoderConfig with_attention(EncoderConfig config, AttentionName attention, Index rank) {
  config.attention = attention;
  if (attention == AttentionName::gqa) config.num_kv_heads = 2;
  if (attention == AttentionName::mla) config.kv_lora_rank = rank;
  return config;
}
constexpr EncoderConfig published_conformer(AttentionName attention) {
  return with_attention({.d_model = 1024, .num_layers = 24, .vocab_size = 32, .num_heads = 16}, attention, 1024);
}
constexpr EncoderConfig published_branchformer(AttentionName attention) {
  return with_attention({.d_model = 512, .num_layers = 18, .vocab_size = 32, .num_heads = 8}, attention, 512);
}
constexpr EncoderConfig small_encoder(AttentionName attention) {
  return with_attention({.num_mels = 40,
                         .d_model = 128,
                         .num_layers = 4,
                         .vocab_size = 32,
                         .num_heads = 8,
                         .conv_kernel = 15,
                         .subsampling_channels = 32},
                        attention, 64);
}

}  // namespace detail

/// Lists Conformer and Branchformer with MHA, MLA (two stages), GQA and linear attention in the sizes that were
/// published with such attention (speech_mha2mla: 24 layers of 1024 and 18 of 512, kernel 31, R = d_model), and, as
/// `_small`, in a size that trains on a CPU in minutes (R = d_model / 2).
inline constexpr std::array published_models{
    PublishedModel{"conformer_mha", EncoderName::conformer, detail::published_conformer(AttentionName::mha)},
    PublishedModel{"conformer_mla", EncoderName::conformer, detail::published_conformer(AttentionName::mla)},
    PublishedModel{"conformer_gqa", EncoderName::conformer, detail::published_conformer(AttentionName::gqa)},
    PublishedModel{"conformer_linear", EncoderName::conformer, detail::published_conformer(AttentionName::linear)},
    PublishedModel{"branchformer_mha", EncoderName::branchformer, detail::published_branchformer(AttentionName::mha)},
    PublishedModel{"branchformer_mla", EncoderName::branchformer, detail::published_branchformer(AttentionName::mla)},
    PublishedModel{"branchformer_gqa", EncoderName::branchformer, detail::published_branchformer(AttentionName::gqa)},
    PublishedModel{"branchformer_linear", EncoderName::branchformer,
                   detail::published_branchformer(AttentionName::linear)},
    PublishedModel{"conformer_mha_small", EncoderName::conformer, detail::small_encoder(AttentionName::mha)},
    PublishedModel{"conformer_mla_small", EncoderName::conformer, detail::small_encoder(AttentionName::mla)},
    PublishedModel{"conformer_gqa_small", EncoderName::conformer, detail::small_encoder(AttentionName::gqa)},
    PublishedModel{"conformer_linear_small", EncoderName::conformer, detail::small_encoder(AttentionName::linear)},
    PublishedModel{"branchformer_mha_small", EncoderName::branchformer, detail::small_encoder(AttentionName::mha)},
    PublishedModel{"branchformer_mla_small", EncoderName::branchformer, detail::small_encoder(AttentionName::mla)},
    PublishedModel{"branchformer_gqa_small", EncoderName::branchformer, detail::small_encoder(AttentionName::gqa)},
    PublishedModel{"branchformer_linear_small", EncoderName::branchformer,
                   detail::small_encoder(AttentionName::linear)},
};

namespace detail {

[[noreturn]] inline void unknown_model(std::string_view name) {
  std::string known;
  for (const PublishedModel& model : published_models) known += text(known.empty() ? "" : ", ", model.name);
  throw Error(text("published model: \"", name, "\" given, one of ", known, " expected"));
}

}  // namespace detail

/// Returns the published model of this name. Throws Error that lists all names where there is none.
constexpr const PublishedModel& published_model(std::string_view name) {
  for (const PublishedModel& model : published_models)
    if (model.name == name) return model;
  detail::unknown_model(name);
}

/// Returns the encoder with every attention by name, for comparisons. Latents and groups have a quarter of MHA's cache,
/// the cached input half of it; linear attention has a state instead, which cannot forget.
constexpr std::array<EncoderConfig, 9> quarter_caches(const EncoderConfig& encoder) {
  using enum AttentionName;
  const Index quarter = encoder.d_model / 2;
  const auto with = [&](AttentionName attention, Index kv_heads, Index rank, Index rope) {
    EncoderConfig config = encoder;
    config.attention = attention;
    config.num_kv_heads = kv_heads;
    config.kv_lora_rank = rank;
    config.qk_rope_head_dim = rope;
    if (attention == linear) config.left_context = -1;
    return config;
  };
  return {with(mha, 0, 0, 0),
          with(gqa, encoder.num_heads / 4, 0, 0),
          with(mla, 0, quarter, 0),
          with(mla_simple, 0, quarter, 0),
          with(mla_split, 0, quarter / 2, 0),
          with(mla_head, 0, quarter / 2 / encoder.num_heads, 0),
          with(mla_decoupled, 0, quarter - quarter / 4, quarter / 4),
          with(input_latent, 0, 0, 0),
          with(linear, 0, 0, 0)};
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds the settings of AdamW (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWConfig {
  double beta1 = 0.9,          ///< decay of the running mean of the gradient, 0 to less than 1
      beta2 = 0.98;            ///< decay of the running mean of its square, 0 to less than 1
  double eps = 1e-9;           ///< added to the root of the second moment
  double weight_decay = 0.01;  ///< decay of matrices and kernels; vectors (biases, norms) do not decay
  double clip_norm = 5;        ///< max norm of all gradients together; 0: no clipping

  /// Throws `Error` for a number that makes no sense.
  void check() const {
    require(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1, "adamw: beta1 ", beta1, " and beta2 ", beta2,
            " given, expected from 0 to less than 1");
    require(eps > 0 && std::isfinite(eps), "adamw: eps ", eps, " given, a positive number expected");
    require(weight_decay >= 0 && std::isfinite(weight_decay), "adamw: weight_decay ", weight_decay,
            " given, at least 0 expected");
    require(clip_norm >= 0 && std::isfinite(clip_norm), "adamw: clip_norm ", clip_norm, " given, at least 0 expected");
  }

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("beta1", self.beta1);
    visit("beta2", self.beta2);
    visit("eps", self.eps);
    visit("weight_decay", self.weight_decay);
    visit("clip_norm", self.clip_norm);
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Holds what an optimiser has gathered about a model, for checkpoints and for code that changes the model's shape.
template <class T>
struct OptimizerState {
  /// Holds the moments of one parameter, of its shape.
  struct Moments {
    Matrix<T> first,  ///< running mean of the gradient
        second;       ///< running mean of its square
  };
  std::vector<Moments> moments;  ///< by parameter, in the model's order; empty if never stepped
  std::int64_t steps = 0;        ///< number of steps that changed something

  /// Throws `Error`, in the name of `who`, unless the moments fit the model's parameters or there are none yet.
  template <class Model>
  void require_of(const Model& model, const char* who) const {
    std::size_t i = 0;
    model.parameters([&](std::string_view name, const Parameter<T>& p) {
      if (i >= moments.size()) return;
      const Moments& m = moments[i++];
      for (const Matrix<T>* one : {&m.first, &m.second})
        require(m.first.size() == 0 || (one->rows() == p.rows() && one->cols() == p.cols()), who, ": moments of (",
                one->rows(), ", ", one->cols(), ") given for ", name, ", (", p.rows(), ", ", p.cols(), ") expected");
    });
    require(i == moments.size(), who, ": moments of ", moments.size(), " parameters given for a model of fewer");
  }
};

/// Trains the parameters of one model with AdamW (Loshchilov and Hutter 2019, algorithm 2), in their order and where
/// the context has them. A step uses up the gradients: they are zero afterwards. Frozen parameters stay as they are.
/// Statistics get their gathered update added.
template <TrainingContext Context>
class AdamW {
 public:
  using T = typename Context::Scalar;  ///< the type of an element

  /// Throws `Error` for a number of the configuration that makes no sense. The context must outlive this object.
  explicit AdamW(Context& context, const AdamWConfig& config = {}) : context_(context), config_(config) {
    config_.check();
  }

  /// Returns the moments and the number of steps, on the host. Allocates.
  OptimizerState<T> state() const {
    OptimizerState<T> out{{}, steps_};
    for (const Moments& m : moments_)
      out.moments.push_back(
          m.first.empty() ? typename OptimizerState<T>::Moments{}
                          : typename OptimizerState<T>::Moments{context_.output(m.first), context_.output(m.second)});
    return out;
  }
  /// Continues from this state. Allocates the moments in the context.
  void set_state(OptimizerState<T> state) {
    steps_ = state.steps;
    moments_.clear();
    for (auto& m : state.moments)
      moments_.push_back(m.first.size() == 0
                             ? Moments{}
                             : Moments{context_.input(std::move(m.first)), context_.input(std::move(m.second))});
  }
  /// Returns the number of steps that changed something.
  std::int64_t steps() const { return steps_; }

  /// Changes the parameters by their gradients and returns the norm of all gradients before clipping. If that norm is
  /// not finite, the whole step is skipped (weights, moments and statistics stay) and the caller must report it. Throws
  /// `Error` for a learning rate that is not finite, and for parameters that cannot be trained where they are.
  template <class Model>
  double step(Model& model, double learning_rate) {
    require(std::isfinite(learning_rate), "adamw: learning_rate ", learning_rate, " given, a finite number expected");
    std::vector<const Parameter<T>*> all, weights;
    std::vector<AdamWUpdate<typename Context::Tensor, T>> updates;
    model.parameters([&](std::string_view name, Parameter<T>& p) {
      require(p.can_train(), "adamw: ", name,
              " is prepared to run, a model on the host or prepared for training expected");
      all.push_back(&p);
      if (p.role() == Role::weight && p.trainable) weights.push_back(&p);
    });
    const double norm = context_.gradient_norm(weights);
    if (!std::isfinite(norm)) {
      context_.clear_gradients(all);
      return norm;
    }
    if (moments_.size() < all.size()) moments_.resize(all.size());
    std::size_t i = 0;
    model.parameters([&](std::string_view, Parameter<T>& p) {
      updates.push_back({&p, &moments_[i].first, &moments_[i].second});
      ++i;
    });
    ++steps_;
    context_.adamw(updates, {learning_rate, config_.beta1, config_.beta2, config_.eps, config_.weight_decay,
                             config_.clip_norm > 0 && norm > config_.clip_norm ? config_.clip_norm / norm : 1, steps_});
    return norm;
  }

 private:
  struct Moments {
    typename Context::Tensor first{}, second{};
  };

  Context& context_;
  AdamWConfig config_;
  std::vector<Moments> moments_;
  std::int64_t steps_ = 0;
};

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the mean cross entropy, (1, 1), in nats, of the rows whose target is not ignored: `cross_entropy_loss(tape,
/// model(tape, tokens), targets)`. logits (rows, classes), one target a row. Without any such row it is 0. An
/// infinite loss, of logits that overflowed, counts as 0.
template <class Context, class Tensor>
auto cross_entropy_loss(Context& context, const Tensor& logits, std::span<const int> targets,
                        const CrossEntropyShape& shape = {}) {
  const auto ignored = std::count(targets.begin(), targets.end(), shape.ignored);
  const auto rows = static_cast<double>(targets.size()), counted = rows - static_cast<double>(ignored);
  const auto mean = context.mean_finite(context.cross_entropy(logits, targets, shape));
  return ignored == 0 ? mean : context.scale(mean, rows / std::max(1.0, counted));
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Returns the mean CTC loss of a batch, (1, 1), from the logits of a model (Graves et al. 2006): `ctc_loss(tape,
/// model(tape, x, sequences), labels)`. Utterances whose labels do not fit their frames add nothing, as with PyTorch's
/// zero_infinity.
template <class Context, class Logits>
auto ctc_loss(Context& context, const Logits& logits, const Labels& labels, int blank = 0) {
  return context.mean_finite(context.ctc(logits.rows, logits.sequences, labels, blank));
}

}  // namespace LACONIC_ABI
}  // namespace laconic

namespace laconic {
inline namespace LACONIC_ABI {

/// Names how the learning rate falls after its linear warm-up.
enum class Decay {
  cosine,  ///< along half a cosine to a hundredth at the last step (Loshchilov and Hutter 2017)
  noam,    ///< with the inverse square root of the step (Vaswani et al. 2017, equation 3; the peak is given directly)
};
/// Names the values of Decay.
constexpr auto enum_names(Decay) {
  return std::to_array<EnumName<Decay>>({{Decay::cosine, "cosine"}, {Decay::noam, "noam"}});
}

/// Computes the learning rate of a step: linear from 0 to `peak` in `warmup_steps`, then falling.
struct Schedule {
  double peak = 1e-3;               ///< highest learning rate
  std::int64_t warmup_steps = 100;  ///< steps of linear growth
  Decay decay = Decay::cosine;      ///< how it falls afterwards
  std::int64_t total_steps = 1000;  ///< the step at which the cosine ends; Noam has no end

  /// Lists the members for JSON.
  static constexpr void fields(auto& self, auto&& visit) {
    visit("peak", self.peak);
    visit("warmup_steps", self.warmup_steps);
    visit("decay", self.decay);
    visit("total_steps", self.total_steps);
  }

  /// Returns the learning rate of step `step`, counted from 1.
  double operator()(std::int64_t step) const {
    const double s = static_cast<double>(step), w = static_cast<double>(std::max<std::int64_t>(1, warmup_steps));
    if (step <= warmup_steps) return peak * s / w;
    if (decay == Decay::noam) return peak * std::sqrt(w / s);
    const double left = std::max(1.0, static_cast<double>(total_steps - warmup_steps));
    const double progress = std::clamp((s - w) / left, 0.0, 1.0);
    return peak * (0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * progress)));
  }
};

}  // namespace LACONIC_ABI
}  // namespace laconic
