"""What ``import torch`` calls.

Invariant: never raises (it would break ``import torch``), imports nothing of
torch, and without KILN_ENDPOINT does nothing.
"""

from __future__ import annotations


def autoload() -> None:
    """Plug Kiln in: the entry point of group ``torch.backends``."""
    try:
        from . import config

        if config.from_env() is not None:
            from . import inductor

            inductor.install()
    except Exception as error:
        from .report import log

        log.warning("Kiln is off: %s: %s", type(error).__name__, error)
