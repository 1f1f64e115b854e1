"""Loading, saving, copying and weighing models."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases

from graphopt import ModelError, UsageError, frontends, load, save
from graphopt.model import MappedTensor, clone, from_proto, nbytes, saving, to_proto
from graphopt.query import all_graphs

BIG = 2000
"""Floats in a tensor that is mapped; tensors below a page stay inline."""


def big(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.full(BIG, value, np.float32), name)


def everything() -> onnx.ModelProto:
    """Return a model with large and small tensors in every place: graph, subgraph, constant, function."""
    model = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20, "local" : 1], producer_name: "maker", producer_version: "2",
         domain: "d", model_version: 3, doc_string: "about", metadata_props: ["key": "value"]>
        main (float[N, 2000] x, bool c) => (float[N, 2000] y)
        <float[1] small = {2}>
        {
          [scale_it] t = local.scale <by = 2.0> (x)
          k = Constant <value = float[1] {1}> ()
          u = Add (t, k)
          v = Mul (u, small)
          y = If (c) <
            then_branch = yes () => (float[N, 2000] r) <float[1] w = {5}> { r = Add (v, w) },
            else_branch = no () => (float[N, 2000] q) { z = Constant <value = float[1] {1}> () q = Sub (v, z) }>
        }
        <domain: "local", opset_import: ["" : 20], doc_string: "scales">
        scale <by> (a) => (o) {
          f = Constant <value_float: float = @by> ()
          g = Constant <value = float[1] {1}> ()
          h = Mul (a, f)
          o = Mul (h, g)
        }
        """
    )
    graph = model.graph
    graph.doc_string = "the graph"
    graph.node[0].doc_string = "a node"
    graph.node[0].metadata_props.add(key="origin", value="layer.0")
    graph.value_info.add(name="t", doc_string="a value").type.CopyFrom(graph.input[0].type)
    annotation = graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="small")
    graph.node[1].attribute[0].t.CopyFrom(big("", 3))
    branches = {a.name: a.g for a in graph.node[4].attribute}
    branches["then_branch"].initializer[0].CopyFrom(big("w", 5))
    branches["else_branch"].node[0].attribute[0].t.CopyFrom(big("", 7))
    model.functions[0].node[1].attribute[0].t.CopyFrom(big("", 2))
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(everything(), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def outputs(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    x = np.arange(2 * BIG, dtype=np.float32).reshape(2, BIG)
    return [session.run(None, {"x": x, "c": np.array(c)})[0] for c in (True, False)]


def tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    return [tensor for graph in all_graphs(model) for tensor in saving.tensors(graph)]


def canonical(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``proto`` without what may differ: value infos, how the domain of ONNX is written, how data are stored."""
    same = onnx.ModelProto()
    same.CopyFrom(proto)
    canonical_graph(same.graph)
    for function in same.functions:
        canonical_nodes(function.node)
        if not function.overload:
            function.ClearField("overload")
    for opset in same.opset_import:
        opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
    return same


def canonical_graph(graph: onnx.GraphProto) -> None:
    canonical_nodes(graph.node)
    for initializer in graph.initializer:
        canonical_tensor(initializer)
    del graph.value_info[:]


def canonical_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        if node.domain in ("", "ai.onnx"):
            node.ClearField("domain")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                canonical_tensor(attribute.t)
            if attribute.HasField("g"):
                canonical_graph(attribute.g)


def canonical_tensor(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.STRING:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    if not tensor.name:
        tensor.ClearField("name")


def test_large_tensors_are_views_of_the_file_wherever_they_stand(path: Path) -> None:
    model = load(path)
    mapped = [tensor for tensor in tensors(model) if tensor.size == BIG]
    assert sorted(float(tensor.numpy()[0]) for tensor in mapped) == [2, 3, 5, 7]
    for tensor in mapped:
        assert isinstance(tensor, MappedTensor)
        assert (tensor.raw.path, tensor.raw.length) == (path, 4 * BIG)
        assert path.read_bytes()[tensor.raw.offset :][: 4 * BIG] == tensor.tobytes()
        assert np.shares_memory(tensor.numpy(), tensor.numpy())
        assert not tensor.numpy().flags.writeable
    assert not any(isinstance(tensor, MappedTensor) for tensor in tensors(model) if tensor.size < BIG)


@pytest.mark.parametrize("external", [None, "file"])
def test_what_is_saved_is_what_was_loaded(path: Path, tmp_path: Path, external: str | None) -> None:
    out = tmp_path / "out.onnx"
    save(load(path), out, external_data=external)
    onnx.checker.check_model(out, full_check=True)
    assert canonical(onnx.load(out)) == canonical(onnx.load(path))
    saved = onnx.load(out)
    assert {v.name: v.doc_string for v in saved.graph.value_info}["t"] == "a value"
    assert [a.tensor_name for a in saved.graph.quantization_annotation] == ["t"]
    for got, wanted in zip(outputs(out), outputs(path), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["in.onnx", "out.onnx"] if external is None else ["in.onnx", "out.onnx", "out.onnx.data"]
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # onnx computes the expected outputs
def test_node_tests_of_onnx_survive() -> None:
    cases = [case for case in collect_testcases(None) if case.model is not None]
    assert len(cases) > 1500
    for case in cases[::4]:
        before = case.model.SerializeToString(deterministic=True)
        got = to_proto(from_proto(case.model))
        assert canonical(got) == canonical(case.model), case.name
        assert case.model.SerializeToString(deterministic=True) == before, case.name


DTYPES = [dtype for dtype in ir.DataType if dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("count", [7, 9001])
@pytest.mark.parametrize("external", [None, "file"])
def test_every_type_inline_mapped_and_external(
    tmp_path: Path, dtype: ir.DataType, count: int, external: str | None
) -> None:
    size = (dtype.bitwidth * count + 7) // 8
    data = np.random.default_rng(0).integers(0, 2 if dtype == ir.DataType.BOOL else 256, size, np.uint8)
    if rest := dtype.bitwidth * count % 8:
        data[-1] &= (1 << rest) - 1
    raw = TensorProto(name="w", data_type=dtype.value, dims=[count], raw_data=data.tobytes())
    value = helper.make_tensor_value_info("y", dtype.value, [count])
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph([node], "g", [], [value], [raw])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)]), tmp_path / "a.onnx")

    model = load(tmp_path / "a.onnx")
    (tensor,) = tensors(model)
    assert isinstance(tensor, MappedTensor) == (size >= 4096)
    array = tensor.numpy()
    assert array.shape == (count,)
    assert array.dtype == dtype.numpy()
    if dtype.bitwidth >= 8:
        assert array.tobytes() == data.tobytes()
    np.testing.assert_array_equal(array.view(np.uint8), numpy_helper.to_array(raw).view(np.uint8))
    save(model, tmp_path / "b.onnx", external_data=external)
    (saved,) = onnx.load(tmp_path / "b.onnx").graph.initializer
    assert saved.raw_data == data.tobytes()


@pytest.mark.parametrize("count", [3, 5000])
@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (TensorProto.FLOAT, "float_data"),
        (TensorProto.COMPLEX64, "float_data"),
        (TensorProto.DOUBLE, "double_data"),
        (TensorProto.COMPLEX128, "double_data"),
        (TensorProto.INT32, "int32_data"),
        (TensorProto.FLOAT16, "int32_data"),
        (TensorProto.INT64, "int64_data"),
        (TensorProto.UINT64, "uint64_data"),
    ],
)
def test_typed_data_fields(tmp_path: Path, dtype: int, field: str, count: int) -> None:
    tensor = helper.make_tensor("w", dtype, [count], np.arange(count) % 100)
    assert len(getattr(tensor, field)) >= count
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g () => (float[N] y) { y = Identity (w) }'
    )
    proto.graph.output[0].type.tensor_type.elem_type = dtype
    proto.graph.initializer.append(tensor)
    onnx.save(proto, tmp_path / "a.onnx")
    (loaded,) = tensors(load(tmp_path / "a.onnx"))
    np.testing.assert_array_equal(loaded.numpy(), numpy_helper.to_array(tensor))
    assert isinstance(loaded, MappedTensor) == (count == 5000 and field in ("float_data", "double_data"))
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    (saved,) = onnx.load(tmp_path / "b.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(saved), numpy_helper.to_array(tensor))


def test_data_in_several_parts_are_left_to_the_parser(tmp_path: Path) -> None:
    def field(number: int, value: bytes) -> bytes:
        length = len(value)
        return bytes([number << 3 | 2, length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + value

    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g () => (float[N] y) { y = Identity (w) }'
    )
    halves = np.split(np.arange(4000, dtype=np.float32), 2)
    tensor = TensorProto(name="w", data_type=1, dims=[4000], float_data=halves[0]).SerializeToString()
    tensor += TensorProto(float_data=halves[1]).SerializeToString()
    (tmp_path / "a.onnx").write_bytes(proto.SerializeToString() + field(7, field(5, tensor)))
    (loaded,) = tensors(load(tmp_path / "a.onnx"))
    np.testing.assert_array_equal(loaded.numpy(), np.arange(4000))


def test_a_tensor_that_says_after_its_data_where_they_are(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> main (float[2000] x) => (float[2000] y) { y = Add(x, w) }'
    )
    tensor = big("w", 3)
    tensor.data_location = TensorProto.DEFAULT  # explicit, as onnxruntime writes it: field 14 after field 9
    model.graph.initializer.append(tensor)
    onnx.save(model, tmp_path / "m.onnx")
    weight = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert isinstance(weight, MappedTensor)
    np.testing.assert_array_equal(weight.numpy(), np.full(BIG, 3, np.float32))


def test_strings_and_sparse_tensors(tmp_path: Path) -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g () => (float[2, 3] y, string[2] z, float[2, 3] c)
        <string[2] s = {"a", "é"}>
        { y = Identity (sp) z = Identity (s) c = Constant () }"""
    )
    sparse = proto.graph.sparse_initializer.add(dims=[2, 3])
    sparse.values.CopyFrom(helper.make_tensor("sp", TensorProto.FLOAT, [2], [1.5, -2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2], [1, 5]))
    attribute = proto.graph.node[2].attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.CopyFrom(sparse)
    attribute.sparse_tensor.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2, 2], [0, 1, 1, 2]))
    onnx.save(proto, tmp_path / "a.onnx")
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
    saved = onnx.load(tmp_path / "b.onnx").graph
    assert not saved.sparse_initializer
    dense = [[0, 1.5, 0], [0, 0, -2.0]]
    by_name = {tensor.name: tensor for tensor in saved.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(by_name["sp"]), np.array(dense, np.float32))
    np.testing.assert_array_equal(
        numpy_helper.to_array(saved.node[2].attribute[0].t), np.array(dense, np.float32)
    )
    assert list(by_name["s"].string_data) == [b"a", "é".encode()]


def test_types_that_onnx_ir_does_not_know_are_kept(tmp_path: Path) -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 15, "ai.onnx.ml": 1]>
        g (float[1, 2] x) => (seq(map(int64, float)) y) { y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (x) }"""
    )
    onnx.save(proto, tmp_path / "a.onnx")
    model = load(tmp_path / "a.onnx")
    assert model.graph.outputs[0].type is None
    save(clone(model), tmp_path / "b.onnx")
    assert onnx.load(tmp_path / "b.onnx").graph.output == proto.graph.output
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx")
    assert session.run(None, {"x": np.array([[0.25, 0.75]], np.float32)}) == [[{0: 0.25, 1: 0.75}]]


def test_old_versions_say_less_and_mean_the_same() -> None:
    proto = parser.parse_model(
        '<ir_version: 1, opset_import: ["": 1]> g (float[2] x, float[1] w) => (float[2] y) <float[1] w = {2}> '
        "{ t = Mul <broadcast = 1> (x, w) y = Elu <alpha = 0.5> (t) }"
    )
    del proto.opset_import[:]
    for node in proto.graph.node:
        node.attribute[0].ClearField("type")
    model = from_proto(proto)
    assert model.opset_imports == {"": 1}
    first, second = model.graph
    assert first.attributes["broadcast"].as_int() == 1
    assert second.attributes["alpha"].as_float() == 0.5
    assert [value.name for value in model.graph.inputs if value.is_initializer()] == ["w"]


def test_nodes_out_of_order_are_sorted_and_hidden_names_are_renamed() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]> g (bool c, float[2] x) => (float[2] y)
        { y = Relu (t) t = If (c) <
            then_branch = a () => (float[2] x) { one = Constant <value = float[2] {1, 1}> () x = Neg (one) },
            else_branch = b () => (float[2] e) { e = Abs (x) }> }"""
    )
    model = from_proto(proto)
    branch, relu = model.graph
    assert [node.op_type for node in model.graph] == ["If", "Relu"]
    assert branch.attributes["then_branch"].as_graph().outputs[0].name == "x_1"
    assert branch.attributes["else_branch"].as_graph()[0].inputs[0] is model.graph.inputs[1]
    assert relu.inputs[0] is branch.outputs[0]


def test_text_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    data = (
        everything().SerializeToString().replace(b"layer.0", b"layer\xff0").replace(b"a node", b"\xe9 node")
    )
    (tmp_path / "a.onnx").write_bytes(data.replace(b"\x01k", b"\x01\xfe"))
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
    saved = onnx.load(tmp_path / "b.onnx")
    assert saved.graph.node[0].metadata_props[0].value == r"layer\xff0"
    assert saved.graph.node[0].doc_string == r"\xe9 node"
    assert saved.graph.node[1].output[0] == saved.graph.node[2].input[1] == r"\xfe"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [None, "file"])
def test_saving_over_the_file_that_was_loaded(path: Path, external: str | None) -> None:
    wanted = outputs(path)
    save(load(path), path, external_data=external)
    original = load(path)
    for times in (3, 5):
        changed = clone(original)
        value = changed.graph.initializers["small"]
        value.const_value = ir.tensor(np.array([times], np.float32), name="small")
        save(changed, path, external_data=external)
        save(original, path.with_name("again.onnx"))
        for got, expected in zip(outputs(path.with_name("again.onnx")), wanted, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert numpy_helper.to_array(onnx.load(path).graph.initializer[0]) == [times]
    assert sorted(float(t.numpy()[0]) for t in tensors(original) if t.size == BIG) == [2, 3, 5, 7]


def test_weights_of_a_removed_file_stay_readable(path: Path) -> None:
    model = load(path)
    path.unlink()
    save(model, path.with_name("b.onnx"))
    assert len(outputs(path.with_name("b.onnx"))) == 2


def test_a_model_too_large_for_protobuf_gets_external_data(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = path.stat().st_size
    for limit in (size - 20_000, size // 2):
        monkeypatch.setattr(saving, "LARGEST_FILE_BYTES", limit)
        save(load(path), path.with_name("b.onnx"))
        (initializer,) = onnx.load(path.with_name("b.onnx"), load_external_data=False).graph.initializer
        assert initializer.name == "small"
        assert path.with_name("b.onnx.data").stat().st_size == 4 * 4 * BIG


def test_external_data_are_aligned_and_shared(tmp_path: Path) -> None:
    weights = {
        name: np.full(count, i, np.float32) for i, (name, count) in enumerate([("a", 1030), ("b", 20_000)])
    }
    x = ir.val("x", ir.DataType.FLOAT, [1])
    initializers = [ir.Value(name=n, const_value=ir.tensor(w, name=n)) for n, w in weights.items()]
    initializers.append(ir.Value(name="c", const_value=initializers[1].const_value))
    nodes = [ir.node("Add", [x, value]) for value in initializers]
    graph = ir.Graph(
        [x], [n.outputs[0] for n in nodes], nodes=nodes, initializers=initializers, opset_imports={"": 20}
    )
    for node in nodes:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    save(ir.Model(graph, ir_version=10), tmp_path / "m.onnx", external_data="file")
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    }
    location = "m.onnx.data"
    assert places["a"] == {"location": location, "offset": "0", "length": "4120"}
    assert places["b"] == places["c"] == {"location": location, "offset": "8192", "length": "80000"}
    loaded = load(tmp_path / "m.onnx").graph.initializers
    assert isinstance(loaded["b"].const_value, MappedTensor)
    assert loaded["b"].const_value.raw.path == tmp_path / location
    np.testing.assert_array_equal(loaded["c"].const_value.numpy(), weights["b"])


def test_progress_counts_to_the_end(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    save(load(path), path.with_name("b.onnx"), progress=lambda done, total: seen.append((done, total)))
    size = path.with_name("b.onnx").stat().st_size
    assert {total for _, total in seen} == {size}
    assert seen[-1] == (size, size)
    assert len(seen) == 5
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(seen))


class Broken(ir.LazyTensor):
    """A tensor that cannot be read."""

    def __init__(self, tensor: ir.TensorProtocol, error: Exception) -> None:
        def fail() -> ir.TensorProtocol:
            raise error

        super().__init__(fail, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


@pytest.mark.parametrize("external", [None, "file"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "out.onnx: it cannot be written: no space left on device"),
        (ValueError("gone"), "out.onnx: the model cannot be serialized: gone"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_failure_leaves_the_files_as_they_were(
    path: Path, external: str | None, error: BaseException, message: str
) -> None:
    out = path.with_name("out.onnx")
    out.write_bytes(b"old")
    out.with_name("out.onnx.data").write_bytes(b"old data")
    model = load(path)
    branch = model.graph[4].attributes["then_branch"].as_graph()
    value = branch.initializers["w"]
    value.const_value = Broken(value.const_value, error)  # type: ignore[arg-type]
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            save(model, out, external_data=external)
    else:
        with pytest.raises(ModelError) as caught:
            save(model, out, external_data=external)
        assert str(caught.value) == f"{out.parent}/{message}"
    assert out.read_bytes() == b"old"
    assert out.with_name("out.onnx.data").read_bytes() == b"old data"
    assert sorted(p.name for p in path.parent.iterdir()) == ["in.onnx", "out.onnx", "out.onnx.data"]


@pytest.mark.parametrize("there", [True, False])
def test_data_take_their_place_only_together_with_the_model(
    path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = path.with_name("out.onnx"), path.with_name("out.onnx.data")
    if there:
        data.write_bytes(b"old data")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == out:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ModelError, match=r"out.onnx: it cannot be written: permission denied$"):
        save(load(path), out, external_data="file")
    assert sorted(p.name for p in path.parent.iterdir()) == ["in.onnx", *(["out.onnx.data"] if there else [])]
    assert not there or data.read_bytes() == b"old data"


def test_a_place_that_cannot_be_written(path: Path) -> None:
    model = load(path)
    for target, message in [
        (path.parent, f"{path.parent}: it cannot be written: it is a folder; name a file"),
        (
            path.parent / "no" / "a.onnx",
            f"{path.parent}/no/a.onnx: it cannot be written: no such file or directory",
        ),
    ]:
        with pytest.raises(ModelError) as caught:
            save(model, target)
        assert str(caught.value) == message
    with pytest.raises(UsageError, match=r"^external_data is None or 'file', got 'yes'$"):
        save(model, path, external_data="yes")


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system copies nothing inside the kernel")
@pytest.mark.parametrize("step", ["kernel", "short", "refused"])
def test_copies_are_whole_however_the_kernel_helps(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    copy = os.copy_file_range

    def limited(source: int, target: int, count: int, at: int, to: int) -> int:
        if step == "refused":
            raise OSError(18, "Invalid cross-device link")
        return (
            copy(source, target, min(count, 1000) if step == "short" else count, at, to)
            if count > 1500
            else 0
        )

    monkeypatch.setattr(os, "copy_file_range", limited)
    save(load(path), path.with_name("b.onnx"))
    assert canonical(onnx.load(path.with_name("b.onnx"))) == canonical(onnx.load(path))


def test_memory_is_given_back(tmp_path: Path) -> None:
    script = """if True:
    import sys
    import numpy as np, onnx_ir as ir
    from pathlib import Path
    from graphopt.model import load, save
    def resident():
        return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) >> 10
    folder = Path(sys.argv[1])
    def make():
        data = np.ones(1 << 22, np.float32)
        values = [ir.Value(name=f"w{i}", const_value=ir.tensor(data)) for i in range(16)]
        nodes = [ir.node("Relu", [v]) for v in values]
        g = ir.Graph([], [n.outputs[0] for n in nodes], nodes=nodes, initializers=values, opset_imports={"": 20})
        return ir.Model(g, ir_version=10)
    save(make(), folder / "a.onnx")
    save(make(), folder / "e.onnx", external_data="file")
    before = resident()
    for name in ("a.onnx", "e.onnx"):
        model = load(folder / name)
        for value in model.graph.initializers.values():
            assert value.const_value.tobytes()[:4] == bytes([0, 0, 128, 63])
        save(model, folder / "b.onnx", external_data=None if name == "a.onnx" else "file")
        for value in model.graph.initializers.values():
            value.const_value.numpy().sum()
    print(resident() - before)
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert (tmp_path / "a.onnx").stat().st_size > 250 << 20
    assert int(done.stdout) < 100


# --- copies and sizes -------------------------------------------------------------------------------------------------


def test_a_clone_shares_tensors_and_nothing_else(path: Path) -> None:
    original = load(path)
    before = to_proto(original)
    copy = clone(original)
    assert to_proto(copy) == before
    assert [id(tensor) for tensor in tensors(copy)] == [id(tensor) for tensor in tensors(original)]
    assert not {id(node) for node in copy.graph.all_nodes()} & {
        id(node) for node in original.graph.all_nodes()
    }
    for graph in all_graphs(copy):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs)):
            value.metadata_props["changed"] = "yes"
            if value.type is not None:
                value.dtype = ir.DataType.DOUBLE
            if value.shape is not None and not value.shape.frozen and len(value.shape):
                value.shape[0] = 17
            value.name = f"{value.name}_changed"
        for node in graph:
            node.metadata_props["changed"] = "yes"
        graph.opset_imports["changed"] = 1
    copy.metadata_props["changed"] = "yes"
    for graph, copied in zip(all_graphs(original), all_graphs(copy), strict=True):
        assert graph is not copied
    assert to_proto(original) == before


def test_a_clone_refers_to_nothing_of_the_original(path: Path) -> None:
    copy = clone(load(path))
    inside = {id(graph) for graph in all_graphs(copy)}
    for graph in all_graphs(copy):
        for node in graph:
            assert node.graph is graph
            for value in (*node.inputs, *node.outputs):
                owner = value.producer().graph if value.producer() is not None else value.graph
                assert id(owner) in inside


def test_bytes_of_weights_are_counted_without_reading(path: Path) -> None:
    model = load(path)
    assert nbytes(model) == 4 * (4 * BIG + 1)
    value = model.graph[4].attributes["then_branch"].as_graph().initializers["w"]
    value.const_value = Broken(value.const_value, RuntimeError())
    assert nbytes(model) == 4 * (4 * BIG + 1)


# --- frontends --------------------------------------------------------------------------------------------------------


def test_what_can_be_read(path: Path) -> None:
    model = frontends.read(path)
    assert frontends.read(str(path)).graph.name == model.graph.name == "main"
    assert frontends.read(model) is model
    proto = everything()
    before = proto.SerializeToString(deterministic=True)
    read = frontends.read(proto)
    read.graph.initializers["small"].name = "other"
    assert proto.SerializeToString(deterministic=True) == before


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "resnet.onnx").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("hello")
    known = (
        "onnx: Reads .onnx files, onnx_ir.Model (which stays the caller's own) and onnx.ModelProto; torch: Reads "
        "torch modules with example inputs, exported programs, .pt2 files and package.module:callable"
    )
    for source, kind, message in [
        (tmp_path / "resnt.onnx", ModelError, "{0}: no such file; did you mean 'resnet.onnx'?"),
        (tmp_path / "a" / "b.onnx", ModelError, "{0}: no such file; check the path"),
        (tmp_path / "zzz", ModelError, "{0}: no such file; check the path"),
        (3, UsageError, "3: no frontend reads this; there are " + known),
        (tmp_path / "notes.txt", UsageError, "{0!r}: no frontend reads this; there are " + known),
    ]:
        with pytest.raises(kind) as caught:
            frontends.read(source)
        assert str(caught.value) == message.format(source)
