"""Pages of a mapped file leave memory, and come back with the same content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.model import pages


def resident_kilobytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssFile"].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is resident")
def test_a_view_of_a_mapped_weight_leaves_memory(tmp_path: Path) -> None:
    weight = np.arange(4 << 20, dtype=np.float32).reshape(1024, 4096)
    w = ir.Value(name="w", const_value=ir.tensor(weight), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Identity", [w])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 20}, name="g")
    graphopt.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")

    loaded = graphopt.load(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert loaded is not None
    view = ir.Tensor(loaded.numpy().T)
    before = resident_kilobytes()
    total = float(view.numpy().sum(dtype=np.float64))
    read = resident_kilobytes()
    pages.release(view)
    assert read - before > 15_000
    assert resident_kilobytes() - before < 1_000
    assert float(view.numpy().sum(dtype=np.float64)) == total


@pytest.mark.parametrize("array", [np.ones((2, 3)), np.ones(0), np.float32(1)])
def test_what_lies_in_memory_stays(array: np.ndarray) -> None:
    tensor = ir.tensor(np.asarray(array))
    pages.release(tensor)
    np.testing.assert_array_equal(tensor.numpy(), array)
