"""helm/kiln/README.md: the text of README.md.in with a table of values.yaml.

    python3 deploy/chart/readme.py           writes it
    python3 deploy/chart/readme.py --check   fails where it is not what it would write

Invariant: a value, its default and its description are read from values.yaml;
a description is the comment that begins with `--` above its value.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm/kiln"
MARK = "<!-- values -->"


def written(chart: Path) -> str:
    """What the README should be."""
    text = (chart / "README.md.in").read_text()
    return text.replace(MARK, "\n".join(_table((chart / "values.yaml").read_text())))


def problems(chart: Path) -> list[str]:
    """Whether it is something else."""
    target = chart / "README.md"
    if target.exists() and target.read_text() == written(chart):
        return []
    return [f"{target.name} is not what values.yaml says: python3 deploy/chart/readme.py"]


def _table(text: str) -> list[str]:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines()
    rows = ["| value | default | |", "|---|---|---|"]
    for path, start, value in _leaves(node, ()):
        shown = json.dumps(value, separators=(", ", ": ")) if value != "" else ""
        default = f"`{shown}`" if shown else ""
        rows.append(f"| `{path}` | {default} | {_description(lines, start)} |")
    return rows


def _leaves(node: Any, path: tuple[str, ...]) -> list[tuple[str, int, Any]]:  # noqa: ANN401
    found = []
    for key, value in node.value:
        here = (*path, key.value.replace(".", "\\."))
        if isinstance(value, yaml.MappingNode) and value.value:
            found += _leaves(value, here)
        else:
            plain = yaml.safe_load(yaml.serialize(value))
            found.append((".".join(here), key.start_mark.line, plain))
    return found


def _description(lines: list[str], at: int) -> str:
    block: list[str] = []
    for line in reversed(lines[:at]):
        text = line.strip()
        if not text.startswith("#"):
            return ""
        text = text[1:].strip()
        block.insert(0, text)
        if text.startswith("--"):
            return " ".join(block)[2:].strip().replace("|", "\\|")
    return ""


def main() -> None:
    """Writes or checks."""
    if "--check" in sys.argv:
        raise SystemExit("\n".join(problems(CHART)) or 0)
    (CHART / "README.md").write_text(written(CHART))


if __name__ == "__main__":
    main()
