"""The processes that compile: how many, when they start, what happens when one is gone."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from cluster import alive, eventually
from kiln_torch.compilation import (
    CompilationConfig,
    CompilationError,
    KilnBackend,
    early,
    fork_server,
    pool,
    ranks,
)
from kiln_torch.compilation import TimeoutError as TookTooLong
from kiln_torch.compilation.messages import read, write
from kiln_torch.compilation.pool import Pool, Unfit

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.torch

# What no process can read: it answers as soon as it has imported torch.
JUNK = b"no job"
HERE = Path(__file__).parent
# Bound, not expectation.
LONG = 300.0


class Runs:
    """A job that runs a program for ten minutes while it is read."""

    def __reduce__(self) -> Any:
        """Name the program."""
        return subprocess.run, (["sleep", "600"],)


HANGS = pickle.dumps(Runs())


@pytest.fixture
def two() -> Iterator[Pool]:
    made = Pool(2)
    yield made
    made.close()


def asked(of: Pool) -> None:
    with pytest.raises(Unfit, match="cannot be read"):
        of.compile(JUNK, LONG)


def gone(*pids: int) -> None:
    for pid in pids:
        eventually("end of a process", lambda pid=pid: None if alive(pid) else True)


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` started and that run."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in told.split() if alive(int(each))]


def compiling(of: int) -> tuple[int, int]:
    """Wait for a fork of the server ``of`` that runs a program; return both."""

    def found() -> tuple[int, int] | None:
        for fork in children(of):
            for program in children(fork):
                if b"sleep" in Path(f"/proc/{program}/cmdline").read_bytes():
                    return fork, program
        return None

    return eventually("a compile", found, LONG)


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
    gone(*pids)


def test_all_are_forks_of_one_that_has_one_thread(two: Pool) -> None:
    two.warm(2)
    pids = two.pids()
    server = fork_server.fork_server()
    # Beside those that other tests left, which end when nobody asks them.
    assert set(pids) <= set(children(server.pid))
    # A fork of more would have locks that nobody opens. Counting the GPUs leaves a thread of
    # the driver, which looks after itself.
    tasks = Path(f"/proc/{server.pid}/task").iterdir()
    names = [(task / "comm").read_text() for task in tasks]
    assert len([name for name in names if not name.startswith("cuda")]) == 1


def test_one_that_ended_is_replaced(two: Pool) -> None:
    two.warm(1)
    (first,) = two.pids()
    os.killpg(first, signal.SIGKILL)
    gone(first)
    asked(two)
    (second,) = two.pids()
    assert second != first


def test_one_that_hangs_is_ended_with_what_it_started(two: Pool) -> None:
    asked(two)
    server = fork_server.fork_server().pid
    with ThreadPoolExecutor(1) as threads:
        # Long enough to be seen.
        compile_ = threads.submit(two.compile, HANGS, 5.0)
        fork, program = compiling(server)
        with pytest.raises(TookTooLong, match="C004"):
            compile_.result()
    gone(fork, program)
    assert (two.active, two.pids()) == (0, [])
    asked(two)


def test_one_that_dies_of_its_job_fails_it_and_no_other(two: Pool) -> None:
    with ThreadPoolExecutor(1) as threads:
        compile_ = threads.submit(two.compile, HANGS, LONG)
        fork, program = compiling(fork_server.fork_server().pid)
        asked(two)
        os.kill(fork, signal.SIGKILL)
        with pytest.raises(CompilationError, match="ended with status -9"):
            compile_.result()
    gone(program)
    asked(two)


def test_where_the_server_dies_all_end_and_another_goes_on(two: Pool) -> None:
    two.warm(2)
    pids = two.pids()
    server = fork_server.fork_server()
    os.kill(server.pid, signal.SIGKILL)
    gone(server.pid, *pids)
    asked(two)
    assert not set(two.pids()) & set(pids)
    assert fork_server.fork_server() is not server


def test_where_no_process_can_be_started_it_is_compiled_here(
    two: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_server.fork_server().close()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    two.warm(2)
    with pytest.raises(Unfit, match="no process can be started"):
        two.compile(JUNK, LONG)
    monkeypatch.undo()
    asked(two)


SCRIPT = """
import pickle, sys, threading
sys.path[:0] = sys.argv[1:2]
from kiln_torch.compilation import fork_server
from kiln_torch.compilation.pool import Pool
from test_compilation_pool import HANGS
own = Pool(2)
own.warm(2)
threading.Thread(target=own.compile, args=(HANGS, None), daemon=True).start()
print(fork_server.fork_server().pid, *own.pids(), flush=True)
input()
"""


@pytest.mark.parametrize("killed", [False, True], ids=["it ends", "it is killed"])
def test_none_outlives_the_process_that_asked(killed: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(HERE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        pids = [int(each) for each in process.stdout.readline().split()]
        assert len(pids) == 3
        _, program = compiling(pids[0])
        if killed:
            process.kill()
        process.communicate("\n")
    gone(*pids, program)


DAEMON = """
import multiprocessing, sys
sys.path[:0] = sys.argv[1:2]

def work():
    from kiln_torch.compilation.pool import Pool, Unfit
    try:
        Pool(1).compile(b"no job", None)
    except Unfit as why:
        print(why, flush=True)

if __name__ == "__main__":
    # Such a process may start none by multiprocessing.
    own = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    own.start()
    own.join()
"""


def test_a_daemons_compiles_have_processes_as_well() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(HERE.parent)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LONG,
    )
    assert "cannot be read" in done.stdout


USED = """
import sys
sys.path[:0] = sys.argv[1:2]
import torch
torch.cuda._is_in_bad_fork = lambda: True
from kiln_torch.compilation import worker
worker.main(int(sys.argv[2]), int(sys.argv[3]), "cuda:0", 1)
"""


def test_a_fork_that_may_not_use_the_gpu_starts_again() -> None:
    jobs, ours = os.pipe()
    told, answers = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", USED, str(HERE.parent), str(jobs), str(answers)],
        pass_fds=(jobs, answers),
        start_new_session=True,
    )
    os.close(jobs)
    os.close(answers)
    with os.fdopen(ours, "wb") as to, os.fdopen(told, "rb") as from_:
        write(to, JUNK)
        answer: dict[str, Any] = {}
        while "files" not in answer:
            data = read(from_)
            assert data is not None
            answer = pickle.loads(data)
        assert 'fork": false' in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert process.wait(LONG) == -signal.SIGKILL


def test_all_together_use_each_core_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: set(range(16)))
    two = Pool(2)
    assert two.threads == 8
    # Ranks beside this one have as many.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert two.threads == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert two.threads == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "0")
    assert two.threads == 8
    # No more than the user says.
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    assert two.threads == 3


def test_ranks_are_those_that_torch_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert ranks.ranks_here() == 1
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 6)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        assert ranks.ranks_here() == 4
    finally:
        torch.distributed.destroy_process_group()


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


def test_what_they_are_forked_from_begins_before_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(early, "fork_server", lambda: begun.append(True))
    full = tmp_path / "full"
    full.mkdir()
    (full / "entry.kiln").write_bytes(b"something")

    def begins(folder: Path, *, disable_cache: bool = False, **settings: Any) -> bool:
        begun.clear()
        given: dict[str, Any] = {"parallel_compiles": 3, **settings}
        config = CompilationConfig(**given)
        early.begin(config, str(folder), disable_cache=disable_cache)
        return bool(begun)

    assert begins(tmp_path / "new")
    assert not begins(full)
    assert begins(full, disable_cache=True)
    assert not begins(tmp_path / "new", backend="native")
    assert not begins(tmp_path / "new", use_inductor=False)
    monkeypatch.setenv("KILN_ENDPOINT", "grpc://127.0.0.1:1")
    assert not begins(tmp_path / "new")
    # Until then nothing that takes seconds is imported.
    code = (
        "import sys; from kiln_torch.compilation import KilnBackend; print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    told = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert told.strip() == "False"
