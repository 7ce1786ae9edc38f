"""Decoding with GPT-2 in transformers and in ONNX Runtime: the peer of bench/decode, which says what it is.

    pip install torch transformers onnx onnxruntime
    python bench/peers/decode.py --threads 2 --streams 1 --contexts 1000

GPT-2 of 124M parameters at random values. `eager` is transformers with its DynamicCache; `onnx` is a graph of one step
that takes keys and values of the past and gives those of past and present, as exported GPT-2 models do.

--serve is for compare.py: see serve.py.
"""

import itertools
import tempfile

import serve
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache

ROOM = 200  # tokens that can be appended


class Eager:
    """Appends a token to each stream; the cache grows by it."""

    def __init__(self, model, streams, context):
        self.model, self.name = model, work_name(streams, context)
        c = model.config
        shape = (streams, c.n_head, context, c.n_embd // c.n_head)
        self.cache = DynamicCache()
        for layer in range(c.n_layer):
            self.cache.update(torch.randn(1, *shape[1:]).expand(shape).contiguous(),
                              torch.randn(1, *shape[1:]).expand(shape).contiguous(), layer)
        self.ids = torch.full((streams, 1), 11)
        self.step()

    def step(self):
        logits = self.model(self.ids, past_key_values=self.cache, use_cache=True).logits
        return logits[:, -1].argmax(-1)


class Step(torch.nn.Module):
    """One step of GPT-2 as a function of tensors alone: (ids, position, past) to (logits, past and present)."""

    def __init__(self, model):
        super().__init__()
        self.body, self.head, self.heads = model.transformer, model.lm_head, model.config.n_head

    def forward(self, ids, position, *past):
        x = self.body.wte(ids) + self.body.wpe(position)
        out = []
        for n, block in enumerate(self.body.h):
            q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
                       for part in block.attn.c_attn(block.ln_1(x)).split(x.shape[-1], dim=2))
            k, v = torch.cat([past[2 * n], k], 2), torch.cat([past[2 * n + 1], v], 2)
            out += [k, v]
            scores = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, -1)
            x = x + block.attn.c_proj((scores @ v).transpose(1, 2).reshape(x.shape))
            x = x + block.mlp(block.ln_2(x))
        return self.head(self.body.ln_f(x)), *out


class Onnx:
    """The exported step. Outputs become the inputs of the next one without a copy of ours."""

    def __init__(self, model, streams, context, threads, file):
        import onnxruntime

        self.name = work_name(streams, context)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        c = model.config
        self.count = 2 * c.n_layer
        one = torch.randn(1, c.n_head, context, c.n_embd // c.n_head).expand(streams, -1, -1, -1).contiguous().numpy()
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        self.past = [make(one.copy()) for _ in range(self.count)]
        self.ids = make(torch.full((streams, 1), 11).numpy())
        self.position, self.make = context, make
        self.step()

    def step(self):
        binding = self.session.io_binding()
        binding.bind_ortvalue_input("ids", self.ids)
        binding.bind_ortvalue_input("position", self.make(torch.full((1, 1), self.position).numpy()))
        for n, value in enumerate(self.past):
            binding.bind_ortvalue_input(f"past{n}", value)
        for name in ["logits", *(f"present{n}" for n in range(self.count))]:
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        logits, *self.past = binding.get_outputs()
        self.position += 1
        return logits.numpy()[:, -1].argmax(-1)


def export(model, file):
    c = model.config
    past = [torch.randn(2, c.n_head, 5, c.n_embd // c.n_head) for _ in range(2 * c.n_layer)]
    names = [f"past{n}" for n in range(2 * c.n_layer)], [f"present{n}" for n in range(2 * c.n_layer)]
    axes = {"ids": {0: "streams"}, "logits": {0: "streams"}}
    axes |= {name: {0: "streams", 2: "past"} for name in names[0]} | {name: {0: "streams", 2: "all"} for name in names[1]}
    torch.onnx.export(Step(model), (torch.full((2, 1), 11), torch.full((1, 1), 5), *past), file, dynamo=False,
                      input_names=["ids", "position", *names[0]], output_names=["logits", *names[1]], dynamic_axes=axes)


def work_name(streams, context):
    return f"{streams} stream{'' if streams == 1 else 's'}, context {context}"


@torch.inference_mode()
def main():
    parser = serve.parser("times decoding in transformers and ONNX Runtime", ("eager", "onnx"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1000, 4000], help="tokens in the cache of each")
    parser.add_argument("--attention", help="of laconic; here it is always GPT-2's own")
    parser.add_argument("--storage", help="of laconic; here it is always float")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_positions=max(arguments.contexts) + ROOM)).eval()
    works = list(itertools.product(arguments.streams, arguments.contexts))
    if arguments.framework == "onnx":
        import onnxruntime

        version = onnxruntime.__version__
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/gpt2.onnx"
            export(model, file)
            works = [Onnx(model, *work, arguments.threads, file) for work in works]
    else:
        import transformers

        version = f"{torch.__version__}, transformers {transformers.__version__}"
        works = [Eager(model, *work) for work in works]
    way = "ONNX Runtime" if arguments.framework == "onnx" else "transformers"

    def answer(count):
        seconds = {work.name: [serve.seconds_of(work.step) for _ in range(count)] for work in works}
        return {"seconds": {way: seconds}, "version": version}

    if arguments.serve:
        serve.serve(answer)
        return
    for work in works:
        print(f"{way}, {work.name}: {min(serve.seconds_of(work.step) for _ in range(5)) * 1e3:.2f} ms a token")


if __name__ == "__main__":
    main()
