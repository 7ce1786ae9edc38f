"""Writes fbank.safetensors beside itself (or --out DIR): log-mel features as torchaudio computes them.

    pip install torch torchaudio safetensors numpy
    python tests/golden/fbank.py

For each case: `CASE/samples` (n) float, `CASE/features` (frames, mels) float from torchaudio.compliance.kaldi.fbank, and
in the metadata, as JSON under "fbank", each case's configuration as laconic writes it (FbankConfig). The signals are
made here: tones with noise, a chirp with a silent stretch and an offset, noise alone at a rate where a frame is no round
number of samples.

Only torchaudio's file compliance/kaldi.py is run, which is Python on PyTorch alone: `import torchaudio` would also load
compiled parts, which refuse a PyTorch of another release or CUDA version (torchaudio's are fewer than PyTorch's).
"""

import argparse
import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import torch
from safetensors.numpy import save_file

DEFAULTS = dict(frame_length_ms=25.0, frame_shift_ms=10.0, low_hz=20.0, high_hz=0.0, preemphasis=0.97)


def load_kaldi():
    """torchaudio.compliance.kaldi without the package around it, of which only its mfcc() makes use."""
    package = importlib.util.find_spec("torchaudio")
    if package is None:
        sys.exit("fbank.py: torchaudio is not installed")
    path = pathlib.Path(package.origin).parent / "compliance" / "kaldi.py"
    spec = importlib.util.spec_from_file_location("kaldi", path)
    kaldi = importlib.util.module_from_spec(spec)
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    spec.loader.exec_module(kaldi)
    return kaldi


def tones(rate, rng):
    t = np.arange(int(0.8 * rate)) / rate
    x = sum(a * np.sin(2 * np.pi * f * t + p) for a, f, p in [(0.3, 220, 0), (0.2, 950, 1), (0.1, 0.4 * rate, 2)])
    return x + 0.02 * rng.standard_normal(t.size)


def chirp(rate, rng):
    """A sweep of harmonics that swells and fades, on an offset and a little noise, with true silence in it."""
    t = np.arange(int(0.8 * rate)) / rate
    phase = 2 * np.pi * (120 * t + 180 * t**2)
    x = sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.25 * np.sin(np.pi * t / 0.8) ** 2
    x = x + 0.05 + 1e-3 * rng.standard_normal(t.size)
    x[int(0.3 * rate) : int(0.4 * rate)] = 0
    return x


def noise(rate, rng):
    return np.clip(0.3 * rng.standard_normal(int(0.5 * rate)), -1, 1)


CASES = {
    "tones_16k_80": (tones, dict(sample_rate=16000, num_mels=80)),
    "tones_8k_40": (tones, dict(sample_rate=8000, num_mels=40)),
    "chirp_16k_80": (chirp, dict(sample_rate=16000, num_mels=80)),
    "chirp_16k_80_to_7600": (chirp, dict(sample_rate=16000, num_mels=80, high_hz=-400.0)),
    "chirp_8k_23": (chirp, dict(sample_rate=8000, num_mels=23, low_hz=100.0, high_hz=3700.0, preemphasis=0.9)),
    "noise_11025_40": (noise, dict(sample_rate=11025, num_mels=40, frame_length_ms=32.0, frame_shift_ms=12.5)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    out = parser.parse_args().out
    kaldi = load_kaldi()
    tensors, cases = {}, {}
    made_by = f"torch {torch.__version__}, torchaudio {importlib.metadata.version('torchaudio')}"
    for number, (name, (signal, changes)) in enumerate(CASES.items()):
        config = DEFAULTS | changes
        samples = signal(config["sample_rate"], np.random.default_rng(number)).astype(np.float32)
        features = kaldi.fbank(
            torch.from_numpy(samples)[None],
            sample_frequency=config["sample_rate"],
            num_mel_bins=config["num_mels"],
            frame_length=config["frame_length_ms"],
            frame_shift=config["frame_shift_ms"],
            low_freq=config["low_hz"],
            high_freq=config["high_hz"],
            preemphasis_coefficient=config["preemphasis"],
            dither=0.0,
        )
        tensors[f"{name}/samples"] = samples
        tensors[f"{name}/features"] = features.numpy()
        cases[name] = config
    path = out / "fbank.safetensors"
    # One entry: with several, their order in the file would change from run to run.
    save_file(tensors, path, {"fbank": json.dumps({"made_by": made_by, "cases": cases})})
    print(f"{path}: {len(CASES)} cases, {path.stat().st_size} bytes, {made_by}")


if __name__ == "__main__":
    main()
