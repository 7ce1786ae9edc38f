#!/usr/bin/env bash
# The programs `laconic` and `laconic-study` from outside: a corpus, a model, its conversions, and every bad input.
#   usage: command_line_test.sh LACONIC LACONIC_STUDY C_TRANSCRIBE C_STREAMS
set -uo pipefail
export LC_ALL=C
laconic=$(realpath "$1")
study=$(realpath "$2")
c_transcribe=$(realpath "$3")
c_streams=$(realpath "$4")
program=$laconic  # the one that is tested
work=$(mktemp -d)
mounted=
cleanup() {
  [ -z "$mounted" ] || umount "$mounted"
  rm -rf "$work"
}
trap cleanup EXIT
cd "$work" || exit 1
checks=0

fail() {
  echo "FAILED: $*"
  for log in out err; do [ ! -s "$log" ] || { echo "--- std$log:"; head -c 3000 "$log"; }; done
  exit 1
}
# ok ARGUMENTS...: laconic does its job. One thread: tests run beside others.
ok() {
  "$program" "$@" --threads 1 >out 2>err || fail "laconic $* (exit code $?)"
  checks=$((checks + 1))
}
says() { grep -qF -- "$2" "$1" || fail "std$1 does not say: $2"; }
# refused OFFENDER... -- ARGUMENTS...: a non-zero exit, one line of explanation that names the offenders, nothing new in
# the folder (so no partial file, no folder `new`).
refused() {
  local offenders=() before code
  while [ "$1" != -- ]; do
    offenders+=("$1")
    shift
  done
  shift
  before=$(find . -path ./out -o -path ./err -o -print | sort)
  "$program" "$@" --threads 1 >out 2>err
  code=$?
  [ "$code" -ne 0 ] || fail "accepted: laconic $*"
  [ "$code" -lt 126 ] || fail "crashed with exit code $code: laconic $*"
  [ "$(grep -vc -e '^reading ' -e '^making ' -e '^note: ' -e ' parameters, ' -e '^epoch ' err)" -eq 1 ] || fail "not one line: laconic $*"
  [ "$(grep -c "^$(basename "$program"): " err)" -eq 1 ] || fail "no line with the program's name: laconic $*"
  for offender in "${offenders[@]}"; do
    grep "^$(basename "$program"): " err | grep -qF -- "$offender" || fail "does not name '$offender': laconic $*"
  done
  [ "$before" = "$(find . -path ./out -o -path ./err -o -print | sort)" ] || fail "left something: laconic $*: $(find . -newer out)"
  checks=$((checks + 1))
}
# misused TEXT ARGUMENTS...: a wrong command line; CLI11 words these.
misused() {
  local text=$1
  shift
  "$program" "$@" >out 2>err && fail "accepted: laconic $*"
  says err "$text"
  says err 'Run with --help'
  checks=$((checks + 1))
}

# number VALUE BYTES: little endian, as escapes of printf.
number() {
  local i value=$1
  for ((i = 0; i < $2; i++)); do printf '\\x%02x' $((value >> (8 * i) & 255)); done
}
# wav FILE RATE CHANNELS FRAMES HZ [HZ]: a 16-bit WAV file of one tone, or two.
wav() {
  local bytes=$(($4 * $3 * 2))
  {
    printf "RIFF$(number $((36 + bytes)) 4)WAVEfmt $(number 16 4)$(number 1 2)$(number "$3" 2)"
    printf "$(number "$2" 4)$(number $(($2 * $3 * 2)) 4)$(number $(($3 * 2)) 2)$(number 16 2)data$(number "$bytes" 4)"
    printf "$(awk -v rate="$2" -v channels="$3" -v frames="$4" -v f="$5" -v g="${6:-$5}" 'BEGIN {
      for (t = 0; t < frames; ++t) {
        x = int(6000 * sin(6.2831853 * f * t / rate) + 6000 * sin(6.2831853 * g * t / rate))
        if (x < 0) x += 65536
        for (c = 0; c < channels; ++c) printf "\\%03o\\%03o", x % 256, int(x / 256)
      }
    }')"
  } >"$1"
}

# --- Help and version.
"$laconic" --version >out 2>err || fail "laconic --version"
grep -qE '^[0-9]+\.[0-9]+\.[0-9]+ \(.+\)$' out || fail "--version does not print a version and an instruction set"
for command in "" data "data digits" "data speak" train convert quantize eval compare transcribe align profile gpt "gpt train" "gpt eval" \
  "gpt sample" mnist "mnist train" "mnist eval" "mnist profile"; do
  # shellcheck disable=SC2086
  "$laconic" $command --help >out 2>err || fail "laconic $command --help"
  says out 'Example:'
done
for command in "" conversion streaming; do
  # shellcheck disable=SC2086
  "$study" $command --help >out 2>err || fail "laconic-study $command --help"
  says out 'Example:'
done
misused 'subcommand is required'
misused '--no-such-option' eval --model m --data d --no-such-option
misused '--attention' train --data corpus --out new --attention mla-full
misused '--data' train --out new
misused '--out' train --data corpus
misused '--threads: 0 given, a whole number from 1 to 64 expected' eval --model m --data d --threads 0
misused '--threads: many given, a whole number from 1 to 64 expected' eval --model m --data d --threads many
misused '--epochs: 1.5 given, a whole number expected' train --data corpus --out new --epochs 1.5
misused '--seed: -1 given, a whole number of at least 0 expected' eval --model m --data d --seed -1
misused '--feature-memory: nan given, a number from 0 to 1e+06 expected' train --data corpus --out new --feature-memory nan
misused '--at-once: nan given' eval --model m --data d --at-once nan
# Names of files and folders are not empty.
empty='an empty text given, the name of a file or folder expected'
misused "--out: $empty" train --data corpus --out ''
misused "--json: $empty" eval --model m --data d --json ''
misused "--transcripts: $empty" eval --model m --data d --transcripts ''
misused "--output: $empty" convert --input run --output ''
misused "--plot: $empty" compare a b --plot ''
misused 'no?[31m' eval --model m --data d $'--no\033[31m'
misused '--latent-dim' train --data corpus --out new --init model --latent-dim 4

# --- A corpus of tones in place of digits.
mkdir recordings
for digit in 0 1 2 3 4 5 6 7 8 9; do
  wav "recordings/${digit}_tone_0.wav" 8000 1 960 $((250 + 110 * digit)) $((3400 - 220 * digit))
  for index in 5 8; do cp "recordings/${digit}_tone_0.wav" "recordings/${digit}_tone_$index.wav"; done
done
ok data digits --recordings recordings/ --out corpus --train 60 --valid 4 --test 8
[ -s corpus/train.jsonl ] || fail "no corpus/train.jsonl"
says out 'corpus/test.jsonl'
refused corpus -- data digits --recordings recordings --out corpus
refused nowhere -- data digits --recordings nowhere --out new
refused nobody -- data digits --recordings recordings --out new --holdout-speaker nobody
touch recordings/notes.wav
refused notes.wav -- data digits --recordings recordings --out new
rm recordings/notes.wav
mv recordings/7_tone_8.wav kept.wav
refused 'no digit 7' -- data digits --recordings recordings --out new
: >recordings/7_tone_8.wav
refused 7_tone_8.wav -- data digits --recordings recordings --out new
mv kept.wav recordings/7_tone_8.wav

# --- Training, measuring, transcribing, converting, fine-tuning.
# Ten tones are learnt in a second: transcripts that are empty would be equal whatever a conversion did.
tiny="--d-model 32 --layers 1 --heads 4 --conv-kernel 3 --subsampling-channels 4 --mels 20 --epochs 30 --lr 1e-2 --batch-frames 400"
# shellcheck disable=SC2086
ok train --data corpus --out run $tiny --json train.json --seed 3
for file in run/model/config.json run/model/vocab.json run/model/model.safetensors run/losses.csv run/checkpoint.safetensors; do
  [ -s "$file" ] || fail "no $file"
done
says err 'valid WER'
grep -q '"valid_wer"' train.json || fail "train.json does not hold the WER"
# shellcheck disable=SC2086
ok train --data corpus --out run2 $tiny --seed 3 --recompute --feature-memory 1e-9
says err "60 of 60 utterances do not fit 0.00 GiB"
cmp run/model/model.safetensors run2/model/model.safetensors || fail "the same seed gives another model, or what was computed again does"

ok eval --model run --data corpus/test.jsonl --json eval.json --transcripts mha.jsonl
says out 'WER '
for key in wer wer_low wer_high substitutions deletions insertions cache_bytes_per_second parameters peak_memory_bytes utterance_names; do
  grep -q "\"$key\"" eval.json || fail "eval.json does not hold $key"
done
[ "$(grep -c '"hypothesis":"[a-z]' mha.jsonl)" -eq 8 ] || fail "mha.jsonl does not hold 8 transcripts of words"
ok transcribe --model run/model recordings/3_tone_0.wav recordings/4_tone_0.wav
[ "$(grep -c '^recordings/[34]_tone_0.wav: ' out)" -eq 2 ] || fail "not two transcripts"

# Many files: a line each in the order given; threads and windows that are long enough change nothing.
files=(recordings/[3-9]_tone_0.wav recordings/[0-2]_tone_0.wav)
ok transcribe --model run "${files[@]}" --json whole.json --logits whole.safetensors
mv out whole.txt
says err '/whole.safetensors'
[ "$(sed 's/: .*//' whole.txt)" = "$(printf '%s\n' "${files[@]}")" ] || fail "not in the order given"
"$laconic" transcribe --model run "${files[@]}" --json dealt.json --logits dealt.safetensors --threads 3 >out 2>err || fail "three threads"
cmp out whole.txt || fail "threads change what is heard"
for kind in json safetensors; do cmp dealt.$kind whole.$kind || fail "threads change whole.$kind"; done
# A file that cannot be heard is said, the others are heard, and the exit code is 1.
wav slow.wav 10 1 5 1
"$laconic" transcribe --model run recordings/3_tone_0.wav slow.wav missing.wav recordings/4_tone_0.wav --json some.json >out 2>err
[ $? -eq 1 ] || fail "an error is not an exit code"
[ "$(grep -c '^recordings/[34]_tone_0.wav: ' out)" -eq 2 ] || fail "good files were not heard beside bad ones"
for line in 'laconic: slow.wav: ' 'laconic: missing.wav: ' 'laconic: 2 of 4 files could not be transcribed'; do says err "$line"; done
[ "$(grep -c '"error":' some.json)" -eq 2 ] || fail "some.json does not hold the errors"
refused missing.wav -- transcribe --model run missing.wav --json new.json
# Two files in one, with silence between them.
{ cat recordings/3_tone_0.wav; head -c 9000 /dev/zero; cat recordings/4_tone_0.wav; } >two.wav
refused '1 of 1 files were not heard whole' -- transcribe --model run two.wav
says err 'note: two.wav: after the samples that the header tells of follow 109'
# Words with times, in each format.
ok transcribe --model run corpus/wav/test_*.wav --format ctm
[ -s out ] || fail "no words in CTM"
awk 'NF != 6 || $2 != 1 || $3 < 0 || $4 <= 0 || $6 < 0 || $6 > 1 { exit 1 }' out || fail "no CTM"
ok transcribe --model run "${files[@]}" --format json --confidence entropy
[ "$(grep -c '"words":\[' out)" -eq 10 ] || fail "not ten objects"
ok transcribe --model run recordings/3_tone_0.wav --format vtt
says out WEBVTT
ok transcribe --model run recordings/3_tone_0.wav --format srt
refused '--format srt' -- transcribe --model run recordings/3_tone_0.wav recordings/4_tone_0.wav --format srt
misused '--window' transcribe --model run "${files[@]}" --window 0
misused '--window' transcribe --model run "${files[@]}" --window 1 --streaming
# A known text.
ok align --model run recordings/3_tone_0.wav --text 'three' --json aligned.json
grep -qE '^[0-9.]+ [0-9.]+ -?[0-9.]+ three$' out || fail "no line with times"
grep -q '"word": "three"' aligned.json || fail "aligned.json holds no word"
ok align --model run recordings/3_tone_0.wav --text 'three & co' --format ctm
says err "note: left out 2 times what the vocabulary lacks: & co"
refused 'without a token of the vocabulary' -- align --model run recordings/3_tone_0.wav --text '&' --json new.json
refused 'frames given, at least' -- align --model run recordings/3_tone_0.wav --text "$(yes three | head -n 500 | tr '\n' ' ')"
cp recordings/3_tone_0.wav $'red\033[31m.wav'
ok transcribe --model run $'red\033[31m.wav'
says out 'red?[31m.wav: '
# --- What models cost, and published ones by name. No time is compared with any.
ok profile --list
[ "$(grep -c '^[a-z]*former_[a-z_]* ' out)" -eq 16 ] || fail "not 16 published models"
ok profile --name branchformer_mla_small --frames 8 --repeats 1 --cache int8 --json profile.json --plot profile.svg
for line in 'parameters, M' 'expanded path' 'cache of keys and values' 'encoding' 'pushes of 8' 'left context 32' 'all kept'; do says out "$line"; done
# What a line of profile.json says, wherever it stands.
for line in '"total": 1122304' '"weight_bytes": 4489216' '"bytes": 8192' '"bytes_per_frame": 272' '"storage": "int8"' '"left_context": 32' \
  '"left_context": -1' '"convolution_bytes": 43008' '"attention_path": "expanded"' '"threads": 1' '"frames_before": 24'; do
  says profile.json "$line"
done
[ "$(grep -c '"seconds_median": [0-9]' profile.json)" -eq 12 ] || fail "profile.json does not hold 4 lengths encoded, and 2 x 4 streamed"
[ -s profile.svg ] || fail "no profile.svg"
ok profile --model run --frames 8 --repeats 1
says out 'streaming: not measured. conformer: a centred convolution cannot be streamed'
ok profile --name conformer_linear_small --frames 8 --repeats 1 --chunk 3
says out 'pushes of 3'
says out 'state of attention'
refused conformer_mlq conformer_mla branchformer_linear_small -- profile --name conformer_mlq --json new.json
refused nowhere -- profile --model nowhere
refused memory GiB -- profile --name conformer_mha --frames 1000000
refused new.gif -- profile --name conformer_mha_small --plot new.gif
refused nowhere -- profile --name conformer_mha_small --plot nowhere/new.png
misused '--name or --model' profile --frames 8
misused '--model' profile --name conformer_mha_small --model run
misused '--frames' profile --name conformer_mha_small --frames 7
misused '--frames' profile --name conformer_mha_small --frames many
ok train --data corpus --out named --name branchformer_mla_small --epochs 1
grep -q '"kv_lora_rank": 64' named/model/config.json && grep -q '"branchformer"' named/model/config.json || fail "not branchformer_mla_small"
misused '--name' train --data corpus --out new --name conformer_mha_small --heads 4
refused conformer_mlq -- train --data corpus --out new --name conformer_mlq

wav stereo.wav 44100 2 20000 440
ok transcribe --model run stereo.wav
says err '2 channels averaged; 44100 Hz resampled to 8000 Hz'

ok convert --input run --output mla --attention mla-simple --latent-dim 32 --speech corpus/valid.jsonl --json convert.json
says out 'measured on corpus/valid.jsonl'
says out '(50.00%)'
grep -q '"output_error"' convert.json || fail "convert.json does not hold the error"
ok eval --model mla --data corpus/test.jsonl --transcripts mla.jsonl --json mla.json
cmp mha.jsonl mla.jsonl || fail "R = d does not give the same transcripts"
ln -s mla1 later # an output that is a link to what does not exist yet
ok convert --input run --output later --attention mla-simple --latent-dim 1
[ -L later ] && [ -f mla1/config.json ] || fail "a link to a new folder was not followed"
ok convert --input run --output low --attention mla-head --latent-dim 8 --v-latent-dim 4 --json low.json
says low.json '"v_lora_rank": 4'
says out ' 8/4 '
ok eval --model mla1 --data corpus/test.jsonl --transcripts mla1.jsonl --json mla1.json
cmp -s mha.jsonl mla1.jsonl && fail "R = 1 gives the same transcripts, so that equal ones say nothing"
cp -r mla1 mla1b
printf '\1' | dd of=mla1b/model.safetensors bs=1 seek=$(($(stat -c %s mla1/model.safetensors) - 4)) conv=notrunc status=none
cmp -s mla1/model.safetensors mla1b/model.safetensors && fail "no parameter was changed"
# Rounded weights: smaller, nearly the same, and a model folder like any other.
ok quantize --input run --output int8 --data corpus/valid.jsonl --json quantize.json
says out 'transcripts changed'
grep -q '"logits_error": 0.0' quantize.json || fail "quantize.json: $(cat quantize.json)"
grep -qa '"dtype":"I8"' int8/model.safetensors || fail "no bytes in int8/model.safetensors"
ok eval --model int8 --data corpus/valid.jsonl
ok quantize --input mla --output bf16 --weights bf16
ok eval --model bf16 --data corpus/valid.jsonl
ok train --init int8 --data corpus --out from-int8 --epochs 1
refused 'another folder' -- quantize --input run --output run
refused nowhere -- quantize --input nowhere --output new
rm -r int8 bf16 from-int8

ok convert --input run --output gqa --attention gqa --kv-heads 2
says out '(50.00%)'
ok eval --model gqa --data corpus/test.jsonl
ok train --data corpus --init mla --out tuned --epochs 1 --freeze subsampling --accumulate 2
ok eval --model tuned --data corpus/test.jsonl

# --- Evaluations that were stopped, and refused what another one left.
for _ in {1..50}; do cat corpus/test.jsonl; done >corpus/long.jsonl
timeless() { grep -v -e compute_seconds -e push_seconds -e real_time_factor -e peak_memory_bytes "$1"; }
same() { diff <(timeless "$1") <(timeless "$2") >&2 || fail "$1 and $2 differ"; }
# resumed NAME ARGUMENTS...: an evaluation that is killed when it has done something, and goes on, ends as one that was
# not, and as one that goes through the corpus in larger portions. Leaves what the killed one left as NAME.left.
resumed() {
  local name=$1 killed
  shift
  ok eval "$@" --data corpus/long.jsonl --json "$name.whole.json" --transcripts "$name.whole.jsonl"
  "$laconic" eval "$@" --data corpus/long.jsonl --json "$name.json" --at-once 0.001 --threads 1 >out 2>err &
  killed=$!
  until [ -s "$name.json.partial" ]; do
    kill -0 $killed 2>/dev/null || fail "done before it could be killed: eval $*"
    sleep 0.02
  done
  kill -9 $killed
  wait $killed 2>/dev/null
  [ ! -e "$name.json" ] || fail "a killed evaluation has a result"
  cp "$name.json.partial" "$name.left"
  ok eval "$@" --data corpus/long.jsonl --json "$name.json" --transcripts "$name.jsonl" --at-once 0.001
  grep -qE "^going on after [1-9][0-9]* of 400 utterances, which $PWD/$name.json.partial holds\$" err || fail "does not say that it goes on"
  [ -z "$(find . -name "$name.json.partial*")" ] || fail "left: $(find . -name "$name.json.partial*")"
  same "$name.whole.json" "$name.json"
  cmp "$name.whole.jsonl" "$name.jsonl" || fail "other transcripts"
  checks=$((checks + 1))
}
resumed stopped --model mla1
# shellcheck disable=SC2086
ok train --data corpus --out live $tiny --chunk 4 --left-context -1 --normalization global
resumed live --model live --streaming --streams 3
# A file, read block by block, is heard as its samples on standard input are.
cat recordings/[0-9]_tone_0.wav | tail -c +45 >all.raw
{ head -c 44 recordings/0_tone_0.wav; cat all.raw; } >all.wav
printf "$(number "$(stat -c %s all.raw)" 4)" | dd of=all.wav bs=1 seek=40 conv=notrunc status=none
ok transcribe --model live --streaming --block-ms 33 all.wav
mv out heard
ok transcribe --model live --streaming --block-ms 33 - <all.raw
cmp heard out || fail "a file is heard otherwise than its samples"
grep -q '[a-z]' heard || fail "heard nothing, so that equal texts say nothing"
for format in ctm json srt; do
  ok transcribe --model live --streaming all.wav --format $format
  [ -s out ] || fail "nothing in format $format"
done
# By beam search, streams that are evaluated give the texts of streams that are transcribed. Tones between those of two
# digits may be either, so that hotwords decide.
for digit in 0 1 2 3 4 5 6 7 8; do
  wav "between_$digit.wav" 8000 1 1920 $((305 + 110 * digit)) $((3290 - 220 * digit))
  printf '{"audio_filepath":"between_%d.wav","text":"one"}\n' $digit
done >between.jsonl
beams=(--streaming --beam 20 --hotwords one,three,five,seven,nine)
ok eval --model live --data between.jsonl --streams 4 "${beams[@]}" --transcripts streamed.jsonl
sed -E 's/.*"hypothesis":"([^"]*)".*/\1/' streamed.jsonl >streamed
ok transcribe --model live "${beams[@]}" between_?.wav
sed 's/^[^:]*: //' out | cmp - streamed || fail "streams by beam search: eval has other texts than transcribe"
ok transcribe --model live --streaming between_?.wav
sed 's/^[^:]*: //' out | cmp -s - streamed && fail "hotwords change nothing, so that equal texts say nothing"
# An endpoint, at the latest after 20 s, decides the words of the utterance, and the next one begins.
for ((i = 0; i < 40; i++)); do cat all.raw; done >long.raw
ok transcribe --model live "${beams[@]}" --endpoint --json ends.json - <long.raw
grep -oE '"text": ?"[^"]*"' ends.json | cut -d '"' -f 4 >said
cmp <(paste -s -d ' ' out) <(head -n 1 said) || fail "utterances are not the text"
cmp out <(tail -n +2 said) || fail "lines are not utterances"
[ "$(wc -l <out)" -ge 2 ] || fail "no endpoint within $(stat -c %s long.raw) bytes"
refused 'begins with RIFF' -- transcribe --model live --streaming - <all.wav
# --vad hears only speech, each stretch as an utterance with its times, and says how much it did not hear.
{ head -c 32000 /dev/zero; cat all.raw; head -c 32000 /dev/zero; cat all.raw; head -c 16000 /dev/zero; } >pauses.raw
{ head -c 44 recordings/0_tone_0.wav; cat pauses.raw; } >pauses.wav
printf "$(number "$(stat -c %s pauses.raw)" 4)" | dd of=pauses.wav bs=1 seek=40 conv=notrunc status=none
for how in "" --streaming; do
  # shellcheck disable=SC2086
  ok transcribe --model live $how --vad pauses.wav --json pauses.json
  grep -Eq '^note: pauses.wav: [34]\.[0-9] of 7\.4 s taken as silence and not heard \(--vad\)$' err || fail "no note of silence"
  tr -d ' \n' <pauses.json | grep -Eq '"utterances":\[\{"begin":1\.[67][0-9.]*,"end":3\.[45][0-9.]*,"text":"[^"]+"\},\{"begin":4\.[89][0-9.]*,"end":6\.[67][0-9.]*,"text":"[^"]+"\}\]' ||
    fail "--vad $how: not two utterances: $(cat pauses.json)"
done
[ "$(grep -c '[a-z]' out)" -eq 2 ] || fail "--vad --streaming: not a line an utterance"
head -c 32000 /dev/zero >silence.raw
ok transcribe --model live --streaming --vad - <silence.raw
says err 'standard input: 2.0 of 2.0 s taken as silence and not heard (--vad)'
[ -z "$(tr -d '\n' <out)" ] || fail "silence has words"
misused '--vad' transcribe --model live --streaming --vad --endpoint all.wav
# Ctrl-C ends what is heard: the text so far is whole, and the JSON is written.
rm -f out
{ cat all.raw; sleep 20; } |
  env --default-signal=INT "$laconic" transcribe --model live --streaming --threads 1 --json live.json - >out 2>err &
for ((i = 0; i < 150; i++)); do [ ! -s out ] || break; sleep 0.1; done
pkill -INT -P $$ -f 'transcribe --model live --streaming --threads 1 --json live.json' || fail "it has ended by itself"
wait $! || fail "Ctrl-C is an error"
cut -c 1-10 heard | cmp - <(cut -c 1-10 out) || fail "Ctrl-C loses text"
grep -q '"text"' live.json || fail "Ctrl-C loses the JSON"
# The C interface, by programs in C: the same texts from several threads, and words.
"$c_streams" live 6 3 0 all.wav >out 2>err || fail "c_streams"
[ "$(sort -u out)" = "$(cat heard)" ] || fail "the C interface hears otherwise"
"$c_transcribe" live all.wav >words 2>err || fail "c_transcribe"
ok transcribe --model live all.wav
[ "all.wav: $(cut -d ' ' -f 4 words | paste -s -d ' ')" = "$(cat out)" ] || fail "the C interface has other words"
"$c_transcribe" run missing.wav >out 2>err && fail "c_transcribe hears what is not there"
says err missing.wav
printf 'no sound' >words.raw
refused words.raw 'cannot read as audio' -- transcribe --model live --streaming words.raw --json new.json

cp stopped.left other.json.partial
refused other.json.partial '(parameters: "' -- eval --model mla1b --data corpus/long.jsonl --json other.json
refused other.json.partial 'model/encoder/attention: "mla-simple" there and "mha" here' -- eval --model run --data corpus/long.jsonl --json other.json
sed 's/"text":"[a-z]*/&s/' corpus/long.jsonl >corpus/longer.jsonl
refused other.json.partial '(data: "' 'choose another name for --json, or delete it' -- eval --model mla1 --data corpus/longer.jsonl --json other.json
head -n 1 corpus/long.jsonl >corpus/one.jsonl
sed -E 's/"utterances_done":[0-9]+/"utterances_done":2/' stopped.left >other.json.partial
refused other.json.partial utterances_done -- eval --model mla1 --data corpus/one.jsonl --json other.json
sed -E 's/("errors":\[)\{[^}]*\},?/\1/' stopped.left >other.json.partial
refused other.json.partial 'contradicts itself' -- eval --model mla1 --data corpus/long.jsonl --json other.json
head -c 100 stopped.left >other.json.partial
refused other.json.partial JSON -- eval --model mla1 --data corpus/long.jsonl --json other.json
cp live.left other.json.partial
refused other.json.partial 'streaming/streams: 3 there and 4 here' -- eval --model live --streaming --streams 4 --data corpus/long.jsonl --json other.json
refused other.json.partial streaming -- eval --model live --data corpus/long.jsonl --json other.json
misused '--at-once' eval --model run --data corpus/test.jsonl --at-once 0
refused nowhere -- eval --model run --data corpus/test.jsonl --transcripts nowhere/new.jsonl
refused corpus 'is a folder' -- eval --model run --data corpus/test.jsonl --json corpus

# --- Results side by side.
# One that hears no word.
words=$(sed -n 's/^  "reference_words": \(.*\),/\1/p' eval.json) list=$(sed -z 's/.*"utterance_words": \[\([^]]*\)\].*/\1/; s/\n//g' eval.json)
sed -z "s/\"\(substitutions\|insertions\)\": [0-9]*/\"\1\": 0/g; s/\"deletions\": [0-9]*/\"deletions\": $words/
        s/\"\(wer[a-z_]*\)\": [0-9.]*/\"\1\": 100.0/g; s/\"utterance_errors\": \[[^]]*/\"utterance_errors\": [$list/" eval.json >deaf.json
ok compare eval.json mla.json mla1.json deaf.json --names full,half,one,deaf --json compare.json --plot compare.svg
says out 'half: not told apart from full: 0.00 points [0.00, 0.00]'
says out 'deaf: more errors than full: '
grep -qE '^half: .*; CTC loss -?0\.00 \[' out || fail "losses are not compared"
grep -qE '^one +mla-simple +[0-9]+ +[0-9]+  [0-9.]+ \[' out || fail "no row of one"
[ -s compare.svg ] || fail "no compare.svg"
says compare.json '"sentence": "more errors than full: '
ok compare deaf.json eval.json
says out 'eval: fewer errors than deaf: '
sed -z 's/  "utterance_[a-z]*": \[[^]]*\],\n//g' mla.json >older.json # as before utterances were written
ok compare eval.json older.json
says out 'older: not compared with eval by utterance: older.json holds no utterances, so only the intervals can be looked at'
ok eval --model run --data corpus/valid.jsonl --json valid.json
sed -z 's/"utterance_names": \[[^"]*"/&other-/' mla.json >renamed.json
sed 's/"utterance_errors": \[/&9,/' mla.json >longer.json
mkdir again
cp mla.json again/
refused valid.json eval.json 4 8 -- compare eval.json valid.json --json new.json
# A name is a file, and a text is a text: gnuplot takes neither for a command.
ok compare eval.json mla.json --plot '|touch owned;.png' --names $'a\nEOD\n!touch owned\n,`touch owned`\047;!touch owned #'
[ "$(head -c 4 '|touch owned;.png')" = $'\x89PNG' ] || fail "no picture of that name"
grep -q $'^a?EOD?!touch owned?' out || fail "a name of two lines makes two"
grep -q '^!touch' out && fail "a name of two lines makes two"
mkdir -p "it's "'`touch owned`'
cp run/model/* "it's "'`touch owned`/'
ok profile --model "it's "'`touch owned`' --frames 8 --repeats 1 --plot '<touch owned;.svg'
[ "$(head -c 5 '<touch owned;.svg')" = '<?xml' ] || fail "no picture of that name"
ok convert --input run --output plotted --latent-dim 16 --plots '|touch owned;'
[ -s '|touch owned;/ranks.png' ] || fail "no pictures in that folder"
[ -z "$(find . -name owned)" ] || fail "a name was run as a command"
# A disk that is full keeps the older picture.
ln -s /dev/full full.svg
refused full.svg space -- compare eval.json mla.json --plot full.svg
says out 'mla: not told apart'
refused 'File name too long' -- compare eval.json mla.json --plot "$(printf 'n%.0s' {1..300}).svg"
refused renamed.json 'number 1' other- eval.json -- compare eval.json renamed.json --plot new.png
refused longer.json utterance_errors 9 8 -- compare eval.json longer.json
sed -z 's/"utterance_losses": \[[^,]*/"utterance_losses": [-3/' eval.json >negative.json
refused negative.json 'utterance 1' -3 -- compare eval.json negative.json
refused train.json '`laconic eval --json`' "'wer' is missing" -- compare eval.json train.json
echo '[]' >list.json
refused list.json object -- compare eval.json list.json
refused eval.json 'at least 2' -- compare eval.json
refused ./eval.json twice -- compare eval.json ./eval.json
refused again/mla.json "'mla'" -- compare mla.json again/mla.json
refused --names 1 2 -- compare eval.json mla.json --names one
refused eval.json -- compare eval.json mla.json --json eval.json
refused new.gif -- compare eval.json mla.json --plot new.gif
misused 'results' compare

# --- A student and its teacher, ranks that fall, and what is trained.
ok train --data corpus --init mla --out distilled --epochs 1 --teacher run --distill 0.5 --temperature 2 --distill-blocks 1 --train-only self_attn
ok train --data corpus --init mla --out fallen --epochs 1 --ranks 16,8 --teacher run --distill 1
says err 'latents of 16: '
says fallen/model/config.json '"kv_lora_rank": 8'
[ -s fallen/rank-16/losses.csv ] || fail "no losses of the step at rank 16"
cp fallen/model/model.safetensors before.safetensors
ok train --data corpus --init mla --out fallen --epochs 1 --ranks 16,8 --teacher run --distill 1
cmp before.safetensors fallen/model/model.safetensors || fail "a finished run changed"
refused falling -- train --data corpus --init mla --out new --ranks 8,16
refused --distill -- train --data corpus --init mla --out new --teacher run
refused teacher -- train --data corpus --init mla --out new --distill 0.5
refused 'no latent' mha -- train --data corpus --init run --out new --ranks 8
refused 'layer 0' 32 33 -- train --data corpus --init mla --out new --ranks 33
refused fallen ranks -- train --data corpus --init mla --out fallen --epochs 1
refused fallen/ranks.json -- train --data corpus --init mla --out fallen --epochs 1 --ranks 16
refused distilled ranks -- train --data corpus --init mla --out distilled --epochs 1 --ranks 16
refused features teacher -- train --data corpus --init mla --out new --teacher live --distill 1
refused mixed -- convert --input run --output new --attention gqa --kv-heads 2 --hadamard
ok convert --input mla --output mixed --latent-dim 32 --hadamard
cmp -s mla/model.safetensors mixed/model.safetensors && fail "channels of a latent of equal rank are not mixed"
refused --plots gqa -- convert --input run --output new --attention gqa --kv-heads 2 --plots new
refused decoder -- train --data corpus --init mla --out new --train-only decoder
misused init train --data corpus --out new --ranks 8
ok convert --input run --output shared --latent-dim 16 --method activation --allocation fisher --calibration corpus/valid.jsonl --hadamard --plots plots \
  --json convert.json
says convert.json k_factor_error
says convert.json '"allocation": "fisher"'
for plot in spectra error_by_rank ranks; do [ -s plots/$plot.png ] || fail "no $plot.png"; done
ok convert --input run --output turned --attention gqa --kv-heads 2 --method activation --calibration corpus/valid.jsonl
refused calibration -- convert --input run --output new --latent-dim 16 --allocation fisher

# A run that is done has nothing to do; with other settings it is another one.
# shellcheck disable=SC2086
ok train --data corpus --out run2 $tiny --seed 3 --recompute --feature-memory 1e-9
says err "60 of 60 utterances do not fit 0.00 GiB"
cmp run/model/model.safetensors run2/model/model.safetensors || fail "a finished run changed"
mkdir german
for split in train valid; do
  sed 's/"text":"[^"]*"/"text":"eins zwei drei"/; s|wav/|../corpus/wav/|' corpus/$split.jsonl >german/$split.jsonl
done
# shellcheck disable=SC2086
{
  refused run2 weight_decay -- train --data corpus --out run2 $tiny --seed 3 --weight-decay 0.5
  refused run2 data -- train --data corpus --out run2 $tiny --seed 3 --normalization global
  refused run2 data -- train --train german/train.jsonl --valid german/valid.jsonl --tokens word --out run2 $tiny --seed 3
}
refused tuned initial_parameters -- train --data corpus --init gqa --out tuned --epochs 1 --freeze subsampling --accumulate 2

# --- The study: all of it, on the same few tones; again, it only reports.
program=$study
ok conversion --data corpus --out study --json study.json
for file in results.json report.md wer_cache.png wer_cache.svg conversion_error.png models/seed1/mha/model/model.safetensors; do
  [ -s "study/$file" ] || fail "no study/$file"
done
for key in name attention stage rank kv_heads cache_fraction cache_bytes_per_second parameters wer wer_low wer_high test_set seed; do
  [ "$(grep -c "\"$key\":" study/results.json)" -eq 16 ] || fail "results.json does not hold 16 rows with $key"
done
for stage in baseline converted finetuned; do says study/results.json "\"$stage\""; done
# baseline, tuned; R = d, tuned; ... R = d/8, tuned; ...
errors=$(sed -n 's/.*"logits_error": \([^,]*\),/\1/p' study/results.json)
echo $errors | awk '{ exit !($3 < 1e-4 && $9 > 1e-2) }' || fail "R = d is not exact, or R = d/8 is: $errors"
cp study/results.json before.json
ok conversion --data corpus --out study
cmp before.json study/results.json || fail "a finished study changed"
ok conversion --data corpus --out study --attentions mla-simple,mqa --methods svd,activation,activation+water-filling --caches 12.5 \
  --strategies finetuned,distilled,progressive,attention-only
for stage in distilled progressive attention-only; do says study/results.json "\"$stage\""; done
# In addition to the latent and the one head that were there: 2 latents (one cannot progress) and 1 head.
rows=$(grep -c '"stage":' study/results.json)
[ "$rows" -eq $((16 + 3 + 5 + 4 + 2 + 4)) ] || fail "a study that was widened has $rows rows"
grep -qE '^\| .* \| 12.50% \| distilled \| mla-simple R=[0-9]+, activation \| mqa' study/report.md || fail "latents are not compared with groups"
refused study.json -- conversion --data corpus --out study --preset full
cp -r study '<touch owned;'
ok conversion --data corpus --out '<touch owned;'
[ ! -e owned ] || fail "a name was run as a command"
rm -r '<touch owned;'
refused nowhere -- conversion --data nowhere --out new
touch file
refused file -- conversion --data corpus --out file
refused nobody -- conversion --data recordings --out new --holdout-speaker nobody
program=$laconic

# --- Model folders that are not whole.
# broken MODEL COMMAND...: the model refused by eval.
refused_model() { refused "$@" -- eval --model broken --data corpus/test.jsonl --json new.json; }
fresh() { rm -rf broken && cp -r run/model broken; }
size=$(stat -c %s run/model/model.safetensors)
for cut in 0 4 40 $((size - 1)); do
  fresh
  head -c "$cut" run/model/model.safetensors >broken/model.safetensors
  refused_model broken/model.safetensors
done
fresh # a header that says it is longer than the file
printf '\377\377\377\377\377\377\377\177' | dd of=broken/model.safetensors conv=notrunc status=none
refused_model broken/model.safetensors
fresh # one whose offsets lie; the same number of bytes
sed -i 's/"data_offsets":\[0,/"data_offsets":[9,/' broken/model.safetensors
cmp -s broken/model.safetensors run/model/model.safetensors && fail "no offset was changed"
refused_model broken/model.safetensors
fresh
sed -i 's/"lm_head.bias"/"lm_head.bios"/' broken/model.safetensors
refused_model broken/model.safetensors lm_head.bias missing
fresh
sed -i 's/"F32"/"F99"/' broken/model.safetensors
refused_model broken/model.safetensors F99
fresh # a model that the tensors do not fit
sed -i 's/"ffn_expansion": 4/"ffn_expansion": 2/' broken/config.json
refused_model broken/model.safetensors shape
fresh
sed -i 's/heads": 4/heads": 3/' broken/config.json
refused_model broken/config.json 'heads' 3 32
for wrong in '"num_layers": 100000' '"num_layers": 4000' '"d_model": 65536' '"ffn_expansion": 2305843009213693952' '"conv_kernel": -3'; do
  fresh # a model that needs more memory than there is
  sed -i "s/${wrong%: *}: [0-9]*/$wrong/" broken/config.json
  refused_model broken/config.json
done
fresh # one that contradicts itself
sed -i 's/"num_kv_heads": 4/"num_kv_heads": 1/' broken/config.json
refused_model broken/config.json num_kv_heads mha
fresh
sed -i 's/"num_layers": 1/"num_layers": "one"/' broken/config.json
refused_model broken/config.json num_layers
fresh
echo '{' >broken/config.json
refused_model broken/config.json
fresh
rm broken/vocab.json
refused_model broken vocab.json
fresh # a pipe that nobody writes to
rm broken/vocab.json
mkfifo broken/vocab.json
refused_model broken/vocab.json 'is a pipe, a regular file expected'
fresh # one that stands for another, in Git LFS
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2474\n' >broken/config.json
refused_model broken/config.json 'a pointer of Git LFS given' 'git lfs pull'
fresh # a link to what is gone
ln -sf gone broken/tokenizer_config.json
refused_model broken/tokenizer_config.json 'No such file or directory'
refused nowhere -- eval --model nowhere --data corpus/test.jsonl
refused corpus config.json -- transcribe --model corpus stereo.wav
refused nowhere -- convert --input nowhere --output new --latent-dim 4
refused 'training run' -- convert --input run --output run --latent-dim 4
fresh
head -c 100 run/model/model.safetensors >broken/model.safetensors
refused broken/model.safetensors -- convert --input broken --output new --latent-dim 4
refused broken/model.safetensors -- train --init broken --data corpus --out new

# --- Audio that is none.
: >empty.wav
echo 'These are words about speech, not speech.' >words.wav
head -c 1000 stereo.wav >cut.wav
wav silent.wav 8000 1 0 440
for file in empty.wav words.wav cut.wav silent.wav missing.wav recordings; do
  refused "$file" -- transcribe --model run "$file" --json new.json
done

# --- Manifests.
line='{"audio_filepath":"stereo.wav","duration":0.4,"text":"one"}'
{ echo "$line"; echo '{"audio_filepath":"missing.wav","duration":1,"text":"one"}'; } >m.jsonl
refused m.jsonl:2 missing.wav -- eval --model run --data m.jsonl --transcripts new.jsonl
refused m.jsonl:2 missing.wav -- train --train m.jsonl --valid m.jsonl --out new
{ echo "$line"; echo '{"audio_filepath":"stereo.wav","duration":1,'; } >m.jsonl
refused m.jsonl:2 -- eval --model run --data m.jsonl
{ echo "$line"; echo '{"audio_filepath":"stereo.wav","duration":1}'; } >m.jsonl
refused m.jsonl:2 text -- eval --model run --data m.jsonl
{ echo "$line"; echo '{"audio_filepath":"words.wav","duration":1,"text":"one"}'; } >m.jsonl
refused words.wav -- eval --model run --data m.jsonl
refused words.wav -- train --train m.jsonl --valid corpus/valid.jsonl --out new
: >m.jsonl
refused m.jsonl -- eval --model run --data m.jsonl
refused nowhere.jsonl -- eval --model run --data nowhere.jsonl
refused corpus -- eval --model run --data corpus
refused train.jsonl -- train --data recordings --out new
echo '{"audio_filepath":"stereo.wav","duration":0.1,"offset":0.2,"text":"one","speaker":12}' >m.jsonl
echo '{"audio_filepath":"stereo.wav","duration":null,"offset":0.25,"text":"one"}' >>m.jsonl
echo '{"audio_filepath":"stereo.wav","text":"one"}' >>m.jsonl
ok eval --model run --data m.jsonl --json parts.json
says out '0.8 s of speech' # 0.1, 0.2 and 0.45
says parts.json '"stereo@0.2"'
echo '{"audio_filepath":"stereo.wav","offset":7,"text":"one"}' >m.jsonl
refused stereo.wav 'an offset of 7 s given, but it ends after 0.45 s' -- eval --model run --data m.jsonl
cp stereo.wav $'\xff.wav' # no UTF-8
ok transcribe --model run $'\xff.wav' --json odd.json
says odd.json $'"audio_filepath": "\xef\xbf\xbd.wav"'
echo '{"audio_filepath":"words.wav","duration":1,"text":"one"}' >m.jsonl
refused words.wav -- quantize --input run --output new --data m.jsonl
echo '{"audio_filepath":"stereo.wav","duration":9,"text":"one"}' >m.jsonl
ok eval --model run --data m.jsonl
says err 'its duration is given as 9 s'
{ echo "$line"; echo "$line"; echo '{"audio_filepath":"cut.wav","duration":0.4,"text":"one"}'; } >m.jsonl
refused 'cut.wav: cut short' -- eval --model run --data m.jsonl --json new.json
# A recording that is found to be no good when it is read; by its header it is as long as the one that replaces it.
sed -i 's/cut.wav/late.wav/' m.jsonl
wav late.wav 20 1 9 1
"$laconic" eval --model run --data m.jsonl --json late.json --at-once 0.1 --threads 1 >out 2>err && fail "accepted: a recording that cannot be resampled"
says err 'late.wav: resample: from 20 Hz'
[ -s late.json.partial ] || fail "what was done before the recording that cannot be read is lost"
cp stereo.wav late.wav
ok eval --model run --data m.jsonl --json late.json
says err 'going on after 2 of 3 utterances'
# A text that the vocabulary cannot write.
echo '{"audio_filepath":"stereo.wav","duration":0.4,"text":"One caf\u00e9, PLEASE"}' >m.jsonl
ok eval --model run --data m.jsonl --json odd.json --transcripts odd.jsonl
says odd.json '"reference_words": 3'
grep -q 'loss"' odd.json && fail "a text that the vocabulary cannot write has a loss"
grep -qF $'"text":"one caf\xc3\xa9, please"' odd.jsonl || fail "texts are not compared as the vocabulary writes them"
mkdir odd
echo '[]' >odd/corpus.json
cp corpus/train.jsonl odd/
sed -i 's|wav/|../corpus/wav/|' odd/train.jsonl
refused odd/corpus.json -- train --train odd/train.jsonl --valid corpus/valid.jsonl --out new
echo '{"audio_filepath":"stereo.wav","duration":0.4,"text":"one eleven"}' >m.jsonl
refused '"eleven"' stereo.wav --new-head -- train --init run --train m.jsonl --valid corpus/valid.jsonl --out new
ok train --init run --train corpus/train.jsonl --valid m.jsonl --out unseen --epochs 1
says err 'note: of the validation, 1 of 1 texts have words that the vocabulary lacks: "eleven" (1)'

# --- A new head for other words, on an encoder that has learnt already.
for set in train valid test; do sed 's/one/eins/g; s/two/zwei/g; s/three/drei/g' corpus/$set.jsonl >corpus/german_$set.jsonl; done
german="--train corpus/german_train.jsonl --valid corpus/german_valid.jsonl"
# shellcheck disable=SC2086
refused '"drei"' '--new-head' -- train --init run $german --out new
# shellcheck disable=SC2086
ok train --init run --new-head --tokens word $german --out renewed --epochs 8 --lr 1e-2 --batch-frames 400
grep -q '"drei"' renewed/model/vocab.json || fail "the new head does not have the words of the training texts"
ok eval --model renewed --data corpus/german_test.jsonl --json renewed.json
awk -F '[:,]' '/"wer":/ { exit !($2 < 50) }' renewed.json || fail "a new head on a trained encoder learns nothing"
misused --init train --data corpus --out new --new-head
misused --tokens train --data corpus --out new --init run --tokens char

# --- Texts that are normalised.
sed 's/"text": *"\([^"]*\)"/"text":"Uh, \U\1\E [noise]!"/' corpus/test.jsonl >corpus/written.jsonl
for options in "" "--streaming"; do
  model=run
  [ -z "$options" ] || model=live
  # shellcheck disable=SC2086
  ok eval --model $model --data corpus/test.jsonl --normalize whisper --json plain.json $options
  # shellcheck disable=SC2086
  ok eval --model $model --data corpus/written.jsonl --normalize whisper --json written.json --transcripts written.jsonl $options
  [ "$(grep '"wer' plain.json)" = "$(grep '"wer' written.json)" ] || fail "what the normaliser takes away counts $options"
  grep -q '"text":"[0-9]*"' written.jsonl || fail "numbers are not compared in digits"
done
says written.json '"normalize": "whisper"'
says err 'These texts have no loss'
refused written.json '--normalize whisper' 'none expected' -- compare eval.json written.json
ok eval --model run --data corpus/written.jsonl --normalize basic --transcripts written.jsonl
grep -q '"text":"uh [a-z ]*"' written.jsonl || fail "texts are not compared as the basic normaliser writes them"
ok eval --model run --data corpus/test.jsonl --normalize punctuation
misused '--normalize' eval --model run --data corpus/test.jsonl --normalize nothing

# --- A language model.
for _ in 1 2 3 4 5 6; do printf 'a traveller came along\twrapped in a warm cloak \033[31m\xc2\x9b\n'; done >rhyme.txt
gpt=(--text rhyme.txt --d-model 16 --layers 1 --context 32 --steps 6 --batch 2 --valid-steps 3)
ok gpt train "${gpt[@]}" --out gpt --heads 2 --attention mla-head --valid-fraction 0.4 --json gpt.json
says gpt.json '"attention": "mla-head"'
says gpt.json '"cache_bytes": 2048'  # 32 characters, 2 latents of 4 floats for each of 2 heads
says out 'validation loss'
ok gpt eval --model gpt --text rhyme.txt --json loss.json
says loss.json '"perplexity"'
ok gpt sample --model gpt --prompt 'a warm' --length 200 --count 2 --top-k 3 --json sample.json
[ "$(grep -c '^---$' out)" -eq 2 ] || fail "not two texts"
grep -q -e $'\033' -e $'\xc2\x9b' out && fail "a control character of the text reaches the terminal"
ok gpt train --text rhyme.txt --init gpt --out tuned --steps 3 --batch 2 --valid-steps 3
ok gpt train "${gpt[@]}" --out rotary --heads 2 --rotary
ok gpt train "${gpt[@]}" --out gpt_low --heads 2 --attention mla-head --latent-dim 4 --v-latent-dim 2 --json gpt.json
says gpt.json '"cache_bytes": 1536'  # 32 characters, for each of 2 heads 4 floats for keys and 2 for values
ok gpt train "${gpt[@]}" --out gpt_full --heads 2
for method in svd randomized activation score-aware; do
  ok gpt convert --model gpt_full --out "gpt_low_$method" --attention mla-head --latent-dim 8 --v-latent-dim 2 --text rhyme.txt \
    --method "$method" --json gpt.json
  says gpt.json '"v_lora_rank": 2'
  says gpt.json '"cache_fraction": 0.625'
  says gpt.json '"source_valid_loss"'
  says out '  8/2 '
  says out 'validation loss'
  [ -s "gpt_low_$method/model.safetensors" ] || fail "no model"
done
ok gpt convert --model gpt_full --out gpt_same --latent-dim 8 --json gpt.json
says gpt.json '"measured_on": "white noise"'
grep -q '"logits_error": [0-9.]*e-0[67]' gpt.json || fail "a latent that holds all changes the logits"
ok gpt convert --model gpt_low_svd --out gpt_split --attention mla-split --latent-dim 16 --text rhyme.txt --hadamard
ok gpt train --text rhyme.txt --init gpt_low_svd --out gpt_tuned --steps 3 --batch 2 --valid-steps 3
ok gpt profile --model gpt_full gpt_low_svd gpt_tuned --text rhyme.txt --tokens 20 --repeats 3 --json profile.json
says profile.json '"cache_bytes": 2560'  # 20 characters, 2 rows of 16 floats
says profile.json '"cache_bytes": 1600'
says profile.json '"cache_saving": 0.375'
says profile.json '"characters_per_second"'
says out 'mla-head RK=8 RV=2'
says out '37.5%'
if gnuplot -e 'set terminal pngcairo' 2>/dev/null; then
  ok gpt profile --model gpt_full gpt_low_svd --text rhyme.txt --repeats 1 --plot cache.png
  [ -s cache.png ] || fail "no plot"
fi
refused '--text' activation -- gpt convert --model gpt_full --out new --latent-dim 4 --method activation
refused 9 head_dim -- gpt convert --model gpt_full --out new --latent-dim 4 --v-latent-dim 9
refused mla-decoupled -- gpt convert --model gpt_full --out new --attention mla-decoupled --latent-dim 8
refused rotary mla-head -- gpt convert --model rotary --out new --latent-dim 4
refused hadamard -- gpt convert --model gpt_full --out new --latent-dim 4 --hadamard
refused '--tokens' 33 32 gpt_full -- gpt profile --model gpt_full --text rhyme.txt --tokens 33
refused '--plot' cache.txt -- gpt profile --model gpt_full --text rhyme.txt --plot cache.txt
refused nowhere -- gpt profile --model gpt_full nowhere --text rhyme.txt
misused v-latent-dim gpt train --text rhyme.txt --out new --init gpt_low_svd --v-latent-dim 2
refused '--attention' 'latent' -- gpt train "${gpt[@]}" --out new --heads 2 --attention mla-simple
refused linear -- gpt train "${gpt[@]}" --out new --heads 2 --attention linear
refused 3 16 -- gpt train "${gpt[@]}" --out new --heads 3
refused steps -- gpt train --text rhyme.txt --out new --steps 0
refused 'more than a window' -- gpt train --text rhyme.txt --out new --context 5000
refused validate -- gpt train "${gpt[@]}" --out new --heads 2 --valid-fraction 0
refused nowhere.txt -- gpt train --text nowhere.txt --out new
refused "'Z'" -- gpt sample --model gpt --prompt Zebra
refused run/model/config.json -- gpt eval --model run/model --text rhyme.txt
sed 's/"a": /"aa": /' gpt/vocab.json >bad.json
cp -r gpt odd_gpt && cp bad.json odd_gpt/vocab.json
refused odd_gpt/vocab.json "'aa'" -- gpt sample --model odd_gpt
cp gpt/vocab.json odd_gpt/vocab.json && sed -i 's/"d_model": 16/"d_model": 65536/' odd_gpt/config.json
refused odd_gpt/config.json numbers -- gpt sample --model odd_gpt

# --- Numbers that do not fit.
refused 33 32 -- convert --input run --output new --attention mla-simple --latent-dim 33
refused latent-dim -- convert --input run --output new --attention mla-simple
refused kv-heads -- convert --input run --output new --attention gqa
refused 3 4 -- convert --input run --output new --attention gqa --kv-heads 3
refused latent-dim -- convert --input run --output new --attention gqa --kv-heads 2 --latent-dim 5
refused latent-dim -- train --data corpus --out new --attention mha --latent-dim 5
refused mla-simple linear -- convert --input mla --output new --attention linear
refused mha mla-decoupled -- convert --input run --output new --attention mla-decoupled --latent-dim 3
refused 17 16 -- train --data corpus --out new --d-model 16 --heads 2 --attention mla-simple --latent-dim 17
refused 3 16 -- train --data corpus --out new --d-model 16 --heads 3
refused 3 4 -- train --data corpus --out new --d-model 16 --heads 4 --attention gqa --kv-heads 3
refused 5 -- train --data corpus --out new --d-model 16 --heads 2 --subsampling 5
refused 4 -- train --data corpus --out new --d-model 16 --heads 2 --conv-kernel 4
for wrong in '--epochs 0' '--epochs 1000000000' '--batch-frames 9223372036854775807' '--accumulate 9223372036854775807' '--lr nan' \
  '--lr -1' '--clip-norm nan' '--weight-decay -5' '--patience -1'; do
  name=${wrong%% *} name=${name#--} name=${name//-/_}
  # shellcheck disable=SC2086
  refused "${name/lr/learning_rate} ${wrong#* } given" -- train --data corpus --out new $wrong
done
refused decoder -- train --init run --data corpus --out new --freeze decoder

# --- Images: digit d is a bright band that lies the lower the larger d is.
mkdir digits
head -c 784 /dev/zero | tr '\0' '\377' >white
for digit in 0 1 2 3 4 5 6 7 8 9; do
  { head -c $((78 * digit)) /dev/zero; head -c 78 white; head -c $((706 - 78 * digit)) /dev/zero; } >"band$digit"
  # shellcheck disable=SC2059
  printf "\\$(printf %03o "$digit")"
done >ten_labels
cat band? >ten_images
for name in train t10k; do
  {
    printf '\0\0\010\003\0\0\0\360\0\0\0\034\0\0\0\034'
    for _ in {1..24}; do cat ten_images; done
  } | gzip >digits/$name-images-idx3-ubyte.gz
  {
    printf '\0\0\010\001\0\0\0\360'
    for _ in {1..24}; do cat ten_labels; done
  } >digits/$name-labels-idx1-ubyte
done
small="--data digits --d-model 16 --heads 2 --encoder-layers 1 --decoder-layers 1 --dropout 0 --shift 0 --batch 16 --lr 1e-2 --max-tokens 12"
for attention in mha mla-decoupled; do
  # shellcheck disable=SC2086
  ok mnist train $small --attention $attention --steps 400 --valid-steps 200 --out mnist-$attention --json mnist.json
  grep -q '"valid_error": 0.0' mnist.json || fail "$attention does not learn ten bands: $(cat mnist.json)"
  ok mnist eval --model mnist-$attention --data digits --json mnist.json
  says out '240 test images of 1 digits: 100.00% read right (95% interval 98.42 to 100.00%)'
  ok mnist eval --model mnist-$attention --data digits --beams 3
  says out '100.00% read right'
done
ok mnist profile --model mnist-mha mnist-mla-decoupled --data digits --lengths 5 --repetitions 1 --json mnist.json
says out '16 of 16'
grep -q '"cache_bytes": 12288' mnist.json || fail "mnist profile: no cache of 16 images, 6 tokens, 2 x 16 numbers"
# shellcheck disable=SC2086
ok mnist train ${small/--max-tokens 12/--max-tokens 2} --steps 2 --valid-steps 1 --out mnist-short
# shellcheck disable=SC2086
ok mnist train $small --grid 2 --steps 2 --valid-steps 2 --out mnist-grid
ok mnist eval --model mnist-grid --data digits
says out '60 test images of 4 digits'
refused 'no such file' -- mnist eval --model mnist-mha --data nowhere
refused '--lengths: 12 given' -- mnist profile --model mnist-mha --data digits --lengths 5,12
mkdir wild
cp mnist-mha/* wild/
sed 's/"qk_rope_head_dim": 0/"qk_rope_head_dim": 288230376151711744/' mnist-mha/config.json >wild/config.json
refused 288230376151711744 -- mnist eval --model wild --data digits
refused run config.json -- mnist eval --model run/model --data digits
mv digits/t10k-images-idx3-ubyte.gz whole.gz
for size in 0 3 20 200; do
  head -c $size whole.gz >digits/t10k-images-idx3-ubyte.gz
  refused t10k-images -- mnist eval --model mnist-mha --data digits
done
{ gzip -dc whole.gz; printf x; } >digits/t10k-images-idx3-ubyte
refused 'longer than its sizes say' -- mnist eval --model mnist-mha --data digits
rm digits/t10k-images-idx3-ubyte
mv digits/t10k-labels-idx1-ubyte digits/t10k-images-idx3-ubyte
cp digits/train-labels-idx1-ubyte digits/t10k-labels-idx1-ubyte
refused '1 dimensions given, 3 expected' -- mnist eval --model mnist-mha --data digits

# --- A disk that is full.
refused /dev/full -- eval --model run --data corpus/test.jsonl --json /dev/full
says out 'WER '
refused /dev/full -- transcribe --model run stereo.wav --json /dev/full
refused nowhere -- eval --model run --data corpus/test.jsonl --json nowhere/new.json
mkdir here
cp run/model/* here/
(cd here && "$laconic" convert --input ../run --output . --latent-dim 4 --json new.json >/dev/null) || fail "convert into the folder that one is in"
[ -s here/new.json ] || fail "no here/new.json"
# A folder stays the one that it is, with its mode.
mkdir mine
chmod 700 mine
identity=$(stat -c '%i %a' mine)
ok convert --input run --output mine --latent-dim 4
ok convert --input run --output mine --latent-dim 5
[ "$(stat -c '%i %a' mine)" = "$identity" ] || fail "another folder is in the place of 'mine'"
[ "$(find mine -mindepth 1 | sort | tr '\n' ' ')" = 'mine/config.json mine/model.safetensors mine/tokenizer_config.json mine/vocab.json ' ] || fail "left: $(find mine)"
# What is named as a descriptor is written to, after what was printed.
"$laconic" eval --model run --data corpus/test.jsonl --threads 1 --json /dev/stdout 2>err | cat >both
"$laconic" eval --model run --data corpus/test.jsonl --threads 1 --json /dev/stdout 2>err >file
for written in both file; do
  head -n 1 $written | grep -q '^WER ' || fail "results do not come before the file in $written"
  grep -q '"reference_words"' $written || fail "no JSON in $written"
done
refused 'File name too long' -- eval --model run --data corpus/test.jsonl --json "$(printf 'n%.0s' {1..300})"
refused 'is a file' -- convert --input run --output stereo.wav/new --latent-dim 4

# --- A program that is told to end leaves nothing; what a killed one leaves, the next one removes.
many=(data digits --recordings recordings --out many --valid 4 --test 8 --train)
for signal in INT TERM KILL; do
  # Shells let programs in the background ignore SIGINT.
  env --default-signal=INT "$laconic" "${many[@]}" 100000 --threads 1 >out 2>err &
  killed=$!
  until [ -n "$(find . -maxdepth 1 -name 'many.partial-*')" ]; do
    kill -0 $killed 2>/dev/null || fail "done before it could be told to end"
    sleep 0.02
  done
  kill -$signal $killed
  wait $killed 2>/dev/null
  code=$?
  [ $code -eq $((128 + $(kill -l $signal))) ] || fail "SIG$signal ends it with $code"
  left=$(find . -maxdepth 1 -name 'many.partial-*' | wc -l)
  [ "$left" -eq "$([ $signal = KILL ] && echo 1 || echo 0)" ] || fail "after SIG$signal $left partial folders"
done
ok "${many[@]}" 60
[ -z "$(find . -maxdepth 1 -name 'many.partial-*')" ] || fail "what a killed run left is still there"
checks=$((checks + 3))
# shellcheck disable=SC2086
"$laconic" train --data corpus --out twice ${tiny/--epochs 30/--epochs 10000} --threads 1 >out 2>err &
first=$!
until [ -s twice/lock ]; do
  kill -0 $first 2>/dev/null || fail "done before a second run could begin"
  sleep 0.02
done
"$laconic" train --data corpus --out twice --threads 1 >out 2>err && fail "two runs write to one folder"
says err "laconic: twice: process $first on "
says err ' is writing to it, a folder that nobody writes to expected'
kill $first
wait $first 2>/dev/null
[ ! -e twice/lock ] || fail "a lock is left"
rm -rf twice
"$laconic" eval --model run --data corpus/test.jsonl --threads 1 >/dev/full 2>err && fail "accepted: results to a full standard output"
says err 'laconic: standard output: cannot write'
mkdir small
if mount -t tmpfs -o size=64k none small 2>/dev/null; then
  mounted=$work/small
  head -c 60000 /dev/zero >small/filler
  refused small/model space -- convert --input run --output small/model --latent-dim 8
  refused small/corpus -- data digits --recordings recordings --out small/corpus --train 60 --valid 4 --test 8
  mkdir small/run
  refused small/run space -- train --init run --data corpus --out small/run --epochs 1
else
  echo "skipped: a full tmpfs (may not mount one here)"
fi

echo "$checks checks passed"
