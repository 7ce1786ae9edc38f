#!/usr/bin/env bash
# Fails unless the compiler rejects a source and its first error contains the sentence of the source's line
# "// expect: SENTENCE"; with "// expect inside: WORDS" instead, the words may also stand in further lines about that
# error. Other lines of a source: "// flags: FLAGS" for the compiler, after all others, and
# "// errors: N", the number of errors that the compiler may print at most.
#   usage: check.sh COMPILER FLAGS_FILE SOURCE
set -euo pipefail
compiler=$1 flags=$2 source=$3
sentence=$(sed -n 's|^// expect\( inside\)\?: ||p' "$source")
[ -n "$sentence" ] || { echo "$source: no line '// expect: ...'"; exit 1; }
read -ra own < <(sed -n 's|^// flags: ||p' "$source") || true
if output=$(LC_ALL=C "$compiler" "@$flags" "${own[@]}" -fsyntax-only "$source" 2>&1); then
  echo "$source compiles, but should not: $sentence"
  exit 1
fi
if grep -q '^// expect inside: ' "$source"; then
  first=$(awk '/error:/ && ++errors == 2 { exit } { print }' <<<"$output")
else
  first=$(grep -m 1 'error:' <<<"$output" || true)
fi
if [[ "$first" != *"$sentence"* ]]; then
  printf 'expected: %s\nthe first error is: %s\n\n%s\n' "$sentence" "$first" "$output"
  exit 1
fi
most=$(sed -n 's|^// errors: ||p' "$source")
errors=$(grep -c 'error:' <<<"$output")
if [ -n "$most" ] && [ "$errors" -gt "$most" ]; then
  printf '%d errors, at most %d expected\n\n%s\n' "$errors" "$most" "$output"
  exit 1
fi
echo "rejected: $sentence"
