#!/usr/bin/env bash
# Checks a program with several levels of x86-64 inside: each that this processor has runs, by its own code and with the
# same result up to rounding; the best runs by itself; a wrong name is an error that names the right ones.
#   usage: check.sh PROGRAM
set -euo pipefail
program=$1
fail() {
  echo "$*"
  exit 1
}
ran=0 best=
declare -A vectors=([x86-64-v2]=v0_sse4_2 [x86-64-v3]=v0_avx2 [x86-64-v4]=v0_avx512)
for level in x86-64-v2 x86-64-v3 x86-64-v4; do
  if output=$(LACONIC_ISA=$level "$program" 2>&1); then
    echo "$level: $output"
    [[ $output == ${vectors[$level]}* ]] || fail "$level runs other code"
    [[ $output == *"caught: $program: no argument given"* ]] || fail "$level: no exception was caught"
    sum=$(cut -d' ' -f2 <<<"$output" | head -n 1)
    awk -v a="$sum" -v b="${first:=$sum}" 'BEGIN { exit !((a - b) ^ 2 < 1e-8) }' || fail "$level: $sum, before $first"
    ran=$((ran + 1)) best=$output
  else
    [[ $output == "LACONIC_ISA: this processor lacks it, expected one of: x86-64-v2"* ]] || fail "$level: $output"
    echo "Not tested: $level, which this processor lacks"
  fi
done
[ "$ran" -gt 0 ] || fail "no level runs"
[ "$("$program" 2>&1)" = "$best" ] || fail "the best level does not run by itself"
if output=$(LACONIC_ISA=avx2 "$program" 2>&1); then fail "LACONIC_ISA=avx2 is accepted"; fi
[[ $output == "LACONIC_ISA: unknown name given, expected one of: x86-64-v2"* ]] || fail "$output"
