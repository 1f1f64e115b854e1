"""A decoder of any size with random weights: ``python tests/models/decoder.py FOLDER`` writes one of 5.4 GB."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROUND_BYTES = 32 << 20
"""The same random numbers lie in the file again and again, each time from another place on."""


def write(
    folder: Path,
    layers: int = 24,
    hidden: int = 2048,
    inner: int = 5632,
    vocabulary: int = 32000,
    head: int = 64,
) -> Path:
    """Write ``decoder.onnx`` and ``decoder.data`` into ``folder``, a matrix at a time; return the former."""
    numbers = np.random.default_rng(0).standard_normal(ROUND_BYTES // 4, np.float32)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="decoder")
    with (folder / "decoder.data").open("wb") as file:

        def weight(name: str, *shape: int) -> ir.Value:
            offset, left = file.tell(), int(np.prod(shape))
            scaled = (numbers if len(shape) == 1 else numbers * np.float32(shape[0] ** -0.5)) + np.float32(
                len(shape) == 1
            )
            start = offset // 4 % 977
            while left:
                part = scaled[start : start + left]
                part.tofile(file)
                left, start = left - part.size, 0
            bounds = offset, file.tell() - offset
            tensor = ir.ExternalTensor(
                "decoder.data", *bounds, ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
            )
            value = ir.Value(
                name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape), const_value=tensor
            )
            graph.register_initializer(value)
            return value

        def op(name: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
            node = ir.node(name, inputs, attributes)
            graph.append(node)
            node.outputs[0].name = f"{name}_{len(graph)}"
            return node.outputs[0]

        ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1, "length"]))
        graph.inputs.append(ids)
        x = op("Gather", [weight("embedding", vocabulary, hidden), ids])
        heads = hidden // head
        for i in range(layers):
            n = op("RMSNormalization", [x, weight(f"{i}.attention_norm", hidden)])
            q, k, v = (op("MatMul", [n, weight(f"{i}.{name}", hidden, hidden)]) for name in ("q", "k", "v"))
            a = op("Attention", [q, k, v], q_num_heads=heads, kv_num_heads=heads, is_causal=1)
            x = op("Add", [x, op("MatMul", [a, weight(f"{i}.o", hidden, hidden)])])
            n = op("RMSNormalization", [x, weight(f"{i}.inner_norm", hidden)])
            gate, up = (op("MatMul", [n, weight(f"{i}.{name}", hidden, inner)]) for name in ("gate", "up"))
            gated = op("Mul", [op("Mul", [gate, op("Sigmoid", [gate])]), up])
            x = op("Add", [x, op("MatMul", [gated, weight(f"{i}.down", inner, hidden)])])
        n = op("RMSNormalization", [x, weight("norm", hidden)])
        y = op("MatMul", [n, weight("head", hidden, vocabulary)])
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, "length", vocabulary])
    graph.outputs.append(y)
    for tensor in (value.const_value for value in graph.initializers.values()):
        assert isinstance(tensor, ir.ExternalTensor)
        tensor.base_dir = str(folder)
    path = folder / "decoder.onnx"
    path.write_bytes(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(write(given.folder, given.layers))
