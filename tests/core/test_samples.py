"""Sample inputs: drawn to fit what the model declares and does, checked against it, read from files."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import InputError, samples
from graphopt.analysis.roles import Kind, roles

HEAD = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "local" : 1]>\n'


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + text))


def inputs(declared: str) -> ir.Model:
    return model(f"g ({declared}) => (float out) {{ out = Constant <value_float = 1.0> () }}")


BERT = """bert (int64[batch, seq] input_ids, int64[batch, seq] attention_mask, int64[batch, seq] token_type_ids,
                int64[1, seq] position_ids) => (float[batch, seq, 2] y)
<float[6, 2] words = {1,2,3,4,5,6,7,8,9,10,11,12}, float[2, 2] types = {1,2,3,4},
 int64[1] two = {2}, float big = {-10000.0}, float one = {1.0}>
{
    w = Gather (words, input_ids)
    cast_types = Cast <to = 6> (token_type_ids)
    t = Gather (types, cast_types)
    wt = Add (w, t)
    mask = Cast <to = 1> (attention_mask)
    off = Sub (one, mask)
    bias = Mul (off, big)
    bias3 = Unsqueeze (bias, two)
    y = Add (wt, bias3)
}"""


def test_static_shapes_make_one_feed_of_the_declared_types() -> None:
    declared = (
        "float[2, 3] a, double[2] b, float16[2] c, bfloat16[3] d, int32[2, 2] e, uint8[1, 4, 4, 3] f, bool[4] g, "
        "string[3] h"
    )
    (feed,) = samples.draw(inputs(declared))
    found = {name: (str(array.dtype), array.shape) for name, array in feed.items()}
    assert found == {
        "a": ("float32", (2, 3)),
        "b": ("float64", (2,)),
        "c": ("float16", (2,)),
        "d": ("bfloat16", (3,)),
        "e": ("int32", (2, 2)),
        "f": ("uint8", (1, 4, 4, 3)),
        "g": ("bool", (4,)),
        "h": ("object", (3,)),
    }
    assert feed["f"].max() > 127
    assert 0 not in feed["e"]


def test_symbols_have_one_size_in_all_inputs_and_another_in_the_second_feed() -> None:
    first, second = samples.draw(inputs("float[N, C] x, float[C] y, float[N, ?, ?] z"))
    assert [array.shape for array in first.values()] == [(2, 8), (8,), (2, 9, 10)]
    assert [array.shape for array in second.values()] == [(3, 13), (13,), (3, 14, 15)]


def test_pictures_are_large_and_batches_small() -> None:
    first, second = samples.draw(inputs("float[N, 3, H, W] x, float[N, H, W, 3] y"))
    assert [array.shape for array in first.values()] == [(2, 3, 64, 96), (2, 64, 96, 3)]
    assert [array.shape for array in second.values()] == [(3, 3, 96, 128), (3, 96, 128, 3)]


def test_a_derived_dimension_follows_its_symbols() -> None:
    declared = (
        "float[batch, 4, past_sequence_length, 8] past, int64[batch, sequence_length] ids, "
        "int64[batch, total_sequence_length] mask, float[tail] z"
    )
    given = inputs(declared)
    given.graph.inputs[3].shape = ir.Shape([ir.SymbolicDim("sequence_length + 1")])
    (first, _) = samples.draw(given)
    assert first["past"].shape == (2, 4, 8, 8)
    assert first["ids"].shape == (2, 9)
    assert first["mask"].shape == (2, 17)
    assert first["z"].shape == (10,)


def test_a_name_with_a_hyphen_is_no_subtraction() -> None:
    given = inputs("float[a, 4] x")
    given.graph.inputs[0].shape = ir.Shape([ir.SymbolicDim("batch-size"), 4])
    assert [feed["x"].shape for feed in samples.draw(given)] == [(2, 4), (3, 4)]


def test_ids_have_rows_in_the_tables_that_they_reach() -> None:
    for feed in samples.draw(model(BERT)):
        assert set(np.unique(feed["input_ids"])) <= set(range(6))
        assert set(np.unique(feed["token_type_ids"])) == {0, 1}
    assert feed["input_ids"].max() == 5
    assert list(feed["position_ids"][0]) == list(range(13))


def test_masks_keep_the_first_position_and_end_in_zeros_in_the_second_feed() -> None:
    first, second = (feed["attention_mask"] for feed in samples.draw(model(BERT)))
    assert first.all()
    assert second[:, 0].all()
    assert not second[:, -1].any()
    assert set(np.unique(second)) == {0, 1}
    assert all((np.diff(row) <= 0).all() for row in second)


@pytest.mark.parametrize(
    ("body", "kind", "limits"),
    [
        ("y = Gather <axis = 1> (t, x)", Kind.INDEX, [(2, 0)]),
        ("y = GatherElements (t, x)", Kind.INDEX, [(3, 0)]),
        ("y = GatherND (t, x)", Kind.INDEX, [(3, 0), (2, 0)]),
        ("a = Add (x, one)  y = Gather (t, a)", Kind.INDEX, [(3, 1)]),
        ("a = local.through (x)  y = Gather (t, a)", Kind.INDEX, [(3, 0)]),
        ("y = local.lookup (t, x)", Kind.INDEX, [(3, 0)]),
        ("y = com.microsoft.EmbedLayerNormalization (x, x, t, t, t, t, t)", Kind.INDEX, [(3, 0), (3, 0)]),
        ("y = OneHot (x, three, t)", Kind.INDEX, [(3, 0)]),
        ("y = Reshape (t, x)", Kind.TARGET, []),
        ("y = Tile (t, x)", Kind.SIZE, []),
        ("y = ReduceSum (t, x)", Kind.BEGIN, []),
        ("a = Sub (one, x)  y = Mul (a, a)", Kind.MASK, []),
        ("zero = Constant <value_int = 0> ()  y = Equal (x, zero)", Kind.MASK, []),
        ("y = Cast <to = 9> (x)", Kind.MASK, []),
        ("y = Mul (x, x)", Kind.PLAIN, []),
    ],
)
def test_what_reads_an_input_tells_its_role(body: str, kind: Kind, limits: list[tuple[int, int]]) -> None:
    text = f"""g (int64[2, 2] x) => (float y)
    <float[3, 2] t = {{1,2,3,4,5,6}}, int64 one = {{1}}, int64 three = {{3}}> {{ {body} }}
    <domain: "local", opset_import: ["" : 20]> through (i) => (o) {{ o = Identity (i) }}
    <domain: "local", opset_import: ["" : 20]> lookup (table, i) => (o) {{ o = Gather (table, i) }}"""
    role = roles(model(text))["x"]
    assert (role.kind, role.limits) == (kind, limits)


def test_drawn_ids_respect_what_is_added_to_them() -> None:
    given = model("""g (int64[64] x) => (float[64] y) <float[6] t = {1,2,3,4,5,6}, int64 two = {2}>
    { a = Sub (x, two)  y = Gather (t, a) }""")
    (feed,) = samples.draw(given)
    assert set(feed["x"]) == {2, 3, 4, 5, 6, 7}


def test_an_input_that_decides_a_branch_is_drawn_both_ways() -> None:
    given = model("""g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Neg (x) },
                    else_branch = e () => (float[2] b) { b = Abs (x) }>
    }""")
    assert [bool(feed["c"]) for feed in samples.draw(given)] == [True, False]


def test_the_same_seed_and_name_give_the_same_values_in_any_order() -> None:
    one, other = (
        samples.draw(inputs(d), seed=7)[0] for d in ("float[4] a, float[4] b", "float[4] b, float[4] a")
    )
    np.testing.assert_array_equal(one["a"], other["a"])
    assert not np.array_equal(one["a"], one["b"])
    assert not np.array_equal(one["a"], samples.draw(inputs("float[4] a"), seed=8)[0]["a"])


def test_sequences_are_lists() -> None:
    (feed,) = samples.draw(inputs("seq(float[2, 3]) s"))
    assert [element.shape for element in feed["s"]] == [(2, 3), (2, 3)]


def test_an_input_with_a_default_is_not_drawn() -> None:
    given = model("g (float[2] x, float[2] d) => (float[2] y) <float[2] d = {1,2}> { y = Add (x, d) }")
    assert list(samples.draw(given)[0]) == ["x"]


def test_huge_inputs_are_refused() -> None:
    with pytest.raises(InputError) as error:
        samples.draw(inputs("float[100000, 100000] x"))
    assert str(error.value) == (
        "input 'x': it is too large to be drawn, got 37.3 GiB for shape [100000, 100000]; give sample inputs"
    )


# --- check ---------------------------------------------------------------------------------------------------

FIT = "float[N, 2] image, int32[N] ids"


def test_lists_and_fitting_integers_are_converted() -> None:
    (feed,) = samples.check(inputs(FIT), {"image": [[1, 2.5]], "ids": np.array([7], np.int64)})
    assert feed["image"].dtype == np.float32
    assert feed["ids"].dtype == np.int32
    assert len(samples.check(inputs(FIT), [feed, feed])) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imag": [[1, 2]]}, "input 'imag': the model has none of this name; did you mean 'image'?"),
        ({"ids": None}, "input 'ids': it is missing, got image; give all inputs"),
        ({"ids": [1.5]}, "input 'ids': it must be int32, got float64; convert it with .astype(...)"),
        ({"ids": [2**40]}, "input 'ids': its values do not fit int32, got 1099511627776 to 1099511627776"),
        (
            {"image": np.ones((1, 2))},
            "input 'image': it must be float, got float64; convert it with .astype(...)",
        ),
        ({"image": [[1.0]]}, "input 'image': its shape must be [N, 2], got [1, 1]"),
        ({"image": [1.0, 2.0]}, "input 'image': its shape must be [N, 2], got [2]"),
        (
            {"image": [[1.0], 2.0]},
            "input 'image': it is no array, got [[1.0], 2.0]; give rows of equal length",
        ),
        (
            {"ids": [1, 2]},
            "input 'ids': dimension N must be 1 as in 'image', got 2; give the same symbol the same size",
        ),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], message: str) -> None:
    given = {"image": [[1.0, 2.0]], "ids": [1], **change}
    with pytest.raises(InputError) as error:
        samples.check(inputs(FIT), {name: array for name, array in given.items() if array is not None})
    assert str(error.value) == message


def test_no_feed_at_all_is_an_error() -> None:
    with pytest.raises(InputError) as error:
        samples.check(inputs(FIT), [])
    assert str(error.value) == (
        "inputs: none are given, got an empty list; give at least one dictionary or leave them out"
    )


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_saved_is_loaded(tmp_path: Path, count: int) -> None:
    declared = inputs("float[2] a, bfloat16[2] b, string[2] c, seq(int64[2]) d")
    feeds = [samples.draw(declared, seed=i)[0] for i in range(count)]
    samples.save(tmp_path / "x.npz", feeds)
    again = samples.check(declared, samples.load(tmp_path / "x.npz"))
    assert len(again) == count
    for want, got in zip(feeds, again, strict=True):
        assert got["b"].dtype == ml_dtypes.bfloat16
        for name in want:
            np.testing.assert_array_equal(np.asarray(want[name]), np.asarray(got[name]))


def test_several_feeds_are_told_by_their_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"a/0": [1], "a/1": [2], "b/0": [3], "b/1": [4]})
    assert [{k: int(v[0]) for k, v in feed.items()} for feed in samples.load(tmp_path / "x.npz")] == [
        {"a": 1, "b": 3},
        {"a": 2, "b": 4},
    ]


def bad_file(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "x.npz"
    match content:
        case "pickle":
            np.savez(path, x=np.array([object()], dtype=object), allow_pickle=True)
        case "gap":
            np.savez(path, **{"a/0": [1], "a/1": [2], "b/0": [3]})
        case "nothing":
            np.savez(path)
        case "text":
            path.write_text("no archive")
        case "array":
            np.save(path.open("wb"), np.ones(2))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("missing", "there is no such file; write one with numpy.savez"),
        (
            "pickle",
            "it cannot be read as .npz: it holds Python objects, which are not unpickled; write it with numpy.savez",
        ),
        ("text", "it holds no .npz archive; write it with numpy.savez(path, name=array)"),
        ("gap", "feed 1 lacks 'b'; give b/0 to b/1"),
        ("nothing", "it holds no arrays; write it with numpy.savez(path, name=array)"),
        ("array", "it holds one array without a name; write it with numpy.savez(path, name=array)"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = bad_file(tmp_path, content)
    with pytest.raises(InputError) as error:
        samples.load(path)
    assert str(error.value) == f"{path}: {message}"


# --- calibration ---------------------------------------------------------------------------------------------


def test_a_file_gives_its_samples_one_at_a_time_and_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", x=np.arange(6).reshape(3, 2))
    np.savez(tmp_path / "a.npz", **{"x/0": [[7, 7]], "x/1": [[8, 8]]})
    file, folder = samples.calibration(str(tmp_path / "b.npz")), samples.calibration(str(tmp_path))
    for _ in range(2):
        assert [feed["x"].tolist() for feed in file] == [[[0, 1]], [[2, 3]], [[4, 5]]]
        assert [feed["x"][0][0] for feed in folder] == [7, 8, 0, 2, 4]


def test_a_function_is_called_at_each_iteration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "feeding.py").write_text(
        "def feeds():\n    yield {'x': 1}\n    yield {'x': 2}\nnumber = 3\ndef bare(): return 3\n"
        "def wrong(): return [5]\ndef empty(): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "feeding", raising=False)
    data = samples.calibration("feeding:feeds")
    assert list(data) == list(data) == [{"x": 1}, {"x": 2}]
    choices = "give FILE.npz, a folder of .npz files, or module:function"
    for text, message in {
        "feeding:emptly": "module 'feeding' has no attribute 'emptly'; did you mean 'empty'?",
        "nowhere_at_all:f": "cannot import nowhere_at_all: ModuleNotFoundError: No module named 'nowhere_at_all'; "
        "run where it can be imported from",
        "feeding:number": "no callable, got 3; name a function that returns an iterable of dictionaries",
        "feeding:bare": "it must return an iterable of dictionaries, got 3",
        "feeding:wrong": "each element must be a dictionary of arrays, got 5",
        "feeding:empty": "it gives no inputs; give at least one",
        "gone": f"there is no such file or folder; {choices}",
    }.items():
        with pytest.raises(InputError) as error:
            list(samples.calibration(text))
        assert str(error.value) == f"{text}: {message}"
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing: the folder holds no \.npz file; give FILE"):
        samples.calibration(str(tmp_path / "nothing"))
