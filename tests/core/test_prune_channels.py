"""Options of prune-channels: goals, scopes, widths, criteria, compensation, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from graphopt_passes.prune.prune_channels import PruneChannels
from graphopt_passes.prune.prune_heads import PruneHeads
from graphopt_passes.prune.widths import LEAST, Width, within

import graphopt
from graphopt.analysis.channels import Group
from graphopt.criteria import CRITERIA
from graphopt.testing import conformance
from graphopt.text import to_text

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
net (float[N,3,8,8] x) => (float[N,4] y) {
   a0 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
   a1 = Relu (a0)
   b0 = Conv <pads = [1, 1, 1, 1]> (a1, w2)
   b1_ = BatchNormalization (b0, scale, shift, mean, var)
   b2 = Relu (b1_)
   c0 = Conv (b2, w3)
   c1 = Add (c0, a1)
   d0 = GlobalAveragePool (c1)
   d1 = Flatten (d0)
   y = MatMul (d1, w4)
}"""
SHAPES = {
    "w1": (24, 3, 3, 3),
    "b1": (24,),
    "w2": (40, 24, 3, 3),
    "scale": (40,),
    "shift": (40,),
    "mean": (40,),
    "var": (40,),
    "w3": (24, 40, 1, 1),
    "w4": (24, 4),
}


def network(seed: int = 0) -> ir.Model:
    """Two groups: 24 channels of a residual sum, in fours that are alike, and 40 in between."""
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights["var"] = np.abs(weights["var"]) + 0.5
    weights["w1"] = np.repeat(weights["w1"][:6], 4, 0) + 0.1 * weights["w1"]
    tensors = [ir.tensor(array, name=name) for name, array in weights.items()]
    return ir.from_onnx_text(TEXT, initializers=tensors)


def pictures(count: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def pruned(options: str, calibration: bool = False) -> graphopt.Result:
    data = pictures() if calibration else None
    return graphopt.optimize(network(), f"prune-channels{{{options}}}", calibration=data, strict=True)


def widths(result: graphopt.Result) -> list[int]:
    return [group.channels for group in graphopt.channel_groups(result.model)]


def test_each_group_loses_a_ratio() -> None:
    assert widths(pruned("ratio=0.5,round_to=1")) == [12, 20]
    assert widths(pruned("ratio=0.25,round_to=1")) == [18, 30]


def test_widths_are_multiples() -> None:
    assert widths(pruned("ratio=0.5")) == [8, 16]
    assert widths(pruned("ratio=0.3,round_to=4")) == [16, 28]


def test_a_ratio_may_differ_by_pattern() -> None:
    assert widths(pruned('ratio=0.5,round_to=1,per_layer=["scale:0.25"]')) == [12, 30]


def test_what_a_pattern_keeps_stays() -> None:
    assert widths(pruned("ratio=0.5,round_to=1,keep=[w1]")) == [24, 20]


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("goal", ["macs", "params"])
def test_a_budget_is_met_and_used(goal: str, scope: str) -> None:
    """The next wider plan would exceed it: one step of a width is less than a tenth of either cost here."""
    result = pruned(f"{goal}=0.5,scope={scope},round_to=1")
    before, after = (graphopt.cost(model) for model in (result.original, result.model))
    share = after.macs / before.macs if goal == "macs" else after.parameters / before.parameters
    assert 0.4 < share <= 0.5


def test_global_ranking_cuts_where_channels_are_worth_least() -> None:
    model = network()
    w2 = model.graph.initializers["w2"].const_value
    assert w2 is not None
    array = w2.numpy().copy()
    array[:20] *= 0.01
    model.graph.initializers["w2"].const_value = ir.tensor(array, name="w2")
    result = graphopt.optimize(model, "prune-channels{ratio=0.3,scope=global,round_to=1}", strict=True)
    first, second = widths(result)
    assert first + second == 44
    assert second < 25


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks(criterion: str) -> None:
    result = pruned(f"ratio=0.5,round_to=1,criterion={criterion}", calibration=True)
    assert widths(result) == [12, 20]


def test_criteria_that_agree_with_none_are_random() -> None:
    kept = {
        criterion: pruned(f"ratio=0.5,round_to=1,compensate=none,criterion={criterion}", calibration=True)
        .model.graph.initializers["w1"]
        .const_value.numpy()  # type: ignore[union-attr]
        .tobytes()
        for criterion in ("l1", "l2", "random")
    }
    assert kept["random"] not in (kept["l1"], kept["l2"])


def test_least_squares_make_up_for_channels_that_others_resemble() -> None:
    """Of four channels that are nearly alike one is enough, once what reads it is multiplied by four."""
    distance = {}
    for method in ("none", "bias", "least-squares"):
        result = pruned(f"ratio=0.5,round_to=1,criterion=l2,compensate={method}", calibration=True)
        found = graphopt.compare(result.original, result.model, pictures(32)[16:])
        distance[method] = found.outputs[0].sqnr_db
    assert distance["bias"] > distance["none"] + 0.5
    assert distance["least-squares"] > distance["none"] + 20


def test_several_steps_end_at_the_same_widths() -> None:
    assert widths(pruned("ratio=0.5,round_to=1,iterative_steps=3", calibration=True)) == [12, 20]


def test_a_run_is_deterministic() -> None:
    a, b = (pruned("macs=0.5,round_to=1", calibration=True).model for _ in range(2))
    assert graphopt.compare(a, b).outputs[0].max_abs == 0


def test_what_is_left_is_told() -> None:
    entry = pruned("ratio=0.5,round_to=1").report.passes[0]
    assert [applied.detail.split(";")[0] for applied in entry.applied] == [
        "24 channels to 12",
        "40 channels to 20",
    ]
    assert entry.notes == ["26.6% of the MACs and 27.2% of the parameters are left"]
    assert entry.applied[1].detail == (
        "40 channels to 20; 93.7% of the MACs, 92.7% of the parameters; "
        "w2[0], scale[0], shift[0], mean[0], var[0], w3[1]"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=0.5,macs=0.5", "prune-channels: ratio and macs exclude each other; give one of them"),
        (
            "latency=0.5,iterative_steps=2",
            "prune-channels: latency is met in one step; iterative_steps goes with ratio, macs or params",
        ),
        (
            "per_layer=[w2]",
            "prune-channels: per_layer: 'w2' is not pattern:ratio with a ratio between 0 and 1",
        ),
        ("criterion=wandaa", "no criterion is called 'wandaa'; did you mean 'wanda'?"),
        (
            "compensate=bias",
            "prune-channels: compensate=bias needs calibration data and got none; give --calibration",
        ),
        ("outputs=[z]", "outputs: the model has none called 'z'; it has y"),
    ],
)
def test_what_cannot_be_is_said(options: str, message: str) -> None:
    with pytest.raises(graphopt.GraphoptError) as error:
        pruned(options)
    assert str(error.value) == message


def width_of(channels: int, step: int = 1) -> Width:
    group = Group("g", np.arange(1, channels + 1), (), ("g",), 0.0, 0.0)
    return Width(group, step, np.arange(channels, dtype=float), 1 - LEAST)


@pytest.mark.parametrize(
    ("channels", "step", "wanted", "kept"),
    [(24, 8, 12, 8), (24, 8, 12.1, 16), (24, 8, 1, 8), (20, 8, 19, 16), (20, 8, 20.1, 20), (40, 1, 0, 4)],
)
def test_the_nearest_width_that_is_allowed(channels: int, step: int, wanted: float, kept: int) -> None:
    assert width_of(channels, step).kept(wanted) == kept


def test_what_is_worth_least_goes_and_of_equals_the_first() -> None:
    width = replace(width_of(5), scores=np.array([3.0, 1.0, 2.0, 1.0, 9.0]))
    assert width.gone(3).tolist() == [2, 4]
    assert width.gone(4).tolist() == [2]
    assert width.gone(5).tolist() == []


def test_of_plans_within_a_budget_it_is_the_widest() -> None:
    def choose(part: float) -> dict[str, int]:
        return {"g": 1000 - int(900 * part)}

    for wanted in (150, 500, 731, 1000):
        assert within(wanted, lambda plan: float(plan["g"]), choose) == {"g": wanted}
    assert within(50, lambda plan: float(plan["g"]), choose) == {"g": 100}


@pytest.mark.parametrize("goal", ["macs", "params"])
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_a_budget_that_is_a_little_larger_is_used_too(goal: str, scope: str) -> None:
    """What is left never shrinks as the budget grows, and comes as near to it as one channel of each group."""
    shares = []
    for wanted in (0.3, 0.4, 0.5, 0.6, 0.7):
        result = pruned(f"{goal}={wanted},scope={scope},round_to=1")
        before, after = (graphopt.cost(model) for model in (result.original, result.model))
        share = after.macs / before.macs if goal == "macs" else after.parameters / before.parameters
        assert wanted - 0.09 <= share <= wanted
        shares.append(share)
    assert shares == sorted(shares)


def test_two_runs_give_the_same_file() -> None:
    texts = [to_text(pruned("ratio=0.5,criterion=random", calibration=True).model) for _ in range(2)]
    assert texts[0] == texts[1]


def test_they_conform() -> None:
    conformance(PruneChannels(round_to=1), [network()])
    conformance(PruneChannels(round_to=1), [network()], calibrated=True)
    conformance(PruneHeads(ratio=0.5), [heads()])


ATTENTION = """<ir_version: 10, opset_import: ["" : 23]>
net (float[B,S,8] x) => (float[B,S,8] y) {
   q = MatMul (x, wq)
   k = MatMul (x, wk)
   v = MatMul (x, wv)
   a = Attention <q_num_heads = 8, kv_num_heads = 8> (q, k, v)
   o = MatMul (a, wo)
   h = MatMul (o, w1)
   r = Relu (h)
   y = MatMul (r, w2)
}"""


def heads(heads: int = 8, size: int = 4) -> ir.Model:
    """Attention with heads of which the later ones have larger weights, and a layer behind it."""
    rng = np.random.default_rng(0)
    scale = np.repeat(np.arange(1, heads + 1), size)
    shapes = {"w1": (8, 16), "w2": (16, 8)}
    arrays = {name: rng.normal(size=(8, heads * size)) * scale for name in ("wq", "wk", "wv")}
    arrays |= {"wo": rng.normal(size=(heads * size, 8)) * scale[:, None]}
    arrays |= {name: rng.normal(size=shape) for name, shape in shapes.items()}
    tensors = [ir.tensor(array.astype(np.float32), name=name) for name, array in arrays.items()]
    return ir.from_onnx_text(ATTENTION, initializers=tensors)


def sizes(model: ir.Model) -> list[int]:
    return [dict(model.graph.initializers)[name].shape[1] for name in ("wq", "wk", "wv", "wo", "w1")]


@pytest.mark.parametrize(
    ("pipeline", "want"),
    [
        ("prune-heads{ratio=0.5}", [16, 16, 16, 8, 16]),
        ("prune-heads{ratio=0.25}", [24, 24, 24, 8, 16]),
        ("prune-heads{ratio=0.4,round_to=16}", [16, 16, 16, 8, 16]),
        ("prune-channels{ratio=0.5,round_to=1}", [16, 16, 16, 4, 8]),
        ("prune-channels{ratio=0.4,round_to=16}", [16, 16, 16, 8, 16]),
        ('prune-heads{ratio=0.5,per_layer=["wq:0.25"]}', [24, 24, 24, 8, 16]),
        ("prune-channels{ratio=0.5,round_to=1,keep=[wv]}", [32, 32, 32, 4, 8]),
    ],
)
def test_heads_go_whole(pipeline: str, want: list[int]) -> None:
    result = graphopt.optimize(heads(), pipeline, strict=True)
    assert sizes(result.model) == want


def test_the_heads_of_least_weight_go() -> None:
    result = graphopt.optimize(heads(), "prune-heads{ratio=0.75}", strict=True)
    kept = result.model.graph.initializers["wq"].const_value
    whole = heads().graph.initializers["wq"].const_value
    assert kept is not None and whole is not None
    np.testing.assert_array_equal(kept.numpy(), whole.numpy()[:, 24:])


MERGED = """<ir_version: 10, opset_import: ["" : 21]>
net (float[B,3,4] x) => (float[B,3,4] y)
<int64 two = {2}, int64[4] split = {0,3,2,2}, int64[2] rest = {3,2}, int64[4] apart = {-1,2,3,2}, int64[3] back = {0,3,4}> {
   q = MatMul (x, wq)
   batch = Shape <end = 1> (x)
   many = Mul (batch, two)
   shape = Concat <axis = 0> (many, rest)
   heads = Reshape (q, split)
   first = Transpose <perm = [0, 2, 1, 3]> (heads)
   merged = Reshape (first, shape)
   turned = Transpose <perm = [0, 2, 1]> (merged)
   s = MatMul (merged, turned)
   p = Softmax (s)
   o = MatMul (p, merged)
   again = Reshape (o, apart)
   last = Transpose <perm = [0, 2, 1, 3]> (again)
   joined = Reshape (last, back)
   y = MatMul (joined, wo)
}"""  # noqa: E501  (one graph)


def test_a_computed_size_of_batch_times_heads_is_not_written_as_a_number() -> None:
    """Two heads times B would become B, right at the one B that is given alone: the heads stay instead."""
    rng = np.random.default_rng(0)
    tensors = [ir.tensor(rng.normal(size=(4, 4)).astype(np.float32), name=name) for name in ("wq", "wo")]
    model = ir.from_onnx_text(MERGED, initializers=tensors)
    given, other = ({"x": rng.normal(size=(size, 3, 4)).astype(np.float32)} for size in (2, 3))
    assert [group.channels for group in graphopt.channel_groups(model)] == [2, 2]
    result = graphopt.optimize(model, "prune-heads{ratio=0.5}", inputs=given)
    assert result.report.passes[0].applied == []
    assert graphopt.compare(model, result.model, other).outputs[0].max_abs == 0
