"""The Kubernetes of one machine, and waiting for what it comes to.

Nothing here sleeps for a fixed time: every wait is for a state, with a bound.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
# Two nodes and all their containers on few cores: bounds are for what hangs.
PATIENCE = 300.0


class Failed(Exception):
    """Something did not come to be."""


def wait_for(what: str, found: Callable[[], T | None], patience: float = PATIENCE) -> T:
    """Waits until `found` finds something; what it raises counts as nothing yet."""
    deadline = time.monotonic() + patience
    trouble: object = "nothing yet"
    while True:
        try:
            value = found()
        except (Failed, ValueError, KeyError, IndexError, TypeError) as error:
            value, trouble = None, error
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"waited {patience:.0f} s in vain for {what}: {trouble}")
        time.sleep(0.2)


class Kube:
    """The script that runs it; see its README."""

    def __init__(self, script: Path, chart: Path) -> None:
        """Nothing is started yet."""
        self.script = script
        self.chart = chart

    def __call__(
        self, *command: str, data: bytes | None = None, patience: float = PATIENCE
    ) -> bytes:
        """One command of the script; its output."""
        try:
            done = subprocess.run(
                [str(self.script), *command], input=data, capture_output=True, timeout=patience
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command[:4])} took over {patience:.0f} s") from None
        if done.returncode:
            raise Failed(f"{' '.join(command[:6])}: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def text(self, *command: str) -> str:
        """The same as text."""
        return self(*command).decode().strip()

    def kubectl(self, *command: str, data: bytes | None = None) -> bytes:
        """Asks the API server."""
        return self("kubectl", *command, data=data)

    def get(self, *what: str) -> dict[str, Any]:
        """Objects as JSON."""
        return json.loads(self("kubectl", "get", *what, "-o", "json"))

    def apply(self, manifest: dict[str, Any]) -> None:
        """Creates or changes one object."""
        self("kubectl", "apply", "-f", "-", data=json.dumps(manifest).encode())

    def is_up(self) -> bool:
        """Whether one is there already."""
        try:
            self("kubectl", "get", "nodes", patience=20)
        except Failed:
            return False
        return True

    def up(self) -> None:
        """Two nodes; tried again, for a machine under load."""
        for last in (False, True):
            try:
                self("up", "--nodes", "2", patience=300)
                break
            except Failed:
                self.down()
                if last:
                    raise
        self("kubectl", "label", "node", "--all", "nvidia.com/gpu.present=true")

    def down(self) -> None:
        """Ends and deletes everything of it."""
        self("down", patience=120)

    def helm(self, *command: str, patience: float = 600) -> None:
        """Helm, waiting for what it makes."""
        self("helm", *command, patience=patience)

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        """A program that runs on in the cluster's network, in a process group of its own."""
        return subprocess.Popen(
            [str(self.script), "run", *command], text=True, start_new_session=True, **options
        )
