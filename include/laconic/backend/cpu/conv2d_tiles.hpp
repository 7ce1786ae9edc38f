// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/elementwise.hpp>
#include <laconic/backend/cpu/gemm.hpp>
#include <laconic/backend/primitives.hpp>
#include <laconic/core/sequences.hpp>

#include <algorithm>
#include <array>
#include <optional>
#include <span>

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

namespace laconic::inline LACONIC_ABI {
namespace kernels {

struct ConvTiles {
  static constexpr Index components = 5, all = components * components, groups = 9;

  Conv2dShape shape;
  Index out_length;

  Index times() const { return (out_length + 1) / 2; }
  Index freqs() const { return (shape.out_freqs() + 1) / 2; }
  Index count() const { return times() * freqs(); }
  /// Components along one axis that add to the first output, to both, to the second.
  static constexpr std::array<std::array<Index, 2>, 3> members{{{0, 3}, {1, -1}, {2, 4}}};
  static constexpr Index member_count(Index axis_group) { return axis_group == 1 ? 1 : 2; }
  /// Group 3 g + h holds the components of g in time and h in frequency; its first one, and how many there are.
  static constexpr Index size(Index group) { return member_count(group / 3) * member_count(group % 3); }
  static constexpr Index first(Index group) {
    Index sum = 0;
    for (Index g = 0; g < group; ++g) sum += size(g);
    return sum;
  }
  static constexpr bool adds_to(Index axis_group, Index output) { return axis_group == 1 || axis_group == 2 * output; }

  /// visit(place in the group, a, b): component a in time and b in frequency.
  template <class Visit>
  static void each_member(Index group, Visit&& visit) {
    Index place = 0;
    for (Index i = 0; i < member_count(group / 3); ++i)
      for (Index j = 0; j < member_count(group % 3); ++j)
        visit(place++, members[static_cast<std::size_t>(group / 3)][static_cast<std::size_t>(i)],
              members[static_cast<std::size_t>(group % 3)][static_cast<std::size_t>(j)]);
  }
  /// visit(place among all, a, b).
  template <class Visit>
  static void each_component(Visit&& visit) {
    for (Index group = 0; group < groups; ++group)
      each_member(group, [&](Index place, Index a, Index b) { visit(first(group) + place, a, b); });
  }
  /// Component a is input plus(a), less input 2 where a is 0 or 2; its weight is the sum of the taps that has_tap says.
  static constexpr Index plus(Index a) { return std::array<Index, 5>{0, 2, 4, 1, 3}[static_cast<std::size_t>(a)]; }
  static constexpr bool less_middle(Index a) { return a == 0 || a == 2; }
  static constexpr bool has_tap(Index a, Index tap) {
    return a > 2 ? tap == 1 : (tap == 0 && a < 2) || (tap == 2 && a > 0);
  }
};

/// The weights of the components (25 in_channels, out_channels) from those of the taps (out, in, 3, 3).
template <class T>
void tile_weights(const Conv2dShape& s, const T* weight, T* to) {
  ConvTiles::each_component([&](Index place, Index a, Index b) {
    for (Index c = 0; c < s.in_channels; ++c) {
      T* row = to + (place * s.in_channels + c) * s.out_channels;
      for (Index o = 0; o < s.out_channels; ++o) {
        const T* taps = weight + (o * s.in_channels + c) * 9;
        T sum = 0;
        for (Index p = 0; p < 3; ++p)
          for (Index q = 0; q < 3; ++q)
            if (ConvTiles::has_tap(a, p) && ConvTiles::has_tap(b, q)) sum += taps[3 * p + q];
        row[o] = sum;
      }
    }
  });
}
/// dweight (out, in, 3, 3) += what follows from the derivative by the components' weights.
template <class T>
void add_tile_weights(const Conv2dShape& s, const T* from, T* dweight) {
  ConvTiles::each_component([&](Index place, Index a, Index b) {
    for (Index c = 0; c < s.in_channels; ++c) {
      const T* row = from + (place * s.in_channels + c) * s.out_channels;
      for (Index o = 0; o < s.out_channels; ++o)
        for (Index p = 0; p < 3; ++p)
          for (Index q = 0; q < 3; ++q)
            if (ConvTiles::has_tap(a, p) && ConvTiles::has_tap(b, q))
              dweight[(o * s.in_channels + c) * 9 + 3 * p + q] += row[o];
    }
  });
}

/// Numbers in the panels of all groups, and where those of a group begin.
template <class T>
Index tile_panels_at(const Conv2dShape& s, Index group) {
  return Panels<T>::size(ConvTiles::first(group) * s.in_channels, s.out_channels);
}
template <class T>
Index tile_panels_size(const Conv2dShape& s) {
  return Panels<T>::size(ConvTiles::all * s.in_channels, s.out_channels);
}
/// The weights of the components as panels.
template <class T>
void pack_tile_weights(int threads, const Conv2dShape& s, const T* weights, T* to) {
  for (Index group = 0; group < ConvTiles::groups; ++group)
    pack(threads, Operand<T>{weights + ConvTiles::first(group) * s.in_channels * s.out_channels, s.out_channels},
         ConvTiles::size(group) * s.in_channels, s.out_channels, to + tile_panels_at<T>(s, group));
}

/// The components of a group for tiles begin .. end - 1 of a sequence x (rows, in_cols) of so many rows:
/// (tiles, size(group) in_channels). `zeros` has in_channels.
template <class T>
void tile_components(const ConvTiles& t, Index group, Range tiles, Index rows, const T* x, const T* zeros, T* to) {
  const Index channels = t.shape.in_channels;
  for (Index tile = tiles.begin; tile < tiles.end; ++tile) {
    const Index time = 4 * (tile / t.freqs()), freq = 4 * (tile % t.freqs());
    const auto input = [&](Index r, Index s) {
      return time + r < rows && freq + s < t.shape.in_freqs ? x + (time + r) * t.shape.in_cols() + (freq + s) * channels
                                                            : zeros;
    };
    ConvTiles::each_member(group, [&](Index place, Index a, Index b) {
      T* out = to + place * channels;
      const Index r = ConvTiles::plus(a), s = ConvTiles::plus(b);
      const bool in_time = ConvTiles::less_middle(a), in_freq = ConvTiles::less_middle(b);
      if (in_time && in_freq)
        map_span(
            channels, out, [](auto x0, auto x1, auto x2, auto x3) { return (x0 - x1) - (x2 - x3); }, input(r, s),
            input(r, 2), input(2, s), input(2, 2));
      else if (in_time || in_freq)
        map_span(
            channels, out, [](auto x0, auto x1) { return x0 - x1; }, input(r, s), in_time ? input(2, s) : input(r, 2));
      else
        std::copy_n(input(r, s), channels, out);
    });
    to += ConvTiles::size(group) * channels;
  }
}

/// What each group's sum gets from dy (rows, out_cols) of a sequence: groups of (tiles, out_channels), `stride` apart.
template <class T>
void tile_output_gradients(const ConvTiles& t, Range tiles, const T* dy, const T* zeros, Index stride, T* to) {
  const Index channels = t.shape.out_channels;
  for (Index tile = tiles.begin; tile < tiles.end; ++tile) {
    const Index time = 2 * (tile / t.freqs()), freq = 2 * (tile % t.freqs());
    const auto output = [&](Index i, Index j) {
      return time + i < t.out_length && freq + j < t.shape.out_freqs()
                 ? dy + (time + i) * t.shape.out_cols() + (freq + j) * channels
                 : zeros;
    };
    for (Index group = 0; group < ConvTiles::groups; ++group) {
      T* out = to + group * stride + (tile - tiles.begin) * channels;
      const Index g = group / 3, h = group % 3, i = g / 2, j = h / 2;  // the only output of an axis, where it is one
      if (g == 1 && h == 1)
        map_span(
            channels, out, [](auto a, auto b, auto c, auto d) { return (a + b) + (c + d); }, output(0, 0), output(0, 1),
            output(1, 0), output(1, 1));
      else if (g == 1 || h == 1)
        map_span(
            channels, out, [](auto a, auto b) { return a + b; }, g == 1 ? output(0, j) : output(i, 0),
            g == 1 ? output(1, j) : output(i, 1));
      else
        std::copy_n(output(i, j), channels, out);
    }
  }
}

/// y (rows of `to`, out_cols) from x (rows of `from`, in_cols), with packed weights of the components; then an
/// activation if one is given.
template <class T>
void conv2d_tiles(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                  const T* x, const T* panels, const T* bias, std::optional<Activation> activation, T* y) {
  // Enough tiles that weights, which do not stay in the second-level cache, are seldom read again, and so few that the
  // components of a group do.
  const Index most = ConvTiles::size(0) * s.in_channels;  // of the first group, which has the most of them
  const Index block = std::clamp<Index>((Index{1} << 17) / most / 8 * 8, 8, 128), sums = block * s.out_channels;
  const Index each = block * most + ConvTiles::groups * sums + s.in_channels;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  for (Index n = 0; n < from.size(); ++n) {
    const ConvTiles t{s, to.length(n)};
    parallel_for(threads, (t.count() + block - 1) / block, [&](Index task, int thread) {
      T* components = static_cast<T*>(scratch.data()) + thread * each;
      T *sum = components + block * most, *zeros = sum + ConvTiles::groups * sums;
      const Range tiles{task * block, std::min(t.count(), (task + 1) * block)};
      std::fill_n(zeros, s.in_channels, T(0));
      for (Index group = 0; group < ConvTiles::groups; ++group) {
        const Index depth = ConvTiles::size(group) * s.in_channels;
        tile_components(t, group, tiles, from.length(n), x + from.begin(n) * s.in_cols(), zeros, components);
        gemm_panels(tiles.size(), Operand<T>{components, depth},
                    Panels<T>{panels + tile_panels_at<T>(s, group), depth, s.out_channels}, {0, depth},
                    {0, s.out_channels}, sum + group * sums, s.out_channels, false, static_cast<const T*>(nullptr));
      }
      for (Index tile = tiles.begin; tile < tiles.end; ++tile) {
        const T* of_tile = sum + (tile - tiles.begin) * s.out_channels;
        for (Index i = 0; i < 2; ++i)
          for (Index j = 0; j < 2; ++j) {
            const Index time = 2 * (tile / t.freqs()) + i, freq = 2 * (tile % t.freqs()) + j;
            if (time >= t.out_length || freq >= s.out_freqs()) continue;
            const auto part = [&](Index g, Index h) { return of_tile + (3 * g + h) * sums; };
            map_span(
                s.out_channels, y + (to.begin(n) + time) * s.out_cols() + freq * s.out_channels,
                [&](auto a, auto b, auto c, auto d, auto e) {
                  const auto total = e + ((a + b) + (c + d));
                  return activation ? activate(*activation, total) : total;
                },
                part(2 * i, 2 * j), part(2 * i, 1), part(1, 2 * j), part(1, 1), bias);
          }
      }
    });
  }
}

/// What pixel (time, freq) of dx gets from the components' gradients of tiles that see it: numbers of them, with signs.
template <class T>
class PixelGradient {
 public:
  /// The place of a tile's input along an axis: its components, the middle one taken away from two.
  struct Share {
    Index component;
    bool negative;
  };
  static std::span<const Share> shares(Index place) {
    static constexpr std::array<Share, 7> all{
        {{0, false}, {3, false}, {0, true}, {1, false}, {2, true}, {4, false}, {2, false}}};
    static constexpr std::array<Index, 6> begin{0, 1, 2, 5, 6, 7};
    const auto first = static_cast<std::size_t>(begin[static_cast<std::size_t>(place)]),
               end = static_cast<std::size_t>(begin[static_cast<std::size_t>(place) + 1]);
    return std::span(all).subspan(first, end - first);
  }

  /// What input (r, s) of a tile gets, whose components lie at of_group(group).
  template <class OfGroup>
  void add(OfGroup&& of_group, Index channels, Index r, Index s) {
    for (const Share a : shares(r))
      for (const Share b : shares(s)) {
        const Place& place = places()[static_cast<std::size_t>(5 * a.component + b.component)];
        from_[count_] = of_group(place.group) + place.member * channels;
        negative_[count_++] = a.negative != b.negative;
      }
  }
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
  struct Place {
    Index group, member;
  };
  /// Where component (a, b) lies.
  static const std::array<Place, ConvTiles::all>& places() {
    static const std::array<Place, ConvTiles::all> table = [] {
      std::array<Place, ConvTiles::all> out{};
      for (Index group = 0; group < ConvTiles::groups; ++group)
        ConvTiles::each_member(group, [&](Index member, Index a, Index b) {
          out[static_cast<std::size_t>(5 * a + b)] = {group, member};
        });
      return out;
    }();
    return table;
  }

  std::array<const T*, 16> from_{};
  std::array<bool, 16> negative_{};
  std::size_t count_ = 0;
};

/// Derivatives from dy: dweights (25 in_channels, out_channels) of the components' weights, added to, and dx, which
/// must be zero. Null ones are left out. Earlier tiles are added first, so results do not depend on threads.
template <class T>
void conv2d_tiles_backward(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                           const T* dy, const T* x, const T* weights, T* dweights, T* dx) {
  constexpr Index groups = ConvTiles::groups, piece = 16;  // tiles of a task
  // So many rows of tiles at once: with more, products read the sums of dweights less often; with fewer, components
  // stay nearer to the core.
  const Index freqs = ConvTiles{s, 0}.freqs();
  if (freqs == 0) return;
  const Index times = std::max<Index>(1, 128 / freqs);
  const Index most = std::min(times, ConvTiles{s, std::max<Index>(1, to.max_length())}.times()) * freqs,
              sums = most * s.out_channels;
  const auto depth = [&](Index group) { return ConvTiles::size(group) * s.in_channels; };
  const auto start = [&](Index group) { return ConvTiles::first(group) * s.in_channels; };
  const Buffer memory = arena.allocate(
      static_cast<std::size_t>(most * ConvTiles::all * s.in_channels + groups * sums + s.in_channels + s.out_channels) *
      sizeof(T));
  // Components group by group, so that products read them end to end.
  T *components = static_cast<T*>(memory.data()), *dsum = components + most * ConvTiles::all * s.in_channels,
    *zeros = dsum + groups * sums;
  std::fill_n(zeros, s.in_channels + s.out_channels, T(0));
  // The weights of each group, transposed.
  std::array<Panels<T>, groups> panels{};
  Buffer packed;
  if (dx != nullptr) {
    Index size = 0;
    for (Index group = 0; group < groups; ++group) size += Panels<T>::size(s.out_channels, depth(group));
    packed = arena.allocate(static_cast<std::size_t>(size) * sizeof(T));
    T* at = static_cast<T*>(packed.data());
    for (Index group = 0; group < groups; ++group) {
      const Operand<T> of_group{weights + start(group) * s.out_channels, s.out_channels};
      panels[static_cast<std::size_t>(group)] = pack(threads, of_group.transposed(), s.out_channels, depth(group), at);
      at += Panels<T>::size(s.out_channels, depth(group));
    }
  }
  for (Index n = 0; n < from.size(); ++n) {
    const ConvTiles t{s, to.length(n)};
    const T* input = x + from.begin(n) * s.in_cols();
    for (Index first = 0; first < t.times(); first += times) {
      const Range tiles{first * freqs, std::min(t.times(), first + times) * freqs};
      parallel_blocks(threads, tiles.size(), piece, [&](Index begin, Index end) {
        const Range some{tiles.begin + begin, tiles.begin + end};
        tile_output_gradients(t, some, dy + to.begin(n) * s.out_cols(), zeros, sums, dsum + begin * s.out_channels);
        for (Index group = 0; dweights != nullptr && group < groups; ++group)
          tile_components(t, group, some, from.length(n), input, zeros,
                          components + most * start(group) + begin * depth(group));
      });
      for (Index group = 0; dweights != nullptr && group < groups; ++group)
        gemm<T>(threads, arena, depth(group), s.out_channels, tiles.size(),
                Operand<T>{components + most * start(group), depth(group)}.transposed(),
                {dsum + group * sums, s.out_channels}, dweights + start(group) * s.out_channels, s.out_channels, true,
                nullptr);
      if (dx == nullptr) continue;
      for (Index group = 0; group < groups; ++group)
        gemm(threads, tiles.size(), Operand<T>{dsum + group * sums, s.out_channels},
             panels[static_cast<std::size_t>(group)], components + most * start(group), depth(group), false,
             static_cast<const T*>(nullptr));
      const Index begin = 4 * first, rows = std::min(from.length(n), 4 * (tiles.end / freqs) + 1) - begin;
      parallel_blocks(threads, rows, 4, [&](Index block_begin, Index block_end) {
        for (Index time = begin + block_begin; time < begin + block_end; ++time)
          for (Index freq = 0; freq < s.in_freqs; ++freq) {
            PixelGradient<T> pixel;
            for (const Index i : {time / 4 - 1, time / 4})
              for (const Index j : {freq / 4 - 1, freq / 4}) {
                const Index r = time - 4 * i, q = freq - 4 * j;
                if (r > 4 || q > 4 || i < first || i >= tiles.end / freqs || j < 0 || j >= freqs) continue;
                const auto of_group = [&](Index group) {
                  return components + most * start(group) + (i * freqs + j - tiles.begin) * depth(group);
                };
                pixel.add(of_group, s.in_channels, r, q);
              }
            pixel.add_to(s.in_channels, dx + (from.begin(n) + time) * s.in_cols() + freq * s.in_channels);
          }
      });
    }
  }
}

}  // namespace kernels
}  // namespace laconic
