"""Atoms, the places along axes that go together; and what binds or frees the channels of a whole graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from cutting import half, network, same_as_masked, shown

import graphopt
from graphopt import ModelError, OpInfo, UsageError, channel_groups, plugins
from graphopt.analysis.channels import Count, Flow, Refuse
from graphopt.analysis.channels.atoms import NEVER, Atoms, never
from graphopt.query import attribute

SEEDS = 100


def together(atoms: Atoms, a: int, b: int) -> bool:
    """Return whether two atoms are one."""
    return bool(atoms.find(np.array([a]))[0] == atoms.find(np.array([b]))[0])


def sets(atoms: Atoms, labels: np.ndarray) -> list[set[int]]:
    """Return the atoms that each place goes with."""
    return [set(column.tolist()) - {NEVER} for column in atoms.leaves(labels).T]


# --- atoms ------------------------------------------------------------------------------------------------------------


def test_fresh_atoms_are_their_own() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(3), atoms.fresh(2000)
    assert len(np.unique(atoms.find(np.concatenate([a, b])))) == len(a) + len(b)
    assert len(atoms) == 1 + 3 + 2000
    assert not atoms.cause(b).any()


def test_what_is_unified_is_one() -> None:
    atoms = Atoms()
    a, b, c = atoms.fresh(3), atoms.fresh(3), atoms.fresh(3)
    atoms.unify(a, b)
    atoms.unify(c, b)
    assert (atoms.find(a) == atoms.find(c)).all()
    assert not together(atoms, a[0], b[1])


def test_unifying_with_many_at_once_ties_them_all() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(1), atoms.fresh(4)
    atoms.unify(b, np.repeat(a, 4))
    assert len(np.unique(atoms.find(b))) == 1


def test_unifying_an_axis_with_its_reverse_pairs_its_ends() -> None:
    atoms = Atoms()
    a = atoms.fresh(5)
    atoms.unify(a, a[::-1])
    assert together(atoms, a[0], a[4])
    assert together(atoms, a[1], a[3])
    assert len(np.unique(atoms.find(a))) == 3


def test_frozen_atoms_say_why_and_freeze_what_is_unified_with_them() -> None:
    atoms = Atoms()
    a, b, c = atoms.fresh(2), atoms.fresh(2), atoms.fresh(2)
    atoms.unify(a, b)
    atoms.freeze(a[:1], "the moon is full")
    assert atoms.why(b) == "the moon is full"
    assert not atoms.cause(b[1:]).any()
    atoms.unify(b, c)
    assert atoms.cause(c).astype(bool).tolist() == [True, False]
    atoms.unify(c[::-1], c)
    assert atoms.cause(a).all()


def test_the_first_cause_is_kept() -> None:
    atoms = Atoms()
    a = atoms.fresh(1)
    atoms.freeze(a, "first")
    atoms.freeze(a, "second")
    assert atoms.why(a) == "first"


def test_an_atom_may_go_where_one_of_two_goes() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(2), atoms.fresh(2)
    made = atoms.either(a, b)
    assert sets(atoms, made) == [{a[0], b[0]}, {a[1], b[1]}]
    assert (atoms.either(a, b) == made).all()
    assert (atoms.either(a, a) == atoms.find(a)).all()


def test_of_two_of_which_one_never_goes_it_is_the_other() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(1), atoms.fresh(1)
    atoms.freeze(a, "it stays")
    assert atoms.either(a, b) == b
    assert atoms.either(b, a) == b
    assert atoms.cause(atoms.either(a, a)).all()


def test_what_is_frozen_of_two_freezes_both() -> None:
    atoms = Atoms()
    a, b = atoms.fresh(1), atoms.fresh(1)
    atoms.freeze(atoms.either(a, b), "it stays")
    assert atoms.cause(a).all()
    assert atoms.cause(b).all()


def test_two_of_two_are_unified_part_by_part() -> None:
    atoms = Atoms()
    a, b, c, d = (atoms.fresh(1) for _ in range(4))
    atoms.unify(atoms.either(a, b), atoms.either(c, d))
    assert together(atoms, a[0], c[0])
    assert together(atoms, b[0], d[0])
    assert not together(atoms, a[0], b[0])


def test_a_free_atom_becomes_one_of_two() -> None:
    for swap in (False, True):
        atoms = Atoms()
        a, b, c = (atoms.fresh(1) for _ in range(3))
        pair = (c, atoms.either(a, b))
        atoms.unify(*(pair[::-1] if swap else pair))
        assert sets(atoms, c) == [{a[0], b[0]}]


def test_what_goes_where_itself_or_another_goes_is_all_one() -> None:
    """``a = a ∨ b``: b may not go alone, nor may a, whatever order they came in."""
    for swap in (False, True):
        atoms = Atoms()
        a, b, c = (atoms.fresh(1) for _ in range(3))
        compound = atoms.either(atoms.either(a, b), c)
        atoms.unify(*((compound, a) if swap else (a, compound)))
        assert together(atoms, a[0], b[0])
        assert together(atoms, a[0], c[0])
        assert together(atoms, a[0], compound[0])
        assert sets(atoms, compound) == [{int(atoms.find(a)[0])}]


def test_what_settled_leaves_are_asked_for_again_is_remembered() -> None:
    atoms = Atoms()
    a = atoms.fresh(3)
    atoms.settle()
    assert atoms.leaves(a) is atoms.leaves(a)


def test_axes_that_are_merged_go_with_either() -> None:
    atoms = Atoms()
    rows, columns = atoms.fresh(2), atoms.fresh(3)
    flat = atoms.merge([rows, columns])
    assert sets(atoms, flat) == [{r, c} for r in rows.tolist() for c in columns.tolist()]


@pytest.mark.parametrize("rows_stay", [True, False])
def test_an_axis_that_stays_only_repeats_the_other(rows_stay: bool) -> None:
    atoms = Atoms()
    rows, columns = (never(2), atoms.fresh(3)) if rows_stay else (atoms.fresh(2), never(3))
    flat = atoms.merge([rows, columns])
    want = np.tile(columns, 2) if rows_stay else np.repeat(rows, 3)
    assert (flat == want).all()
    first, second = atoms.grid(flat, (2, 3))
    assert (first == rows).all()
    assert (second == columns).all()


def test_what_is_merged_is_divided_again() -> None:
    atoms = Atoms()
    axes = [atoms.fresh(2), atoms.fresh(3), atoms.fresh(4)]
    made = atoms.grid(atoms.merge(axes), (2, 3, 4))
    assert [each.tolist() for each in made] == [each.tolist() for each in axes]
    count = len(atoms)
    assert [len(each) for each in atoms.grid(axes[2], (1, 4, 1))] == [1, 4, 1]
    assert len(atoms) == count


def test_an_axis_that_is_divided_leaves_a_grid() -> None:
    atoms = Atoms()
    flat = atoms.fresh(6)
    rows, columns = atoms.grid(flat, (2, 3))
    assert sets(atoms, flat) == [{r, c} for r in rows.tolist() for c in columns.tolist()]


def test_rows_of_which_one_stays_are_found_again() -> None:
    atoms = Atoms()
    rows, columns = atoms.fresh(3), atoms.fresh(4)
    atoms.freeze(rows[:1], "it stays")
    first, second = atoms.grid(atoms.merge([rows, columns]), (3, 4))
    assert atoms.cause(first).astype(bool).tolist() == [True, False, False]
    assert (first[1:] == rows[1:]).all()
    assert (second == columns).all()


def test_axes_that_were_merged_in_another_order_are_divided_again() -> None:
    atoms = Atoms()
    a, b, c = atoms.fresh(2), atoms.fresh(3), atoms.fresh(4)
    for flat in (atoms.merge([atoms.merge([a, b]), c]), atoms.merge([a, atoms.merge([b, c])])):
        assert [each.tolist() for each in atoms.grid(flat, (2, 3, 4))] == [
            each.tolist() for each in (a, b, c)
        ]
        six, four = atoms.grid(flat, (6, 4))
        assert (four == c).all()
        assert sets(atoms, six) == sets(atoms, atoms.merge([a, b]))


def test_compounds_of_the_same_parts_are_one_and_tie_nothing() -> None:
    atoms = Atoms()
    a, b, c = (atoms.fresh(1) for _ in range(3))
    one, other = atoms.either(atoms.either(a, b), c), atoms.either(b, atoms.either(c, a))
    atoms.unify(one, other)
    assert together(atoms, one[0], other[0])
    assert len(np.unique(atoms.find(np.concatenate([a, b, c])))) == 3


def test_compounds_that_share_a_part_tie_the_others() -> None:
    atoms = Atoms()
    a, b, c = (atoms.fresh(1) for _ in range(3))
    atoms.unify(atoms.either(a, b), atoms.either(c, a))
    assert together(atoms, b[0], c[0])
    assert not together(atoms, a[0], b[0])


def test_a_grid_in_another_order_ties_what_both_ask_for() -> None:
    """Six places as 2 x 3 and as 3 x 2: whatever goes along one leaves no grid of the other but all of it."""
    atoms = Atoms()
    flat = atoms.fresh(6)
    two, three = atoms.grid(flat, (2, 3))
    other = atoms.grid(flat, (3, 2))
    for gone in (*two, *three, *other[0], *other[1]):
        marks = {int(atoms.find(np.array([gone]))[0])}
        left = np.array([not places & marks for places in sets(atoms, flat)])
        for shape in ((2, 3), (3, 2)):
            grid = left.reshape(shape)
            assert (grid == np.outer(grid.any(1), grid.any(0))).all()


def test_grids_of_frozen_axes_are_frozen() -> None:
    atoms = Atoms()
    flat = atoms.fresh(6)
    atoms.freeze(flat, "it stays")
    assert [atoms.cause(each).all() for each in atoms.grid(flat, (2, 3))] == [True, True]
    part = atoms.fresh(6)
    atoms.freeze(part[1:2], "it stays")
    rows, columns = atoms.grid(part, (2, 3))
    assert atoms.cause(rows).astype(bool).tolist() == [True, False]
    assert atoms.cause(columns).astype(bool).tolist() == [False, True, False]


def test_random_ties_are_what_a_table_of_sets_says() -> None:
    """Against the plain meaning: a compound goes iff a part of it goes, ties make both go or neither."""
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        atoms = Atoms()
        base = labels = atoms.fresh(5)
        for _ in range(4):
            a, b = (labels[i : i + 1] for i in rng.integers(0, len(labels), 2))
            labels = np.concatenate([labels, atoms.either(a, b)])
        ties = [(int(i), int(j)) for i, j in rng.integers(0, len(labels), (3, 2))]
        before = sets(atoms, labels)
        for i, j in ties:
            atoms.unify(labels[i : i + 1], labels[j : j + 1])
        after = sets(atoms, labels)
        roots = sorted({atom for places in after for atom in places})
        for number in range(2 ** len(roots)):
            gone = {atom for bit, atom in enumerate(roots) if number >> bit & 1}
            goes = [bool(places & gone) for places in after]
            for i, j in ties:
                assert goes[i] == goes[j], (seed, ties, before)
            for k in range(5, len(labels)):
                parts = [goes[int(np.flatnonzero(base == part)[0])] for part in before[k]]
                assert goes[k] == any(parts), (seed, ties, before)


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_outputs_stay_unless_they_may_shrink() -> None:
    model = network(
        "(float[2,3] x) => (float[2,6] y) <float[3,8] w, float[8,6] v> { a = MatMul (x, w) y = MatMul (a, v) }"
    )
    assert shown(channel_groups(model)) == [
        "a: 8: w[1], v[0]",
        "MatMul y stays: y is an output of the model",
    ]
    groups = channel_groups(model, outputs=["y"])
    assert shown(groups) == ["a: 8: w[1], v[0]", "y: 6: v[1]"]
    with pytest.raises(UsageError) as error:
        channel_groups(model, outputs=["z"])
    assert str(error.value) == "outputs: the model has none called 'z'; it has y"


def test_an_output_that_counts_channels_shrinks_with_them() -> None:
    model = network(
        """(float[2,4,3] x) => (float[2,4,6] y) <float[3,6] w, float[6] s, float[6] b>
        {
            a = MatMul (x, w)
            y = LayerNormalization (a, s, b)
        }"""
    )
    groups = channel_groups(model, outputs=["y"])
    gone = half(groups, np.random.default_rng(0))
    small = same_as_masked(model, groups, gone, outputs=["y"])
    assert small.graph.outputs[0].shape == ir.Shape([2, 4, 3])


def test_functions_are_inlined_before() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        net (float[2,3] x) => (float[2,3] y) { y = mine.twice (x) }
        <domain: "mine", opset_import: ["" : 21]> twice (a) => (b) { b = Add (a, a) }"""
    )
    with pytest.raises(ModelError) as error:
        channel_groups(model)
    assert str(error.value) == (
        "function twice: channels are not followed through functions; inline-functions goes before"
    )


def test_weights_that_come_in_as_inputs_stay() -> None:
    model = network(
        "(float[2,3] x, float[3,6] w) => (float[2,2] y) <float[6,2] v> { a = MatMul (x, w) y = MatMul (a, v) }"
    )
    assert shown(channel_groups(model)) == ["MatMul y stays: y is an output of the model"]


def test_open_sizes_get_numbers() -> None:
    model = network(
        """(float[N,3,H,W] x) => (float[N,2,H,W] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            y = Conv (a, v)
        }"""
    )
    one, eight = (channel_groups(model, {"N": n, "H": 4, "W": 4}) for n in (1, 8))
    assert eight.macs() == 8 * one.macs() == 8 * 16 * (3 * 6 + 6 * 2)
    assert one.parameters() == 3 * 6 + 6 * 2
    with pytest.raises(UsageError, match=r"^dims: no input has a dimension called 'B'"):
        channel_groups(model, {"B": 1})


def test_shares_of_macs_and_parameters() -> None:
    model = network(
        "(float[1,2] x) => (float[1,2] y) <float[2,4] w, float[4,6] u, float[6,2] v> "
        "{ a = MatMul (x, w) b = MatMul (a, u) y = MatMul (b, v) }"
    )
    groups = channel_groups(model)
    total = 2 * 4 + 4 * 6 + 6 * 2
    assert [(g.name, g.macs) for g in groups] == [
        ("a", pytest.approx((2 * 4 + 4 * 6) / total)),
        ("b", pytest.approx((4 * 6 + 6 * 2) / total)),
    ]
    gone = groups.nothing()
    gone[groups.groups[0].atoms[:1]] = True
    assert groups.macs(gone) == groups.parameters(gone) == 2 * 3 + 3 * 6 + 6 * 2


def test_no_axis_is_left_empty() -> None:
    """Of the channels that one half of a Split has, one stays, although all are worth less than the others."""
    model = network(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[8,3,1,1] w, float[4,4,1,1] u, float[2,8,1,1] v>
        {
            a = Conv (x, w)
            b, c = Split <axis = 1, num_outputs = 2> (a)
            d = Conv (c, u)
            e = Concat <axis = 1> (b, d)
            y = Conv (e, v)
        }"""
    )
    groups = channel_groups(model)
    gone, worth = groups.nothing(), np.zeros(len(groups.nothing()))
    gone[groups.groups[0].atoms[4:]] = True
    worth[groups.groups[0].atoms] = [1, 1, 1, 1, 0.1, 0.3, 0.2, 0]
    spared = groups.spared(gone, worth)
    assert np.flatnonzero(gone & ~spared).tolist() == [groups.groups[0].atoms[5]]
    same_as_masked(model, groups, spared)


def test_names_of_groups_are_their_own() -> None:
    """Queries that share keys, written out: two groups have the same first node."""
    model = network(GROUPED)
    names = [group.name for group in channel_groups(model)]
    assert len(set(names)) == len(names)


GROUPED = """(float[2,5,3] x) => (float[2,5,2] y)
<float[3,16] wq, float[3,8] wk, float[3,8] wv, int64[4] heads = {2,5,8,2}, int64[4] keys = {2,5,4,2},
 int64[1] two = {2}, int64[5] ks = {2,4,2,2,5}, int64[4] kj = {2,8,2,5}, int64[5] vs = {2,4,2,5,2},
 int64[4] vj = {2,8,5,2}, int64[3] join = {2,5,16}, float[16,2] wo>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    qh = Reshape (q, heads)
    kh = Reshape (k, keys)
    vh = Reshape (v, keys)
    qt = Transpose <perm = [0, 2, 1, 3]> (qh)
    kt = Transpose <perm = [0, 2, 3, 1]> (kh)
    vt = Transpose <perm = [0, 2, 1, 3]> (vh)
    ku = Unsqueeze (kt, two)
    ke = Expand (ku, ks)
    kr = Reshape (ke, kj)
    vu = Unsqueeze (vt, two)
    ve = Expand (vu, vs)
    vr = Reshape (ve, vj)
    s = MatMul (qt, kr)
    p = Softmax (s)
    o = MatMul (p, vr)
    t = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape (t, join)
    y = MatMul (m, wo)
}"""


# --- rules of plugins -------------------------------------------------------------------------------------------------

GATED = """(float[2,4,3] x) => (float[2,4,2] y)
<float[3,6] w, float[6,6] u, float[6,2] v>
{
    a = MatMul (x, w)
    b = mine.Gated <heads = 6> (a, u)
    y = MatMul (b, v)
}"""


def gated(node: ir.Node, flow: Flow) -> None:
    """A product of the channels, which it makes anew from weights of its own."""
    x, w = flow.of(node.inputs[0]), flow.of(node.inputs[1])
    if attribute(node, "heads", 1) != len(x[2]):
        raise Refuse("its heads have more than one channel")
    flow.tie(x[2], w[0])
    flow.source(node, w[1])
    flow.edit(Count(node, "heads", w[0]))
    flow.multiplies(node, len(x[0]) * len(x[1]), w[0], w[1])
    flow.give(node.outputs[0], [x[0], x[1], w[1]])


@pytest.fixture
def plugin() -> Iterator[None]:
    class Plugin:
        @staticmethod
        @graphopt.hookimpl
        def register_operators() -> dict[tuple[str, str], OpInfo]:
            return {("mine", "Gated"): OpInfo(channels=gated)}

    plugins.register(Plugin(), "gated")
    yield
    plugins.unregister("gated")


def custom(text: str) -> ir.Model:
    model = network(text)
    model.opset_imports["mine"] = 1
    (node,) = (node for node in model.graph if node.domain == "mine")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 4, 6])
    return model


def test_without_a_rule_what_touches_an_operator_stays() -> None:
    assert shown(channel_groups(custom(GATED))) == [
        "Gated b stays: no rule says what Gated does to channels",
        "MatMul a stays: Gated b: no rule says what Gated does to channels",
        "MatMul y stays: y is an output of the model",
    ]


@pytest.mark.usefixtures("plugin")
def test_a_rule_of_a_plugin_is_followed() -> None:
    model = custom(GATED)
    groups = channel_groups(model)
    assert shown(groups)[:2] == ["a: 6: w[1], u[0]", "b: 6: u[1], v[0]"]
    assert groups.macs() == 8 * (3 * 6 + 6 * 6 + 6 * 2)
    result = graphopt.optimize(model, "prune-channels{ratio=0.5,round_to=1}", verify=False)
    (node,) = (node for node in result.model.graph if node.domain == "mine")
    assert attribute(node, "heads", 0) == 3
    sizes = {name: value.shape for name, value in result.model.graph.initializers.items()}
    assert sizes == {"w": ir.Shape([3, 3]), "u": ir.Shape([3, 3]), "v": ir.Shape([3, 2])}


@pytest.mark.usefixtures("plugin")
def test_a_rule_of_a_plugin_says_why_it_refuses() -> None:
    assert shown(channel_groups(custom(GATED.replace("heads = 6", "heads = 2"))))[0] == (
        "Gated b stays: its heads have more than one channel"
    )
