#!/usr/bin/env python3
"""Compares laconic's normalisers of texts with those of transformers, of which they have the rules.

    pip install transformers whisper-normalizer
    cmake --preset release -DLACONIC_BUILD_BENCH=ON && cmake --build --preset release --target bench_normalize
    python3 bench/normalize.py [--random 20000] [--texts FILE ...]

The texts are random ones of tests/golden/normalize.py, each word of the list of British spellings, and the lines of
--texts, of a manifest (.jsonl) their texts. White space is one space in both. It prints how many texts are equal, the
first that are not, and the seconds.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "golden"))

parser = argparse.ArgumentParser()
parser.add_argument("--program", type=pathlib.Path, default=HERE.parent / "build/release/bench/normalize")
parser.add_argument("--random", type=int, default=20000)
parser.add_argument("--texts", type=pathlib.Path, nargs="*", default=[])
parser.add_argument("--shown", type=int, default=10)
args = parser.parse_args()

import normalize  # noqa: E402  (tests/golden)

normalizers, spellings = normalize.normalizers()
rng = random.Random(2)
sets = {"random": [normalize.random_text(rng) for _ in range(args.random)], "spellings": list(spellings)}
for path in args.texts:
    texts = path.read_text(errors="replace").splitlines()
    sets[path.name] = [json.loads(t)["text"] for t in texts] if path.suffix == ".jsonl" else texts
for name, texts in sets.items():
    lines = [" ".join(t.split("\n")) for t in texts]
    for kind, normalizer in normalizers.items():
        start = time.perf_counter()
        expected = [" ".join(normalizer(t).split()) for t in lines]
        middle = time.perf_counter()
        run = subprocess.run([args.program, kind], input="\n".join(lines) + "\n", stdout=subprocess.PIPE, text=True,
                             check=True)  # fmt: skip
        seconds = time.perf_counter() - middle
        got = run.stdout.split("\n")[:-1]
        assert len(got) == len(lines), (len(got), len(lines))
        other = [(t, g, e) for t, g, e in zip(lines, got, expected) if g != e]
        print(f"{name}, {kind}: {len(lines) - len(other)} of {len(lines)} equal; "
              f"laconic {seconds:.2f} s, transformers {middle - start:.2f} s")  # fmt: skip
        for text, ours, theirs in other[: args.shown]:
            print(f"  {text!r}\n    laconic      {ours!r}\n    transformers {theirs!r}")
