"""Kiln for vLLM: two entry points that vLLM calls in every process.

Invariant: without KILN_ENDPOINT, or where vLLM is not what they were written
for, they do nothing; they never raise.
"""

from __future__ import annotations

import os

from .. import config, report

# Asks for KilnAdaptor, which compiles vLLM's pieces through Kiln one by one.
ADAPTOR_SWITCH = "KILN_VLLM_COMPILER"
# 0: leaves vLLM's AOT model files alone.
AOT_SWITCH = "KILN_VLLM_AOT"


def register() -> None:
    """Restore and publish AOT models: the entry point of ``vllm.general_plugins``."""
    if config.from_env() is None or os.environ.get(AOT_SWITCH, "1") == "0":
        return
    try:
        from . import aot

        aot.install()
    except Exception as error:
        report.count("vllm.off")
        report.once("vllm", "Kiln is off in vLLM: %r", error)


def platform() -> str | None:
    """Name the platform with KilnAdaptor: the entry point of ``vllm.platform_plugins``.

    ``None``, and vLLM takes the platform that it detects itself, unless asked for
    with KILN_VLLM_COMPILER=1.
    """
    if os.environ.get(ADAPTOR_SWITCH, "0") in ("", "0") or config.from_env() is None:
        return None
    try:
        from . import wrapped
    except Exception as error:
        report.count("vllm.off")
        report.once("vllm platform", "Kiln is no compiler of vLLM here: %r", error)
        return None
    return f"{wrapped.__name__}.{wrapped.KilnPlatform.__name__}"
