"""The way down the ladder: what a failed compile becomes.

Invariant: it ends, within twice the time that one compile may take, with a callable
that computes what the graph computes; each rung is in its mark, the counters and the
log; a verdict that is remembered is not found out again.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import report
from . import classify, ladder
from .again import again
from .alerts import alerts
from .attempted import Piece, Whole
from .errors import ArgumentError, CompilationModuleError
from .fallback import Fallback, Tried
from .tracing import restarts
from .verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from .alerts import AlertSystem
    from .attempts import Attempt
    from .compiling import Unmended
    from .manager import CompilerManager

# Seconds before the same is tried again: at random, and longer each time.
_PAUSE = 0.2
# Characters that are held of what a compiler says: it may print the whole graph.
_LONGEST = 4000
# What no other compile of the same can change.
_FINAL = ("incompatible", "invalid_input")


class ErrorHandler:
    """Takes what fails down the ladder."""

    def __init__(self, manager: CompilerManager, alert_system: AlertSystem | None = None) -> None:
        """Record in the manager's numbers; alert through ``alert_system``."""
        self._manager = manager
        self._alerts = alert_system or alerts
        self._monitor = manager.performance_monitor

    def compile(self, work: Attempt) -> Callable[..., Any]:
        """Compile as asked, or as well as can be. ``ArgumentError``: there is no graph."""
        emergency = self._manager.emergency
        if emergency.eager:
            why = Tried(ladder.AS_ASKED, "C005", "emergency", emergency.why, 0.0)
            return self._stand_in(work.eager(), ladder.EAGER, (why,), work, None)
        known = self._known(work)
        if known is not None:
            report.count("compilation.remembered")
            return self._down(work, list(known.tried), known.error, first=known.rung)
        started = time.monotonic()
        try:
            run = work.as_asked()
        except Exception as error:
            if restarts(error):
                raise
            failure = error
        else:
            self._monitor.record_compilation_success()
            return run
        return self.handle_compilation_failure(failure, work, time.monotonic() - started)

    def remembers(self, key: str) -> CompilationModuleError | None:
        """Return why a key failed a while ago, if it is not to be tried again yet."""
        known = self._manager.verdicts.of(key)
        return None if known is None else known.error

    def mend(self, unmended: Unmended) -> Callable[..., Any]:
        """Take a piece that failed down its own ladder."""
        work = Piece(
            self._manager,
            unmended.traced,
            unmended.config,
            unmended.options,
            unmended.runtime_shape,
        )
        work.deadline = unmended.deadline
        known = self._manager.verdicts.of(unmended.key) if unmended.key else None
        if known is not None:
            report.count("compilation.remembered")
            return self._down(work, list(known.tried), known.error, first=known.rung)
        return self.handle_compilation_failure(unmended.error, work, unmended.seconds)

    def handle_compilation_failure(
        self, error: Exception, work: Attempt, seconds: float = 0.0
    ) -> Callable[..., Any]:
        """Return what runs instead of what failed."""
        failure = self._failed(error, [], ladder.AS_ASKED, seconds)
        if isinstance(failure[0], ArgumentError):
            raise failure[0]
        return self._down(work, [failure[1]], failure[0])

    def classify_error_type(self, error: BaseException) -> str:
        """Return the kind of an error."""
        return classify.classify_error_type(error)

    def _down(
        self,
        work: Attempt,
        tried: list[Tried],
        error: CompilationModuleError,
        first: str | None = None,
    ) -> Callable[..., Any]:
        timeout = work.config.compile_timeout
        if work.deadline is None and timeout is not None:
            work.deadline = time.monotonic() + timeout
        end = work.deadline
        while True:
            impossible = work.impossible()
            if not classify.named_operations(error):
                impossible.add(ladder.MIXED)
            rungs = [each.rung for each in tried]
            rung = first or ladder.next_rung(error.kind, rungs, impossible, piece=work.piece)
            first = None
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                rung = ladder.EAGER
            started = time.monotonic()
            try:
                run = self._try(rung, work, error, left, len(tried))
            except Exception as raised:
                if restarts(raised) or rung == ladder.EAGER:
                    raise
                failed = raised
            else:
                return self._stand_in(run, rung, tuple(tried), work, error)
            # Outside of the handler: the next failure has not been caused by this one.
            error, entry = self._failed(failed, tried, rung, time.monotonic() - started)
            tried.append(entry)

    def _failed(
        self, raised: Exception, before: list[Tried], rung: str, seconds: float
    ) -> tuple[CompilationModuleError, Tried]:
        error = classify.classified(raised)
        kind = self.classify_error_type(error)
        self._monitor.record_compilation_failure(kind)
        if kind == "timeout":
            self._alerts.send_timeout_alert(error.message)
        entry = Tried(rung, error.code, kind, error.message[:_LONGEST], seconds)
        report.log.info("failed, after %d before: %s", len(before), entry)
        return error, entry

    def _try(
        self, rung: str, work: Attempt, error: Exception, left: float | None, failed: int
    ) -> Callable[..., Any]:
        config = work.config
        if left is not None:
            config = replace(config, compile_timeout=max(left, 0.001))
        if rung == ladder.AGAIN:
            time.sleep(_PAUSE * 2 ** (failed - 1) * random.uniform(0.5, 1.5))  # noqa: S311
            return work.as_asked()
        if rung == ladder.DEFAULTS:
            report.log.warning("the configuration is of no use, Inductor's defaults: %s", error)
            return work.by_defaults(config)
        if rung == ladder.LESS_MEMORY:
            return work.retry_compile_with_optimization(config)
        if rung == ladder.FEWER:
            return work.fewer_optimizations(config)
        if rung == ladder.PIECES:
            return work.by_pieces(replace(config, compilation_level="piecewise", fallback=True))
        if rung == ladder.MIXED:
            return work.create_mixed_mode_execution(error, replace(config, fallback=True))
        if rung == ladder.NATIVE:
            return work.by_native(config)
        return self.initiate_fallback_compilation(work)

    def initiate_fallback_compilation(self, work: Attempt) -> Callable[..., Any]:
        """Return the graph as it is: the last rung, which does not fail."""
        return work.eager()

    def _stand_in(
        self,
        run: Callable[..., Any],
        rung: str,
        tried: tuple[Tried, ...],
        work: Attempt,
        error: CompilationModuleError | None,
    ) -> Callable[..., Any]:
        """Mark what came of it, and see to it that what was asked for is compiled again."""
        if rung == ladder.AGAIN:
            report.count("compilation.retried")
            report.log.warning("compiled at another try: %s", "; ".join(map(str, tried)))
            self._monitor.record_compilation_success()
            return run
        kind = tried[-1].kind
        if not work.piece:
            report.count("compilation.fell_back")
        report.count(f"compilation.fallback.{rung}.{kind}")
        self._manager.compilation_counter.count("num_fallbacks")
        self._monitor.record_fallback_execution(rung)
        report.log.warning("%s instead: %s", rung, "; ".join(map(str, tried)))
        made = Fallback(run, rung, tried)
        if tried[0].kind not in _FINAL:
            self._compile_again(made, work, error)
        return made

    def _compile_again(
        self, made: Fallback, work: Attempt, error: CompilationModuleError | None
    ) -> None:
        manager, pause = self._manager, work.config.fallback_seconds
        try:
            traced, request = work.request()
        except Exception as why:
            if restarts(why):
                raise
            report.log.debug("what failed cannot be described again: %r", why)
            return
        if request.key is None or (isinstance(work, Whole) and work.asked_by_pieces):
            return
        key = made.wanted = request.key.hex()
        made.expires = time.monotonic() + pause
        if error is not None:
            manager.verdicts.remember(key, Verdict(made.tried, made.rung, error, made.expires))
        if not request.sent:
            # Only this process can compile it: the next compile after it expired does.
            return
        # The guards of other sizes could not be checked any more where it would be called.
        fits = traced.fixed or not (traced.dynamo or work.piece)

        def load() -> Callable[..., Any] | None:
            with traced.context():
                run = request.adopt()
            return None if run is None else traced.callable(run)

        def compile_again() -> bool:
            if manager.emergency.eager or not request.again():
                return False
            manager.verdicts.forget(key)
            self._monitor.record_compilation_success()
            if fits:
                made.offer(load)
            return True

        def told(due: float | None) -> None:
            made.expires = due

        again.add(key, pause, compile_again, told)

    def _known(self, work: Attempt) -> Verdict | None:
        if not len(self._manager.verdicts):
            return None
        try:
            _, request = work.request()
        except Exception as error:
            if restarts(error):
                raise
            return None
        return None if request.key is None else self._manager.verdicts.of(request.key.hex())
