#!/usr/bin/env python3
"""Compares the word times of two CTM files: how far begins and ends of words that both have are apart.

usage: word_times.py TRUE.ctm HEARD.ctm        TRUE.ctm as `laconic data digits` writes it, HEARD.ctm as
                                                `laconic transcribe --format ctm` does"""
import collections
import difflib
import statistics
import sys


def read(path):
    """Returns the words of each recording: (begin, end, word), in seconds."""
    recordings = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        name, _, begin, duration, word, *_ = line.split()
        recordings[name].append((float(begin), float(begin) + float(duration), word))
    return recordings


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    true, heard = read(sys.argv[1]), read(sys.argv[2])
    errors = {"begin": [], "end": []}
    words = 0
    for name, said in true.items():
        words += len(said)
        found = heard.get(name, [])
        pairs = difflib.SequenceMatcher(None, [w for _, _, w in said], [w for _, _, w in found], autojunk=False)
        for a, b, count in pairs.get_matching_blocks():
            for i in range(count):
                errors["begin"].append(abs(said[a + i][0] - found[b + i][0]))
                errors["end"].append(abs(said[a + i][1] - found[b + i][1]))
    matched = len(errors["begin"])
    print(f"{matched} of {words} words of {len(true)} recordings are in both")
    for what, values in {**errors, "begin and end": errors["begin"] + errors["end"]}.items():
        values.sort()
        if values:
            at = lambda part: 1000 * values[min(len(values) - 1, int(part * len(values)))]
            print(f"{what:14}  median {1000 * statistics.median(values):4.0f} ms   90 % {at(0.9):4.0f} ms   "
                  f"95 % {at(0.95):4.0f} ms   99 % {at(0.99):4.0f} ms")


main()
