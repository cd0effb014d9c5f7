"""Keys are those of the Rust side."""

from __future__ import annotations

import json

import pytest
from cluster import ROOT
from kiln_torch.key import Component, Field, key_of, value_components, value_name

GOLDEN = json.loads((ROOT / "tests" / "fixtures" / "keys.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["values"], ids=lambda case: case["key"][:8])
def test_golden_keys(case: dict[str, str]) -> None:
    """``proto/src/value.rs`` checks the same file."""
    components = value_components(case["namespace"], bytes.fromhex(case["name_hex"]))
    assert key_of(components).hex() == case["key"]


def test_names_are_told_apart() -> None:
    """What is not plain text is shown in hex, and so is what only looks like hex."""
    names = [b"a", b"\0a", b"hex:61", b"a\n", b"", b"\xff", "ü".encode()]
    assert len({value_name(name) for name in names}) == len(names)
    assert value_name("pt2:x::y:c1") == "pt2:x::y:c1"
    assert value_name(b"\0a") == "hex:0061"


def test_fields_cannot_run_into_each_other() -> None:
    """Everything is length-prefixed."""
    assert Component.of("c", ab="c").digest != Component.of("c", a="bc").digest


def test_a_long_value_is_its_digest() -> None:
    """In the key and in what is shown of it."""
    field = Field("source", "x" * 97)
    assert field.value.startswith("blake3:")
    assert Field("source", "x" * 96).value == "x" * 96
    assert Field.exact("source", "x" * 97, derived=False).value == "x" * 97
