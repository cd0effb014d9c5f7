"""The compilation module: compile a graph once, find it again, whole or by pieces.

The names are those of vLLM's compilation module; behind them are this process's
memory, ``cache_dir``, and with KILN_ENDPOINT the cluster. ``README.md`` beside this file
maps every name to its code and its test.
Invariant: importing it does not import torch; the first use of what compiles does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import CompilationConfig
from .counter import CompilationCounter, compilation_counter
from .errors import (
    ArgumentError,
    BusyError,
    CacheCorruptedError,
    CompilationError,
    CompilationModuleError,
    CrashedError,
    IncompatibleConfigError,
    InductorNotAvailableError,
    InvalidInputError,
    OutOfMemoryError,
    TimeoutError,  # noqa: A004 - the document's name
    ToolchainMissingError,
    UnsupportedOpError,
    WrongOutputError,
)
from .fallback import Fallback, fallback_of
from .metrics import (
    get_active_compiler_count,
    get_cache_disk_usage,
    get_compilation_memory_usage,
    get_compilation_metrics,
)
from .monitor import PerformanceMonitor, performance_monitor

if TYPE_CHECKING:
    from .backend import KilnBackend
    from .eager import EagerAdaptor
    from .inductor import InductorAdaptor
    from .interface import CompilerInterface
    from .making import make_compiler
    from .manager import CompilerManager
    from .native import NativeAdaptor
    from .robust import robust_compile
    from .splitting import SplitItem
    from .standalone import InductorStandaloneAdaptor
    from .watch import CompilationMonitor, monitoring_reports

__all__ = [
    "ArgumentError",
    "BusyError",
    "CacheCorruptedError",
    "CompilationConfig",
    "CompilationCounter",
    "CompilationError",
    "CompilationModuleError",
    "CompilationMonitor",
    "CompilerInterface",
    "CompilerManager",
    "CrashedError",
    "EagerAdaptor",
    "Fallback",
    "IncompatibleConfigError",
    "InductorAdaptor",
    "InductorNotAvailableError",
    "InductorStandaloneAdaptor",
    "InvalidInputError",
    "KilnBackend",
    "NativeAdaptor",
    "OutOfMemoryError",
    "PerformanceMonitor",
    "SplitItem",
    "TimeoutError",
    "ToolchainMissingError",
    "UnsupportedOpError",
    "WrongOutputError",
    "compilation_counter",
    "fallback_of",
    "get_active_compiler_count",
    "get_cache_disk_usage",
    "get_compilation_memory_usage",
    "get_compilation_metrics",
    "make_compiler",
    "monitoring_reports",
    "performance_monitor",
    "robust_compile",
]

# What needs torch, by the module that has it.
_LATER = {
    "CompilationMonitor": "watch",
    "CompilerInterface": "interface",
    "CompilerManager": "manager",
    "EagerAdaptor": "eager",
    "InductorAdaptor": "inductor",
    "InductorStandaloneAdaptor": "standalone",
    "KilnBackend": "backend",
    "NativeAdaptor": "native",
    "SplitItem": "splitting",
    "make_compiler": "making",
    "monitoring_reports": "watch",
    "robust_compile": "robust",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
