"""The fork server of a node's workers: it imports torch once, each worker is a fork of it.

Importing torch takes seconds, more than many a piece takes to compile; a fork takes
milliseconds and shares its memory. A worker comes as a small process that the node
started (see ``bootstrap``), which hands its pipes over and stays as the fork's
representative: in its group the fork runs, and as the fork ends it ends.

Invariants: it starts no thread, uses no GPU and does no job, so a fork is as clean as
a process that imported torch itself; where a file of torch is another one than it
imported it forks nobody and ends, and so it does with its node.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .confining import hand_on, rules_of
from .process import keep_to, main
from .toolchain import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds that a starting worker may take to say what it wants.
_PATIENCE = 5.0
_TOLD = {"folder", "group", "environment"}
# Its own settings; a fork has the environment of its worker.
_OWN = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCH_WARM_POOL": "0",
    "OPENBLAS_NUM_THREADS": "1",
    # Whether there is a GPU is asked without a use of it: a fork could use it no more.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
# What a compile imports at its first use.
_COMPILES = (
    "torch._dynamo.backends.common",
    "torch._export.serde.serialize",
    "torch._inductor.async_compile",
    "torch._inductor.choices",
    "torch._inductor.codegen.cuda_combined_scheduling",
    "torch._inductor.codegen.memory_planning",
    "torch._inductor.codegen.triton",
    "torch._inductor.compile_fx",
    "torch._inductor.fx_passes.freezing_patterns",
    "torch._inductor.fx_passes.fuse_attention",
    "torch._inductor.fx_passes.pad_mm",
    "torch._inductor.fx_passes.quantization",
    "torch._inductor.kernel_template_choice",
    "torch._inductor.package",
    "torch._inductor.runtime.triton_heuristics",
    "torch._inductor.standalone_compile",
    "torch.export",
)


def import_all() -> None:
    """Import what compiles, and read what no fork need read again."""
    keep_to(Path.cwd())
    os.environ.update(_OWN)
    import torch  # noqa: F401

    for name in _COMPILES:
        # Another torch may lack it: then a compile is what says so.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    importlib.import_module(f"{__package__}.compiling")
    read_ahead()


def _imported() -> list[tuple[str, int, int, int]]:
    """Which files it imported, as far as one tells when torch is exchanged."""
    found = []
    for name in ("torch", "torch.version", "torch._inductor", "triton"):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path:
            try:
                seen = Path(path).stat()
            except OSError:
                found.append((path, 0, 0, 0))
            else:
                found.append((path, seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return found


class ForkServer:
    """Listens at ``path``; ends after ``idle`` seconds without a worker, and with stdin."""

    def __init__(self, path: str, idle: float, expect: Callable[[], None]) -> None:
        """Listen; who comes before all is imported waits.

        ``expect`` reads the modules that a node sends first: they must be these.
        """
        self._idle = idle
        self._expect = expect
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fresh = f"{path}.{os.getpid()}"
        self._listening.bind(fresh)
        self._listening.listen(128)
        # Over what one left that was killed.
        Path(fresh).replace(path)
        # Each fork by what tells its end: its id, and who waits for that.
        self._forks: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> None:
        """Fork on demand, to the end. All is imported."""
        # It is confined by what its workers bring, and does no job itself.
        rules = rules_of(os.environ)
        if rules is not None:
            os.close(rules)
        imported = _imported()
        poll = select.poll()
        listening = self._listening.fileno()
        for watched in (0, listening):
            poll.register(watched, select.POLLIN)
        while self._forks or self._listening.fileno() >= 0:
            found = poll.poll(None if self._forks else self._idle * 1000)
            if not found:
                return
            for ready, _ in found:
                if ready == 0:
                    return
                if ready != listening:
                    poll.unregister(ready)
                    self._ended(ready)
                elif _imported() != imported:
                    # Who waits, and comes, loads what is there now; forks go on to their end.
                    poll.unregister(listening)
                    self._listening.close()
                elif (ended := self._fork()) is not None:
                    poll.register(ended, select.POLLIN)

    def _fork(self) -> int | None:
        connection, _ = self._listening.accept()
        connection.settimeout(_PATIENCE)
        descriptors: list[int] = []
        try:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 4)
            told = json.loads(data)
            if not 3 <= len(descriptors) <= 4 or not isinstance(told, dict) or set(told) != _TOLD:
                raise ValueError("no worker says that")
            pid = os.fork()
            if pid == 0:
                try:
                    self._be_a_worker(connection, descriptors, **told)
                finally:
                    os._exit(1)
            ended = os.pidfd_open(pid)
        except (OSError, ValueError):
            # It gave up, or there is no room for a process: then it loads torch itself.
            connection.close()
            return None
        finally:
            for each in descriptors:
                os.close(each)
        self._forks[ended] = (pid, connection)
        return ended

    def _ended(self, ended: int) -> None:
        pid, connection = self._forks.pop(ended)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError), connection:
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())

    def _be_a_worker(
        self,
        connection: socket.socket,
        descriptors: list[int],
        folder: str,
        group: int,
        environment: dict[str, str],
    ) -> None:
        """Be the process whose pipes these are, to its end."""
        os.setpgid(0, group)
        self._listening.close()
        for ended, (_, other) in self._forks.items():
            os.close(ended)
            other.close()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None
        pipes, rules = descriptors[:3], descriptors[3:]
        hand_on(os.environ, rules[0] if rules else None)
        for at, each in enumerate(pipes):
            os.dup2(each, at)
            os.close(each)
        _compile_as_always()
        # From here on nobody else reads these pipes.
        connection.send(b"forked")
        connection.close()
        try:
            self._expect()
            main(group)
        except BaseException as error:
            print(f"a forked worker failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)


def _compile_as_always() -> None:
    """With as many threads as without a fork server; they are forks as well."""
    from torch._inductor import config

    config.compile_threads = config.decide_compile_threads()
    config.worker_start_method = "fork"
    # Where headers are compiled ahead was settled when it was imported, in the server's folder.
    codecache: Any = sys.modules.get("torch._inductor.codecache")
    if hasattr(codecache, "_HEADER_DIR"):
        headers = Path.cwd() / "precompiled_headers"
        codecache._HEADER_DIR = str(headers)
        codecache._HEADER_LOCK_DIR = str(headers / "locks")
