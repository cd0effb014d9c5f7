"""Each value of the chart is turned by some file in ci/.

Invariant: a value that no file sets differently from its default is a value
whose other side nobody has ever rendered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def problems(chart: Path, files: list[Path]) -> list[str]:
    """Values that are never turned."""
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    others = [yaml.safe_load(file.read_text()) for file in files]
    return [
        f"values.yaml: no file of ci/ sets {'.'.join(path)} to anything but its default"
        for path, default in _leaves(defaults)
        if not any(_at(other, path, default) != default for other in others)
    ]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from _leaves(child, (*path, name))
    else:
        yield path, value


def _at(values: Any, path: tuple[str, ...], default: Any) -> Any:  # noqa: ANN401
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return default
        values = values[name]
    return values
