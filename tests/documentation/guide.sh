#!/usr/bin/env bash
# Follows docs/guide.md in an empty folder. Every `sh` block must run, the lines of every `text` block must be among
# those that the block before it printed, whatever their numbers are, and what a command is told to write must be there.
#   usage: guide.sh LACONIC GUIDE
set -uo pipefail
laconic=$(realpath "$1") guide=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/empty"
ln -s "$laconic" "$work/bin/laconic"
export PATH=$work/bin:$PATH LC_ALL=C
cd "$work/empty" || exit 1

fail() {
  echo "docs/guide.md: $1"
  head -c 3000 "$work/out" "$work/err"
  exit 1
}
shape() { sed -E 's/-?[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?/N/g; s/ +/ /g; s/^ //'; }

kind='' blocks=0
while IFS= read -r line <&3; do
  case $line in
    '```sh' | '```text') kind=${line#'```'} block='' ;;
    '```')
      if [ "$kind" = sh ]; then
        bash -euo pipefail -c "$block" >"$work/out" 2>"$work/err" || fail "this fails: $block"
        for file in $(grep -oE -- '--(out|output|json|plot|transcripts) [^ ]+' <<<"$block" | cut -d ' ' -f 2); do
          [ -e "$file" ] || fail "this writes no $file: $block"
        done
        blocks=$((blocks + 1))
      elif [ "$kind" = text ]; then
        while IFS= read -r shown; do
          cat "$work/out" "$work/err" | shape | grep -qxF -- "$(shape <<<"$shown")" || fail "not printed: $shown"
        done <<<"${block%$'\n'}"
      fi
      kind=''
      ;;
    *) [ -z "$kind" ] || block+=$line$'\n' ;;
  esac
done 3<"$guide"
[ $blocks -gt 0 ] || { echo "no sh block in $guide"; exit 1; }
echo "$blocks blocks of commands, all as the guide says"
