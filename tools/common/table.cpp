// laconic: attention for speech models. SPDX-License-Identifier: MIT
#include "table.hpp"

#include <algorithm>

std::string Table::lines() const {
  std::vector<std::string> titles;
  for (const Column& column : columns_) titles.push_back(column.title);
  const bool has_titles = std::ranges::any_of(titles, [](const std::string& title) { return !title.empty(); });
  std::vector<std::size_t> widths;
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    std::size_t width = std::max(static_cast<std::size_t>(columns_[i].width), titles[i].size());
    for (const auto& row : rows_) width = std::max(width, row.at(i).size());
    widths.push_back(width);
  }
  std::string out;
  const auto add_line = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const std::string padding(widths[i] - cells[i].size(), ' ');
      out.append(static_cast<std::size_t>(columns_[i].gap), ' ');
      if (!columns_[i].is_left) out += padding;
      out += cells[i];
      if (columns_[i].is_left && i + 1 < columns_.size()) out += padding;
    }
    out += '\n';
  };
  if (has_titles) add_line(titles);
  for (const auto& row : rows_) add_line(row);
  return out;
}

std::string Table::markdown() const {
  std::string out, rule;
  const auto add_line = [&](const auto& cell_of) {
    for (std::size_t i = 0; i < columns_.size(); ++i) out += (i == 0 ? "| " : " | ") + cell_of(i);
    out += " |\n";
  };
  add_line([&](std::size_t i) { return columns_[i].title; });
  for (std::size_t i = 0; i < columns_.size(); ++i) rule += "|---";
  out += rule + "|\n";
  for (const auto& row : rows_) add_line([&](std::size_t i) { return row.at(i); });
  return out;
}
