"""``AlertSystem``: what is wrong is said once, to the log and to a webhook, and so is its end.

Invariant: an alert that is open is not sent again; nobody waits for a receiver, and
one that is away costs the alerts that do not fit into a bounded queue, which are counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable

PERFORMANCE = "performance"
CRITICAL = "critical"
TIMEOUT = "compile_timeout"
# Seconds without another one after which what came by itself (a time-out) is over.
_QUIET = 900.0
_MOST_QUEUED = 64
_MOST_OPEN = 256
# Seconds for a receiver to take one, and how often one is sent again.
_ANSWER = 5.0
_TRIES = 3


@dataclass(frozen=True)
class Alert:
    """One thing that is wrong, or was."""

    name: str
    severity: str
    message: str
    # Seconds since 1970.
    since: float
    resolved: bool = False


class AlertSystem:
    """Open alerts, and who is told."""

    def __init__(self, webhook: str | None = None, wall: Callable[[], float] = time.time) -> None:
        """Tell the log; and ``webhook``, an address that takes a JSON object by POST."""
        if webhook is not None and not webhook.startswith(("http://", "https://")):
            raise ValueError(f"{webhook!r} is no address that takes alerts")
        self._wall = wall
        self._webhook = webhook
        self._lock = threading.Lock()
        self._open: dict[str, Alert] = {}
        self._seen: dict[str, float] = {}
        self._queue: queue.Queue[Alert | None] = queue.Queue(_MOST_QUEUED)
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> tuple[Alert, ...]:
        """What is wrong now."""
        with self._lock:
            return tuple(self._open.values())

    def send_performance_alert(self, name: str, message: str = "") -> bool:
        """Say that something is slower or larger than it was; ``False``: that is known."""
        return self._send(name, PERFORMANCE, message)

    def send_critical_alert(self, name: str, message: str = "") -> bool:
        """Say that something does not work; ``False``: that is known."""
        return self._send(name, CRITICAL, message)

    def send_timeout_alert(self, message: str) -> bool:
        """Say that a compile was ended; ``False``: that happened a while ago as well."""
        self.expire()
        return self._send(TIMEOUT, PERFORMANCE, message)

    def resolve(self, name: str) -> bool:
        """Say that something is right again; ``False``: nobody said it was not."""
        with self._lock:
            alert = self._open.pop(name, None)
            self._seen.pop(name, None)
        if alert is None:
            return False
        report.log.warning("alert over: %s", name)
        self._post(replace(alert, resolved=True))
        return True

    def expire(self) -> None:
        """Resolve time-outs that did not come again."""
        with self._lock:
            last = self._seen.get(TIMEOUT)
        if last is not None and self._wall() - last > _QUIET:
            self.resolve(TIMEOUT)

    def close(self, within: float = _ANSWER) -> None:
        """Send what is queued, if that can be done soon."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            thread.join(within)

    def _send(self, name: str, severity: str, message: str) -> bool:
        now = self._wall()
        with self._lock:
            self._seen[name] = now
            if name in self._open or len(self._open) >= _MOST_OPEN:
                return False
            alert = self._open[name] = Alert(name, severity, message, now)
        report.count(f"compilation.alert.{severity}")
        level = report.log.error if severity == CRITICAL else report.log.warning
        level("alert: %s: %s", name, message)
        self._post(alert)
        return True

    def _post(self, alert: Alert) -> None:
        if self._webhook is None:
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="kiln-alerts", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            report.count("compilation.alerts_dropped")

    def _serve(self) -> None:
        while (alert := self._queue.get()) is not None:
            for attempt in range(_TRIES):
                try:
                    self._deliver(alert)
                    break
                except (OSError, ValueError) as error:
                    report.once("webhook", "an alert was not taken: %s", error)
                    if attempt == _TRIES - 1:
                        report.count("compilation.alerts_dropped")

    def _deliver(self, alert: Alert) -> None:
        assert self._webhook is not None
        request = urllib.request.Request(
            self._webhook,
            data=json.dumps(_told(alert)).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=_ANSWER) as answer:
            answer.read(1)

    def _after_fork(self) -> None:
        # The parent's alerts are the parent's to resolve.
        self.__init__(self._webhook, self._wall)  # type: ignore[misc]


def _told(alert: Alert) -> dict[str, Any]:
    status = "resolved" if alert.resolved else "firing"
    return {**asdict(alert), "status": status, "pid": os.getpid()}


# Of this process.
alerts = AlertSystem()
os.register_at_fork(after_in_child=alerts._after_fork)
