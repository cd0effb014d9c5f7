"""What ``import torch`` calls.

Invariant: never raises (it would break ``import torch``), imports nothing of
torch, and without KILN_ENDPOINT does nothing.
"""

from __future__ import annotations


def autoload() -> None:
    """Plug Kiln in: the entry point of group ``torch.backends``."""
    try:
        from . import config

        settings = config.from_env()
        if settings is not None:
            # First: it fetches while all else is imported.
            _prefetch(settings.prefetch)
            from . import host_modules, inductor
            from .importing import when_imported

            inductor.install()
            when_imported(host_modules.MODULE, host_modules.plug)
            if config.precompiles():
                from . import precompile

                precompile.install()
    except Exception as error:
        from .report import log

        log.warning("Kiln is off: %s: %s", type(error).__name__, error)


def _prefetch(most_bytes: int) -> None:
    from .prefetch import program

    name = program.name_of() if most_bytes else None
    if name is not None:
        from .prefetch import received, triton_key

        received.start(name, most_bytes)
        triton_key.start()
