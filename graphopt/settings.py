"""Settings that a target runs a model with, noted in the model's metadata when they were measured to be the fastest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

KEY = "graphopt.settings"
"""Of the metadata: JSON, target to the settings that it compiles the model with."""


def note(model: ir.Model, target: str, settings: Mapping[str, Any]) -> None:
    """Write into the model's metadata what ``target`` compiles it with."""
    noted = {**_all(model), target: dict(settings)}
    model.metadata_props[KEY] = json.dumps(noted, sort_keys=True)


def noted(model: ir.Model, target: str) -> Mapping[str, Any]:
    """Return the settings that the model's metadata has for ``target``; none where nobody measured."""
    found = _all(model).get(target, {})
    return found if isinstance(found, dict) else {}


def _all(model: ir.Model) -> dict[str, Any]:
    """Return the settings by target; notes that are no such thing count as none."""
    try:
        found = json.loads(model.metadata_props.get(KEY, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
