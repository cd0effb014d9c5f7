"""torch's guard manager: no guard is lost, here or where a package is loaded.

With packages on, torch drops guards from what runs as well as from what it saves.
Here they are built twice: once as torch saves them, with the dropped ones noted,
and once as if packages were off, which is what runs.

Invariant: in the process that traces, guards are those of a torch without packages;
in one that loads, each dropped guard is checked by ``dropped.Checks``. A frame
whose guards cannot be saved still runs.
"""

from __future__ import annotations

import contextlib
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .. import report
from . import noted
from .dropped import Check, Checks, lost, note
from .errors import NotShared

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator, Sequence

# Of a frame that cannot be saved. torch asserts that there is a state.
UNSAVED = b""


def plug(module: Any) -> None:
    """Take over ``torch._dynamo.guards``."""
    manager = module.CheckFunctionManager
    original = manager.__init__
    signature = inspect.signature(original)

    def init(self: Any, *args: Any, **named: Any) -> None:
        bound = signature.bind(self, *args, **named)
        given = bound.arguments
        ahead = _ahead.get()
        if ahead is not None and given.get("save_guards"):
            given["guard_filter_fn"] = _looking(module, bound, ahead, more=lost)
            with _packages_off():
                original(*bound.args, **bound.kwargs)
            return
        graph = given.get("output_graph")
        # Imported late: torch imports its guards while it imports its packages.
        from .package import SharedPackage

        package = getattr(graph, "package", None)
        ours = isinstance(package, SharedPackage) or package is None
        if not (given.get("save_guards") and ours and _packages_on()):
            original(*bound.args, **bound.kwargs)
            return
        state = UNSAVED
        if package is not None and package.shares:
            state = _saved(module, original, bound)
        with _packages_off():
            given["save_guards"] = False
            original(*bound.args, **bound.kwargs)
        self.guards_state = state

    manager.__init__ = init


class Seen:
    """What was seen of the guards of one frame, or why it cannot be told."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.noted: list[noted.Noted] = []
        self.trouble: list[NotShared] = []


_ahead: ContextVar[Seen | None] = ContextVar("kiln_ahead", default=None)


@contextlib.contextmanager
def ahead() -> Iterator[Seen]:
    """Note the guards of a function that torch compiles and saves by itself meanwhile."""
    seen = Seen()
    token = _ahead.set(seen)
    try:
        yield seen
    finally:
        _ahead.reset(token)


def _looking(
    module: Any,
    bound: inspect.BoundArguments,
    seen: Seen,
    more: Callable[..., tuple[Check, ...]] | None = None,
) -> Callable[..., Any]:
    """Return the filter of guards that was given, with a look at what passes through it.

    ``more`` says what else is to be checked for what this filter leaves out.
    """
    graph, users = bound.arguments["output_graph"], bound.arguments.get("guard_filter_fn")
    scope = {
        **module._get_closure_vars(),
        "G": graph.global_scope,
        "L": graph.local_scope,
    }

    def look(entries: Sequence[Any]) -> Sequence[bool]:
        kept = users(entries) if users is not None else [True] * len(entries)
        try:
            checks = note(entries, scope)
            if more is not None:
                checks += more(entries, kept, checks, scope)
            seen.noted.append(noted.Noted(checks, _classes(entries)))
        except NotShared as refused:
            seen.trouble.append(refused)
        except Exception as error:
            seen.trouble.append(NotShared("bugs", repr(error)))
        return kept

    return look


def _saved(module: Any, original: Callable[..., None], bound: Any) -> bytes:
    """Build the guards as torch saves them; the state, its dropped guards noted."""
    seen = Seen()
    again = inspect.BoundArguments(bound.signature, bound.arguments.copy())
    again.arguments["guard_filter_fn"] = _looking(module, bound, seen)
    try:
        with _unsaid(module.log):
            original(*again.args, **again.kwargs)
        state = again.arguments["self"].guards_state
    except Exception as error:
        seen.trouble.append(NotShared("guards", repr(error)))
        state = None
    if seen.trouble:
        report.count(f"precompile.{seen.trouble[0].reason}")
        report.log.info("precompile: not shared: %s", seen.trouble[0])
        return UNSAVED
    if state is None or not seen.noted:
        return UNSAVED
    noted.keep(state, seen.noted[0])
    return state


@contextlib.contextmanager
def _unsaid(log: logging.Logger) -> Iterator[None]:
    """Keep torch from warning of the guards that it drops: here they are not lost."""

    def keep(record: logging.LogRecord) -> bool:
        return "is dropped with caching_precompile" not in str(record.msg)

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _classes(entries: Sequence[Any]) -> tuple[type, ...]:
    """Return the classes of all objects that are guarded, and the classes among these."""
    found: dict[type, None] = {}
    for entry in entries:
        if entry.has_value:
            value = entry.value
            found[value if isinstance(value, type) else type(value)] = None
    return tuple(found)


class _Loading:
    """A package that is being installed."""

    def __init__(self, checks: dict[str, tuple[Check, ...]], unchanged: Callable[[], bool]) -> None:
        self.checks = checks
        self.unchanged = unchanged
        self.state = ""


_loading: ContextVar[_Loading | None] = ContextVar("kiln_loading", default=None)


@contextlib.contextmanager
def loading(checks: dict[str, tuple[Check, ...]], unchanged: Callable[[], bool]) -> Iterator[None]:
    """Give the guards that are loaded meanwhile the ones that torch dropped from them."""
    token = _loading.set(_Loading(checks, unchanged))
    try:
        yield
    finally:
        _loading.reset(token)


def plug_loading(module: Any) -> None:
    """Take over how ``torch._dynamo.package`` loads guards."""
    load_state, load_manager = module.load_guards_state, module.load_guard_manager

    def load_guards_state(data: bytes) -> Any:
        current = _loading.get()
        if current is not None:
            current.state = noted.state_digest(data)
        return load_state(data)

    def load_guard_manager(state: Any, code: Any, scope: Any) -> Any:
        manager = load_manager(state, code, scope)
        current = _loading.get()
        if current is not None:
            from torch._dynamo.guards import _get_closure_vars

            seen = {**_get_closure_vars(), "G": scope}
            check = Checks(current.checks[current.state], seen, current.unchanged)
            said = ["kiln: what torch's package left out"]
            manager.root.add_epilogue_lambda_guard(check, said, None)
        return manager

    module.load_guards_state = load_guards_state
    module.load_guard_manager = load_guard_manager


def _packages_on() -> bool:
    from torch._dynamo import config

    return bool(config.caching_precompile)


def _packages_off() -> contextlib.AbstractContextManager[Any]:
    from torch._dynamo import config

    return config.patch(caching_precompile=False)
