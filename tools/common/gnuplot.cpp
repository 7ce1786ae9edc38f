// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "gnuplot.hpp"

#include "process.hpp"
#include "terminal.hpp"

#include <laconic/core/error.hpp>
#include <laconic/io/file.hpp>

#include <string_view>

using namespace laconic;

namespace {

bool is_svg(const std::filesystem::path& path) { return path.extension() == ".svg"; }

/// Returns the lines that set the kind of picture. Texts are taken as they are: no '_' makes an index.
std::string gnuplot_terminal(bool svg, bool is_large) {
  const char* size = svg ? (is_large ? "1300,800" : "1000,500") : (is_large ? "1560,960" : "1200,580");
  return text("set encoding utf8\nset terminal ", svg ? "svg" : "pngcairo", " noenhanced size ", size,
              " font 'sans,13'\n");
}

/// Returns the picture that a script draws. gnuplot does not say when it cannot write, so the end is looked for.
std::string picture(const std::filesystem::path& path, const std::string& body, bool is_large) {
  const bool svg = is_svg(path);
  ProgramEnd end = run_program({"gnuplot", "-d"}, gnuplot_terminal(svg, is_large) + body);
  require(end.succeeded(), path.string(), ": gnuplot cannot draw it", end.errors.empty() ? "" : ": ", end.errors);
  const std::string_view out = end.output;
  const bool whole =
      svg ? out.starts_with("<?xml") && out.find("</svg>") != std::string_view::npos
          : out.starts_with("\x89PNG") && out.size() >= 8 && out.substr(out.size() - 8).starts_with("IEND");
  require(whole, path.string(), ": gnuplot has drawn no whole picture", end.errors.empty() ? "" : ": ", end.errors);
  return std::move(end.output);
}

}  // namespace

void require_gnuplot() {
  require(run_program({"gnuplot", "-d", "-e", "set terminal pngcairo"}).succeeded(),
          "the program gnuplot (with pngcairo) is needed for the plots: apt-get install gnuplot-nox");
}

void require_picture(const std::string& path) {
  require(path.ends_with(".png") || path.ends_with(".svg"), "--plot: ", path,
          " given, a name that ends in .png or .svg expected");
  FileWriter::check(path);
  require_gnuplot();
}

std::string gnuplot_quoted(const std::string& plain) {
  std::string out = "'";
  for (const char c : without_line_ends(plain)) out += c == '\'' ? std::string("''") : std::string(1, c);
  return out + "'";
}

void draw(const std::filesystem::path& path, const std::string& body) { write_file(path, picture(path, body, false)); }

void draw_with_script(const std::filesystem::path& folder, const std::string& name, const std::string& body,
                      bool is_large) {
  for (const std::string format : {".png", ".svg"}) {
    const auto path = folder / (name + format);
    write_file(path, picture(path, body, is_large));
  }
  write_file(folder / (name + ".gp"),
             text(gnuplot_terminal(true, is_large), "set output ", gnuplot_quoted(name + ".svg"), '\n', body));
}
