"""A breaker: what failed costs nothing until it works again.

Invariant: nobody waits for an endpoint but at its first use, and then no longer
than it may take to find it dead, a quarter of that where another process of this
machine found it dead a moment ago; whether it is back is found out by a thread of
its own, with growing pauses. That thread also bounds what has no bound itself:
name resolution, and gRPC in a process that was forked.
"""

from __future__ import annotations

import threading
import time
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .known_dead import KnownDead

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
# Of the time to find it dead: in which one answers that is back.
_BACK = 0.25


class _State(Enum):
    UNTRIED = 0
    CLOSED = 1
    OPEN = 2


class Breaker:
    """Closed while the endpoint works; open from its first failure on."""

    def __init__(
        self,
        probe: Callable[[Callable[[], None], Callable[[], None]], bool],
        answer: float,
        load: float,
        clock: Callable[[], float] = time.monotonic,
        known: KnownDead | None = None,
    ) -> None:
        """Take ``probe``: whether the endpoint works now. It may block; it may not raise.

        It calls its first argument once the endpoint can be reached at all, and its
        second once all is loaded to ask it. The first use waits ``answer`` seconds for
        the endpoint, and ``load`` between those two calls, which are no fault of it.
        ``known``: whether others found it dead, and where they are told.
        """
        self._probe = probe
        self._answer = answer
        self._load = load
        self._clock = clock
        self._known = known
        self._lock = threading.Lock()
        self._state = _State.UNTRIED
        self._probing = False
        self._reached = threading.Event()
        self._loaded = threading.Event()
        self._ended = threading.Event()
        self._pause = _FIRST_PAUSE
        self._retry_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the endpoint may be used; asks in the background when it is time to."""
        with self._lock:
            if self._state is _State.CLOSED:
                return True
            first = self._state is _State.UNTRIED
            begin = not self._probing and (first or self._clock() >= self._retry_at)
            self._probing |= begin
        if begin:
            threading.Thread(target=self._ask, name="kiln-probe", daemon=True).start()
        if not first:
            return False
        if not self._answers():
            with self._lock:
                if self._state is _State.UNTRIED:
                    self._state = _State.OPEN
            self._tell(dead=True)
        with self._lock:
            return self._state is _State.CLOSED

    def _answers(self) -> bool:
        """Wait until the first probe ended; whether it did in time."""
        began = self._clock()
        answer = self._answer * (_BACK if self._known else 1.0)
        if not self._reached.wait(answer):
            return False
        left = answer - (self._clock() - began)
        return self._loaded.wait(self._load) and self._ended.wait(max(left, 0.0))

    def trip(self) -> None:
        """Record a failure."""
        with self._lock:
            self._state = _State.OPEN
            self._retry_at = self._clock() + self._pause
        self._tell(dead=True)

    def _tell(self, *, dead: bool) -> None:
        if self._known is not None:
            self._known.tell(dead=dead)

    def _ask(self) -> None:
        works = self._probe(self._reached.set, self._loaded.set)
        self._tell(dead=not works)
        with self._lock:
            self._probing = False
            self._state = _State.CLOSED if works else _State.OPEN
            self._pause = _FIRST_PAUSE if works else min(self._pause * 2, _LONGEST_PAUSE)
            self._retry_at = self._clock() + self._pause
        for event in (self._ended, self._loaded, self._reached):
            event.set()
