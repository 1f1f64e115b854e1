"""onnxruntime's execution providers as targets: one class, which a provider's name and a hook or two parametrise."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ..errors import ModelError, OptionError, UnavailableError
from ..interfaces import Backend, Executable, IntegerSupport, NodeTime
from ..plugins import did_you_mean
from ..settings import noted
from . import integers, lowering
from . import session as sessions
from .session import CPU

if TYPE_CHECKING:
    import onnxruntime

    from ..context import Feeds

WARM_UP_RUNS = 2
"""Runs that a profile leaves out: in the first ones onnxruntime plans and allocates memory."""
SETTINGS = ("optimize", "threads", "prepack", "disable", "config")
CHOICES: Sequence[Mapping[str, Any]] = ({"optimize": "extended"}, {"optimize": "basic"}, {"optimize": "none"})
"""Settings that suit some models better than all optimizations."""
_AFFINITIES = "session.intra_op_thread_affinities"
_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OnnxRuntime(Backend):
    """One execution provider of onnxruntime.

    A plugin offers another one by making another instance::

        OnnxRuntime("onnxruntime:mine", ["MineExecutionProvider"], configure=add_mine, check=why_not)
    """

    def __init__(
        self,
        name: str,
        providers: Sequence[str],
        *,
        device: str = "cpu",
        check: Callable[[], str | None] | None = None,
        configure: Callable[[onnxruntime.SessionOptions], None] | None = None,
        facts: Callable[[], Iterable[tuple[str, str]]] | None = None,
    ) -> None:
        """Describe a target.

        Args:
            name: what ``--target`` takes.
            providers: onnxruntime's names of the providers that a session must get, the one in question first.
            device: where bound inputs and outputs lie, as onnxruntime calls it.
            check: returns what this machine lacks for it, or ``None``; asked once, must be quick and never raise.
            configure: adds the providers to a session's options by itself, for providers that onnxruntime does not
                know by name.
            facts: for reports: what is to be known of the device.
        """
        self.name = name
        self.providers = tuple(providers)
        self.device = device
        self._check, self._configure, self._facts = check, configure, facts
        self._checked: list[str | None] = []

    def unavailable(self) -> str | None:
        """Return why the provider cannot be used here."""
        if not self._checked:
            self._checked.append(self._lacks())
        return self._checked[0]

    def _lacks(self) -> str | None:
        try:
            import onnxruntime
        except ImportError as error:
            return f"onnxruntime cannot be imported: {error}"
        offered = onnxruntime.get_available_providers()
        if self._configure is None and self.providers[0] not in offered:
            return f"onnxruntime {onnxruntime.__version__} is built without {self.providers[0]}"
        return self._check() if self._check is not None else None

    def compile(self, model: ir.Model, **settings: Any) -> OnnxRuntimeExecutable:
        """Make a session of ``model`` whose nodes run on this provider as far as it takes them.

        Settings: ``optimize`` (``"none"``, ``"basic"``, ``"extended"`` or ``"all"``), ``disable`` (names of
        onnxruntime's optimizers), ``threads``, ``prepack``, and ``config``, entries of onnxruntime's session
        configuration. What is not given comes from the model's metadata, where ``measured`` noted the fastest.

        Raises:
            UnavailableError: the provider cannot be used here, or takes none of the model's nodes.
            ModelError: onnxruntime refuses the model.
        """
        return OnnxRuntimeExecutable(self._session(model, settings), self.device)

    def _session(
        self,
        model: ir.Model,
        settings: Mapping[str, Any],
        profile: Path | None = None,
        lowered: Path | None = None,
    ) -> onnxruntime.InferenceSession:
        if unknown := settings.keys() - SETTINGS:
            raise OptionError(
                f"{self.name}: no setting is called {min(unknown)!r}{did_you_mean(min(unknown), SETTINGS)}"
            )
        if reason := self.unavailable():
            raise UnavailableError(f"{self.name}: {reason}; `graphopt backends` lists what can be used")
        settings = {**_noted(model, self.name), **settings}
        given = {**settings, "providers": self.providers, "configure": self._configure}
        given |= {"profile": profile, "lowered": lowered}
        config = {**_places(settings.get("threads")), **(settings.get("config") or {})}
        if self.providers[0] == CPU:
            return sessions.create(model, **{**given, "config": config})
        made = sessions.create(model, **{**given, "config": {_ASSIGNMENT: "1", **config}})
        nodes = placement(made)
        if nodes and not nodes.keys() & set(self.providers):
            where = ", ".join(f"{count} on {provider}" for provider, count in nodes.items())
            raise UnavailableError(
                f"{self.name}: it takes no node of this model; onnxruntime runs {where}; use another target"
            )
        return made

    def integers(self) -> IntegerSupport | None:
        """Return what this machine's processor multiplies fast; nothing is known of other devices."""
        return integers.processor() if self.providers[0] == CPU else None

    def choices(self) -> Iterable[Mapping[str, Any]]:
        """Yield fewer and fewer optimizations: for some models all of them are slower than none."""
        return CHOICES

    def profile(self, model: ir.Model, inputs: Feeds, runs: int = 10, **settings: Any) -> list[NodeTime]:
        """Return the time spent in each node, without that of nodes inside it, in the order of execution.

        On a GPU it is the time to launch the node. Nodes that onnxruntime made bear its names.
        """
        named = lowering.named(model)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            lowered = Path(folder, "lowered.onnx") if self.providers[0] == CPU else None
            session = self._session(named, settings, Path(folder, "run"), lowered)
            executable = OnnxRuntimeExecutable(session, self.device)
            with executable:
                executable.bind(inputs)
                for _ in range(WARM_UP_RUNS + runs):
                    executable.step()
                events = json.loads(Path(executable.session.end_profiling()).read_text(encoding="utf-8"))
            known = lowering.known_names(named)
            known |= lowering.written_names(lowered, named) if lowered is not None else {}
        return [replace(each, node=lowering.graph_name(each.node, known)) for each in node_times(events)]

    def lowered(self, model: ir.Model, **settings: Any) -> ir.Model | None:
        """Return the graph that a session runs; ``None`` where a provider compiles parts of it to code of its own."""
        named = lowering.named(model)
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder, "lowered.onnx")
            try:
                self._session(named, settings, lowered=path)
            except (ModelError, UnavailableError):
                if self.providers[0] == CPU:
                    raise
                return None
            return lowering.read(path, named)

    def supports(self, domain: str, op_type: str, dtype: ir.DataType | None = None) -> bool:
        """Return whether the provider has a kernel of its own for the operator, as onnxruntime itself reports.

        Of providers that compile a graph as a whole and report no kernels: whether ONNX defines the operator.
        """
        kernels = self._kernels()
        if kernels is None:
            return domain == ""
        types = kernels.get((domain, op_type))
        return types is not None and (dtype is None or type_name(dtype) in types)

    def _kernels(self) -> Mapping[tuple[str, str], set[str]] | None:
        """Return the types that the kernels of each operator take, where onnxruntime tells."""
        if not hasattr(self, "_kernel_types"):
            self._kernel_types = _report_kernels(self.providers[0]) if self.unavailable() is None else None
        return self._kernel_types

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield the runtime's version, and what is known of the device."""
        if self.unavailable() is not None:
            return
        import onnxruntime

        yield "onnxruntime", onnxruntime.__version__
        yield from self._facts() if self._facts is not None else ()


def _places(threads: int | None) -> dict[str, str]:
    """Return the setting that gives each worker thread a core of its own, as onnxruntime does by default.

    Where a number of threads is asked for it leaves that to the system, which may keep the worker of one session on
    a busy core for long: the same model then measured four times slower than itself.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads is None or not 1 < threads <= len(cores):
        return {}
    return {_AFFINITIES: ";".join(str(core + 1) for core in cores[1:threads])}


def _noted(model: ir.Model, target: str) -> dict[str, Any]:
    """Return the settings in the model's metadata that are sound and do nothing but choose how to compute."""
    return {key: value for key, value in noted(model, target).items() if _is_sound(key, value)}


def _is_sound(key: str, value: object) -> bool:
    if key == "threads":
        return isinstance(value, int) and 0 < value <= (os.cpu_count() or 1)
    if key == "disable":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    return key == "optimize" and value in sessions.LEVELS


def placement(session: onnxruntime.InferenceSession) -> Counter[str]:
    """Return how many nodes each provider took, of a session that recorded it."""
    nodes: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] += len(part.get_nodes())
    return nodes


def type_name(dtype: ir.DataType) -> str:
    """Return how onnxruntime writes a tensor's type."""
    return f"tensor({_TYPE_NAMES.get(dtype, dtype.name.lower())})"


_TYPE_NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double", ir.DataType.BOOL: "bool"}


def _report_kernels(provider: str) -> dict[tuple[str, str], set[str]] | None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        reported = state.get_registered_ep_kernel_defs(provider)
    except (AttributeError, RuntimeError):  # older than this report, or no plugin provider
        return None
    kernels: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for kernel in reported:
        kernels[kernel.domain, kernel.op_name].update(*kernel.type_constraints.values())
    return dict(kernels) or None


# --- running ----------------------------------------------------------------------------------------------------------


class OnnxRuntimeExecutable(Executable):
    """A session, and the inputs that are bound to it."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str) -> None:
        self.session: Any = session
        self.input_names = [value.name for value in session.get_inputs()]
        self.output_names = [value.name for value in session.get_outputs()]
        self._device = device
        self._step: Callable[[], object] | None = None

    def run(self, inputs: Feeds) -> dict[str, Any]:
        """Run once; arrays by name in, arrays by name out."""
        return sessions.run(self.session, inputs)

    def bind(self, inputs: Feeds) -> None:
        """Put ``inputs`` on the device; outputs stay there too. What cannot be bound is given at each step."""
        values = (*self.session.get_inputs(), *self.session.get_outputs())
        if any(value.type == "tensor(string)" or not value.type.startswith("tensor") for value in values):
            self._step = lambda: self.session.run(None, dict(inputs))
            return
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, sessions.to_ort(np.asarray(array), self._device))
        for name in self.output_names:
            binding.bind_output(name, self._device)

        def step() -> None:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        self._step = step

    def step(self) -> None:
        """Run once on the bound inputs and wait for the end."""
        assert self._step is not None, "bind comes before step"
        try:
            self._step()
        except RuntimeError as error:  # what onnxruntime raises from bound inputs
            raise sessions.failure(error) from error

    def close(self) -> None:
        """Free the session and what is bound to it."""
        self._step = self.session = None


def node_times(events: Iterable[Mapping[str, Any]]) -> list[NodeTime]:
    """Return the median time of each node, from a profile's events; the first :data:`WARM_UP_RUNS` runs do not count.

    A node's event comes after those of the nodes inside it (of an If, a Loop), whose time is taken off.
    """
    runs: list[dict[tuple[str, str, str], float]] = [defaultdict(float)]
    done: list[tuple[int, int]] = []
    for event in events:
        if event.get("name") == "model_run":
            runs.append(defaultdict(float))
            done.clear()
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            start, spent = event["ts"], event["dur"]
            inside = 0
            while done and done[-1][0] >= start:
                inside += done.pop()[1]
            done.append((start, spent))
            arguments = event["args"]
            key = event["name"].removesuffix("_kernel_time"), arguments["op_name"], arguments["provider"]
            runs[-1][key] += max(0, spent - inside) / 1000
    counted = runs[WARM_UP_RUNS:-1]
    keys = dict.fromkeys(key for run in counted for key in run)
    return [NodeTime(*key, statistics.median(run.get(key, 0.0) for run in counted)) for key in keys]


# --- the targets that come with onnxruntime ---------------------------------------------------------------------------


def built_in() -> list[OnnxRuntime]:
    """Return the targets that onnxruntime's own wheels offer."""
    cuda, tensorrt = "CUDAExecutionProvider", "TensorrtExecutionProvider"
    return [
        OnnxRuntime("onnxruntime:cpu", [CPU], facts=_processor),
        OnnxRuntime("onnxruntime:cuda", [cuda], device="cuda", check=lambda: _nvidia_lacks([cuda])),
        OnnxRuntime(
            "onnxruntime:tensorrt",
            [tensorrt, cuda],
            device="cuda",
            check=lambda: _nvidia_lacks([tensorrt, cuda]),
        ),
    ]


def _processor() -> Iterator[tuple[str, str]]:
    yield "device", _processor_name()
    yield "cores", str(os.cpu_count() or 1)


def _processor_name() -> str:
    import platform

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def _nvidia_lacks(providers: Sequence[str]) -> str | None:
    """Return what is missing for NVIDIA's providers: the driver, a device, or a library that onnxruntime names."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no device"
    return trial(providers)


def trial(
    providers: Sequence[str], configure: Callable[[onnxruntime.SessionOptions], None] | None = None
) -> str | None:
    """Return what onnxruntime says when it makes a session of a one-node model, or ``None`` where it can."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 13]> trial (float[1] x) => (float[1] y) { y = Neg (x) }'
    )
    try:
        sessions.create(model, providers=providers, configure=configure)
    except UnavailableError as error:
        return str(error)
    return None
