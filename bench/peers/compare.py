"""Times laconic against its peers: the programs alternate, so that all meet the same machine.

    pip install torch numpy safetensors transformers onnx onnxscript onnxruntime
    python bench/peers/compare.py train_step --threads 1 --size 144 --json compare.json
    python bench/peers/compare.py encoder --threads 2 --size small --seconds 10 --batch 1
    python bench/peers/compare.py products --threads 1 --rows 1 250
    python bench/peers/compare.py attention --threads 1 --heads 4 --frames 250 1000
    python bench/peers/compare.py decode --threads 2 --streams 1 --contexts 1000 4000

CASE is a program of laconic, build/release/bench/CASE, and a peer, CASE.py beside this file; what is measured stands at
their heads. Each program keeps running and answers "run K" on standard input by one line {"seconds": [K times]}, or
{"seconds": {name: {work: [K times]}}} where it holds several libraries or several pieces of work. The first K of each
are warm-up and not counted. In every round each program does K steps, in an order that turns round by round. A ratio is
the median time of the fastest peer over laconic's; its spread is over the rounds. Memory is the peak of the process
from when it is ready (train_step, encoder), or what one call takes beyond its inputs (attention). With several threads
laconic's programs also say how long a line of the cache travels between two cores, before and after their own steps;
where that changed from round to round, as it does in virtual machines, train_step and encoder show the ratio of rounds
with near and with far cores.

`encoder` keeps models, inputs and exported files in --folder, and peers compare their logits with laconic's before they
are timed. Options of the work are passed on to both sides.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def fail(message):
    sys.exit(f"compare.py: {message}")


class Series:
    """The times of one library at one piece of work."""

    def __init__(self):
        self.seconds, self.rounds = [], []

    def add(self, seconds):
        self.seconds += seconds
        self.rounds.append(statistics.median(seconds))

    def median(self):
        return statistics.median(self.seconds)


class Program:
    """One program under measurement, with the libraries in it: `series` is {name: {work: Series}}."""

    def __init__(self, label, command, environment):
        self.label, self.series, self.facts = label, {}, {}
        self.peak_gflops, self.hand_over = [], []
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
            )
        except OSError as error:
            fail(f"{label}: cannot start {command[0]}: {error.strerror}")

    def run(self, steps):
        """{name: {work: [seconds]}}"""
        answer = ""
        try:
            self.process.stdin.write(f"run {steps}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            self.facts = json.loads(answer)
            seconds = self.facts.pop("seconds")
            if isinstance(seconds, list):
                seconds = {self.facts.get("name", self.label): {"": seconds}}
            for works in seconds.values():
                for times in works.values():
                    if len(times) != steps or not all(s > 0 for s in times):
                        raise ValueError
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            code = self.process.poll()
            ended = "" if code is None else f" (it ended with exit code {code})"
            fail(f'{self.label} answered "{answer.strip()[:500]}" to "run {steps}"{ended}, '
                 f'{{"seconds": ...}} with {steps} positive numbers each expected')
        return seconds

    def measure(self, steps):
        for name, works in self.run(steps).items():
            for work, seconds in works.items():
                self.series.setdefault(name, {}).setdefault(work, Series()).add(seconds)
        self.peak_gflops += self.facts.pop("peak_gflops", [])
        self.hand_over.append(self.facts.pop("hand_over_ns", 0))

    def peak_mb(self, name, work):
        peak = self.facts.get("peak_mb")
        return peak[name][work] if isinstance(peak, dict) else peak

    def version(self):
        return self.facts.get("version", "")

    def stop(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def cpu_model():
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def spread(values):
    low, middle, high = statistics.quantiles(values, method="inclusive")
    return {"median": middle, "low": low, "high": high, "least": min(values)}


class Result:
    """What all programs measured: laconic is the first library of the first program."""

    def __init__(self, programs):
        self.programs = programs
        self.owner = {name: program for program in programs for name in program.series}
        self.series = {name: program.series[name] for name, program in self.owner.items()}
        self.ours = next(iter(self.series))
        # What else laconic can do (weights that are not packed, say) is shown and no peer.
        self.peers = [name for name in self.series if not name.startswith("laconic")]
        self.works = list(self.series[self.ours])
        for name, works in self.series.items():
            if list(works) != self.works:
                fail(f"{name} measured {list(works)}, {self.works} expected as in {self.ours}")
        sizes = {program.label: program.facts["parameters"] for program in programs if "parameters" in program.facts}
        if len(set(sizes.values())) > 1:
            fail(f"models of different sizes: {sizes}")

    def fact(self, key):
        return self.programs[0].facts.get(key)

    def peak_gflops(self):
        """The most that was seen of multiply-adds in registers; None where it was not measured."""
        return max(self.programs[0].peak_gflops, default=None)

    def best_peer(self, work):
        return min(self.peers, key=lambda name: self.series[name][work].median())

    def ratio(self, work):
        """How many times as fast as the fastest peer, and by rounds."""
        ours, theirs = self.series[self.ours][work], self.series[self.best_peer(work)][work]
        return theirs.median() / ours.median(), spread([b / a for a, b in zip(ours.rounds, theirs.rounds)])

    def print_by_distance(self, work):
        """The ratio of rounds with cores near and far from each other, where the machine had both (hand_over_ns)."""
        nanoseconds = self.programs[0].hand_over
        least, most = min(nanoseconds), max(nanoseconds)
        if most == 0:
            return  # one thread
        if most < 2 * least:
            print(f"Core to core: {least:.0f} to {most:.0f} ns in all rounds.")
            return
        middle = (least + most) / 2
        ours, theirs = self.series[self.ours][work], self.series[self.best_peer(work)][work]
        for label, chosen in [("near", [n < middle for n in nanoseconds]), ("far", [n >= middle for n in nanoseconds])]:
            pairs = [(a, b) for a, b, take in zip(ours.rounds, theirs.rounds, chosen) if take]
            a, b = (statistics.median(values) for values in zip(*pairs))
            print(f"  cores {label} ({statistics.median(n for n, take in zip(nanoseconds, chosen) if take):.0f} ns), "
                  f"{len(pairs)} rounds: {a * 1e3:.1f} and {b * 1e3:.1f} ms, {b / a:.2f} times as fast")

    def rows(self):
        """Everything, for the JSON file."""
        for name, works in self.series.items():
            for work, series in works.items():
                yield {"library": name, "version": self.owner[name].version(), "work": work,
                       **spread(series.seconds), "peak_mb": self.owner[name].peak_mb(name, work),
                       "seconds": series.seconds}


def print_row(*cells):
    print("| " + " | ".join(cells) + " |")


def print_header(*cells):
    print_row(*cells)
    print("|" + "---|" * len(cells))


def number(value, digits=1):
    return "" if value is None else f"{value:.{digits}f}"


def print_programs(result):
    """One piece of work: a line for every program."""
    audio = result.fact("audio_seconds")
    speed = ["times real time"] if audio else []
    print_header("program", "median ms", "quartiles ms", "least ms", *speed, "peak MB")
    for name, works in result.series.items():
        s = spread(works[""].seconds)
        ms = {key: value * 1e3 for key, value in s.items()}
        print_row(name, f"{ms['median']:.1f}", f"{ms['low']:.1f} to {ms['high']:.1f}", f"{ms['least']:.1f}",
                  *([f"{audio / s['median']:.1f}"] if audio else []),
                  number(result.owner[name].peak_mb(name, ""), 0))
    ratio, rounds = result.ratio("")
    print(f"laconic is {ratio:.2f} times as fast as {result.best_peer('')} (rounds: median {rounds['median']:.2f}, "
          f"quartiles {rounds['low']:.2f} to {rounds['high']:.2f}, least {rounds['least']:.2f})")
    result.print_by_distance("")


def print_works(result):
    """Many pieces of work: a line for each, in GFLOP/s where the operations are known, else in milliseconds."""
    flop, peak = result.fact("flop"), result.peak_gflops()

    def value(name, work):
        seconds = result.series[name][work].median()
        return f"{flop[work] / seconds * 1e-9:.1f}" if flop else f"{seconds * 1e3:.2f}"

    print("GFLOP/s, by median times:" if flop else "Milliseconds, medians:")
    share_of_peak = ["of the peak"] if peak else []
    print_header("", *result.series, *share_of_peak, "laconic over the fastest peer", "by round: quartiles")
    for work in result.works:
        ratio, rounds = result.ratio(work)
        share = []
        if peak:
            gflops = flop[work] / result.series[result.ours][work].median() * 1e-9
            share = [f"{100 * gflops / peak:.0f}%"]
        print_row(work, *(value(name, work) for name in result.series), *share,
                  f"{ratio:.2f} ({result.best_peer(work)})", f"{rounds['low']:.2f} to {rounds['high']:.2f}")
    if peak:
        print(f"The peak is {peak:.1f} GFLOP/s: multiply-adds in registers, in laconic's program.")
    if isinstance(result.fact("peak_mb"), dict):
        print("\nMemory beyond the inputs, MB:")
        print_header("", *result.series)
        for work in result.works:
            print_row(work, *(number(result.owner[name].peak_mb(name, work)) for name in result.series))
    ratios = [result.ratio(work)[0] for work in result.works]
    mean = statistics.geometric_mean(ratios)
    print(f"laconic is {mean:.2f} times as fast as the fastest peer of each line (geometric mean of {len(ratios)}; "
          f"{min(ratios):.2f} to {max(ratios):.2f})")


def parse():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release/bench"),
                        help="folder of laconic's bench programs")
    common.add_argument("--python", default=sys.executable, help="a Python that has the peers")
    common.add_argument("--threads", type=int, default=1)
    common.add_argument("--rounds", type=int, default=10)
    common.add_argument("--steps", type=int, default=3, help="steps of each program in a round")
    common.add_argument("--at-least", type=float, metavar="RATIO", help="exit with 1 below this ratio, at any work")
    common.add_argument("--json", metavar="FILE")
    parser = argparse.ArgumentParser(description="times laconic against its peers")
    cases = parser.add_subparsers(dest="case", required=True)

    def case(name, text, frameworks):
        out = cases.add_parser(name, help=text, parents=[common])
        out.add_argument("--frameworks", nargs="+", choices=frameworks, default=frameworks)
        work = out.add_argument_group("the work")
        options = []

        def add(option, **settings):
            options.append(work.add_argument(option, **settings).dest)

        out.set_defaults(options=options)
        return add

    add = case("train_step", "one training step of a Conformer", ["eager", "compiled"])
    add("--size", choices=["144", "512"])
    add = case("encoder", "a whole encoder at inference", ["eager", "compiled", "onnx"])
    add("--size", choices=["small", "medium", "large"], default="small")
    add("--seconds", type=float, default=10.0)
    add("--batch", choices=["1", "uneven"], default="1")
    add("--weights", choices=["float", "bf16", "int8", "plain"], help="how laconic keeps them")
    add("--folder", default="build/encoders", help="cache of models; a folder for each size is made in it")
    add = case("products", "matrix products", ["eager"])
    add("--rows", type=int, nargs="+")
    add("--shapes", nargs="+", metavar="INxOUT")
    add("--weights", type=int)
    add("--rounded", action="store_true", help="laconic's weights as bf16 and int8, too")
    add = case("attention", "softmax attention alone", ["eager", "compiled"])
    add("--heads", type=int, nargs="+")
    add("--frames", type=int, nargs="+")
    add = case("decode", "one token more of GPT-2 with a cache", ["eager", "onnx"])
    add("--streams", type=int, nargs="+")
    add("--contexts", type=int, nargs="+")
    add("--attention", choices=["mha", "mla-head"], default="mha", help="of laconic")
    add("--storage", choices=["float", "bf16", "int8"], help="how laconic keeps keys, values and latents")
    arguments = parser.parse_args()
    if arguments.case == "decode" and arguments.rounds * arguments.steps * 2 > 190:
        parser.error("decode: at most 95 steps in all rounds expected, for a cache has room for 200 tokens")
    if min(arguments.threads, arguments.steps) < 1 or arguments.rounds < 2:
        parser.error("at least 1 thread, 1 step and 2 rounds expected")
    if arguments.case == "encoder":
        arguments.folder = str(pathlib.Path(arguments.folder) / arguments.size)
    return arguments


def work_options(arguments):
    """As words for both programs; what was not given is their default."""
    words = []
    for option in arguments.options:
        value = getattr(arguments, option)
        if value is True:
            words.append(f"--{option}")
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            words += [f"--{option}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return words


def commands(arguments):
    """Of each program by its label, and those that prepare files."""
    options = ["--threads", str(arguments.threads), *work_options(arguments)]
    laconic = [str(arguments.build / arguments.case), *options]
    peer = [arguments.python, str(HERE / f"{arguments.case}.py"), *options]
    programs = {"laconic": [*laconic, "--serve"]}
    for framework in arguments.frameworks:
        label = "ONNX Runtime" if framework == "onnx" else f"PyTorch {framework}"
        programs[label] = [*peer, "--framework", framework, "--serve"]
        if arguments.case == "train_step" and framework == "compiled":
            # Compiling takes a minute a way: only the memory format that wins without it.
            programs[label] += ["--format", "channels_last"]
    prepare = []
    if arguments.case == "encoder":
        prepare.append([*laconic, "--prepare"])
        if "onnx" in arguments.frameworks:
            prepare.append([*peer, "--framework", "onnx", "--prepare"])
    return programs, prepare


def measure(arguments, environment):
    to_run, to_prepare = commands(arguments)
    for command in to_prepare:
        try:
            if subprocess.run(command, env=environment).returncode != 0:
                fail(f"{' '.join(command)} failed")
        except OSError as error:
            fail(f"cannot start {command[0]}: {error.strerror}")
    programs = []
    try:
        for label, command in to_run.items():
            programs.append(Program(label, command, environment))
            programs[-1].run(arguments.steps)  # each warms up alone: the peers choose their fastest way by measuring
        for round_number in range(arguments.rounds):
            turn = round_number % len(programs)
            for program in programs[turn:] + programs[:turn]:
                program.measure(arguments.steps)
            print(f"round {round_number + 1} of {arguments.rounds}", end="\r", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    finally:
        for program in programs:
            program.stop()
    return Result(programs)


def main():
    arguments = parse()
    # The same number of threads for everyone, also in libraries below.
    environment = os.environ | {
        name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    load_before = os.getloadavg()[0]
    result = measure(arguments, environment)
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform(),
               "load_before": load_before, "load_after": os.getloadavg()[0]}
    versions = {p.label: p.version() for p in result.programs if p.version()}
    print(f"{machine['cpu']}, {machine['cores']} cores, load {load_before:.1f} before and "
          f"{machine['load_after']:.1f} after; {arguments.threads} threads; {arguments.rounds} rounds of "
          f"{arguments.steps} steps; "
          f"{' '.join([arguments.case, *work_options(arguments)])}; "
          f"{', '.join(f'{label} {version}' for label, version in versions.items())}")
    if result.works == [""]:
        print_programs(result)
    else:
        print_works(result)
    ratios = {work: result.ratio(work) for work in result.works}
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({
            "machine": machine, "case": arguments.case, "work": work_options(arguments), "threads": arguments.threads,
            "steps_a_round": arguments.steps, "peak_gflops": result.peak_gflops(),
            "hand_over_ns": result.programs[0].hand_over if any(result.programs[0].hand_over) else None,
            "ratios": [{"work": work, "against": result.best_peer(work), "ratio": ratio, "by_round": rounds}
                       for work, (ratio, rounds) in ratios.items()],
            "measured": list(result.rows()),
        }, indent=1) + "\n")
    least = min(ratio for ratio, _ in ratios.values())
    if arguments.at_least is not None and least < arguments.at_least:
        fail(f"ratio {least:.2f} measured, at least {arguments.at_least} expected")


if __name__ == "__main__":
    main()
