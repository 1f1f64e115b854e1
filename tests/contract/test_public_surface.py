"""What other programs may rely on: names, errors and their exit codes, start-up time's cause."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import graphopt
from graphopt import errors

SURFACE = """compare cost load measure optimize save to_networkx trace GraphoptError Pass Rewrite
Decline Effect Level Tape PassReport hookimpl Backend Frontend Result""".split()


@pytest.mark.parametrize("name", SURFACE)
def test_the_public_names_are_there(name: str) -> None:
    assert name in graphopt.__all__
    assert getattr(graphopt, name).__doc__


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in graphopt.__all__ if getattr(graphopt, name, None) is None] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'graphopt' has no attribute 'optimise'"):
        _ = graphopt.optimise  # type: ignore[attr-defined]


def test_the_tree_in_the_docstring_is_the_tree_of_errors() -> None:
    drawn = re.findall(r"[├└]── (\w+) .* (\d)$", errors.__doc__ or "", re.MULTILINE)
    there = {
        name: cls.exit_code
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, graphopt.GraphoptError) and cls is not graphopt.GraphoptError
    }
    assert dict(drawn) == {name: str(code) for name, code in there.items()}


def test_starting_up_imports_nothing_heavy() -> None:
    heavy = {"torch", "onnxruntime", "onnx", "onnx_ir", "numpy"}
    code = f"import sys, graphopt.cli; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
