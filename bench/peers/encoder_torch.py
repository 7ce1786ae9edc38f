"""The encoders of encoder.py in PyTorch: how they are loaded, the ways to run them, and which is fastest."""

import functools
import itertools
import json
import sys

import serve
import torch
from conformer import KINDS, Conformer, subsampled
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence


def behind(lengths):
    """(batch, longest), true behind the end of each."""
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


class Features(torch.nn.Module):
    """conformer.py, from features (batch, time, mels)."""

    formats = ("contiguous", "channels_last")

    def __init__(self, folder, longest, layout="contiguous"):
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        d = config["d_model"]
        self.model = Conformer(mels=config["num_mels"], channels=config["subsampling_channels"], d=d,
                               layers=config["num_layers"], heads=config["num_heads"],
                               inner=config["intermediate_size"] or config["ffn_expansion"] * d,
                               kernel=config["conv_kernel"], vocab=config["vocab_size"], dropout=0.0, frames=longest)
        self.model.load(load_file(folder / "model.safetensors"))
        if layout == "channels_last":
            self.model.subsampling.to(memory_format=torch.channels_last)

    def set_attention(self, kind):
        self.model.set_attention(kind)

    def out_length(self, length):
        return subsampled(length)

    def masks(self, lengths):
        return behind([self.out_length(length) for length in lengths])

    def forward(self, x, masks=None):
        return self.model(x, masks)


class Samples(torch.nn.Module):
    """transformers' Wav2Vec2ConformerForCTC, from samples (batch, time, 1)."""

    formats = ("contiguous",)

    def __init__(self, folder, longest, layout="contiguous"):
        super().__init__()
        import transformers

        # The file lacks a convolution that transformers makes and never calls.
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.model = transformers.Wav2Vec2ConformerForCTC.from_pretrained(folder, attn_implementation="eager")
        self.padding = None
        encoder = self.model.wav2vec2_conformer.encoder
        table = encoder.embed_positions
        table.pe = table.extend_pe(torch.zeros(1, self.out_length(longest)))  # it would grow at the first long input
        for layer in encoder.layers:
            layer.conv_module.depthwise_conv.register_forward_pre_hook(self.hide_padding)

    def hide_padding(self, module, inputs):
        """transformers lets convolutions see what lies behind an utterance, which gives other logits."""
        return inputs if self.padding is None else (inputs[0].masked_fill(self.padding[:, None], 0),)

    def set_attention(self, kind):
        self.model.set_attn_implementation("eager" if kind == "matmul" else "sdpa")

    def out_length(self, length):
        return int(self.model._get_feat_extract_output_lengths(length))

    def masks(self, lengths):
        return (~behind(lengths)).long(), behind([self.out_length(length) for length in lengths])

    def forward(self, x, masks=None):
        samples, self.padding = (None, None) if masks is None else masks
        return self.model(x[..., 0], attention_mask=samples).logits


def load(folder, size, longest, layout="contiguous"):
    return (Samples if size == "large" else Features)(folder, longest, layout).eval()


@torch.inference_mode()
def one_by_one(model, call, inputs):
    return [call(x)[0].numpy() for x in inputs]


@torch.inference_mode()
def padded(model, call, inputs):
    lengths = [x.shape[1] for x in inputs]
    logits = call(pad_sequence([x[0] for x in inputs], batch_first=True), model.masks(lengths))
    return [rows[: model.out_length(length)].numpy() for rows, length in zip(logits, lengths)]


def choose(arguments, inputs):
    """The fastest way as a function that gives the logits of all inputs, and facts about it."""
    torch.set_num_threads(arguments.threads)
    inputs = [torch.from_numpy(x) for x in inputs]
    longest = max(x.shape[1] for x in inputs)
    formats = Samples.formats if arguments.size == "large" else Features.formats
    models = {layout: load(arguments.folder, arguments.size, longest, layout) for layout in formats}
    batchings = [one_by_one, padded] if len(inputs) > 1 else [one_by_one]

    def try_way(kind, layout, batching):
        models[layout].set_attention(kind)
        batching(models[layout], models[layout], inputs)

    ways = list(itertools.product(KINDS, formats, batchings))
    best, least = serve.fastest([functools.partial(try_way, *way) for way in ways])
    for (kind, layout, batching), seconds in zip(ways, least):
        print(f"{kind}, {layout}, {batching.__name__}: {seconds * 1e3:.1f} ms", file=sys.stderr)
    kind, layout, batching = ways[best]
    model = models[layout]
    call = model
    if arguments.framework == "compiled":
        kind, call = compile_fastest(model, batching, inputs)
    model.set_attention(kind)
    names = [kind] + [layout] * (len(formats) > 1) + [batching.__name__.replace("_", " ")] * (len(inputs) > 1)
    facts = {"name": f"PyTorch {arguments.framework} ({', '.join(names)})", "version": torch.__version__,
             "threads": torch.get_num_threads()}
    return functools.partial(batching, model, call, inputs), facts


def compile_fastest(model, batching, inputs):
    """The faster kind of attention once compiled, and the compiled model; batching and format are those that were
    faster without, for compiling takes minutes."""
    if batching is one_by_one and len(inputs) > 1:
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 1)
    else:
        # Weights packed for their products. With free lengths PyTorch 2.15 fails at it, in the first convolution.
        torch._inductor.config.freezing = True
    calls, least = {}, {}
    for kind in KINDS:
        model.set_attention(kind)
        calls[kind] = torch.compile(model)
        run = functools.partial(batching, model, calls[kind], inputs)
        run(), run()
        least[kind] = min(serve.seconds_of(run) for _ in range(3))
        print(f"{kind}, compiled: {least[kind] * 1e3:.1f} ms", file=sys.stderr)
    best = min(least, key=least.get)
    return best, calls[best]
