"""Each kiln.toml that the chart writes is one that the program takes.

Invariant: judged by `kiln serve --print-config`, which also says that what the
chart sets is what the program understood.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rendering import Rendering


def problems(kiln: Path, renderings: Iterable[Rendering]) -> list[str]:
    """What the program refuses."""
    found = []
    for rendering in renderings:
        for manifest in rendering.of("ConfigMap"):
            text = manifest["data"].get("kiln.toml")
            if text is not None:
                name = f"{rendering}: {manifest['metadata']['name']}"
                found += [f"{name}: {problem}" for problem in _judge(kiln, text)]
    return found


def _judge(kiln: Path, text: str) -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            [kiln, "serve", "--print-config", "--config", file.name],
            # What the pod's environment adds.
            env={"KILN_ADVERTISE": "10.0.0.1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        return [f"{Path(kiln).name} serve refuses its kiln.toml: {done.stderr.strip()}"]
    # Both sides print scalars alike, but for units.
    understood = {line.strip() for line in done.stdout.splitlines()}
    said = (line.strip() for line in text.splitlines())
    plain = [line for line in said if line.endswith(('"', "]")) and ":" in line and " = " in line]
    return [f"not understood: {line}" for line in plain if line not in understood]
