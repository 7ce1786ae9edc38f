// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

// Plots, drawn by the program gnuplot. A plot's body is a script without the lines that set its kind and its file.

/// Throws unless gnuplot is there, so that work does not fail at its end.
void require_gnuplot();
/// Throws unless --plot names a picture that can be drawn.
void require_picture(const std::string& path);

/// Returns a text in single quotes, with those inside doubled.
std::string gnuplot_quoted(const std::string& plain);

/// Draws a .png or .svg. Throws where gnuplot fails.
void draw(const std::string& path, const std::string& body);
/// Draws NAME.png and NAME.svg into a folder, large for several panels, and leaves the script NAME.gp there.
void draw_with_script(const std::filesystem::path& folder, const std::string& name, const std::string& body,
                      bool is_large = false);
