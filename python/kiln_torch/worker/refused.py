"""Why a compile has no artifact, and what the caller should do about it.

Invariant: whatever is raised becomes one kind of ``kiln.v1.FailureKind`` and a text
that is short enough to be replicated to all nodes.
"""

from __future__ import annotations

import re

# What a compiler says is cut to this.
LONGEST_LOG = 16 << 10

# kiln.v1.FailureKind
COMPILE_ERROR, UNSUPPORTED_OP, INVALID_INPUT, INCOMPATIBLE = 1, 2, 3, 5
TOOLCHAIN_MISSING, OUT_OF_MEMORY = 7, 8


class Refused(Exception):
    """A compile without an artifact: the kind is what the caller should do about it."""

    def __init__(self, kind: int, message: str) -> None:
        """Kind, and what to tell people."""
        super().__init__(message)
        self.kind = kind


def brief(error: BaseException) -> str:
    """What an error says, cut in the middle."""
    text = f"{type(error).__name__}: {error}".strip()
    return (
        text
        if len(text) <= LONGEST_LOG
        else text[: LONGEST_LOG // 2] + " … " + text[-LONGEST_LOG // 2 :]
    )


def as_refused(error: BaseException) -> Refused:
    """What a compile's exception means for the caller."""
    if isinstance(error, Refused):
        return error
    text = brief(error)
    if isinstance(error, MemoryError) or re.search(
        r"out of memory|bad_alloc|can't allocate memory|Cannot allocate memory|memory exhausted",
        text,
    ):
        return Refused(OUT_OF_MEMORY, text)
    if "InvalidCxxCompiler" in text or "No working C++ compiler" in text:
        return Refused(TOOLCHAIN_MISSING, f"{text}: install g++ or set CXX")
    return Refused(COMPILE_ERROR, f"Inductor: {text}")
