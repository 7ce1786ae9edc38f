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
plant include/laconic/laconic.hpp '#include <laconic/train/adamw.hpp>'
caught 'laconic/laconic.hpp (floor 4) includes <laconic/train/adamw.hpp> (floor 6)' floors
plant include/laconic/core/forgotten.hpp '#pragma once'
caught ' laconic/core/forgotten.hpp ' floors
plant include/laconic/speech/audio.hpp 'int file = ::open("a", 0);'
caught 'may open files: include/laconic/speech/audio.hpp:' floors
plant include/laconic/speech/audio.hpp 'std::ifstream file("a");'
caught 'may open files: include/laconic/speech/audio.hpp:' floors
plant include/laconic/speech/audio.hpp 'int code = std::system("ls");'
caught 'may start programs: include/laconic/speech/audio.hpp:' floors
plant include/laconic/speech/audio.hpp 'int count = std::printf("%s", name);'
caught 'may write to the terminal: include/laconic/speech/audio.hpp:' floors

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
documentation() { bash "$project/tests/documentation/check.sh" "$work/copy"; }
caught "the README's example is not" documentation
cp "$project/README.md" "$work/copy/"
cp -r "$project/docs" "$project/tests" "$work/copy/"
documentation
sed 's/search.push(logits.topRows(5))/search.push(logits)/' "$project/docs/using.md" >"$work/copy/docs/using.md"
caught 'docs/using.md shows what is not in examples/15_beams.cpp' documentation
cp "$project/docs/using.md" "$work/copy/docs/"
touch "$work/copy/examples/99_new.cpp"
caught 'does not list 99_new.cpp' documentation

lesson() { bash "$project/tests/documentation/lesson.sh" "$work/program" "$work/lesson.cpp"; }
printf '%s\n' '#!/bin/sh' 'echo 2; echo 1; exit "$(cat "$0.code")"' >"$work/program"
chmod +x "$work/program"
echo 0 >"$work/program.code"
echo 'int main() {}' >"$work/lesson.cpp"
caught "no line '// prints: ...'" lesson
printf '// prints: %s\n' '^2$' '^1$' >"$work/lesson.cpp"
lesson >"$work/log"
printf '// prints: %s\n' '^1$' '^2$' >"$work/lesson.cpp"
caught 'does not print: ^2$' lesson
echo 3 >"$work/program.code"
caught 'failed with exit code 3' lesson

guide() { bash "$project/tests/documentation/guide.sh" "$work/program" "$work/guide.md"; }
printf '%s\n' '#!/bin/sh' '[ "$1" = print ] && echo "12.5% of $2" >&2' >"$work/program"
guide_of() { printf '%s\n' '```sh' "$1" '```' '```text' "$2" '```' >"$work/guide.md"; }
guide_of 'laconic print words' '3% of  words'
guide >"$work/log"
guide_of 'laconic print words' '3% of'
caught 'not printed: 3% of' guide
guide_of 'laconic print words --json new.json' '3% of words'
caught 'this writes no new.json' guide
guide_of 'laconic eval | cat' '3% of words'
caught 'this fails: laconic eval | cat' guide
echo >"$work/guide.md"
caught 'no sh block' guide

# Words: what must be found, and beside it what must not.
words() { bash "$project/scripts/check-words" "$work/copy" include/laconic/core/error.hpp docs/page.md; }
sentence='A sentence that goes on and on, for much longer than any line of prose should be, until it is beyond the last column there is.'
plant docs/page.md 'A page.'
printf '%s\n' '/// Returns one.' 'int one();' >"$work/copy/include/laconic/core/error.hpp"
printf '%s\n' "| $sentence |" '```' "$sentence" '```' '85% were reached; who was it that asked?' >>"$work/copy/docs/page.md"
words
while IFS='|' read -r kind file line; do
  cp -r "$work/copy/include/laconic/core/error.hpp" "$work/copy/docs/page.md" "$work/"
  printf '%b\n' "$line" >>"$work/copy/$file"
  caught ": $kind: " words
  cp "$work/error.hpp" "$work/copy/include/laconic/core/"
  cp "$work/page.md" "$work/copy/docs/"
done <<END
fragment|include/laconic/core/error.hpp|/// Of the pushes, this part took no longer.
fragment|include/laconic/core/error.hpp|/// The same without it.
fragment|include/laconic/core/error.hpp|int two();  ///< where it is
fragment|include/laconic/core/error.hpp|/// Returns one.\nint one();\n/// Those of one.
long|include/laconic/core/error.hpp|// $sentence
long|docs/page.md|$sentence
asked|docs/page.md|85% was asked, and is reached.
asked|docs/page.md|It is what was\nasked.
END

# scripts/check as a whole, where its tools are.
if command -v git clang-format clang-tidy >/dev/null; then
  rm -rf "$work/copy"
  mkdir -p "$work/copy/tests/core"
  cp -r "$project/include" "$project/single_include" "$project/scripts" "$project/.clang-format" "$project/.clang-tidy" "$work/copy/"
  cp "$project"/tests/core/*_test.cpp "$work/copy/tests/core/"
  git=(git -C "$work/copy" -c user.name=guards -c user.email=guards@localhost)
  "${git[@]}" init -q -b main
  "${git[@]}" add -A
  "${git[@]}" commit -q -m copy
  check() { bash "$work/copy/scripts/check" "$@"; }
  check >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  caught "'nothing' given, a test or one of these expected: core compile_fail" check nothing
  printf '%s\n' '' 'inline int planted() { int a = 0,b = 1; return a + b; }' '#include <iostream>' >>"$work/copy/include/laconic/core/error.hpp"
  caught 'FAILED: format check-floors amalgamate --check tidy' check
else
  echo "not planted: errors for scripts/check, which needs git, clang-format and clang-tidy"
fi

plant tests/consumer/new.txt ''
cp -r "$project/cmake" "$project/src" "$project/CMakeLists.txt" "$work/copy/"
cp -r "$project/tests/consumer" "$work/copy/tests/"
echo 'target_compile_options(laconic INTERFACE -march=native)' >>"$work/copy/CMakeLists.txt"
caught 'laconic brings flags:  -march' bash "$project/tests/consumer/check.sh" add_subdirectory "$cmake" "$compiler" \
  "$work/copy" "" "$work/consumer"

echo "$planted planted errors, all caught"
