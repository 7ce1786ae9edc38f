#!/usr/bin/env bash
# Checks that the name LACONIC_ABI tells apart what changes compiled code: files compiled with different flags do not
# link, files compiled with the same flags do, and every macro that the installed xsimd chooses by is in the name.
#   usage: check.sh COMPILER FLAGS_FILE VERSION_HEADER
set -euo pipefail
compiler=$1 flags=$2 version=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "$*"
  exit 1
}

# Exempt is what names the compiler, or a processor whose files never meet others in one program.
exempt='__clang__|__clang_major__|__GNUC__|__cplusplus|__SSE__|__ARM_ARCH|__aarch64__|__ARM_FEATURE_SVE|__riscv_vector'
exempt+='|__EMSCRIPTEN__'
includes=$(echo '#include <xsimd/config/xsimd_config.hpp>' | "$compiler" "@$flags" -x c++ -M -)
config=$(tr ' ' '\n' <<<"$includes" | grep xsimd_config)
for macro in $(grep -oE '\b__[A-Za-z0-9_]+\b' "$config" | sort -u | grep -vxE "$exempt"); do
  grep -qw "$macro" "$version" || fail "xsimd chooses by $macro, which is not part of LACONIC_ABI ($version)"
done

[ "$(uname -m)" = x86_64 ] || exit 0
cat >"$work/callee.cpp" <<'END'
#include <laconic/core/sequences.hpp>
laconic::Index rows(const laconic::Sequences& s) { return s.rows(); }
END
cat >"$work/caller.cpp" <<'END'
#include <laconic/core/sequences.hpp>
laconic::Index rows(const laconic::Sequences&);
int main() { return static_cast<int>(rows(laconic::Sequences{1})); }
END
kinds=("" -msse3 -mssse3 -msse4.1 -msse4.2 -mavx -mavx2 "-mavx -mfma" "-mavx2 -mfma" "-mavx512f -mfma"
  "-mavx512cd -mfma" "-mavx512dq -mfma" "-mavx512bw -mfma" "-mavx512vnni -mfma" "-mavx512vbmi -mfma" -fopenmp
  "-mavx2 -fopenmp" -DEIGEN_MAX_ALIGN_BYTES=32 -DEIGEN_DONT_VECTORIZE "-mavx2 -DEIGEN_MAX_ALIGN_BYTES=16")
name() { echo LACONIC_ABI | "$compiler" "@$flags" $1 -include "$version" -E -P -x c++ - | tail -n 1; }
for kind in "${kinds[@]}"; do echo "$(name "$kind") ($kind)"; done | sort >"$work/names"
cat "$work/names"
cut -d' ' -f1 "$work/names" | uniq -d | grep . && fail "the same name for different flags"

# shellcheck disable=SC2086
object() { "$compiler" "@$flags" -O1 $2 -c "$work/$1.cpp" -o "$work/$1.o"; }
links() { "$compiler" "$work/caller.o" "$work/callee.o" -o "$work/linked" 2>"$work/log"; }
pair() {
  object caller "$1"
  object callee "$2"
  links
}
for kind in "-mavx2 -mfma" -fopenmp; do pair "$kind" "$kind" || fail "does not link with itself: $kind"; done
while IFS=: read -r one other; do
  if pair "$one" "$other"; then fail "they link: '$one' with '$other'"; fi
  grep -q 'undefined reference\|undefined symbol' "$work/log" || fail "$(cat "$work/log")"
done <<'END'
-mavx2:-mavx2 -mfma
-msse3:-msse4.1
-mavx2:-mavx2 -fopenmp
-mavx512bw -mfma:-mavx512bw -mavx512vnni -mfma
-mavx2:-mavx2 -DEIGEN_MAX_ALIGN_BYTES=16
END
echo "All are told apart."
