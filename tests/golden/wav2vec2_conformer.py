"""Writes wav2vec2_conformer.safetensors: logits and gradients of Hugging Face's Wav2Vec2ConformerForCTC, small and random.

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/wav2vec2_conformer.py [--out tests/golden]

One utterance each, no dropout, running statistics of batch norm. Names are Hugging Face's; running statistics lie among
the parameters. Layout: golden_case.py; `CASE.config` in the metadata is the config.json.

case0: relative positions, norm behind every convolution, with biases, swish.
case1: rotary positions, norm over time behind the first convolution only, no biases, gelu.
case2: relative positions, other widths, heads and layers, norm over time, gelu.
case3: no positions.

Tables of positions are computed in double here; Hugging Face rounds them to single precision.
`masked_spec_embed` and `encoder.pos_conv_embed` take no part; the latter is left out.
"""

import json

import torch
import transformers
from golden_case import random_parameters, random_tensor, relative_table, run, write
from torch.func import functional_call
from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC

COMMON = {
    "vocab_size": 8,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "max_source_positions": 64,
    "pad_token_id": 0,
}
CASES = [
    {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "hidden_act": "swish",
        "conv_dim": (10, 12, 14),
        "conv_kernel": (10, 3, 2),
        "conv_stride": (5, 2, 2),
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "conv_depthwise_kernel_size": 7,
        "position_embeddings_type": "relative",
    },
    {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "hidden_act": "gelu",
        "conv_dim": (12, 12),
        "conv_kernel": (8, 4),
        "conv_stride": (6, 3),
        "conv_bias": False,
        "feat_extract_norm": "group",
        "conv_depthwise_kernel_size": 5,
        "position_embeddings_type": "rotary",
    },
    {
        "hidden_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "intermediate_size": 12,
        "hidden_act": "gelu",
        "conv_dim": (9,),
        "conv_kernel": (20,),
        "conv_stride": (15,),
        "conv_bias": True,
        "feat_extract_norm": "group",
        "conv_depthwise_kernel_size": 3,
        "position_embeddings_type": "relative",
        "layer_norm_eps": 1e-3,
    },
    {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 12,
        "hidden_act": "swish",
        "conv_dim": (6, 6),
        "conv_kernel": (10, 4),
        "conv_stride": (5, 4),
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "conv_depthwise_kernel_size": 5,
        "position_embeddings_type": None,
    },
]


class Table(torch.nn.Module):
    """Hugging Face's positions, in double."""

    def __init__(self, config, theirs):
        super().__init__()
        self.config = config
        self.theirs = theirs

    def forward(self, x):
        expected = self.theirs(x)
        if self.config.position_embeddings_type == "relative":
            table = relative_table(x.shape[1], x.shape[2])
        else:
            width = self.config.hidden_size // self.config.num_attention_heads
            self.theirs.inv_freq = self.config.rotary_embedding_base ** -(torch.arange(0, width, 2).double() / width)
            self.theirs.cached_sequence_length = None
            table = self.theirs(x)
        assert table.shape == expected.shape and (table - expected).abs().max() < 1e-5
        return table


def main():
    tensors, metadata = {}, {}
    for seed, case in enumerate(CASES):
        config = Wav2Vec2ConformerConfig(**COMMON, **case, attn_implementation="eager")
        model = Wav2Vec2ConformerForCTC(config).double().eval()
        encoder = model.wav2vec2_conformer.encoder
        if config.position_embeddings_type is not None:
            encoder.embed_positions = Table(config, encoder.embed_positions)

        def forward(inputs, parameters):
            unused = 0 * parameters["wav2vec2_conformer.masked_spec_embed"].sum()
            return functional_call(model, parameters | statistics, (inputs["input"].T,)).logits[0] + unused

        generator = torch.Generator().manual_seed(seed + 1)
        inputs = {"input": random_tensor((400, 1), generator)}
        shapes = {name: p for name, p in model.named_parameters() if "pos_conv_embed" not in name}
        parameters = random_parameters(shapes, generator)
        statistics = {}
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                statistics[name] = random_tensor(buffer.shape, generator, 0.3)
            elif name.endswith("running_var"):
                statistics[name] = random_tensor(buffer.shape, generator).abs() + 0.5
        tensors |= run(f"case{seed}", forward, inputs, parameters, generator)
        tensors |= {f"case{seed}.param.{name}": tensor for name, tensor in statistics.items()}
        metadata[f"case{seed}.config"] = json.dumps(config.to_dict())
    metadata["source"] = (
        f"tests/golden/wav2vec2_conformer.py, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    write("wav2vec2_conformer.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
