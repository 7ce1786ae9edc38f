#!/usr/bin/env python3
"""Compares the word times of two CTM files: how far begins and ends of words that both have are apart.

usage: word_times.py TRUE.ctm HEARD.ctm [WAVS]  TRUE.ctm as `laconic data digits` writes it, HEARD.ctm as
                                                `laconic transcribe --format ctm` does, WAVS the folder of recordings

"next to words in both" leaves out the sides of words whose neighbour was not heard right: no one knows where that one
ends. With WAVS, says what the times beyond 120 ms are: next to a word that was not heard right; a part of the true word
that is quiet, below the middle of the recording's 10 % and 90 % levels; a part of it that is not; or beyond it."""
import array
import collections
import difflib
import math
import os
import statistics
import sys
import wave

BEYOND = 0.12  # seconds


def read(path):
    """Returns the words of each recording: (begin, end, word), in seconds."""
    recordings = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        name, _, begin, duration, word, *_ = line.split()
        recordings[name].append((float(begin), float(begin) + float(duration), word))
    return recordings


def levels(path):
    """Returns the level of each 10 ms of a WAV file with 16 bits and one channel, in dB."""
    with wave.open(path) as file:
        samples, step = array.array("h", file.readframes(file.getnframes())), file.getframerate() // 100
    out = []
    for i in range(0, len(samples) - step + 1, step):
        part = samples[i:i + step]
        mean = sum(part) / step
        out.append(10 * math.log10(sum((x - mean) ** 2 for x in part) / step / 2**30 + 1e-12))
    return out


def kind(true, found, is_end, known, level):
    """Says what lies between a true time and the one found."""
    if not known:
        return "next to a word that was not heard right"
    if (found < true) != is_end:
        return "beyond the word"
    ordered = sorted(level)
    middle = (ordered[len(ordered) // 10] + ordered[9 * len(ordered) // 10]) / 2
    part = level[int(min(true, found) * 100) + 1:int(max(true, found) * 100)]
    quiet = sum(x < middle for x in part) >= 0.9 * len(part)
    return "a quiet part of the word" if quiet else "a part of the word that is not quiet"


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    true, heard = read(sys.argv[1]), read(sys.argv[2])
    errors = {"begin": [], "end": [], "next to words in both": []}
    kinds, sides = collections.Counter(), collections.Counter()
    words = 0
    for name, said in true.items():
        words += len(said)
        found = heard.get(name, [])
        level = levels(os.path.join(sys.argv[3], name + ".wav")) if len(sys.argv) > 3 else []
        pairs = difflib.SequenceMatcher(None, [w for _, _, w in said], [w for _, _, w in found], autojunk=False)
        for a, b, count in pairs.get_matching_blocks():
            for i in range(count):
                for side, what in enumerate(("begin", "end")):
                    one, other = said[a + i][side], found[b + i][side]
                    known = ((i > 0 or a == b == 0) if side == 0 else
                             (i < count - 1 or (a + count == len(said) and b + count == len(found))))
                    errors[what].append(abs(one - other))
                    if known:
                        errors["next to words in both"].append(abs(one - other))
                    if level and abs(one - other) > BEYOND:
                        kinds[kind(one, other, side == 1, known, level)] += 1
                        sides[f"{what} of {said[a + i][2]}"] += 1
    matched = len(errors["begin"])
    print(f"{matched} of {words} words of {len(true)} recordings are in both")
    for what, values in {**errors, "begin and end": errors["begin"] + errors["end"]}.items():
        values.sort()
        if values:
            at = lambda part: 1000 * values[min(len(values) - 1, int(part * len(values)))]
            print(f"{what:21}  median {1000 * statistics.median(values):4.0f} ms   90 % {at(0.9):4.0f} ms   "
                  f"95 % {at(0.95):4.0f} ms   99 % {at(0.99):4.0f} ms")
    for what, count in kinds.most_common():
        print(f"{count:5}  beyond 120 ms: {what}")
    if sides:
        print("most of them:", ", ".join(f"{what} {count}" for what, count in sides.most_common(6)))


main()
