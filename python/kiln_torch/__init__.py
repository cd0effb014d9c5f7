"""Kiln for PyTorch, Triton and vLLM: share what was compiled through a cluster.

``import torch`` is enough where KILN_ENDPOINT is set; see ``plugin``. Everything
else hangs on ``client.Client``.
"""

from __future__ import annotations

from .report import stats

__all__ = ["__version__", "stats"]
__version__ = "0.1.0"
