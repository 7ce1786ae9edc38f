"""Writes the golden files of the Conformer: outputs and gradients of Hugging Face's Wav2Vec2Conformer.

    pip install torch transformers safetensors numpy
    python tests/golden/conformer.py [--out tests/golden]

    conformer.safetensors          one block (Wav2Vec2ConformerEncoderLayer), names without "layers.0."
    conformer_encoder.safetensors  two blocks and the norm after them (Wav2Vec2ConformerEncoder)
    conformer_ctc.safetensors      convolutional subsampling by 4 (plain PyTorch), that encoder, CTC head and loss

Relative positions, SiLU, batch norm, no dropout; d 24, 4 heads, feed-forward 48, kernel 7. Every parameter is random
(also norms, biases, pos_bias_u and _v, running statistics). Values are rounded to float first, then all is computed in
double and stored as F32. Packed: utterances are laid end to end along the rows.

    param/NAME             every parameter and running statistic before the step, in the shape PyTorch gives it
    CASE/input             (rows, d), or (rows, mels) with the subsampling
    CASE/lengths           (B) rows of each utterance
    CASE/output            (rows, d); with the CTC head the logits (subsampled rows, vocabulary)
    CASE/weight            random W: the gradients are those of sum(output * W)         (not in conformer_ctc)
    CASE/labels, CASE/label_lengths, CASE/loss    (sum of S), (B), (B): the gradients are those of the sum of the losses
    CASE/output_lengths    (B) rows of each utterance after the subsampling                 (only in conformer_ctc)
    CASE/grad/input, CASE/grad/NAME               gradients of the input and of every trained parameter
    CASE/after/NAME        running statistics after the step (momentum 0.1, unbiased variance)   (only in training cases)

Cases: "eval" (one utterance, running statistics), "train" (one utterance, statistics of the batch), "eval_pair" (two
utterances of unequal length, each run alone: Hugging Face's convolution does not mask padding), "train_pair" (two of
equal length in one batch, statistics over both).

The linear layer of the subsampling reads column f * C + c (frequency-major) here; PyTorch's usual view(b, t, c * f) is
channel-major, so its columns and their gradient are stored permuted. Convolutions are (out, in, time, frequency).
The gradient of linear_k.bias is zero but for rounding (1e-15 here): it adds the same number to a whole row of scores.
"""

import argparse
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import (
    Wav2Vec2ConformerEncoder,
    Wav2Vec2ConformerEncoderLayer,
    Wav2Vec2ConformerRelPositionalEmbedding,
)

CONFIG = Wav2Vec2ConformerConfig(
    hidden_size=24,
    num_attention_heads=4,
    intermediate_size=48,
    num_hidden_layers=2,
    conv_depthwise_kernel_size=7,
    hidden_act="swish",
    position_embeddings_type="relative",
    max_source_positions=64,
    num_conv_pos_embeddings=4,  # built but never used by the encoder
    num_conv_pos_embedding_groups=4,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    conformer_conv_dropout=0.0,
    layerdrop=0.0,
    attn_implementation="eager",
)
MELS, CHANNELS, VOCAB = 20, 6, 9
STATISTICS = ("running_mean", "running_var")


class Block(nn.Module):
    """The bare block, fed with its position table. Its parameters keep their own names."""

    def __init__(self):
        super().__init__()
        self.block = Wav2Vec2ConformerEncoderLayer(CONFIG)
        self.positions = Wav2Vec2ConformerRelPositionalEmbedding(CONFIG)

    def forward(self, x):
        return self.block(x, relative_position_embeddings=self.positions(x))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Wav2Vec2ConformerEncoder(CONFIG)

    def forward(self, x):
        return self.encoder(x).last_hidden_state


class Subsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(1, CHANNELS, 3, 2)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, 2)
        self.linear = nn.Linear(CHANNELS * (((MELS - 1) // 2 - 1) // 2), CONFIG.hidden_size)

    def forward(self, x):  # (batch, time, mels)
        a = self.conv0(x[:, None])
        b = self.conv1(a.relu())
        # The slope of ReLU must not hang on rounding in float.
        assert min(a.abs().min(), b.abs().min()) > 1e-5
        return self.linear(b.relu().transpose(1, 2).flatten(2))


class CtcModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.subsampling = Subsampling()
        self.encoder = Wav2Vec2ConformerEncoder(CONFIG)
        self.lm_head = nn.Linear(CONFIG.hidden_size, VOCAB)

    def forward(self, x):
        return self.lm_head(self.encoder(self.subsampling(x)).last_hidden_state)


def tensors_by_name(model):
    """laconic's name of every parameter and running statistic that takes part."""
    named = dict(model.named_parameters()) | {n: b for n, b in model.named_buffers() if n.endswith(STATISTICS)}
    return {n.removeprefix("block.").removeprefix("encoder."): t for n, t in named.items() if "pos_conv_embed" not in n}


def randomize(model, generator):
    for name, tensor in tensors_by_name(model).items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif "norm.weight" in name:
            value = 1 + 0.3 * noise
        elif tensor.dim() == 1 or "pos_bias" in name:
            value = 0.3 * noise
        else:
            value = noise * tensor[0].numel() ** -0.5
        tensor.data.copy_(value)  # float values in a double tensor
    assert all(p.dtype == torch.float64 for p in model.parameters())


def stored(name, tensor):
    """The tensor in laconic's layout."""
    tensor = tensor.detach()
    if name == "subsampling.linear.weight":  # channel-major columns to frequency-major ones
        tensor = tensor.view(len(tensor), CHANNELS, -1).transpose(1, 2).flatten(1)
    return tensor.float().contiguous()


def step(model, lengths, together, generator, labels=None):
    """Runs one case and returns its tensors. `together`: equal lengths, one batch; else one run an utterance."""
    named = tensors_by_name(model)
    before = {name: named[name].clone() for name in named}
    model.zero_grad()
    width = CONFIG.hidden_size if labels is None else MELS
    x = torch.randn(sum(lengths), width, generator=generator).double().requires_grad_()
    utterances = x.split(lengths)
    if together:
        outputs = list(model(torch.stack(utterances)))
    else:
        outputs = [model(u[None])[0] for u in utterances]
    packed = torch.cat(outputs)
    out = {"input": x, "output": packed, "lengths": torch.tensor(lengths)}
    if labels is None:
        out["weight"] = torch.randn(packed.shape, generator=generator).double()
        (packed * out["weight"]).sum().backward()
    else:
        losses = [
            nn.functional.ctc_loss(
                o.log_softmax(-1), torch.tensor(label), torch.tensor(len(o)), torch.tensor(len(label)), reduction="sum"
            )
            for o, label in zip(outputs, labels)
        ]
        out["loss"] = torch.stack(losses)
        out["labels"] = torch.tensor(sum(labels, []))
        out["label_lengths"] = torch.tensor([len(label) for label in labels])
        out["output_lengths"] = torch.tensor([len(o) for o in outputs])
        assert out["loss"].isfinite().all()
        out["loss"].sum().backward()
    result = {name: stored(name, tensor) for name, tensor in out.items()}
    result["grad/input"] = stored("input", x.grad)
    for name, tensor in named.items():
        if not name.endswith(STATISTICS):
            result[f"grad/{name}"] = stored(name, tensor.grad)
        elif model.training:
            result[f"after/{name}"] = stored(name, tensor)
        tensor.data.copy_(before[name])  # every case starts from the stored statistics
    return result


def write(path, model, lengths, pair, equal, seed, labels=(None, None)):
    """All four cases of one model in one file. `lengths` (one utterance), `pair` (two), `equal` (of both)."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    randomize(model, generator)
    tensors = {f"param/{name}": stored(name, tensor) for name, tensor in tensors_by_name(model).items()}
    one, two = labels
    for case, training, sizes, label in (
        ("eval", False, [lengths], one),
        ("train", True, [lengths], one),
        ("eval_pair", False, pair, two),
        ("train_pair", True, [equal, equal], two),
    ):
        model.train(training)
        values = step(model, sizes, training, generator, label)
        print(path.name, case, sizes, "sum of output", values["output"].sum().item(), values.get("loss", ""))
        tensors |= {f"{case}/{name}": value for name, value in values.items()}
    source = f"tests/golden/conformer.py, torch {torch.__version__}, transformers {transformers.__version__}"
    save_file(tensors, path, {"source": source})
    path.chmod(0o644)  # the library leaves it unreadable to others
    print(path, path.stat().st_size, "bytes,", len(tensors), "tensors")


def main():
    parser = argparse.ArgumentParser(description="writes the golden files of the Conformer")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, help="folder")
    out = parser.parse_args().out
    write(out / "conformer.safetensors", Block(), 13, [9, 17], 11, 1)
    write(out / "conformer_encoder.safetensors", Encoder(), 13, [9, 17], 11, 2)
    labels = ([[3, 1, 1, 7]], [[2, 5, 5], [8, 4, 1]])
    write(out / "conformer_ctc.safetensors", CtcModel(), 47, [39, 55], 43, 3, labels)


if __name__ == "__main__":
    main()
