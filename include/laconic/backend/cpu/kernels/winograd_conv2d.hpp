// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu/kernels/elementwise.hpp>
#include <laconic/backend/cpu/kernels/gemm.hpp>
#include <laconic/backend/shapes.hpp>
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

/// Says whether a convolution is computed by tiles: few channels in do not pay for them.
constexpr bool is_tiled(const Conv2dShape& shape) { return shape.stride == 2 && shape.in_channels >= 16; }

struct ConvTiles {
  static constexpr Index components = 5, all = components * components, groups = 9;

  ConvTiles(const Conv2dShape& s, Index length)
      : shape(s), out_length(length), out_freqs(s.out_freqs()), times((length + 1) / 2), freqs((out_freqs + 1) / 2) {}

  const Conv2dShape& shape;
  Index out_length, out_freqs;
  Index times, freqs;  // rows and columns of tiles, which are numbered row by row

  Index count() const { return times * freqs; }
  /// visit(row, column) of each of these tiles.
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

  /// visit(place in the group, a, b): component a in time and b in frequency.
  template <class Visit>
  static constexpr void each_member(Index group, Visit&& visit) {
    Index place = 0;
    for (Index i = 0; i < member_count(group / 3); ++i)
      for (Index j = 0; j < member_count(group % 3); ++j)
        visit(place++, members[static_cast<std::size_t>(group / 3)][static_cast<std::size_t>(i)],
              members[static_cast<std::size_t>(group % 3)][static_cast<std::size_t>(j)]);
  }
  /// Component a is input plus(a), less input 2 where a is 0 or 2; its weight is the sum of the taps that has_tap says.
  static constexpr Index plus(Index a) { return std::array<Index, 5>{0, 2, 4, 1, 3}[static_cast<std::size_t>(a)]; }
  static constexpr bool less_middle(Index a) { return a == 0 || a == 2; }
  static constexpr bool has_tap(Index a, Index tap) {
    return a > 2 ? tap == 1 : (tap == 0 && a < 2) || (tap == 2 && a > 0);
  }
};

/// Component a in time and b in frequency, and where it stands: member `member` of a group.
struct ConvComponent {
  Index group, member, a, b;
};
/// All of them, group by group, and which of them (a, b) is: number 5 a + b.
inline constexpr auto conv_components = [] {
  std::array<ConvComponent, ConvTiles::all> out{};
  for (Index group = 0; group < ConvTiles::groups; ++group)
    ConvTiles::each_member(group, [&](Index member, Index a, Index b) {
      out[static_cast<std::size_t>(ConvTiles::first(group) + member)] = {group, member, a, b};
    });
  return out;
}();
inline constexpr auto conv_component_at = [] {
  std::array<ConvComponent, ConvTiles::all> out{};
  for (const ConvComponent& c : conv_components) out[static_cast<std::size_t>(5 * c.a + c.b)] = c;
  return out;
}();

/// visit(weight, taps, used) for every weight of the components (25 in_channels, out_channels): the taps (3, 3) of its
/// channels in (out, in, 3, 3), and the numbers 3 p + q of those that it is made of.
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
/// The weights of the components from those of the taps.
template <class T>
void tile_weights(int threads, const Conv2dShape& s, const T* taps, T* weights) {
  each_tile_weight(threads, s, weights, taps, [](T& weight, const T* of_channels, std::span<const Index> used) {
    T sum = 0;
    for (const Index tap : used) sum += of_channels[tap];
    weight = sum;
  });
}
/// dtaps (out, in, 3, 3) += what follows from the derivative by the components' weights.
template <class T>
void add_tile_weights(int threads, const Conv2dShape& s, const T* dweights, T* dtaps) {
  each_tile_weight(threads, s, dweights, dtaps, [](T dweight, T* of_channels, std::span<const Index> used) {
    for (const Index tap : used) of_channels[tap] += dweight;
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

/// Reads the taps (out, in, 3, 3) back from the panels of the components, in some of which each tap stands alone.
template <class T>
void untile_weights(const Conv2dShape& s, const T* panels, T* taps) {
  constexpr Index of_tap[3] = {0, 3, 2};  // the component that is this tap alone
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

/// Channels of one component of the tile at (row, column) of a sequence x (rows, in_cols) of so many rows. `zeros` has
/// in_channels.
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

/// Channels of what a group's sum of the tile at (row, column) gets from dy (rows, out_cols) of a sequence. `zeros` has
/// out_channels.
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

/// y (rows of `to`, out_cols) from x (rows of `from`, in_cols), with packed weights of the components; then an
/// activation if one is given. Tiles of all sequences are numbered end to end.
template <class T>
void conv2d_tiles(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from, const Sequences& to,
                  const T* x, const T* panels, const T* bias, std::optional<Activation> activation, T* y) {
  const Sequences tiles = to.map_lengths(arena, [&](Index length) { return ConvTiles(s, length).count(); });
  const Index most = ConvTiles::size(0) * s.in_channels;  // of the first group, which has the most of them
  // Enough tiles that weights, which do not stay in the second-level cache, are seldom read again, and so few that the
  // components of a group do.
  const Blocks blocks(tiles.rows(), std::clamp<Index>((Index{1} << 17) / most / 8 * 8, 8, 128), 8, threads);
  const Index sums = blocks.most() * s.out_channels;
  const Index each = blocks.most() * most + ConvTiles::groups * sums + s.in_channels;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  parallel_for(threads, blocks.count(), [&](Index task, int thread) {
    T* components = static_cast<T*>(scratch.data()) + thread * each;
    T *sum = components + blocks.most() * most, *zeros = sum + ConvTiles::groups * sums;
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
        const ConvComponent& place = conv_component_at[static_cast<std::size_t>(5 * a.component + b.component)];
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
  std::array<const T*, 16> from_{};
  std::array<bool, 16> negative_{};
  std::size_t count_ = 0;
};

/// dweights (25 in_channels, out_channels), of the components' weights, += what follows from dy. A thread makes a
/// component and what meets it, and multiplies them, so that both are still in its cache. Earlier tiles are added
/// first, so results do not depend on threads.
template <class T>
void conv2d_tiles_backward_weights(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from,
                                   const Sequences& to, const T* dy, const T* x, T* dweights) {
  const Sequences tiles = to.map_lengths(arena, [&](Index length) { return ConvTiles(s, length).count(); });
  // Blocks of tiles whose component and gradients a second-level cache holds.
  const Blocks blocks(tiles.rows(), std::clamp<Index>(98304 / (s.in_channels + s.out_channels) / 8 * 8, 64, 512), 8, 1);
  // Components are cut by channels, too, where they are few for the threads.
  const Index parts = std::clamp<Index>((4 * threads + ConvTiles::all - 1) / ConvTiles::all, 1, s.in_channels),
              most = (s.in_channels + parts - 1) / parts;
  const Index each =
      blocks.most() * most + Panels<T>::size(blocks.most(), s.out_channels) + s.in_channels + s.out_channels;
  const Buffer scratch = arena.allocate(static_cast<std::size_t>(threads * each) * sizeof(T));
  for (Index block = 0; block < blocks.count(); ++block)
    parallel_for(threads, ConvTiles::all * parts, [&](Index task, int thread) {
      const Index place = task / parts, part = task % parts, count = blocks[block].size();
      const ConvComponent& of = conv_components[static_cast<std::size_t>(place)];
      const Range channels = equal_part(s.in_channels, 1, part, parts);
      T* components = static_cast<T*>(scratch.data()) + thread * each;
      T* const gradients = components + blocks.most() * most;
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

/// dx, which must be zero, from dy. Earlier tiles are added first, so results do not depend on threads.
template <class T>
void conv2d_tiles_backward_input(int threads, Arena& arena, const Conv2dShape& s, const Sequences& from,
                                 const Sequences& to, const T* dy, const T* weights, T* dx) {
  constexpr Index groups = ConvTiles::groups;
  const Index freqs = ConvTiles(s, 0).freqs;
  if (freqs == 0) return;
  // Rows of tiles, of all sequences end to end: for each thread so many at once as make it worth to read the weights,
  // and no more, for their gradients should stay near.
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
  const Index most = blocks.most() * freqs, sums = piece * freqs * s.out_channels;
  const Buffer memory = arena.allocate(
      static_cast<std::size_t>(most * ConvTiles::all * s.in_channels + threads * sums + s.out_channels) * sizeof(T));
  T *gradients = static_cast<T*>(memory.data()), *scratch = gradients + most * ConvTiles::all * s.in_channels,
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
                    gradients + most * start(group) + (rows.begin - block.begin) * freqs * depth(group), depth(group),
                    false, static_cast<const T*>(nullptr));
      }
    });
    parallel_for(threads, block.size(), [&](Index task, int) {
      const Index n = times.sequence_of(block.begin + task), own = block.begin + task - times.begin(n);
      // Of this sequence's rows of tiles, those that are in the block.
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
                return gradients + most * start(group) + (before + i * freqs + j) * depth(group);
              };
              pixel.add(of_group, s.in_channels, r, q);
            }
          pixel.add_to(s.in_channels, dx + (from.begin(n) + time) * s.in_cols() + freq * s.in_channels);
        }
    });
  }
}

}  // namespace kernels
}  // namespace LACONIC_ABI
}  // namespace laconic
