"""Kiln for PyTorch, Triton and vLLM: share what was compiled through a cluster.

``import torch`` is enough where KILN_ENDPOINT is set; see ``plugin``. Everything
else hangs on ``client.Client``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .report import stats

if TYPE_CHECKING:
    from .client import flush
    from .figures import metrics
    from .loading import load
    from .mega import load_mega_cache, save_mega_cache

__all__ = [
    "__version__",
    "flush",
    "load",
    "load_mega_cache",
    "metrics",
    "save_mega_cache",
    "stats",
]
__version__ = "0.2.0"

_LATER = {
    "flush": "client",
    "load": "loading",
    "load_mega_cache": "mega",
    "metrics": "figures",
    "save_mega_cache": "mega",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: torch itself imports this package."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
