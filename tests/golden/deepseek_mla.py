"""Writes deepseek_mla.safetensors: outputs and gradients of Hugging Face's DeepseekV3Attention (eager, causal).

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/deepseek_mla.py [--out tests/golden]

d 48, 4 heads of dn 12 and dr 6 (query and key without and with rotation) and dv 12, latent r 20, 11 rows, no biases, no
rope scaling. case0: queries from a latent of rq 24. case1: queries straight from the input. Layout: golden_case.py.

What DeepSeek stacks, rows over rows, is split here. The scores are scaled by (dn + dr)^-0.5.

    linear_q_down.weight (rq, d), q_norm.weight (rq)                 q_a_proj, q_a_layernorm; only in case0
    linear_q.weight (H dn, rq or d), linear_q_rope.weight (H dr, rq or d)    q_b_proj or q_proj: [dn | dr] of each head
    linear_kv_down.weight (r, d), linear_k_rope.weight (dr, d)       kv_a_proj_with_mqa: [r | dr]
    kv_norm.weight (r)                                               kv_a_layernorm
    linear_k_up.weight (H dn, r), linear_v_up.weight (H dv, r)       kv_b_proj: [dn | dv] of each head
    linear_out.weight (d, H dv)                                      o_proj

Rotation: DeepSeek's interleaved pairs. Columns 2m and 2m + 1 of a head's rotary part are real and imaginary part of a
number that is multiplied by exp(i t theta^(-2m/dr)) at row t = 0, 1, ...; theta is in the metadata. Hugging Face lays
the rotated real parts before the imaginary ones, in queries and keys alike, which no score can tell.

Epsilon of both norms is the 1e-6 of the class DeepseekV3RMSNorm, whatever the configuration's rms_norm_eps.

Hugging Face computes norms, softmax and rotation in single precision whatever the weights are; here they are in double.
"""

import types

import torch
import transformers
from golden_case import random_parameters, random_tensor, run, write
from torch.func import functional_call
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as modeling

# The module's own torch, in which single precision is double.
modeling.torch = types.SimpleNamespace(**vars(torch) | {"float": torch.float64, "float32": torch.float64})

D, HEADS, NOPE, ROPE, VALUE, LATENT, ROWS = 48, 4, 12, 6, 12, 20, 11


def stack_heads(first, second):
    """Rows of both, head by head."""
    heads = [w.unflatten(0, (HEADS, -1)) for w in (first, second)]
    return torch.cat(heads, 1).flatten(0, 1)


def stacked(p):
    """DeepSeek's parameters from ours."""
    q = stack_heads(p["linear_q.weight"], p["linear_q_rope.weight"])
    if "q_norm.weight" in p:
        queries = {"q_a_proj": p["linear_q_down.weight"], "q_a_layernorm": p["q_norm.weight"], "q_b_proj": q}
    else:
        queries = {"q_proj": q}
    rest = {
        "kv_a_proj_with_mqa": torch.cat([p["linear_kv_down.weight"], p["linear_k_rope.weight"]]),
        "kv_a_layernorm": p["kv_norm.weight"],
        "kv_b_proj": stack_heads(p["linear_k_up.weight"], p["linear_v_up.weight"]),
        "o_proj": p["linear_out.weight"],
    }
    return {f"{name}.weight": tensor for name, tensor in (queries | rest).items()}


def shapes(query_latent):
    latent = {"linear_q_down.weight": (query_latent, D), "q_norm.weight": (query_latent,)} if query_latent else {}
    return latent | {
        "linear_q.weight": (HEADS * NOPE, query_latent or D),
        "linear_q_rope.weight": (HEADS * ROPE, query_latent or D),
        "linear_kv_down.weight": (LATENT, D),
        "linear_k_rope.weight": (ROPE, D),
        "kv_norm.weight": (LATENT,),
        "linear_k_up.weight": (HEADS * NOPE, LATENT),
        "linear_v_up.weight": (HEADS * VALUE, LATENT),
        "linear_out.weight": (D, HEADS * VALUE),
    }


def main():
    tensors = {}
    for case, query_latent in (("case0", 24), ("case1", None)):
        config = DeepseekV3Config(
            hidden_size=D,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            q_lora_rank=query_latent,
            kv_lora_rank=LATENT,
            qk_nope_head_dim=NOPE,
            qk_rope_head_dim=ROPE,
            v_head_dim=VALUE,
            attn_implementation="eager",
        )
        assert config.rope_interleave and config.rope_parameters["rope_type"] == "default"
        attention = modeling.DeepseekV3Attention(config, layer_idx=0).double().eval()
        rotation = modeling.DeepseekV3RotaryEmbedding(config)
        causal = torch.full((ROWS, ROWS), -torch.inf).double().triu(1)

        def forward(inputs, parameters):
            weights = stacked(parameters)
            assert {n: p.shape for n, p in attention.named_parameters()} == {n: w.shape for n, w in weights.items()}
            x = inputs["input"][None]
            angles = rotation(x, torch.arange(ROWS)[None])
            return functional_call(attention, weights, (x, angles, causal[None, None]))[0][0]

        generator = torch.Generator().manual_seed(1 if query_latent else 2)
        inputs = {"input": random_tensor((ROWS, D), generator)}
        tensors |= run(case, forward, inputs, random_parameters(shapes(query_latent), generator), generator)
    metadata = {
        "source": f"tests/golden/deepseek_mla.py, torch {torch.__version__}, transformers {transformers.__version__}",
        "class": "transformers DeepseekV3Attention, eager, causal",
        "case0": "q_lora_rank 24",
        "case1": "q_lora_rank None",
        "rms_norm_eps": str(attention.kv_a_layernorm.variance_epsilon),
        "rope": "interleaved pairs (2m, 2m + 1), positions from 0",
        "rope_theta": str(config.rope_parameters["rope_theta"]),
        "scale": "(qk_nope_head_dim + qk_rope_head_dim)^-0.5",
    }
    write("deepseek_mla.safetensors", tensors, metadata)


if __name__ == "__main__":
    main()
