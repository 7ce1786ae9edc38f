#!/usr/bin/env bash
# Builds and runs a small project that uses laconic in one WAY:
#   find_package                  installed, with the components io and speech
#   find_package_compiled         installed, with the component compiled: kernels and solvers come from a library
#   find_package_without_extras   installed, on a machine without nlohmann_json, libsndfile and OpenMP: the core alone
#   find_package_missing          there, a project that asks for speech is told what is missing
#   add_subdirectory              from its source folder
#   fetch_content                 the same by FetchContent
#   include_folder                without CMake: an include path is enough
#   usage: check.sh WAY CMAKE COMPILER SOURCE_DIR BUILD_DIR WORK_DIR
set -euo pipefail
unset CXXFLAGS
way=$1 cmake=$2 compiler=$3 source=$4 build=$5 work=$6
rm -rf "$work"
mkdir -p "$work"

fail() {
  echo "consumer.$way: $*"
  exit 1
}
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; fail "failed: $*"; } }
part() { sed -n "s/^#define LACONIC_VERSION_$1 //p" "$source/include/laconic/core/version.hpp"; }

configure() {
  "$cmake" -S "$source/tests/consumer" -B "$work/build" -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCMAKE_PREFIX_PATH="$work/prefix" \
    -DLACONIC_VERSION="$(part MAJOR).$(part MINOR)" "$@"
}
without_extras=(-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON
  -DCMAKE_DISABLE_FIND_PACKAGE_SndFile=ON -DLACONIC_SndFile_LIBRARY:FILEPATH=)

case $way in find_package*) quietly "$cmake" --install "$build" --component laconic --prefix "$work/prefix" ;; esac
programs=core
case $way in
  find_package)
    programs="core speech"
    quietly configure "-DPARTS=io;speech"
    ;;
  find_package_compiled)
    quietly "$cmake" --install "$build" --component laconic_compiled --prefix "$work/prefix"
    quietly configure "-DPARTS=compiled"
    ;;
  find_package_without_extras) quietly configure "${without_extras[@]}" ;;
  find_package_missing)
    if configure "-DPARTS=speech" "${without_extras[@]}" >"$work/log" 2>&1; then
      fail "a project that asks for speech is configured where nlohmann_json is missing"
    fi
    tr -s ' \n' ' ' <"$work/log" | grep -q "component io: missing nlohmann_json" ||
      { cat "$work/log"; fail "the message does not say what is missing"; }
    if configure "-DPARTS=mpi" -DCMAKE_DISABLE_FIND_PACKAGE_MPI=ON >"$work/log" 2>&1; then
      fail "a project that asks for mpi is configured where MPI is missing"
    fi
    grep -q 'component mpi: missing MPI' "$work/log" || { cat "$work/log"; fail "the message does not name MPI"; }
    exit 0
    ;;
  add_subdirectory)
    programs="core speech"
    quietly configure -DUSE=add_subdirectory -DLACONIC_SOURCE_DIR="$source" "-DPARTS=io;speech"
    ;;
  fetch_content) quietly configure -DUSE=fetch_content -DLACONIC_SOURCE_DIR="$source" ;;
  include_folder)
    quietly "$compiler" "@$build/tests/user_flags.txt" -O1 "$source/tests/consumer/main.cpp" -o "$work/core"
    exec "$work/core"
    ;;
  *) fail "no such way" ;;
esac
# A user's flags are the user's: laconic brings none for the processor, warnings or optimisation. The compiled library
# brings the processor's, which its names hold.
if [ "$way" != find_package_compiled ] && flags=$(grep -oE -e ' -(march|mtune|m[a-z]*avx|W|O|f(fast|sanitize|no))[^ "]*' "$work/build/compile_commands.json"); then
  fail "laconic brings flags: $flags"
fi

quietly "$cmake" --build "$work/build"
for program in $programs; do "$work/build/$program" || fail "$program exits $?"; done
