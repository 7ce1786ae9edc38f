// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

namespace CLI {
class App;
}

// Each adds its subcommand to `laconic`.
void add_data_command(CLI::App& app);
void add_train_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_quantize_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_compare_command(CLI::App& app);
void add_transcribe_command(CLI::App& app);
void add_align_command(CLI::App& app);
void add_profile_command(CLI::App& app);
void add_devices_command(CLI::App& app);
void add_gpt_command(CLI::App& app);
void add_mnist_command(CLI::App& app);
