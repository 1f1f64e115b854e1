"""OpenVINO as a target: onnxruntime's plugin provider, from the package ``onnxruntime-ep-openvino``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from graphopt import hookimpl

if TYPE_CHECKING:
    import onnxruntime

    from graphopt import Backend

PROVIDER = "OpenVINOExecutionProvider"


@hookimpl
def register_backends() -> Iterable[Backend]:
    """Offer the target."""
    from graphopt import OnnxRuntime

    return [OnnxRuntime("onnxruntime:openvino", [PROVIDER], check=lacks, configure=add_provider, facts=facts)]


@cache
def devices() -> list[Any]:
    """Return the devices of exactly this provider, after its library is registered; the processor first."""
    import onnxruntime
    import onnxruntime_ep_openvino  # type: ignore[import-not-found, unused-ignore]

    found = _offered()
    if not found:
        onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_ep_openvino.get_library_path())
        found = _offered()
    return sorted(found, key=lambda device: device.device.type != onnxruntime.OrtHardwareDeviceType.CPU)


def _offered() -> list[Any]:
    import onnxruntime

    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def lacks() -> str | None:
    """Return what this machine lacks."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    try:
        found = devices()
    except ImportError:
        return "the package onnxruntime-ep-openvino is not installed"
    except (Fail, OSError) as error:
        return f"its library cannot be loaded: {error}"
    return None if found else "OpenVINO's provider finds no device; it takes Intel hardware only"


def add_provider(options: onnxruntime.SessionOptions) -> None:
    """Add the provider, on the preferred device, with the session's number of threads."""
    threads = options.intra_op_num_threads
    config = json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(threads)}})
    options.add_provider_for_devices(devices()[:1], {"load_config": config} if threads else {})


def facts() -> Iterator[tuple[str, str]]:
    """Yield the provider's version and its device."""
    chosen = devices()[0]
    yield "provider", chosen.ep_metadata.get("version", "?")
    yield "device", chosen.ep_metadata.get("ov_device", str(chosen.device.type))
