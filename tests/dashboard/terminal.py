"""`kiln top` in a real terminal: tmux.

Invariant: the tmux server is this test's own and ends with it.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from demo_cluster import Node, require, wait_for

if TYPE_CHECKING:
    from pathlib import Path


class Tmux:
    """One terminal of 140 by 40."""

    def __init__(self, folder: Path) -> None:
        """Opens it, with a shell."""
        self.socket = str(folder / "tmux")
        self.run("-f", "/dev/null", "new-session", "-d", "-x", "140", "-y", "40", "sh")

    def run(self, *arguments: str) -> str:
        """Asks tmux."""
        command = ["tmux", "-S", self.socket, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        require(done.returncode == 0, f"tmux {arguments}: {done.stderr.strip()}")
        return done.stdout

    def keys(self, *keys: str) -> None:
        """Presses keys."""
        self.run("send-keys", *keys)

    def screen(self) -> str:
        """What is on it."""
        return self.run("capture-pane", "-p")

    def shows(self, text: str, within: float = 30.0) -> str:
        """The screen, once it has `text`."""

        def look() -> str | None:
            screen = self.screen()
            return screen if text in screen else None

        return wait_for(f"{text!r} on the terminal, but:\n{self.screen()}", look, within)

    def stop(self) -> None:
        """Closes it."""
        self.run("kill-server")


def start(tmux: Tmux, kiln: Path, node: Node) -> None:
    """Begins `kiln top`."""
    tmux.keys(f"{kiln} top --endpoint http://{node.grpc}; echo it ended with $?", "Enter")
    tmux.shows("3 of 3 nodes up")


def quit_and_check(tmux: Tmux) -> None:
    """`q` ends it, and the terminal is as it was before."""
    tmux.keys("q")
    tmux.shows("it ended with 0")
    tmux.keys("stty -a", "Enter")
    screen = tmux.shows(" icanon")
    require("-echo " not in screen and "-icanon" not in screen, f"a raw terminal:\n{screen}")
    require("nodes up" not in screen, f"the other screen is still shown:\n{screen}")
