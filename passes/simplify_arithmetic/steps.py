"""Arithmetic with one constant, in one of four forms."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Decline, Tape
from graphopt.query import constant, is_constant, same_shape

Array = np.ndarray[Any, Any]

FLOATS = {
    ir.DataType.FLOAT16: (2.0**-14, 2.0**4, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-126, 2.0**119, 2.0**128 - 2.0**120),
    ir.DataType.FLOAT: (2.0**-126, 2.0**103, 2.0**128 - 2.0**104),
    ir.DataType.DOUBLE: (2.0**-1022, 2.0**970, float(np.finfo(np.float64).max)),
}
"""Floating-point types: the smallest normal number, half of the last place of the largest number, that number."""
SIGNED = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64)
UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64)


class Form(Enum):
    """What is computed of ``x`` and the constant."""

    SCALE = "x * c"
    SHIFT = "x + c"
    MIRROR = "c - x"
    INVERSE = "c / x"


class Step:
    """One operation on ``x``."""

    def __init__(self, form: Form, x: ir.Value, c: Array | Callable[[], Array], dtype: ir.DataType) -> None:
        self.form = form
        self.x = x
        self.dtype = dtype
        self._c = c

    @cached_property
    def c(self) -> Array:
        """The constant: float64, or an integer of the type of ``x``, which wraps around. Read when it is asked for."""
        return self._c() if callable(self._c) else self._c

    @classmethod
    def of(cls, node: ir.Node | None) -> Step | None:
        """Return what ``node`` does to the one of its operands that varies; ``None`` where it is no such operation."""
        if node is None or node.domain or node.op_type not in READ:
            return None
        a, b = (None, node.inputs[0]) if len(node.inputs) == 1 else node.inputs
        first = a is None or is_constant(a)
        x, c = (b, a) if first else (a, b)
        if x is None or is_constant(x) or (c is not None and not is_constant(c)):
            return None
        made, dtype = READ[node.op_type].get(first), node.outputs[0].dtype or x.dtype
        if made is None or dtype is None or dtype not in (*FLOATS, *SIGNED, *UNSIGNED):
            return None
        if dtype not in FLOATS and node.op_type in ("Div", "Reciprocal"):
            return None
        form, read = made
        wide = np.float64 if dtype in FLOATS else dtype.numpy()
        return cls(form, x, lambda: read(np.ones((), wide) if c is None else constant(c).astype(wide)), dtype)

    def record(self, tape: Tape, stem: str) -> ir.Value:
        """Record the operation and return its value.

        Raises:
            Decline: the constant is none of the type.
        """
        c = self.rounded()
        plain = c.size == 1 and fits(self.x, c.ndim, tape.anchor)
        if plain and self.form is Form.SCALE and c.reshape(()) == -1 and self.dtype not in UNSIGNED:
            return tape.op("Neg", [self.x])
        if plain and self.form is Form.INVERSE and c.reshape(()) == 1:
            return tape.op("Reciprocal", [self.x])
        operator, first = WRITTEN[self.form]
        value = tape.constant(c, stem, self.dtype)
        return tape.op(operator, [value, self.x] if first else [self.x, value])

    def rounded(self) -> Array:
        """Return the constant in its own type.

        Raises:
            Decline: it overflows or loses precision there.
        """
        if self.dtype not in FLOATS:
            return self.c
        smallest, _, largest = FLOATS[self.dtype]
        magnitudes = np.abs(self.c)
        if not (magnitudes <= largest).all():
            raise Decline(f"the constant for both overflows {self.dtype.name.lower()}")
        if ((magnitudes < smallest) & (magnitudes > 0)).any():
            raise Decline(f"the constant for both underflows {self.dtype.name.lower()}")
        return self.c.astype(self.dtype.numpy())


def negligible(c: Array, dtype: ir.DataType) -> bool:
    """Return whether adding ``c`` to a finite number of ``dtype`` gives one, whatever that is; integers wrap around."""
    return dtype not in FLOATS or bool((np.abs(c.astype(np.float64)) < FLOATS[dtype][1]).all())


def fits(x: ir.Value, ndim: int, node: ir.Node) -> bool:
    """Return whether ``x`` has the shape that it has with a constant of one element in ``ndim`` dimensions."""
    if ndim == 0 or same_shape(x, node.outputs[0]):
        return True
    return x.shape is not None and len(x.shape) >= ndim


def combined(a: Array, b: Array, function: Callable[[Array, Array], Array]) -> Array:
    """Return ``function(a, b)``.

    Raises:
        Decline: it has more elements than either.
    """
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise Decline(f"shapes {list(a.shape)} and {list(b.shape)} do not go together") from error
    if np.prod(shape) > max(a.size, b.size):
        raise Decline(f"the constant for both would have shape {list(shape)}, more elements than either")
    with np.errstate(all="ignore"):
        return np.asarray(function(a, b))


def _keep(c: Array) -> Array:
    return c


def _divide(c: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(1 / c)


def _negate(c: Array) -> Array:
    return np.asarray(-c)


READ: dict[str, dict[bool, tuple[Form, Callable[[Array], Array]]]] = {
    "Mul": {False: (Form.SCALE, _keep), True: (Form.SCALE, _keep)},
    "Div": {False: (Form.SCALE, _divide), True: (Form.INVERSE, _keep)},
    "Add": {False: (Form.SHIFT, _keep), True: (Form.SHIFT, _keep)},
    "Sub": {False: (Form.SHIFT, _negate), True: (Form.MIRROR, _keep)},
    "Neg": {True: (Form.SCALE, _negate)},
    "Reciprocal": {True: (Form.INVERSE, _keep)},
}
"""Operator, and whether the constant is its first operand, to the form and its constant; of one operand it is 1."""

WRITTEN = {
    Form.SCALE: ("Mul", False),
    Form.SHIFT: ("Add", False),
    Form.MIRROR: ("Sub", True),
    Form.INVERSE: ("Div", True),
}
"""Form to the operator, and whether the constant is its first operand."""
