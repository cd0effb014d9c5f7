"""The nodes beside a page: a command of the page that goes on until the page is read.

Invariant: when this ends, by whatever way, the command and its nodes have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from demo_cluster import require

# Bounds, not expectations.
READY_SECONDS = 120.0
STOP_SECONDS = 60.0


class Nodes:
    """`kiln dev`, as the page has it: `line` is what it printed, the others are addresses."""

    def __init__(self, command: str, work: Path, environment: dict[str, str]) -> None:
        """Keeps the command; `with` starts it."""
        self._command, self._work, self._environment = command, work, environment
        self.line = ""
        self.grpc: list[str] = []
        self.resp: list[str] = []

    def __enter__(self) -> Nodes:
        """Starts the command and waits for its line."""
        self._log = (self._work.parent / "nodes.log").open("w+")
        # A group of its own, so that all of it can be ended.
        self._process = subprocess.Popen(
            ["bash", "-c", self._command],  # noqa: S607
            cwd=self._work,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self.line = self._line().decode()
            nodes = json.loads(self.line)["nodes"]
        except BaseException:
            self._end()
            raise
        self.grpc = [f"http://{node['grpc']}" for node in nodes]
        self.resp = [f"redis://{node['resp']}" for node in nodes]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the nodes."""
        self._end()

    def _line(self) -> bytes:
        """The line that the command prints when all nodes are ready."""
        output = self._process.stdout
        assert output is not None
        end, line = time.monotonic() + READY_SECONDS, b""
        with selectors.DefaultSelector() as waiting:
            waiting.register(output, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                waiting.select(max(0.0, end - time.monotonic()))
                require(time.monotonic() < end, f"no nodes within {READY_SECONDS:.0f} s")
                read = os.read(output.fileno(), 1 << 16)
                require(bool(read), f"`{self._command}` ended: {self._told()}")
                line += read
        return line

    def _told(self) -> str:
        """What the command wrote to stderr."""
        self._log.seek(0)
        return self._log.read()[-2000:]

    def _end(self) -> None:
        """Ends the command as ctrl-C in its terminal does, then what is left of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
            if self._process.stdout:
                self._process.stdout.close()
            self._log.close()
