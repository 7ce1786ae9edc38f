// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/arena.hpp>
#include <laconic/core/index_list.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/sequences.hpp>

#include <concepts>
#include <span>
#include <utility>

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
