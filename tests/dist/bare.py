"""A bare system root, and commands that run in it.

Invariant: a command sees the root, what it is shown read-only, and loopback, or the network where
that is asked for. Mounts are in a namespace of the command's own and its processes in another:
both end with it, however it ends.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import threading
from pathlib import Path

# Bounds, not expectations.
COMMAND_SECONDS = 300
INCLUDED = "python3,python3-venv,ca-certificates"
SUITE = "bookworm"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Failed(Exception):
    """A command did not end well, or what it left is not right."""


class Bare:
    """One copy of a root."""

    def __init__(self, folder: Path, shown: dict[str, Path]) -> None:
        """Takes `folder`; `shown` is what its commands see at which place of the root."""
        self.root, self.scratch = folder / "root", folder
        self._shown = shown

    @classmethod
    def debootstrap(cls, folder: Path, mirror: str, included: str = INCLUDED) -> Path:
        """A fresh root of Debian: minutes, most of them the mirror's."""
        root = folder / "root"
        folder.mkdir()
        words = ["--variant=minbase", f"--include={included}", SUITE, str(root), mirror]
        with (folder / "log").open("w+") as log:
            done = subprocess.run(["debootstrap", *words], stdout=log, stderr=log, check=False)
            if done.returncode:
                log.seek(0)
                raise Failed(f"debootstrap from {mirror}: {log.read()[-2000:]}")
        return root

    @classmethod
    def copy_of(cls, base: Path, folder: Path, shown: dict[str, Path]) -> Bare:
        """A copy of `base`, with places for what is shown."""
        bare = cls(folder, shown)
        folder.mkdir()
        subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(bare.root)], check=True)
        for place in shown:
            (bare.root / place).mkdir()
        return bare

    def copy(self, folder: Path, place: str) -> None:
        """A copy of `folder` at `place` of the root."""
        shutil.copytree(folder, self.root / place, symlinks=True)

    def files(self, *folders: str) -> set[str]:
        """All files below these, but what Python and dpkg note for themselves."""
        found = {path for folder in folders for path in (self.root / folder).rglob("*")}
        names = {str(path.relative_to(self.root)) for path in found if not path.is_dir()}
        return {name for name in names if "__pycache__" not in name}

    def run(self, script: str, *, network: bool = False, seconds: int = COMMAND_SECONDS) -> None:
        """Runs a line of shell as root of the root, and prints what it prints."""
        root = shlex.quote(str(self.root))
        lines = ["set -e", f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        for place, folder in self._shown.items():
            lines.append(f"mount --bind {shlex.quote(str(folder))} {root}/{place}")
            lines.append(f"mount -o remount,bind,ro {root}/{place}")
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        if not network:
            spaces.append("--net")
            lines.append("ip link set lo up")
        inside = ["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", f"PATH={PATH}", "sh", "-ec", script]
        lines.append(f"exec chroot {root} {shlex.join(inside)}")
        process = subprocess.Popen(
            [*spaces, "sh", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        bound = threading.Timer(seconds, end)
        bound.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"        {line}", end="", flush=True)
            code = process.wait()
        finally:
            bound.cancel()
            process.kill()
            process.wait()
        if late.is_set():
            raise Failed(f"{script}: not ended after {seconds} s")
        if code:
            raise Failed(f"{script}: exit code {code}")
