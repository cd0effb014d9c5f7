"""The pieces of a graph on their way through the tiers, all at once.

Lookups, waits and compiles of what goes to processes of their own overlap; what is
compiled in this process is looked up and compiled one piece after another.
Invariant: equal pieces are compiled once; a piece that fails fails alone, and
what the others gave is kept.
"""

from __future__ import annotations

import itertools
import secrets
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .. import report
from . import ladder
from .classify import classified
from .complexity import calls
from .fallback import fallback_of
from .repeats import marks_of
from .tracing import restarts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .config import CompilationConfig
    from .errors import CompilationModuleError
    from .manager import CompilerManager
    from .request import Request
    from .splitting import SplitItem
    from .traced import Traced

# What the document sets for a graph as one, and is not for pieces: a CUDA graph of a
# piece would be overwritten when the next one is recorded; and a pool within a piece
# saves little memory, while each value taken from it is a call more than an allocation.
_OF_PIECES = {"triton.cudagraphs": False, "memory_planning": False}
# Threads that look and wait: they cost nothing meanwhile.
_MOST_LOOKING = 16


@dataclass(frozen=True)
class PieceResult:
    """How one piece came about."""

    index: int
    # In hex; "": no key says all that decides it.
    key: str
    # compiled, memory, disk, shared (equal to another piece), or where it failed the rung
    # of the ladder that stands in for it: eager, saving, fewer, ...
    outcome: str
    compile_seconds: float
    error: str = ""
    # Whether a process of its own compiled it; if so, the seconds until that began.
    elsewhere: bool = False
    waited_seconds: float = 0.0
    # Where torch says that the seconds went, in that process; some are within others.
    phases: Mapping[str, float] = field(default_factory=dict)
    # The rungs of the failure ladder that failed before the outcome, as they are told.
    tried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unmended:
    """A piece that failed, for who knows another way."""

    traced: Traced
    config: CompilationConfig
    options: Mapping[str, Any]
    runtime_shape: int | None
    error: Exception
    seconds: float
    # In hex; "": it has none.
    key: str
    # By when something has to run, on the monotonic clock.
    deadline: float | None


class Mender(Protocol):
    """Who knows another way."""

    def remembers(self, key: str) -> CompilationModuleError | None:
        """Return why a key failed a while ago, if it is not to be tried again yet."""

    def mend(self, unmended: Unmended) -> Callable[..., Any]:
        """Return what runs instead of a piece that failed."""


class Compiling:
    """The pieces of one graph."""

    def __init__(
        self,
        manager: CompilerManager,
        traced: Traced,
        items: Sequence[SplitItem],
        config: CompilationConfig,
        options: Mapping[str, Any] | None,
        runtime_shape: int | None,
        uncompiled: frozenset[str],
        mender: Mender | None,
        deadline: float | None,
    ) -> None:
        """Take what ``piecewise_compile`` takes."""
        self._uncompiled = uncompiled
        self._deadline = deadline
        self._mender = mender if config.fallback else None
        self._manager = manager
        self._traced = traced
        self._items = items
        self._config = config
        inductor = manager.compiler_of(config).portable
        before = _OF_PIECES if inductor else {}
        self._options = {**before, **config.inductor_config, **(options or {})}
        self._shape = runtime_shape
        self.compiled: dict[str, Callable[..., Any]] = {}
        self.results: list[PieceResult] = []
        self._failures: list[Exception] = []

    def run(self) -> None:
        """Look for all pieces, and compile what is not there."""
        first: dict[bytes, int] = {}
        found: dict[int, PieceResult] = {}
        here: list[tuple[SplitItem, Request]] = []
        away: dict[Future[None], tuple[SplitItem, Request]] = {}
        shared: dict[int, tuple[int, Request]] = {}
        with ThreadPoolExecutor(_MOST_LOOKING) as threads:
            for item in _ordered(self._items, self._config.parallel_compiles):
                request = self._request(item)
                if self._uncompiled.issuperset(item.nodes):
                    # What no compiler here has a rule for.
                    self._have(found, item, request, item.graph.forward, "eager", "unsupported")
                    continue
                request.describe()
                if request.key is not None and request.key in first:
                    shared[item.index] = first[request.key], request
                    continue
                if request.key is not None:
                    first[request.key] = item.index
                run = request.in_memory()
                if run is not None:
                    self._have(found, item, request, run, "memory")
                elif (known := self._remembered(request)) is not None:
                    self._stand_in(found, item, request, known)
                elif request.sent:
                    # Its compile begins while the next ones are described.
                    away[threads.submit(request.look)] = item, request
                else:
                    here.append((item, request))
            for item, request in here:
                request.look()
                self._finish(found, item, request)
            for future in as_completed(away):
                self._finish(found, *away[future])
        for index, (original, request) in shared.items():
            self._share(found, self._items[index], self._items[original], request)
        if self._failures and not self._config.fallback:
            raise self._failures[0]
        self.results = [found[item.index] for item in self._items]

    def _request(self, item: SplitItem) -> Request:
        self._manager.compilation_counter.count("num_backend_compilations")
        traced = self._traced.piece(item.graph)
        return self._manager.request(
            traced, self._options, self._config, self._shape, self._deadline
        )

    def _finish(self, found: dict[int, PieceResult], item: SplitItem, request: Request) -> None:
        try:
            run = request.finish()
        except Exception as error:
            if restarts(error):
                raise
            # Alone: the others are compiled, and stay so.
            self._failures.append(error)
            why = classified(error)
            report.count("compilation.piece_failed")
            self._stand_in(found, item, request, why)
            return
        self._have(found, item, request, run, "compiled" if request.missed else "disk")

    def _remembered(self, request: Request) -> CompilationModuleError | None:
        if self._mender is None or request.key is None:
            return None
        return self._mender.remembers(request.key.hex())

    def _stand_in(
        self,
        found: dict[int, PieceResult],
        item: SplitItem,
        request: Request,
        why: CompilationModuleError,
    ) -> None:
        """Let something else run instead of a piece that failed."""
        run: Callable[..., Any] = item.graph.forward
        outcome, tried = ladder.EAGER, (f"{ladder.AS_ASKED}: {why.code} {why.kind}",)
        if self._mender is not None:
            run = self._mender.mend(
                Unmended(
                    self._traced.piece(item.graph),
                    self._config,
                    self._options,
                    self._shape,
                    why,
                    request.seconds,
                    "" if request.key is None else request.key.hex(),
                    self._deadline,
                )
            )
            mark = fallback_of(run)
            outcome = "compiled" if mark is None else mark.rung
            tried = tuple(map(str, mark.tried)) if mark is not None else tried
        report.log.warning("%s runs %s: %s", item.name, outcome, why)
        self._have(found, item, request, run, outcome, str(why), tried)

    def _share(
        self,
        found: dict[int, PieceResult],
        item: SplitItem,
        original: SplitItem,
        request: Request,
    ) -> None:
        """Give a piece what an equal one has: from memory, where that keeps it."""
        before = found[original.index]
        if before.outcome == "eager":
            self._have(found, item, request, item.graph.forward, "eager", before.error)
            return
        run = request.in_memory()
        if run is None and self._traced.piece(item.graph).fixed:
            run = self.compiled[original.name]
        if run is not None:
            self._have(found, item, request, run, "shared")
            return
        # For other sizes than the equal one's, or out of memory again.
        request.look()
        self._finish(found, item, request)

    def _have(
        self,
        found: dict[int, PieceResult],
        item: SplitItem,
        request: Request,
        run: Callable[..., Any],
        outcome: str,
        error: str = "",
        tried: tuple[str, ...] = (),
    ) -> None:
        self.compiled[item.name] = run
        key = "" if request.key is None else request.key.hex()
        found[item.index] = PieceResult(
            item.index,
            key,
            outcome,
            request.seconds,
            error,
            request.elsewhere,
            request.waited,
            request.phases,
            tried,
        )


def _ordered(items: Sequence[SplitItem], at_once: int) -> list[SplitItem]:
    """Put one piece of each kind first, so that all compile before equal ones are described."""
    nodes = [calls(item.graph) for item in items]
    marks = iter(marks_of([node for each in nodes for node in each]))
    kinds: dict[tuple[int, ...], SplitItem] = {}
    for item, own in zip(items, nodes):
        kinds.setdefault(tuple(itertools.islice(marks, len(own))), item)
    first = sorted(kinds.values(), key=lambda item: item.complexity, reverse=True)
    if len(first) > at_once:
        # Processes that start together begin at different pieces, and share the work.
        start = secrets.randbelow(len(first))
        first = [*first[start:], *first[:start]]
    taken = {item.index for item in first}
    return [*first, *(item for item in items if item.index not in taken)]
