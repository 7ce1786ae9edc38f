"""The matrix products of encoders in PyTorch: the peer of laconic's own bench/products, which says what they are.

    pip install torch numpy
    python bench/peers/products.py --threads 1 --rows 1 250 --shapes 256x1024

torch.nn.functional.linear with a bias, in inference mode; and "packed", the operator that torch.compile puts in its
place when weights are frozen: oneDNN's product, with the weight reordered beforehand. Both are timed as Python calls
them.

--serve is for compare.py: see serve.py.
"""

import serve
import torch
from torch.nn import functional as F

ROWS = [1, 4, 8, 16, 64, 250, 1000]
SHAPES = ["256x256", "256x1024", "1024x256", "512x512", "512x2048", "1024x1024", "1024x4096", "4096x1024"]


class Product:
    """x times one weight of several in turn, by each way."""

    def __init__(self, rows, layers):
        size = layers[0].weight.shape
        self.name = f"T={rows} {size[1]}->{size[0]}"
        self.flop = 2 * rows * size.numel()
        x = torch.randn(rows, size[1])
        plain = [(layer.weight, layer.bias) for layer in layers]
        self.ways = {"PyTorch": lambda i: F.linear(x, *plain[i % len(plain)])}
        if torch.backends.mkldnn.is_available():
            packed = [(torch.ops.mkldnn._reorder_linear_weight(weight, rows), bias) for weight, bias in plain]
            product = torch.ops.mkldnn._linear_pointwise
            self.ways["PyTorch, packed"] = lambda i: product(x, *packed[i % len(packed)], "none", [], "")
        self.calls = {way: serve.calls_for(call) for way, call in self.ways.items()}

    def seconds(self, way):
        return serve.seconds_each(self.ways[way], self.calls[way])


@torch.inference_mode()
def main():
    parser = serve.parser("times matrix products in PyTorch", ("eager",))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of x")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="INxOUT of the weights")
    parser.add_argument("--weights", type=int, default=1, help="different weights that calls take in turn")
    parser.add_argument("--rounded", action="store_true", help="for laconic alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    products = []
    for shape in arguments.shapes:
        sizes = [int(size) for size in shape.split("x")]
        layers = [torch.nn.Linear(*sizes).requires_grad_(False) for _ in range(arguments.weights)]
        products += [Product(rows, layers) for rows in arguments.rows]

    def answer(count):
        seconds = {way: {product.name: [] for product in products} for way in products[0].ways}
        for _ in range(count):
            for product in products:
                for way in product.ways:
                    seconds[way][product.name].append(product.seconds(way))
        return {"seconds": seconds, "version": torch.__version__}

    if arguments.serve:
        return serve.serve(answer)
    for product in products:
        rates = {way: product.flop / min(product.seconds(way) for _ in range(5)) * 1e-9 for way in product.ways}
        print(f"{product.name}, GFLOP/s: " + ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items()))


if __name__ == "__main__":
    main()
