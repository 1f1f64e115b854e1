"""What each operator does to channels: one function a kind of operator, in a table that plugins extend.

A rule reads the axes of what a node reads (:meth:`Flow.of`), ties those that must be cut together, and gives the axes
of what the node makes. What it does not tie stays independent; what it cannot follow it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..flow import Rule
from . import attention, elementwise, movement, norms, products, recurrent, reductions, reshaping

RULES: Mapping[tuple[str, str], Rule] = {
    **elementwise.RULES,
    **products.RULES,
    **norms.RULES,
    **reductions.RULES,
    **movement.RULES,
    **reshaping.RULES,
    **attention.RULES,
    **recurrent.RULES,
}
"""By (domain, operator). A row of a plugin in the operator table goes before."""
