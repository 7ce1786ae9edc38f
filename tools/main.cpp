// laconic: attention for speech models. SPDX-License-Identifier: MIT
//
// The program `laconic`: a subcommand a task. Exit code 0 only when the job was done.
#include "cli.hpp"

#include <unistd.h>

#include <cstdlib>
#include <new>

namespace {

/// libgomp's waiting threads spin for long by default, which costs a busy machine dearly, and sleep at once if told to,
/// which costs a quiet one (docs/architecture.md has the numbers). The library reads its settings before main, so the
/// program starts itself again with one.
void let_threads_wait_shortly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  ::setenv("GOMP_SPINCOUNT", "300", 1);
  ::execv("/proc/self/exe", argv);  // where that fails, the job is done all the same
}

int run(int argc, char** argv) {
  CLI::App app{
      "laconic: speech recognition with a small key-value cache. Trains Conformers with full attention (MHA), "
      "converts\n"
      "them to latent attention (MLA) or grouped queries (GQA), and measures word error rate against cache size."};
  app.set_version_flag("--version",
                       laconic::text(LACONIC_VERSION_MAJOR, '.', LACONIC_VERSION_MINOR, '.', LACONIC_VERSION_PATCH));
  app.require_subcommand(1);
  app.footer("Example:\n  laconic study --out study --preset quick\n\n`laconic COMMAND --help` says more of each.");
  add_data_command(app);
  add_train_command(app);
  add_convert_command(app);
  add_quantize_command(app);
  add_eval_command(app);
  add_compare_command(app);
  add_transcribe_command(app);
  add_profile_command(app);
  add_study_command(app);
  add_stream_study_command(app);
  try {
    app.parse(argc, argv);
    laconic::require(std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
                     "standard output: cannot write the result");  // a full disk
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "laconic: out of memory\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "laconic: %s\n", error.what());
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  let_threads_wait_shortly(argv);
  return run(argc, argv);
}
