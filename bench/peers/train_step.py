"""The time of one training step of a small Conformer in PyTorch: the peer of laconic's own bench/train_step.

    pip install torch numpy
    python bench/peers/train_step.py --threads 1 --repeat 15 --json torch.json
    python bench/peers/train_step.py --compile            # the model through torch.compile
    python bench/peers/train_step.py --profile            # the operations that take the time
    python bench/peers/train_step.py --check tests/golden/conformer_ctc.safetensors    # is it the same model?

A step: 16 utterances of 3 s (298 frames of 80 mels), convolutional subsampling by 4 (144 channels), 4 Conformer blocks
(d 144, 4 heads, feed-forward 576, kernel 31, Transformer-XL relative positions, batch norm), 29 characters, CTC loss,
dropout 0.1, backward, fused AdamW; float32. The batch is ready in memory. How attention is written (product and softmax,
or scaled_dot_product_attention with the relative term as additive mask) and the memory format of the convolutions are
chosen by measuring, unless given.

--serve answers each line "run K" of standard input by one line {"seconds": [K step times]}, so that
compare_train_step.py can alternate programs.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

UTTERANCES, FRAMES, MELS, LABELS = 16, 298, 80, 36


class Attention(nn.Module):
    def __init__(self, d, heads, dropout, kind):
        super().__init__()
        self.heads, self.dropout, self.kind = heads, dropout, kind
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(d, d) for _ in range(4))
        self.linear_pos = nn.Linear(d, d, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, d // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, d // heads))

    def forward(self, x, positions):
        batch, frames, d = x.shape
        split = (batch, frames, self.heads, d // self.heads)
        scale = (d // self.heads) ** -0.5
        q, k, v = (linear(x).view(split) for linear in (self.linear_q, self.linear_k, self.linear_v))
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        p = self.linear_pos(positions).view(2 * frames - 1, self.heads, -1).permute(1, 2, 0)
        # (q_i + v) . p_{i-j}: column T-1-i+j of row i, by the shift of Transformer-XL.
        relative = ((q + self.pos_bias_v).transpose(1, 2) * scale) @ p
        relative = F.pad(relative, (1, 0)).view(batch, self.heads, 2 * frames, frames)[:, :, 1:]
        relative = relative.reshape(batch, self.heads, frames, 2 * frames - 1)[..., :frames]
        q = (q + self.pos_bias_u).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if self.kind == "sdpa":
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=relative, dropout_p=dropout, scale=scale)
        else:
            scores = (q * scale) @ k.transpose(2, 3) + relative
            out = F.dropout(scores.softmax(-1), dropout, self.training) @ v
        return self.linear_out(out.transpose(1, 2).reshape(batch, frames, d))


class FeedForward(nn.Module):
    def __init__(self, d, inner, dropout):
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(d, inner), nn.Linear(inner, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.output_dense(self.dropout(F.silu(self.intermediate_dense(x))))


class Convolution(nn.Module):
    def __init__(self, d, kernel):
        super().__init__()
        self.layer_norm = nn.LayerNorm(d)
        self.pointwise_conv1 = nn.Conv1d(d, 2 * d, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d, bias=False)
        self.batch_norm = nn.BatchNorm1d(d)
        self.pointwise_conv2 = nn.Conv1d(d, d, 1, bias=False)

    def forward(self, x):
        x = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), 1)
        return self.pointwise_conv2(F.silu(self.batch_norm(self.depthwise_conv(x)))).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, d, heads, inner, kernel, dropout, kind):
        super().__init__()
        self.ffn1_layer_norm, self.ffn1 = nn.LayerNorm(d), FeedForward(d, inner, dropout)
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(d), Attention(d, heads, dropout, kind)
        self.conv_module = Convolution(d, kernel)
        self.ffn2_layer_norm, self.ffn2 = nn.LayerNorm(d), FeedForward(d, inner, dropout)
        self.final_layer_norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, positions):
        x = x + 0.5 * self.dropout(self.ffn1(self.ffn1_layer_norm(x)))
        x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), positions))
        x = x + self.dropout(self.conv_module(x))
        return self.final_layer_norm(x + 0.5 * self.dropout(self.ffn2(self.ffn2_layer_norm(x))))


class Subsampling(nn.Module):
    def __init__(self, mels, channels, d):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, channels, 3, 2), nn.Conv2d(channels, channels, 3, 2)
        self.linear = nn.Linear(channels * (((mels - 1) // 2 - 1) // 2), d)

    def forward(self, x):  # (batch, time, mels)
        x = F.relu(self.conv1(F.relu(self.conv0(x[:, None]))))
        return self.linear(x.permute(0, 2, 3, 1).flatten(2))  # column f * C + c


class Conformer(nn.Module):
    def __init__(self, mels=MELS, channels=144, d=144, layers=4, heads=4, inner=576, kernel=31, vocab=29, dropout=0.1,
                 frames=FRAMES, kind="matmul"):
        super().__init__()
        self.subsampling = Subsampling(mels, channels, d)
        self.layers = nn.ModuleList(Block(d, heads, inner, kernel, dropout, kind) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, vocab)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", self.table(((frames - 1) // 2 - 1) // 2, d), persistent=False)

    @staticmethod
    def table(frames, d):
        """Row k is relative position T-1-k."""
        angles = torch.arange(frames - 1, -frames, -1)[:, None] * 10000 ** (-torch.arange(0, d, 2) / d)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)

    def forward(self, x):
        x = self.dropout(self.subsampling(x))
        for layer in self.layers:
            x = layer(x, self.positions)
        return self.lm_head(self.layer_norm(x))


class Trainer:
    def __init__(self, kind, channels_last, compiled):
        torch.manual_seed(1)
        model = Conformer(kind=kind)
        if channels_last:
            model.subsampling.to(memory_format=torch.channels_last)
        self.model = torch.compile(model) if compiled else model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.features = torch.randn(UTTERANCES, FRAMES, MELS)
        n, s = torch.arange(UTTERANCES)[:, None], torch.arange(LABELS)
        self.labels = 1 + (7 * n + 5 * s) % 28  # no two neighbours alike
        self.frames = torch.full((UTTERANCES,), ((FRAMES - 1) // 2 - 1) // 2)
        self.label_lengths = torch.full((UTTERANCES,), LABELS)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        log_probs = self.model(self.features).log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(log_probs, self.labels, self.frames, self.label_lengths, reduction="sum", zero_infinity=True)
        (loss / UTTERANCES).backward()
        self.optimizer.step()
        return loss

    def run(self, steps):
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = self.step()
            seconds.append(time.perf_counter() - start)
        if not math.isfinite(loss.item()):
            sys.exit(f"train_step.py: the loss is {loss.item()}, a finite number expected")
        return seconds


def choose(arguments):
    """The fastest of the ways asked for, by the shortest of several steps of each, and what it is called. The ways take
    turns, so that a busy moment of the machine does not decide."""
    kinds = ["matmul", "sdpa"] if arguments.attention == "auto" else [arguments.attention]
    formats = ["contiguous", "channels_last"] if arguments.format == "auto" else [arguments.format]
    ways = list(itertools.product(kinds, formats))
    trainers = [Trainer(kind, layout == "channels_last", arguments.compile) for kind, layout in ways]
    for trainer in trainers:
        trainer.run(2)
    least = [math.inf] * len(ways)
    for _ in range(6 if len(ways) > 1 else 0):
        least = [min(seconds, *trainer.run(1)) for seconds, trainer in zip(least, trainers)]
    for (kind, layout), seconds in zip(ways, least):
        if len(ways) > 1:
            print(f"{kind}, {layout}: {seconds * 1e3:.1f} ms", file=sys.stderr)
    best = least.index(min(least))
    how = "compiled" if arguments.compile else "eager"
    return trainers[best], f"PyTorch {how} ({', '.join(ways[best])})"


def check(path):
    """Compares logits, losses and gradients with a golden file, in double."""
    from safetensors.torch import load_file

    golden = load_file(path)
    shape = golden["param/subsampling.conv1.weight"].shape[0]
    d, vocab = golden["param/lm_head.weight"].shape[1], golden["param/lm_head.weight"].shape[0]
    worst = 0.0
    for case, kind in itertools.product(("eval", "train", "train_pair"), ("matmul", "sdpa")):
        lengths = golden[f"{case}/lengths"].long().tolist()
        x = golden[f"{case}/input"].double().view(len(lengths), lengths[0], -1)
        model = Conformer(x.shape[2], shape, d, 2, 4, 48, 7, vocab, 0.0, lengths[0], kind).double()
        state = {n.removeprefix("param/"): t for n, t in golden.items() if n.startswith("param/")}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and all("num_batches_tracked" in name for name in missing), (missing, unexpected)
        model.positions = Conformer.table(int(golden[f"{case}/output_lengths"][0]), d).double()
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
        sys.exit("train_step.py: not the model of the golden file, 1e-5 or less expected")


def profile(trainer):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        trainer.run(5)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=60))


def main():
    parser = argparse.ArgumentParser(description="times one training step of a small Conformer in PyTorch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=15, help="steps measured")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--attention", choices=["auto", "matmul", "sdpa"], default="auto")
    parser.add_argument("--format", choices=["auto", "contiguous", "channels_last"], default="auto")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--check", metavar="GOLDEN")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    torch.set_num_threads(arguments.threads)
    trainer, name = choose(arguments)
    facts = {"name": name, "version": torch.__version__, "threads": torch.get_num_threads(),
             "parameters": sum(p.numel() for p in trainer.model.parameters())}
    if arguments.serve:
        for line in sys.stdin:
            words = line.split()
            if len(words) != 2 or words[0] != "run" or not words[1].isdigit() or int(words[1]) < 1:
                sys.exit(f'train_step.py: "{line.strip()}" given, "run K" with K at least 1 expected')
            print(json.dumps({"seconds": trainer.run(int(words[1])), **facts}), flush=True)
        return
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
