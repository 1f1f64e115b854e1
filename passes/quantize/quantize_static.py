"""Quantize for integer kernels, with ranges from calibration data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from graphopt import PassReport

from ..speed import Speed, measured
from .editing import Seen, made
from .insert_qdq import InsertQdq

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt import Context


class QuantizeStatic(InsertQdq):
    """Find ranges on calibration data, put Q/DQ pairs in, and measure: ``insert-qdq`` that is never slower than float.

    Run it behind ``speed`` (``--pipeline speed,quantize-static``), which folds what would stand between pairs.
    Where the target is at hand the result is measured, and where it is slower the model stays as it was. Models of
    less than 1 MB of such weights are not measured.

    Lossy: without its pairs, and with the float weights in place of the integers, the result must be what it was.
    Source: ONNX QuantizeLinear-10 to 25; Jacob et al. 2018 (arXiv:1712.05877), section 2.
    """

    measured: bool = Field(True, description="stay float where the result measures slower")

    def run(self, model: ir.Model, context: Context) -> PassReport:
        """Place, calibrate, measure on a copy, and put the pairs in."""
        options, report = self.resolved(context), PassReport()
        placement = options.planned(model, context)
        products = [spot for spot in placement.spots.values() if spot.weight is not None]
        if not products:
            return options.insert(model, context, report, {})

        def tried() -> tuple[Seen, Speed | None]:
            seen = options.observe(model, placement, context)
            weights = [spot.node.inputs[spot.weight or 0] for spot in products]
            nbytes = sum(w.const_value.nbytes for w in weights if w is not None and w.const_value is not None)
            return seen, measured(model, options.variant(model, context, seen), nbytes, context)

        seen, speed = context.once((self, tuple(made(spot.node) for spot in products)), tried)
        if speed is not None:
            slower = speed.verdict == "slower" and self.measured
            report.notes.append(
                f"{speed.text}, and stays in floats (measured=false quantizes it all the same)"
                if slower
                else speed.text
            )
            if slower:
                for spot in products:
                    report.decline(spot.node, "the model measures slower with integers")
                return report
        return options.insert(model, context, report, {}, seen)
