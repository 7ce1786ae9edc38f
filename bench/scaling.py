#!/usr/bin/env python3
"""Prints how fast one training is in 1, 2, 4 ... processes of mpirun, and what their exchange of gradients costs.

    cmake --preset release -DLACONIC_BUILD_BENCH=ON && cmake --build build/release
    python3 bench/scaling.py --build build/release [--against OTHER_BUILD] [--processes 1 2 4] [--rounds 7]
                             [--mbit 1000] [-- TRAIN OPTIONS]

Each run trains on the same spoken digits with the same --accumulate, one thread a process, and counts the seconds of an
epoch (without validation). Numbers of processes take turns; the table has medians and quartiles, and
ratios to the first number within the same turn. --mbit runs all in a network namespace of its own whose links carry so
many Mbit/s for each process (root only): the processes then talk by TCP instead of shared memory. --against trains with
the program of a second build in the same turns.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

namespace = "laconic-scaling"


def run(command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class Network:
    """Where processes run: this machine's memory, or a namespace whose loopback carries `mbit` for each."""

    def __init__(self, mbit):
        self.mbit = mbit
        if mbit:
            run(["ip", "netns", "add", namespace])
            try:
                run(self.inside(["ip", "link", "set", "lo", "up"]))
            except SystemExit:
                self.close()
                raise

    def inside(self, command):
        return ["ip", "netns", "exec", namespace, *command] if self.mbit else command

    def mpirun(self, processes, command):
        # For root, as in a container, and more processes than processors.
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_rmaps_base_oversubscribe="1")
        tcp = []
        if self.mbit:
            run(self.inside(["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate",
                             f"{self.mbit * processes}mbit", "burst", "256kb", "latency", "100ms"]))
            tcp = ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
        return run(self.inside(["mpirun", "-n", processes, *tcp, *command]), env=environment)

    def close(self):
        if self.mbit:
            run(["ip", "netns", "delete", namespace])


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0]
    q = statistics.quantiles(values, n=4, method="inclusive")
    return q[0], q[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build with the program and the benches")
    parser.add_argument("--against", type=pathlib.Path, help="another build, whose program is measured, too")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--accumulate", type=int, default=4, help="batches of an update, dealt to the processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--utterances", type=int, default=300, help="training utterances, about 2.8 s each")
    parser.add_argument("--mbit", type=int, default=0, help="Mbit/s of each process; 0: shared memory")
    parser.add_argument("train", nargs="*", help="further options of `laconic train`")
    args = parser.parse_args()
    build = args.build.resolve()
    programs = [build / "laconic"] + ([args.against.resolve() / "laconic"] if args.against else [])
    for program in (*programs, build / "bench/exchange"):
        if not program.exists():
            raise SystemExit(f"{program} is missing: a build with MPI and the benches expected")
    network = Network(args.mbit)
    try:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            run([build / "laconic", "data", "speak", "--out", folder / "digits", "--train", args.utterances, "--valid",
                 4, "--test", 4])
            speed = {n: [[] for _ in programs] for n in args.processes}
            parameters = 0
            for turn in range(args.rounds):
                for n in args.processes:
                    for i, program in list(enumerate(programs))[::1 if turn % 2 == 0 else -1]:
                        network.mpirun(n, [program, "train", "--data", folder / "digits", "--out",
                                           folder / f"{turn}-{n}-{i}", "--epochs", 1, "--threads", 1, "--accumulate",
                                           args.accumulate, "--json", folder / "result.json", *args.train])
                        result = json.loads((folder / "result.json").read_text())
                        parameters = result["parameters"]
                        speed[n][i].append(1 / result["seconds"])
            losses = {path.read_bytes() for path in folder.glob("*/losses.csv")}
        first = args.processes[0]
        print(f"{parameters} parameters, {args.accumulate} batches an update, one thread a process, "
              f"{'shared memory' if not args.mbit else f'{args.mbit} Mbit/s a process'}; losses "
              f"{'are the same bits' if len(losses) == 1 else 'DIFFER'}")
        print(f"{'processes':>9} {'epochs/min':>11} {'times ' + str(first):>9} (quartiles)" +
              ("  times the other build" if args.against else ""))
        for n in args.processes:
            line = f"{n:>9} {60 * statistics.median(speed[n][0]):>11.2f} "
            for other in (speed[first][0], *speed[n][1:]):
                ratios = [a / b for a, b in zip(speed[n][0], other)]
                low, high = quartiles(ratios)
                line += f"{statistics.median(ratios):>9.2f} ({low:.2f} to {high:.2f})"
            print(line)
        megabytes = 4e-6 * parameters
        for n in args.processes:
            if n > 1:
                print(network.mpirun(n, [build / "bench/exchange", "--mb", f"{megabytes:.3f}"]), end="")
    finally:
        network.close()


if __name__ == "__main__":
    main()
