"""Compares two results of a bench: what became slower or faster, beyond the noise of the measurements.

    build/release/bench/kernels --benchmark_repetitions=5 --benchmark_out=old.json
    ... change, build again, and the same with new.json ...
    python3 bench/compare_results.py old.json new.json [--slower 1.05] [--noise 0.03] [--filter 'attend|linear']

Files are of Google Benchmark, or both are of `bench/peers/compare.py --json`, of which laconic's times count. A time is
the median of the repetitions; --benchmark_enable_random_interleaving spreads these over the run, so that they meet the
machine in more than one state. A change counts where it is larger than --noise and larger than the spread between the
quartiles of either side's repetitions (of fewer than four: between their least and most). With a single time on either
side nothing says how far times spread, and --noise alone decides. Exits with 1 if a change that counts makes something
take more than --slower times as long; with 2 if the files cannot be compared.
"""

import argparse
import json
import math
import pathlib
import re
import statistics
import sys

SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
NORMAL_QUARTILES = 1.35  # between the quartiles of a normal distribution, in standard deviations


def fail(message):
    print(f"compare_results.py: {message}", file=sys.stderr)
    sys.exit(2)


def warn(message):
    print(f"WARNING: {message}")


class Time:
    """Median and relative spread of the times of one benchmark; no spread where it ran once."""

    def __init__(self, seconds, spread=None):
        self.median, self.spread = statistics.median(seconds), spread
        if len(seconds) > 1:
            self.spread = self.distance(seconds) / self.median

    @staticmethod
    def distance(seconds):
        if len(seconds) < 4:
            return max(seconds) - min(seconds)
        low, _, high = statistics.quantiles(seconds, method="inclusive")
        return high - low


class Result:
    def __init__(self, path):
        self.path = path
        try:
            content = json.loads(pathlib.Path(path).read_text())
            if "benchmarks" in content:
                self.context, self.times = content["context"], of_google_benchmark(content["benchmarks"])
            elif "measured" in content:
                self.context, self.times = of_peers(content)
            else:
                fail(f'{path}: neither "benchmarks" nor "measured" in it')
        except OSError as error:
            fail(f"{path}: {error.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fail(f"{path}: not the results of a bench ({type(error).__name__}: {error})")
        if not self.times:
            fail(f"{path}: no benchmark in it")


def of_google_benchmark(entries):
    """{name: Time}. Repetitions if they are there, else what --benchmark_report_aggregates_only leaves of them."""
    seconds, medians, deviations = {}, {}, {}
    for entry in entries:
        name = entry.get("run_name", entry["name"]).removesuffix("/real_time")
        if entry.get("error_occurred"):
            warn(f"{name}: {entry.get('error_message', 'failed')}")
            continue
        kind = entry.get("aggregate_name", "")
        if kind not in ("", "median", "stddev"):
            continue
        time = entry["real_time"] * SECONDS[entry["time_unit"]]
        if kind == "":
            seconds.setdefault(name, []).append(time)
        else:
            (medians if kind == "median" else deviations)[name] = time
    times = {name: Time([median], NORMAL_QUARTILES * deviations[name] / median if name in deviations else None)
             for name, median in medians.items()}
    return times | {name: Time(values) for name, values in seconds.items()}


def of_peers(content):
    """Context and {name: Time}, of laconic alone."""
    case = " ".join([content["case"], *content["work"], f"{content['threads']} threads"])
    context = {"cpu": content["machine"]["cpu"], "num_cpus": content["machine"]["cores"]}
    if content.get("peak_gflops"):
        context[f"threads:{content['threads']}/GFLOP/s of FMA"] = content["peak_gflops"]
    return context, {f"{case}: {row['library']} {row['work']}".strip(): Time(row["seconds"])
                     for row in content["measured"] if row["library"].startswith("laconic")}


def compare_contexts(old, new, noise):
    """Says where two results are not of the same machine, or of one in another state."""
    for key in sorted(old.keys() & new.keys()):
        a, b = old[key], new[key]
        if a == b:
            continue
        if key in ("cpu", "host_name", "num_cpus", "instructions", "compiler", "library_build_type",
                   "cpu_scaling_enabled"):
            warn(f"{key} differs: {a} and {b}")
        elif key.startswith("threads:"):
            # Reading is less steady than registers, and says less of whether the machine is the same.
            if abs(math.log(float(b) / float(a))) > (noise if key.endswith("FMA") else 0.2):
                warn(f"{key} differs: {a} and {b}")


def human(seconds):
    for unit in ("s", "ms", "us"):
        if seconds >= SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.4g} {unit}"
    return f"{seconds / SECONDS['ns']:.4g} ns"


class Change:
    def __init__(self, name, old, new, noise):
        self.name, self.old, self.new = name, old, new
        self.ratio = new.median / old.median
        self.noise = max(noise, old.spread or 0, new.spread or 0)

    def counts(self):
        return abs(math.log(self.ratio)) > math.log1p(self.noise)

    def is_slower(self, limit):
        return self.counts() and self.ratio > limit


def print_changes(changes):
    print("| benchmark | old | new | new / old | noise |")
    print("|---|---|---|---|---|")
    for c in sorted(changes, key=lambda c: -c.ratio):
        print(f"| {c.name} | {human(c.old.median)} | {human(c.new.median)} | {c.ratio:.3f} | {100 * c.noise:.1f}% |")


def parse():
    parser = argparse.ArgumentParser(description="compares two results of a bench")
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--slower", type=float, default=1.05, metavar="RATIO",
                        help="exit with 1 if anything takes more than so many times the old time")
    parser.add_argument("--noise", type=float, default=0.03, metavar="PART", help="smaller changes never count")
    parser.add_argument("--filter", type=re.compile, default=re.compile(""), metavar="REGEX",
                        help="only benchmarks in whose name this is found")
    arguments = parser.parse_args()
    if arguments.slower < 1 or arguments.noise < 0:
        parser.error("--slower of at least 1 and --noise of at least 0 expected")
    return arguments


def main():
    arguments = parse()
    old, new = Result(arguments.old), Result(arguments.new)
    names = [name for name in old.times | new.times if arguments.filter.search(name)]
    for result, other in ((old, new), (new, old)):
        only = [name for name in names if name not in other.times]
        if only:
            print(f"Only in {result.path}: {', '.join(only[:5])}{f' and {len(only) - 5} more' if only[5:] else ''}")
    changes = [Change(name, old.times[name], new.times[name], arguments.noise)
               for name in names if name in old.times and name in new.times]
    if not changes:
        fail("no benchmark that both files have")
    compare_contexts(old.context, new.context, arguments.noise)
    single = sum(c.old.spread is None or c.new.spread is None for c in changes)
    if single:
        warn(f"{single} of {len(changes)} ran only once: --benchmark_repetitions=5 would say how far times spread")

    changed = [c for c in changes if c.counts()]
    if changed:
        print_changes(changed)
    slower = [c for c in changed if c.is_slower(arguments.slower)]
    mean = statistics.geometric_mean(c.ratio for c in changes)
    print(f"{len(changes)} benchmarks: {sum(c.ratio < 1 for c in changed)} faster, "
          f"{sum(c.ratio > 1 for c in changed)} slower, {len(changes) - len(changed)} within noise; "
          f"new over old {mean:.3f} (geometric mean)")
    if slower:
        print(f"More than {arguments.slower:g} times as slow: {', '.join(c.name for c in slower)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
