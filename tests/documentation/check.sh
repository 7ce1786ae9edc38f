#!/usr/bin/env bash
# The C++ that the README shows is examples/01_conformer.cpp, which is compiled and run as a test.
#   usage: check.sh PROJECT_DIR
set -euo pipefail
shown=$(sed -n '/^```cpp$/,/^```$/p' "$1/README.md" | sed '1d;$d')
real=$(sed -n '/^#include/,$p' "$1/examples/01_conformer.cpp")
if [ "$shown" != "$real" ]; then
  diff <(echo "$shown") <(echo "$real") || true
  echo "the README's example is not examples/01_conformer.cpp any more"
  exit 1
fi
