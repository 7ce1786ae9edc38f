// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The program `laconic`: a subcommand a task.
#include "commands.hpp"
#include "common/cli.hpp"

int main(int argc, char** argv) {
  CLI::App app{
      "laconic: speech recognition with a small key-value cache. Trains Conformers with full attention (MHA), "
      "converts\n"
      "them to latent attention (MLA) or grouped queries (GQA), and measures word error rate against cache size.",
      "laconic"};
  app.footer(
      "Example:\n  laconic data speak --out digits\n  laconic train --data digits --out runs/mha\n"
      "  laconic convert --input runs/mha --output runs/mla --latent-dim 32\n"
      "  laconic eval --model runs/mla --data digits/test.jsonl\n\n`laconic COMMAND --help` says more of each.");
  add_data_command(app);
  add_train_command(app);
  add_convert_command(app);
  add_quantize_command(app);
  add_eval_command(app);
  add_compare_command(app);
  add_transcribe_command(app);
  add_align_command(app);
  add_profile_command(app);
  add_devices_command(app);
  add_gpt_command(app);
  add_mnist_command(app);
  return run_app(app, argc, argv);
}
