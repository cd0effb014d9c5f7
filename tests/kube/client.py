"""What the asking clients saw, phase by phase.

An outage is a run of asks that failed, from the first one's begin to the end of
the first that was answered again.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

from kube.machine import Kube


@dataclasses.dataclass
class Seen:
    """Asks of one kind in one phase."""

    asks: int = 0
    failed: int = 0
    outage: float = 0.0
    slowest: float = 0.0
    compiled: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """For a line of the table."""
        failures = f"{self.failed} failed, outage {self.outage:.1f} s"
        return f"{self.asks} asks, {failures}, slowest {self.slowest:.1f} s"


class Asker:
    """One asking process and its lines."""

    def __init__(
        self,
        kube: Kube,
        program: Path,
        endpoint: str,
        sources: Path,
        new: bool,
        environment: dict[str, str],
    ) -> None:
        """Starts to ask."""
        self.new = new
        self.lines: list[dict[str, object]] = []
        self.lock = threading.Lock()
        pairs = [f"{name}={value}" for name, value in environment.items()]
        command = ["env", *pairs, sys.executable, "-B", str(Path(__file__).parent / "asker.py")]
        command += ["--kiln", str(program), "--endpoint", endpoint, "--sources", str(sources)]
        self.process = kube.popen(
            *command,
            *(["--new"] if new else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self.lock:
                self.lines.append(json.loads(line))

    def take(self) -> Seen:
        """What was seen since the last time. An outage that goes on stays for the next."""
        with self.lock:
            lines, self.lines = self.lines, []
            while lines and not lines[-1]["ok"] and self.process.poll() is None:
                self.lines.insert(0, lines.pop())
        seen = Seen(asks=len(lines))
        down_since = None
        for line in lines:
            began, took = float(str(line["began"])), float(str(line["took"]))
            seen.slowest = max(seen.slowest, took)
            if not line["ok"]:
                seen.failed += 1
                seen.errors.append(json.dumps(line.get("error"))[:300])
                down_since = began if down_since is None else down_since
            elif down_since is not None:
                seen.outage = max(seen.outage, began + took - down_since)
                down_since = None
            if line.get("outcome") == "compiled" and not self.new:
                seen.compiled += 1
        return seen

    def end(self) -> None:
        """Ends it."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join(10)
