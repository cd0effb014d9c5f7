"""The process that others are forked from, as the process that started it sees it.

Importing torch and Inductor takes seconds; a fork of a process that has done so takes
milliseconds. The server does it once (``forking.py`` runs there), beginning before
there is work, and forks a process for each compile that runs at once.
Invariant: nothing here waits for the server but who asks for a result; all forks end
with the server, and the server with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

from ..adopt import ADOPT_PATH, adopted

# More than any message: an environment's variables are the most.
LIMIT = 1 << 17
# Seconds that it has to end its forks, when this process ends.
_TO_END = 5.0
# With this process's import path, whatever started this process.
_START = ADOPT_PATH + "from kiln_torch.compilation.forking import main; main()"
# The server's own settings; a fork has its parent's environment.
_OWN = {
    # It starts no process and no thread by itself.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCH_WARM_POOL": "0",
    "OPENBLAS_NUM_THREADS": "1",
    # Whether there is a GPU is asked without a use of it: a fork could use it no more.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class Gone(Exception):
    """The server ended, or cannot be started."""


class ForkServer:
    """One server, and what was asked of it."""

    def __init__(self) -> None:
        """Start it; it imports while this process goes on."""
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], Future[Any]] = {}
        self._count = 0
        # When it had imported all, on the clock that processes share.
        self.ready: Future[float] = Future()
        self.gone = False
        self._environment = {**os.environ, **_OWN}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LIMIT)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _START, adopted()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**self._environment, "KILN_COMPILATION_CHANNEL": str(theirs.fileno())},
                    start_new_session=True,
                )
            except BaseException:
                self._channel.close()
                raise
        threading.Thread(target=self._listen, name="kiln-forks", daemon=True).start()

    @property
    def pid(self) -> int:
        """The server's own process."""
        return self._process.pid

    def fork(self, jobs: int, answers: int, **told: Any) -> tuple[int, Future[int]]:
        """Fork a process that reads ``jobs`` and writes ``answers``; return its number and its id.

        Both descriptors are the caller's to close. ``Gone``: there is no server.
        """
        have = self._environment
        changed = {name: value for name, value in os.environ.items() if have.get(name) != value}
        removed = [name for name in have if name not in os.environ]
        with self._lock:
            self._count += 1
            number = self._count
        return number, self._ask(
            "fork", number, (jobs, answers), **told, changed=changed, removed=removed
        )

    def end(self, number: int) -> Future[int]:
        """Kill a fork with all that it started; return its exit status."""
        return self._ask("end", number, ())

    def close(self) -> None:
        """End the server and all forks."""
        with self._lock:
            self.gone = True
        # What it has not begun it need not finish: until it is ready it has forked none.
        if self.ready.done():
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_WR)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TO_END)
        self._process.kill()
        self._process.wait()

    def forget(self) -> None:
        """Let go of it without a word: it is another process's."""
        self._channel.close()

    def _ask(
        self, what: str, number: int, descriptors: tuple[int, ...], **told: Any
    ) -> Future[Any]:
        data = json.dumps({"what": what, "number": number, **told}).encode()
        answer: Future[Any] = Future()
        with self._lock:
            if self.gone:
                raise Gone("the fork server ended")
            if len(data) > LIMIT:
                raise Gone(f"{len(data)} bytes of environment are more than {LIMIT}")
            self._asked[what, number] = answer
            try:
                socket.send_fds(self._channel, [data], list(descriptors))
            except OSError as error:
                del self._asked[what, number]
                raise Gone(f"the fork server does not listen: {error}") from error
        return answer

    def _listen(self) -> None:
        """Hand answers to who waits for them; at the end nobody waits any more."""
        with contextlib.suppress(OSError, ValueError):
            while data := self._channel.recv(LIMIT):
                self._answered(**json.loads(data))
        with self._lock:
            self.gone = True
            asked, self._asked = list(self._asked.values()), {}
        for answer in asked:
            answer.set_exception(Gone("the fork server ended"))
        if not self.ready.done():
            self.ready.set_exception(Gone("the fork server ended"))

    def _answered(self, what: str, number: int = 0, result: int = 0, error: str = "") -> None:
        if what == "ready":
            self.ready.set_result(time.monotonic())
            return
        with self._lock:
            answer = self._asked.pop((what, number))
        if error:
            answer.set_exception(Gone(error))
        else:
            answer.set_result(result)


_server: ForkServer | None = None
_lock = threading.Lock()


def fork_server() -> ForkServer:
    """Return this process's server; start one where none runs. ``Gone``: it cannot be."""
    global _server
    with _lock:
        if _server is None or _server.gone:
            if _server is not None:
                _server.close()
            try:
                _server = ForkServer()
            except (OSError, ValueError, AttributeError) as error:
                # No process, no memory, or a system without such sockets.
                _server = None
                raise Gone(f"no fork server: {error}") from error
        return _server


def _close() -> None:
    if _server is not None:
        _server.close()


def _after_fork() -> None:
    global _server, _lock
    # The server is the parent's, and must see when that ends.
    _lock = threading.Lock()
    if _server is not None:
        _server.forget()
    _server = None


atexit.register(_close)
os.register_at_fork(after_in_child=_after_fork)
