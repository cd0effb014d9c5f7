"""A process that this one starts imports what this one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kiln_torch.adopt import ADOPT_PATH, adopted


@pytest.mark.parametrize("path", [None, "", os.pathsep, "elsewhere" + os.pathsep])
def test_nothing_of_the_folder_it_starts_in_is_run(tmp_path: Path, path: str | None) -> None:
    """Whatever PYTHONPATH says: an empty entry is that folder."""
    for name in ("json", "sys", "socket", "theirs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the folder')")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = path
    code = "import json, socket; print(json.dumps([sys.path, sys.argv[1:]]))"
    command = [sys.executable, "-c", ADOPT_PATH + code, adopted(), "given"]
    told = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == json.dumps([sys.path, ["given"]])
