"""Zeros in weights: which numbers go, and what the report says of them."""

from __future__ import annotations

import numpy as np
import pytest
from graphopt_passes.prune.prune_weights import largest

import graphopt
from graphopt.testing import conformance
from graphopt.text import from_text

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
main (float[N,4] x) => (float[N,2] y)
<float[4,2] w = {1,-8, -2,7, 3,6, -4,5}>
{
   y = MatMul (x, w)
}"""


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.9])
def test_as_many_go_as_asked_for_and_none_is_larger_than_one_that_stays(dtype: type, sparsity: float) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in ((7, 11), (5, 3, 3, 2), (40,))]
    masks = largest(arrays, sparsity)
    gone, kept = (
        np.concatenate([np.abs(a[m == stays]) for a, m in zip(arrays, masks, strict=True)])
        for stays in (False, True)
    )
    assert gone.size == int(sparsity * sum(array.size for array in arrays))
    assert gone.size == 0 or gone.max() <= kept.min()


def test_of_equal_ones_as_many_go_as_are_missing() -> None:
    masks = largest([np.ones((2, 3), np.float32), np.array([0, 1, 2], np.float32)], 0.5)
    np.testing.assert_array_equal(masks[0], [[False, False, False], [True, True, True]])
    np.testing.assert_array_equal(masks[1], [False, True, True])


def test_the_report_says_what_zeros_are_good_for() -> None:
    result = graphopt.optimize(from_text(TEXT), "prune-weights", strict=True)
    assert result.report.verified
    (entry,) = result.report.passes
    assert entry.applied[0].detail == "50.0% zeros"
    assert entry.notes[0] == (
        "50.0% of 8 weights are zeros; dense kernels gain nothing from that: neither the latency nor the size of "
        "the file changes"
    )
    assert entry.notes[1].startswith("output y is ")
    assert [drift.value for drift in entry.drift] == ["y", "y"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('pattern="4:4"', "pattern=4:4 keeps 4 of 4; give n:m with 0 < n < m, as 2:4"),
        ('pattern="2:4",sparsity=0.3', "give either a pattern, or sparsity and scope, not both"),
        ('pattern="2:4",scope=global', "give either a pattern, or sparsity and scope, not both"),
    ],
)
def test_options_that_do_not_go_together(options: str, message: str) -> None:
    with pytest.raises(graphopt.OptionError, match=message):
        graphopt.optimize(from_text(TEXT), f"prune-weights{{{options}}}")


@pytest.mark.parametrize("options", [{"pattern": "1:2"}, {"scope": "global", "sparsity": 0.3}])
def test_it_conforms_with_other_options_too(options: dict[str, object]) -> None:
    from graphopt_passes.prune.prune_weights import PruneWeights

    conformance(PruneWeights(**options), [TEXT])  # type: ignore[arg-type]
