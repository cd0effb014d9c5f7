"""A bare system root, and commands that run in it.

Invariant: a command sees the root, what it is shown read-only, and loopback. Mounts are in a
namespace of the command's own and its processes in another: both end with it, however it ends.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
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
    def debootstrap(cls, folder: Path, mirror: str) -> Path:
        """A fresh root of Debian: minutes, most of them the mirror's."""
        root = folder / "root"
        folder.mkdir()
        words = ["--variant=minbase", f"--include={INCLUDED}", SUITE, str(root), mirror]
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

    def run(self, script: str) -> None:
        """Runs a line of shell as root of the root."""
        root = shlex.quote(str(self.root))
        lines = ["set -e", "ip link set lo up", f"mount -t proc proc {root}/proc"]
        lines.append(f"mount --rbind /dev {root}/dev")
        for place, folder in self._shown.items():
            lines.append(f"mount --bind {shlex.quote(str(folder))} {root}/{place}")
            lines.append(f"mount -o remount,bind,ro {root}/{place}")
        inside = ["env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", f"PATH={PATH}", "sh", "-ec", script]
        lines.append(f"exec chroot {root} {shlex.join(inside)}")
        spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        command = [*spaces, "sh", "-c", "\n".join(lines)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{script}: not ended after {late.timeout} s: {late.output}") from None
        if done.returncode:
            raise Failed(f"{script}: exit code {done.returncode}: {done.stdout[-3000:]}")
        for line in done.stdout.splitlines():
            print(f"        {line}", flush=True)
