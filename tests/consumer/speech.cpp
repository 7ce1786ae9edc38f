// A program that uses laconic::speech, and with it laconic::io: their headers and what they need come with the targets.
#include <laconic/io/folder.hpp>
#include <laconic/recognition/evaluate.hpp>
#include <laconic/recognition/trainer.hpp>

#include <cstdio>

int main() {
  using namespace laconic;
  const std::vector<float> second(16000, 0.1F);
  const std::vector<float> half = resample(second, 16000, 8000);
  const Fbank fbank(FbankConfig{.sample_rate = 8000, .num_mels = 20});
  const nlohmann::json json = to_json(fbank.config());
  std::printf("%s: %td frames; %s\n", json.dump().c_str(), fbank(half).rows(), sf_version_string());
  return fbank(half).rows() == 98 ? 0 : 1;
}
