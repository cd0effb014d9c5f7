"""Entries of torch's remote caches are read as JSON reads them."""

from __future__ import annotations

import base64
import json
import os

import pytest
from kiln_torch.decoding import entry

ENTRY = {"data": base64.b64encode(os.urandom(100_000)).decode(), "time_taken_ms": 3}


def test_what_torch_writes() -> None:
    """All of it; the long string as bytes."""
    read = entry(json.dumps(ENTRY).encode())
    assert read is not None
    assert read == {**ENTRY, "data": ENTRY["data"].encode()}
    assert entry(b'{"data": ""}') == {"data": b""}
    assert entry(b'{"data": "x", "more": {"data": "y"}}') == {"data": b"x", "more": {"data": "y"}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"data": "',
        b'{"data": "x"',
        b'{"data": "x"] ',
        b'{"data": "x", "data": "y"}',
        b'{"data": "a\\"b"}',
        '{"data": "\u00e9"}'.encode(),
        b'{"data": 3}',
        b'{"data":"x"}',
        b'{"other": 1, "data": "x"}',
        b'{"data": "x"} {"data": "y"}',
    ],
)
def test_all_else_is_left_to_json(data: bytes) -> None:
    """Whether it is valid or not."""
    assert entry(data) is None
