from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt import InputError, ModelError, NodeTime, OnnxRuntime, OptionError, UnavailableError, plugins
from graphopt.backends import onnxruntime as backend
from graphopt.backends import session as sessions
from graphopt.text import from_text

CPU = "CPUExecutionProvider"
SMALL = '<ir_version: 10, opset_import: ["": 20]> small (float[N] x) => (float[N] y) { y = Neg (x) }'


def weighty(array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Model:
    """A model that gives its one weight, as float32."""
    w = ir.Value(name="w", const_value=ir.tensor(array, dtype=dtype, name="w"))
    w.type, w.shape = ir.TensorType(w.const_value.dtype), ir.Shape(array.shape)
    one = ir.Value(name="one", const_value=ir.tensor(np.float32(1), name="one"))
    wide = w.const_value.dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.BOOL)
    node = ir.node("Cast", [w], {"to": 1}) if wide else ir.node("DequantizeLinear", [w, one])
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    constants = [w] if wide else [w, one]
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=constants, opset_imports={"": 21}, name="weighty"
    )
    return ir.Model(graph, ir_version=10)


ARRAYS = {
    "float32": np.arange(4001, dtype=np.float32),
    "bool": np.arange(4001) % 3 == 0,
    "bfloat16": (np.arange(4001) % 100).astype(ml_dtypes.bfloat16),
    "float8e4m3fn": (np.arange(4001) % 9).astype(ml_dtypes.float8_e4m3fn),
    "int4": (np.arange(4001) % 16 - 8).astype(ml_dtypes.int4),
    "uint4": (np.arange(4001) % 16).astype(ml_dtypes.uint4),
}


@pytest.mark.parametrize("optimize", ["none", "all"])
@pytest.mark.parametrize("where", ["in the graph", "spilled", "mapped", "external"])
@pytest.mark.parametrize("kind", ARRAYS)
def test_weights_of_every_type_arrive(kind, where, optimize, tmp_path, monkeypatch):
    model = weighty(ARRAYS[kind])
    if where == "spilled":
        monkeypatch.setattr(sessions, "INLINE_TOTAL_BYTES", 0)
    if where in ("mapped", "external"):
        graphopt.save(model, tmp_path / "a.onnx", external_data="file" if where == "external" else None)
        model = graphopt.load(tmp_path / "a.onnx")
    tensor = model.graph.initializers["w"].const_value
    session = sessions.create(model, optimize=optimize, prepack=False)
    np.testing.assert_array_equal(sessions.run(session, {})["y"], ARRAYS[kind].astype(np.float32))
    assert model.graph.initializers["w"].const_value is tensor


def test_mapped_weights_are_referred_to_where_they_are(tmp_path):
    graphopt.save(weighty(ARRAYS["float32"]), tmp_path / "a.onnx")
    mapped, options = graphopt.load(tmp_path / "a.onnx"), onnxruntime.SessionOptions()
    graph, _ = sessions._hand_over(mapped, options, tmp_path, share=False)
    root = options.get_session_config_entry("session.model_external_initializers_file_folder_path")
    (tensor,) = onnx.load_from_string(graph).graph.initializer
    where = {entry.key: entry.value for entry in tensor.external_data}
    data = Path(root, where["location"]).read_bytes()[int(where["offset"]) :][: int(where["length"])]
    assert Path(root, where["location"]) == tmp_path / "a.onnx"
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), ARRAYS["float32"])


def test_a_file_that_was_replaced_is_not_referred_to(tmp_path):
    graphopt.save(weighty(ARRAYS["float32"]), tmp_path / "a.onnx")
    mapped = graphopt.load(tmp_path / "a.onnx")
    graphopt.save(weighty(-ARRAYS["float32"]), tmp_path / "a.onnx")
    got = sessions.run(sessions.create(mapped), {})["y"]
    np.testing.assert_array_equal(got, ARRAYS["float32"])


def test_data_outside_the_models_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 4001))
    model, folder = weighty(ARRAYS["float32"]), tmp_path / "model"
    folder.mkdir()
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        "../secret", 0, 4 * 4001, ir.DataType.FLOAT, shape=ir.Shape([4001]), name="w", base_dir=folder
    )
    with pytest.raises(ModelError) as caught:
        sessions.create(model)
    assert str(caught.value) == (
        f"weight w: its data are outside the model's folder, in {tmp_path.resolve() / 'secret'}"
    )


@pytest.mark.parametrize("optimize", ["none", "basic", "extended", "all"])
def test_weights_of_branches_and_constant_nodes_arrive(optimize, monkeypatch):
    """The branches name their weights alike; a session that shares memory by name must not mix them up."""
    monkeypatch.setattr(sessions, "INLINE_TOTAL_BYTES", 0)
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[N] x, bool go) => (float[N] y) {
            y = If (go) <
                then_branch = g () => (float[N] p) <float[1] w = {1.0}> { p = Add (x, w) },
                else_branch = h () => (float[N] q) <float[1] w = {2.0}> { c = Constant <value = float[1] {3.0}> ()
                    d = Add (x, w)
                    q = Add (d, c) }
            >
        }""")
    for graph in model.graph.subgraphs():
        for value in graph.initializers.values():
            big = np.full(600, value.const_value.numpy()[0], np.float32)
            value.const_value, value.shape = ir.tensor(big, name="w"), ir.Shape([600])
        for node in graph:
            if node.op_type == "Constant":
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.full(600, 3, np.float32)))
                node.outputs[0].shape = ir.Shape([600])
    session = sessions.create(model, optimize=optimize, prepack=False)
    for go, want in ((True, 1.0), (False, 5.0)):
        got = sessions.run(session, {"x": np.zeros(600, np.float32), "go": np.array(go)})["y"]
        np.testing.assert_array_equal(got, np.full(600, want, np.float32))


def test_a_default_that_callers_override_is_not_shared(monkeypatch):
    monkeypatch.setattr(sessions, "INLINE_TOTAL_BYTES", 0)
    model = weighty(ARRAYS["float32"])
    model.graph.inputs.append(model.graph.initializers["w"])
    session = sessions.create(model, optimize="none")
    given = ARRAYS["float32"] + 1
    np.testing.assert_array_equal(sessions.run(session, {})["y"], ARRAYS["float32"])
    np.testing.assert_array_equal(sessions.run(session, {"w": given})["y"], given)


MEGABYTES = 320


@pytest.mark.parametrize("where", ["mapped", "in memory"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_running_takes_the_weights_and_little_more(where, tmp_path):
    """A session, run once, adds less than the weights to what holds them, and nothing where that is memory."""
    program = f"""
        import gc, numpy as np, onnx_ir as ir, graphopt
        from graphopt.backends import session
        n = {MEGABYTES} * 2**20 // 4 // 1024
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", n]))
        w = ir.Value(name="w", const_value=ir.tensor(np.ones((n, 1024), np.float32), name="w"))
        node = ir.node("MatMul", [x, w])
        node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={{"": 20}})
        model = ir.Model(graph, ir_version=10)
        if {where == "mapped"}:
            graphopt.save(model, "a.onnx")
            del model, graph, node, w, x
            gc.collect()
            model = graphopt.load("a.onnx")
        open("/proc/self/clear_refs", "w").write("5")
        made = session.create(model, optimize="none", prepack=False)
        assert session.run(made, {{"x": np.ones((1, n), np.float32)}})["y"][0, 0] == n
        print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < MEGABYTES + 200


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_model_that_is_refused(capfd):
    model = from_text(
        '<ir_version: 10, opset_import: ["" : 20]> m (float[2] x) => (float[2] y) { y = Nope (x) }'
    )
    with pytest.raises(ModelError) as caught:
        sessions.create(model)
    assert str(caught.value) == (
        'onnxruntime refuses the model: This is an invalid model. In Node, ("", Nope, "", -1) : '
        '("x": tensor(float),) -> ("y": tensor(float),) , Error No Op registered for Nope with domain_version of 20'
    )
    assert capfd.readouterr() == ("", "")


def test_inputs_that_are_refused(capfd):
    session = sessions.create(from_text(SMALL))
    with pytest.raises(InputError) as caught:
        sessions.run(session, {"x": np.zeros(2)})
    assert str(caught.value) == (
        "onnxruntime refuses the inputs: Unexpected input data type. Actual: (tensor(double)) , "
        "expected: (tensor(float))"
    )
    with pytest.raises(InputError, match=r"refuses the inputs: Required inputs \(\['x'\]\) are missing"):
        sessions.run(session, {})
    assert capfd.readouterr() == ("", "")


def test_a_kernel_that_fails(capfd):
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        m (float[N] x, int64[1] s) => (float[M] y) { y = Reshape (x, s) }""")
    with pytest.raises(
        ModelError, match=r"onnxruntime fails to run the model: .* while running Reshape node"
    ):
        sessions.run(sessions.create(model), {"x": np.zeros(3, np.float32), "s": np.array([5])})
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_does_not_exist(capfd):
    with pytest.raises(UnavailableError) as caught:
        sessions.create(from_text(SMALL), providers=["NopeExecutionProvider"])
    assert str(caught.value).startswith(
        "NopeExecutionProvider: cannot be used here: Unknown Provider Type: NopeExecutionProvider"
    )
    assert capfd.readouterr() == ("", "")


def test_a_session_that_got_other_providers(monkeypatch):
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"]
    )
    with pytest.raises(UnavailableError) as caught:
        sessions.create(from_text(SMALL), providers=[CPU])
    assert str(caught.value) == (
        "CPUExecutionProvider: cannot be used here: onnxruntime gives no reason; use another target "
        "(the session has OtherExecutionProvider)"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimize": "most"}, "optimize: no level is called 'most'; there are: none, basic, extended, all"),
        ({"threads": 0}, "threads: must be 1 or more, got 0"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(OptionError) as caught:
        sessions.create(from_text(SMALL), **given)
    assert str(caught.value) == message


def test_messages_are_condensed():
    said = (
        "\x1b[1;31m2026-01-02 03:04:05.678901 [E:onnxruntime:Default, bridge.cc:12 operator()] "
        "/onnxruntime_src/onnxruntime/core/bridge.cc:34 onnxruntime::Provider& onnxruntime::Library::Get() "
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library\nx.so with error: no y.so.\x1b[m\n"
    )
    assert sessions.condense(said) == "Failed to load library x.so with error: no y.so"


# --- the backend ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cpu():
    return plugins.get_backend("onnxruntime:cpu")


def test_the_targets_that_come_along(cpu):
    assert [name for name in plugins.backends() if plugins.backends()[name].__class__ is OnnxRuntime][:3] == [
        "onnxruntime:cpu",
        "onnxruntime:cuda",
        "onnxruntime:tensorrt",
    ]
    assert cpu.unavailable() is None
    assert dict(cpu.describe()).keys() == {"onnxruntime", "device", "cores"}


def test_compile_run_bind_step(cpu):
    x = np.array([1, -2, 3], np.float32)
    with cpu.compile(from_text(SMALL), threads=1) as executable:
        assert (executable.input_names, executable.output_names) == (["x"], ["y"])
        np.testing.assert_array_equal(executable.run({"x": x})["y"], -x)
        executable.bind({"x": x})
        executable.step()


def test_sequences_are_given_at_each_step(cpu):
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        m (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct (x, x) }""")
    with cpu.compile(model) as executable:
        executable.bind({"x": np.ones(2, np.float32)})
        executable.step()
        (y,) = executable.run({"x": np.ones(2, np.float32)}).values()
    assert [a.tolist() for a in y] == [[1, 1], [1, 1]]


def test_strings_go_in_and_out(cpu):
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        m (string[N] x) => (string[N] y) { y = Identity (x) }""")
    x = np.array(["a", "bc"], object)
    with cpu.compile(model) as executable:
        assert executable.run({"x": x})["y"].tolist() == ["a", "bc"]
        executable.bind({"x": x})
        executable.step()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_types_that_numpy_lacks_go_in_and_out(cpu, dtype):
    kind = {"bfloat16": "bfloat16", "float8_e5m2": "float8e5m2"}[np.dtype(dtype).name]
    model = from_text(f"""<ir_version: 10, opset_import: ["" : 20]>
        m ({kind}[N] x) => ({kind}[N] y) {{ y = Identity (x) }}""")
    x = np.array([1, -2, 3], dtype)
    with cpu.compile(model) as executable:
        np.testing.assert_array_equal(executable.run({"x": x})["y"], x)
        executable.bind({"x": x})
        executable.step()


def test_four_bits_go_in_and_out():
    model = from_text("""<ir_version: 10, opset_import: ["" : 21]>
        m (float[N] x, int4[N] q) => (int4[N] y, float[N] z) <float s = {1.0}, int4 p = {0}> {
            y = QuantizeLinear (x, s, p)
            z = DequantizeLinear (q, s)
        }""")
    q = np.array([1, -8, 7], ml_dtypes.int4)
    got = sessions.run(sessions.create(model), {"x": np.array([-8, 3, 7], np.float32), "q": q})
    assert got["y"].dtype == ml_dtypes.int4
    assert (got["y"].tolist(), got["z"].tolist()) == ([-8, 3, 7], [1.0, -8.0, 7.0])


def test_a_setting_that_does_not_exist(cpu):
    with pytest.raises(OptionError) as caught:
        cpu.compile(from_text(SMALL), thread=1)
    assert str(caught.value) == "onnxruntime:cpu: no setting is called 'thread'; did you mean 'threads'?"


def test_a_target_that_is_not_there():
    target = OnnxRuntime("onnxruntime:mine", ["MineExecutionProvider"])
    why = f"onnxruntime {onnxruntime.__version__} is built without MineExecutionProvider"
    assert target.unavailable() == why
    assert list(target.describe()) == []
    with pytest.raises(UnavailableError) as caught:
        target.compile(from_text(SMALL))
    assert str(caught.value) == f"onnxruntime:mine: {why}; `graphopt backends` lists what can be used"


def test_what_is_missing_is_asked_once():
    asked = []
    target = OnnxRuntime("onnxruntime:mine", [CPU], check=lambda: asked.append(1) or "no such device")
    assert [target.unavailable(), target.unavailable()] == ["no such device"] * 2
    assert asked == [1]


def test_a_provider_that_takes_no_node(monkeypatch):
    """A provider that is there, but leaves the whole model to another one."""
    target = OnnxRuntime("onnxruntime:mine", ["MineExecutionProvider"], configure=lambda options: None)
    made = sessions.create(from_text(SMALL))
    monkeypatch.setattr(sessions, "create", lambda model, **settings: made)
    monkeypatch.setattr(backend, "placement", lambda session: Counter({CPU: 3}))
    with pytest.raises(UnavailableError) as caught:
        target.compile(from_text(SMALL))
    assert str(caught.value) == (
        "onnxruntime:mine: it takes no node of this model; onnxruntime runs 3 on CPUExecutionProvider; "
        "use another target"
    )


def test_where_nodes_run_is_recorded():
    session = sessions.create(from_text(SMALL), config={backend._ASSIGNMENT: "1"})
    assert backend.placement(session) == {CPU: 1}


def test_no_spinning():
    """Workers that spin after a run slow the next session down."""
    options = sessions.create(from_text(SMALL)).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_workers_have_cores_of_their_own(cpu, monkeypatch):
    """Left to the system, one session's worker may share a busy core for long."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 0, 3}, raising=False)
    places = {threads: backend._places(threads) for threads in (None, 1, 2, 3, 4)}
    key = "session.intra_op_thread_affinities"
    assert places == {None: {}, 1: {}, 2: {key: "4"}, 3: {key: "4;6"}, 4: {}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with cpu.compile(from_text(SMALL), threads=2) as executable:
        options = executable.session.get_session_options()
        assert options.get_session_config_entry(key) == "2"
    with cpu.compile(from_text(SMALL), threads=2, config={key: "1"}) as executable:
        assert executable.session.get_session_options().get_session_config_entry(key) == "1"


def test_what_the_processor_has_kernels_for(cpu):
    assert cpu.supports("", "Conv") and cpu.supports("com.microsoft", "SkipLayerNormalization")
    assert cpu.supports("com.microsoft", "Gelu", ir.DataType.FLOAT)
    assert not cpu.supports("com.microsoft", "Gelu", ir.DataType.FLOAT16)
    assert cpu.supports("", "QLinearConv", ir.DataType.UINT8)
    assert not cpu.supports("com.microsoft", "NoSuchOperator")


def test_a_target_that_reports_no_kernels_runs_what_onnx_defines():
    target = OnnxRuntime("onnxruntime:mine", ["MineExecutionProvider"])
    assert target.supports("", "Conv") and not target.supports("com.microsoft", "Gelu")


# --- profiles ---------------------------------------------------------------------------------------------------------


def event(name, ts, dur, op_type="Add"):
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": ts,
        "dur": dur,
        "args": {"op_name": op_type, "provider": CPU},
    }


def run_event(ts):
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": 1, "args": {}}


def test_node_times_are_medians_without_warm_up_and_inner_nodes():
    def one(at, a, inner):
        return [
            event("a", at, a),
            event("inner", at + 1002, inner, "Mul"),
            event("inner", at + 1102, inner, "Mul"),
            event("loop", at + 1000, 500, "Loop"),
            event("b", at + 2000, 7),
            run_event(at),
        ]

    events = [e for i, a in enumerate([9000, 8000, 100, 300, 200]) for e in one(10_000 * i, a, 10 * i)]
    assert backend.node_times(events) == [
        NodeTime("a", "Add", CPU, 0.2),
        NodeTime("inner", "Mul", CPU, 0.06),
        NodeTime("loop", "Loop", CPU, 0.44),
        NodeTime("b", "Add", CPU, 0.007),
    ]


def test_the_profile_names_the_nodes_of_the_graph(cpu):
    """Nodes without a name go by their output's; those that the runtime renames, by the node they came from."""
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        m (float[1,8,9,9] x, bool go) => (float[1,8,9,9] y) <float[8,8,1,1] w = {1.0}> {
            c = Conv (x, w)
            r = Relu (c)
            s = Sin (r)
            y = If (go) <
                then_branch = g () => (float[1,8,9,9] p) { p = Cos (s) },
                else_branch = h () => (float[1,8,9,9] q) { q = Neg (s) }
            >
        }""")
    w = model.graph.initializers["w"]
    w.const_value, w.shape = ir.tensor(np.ones((8, 8, 1, 1), np.float32), name="w"), ir.Shape([8, 8, 1, 1])
    model.graph[0].name = "first"
    feed = {"x": np.ones((1, 8, 9, 9), np.float32), "go": np.array(True)}
    times = cpu.profile(model, feed, runs=3, threads=1)
    found = [(t.op_type, t.node) for t in times if not t.op_type.startswith("Reorder")]
    assert found == [("Conv", "r"), ("Sin", "s"), ("Cos", "p"), ("If", "y")]
    assert all(t.provider == CPU and t.milliseconds >= 0 for t in times)
    assert not model.graph[1].name


def test_a_step_that_fails_is_told_as_a_run_is() -> None:
    model = from_text("""<ir_version: 10, opset_import: ["" : 20]>
        main (float[N] x, int64[1] at) => (float[M] y) { y = Gather (x, at) }""")
    with plugins.get_backend("onnxruntime:cpu").compile(model) as executable:
        executable.bind({"x": np.ones(2, np.float32), "at": np.array([7])})
        with pytest.raises(
            ModelError, match=r"^onnxruntime fails to run the model: .*indices element out of data bounds"
        ):
            executable.step()
