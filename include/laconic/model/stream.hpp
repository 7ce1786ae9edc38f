// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/cpu.hpp>
#include <laconic/model/encoder.hpp>
#include <laconic/model/stream_config.hpp>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

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
