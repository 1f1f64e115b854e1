"""PyTorch in: a module or an exported program becomes an ONNX graph that remembers where each node came from.

Sources, as :func:`graphopt.optimize` and the command line take them:

- ``(module, args)``, ``(module, args, kwargs)`` or ``(module, args, kwargs, dynamic_shapes)``;
- a module that has the methods of ``torch.onnx.ExportableModule``;
- a ``torch.export.ExportedProgram``, or the ``.pt2`` file of one;
- ``package.module:callable``, where the callable returns one of these, or an ``onnx_ir.Model``.

A run never changes the module's state: what a module writes into its buffers or its inputs is not part of the graph.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import onnx_ir as ir

from .. import addresses
from ..errors import GraphoptError, InputError, ModelError, PassError, UnavailableError, UsageError
from ..query import all_graphs
from . import Frontend, factory, torch_dims, torch_names

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from ..interfaces import Pass

OLDEST = (2, 9)
NOISE = re.compile(r"\x1b\[[0-9;]*m| *For more information, run with TORCH_LOGS=\S*")
BOILERPLATE = ("For ", "If you suspect", "The error above occurred")
"""How the lines begin that torch adds to every message."""


class TorchFrontend(Frontend):
    """Reads torch modules with example inputs, exported programs, ``.pt2`` files and ``package.module:callable``."""

    name = "torch"

    def accepts(self, source: object) -> bool:
        """Return whether ``source`` looks like one of these; torch is not imported for it."""
        if isinstance(source, (str, Path)):
            return Path(source).suffix == ".pt2" or addresses.is_address(str(source))
        head = source[0] if isinstance(source, tuple) and source else source
        torch = sys.modules.get("torch")
        return torch is not None and isinstance(head, (torch.nn.Module, torch.export.ExportedProgram))

    def read(self, source: object) -> ir.Model:
        """Export and lower ``source``."""
        found = _resolve(source)
        return found if isinstance(found, ir.Model) else lower(export(found))


def trace(
    module: torch.nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ir.Model:
    """Return the ONNX graph of ``module``, in inference mode; neither the module nor its weights are copied.

    Args:
        module: the module, or a program that is exported already.
        args: example inputs; what is no tensor is built into the graph as a constant.
        kwargs: example inputs by keyword.
        dynamic_shapes: as for ``torch.export.export``, where a string names a dimension: ``({0: "batch"},)``.
        opset: version of ONNX's operators; torch's choice where not given.
        input_names: names of the graph's inputs; those of the parameters of ``forward`` where not given.
        output_names: names of the outputs; where not given, the path in what the module returns: ``output``,
            ``output.1``, or ``logits`` for the entry of a dictionary.

    Raises:
        ModelError: torch cannot export the module, or cannot lower it to ONNX.
        UnavailableError: torch is not installed.
    """
    import_torch()
    if not hasattr(module, "graph_signature"):
        module = export((module, args, kwargs, dynamic_shapes))
    elif args or kwargs or dynamic_shapes:
        raise UsageError(
            "an exported program has its inputs and dynamic dimensions already; "
            "leave out args, kwargs and dynamic_shapes"
        )
    return lower(
        cast("ExportedProgram", module), opset=opset, input_names=input_names, output_names=output_names
    )


def import_torch() -> None:
    """Make sure that torch and its ONNX exporter are there.

    Raises:
        UnavailableError: they are not.
    """
    try:
        import onnxscript  # noqa: F401
        import torch
    except ImportError as error:
        raise UnavailableError(
            f"reading a torch model needs the package {error.name!r}, which is not installed; "
            f"pip install 'graphopt[torch]'"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:
        raise UnavailableError(
            f"torch {torch.__version__} is too old; pip install 'torch>={'.'.join(map(str, OLDEST))}'"
        )


def _resolve(source: object) -> object:
    """Return what a path or an address stands for; anything else is returned as it is."""
    if not isinstance(source, (str, Path)):
        return source
    import_torch()
    if Path(source).suffix == ".pt2":
        from . import pt2

        return pt2.load(Path(source))
    if addresses.is_address(str(source)):
        return factory.call(str(source))
    raise UsageError(f"{source}: no torch model; give a .pt2 file or package.module:callable")


# --- export -----------------------------------------------------------------------------------------------------------


def export(source: object) -> ExportedProgram:
    """Return the exported program of ``source``, one of the sources listed at the top.

    Raises:
        ModelError: torch cannot export it.
        InputError: a module comes without example inputs.
        UsageError: it is no torch model.
    """
    import_torch()
    import torch

    found = _resolve(source)
    if isinstance(found, torch.export.ExportedProgram):
        return found
    if isinstance(found, torch.nn.Module):
        if not hasattr(found, "example_arguments"):
            raise InputError(
                f"{type(found).__name__}: a module needs example inputs to be exported; give (module, args)"
            )
        ready: Any = found
        found = (found, *ready.example_arguments(), ready.dynamic_shapes())
    if not (isinstance(found, tuple) and found and isinstance(found[0], torch.nn.Module) and len(found) <= 4):
        raise UsageError(f"no torch model, got {type(found).__name__}; give {factory.SOURCES}")
    module = found[0]
    args, kwargs, dynamic_shapes = (*found[1:], None, None, None)[:3]
    if not isinstance(args, (tuple, list)):
        args = () if args is None else (args,)
    return _export(module, tuple(args), dict(kwargs or {}), dynamic_shapes)


def _export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    import torch
    from torch.utils import _pytree as pytree

    named: torch_dims.Named = {}
    if dynamic_shapes is not None:
        named = torch_dims.named(module, args, kwargs, dynamic_shapes)
        dynamic_shapes = pytree.tree_map(
            lambda dim: torch.export.Dim.DYNAMIC if isinstance(dim, str) else dim, dynamic_shapes
        )
    args, kwargs, named = torch_dims.examples(args, kwargs, named)
    with _inference(module), _quiet(), _failing(type(module).__name__, "torch cannot export it"):
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    program.graph_module.meta[torch_dims.NAMES] = torch_dims.symbols(program, (args, kwargs), named)
    return program


@contextlib.contextmanager
def _inference(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` into inference mode, and put each of its modules back into the mode it was in.

    The flags are set by hand: ``eval`` may be overridden to do more, and the module is the caller's.
    """
    import torch

    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        for inner, _ in modes:
            inner.training = False
        with torch.no_grad():
            yield
    finally:
        for inner, training in modes:
            inner.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says to its own developers away from the user; what matters of it is in its exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _failing(subject: str, what: str, kind: type[GraphoptError] = ModelError) -> Iterator[None]:
    """Turn whatever is raised, by torch or by the module itself, into one sentence; the rest becomes notes."""
    try:
        yield
    except Exception as error:  # the module is a stranger's code, and torch raises exceptions of every kind
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        root = causes[-1]
        lines = [line.strip() for line in NOISE.sub("", str(root)).splitlines() if line.strip()]
        head = " ".join(lines[: 2 if lines and lines[0].endswith((":", "!")) else 1])
        made = kind(f"{subject}: {what}: {type(root).__name__}: {head or 'no message'}")
        for cause in causes[1:-1]:
            made.add_note(NOISE.sub("", str(cause)).partition("\n")[0])
        for line in lines[1:]:
            if line not in head and not line.startswith(BOILERPLATE):
                made.add_note(line)
        raise made from error


# --- FX passes --------------------------------------------------------------------------------------------------------


def apply_fx(program: ExportedProgram, step: Pass) -> ExportedProgram:
    """Run ``step`` on ``program`` and return the new program; the old one keeps its graph and its weights.

    The pass gets the program as a module that can be called, with the weights as its parameters. What it returns
    is exported again, so that signature and state follow from the new graph, whatever the pass did.

    Raises:
        PassError: the pass raised, or what it returned is broken or has other inputs or outputs.
    """
    import copy

    import torch

    from ..interfaces import FxPass

    if not isinstance(step, FxPass):
        raise PassError(f"{step.name}: a pass of level FX derives from FxPass, got {type(step).__name__}")
    if program.example_inputs is None:
        raise InputError(f"{step.name}: the program has no example inputs; save it with them")
    args, kwargs = program.example_inputs
    with _quiet():
        before = copy.deepcopy(program.module(check_guards=False))
    with _failing(step.name, "it failed", PassError):
        module = step.transform(before)
    if not isinstance(module, torch.fx.GraphModule):
        raise PassError(f"{step.name}: it must return a GraphModule, got {type(module).__name__}")
    with _failing(step.name, "it left the graph broken", PassError):
        module.graph.lint()
        module.recompile()
        changed = _export(module, args, kwargs, torch_dims.of_program(program))
    for what, was, now in (
        ("inputs", program.graph_signature.user_inputs, changed.graph_signature.user_inputs),
        ("outputs", torch_names.outputs(program), torch_names.outputs(changed)),
    ):
        if (kept := ", ".join(map(str, was))) != (got := ", ".join(map(str, now))):
            raise PassError(f"{step.name}: it must keep the {what} {kept}, got {got}")
    return changed


# --- lowering ---------------------------------------------------------------------------------------------------------


def lower(
    program: ExportedProgram,
    *,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> ir.Model:
    """Return the ONNX graph of ``program``, as torch's exporter makes it without rewriting anything.

    Initializers have the names that the tensors have in the module, and share their memory; each node has its
    scope, its line of source and its FX node (see :mod:`graphopt.origin`).

    Raises:
        ModelError: torch cannot lower it, or not to that opset.
        UsageError: the names do not fit.
    """
    import_torch()
    import torch

    paths = torch_names.outputs(program)
    with _quiet(), _failing("program", "torch cannot lower it to ONNX"):
        exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False, opset_version=opset)
    assert exported is not None
    model = exported.model
    if opset is not None and model.opset_imports.get("") != opset:
        raise ModelError(
            f"program: torch lowers it to opset {model.opset_imports.get('')}, and cannot convert that to {opset}; "
            f"choose another opset"
        )
    names: Mapping[str, str] = program.graph_module.meta.get(torch_dims.NAMES, {})
    for graph in all_graphs(model):
        torch_names.rename_dimensions(graph, names)
        torch_names.adopt_notes(graph)
    torch_names.name_inputs(model, input_names)
    torch_names.name_outputs(model, output_names if output_names is not None else paths)
    return model
