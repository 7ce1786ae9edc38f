"""Runs the program under a limit of time and memory."""

import os
import resource
import subprocess
import time

max_seconds, max_mib = 20, 2048


def run(command, work):
    """Returns exit code, signal, seconds, MiB, standard output and error of a program."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    with open(work / "stdout", "wb") as out, open(work / "stderr", "wb") as err:
        start = time.time()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=limit)
        killed = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.time() - start > max_seconds and not killed:
                killed = True
                process.kill()
            time.sleep(0.005)
    process.returncode = 0  # wait4 has taken it
    code, number = (os.WEXITSTATUS(status), 0) if os.WIFEXITED(status) else (-1, os.WTERMSIG(status))
    read = lambda name: (work / name).read_bytes().decode("utf-8", "replace")
    return dict(
        exit=code,
        signal=number,
        hangs=killed,
        seconds=round(time.time() - start, 2),
        mib=usage.ru_maxrss >> 10,
        out=read("stdout"),
        err=read("stderr"),
    )


def fatal(done):
    """Returns the category of a run that is wrong whatever the references say, or None."""
    if done["hangs"]:
        return "hang"
    if done["signal"] or done["exit"] not in (0, 1):
        return "crash"
    return "memory" if done["mib"] > max_mib else None


def row(number, kind, name, category, done, **more):
    """Returns what is written of a run: what was damaged in which way, what came of it, and what it took."""
    return dict(
        number=number,
        kind=kind,
        of=name,
        category=category,
        exit=done["exit"],
        signal=done["signal"],
        took=done["seconds"],
        mib=done["mib"],
        **more,
    )


def error_of(done):
    return next((line for line in done["err"].splitlines() if line.startswith("laconic: ")), "")
