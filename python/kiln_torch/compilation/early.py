"""Begin to import for compiles before it is known whether there will be any.

Invariant: it only begins what the first compile would begin; nothing here imports
torch, and nothing waits.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .config import INDUCTOR, STANDALONE
from .fork_server import Gone, fork_server

if TYPE_CHECKING:
    from .config import CompilationConfig


def wanted(config: CompilationConfig) -> bool:
    """Whether processes will compile pieces at once."""
    pieces = config.parallel_compiles > 1 and config.compilation_level != "full"
    return pieces and config.compiler in (INDUCTOR, STANDALONE)


def begin(config: CompilationConfig, cache_dir: str, *, disable_cache: bool) -> None:
    """Start the fork server where everything is surely to be compiled."""
    if not wanted(config) or os.environ.get("KILN_ENDPOINT"):
        # What a fleet has is known only when it is asked.
        return
    if not disable_cache and _any(Path(cache_dir)):
        return
    # What cannot be started is said by the compile that needs it.
    with contextlib.suppress(Gone):
        fork_server()


def _any(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False
