"""``CompilationConfig``: how graphs are compiled.

Invariant: a value that means nothing is refused when the configuration is made
or changed, with C003, and never in the middle of a compile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import IncompatibleConfigError

INDUCTOR = "inductor"
STANDALONE = "inductor-standalone"
EAGER = "eager"
NATIVE = "native"

BACKENDS = (INDUCTOR, STANDALONE, EAGER, NATIVE)
LEVELS = ("auto", "full", "piecewise")


@dataclass
class CompilationConfig:
    """Settings of a ``CompilerManager`` or of one compile."""

    # False: eager, whatever ``backend`` says. How ``robust_compile`` steps down.
    use_inductor: bool = True
    backend: str = INDUCTOR
    # full: the graph as one; piecewise: always split; auto: by its complexity.
    compilation_level: str = "auto"
    # Operations at which graphs are split, each a piece of its own.
    splitting_ops: tuple[str, ...] = ("aten.scaled_dot_product_attention",)
    # Above these, "auto" splits, and pieces are cut.
    max_nodes: int = 500
    max_piece_nodes: int = 200
    max_piece_bytes: int = 4 << 30
    # Pieces compiled at once, each in a process of its own; 1: here, one by one.
    parallel_compiles: int = 1
    # Seconds for a compile in a process of its own; None: no bound.
    compile_timeout: float | None = 600.0
    # Bytes of data that a process which compiles, and each program that it starts, may
    # have; torch itself needs half a gigabyte of them. None: no bound.
    compile_memory_bytes: int | None = None
    # Compiled callables that are kept in memory: the least recently used goes.
    memory_cache_entries: int = 256
    # Above this the least recently used files of cache_dir go.
    disk_cache_bytes: int = 10 << 30
    # Sizes that are compiled for themselves, beside the code for all sizes: a graph
    # with one symbolic size runs the code of the size that it is called with.
    compile_sizes: tuple[int, ...] = ()
    # Inductor's options for every compile; those of a single compile come on top.
    inductor_config: dict[str, Any] = field(default_factory=dict)
    # Whether a backend goes down the failure ladder where a compile fails; the error, if not.
    fallback: bool = True
    # Seconds for which what came of that is valid; then it is compiled again.
    fallback_seconds: float = 300.0
    # Seconds between two looks of a monitor (watch.py); None: there is none.
    monitor_seconds: float | None = None
    # Whether the monitor may change limits and parallelism, within its bounds.
    optimize: bool = False
    # Whether a piecewise result is compared with the graph it stands for.
    validate: bool = True

    def __post_init__(self) -> None:
        """Check all values."""
        for each in fields(self):
            self._check(each.name, getattr(self, each.name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a value that is changed later."""
        if name in _CHECKS:
            self._check(name, value)
        object.__setattr__(self, name, value)

    @property
    def compiler(self) -> str:
        """The compiler that is used."""
        return self.backend if self.use_inductor else EAGER

    @staticmethod
    def _check(name: str, value: Any) -> None:
        fits, wanted = _CHECKS.get(name, (lambda _: True, ""))
        if not fits(value):
            raise IncompatibleConfigError(f"{name} is {value!r}, not {wanted}")


def compile_cache_disabled() -> bool:
    """Whether vLLM's switch says to keep nothing."""
    return os.environ.get("VLLM_DISABLE_COMPILE_CACHE", "0") not in ("", "0")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(map(_count, value))


def _seconds(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value > 0)


_CHECKS = {
    "backend": (lambda value: value in BACKENDS, f"one of {', '.join(BACKENDS)}"),
    "compilation_level": (lambda value: value in LEVELS, f"one of {', '.join(LEVELS)}"),
    "compile_sizes": (_sizes, "a list of positive whole numbers"),
    "compile_timeout": (_seconds, "a positive number of seconds, or None"),
    "monitor_seconds": (_seconds, "a positive number of seconds, or None"),
    "fallback_seconds": (
        lambda value: value is not None and _seconds(value),
        "a positive number of seconds",
    ),
    "compile_memory_bytes": (
        lambda value: value is None or _count(value),
        "a positive whole number, or None",
    ),
    **dict.fromkeys(
        (
            "max_nodes",
            "max_piece_nodes",
            "max_piece_bytes",
            "parallel_compiles",
            "memory_cache_entries",
            "disk_cache_bytes",
        ),
        (_count, "a positive whole number"),
    ),
}
