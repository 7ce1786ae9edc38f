// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <laconic/backend/shapes.hpp>
#include <laconic/core/arena.hpp>
#include <laconic/core/matrix.hpp>
#include <laconic/core/parameter.hpp>
#include <laconic/core/sequences.hpp>

#include <concepts>
#include <span>

// The contract between models and backends, closed: models, streams, training, conversion and evaluation ask a backend
// for what stands here and for nothing else. docs/backend.md shows how to add a primitive or a backend.
//
// Conventions of all primitives:
// - A tensor is a matrix (rows, channels) of packed rows; `Sequences` says which rows belong to which sequence.
// - An argument taken by value may be overwritten where nobody else holds it (`unique`).
// - Sizes that do not fit throw `Error`: what was given, what was expected.
// - Memory comes from the context's own pool, so that a repeated call allocates nothing from the system.
// - A result depends on each sequence only, neither on the rest of the batch nor on the number of threads.

namespace laconic {
inline namespace LACONIC_ABI {

namespace detail {

/// A model of one parameter, to ask whether a context prepares models.
template <class T>
struct OneParameter : Module<OneParameter<T>> {
  Parameter<T> weight{};
  static void each_parameter(auto& self, auto&& visit) { visit("weight", self.weight); }
};

}  // namespace detail

/// A context runs models over whole sequences.
template <class C>
concept Context = std::default_initializable<typename C::Tensor> && std::copyable<typename C::Tensor> &&
    requires(C& c, const typename C::Tensor& x, typename C::Tensor& out, const Matrix<typename C::Scalar>& matrix,
             detail::OneParameter<typename C::Scalar>& model, const Parameter<typename C::Scalar>& weight,
             const Parameter<typename C::Scalar>* bias, const Sequences& sequences, const AttendShape& attend,
             const Conv2dShape& conv2d, const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative, const HeadShape& heads,
             const DepthwiseShape& depthwise, RotaryPairs pairs, const BatchNormParameters<typename C::Scalar>& norm,
             double number, Index count, Storage storage, std::span<Index> columns) {
  // -- tensors ------------------------------------------------------------------------------------------------------
  // The dimensions, and whether there is a value at all.
  { x.rows() } -> std::convertible_to<Index>;
  { x.cols() } -> std::convertible_to<Index>;
  { x.empty() } -> std::same_as<bool>;
  // Whether primitives compute their training form: dropout drops, batch norm uses and gathers the batch's statistics.
  { c.training } -> std::convertible_to<bool>;
  // Whether parameters on the host can be computed with as they are. Otherwise models are prepared first.
  { C::computes_on_host } -> std::convertible_to<bool>;
  // Threads of the host that the context uses.
  { c.threads() } -> std::convertible_to<int>;
  // Memory of the host for the offsets of sequences.
  { c.arena() } -> std::same_as<Arena&>;
  // input: brings rows of the host in. A borrowed matrix must live as long as what is computed from it; a temporary one
  // is copied. A tensor is itself.
  { c.input(matrix) } -> std::same_as<typename C::Tensor>;
  { c.input(Matrix<typename C::Scalar>()) } -> std::same_as<typename C::Tensor>;
  { c.input(x) } -> std::same_as<typename C::Tensor>;
  // output: returns the values as a matrix of the host. Allocates. Waits until they are computed.
  { c.output(x) } -> std::same_as<Matrix<typename C::Scalar>>;
  // number: returns the value of a (1, 1) tensor.
  { c.number(x) } -> std::same_as<double>;
  // argmax: writes for each row the first column of its largest value, or -1 - column of its first NaN.
  {c.argmax(x, columns)};
  // fill: a tensor (rows, cols) of one value, without a derivative.
  { c.fill(count, count, number) } -> std::same_as<typename C::Tensor>;
  // constant: a tensor filled by fill(row, col), without a derivative.
  {
    c.constant(count, count, [](Index, Index) { return 0.0; })
    } -> std::same_as<typename C::Tensor>;

  // -- parameters ---------------------------------------------------------------------------------------------------
  // prepare: moves the parameters of a model into the form that this context runs fastest, rounded as `storage` says
  // where products read them. Until `fetch` the model can only be run, by this kind of context; copies share the
  // weights. Allocates. Throws where some are resident already, or are to be rounded and not of float.
  {c.prepare(model)};
  {c.prepare(model, storage)};
  // fetch: brings the parameters of a model back to the host, where they were not there; rounded values stay rounded.
  {c.fetch(model)};

  // -- products -----------------------------------------------------------------------------------------------------
  // linear: x W^T + b, then an activation if one is given. x (rows, in), weight (out, in), bias (out) or null, to
  // (rows, out).
  { c.linear(x, weight, bias, Activation::silu) } -> std::same_as<typename C::Tensor>;
  // head_linear: every head times a matrix of its own, y_h = x_h W_h^T + b_h (see HeadShape). x (rows, num_heads * in),
  // weight (num_blocks * out, in), bias (num_blocks * out) or null, to (rows, num_heads * out). Transposed:
  // y_h = x_h W_h, from (rows, num_heads * out) to (rows, num_heads * in).
  { c.head_linear(x, weight, bias, heads) } -> std::same_as<typename C::Tensor>;

  // -- value by value -----------------------------------------------------------------------------------------------
  // activation: applies ReLU, SiLU or exact GELU to each value.
  { c.activation(Activation::silu, x) } -> std::same_as<typename C::Tensor>;
  // glu: (rows, 2 channels) to (rows, channels), the first half times the sigmoid of the second (Dauphin et al. 2017).
  { c.glu(x) } -> std::same_as<typename C::Tensor>;
  // add: x + number * y, equal shapes.
  { c.add(x, x, number) } -> std::same_as<typename C::Tensor>;
  // add_row: x plus a parameter (channels) on every row.
  { c.add_row(x, weight) } -> std::same_as<typename C::Tensor>;
  // multiply: x times y value by value, equal shapes.
  { c.multiply(x, x) } -> std::same_as<typename C::Tensor>;
  // scale: number * x.
  { c.scale(x, number) } -> std::same_as<typename C::Tensor>;
  // mix: sigmoid(gate) x + (1 - sigmoid(gate)) y with one gate (sequences, 1) for the rows of each sequence.
  { c.mix(x, x, x, sequences) } -> std::same_as<typename C::Tensor>;
  // dropout: in training, zeroes values with this probability and scales the others up; otherwise x itself.
  { c.dropout(x, number) } -> std::same_as<typename C::Tensor>;
  // concat: [a_h, b_h] head by head: `a` has as many heads as the first count says, b as many or one for all.
  { c.concat(x, x, count, count) } -> std::same_as<typename C::Tensor>;
  // columns: the columns first .. first + count - 1.
  { c.columns(x, count, count) } -> std::same_as<typename C::Tensor>;

  // -- norms --------------------------------------------------------------------------------------------------------
  // layer_norm: each row to mean 0 and variance 1, times weight, plus bias (Ba et al. 2016).
  { c.layer_norm(x, weight, weight, number) } -> std::same_as<typename C::Tensor>;
  // rms_norm: each row over the root of its mean square, times weight (Zhang and Sennrich 2019).
  { c.rms_norm(x, weight, number) } -> std::same_as<typename C::Tensor>;
  // batch_norm: each channel by the running statistics, times weight, plus bias (Ioffe and Szegedy 2015).
  { c.batch_norm(x, norm) } -> std::same_as<typename C::Tensor>;
  // sequence_norm: each channel of each sequence to mean 0 and variance 1 over its rows, times weight, plus bias.
  { c.sequence_norm(x, weight, weight, number, sequences) } -> std::same_as<typename C::Tensor>;

  // -- convolutions -------------------------------------------------------------------------------------------------
  // conv1d: a convolution over time without padding (see Conv1dShape): x (rows of the first sequences, in_channels),
  // weight (out, in, kernel), bias (out) or null, to (rows of the second sequences, out_channels).
  { c.conv1d(x, weight, bias, conv1d, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  // conv2d: a 3 x 3 convolution over (time, frequency) without padding (see Conv2dShape), then an activation if one is
  // given: x (rows of the first sequences, in_cols()) to (rows of the second, out_cols()).
  { c.conv2d(x, weight, weight, conv2d, sequences, sequences, Activation::relu) } -> std::same_as<typename C::Tensor>;
  // depthwise_conv: each channel with a kernel of its own over time, zeros outside its sequence (see DepthwiseShape).
  // weight (channels, 1, kernel), bias (channels) or null. Returns `past` rows less for each sequence.
  { c.depthwise_conv(x, weight, bias, sequences, depthwise) } -> std::same_as<typename C::Tensor>;

  // -- attention ----------------------------------------------------------------------------------------------------
  // attend: softmax attention (Vaswani et al. 2017) under a mask, with relative positions where there is a term (Dai et
  // al. 2019; see AttendShape and RelativeTerm). q (rows, num_heads * K), k (rows, num_kv_heads * K), v (rows,
  // num_kv_heads * V) to (rows, num_heads * V). The first sequences are those of queries, the second those of keys, of
  // which there may be more: the last query stands at the last key. A query that sees no key gives zeros. Memory grows
  // with the rows, not with their square. `number` is the dropout of probabilities, in training.
  { c.attend(x, x, x, attend, sequences, sequences, relative, number) } -> std::same_as<typename C::Tensor>;
  // linear_attend: linear attention with the feature map elu + 1 (Katharopoulos et al. 2020, equation 5), shapes as in
  // `attend`; the shape's scale is not used, and its mask must not limit the left context.
  { c.linear_attend(x, x, x, attend, sequences) } -> std::same_as<typename C::Tensor>;
  // rotate: rotary positions (Su et al. 2021): the pairs of channels of each head by the angles of the row. x (rows,
  // heads * width), table (rows, width): width / 2 cosines, then as many sines.
  { c.rotate(x, x, pairs) } -> std::same_as<typename C::Tensor>;

  // -- losses -------------------------------------------------------------------------------------------------------
  // log_softmax: the logarithm of the softmax of each row.
  { c.log_softmax(x) } -> std::same_as<typename C::Tensor>;
  // ctc: the CTC loss (sequences, 1) of unnormalised logits (rows, classes) with this blank; +infinity where labels do
  // not fit their frames (Graves et al. 2006).
  { c.ctc(x, sequences, labels, 0) } -> std::same_as<typename C::Tensor>;
  // mean_finite: the mean of all values (1, 1), infinite ones counted as 0, so that one impossible target spoils no
  // batch. NaN stays NaN.
  { c.mean_finite(x) } -> std::same_as<typename C::Tensor>;
};

/// A streaming context also keeps rows of earlier calls: for streams of encoders, and for decoders.
template <class C>
concept StreamingContext = Context<C> && std::movable<typename C::Cache> && std::movable<typename C::CachedRows> &&
    requires(C& c, typename C::Tensor& out, const typename C::Tensor& x, typename C::Cache& cache,
             const typename C::Cache& kept, const typename C::CachedRows& rows,
             const Parameter<typename C::Scalar>& weight, std::span<const Index> slots, const Sequences& sequences,
             const AttendShape& attend, const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative,
             Index count, Storage storage) {
  // make: a tensor (rows, cols) of unspecified values, to copy rows into.
  { c.make(count, count) } -> std::same_as<typename C::Tensor>;
  // copy_rows: copies `count` rows from row `first` of x on to row `at` of another tensor on, or of the same one, where
  // rows that overlap may only move up.
  {c.copy_rows(x, count, count, out, count)};

  // -- caches -------------------------------------------------------------------------------------------------------
  // make_cache: room for the last `capacity` rows of `width` values in each of `slots` slots, stored as `storage` says.
  // Allocates, and is the only primitive of caches that does.
  { c.make_cache(count, count, count, storage) } -> std::same_as<typename C::Cache>;
  // The number of slots, the values of a row, the bytes held for all slots, the rows that a slot holds.
  { kept.slots() } -> std::convertible_to<Index>;
  { kept.width() } -> std::convertible_to<Index>;
  { kept.bytes() } -> std::convertible_to<Index>;
  { kept.count(count) } -> std::convertible_to<Index>;
  // clear empties a slot; fill_zeros fills it with rows of zeros; fork makes the second slot hold what the first holds.
  {c.clear(cache, count)};
  {c.fill_zeros(cache, count)};
  {c.fork(cache, count, count)};
  // append: the rows of sequence n go into slots[n]; the oldest rows beyond the capacity leave it.
  {c.append(cache, slots, x, sequences)};
  // with_cached: names what the cache holds in slots[n] for each sequence n, followed by the rows of x. Copies nothing.
  { c.with_cached(kept, slots, x, sequences) } -> std::same_as<typename C::CachedRows>;
  // cached_lengths: where those rows lie, cached ones included.
  { c.cached_lengths(rows, sequences) } -> std::same_as<Sequences>;
  // gathered: those rows as one tensor; the second sequences are their cached_lengths.
  { c.gathered(rows, sequences, sequences) } -> std::same_as<typename C::Tensor>;
  // extend: those rows and their sequences, for which the cache then takes in the rows of x.
  { c.extend(cache, slots, x, sequences).rows } -> std::convertible_to<typename C::Tensor>;
  { c.extend(cache, slots, x, sequences).sequences } -> std::convertible_to<Sequences>;
  // update: calls change(rows) with the one row (slots, width) that each slot holds, and stores what it became.
  {c.update(cache, slots, [](typename C::Tensor&) {})};

  // -- attention over what is cached --------------------------------------------------------------------------------
  // attend: as in Context, with keys and values that are read where they lie; the second sequences count cached rows.
  { c.attend(x, rows, rows, attend, sequences, sequences, relative) } -> std::same_as<typename C::Tensor>;
  // linear_attend: as in Context, with the sums over earlier rows in `out`, (sequences, num_kv_heads * K * (V + 1)),
  // and afterwards the sums with these rows.
  { c.linear_attend(x, x, x, attend, sequences, &out) } -> std::same_as<typename C::Tensor>;
  // prepare_table: a projected table of relative positions in the form that `attend` reads fastest
  // (RelativeTerm::packed), for `count` heads.
  { c.prepare_table(x, count) } -> std::same_as<typename C::Tensor>;
  // keeps: whether what follows from a weight is kept from call to call: where the weight cannot change.
  { c.keeps(weight) } -> std::convertible_to<bool>;
  // kept_for: make(n) with n at least `count`, a tensor that follows from the weight and n, and serves smaller n too.
  // It is kept as long as context and weight live.
  {
    c.kept_for(weight, count, [](Index) { return typename C::Tensor(); })
    } -> std::same_as<typename C::Tensor>;
};

/// The derivatives that `attend_backward` returns: by queries, keys, values, the table of positions, and the queries
/// that met it.
template <class D, class Tensor>
concept AttendDerivativeOf = requires(D d) {
  { d.dq } -> std::convertible_to<Tensor>;
  { d.dk } -> std::convertible_to<Tensor>;
  { d.dv } -> std::convertible_to<Tensor>;
  { d.dtable } -> std::convertible_to<Tensor>;
  { d.dposition_q } -> std::convertible_to<Tensor>;
};

/// A training context has the derivative of every primitive, the training form of those that compute something else or
/// keep something for the derivative, and what an optimiser does to parameters. `Autodiff` records on it.
///
/// Each `*_backward` takes the derivative by the result first, then what the primitive took, and returns the derivative
/// by x (nothing, where the last argument says that it is not wanted). It adds the derivative by trainable parameters
/// to their gradients.
template <class C>
concept TrainingContext = Context<C> &&
    requires(C& c, typename C::Tensor& out, const typename C::Tensor& x,
             detail::OneParameter<typename C::Scalar>& model, const Parameter<typename C::Scalar>& weight,
             Parameter<typename C::Scalar>& target, const Parameter<typename C::Scalar>* bias,
             const Sequences& sequences, const AttendShape& attend, const Conv2dShape& conv2d,
             const Conv1dShape& conv1d, const Labels& labels,
             const RelativeTerm<typename C::Tensor, typename C::Scalar>& relative,
             const BatchNormParameters<typename C::Scalar>& norm, const DropoutMask& mask, double number, Index count,
             const HeadShape& heads, const DepthwiseShape& depthwise, RotaryPairs pairs,
             std::span<const Parameter<typename C::Scalar>* const> parameters,
             std::span<const AdamWUpdate<typename C::Tensor, typename C::Scalar>> updates, const AdamWStep& step) {
  // -- parameters ---------------------------------------------------------------------------------------------------
  // prepare_training: moves the parameters of a model, with their gradients, into the form that this context trains.
  // A context that computes on the host trains those on the host as well. Allocates.
  {c.prepare_training(model)};
  // gradient_norm: the root of the sum of squares of all gradients of these parameters; those without one add nothing.
  { c.gradient_norm(parameters) } -> std::same_as<double>;
  // clear_gradients: zeroes the gradients of these parameters.
  {c.clear_gradients(parameters)};
  // adamw: one step (Loshchilov and Hutter 2019, algorithm 2) of the trainable ones among these parameters that have a
  // gradient, which is zero afterwards. Statistics get their gathered update added instead. Moments are made at a
  // parameter's first step.
  {c.adamw(updates, step)};
  // copy_values: gives the second parameter the values of the first, which has the same shape.
  {c.copy_values(weight, target)};

  // -- derivatives --------------------------------------------------------------------------------------------------
  { c.linear_backward(x, x, weight, bias, true) } -> std::same_as<typename C::Tensor>;
  { c.head_linear_backward(x, x, weight, bias, heads, true) } -> std::same_as<typename C::Tensor>;
  { c.activation_backward(Activation::silu, x, x) } -> std::same_as<typename C::Tensor>;
  { c.glu_backward(x, x) } -> std::same_as<typename C::Tensor>;
  {c.add_row_backward(x, weight)};
  { c.mix_backward(x, x, x, x, sequences).dgate } -> std::convertible_to<typename C::Tensor>;
  { c.concat_backward(x, count, count, count, count).da } -> std::convertible_to<typename C::Tensor>;
  { c.columns_backward(x, count, count) } -> std::same_as<typename C::Tensor>;
  // Dropout by a mask that the derivative draws again; it is its own derivative.
  { c.dropout_train(x, mask) } -> std::same_as<typename C::Tensor>;
  // Norms give in `out` what their derivative needs: mean and 1/std of each row; 1/rms of each row; mean and variance
  // of each channel (2, channels); mean and variance of each channel of each sequence (2 * sequences, channels).
  { c.layer_norm(x, weight, weight, number, &out) } -> std::same_as<typename C::Tensor>;
  { c.layer_norm_backward(x, x, weight, weight, x, true) } -> std::same_as<typename C::Tensor>;
  { c.rms_norm(x, weight, number, &out) } -> std::same_as<typename C::Tensor>;
  { c.rms_norm_backward(x, x, weight, x, true) } -> std::same_as<typename C::Tensor>;
  // batch_norm_train: by the statistics of the rows themselves. Where the last argument says so, the update of the
  // running statistics is added to their gradients (variance unbiased, as in PyTorch). Its derivative takes empty
  // moments where the running statistics were used.
  { c.batch_norm_train(x, norm, out, true) } -> std::same_as<typename C::Tensor>;
  { c.batch_norm_backward(x, x, norm, x, true) } -> std::same_as<typename C::Tensor>;
  { c.sequence_norm(x, weight, weight, number, sequences, &out) } -> std::same_as<typename C::Tensor>;
  { c.sequence_norm_backward(x, x, weight, weight, number, sequences, x, true) } -> std::same_as<typename C::Tensor>;
  { c.conv1d_backward(x, x, weight, bias, conv1d, sequences, sequences, true) } -> std::same_as<typename C::Tensor>;
  { c.conv2d_backward(x, x, weight, weight, conv2d, sequences, sequences, true) } -> std::same_as<typename C::Tensor>;
  { c.depthwise_conv_backward(x, x, weight, bias, sequences, depthwise, true) } -> std::same_as<typename C::Tensor>;
  // attend_train: with dropout of the probabilities; gives in `out` the logsumexp of each row and head (rows,
  // num_heads), which the derivative takes last.
  { c.attend_train(x, x, x, attend, sequences, sequences, relative, mask, out) } -> std::same_as<typename C::Tensor>;
  {
    c.attend_backward(x, x, x, x, attend, sequences, sequences, relative, mask, x)
    } -> AttendDerivativeOf<typename C::Tensor>;
  { c.linear_attend_backward(x, x, x, x, attend, sequences).dq } -> std::convertible_to<typename C::Tensor>;
  // A rotation back by `number` = -1 is the derivative of a rotation.
  { c.rotate(x, x, pairs, number) } -> std::same_as<typename C::Tensor>;
  // softmax: of each row, without a derivative; dot: the sum of products value by value, in double; squared_norm: the
  // sum of squares. Distillation compares a student with them.
  { c.softmax(x) } -> std::same_as<typename C::Tensor>;
  { c.dot(x, x) } -> std::same_as<double>;
  { c.squared_norm(x) } -> std::same_as<double>;
  { c.log_softmax_backward(x, x) } -> std::same_as<typename C::Tensor>;
  // ctc gives in `out` the derivative by the logits, zero for impossible targets; its derivative scales it.
  { c.ctc(x, sequences, labels, 0, &out) } -> std::same_as<typename C::Tensor>;
  { c.ctc_backward(x, sequences, x) } -> std::same_as<typename C::Tensor>;
  { c.mean_finite_backward(x, x) } -> std::same_as<typename C::Tensor>;
};

}  // namespace LACONIC_ABI
}  // namespace laconic
