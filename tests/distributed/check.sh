#!/usr/bin/env bash
# Runs mpi_program in 1 to 4 processes, and in 3 of which one fails.
#   usage: check.sh PROGRAM MPIEXEC
set -euo pipefail
program=$1 mpiexec=$2
# For root, as in a container, and more processes than processors. Open MPI alone has, and needs, these settings.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"  # Open MPI leaves memory behind
for n in 1 2 3 4; do timeout 120 "$mpiexec" -n "$n" "$program" "$n" pass; done
"$program" 1 pass  # without mpirun
code=0
said=$(timeout 60 "$mpiexec" -n 3 "$program" 3 fail 2>&1) || code=$?
[ "$code" != 0 ] && [ "$code" != 124 ] || { echo "a process that fails left exit code $code: $said"; exit 1; }
grep -q 'process 2 of 3: this process fails' <<<"$said" || { echo "not said: $said"; exit 1; }
