// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <laconic/core/enum.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/sequences.hpp>
#include <laconic/core/tensor.hpp>

#include "catch.hpp"

using namespace laconic;

namespace {

enum class Colour { red, green };
constexpr auto enum_names(Colour) {
  return std::to_array<EnumName<Colour>>({{Colour::red, "red"}, {Colour::green, "green"}});
}
enum class Nameless { a };
static_assert(NamedEnum<Colour> && !NamedEnum<Nameless>);
static_assert(to_name(Colour::green) == "green" && from_name<Colour>("red") == Colour::red &&
              !from_name<Colour>("blue"));

struct Leaf : Module<Leaf> {
  Parameter<float> weight{2, 3};
  Parameter<float> mean{Parameter<float>({3}, Role::statistic)};
  static void each_parameter(auto& self, auto&& visit) {
    visit("weight", self.weight);
    visit("mean", self.mean);
  }
};
struct Tree : Module<Tree> {
  std::vector<Leaf> leaves = std::vector<Leaf>(2);
  Leaf single;
  Parameter<float> bias{4};
  static void each_parameter(auto& self, auto&& visit) {
    visit("leaves", self.leaves);
    visit("single", self.single);
    visit("bias", self.bias);
  }
};

// Numbers in types.
static_assert(Index(Extent<5>()) == 5 && Index(Extent<dyn>(7)) == 7);
static_assert(std::is_convertible_v<Extent<5>, Extent<dyn>> && std::is_convertible_v<Index, Extent<dyn>>);
static_assert(!std::is_convertible_v<Extent<dyn>, Extent<5>> && std::is_constructible_v<Extent<5>, Extent<dyn>>);
static_assert(!std::is_convertible_v<Index, Extent<5>>);
static_assert(std::is_empty_v<Extent<5>> && !std::is_empty_v<Extent<dyn>>);
static_assert(Extent<5>::is_static && !Extent<dyn>::is_static);
static_assert(Index(resolve<5>(0, "n")) == 5 && Index(resolve<5>(5, "n")) == 5 && Index(resolve<dyn>(3, "n")) == 3);
constexpr Extent<dyn> from_static = Extent<5>();
static_assert(Index(from_static) == 5 && Index(Extent<5>(from_static)) == 5);

}  // namespace

TEST_CASE("texts of errors", "[core]") {
  CHECK(text("rank ", 64, " > ", 32U, ' ', -1.5, ' ', std::string("s"), std::string_view("v")) ==
        "rank 64 > 32 -1.5 sv");
  CHECK(text() == "");
  CHECK(text(std::numeric_limits<Index>::min()) == "-9223372036854775808");
  CHECK(text(0.1) == "0.1");
  CHECK_NOTHROW(require(true, "never"));
  CHECK_THROWS_AS(require(false, "a"), std::runtime_error);
  CHECK_THROWS_WITH(require(false, "length ", 3, " given"), "length 3 given");
}

TEST_CASE("an error is one line, whatever of a file is in it", "[core]") {
  CHECK(Error("f: token \"a\nb\x1b[2J\x7f\t\" \u00e4").what() == std::string("f: token \"a?b?[2J??\" \u00e4"));
  CHECK(Error(std::string("a\0b", 3)).what() == std::string("a?b"));
  const std::string most(2000, 'x');
  CHECK(Error(most).what() == most);
  CHECK(Error("<" + most + ">").what() == "<" + std::string(999, 'x') + " ... " + std::string(999, 'x') + ">");
  std::string umlauts;  // two bytes each: none is cut
  for (int i = 0; i < 1500; ++i) umlauts += "\u00e4";
  CHECK(Error("x" + umlauts).what() == "x" + umlauts.substr(0, 998) + " ... " + umlauts.substr(0, 1000));
  CHECK(Error(umlauts + "x").what() == umlauts.substr(0, 1000) + " ... " + umlauts.substr(0, 998) + "x");
}

TEST_CASE("extents", "[core]") {
  CHECK_THROWS_WITH(Extent<5>(4), "extent: 4 given where the type says 5");
  CHECK_THROWS_WITH(Extent<5>(Extent<dyn>(6)), "extent: 6 given where the type says 5");
  CHECK_THROWS_WITH(Extent<dyn>(-1), "extent: -1 given, at least 0 expected");
  CHECK_THROWS_WITH(resolve<5>(4, "num_heads"), "num_heads: 4 configured, but the type says 5");
  CHECK_THROWS_WITH(resolve<dyn>(0, "num_heads"),
                    "num_heads: the type says `dyn`, so the configuration must say it: 0 given");
}

TEST_CASE("names of enumerations", "[core]") {
  CHECK(all_names<Colour>() == "red, green");
  CHECK_THROWS_WITH(to_name(static_cast<Colour>(7)), "no name for value 7 of an enumeration");
}

TEST_CASE("sequences", "[core]") {
  const Sequences s{3, 0, 5};
  CHECK(s.size() == 3);
  CHECK(s.rows() == 8);
  CHECK(s.max_length() == 5);
  CHECK(s.begin(1) == 3);
  CHECK(s.end(1) == 3);
  CHECK(s.length(2) == 5);
  CHECK(Sequences().size() == 0);
  CHECK(Sequences().rows() == 0);
  CHECK(Sequences() == Sequences{});
  CHECK(Sequences{}.max_length() == 0);
  CHECK(s == Sequences{3, 0, 5});
  CHECK_FALSE(s == Sequences{3, 5});
  CHECK_FALSE(s == Sequences{3, 0, 4});
  CHECK_THROWS_WITH((Sequences{3, -1}), "sequences: length -1 given for sequence 1, at least 0 expected");

  // Copies stand alone, wherever their memory is.
  Arena arena;
  Sequences copy;
  {
    const Sequences own{1, 2};
    copy = own;
    CHECK(copy == own);
    const Sequences moved = std::move(copy);
    CHECK(moved == Sequences{1, 2});
    copy = s.map_lengths(arena, [](Index n) { return n - 2; });
    CHECK(copy == Sequences{1, 0, 3});
    const Sequences second = copy;
    copy = moved;
    CHECK(second == Sequences{1, 0, 3});
    CHECK(copy == Sequences{1, 2});
    copy = second;
    auto& same = copy;
    copy = same;
  }
  CHECK(copy == Sequences{1, 0, 3});
  CHECK(arena.used_bytes() > 0);
  copy = Sequences{};
  CHECK(arena.used_bytes() == 0);
}

TEST_CASE("an arena recycles blocks by size", "[core]") {
  Arena arena;
  CHECK(arena.reserved_bytes() == 0);
  void* first = nullptr;
  {
    const Buffer a = arena.allocate(1000);
    first = a.data();
    CHECK(reinterpret_cast<std::uintptr_t>(first) % 64 == 0);
    CHECK(arena.used_bytes() >= 1000);
    CHECK(arena.used_bytes() <= 1280);
    CHECK(arena.reserved_bytes() == arena.used_bytes());
    CHECK(a.unique());
    const Buffer b = a;
    CHECK_FALSE(a.unique());
    CHECK(b.data() == a.data());
  }
  CHECK(arena.used_bytes() == 0);
  const std::size_t reserved = arena.reserved_bytes();
  {
    const Buffer again = arena.allocate(1020);  // of the same class
    CHECK(again.data() == first);
    CHECK(arena.reserved_bytes() == reserved);
    const Buffer other = arena.allocate(1000);  // the first is in use
    CHECK(other.data() != first);
    CHECK(arena.reserved_bytes() == 2 * reserved);
  }
  CHECK(arena.peak_bytes() == 2 * reserved);
  const Buffer kept = arena.allocate(5000);
  arena.trim();
  CHECK(arena.reserved_bytes() == arena.used_bytes());
  CHECK(arena.used_bytes() >= 5000);

  // Every size gets a block that holds it, at most a quarter unused (from 256 bytes on).
  for (std::size_t bytes = 0; bytes < 100'000; bytes += bytes < 3000 ? 1 : 997) {
    Arena own;
    const Buffer block = own.allocate(bytes);
    const std::size_t got = own.used_bytes();
    if (got < bytes || (bytes > 256 && 4 * (got - bytes) > got)) FAIL(bytes << " bytes asked, " << got << " given");
  }
}

TEST_CASE("buffers share a block until the last lets go", "[core]") {
  Arena arena;
  Buffer a = arena.allocate(10), b = std::move(a), c = b;
  CHECK(b.data() == c.data());
  b = Buffer();
  CHECK(c.unique());
  c = c.unique() ? c : b;
  CHECK(arena.used_bytes() == 256);
  c = Buffer();
  CHECK(c.empty());
  CHECK(c.data() == nullptr);
  CHECK_FALSE(c.unique());
  CHECK(arena.used_bytes() == 0);
}

TEST_CASE("tensors", "[core]") {
  Arena arena;
  Tensor<float> t(arena, 2, 3);
  CHECK(t.unique());
  t.view().setConstant(4);
  Tensor<float> shared = t;
  CHECK_FALSE(t.unique());
  CHECK(shared.row(1)[2] == 4);
  const Matrix<float> m = Matrix<float>::Random(4, 5);
  const auto borrowed = Tensor<float>::borrow(m);
  CHECK_FALSE(borrowed.unique());
  CHECK(borrowed.view() == m);
  CHECK(borrowed.row(3) == m.data() + 15);
  CHECK(borrowed.size() == 20);
  CHECK(Tensor<float>().empty());
  CHECK_FALSE(Tensor<float>(arena, 0, 3).empty());
}

TEST_CASE("views of matrices", "[core]") {
  Matrix<double> m(3, 4);
  for (Index i = 0; i < 12; ++i) m.data()[i] = static_cast<double>(i);
  auto block = matrix_view(m.data() + 1, 3, 2, 4);
  CHECK(block(2, 1) == 10);
  block(0, 0) = -1;
  CHECK(m(0, 1) == -1);
  const auto& constant = m;
  CHECK(view(constant)(2, 3) == 11);
}

TEST_CASE("parameters", "[core]") {
  const Parameter<float> p{3, 1, 5};
  CHECK(p.shape() == std::vector<Index>{3, 1, 5});
  CHECK(p.host().rows() == 3);
  CHECK(p.host().cols() == 5);
  CHECK(p.host().cwiseAbs().maxCoeff() == 0);
  CHECK(p.size() == 15);
  CHECK(p.role() == Role::weight);
  const Parameter<float> vector{4};
  CHECK(vector.host().rows() == 1);
  CHECK(vector.host().cols() == 4);
  CHECK(Parameter<float>().size() == 0);
  CHECK_FALSE(Parameter<float>().has_gradient());
  CHECK_FALSE(p.has_gradient());
  p.gradient()(1, 2) = 3;
  CHECK(p.has_gradient());
  CHECK(p.gradient()(1, 2) == 3);
  p.clear_gradient();
  CHECK(p.gradient().cwiseAbs().maxCoeff() == 0);
}

TEST_CASE("modules name their parameters once", "[core]") {
  Tree tree;
  const Tree& constant = tree;
  const std::vector<std::string> expected{
      "leaves.0.weight", "leaves.0.mean", "leaves.1.weight", "leaves.1.mean", "single.weight", "single.mean", "bias"};
  std::vector<std::string> names, same;
  tree.parameters([&](std::string_view name, Parameter<float>& p) {
    names.emplace_back(name);
    p.host().setConstant(static_cast<float>(names.size()));
  });
  constant.parameters([&](std::string_view name, const Parameter<float>&) { same.emplace_back(name); });
  CHECK(names == expected);
  CHECK(same == expected);
  CHECK(tree.leaves[1].weight.host()(1, 2) == 3);
  CHECK(tree.bias.host()(0, 3) == 7);
  CHECK(constant.count_parameters() == 3 * 6 + 4);  // statistics do not count
}

TEST_CASE("uniform initial values are the numbers of their stream, one by one", "[core]") {
  const Random random(Seed(3), "weight");
  for (const Index size : {1, 63, 64, 130}) {
    Parameter<double> p({size});
    fill_uniform(p, 0.25, random);
    for (Index i = 0; i < size; ++i)
      CHECK(p.host()(0, i) == 0.25 * (2 * random.uniform(static_cast<std::uint64_t>(i)) - 1));
  }
}
