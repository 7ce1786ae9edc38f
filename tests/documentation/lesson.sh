#!/usr/bin/env bash
# Runs a lesson and finds in what it prints, in their order, the lines that its source announces by `// prints: REGEX`.
#   usage: lesson.sh PROGRAM SOURCE
set -uo pipefail
mapfile -t expected < <(sed -n 's|^// prints: ||p' "$2")
[ ${#expected[@]} -gt 0 ] || { echo "no line '// prints: ...' in $2"; exit 1; }
output=$("$1")
code=$?
echo "$output"
[ $code -eq 0 ] || { echo "the lesson failed with exit code $code"; exit 1; }
found=0
while IFS= read -r line; do
  [ $found -eq ${#expected[@]} ] || [[ ! $line =~ ${expected[found]} ]] || found=$((found + 1))
done <<<"$output"
[ $found -eq ${#expected[@]} ] || { echo "the lesson does not print: ${expected[found]}"; exit 1; }
