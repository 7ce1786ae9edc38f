// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The program `laconic-study`: a subcommand a study.
#include "commands.hpp"
#include "common/cli.hpp"

int main(int argc, char** argv) {
  CLI::App app{
      "laconic-study: studies on connected digits. Each trains speech recognisers, measures them and writes a report.",
      "laconic-study"};
  app.footer(
      "Example:\n  laconic-study conversion --out study --preset quick\n\n`laconic-study COMMAND --help` says more of "
      "each.");
  add_conversion_command(app);
  add_streaming_command(app);
  return run_app(app, argc, argv);
}
