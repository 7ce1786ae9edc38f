#!/usr/bin/env python3
"""Compares the word times of two CTM files: how far begins and ends of words that both have are apart.

usage: word_times.py TRUE.ctm HEARD.ctm [WAVS]  TRUE.ctm as `laconic data digits` writes it, HEARD.ctm as
                                                `laconic transcribe --format ctm` does, WAVS the folder of recordings

Words are paired by the fewest errors, as word error rates are; where several pairings have equally few, by the least
distance in time. "next to words in both" leaves out the sides of words whose neighbour was not heard right: no one
knows where that one ends. With WAVS, says what the times beyond 120 ms are: next to a word that was not heard right; a
part of the true word that is as quiet as the background, within 6 dB of the recording's 10 % level; a part that is
quiet, below the middle of that level and the 90 % one; a part that is not; or beyond the word."""
import array
import collections
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


def pair(true, heard):
    """Returns for each true word the index of the same word among those heard, or None: an alignment of fewest errors,
    and of all of them the one whose pairs, wrong ones too, are nearest in time."""
    gap = lambda one, other: abs(one[0] - other[0]) + abs(one[1] - other[1])
    best = [[(j, 0.0) for j in range(len(heard) + 1)]]  # (errors, seconds) of the first i true and j heard words
    for i, one in enumerate(true):
        row = [(i + 1, 0.0)]
        for j, other in enumerate(heard):
            errors, seconds = best[i][j]
            both = (errors + (one[2] != other[2]), seconds + gap(one, other))
            row.append(min(both, *((errors + 1, seconds) for errors, seconds in (best[i][j + 1], row[j]))))
        best.append(row)
    found, i, j = [None] * len(true), len(true), len(heard)
    while i and j:
        errors, seconds = best[i - 1][j - 1]
        same = true[i - 1][2] == heard[j - 1][2]
        if best[i][j] == (errors + (not same), seconds + gap(true[i - 1], heard[j - 1])):
            i, j = i - 1, j - 1
            if same:
                found[i] = j
        elif best[i][j] == (best[i - 1][j][0] + 1, best[i - 1][j][1]):
            i -= 1
        else:
            j -= 1
    return found


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
    background, speech = ordered[len(ordered) // 10], ordered[9 * len(ordered) // 10]
    part = level[int(min(true, found) * 100) + 1:int(max(true, found) * 100)]
    below = lambda limit: sum(x < limit for x in part) >= 0.9 * len(part)
    if below(background + 6):
        return "a part of the word that is as quiet as the background"
    return "a quiet part of the word" if below((background + speech) / 2) else "a part of the word that is not quiet"


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
        pairs = pair(said, found)
        for i, j in enumerate(pairs):
            if j is None:
                continue
            for side, what in enumerate(("begin", "end")):
                one, other = said[i][side], found[j][side]
                next_to = (i - 1, j - 1) if side == 0 else (i + 1, j + 1)
                if 0 <= next_to[0] < len(said):
                    known = pairs[next_to[0]] == next_to[1]
                else:
                    known = next_to[1] in (-1, len(found))
                errors[what].append(abs(one - other))
                if known:
                    errors["next to words in both"].append(abs(one - other))
                if level and abs(one - other) > BEYOND:
                    kinds[kind(one, other, side == 1, known, level)] += 1
                    sides[f"{what} of {said[i][2]}"] += 1
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
