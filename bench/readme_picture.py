#!/usr/bin/env python3
"""Draws the README's picture: word errors against cache, from docs/results/results.json. Needs gnuplot.

usage: readme_picture.py [RESULTS.json [PICTURE.png]]"""
import collections
import json
import pathlib
import statistics
import subprocess
import sys

home = pathlib.Path(__file__).resolve().parent.parent
results = json.load(open(sys.argv[1] if len(sys.argv) > 1 else home / "docs/results/results.json"))
picture = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else home / "docs/results/picture.png")

unseen = [r for r in results if r["test_set"] != "known speakers"]
baseline = [r for r in unseen if r["stage"] == "baseline"]
mean = lambda rows, key: statistics.mean(r[key] for r in rows)


def line(attentions, method, stage):
    """Returns (cache in kB a second, WER) of the baseline and of each smaller cache, means over seeds."""
    by_cache = collections.defaultdict(list)
    for r in unseen:
        if r["attention"] in attentions and r["method"] == method and r["stage"] == stage:
            by_cache[r["cache_bytes_per_second"]].append(r)
    points = [(mean(baseline, "cache_bytes_per_second") / 1000, mean(baseline, "wer"))]
    return points + [(cache / 1000, mean(rows, "wer")) for cache, rows in sorted(by_cache.items(), reverse=True)]


lines = {
    "GQA, converted": line({"gqa", "mqa"}, "activation", "converted"),
    "MLA, converted": line({"mla-simple"}, "activation", "converted"),
    "MLA, fine-tuned for 2 epochs": line({"mla-simple"}, "activation", "finetuned"),
}
low, high = mean(baseline, "wer_low"), mean(baseline, "wer_high")
colours = ["#d95f02", "#7570b3", "#1b9e77"]
script = f"""set terminal pngcairo size 720,480 font 'sans,15'
set logscale x 2
set xrange [11:115]
set yrange [8:11.5]
set xtics ('12.8' 12.8, '25.6' 25.6, '102.4' 102.4)
set xlabel 'key-value cache of a stream, kB for each second of speech'
set ylabel 'word error rate, %'
set key top right
set grid ytics linecolor '#dddddd'
set object 1 rectangle from 11,{low} to 115,{high} fillcolor '#cccccc' fillstyle solid 0.5 noborder behind
set label 1 '95% interval of MHA' at 12,{low} offset 0,0.8 textcolor '#666666'
"""
for i, points in enumerate(lines.values()):
    script += f"$d{i} << EOD\n" + "".join(f"{x} {y}\n" for x, y in points) + "EOD\n"
script += "plot " + ", ".join(f"$d{i} with linespoints linewidth 3 pointtype 7 pointsize 1.4 linecolor '{colours[i]}' title '{name}'"
                              for i, name in enumerate(lines)) + "\n"
picture.write_bytes(subprocess.run(["gnuplot"], input=script.encode(), capture_output=True, check=True).stdout)
for name, points in lines.items():
    print(f"{name}: " + ", ".join(f"{x:.1f} kB {y:.2f} %" for x, y in points))
print(f"MHA's interval: {low:.2f} to {high:.2f} %; the picture is {picture}")
