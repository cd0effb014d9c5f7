"""The processes that compile: how many, when they start, what happens when one is gone."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from cluster import alive, eventually
from kiln_torch.compilation import CompilationConfig, KilnBackend, pool
from kiln_torch.compilation.pool import Pool, Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.torch

# What no process can read: it answers as soon as it has imported torch.
JUNK = b"no job"


@pytest.fixture
def two() -> Iterator[Pool]:
    made = Pool(2)
    yield made
    made.close()


def asked(of: Pool) -> None:
    with pytest.raises(Unfit, match="cannot be read"):
        of.compile(JUNK, 300.0)


def test_those_that_are_started_early_are_those_that_compile(two: Pool) -> None:
    two.warm(1)
    (first,) = two.pids()
    two.warm(5)
    pids = two.pids()
    # Never more than the bound.
    assert len(pids) == 2
    assert first in pids
    two.warm(2)
    assert two.pids() == pids
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: asked(two), range(4)))
    assert sorted(two.pids()) == sorted(pids)
    assert two.active == 0
    two.close()
    for pid in pids:
        eventually("end of a process", lambda pid=pid: None if alive(pid) else True)


def test_one_that_ended_is_replaced(two: Pool) -> None:
    two.warm(1)
    (first,) = two.pids()
    os.killpg(first, signal.SIGKILL)
    eventually("end of a process", lambda: None if alive(first) else True)
    asked(two)
    (second,) = two.pids()
    assert second != first


def test_all_together_use_each_core_once(two: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(pid: int) -> str:
        def told() -> str | None:
            # Empty for a moment, while the program begins.
            lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return next((e.decode() for e in lines if e.startswith(b"TORCHINDUCTOR_")), None)

        return eventually("environment", told)

    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    for name in [name for name in os.environ if name.startswith("TORCHINDUCTOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(9)))
    two.warm(1)
    assert threads(two.pids()[0]) == "TORCHINDUCTOR_COMPILE_THREADS=4"
    # No more than the user says.
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    two.warm(2)
    assert threads(two.pids()[1]) == "TORCHINDUCTOR_COMPILE_THREADS=1"


def test_a_backend_starts_them_where_there_is_nothing_to_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    started: list[int] = []
    monkeypatch.setattr(Pool, "warm", lambda _, count: started.append(count))
    full = tmp_path / "full"
    full.mkdir()
    (full / "entry.kiln").write_bytes(b"something")

    def starts(folder: Path, **settings: Any) -> list[int]:
        started.clear()
        KilnBackend(CompilationConfig(**settings), str(folder))
        return list(started)

    assert starts(tmp_path / "new", parallel_compiles=3) == [3]
    assert starts(tmp_path / "new", parallel_compiles=16) == [4]
    assert starts(full, parallel_compiles=3) == []
    assert starts(tmp_path / "new", parallel_compiles=1) == []
    assert starts(tmp_path / "new", parallel_compiles=3, compilation_level="full") == []
