"""Shuts a worker in before it reads its job: from then on it reaches its own folder alone.

The node's launcher (``kiln confined``) made the rules for files and the filter for calls; here
the folders are added that only Python knows of, its own modules'.

Invariant: what the launcher gave is in force when this returns, or it raises. Nothing of a job
was read before, and no thread of it started.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

TOLD = "KILN_CONFINE"

# The same on all architectures.
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_PATH_BENEATH = 1
# Of seccomp(2): a filter, for all threads.
_SET_FILTER = 1
_ALL_THREADS = 1


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def rules_of(environment: Mapping[str, str]) -> int | None:
    """The descriptor of the rules for files; the kernel may have none."""
    rules = json.loads(environment[TOLD])["rules"]
    return None if rules is None else int(rules)


def hand_on(environment: MutableMapping[str, str], rules: int | None) -> None:
    """Tell a fork what the process was told that it stands for, whose rules came to it."""
    environment[TOLD] = json.dumps(json.loads(environment[TOLD]) | {"rules": rules})


def confine() -> None:
    """Do it, with what the launcher told."""
    told = json.loads(os.environ.pop(TOLD))
    libc = ctypes.CDLL(None, use_errno=True)
    if told["rules"] is not None:
        for folder in _modules():
            _allow(libc, told["rules"], told["read"], folder)
        _call(libc, _LANDLOCK_RESTRICT_SELF, told["rules"], 0)
        os.close(told["rules"])
    if told["filter"]:
        steps = bytes.fromhex(told["filter"])
        program = _Program(len(steps) // 8, steps)
        _call(libc, told["seccomp"], _SET_FILTER, _ALL_THREADS, ctypes.byref(program))


def _modules() -> set[Path]:
    """Where Python, and what it imports, lies; its own entry of /proc, which a fork lacks yet."""
    binary = str(Path(sys.executable).resolve().parent)
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    found = [Path(path) for path in {*sys.path, *prefixes, binary, "/proc/self"}]
    return {path for path in found if path.is_absolute() and path.resolve().parent != path}


def _allow(libc: ctypes.CDLL, rules: int, rights: int, path: Path) -> None:
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # An entry of sys.path that is not there.
        return
    try:
        # A file, an archive of modules, has no entries to list.
        list_folder = 1 << 3
        rights = rights if path.is_dir() else rights & ~list_folder
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, at))
        _call(libc, _LANDLOCK_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(at)


def _call(libc: ctypes.CDLL, number: int, *arguments: object) -> None:
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if libc.syscall(ctypes.c_long(number), *words) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"confine the worker, call {number}: {os.strerror(error)}")
