"""Writes align.safetensors: forced alignments of torchaudio and ctc-segmentation, for tests/decode/words_test.cpp.

    pip install torch torchaudio ctc-segmentation safetensors numpy
    python tests/golden/align.py [--out tests/golden/align.safetensors]

Each case has random logits in which a random text is likely, as those of a trained model are:

    CASE/logits     F32 (T, V)   class 0 is the blank
    CASE/labels     F32 (S)      1 to V-1
    CASE/path       F32 (T)      class of each frame: torchaudio.functional.forced_align
    CASE/begin      F32 (S)      first frame of each label: torchaudio.functional.merge_tokens
    CASE/end        F32 (S)      frame after its last
    CASE/score      F32 (S)      mean probability of its frames
    CASE/segmented  F32 (S)      frame of each label by ctc-segmentation, whose own path may skip the begin of the audio
"""

import argparse
import pathlib

import ctc_segmentation
import numpy as np
import torch
import torchaudio
from safetensors.torch import save_file


def make(frames, classes, labels, strength, seed):
    """Random logits in which each label is likely in a frame of its own, and the blank between them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(frames, classes, generator=generator)
    logits[:, 0] += strength
    places = torch.randperm(frames // 2, generator=generator)[:labels].sort().values * 2
    text = torch.randint(1, classes, (labels,), generator=generator)
    for place, label in zip(places, text):
        logits[place, 0] -= strength
        logits[place, label] += strength
    return logits, text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=pathlib.Path(__file__).with_suffix(".safetensors"))
    out = {}
    for name, case in {"short": (40, 6, 12, 7.0, 1), "noisy": (120, 10, 30, 4.0, 2), "long": (400, 30, 90, 8.0, 3)}.items():
        logits, labels = make(*case)
        log_probs = logits.log_softmax(-1)
        path, scores = torchaudio.functional.forced_align(log_probs[None], labels[None], blank=0)
        spans = torchaudio.functional.merge_tokens(path[0], scores[0].exp(), blank=0)
        assert [span.token for span in spans] == labels.tolist()
        config = ctc_segmentation.CtcSegmentationParameters(
            char_list=["<b>"] + [chr(97 + i) for i in range(case[1] - 1)], index_duration=1.0, blank=0,
            preamble_transition_cost_zero=False, blank_transition_cost_zero=False)
        truth, _ = ctc_segmentation.prepare_token_list(config, [np.array(labels)])
        timings, _, _ = ctc_segmentation.ctc_segmentation(config, log_probs.numpy(), truth)
        # A blank stands before each end of the text.
        segmented = [timings[i] for i in range(len(truth)) if truth[i, 0] > 0]
        out |= {f"{name}/logits": logits, f"{name}/labels": labels.float(), f"{name}/path": path[0].float(),
                f"{name}/begin": torch.tensor([float(s.start) for s in spans]),
                f"{name}/end": torch.tensor([float(s.end) for s in spans]),
                f"{name}/score": torch.tensor([float(s.score) for s in spans]),
                f"{name}/segmented": torch.tensor(np.array(segmented), dtype=torch.float32)}
        apart = (out[f"{name}/segmented"] - out[f"{name}/begin"]).abs()
        print(f"{name}: begins of ctc-segmentation are apart by {apart.mean():.2f} frames, at most {apart.max():.0f}")
    save_file(out, parser.parse_args().out)


main()
