#!/usr/bin/env python3
"""Prints how much two threads gain over one, on a quiet machine and beside a process that keeps one core busy.

    python3 bench/neighbours.py --build build/release [--against OTHER_BUILD] [--rounds 7]

It measures an encoder (10 s of audio), a training step and the push of one chunk of a live stream. Programs and numbers
of threads take turns, and the table has medians over the rounds. --against measures the programs of a second build in
the same turns. The neighbour is an endless loop on processor 0; the programs may run on all processors.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
import compare  # noqa: E402


class Server:
    """A bench that keeps running."""

    def __init__(self, label, *command):
        self.program = compare.Program(label, [str(part) for part in command], None)

    def seconds(self):
        (work,) = self.program.run(1).values()
        return work[""][0]

    def close(self):
        self.program.stop()


class Push:
    """Runs the bench of pushes, which times itself; the row is that of full attention with a cache of floats."""

    def __init__(self, command):
        self.command = command

    def seconds(self):
        lines = subprocess.run(self.command, check=True, capture_output=True, text=True).stdout.splitlines()
        return float(lines[2].split("|")[5].split()[0]) / 1000

    def close(self):
        pass


def works(build, threads):
    bench, count = build / "bench", ["--threads", str(threads)]
    return {
        "encoder, small, 10 s": Server("encoder", bench / "encoder", "--serve", "--size", "small", "--seconds", "10",
                                       *count),
        "training step, d 144": Server("train_step", bench / "train_step", "--serve", "--size", "144", *count),
        "push, 10 s kept": Push([bench / "push", "--left-context", "250", "--rounds", "2", *count]),
    }


def keep_busy():
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, {0})
        while True:
            pass
    return pid


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="build with LACONIC_BUILD_BENCH=ON")
    parser.add_argument("--against", type=pathlib.Path, help="another such build")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds: {options.rounds} given, at least 2 expected")
    builds = [("", options.build)] + ([("of --against", options.against)] if options.against else [])
    print("| work | program | machine | 1 thread, ms | 2 threads, ms | 1 over 2, by round: median, quartiles |")
    print("|---|---|---|---|---|---|")
    runs = {(name, threads): works(build.resolve(), threads) for name, build in builds for threads in (1, 2)}
    for work in next(iter(runs.values())):
        for machine in ("quiet", "one core busy"):
            neighbour = keep_busy() if machine != "quiet" else None
            seconds = {key: [] for key in runs}
            try:
                for _ in range(options.rounds):
                    for key in runs:
                        seconds[key].append(runs[key][work].seconds())
            finally:
                if neighbour:
                    os.kill(neighbour, 9)
                    os.waitpid(neighbour, 0)
            for name, _ in builds:
                one, two = seconds[name, 1], seconds[name, 2]
                ratio = compare.spread([a / b for a, b in zip(one, two)])
                print(f"| {work} | {name or 'this'} | {machine} | {1e3 * statistics.median(one):.2f} | "
                      f"{1e3 * statistics.median(two):.2f} | {ratio['median']:.2f} ({ratio['low']:.2f} to "
                      f"{ratio['high']:.2f}) |", flush=True)
    for run in runs.values():
        for work in run.values():
            work.close()


if __name__ == "__main__":
    main()
