"""What bench/cuda.cpp measures, in PyTorch on the same GPU, by the same names.

    pip install torch transformers
    python bench/peers/gpu.py --out build/cuda/peers.json
    python bench/peers/gpu.py --against build/cuda/cuda.json    # and a table of both, with what scripts/gpu-check wrote

Each row is measured in several ways, of which the fastest counts: eager and through torch.compile; attention by
products and softmax, by scaled_dot_product_attention and by FlexAttention, to which relative positions are a bias that
is computed before. Precisions are float32, float32 with products in TF32, and bfloat16 of parameters and operands
(inference) or autocast (training). Models get their input from the host. Time is that of several calls in a row, as in
bench/cuda.cpp.

--device cpu --small runs everything once in small sizes, to see that it runs.
"""

import argparse
import json
import statistics
import sys
import time
import warnings

import torch
from conformer import Conformer, attend, relative_scores, subsampled
from torch.nn import functional as F

PRECISIONS = ("full", "tf32", "bf16")


class Bench:
    def __init__(self, options):
        self.device, self.small, self.rounds = options.device, options.small, 1 if options.small else options.rounds
        self.only = options.only
        self.rows = {}

    def noise(self, *shape, precision="full"):
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call):
        calls = 1 if self.small else 10
        call()
        call()
        measured = []
        for _ in range(self.rounds):
            self.wait()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            measured.append((time.perf_counter() - start) / calls)
        return statistics.mean(measured)

    def row(self, name, precision, ways):
        """ways: {name: a function without arguments that returns the call to measure}"""
        full_name = f"{name}/{precision}" if precision else name
        if self.only and self.only not in full_name:
            return
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        found = {}
        for way, make in ways.items():
            torch._dynamo.reset()
            try:
                found[way] = self.seconds(make())
            except Exception as error:  # a way that this PyTorch does not have; it is said, the others count
                print(f"{full_name}: {way}: {str(error).splitlines()[0][:120]}", file=sys.stderr)
            if self.device == "cuda":
                torch.cuda.empty_cache()
        if found:
            best = min(found, key=found.get)
            self.rows[full_name] = {"way": best, "seconds": found[best], "ways": found}
            print(f"{full_name:50} {1e6 * found[best]:12.1f} us  {best}", flush=True)


def linear(bench):
    for inner, outer in ((256, 1024), (1024, 1024), (1024, 4096)):
        for rows in (1, 32, 1000, 16000):
            for precision in PRECISIONS:
                x, w = bench.noise(rows, inner, precision=precision), bench.noise(outer, inner, precision=precision)
                b = bench.noise(outer, precision=precision)
                bench.row(f"linear/{inner}x{outer}/rows:{rows}", precision,
                          {"eager": lambda x=x, w=w, b=b: lambda: F.linear(x, w, b)})


def flex_relative(q, k, v, p, u, w):
    """FlexAttention with the scores of Transformer-XL positions as a bias, which is computed before."""
    from torch.nn.attention.flex_attention import flex_attention

    scale = q.shape[-1] ** -0.5
    bias = relative_scores((q + w) * scale, p)
    out = flex_attention((q + u).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale,
                         score_mod=lambda score, b, h, i, j: score + bias[b, h, i, j])
    return out.transpose(1, 2).flatten(2)


def attention(bench):
    heads, width = 16, 64
    for precision in PRECISIONS:
        for rows in (25,) if bench.small else (250, 3000):
            q, k, v = bench.noise(3, 1, rows, heads, width, precision=precision)
            p = bench.noise(2 * rows - 1, heads, width, precision=precision)
            u, w = bench.noise(2, heads, width, precision=precision)

            def plain(kind, q=q, k=k, v=v):
                return lambda: attend(kind, q, k, v, width**-0.5)

            def relative(kind, q=q, k=k, v=v, p=p, u=u, w=w):
                scores = lambda q, k, v, p, u, w: attend(kind, q + u, k, v, width**-0.5,
                                                         relative_scores((q + w) * width**-0.5, p))
                return scores, (q, k, v, p, u, w)

            def eager(kind):
                function, of = relative(kind)
                return lambda: function(*of)

            def compiled(function, of):
                function = torch.compile(function, dynamic=False)
                return lambda: function(*of)

            bench.row(f"attend/none/rows:{rows}", precision,
                      {kind: (lambda kind=kind: plain(kind)) for kind in ("matmul", "sdpa")})
            bench.row(f"attend/relative/rows:{rows}", precision,
                      {**{kind: (lambda kind=kind: eager(kind)) for kind in ("matmul", "sdpa")},
                       **{f"compiled {kind}": (lambda kind=kind: compiled(*relative(kind)))
                          for kind in ("matmul", "sdpa")},
                       "FlexAttention": lambda of=(q, k, v, p, u, w): compiled(flex_relative, of)})
        if precision != "bf16":  # the cache of laconic's row is in bf16
            continue
        for shared in (16, 128):
            for latent in (64, 128, 256, 576):
                for streams, cached in ((1, 64), (2, 32)) if bench.small else ((1, 65536), (64, 4096)):
                    q = bench.noise(streams, shared, 1, latent, precision=precision)
                    rows = bench.noise(streams, 1, cached + 1, latent, precision=precision)
                    together = q.transpose(1, 2)  # the heads of a stream as rows

                    def products(q=together, rows=rows):
                        return lambda: (q @ rows.transpose(2, 3) * 0.125).softmax(-1) @ rows

                    bench.row(f"decode/heads:{shared}/latent:{latent}/{streams}x{cached}", precision, {
                        "matmul": products,
                        "sdpa, heads as rows": lambda q=together, rows=rows: lambda: F.scaled_dot_product_attention(
                            q, rows, rows, scale=0.125),
                        "sdpa, groups": lambda q=q, rows=rows: lambda: F.scaled_dot_product_attention(
                            q, rows, rows, scale=0.125, enable_gqa=True)})


def elementwise(bench):
    x, channels = bench.noise(16000, 512), 512
    bench.row("layer_norm", "", {"eager": lambda: lambda: F.layer_norm(x, (channels,))})
    wide = bench.noise(16000, 2 * channels)
    bench.row("glu", "", {"eager": lambda: lambda: F.glu(wide)})
    bench.row("log_softmax", "", {"eager": lambda: lambda: F.log_softmax(x, -1)})


def conformer(bench, d, layers, heads, dropout):
    frames = 98 if bench.small else 998
    model = Conformer(mels=80, channels=d, d=d, layers=1 if bench.small else layers, heads=heads, inner=4 * d,
                      kernel=31, vocab=29, dropout=dropout, frames=frames)
    return model.to(bench.device), frames


def models(bench):
    utterances = 2 if bench.small else 32
    for precision in PRECISIONS:

        def encoder(kind, compiled, precision=precision):
            model, frames = conformer(bench, 256, 12, 4, 0.0)
            model.set_attention(kind)
            model = model.eval().to(torch.bfloat16 if precision == "bf16" else torch.float32)
            model = torch.compile(model) if compiled else model
            x = bench.noise(utterances, frames, 80, precision=precision).cpu()

            @torch.inference_mode()
            def call():
                model(x.to(bench.device))

            return call

        bench.row("encoder/256x12/32x10s", precision,
                  {f"{'compiled ' if c else ''}{kind}": (lambda kind=kind, c=c: encoder(kind, c))
                   for c in (False, True) for kind in ("matmul", "sdpa")})

        def wav2vec2(count, compiled, precision=precision):
            from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

            config = Wav2Vec2ConformerConfig(
                hidden_size=64 if bench.small else 1024, num_hidden_layers=1 if bench.small else 24,
                num_attention_heads=4 if bench.small else 16, intermediate_size=64 if bench.small else 4096,
                vocab_size=32, position_embeddings_type="relative", feat_extract_norm="layer", conv_bias=True,
                hidden_act="swish", apply_spec_augment=False)
            model = Wav2Vec2ConformerForCTC(config).eval().to(bench.device)
            model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
            model = torch.compile(model) if compiled else model
            x = bench.noise(count, 8000 if bench.small else 160000, precision=precision).cpu()

            @torch.inference_mode()
            def call():
                model(x.to(bench.device))

            return call

        for count in (1, utterances):
            bench.row(f"wav2vec2-conformer/1024x24/{count}x10s", precision,
                      {"eager": lambda n=count: wav2vec2(n, False), "compiled": lambda n=count: wav2vec2(n, True)})

        def train(d, layers, heads, compiled, precision=precision):
            model, frames = conformer(bench, d, layers, heads, 0.1)
            model.set_attention("sdpa" if compiled else "matmul")
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
            run = torch.compile(model) if compiled else model
            x = bench.noise(utterances, frames, 80).cpu()
            each = 6 if bench.small else 60
            labels = 1 + torch.arange(utterances * each, device=bench.device).view(utterances, each) % 28
            lengths = torch.full((utterances,), subsampled(frames)), torch.full((utterances,), each)

            def call():
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(bench.device, torch.bfloat16, enabled=precision == "bf16"):
                    logits = run(x.to(bench.device))
                log_probs = logits.float().log_softmax(-1).transpose(0, 1)
                F.ctc_loss(log_probs, labels, *lengths, zero_infinity=True).backward()
                optimizer.step()

            return call

        for d, layers, heads in ((144, 16, 4), (256, 12, 4), (512, 17, 8), (1024, 24, 16)):
            bench.row(f"train_step/{d}x{layers}/32x10s", precision,
                      {"eager": lambda s=(d, layers, heads): train(*s, False),
                       "compiled": lambda s=(d, layers, heads): train(*s, True)})


def compare(rows, file):
    """Prints the times of both, and PyTorch's time over laconic's."""
    with open(file) as read:
        own = {one["name"].removesuffix("/manual_time"): one["real_time"] for one in json.load(read)["benchmarks"]
               if not one.get("error_occurred")}
    print(f"\n{'':55} {'laconic, us':>14} {'PyTorch, us':>14} {'times as fast':>14}")
    for name, row in rows.items():
        if name not in own:
            print(f"{name:55} {'not measured':>14} {1e6 * row['seconds']:14.1f} {'':14}  {row['way']}")
        else:
            print(f"{name:55} {own[name]:14.1f} {1e6 * row['seconds']:14.1f} {1e6 * row['seconds'] / own[name]:14.2f}"
                  f"  {row['way']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, once")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each way, of which the mean counts")
    parser.add_argument("--only", help="rows whose names contain this")
    parser.add_argument("--out", help="write the results to this file, as JSON")
    parser.add_argument("--against", help="results of bench/cuda to compare with")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: PyTorch finds no GPU")
    warnings.simplefilter("ignore")  # of torch.compile, about the code of transformers
    bench = Bench(options)
    for part in (linear, attention, elementwise, models):
        part(bench)
    if options.out:
        with open(options.out, "w") as write:
            json.dump({"torch": torch.__version__, "rows": bench.rows}, write, indent=1)
    if options.against:
        compare(bench.rows, options.against)


if __name__ == "__main__":
    main()
