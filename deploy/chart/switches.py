"""Each value of the chart is turned by some file in ci/, and each choice is made.

Invariant: a value that no file sets differently from its default, or a choice of
values.schema.json that none makes, is one that nobody has ever rendered.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def problems(chart: Path, files: list[Path]) -> list[str]:
    """Values that are never turned, and choices that are never made."""
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    others = [yaml.safe_load(file.read_text()) for file in files]
    turned = [
        f"values.yaml: no file of ci/ sets {'.'.join(path)} to anything but its default"
        for path, default in _leaves(defaults)
        if not any(_at(other, path, default) != default for other in others)
    ]
    schema = json.loads((chart / "values.schema.json").read_text())
    return turned + [
        f"values.schema.json: neither values.yaml nor ci/ has {'.'.join(path)}: {choice}"
        for path, choices in _choices(schema)
        for choice in choices
        if not any(_at(values, path, None) == choice for values in (defaults, *others))
    ]


def _choices(
    schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if "enum" in schema:
        yield path, schema["enum"]
    for name, child in schema.get("properties", {}).items():
        yield from _choices(child, (*path, name))


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
