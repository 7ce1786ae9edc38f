// laconic: attention for speech models. SPDX-License-Identifier: MIT
#pragma once

#include "terminal.hpp"

#include <string>
#include <vector>

/// A table, printed with aligned columns or as Markdown.
class Table {
 public:
  struct Column {
    std::string title;
    int width = 0;  ///< at least; columns are as wide as their widest cell
    bool is_left = false;
    int gap = 1;  ///< spaces before the column
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  /// Makes columns of these titles, for Markdown.
  static Table of_titles(const std::vector<std::string>& titles) {
    std::vector<Column> columns;
    for (const std::string& title : titles) columns.push_back({title});
    return Table(std::move(columns));
  }

  /// Adds a row. What a cell holds becomes one line without control characters.
  void add(std::vector<std::string> cells) {
    for (std::string& cell : cells) cell = without_line_ends(cell);
    rows_.push_back(std::move(cells));
  }
  bool empty() const { return rows_.empty(); }

  /// Returns a line of titles, if any column has one, and a line for each row. The last column is not padded to the
  /// right.
  std::string lines() const;
  std::string markdown() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};
