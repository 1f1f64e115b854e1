"""Dynamic dimensions: the user's names for them, and torch's symbols."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

NAMES = "graphopt.dimensions"
"""Key in ``GraphModule.meta``: torch's symbols to the names that the user gave the dimensions."""
Named = dict[int, dict[int, str]]
"""Of a tensor, by its ``id``: axis to the name of the dimension."""


def named(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> Named:
    """Return the names that ``shapes`` gives to dimensions of the example inputs.

    Raises:
        InputError: the inputs do not fit the module, or the dimensions do not fit the inputs.
    """
    arguments = bind(module, args, kwargs)
    return {
        id(tensor): {axis: name for axis, dim in axes.items() if (name := _dim_name(dim))}
        for tensor, axes in _tensors_with_axes(arguments, _by_name(arguments, shapes))
    }


def bind(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs by the name of the parameter of ``forward``."""
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise InputError(
            f"{type(module).__name__}: the example inputs do not fit forward: {error}"
        ) from error


def _by_name(arguments: Mapping[str, Any], shapes: Any) -> dict[str, Any]:
    return dict(shapes) if isinstance(shapes, Mapping) else dict(zip(arguments, shapes, strict=False))


def _tensors_with_axes(value: Any, shapes: Any) -> Iterator[tuple[torch.Tensor, dict[int, Any]]]:
    """Yield each tensor in ``value`` with its dynamic axes, by walking ``shapes`` beside it."""
    import torch

    if shapes is None:
        return
    if isinstance(value, torch.Tensor):
        axes = dict(shapes) if isinstance(shapes, Mapping) else dict(enumerate(shapes))
        if wrong := [axis for axis in axes if axis not in range(value.dim())]:
            raise InputError(f"dynamic_shapes: a tensor of {value.dim()} dimensions has no axis {wrong[0]!r}")
        yield value, axes
    elif isinstance(value, Mapping) and isinstance(shapes, Mapping):
        for key in value.keys() & shapes.keys():
            yield from _tensors_with_axes(value[key], shapes[key])
    elif isinstance(value, (tuple, list)) and isinstance(shapes, (tuple, list)):
        for inner, inner_shapes in zip(value, shapes, strict=False):
            yield from _tensors_with_axes(inner, inner_shapes)


def _dim_name(dim: Any) -> str | None:
    if isinstance(dim, str) and not dim.isidentifier():
        raise InputError(f"dynamic_shapes: a dimension's name must be an identifier, got {dim!r}")
    return dim if isinstance(dim, str) else getattr(dim, "__name__", None)


def examples(
    args: tuple[Any, ...], kwargs: dict[str, Any], named: Named
) -> tuple[tuple[Any, ...], dict[str, Any], Named]:
    """Return stand-ins for the example inputs, which torch may leave marks on; they share the memory.

    Named dimensions of size 1 are doubled: torch takes 1 for a constant, whatever it is told.
    """
    import torch
    from torch.utils import _pytree as pytree

    leaves, tree = pytree.tree_flatten((args, kwargs))
    made: dict[int, Any] = {}
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and id(leaf) not in made:
            stand_in = leaf.detach()
            for axis in named.get(id(leaf), ()):
                if leaf.shape[axis] == 1:
                    stand_in = stand_in.repeat_interleave(2, dim=axis)
            made[id(leaf)] = stand_in
    args, kwargs = pytree.tree_unflatten([made.get(id(leaf), leaf) for leaf in leaves], tree)
    return args, kwargs, {id(made[key]): axes for key, axes in named.items() if key in made}


def symbols(program: ExportedProgram, inputs: Any, named: Named) -> dict[str, str]:
    """Return torch's symbols with the names that the user gave them."""
    from torch.utils import _pytree as pytree

    names: dict[str, str] = {}
    for leaf, placeholder in zip(pytree.tree_leaves(inputs), _placeholders(program), strict=True):
        for axis, name in named.get(id(leaf), {}).items():
            symbol = str(placeholder.meta["val"].shape[axis])
            if symbol.isidentifier() and name.isidentifier():
                names.setdefault(symbol, name)
    return names


def _placeholders(program: ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes of the user's inputs, constants included, in their order."""
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [
        by_name[spec.arg.name]
        for spec in program.graph_signature.input_specs
        if spec.kind.name == "USER_INPUT"
    ]


def of_program(program: ExportedProgram) -> Any:
    """Return the dynamic dimensions of ``program`` by parameter of its module, or ``None`` where all are fixed."""
    import torch
    from torch.utils import _pytree as pytree

    names = program.graph_module.meta.get(NAMES, {})
    leaves = []
    for node in _placeholders(program):
        value = node.meta.get("val")
        dims = enumerate(value.shape) if isinstance(value, torch.Tensor) else ()
        leaves.append({i: names.get(str(d), str(d)) for i, d in dims if not isinstance(d, int)} or None)
    if not any(leaves):
        return None
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return bind(program.module(check_guards=False), args, kwargs)
