"""Writes conformer_attention.safetensors: outputs and gradients of Hugging Face's Wav2Vec2ConformerSelfAttention.

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/conformer_attention.py [--out tests/golden]

d 24, 4 heads, 9 rows, bidirectional, no dropout. Names are Hugging Face's. Layout: golden_case.py.

case0, "relative" (Transformer-XL): score = ((q_i + u) k_j + (q_i + v) p_{i-j}) / sqrt(d / H), p = linear_pos(table).
case1, "rotary": the INPUT of queries and keys is rotated, each head's slice of the columns by itself, before linear_q
and linear_k; values see the input as it is. Columns m and m + w/2 of a slice (w = d / H; its halves) are real and
imaginary part of a number that is multiplied by exp(i t 10000^(-2m/w)) at row t = 0, 1, ...

Both tables are computed in double here; Hugging Face rounds angles or frequencies to single precision.
The gradient of linear_k.bias is zero but for rounding: it adds the same number to a whole row of scores.
"""

import torch
import transformers
from golden_case import random_parameters, random_tensor, relative_table, run, write
from torch.func import functional_call
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as modeling

D, HEADS, ROWS = 24, 4, 9


def table_of(config, x):
    """Hugging Face's positions, in double."""
    if config.position_embeddings_type == "relative":
        table = relative_table(ROWS, D)
        theirs = modeling.Wav2Vec2ConformerRelPositionalEmbedding(config)(x)
    else:
        positions = modeling.Wav2Vec2ConformerRotaryPositionalEmbedding(config)
        theirs = positions(x)
        width = D // HEADS
        positions.inv_freq = config.rotary_embedding_base ** -(torch.arange(0, width, 2).double() / width)
        positions.cached_sequence_length = None
        table = positions(x)
    assert table.shape == theirs.shape and (table - theirs).abs().max() < 1e-6
    return table


def main():
    tensors = {}
    for seed, kind in enumerate(("relative", "rotary")):
        config = Wav2Vec2ConformerConfig(
            hidden_size=D,
            num_attention_heads=HEADS,
            position_embeddings_type=kind,
            max_source_positions=16,
            attention_dropout=0.0,
            attn_implementation="eager",
        )
        attention = modeling.Wav2Vec2ConformerSelfAttention(config).double().eval()

        def forward(inputs, parameters):
            x = inputs["input"][None]
            table = table_of(config, x.detach())
            return functional_call(attention, parameters, (x,), {"relative_position_embeddings": table})[0][0]

        generator = torch.Generator().manual_seed(seed + 1)
        inputs = {"input": random_tensor((ROWS, D), generator)}
        parameters = random_parameters(dict(attention.named_parameters()), generator)
        tensors |= run(f"case{seed}", forward, inputs, parameters, generator)
    source = f"tests/golden/conformer_attention.py, torch {torch.__version__}, transformers {transformers.__version__}"
    metadata = {
        "source": source,
        "class": "transformers Wav2Vec2ConformerSelfAttention, eager, bidirectional",
        "case0": "position_embeddings_type relative",
        "case1": "position_embeddings_type rotary",
        "heads": str(HEADS),
        "relative": "distances +(T-1) to -(T-1), positive where the key is to the left",
        "rotary": "input of linear_q and linear_k rotated, not linear_v's; halves (m, m + w/2) of each head's columns",
        "rotary_base": str(config.rotary_embedding_base),
    }
    write("conformer_attention.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
