// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "gnuplot.hpp"

#include <laconic/core/error.hpp>

#include <spawn.h>
#include <sys/wait.h>

#include <cstdio>
#include <vector>

extern char** environ;

using namespace laconic;

namespace {

/// Runs a program and waits; gives its exit code, 127 if it cannot be started.
int run_program(const std::vector<std::string>& arguments) {
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  if (::posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environ) != 0) return 127;
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 127;
}

}  // namespace

void require_gnuplot() {
  require(run_program({"gnuplot", "-e", "set terminal pngcairo"}) == 0,
          "the program gnuplot (with pngcairo) is needed for the plots: apt-get install gnuplot-nox");
}

void require_picture(const std::string& path) {
  require(path.ends_with(".png") || path.ends_with(".svg"), "--plot: ", path,
          " given, a name that ends in .png or .svg expected");
  require(std::filesystem::is_directory(std::filesystem::absolute(path).parent_path()), path, ": no such folder");
  require_gnuplot();
}

std::string gnuplot_quoted(const std::string& plain) {
  std::string out = "'";
  for (const char c : plain) out += c == '\'' ? std::string("''") : std::string(1, c);
  return out + "'";
}

std::string gnuplot_output(const std::string& path, bool is_large) {
  const bool svg = path.ends_with(".svg");
  const char* size = svg ? (is_large ? "1300,800" : "1000,500") : (is_large ? "1560,960" : "1200,580");
  return text("set terminal ", svg ? "svg" : "pngcairo", " size ", size, " font 'sans,13'\nset output ",
              gnuplot_quoted(path), '\n');
}

void run_gnuplot(const std::filesystem::path& script) {
  require(run_program({"gnuplot", script.string()}) == 0, "gnuplot failed on ", script.string());
}

void draw(const std::string& path, const std::string& body) {
  const std::string script = gnuplot_output(path) + body;
  std::FILE* gnuplot = ::popen("gnuplot", "w");
  require(gnuplot != nullptr, path, ": cannot start gnuplot");
  const bool written = std::fwrite(script.data(), 1, script.size(), gnuplot) == script.size();
  require(::pclose(gnuplot) == 0 && written, path, ": gnuplot cannot draw it");
}
