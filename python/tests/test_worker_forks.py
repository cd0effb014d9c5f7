"""Workers that are forks of one process: with the real torch, without a node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch")

import torch
from test_worker import BLOCK, FIXTURES, PACKAGE, UNCONFINED, Node, artifact, files_of, frame, job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Forks:
    """A fork server of the workers whose folders are in ``folder``."""

    def __init__(self, folder: Path, python: str | Path = sys.executable) -> None:
        self.folder = folder / "server"
        self.folder.mkdir()
        text = (PACKAGE / "bootstrap.py").read_text()
        passed = {n: os.environ[n] for n in ("PATH", "LD_LIBRARY_PATH") if n in os.environ}
        self.process = subprocess.Popen(
            [python, "-I", "-B", "-c", text, "--fork-server", "60"],
            stdin=subprocess.PIPE,
            cwd=self.folder,
            env={
                "TMPDIR": str(self.folder),
                "LC_ALL": "C",
                "KILN_CONFINE": UNCONFINED,
                **passed,
            },
            # As `process_group=0`, which Python 3.10 does not have.
            preexec_fn=os.setpgrp,
        )
        assert self.process.stdin
        sources = {path.name: path.read_text() for path in PACKAGE.glob("*.py")}
        self.process.stdin.write(frame(json.dumps(sources).encode()))
        self.process.stdin.flush()
        eventually((folder / "forks").exists)

    def end(self) -> None:
        """With all its forks, if it lives."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=60)

    def children(self) -> list[int]:
        """The forks that live."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in found.read_text().split()]


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    server = Forks(tmp_path)
    yield server
    server.end()


def own_torch(folder: Path) -> tuple[Path, Path]:
    """An interpreter with links to this one's packages, and its own ``torch/version.py``."""
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    own, real = site / "torch", Path(torch.__file__).parent
    own.mkdir()
    for into, packages in ((site, real.parent), (own, real)):
        for each in packages.iterdir():
            if not (into / each.name).exists():
                (into / each.name).symlink_to(each)
    version = own / "version.py"
    version.unlink()
    shutil.copy2(real / version.name, version)
    return folder / "bin" / "python", version


def test_workers_are_forks_that_make_what_others_make(tmp_path: Path, forks: Forks) -> None:
    first, second = Node(tmp_path / "first"), Node(tmp_path / "second")
    assert len(forks.children()) == 2
    # One thread: a fork of more would have locks that nobody opens.
    assert len(list(Path(f"/proc/{forks.process.pid}/task").iterdir())) == 1
    (tmp_path / "beside").mkdir()
    alone = Node(tmp_path / "beside" / "deeper")
    assert len(forks.children()) == 2
    assert first.ready == second.ready == alone.ready
    message = job((FIXTURES / BLOCK).read_bytes(), compiler=artifact.STANDALONE, runtime_shape=5)
    made = [files_of(node.ask(message)) for node in (first, alone)]
    assert set(made[0]) == set(made[1])
    assert made[0]["meta.json"] == made[1]["meta.json"]
    assert first.process.returncode == 0
    eventually(lambda: len(forks.children()) == 1)
    second.requests.close()
    assert second.process.wait(timeout=60) == 0
    eventually(lambda: not forks.children())


def test_a_fork_that_is_killed_ends_its_worker_likewise(tmp_path: Path, forks: Forks) -> None:
    node = Node(tmp_path / "worker")
    (fork,) = forks.children()
    assert os.getpgid(fork) == node.process.pid
    os.kill(fork, signal.SIGSEGV)
    assert node.process.wait(timeout=60) == -signal.SIGSEGV


def test_the_group_of_a_worker_has_its_fork(tmp_path: Path, forks: Forks) -> None:
    node = Node(tmp_path / "worker")
    os.killpg(node.process.pid, signal.SIGKILL)
    node.process.wait(timeout=60)
    eventually(lambda: not forks.children())
    # Others go on.
    assert Node(tmp_path / "next").ready == node.ready
    assert len(forks.children()) == 1


def test_a_server_that_dies_takes_its_forks_and_no_worker_needs_one(
    tmp_path: Path, forks: Forks
) -> None:
    node = Node(tmp_path / "worker")
    (fork,) = forks.children()
    os.killpg(forks.process.pid, signal.SIGKILL)
    forks.process.wait(timeout=60)
    assert node.process.wait(timeout=60) == -signal.SIGKILL
    eventually(lambda: not Path(f"/proc/{fork}").exists())
    assert Node(tmp_path / "next").ready == node.ready


def test_where_torch_was_exchanged_nobody_is_forked(tmp_path: Path) -> None:
    """Who comes then loads what is there now; a fork goes on with what it has."""
    python, version = own_torch(tmp_path / "own")
    forks = Forks(tmp_path, python)
    try:
        first = Node(tmp_path / "first", python)
        assert len(forks.children()) == 1
        fresh = version.with_name("fresh.py")
        fresh.write_text(version.read_text().replace(torch.__version__, "9.9.9"))
        fresh.replace(version)
        second = Node(tmp_path / "second", python)
        assert len(forks.children()) == 1, "a fork of what was imported before"
        told = [node.tools()["torch"] for node in (first, second)]
        assert told == [torch.__version__, "9.9.9"]
        files_of(first.ask(job((FIXTURES / BLOCK).read_bytes(), runtime_shape=5)))
        assert forks.process.wait(timeout=60) == 0
        second.requests.close()
        assert second.process.wait(timeout=60) == 0
    finally:
        forks.end()


def test_it_ends_with_its_node(tmp_path: Path, forks: Forks) -> None:
    Node(tmp_path / "worker")
    assert forks.process.stdin
    forks.process.stdin.close()
    assert forks.process.wait(timeout=60) == 0


def test_who_says_nothing_sensible_harms_nobody(tmp_path: Path, forks: Forks) -> None:
    import socket

    for said in (b"", b"{}", b"[]", b"\xff", b'{"folder": "/", "group": 1, "environment": {}}'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as odd:
            odd.connect(str(tmp_path / "forks"))
            if said:
                odd.send(said)
    Node(tmp_path / "worker")
    assert len(forks.children()) == 1
