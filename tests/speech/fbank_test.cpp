// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include <complex>
#include <laconic/core/random.hpp>
#include <laconic/io/safetensors.hpp>
#include <laconic/speech/audio.hpp>
#include <laconic/speech/fbank.hpp>
#include <laconic/speech/normalize.hpp>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "recordings.hpp"

using namespace laconic;
namespace fs = std::filesystem;

namespace {

std::vector<float> read(const SafetensorsFile& file, const std::string& name) {
  Index size = 1;
  for (const Index extent : file.info(name).shape) size *= extent;
  std::vector<float> out(static_cast<std::size_t>(size));
  file.read<float>(name, out);
  return out;
}

std::vector<float> noise(Index count, double loudness, std::uint64_t stream = 0) {
  const Random random(Seed(1), stream);
  std::vector<float> out;
  for (Index i = 0; i < count; ++i)
    out.push_back(static_cast<float>(loudness * random.normal(static_cast<std::uint64_t>(i))));
  return out;
}

/// Word for word what Kaldi's documentation says, in double and with a plain Fourier sum: one frame.
std::vector<double> slow_frame(const FbankConfig& config, std::span<const float> frame, std::size_t fft) {
  const std::size_t n = frame.size();
  std::vector<double> x(frame.begin(), frame.end());
  double mean = 0;
  for (const double v : x) mean += v / static_cast<double>(n);
  for (double& v : x) v -= mean;
  for (std::size_t i = n - 1; i > 0; --i) x[i] -= config.preemphasis * x[i - 1];
  x[0] -= config.preemphasis * x[0];
  const double pi = std::numbers::pi;
  for (std::size_t i = 0; i < n; ++i)
    x[i] *= std::pow(0.5 - 0.5 * std::cos(2 * pi * static_cast<double>(i) / static_cast<double>(n - 1)), 0.85);
  const auto mel = [](double hz) { return 1127 * std::log(1 + hz / 700); };
  const double high = config.high_hz > 0 ? config.high_hz : config.sample_rate / 2.0 + config.high_hz;
  const double low = mel(config.low_hz), step = (mel(high) - low) / (config.num_mels + 1);
  std::vector<double> energy(static_cast<std::size_t>(config.num_mels));
  for (std::size_t k = 0; k < fft / 2; ++k) {
    std::complex<double> sum = 0;
    for (std::size_t i = 0; i < n; ++i)
      sum += x[i] * std::polar(1.0, -2 * pi * static_cast<double>(k * i % fft) / static_cast<double>(fft));
    const double at = mel(static_cast<double>(k) * config.sample_rate / static_cast<double>(fft));
    for (std::size_t m = 0; m < energy.size(); ++m) {
      const double left = low + static_cast<double>(m) * step;
      energy[m] += std::max(0.0, std::min((at - left) / step, (left + 2 * step - at) / step)) * std::norm(sum);
    }
  }
  for (double& e : energy) e = std::log(std::max(e, 0x1p-23));
  return energy;
}

}  // namespace

TEST_CASE("fbank is torchaudio's", "[fbank]") {
  const SafetensorsFile file(fs::path(LACONIC_GOLDEN_DIR) / "fbank.safetensors");
  const nlohmann::json cases = parse_json(file.metadata().at("fbank"), "fbank.safetensors").at("cases");
  REQUIRE(cases.size() == 6);
  for (const auto& [name, json] : cases.items()) {
    INFO(name);
    const Fbank fbank(json_value<FbankConfig>(json, name));
    const std::vector<float> samples = read(file, name + "/samples"), expected = read(file, name + "/features");
    const Matrix<float> features = fbank(samples);
    const auto& shape = file.info(name + "/features").shape;
    REQUIRE(features.rows() == shape[0]);
    REQUIRE(features.cols() == shape[1]);
    const auto golden = matrix_view(expected.data(), shape[0], shape[1]);
    CHECK((features - golden).cwiseAbs().maxCoeff() < 1e-3F);
    CHECK(golden.maxCoeff() - golden.minCoeff() > 5);  // there is something to compare
  }
}

TEST_CASE("fbank is its definition", "[fbank]") {
  for (const FbankConfig& config : {FbankConfig{}, FbankConfig{.sample_rate = 8000, .num_mels = 40},
                                    FbankConfig{.num_mels = 20, .low_hz = 300, .high_hz = -1000, .preemphasis = 0}}) {
    const std::vector<float> samples = noise(1000, 0.2);
    const std::size_t frame = static_cast<std::size_t>(config.sample_rate / 40), shift = frame * 10 / 25;
    const Matrix<float> features = Fbank(config)(samples);
    REQUIRE(features.rows() == static_cast<Index>(1 + (1000 - frame) / shift));
    for (Index t = 0; t < features.rows(); ++t) {
      const auto expected = slow_frame(config, std::span(samples).subspan(static_cast<std::size_t>(t) * shift, frame),
                                       frame == 400 ? 512 : 256);
      for (Index m = 0; m < features.cols(); ++m)
        REQUIRE(features(t, m) == Approx(expected[static_cast<std::size_t>(m)]).margin(1e-4));
    }
  }
}

TEST_CASE("fbank: how many frames", "[fbank]") {
  const Fbank fbank{FbankConfig{}};
  const std::pair<Index, Index> expected[] = {{0, 0}, {399, 0}, {400, 1}, {559, 1}, {560, 2}, {16000, 98}};
  for (const auto& [samples, frames] : expected) {
    CHECK(fbank.num_frames(samples) == frames);
    const Matrix<float> features = fbank(noise(samples, 0.1));
    CHECK(features.rows() == frames);
    CHECK(features.cols() == 80);
  }
}

TEST_CASE("fbank: silence and offsets", "[fbank]") {
  const Fbank fbank{FbankConfig{}};
  const float floor = std::log(std::numeric_limits<float>::epsilon());
  CHECK((fbank(std::vector<float>(800, 0.0F)).array() == floor).all());
  CHECK((fbank(std::vector<float>(800, 0.5F)).array() == floor).all());
}

TEST_CASE("fbank: a frame does not depend on its neighbours, nor on threads", "[fbank]") {
  const Fbank fbank{FbankConfig{}};
  const Fbank copy = fbank;
  const std::vector<float> samples = noise(8000, 0.1);
  const Matrix<float> all = fbank(samples);
  for (const std::size_t t : {0U, 7U, 30U})
    CHECK(fbank(std::span(samples).subspan(t * 160, 400)) == all.row(static_cast<Index>(t)));

  std::vector<Matrix<float>> results(8);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < results.size(); ++i)
    threads.emplace_back([&, i] {
      for (int repeat = 0; repeat < 20; ++repeat) results[i] = (i % 2 == 0 ? fbank : copy)(noise(8000, 0.1, i));
    });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < results.size(); ++i) CHECK(results[i] == fbank(noise(8000, 0.1, i)));
}

TEST_CASE("fbank: the configuration as JSON", "[fbank]") {
  const FbankConfig config{.sample_rate = 8000, .num_mels = 40, .high_hz = -400, .preemphasis = 0.9};
  const nlohmann::json json = to_json(config);
  CHECK(json.size() == 7);
  CHECK(json_value<FbankConfig>(json, "here") == config);
}

TEST_CASE("fbank: configurations that make no sense", "[fbank]") {
  const auto message = [](const FbankConfig& config) {
    try {
      Fbank fbank(config);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  CHECK(message({.sample_rate = 0}) == "fbank: sample_rate 0 Hz given, 1 to 10000000 expected");
  CHECK(message({.num_mels = 0}) == "fbank: num_mels 0 given, 1 to 4096 expected");
  CHECK(message({.num_mels = 2147483647}) == "fbank: num_mels 2147483647 given, 1 to 4096 expected");
  CHECK(message({.frame_shift_ms = 0}) == "fbank: frame_shift_ms 0 given, which is 0 samples; 1 to 1048576 expected");
  CHECK(message({.frame_length_ms = 1e9}) ==
        "fbank: frame_length_ms 1e+09 given, which is 1.6e+10 samples; 1 to 1048576 expected");
  CHECK(message({.frame_length_ms = std::nan("")}).find("frame_length_ms nan given") != std::string::npos);
  CHECK(message({.frame_length_ms = 0.1}) == "fbank: frame_length_ms 0.1 is 1 samples, at least 2 expected");
  CHECK(message({.high_hz = 9000}) == "fbank: a band from 20 to 9000 Hz, 0 <= low < high <= 8000 expected");
  CHECK(message({.high_hz = -8000}) == "fbank: a band from 20 to 0 Hz, 0 <= low < high <= 8000 expected");
  CHECK(message({.low_hz = -1}) == "fbank: a band from -1 to 8000 Hz, 0 <= low < high <= 8000 expected");
  CHECK(message({.low_hz = std::nan("")}).find("a band from nan to 8000 Hz") != std::string::npos);
  CHECK(message({.preemphasis = 2}) == "fbank: preemphasis 2 given, 0 to 1 expected");
  CHECK(message({.num_mels = 200}).find("of 200 has no frequency of the transform of 512 samples") !=
        std::string::npos);
}

TEST_CASE("fbank: as many channels and as long frames as there may be are made soon", "[fbank]") {
  // Each channel looked through all frequencies once: 2^31 logarithms.
  const Fbank fbank({.sample_rate = 10'000'000, .num_mels = 4096, .frame_length_ms = 100, .low_hz = 1e6});
  CHECK(fbank.num_frames(1'000'000) == 1);
}

TEST_CASE("features are normalised", "[normalize]") {
  Matrix<float> features = (Matrix<float>::Random(50, 4) * 3).array() + 100;
  features.col(2).setConstant(-15.9F);
  const Eigen::MatrixXd x = features.cast<double>();

  SECTION("by utterance") {
    Matrix<float> normal = features;
    normalize_utterance(view(normal));
    for (Index c = 0; c < 4; ++c) {
      const double mean = x.col(c).mean(), std = std::sqrt((x.col(c).array() - mean).square().sum() / 49);
      for (Index t = 0; t < 50; ++t) REQUIRE(normal(t, c) == Approx((x(t, c) - mean) / (std + 1e-5)).margin(1e-4));
    }
    CHECK(normal.col(2).isZero());
    CHECK(std::abs(normal.col(0).mean()) < 1e-5F);
    CHECK(normal.col(0).squaredNorm() / 49 == Approx(1).margin(1e-3));
  }
  SECTION("over a corpus, in whatever pieces") {
    FeatureStatistics whole, pieces, other;
    whole.add(view(std::as_const(features)));
    const auto rows = [&](Index begin, Index count) {
      return matrix_view(std::as_const(features).data() + 4 * begin, count, 4);
    };
    pieces.add(rows(0, 1));
    pieces.add(rows(1, 20));
    pieces.add(rows(21, 0));
    other.add(rows(21, 29));
    pieces.merge(other);
    CHECK(pieces.frames() == 50);
    CHECK((pieces.mean() - whole.mean()).cwiseAbs().maxCoeff() < 1e-12);
    CHECK((pieces.variance() - whole.variance()).cwiseAbs().maxCoeff() < 1e-12);

    Matrix<float> global = features, utterance = features;
    pieces.normalization()(view(global));
    normalize_utterance(view(utterance));
    CHECK((global - utterance).cwiseAbs().maxCoeff() < 1e-5F);
    const GlobalNormalization kept = pieces.normalization();
    CHECK(json_value<GlobalNormalization>(to_json(kept), "here") == kept);
  }
  SECTION("a large offset costs no digits") {
    FeatureStatistics statistics;
    for (int i = 0; i < 1000; ++i) {
      const Matrix<float> one = Matrix<float>::Constant(1, 1, i % 2 == 0 ? 1e6F : 1e6F + 1);
      statistics.add(view(one));
    }
    CHECK(statistics.variance()[0] == Approx(0.25 * 1000 / 999).epsilon(1e-9));
  }
  SECTION("one frame, none, and wrong ones") {
    Matrix<float> one = features.topRows(1), none(0, 4), bad = features;
    normalize_utterance(view(one));
    CHECK(one.isZero());
    normalize_utterance(view(none));
    bad(3, 1) = std::numeric_limits<float>::infinity();
    CHECK_THROWS_WITH(normalize_utterance(view(bad)), "feature statistics: channel 1 has values that are not finite");
    CHECK_THROWS_WITH(FeatureStatistics().normalization(), "feature statistics: no frames given");
    FeatureStatistics statistics;
    statistics.add(view(std::as_const(features)));
    const Matrix<float> narrow = features.leftCols(3);
    CHECK_THROWS_WITH(statistics.add(view(narrow)), "feature statistics: 3 channels given, 4 expected");
    Matrix<float> target = narrow;
    CHECK_THROWS_WITH(statistics.normalization()(view(target)),
                      "normalization: features of 3 channels given, 4 expected");
  }
}

TEST_CASE("features of real speech", "[fbank]") {
  const auto path = recordings / "librispeech/test-clean/1089/134691/1089-134691-0000.flac";
  Matrix<float> features = Fbank(FbankConfig{})(read_audio(path, 16000).samples);
  CHECK(features.allFinite());
  CHECK(features.maxCoeff() - features.minCoeff() > 10);
  normalize_utterance(view(features));
  CHECK(features.colwise().mean().cwiseAbs().maxCoeff() < 1e-4F);
}
