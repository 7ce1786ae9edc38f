#!/usr/bin/env python3
"""Prints time and memory of `laconic transcribe` for long recordings and for many files.

    cmake --preset release && cmake --build --preset release
    python3 bench/long.py --build build/release [--hours 1 3] [--files 100 500] [--rounds 3]

It trains a small streaming model on spoken digits, and repeats their utterances to recordings of so many hours, which
are streamed in blocks, and copies them to so many files, which are transcribed whole in portions. Lengths and numbers
take turns; seconds are medians and memory is the most of all turns.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import wave


def run(command):
    """Returns the seconds of a command and the most memory that it held, in MiB. Ends this program if it fails."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=said)
        most = 0  # getrusage would also count what this program held when it started the other
        while process.poll() is None:
            for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    most = max(most, int(line.split()[1]) / 1024)
            time.sleep(0.01)
        if process.returncode != 0:
            said.seek(0)
            sys.exit(f"{command}: exit code {process.returncode}\n{said.read().decode(errors='replace')}")
    return time.monotonic() - start, most


def write_recording(path, parts, seconds):
    """Writes the parts again and again, up to so many seconds."""
    with wave.open(str(path), "wb") as out:
        with wave.open(str(parts[0])) as first:
            out.setparams(first.getparams())
            left = int(seconds * first.getframerate())
        frames = []
        for part in parts:
            with wave.open(str(part)) as one:
                frames.append(one.readframes(one.getnframes()))
        width = out.getsampwidth() * out.getnchannels()
        while left > 0:
            for block in frames:
                out.writeframesraw(block[:left * width])
                left -= min(left, len(block) // width)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--files", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    laconic = args.build.resolve() / "laconic"
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run([laconic, "data", "speak", "--out", folder / "digits", "--train", 200, "--valid", 20, "--test", 100])
        run([laconic, "train", "--data", folder / "digits", "--out", folder / "run", "--chunk", 8, "--left-context", 32,
             "--epochs", 2])
        parts = sorted((folder / "digits").rglob("*.wav"))[:100]
        options = ["--model", folder / "run", "--threads", args.threads]
        cases = {}
        for hours in args.hours:
            path = folder / f"hours-{hours:g}.wav"
            write_recording(path, parts, 3600 * hours)
            cases[f"{hours:g} h, streamed"] = ([laconic, "transcribe", *options, "--streaming", path], hours, "hour")
        for count in args.files:
            paths = [folder / f"{i}.wav" for i in range(count)]
            for i, path in enumerate(paths):
                if not path.exists():
                    path.write_bytes(parts[i % len(parts)].read_bytes())
            cases[f"{count} files"] = ([laconic, "transcribe", *options, *paths], count, "file")
        seconds, memory = {case: [] for case in cases}, {case: [] for case in cases}
        for _ in range(args.rounds):
            for case, (command, _, _) in cases.items():
                s, m = run(command)
                seconds[case].append(s)
                memory[case].append(m)
        for case, (_, amount, unit) in cases.items():
            median = statistics.median(seconds[case])
            print(f"{case:>14}: {median:.1f} s, {median / amount:.3g} s a{'n' if unit == 'hour' else ''} {unit}, "
                  f"at most {max(memory[case]):.0f} MiB")


if __name__ == "__main__":
    main()
