"""Inductor's options as a request may set them.

Invariant: a caller sets switches and numbers that Inductor has; no option names a
file or a command, and none reaches what the node decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .refused import INVALID_INPUT, Refused

# Options of text are names of files and commands, but for these.
TEXTS = re.compile(r"^(max_autotune_\w+_(backends|search_space)|cpu_backend|cuda_backend)$")
# What the worker itself decides, and what only writes files.
OWN = re.compile(
    r"^(compile_threads|force_disable_caches|worker\w*|trace\..*|aot_inductor\.package\w*)$"
    r"|(^|[._])(cache|caches|debug|log|dump|profile|remote|subprocess?)([._]|$)"
)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuses what Inductor has not, or what is of another type."""
    from torch._inductor import config

    defaults = config.get_config_copy()
    for name, value in options.items():
        if name not in defaults:
            raise Refused(INVALID_INPUT, f"Inductor has no option {name!r}")
        if OWN.search(name):
            raise Refused(INVALID_INPUT, f"option {name!r} is the node's to set")
        default = defaults.get(name)
        if isinstance(value, str) and TEXTS.match(name):
            continue
        wanted: tuple[type, ...] = (bool, int, float)
        if isinstance(default, bool):
            wanted = (bool,)
        elif isinstance(default, (int, float)):
            wanted = (int,) if isinstance(default, int) else (int, float)
        fits = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
        if not fits or isinstance(default, (str, list, tuple, dict, set)) or callable(default):
            names = " or ".join(t.__name__ for t in wanted)
            raise Refused(
                INVALID_INPUT,
                f"option {name!r} cannot be {json.dumps(value)}: options are switches and "
                f"numbers, this one {names} (default {default!r})",
            )
