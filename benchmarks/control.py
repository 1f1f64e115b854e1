"""The A/A control of ``graphopt.measure``: the same model against itself must come out even, within 3 %.

python benchmarks/control.py [--seconds 10] [--threads 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import itertools
import sys

import numpy as np
import onnx_ir as ir

import graphopt

LIMIT = 0.03
FLOAT = ir.DataType.FLOAT


class Builder:
    """Adds nodes and random weights to a graph that has one input."""

    def __init__(self, name: str, shape: list[int]) -> None:
        self.name = name
        self.rng = np.random.default_rng(0)
        self.input = ir.Value(name="x", type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.numbers = itertools.count()

    def weight(self, *shape: int) -> ir.Value:
        array = self.rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        name = f"w{next(self.numbers)}"
        value = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
        value.const_value = ir.tensor(array, name=name)
        self.weights.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{op_type}_{next(self.numbers)}")
        node.outputs[0].name = f"v{next(self.numbers)}"
        self.nodes.append(node)
        return node.outputs[0]

    def model(self, output: ir.Value) -> ir.Model:
        output.type = ir.TensorType(FLOAT)
        imports = {"": 20}
        graph = ir.Graph(
            [self.input],
            [output],
            nodes=self.nodes,
            initializers=self.weights,
            name=self.name,
            opset_imports=imports,
        )
        return ir.Model(graph, ir_version=10)


def residual(blocks: int = 8, channels: int = 64, edge: int = 56) -> ir.Model:
    """A stack of residual blocks of 3x3 convolutions, as ResNet's first stages."""
    b = Builder("residual", [1, channels, edge, edge])
    x = b.input
    for _ in range(blocks):
        y = b.op("Relu", b.op("Conv", x, b.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1]))
        y = b.op("Conv", y, b.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
        x = b.op("Relu", b.op("Add", x, y))
    return b.model(x)


def transformer(layers: int = 4, width: int = 256, length: int = 64) -> ir.Model:
    """A stack of single-head attention and feed-forward layers, as a small encoder."""
    b = Builder("transformer", [1, length, width])
    x = b.input
    for _ in range(layers):
        q, k, v = (b.op("MatMul", x, b.weight(width, width)) for _ in range(3))
        scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
        x = b.op(
            "LayerNormalization", b.op("Add", x, b.op("MatMul", scores, v)), b.weight(width), b.weight(width)
        )
        hidden = b.op("Gelu", b.op("MatMul", x, b.weight(width, 4 * width)))
        x = b.op(
            "LayerNormalization",
            b.op("Add", x, b.op("MatMul", hidden, b.weight(4 * width, width))),
            b.weight(width),
            b.weight(width),
        )
    return b.model(x)


def tiny() -> ir.Model:
    """Three layers that take microseconds: all of it is overhead."""
    b = Builder("tiny", [1, 16])
    x = b.input
    for _ in range(3):
        x = b.op("Relu", b.op("MatMul", x, b.weight(16, 16)))
    return b.model(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    worst = 0.0
    print(f"{'model':12}  {'median ms':>10}  {'spread':>7}  {'ratio':>6}  95 % interval    verdict")
    for seed in range(options.repeats):
        for make in (residual, transformer, tiny):
            model = make()
            found = graphopt.measure(
                [model, model], seconds=options.seconds, threads=options.threads, seed=seed
            )
            b = found[1]
            worst = max(worst, abs(b.ratio - 1))
            print(
                f"{make.__name__:12}  {b.median_ms:10.3f}  {100 * b.spread:5.1f} %  {b.ratio:6.3f}  "
                f"{b.low:.3f} … {b.high:.3f}    {b.verdict} ({found.rounds} rounds, {found.seconds:.1f} s)"
            )
    print(f"\nlargest deviation {100 * worst:.2f} %, allowed {100 * LIMIT:.0f} %")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
