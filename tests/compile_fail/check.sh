#!/usr/bin/env bash
# Fails unless the compiler rejects a source and its first error contains the sentence of the source's line
# "// expect: SENTENCE".
#   usage: check.sh COMPILER FLAGS_FILE SOURCE
set -euo pipefail
compiler=$1 flags=$2 source=$3
sentence=$(sed -n 's|^// expect: ||p' "$source")
[ -n "$sentence" ] || { echo "$source: no line '// expect: ...'"; exit 1; }
if output=$(LC_ALL=C "$compiler" "@$flags" -fsyntax-only "$source" 2>&1); then
  echo "$source compiles, but should not: $sentence"
  exit 1
fi
first=$(grep -m 1 'error:' <<<"$output" || true)
if [[ "$first" != *"$sentence"* ]]; then
  printf 'expected: %s\nthe first error is: %s\n\n%s\n' "$sentence" "$first" "$output"
  exit 1
fi
echo "rejected: $first"
