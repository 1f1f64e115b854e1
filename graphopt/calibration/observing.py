"""Run a model over calibration data, with the values that are asked for as outputs, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx_ir as ir

from .. import feeds as feeding
from ..errors import InputError, ModelError
from ..groups import divided
from ..model import clone

if TYPE_CHECKING:
    from ..context import Context, Feeds

Array = np.ndarray[Any, Any]
BUDGET_BYTES = 256 << 20
"""So much may the values take together that one run gives; a larger value is run alone."""


class Observer(Protocol):
    """Sees a value's array for each calibration sample, and keeps a summary of bounded size."""

    def update(self, array: Array) -> None:
        """Take in the array of one sample; it is not kept and not changed."""


def observe(
    model: ir.Model,
    observers: Mapping[str, Observer | Sequence[Observer]],
    context: Context,
    *,
    what: str = "calibrating",
    budget_bytes: int = BUDGET_BYTES,
) -> int:
    """Show each sample of the calibration data to the observers of each value, by the value's name.

    The model runs once for each sample and group of values; a group is as many values as fit into ``budget_bytes``,
    so memory depends neither on the number of samples nor on that of values. Samples may differ in shape.

    Args:
        model: the model, which is not changed. Values in subgraphs and functions cannot be observed.
        observers: by the name of a value in the main graph: graph inputs, or what nodes make.
        context: where ``calibration`` comes from, else the sample inputs that the user gave; and where progress goes.
        what: what the progress bar says.
        budget_bytes: of the values of one run.

    Returns:
        The number of samples.

    Raises:
        InputError: there are no calibration data; one does not fit the model; each float input is the same number
            everywhere in all of them (of one among others a remark tells); or a value becomes NaN or infinite, the
            first one in the order of the graph.
    """
    data = _data(context)
    watched = {name: [o] if not isinstance(o, Sequence) else list(o) for name, o in observers.items()}
    inputs = {value.name or "": value for value in model.graph.inputs}
    made = _in_order(model, watched.keys() - inputs.keys())
    first = _first(model, data)
    groups = divided(model, made, first, budget_bytes)
    spans: dict[str, tuple[float, float]] = {}
    total = len(data) * len(groups) if isinstance(data, Sized) else 0
    count = done = 0
    for i, group in enumerate(groups):
        session = _session(model, group) if group else None
        for count, feed in enumerate(_checked(model, data), 1):
            shown = {name: feed[name] for name in inputs if name in feed} if i == 0 else {}
            for name, array in shown.items():
                _widen(spans, name, array)
            if session is not None:
                shown.update(_run(session, group, feed))
            for name, array in shown.items():
                if name in watched:
                    _show(array, watched[name], name, count)
            done += 1
            context.progress(what, done, total)
    _check_spans(spans, count, context)
    return count


def _check_spans(spans: Mapping[str, tuple[float, float]], count: int, context: Context) -> None:
    """Refuse data that never vary; a state that begins with zeros, beside an input that varies, is worth a remark."""
    flat = {name: low for name, (low, high) in spans.items() if low == high}
    for name, number in flat.items():
        where = f"all {count} samples" if count > 1 else "the only sample"
        what = f"calibration data: input {name!r} is {number:g} everywhere in {where}"
        if len(flat) == len(spans):
            raise InputError(f"{what}; give real inputs")
        if what not in context.remarks:
            context.remarks.append(what)


def _data(context: Context) -> Iterable[Feeds]:
    if context.calibration is not None:
        return context.calibration
    if context.has_given_samples:
        remark = (
            "the sample inputs served as calibration data; more of them, in --calibration, give better ranges"
        )
        if remark not in context.remarks:
            context.remarks.append(remark)
        return context.samples
    raise InputError(
        f"{context.step or 'calibration'}: it needs calibration data and got none; "
        f"give --calibration {feeding.CHOICES} (calibration=… in Python)"
    )


def _checked(model: ir.Model, data: Iterable[Feeds]) -> Iterator[Feeds]:
    for number, feed in enumerate(data, 1):
        try:
            (checked,) = feeding.check(model, feed)
        except InputError as error:
            raise InputError(f"calibration data, sample {number}: {error}") from error
        yield checked


def _first(model: ir.Model, data: Iterable[Feeds]) -> Feeds:
    for feed in _checked(model, data):
        return feed
    raise InputError("calibration data: they are empty; give at least one sample")


def _in_order(model: ir.Model, names: Iterable[str]) -> list[str]:
    """Return the names of values that nodes of the main graph make, in the order of the nodes."""
    wanted = set(names)
    made = [value.name for node in model.graph for value in node.outputs if value.name in wanted]
    if missing := wanted.difference(made):
        raise ModelError(
            f"{min(missing)}: no node of the main graph makes a value of this name to be observed"
        )
    return [name for name in made if name]


def _session(model: ir.Model, names: Sequence[str]) -> Any:
    watched = clone(model)
    values = {value.name: value for node in watched.graph for value in node.outputs}
    watched.graph.outputs.clear()
    watched.graph.outputs.extend(values[name] for name in names)
    return _made(watched)


def _made(model: ir.Model) -> Any:
    from ..backends import session as sessions

    return sessions.create(model, optimize="basic")


def _run(session: Any, names: Sequence[str], feed: Feeds) -> dict[str, Array]:
    known = {value.name for value in session.get_inputs()}
    arrays = session.run(list(names), {name: array for name, array in feed.items() if name in known})
    return dict(zip(names, arrays, strict=True))


def _widen(spans: dict[str, tuple[float, float]], name: str, array: Array) -> None:
    if array.dtype.kind == "f" and array.size > 1:
        low, high = spans.get(name, (np.inf, -np.inf))
        spans[name] = min(low, float(array.min())), max(high, float(array.max()))


def _show(array: Array, observers: Sequence[Observer], name: str, sample: int) -> None:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinite"
        raise InputError(
            f"calibration data, sample {sample}: value {name!r} becomes {kind}; leave the sample out, "
            f"or exclude the nodes that read the value"
        )
    for observer in observers:
        observer.update(array)
