from __future__ import annotations

import sys
from types import SimpleNamespace

import graphopt_openvino as plugin
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt.plugins as registry
from graphopt import OnnxRuntime, UnavailableError

NEG = '<ir_version: 8, opset_import: ["": 13]> neg (float[N] x) => (float[N] y) { y = Neg (x) }'


@pytest.fixture
def fresh(monkeypatch):
    plugin.devices.cache_clear()
    monkeypatch.setattr(plugin, "_offered", list)
    yield monkeypatch
    plugin.devices.cache_clear()


def target():
    (made,) = plugin.register_backends()
    return made


def test_it_is_an_installed_plugin():
    assert registry.get_backend("onnxruntime:openvino").providers == ("OpenVINOExecutionProvider",)
    assert {state.name: state.problem for state in registry.states()}["openvino"] is None


def test_the_package_is_missing(fresh):
    fresh.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    assert target().unavailable() == "the package onnxruntime-ep-openvino is not installed"
    with pytest.raises(UnavailableError) as caught:
        target().compile(ir.from_onnx_text(NEG))
    assert str(caught.value) == (
        "onnxruntime:openvino: the package onnxruntime-ep-openvino is not installed; "
        "`graphopt backends` lists what can be used"
    )
    assert list(target().describe()) == []


def test_the_library_is_broken(fresh):
    fresh.setitem(
        sys.modules, "onnxruntime_ep_openvino", SimpleNamespace(get_library_path=lambda: "/nowhere.so")
    )
    assert "its library cannot be loaded: " in target().unavailable()
    assert "/nowhere.so" in target().unavailable()


def test_no_device(fresh):
    fresh.setitem(sys.modules, "onnxruntime_ep_openvino", SimpleNamespace(get_library_path=lambda: "x.so"))
    fresh.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: None)
    assert target().unavailable() == "OpenVINO's provider finds no device; it takes Intel hardware only"


def test_the_provider_is_added_by_device(monkeypatch):
    """With the processor's own device, which onnxruntime offers in the same way."""
    (device,) = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "CPUExecutionProvider"]
    monkeypatch.setattr(plugin, "devices", lambda: [device])
    made = OnnxRuntime(
        "onnxruntime:fake", ["CPUExecutionProvider"], check=plugin.lacks, configure=plugin.add_provider
    )
    x = np.array([1, -2], np.float32)
    with made.compile(ir.from_onnx_text(NEG), threads=1) as executable:
        np.testing.assert_array_equal(executable.run({"x": x})["y"], -x)


def test_threads_reach_the_provider(monkeypatch):
    added = []
    monkeypatch.setattr(plugin, "devices", lambda: ["cpu", "gpu"])
    for threads in (0, 2):
        options = SimpleNamespace(
            intra_op_num_threads=threads, add_provider_for_devices=lambda *given: added.append(given)
        )
        plugin.add_provider(options)
    assert added == [(["cpu"], {}), (["cpu"], {"load_config": '{"CPU": {"INFERENCE_NUM_THREADS": "2"}}'})]
