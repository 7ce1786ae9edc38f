// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "cli.hpp"

#include <new>

int run_app(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version",
                       laconic::text(LACONIC_VERSION_MAJOR, '.', LACONIC_VERSION_MINOR, '.', LACONIC_VERSION_PATCH));
  if (!app.get_subcommands([](const CLI::App*) { return true; }).empty()) app.require_subcommand(1);
  try {
    app.parse(argc, argv);
    laconic::require(std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
                     "standard output: cannot write the result");  // a full disk
    return 0;
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "%s: out of memory\n", app.get_name().c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", app.get_name().c_str(), error.what());
  }
  return 1;
}
