"""What the peers that compare.py runs have in common: they answer each line "run K" of standard input by one line of
JSON, "seconds" of K measurements, as a list or as {name: {work: list}}, and facts beside it. Needs no other package."""

import argparse
import ctypes
import json
import math
import pathlib
import sys
import time


def fail(message):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {message}")


def parser(description, frameworks):
    """With the options that every peer has."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--serve", action="store_true", help='answer lines "run K" of standard input')
    out.add_argument("--threads", type=int, default=1)
    out.add_argument("--framework", choices=frameworks, default=frameworks[0])
    return out


def serve(run):
    """Answers until standard input ends; run(K) gives the answer."""
    for line in sys.stdin:
        words = line.split()
        if len(words) != 2 or words[0] != "run" or not words[1].isdigit() or int(words[1]) < 1:
            fail(f'"{line.strip()}" given, "run K" with K at least 1 expected')
        print(json.dumps(run(int(words[1]))), flush=True)


def seconds_of(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def seconds_each(run, calls):
    """Of one call out of many; run(i) is call number i."""

    def all_calls():
        for i in range(calls):
            run(i)

    return seconds_of(all_calls) / calls


def calls_for(run):
    """How many calls take about 3 ms together, so that the clock weighs nothing; warm afterwards."""
    run(0)
    calls = 1
    while (seconds := calls * seconds_each(run, calls)) < 1e-3:
        calls *= 4
    return max(1, int(3e-3 / seconds * calls))


def fastest(ways, budget=10.0):
    """Index of the way that is fastest by its shortest run, and the shortest of each. The ways take turns, so that a
    busy moment of the machine does not decide: seven turns, or as many as `budget` seconds hold, two at least."""
    if len(ways) == 1:
        return 0, [math.inf]
    least = [math.inf] * len(ways)
    start = time.perf_counter()
    for turn in range(8):  # the first one warms up
        if turn > 2 and time.perf_counter() - start > budget:
            break
        seconds = [seconds_of(way) for way in ways]
        least = [min(pair) for pair in zip(least, seconds)] if turn > 0 else least
    return least.index(min(least)), least


def memory_mb(what):
    """A line of /proc/self/status in MB: "VmHWM" is the peak, "VmRSS" what is held now. 0 where there is none."""
    try:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith(what + ":"):
                return int(line.split()[1]) * 1024e-6
    except OSError:
        pass
    return 0


def reset_peak():
    """Lets the peak begin anew from what is in use: memory that was freed goes back to the system first."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_over(run):
    """Peak of memory while `run` runs, over what was held before; MB."""
    reset_peak()
    before = memory_mb("VmRSS")
    run()
    return max(0.0, memory_mb("VmHWM") - before)
