"""Find plugins, check them against the contract, and index what they offer by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from . import hookspecs
from .errors import OptionError, PipelineError, PluginError, UsageError

if TYPE_CHECKING:
    from .calibration import Calibrator
    from .criteria import Criterion
    from .frontends import Frontend
    from .interfaces import Backend, Pass
    from .ops import OpInfo

T = TypeVar("T")
GROUP = "graphopt"
"""The entry point group."""


@dataclass(frozen=True)
class PluginState:
    """One installed plugin: what it is, and what is wrong with it if anything is."""

    name: str
    distribution: str
    version: str
    module: str
    problem: str | None = None


@dataclass
class _Registry:
    manager: pluggy.PluginManager
    states: list[PluginState]


@cache
def _registry() -> _Registry:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    states = []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name != "builtin", e.name, e.value)):
        states.append(_load(manager, entry))
    return _Registry(manager, states)


def _load(manager: pluggy.PluginManager, entry: EntryPoint) -> PluginState:
    distribution = entry.dist.name if entry.dist is not None else "unknown"
    version = entry.dist.version if entry.dist is not None else ""
    problem: str | None = None
    try:
        plugin: Any = entry.load()
    except Exception as error:  # a plugin is a stranger's code: whatever it raises, the rest goes on
        problem = f"it fails to import: {type(error).__name__}: {error}"
    else:
        problem = _misfit(manager, entry.name, plugin)
        if problem is None:
            problem = _offers(plugin)
    state = PluginState(entry.name, distribution, version, entry.value, problem)
    if problem is not None and manager.has_plugin(entry.name):
        manager.unregister(name=entry.name)
    return state


def _misfit(manager: pluggy.PluginManager, name: str, plugin: Any) -> str | None:
    """Register ``plugin``; return how it breaks the hook contract, or ``None``."""
    if manager.has_plugin(name):
        return f"its name {name!r} is taken by another plugin"
    known = {n for n, f in vars(hookspecs).items() if hasattr(f, "graphopt_spec")}
    for attribute in dir(plugin):
        function = inspect.getattr_static(plugin, attribute)
        if not hasattr(function, "graphopt_impl"):
            continue
        if attribute not in known:
            near = difflib.get_close_matches(attribute, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known))}"
            return f"no hook is called {attribute!r}{hint}"
    try:
        manager.register(plugin, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        return f"wrong hook signature: {' '.join(str(error).split())}"
    return None


def _offers(plugin: Any) -> str | None:
    """Return what is wrong with the passes that ``plugin`` offers, or ``None``."""
    from .interfaces import Pass

    register = getattr(plugin, "register_passes", None)
    if register is None:
        return None
    try:
        offered = list(register())
    except Exception as error:  # as above: a stranger's code
        return f"its register_passes raises: {type(error).__name__}: {error}"
    for cls in offered:
        if not (inspect.isclass(cls) and issubclass(cls, Pass)):
            return f"register_passes must give subclasses of graphopt.Pass, got {cls!r}"
        if inspect.isabstract(cls):
            return f"pass {cls.name!r} is abstract: it lacks {', '.join(sorted(cls.__abstractmethods__))}"
        if not (cls.__doc__ or "").strip():
            return f"pass {cls.name!r} has no docstring, which is its help"
        for option, declared in cls.model_fields.items():
            if not declared.description:
                return f"option {option!r} of pass {cls.name!r} has no description"
    return None


def manager() -> pluggy.PluginManager:
    """Return the plugin manager, with every sound installed plugin registered."""
    return _registry().manager


def states() -> list[PluginState]:
    """Return every installed plugin, the unsound ones with the reason; the built-in one first."""
    for index in INDEXES:
        index()
    return list(_registry().states)


@cache
def _passes_by_owner() -> tuple[dict[str, type[Pass]], dict[str, str]]:
    """Return the passes, and the plugin that owns each."""
    return _table("pass", "register_passes", lambda offered: [(cls.name, cls) for cls in offered])


def _offered(hook: str, read: Callable[[Any], T]) -> Iterable[tuple[str, T]]:
    """Yield (plugin, what it offers, as ``read`` takes it) for ``hook``, in the order of registration."""
    implementations = getattr(manager().hook, hook).get_hookimpls()
    order = {state.name: i for i, state in enumerate(_registry().states)}
    for implementation in sorted(implementations, key=lambda i: order.get(i.plugin_name, len(order))):
        try:
            offered = read(implementation.function())
        except Exception as error:  # a stranger's code again: it is named, and everything else keeps working
            _blame(implementation.plugin_name, f"its {hook} raises: {type(error).__name__}: {error}")
            continue
        yield implementation.plugin_name, offered


def _blame(plugin: str, problem: str) -> None:
    states = _registry().states
    states[:] = [replace(s, problem=s.problem or problem) if s.name == plugin else s for s in states]


def passes() -> dict[str, type[Pass]]:
    """Return every pass on offer, by name."""
    return _passes_by_owner()[0]


def owner(name: str) -> str:
    """Return the plugin that offers the pass called ``name``."""
    return _passes_by_owner()[1][name]


@cache
def presets() -> dict[str, str]:
    """Return every named pipeline: name to text."""
    return _table("preset", "register_presets", lambda offered: list(offered.items()), _passes_by_owner())[0]


@cache
def backends() -> dict[str, Backend]:
    """Return every target, by name."""
    return _table("target", "register_backends", lambda offered: [(b.name, b) for b in offered])[0]


@cache
def frontends() -> list[Frontend]:
    """Return every frontend, in the order in which they are asked."""
    return [frontend for _, offered in _offered("register_frontends", list) for frontend in offered]


@cache
def operators() -> Mapping[tuple[str, str], OpInfo]:
    """Return the operator table: the core's rows, with those of plugins in their place."""
    from .ops import BUILT_IN

    table = dict(BUILT_IN)
    for _, offered in _offered("register_operators", dict):
        table.update(offered)
    return table


@cache
def calibrators() -> dict[str, type[Calibrator]]:
    """Return every way to find a range, by name."""
    return _table("calibrator", "register_calibrators", lambda offered: list(offered.items()))[0]


@cache
def criteria() -> dict[str, type[Criterion]]:
    """Return every way to tell what a channel is worth, by name."""
    return _table("criterion", "register_criteria", lambda offered: list(offered.items()))[0]


INDEXES = (_passes_by_owner, presets, backends, frontends, operators, calibrators, criteria)
"""What is on offer, gathered from all plugins when it is first asked for."""


def _table(
    kind: str,
    hook: str,
    read: Callable[[Any], list[tuple[str, T]]],
    passes: tuple[Mapping[str, object], Mapping[str, str]] = ({}, {}),
) -> tuple[dict[str, T], dict[str, str]]:
    """Return what is offered, by name, and who owns each: who comes first keeps a name that is offered twice.

    A name of ``passes``, which is such a pair, is taken as well.
    """
    table: dict[str, T] = {}
    owners: dict[str, str] = {}
    for plugin, offered in _offered(hook, read):
        for name, thing in offered:
            if name in table:
                first, second = (
                    f"plugin {by!r}{_home(what)}"
                    for by, what in ((owners[name], table[name]), (plugin, thing))
                )
                _blame(plugin, f"{kind} {name!r} is offered twice: by {first} and by {second}")
            elif name in passes[0]:
                _blame(
                    plugin, f"{kind} {name!r} has the name of a pass of plugin {passes[1][name]!r}; rename it"
                )
            else:
                table[name], owners[name] = thing, plugin
    return table, owners


def _home(thing: object) -> str:
    return f" ({thing.__module__})" if inspect.isclass(thing) else ""


def get_pass(name: str) -> type[Pass]:
    """Return the pass called ``name``.

    Raises:
        PipelineError: there is none; the message names the nearest.
    """
    return _get(name, passes(), "pass", PipelineError)


def get_backend(name: str) -> Backend:
    """Return the target called ``name``.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    return _get(name, backends(), "target", UsageError)


def get_calibrator(name: str) -> type[Calibrator]:
    """Return the calibrator called ``name``.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    return _get(name, calibrators(), "calibrator", OptionError)


def get_criterion(name: str) -> type[Criterion]:
    """Return the importance criterion called ``name``.

    Raises:
        OptionError: there is none; the message names the nearest.
    """
    return _get(name, criteria(), "criterion", OptionError)


def _get(name: str, table: Mapping[str, T], kind: str, error: type[UsageError]) -> T:
    if name in table:
        return table[name]
    raise unknown(kind, name, table, error)


def unknown(kind: str, name: str, known: Iterable[str], error: type[UsageError]) -> UsageError:
    """Return the error for a name that nobody offers; notes name the plugins that may have failed to."""
    found = error(f"no {kind} is called {name!r}{did_you_mean(name, known)}")
    for state in states():
        if state.problem is not None:
            found.add_note(f"plugin {state.name!r} cannot be used in full: {state.problem}")
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error message that names the nearest of ``known``, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def register(plugin: ModuleType | object, name: str) -> None:
    """Register ``plugin`` by hand, for this process (tests, notebooks).

    Raises:
        PluginError: it breaks the contract; nothing is registered.
    """
    problem = _misfit(manager(), name, plugin) or _offers(plugin)
    if problem is None:
        _registry().states.append(PluginState(name, "", "", getattr(plugin, "__name__", repr(plugin))))
        _forget()
        problem = next(state.problem for state in states() if state.name == name)
    if problem is not None:
        unregister(name)
        raise PluginError(f"plugin {name!r}: {problem}")


def unregister(name: str) -> None:
    """Take back a plugin that was registered by hand, or block an installed one for this process."""
    if manager().has_plugin(name):
        manager().unregister(name=name)
    _registry().states[:] = [state for state in _registry().states if state.name != name]
    _forget()


def _forget() -> None:
    for index in INDEXES:
        index.cache_clear()
