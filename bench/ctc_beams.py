#!/usr/bin/env python3
"""Times laconic's beam search for CTC against pyctcdecode's, on the same logits with the same language model.

    pip install pyctcdecode kenlm safetensors
    cmake --preset release -DLACONIC_BUILD_BENCH=ON && cmake --build --preset release --target bench_ctc_beams
    python3 bench/ctc_beams.py [--rounds 5] [--utterances 20] [--noise 5 7]
    python3 bench/ctc_beams.py --logits FILE.safetensors --model FILE.arpa

The programs take turns, each on one thread; numbers are medians over the rounds. Without --logits, utterances are made
as in tests/golden/ctc_beams.py: logits of word sequences of that page's speech, whose language model is read; `noise`
is how high other characters rise. A file of logits has tensors (frames, classes), and metadata "labels": a JSON list of
the classes, "" first, which is the blank. Times are those of decoding alone: logits are in memory.
"""

import argparse
import contextlib
import json
import logging
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "golden"))


def make(folder, utterances, noise):
    """Writes logits and a language model, and returns the paths and the texts."""
    import ctc_beams
    import numpy as np
    from safetensors.numpy import save_file

    arpa, logits = folder / "speech.arpa", folder / f"noise{noise}.safetensors"
    ctc_beams.write_arpa(arpa, random.Random(1))
    words = [word for sentence in ctc_beams.sentences() for word in sentence]
    labels, texts, tensors = ["", " ", *ctc_beams.LETTERS], {}, {}
    for n in range(utterances):
        at = (n * 31) % (len(words) - 20)
        text = " ".join(words[at : at + 20])
        rows, _ = ctc_beams.logits_of(text, labels, np.random.default_rng(n), noise)
        tensors[f"{n:03d}"], texts[f"{n:03d}"] = rows, text
    save_file(tensors, logits, {"labels": json.dumps(labels)})
    return logits, arpa, texts


class Laconic:
    def __init__(self, program, logits, arpa, options):
        command = [program, "--serve", "--threads", "1", "--logits", logits, *options]
        self.process = subprocess.Popen([str(part) for part in command + (["--model", arpa] if arpa else [])],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip

    def run(self):
        """Seconds, and the text of each utterance."""
        self.process.stdin.write("run 1\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("ctc_beams.py: laconic's program ended")
        answer = json.loads(line)
        return answer["seconds"][0], dict(zip(answer["names"], answer["texts"]))

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


class Pyctcdecode:
    def __init__(self, logits, arpa):
        from pyctcdecode import build_ctcdecoder
        from safetensors import safe_open

        with safe_open(logits, "np") as file:
            labels = json.loads(file.metadata()["labels"])
            self.logits = {name: file.get_tensor(name) for name in file.keys()}
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            self.decoder = build_ctcdecoder(labels, str(arpa) if arpa else None)

    def run(self, width):
        start = time.perf_counter()
        texts = {name: self.decoder.decode(one, beam_width=width) for name, one in self.logits.items()}
        return time.perf_counter() - start, texts

    def frames(self):
        return sum(len(one) for one in self.logits.values())


def errors(reference, text):
    """Word errors by Levenshtein."""
    row, words = list(range(len(text.split()) + 1)), text.split()
    for i, r in enumerate(reference.split(), 1):
        above, row[0] = row[:], i
        for j, h in enumerate(words, 1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h))
    return row[-1]


def measure(program, logits, arpa, texts, width, rounds, title):
    ways = {"laconic": Laconic(program, logits, arpa, ["--beam-width", width]),
            "laconic, history pruned": Laconic(program, logits, arpa, ["--beam-width", width, "--prune-history"]),
            "pyctcdecode": Pyctcdecode(logits, arpa)}  # fmt: skip
    times, said = {name: [] for name in ways}, {}
    for turn in range(rounds + 1):  # the first one warms up
        for name, way in ways.items():
            seconds, said[name] = way.run(width) if name == "pyctcdecode" else way.run()
            if turn > 0:
                times[name].append(seconds)
    frames = ways["pyctcdecode"].frames()
    peer = statistics.median(times["pyctcdecode"])
    for name in ways:
        seconds = statistics.median(times[name])
        wrong = sum(errors(texts[n], said[name][n]) for n in texts)
        total = sum(len(t.split()) for t in texts.values())
        same = sum(said[name][n] == text for n, text in said["pyctcdecode"].items())
        print(f"| {title} | {width} | {name} | {seconds / frames * 1e6:.1f} | {peer / seconds:.1f} | "
              f"{same} of {len(said[name])} | {f'{100 * wrong / total:.1f}' if total else ''} |")  # fmt: skip
        if name != "pyctcdecode":
            ways[name].stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release/bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="+", default=[5.0, 7.0])
    parser.add_argument("--widths", type=int, nargs="+", default=[100])
    parser.add_argument("--logits", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    program = options.build / "ctc_beams"
    print("| logits | beams | decoder | us a frame | times as fast | texts as pyctcdecode's | WER % |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width in options.widths:
            if options.logits:
                measure(program, options.logits, options.model, {}, width, options.rounds, options.logits.stem)
                continue
            for noise in options.noise:
                logits, arpa, texts = make(pathlib.Path(folder), options.utterances, noise)
                for name, model in ("no model", None), ("4-grams", arpa):
                    measure(program, logits, model, texts, width, options.rounds, f"noise {noise:g}, {name}")


if __name__ == "__main__":
    main()
