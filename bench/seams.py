#!/usr/bin/env python3
"""Looks for words that are lost or doubled where the windows of a long recording are joined.

Joins the utterances of a manifest to one recording, transcribes it in windows and each utterance alone, and compares
the words of both. Words near a seam should differ no more often than others.

usage: seams.py --laconic build/release/laconic --model DIR --data test.jsonl [--hours 2] [--window 40]"""
import argparse
import array
import difflib
import json
import pathlib
import random
import subprocess
import tempfile
import wave


def read_wav(path):
    """Returns the samples and the rate of a 16-bit WAV file of one channel."""
    with wave.open(str(path)) as file:
        assert file.getnchannels() == 1 and file.getsampwidth() == 2, path
        return array.array("h", file.readframes(file.getnframes())), file.getframerate()


def transcribe(args, files, *more):
    """Returns the words of each file: (word, begin, end)."""
    command = [args.laconic, "transcribe", "--model", args.model, "--format", "json", *more, *map(str, files)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [[(w["word"], w["begin"], w["end"]) for w in json.loads(line)["words"]] for line in lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laconic", default="build/release/laconic")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--window", type=float, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    files = [args.data.parent / json.loads(line)["audio_filepath"] for line in open(args.data, encoding="utf-8")]
    alone = dict(zip(files, transcribe(args, files)))
    chosen = random.Random(args.seed)
    joined, pieces, rate = array.array("h"), [], 0
    while rate == 0 or len(joined) / rate < 3600 * args.hours:
        file = chosen.choice(files)
        samples, rate = read_wav(file)
        pieces.append((file, len(joined) / rate, (len(joined) + len(samples)) / rate))
        joined += samples
        joined += array.array("h", (chosen.randint(-2, 2) for _ in range(int(rate * chosen.uniform(0.05, 0.6)))))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "joined.wav"
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, rate, 0, "NONE", ""))
            out.writeframes(joined.tobytes())
        words = transcribe(args, [path], "--window", str(args.window))[0]

    hop, overlap = args.window * 7 / 8, args.window / 8
    counts = {True: [0, 0, 0, 0], False: [0, 0, 0, 0]}  # near a seam or not: words, lost, doubled, others
    at = 0
    for file, begin, end in pieces:
        here = []
        while at < len(words) and (words[at][1] + words[at][2]) / 2 < end + 0.02:
            here.append(words[at])
            at += 1
        seam = lambda time: time > hop and overlap / 4 - 1 < time % hop < overlap * 3 / 4 + 1
        expected = alone[file]
        for word, b, e in expected:
            counts[seam(begin + b) or seam(begin + e)][0] += 1
        matcher = difflib.SequenceMatcher(None, [w for w, _, _ in expected], [w for w, _, _ in here], autojunk=False)
        for what, i, i_end, j, j_end in matcher.get_opcodes():
            if what == "equal":
                continue
            times = [begin + expected[k][1] for k in range(i, i_end)] + [here[k][1] for k in range(j, j_end)]
            near = any(map(seam, times))
            lost, more = i_end - i, j_end - j
            counts[near][1] += max(0, lost - more)
            counts[near][2] += max(0, more - lost)
            counts[near][3] += min(lost, more)
    seams = int(len(joined) / rate / hop)
    print(f"{len(joined) / rate / 3600:.2f} hours, {seams} seams, {len(words)} words heard in windows of {args.window:g} s")
    for near, (total, lost, doubled, others) in counts.items():
        print(f"{'within 1 s of a seam' if near else 'elsewhere':22} {total:6} words alone; in windows {lost} are missing, "
              f"{doubled} are more, {others} are others")


main()
