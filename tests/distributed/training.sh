#!/usr/bin/env bash
# Trains in several processes: one, two and four give the same files, and a job of which a random process is killed ends
# with a sentence and goes on, in another number of processes, to the same files.
#   usage: training.sh LACONIC MPIEXEC [KILLED_JOBS]
set -euo pipefail
laconic=$1 mpiexec=$2 jobs=${3:-2}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"  # Open MPI leaves memory behind
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
fail() {
  echo "training.sh: $*" >&2
  exit 1
}

"$laconic" data speak --out digits --train 40 --valid 6 --test 8 >/dev/null 2>&1
settings=(--data digits --d-model 16 --layers 1 --heads 2 --subsampling-channels 4 --epochs 12 --batch-frames 600
  --accumulate 4 --threads 1 --checkpoint-steps 1)
train() { # PROCESSES FOLDER
  timeout 120 "$mpiexec" -n "$1" "$laconic" train "${settings[@]}" --out "$2"
}
same() { # FOLDER
  cmp -s alone/losses.csv "$1/losses.csv" || fail "$1: other losses than one process has"
  cmp -s alone/model/model.safetensors "$1/model/model.safetensors" || fail "$1: another model than one process has"
}

"$laconic" train "${settings[@]}" --out alone >/dev/null 2>&1
for n in 2 4; do
  train "$n" "together$n" >said 2>&1 || fail "$n processes: $(cat said)"
  [ "$(grep -c '^validation WER' said)" = 1 ] || fail "$n processes: not said once: $(cat said)"
  same "together$n"
done

processes_of() { # FOLDER
  local process
  for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2>/dev/null)" != laconic ] ||
      ! tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q -- "--out $1 " || echo "${process#/proc/}"
  done
}

killed=0
for ((i = 0; killed < jobs; ++i)); do
  [ "$i" -lt $((4 * jobs + 4)) ] || fail "only $killed of $i jobs ran long enough to be killed"
  run=$folder/stopped$i
  train 4 "$run" >said 2>&1 &
  job=$!
  until [ -f "$run/losses.csv" ]; do
    kill -0 $job 2>/dev/null || fail "ended before it began: $(cat said)"
    sleep 0.02
  done
  sleep "0.$((RANDOM % 6))"
  victim=$(processes_of "$run" | shuf -n 1)
  code=0
  if [ -n "$victim" ] && kill -9 "$victim" 2>/dev/null; then
    wait $job || code=$?
    if [ "$code" = 0 ]; then  # it was done, but not yet gone
      same "$run"
      continue
    fi
    [ "$code" != 124 ] || fail "a killed process left exit code $code: $(cat said)"
    grep -qi 'signal:\? 9' said || fail "a killed process was not named: $(cat said)"
    killed=$((killed + 1))
  else
    wait $job || fail "$(cat said)"  # it was done before
  fi
  train $((1 << RANDOM % 3)) "$run" >said 2>&1 || fail "did not go on: $(cat said)"
  same "$run"
done
echo "a process of each of $killed jobs was killed; all came to the model of one process"

# What cannot be shared, and what does not fit, is said once and ends all.
refuse() { # SENTENCE ARGUMENTS...
  local sentence=$1
  shift
  local code=0
  timeout 60 "$mpiexec" -n 2 "$laconic" "$@" >said 2>&1 || code=$?
  [ "$code" != 0 ] && [ "$code" != 124 ] || fail "exit code $code of: $*"
  grep -q "process 0 of 2: $sentence" said || fail "'$sentence' expected of: $*: $(cat said)"
}
refuse 'quantize: 2 processes given by mpirun, one expected' quantize --input alone --output q --weights int8
refuse 'train: accumulate 1 given for 2 processes' train --data digits --out few
refuse 'nowhere/train.jsonl: no such file or folder' train --data nowhere --out none

for at_once in 1 80; do
  "$laconic" eval --model alone --data digits/test.jsonl --at-once $at_once --transcripts one.jsonl >one.txt 2>said ||
    fail "eval: $(cat said)"
  timeout 120 "$mpiexec" -n 3 "$laconic" eval --model alone --data digits/test.jsonl --at-once $at_once --transcripts three.jsonl \
    >three.txt 2>said || fail "eval in three processes: $(cat said)"
  cmp -s one.jsonl three.jsonl || fail "three processes transcribe otherwise"
  [ "$(head -n 1 one.txt)" = "$(head -n 1 three.txt)" ] || fail "three processes count otherwise: $(head -n 1 three.txt)"
done
