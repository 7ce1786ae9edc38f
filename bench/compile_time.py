#!/usr/bin/env python3
"""Prints what laconic costs to compile: CPU seconds and peak memory of the compiler.

    python3 bench/compile_time.py [--compiler g++] [--repetitions 3]
    python3 bench/compile_time.py --build build/release [--slowest 10]

First the README's example with -O2, header-only and with laconic::compiled, and 32 attentions, then what a model adds to
an inclusion of <laconic/laconic.hpp>, then at -O0 sources that only include this header, the same with conversion, and
Eigen/Core with xsimd, and the ratios to the last; each is the median of the repetitions, which go in turns. With
--build, a folder that `cmake --preset release` has configured, every source of the program `laconic` is then compiled
once with that folder's flags, without a compiler cache, and the slowest are printed.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = {
    "Conformer": ("Conformer<MlaSimple<8, 64>>", "const Matrix<float>& inputs, const Sequences& sequences", "inputs, sequences"),
    "Gpt": ("Gpt<MlaHead<8, 32, 0, NoPosition>>", "const TokenRows& tokens", "tokens"),
}
SOURCE = """#include <laconic/laconic.hpp>
using namespace laconic;
auto run(Cpu<float>& cpu, const %s& model, %s) { return model(cpu, %s); }
"""


def compile_once(command, folder):
    """Runs a compiler and returns the CPU seconds and the MB at most of it and its children."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvp(command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"compile_time.py: failed: {shlex.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def sources(build):
    """Yields the name and the compiler's command line of every source, or group of sources, of the program."""
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = shlex.split(entry["command"])
        output = pathlib.Path(command[command.index("-o") + 1])
        if output.parts[0] not in ("src", "tools"):
            continue
        if pathlib.Path(command[0]).name == "ccache":
            command = command[1:]
        command[command.index("-o") + 1] = os.devnull
        yield re.sub(r"CMakeFiles/|\.dir|\.o$", "", str(output)), command, entry["directory"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--build", type=pathlib.Path, help="folder of a configured build of the program")
    parser.add_argument("--slowest", type=int, default=10, help="how many of its sources are printed")
    options = parser.parse_args()
    if options.build and not (options.build / "compile_commands.json").exists():
        parser.error(f"{options.build}: no compile_commands.json, a folder of `cmake --preset release` expected")

    print(f"{'':60} {'CPU s':>7} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "laconic.cpp").write_text("#include <laconic/laconic.hpp>\n")
        (folder / "convert.cpp").write_text(
            "#include <laconic/convert/convert.hpp>\n#include <laconic/laconic.hpp>\n"
        )
        for name, model in MODELS.items():
            (folder / f"{name}.cpp").write_text(SOURCE % model)
        (folder / "eigen.cpp").write_text("#include <Eigen/Core>\n#include <xsimd/xsimd.hpp>\n")
        cases = [
            ("README's example, -O2", "-O2", ROOT / "examples/07_conformer.cpp"),
            ("the same with laconic::compiled", "-DLACONIC_COMPILED -O2", ROOT / "examples/07_conformer.cpp"),
            ("32 attentions (bench/sweep.cpp), likewise", "-DLACONIC_COMPILED -O2", ROOT / "bench/sweep.cpp"),
            ("<laconic/laconic.hpp>, -O2", "-O2", folder / "laconic.cpp"),
            *((f"a {name} beside it{what}, -O2", f"{flag} -O2", folder / f"{name}.cpp")
              for name in MODELS for what, flag in (("", ""), (", laconic::compiled", "-DLACONIC_COMPILED"))),
            ("<laconic/laconic.hpp>, -O0", "-O0", folder / "laconic.cpp"),
            ("the same and <laconic/convert/convert.hpp>, -O0", "-O0", folder / "convert.cpp"),
            ("<Eigen/Core> and <xsimd/xsimd.hpp>, -O0", "-O0", folder / "eigen.cpp"),
        ]
        flags = ["-std=c++20", f"-I{ROOT}/include", "-isystem", "/usr/include/eigen3", "-c", "-o", os.devnull]
        runs = {name: [] for name, _, _ in cases}
        for _ in range(options.repetitions):
            for name, optimisation, source in cases:
                command = [options.compiler, *optimisation.split(), *flags, str(source)]
                runs[name].append(compile_once(command, ROOT))
        seconds = {name: statistics.median(run[0] for run in those) for name, those in runs.items()}
        for name, those in runs.items():
            print(f"{name:60} {seconds[name]:7.1f} {max(run[1] for run in those):6.0f}")
        for name in seconds:
            if name.startswith("a "):
                print(f"{name + ': adds':60} {seconds[name] - seconds['<laconic/laconic.hpp>, -O2']:7.1f}")
        for name, index in (("laconic.hpp over Eigen with xsimd", -3), ("the same with conversion", -2)):
            print(f"{name:60} {seconds[cases[index][0]] / seconds[cases[-1][0]]:7.2f}")

    if options.build:
        results = [(compile_once(command, folder), name) for name, command, folder in sources(options.build)]
        print(f"\n{f'the program, {len(results)} sources':60} {sum(r[0][0] for r in results):7.1f} {max(r[0][1] for r in results):6.0f}")
        for (cpu, megabytes), name in sorted(results, reverse=True)[: options.slowest]:
            print(f"  {name:58} {cpu:7.1f} {megabytes:6.0f}")


if __name__ == "__main__":
    main()
