#!/usr/bin/env python3
"""Damages good audio files and model folders at random, has the program transcribe each, and compares what comes of it
with libsndfile and ffmpeg (audio) and with transformers (folders of Hugging Face).

usage: mutations.py --laconic build/release/laconic --model TRAINED_MODEL --models DIR --output mutations.json

TRAINED_MODEL is a folder of `laconic train`; DIR holds folders of Hugging Face. Needs numpy, soundfile, safetensors,
torch, transformers and the program ffmpeg. The same seed gives the same files. --keep DIR keeps those that do not
agree.

Exit code 0 says that all was heard. So what matters most are the categories `less heard` (a reference decodes more
without complaint), `short` (sound is known to be gone, and nobody says so), `unnoticed` (every reference complains or
refuses) and `another text`; then `crash`, `hang` (20 s) and `memory` (2 GiB). `noted` is exit code 0 with a note of
what is odd and no less heard than a reference decodes. `doubted` is exit code 1 with as much heard as the references
decode, and a note that more may be missing. `refused` is an error, or less heard with a note, where a reference reads
without complaint."""

import argparse
import collections
import json
import pathlib
import tempfile

from mutated.audio import AudioStudy
from mutated.models import ModelStudy


def table(title, rows):
    """Prints the number of files of each kind in each category."""
    order = [
        "agree",
        "noted",
        "doubted",
        "refused",
        "less heard",
        "short",
        "unnoticed",
        "another text",
        "crash",
        "hang",
        "memory",
    ]
    counts = collections.Counter((row["kind"], row["category"]) for row in rows)
    shown = [c for c in order if any(row["category"] == c for row in rows)]
    print(f"\n| {title} | " + " | ".join(shown) + " |\n|---|" + "---|" * len(shown))
    for kind in list(dict.fromkeys(row["kind"] for row in rows)):
        print(f"| {kind.replace('_', ' ')} | " + " | ".join(str(counts[kind, c] or "") for c in shown) + " |")
    print("| all | " + " | ".join(str(sum(row["category"] == c for row in rows)) for c in shown) + " |")
    print(
        f"longest {max(row['took'] for row in rows):.2f} s, most memory {max(row['mib'] for row in rows)} MiB",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent
    place = lambda p: pathlib.Path(p).resolve()
    parser.add_argument("--laconic", default="build/release/laconic", type=lambda p: str(place(p)))
    parser.add_argument("--model", required=True, type=place)
    parser.add_argument("--models", required=True, type=place)
    parser.add_argument("--recording", type=place, default=next((here / "tests/data").rglob("*.flac")))
    parser.add_argument("--count", type=int, default=500, help="audio files, and as many model folders")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, type=place)
    parser.add_argument("--keep", type=place)
    args = parser.parse_args()
    if (args.model / "model" / "config.json").exists():
        args.model = args.model / "model"
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    results = dict(seed=args.seed, count=args.count)
    for name, study in (("audio", AudioStudy), ("models", ModelStudy)):
        with tempfile.TemporaryDirectory() as work:
            one = study(args, pathlib.Path(work))
            rows = results[name] = []
            for i in range(args.count):
                rows.append(one.one(i))
                if (i + 1) % 50 == 0:
                    print(f"{name}: {i + 1} of {args.count}", flush=True)
        table(name, rows)
        args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
