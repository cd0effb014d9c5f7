"""What the fork server runs: import what compiles, then fork on demand.

Invariant: it starts no thread itself and never uses a GPU, so that its forks may do
anything (seen with torch 2.11 on an H100: an import of torch's starts one thread);
it reaps nobody before it is told to end that process, so that no process id stands
for another one meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any, NoReturn

from . import ready, worker
from .fork_server import LIMIT

# Seconds without a process and a request after which it ends: it holds hundreds of megabytes.
_IDLE = 120.0


def main() -> NoReturn:
    """Serve until the process that started this one is gone, or has no use for it."""
    channel = socket.socket(fileno=int(os.environ.pop("KILN_COMPILATION_CHANNEL")))
    with contextlib.suppress(Exception):
        # The first job says what is wrong, to who can read it.
        ready.import_all()
    children: dict[int, int] = {}
    _tell(channel, what="ready")
    for_cpu = False
    while True:
        if not select.select([channel], [], [], _IDLE)[0]:
            if not any(map(_runs, children.values())):
                os._exit(0)
            continue
        try:
            data, descriptors, _, _ = socket.recv_fds(channel, LIMIT, 2)
        except OSError:
            data, descriptors = b"", []
        if not data:
            for pid in children.values():
                _end(pid)
            os._exit(0)
        asked = json.loads(data)
        if asked.get("device") == "" and not for_cpu:
            ready.import_for_cpu()
            for_cpu = True
        _do(channel, children, descriptors, **asked)


def _do(
    channel: socket.socket,
    children: dict[int, int],
    descriptors: list[int],
    what: str,
    number: int,
    **told: Any,
) -> None:
    if what == "end":
        pid = children.pop(number, None)
        _tell(channel, what=what, number=number, result=0 if pid is None else _end(pid))
        return
    try:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            jobs, answers = descriptors
            _be_forked(channel, server, jobs, answers, **told)
    except OSError as error:
        _tell(channel, what=what, number=number, error=f"no process could be forked: {error}")
        return
    finally:
        for each in descriptors:
            os.close(each)
    # Both sides do, so that it is so for either when it goes on.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    children[number] = pid
    _tell(channel, what=what, number=number, result=pid)


def _be_forked(
    channel: socket.socket,
    server: int,
    jobs: int,
    answers: int,
    changed: dict[str, str],
    removed: list[str],
    **told: Any,
) -> NoReturn:
    """Be the process that compiles; never return."""
    try:
        channel.close()
        os.setpgid(0, 0)
        ready.end_with_parent()
        if os.getppid() == server:
            for name in removed:
                os.environ.pop(name, None)
            os.environ.update(changed)
            worker.main(jobs, answers, **told)
    except BaseException as error:
        print(f"kiln: a compiling process failed: {error!r}", file=sys.stderr)
    os._exit(1)


def _end(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _runs(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _tell(channel: socket.socket, **told: Any) -> None:
    with contextlib.suppress(OSError):
        channel.send(json.dumps(told).encode())
