"""Writes linear_attention.safetensors: the recurrence of linear attention as published, with its gradients.

    pip install torch safetensors numpy        (written with torch 2.15.0)
    python tests/golden/linear_attention.py [--out tests/golden]

Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236), equations 16 to 20, without projections, residual
and feed-forward:

    s_0 = 0, z_0 = 0,  s_i = s_{i-1} + phi(k_i) v_i^T,  z_i = z_{i-1} + phi(k_i)
    out_i = phi(q_i)^T s_i / (phi(q_i)^T z_i + 1e-6)    phi(x) = elu(x) + 1: x + 1 where x >= 0, else exp(x)

The paper has no 1e-6; its authors' code does. case0: causal, as above. case1: bidirectional, where every row divides by
the last z and multiplies by the last s. 13 rows, 3 heads, keys of 5 and values of 4, packed: q and k are (rows, 3 * 5),
v and the output (rows, 3 * 4), heads side by side. Scores are not scaled. Plain double; layout: golden_case.py.
"""

import torch
from golden_case import random_tensor, run, write

ROWS, HEADS, KEY, VALUE, EPS = 13, 3, 5, 4, 1e-6


def phi(x):
    return torch.where(x >= 0, x + 1, x.clamp(max=0).exp())


def attend(inputs, causal):
    q, k, v = (inputs[name].unflatten(1, (HEADS, -1)) for name in "qkv")  # (rows, heads, width)
    s, z, states = torch.zeros(HEADS, KEY, VALUE).double(), torch.zeros(HEADS, KEY).double(), []
    for i in range(ROWS):
        s = s + phi(k[i])[:, :, None] * v[i][:, None, :]
        z = z + phi(k[i])
        states.append((s, z))
    rows = []
    for i in range(ROWS):
        s, z = states[i if causal else -1]
        query = phi(q[i])
        rows.append((query[:, :, None] * s).sum(1) / ((query * z).sum(1) + EPS)[:, None])
    return torch.stack(rows).flatten(1)


def main():
    tensors = {}
    for case, causal in (("case0", True), ("case1", False)):
        generator = torch.Generator().manual_seed(1 if causal else 2)
        widths = {"q": HEADS * KEY, "k": HEADS * KEY, "v": HEADS * VALUE}
        inputs = {name: random_tensor((ROWS, width), generator) for name, width in widths.items()}
        tensors |= run(case, lambda inputs, _: attend(inputs, causal), inputs, {}, generator)
    metadata = {
        "source": f"tests/golden/linear_attention.py, torch {torch.__version__}",
        "case0": "causal",
        "case1": "bidirectional",
        "heads": str(HEADS),
        "feature_map": "elu(x) + 1",
        "eps": f"{EPS}, added to the denominator",
    }
    write("linear_attention.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
