// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "gnuplot.hpp"

#include "process.hpp"

#include <laconic/core/error.hpp>
#include <laconic/io/file.hpp>

using namespace laconic;

namespace {

/// Returns the lines that set the kind of picture and its file.
std::string gnuplot_output(const std::string& path, bool is_large) {
  const bool svg = path.ends_with(".svg");
  const char* size = svg ? (is_large ? "1300,800" : "1000,500") : (is_large ? "1560,960" : "1200,580");
  return text("set terminal ", svg ? "svg" : "pngcairo", " size ", size, " font 'sans,13'\nset output ",
              gnuplot_quoted(path), '\n');
}

}  // namespace

void require_gnuplot() {
  require(run_program({"gnuplot", "-e", "set terminal pngcairo"}, ProgramOutput::shown).succeeded(),
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

void draw(const std::string& path, const std::string& body) {
  require(run_program({"gnuplot"}, ProgramOutput::shown, gnuplot_output(path, false) + body).succeeded(), path,
          ": gnuplot cannot draw it");
}

void draw_with_script(const std::filesystem::path& folder, const std::string& name, const std::string& body,
                      bool is_large) {
  for (const std::string format : {"png", "svg"}) {
    const auto script = folder / (name + ".gp");
    write_file(script, gnuplot_output((folder / (name + '.' + format)).string(), is_large) + body);
    require(run_program({"gnuplot", script.string()}, ProgramOutput::shown).succeeded(), "gnuplot failed on ",
            script.string());
  }
}
