"""Writes llama/: a small random Llama as transformers saves it, and what transformers computes with it.

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/llama.py [--out tests/golden]

    llama/config.json, llama/model.safetensors    LlamaForCausalLM, as save_pretrained writes it (config.json shortened)
    llama/expected.safetensors                    F64, computed in double from the same weights:
        ids (2, 9), logits (2 * 9, vocabulary)    the logits of two sequences of 9 tokens
        greedy (2, 12)                            their continuations by greedy decoding
        llama3 (2 * 9, vocabulary), linear, yarn  the logits with other rope_parameters, as the metadata say them

4 query heads over 2 key-value heads, a base of 5000, embeddings that are not tied. The logits of a scaling are those of
the last 18 of 60 tokens, a sequence long enough for it to matter: `long` (60).
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
out = parser.parse_args().out / "llama"

torch.manual_seed(2)
torch.set_num_threads(1)
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
SCALINGS = {
    "linear": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32},
}


def config(rope):
    return LlamaConfig(vocab_size=37, max_position_embeddings=64, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=dict(rope),
                       tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)


model = LlamaForCausalLM(config(PLAIN)).eval()
with torch.no_grad():
    for name, p in model.named_parameters():  # none at a special value, and logits far enough apart to be told apart
        p.copy_(torch.randn_like(p) * (0.25 if p.dim() == 2 else 0.2) + (1.0 if "norm" in name else 0.0))
model.save_pretrained(out)
kept = ("architectures", "model_type", "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act",
        "attention_bias", "mlp_bias", "rope_parameters", "tie_word_embeddings")
saved = json.loads((out / "config.json").read_text())
(out / "config.json").write_text(json.dumps({k: saved[k] for k in kept if k in saved}, indent=2) + "\n")
(out / "generation_config.json").unlink(missing_ok=True)


def in_double(rope):
    """The same weights with these rope_parameters, its rates and angles in double, too."""
    same = LlamaForCausalLM(config(rope)).eval()
    same.load_state_dict(model.state_dict())
    return same.double()


ids, long = torch.randint(1, 37, (2, 9)), torch.randint(1, 37, (1, 60))
common = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "max_new_tokens": 12}
with torch.no_grad():
    plain = in_double(PLAIN)
    expected = {"ids": ids, "long": long, "logits": plain(ids).logits.flatten(0, 1)}
    expected["greedy"] = plain.generate(ids, eos_token_id=None, **common)[:, 9:]
    for name, rope in SCALINGS.items():
        expected[name] = in_double(rope)(long).logits[0, -18:]
save_file({k: v.double().contiguous() for k, v in expected.items()}, out / "expected.safetensors",
          metadata={name: json.dumps(rope) for name, rope in SCALINGS.items()})
for path in out.iterdir():
    path.chmod(0o644)
print({k: v.tolist() for k, v in expected.items() if v.dim() == 2 and k in ("ids", "greedy")})
