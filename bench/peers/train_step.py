"""The time of one training step of a Conformer in PyTorch: the peer of laconic's own bench/train_step.

    pip install torch numpy
    python bench/peers/train_step.py --threads 1 --repeat 15 --json torch.json
    python bench/peers/train_step.py --size 512 --framework compiled      # the model through torch.compile
    python bench/peers/train_step.py --profile            # the operations that take the time
    python bench/peers/train_step.py --check tests/golden/conformer_ctc.safetensors    # is it the same model?

Two sizes, float32, subsampling by 4 with d channels, feed-forward 4 d, kernel 31, Transformer-XL relative positions,
batch norm, 29 characters, CTC loss, dropout 0.1, backward, fused AdamW:
    144    16 utterances of 3 s (298 frames of 80 mels), d 144, 4 layers, 4 heads
    512    8 utterances of 8 s (798 frames), d 512, 8 layers, 8 heads
The batch is ready in memory. How attention is written (product and softmax, or scaled_dot_product_attention with the
relative term as additive mask) and the memory format of the convolutions are chosen by measuring, unless given.

--serve is for compare.py: see serve.py.
"""

import dataclasses
import gc
import itertools
import json
import math
import statistics
import sys
import time

import serve
import torch
from conformer import KINDS, Conformer, subsampled
from torch.nn import functional as F

MELS = 80


@dataclasses.dataclass
class Size:
    d: int
    layers: int
    heads: int
    utterances: int
    frames: int
    labels: int

    def conformer(self):
        return Conformer(mels=MELS, channels=self.d, d=self.d, layers=self.layers, heads=self.heads, inner=4 * self.d,
                         kernel=31, vocab=29, dropout=0.1, frames=self.frames)


SIZES = {"144": Size(144, 4, 4, 16, 298, 36), "512": Size(512, 8, 8, 8, 798, 96)}


class Trainer:
    def __init__(self, size, kind, channels_last, compiled):
        torch.manual_seed(1)
        model = size.conformer()
        model.set_attention(kind)
        if channels_last:
            model.subsampling.to(memory_format=torch.channels_last)
        self.model = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.features = torch.randn(size.utterances, size.frames, MELS)
        n, s = torch.arange(size.utterances)[:, None], torch.arange(size.labels)
        self.labels = 1 + (7 * n + 5 * s) % 28  # no two neighbours alike
        self.frames = torch.full((size.utterances,), subsampled(size.frames))
        self.label_lengths = torch.full((size.utterances,), size.labels)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        log_probs = self.model(self.features).log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, self.labels, self.frames, self.label_lengths, reduction="sum", zero_infinity=True)
        (loss / len(self.labels)).backward()
        self.optimizer.step()
        return loss

    def run(self, steps):
        seconds, loss = [], None
        for _ in range(steps):
            start = time.perf_counter()
            loss = self.step()
            seconds.append(time.perf_counter() - start)
        if not math.isfinite(loss.item()):
            serve.fail(f"the loss is {loss.item()}, a finite number expected")
        return seconds


def choose(arguments):
    """The fastest of the ways asked for, and what it is called."""
    kinds = KINDS if arguments.attention == "auto" else [arguments.attention]
    formats = ["contiguous", "channels_last"] if arguments.format == "auto" else [arguments.format]
    ways = list(itertools.product(kinds, formats))
    compiled = arguments.framework == "compiled"
    trainers = [Trainer(SIZES[arguments.size], kind, layout == "channels_last", compiled) for kind, layout in ways]
    best, least = serve.fastest([trainer.step for trainer in trainers])
    if len(ways) > 1:
        for way, seconds in zip(ways, least):
            print(f"{', '.join(way)}: {seconds * 1e3:.1f} ms", file=sys.stderr)
    return trainers[best], f"PyTorch {arguments.framework} ({', '.join(ways[best])})"


def check(path):
    """Compares logits, losses and gradients with a golden file, in double."""
    from safetensors.torch import load_file

    golden = load_file(path)
    state = {n.removeprefix("param/"): t for n, t in golden.items() if n.startswith("param/")}
    channels = state["subsampling.conv1.weight"].shape[0]
    vocab, d = state["lm_head.weight"].shape
    worst = 0.0
    for case, kind in itertools.product(("eval", "train", "train_pair"), KINDS):
        lengths = golden[f"{case}/lengths"].long().tolist()
        x = golden[f"{case}/input"].double().view(len(lengths), lengths[0], -1)
        model = Conformer(mels=x.shape[2], channels=channels, d=d, layers=2, heads=4, inner=48, kernel=7, vocab=vocab,
                          dropout=0.0, frames=lengths[0]).double()
        model.set_attention(kind)
        model.load(state)
        model.positions = Conformer.table(subsampled(lengths[0]), d)
        model.train(case != "eval")
        logits = model(x)
        label_lengths = golden[f"{case}/label_lengths"].long()
        loss = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), golden[f"{case}/labels"].long(),
                          golden[f"{case}/output_lengths"].long(), label_lengths, reduction="none")
        loss.sum().backward()
        pairs = {"output": logits.flatten(0, 1), "loss": loss}
        pairs |= {f"grad/{name}": p.grad for name, p in model.named_parameters()}
        for name, value in pairs.items():
            expected = golden[f"{case}/{name}"].double()
            # linear_k.bias has no gradient but rounding: the softmax does not feel it.
            scale = max(expected.abs().max().item(), 1e-3)
            worst = max(worst, (value - expected).abs().max().item() / scale)
    print(f"largest difference from {path}: {worst:.1e} relative")
    if worst > 1e-5:
        serve.fail("not the model of the golden file, 1e-5 or less expected")


def profile(trainer):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        trainer.run(5)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60))


def main():
    parser = serve.parser("times one training step of a Conformer in PyTorch", ("eager", "compiled"))
    parser.add_argument("--size", choices=SIZES, default="144")
    parser.add_argument("--repeat", type=int, default=15, help="steps measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--attention", choices=["auto", *KINDS], default="auto")
    parser.add_argument("--format", choices=["auto", "contiguous", "channels_last"], default="auto")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--check", metavar="GOLDEN")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    torch.set_num_threads(arguments.threads)
    trainer, name = choose(arguments)
    gc.collect()  # those that were not chosen
    serve.reset_peak()
    facts = {"name": name, "version": torch.__version__, "threads": torch.get_num_threads(),
             "parameters": sum(p.numel() for p in trainer.model.parameters())}
    if arguments.serve:
        return serve.serve(lambda k: {"seconds": trainer.run(k), "peak_mb": serve.memory_mb("VmHWM"), **facts})
    if arguments.profile:
        return profile(trainer)
    if arguments.repeat < 2:
        parser.error(f"--repeat {arguments.repeat} given, at least 2 expected")
    trainer.run(arguments.warmup)
    seconds = trainer.run(arguments.repeat)
    low, _, high = statistics.quantiles(seconds)
    print(f"{name}, torch {torch.__version__}, {facts['threads']} threads, {facts['parameters']} parameters: "
          f"median {statistics.median(seconds) * 1e3:.1f} ms, quartiles {low * 1e3:.1f} to {high * 1e3:.1f}, "
          f"least {min(seconds) * 1e3:.1f}, {len(seconds)} steps")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({**facts, "seconds": seconds}, file)


if __name__ == "__main__":
    main()
