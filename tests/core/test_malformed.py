"""Malformed and unsafe models: each is refused by a sentence that says what and where, and nothing else happens."""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper, parser

from graphopt import ModelError, load, save
from graphopt.model import clone, from_proto, nbytes, saving
from graphopt.query import all_graphs


def model(body: str, opsets: str = '"": 20', version: int = 10) -> onnx.ModelProto:
    return parser.parse_model(f"<ir_version: {version}, opset_import: [{opsets}]> g {body}")


PLAIN = "(float[2] x) => (float[2] y) <float[2] w = {1, 2}> { t = Add (x, w) y = Relu (t) }"


def refused(proto: onnx.ModelProto) -> str:
    with pytest.raises(ModelError) as caught:
        from_proto(proto)
    assert str(caught.value).startswith("ModelProto: ")
    return str(caught.value).removeprefix("ModelProto: ")


def refused_file(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


# --- files that are no models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty; export the model again"),
        (b"hello world", "it is no ONNX model, or cut short: a field of wire type 4 at byte 2; export or download it again"),
        (b"\x0a\x7f" + bytes(9), "it is no ONNX model, or cut short: a field of 127 bytes at byte 0 runs over the end at byte 11; export or download it again"),
        (b"\x08\x0a", "it has no graph; it is damaged, or no ONNX model"),
        (b"\x3a\x02\x12\x00", "it has no IR version; it is damaged, or no ONNX model"),
        (b"\xff" * 20, "it is no ONNX model, or cut short: a number of more than ten bytes at byte 10; export or download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "it is a pointer of Git LFS, not the model; run `git lfs pull`"),
        (b"PK\x03\x04" + bytes(30), "it is a zip archive, perhaps of torch; export the model to ONNX"),
        (b"<!DOCTYPE html>" + bytes(30), "it is a web page, not a model; download the file itself"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "it is a PNG image, not a model"),
    ],
)  # fmt: skip
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    assert refused_file(path) == message


def test_what_is_no_file(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder.onnx", tmp_path / "pipe.onnx"
    folder.mkdir()
    assert refused_file(folder) == "it cannot be read: it is no regular file; give the file of a model"
    os.mkfifo(pipe)
    assert refused_file(pipe) == "it cannot be read: it is no regular file; give the file of a model"
    assert refused_file(tmp_path / "flder.onnx") == "no such file; did you mean 'folder.onnx' or 'pipe.onnx'?"


# --- structure --------------------------------------------------------------------------------------------------------


def change(edit: Callable[[onnx.ModelProto], object], body: str = PLAIN) -> onnx.ModelProto:
    proto = model(body)
    edit(proto)
    return proto


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: setattr(m, "ir_version", 99), f"IR version 99 is not known to onnx {onnx.__version__}, which reads 1 to {onnx.IR_VERSION}; upgrade onnx, or export for an older version"),
        (lambda m: m.opset_import.add(domain="ai.onnx", version=9), "it imports two versions of the operator set ''; keep one"),
        (lambda m: m.opset_import.pop(), "the graph has Add t, and imports no operator set ai.onnx; the model is damaged, or was never valid"),
        (lambda m: setattr(m.graph.node[1], "domain", "mine"), "the graph has Relu y, and imports no operator set mine; the model is damaged, or was never valid"),
        (lambda m: m.graph.node[0].input.__setitem__(1, "v"), "'v', which Add 't' reads, is made by no node and is no input or initializer; the model is damaged"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "Add t reads y, which Relu y makes only after it; the model is damaged, or was never valid"),
        (lambda m: m.graph.node[1].input.__setitem__(0, "y"), "Relu y reads y, which Relu y makes only after it; the model is damaged, or was never valid"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "t"), "'t', an output of Relu 't', is defined twice; rename one of them"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "x"), "'x', an output of Relu 'x', is defined twice; rename one of them"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "w"), "'w', an output of Relu 'w', is defined twice; rename one of them"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "z"), "output 'y' of graph 'g' is made by no node; the model is damaged"),
        (lambda m: m.graph.node[1].ClearField("op_type"), "a node of graph 'g' has no operator, near ''; the model is damaged"),
        (lambda m: m.graph.input.add(name="x"), "an input of graph 'g' is named 'x', and so is another one; names must be unique"),
        (lambda m: m.graph.input.add(), "an input of graph 'g' has no name; name it"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "an initializer of graph 'g' is named 'w', and so is another one; names must be unique"),
        (lambda m: m.graph.initializer[0].ClearField("name"), "an initializer of graph 'g' has no name; name it"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT64, [2])), "w is declared INT64, and its data are FLOAT; the model is damaged, or was never valid"),
        (lambda m: m.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n", 3])), "w is declared with shape [n,3], and its data have [2]; the model is damaged, or was never valid"),
        (lambda m: m.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.INT64, [2])), "Add t wants one type for x and t, which are FLOAT and INT64; the model is damaged, or was never valid"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 77), "it is malformed: 77 is not a valid DataType; export the model again"),
        (lambda m: m.graph.node[0].attribute.add(name="a"), "attribute 'a' of Add 't' has no type and no value; the model is damaged"),
        (lambda m: m.graph.node[0].attribute.add(name="a", type=AttributeProto.SPARSE_TENSORS), "attribute 'a' of Add 't' is sparse, which only Constant may be; make it dense"),
        (lambda m: m.graph.node[0].attribute.add(name="a", type=AttributeProto.STRINGS, strings=[b"\xff"]), "it is malformed: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte; export the model again"),
        (lambda m: m.graph.node[0].input.pop(), "Add t has 1 inputs, and takes 2; the model is damaged, or was never valid"),
        (lambda m: m.graph.node[1].output.append("z"), "Relu y has 2 outputs, and makes 1; the model is damaged, or was never valid"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Cast"), "Cast y lacks the attribute to; the model is damaged, or was never valid"),
        (lambda m: (setattr(m.graph.node[1], "op_type", "Elu"), m.graph.node[1].attribute.add(name="alpha", type=AttributeProto.INT, i=1)), "Elu y has alpha as INT, and takes FLOAT; the model is damaged, or was never valid"),
        (lambda m: m.functions.extend([onnx.FunctionProto(name="f", domain="d")] * 2), "function d::f is defined twice; remove one of them"),
        (lambda m: m.functions.add(name="f", domain="d", output=["o"]), "output 'o' of function d::f is made by no node; the model is damaged"),
        (lambda m: m.functions.add(name="f", domain="d", input=["o", "o"]), "an input of function d::f is named 'o', and so is another one; names must be unique"),
    ],
)  # fmt: skip
def test_structure(edit: Callable[[onnx.ModelProto], object], message: str) -> None:
    assert refused(change(edit)) == message


def test_an_undefined_attribute_is_refused_in_a_function_too() -> None:
    proto = model(PLAIN)
    function = proto.functions.add(name="f", domain="d", input=["a"], output=["b"])
    function.opset_import.add(domain="", version=20)
    function.node.append(helper.make_node("Relu", ["c"], ["b"], "r"))
    message = (
        "'c', which Relu 'r' reads, is made by no node and is no input or initializer; the model is damaged"
    )
    assert refused(proto) == message


def test_functions_that_call_each_other() -> None:
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20, "d": 1]> g (float[2] x) => (float[2] y) { y = d.f (x) }
        <domain: "d", opset_import: ["d": 1]> f (a) => (b) { b = d.h (a) }
        <domain: "d", opset_import: ["d": 1]> h (a) => (b) { b = d.f (a) }"""
    )
    assert refused(proto) in {
        f"function d::{name} calls itself, or functions that do; the model is damaged, or was never valid"
        for name in "fh"
    }


def test_a_subgraph_must_make_its_outputs_and_see_its_inputs() -> None:
    proto = model(
        "(bool c, float[2] x) => (float[2] y) { t = Neg (x) y = If (c) <then_branch = a () => (float[2] p) { p = Abs (t) }, "
        "else_branch = b () => (float[2] q) { q = Relu (t) }> }"
    )
    branch = proto.graph.node[1].attribute[0].g
    branch.node[0].input[0] = "q"
    assert refused(proto) == (
        "'q', which Abs 'p' reads, is made by no node and is no input or initializer; the model is damaged"
    )
    branch.node[0].input[0], branch.output[0].name = "t", "t"
    assert refused(proto) == "output 't' of graph 'a' is made by no node; the model is damaged"
    branch.node[0].input[0], branch.output[0].name = "y", "p"
    assert refused(proto) == (
        "Abs p reads y, which If y makes where it cannot be seen; the model is damaged, or was never valid"
    )


def test_graphs_nested_without_end(tmp_path: Path) -> None:
    def field(number: int, value: bytes) -> bytes:
        length, size = len(value), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + value

    graph = field(2, bytes(5000))
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a" + field(7, graph))
    assert refused_file(tmp_path / "a.onnx") == (
        "it is no ONNX model, or cut short: its graphs are nested too deeply; export or download it again"
    )


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"data_type": 1, "dims": [2, 2], "raw_data": bytes(12)}, "has 12 bytes of data, and FLOAT[2, 2] needs 16; the model is damaged"),
        ({"data_type": 1, "dims": [3], "float_data": [1, 2]}, "has 2 elements of data, and FLOAT[3] needs 3; the model is damaged"),
        ({"data_type": 1, "dims": [1 << 40]}, "has 0 elements of data, and FLOAT[1099511627776] needs 1099511627776; the model is damaged"),
        ({"data_type": 1, "dims": [1 << 62, 1 << 62]}, "has the shape [4611686018427387904, 4611686018427387904], which no memory holds; the model is damaged"),
        ({"data_type": 1, "dims": [0, 1 << 62]}, "has the shape [0, 4611686018427387904], which no memory holds; the model is damaged"),
        ({"data_type": 1, "dims": [1] * 40, "float_data": [1]}, f"has the shape {str([1] * 40)[:100]}, which no memory holds; the model is damaged"),
        ({"data_type": 1, "dims": [-1, -2], "float_data": [1, 2]}, "has a negative dimension in its shape [-1, -2]; the model is damaged"),
        ({"data_type": 0, "dims": [1], "raw_data": b"1"}, "has data type 0, which is not known; upgrade onnx-ir, or the model is damaged"),
        ({"data_type": 99, "dims": [1], "raw_data": b"1"}, "has data type 99, which is not known; upgrade onnx-ir, or the model is damaged"),
        ({"data_type": 8, "dims": [1], "raw_data": b"1"}, "is of strings, and its data are raw; the model is damaged"),
        ({"data_type": 8, "dims": [2], "string_data": [b"1"]}, "has 1 elements of data, and STRING[2] needs 2; the model is damaged"),
        ({"data_type": 7, "dims": [1], "int64_data": [1], "float_data": [1]}, "is of INT64, and its data are in float_data; the model is damaged"),
        ({"data_type": 7, "dims": [2], "int32_data": [1, 2]}, "is of INT64, and its data are in int32_data; the model is damaged"),
        ({"data_type": 22, "dims": [3], "raw_data": b"1"}, "has 1 bytes of data, and INT4[3] needs 2; the model is damaged"),
        ({"data_type": 27, "dims": [1], "int32_data": [64]}, "is of FLOAT6E2M3, and has values of more than 6 bits; the model is damaged"),
    ],
)  # fmt: skip
def test_tensors(tensor: dict[str, object], message: str) -> None:
    proto = model(PLAIN)
    proto.graph.initializer[0].CopyFrom(TensorProto(name="w", **tensor))
    assert refused(proto) == f"initializer 'w' {message}"
    proto = model("(float[2] x) => (float[2] y) { w = Constant () y = Add (x, w) }")
    value = proto.graph.node[0].attribute.add(name="value", type=AttributeProto.TENSOR)
    value.t.CopyFrom(TensorProto(**tensor))
    assert refused(proto) == f"attribute 'value' of Constant 'w' {message}"


def test_mapped_data_of_the_wrong_size_or_kind(tmp_path: Path) -> None:
    proto = model(PLAIN)
    path = tmp_path / "a.onnx"
    for tensor, message in [
        (TensorProto(data_type=1, dims=[9999], raw_data=bytes(40_000)), "has 40000 bytes of data, and FLOAT[9999] needs 39996; the model is damaged"),
        (TensorProto(data_type=6, dims=[10_000], float_data=np.zeros(10_000)), "is of INT32, and its data are in float_data; the model is damaged"),
        (TensorProto(data_type=8, dims=[10_000], raw_data=bytes(10_000)), "is of strings, which cannot be external; the model is damaged"),
    ]:  # fmt: skip
        proto.graph.initializer[0].CopyFrom(tensor)
        proto.graph.initializer[0].name = "w"
        path.write_bytes(proto.SerializeToString())
        assert refused_file(path) == f"initializer 'w' {message}"


@pytest.mark.parametrize(
    ("dims", "values", "indices", "message"),
    [
        ([2, 3], [1.0, 2.0], [1], "has 2 values whose indices do not fit its shape [2, 3]; it is damaged"),
        ([2, 3], [1.0, 2.0], [1, 6], "has 2 values whose indices do not fit its shape [2, 3]; it is damaged"),
        ([2, 3], [1.0, 2.0], [1, -1], "has 2 values whose indices do not fit its shape [2, 3]; it is damaged"),
        ([2, 3], [1.0, 2.0], [[0, 0], [2, 0]], "has 2 values whose indices do not fit its shape [2, 3]; it is damaged"),
        ([2, 3], [1.0, 2.0], [[0, 0, 0], [1, 0, 0]], "has 2 values whose indices do not fit its shape [2, 3]; it is damaged"),
        ([1 << 20, 1 << 20], [1.0], [1], "has the shape [1048576, 1048576], which is too much to make it dense; save it dense"),
        ([-1], [1.0], [1], "has the shape [-1], which is too much to make it dense; save it dense"),
    ],
)  # fmt: skip
def test_sparse_tensors(dims: list[int], values: list[float], indices: list[int], message: str) -> None:
    proto = model(PLAIN)
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64)))
    assert refused(proto) == f"sparse initializer 's' {message}"


# --- external data ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(bytes(100))
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "data").write_bytes(bytes(range(100)))
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to(tmp_path)
    (inside / "near").symlink_to("data")
    (inside / "sub").mkdir()
    (inside / "sub" / "data").write_bytes(bytes(8))
    return inside


def external(folder: Path, **entries: object) -> Path:
    proto = model(PLAIN)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "a.onnx").write_bytes(proto.SerializeToString())
    return folder / "a.onnx"


OUTSIDE = "outside the model's folder; move the file into the folder"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, f"has external data in '../secret', {OUTSIDE}"),
        ({"location": "/etc/passwd"}, f"has external data in '/etc/passwd', {OUTSIDE}"),
        ({"location": "sub/../../secret"}, f"has external data in 'sub/../../secret', {OUTSIDE}"),
        ({"location": r"..\secret"}, rf"has external data in '..\\secret', {OUTSIDE}"),
        ({"location": "link"}, f"has external data in 'link', {OUTSIDE}"),
        ({"location": "up/secret"}, f"has external data in 'up/secret', {OUTSIDE}"),
        ({"location": ""}, "has external data in a file named ''; the model is damaged"),
        ({"location": "a\0b"}, "has external data in a file named 'a\\x00b'; the model is damaged"),
        ({}, "has external data in a file named ''; the model is damaged"),
        ({"location": "dta"}, "has external data in {folder}/dta, which cannot be read: no such file or directory; put the file beside the model"),
        ({"location": "sub"}, "has external data in {folder}/sub, which cannot be read: it is no regular file; put the file beside the model"),
        ({"location": "data", "offset": 93}, "needs 8 bytes at 93 of {folder}/data, which has 100; the file is cut short"),
        ({"location": "data", "offset": 1 << 60}, "needs 8 bytes at 1152921504606846976 of {folder}/data, which has 100; the file is cut short"),
        ({"location": "data", "length": 12}, "has 12 bytes of data, and FLOAT[2] needs 8; the model is damaged"),
        ({"location": "data", "length": -8}, "has external data with length '-8', which is no number of bytes"),
        ({"location": "data", "offset": "zero"}, "has external data with offset 'zero', which is no number of bytes"),
        ({"location": "data", "offset": "9" * 99}, f"has external data with offset '{'9' * 40}', which is no number of bytes"),
    ],
)  # fmt: skip
def test_external_data(folder: Path, entries: dict[str, object], message: str) -> None:
    assert refused_file(external(folder, **entries)) == f"initializer 'w' {message.format(folder=folder)}"


def test_external_data_that_are_fine(folder: Path) -> None:
    for entries, first in [
        ({"location": "data"}, 0),
        ({"location": "data", "offset": 92, "length": 8}, 92),
        ({"location": "near", "offset": 4, "checksum": "x"}, 4),
        ({"location": "sub/data"}, 0),
        ({"location": "./data"}, 0),
    ]:
        tensor = load(external(folder, **entries)).graph.initializers["w"].const_value
        assert tensor is not None
        assert tensor.tobytes()[0] == first


def test_a_model_in_memory_has_no_folder(folder: Path) -> None:
    proto = onnx.load(external(folder, location="data"), load_external_data=False)
    assert refused(proto) == (
        "initializer 'w' lies in 'data', and a ModelProto has no folder; give the path, or call "
        "onnx.load_external_data_for_model before"
    )


# --- damage at random -------------------------------------------------------------------------------------------------


def seed(folder: Path) -> bytes:
    """Return a small model of everything: subgraphs, a function, typed, raw, sparse, string, external tensors."""
    proto = parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 20, "local" : 1], producer_name: "p", metadata_props: ["k": "v"]>
        main (float[N, 2] x, bool c) => (float[N, 2] y)
        <float[2] b = {1, 2}, int64[1] k = {3}, float16[2] h = {1, 2}, string[2] s = {"a", "b"}>
        {
          t = local.twice <scale = 2.0> (x)
          i = If (c) <
            then_branch = g1 () => (float[N, 2] r) <float[2] w = {5, 6}> { r = Add (t, w) },
            else_branch = g2 () => (float[N, 2] q) { z = Constant <value = float[2] {1, 2}> () q = Sub (t, z) }>
          y = Add (i, b)
        }
        <domain: "local", opset_import: ["" : 20]>
        twice <scale> (a) => (o) { f = Constant <value_float: float = @scale> () o = Mul (a, f) }
        """
    )
    initializers = proto.graph.initializer
    initializers.append(helper.make_tensor("four", TensorProto.INT4, [3], [1, -2, 3]))
    initializers.append(numpy_helper.from_array(np.zeros((3, 400), np.float32), "mapped"))
    far = initializers.add(name="far", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "data"), ("offset", "8"), ("length", "8")):
        far.external_data.add(key=key, value=value)
    (folder / "data").write_bytes(bytes(16))
    sparse = proto.graph.sparse_initializer.add(dims=[2, 3])
    sparse.values.CopyFrom(helper.make_tensor("sp", TensorProto.FLOAT, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2], [1, 4]))
    return proto.SerializeToString()


def use(path: Path) -> bool:
    """Do all that can be done with a model file; return whether it could be loaded."""
    try:
        loaded = load(path)
    except ModelError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return False
    nbytes(loaded)
    for graph in all_graphs(clone(loaded)):
        for tensor in saving.tensors(graph):
            tensor.numpy()
    save(loaded, path.with_name("saved.onnx"))
    load(path.with_name("saved.onnx"))
    return True


@pytest.fixture
def silence() -> object:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("silence")
def test_every_truncation_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = seed(tmp_path)
    path = tmp_path / "cut.onnx"
    ends = [*range(0, 1200, 3), *range(len(whole) - 700, len(whole), 3)]
    loaded = []
    for end in ends:
        path.write_bytes(whole[:end])
        loaded.append(use(path))
    path.write_bytes(whole)
    assert use(path)
    assert sum(loaded) < 10


@pytest.mark.usefixtures("silence")
@pytest.mark.parametrize("number", range(4))
def test_flipped_bits_are_refused_or_harmless(tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    whole = seed(tmp_path)
    zeros = whole.index(bytes(4000))
    places = [i for i in range(len(whole)) if not zeros < i < zeros + 4700]
    path = tmp_path / "flipped.onnx"
    loaded = []
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 1, 1, 2, 4])):
            damaged[draw.choice(places)] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        loaded.append(use(path))
    assert 100 < sum(loaded) < 360
