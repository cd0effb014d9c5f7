"""Starts a worker: the node gives this text to ``python -c``, isolated.

Invariant: the worker's modules are those that the node sends before its first
message, whatever is installed in the interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import CodeType

PACKAGE = "kiln_worker"


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


def install() -> None:
    """Make what the node sends importable."""
    sources = json.loads(read(int.from_bytes(read(4), "big")))
    sys.meta_path.insert(0, Sent(sources))


if __name__ == "__main__":
    install()
    importlib.import_module(f"{PACKAGE}.process").main()
