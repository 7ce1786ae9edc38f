// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// laconic devices: what models can compute on.
#include "commands.hpp"
#include "common/cli.hpp"
#include "common/table.hpp"

#include <laconic/recognition/device.hpp>

namespace {

using namespace laconic;

void list_devices(const std::string& json_file) {
  nlohmann::json result = nlohmann::json::array();
  Table table({{"device", 0, true}, {"what it is", 0, true, 2}, {"memory", 0, false, 2}});
  for (const DeviceInfo& one : devices()) {
    const double gigabytes = 1e-9 * static_cast<double>(one.memory_bytes);
    table.add({one.device.name(), one.description, one.memory_bytes > 0 ? text(fixed(gigabytes, 1), " GB") : "-"});
    result.push_back(
        {{"device", one.device.name()}, {"description", one.description}, {"memory_bytes", one.memory_bytes}});
  }
  print(Lines{table.lines()}, '\n');
  if (has_cuda() && devices().size() == 1)
    say("no GPU found: there is none, or its driver is missing or older than CUDA's runtime library");
  if (!has_cuda()) say("GPUs are not looked for: this program was built without CUDA (-DLACONIC_CUDA=ON builds it in)");
  if (!json_file.empty()) write_json(json_file, result);
}

}  // namespace

void add_devices_command(CLI::App& app) {
  static std::string json;
  CLI::App* command = app.add_subcommand("devices", "list what models can compute on: the processor, and GPUs");
  command->add_option("--json", json, "also write the list to this file, as JSON")->type_name("FILE");
  command->callback([] { list_devices(json.empty() ? json : output_file(json)); });
}
