"""Tracing torch: names, origins, dynamic dimensions, every kind of source, FX passes, and what each error says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import graphopt
from graphopt import frontends, query
from graphopt.adapters import adapt
from graphopt.addresses import is_address
from graphopt.frontends import torch as frontend
from graphopt.frontends.pt2 import load as load_pt2
from graphopt.origin import FX_NODE, SCOPE, SOURCE


class Call(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls.add_(1)
        return self.drop(self.norm(self.conv(x))).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block()])
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x, offset=None, *, times=1):
        y = self.layers[0](x) * self.scale
        return {"features": y, "pooled": (y.mean((2, 3)) * times, y.sum() if offset is None else y + offset)}


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ROW = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def run(model, *arrays):
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(
        None, {i.name: np.asarray(a) for i, a in zip(session.get_inputs(), arrays, strict=True)}
    )


def signature(model):
    def text(values):
        return [f"{v.name} {v.dtype.name}{v.shape}".replace(", ", ",") for v in values]

    return text(model.graph.inputs), text(model.graph.outputs)


def operators(model):
    return [node.op_type for node in model.graph]


def net():
    torch.manual_seed(0)
    module = Net()
    norm = module.layers[0].norm
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return module


# --- names and origins ------------------------------------------------------------------------------------------------


def test_parameters_keep_their_names_and_share_their_memory():
    module = net()
    initializers = graphopt.trace(module, (X,)).graph.initializers
    assert list(initializers) == [
        "layers.0.conv.weight",
        "layers.0.conv.bias",
        "layers.0.norm.weight",
        "layers.0.norm.bias",
        "scale",
        "layers.0.norm.running_mean",
        "layers.0.norm.running_var",
    ]
    tensors = module.state_dict(keep_vars=True)
    for name, value in initializers.items():
        assert np.shares_memory(value.const_value.numpy(), tensors[name].detach().numpy()), name


def test_each_node_knows_its_module_its_line_and_its_fx_node():
    model = graphopt.trace(net(), (X,))
    conv, norm, relu = (
        next(n for n in model.graph if n.op_type == op) for op in ("Conv", "BatchNormalization", "Relu")
    )
    code = Block.forward.__code__
    line = f"test_torch_frontend.py:{code.co_firstlineno + 2} in forward"
    assert conv.metadata_props[SCOPE] == "layers.0.conv"
    assert norm.metadata_props[SCOPE] == "layers.0.norm"
    assert dict(relu.metadata_props).items() >= {SCOPE: "layers.0", FX_NODE: "relu"}.items()
    for node in (conv, norm, relu):
        assert node.metadata_props[SOURCE].endswith(line)
        assert not node.metadata_props[SOURCE].startswith("/")
        assert node.metadata_props.keys() == {SCOPE, SOURCE, FX_NODE}


def test_torchs_own_notes_are_gone():
    model = graphopt.trace(net(), (X,))
    assert not model.metadata_props and not model.graph.metadata_props
    assert not any(v.metadata_props for v in (*model.graph.inputs, *model.graph.initializers.values()))


def test_outputs_are_named_by_their_path_in_what_the_module_returns():
    assert signature(graphopt.trace(net(), (X,))) == (
        ["x FLOAT[2,3,8,8]"],
        ["features FLOAT[2,4,6,6]", "pooled.0 FLOAT[2,4]", "pooled.1 FLOAT[]"],
    )
    assert signature(graphopt.trace(nn.Linear(3, 2), (ROW,)))[1] == ["output FLOAT[2,2]"]
    assert signature(graphopt.trace(Call(lambda x: (x + 1, x + 2)), (ROW,)))[1] == [
        "output.0 FLOAT[2,3]",
        "output.1 FLOAT[2,3]",
    ]


def test_an_output_that_is_an_input_a_weight_or_another_output_becomes_a_copy():
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x):
            y = x + 1
            return {"x": x, "w": self.w, "y": y, "again": y, "nothing": None}

    model = graphopt.trace(Echo(), (ROW,))
    assert [v.name for v in model.graph.outputs] == ["output.x", "output.w", "y", "again"]
    for got, want in zip(run(model, ROW), (ROW, torch.ones(2), ROW + 1, ROW + 1), strict=True):
        np.testing.assert_array_equal(got, want)


def test_inputs_and_outputs_take_given_names_and_inner_values_give_way():
    model = graphopt.trace(
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (ROW,), input_names=["linear"], output_names=["0.bias"]
    )
    assert signature(model) == (["linear FLOAT[2,3]"], ["output.0.bias FLOAT[2,2]"])
    with pytest.raises(graphopt.UsageError) as caught:
        graphopt.trace(nn.Linear(3, 2), (ROW,), input_names=["a", "b"])
    assert str(caught.value) == "input_names: the graph has 1 inputs, got ['a', 'b']; name each of them once"


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_module_in_training_is_traced_for_inference_and_left_as_it_was():
    module = net().train()
    module.layers[0].norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = graphopt.trace(module, (X,), {"times": 3})
    assert [m.training for m in module.modules()] == [True, True, True, True, False, True]
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        wanted = module.eval()(X, times=3)
    for got, want in zip(run(model, X), (wanted["features"], *wanted["pooled"]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_module_that_fails_to_export_is_left_as_it_was():
    module = nn.Sequential(nn.Dropout(), Call(lambda x: x.nothing()))
    with pytest.raises(graphopt.ModelError):
        graphopt.trace(module, (ROW,))
    assert all(m.training for m in module.modules())


def test_gradients_of_the_module_are_left_alone():
    module = nn.Linear(3, 2)
    module(ROW).sum().backward()
    before = module.weight.grad.clone()
    graphopt.trace(module, (ROW,))
    assert module.weight.requires_grad and torch.equal(module.weight.grad, before)


def test_an_input_that_is_changed_in_place_is_computed_as_in_torch():
    def function(x):
        x.mul_(2)
        x[:, 0] = 7
        return x + 1

    np.testing.assert_array_equal(
        run(graphopt.trace(Call(function), (ROW.clone(),)), ROW)[0], function(ROW.clone())
    )


def test_arguments_that_are_no_tensors_are_built_in():
    model = graphopt.trace(net(), (X, torch.ones(1)), {"times": 2})
    assert [v.name for v in model.graph.inputs] == ["x", "offset"]
    model = graphopt.trace(
        Call(lambda x, n, flag, none: x * n if flag and none is None else x), (ROW, 3, True, None)
    )
    np.testing.assert_array_equal(run(model, ROW)[0], ROW * 3)


def test_a_module_without_inputs_is_traced():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.arange(3.0))

        def forward(self):
            return self.w * 2

    np.testing.assert_array_equal(run(graphopt.trace(Table()))[0], [0, 2, 4])


def test_integer_inputs_and_nested_inputs_are_traced():
    module = Call(lambda pair, table: nn.functional.embedding(pair["ids"][0], table) + pair["bias"])
    ids, bias, table = torch.tensor([[2, 0]]), torch.ones(1), torch.arange(6.0).reshape(3, 2)
    model = graphopt.trace(module, ({"ids": [ids], "bias": bias}, table))
    assert [v.dtype.name for v in model.graph.inputs] == ["INT64", "FLOAT", "FLOAT"]
    np.testing.assert_array_equal(run(model, ids, bias, table)[0], [[[5, 6], [1, 2]]])


def test_a_branch_on_data_becomes_an_if_with_origins_inside():
    module = Call(lambda x: torch.cond(x.sum() > 0, lambda x: x.sin() + 1, lambda x: x * 2, (x,)))
    model = graphopt.trace(module, (ROW,))
    for x in (ROW, -ROW):
        np.testing.assert_allclose(run(model, x)[0], module(x), rtol=1e-6)
    assert {n.metadata_props[FX_NODE] for n in query.all_nodes(model) if n.op_type in ("Sin", "Mul")} == {
        "sin",
        "mul",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_modules_bits(dtype):
    module = nn.Linear(3, 2).to(dtype)
    model = graphopt.trace(module, (ROW.to(dtype),))
    stored = model.graph.initializers["weight"].const_value.numpy()
    np.testing.assert_array_equal(stored.view(np.uint16), module.weight.detach().view(torch.uint16).numpy())


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_the_opset_can_be_chosen(opset):
    module = nn.Sequential(nn.Linear(3, 2), nn.GELU()).eval()
    model = graphopt.trace(module, (ROW,), opset=opset)
    assert model.opset_imports == {"": opset}
    assert ("Gelu" in operators(model)) == (opset > 20) or opset == 20
    np.testing.assert_allclose(run(model, ROW)[0], module(ROW).detach(), rtol=1e-5, atol=1e-6)


# --- dynamic dimensions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_named_dimension_is_dynamic_whatever_size_the_example_has(rows):
    module = net().eval()
    model = graphopt.trace(module, (X[:1].repeat(rows, 1, 1, 1),), dynamic_shapes={"x": {0: "batch"}})
    assert signature(model) == (
        ["x FLOAT[batch,3,8,8]"],
        ["features FLOAT[batch,4,6,6]", "pooled.0 FLOAT[batch,4]", "pooled.1 FLOAT[]"],
    )
    for batch in (1, 2, 3):
        x = torch.randn(batch, 3, 8, 8)
        wanted = module(x)
        for got, want in zip(run(model, x), (wanted["features"], *wanted["pooled"]), strict=True):
            np.testing.assert_allclose(got, want.detach(), rtol=1e-5, atol=1e-4)


def test_names_reach_expressions_of_dimensions():
    module = Call(lambda x, y: (torch.cat([x, x]), x + y, x.reshape(-1)))
    model = graphopt.trace(module, (ROW, ROW), dynamic_shapes=(({0: "n", 1: "m"}, {0: "n", 1: "m"}),))
    assert signature(model) == (
        ["args_0 FLOAT[n,m]", "args_1 FLOAT[n,m]"],
        ["output.0 FLOAT[2*n,m]", "output.1 FLOAT[n,m]", "output.2 FLOAT[n*m]"],
    )


def test_torchs_own_dimensions_give_their_names_and_hints_stay_symbols():
    batch = torch.export.Dim("batch")
    model = graphopt.trace(nn.Linear(3, 2), (ROW,), dynamic_shapes={"input": {0: batch}})
    assert signature(model) == (["input FLOAT[batch,3]"], ["output FLOAT[batch,2]"])
    model = graphopt.trace(nn.Linear(3, 2), (ROW,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    (symbol,) = {str(v.shape[0]) for v in (*model.graph.inputs, *model.graph.outputs)}
    assert symbol.startswith("s")


def test_nested_inputs_have_dynamic_dimensions():
    module = Call(lambda d: d["a"] + d["b"][0])
    model = graphopt.trace(
        module, ({"a": ROW, "b": [ROW]},), dynamic_shapes=(({"a": {0: "n"}, "b": [{0: "n"}]},),)
    )
    assert [str(v.shape) for v in model.graph.inputs] == ["[n,3]", "[n,3]"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (({0: "batch size"},), "dynamic_shapes: a dimension's name must be an identifier, got 'batch size'"),
        (({2: "n"},), "dynamic_shapes: a tensor of 2 dimensions has no axis 2"),
        (
            ({1: "n"},),
            "Linear: torch cannot export it: UserError: Constraints violated (L['input'].size()[1])! - You marked "
            "L['input'].size()[1] as dynamic but your code specialized it to be a constant (3). If you're using "
            "mark_dynamic, either remove it or use maybe_mark_dynamic. If you're using Dim.DYNAMIC, replace it with "
            "either Dim.STATIC or Dim.AUTO.",
        ),
    ],
)
def test_a_dimension_that_cannot_be_dynamic_is_named(shapes, message):
    with pytest.raises(graphopt.UsageError) as caught:
        graphopt.trace(nn.Linear(3, 2), (ROW,), dynamic_shapes=shapes)
    assert str(caught.value) == message
    assert not vars(ROW), "torch left marks on the caller's tensor"


# --- sources ----------------------------------------------------------------------------------------------------------


def test_importing_the_frontend_imports_no_torch():
    code = (
        "import sys, graphopt, graphopt.frontends.torch as t; f = t.TorchFrontend(); "
        "f.accepts('a.onnx'), f.accepts('a.b:c'), f.accepts((1, 2)); "
        "assert not {'torch', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_frontend_accepts():
    accepts = frontend.TorchFrontend().accepts
    module = nn.Linear(3, 2)
    program = torch.export.export(module, (ROW,))
    assert all(
        map(accepts, [module, (module, (ROW,)), program, "a.pt2", "package.module:build", "m:Class.build"])
    )
    assert not any(map(accepts, ["a.onnx", "a.pt", "C:\\models\\a.onnx", "a b:c", 3, (), None]))


@pytest.mark.parametrize(
    "source",
    [
        lambda: (nn.Linear(3, 2), (ROW,)),
        lambda: (nn.Linear(3, 2), ROW),
        lambda: (nn.Linear(3, 2), (), {"input": ROW}),
        lambda: (nn.Linear(3, 2), (ROW,), None, ({0: "n"},)),
        lambda: torch.export.export(nn.Linear(3, 2), (ROW,)),
        lambda: torch.export.export(nn.Linear(3, 2), (ROW,)).module(),
    ],
    ids=["args", "one tensor", "kwargs", "dynamic", "program", "unlifted"],
)
def test_every_form_of_source_is_read(source):
    made = source()
    model = graphopt.trace(made, (ROW,)) if isinstance(made, nn.Module) else frontends.read(made)
    assert operators(model) == ["Gemm"]


def test_a_module_that_brings_its_example_inputs_is_read():
    class Ready(nn.Linear):
        def example_arguments(self):
            return (ROW,), None

        def dynamic_shapes(self):
            return ({0: "rows"},)

    assert signature(frontends.read(Ready(3, 2))) == (["input FLOAT[rows,3]"], ["output FLOAT[rows,2]"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: frontend.export(nn.Linear(3, 2)),
            graphopt.InputError,
            "Linear: a module needs example inputs to be exported; give (module, args)",
        ),
        (
            lambda: frontend.export(3),
            graphopt.UsageError,
            "no torch model, got int; give (module, args[, kwargs[, dynamic_shapes]]), an ExportedProgram or an "
            "onnx_ir.Model",
        ),
        (
            lambda: frontend.export("model.onnx"),
            graphopt.UsageError,
            "model.onnx: no torch model; give a .pt2 file or package.module:callable",
        ),
        (
            lambda: graphopt.trace(torch.export.export(nn.Linear(3, 2), (ROW,)), (ROW,)),
            graphopt.UsageError,
            "an exported program has its inputs and dynamic dimensions already; leave out args, kwargs and "
            "dynamic_shapes",
        ),
        (
            lambda: graphopt.trace(nn.Linear(4, 2), (ROW,)),
            graphopt.ModelError,
            "Linear: torch cannot export it: RuntimeError: a and b must have same reduction dim, but got [2, 3] X "
            "[4, 2].",
        ),
        (
            lambda: graphopt.trace(nn.Linear(3, 2)),
            graphopt.ModelError,
            "Linear: torch cannot export it: TypeError: missing a required argument: 'input'",
        ),
        (
            lambda: graphopt.trace(Call(lambda x: (x, 3)), (ROW,)),
            graphopt.ModelError,
            "program: output 'output.1' is the constant 3; return tensors only",
        ),
        (
            lambda: graphopt.trace(nn.Linear(3, 2), (ROW,), opset=99),
            graphopt.ModelError,
            "program: torch lowers it to opset 18, and cannot convert that to 99; choose another opset",
        ),
    ],
)
def test_what_cannot_be_traced_is_told(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == message


def test_a_branch_on_data_names_the_line():
    with pytest.raises(
        graphopt.ModelError, match="GuardOnDataDependentSymNode: Could not guard on data-dep"
    ) as caught:
        graphopt.trace(Call(lambda x: x if x.sum() > 0 else -x), (ROW,))
    assert any(__file__ in note for note in caught.value.__notes__)
    assert not any("\x1b" in note or "docs.google.com" in note for note in caught.value.__notes__)


def test_an_operator_that_onnx_lacks_is_named_with_its_fx_node():
    with pytest.raises(graphopt.ModelError) as caught:
        graphopt.trace(Call(lambda x: torch.linalg.svd(x)[0]), (ROW,))
    assert (
        "torch cannot lower it to ONNX: DispatchError: No ONNX function found for <OpOverload(op='aten._linalg_svd'"
        in str(caught.value)
    )
    assert caught.value.__notes__[0].startswith("Error when translating node %_linalg_svd")


def test_without_torch_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(graphopt.UnavailableError) as caught:
        graphopt.trace(object())
    assert str(caught.value) == (
        "reading a torch model needs the package 'torch', which is not installed; pip install 'graphopt[torch]'"
    )


# --- package.module:callable ------------------------------------------------------------------------------------------

FACTORIES = """
import onnx_ir as ir, torch
from torch import nn
x = torch.ones(2, 3)
number = 3
def module(): return nn.Linear(3, 2), (x,)
def dynamic(): return nn.Linear(3, 2), (x,), {}, ({0: "n"},)
def program(): return torch.export.export(nn.Linear(3, 2), (x,))
def model(): return ir.from_onnx_text(
    '<ir_version: 10, opset_import: ["" : 20]> g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }'
)
def nothing(): pass
def wrong(): return 3
def failing(): raise KeyError("weights")
class Zoo:
    @staticmethod
    def net(): return nn.Linear(3, 2), (x,)
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "made_models.py").write_text(FACTORIES)
    (tmp_path / "broken_models.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield
    for name in ("made_models", "broken_models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("module", ["Gemm"]),
        ("dynamic", ["Gemm"]),
        ("program", ["Gemm"]),
        ("model", ["Neg"]),
        ("Zoo.net", ["Gemm"]),
    ],
)
def test_a_callable_in_the_current_directory_is_found_and_called(factories, name, nodes):
    assert operators(frontends.read(f"made_models:{name}")) == nodes


def test_the_command_line_imports_from_the_current_directory(factories, tmp_path):
    command = [
        sys.executable,
        "-m",
        "graphopt",
        "optimize",
        "made_models:model",
        "-o",
        "out.onnx",
        "--pipeline",
        "simplify",
    ]
    environment = {**os.environ, "PYTHONPATH": ""}
    script = "import sys; from graphopt.cli import main; sys.argv[0] = 'graphopt'; main()"
    command[1:3] = ["-P", "-c", script]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "missing_models:net",
            "missing_models:net: cannot import missing_models: ModuleNotFoundError: No module named 'missing_models'; "
            "run where it can be imported from",
        ),
        (
            "broken_models:net",
            "broken_models:net: cannot import broken_models: ZeroDivisionError: division by zero; "
            "run where it can be imported from",
        ),
        (
            "made_models:modul",
            "made_models:modul: module 'made_models' has no attribute 'modul'; did you mean 'module'?",
        ),
        (
            "made_models:number",
            "made_models:number: no callable, got 3; name a function that returns (module, args[, kwargs[, "
            "dynamic_shapes]]), an ExportedProgram or an onnx_ir.Model",
        ),
        ("made_models:failing", "made_models:failing: it raised KeyError: 'weights'"),
        (
            "made_models:nothing",
            "made_models:nothing: it returned nothing; return (module, args[, kwargs[, dynamic_shapes]]), an "
            "ExportedProgram or an onnx_ir.Model",
        ),
        (
            "made_models:wrong",
            "no torch model, got int; give (module, args[, kwargs[, dynamic_shapes]]), an ExportedProgram or an "
            "onnx_ir.Model",
        ),
    ],
)
def test_a_callable_that_makes_no_model_is_told(factories, address, message):
    with pytest.raises(graphopt.UsageError) as caught:
        frontends.read(address)
    assert str(caught.value) == message


def test_addresses_are_told_from_paths():
    assert all(map(is_address, ["a:b", "a.b.c:d", "_a:B.c"]))
    assert not any(map(is_address, ["a", "a.onnx", "C:\\a", "a:/b", "a:b:c", "a/b:c", "1a:b", ":b", "a:"]))


# --- .pt2 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pt2(tmp_path):
    path = tmp_path / "net.pt2"
    shapes = {"input": {0: torch.export.Dim("n", max=64)}}
    torch.export.save(torch.export.export(nn.Linear(3, 2), (ROW,), dynamic_shapes=shapes), path)
    return path


def rewrite(path, edit):
    """Write the archive at ``path`` anew; ``edit(name, data)`` returns the new data of each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: edit(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_pt2_file_is_read(pt2):
    model = frontends.read(pt2)
    assert operators(model) == ["Gemm"] and list(model.graph.initializers) == ["weight", "bias"]
    assert not isinstance(model.graph.inputs[0].shape[0], int)
    assert operators(frontends.read(str(pt2))) == ["Gemm"]


def test_a_pt2_file_that_is_none_is_told(tmp_path):
    path = tmp_path / "net.pt2"
    with pytest.raises(
        graphopt.ModelError, match=r"net\.pt2: cannot be read: No such file or directory; check the path$"
    ):
        frontends.read(path)
    path.write_bytes(b"nothing")
    with pytest.raises(
        graphopt.ModelError, match=r"no exported program: File is not a zip file; write it with torch"
    ):
        frontends.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/readme", "nothing")
    with pytest.raises(graphopt.ModelError, match=r"net\.pt2: torch cannot load it: "):
        frontends.read(path)


def test_a_truncated_pt2_file_is_told(pt2):
    data = pt2.read_bytes()
    for keep in (10, len(data) // 2, len(data) - 10):
        pt2.write_bytes(data[:keep])
        with pytest.raises(graphopt.ModelError):
            frontends.read(pt2)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_a_pt2_file_is_not_run(pt2, tmp_path):
    bomb = tmp_path / "bomb.pt"
    torch.save(Bomb(tmp_path / "boom"), bomb)
    rewrite(pt2, lambda name, data: bomb.read_bytes() if name.endswith("sample_inputs/model.pt") else data)
    with pytest.raises(graphopt.ModelError, match="torch cannot load it"):
        load_pt2(pt2)
    assert not (tmp_path / "boom").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_custom_object_in_a_pt2_file_is_refused(pt2):
    with zipfile.ZipFile(pt2, "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", b"")
    with pytest.raises(graphopt.ModelError) as caught:
        load_pt2(pt2)
    assert str(caught.value) == (
        f"{pt2}: it holds a pickled object, opaque_obj_0, which may run code when it is loaded; "
        f"load it yourself with torch.export.load and give the program"
    )


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "exec(chr(49))",
        "Symbol('s0').func",
        "Symbol('s0', eval)",
        "s0; s1",
        "[s0]",
    ],
)
def test_a_size_in_a_pt2_file_is_never_evaluated_as_python(pt2, text):
    def edit(name, data):
        if not name.endswith("models/model.json"):
            return data
        graph = json.loads(data)
        found = [size for size in walk(graph) if "expr_str" in size]
        assert found
        found[0]["expr_str"] = text
        return json.dumps(graph)

    rewrite(pt2, edit)
    with pytest.raises(graphopt.ModelError) as caught:
        load_pt2(pt2)
    assert str(caught.value) == f"{pt2}: a size is no arithmetic, got {text!r}"


@pytest.mark.parametrize(
    "target", ["torch.hub.load", "torch.ops.aten.__class__", "os.system", "torch.serialization.load"]
)
def test_an_operator_in_a_pt2_file_is_one_of_torchs(pt2, target):
    def edit(name, data):
        return (
            data.replace(b"torch.ops.aten.linear.default", target.encode())
            if name.endswith("model.json")
            else data
        )

    rewrite(pt2, edit)
    with pytest.raises(graphopt.ModelError) as caught:
        load_pt2(pt2)
    assert str(caught.value) == f"{pt2}: no operator of torch, got {target!r}"


def walk(tree):
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, (dict, list)):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from walk(inner)


# --- FX passes --------------------------------------------------------------------------------------------------------


def relu_to_abs(module):
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.relu.default:
            node.target = torch.ops.aten.abs.default
    return module


def double_weights(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)


def test_an_fx_pass_changes_a_copy_of_the_program():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    program = frontend.export((module, (ROW[:1],), {}, ({0: "n"},)))
    changed = frontend.apply_fx(program, adapt(relu_to_abs))
    model = frontend.lower(changed)
    assert operators(frontend.lower(program)) == ["Gemm", "Relu"] and operators(model) == ["Gemm", "Abs"]
    assert signature(model) == (["input FLOAT[n,3]"], ["output FLOAT[n,2]"])
    assert list(model.graph.initializers) == ["0.weight", "0.bias"]
    gemm, abs_ = model.graph
    assert (gemm.metadata_props[SCOPE], abs_.metadata_props[SCOPE]) == ("0", "1")
    np.testing.assert_allclose(run(model, ROW)[0], module[0](ROW).abs().detach(), rtol=1e-6)


def test_an_fx_pass_that_writes_to_weights_leaves_the_module_alone():
    module = nn.Linear(3, 2)
    before = module.weight.detach().clone()
    program = frontend.export((module, (ROW,)))
    changed = frontend.apply_fx(program, adapt(double_weights))
    assert torch.equal(module.weight, before) and torch.equal(program.state_dict["weight"], before)
    assert torch.equal(changed.state_dict["weight"], before * 2)


def test_an_fx_pass_may_add_parameters():
    def add_bias(module):
        module.extra = nn.Parameter(torch.ones(2))
        last = next(node for node in module.graph.nodes if node.op == "call_function")
        with module.graph.inserting_after(last):
            extra = module.graph.get_attr("extra")
        with module.graph.inserting_after(extra):
            added = module.graph.call_function(torch.ops.aten.add.Tensor, (last, extra))
        last.replace_all_uses_with(added)
        added.args = (last, extra)
        return module

    module = nn.Linear(3, 2)
    model = frontend.lower(frontend.apply_fx(frontend.export((module, (ROW,))), adapt(add_bias)))
    assert "extra" in model.graph.initializers
    np.testing.assert_allclose(run(model, ROW)[0], module(ROW).detach() + 1, rtol=1e-6)


def test_an_fx_pass_stands_at_the_head_of_a_pipeline():
    def no_change(module):
        return module

    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    result = graphopt.optimize((module, (ROW,)), [no_change, "eliminate-dead"], reproducers=None)
    assert operators(result.model) == ["Gemm", "Relu"] and result.report.verified
    assert result.report.source == "Sequential"


def test_an_fx_pass_that_changes_what_is_computed_is_noticed():
    source = Call(torch.relu), (ROW,)
    with pytest.raises(graphopt.VerificationError) as caught:
        graphopt.optimize(
            source, [relu_to_abs, "eliminate-dead"], inputs={"args_0": ROW.numpy()}, reproducers=None
        )
    assert str(caught.value) == (
        "the model differs from what it was before the FX passes changed it: output 'output' at [1, 2]: 0 became 6, "
        "1.2 of its largest element (rounding does at most 5e-05); compare with verify=False or other inputs"
    )


def broken_lint(module):
    nodes = list(module.graph.nodes)
    nodes[-2].args = (nodes[-1],)
    return module


def two_outputs(module):
    return torch.fx.symbolic_trace(Pair())


class Pair(nn.Module):
    def forward(self, input):
        return input, input * 2


def raising(module):
    raise ValueError("no such layer\nand more")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, "call-fx: it failed: ValueError: no such layer"),
        (lambda module: 3, "call-fx: it must return a GraphModule, got int"),
        (two_outputs, "call-fx: it must keep the outputs output, got output.0, output.1"),
        (
            broken_lint,
            "call-fx: it left the graph broken: RuntimeError: Argument 'output' of Node 'linear' was used before",
        ),
    ],
)
def test_a_broken_fx_pass_is_named(function, message):
    program = frontend.export((nn.Linear(3, 2), (ROW,)))
    with pytest.raises(graphopt.PassError) as caught:
        frontend.apply_fx(program, adapt(function))
    assert str(caught.value).startswith(message)


def test_a_pass_of_level_fx_derives_from_fxpass():
    class Wrong(graphopt.Pass):
        """Claim a level without its method."""

        level = graphopt.Level.FX

        def run(self, model, context):
            raise AssertionError

    with pytest.raises(graphopt.PassError) as caught:
        frontend.apply_fx(frontend.export((nn.Linear(3, 2), (ROW,))), Wrong())
    assert str(caught.value) == "wrong: a pass of level FX derives from FxPass, got Wrong"
