"""Writes gpt2/: a small random GPT-2 as transformers saves it, and what transformers computes with it.

    pip install torch transformers safetensors numpy        (written with torch 2.15.0, transformers 5.24.0)
    python tests/golden/gpt2.py [--out tests/golden]

    gpt2/config.json, gpt2/model.safetensors    GPT2LMHeadModel, as save_pretrained writes it (config.json shortened)
    gpt2/expected.safetensors                   F64, computed in double from the same weights:
        ids (2, 9), logits (2 * 9, vocabulary)  the logits of two sequences of 9 tokens
        greedy (2, 12)                          their continuations by greedy decoding
        beam (2, 12)                            by a beam search of 4 beams
        penalty.end (2), beam.SEQUENCE          by 3 beams with a token that ends a sequence and a length penalty of 2
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
out = parser.parse_args().out / "gpt2"

torch.manual_seed(1)
torch.set_num_threads(1)
config = GPT2Config(vocab_size=37, n_positions=40, n_embd=24, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for name, p in model.named_parameters():  # none at a special value, and logits far enough apart to be told apart
        p.copy_(torch.randn_like(p) * (0.3 if p.dim() == 2 else 0.2) + (1.0 if "ln_" in name and "weight" in name else 0.0))
model.save_pretrained(out)
kept = ("architectures", "model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
        "activation_function", "layer_norm_epsilon", "resid_pdrop", "tie_word_embeddings")
saved = json.loads((out / "config.json").read_text())
(out / "config.json").write_text(json.dumps({k: saved[k] for k in kept if k in saved}, indent=2) + "\n")
(out / "generation_config.json").unlink(missing_ok=True)

model.double()
ids = torch.randint(1, config.vocab_size, (2, 9))
common = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "max_new_tokens": 12}
with torch.no_grad():
    expected = {"ids": ids, "logits": model(ids).logits.flatten(0, 1)}
    expected["greedy"] = model.generate(ids, eos_token_id=None, **common)[:, 9:]
    expected["beam"] = model.generate(ids, eos_token_id=None, num_beams=4, **common)[:, 9:]
    # Each sequence by itself, since transformers pads what ends sooner; an end token that its beam meets on the way.
    expected["penalty.end"] = expected["beam"][:, 5].clone()
    for n in range(2):
        one = {**common, "attention_mask": torch.ones(1, 9, dtype=torch.long)}
        expected[f"beam.{n}"] = model.generate(ids[n : n + 1], eos_token_id=int(expected["penalty.end"][n]), num_beams=3,
                                               length_penalty=2.0, **one)[0, 9:]
save_file({k: v.double().contiguous() for k, v in expected.items()}, out / "expected.safetensors")
for path in out.iterdir():
    path.chmod(0o644)
print({k: v.tolist() for k, v in expected.items() if k != "logits"})
