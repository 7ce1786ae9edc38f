// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "cli.hpp"
#include "interrupts.hpp"
#include "processes.hpp"

#include <cstdio>
#include <new>
#include <optional>
#include <sstream>

namespace {

/// Names the instruction set that this program is compiled for: the level of x86-64 where it has one.
constexpr const char* instruction_set =
#if defined(__AVX512F__)
    LACONIC_VNNI ? "x86-64-v4, AVX-512 with VNNI" : "x86-64-v4, AVX-512";
#elif defined(__AVX2__) && defined(__FMA__)
    LACONIC_VNNI ? "x86-64-v3, AVX2 with VNNI" : "x86-64-v3, AVX2";
#elif defined(__SSE4_2__)
    "x86-64-v2, SSE4.2";
#elif defined(__x86_64__)
    "x86-64, SSE2";
#elif defined(__aarch64__)
    "aarch64, NEON";
#else
    "any processor";
#endif

/// Gives every option the checks that its kind has: names of files are not empty, numbers are numbers. CLI11's own
/// messages are no sentences.
void check_kinds(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string kind = option->get_type_name();
    for (const char* path : {"FILE", "DIR", "PATH"})
      if (kind.starts_with(path)) option->check(not_empty());
    if (kind == "INT" || kind == "UINT") option->check(whole_number());
    if (kind == "FLOAT") option->check(number());
  }
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) check_kinds(*command);
}

/// Prints help, or what is wrong with the command line.
int exit_with(const CLI::App& app, const CLI::ParseError& error) {
  std::ostringstream out, err;
  const int code = app.exit(error, out, err);
  print(Lines{out.str()});
  terminal::write_note(without_controls(err.str()));
  return code;
}

}  // namespace

int run_app(CLI::App& app, int argc, char** argv) {
  app.set_version_flag("--version", laconic::text(LACONIC_VERSION_MAJOR, '.', LACONIC_VERSION_MINOR, '.',
                                                  LACONIC_VERSION_PATCH, " (", instruction_set, ")"));
  if (!app.get_subcommands([](const CLI::App*) { return true; }).empty()) app.require_subcommand(1);
  check_kinds(app);
  watch_interrupts();
  app.parse_complete_callback([&] { require_processes_fit(app); });
  std::optional<Joined> joined;
  const auto fail = [&](const char* message) {
    if (processes().size() > 1) fail_in_all_processes(app.get_name().c_str(), message);
    say_in_all(app.get_name(), ": ", std::string_view(message));
    return 1;
  };
  try {
    joined.emplace();
    app.parse(argc, argv);
    laconic::require(std::fflush(stdout) == 0 && std::ferror(stdout) == 0,
                     "standard output: cannot write the result");  // a full disk
    return 0;
  } catch (const CLI::ParseError& error) {
    return processes().rank() == 0 ? exit_with(app, error) : error.get_exit_code();
  } catch (const std::filesystem::filesystem_error& error) {
    return fail((error.path1().string() + ": " + error.code().message()).c_str());
  } catch (const std::bad_alloc&) {
    return fail("out of memory");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
