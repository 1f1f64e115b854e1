"""Put factors in the place of layers, and their products into the original."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt import Context, Names, PassReport, Tape, substitute

from ..channels import put
from .deciding import Plan, ranks_text
from .emit import emit
from .fitting import Fit, Fitted
from .sites import Site, site


def applied(
    model: ir.Model, fits: dict[str, Fit], plan: Plan, context: Context, report: PassReport
) -> dict[str, tuple[str, Fitted]]:
    """Replace the layers of the plan; return what was done, by the name of what a layer makes."""
    names, done = Names(model), {}
    for number, (name, ranks) in enumerate(plan.ranks.items()):
        fit = fits[name]
        context.progress(f"factorizing {fit.site.weight.name}", number, len(plan.ranks))
        fitted = fit.at(ranks)
        made = fit.step(ranks).macs / fit.site.macs
        detail = (
            f"{ranks_text(fit, ranks)}, {fit.method}: {made:.2f} of its MACs, "
            f"expected error {np.sqrt(max(fitted.lost, 0.0)):.2g} of the output"
        )
        made_by = fit.site.y.name or ""
        if _replaced(fit.site, fitted, names, context, report, detail):
            done[made_by] = name, fitted
    return done


def _replaced(
    one: Site, fitted: Fitted, names: Names, context: Context, report: PassReport, detail: str
) -> bool:
    tape = Tape(one.node, context)
    holder = one.bias() if fitted.shift.any() else None
    bias = None
    if holder is not None and holder[0] is one.node:
        given = one.node.inputs[2] if len(one.node.inputs) > 2 else None
        stem = given.name if given is not None else f"{one.weight.name}_bias"
        bias = tape.constant(one.shifted(fitted.shift), stem or "bias")
    elif holder is not None:
        array = one.shifted(fitted.shift)
    value = emit(one, fitted.factors, tape, bias)
    if not substitute(one.node, [value], tape, names, report, detail):
        return False
    if holder is not None and bias is None:
        put(*holder, array, names)
    return True


def reference(before: ir.Model, done: dict[str, tuple[str, Fitted]]) -> ir.Model:
    """Return the original with each weight replaced by the product of its factors, and with the new biases."""
    names = Names(before)
    made = {node.outputs[0].name: node for node in before.graph if node.outputs}
    for name, (_, fitted) in done.items():
        one = site(made[name])
        put(one.node, 1, one.laid(fitted.factors.product()), names)
        if fitted.shift.any() and one.bias() is not None:
            one.shift(fitted.shift, names)
    return before
