"""Writes branchformer.safetensors: outputs and gradients of ESPnet's Branchformer and E-Branchformer blocks.

    pip install torch numpy safetensors typeguard packaging && pip install --no-deps espnet
    python tests/golden/branchformer.py [--out tests/golden]        (written with torch 2.15.0, espnet 202511)

One block (BranchformerEncoderLayer, EBranchformerEncoderLayer), which ends in its final norm: d 16, 4 heads, relative
positions (the "latest", Transformer-XL's; the input is not scaled by sqrt(d)), cgMLP of 24 units, kernel 7, identity
gate, no linear layer after the convolution; feed-forward 32 with swish. 10 rows, no dropout, evaluation. Layout:
golden_case.py.

    case0   Branchformer, merge "concat"
    case1   Branchformer, merge "fixed_ave", cgmlp_weight 0.3
    case2   Branchformer, merge "learned_ave"
    case3   E-Branchformer, macaron, merge_conv_kernel 3
    case4   E-Branchformer, macaron, merge_conv_kernel 5

Names are ESPnet's, but for channel_proj1.0 (channel_proj1), w_1 (intermediate_dense) and w_2 (output_dense).
EVERY LayerNorm HAS eps 1e-5 HERE; ESPnet's own is 1e-12. The table is computed in double, ESPnet's in single precision.
All parameters are random, also the gate's convolution, which ESPnet starts near 0 with a bias of 1; the weights of the
pooling (pooling_proj1, 2) are four times as large as other matrices, for else it would be nearly flat.
Zero but for rounding are the gradients of attn.linear_k.bias, pooling_proj1.bias and pooling_proj2.bias: each adds the
same number to all that one softmax sees.
"""

import importlib.metadata

import torch
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoderLayer
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoderLayer
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet.nets.pytorch_backend.nets_utils import get_activation
from espnet.nets.pytorch_backend.transformer.attention import RelPositionMultiHeadedAttention
from espnet.nets.pytorch_backend.transformer.embedding import RelPositionalEncoding
from espnet.nets.pytorch_backend.transformer.positionwise_feed_forward import PositionwiseFeedForward
from golden_case import random_parameters, random_tensor, relative_table, run, write
from torch.func import functional_call

D, HEADS, UNITS, KERNEL, FEED_FORWARD, ROWS, EPS = 16, 4, 24, 7, 32, 10, 1e-5


def branches():
    gate = {"use_linear_after_conv": False, "gate_activation": "identity"}
    return RelPositionMultiHeadedAttention(HEADS, D, 0.0), ConvolutionalGatingMLP(D, UNITS, KERNEL, 0.0, **gate)


def branchformer(merge_method, **options):
    return BranchformerEncoderLayer(D, *branches(), 0.0, merge_method, **options)


def e_branchformer(merge_conv_kernel):
    feed_forwards = [PositionwiseFeedForward(D, FEED_FORWARD, 0.0, get_activation("swish")) for _ in range(2)]
    return EBranchformerEncoderLayer(D, *branches(), *feed_forwards, 0.0, merge_conv_kernel)


CASES = {
    "Branchformer, concat": lambda: branchformer("concat"),
    "Branchformer, fixed_ave, cgmlp_weight 0.3": lambda: branchformer("fixed_ave", cgmlp_weight=0.3),
    "Branchformer, learned_ave": lambda: branchformer("learned_ave"),
    "E-Branchformer, macaron, merge_conv_kernel 3": lambda: e_branchformer(3),
    "E-Branchformer, macaron, merge_conv_kernel 5": lambda: e_branchformer(5),
}


def our_name(name):
    name = name.replace("channel_proj1.0.", "channel_proj1.")
    return name.replace(".w_1.", ".intermediate_dense.").replace(".w_2.", ".output_dense.")


def main():
    tensors, metadata = {}, {}
    table = relative_table(ROWS, D)
    theirs = RelPositionalEncoding(D, 0.0)(torch.zeros(1, ROWS, D))[1]
    assert table.shape == theirs.shape and (table - theirs).abs().max() < 1e-6
    for seed, (title, make) in enumerate(CASES.items()):
        block = make().double().eval()
        for module in block.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = EPS
        names = {name: our_name(name) for name, _ in block.named_parameters()}

        def forward(inputs, parameters):
            weights = {theirs: parameters[ours] for theirs, ours in names.items()}
            (y, _), _ = functional_call(block, weights, ((inputs["input"][None], table), None))
            return y[0]

        generator = torch.Generator().manual_seed(seed + 1)
        inputs = {"input": random_tensor((ROWS, D), generator)}
        parameters = random_parameters({names[n]: p for n, p in block.named_parameters()}, generator)
        for name, parameter in parameters.items():
            if name.startswith("pooling_proj") and name.endswith("weight"):
                parameter *= 4
        tensors |= run(f"case{seed}", forward, inputs, parameters, generator)
        metadata[f"case{seed}"] = title
    versions = f"torch {torch.__version__}, espnet {importlib.metadata.version('espnet')}"
    metadata |= {
        "source": f"tests/golden/branchformer.py, {versions}",
        "class": "espnet BranchformerEncoderLayer, EBranchformerEncoderLayer",
        "heads": str(HEADS),
        "layer_norm_eps": f"{EPS} (ESPnet's own is 1e-12)",
        "relative": "distances +(T-1) to -(T-1), positive where the key is to the left; input not scaled by sqrt(d)",
    }
    write("branchformer.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
