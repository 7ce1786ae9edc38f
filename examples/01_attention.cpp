// Lesson 1: attention from scratch. Every row asks how well the keys of all rows fit its query, and takes the mean of
// their values with these weights. Look at the last line: laconic's layer computes the same from the same matrices.
#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>

#include <cmath>
#include <cstdio>

using namespace laconic;

/// Returns x W^T + b.
Matrix<float> project(const Linear<float>& linear, const Matrix<float>& x) {
  return (x * linear.weight.host().transpose()).rowwise() + linear.bias.host().row(0);
}

/// Returns softmax(q k^T / sqrt(channels)), (rows, rows): each row sums to 1.
Matrix<float> weights(const Matrix<float>& q, const Matrix<float>& k) {
  Matrix<float> out = (q * k.transpose() / std::sqrt(static_cast<float>(q.cols()))).array().exp();
  for (Index r = 0; r < out.rows(); ++r) out.row(r) /= out.row(r).sum();
  return out;
}

int main() {
  constexpr Index rows = 5, d_model = 8, heads = 2, head_dim = d_model / heads;
  const AttentionLayer<Mha<heads, NoPosition>, float> layer(AttentionConfig{.d_model = d_model}, /*dropout*/ 0,
                                                            Seed(1));
  const Matrix<float> x = Matrix<float>::Random(rows, d_model);

  const Matrix<float> q = project(layer.query.linear_q, x);
  const Matrix<float> k = project(layer.key_value.linear_k, x), v = project(layer.key_value.linear_v, x);
  Matrix<float> mean(rows, d_model);
  for (Index h = 0; h < heads; ++h) {  // each head sees channels of its own
    const auto of_head = Eigen::seqN(h * head_dim, head_dim);
    const Matrix<float> w = weights(q(Eigen::all, of_head), k(Eigen::all, of_head));
    mean(Eigen::all, of_head) = w * v(Eigen::all, of_head);
    std::printf("head %td, row 0 weighs the rows by", h);
    for (Index r = 0; r < rows; ++r) std::printf(" %.3f", w(0, r));
    std::printf(", in sum %.3f\n", w.row(0).sum());
  }
  const Matrix<float> y = project(layer.linear_out, mean);

  Cpu cpu;
  const Sequences sequences{rows};
  const Matrix<float> expected = cpu.output(layer(cpu, cpu.input(x), Pass<Tensor<float>>{sequences}));
  std::printf("largest difference from laconic's layer: %.0e\n", (y - expected).cwiseAbs().maxCoeff());
}
// prints: head 0, row 0 .*, in sum 1.000
// prints: head 1, row 0 .*, in sum 1.000
// prints: laconic's layer: ([0-9]e-0[6-9]|0e\+00)
