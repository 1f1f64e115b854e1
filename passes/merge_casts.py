"""Merge a cast with a lossless cast before it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx_ir as ir

from graphopt import Decline, Rewrite, Tape
from graphopt.query import attribute, is_op


class MergeCasts(Rewrite):
    """Replace ``Cast(Cast(x))`` by ``Cast(x)``, and by ``x`` where that has the type asked for.

    Done where the inner cast loses nothing: its type holds every value of ``x``'s type, infinities, NaN and the sign
    of zero included. So ``float16 -> float32 -> int32`` is one cast, and ``float -> float16 -> float`` stays two.
    Holding is worked out from the types themselves: range, bits of the mantissa, smallest number.

    Exact. Left alone, because ONNX does not define both ways: the text of a number, which depends on its type; an
    integer that goes through a floating-point type to an integer type that is too small for it; a floating-point
    number of 8 bits or less that becomes an integer or a boolean.
    Source: ONNX Cast-1 to 28, CastLike-15 to 25.
    """

    anchor = ("Cast", "CastLike")

    def replace(self, node: ir.Node, tape: Tape) -> ir.Value | None:
        """Return the one Cast, or the value before both."""
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if not is_op(inner, "Cast", "CastLike"):
            return None
        assert inner is not None
        x = inner.inputs[0]
        assert x is not None
        source, middle, target = _known(x), _type_made(inner), _type_made(node)
        if not holds(middle, source):
            raise Decline(f"{middle} does not hold every {source}")
        if target == source:
            return _unless_saturated(x, inner, node)
        if target == ir.DataType.STRING and middle != source:
            raise Decline(f"the text of a {middle} is not that of a {source}")
        if (
            source.is_integer()
            and middle.is_floating_point()
            and target.is_integer()
            and not holds(target, source)
        ):
            raise Decline(f"a cast of {middle} to {target} is not defined for every {source}")
        if source.is_floating_point() and source.bitwidth <= 8 and not target.is_floating_point():
            raise Decline(f"runtimes disagree on the {target} that NaN or −0 of {source} becomes")
        return tape.op("Cast", [x], {"to": int(target), **node.attributes})


def _unless_saturated(x: ir.Value, *casts: ir.Node) -> ir.Value:
    """Return ``x``, if no cast makes its infinities finite, as casts to 8 bits do that are not told otherwise."""
    dtype = _known(x)
    if dtype == ir.DataType.FLOAT8E5M2 and any(attribute(cast, "saturate", 1) for cast in casts):
        raise Decline(f"it turns the infinities of {dtype} into its largest number")
    return x


def _known(value: ir.Value) -> ir.DataType:
    if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        raise Decline(f"the type of {value.name} is not known")
    return value.dtype


def _type_made(node: ir.Node) -> ir.DataType:
    """Return the type that a Cast or CastLike makes. Before opset 6 an attribute names it."""
    if node.op_type == "CastLike":
        like = node.inputs[1]
        assert like is not None
        return _known(like)
    to = attribute(node, "to")
    return ir.DataType[to.upper()] if isinstance(to, str) else ir.DataType(to)


class _Values(NamedTuple):
    """The values of a numeric type: multiples of ``unit`` from ``least`` to ``most``, with so many significant bits."""

    least: float
    most: float
    bits: int
    unit: float
    zero: bool = True
    infinity: bool = False
    nan: bool = False
    negative_zero: bool = False


@cache
def _values(dtype: ir.DataType) -> _Values:
    if dtype == ir.DataType.BOOL:
        return _Values(0, 1, 1, 1)
    if dtype.is_integer():
        return _Values(int(dtype.min), int(dtype.max), dtype.bitwidth, 1)
    info = ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    with np.errstate(all="ignore"):
        kept = np.array([np.inf, np.nan, -0.0]).astype(dtype.numpy()).astype(np.float64)
    has_zero = dtype != ir.DataType.FLOAT8E8M0
    return _Values(
        least=float(info.min) if has_zero else float(info.smallest_subnormal),
        most=float(info.max),
        bits=info.nmant + 1,
        unit=float(info.smallest_subnormal),
        zero=has_zero,
        infinity=bool(np.isinf(kept[0])),
        nan=bool(np.isnan(kept[1])),
        negative_zero=bool(kept[2] == 0 and np.signbit(kept[2])),
    )


@cache
def holds(outer: ir.DataType, inner: ir.DataType) -> bool:
    """Return whether each value of ``inner`` is one of ``outer``."""
    if outer == inner:
        return True
    numeric = [d == ir.DataType.BOOL or d.is_integer() or d.is_floating_point() for d in (outer, inner)]
    if not all(numeric) or outer == ir.DataType.BOOL:
        return False
    a, b = _values(outer), _values(inner)
    fits = a.least <= b.least and b.most <= a.most and a.unit <= b.unit
    specials = all(have or not need for have, need in zip(a[4:], b[4:], strict=True))
    return fits and specials and (outer.is_integer() or _significant(inner) <= a.bits)


def _significant(dtype: ir.DataType) -> int:
    """Return how many bits the significand of a value can have: of −128, a power of two, only one counts."""
    values = _values(dtype)
    return int(values.most).bit_length() if dtype.is_integer() else values.bits
