"""The encoders of encoder.py in ONNX Runtime. Only exporting imports PyTorch: memory is that of ONNX Runtime."""

import functools
import logging
import shutil
import sys
import warnings

import serve


SECONDS = 120  # the longest utterance that files for any length take


def file_of(folder, length):
    """For inputs of one length, or of any (None); in a folder of its own, as large weights lie in files beside it."""
    return folder / "onnx" / ("any" if length is None else str(length)) / "model.onnx"


def is_there(folder, length):
    path = file_of(folder, length)
    return path.exists() and path.stat().st_mtime >= (folder / "model.safetensors").stat().st_mtime


def wanted(inputs):
    """Lengths to have a file for: any, and a single utterance's own."""
    return [None] + [x.shape[1] for x in inputs] * (len(inputs) == 1)


def export(folder, size, inputs):
    """Writes what is missing."""
    missing = [length for length in wanted(inputs) if not is_there(folder, length)]
    if not missing:
        return
    import encoder_torch
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of other packages that are not there
    longest = SECONDS * (16000 if size == "large" else 100)
    if max(x.shape[1] for x in inputs) > longest:
        serve.fail(f"utterances of more than {SECONDS} s given")
    example = torch.from_numpy(inputs[0])
    model = encoder_torch.load(folder, size, longest)
    for length in missing:
        whole = file_of(folder, length).parent
        part = whole.with_name(f"{whole.name}.part")  # what was cut off is not taken for whole
        for old in (whole, part):
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
        path = str(part / "model.onnx")
        names = {"input_names": ["x"], "output_names": ["logits"]}
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            if length is None:
                # By tracing: the newer exporter gets transformers' shapes wrong for most other lengths.
                torch.onnx.export(model, (example,), path, dynamo=False, dynamic_axes={"x": {1: "time"}}, **names)
            else:
                torch.onnx.export(model, (example,), path, verbose=False, **names)
        part.rename(whole)
        print(f"{whole} written", file=sys.stderr)


def choose(arguments, inputs):
    """The fastest exported file as a function that gives the logits of all inputs, and facts about it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    lengths = wanted(inputs)
    for length in lengths:
        if not is_there(arguments.folder, length):
            serve.fail(f"{file_of(arguments.folder, length)}: no such file, or older than the model; one that "
                       "--prepare wrote expected")
    sessions = [
        onnxruntime.InferenceSession(file_of(arguments.folder, length), options, providers=["CPUExecutionProvider"])
        for length in lengths
    ]

    def run(session):
        return [session.run(["logits"], {"x": x})[0][0] for x in inputs]

    runs = [functools.partial(run, session) for session in sessions]
    best, least = serve.fastest(runs)
    names = ["any length" if length is None else "its own length" for length in lengths]
    for name, seconds in zip(names, least) if len(runs) > 1 else ():
        print(f"ONNX Runtime, {name}: {seconds * 1e3:.1f} ms", file=sys.stderr)
    facts = {"name": f"ONNX Runtime ({names[best]})", "version": onnxruntime.__version__, "threads": arguments.threads}
    return runs[best], facts
