// A program that uses laconic::speech, and with it laconic::io: what they need must come with the targets.
#include <laconic/laconic.hpp>

#include <kiss_fftr.h>
#include <samplerate.h>
#include <sndfile.h>

#include <cstdio>
#include <nlohmann/json.hpp>

int main() {
  kiss_fftr_cfg fft = kiss_fftr_alloc(512, 0, nullptr, nullptr);
  const bool transforms = fft != nullptr;
  kiss_fftr_free(fft);
  const nlohmann::json json{{"sndfile", sf_version_string()}, {"samplerate", src_get_version()}};
  std::printf("%s\n", json.dump().c_str());
  return transforms ? 0 : 1;
}
