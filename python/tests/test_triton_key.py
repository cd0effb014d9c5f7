"""Triton's digest of itself is read ahead, and is that of the program's own Triton."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kiln_torch import stats
from kiln_torch.prefetch import process, triton_key

OWN = "read by the program"


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    """What stands for ``triton.runtime.cache``."""
    made = ModuleType("cache")
    made.__file__ = str(tmp_path / "cache.py")
    made.triton_key = lambda: OWN  # pyrefly: ignore
    return made


@pytest.fixture
def helpers() -> Iterator[list[Any]]:
    """Helpers, all ended at the end."""
    started: list[Any] = []
    yield started
    for each in started:
        each.kill()
        each.wait()


def told(module: ModuleType, path: str = "", key: object = "ahead") -> str:
    """Return the code of a helper that says so."""
    line = json.dumps([path or module.__file__, key])
    return f"print({line!r}); sys.stdout.close()"


def key_with(code: str, helpers: list[Any], module: ModuleType, pid: int | None = None) -> str:
    """Return what the program is told, once the helper said what ``code`` says."""
    helper = process.start(code, stdout=process.PIPE)
    assert helper is not None
    helpers.append(helper)
    if "pause" not in code:
        helper.wait()
    triton_key._plug(helper, os.getpid() if pid is None else pid, module)
    assert module.triton_key() == module.triton_key()
    return module.triton_key()


def test_what_the_helper_read(helpers: list[Any], module: ModuleType) -> None:
    """Is taken, once."""
    assert key_with(told(module), helpers, module) == "ahead"
    assert stats()["triton_key.ahead"] == 1


@pytest.mark.parametrize("wrong", ["another Triton", "no text", "garbage", "nothing"])
def test_anything_else_is_not_taken(helpers: list[Any], module: ModuleType, wrong: str) -> None:
    """The program reads it itself."""
    code = {
        "another Triton": told(module, path="/elsewhere/cache.py"),
        "no text": told(module, key=["a list"]),
        "garbage": "print('{')",
        "nothing": "pass",
    }[wrong]
    assert key_with(code, helpers, module) == OWN
    assert "triton_key.ahead" not in stats()


def test_a_helper_that_is_late(helpers: list[Any], module: ModuleType) -> None:
    """Is not waited for."""
    assert key_with("import signal; signal.pause()", helpers, module) == OWN
    assert stats()["triton_key.late"] == 1


def test_a_forked_child_reads_itself(helpers: list[Any], module: ModuleType) -> None:
    """The pipe is its parent's."""
    assert key_with(told(module), helpers, module, pid=os.getpid() + 1) == OWN
    assert "triton_key.ahead" not in stats()


def test_the_real_one(helpers: list[Any]) -> None:
    """The helper says what this process's Triton says."""
    cache = pytest.importorskip("triton.runtime.cache")
    helper = process.start(triton_key._HELPER, stdout=process.PIPE)
    assert helper is not None
    helpers.append(helper)
    said, _ = helper.communicate(timeout=300)
    assert json.loads(said) == [os.path.realpath(cache.__file__), cache.triton_key()]
