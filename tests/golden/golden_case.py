"""What deepseek_mla.py, conformer_attention.py, branchformer.py and linear_attention.py share.

Their files hold, all F64:

    CASE.input (or CASE.q, CASE.k, CASE.v)      one sequence, (rows, width)
    CASE.param.NAME                             every parameter
    CASE.output                                 (rows, width)
    CASE.mix                                    random: the gradients are those of sum(output * mix)
    CASE.grad.input, CASE.grad.NAME             gradients of the inputs and of every parameter

Inputs, parameters and mix are float values in doubles, so that they can be read without loss as either; outputs and
gradients are computed in double. The metadata say what each case is, and the conventions.
"""

import argparse
import json
import math
import pathlib

import torch
from safetensors.torch import save

torch.set_num_threads(1)  # sums in one order: the same bytes again


def random_tensor(shape, generator, scale=1.0, mean=0.0):
    return (mean + scale * torch.randn(shape, generator=generator)).double()


def random_parameters(shapes, generator):
    """Parameters by name, none at a special value. `shapes`: names and shapes, or tensors of that shape."""
    parameters = {}
    for name, shape in shapes.items():
        shape = tuple(getattr(shape, "shape", shape))
        if "norm" in name and name.endswith("weight"):
            parameters[name] = random_tensor(shape, generator, 0.3, 1.0)
        elif len(shape) == 1 or "pos_bias" in name:
            parameters[name] = random_tensor(shape, generator, 0.3)
        else:
            parameters[name] = random_tensor(shape, generator, math.prod(shape[1:]) ** -0.5)
    return parameters


def relative_table(frames, width):
    """Transformer-XL's sinusoids (1, 2 * frames - 1, width) of the distances frames - 1 down to -(frames - 1).

    In double; Hugging Face and ESPnet make theirs in single precision.
    """
    distance = torch.arange(frames - 1, -frames, -1).double()[:, None]
    angle = distance * torch.exp(torch.arange(0, width, 2).double() * -(math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[None]


def run(case, forward, inputs, parameters, generator):
    """The tensors of one case. `forward` takes the inputs and then the parameters, as dicts, and returns the output."""
    leaves = inputs | parameters
    for tensor in leaves.values():
        tensor.requires_grad_()
    output = forward(inputs, parameters)
    assert output.dtype == torch.float64 and output.isfinite().all()
    mix = random_tensor(output.shape, generator)
    (output * mix).sum().backward()
    tensors = {name: tensor for name, tensor in inputs.items()}
    tensors |= {f"param.{name}": tensor for name, tensor in parameters.items()}
    tensors |= {"output": output, "mix": mix} | {f"grad.{name}": tensor.grad for name, tensor in leaves.items()}
    print(case, "sum of output", output.sum().item())
    return {f"{case}.{name}": tensor.detach().contiguous() for name, tensor in tensors.items()}


def write(name, tensors, metadata):
    parser = argparse.ArgumentParser(description=f"writes {name}")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, help="folder")
    path = parser.parse_args().out / name
    data = save(tensors, metadata)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = dict(sorted(metadata.items()))  # the library shuffles it, run by run
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])
    print(path, path.stat().st_size, "bytes,", len(tensors), "tensors")
