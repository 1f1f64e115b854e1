"""Every test of ``onnx.backend.test`` that onnxruntime passes, it passes after ``simplify`` and ``speed`` too.

Each test runs as it is, and with its inputs made initializers (all but the first, and all), so that constant folding
meets every operator. Where only passes ran that rearrange nodes, the outputs must be the same to the bit.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as BackendTest

import graphopt
from graphopt.backends import session as sessions

COMPUTES = {
    "fold-constants",
    "fold-batchnorm",
    "fold-affine",
    "fold-pad",
    "merge-casts",
    "simplify-arithmetic",
}
"""Passes that compute new numbers; all others must leave every bit as it was."""
RTOL, ATOL = 1e-3, 1e-7
"""What onnx allows a backend; tests may say otherwise."""
NEWEST_IR = 13
"""The newest IR version that onnxruntime reads."""
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")


@cache
def cases() -> list[BackendTest]:
    """Return all tests of onnx that come with a model and data."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = list(collect_testcases(None))
    stored = [case for kind in KINDS[1:] for case in load_model_tests(kind=kind)]
    return [*found, *stored]


def load(case: BackendTest) -> tuple[onnx.ModelProto, list[tuple[list[Any], ...]]]:
    """Return the model of a test and its data: lists of inputs and of expected outputs, as arrays or lists."""
    if case.model is not None:
        return case.model, [(list(map(plain, ins)), list(map(plain, outs))) for ins, outs in case.data_sets]
    from pathlib import Path

    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        kinds = (("input", model.graph.input), ("output", model.graph.output))
        sets.append(tuple([read(data / f"{k}_{i}.pb", v) for i, v in enumerate(vs)] for k, vs in kinds))
    return model, sets


def read(path: Any, value: onnx.ValueInfoProto) -> Any:
    """Return the array or list of arrays that a file of test data holds; an input with a default may have none."""
    if not path.exists():
        return None
    sequence = value.type.HasField("sequence_type")
    proto = onnx.SequenceProto() if sequence else onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    return numpy_helper.to_list(proto) if sequence else numpy_helper.to_array(proto)


def plain(data: Any) -> Any:
    """Return test data as an array, a list of arrays, or ``None``."""
    if isinstance(data, onnx.TensorProto):
        return numpy_helper.to_array(data)
    if isinstance(data, onnx.SequenceProto):
        return numpy_helper.to_list(data)
    if isinstance(data, onnx.OptionalProto):
        return numpy_helper.to_optional(data)
    return data


def with_constants(
    model: onnx.ModelProto, inputs: list[Any], since: int
) -> tuple[onnx.ModelProto, list[Any]] | None:
    """Return the model with the inputs from number ``since`` on as initializers, or ``None`` where it has none."""
    turned = [i for i in range(since, len(inputs)) if isinstance(inputs[i], np.ndarray)]
    if not turned or model.ir_version < 4:
        return None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for i in turned:
        changed.graph.initializer.append(numpy_helper.from_array(inputs[i], model.graph.input[i].name))
    kept = [v for i, v in enumerate(model.graph.input) if i not in turned]
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    return changed, [array for i, array in enumerate(inputs) if i not in turned]


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """Run by onnxruntime, which does not optimize anything. An IR version too new for it is lowered first."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    older = onnx.ModelProto()
    older.CopyFrom(model)
    older.ir_version = min(model.ir_version, NEWEST_IR)
    session = onnxruntime.InferenceSession(
        older.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    asked = {value.name for value in session.get_inputs()}
    found = sessions.run(session, {name: array for name, array in feeds.items() if name in asked})
    return [found[value.name] for value in model.graph.output]


def equal(want: Any, got: Any) -> bool:
    """Return whether two outputs are the same to the bit; all NaN count as one."""
    if want is None or got is None:
        return want is got
    if isinstance(want, list):
        return len(want) == len(got) and all(map(equal, want, got))
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind == "V":
        return a.tobytes() == b.tobytes()
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def close(want: Any, got: Any, rtol: float, atol: float) -> bool:
    """Return whether two outputs are equal within the tolerance of the test."""
    if want is None or got is None:
        return want is got
    if isinstance(want, list):
        return len(want) == len(got) and all(close(a, b, rtol, atol) for a, b in zip(want, got, strict=True))
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "OUSbiu":
        return np.array_equal(a, b)
    if a.dtype.kind == "V":
        a, b = a.astype(np.float64), b.astype(np.float64)
    return np.allclose(b, a, rtol, atol, equal_nan=True)


def variants(case: BackendTest) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any], list[Any]]]:
    """Yield a test as it is, and with inputs made constant: (which, model, feeds, expected outputs)."""
    model, sets = load(case)
    for inputs, expected in sets:
        yield case.name, model, named(model, inputs), expected
        for since in (1, 0):
            changed = with_constants(model, inputs, since)
            if changed is not None and (since == 0 or len(inputs) > 1):
                yield f"{case.name}, constant from input {since}", changed[0], named(*changed), expected


def named(model: onnx.ModelProto, inputs: list[Any]) -> dict[str, Any]:
    """Return the inputs that are given, by name."""
    pairs = zip(model.graph.input, inputs, strict=True)
    return {v.name: a if isinstance(a, list) else np.asarray(a) for v, a in pairs if a is not None}


def check(
    preset: str, which: str, model: onnx.ModelProto, feeds: dict[str, Any], before: list[Any], case: Any
) -> str:
    """Optimize and run again; return what is wrong, or nothing."""
    result = graphopt.optimize(model, preset, verify=False)
    failed = [f"{e.name} raised: {e.rolled_back}" for e in result.report.passes if e.rolled_back]
    if failed:
        return f"{which}: {failed[0]}"
    try:
        after = run(ir.to_proto(result.model), feeds)
    except Exception as error:  # every failure of the runtime on the result is a finding
        return f"{which}: {type(error).__name__}: {error}"
    applied = [entry.name for entry in result.report.passes if entry.applied]
    if not COMPUTES.intersection(applied):
        return "" if equal(before, after) else f"{which}: bits differ after {', '.join(applied)}"
    rtol, atol = case.rtol or RTOL, case.atol or ATOL
    return "" if close(before, after, rtol, atol) else f"{which}: outputs differ after {', '.join(applied)}"


REASONS = {
    "ValidateOpsetForDomain": "its opset is newer than onnxruntime knows",
    "is not a registered function/op": "an operator that onnxruntime does not know",
    "NOT_IMPLEMENTED": "onnxruntime has no kernel for it",
    "INVALID_GRAPH": "onnxruntime takes it for invalid",
    "non-string numpy arrays": "a type that onnxruntime's Python interface does not take",
}


def reason(error: Exception) -> str:
    """Return why onnxruntime cannot run a test, in words that can be counted."""
    return next(
        (words for mark, words in REASONS.items() if mark in str(error)), "onnxruntime fails to run it"
    )


@pytest.mark.parametrize("preset", ["simplify", "speed"])
def test_what_onnxruntime_computes_rightly_it_computes_rightly_after(
    preset: str, record_property: Callable[[str, object], None]
) -> None:
    """Run them all, and print how many ran and why the others did not."""
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases():
        for which, model, feeds, expected in variants(case):
            try:
                before = run(model, feeds)
            except Exception as error:  # whatever the reason is, onnxruntime cannot run this test
                skipped[reason(error)] += which == case.name
                continue
            rtol, atol = case.rtol or RTOL, case.atol or ATOL
            if not all(close(a, b, rtol, atol) for a, b in zip(expected, before, strict=False)):
                skipped["onnxruntime computes something else than onnx expects"] += which == case.name
                continue
            counts["as it is" if which == case.name else "constant inputs"] += 1
            wrong += filter(None, [check(preset, which, model, feeds, before, case)])
    lines = [
        f"{preset}: of {len(cases())} tests of onnx {counts['as it is']} ran, {counts['constant inputs']} more with "
        f"constant inputs; {len(wrong)} differ; not run {skipped.total()}:",
        *(f"  {count} {why}" for why, count in skipped.most_common() if count),
    ]
    record_property("summary", "\n".join(lines))
    assert not wrong, f"{len(wrong)} of {sum(counts.values())}:\n" + "\n".join(wrong)
    assert counts["as it is"] >= 1578, "onnx's tests were not found"
