"""Triton's own host modules, built once in the cluster: its driver's, its launchers'.

Triton builds them with the C compiler in each process that begins with an empty folder,
a quarter of a second within the first call, and keeps them in no entry of Inductor's.
Invariant: what is handed to Triton was verified, and was built from the same source for
the same Python, C library and compiler's name; what comes of a build of the user's own,
or includes what Triton did not bring, is asked of nobody. Only the build's own error leaves.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report
from .client import Client
from .value import Values

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE = "triton.runtime.build"
# What the build is called with that decides the outcome; folders of libraries do not.
_DECIDES = ("libraries", "ccflags", "language")


def plug(module: Any) -> None:
    """Ask the cluster before ``triton.runtime.build`` builds."""
    build = module._build
    parameters = inspect.signature(build)

    @functools.wraps(build)
    def shared(*args: Any, **named: Any) -> str:
        return _shared(module, functools.partial(build, *args, **named), _bound(args, named))

    def _bound(args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        return parameters.bind(*args, **named).arguments

    module._build = shared


def _shared(module: Any, build: Callable[[], str], asked: dict[str, Any]) -> str:
    values = name = None
    try:
        client = Client.from_env()
        name = None if client is None else _name(module, asked)
        if client is not None and name is not None:
            values = Values(client)
            found = values.get(name)
            if found is not None:
                path = Path(asked["srcdir"]) / (asked["name"] + _suffix())
                path.write_bytes(found)
                values.used(name)
                report.count("host_modules.fetched")
                return str(path)
    except Exception as error:
        _swallowed("get", error)
        values = None
    built = build()
    try:
        if values is not None and name is not None:
            values.put(name, Path(built).read_bytes(), later=True)
            report.count("host_modules.built")
    except Exception as error:
        _swallowed("put", error)
    return built


def _name(module: Any, asked: dict[str, Any]) -> str | None:
    """Return the value's name, which covers what decides the module; ``None``: not shared."""
    package = Path(inspect.getfile(module)).resolve().parent.parent
    folders = [Path(each).resolve() for each in asked["include_dirs"] if each is not None]
    source = Path(asked["src"])
    # What stands beside the source may be included by it.
    alone = [each.name for each in source.parent.iterdir()] == [source.name]
    build = getattr(getattr(module, "knobs", None), "build", None)
    own = getattr(build, "impl", None) or getattr(build, "backend_dirs", None)
    if own or not alone or not all(package in each.parents for each in folders):
        return None
    told = {
        "source": source.read_text(),
        "headers": [_digest(each) for each in folders],
        "python": [sys.implementation.cache_tag, _suffix()],
        "platform": [platform.machine(), *platform.libc_ver()],
        "compiler": os.environ.get("CC", ""),
    } | {name: asked.get(name) for name in _DECIDES}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return f"triton-module:{asked['name']}:{digest}"


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size} ".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _swallowed(doing: str, error: Exception) -> None:
    report.count("bugs")
    report.once(f"host module {doing} {type(error).__name__}", "host module %s: %r", doing, error)
