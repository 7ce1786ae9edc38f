// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
#include <laconic/core/compiled.hpp>
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
