#!/usr/bin/env bash
# Fails if a file below an include folder is not among those that the build compiles alone.
#   usage: check.sh BUILD_DIR INCLUDE_DIR      BUILD_DIR/compiled.txt lists BUILD_DIR/HEADER.cpp, one a line
set -euo pipefail
build=$1 include=$2
compiled=$(sed -e "s|^$build/||" -e 's|\.cpp$||' "$build/compiled.txt" | sort)
present=$(cd "$include" && find . -type f | sed 's|^\./||' | sort)
[ -n "$present" ] || { echo "no headers in $include"; exit 1; }
if [ "$compiled" != "$present" ]; then
  echo "These are in $include but are not compiled alone (<), or the other way round (>):"
  diff <(echo "$present") <(echo "$compiled") | grep '^[<>]'
  exit 1
fi
echo "$(echo "$present" | wc -l) headers, each compiled alone"
