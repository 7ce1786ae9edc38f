// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

// Pictures by the program gnuplot.

/// Throws unless it is there, so that work does not fail at its end.
void require_gnuplot();
/// Throws unless --plot names a picture that can be drawn.
void require_picture(const std::string& path);

/// In single quotes, those inside doubled.
std::string gnuplot_quoted(const std::string& plain);
/// The lines that set the kind of picture, .png or .svg, and its file; large for panels.
std::string gnuplot_output(const std::string& path, bool is_large = false);

/// Runs a script that lies in a file.
void run_gnuplot(const std::filesystem::path& script);
/// Draws a picture by what follows its kind and file.
void draw(const std::string& path, const std::string& body);
