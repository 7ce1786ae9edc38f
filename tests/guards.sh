#!/usr/bin/env bash
# Proves that each check of the project fails when it should: plants an error in a copy and demands the complaint.
#   usage: guards.sh PROJECT_DIR CMAKE COMPILER FLAGS_FILE
set -euo pipefail
project=$1 cmake=$2 compiler=$3 flags=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
planted=0

# caught COMPLAINT COMMAND...: the command fails, and says so.
caught() {
  local complaint=$1
  shift
  if "$@" >"$work/log" 2>&1; then
    echo "not caught: $complaint"
    exit 1
  fi
  grep -qF -- "$complaint" "$work/log" || { echo "caught, but without saying: $complaint"; cat "$work/log"; exit 1; }
  planted=$((planted + 1))
}
# plant FILE TEXT: a fresh copy of the headers in which FILE ends with TEXT.
plant() {
  rm -rf "$work/copy"
  mkdir -p "$work/copy/$(dirname "$1")"
  cp -r "$project/include" "$project/single_include" "$work/copy/"
  printf '%s\n' "$2" >>"$work/copy/$1"
}
floors() { bash "$project/scripts/check-floors" "$work/copy"; }

plant include/laconic/core/error.hpp '#include <laconic/io/file.hpp>'
caught 'laconic/core/error.hpp (floor 0) includes <laconic/io/file.hpp> (floor 5)' floors
plant include/laconic/core/error.hpp '  #  include <iostream>'
caught 'laconic/core/error.hpp: <iostream> has no place in core/' floors
plant include/laconic/core/error.hpp '#include <Eigen/SVD>'
caught '<Eigen/SVD> has no place in core/' floors
plant include/laconic/core/error.hpp '#include "extent.hpp"'
caught 'includes "extent.hpp": write <laconic/...>' floors
plant include/laconic/core/error.hpp '#include <laconic/core/nowhere.hpp>'
caught 'which does not exist' floors
plant include/laconic/cellar/new.hpp '#pragma once'
caught 'no floor is called cellar' floors
plant include/laconic/core/forgotten.hpp '#pragma once'
caught ' laconic/core/forgotten.hpp ' floors

plant include/laconic/core/error.hpp 'struct New {};'
caught 'run scripts/amalgamate' bash "$project/scripts/amalgamate" --check "$work/copy"
plant include/laconic/core/error.hpp '#include <laconic/io/file.hpp>'
caught 'cannot include <laconic/io/file.hpp>' bash "$project/scripts/amalgamate" --check "$work/copy"
plant include/laconic/core/error.hpp '#include <laconic/core/nowhere.hpp>'
caught 'cannot be read' bash "$project/scripts/amalgamate" --check "$work/copy"

plant include/laconic/core/escaped.h 'struct Escaped {};'
(cd "$project/include" && find . -name '*.hpp') | sed "s|^\./\(.*\)|$work/\1.cpp|" >"$work/compiled.txt"
caught '< laconic/core/escaped.h' bash "$project/tests/headers/check.sh" "$work" "$work/copy/include"

rejects() { bash "$project/tests/compile_fail/check.sh" "$compiler" "$flags" "$work/case.cpp"; }
printf '%s\n' '// expect: anything' 'int main() {}' >"$work/case.cpp"
caught 'compiles, but should not' rejects
printf '%s\n' '// expect: one reason' 'static_assert(false, "another reason");' >"$work/case.cpp"
caught 'the first error is' rejects
printf '%s\n' '// expect: the second' 'static_assert(false, "first");' 'static_assert(false, "the second");' >"$work/case.cpp"
caught 'the first error is' rejects
printf '%s\n' 'static_assert(false, "no sentence expected");' >"$work/case.cpp"
caught "no line '// expect: ...'" rejects

plant README.md ''
cp -r "$project/examples" "$work/copy/"
sed 's/std::printf/std::puts/' "$project/README.md" >"$work/copy/README.md"
caught "the README's example is not" bash "$project/tests/documentation/check.sh" "$work/copy"

plant tests/consumer/new.txt ''
cp -r "$project/cmake" "$project/CMakeLists.txt" "$work/copy/"
cp -r "$project/tests/consumer" "$work/copy/tests/"
echo 'target_compile_options(laconic INTERFACE -march=native)' >>"$work/copy/CMakeLists.txt"
caught 'laconic brings flags:  -march' bash "$project/tests/consumer/check.sh" add_subdirectory "$cmake" "$compiler" \
  "$work/copy" "" "$work/consumer"

echo "$planted planted errors, all caught"
