"""A Python that this one starts imports what this one can, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from kiln_torch.compilation import fork_server, worker
from kiln_torch.prefetch import process

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# A bound, not an expectation.
LONG = 60.0


def test_a_helper_imports_nothing_of_the_folder_it_starts_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's folder has modules of the names that are imported first."""
    for module in ("json", "importlib", "socket", "kiln_torch"):
        (tmp_path / f"{module}.py").write_text("print('hostile', flush=True)\n")
    monkeypatch.chdir(tmp_path)
    own = [path for path in sys.path if path]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), *own])
    helper = process.start("print(sys.argv, sys.path[0])", "word", stdout=process.PIPE)
    assert helper is not None
    printed, _ = helper.communicate(timeout=LONG)
    assert printed.decode() == f"['-c', 'word'] {tmp_path / 'own'}\n"
    for code in (worker._START, fork_server._START):
        # Its first line alone: what follows has no channel here.
        words = [sys.executable, "-c", code, "[]", "{}"]
        done = subprocess.run(words, capture_output=True, timeout=LONG, check=False)
        assert b"hostile" not in done.stdout
        assert b"No module named 'kiln_torch'" in done.stderr, done.stderr
