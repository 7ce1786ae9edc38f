#!/usr/bin/env python3
"""Runs bench/sweep, compiles each of its attentions alone, and writes a table, JSON and a plot.

    cmake --preset release -DLACONIC_BUILD_BENCH=ON && cmake --build --preset release --target bench_sweep
    python3 bench/sweep.py --json sweep.json --plot sweep.png

A line an attention: parameters, bytes of cache for 1000 frames, the predicted and the measured milliseconds of a whole
utterance and of a chunk of a stream, and what the compiler takes for a program with this layer alone, beyond one that
only includes the library: seconds of CPU, and KB of the object file (-O2 -march=native, kernels from
laconic::compiled). --skip-compile leaves these out.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = """#include <laconic/attention/attention.hpp>
#include <laconic/backend/cpu.hpp>
using namespace laconic;
%s
"""
LAYER = """using Policy = %s;
Tensor<float> run(Cpu<float>& cpu, const AttentionLayer<Policy, float>& layer, const Tensor<float>& x,
                  const Pass<Tensor<float>>& pass, AttentionLayer<Policy, float>::State<Cpu<float>>* state) {
  return state == nullptr ? layer(cpu, x, pass) : layer(cpu, x, pass, state);
}"""


def attentions():
    """{name: C++ type} of bench/sweep.cpp."""
    text = re.sub(r"\s+", " ", (ROOT / "bench/sweep.cpp").read_text())
    out = {}
    for name, kind in re.findall(r'Named<"([^"]+)", (\w+<[^<>]*>)>', text):
        if "<H" in kind:
            out[name], out[f"8-heads/{name}"] = kind.replace("<H", "<16"), kind.replace("<H", "<8")
        else:
            out[name] = kind
    return out


def compiled(compiler, text, folder):
    """CPU seconds and KB of the object file of a source."""
    source, target = folder / "one.cpp", folder / "one.o"
    source.write_text(SOURCE % text)
    command = [compiler, "-std=c++20", "-O2", "-march=native", "-fopenmp", "-DLACONIC_COMPILED", f"-I{ROOT}/include",
               "-isystem", "/usr/include/eigen3", "-c", str(source), "-o", str(target)]
    before = os.times()
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        sys.exit(f"sweep.py: does not compile: {' '.join(command)}")
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, target.stat().st_size / 1024


def plot(rows, file):
    """Measured time of both kinds of work against the bytes of cache."""
    # To its standard output: a name like "|rm x" would be a command to it.
    script = ['set terminal pngcairo noenhanced size 1400,620 font "sans,10"',
              "set multiplot layout 1,2; set key off; set grid; set logscale xy",
              'set xlabel "cache of 1000 frames, KB"']
    for work, title in (("whole", "1000 frames"), ("stream", "16 frames after 1000")):
        script.append(f'set title "one layer, d 1024: {title}"; set ylabel "ms (filled: measured, empty: predicted)"')
        script.append("$d << EOD")
        for row in rows:
            script.append(f'{row["cache_bytes"] / 1024} {row[work + "_ms"]} {row[work + "_predicted_ms"]} "{row["name"]}"')
        script += ["EOD", "plot $d u 1:2:4 w labels point pt 7 offset 1,0.4 left font ',7', $d u 1:3 w p pt 6"]
    try:
        done = subprocess.run(["gnuplot", "-d"], input="\n".join(script).encode(), capture_output=True)
    except FileNotFoundError:
        sys.exit("sweep.py: gnuplot: not found; apt-get install gnuplot-nox, or leave out --plot")
    if done.returncode != 0:
        sys.exit(f"sweep.py: gnuplot: {done.stderr.decode(errors='replace').strip()}")
    file.write_bytes(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/release/bench/sweep")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--skip-compile", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.png")
    options = parser.parse_args()
    if not options.program.exists():
        parser.error(f"{options.program}: no such program; build it, see above")

    ran = subprocess.run([str(options.program), "--benchmark_format=json", "--benchmark_repetitions=3"],
                         stdout=subprocess.PIPE, check=True)
    rows = {name: {"name": name, "type": kind} for name, kind in attentions().items()}
    for run in json.loads(ran.stdout)["benchmarks"]:
        if run.get("aggregate_name") != "median":
            continue
        work, name = run["run_name"].removesuffix("/real_time").split("/", 1)
        rows[name] |= {"parameters": int(run["parameters"]), "cache_bytes": int(run["cache_bytes"]),
                       f"{work}_flop": run["flop"], f"{work}_ms": run["real_time"],
                       f"{work}_predicted_ms": run["predicted_ms"]}
    rows = list(rows.values())
    if not options.skip_compile:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            seconds, kilobytes = compiled(options.compiler, "", folder)
            for row in rows:
                own = compiled(options.compiler, LAYER % row["type"], folder)
                row["compile_seconds"], row["object_kb"] = own[0] - seconds, own[1] - kilobytes
    print(f"{'':24} {'param.':>9} {'cache KB':>9} {'whole ms':>9} {'predicted':>9} {'stream ms':>9} {'predicted':>9} "
          f"{'compile s':>9} {'object KB':>9}")
    for row in rows:
        print(f"{row['name']:24} {row['parameters']:9} {row['cache_bytes'] / 1024:9.0f} {row['whole_ms']:9.2f} "
              f"{row['whole_predicted_ms']:9.2f} {row['stream_ms']:9.3f} {row['stream_predicted_ms']:9.3f} "
              f"{row.get('compile_seconds', float('nan')):9.2f} {row.get('object_kb', float('nan')):9.0f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
