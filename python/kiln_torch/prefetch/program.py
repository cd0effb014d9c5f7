"""Which program this process runs: the name of its list.

Invariant: no path, host, port or process id enters the name; a process of which it
cannot be said which program it runs has none, and neither have torch's own workers.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Set by whoever starts several processes on a machine: their devices are in their keys.
# Which machine it is (RANK) matters to few; the list of these has what each of them used.
_RANK = "LOCAL_RANK"
_LARGEST_SCRIPT = 4 << 20
# They import torch, and fork: Inductor's compile workers.
_TORCHS_OWN = ("torch", "_inductor", "compile_worker", "__main__.py")


def name_of(
    environ: Mapping[str, str] | None = None, argv: Sequence[str] | None = None
) -> str | None:
    """Return the name of this program's list.

    KILN_TAG decides, where it is set; else the script's source and its arguments.
    """
    env = os.environ if environ is None else environ
    argv = getattr(sys, "argv", []) if argv is None else argv
    script = Path(argv[0]) if argv and argv[0] else None
    if script is not None and script.parts[-len(_TORCHS_OWN) :] == _TORCHS_OWN:
        return None
    tag = env.get("KILN_TAG")
    if tag:
        parts = [b"tag", tag.encode()]
    else:
        source = None if script is None else _source(script)
        if source is None:
            return None
        parts = [b"script", source, *(os.fsencode(given) for given in argv[1:])]
    parts.append(env.get(_RANK, "").encode())
    # A worker that a script starts compiles other things than the script.
    parts.append(b"child" if multiprocessing.parent_process() is not None else b"")
    hasher = blake3()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big") + part)
    return f"kiln:prefetch:1:{hasher.hexdigest()}"


def _source(script: Path) -> bytes | None:
    try:
        if not script.is_file() or script.stat().st_size > _LARGEST_SCRIPT:
            return None
        return script.read_bytes()
    except (OSError, ValueError):
        return None
