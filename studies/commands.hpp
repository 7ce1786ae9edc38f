// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

namespace CLI {
class App;
}

// Each adds its subcommand to `laconic-study`.
void add_conversion_command(CLI::App& app);
void add_streaming_command(CLI::App& app);
