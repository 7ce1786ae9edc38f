"""Times laconic's training step against PyTorch's: the programs alternate, so that both meet the same machine.

    pip install torch numpy
    python bench/peers/compare_train_step.py --laconic build/release/bench/train_step --threads 1 --json compare.json

Each program keeps running and answers "run K" on standard input by one line {"seconds": [K step times]} (train_step.py
says what a step is). The first K steps of each are warm-up and not counted. In every round each program does K steps, in
an order that turns round by round. The ratio is the median PyTorch time over laconic's, against the faster PyTorch; its
spread is over the rounds.
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


class Program:
    """One program under measurement."""

    def __init__(self, label, command, environment):
        self.label, self.seconds, self.rounds, self.facts = label, [], [], {}
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
            )
        except OSError as error:
            sys.exit(f"compare_train_step.py: {label}: cannot start {command[0]}: {error.strerror}")

    def run(self, steps):
        answer = ""
        try:
            self.process.stdin.write(f"run {steps}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            self.facts = json.loads(answer)
            seconds = self.facts.pop("seconds")
            if len(seconds) != steps or not all(s > 0 for s in seconds):
                raise ValueError
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            code = self.process.poll()
            ended = "" if code is None else f" (it ended with exit code {code})"
            sys.exit(f'compare_train_step.py: {self.label} answered "{answer.strip()}" to "run {steps}"{ended}, '
                     f'{{"seconds": [{steps} positive numbers]}} expected')
        return seconds

    def measure(self, steps):
        seconds = self.run(steps)
        self.seconds += seconds
        self.rounds.append(statistics.median(seconds))

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
    return {"median": statistics.median(values), "low": low, "high": high, "least": min(values)}


def main():
    parser = argparse.ArgumentParser(description="compares a training step of laconic and of PyTorch")
    parser.add_argument("--laconic", default="build/release/bench/train_step", help="laconic's bench program")
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each program in a round")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--at-least", type=float, metavar="RATIO", help="exit with 1 below this ratio")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if min(arguments.threads, arguments.steps) < 1 or arguments.rounds < 2:
        parser.error("at least 1 thread, 1 step and 2 rounds expected")

    # The same number of threads for everyone, also in libraries below.
    environment = os.environ | {
        name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    serve = ["--serve", "--threads", str(arguments.threads)]
    peer = [arguments.python, str(HERE / "train_step.py"), *serve]
    # Compiling takes a minute a way: only the memory format that wins without it.
    compiled = [("PyTorch compiled", ["--compile", "--format", "channels_last"])] if arguments.compile else []
    programs = []
    load_before = os.getloadavg()[0]
    try:
        programs.append(Program("laconic", [arguments.laconic, *serve], environment))
        programs[0].run(arguments.steps)  # each warms up alone: the peers choose their fastest way by measuring
        for label, options in [("PyTorch eager", []), *compiled]:
            programs.append(Program(label, peer + options, environment))
            programs[-1].run(arguments.steps)
        for round_number in range(arguments.rounds):
            turn = round_number % len(programs)
            for program in programs[turn:] + programs[:turn]:
                program.measure(arguments.steps)
            print(f"round {round_number + 1} of {arguments.rounds}", end="\r", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    finally:
        for program in programs:
            program.stop()

    laconic, peers = programs[0], programs[1:]
    best = min(peers, key=lambda p: statistics.median(p.seconds))
    ratio = statistics.median(best.seconds) / statistics.median(laconic.seconds)
    ratios = spread([b / a for a, b in zip(laconic.rounds, best.rounds)])
    machine = {"cpu": cpu_model(), "cores": os.cpu_count(), "system": platform.platform(),
               "load_before": load_before, "load_after": os.getloadavg()[0]}

    print(f"{machine['cpu']}, {machine['cores']} cores, load {load_before:.1f} before and {machine['load_after']:.1f} after; "
          f"{arguments.threads} threads; {arguments.rounds} rounds of {arguments.steps} steps")
    print("| program | median ms | quartiles ms | least ms |\n|---|---|---|---|")
    for program in programs:
        name = program.facts.get("name", program.label)
        version = program.facts.get("version", "")
        ms = {key: value * 1e3 for key, value in spread(program.seconds).items()}
        print(f"| {name} {version} | {ms['median']:.1f} | {ms['low']:.1f} to {ms['high']:.1f} | {ms['least']:.1f} |")
    print(f"laconic is {ratio:.2f} times as fast as {best.label} (rounds: median {ratios['median']:.2f}, "
          f"quartiles {ratios['low']:.2f} to {ratios['high']:.2f}, least {ratios['least']:.2f})")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({
            "machine": machine, "threads": arguments.threads, "steps_a_round": arguments.steps, "against": best.label,
            "ratio": ratio, "ratio_by_round": ratios,
            "programs": [{"label": p.label, **p.facts, **spread(p.seconds), "seconds": p.seconds} for p in programs],
        }, indent=1) + "\n")
    if arguments.at_least is not None and ratio < arguments.at_least:
        sys.exit(f"compare_train_step.py: ratio {ratio:.2f} measured, at least {arguments.at_least} expected")


if __name__ == "__main__":
    main()
