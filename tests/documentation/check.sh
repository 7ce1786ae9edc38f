#!/usr/bin/env bash
# The C++ that the README shows is examples/07_conformer.cpp, which is compiled and run as a test.
# What docs/attention.md shows is from tests/attention/own_policy_test.cpp. examples/README.md lists all lessons, and
# docs/using.md shows one.
#   usage: check.sh PROJECT_DIR
set -euo pipefail
shown=$(sed -n '/^```cpp$/,/^```$/p' "$1/README.md" | sed '1d;$d')
real=$(sed -n '/^#include/,/^}$/p' "$1/examples/07_conformer.cpp")
if [ "$shown" != "$real" ]; then
  diff <(echo "$shown") <(echo "$real") || true
  echo "the README's example is not examples/07_conformer.cpp any more"
  exit 1
fi

test=$(<"$1/tests/attention/own_policy_test.cpp")
block=''
while IFS= read -r line; do
  case $line in
    '```cpp') block=$'\n' ;;
    '```')
      if [ -n "$block" ] && [[ "$test" != *"${block%$'\n'}"* ]]; then
        echo "docs/attention.md shows what is not in tests/attention/own_policy_test.cpp:$block"
        exit 1
      fi
      block=''
      ;;
    *) [ -z "$block" ] || block+="$line"$'\n' ;;
  esac
done <"$1/docs/attention.md"

# What docs/using.md shows of the beam search is in its lesson.
lesson=$(sed 's/^  //' "$1/examples/15_beams.cpp")
block=$(sed -n '/^## Beam search for CTC$/,/^## Prepare/p' "$1/docs/using.md" | sed -n '/^```cpp$/,/^```$/p' | sed '1d;$d')
if [ -z "$block" ] || [[ "$lesson" != *"$block"* ]]; then
  echo "docs/using.md shows what is not in examples/15_beams.cpp: $block"
  exit 1
fi

for lesson in "$1"/examples/[0-9]*.cpp; do
  name=${lesson##*/}
  grep -qF "[$name]($name)" "$1/examples/README.md" || { echo "examples/README.md does not list $name"; exit 1; }
done
