"""Triton's digest of itself, read while the program still builds its model.

Triton and Inductor put ``triton_key()`` in every key: it reads the whole of libtriton,
over 400 MB, within the first call.
Invariant: the program's answer is that of its own Triton: of the files that it imported,
read since it started, or it reads them itself. It waits for a helper only as long as
reading would take.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import select
from typing import TYPE_CHECKING, Any

from .. import report
from ..importing import when_imported
from . import process

if TYPE_CHECKING:
    import subprocess

_MODULE = "triton.runtime.cache"
_HELPER = (
    "import json, os, signal; signal.alarm(60); "
    "from triton.runtime import cache; "
    "print(json.dumps([os.path.realpath(cache.__file__), cache.triton_key()]))"
)
# It has had all the time of torch's import before it is asked for.
_PATIENCE = 0.2


def start() -> None:
    """Begin, where there is a Triton."""
    if importlib.util.find_spec("triton") is None:
        return
    helper = process.start(_HELPER, stdout=process.PIPE)
    if helper is not None:
        when_imported(_MODULE, functools.partial(_plug, helper, os.getpid()))


def _plug(helper: subprocess.Popen[bytes], pid: int, module: Any) -> None:
    read = module.triton_key

    @functools.cache
    @functools.wraps(read)
    def triton_key() -> str:
        found = _told(helper, module) if os.getpid() == pid else None
        return read() if found is None else found

    module.triton_key = triton_key


def _told(helper: subprocess.Popen[bytes], module: Any) -> str | None:
    """Return what ``helper`` read, if it has, and has read ``module``'s files."""
    try:
        assert helper.stdout is not None
        with helper.stdout as said:
            if not select.select([said], [], [], _PATIENCE)[0]:
                report.count("triton_key.late")
                return None
            path, key = json.loads(said.read())
        helper.poll()
        if path != os.path.realpath(str(module.__file__)) or not isinstance(key, str):
            report.count("triton_key.other")
            return None
    except Exception as error:
        report.count("triton_key.failed")
        report.log.debug("Triton's key: %r", error)
        return None
    report.count("triton_key.ahead")
    return key
