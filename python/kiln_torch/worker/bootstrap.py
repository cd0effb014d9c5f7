"""Starts a worker: the node gives this text to ``python -c``, isolated.

It becomes a fork of the node's fork server (see ``forks``), or where there is none it
loads torch itself; with ``--fork-server SECONDS`` it is that server.

Invariant: the worker's modules are those that the node sends before its first
message, whatever is installed in the interpreter. Nobody reads from stdin before it is
settled which process does.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = "kiln_worker"
# Workers have folders of their own beside it.
FORKS = "forks"
# What the node's launcher tells of how this process is to be confined: see ``confining``.
CONFINE = "KILN_CONFINE"


def read(size: int) -> bytes:
    """Bytes of stdin and not one more: messages follow."""
    got = b""
    while len(got) < size:
        more = os.read(0, size - len(got))
        if not more:
            sys.exit(1)
        got += more
    return got


class Sent(MetaPathFinder, InspectLoader):
    """Finds and loads what the node sent: sources by file name."""

    def __init__(self, sources: dict[str, str]) -> None:
        """Of all of them."""
        known = {name.removesuffix(".py"): text for name, text in sources.items()}
        self.sources = {PACKAGE: known.pop("__init__")}
        self.sources |= {f"{PACKAGE}.{name}": text for name, text in known.items()}

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """The package and its modules, no other."""
        if fullname not in self.sources:
            return None
        return spec_from_loader(fullname, self, is_package=fullname == PACKAGE)

    def get_source(self, fullname: str) -> str:
        """The text of a module."""
        return self.sources[fullname]

    def get_code(self, fullname: str) -> CodeType:
        """Under a name that a traceback can show."""
        return compile(self.sources[fullname], f"<{fullname}>", "exec")


def install() -> bytes:
    """Make what the node sends importable; return it as it was sent."""
    sent = read(int.from_bytes(read(4), "big"))
    sys.meta_path.insert(0, Sent(json.loads(sent)))
    return sent


def be_forked() -> None:
    """Hand the pipes to a fork of the fork server, and end as it ends.

    Return where there is none.
    """
    told = {"folder": str(Path.cwd()), "group": os.getpgrp(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.connect(f"../{FORKS}")
            rules = json.loads(os.environ[CONFINE])["rules"]
            passed = [0, 1, 2] if rules is None else [0, 1, 2, rules]
            socket.send_fds(server, [json.dumps(told).encode()], passed)
            if server.recv(64) != b"forked":
                return
        except OSError:
            return
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        try:
            status = int(server.recv(64))
        except (OSError, ValueError):
            # The server is gone: nobody would tell how the fork ends.
            status = -signal.SIGKILL
            os.killpg(0, signal.SIGKILL)
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve_forks(idle: float, load: Callable[[ModuleType], object]) -> None:
    """Be the fork server; ``load`` imports what compiles, given ``forks``."""
    sent = install()
    forks = importlib.import_module(f"{PACKAGE}.forks")

    def expect() -> None:
        if read(int.from_bytes(read(4), "big")) != sent:
            raise RuntimeError("the node sent other modules than its fork server has")

    server = forks.ForkServer(f"../{FORKS}", idle, expect)
    load(forks)
    server.serve()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fork-server"]:
        serve_forks(float(sys.argv[2]), lambda forks: forks.import_all())
    else:
        be_forked()
        install()
        importlib.import_module(f"{PACKAGE}.process").main()
