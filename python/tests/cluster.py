"""A real cluster for the tests: ``kiln dev``, and its nodes to stop and kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Bounds, not expectations: what takes longer is broken.
START = 90.0
SOON = 60.0

ROOT = Path(__file__).resolve().parents[2]


def binary() -> Path | None:
    """The ``kiln`` to test, if there is one."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    path = Path(os.environ.get("KILN_BINARY", target / "debug" / "kiln"))
    return path if path.is_file() else None


def eventually(what: str, ask: Callable[[], T | None], within: float = SOON) -> T:
    """Ask until there is an answer: ``None`` and ``False`` are none yet."""
    end = time.monotonic() + within
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        assert time.monotonic() < end, f"no {what} within {within:.0f} s"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@dataclass
class Node:
    """One node, as the ready line names it."""

    id: int
    grpc: str
    http: str
    pid: int
    socket: str | None
    resp: str | None

    @property
    def endpoint(self) -> str:
        """What KILN_ENDPOINT takes."""
        return f"http://{self.grpc}"

    def counter(self, name: str, label: str = "") -> int:
        """Sum of a metric over the series that contain ``label``; 0 where never counted."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [ln for ln in lines if ln.split("{")[0].split(" ")[0] == name and label in ln]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a node that has ended is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Cluster:
    """Three nodes that end with the ``with`` block."""

    def __init__(
        self, kiln: Path, folder: Path, nodes: int = 3, settings: tuple[str, ...] = ()
    ) -> None:
        """Start nothing yet; ``settings`` as `kiln dev --set` takes them."""
        self._settings = settings
        self._kiln = kiln
        self._folder = folder
        self._count = nodes
        self._dev: subprocess.Popen[str] | None = None
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        """Start the nodes and wait until they are ready."""
        (self._folder / "object").mkdir(parents=True, exist_ok=True)
        command = [str(self._kiln), "dev", "--nodes", str(self._count)]
        command += ["--dir", str(self._folder / "dev"), "--ready-timeout", f"{START:.0f}s"]
        command += ["--object", f"file://{self._folder}/object"]
        for setting in ("cluster.lease_ttl=3s", *self._settings):
            command += ["--set", setting]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
        with (self._folder / "dev.log").open("a") as log:
            self._dev = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=environment,
            )
        assert self._dev.stdout is not None
        line = self._dev.stdout.readline()
        if not line:
            self.__exit__()
            raise AssertionError((self._folder / "dev.log").read_text()[-4000:])
        self.nodes = [_node(view) for view in json.loads(line)["nodes"]]
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the nodes; none is left behind."""
        if self._dev is None:
            return
        for node in self.nodes:
            # One that a test has stopped could not end.
            node.signal(signal.SIGCONT)
        self._dev.send_signal(signal.SIGINT)
        try:
            self._dev.wait(SOON)
        except subprocess.TimeoutExpired:
            self._dev.kill()
            self._dev.wait()
            raise
        finally:
            if self._dev.stdout is not None:
                self._dev.stdout.close()

    def counter(self, name: str, label: str = "") -> int:
        """Sum of a metric over all nodes that run."""
        return sum(node.counter(name, label) for node in self.nodes if alive(node.pid))


def _node(view: dict[str, Any]) -> Node:
    return Node(
        id=view["id"],
        grpc=view["grpc"],
        http=view["http"],
        pid=view["pid"],
        socket=view.get("socket"),
        resp=view.get("resp"),
    )
