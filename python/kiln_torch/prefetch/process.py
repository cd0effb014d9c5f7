"""Python processes that work ahead for this one.

Invariant: none of them outlives a minute or prints where the program prints, a signal for
the program's group is none for them, and an interpreter that is part of another program
is not started again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .. import report
from ..adopt import ADOPT_PATH, adopted

PIPE = subprocess.PIPE


def start(
    code: str, *args: str, stdout: int = subprocess.DEVNULL, pass_fds: tuple[int, ...] = ()
) -> subprocess.Popen[bytes] | None:
    """Run ``code`` with ``sys.argv[1:]`` being ``args``; ``None`` where that cannot be.

    It inherits the environment, and so the settings.
    """
    executable = sys.executable
    if not executable or not Path(executable).name.startswith("python"):
        return None
    try:
        return subprocess.Popen(
            [executable, "-c", ADOPT_PATH + code, adopted(), *args],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        report.count("prefetch_failed")
        report.log.debug("no helper: %s", error)
        return None
