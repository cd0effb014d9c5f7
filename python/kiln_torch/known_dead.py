"""Which endpoints this machine's processes found dead a moment ago.

A program is many processes (ranks, Inductor's compile workers, helpers): each would wait
out a dead endpoint by itself. What one found is a file that the others look at.

Invariant: it only shortens how long the first use of an endpoint waits; whether the endpoint
works, each process finds out by itself. Files of another user are neither read nor written,
and nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from pathlib import Path

from blake3 import blake3

# Seconds for which it counts. A probe that fails again writes it anew.
_COUNTS = 15.0


class KnownDead:
    """What is known of one address."""

    def __init__(self, address: str) -> None:
        """Look at nothing yet."""
        self._name = blake3(address.encode()).hexdigest()[:32]

    def __bool__(self) -> bool:
        """Whether it was dead a moment ago."""
        with contextlib.suppress(OSError):
            found = (self._folder() / self._name).lstat()
            age = time.time() - found.st_mtime
            return found.st_uid == os.getuid() and 0 <= age < _COUNTS
        return False

    def tell(self, *, dead: bool) -> None:
        """Tell the others."""
        with contextlib.suppress(OSError):
            folder = self._folder()
            if not dead:
                (folder / self._name).unlink(missing_ok=True)
                return
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                return
            for other in folder.iterdir():
                if not 0 <= time.time() - other.lstat().st_mtime < _COUNTS:
                    other.unlink(missing_ok=True)
            (folder / self._name).touch(mode=0o600)

    def _folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"kiln-dead-{os.getuid()}"
