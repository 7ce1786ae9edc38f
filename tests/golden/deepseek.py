"""Writes deepseek/ and deepseek_low_rank/: small random DeepSeek-V3 without experts as transformers saves them, and their
logits.

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/deepseek.py [--out tests/golden]

    deepseek/config.json, deepseek/model.safetensors    DeepseekV3ForCausalLM, as save_pretrained writes it (config.json
                                                        shortened)
    deepseek/expected.safetensors                       F64, computed in double from the same weights:
        ids (2, 9), logits (2 * 9, vocabulary)          the logits of two sequences of 9 tokens

Queries straight from the input, and of rank 10 in deepseek_low_rank/. Feed-forward modules without experts in all layers, a base of 500.
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

kept = ("architectures", "model_type", "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim",
        "qk_rope_head_dim", "v_head_dim", "first_k_dense_replace", "rms_norm_eps", "hidden_act", "attention_bias",
        "rope_parameters", "rope_interleave", "tie_word_embeddings")


def write(out, q_lora_rank):
    torch.manual_seed(3)
    config = DeepseekV3Config(vocab_size=37, max_position_embeddings=64, hidden_size=32, intermediate_size=40,
                              num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=q_lora_rank,
                              kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, first_k_dense_replace=2,
                              rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
                              tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    model = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # no special values, and logits far enough apart to be told apart
            p.copy_(torch.randn_like(p) * (0.25 if p.dim() == 2 else 0.2) + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(out)
    saved = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({k: saved[k] for k in kept if k in saved}, indent=2) + "\n")
    (out / "generation_config.json").unlink(missing_ok=True)

    model.double()
    ids = torch.randint(1, 37, (2, 9))
    with torch.no_grad():
        expected = {"ids": ids, "logits": model(ids).logits.flatten(0, 1)}
    save_file({k: v.double().contiguous() for k, v in expected.items()}, out / "expected.safetensors")
    for path in out.iterdir():
        path.chmod(0o644)
    print(sorted(model.state_dict()))


parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
folder = parser.parse_args().out
torch.set_num_threads(1)
write(folder / "deepseek", None)
write(folder / "deepseek_low_rank", 10)
