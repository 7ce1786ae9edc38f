"""Softmax attention alone in PyTorch: the peer of laconic's own bench/attention, which says what it is.

    pip install torch numpy
    python bench/peers/attention.py --threads 1 --heads 4 --frames 250 1000

With Transformer-XL relative positions as in conformer.py, and without; each as "matmul", products and softmax, and as
"sdpa", scaled_dot_product_attention with the position scores as additive mask. --framework compiled puts them through
torch.compile, each shape on its own.

--serve is for compare.py: see serve.py.
"""

import itertools

import serve
import torch
from conformer import KINDS, attend, relative_scores

WIDTH = 64


def relative_attention(kind, q, k, v, p, u, w):
    scale = WIDTH**-0.5
    return attend(kind, q + u, k, v, scale, relative_scores((q + w) * scale, p))


def plain_attention(kind, q, k, v):
    return attend(kind, q, k, v, WIDTH**-0.5)


class Work:
    def __init__(self, framework, kind, relative, heads, frames):
        self.way = f"PyTorch {framework}, {kind}"
        self.name = f"{'relative positions' if relative else 'no positions'}, {heads} heads, T={frames}"
        self.kind = kind
        self.operands = list(torch.randn(3, 1, frames, heads, WIDTH))
        if relative:
            self.operands += [torch.randn(2 * frames - 1, heads, WIDTH), *torch.randn(2, heads, WIDTH)]
        function = relative_attention if relative else plain_attention
        self.function = torch.compile(function, dynamic=False) if framework == "compiled" else function
        self.calls = serve.calls_for(self.call)
        self.peak_mb = serve.peak_over(lambda: self.call(0))

    def call(self, _):
        self.function(self.kind, *self.operands)

    def seconds(self):
        return serve.seconds_each(self.call, self.calls)


def by_way(works, value):
    """{way: {work: value(work)}}"""
    out = {}
    for work in works:
        out.setdefault(work.way, {})[work.name] = value(work)
    return out


@torch.inference_mode()
def main():
    parser = serve.parser("times attention in PyTorch", ("eager", "compiled"))
    parser.add_argument("--heads", type=int, nargs="+", default=[4, 8], help="heads of width 64")
    parser.add_argument("--frames", type=int, nargs="+", default=[250, 1000, 3000])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch._dynamo.config.recompile_limit = 1000
    works = [
        Work(arguments.framework, kind, relative, heads, frames)
        for relative, heads, frames, kind in itertools.product((True, False), arguments.heads, arguments.frames, KINDS)
    ]
    peak_mb = by_way(works, lambda work: work.peak_mb)

    def answer(count):
        seconds = by_way(works, lambda work: [])
        for _ in range(count):
            for work in works:
                seconds[work.way][work.name].append(work.seconds())
        return {"seconds": seconds, "peak_mb": peak_mb, "version": torch.__version__}

    if arguments.serve:
        serve.serve(answer)
        return
    for work in works:
        least = min(work.seconds() for _ in range(3))
        print(f"{work.way}, {work.name}: {least * 1e3:.2f} ms, {work.peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
