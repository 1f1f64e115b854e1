"""Clipped weights: what is proved, and what the report says."""

from __future__ import annotations

import pytest

import graphopt
from graphopt.testing import conformance
from graphopt.text import from_text

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,4] x) => (float[N,2] y)
<float[2,4] w = {1,-8, -2,7, 3,6, -4,50}>
{
   t = Transpose <perm = [1,0]> (w)
   y = MatMul (x, t)
}"""


def test_it_is_what_limits_in_front_of_the_product_make() -> None:
    result = graphopt.optimize(from_text(TEXT), "clip-weights{percentile=80}", strict=True)
    assert result.report.verified
    (entry,) = result.report.passes
    assert entry.applied[0].detail == "2 of 8"
    assert entry.notes[0] == "2 of 8 weights were clipped"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("min=1,max=0", "min=1 is more than max=0; give min <= max"),
        ("min=1,percentile=50", "give either min and max, or percentile and per_channel, not both"),
        ("max=1,per_channel=true", "give either min and max, or percentile and per_channel, not both"),
    ],
)
def test_options_that_do_not_go_together(options: str, message: str) -> None:
    with pytest.raises(graphopt.OptionError, match=message):
        graphopt.optimize(from_text(TEXT), f"clip-weights{{{options}}}")


def test_it_conforms_with_other_options_too() -> None:
    from graphopt_passes.prune.clip_weights import ClipWeights

    conformance(ClipWeights(percentile=50, per_channel=True), [TEXT])
    conformance(ClipWeights(max=5), [TEXT])
