"""When a call is over: returned, raised, or kept alive by its traceback."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from kiln_torch.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

# Bound, not expectation.
SOON = 60.0


def raises(watch: Callable[[object], None]) -> None:
    """Be watched, and fail."""
    watch(sys._getframe())
    raise ValueError


def test_a_call_that_raised_is_over_while_its_traceback_lives() -> None:
    """Its frame is kept, as a logger would."""
    calls, over = Calls(), threading.Event()
    with pytest.raises(ValueError) as kept:
        raises(lambda frame: calls.watch(frame, over.set))  # type: ignore[arg-type]
    assert over.wait(SOON)
    assert kept.traceback


def test_a_call_that_runs_is_not_over_and_a_forgotten_one_never() -> None:
    """In another thread as well; and what ended wakes nobody twice."""
    calls, ended, go, inside = Calls(), [], threading.Event(), threading.Event()
    over = {name: threading.Event() for name in ("runs", "forgotten", "other")}

    def body() -> None:
        def end(name: str) -> Callable[[], None]:
            return lambda: (ended.append(name), over[name].set())[1]

        calls.watch(sys._getframe(), end("runs"))
        number = calls.watch(sys._getframe(), end("forgotten"))
        calls.forget(number)
        inside.set()
        assert go.wait(SOON)

    thread = threading.Thread(target=body)
    thread.start()
    assert inside.wait(SOON)
    with pytest.raises(ValueError):
        raises(lambda frame: calls.watch(frame, over["other"].set))  # type: ignore[arg-type]
    assert over["other"].wait(SOON), "the watcher has looked since"
    assert ended == []
    go.set()
    thread.join()
    assert over["runs"].wait(SOON)
    assert ended == ["runs"]


def test_a_forked_child_watches_its_own_calls_alone() -> None:
    """The parent's thread is not there, and its calls are not the child's to end."""
    calls, mine = Calls(), threading.Event()
    calls.watch(sys._getframe(), mine.set)
    pid = os.fork()
    if pid == 0:
        over = threading.Event()
        try:
            raises(lambda frame: calls.watch(frame, over.set))  # type: ignore[arg-type]
        except ValueError:
            os._exit(0 if over.wait(SOON) and not mine.is_set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not mine.is_set()
