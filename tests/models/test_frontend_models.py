"""Real modules, traced: onnxruntime computes what torch computes, names are torch's, and nodes know their origin."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime
import pytest
import zoo

import graphopt
from graphopt import query
from graphopt.origin import FX_NODE, SCOPE, SOURCE

FROM_TORCH = [name for name, entry in zoo.ZOO.items() if entry.torch is not None]


@pytest.fixture(scope="module", params=FROM_TORCH)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def module(name, torch_source):
    return torch_source(name)[0]


def outputs(module, feeds):
    import torch

    arrays = {key: torch.from_numpy(array) for key, array in feeds.items()}
    with torch.no_grad():
        returned = module(
            **{key: each.double() if each.is_floating_point() else each for key, each in arrays.items()}
        )
    return {"output": returned} if isinstance(returned, torch.Tensor) else dict(returned)


def test_a_traced_model_computes_what_torch_computes(name, module, model_path, model_samples):
    session = onnxruntime.InferenceSession(model_path(name), providers=["CPUExecutionProvider"])
    exact = copy.deepcopy(module).double()  # torch rounds otherwise on other processors
    for feeds in model_samples(name):
        wanted = outputs(exact, feeds)
        assert [value.name for value in session.get_outputs()] == list(wanted)
        for (key, want), got in zip(wanted.items(), session.run(None, feeds), strict=True):
            scale = float(want.abs().max())
            np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=2e-5 * scale, err_msg=key)


def test_initializers_are_the_tensors_of_the_module(name, module, model_path):
    initializers = graphopt.load(model_path(name)).graph.initializers
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers()])
    made = initializers.keys() - tensors.keys()
    assert all("lifted_tensor" in key for key in made), made
    kept = {id(tensors[key]) for key in tensors.keys() & initializers.keys()}
    idle = {key.rpartition(".")[2] for key, tensor in tensors.items() if id(tensor) not in kept}
    assert idle <= {"num_batches_tracked", "position_ids", "token_type_ids"}, idle
    for key in initializers.keys() & tensors.keys():
        np.testing.assert_array_equal(initializers[key].const_value.numpy(), tensors[key].detach().numpy())


def test_nodes_know_module_line_and_fx_node(name, module, model_path):
    model = graphopt.load(model_path(name))
    paths = {path for path, _ in module.named_modules()}
    for node in query.all_nodes(model):
        notes = dict(node.metadata_props)
        assert notes.pop(SCOPE, "") in paths
        assert notes.pop(SOURCE, "model.py:1 in forward").count(":") == 1
        assert notes.pop(FX_NODE)
        assert not notes


@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        ("chelsea", {281, 282, 285}),
        ("coffee", {967}),
        ("motorcycle", {665, 670}),
        ("rocket", {657}),
    ],
)
def test_the_demo_model_recognizes_its_photographs(photo, classes, model_path):
    from graphopt.demo import photos

    session = onnxruntime.InferenceSession(
        model_path("efficientnet-lite0"), providers=["CPUExecutionProvider"]
    )
    (scores,) = session.run(None, {"inputs": photos()[photo]})
    assert int(scores.argmax()) in classes
