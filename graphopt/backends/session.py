"""Sessions of onnxruntime that read a model's weights where they are, instead of copying them.

onnxruntime maps external data into memory but copies everything else, once or twice (measured with 434 MB of weights,
optimizations and prepacking off: a session made from one file peaks at 617 MB resident, ``add_external_initializers``
at 957 MB, external data at 440 MB). So a session gets the graph alone, and each larger weight as a reference to the
file that it lies in. Weights that lie in no file are written to a temporary one; where no optimization can look at
them, onnxruntime then uses the caller's memory in place of the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import onnx_ir as ir

from ..errors import InputError, ModelError, OptionError, UnavailableError
from ..model import MappedTensor, clone, pages

if TYPE_CHECKING:
    import onnxruntime

Optimize = Literal["none", "basic", "extended", "all"]
CPU = "CPUExecutionProvider"
INLINE_BYTES = 1024
"""Weights up to this size stay in the graph: shapes, axes and scalars, which onnxruntime looks at while loading."""
INLINE_TOTAL_BYTES = 16 << 20
"""Weights in memory that are no more than this together stay in the graph too: a copy is cheaper than a file."""
PAGE_BYTES = 4096
LEVELS = {"none": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}
_REFUSALS = ("InvalidGraph", "InvalidProtobuf", "InvalidArgument", "NotImplemented", "NoSuchFile", "NoModel")
_FAILURES = ("Fail", "RuntimeException", "EPFail", "EngineError", "NotFound", "ModelRequiresCompilation")


_SIGNATURE = r"\w+\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])?"
"""The end of a C++ function's signature, as onnxruntime quotes it."""


def create(
    model: ir.Model,
    *,
    providers: Sequence[str] = (CPU,),
    provider_options: Sequence[Mapping[str, str]] | None = None,
    configure: Callable[[onnxruntime.SessionOptions], None] | None = None,
    optimize: Optimize = "all",
    disable: Sequence[str] = (),
    threads: int | None = None,
    prepack: bool = True,
    config: Mapping[str, str] | None = None,
    profile: Path | None = None,
    lowered: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session of ``model``, which is not changed and must live, with its files, as long as the session.

    Args:
        model: the model.
        providers: onnxruntime's names of the providers that the session must have, the preferred one first.
        provider_options: of each provider.
        configure: adds the providers to the session's options by itself (plugin providers).
        optimize: how far onnxruntime may rewrite the graph.
        disable: names of onnxruntime's optimizers that it must not run.
        threads: of one operator; all cores where not given.
        prepack: let kernels keep their own copy of weights in the layout that they like best.
        config: further entries of the session's configuration.
        profile: write a profile of every run to files whose path begins so.
        lowered: write the graph that the session runs to this file, and its weights to one beside it.

    Raises:
        OptionError: there is no such level of optimization, or no such number of threads.
        ModelError: onnxruntime refuses the model.
        UnavailableError: the session does not run on the providers that were asked for.
    """
    import onnxruntime

    if optimize not in LEVELS:
        raise OptionError(f"optimize: no level is called {optimize!r}; there are: {', '.join(LEVELS)}")
    if threads is not None and threads < 1:
        raise OptionError(f"threads: must be 1 or more, got {threads}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{LEVELS[optimize]}")
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = options.enable_mem_pattern = optimize != "none"
    entries = {"session.force_spinning_stop": "1", "session.disable_prepacking": str(int(not prepack))}
    for key, value in {**entries, **(config or {})}.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if lowered is not None:
        _write_lowered(options, lowered)
    if configure is not None:
        configure(options)
    share = optimize == "none" and list(providers) == [CPU] and configure is None
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        graph, kept = _hand_over(model, options, Path(folder), share)
        session = _start(graph, options, providers, provider_options, configure is not None, disable)
    session.graphopt_keeps = kept  # type: ignore[attr-defined]
    return session


def _write_lowered(options: onnxruntime.SessionOptions, path: Path) -> None:
    """Let the session write the graph that it runs; its weights, which nobody wants, go nowhere where they can."""
    weights = path.with_suffix(".weights")
    if os.name == "posix":
        weights.symlink_to(os.devnull)
    options.optimized_model_filepath = str(path)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", weights.name)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(INLINE_BYTES))


def _start(
    graph: bytes,
    options: onnxruntime.SessionOptions,
    providers: Sequence[str],
    provider_options: Sequence[Mapping[str, str]] | None,
    configured: bool,
    disable: Sequence[str],
) -> onnxruntime.InferenceSession:
    import onnxruntime

    given: dict[str, Any] = {} if configured else {"providers": list(providers)}
    if provider_options is not None and not configured:
        given["provider_options"] = [dict(each) for each in provider_options]
    if disable:
        given["disabled_optimizers"] = list(disable)
    said: list[str] = []
    try:
        with _hushed(said) if list(providers) != [CPU] else contextlib.nullcontext():
            session = onnxruntime.InferenceSession(graph, options, enable_fallback=0, **given)
    except _errors(*_REFUSALS) as error:
        raise ModelError(f"onnxruntime refuses the model: {condense(error)}") from error
    except _errors(*_FAILURES, also=(RuntimeError, ValueError)) as error:
        if list(providers) == [CPU]:
            raise ModelError(f"onnxruntime refuses the model: {condense(error)}") from error
        raise UnavailableError(
            f"{providers[0]}: cannot be used here: {condense(error, *said)}; use another target"
        ) from error
    got = session.get_providers()
    if missing := [name for name in providers if name not in got]:
        reason = condense(*said) or "onnxruntime gives no reason"
        raise UnavailableError(
            f"{missing[0]}: cannot be used here: {reason}; use another target (the session has {', '.join(got)})"
        )
    return session


def _errors(*names: str, also: tuple[type[Exception], ...] = ()) -> tuple[type[Exception], ...]:
    """Return onnxruntime's exceptions of these names, of which it exports none."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (*(getattr(state, name) for name in names), *also)


def condense(*messages: object) -> str:
    """Return onnxruntime's messages as one line, without its source files, codes, colours and time stamps."""
    text = " ".join(" ".join(str(message) for message in messages).split())
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:[\d.]+ \[[A-Z]:onnxruntime:[^\]]*\]\s*", "", text)
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ :\s*", "", text)
    text = re.sub(
        r"/onnxruntime_src/\S+:\d+ (?:\S+ )??\S*?(?:\w+::)*\w+\((?:[^()]|\([^()]*\))*\)(?: const)?\s*",
        "",
        text,
    )
    return text.strip().rstrip(".")


@contextlib.contextmanager
def _hushed(said: list[str]) -> Iterator[None]:
    """Collect in ``said`` what native code writes to standard error: providers report failures only there."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        original = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            log.seek(0)
            said.extend(log.read().decode(errors="replace").splitlines())


# --- weights ----------------------------------------------------------------------------------------------------------


def _hand_over(
    model: ir.Model, options: onnxruntime.SessionOptions, folder: Path, share: bool
) -> tuple[bytes, list[object]]:
    """Return the graph's bytes with references for weights, and what must live as long as the session."""
    copy = clone(model)
    if copy.ir_version >= 4:
        _lift_constants(copy)
    root = Path(folder).resolve().anchor
    loose: list[ir.Value] = []
    for value in _weights(copy):
        place = _place(value.const_value)
        if place is not None and place[0].anchor == root:
            _refer(value, place[0].relative_to(root), place[1])
        else:
            loose.append(value)
    kept: list[object] = []
    if sum(value.const_value.nbytes for value in loose if value.const_value is not None) > INLINE_TOTAL_BYTES:
        kept = _share(copy, loose, options) if share else []
        file = Path(folder).resolve() / "weights"
        for value, offset in zip(loose, _spill(loose, file), strict=True):
            _refer(value, file.relative_to(root), offset)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
    proto = ir.to_proto(copy)
    if (size := proto.ByteSize()) >= 2**31:
        raise ModelError(
            f"the graph without its weights is {size} bytes; onnxruntime takes no more than 2 GB"
        )
    return proto.SerializeToString(), [model, *kept]


def _lift_constants(model: ir.Model) -> None:
    """Turn larger Constant nodes into initializers, which can lie in a file."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.op_type != "Constant" or node.domain or "value" not in node.attributes:
                continue
            tensor, output = node.attributes["value"].as_tensor(), node.outputs[0]
            if (
                tensor.nbytes <= INLINE_BYTES
                or tensor.dtype == ir.DataType.STRING
                or output.is_graph_output()
            ):
                continue
            value = ir.Value(
                name=output.name,
                type=ir.TensorType(tensor.dtype),
                shape=ir.Shape(tensor.shape.numpy()),
                const_value=tensor,
            )
            output.replace_all_uses_with(value)
            graph.remove(node)
            graph.register_initializer(value)


def _weights(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the initializers, those of subgraphs too, that need not stand in the graph itself."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > INLINE_BYTES and tensor.dtype != ir.DataType.STRING:
                yield value


def _place(tensor: ir.TensorProtocol | None) -> tuple[Path, int] | None:
    """Return the file that ``tensor`` lies in and its offset there; ``None`` where it lies in memory alone."""
    if isinstance(tensor, MappedTensor):
        span = tensor.raw
        return (span.path.resolve(), span.offset) if span.file.in_place() else None
    if isinstance(tensor, ir.ExternalTensor):
        path = Path(tensor.path).resolve()
        if not path.is_relative_to(Path(tensor.base_dir).resolve()):
            raise ModelError(f"weight {tensor.name}: its data are outside the model's folder, in {path}")
        return path, tensor.offset or 0
    return None


def _refer(value: ir.Value, path: Path, offset: int) -> None:
    """Put a reference to a file in place of the tensor."""
    tensor = value.const_value
    assert tensor is not None and value.name is not None
    shape = ir.Shape(tensor.shape.numpy())
    value.const_value = ir.ExternalTensor(
        path, offset, tensor.nbytes, tensor.dtype, shape=shape, name=value.name
    )


def _spill(values: Iterable[ir.Value], path: Path) -> list[int]:
    """Write weights to a file, one at a time; return their offsets."""
    offsets = []
    try:
        with path.open("wb") as file:
            for value in values:
                file.seek(-file.tell() % PAGE_BYTES, os.SEEK_CUR)
                offsets.append(file.tell())
                tensor = cast("ir.Tensor[Any]", value.const_value)
                tensor.tofile(file)
                pages.release(tensor)
    except OSError as error:
        raise UnavailableError(
            f"{path.parent}: weights cannot be written there: {error.strerror}; set TMPDIR to a folder with room"
        ) from error
    return offsets


def _plain(tensor: ir.TensorProtocol) -> bool:
    """Return whether numpy holds the tensor's elements as ONNX stores them."""
    return sys.byteorder == "little" and tensor.dtype.itemsize >= 1 and tensor.numpy().dtype.isbuiltin == 1


def _share(model: ir.Model, values: Sequence[ir.Value], options: onnxruntime.SessionOptions) -> list[object]:
    """Let the session use the caller's memory for ``values``; return what must live as long as it.

    Only for weights whose name stands for nothing else in a subgraph, and that no caller can override.
    """
    import onnxruntime

    nested = {name for graph in model.graph.subgraphs() for name in graph.initializers}
    kept: list[object] = []
    for value in values:
        tensor = value.const_value
        if tensor is None or value.name in nested or value.graph is not model.graph or value.is_graph_input():
            continue
        if not _plain(tensor) or not tensor.numpy().flags.c_contiguous:
            continue
        shared = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor.numpy(), tensor.dtype.value)
        options.add_initializer(value.name, shared)
        kept.append(shared)
    return kept


# --- runs -------------------------------------------------------------------------------------------------------------


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Run once; arrays by name in, arrays by name out, also of types that numpy lacks (as ``ml_dtypes``).

    A sequence comes as a list of arrays, an absent optional as ``None``.

    Raises:
        InputError: the inputs do not fit.
        ModelError: a kernel fails.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        if all(_known(each.type) for each in (*session.get_inputs(), *session.get_outputs())):
            outputs = session.run(names, dict(inputs))
        else:
            values = session.run_with_ort_values(
                names, {name: to_ort(array) for name, array in inputs.items()}
            )
            outputs = [from_ort(value) for value in values]
    except _errors(*_REFUSALS, *_FAILURES, also=(RuntimeError, ValueError)) as error:
        raise failure(error) from error
    return dict(zip(names, outputs, strict=True))


def failure(error: Exception) -> InputError | ModelError:
    """Return what to raise for an error of onnxruntime during a run."""
    if isinstance(error, _errors("InvalidArgument", also=(ValueError,))) and "while running" not in str(
        error
    ):
        return InputError(f"onnxruntime refuses the inputs: {condense(error)}")
    return ModelError(f"onnxruntime fails to run the model: {condense(error)}")


def _known(kind: str) -> bool:
    return re.search(r"bfloat16|float8|float4|int4|int2", kind) is None


def to_ort(array: np.ndarray[Any, Any], device: str = "cpu") -> onnxruntime.OrtValue:
    """Return ``array`` as onnxruntime takes it, on ``device``; the caller's memory where that is the host's.

    Types that numpy lacks are copied, and stay on the host.
    """
    from onnxruntime import OrtValue

    if array.dtype.isbuiltin == 1:
        return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).reshape(array.shape), device)
    tensor = ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype))
    value = OrtValue.ortvalue_from_shape_and_type(array.shape, tensor.dtype.value)
    ctypes.memmove(value.data_ptr(), tensor.tobytes(), tensor.nbytes)
    return value


def from_ort(value: onnxruntime.OrtValue) -> Any:
    """Return what ``value`` on the host holds: an array, a list of arrays, or ``None``."""
    if not value.has_value():
        return None
    if not value.is_tensor() or _known(value.data_type()):
        return value.numpy()
    dtype, shape = ir.DataType(value.element_type()), value.shape()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    if dtype.itemsize < 1:
        return ir.PackedTensor(np.frombuffer(raw, np.uint8), dtype, shape=ir.Shape(shape)).numpy()
    return np.frombuffer(raw, dtype.numpy()).reshape(shape).copy()
