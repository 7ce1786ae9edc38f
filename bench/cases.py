#!/usr/bin/env python3
"""Runs the program on inputs that people and attackers bring, and prints a table of what comes of each.

The folders hold models and audio as people save them, each named by its kind; tests have small files of these kinds. A
case that has no folder of its own is made here.

usage: cases.py --laconic build/release/laconic --models DIR --audio DIR --model TRAINED_MODEL [--reference]

With --reference, transformers transcribes each model's folder, too (needs torch and transformers), and the texts are
compared."""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import tempfile
import time


class Cases:
    def __init__(self, args, work):
        self.args, self.work, self.rows = args, work, []

    def run(self, *command, input=None, seconds=60, memory_gb=4, program=None):
        """Returns exit code, standard output and error, and what the run took."""
        start = time.time()
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (memory_gb << 30,) * 2)
        try:
            done = subprocess.run([program or self.args.laconic, *map(str, command)], cwd=self.work, input=input,
                                  capture_output=True, timeout=seconds, preexec_fn=limit)
        except subprocess.TimeoutExpired:
            return "hangs", "", "", seconds
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"), time.time() - start

    def transcribe(self, model, audio, *more):
        return self.run("transcribe", "--model", model, "--threads", "1", *more, audio)

    def row(self, name, result, note=""):
        code, out, err, seconds = result
        lines = [line for line in (err.strip() or out.strip()).splitlines() if not line.startswith("reading ")]
        said = next((line for line in lines if line.startswith("laconic: ")), lines[-1] if lines else "")
        said = said.replace(str(self.args.models) + "/", "").replace(str(self.args.audio) + "/", "").replace(str(self.work) + "/", "").replace("|", "\\|")
        self.rows.append((name, f"exit {code}" if code != "hangs" else code, note or said[:180]))
        print(f"| {name} | {self.rows[-1][1]} | {self.rows[-1][2]} |", flush=True)


def models(cases):
    """Model folders of Hugging Face, each with the text that transformers writes if that is wanted."""
    audio = cases.args.audio / "ref.wav"
    for folder in sorted(p for p in cases.args.models.iterdir() if p.is_dir()):
        result = cases.transcribe(folder, audio)
        note = ""
        if result[0] == 0:
            heard = result[1].split(": ", 1)[1].strip()
            note = f"heard {len(heard)} characters"
            if cases.args.reference:
                expected = reference(folder, audio)
                note += "; transformers: " + ("the same text" if heard == expected else f"another text: {expected[:40]!r} for {heard[:40]!r}"
                                              if expected is not None else "does not load it")
        cases.row(f"models/{folder.name}", result, note)


def reference(folder, audio):
    """Returns what transformers writes, or None where it does not load the folder."""
    import soundfile
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    try:
        processor = transformers.Wav2Vec2Processor.from_pretrained(folder)
        model = transformers.Wav2Vec2ConformerForCTC.from_pretrained(folder).eval()
    except Exception:
        return None
    samples, rate = soundfile.read(audio, dtype="float32")
    inputs = processor(samples, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        ids = model(inputs.input_values).logits.argmax(-1)
    return " ".join(processor.batch_decode(ids)[0].split())


def audio(cases):
    for file in sorted(cases.args.audio.iterdir()):
        result = cases.transcribe(cases.args.model, file, "--json", "out.json")
        note = ""
        if result[0] in (0, 1) and (cases.work / "out.json").exists():
            heard = json.loads((cases.work / "out.json").read_text())[0]
            note = f"{heard.get('seconds', 0):.2f} s heard" + "".join("; " + one.split(": ", 1)[-1] for one in heard.get("notes", []))
            (cases.work / "out.json").unlink()
        cases.row(f"audio/{file.name}", result, note)
    for name in ("ref.wav", "x.ogg"):
        cases.row(f"cat {name} into --streaming -", cases.run("transcribe", "--model", cases.args.model, "--streaming", "-",
                                                             input=(cases.args.audio / name).read_bytes()))


def files(cases):
    """Names, places and kinds of files."""
    work, model, wav = cases.work, cases.args.model, cases.args.audio / "ref.wav"
    cases.row("good bad good", cases.run("transcribe", "--model", model, wav, "nothing.wav", wav))
    cases.row("--json /dev/full", cases.transcribe(model, wav, "--json", "/dev/full"))
    cases.row("--json in no folder", cases.transcribe(model, wav, "--json", "nowhere/out.json"))
    odd = work / os.fsdecode(b"\xff\x1b[31m.wav")
    odd.write_bytes(wav.read_bytes())
    cases.row("a file name with ESC that is no UTF-8, with --json", cases.transcribe(model, odd, "--json", "odd.json"))
    broken = work / "broken"
    broken.mkdir()
    for file in pathlib.Path(model).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "vocab.json").unlink()
    os.mkfifo(broken / "vocab.json")
    cases.row("vocab.json is a FIFO", cases.transcribe("broken", wav))
    cases.row("--model is a Hub id", cases.transcribe("facebook/wav2vec2-conformer-rel-pos-large-960h-ft", wav))
    cases.row("--threads 0", cases.run("transcribe", "--model", model, "--threads", "0", wav))
    cases.row("a name of 300 bytes", cases.transcribe(model, "n" * 300 + ".wav"))
    manifest = work / "m.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": str(wav), "duration": None, "text": "x", "speaker": 12, "offset": 0.5}) + "\n")
    cases.row("manifest with null, a number as speaker, an offset", cases.run("eval", "--model", model, "--data", manifest))
    manifest.write_text(json.dumps({"audio_filepath": str(wav), "duration": 3, "text": "ÄPFEL, Übergröße!"}, ensure_ascii=False) + "\n")
    cases.row("a reference with letters that the vocabulary lacks", cases.run("eval", "--model", model, "--data", manifest))
    for attempt in ("a", "b"):
        cases.run("eval", "--model", model, "--data", manifest, "--json", f"{attempt}.json")
    result = cases.run("compare", "a.json", "b.json", "--plot", "|touch owned;.png")
    cases.row("compare --plot '|touch owned;.png'", result, "the command ran" if (work / "owned").exists() else "")
    cases.row("train --out ''", cases.run("train", "--data", ".", "--out", ""))
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    config["encoder"]["chunk"] = 1 << 20
    (broken / "vocab.json").unlink()
    (broken / "vocab.json").write_bytes((pathlib.Path(model) / "vocab.json").read_bytes())
    (broken / "config.json").write_text(json.dumps(config))
    cases.row("a chunk of 1048576 frames, --streaming", cases.run("transcribe", "--model", "broken", "--streaming", wav))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laconic", default="build/release/laconic", type=lambda p: str(pathlib.Path(p).resolve()))
    for name in ("--models", "--audio", "--model"):
        parser.add_argument(name, required=True, type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--reference", action="store_true")
    args = parser.parse_args()
    if (args.model / "model" / "config.json").exists():
        args.model = args.model / "model"
    with tempfile.TemporaryDirectory() as work:
        cases = Cases(args, pathlib.Path(work))
        print("| input | now | what it says |\n|---|---|---|")
        for group in (models, audio, files):
            group(cases)


main()
