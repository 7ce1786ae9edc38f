"""Measures the kernels compiled for each level of x86-64, in percent of each level's own roof on this processor.

    cmake --preset release -DLACONIC_BUILD_BENCH=ON && cmake --build --preset release --target bench_kernels_levels
    python3 bench/levels.py [--filter '^linear/.*threads:1/'] [--rounds 3] [--json levels.json]

The program holds the code of several levels (cmake/laconicProcessors.cmake); LACONIC_ISA chooses one. Levels take turns
in every round, and a number is the median over the rounds. The columns of a level are the microseconds of a call and
the percent of its roof: of the multiply-adds that this level can do, or of reading the bytes of a call (kernels.cpp).
The last line is the geometric mean of the percents. Levels that this processor lacks are left out.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys


def start(program, level, options):
    return subprocess.run(
        [program, "--benchmark_format=json", *options],
        env={**os.environ, "LACONIC_ISA": level}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def levels_of(program):
    """The levels in the program that this processor has: its answer to a name that is none."""
    _, _, names = start(program, "?", []).stderr.partition("expected one of: ")
    return names.split() or sys.exit(f"levels.py: {program} does not say which levels it has")


def run(program, level, options):
    """The benchmarks of one level: {name: (microseconds, percent of the roof)}"""
    done = start(program, level, options)
    if done.returncode != 0:
        sys.exit(f"levels.py: {program}, {level}: {done.stderr.strip()}")
    found = {}
    for b in json.loads(done.stdout[done.stdout.index("{") :])["benchmarks"]:
        if "of_roof" in b:
            found[b["name"].removesuffix("/real_time")] = (b["real_time"], b["of_roof"])
    if not found:
        sys.exit("levels.py: no benchmark fits the filter")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release/bench"), help="folder of the program")
    parser.add_argument("--filter", default="threads:1/", help="names of benchmarks: a regular expression")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.02, help="least time of one benchmark in a round")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    arguments = [f"--benchmark_filter={options.filter}", f"--benchmark_min_time={options.seconds}"]
    program = options.build / "kernels_levels"
    levels, times = levels_of(program), {}
    for _ in range(options.rounds):
        for level in levels:
            for name, numbers in run(program, level, arguments).items():
                times.setdefault(name, {}).setdefault(level, []).append(numbers)
    medians = {
        name: {level: [statistics.median(column) for column in zip(*rounds)] for level, rounds in by_level.items()}
        for name, by_level in times.items()
    }
    print("| kernel | " + " | ".join(f"{level}, us | of its roof" for level in levels) + " |")
    print("|---" * (1 + 2 * len(levels)) + "|")
    for name, by_level in medians.items():
        print(f"| {name} | " + " | ".join("{:.1f} | {:.0f}%".format(*by_level[level]) for level in levels) + " |")
    means = [math.exp(statistics.mean(math.log(m[level][1]) for m in medians.values())) for level in levels]
    print(f"| {len(medians)} kernels | " + " | ".join(f" | {mean:.0f}%" for mean in means) + " |")
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")


if __name__ == "__main__":
    main()
