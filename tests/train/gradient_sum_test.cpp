// laconic: attention for speech models. SPDX-License-Identifier: MIT
// Gradients of an update's batches, summed over processes.
#include <laconic/backend/autodiff.hpp>
#include <laconic/nn/linear.hpp>
#include <laconic/nn/norm.hpp>
#include <laconic/train/adamw.hpp>
#include <laconic/train/gradient_sum.hpp>

#include "backends.hpp"
#include "catch.hpp"
#include "thread_processes.hpp"

#include <map>
#include <set>

using namespace laconic;

namespace {

/// Returns the sum that the model of a process has, after it computed the gradients of its share of the batches.
template <class Backend>
std::vector<float> summed(AnyCommunicator communicator, Index batches, bool frozen_bias = false) {
  Backend backend(1);
  Linear<float> layer(5, 3, Seed(1));
  layer.bias.trainable = !frozen_bias;
  std::vector<float> out;
  {
    const TrainedOn on(backend, layer);
    GradientSum<Backend> gradients(backend, communicator, layer);
    const Share share = share_of(batches, communicator.rank(), communicator.size());
    for (int update = 0; update < 2; ++update) {  // the second must not see the first
      for (Index b = share.begin; b < share.end; ++b) {
        Matrix<float> x(4, 5), dy(4, 3);
        const Random random(Seed(2), static_cast<std::uint64_t>(b + update));
        for (Index i = 0; i < x.size(); ++i)
          x.data()[i] = static_cast<float>(random.uniform(static_cast<std::uint64_t>(i)));
        for (Index i = 0; i < dy.size(); ++i)
          dy.data()[i] = static_cast<float>(random.uniform(static_cast<std::uint64_t>(100 + i)) - 0.5);
        backend.linear_backward(backend.input(dy), backend.input(x), layer.weight, &layer.bias, false);
        gradients.add(batches - 1 - b);
      }
      gradients.finish();
      std::vector<const Parameter<float>*> all{&layer.weight, &layer.bias};
      out.resize(static_cast<std::size_t>(layer.weight.size() + layer.bias.size()));
      backend.take_gradients(all, std::span(out));
    }
  }
  return out;
}

/// Three layers of 2.6 MB each: as many parts of the sum over processes.
struct Layers : Module<Layers> {
  std::vector<Linear<float>> layers{{800, 800, Seed(1)}, {800, 800, Seed(2)}, {800, 800, Seed(3)}};
  BatchNorm<float> norm{800};

  static void each_parameter(auto& self, auto&& visit) {
    visit("norm", self.norm);
    visit("layers", self.layers);
  }
  template <class Tape>
  auto loss(Tape& tape, Index batch) const {
    Matrix<float> rows(3, 800);
    const Random random(Seed(5), static_cast<std::uint64_t>(batch));
    for (Index i = 0; i < rows.size(); ++i)
      rows.data()[i] = static_cast<float>(random.uniform(static_cast<std::uint64_t>(i)));
    auto x = norm(tape, tape.input(std::move(rows)));
    for (const Linear<float>& layer : layers) x = tape.activation(Activation::silu, layer(tape, x));
    return tape.mean_finite(tape.multiply(x, x));
  }
};

/// A process that notes when sums over processes begin.
struct NotingProcess : ThreadProcess {
  explicit NotingProcess(const ThreadProcess& process) : ThreadProcess(process) {}
  template <class T>
  void begin_sum(std::span<T> values) {
    sizes.push_back(values.size());
    ThreadProcess::begin_sum(values);
  }
  std::vector<std::size_t> sizes;
};

}  // namespace

TEMPLATE_LIST_TEST_CASE("Sums over processes begin during the backward pass of the last batch", "[gradient_sum]",
                        Backends<float>) {
  constexpr Index batches = 5;
  const auto gradients_of = [&](AnyCommunicator communicator, bool early, std::vector<std::size_t>* sizes) {
    static const Layers initial;  // its random numbers take longest
    TestType backend(1);
    Layers model = initial;
    std::vector<std::vector<float>> out;
    const TrainedOn on(backend, model);
    std::vector<const Parameter<float>*> all;
    Index values = 0;
    model.parameters([&](std::string_view, const Parameter<float>& p) {
      all.push_back(&p);
      values += p.size();
    });
    GradientSum<TestType> gradients(backend, communicator, model);
    const Share share = share_of(batches, communicator.rank(), communicator.size());
    for (int update = 0; update < 2; ++update) {
      std::size_t named = 0, named_at_first = 0;  // parameters, also when the first sum had begun
      if (sizes != nullptr) sizes->clear();
      for (Index b = share.begin; b < share.end; ++b) {
        Autodiff<TestType> tape(backend);
        const auto loss = model.loss(tape, b + update);
        if (early && b + 1 == share.end) {
          gradients.begin_last(batches - 1 - b);
          tape.backward(loss, 1, [&](auto parameters) {
            gradients.computed(parameters);
            named += parameters.size();
            if (sizes != nullptr && sizes->size() == 1) named_at_first = named;
          });
        } else {
          tape.backward(loss);
          gradients.add(batches - 1 - b);
        }
      }
      gradients.finish();
      if (sizes != nullptr) {
        require(named_at_first == (named == 0 ? 0u : 2u), named_at_first, " parameters before the first sum");
        require(sizes->size() == 4 && sizes->front() == 640800, sizes->size(), " parts");
      }
      backend.take_gradients(all, std::span(out.emplace_back(static_cast<std::size_t>(values))));
    }
    return out;
  };
  const auto alone = gradients_of({}, false, nullptr);
  CHECK(*std::ranges::max_element(alone[0]) > 1e-3f);
  CHECK((gradients_of({}, true, nullptr) == alone));
  for (const int size : {2, 4, 8}) {  // of 8 processes, three have no batch
    std::vector<std::vector<std::vector<float>>> got(static_cast<std::size_t>(size)), whole = got;
    const auto errors = in_processes(size, [&](ThreadProcess& process) {
      NotingProcess noting(process);
      const auto rank = static_cast<std::size_t>(process.rank());
      got[rank] = gradients_of(AnyCommunicator(noting), true, &noting.sizes);
      whole[rank] = gradients_of(AnyCommunicator(noting), false, &noting.sizes);
    });
    for (std::size_t rank = 0; rank < got.size(); ++rank) {
      REQUIRE(errors[rank] == "");
      CHECK((got[rank] == got[0] && got[rank] == whole[rank]));
    }
    if (size == 8) CHECK((got[0] == alone));
    for (std::size_t i = 0; i < alone[1].size(); ++i)
      if (std::abs(got[0][1][i] - alone[1][i]) > 1e-6f) FAIL(i);
  }
}

TEMPLATE_LIST_TEST_CASE("Any number of processes gets the gradients of one", "[gradient_sum]", Backends<float>) {
  for (const Index batches : {1, 4, 8, 11}) {
    const auto alone = summed<TestType>({}, batches);
    REQUIRE(*std::ranges::max_element(alone) > 0.1f);
    for (const int size : {2, 3, 4, 8}) {
      std::vector<std::vector<float>> got(static_cast<std::size_t>(size));
      const auto errors = in_processes(size, [&](ThreadProcess& process) {
        got[static_cast<std::size_t>(process.rank())] = summed<TestType>(AnyCommunicator(process), batches);
      });
      const Index each = (batches + size - 1) / size;
      for (int rank = 0; rank < size; ++rank) {
        const auto& one = got[static_cast<std::size_t>(rank)];
        CHECK(errors[static_cast<std::size_t>(rank)].empty());
        REQUIRE(one.size() == alone.size());
        CHECK(one == got[0]);
        if ((each & (each - 1)) == 0) CHECK(one == alone);
        for (std::size_t i = 0; i < one.size(); ++i) CHECK(one[i] == Approx(alone[i]).margin(1e-6));
      }
    }
  }
}

TEMPLATE_LIST_TEST_CASE("A frozen parameter has no part in the sum", "[gradient_sum]", Backends<float>) {
  const auto all = summed<TestType>({}, 4), without_bias = summed<TestType>({}, 4, true);
  for (std::size_t i = 0; i < all.size(); ++i) CHECK(without_bias[i] == (i < 15 ? all[i] : 0.0f));
}

TEMPLATE_LIST_TEST_CASE("Statistics of many batches are those of as many updates", "[gradient_sum]", Backends<double>) {
  constexpr Index batches = 30;
  const auto gathered = [&](AnyCommunicator communicator, bool at_once) {
    TestType backend(1);
    BatchNorm<double> norm(3);
    {
      const TrainedOn on(backend, norm);
      AdamW optimizer(backend);
      GradientSum<TestType> gradients(backend, communicator, norm);
      const Share share = share_of(batches, communicator.rank(), communicator.size());
      for (Index b = share.begin; b < share.end; ++b) {
        Matrix<double> x(6, 3);
        const Random random(Seed(4), static_cast<std::uint64_t>(b));
        for (Index i = 0; i < x.size(); ++i)
          x.data()[i] = static_cast<double>(b) + 0.1 * random.uniform(static_cast<std::uint64_t>(i));
        Autodiff<TestType> tape(backend);
        norm(tape, tape.input(x));
        if (at_once)
          gradients.add(batches - 1 - b);
        else
          optimizer.step(norm, 0);
      }
      if (at_once) {
        gradients.finish();
        optimizer.step(norm, 0);
      }
    }
    return norm;
  };
  const BatchNorm<double> often = gathered({}, false), once = gathered({}, true);
  CHECK(often.running_mean.host()(0, 0) > 10);  // it has moved
  const auto check = [&](const BatchNorm<double>& got) {
    CHECK((got.running_mean.host() - often.running_mean.host()).cwiseAbs().maxCoeff() < 1e-12);
    CHECK((got.running_var.host() - often.running_var.host()).cwiseAbs().maxCoeff() < 1e-12);
    CHECK(got.running_var.host().minCoeff() > 0);
  };
  check(once);
  for (const int size : {2, 4}) {
    const auto errors = in_processes(size, [&](ThreadProcess& process) {
      const BatchNorm<double> together = gathered(AnyCommunicator(process), true);
      if (process.rank() == 0) check(together);
    });
    for (const std::string& one : errors) CHECK(one.empty());
  }
}

TEMPLATE_LIST_TEST_CASE("Gradients are taken and put in lists of their size only", "[gradient_sum]", Backends<float>) {
  TestType backend(1);
  Linear<float> layer(5, 3, Seed(1));
  const TrainedOn on(backend, layer);
  std::vector<const Parameter<float>*> all{&layer.weight, &layer.bias};
  std::vector<float> values(17, 1);
  CHECK_THROWS_WITH(backend.take_gradients(all, std::span(values)), "gradients: 17 values given, 18 expected");
  CHECK_THROWS_WITH(backend.put_gradients(all, std::span<const float>(values)),
                    "gradients: 17 values given, 18 expected");
  // Where nothing was computed there is no gradient, so that no optimiser changes the parameter.
  values.assign(18, 0);
  backend.put_gradients(all, std::span<const float>(values));
  AdamW optimizer(backend, {.weight_decay = 1});
  const Linear<float> before = layer;
  optimizer.step(layer, 0.5);
  backend.fetch(layer);
  Linear<float> copy = before;
  backend.fetch(copy);
  CHECK(layer.weight.host() == copy.weight.host());
}

TEST_CASE("Work is dealt so that processes end together", "[gradient_sum]") {
  for (const std::size_t count : {1u, 2u, 3u, 5u, 8u, 13u, 32u}) {
    std::vector<double> work;
    for (std::size_t i = 0; i < count; ++i) work.push_back(50 + 100 * Random(Seed(3), "work").uniform(i));
    const auto order = in_even_blocks(work);
    CHECK(std::set(order.begin(), order.end()).size() == count);
    CHECK(order.size() == count);
    const auto slowest = [&](const auto& tasks, std::size_t block) {
      double most = 0;
      for (std::size_t begin = 0; begin < count; begin += block) {
        double sum = 0;
        for (std::size_t i = begin; i < std::min(count, begin + block); ++i)
          sum += work[static_cast<std::size_t>(tasks[i])];
        most = std::max(most, sum);
      }
      return most;
    };
    std::vector<std::ptrdiff_t> as_given(count);
    std::iota(as_given.begin(), as_given.end(), std::ptrdiff_t{0});
    const double all = std::accumulate(work.begin(), work.end(), 0.0);
    if (count < 32) continue;
    for (const std::size_t block : {4u, 8u, 16u})
      CHECK(slowest(order, block) < 1.05 * all * static_cast<double>(block) / static_cast<double>(count));
    CHECK(slowest(as_given, 4) > 1.1 * slowest(order, 4));  // or else there is nothing to gain
  }
}
