"""What runs instead of what was asked for, until that is there.

Invariant: it is marked and says why; a call is never made to wait for the compile of
what was asked for, and what replaces it admits the same inputs.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Tried:
    """One rung that failed."""

    rung: str
    code: str
    kind: str
    message: str
    seconds: float

    def __str__(self) -> str:
        """Show it for the log, in one line: the first two of what was said."""
        said = " ".join(line.strip() for line in self.message.strip().splitlines()[:2])
        return f"{self.rung}: {self.code} {self.kind}: {said}"


class Fallback:
    """A callable that stands in for another."""

    def __init__(
        self, run: Callable[..., Any], rung: str, tried: tuple[Tried, ...], wanted: str = ""
    ) -> None:
        """``wanted``: the key of what was asked for, in hex; "" where it has none."""
        self._run = run
        # What runs now, which rungs failed before it, and the key that it does not fill.
        self.rung = rung
        self.tried = tried
        self.wanted = wanted
        # On the monotonic clock: from then on another compile is due. ``None``: never.
        self.expires: float | None = None
        self.replaced = False
        self._lock = threading.Lock()
        self._load: Callable[[], Callable[..., Any] | None] | None = None

    @property
    def expired(self) -> bool:
        """Whether what was asked for is to be compiled again by now."""
        return self.expires is not None and time.monotonic() >= self.expires

    def offer(self, load: Callable[[], Callable[..., Any] | None]) -> None:
        """Say that what was asked for can be loaded: the next call does so."""
        with self._lock:
            self._load = load

    def __call__(self, *args: Any) -> Any:
        """Run it, or what was asked for where that is there now."""
        if self._load is not None:
            self._replace()
        return self._run(*args)

    def told(self) -> dict[str, Any]:
        """Return it as plain data."""
        expires = None if self.expires is None else max(0.0, self.expires - time.monotonic())
        return {
            "rung": self.rung,
            "wanted": self.wanted,
            "replaced": self.replaced,
            "valid_seconds": expires,
            "tried": [vars(each) for each in self.tried],
        }

    def _replace(self) -> None:
        import torch

        from .tracing import torch_lock

        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            # Loading is no part of a CUDA graph.
            return
        lock = torch_lock()
        if not lock.acquire(blocking=False):
            # Somebody compiles: the next call looks again.
            return
        try:
            with self._lock:
                load, self._load = self._load, None
            run = None if load is None else load()
        except Exception as error:
            report.count("compilation.load_failed")
            report.log.warning("what was compiled again does not load: %s", error)
            return
        finally:
            lock.release()
        if run is not None:
            self._run, self.replaced, self.expires = run, True, None
            report.count("compilation.replaced")
            report.log.info("%s runs no more: what was asked for is there", self.rung)


def fallback_of(run: Any) -> Fallback | None:
    """Return the mark of what ``compile`` gave; ``None``: it is what was asked for."""
    return run if isinstance(run, Fallback) and not run.replaced else None
