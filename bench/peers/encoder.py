"""Whole Conformer encoders at inference in PyTorch and ONNX Runtime: the peers of laconic's own bench/encoder, which
says what the sizes are.

    pip install torch numpy safetensors transformers onnx onnxscript onnxruntime
    build/release/bench/encoder --size small --seconds 10 --batch 1 --folder build/encoders/small --prepare
    python bench/peers/encoder.py --size small --seconds 10 --batch 1 --folder build/encoders/small --framework eager

The folder has the model and the inputs, with the logits that laconic made of them: before anything is timed, logits are
compared, and an error ends the program where the greatest difference is more than 1e-3 of the greatest logit.
    eager       PyTorch; small and medium are conformer.py, large is transformers' Wav2Vec2ConformerForCTC
    compiled    the same through torch.compile with weights frozen (torch._inductor.config.freezing)
    onnx        exported by torch.onnx.export, run by ONNX Runtime; the exported files stay in the folder
Measured and taken is what is fastest: explicit attention or scaled_dot_product_attention, the memory format of
convolutions, eight uneven utterances padded with masks or one by one; in ONNX Runtime, fixed or free lengths (uneven
utterances one by one). `--prepare --framework onnx` only exports.

--serve is for compare.py: see serve.py.
"""

import gc
import pathlib
import statistics
import sys

import numpy as np
import serve
from safetensors.numpy import load_file


class Work:
    """The utterances of a batch, as arrays (1, length, width), and laconic's logits."""

    def __init__(self, folder, seconds, batch):
        path = folder / f"inputs-{seconds:g}-{batch}.safetensors"
        if not path.exists():
            serve.fail(f"{path}: no such file, one that bench/encoder --prepare wrote expected")
        tensors = load_file(path)
        count = len(tensors) // 2
        self.inputs = [tensors[f"input{n}"][None] for n in range(count)]
        self.logits = [tensors[f"logits{n}"] for n in range(count)]

    def check(self, name, logits):
        greatest = max(np.abs(expected).max() for expected in self.logits)
        difference = max(np.abs(a - b).max() for a, b in zip(logits, self.logits, strict=True)) / greatest
        print(f"{name}: logits differ from laconic's by {difference:.1e} of the greatest", file=sys.stderr)
        if not difference <= 1e-3:
            serve.fail(f"{name}: logits differ by {difference:.1e}, at most 1e-3 expected")


def main():
    parser = serve.parser("times an encoder in PyTorch or ONNX Runtime", ("eager", "compiled", "onnx"))
    parser.add_argument("--size", choices=["small", "medium", "large"], default="small")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", choices=["1", "uneven"], default="1")
    parser.add_argument("--weights", help="for laconic alone")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--repeat", type=int, default=5, help="runs measured, without --serve")
    parser.add_argument("--prepare", action="store_true", help="only export, for --framework onnx")
    parser.add_argument("--check", action="store_true", help="only compare logits")
    arguments = parser.parse_args()
    work = Work(arguments.folder, arguments.seconds, arguments.batch)
    # Each loads only what it needs, so that memory is that of its own framework.
    if arguments.framework == "onnx":
        import encoder_onnx

        if arguments.prepare:
            return encoder_onnx.export(arguments.folder, arguments.size, work.inputs)
        run, facts = encoder_onnx.choose(arguments, work.inputs)
    else:
        import encoder_torch

        run, facts = encoder_torch.choose(arguments, work.inputs)
    work.check(facts["name"], run())
    if arguments.check:
        return None
    gc.collect()
    serve.reset_peak()

    def answer(count):
        return {"seconds": [serve.seconds_of(run) for _ in range(count)], "peak_mb": serve.memory_mb("VmHWM"), **facts}

    if arguments.serve:
        return serve.serve(answer)
    seconds = answer(arguments.repeat)["seconds"]
    print(f"{facts['name']} {facts['version']}: median {statistics.median(seconds) * 1e3:.1f} ms, least "
          f"{min(seconds) * 1e3:.1f}, {len(seconds)} runs")


if __name__ == "__main__":
    main()
