// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

// Plots, drawn by the program gnuplot. A plot's body is a script without the lines that set its kind and its file.
//
// gnuplot takes some names for commands ("|rm x", "<rm x"), so it sees no name of a file: it draws to its standard
// output, and its data stand in the script. Texts of users (names of models, folders, test sets) stand in a script only
// as `gnuplot_quoted` writes them, and never in a data block.

/// Throws unless gnuplot is there, so that work does not fail at its end.
void require_gnuplot();
/// Throws unless --plot names a picture that can be drawn and written.
void require_picture(const std::string& path);

/// Returns a text in single quotes, with those inside doubled and control characters as '?': what gnuplot takes as it
/// is, in any command of a script.
std::string gnuplot_quoted(const std::string& plain);

/// Draws a .png or .svg, whole or not at all. Throws where gnuplot fails or the file cannot be written.
void draw(const std::filesystem::path& path, const std::string& body);
/// Draws NAME.png and NAME.svg into a folder, large for several panels, and leaves the script NAME.gp there, which
/// `gnuplot NAME.gp` in that folder draws NAME.svg from again.
void draw_with_script(const std::filesystem::path& folder, const std::string& name, const std::string& body,
                      bool is_large = false);
