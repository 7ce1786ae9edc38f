"""Writes ctc.safetensors: CTC losses and gradients of PyTorch, for tests/backend/ctc_test.cpp.

    pip install torch safetensors numpy
    python tests/golden/ctc.py [--out tests/golden/ctc.safetensors]

Logits are rounded to float, then torch.nn.functional.ctc_loss (blank 0) runs in double on their log softmax. Each case
is a batch of B utterances, stored without padding:

    CASE/logits         F32 (sum of T, V)  rows of the utterances laid end to end
    CASE/lengths        F32 (B)            T of each utterance
    CASE/labels         F32 (sum of S)     labels laid end to end, 1 to V-1
    CASE/label_lengths  F32 (B)            S of each utterance, 0 for an empty target
    CASE/loss           F64 (B)            -ln p(labels | logits) of each utterance, infinity where no path exists
    CASE/grad           F64 (sum of T, V)  gradient of the sum of the finite losses with respect to the logits; zero in
                                           the rows of an utterance whose loss is infinite (zero_infinity)
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file


def needed_frames(labels):
    """The shortest input that has a path: a blank must stand between equal neighbours."""
    return len(labels) + sum(a == b for a, b in zip(labels, labels[1:]))


def run(lengths, targets, vocab, scale, seed):
    """One batch. `scale` is the standard deviation of the logits."""
    generator = torch.Generator().manual_seed(seed)
    stored = torch.randn(sum(lengths), vocab, generator=generator) * scale
    logits = stored.double().requires_grad_()
    padded = torch.nn.utils.rnn.pad_sequence(logits.split(lengths))  # (max T, B, V)
    arguments = (
        padded.log_softmax(-1),
        torch.tensor([label for target in targets for label in target]),
        torch.tensor(lengths),
        torch.tensor([len(target) for target in targets]),
    )
    loss = torch.nn.functional.ctc_loss(*arguments, blank=0, reduction="none")
    torch.nn.functional.ctc_loss(*arguments, blank=0, reduction="sum", zero_infinity=True).backward()

    for n, (frames, target) in enumerate(zip(lengths, targets)):
        assert torch.isfinite(loss[n]).item() == (needed_frames(target) <= frames), (n, loss[n])
    for n, rows in enumerate(logits.grad.split(lengths)):
        assert torch.isfinite(loss[n]) or torch.equal(rows, torch.zeros_like(rows)), n
    assert torch.isfinite(logits.grad).all()
    return {
        "logits": stored,
        "lengths": torch.tensor(lengths).float(),
        "labels": arguments[1].float(),
        "label_lengths": arguments[3].float(),
        "loss": loss.detach(),
        "grad": logits.grad,
    }


def random_targets(label_lengths, vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocab, (size,), generator=generator).tolist() for size in label_lengths]


def cases():
    yield "random", run([5, 12, 9, 20], random_targets([2, 4, 3, 7], 6, 1), 6, 1.0, 2)
    yield "vocab_of_two", run([4, 7], [[1], [1, 1]], 2, 1.0, 3)
    yield "one_frame", run([1, 1], [[3], []], 5, 1.0, 4)
    yield "repeated", run([9, 6, 14, 5], [[2, 2, 2], [1, 1, 3, 3], [4, 4, 1, 1, 1, 4], [2, 2, 2]], 5, 1.0, 5)
    yield "empty", run([6, 8, 3], [[], [1, 2], []], 4, 1.0, 6)
    yield "too_long", run([3, 4, 2], [[1, 2, 3, 1], [1, 1, 1], [3, 3]], 4, 1.0, 7)  # the last two for want of blanks
    yield "mixed", run([8, 2, 10, 4, 6], [[1, 2, 2], [1, 2, 3], [], [3, 3, 3], [2, 1, 4, 4]], 5, 1.0, 8)
    yield "confident", run([25, 30], random_targets([8, 6], 7, 9), 7, 20.0, 10)  # losses of hundreds: log space only
    yield "speech", run([74, 150], random_targets([20, 45], 29, 11), 29, 2.0, 12)


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description="writes the golden CTC losses and gradients")
    parser.add_argument("--out", type=pathlib.Path, default=here / "ctc.safetensors")
    out = parser.parse_args().out
    tensors = {}
    for case, values in cases():
        print(case, [round(loss, 4) for loss in values["loss"].tolist()])
        tensors |= {f"{case}/{name}": value.contiguous() for name, value in values.items()}
    save_file(tensors, out, {"source": f"tests/golden/ctc.py, torch {torch.__version__}"})
    out.chmod(0o644)  # the library leaves it unreadable to others
    print(out, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
