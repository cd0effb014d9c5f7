"""A process that compiles a model by pieces, and tells how. Prints one JSON line."""

from __future__ import annotations

import json
import sys
from typing import Any

import compilation_graphs
import torch
from compilation_graphs import close, layers
from kiln_torch import stats
from kiln_torch.compilation import CompilationConfig, KilnBackend


def main() -> None:
    """Compile here, or in as many processes as the first argument says."""
    processes, compilation_graphs.WIDTH = int(sys.argv[1]), int(sys.argv[2])
    settings: dict[str, Any] = {"compilation_level": "piecewise", "fallback": False}
    if processes:
        settings["parallel_compiles"] = processes
    else:
        settings["compile_timeout"] = None
    model = layers(3)
    x = torch.randn(2, 5, compilation_graphs.WIDTH)
    backend = KilnBackend(CompilationConfig(**settings), "cache")
    with torch.no_grad():
        close(torch.compile(model, backend=backend)(x), model(x))
    assert backend.last_result is not None
    told = {
        "counters": backend.compiler_manager.compilation_counter.snapshot(),
        "distinct": len({each.key for each in backend.last_result.pieces}),
        "stats": stats(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
