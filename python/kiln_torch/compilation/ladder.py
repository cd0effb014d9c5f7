"""The failure ladder as a table: what is tried next after a compile failed, and how.

Pure: it knows kinds of failures and names of rungs, and nothing of compilers.
Invariant: each rung is below the one before, so every descent ends, and it ends with
``eager``, which always answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# What was asked for: the top, from which a descent begins.
AS_ASKED = "wanted"
# The same again, after a pause: for failures that pass.
AGAIN = "again"
# The same compiler with its own defaults, and none of the caller's options.
DEFAULTS = "defaults"
# Options that save memory, one kernel at a time, and no other compile beside it.
LESS_MEMORY = "saving"
FEWER = "fewer"
PIECES = "pieces"
# What the compiler does not know runs uncompiled, the rest is compiled.
MIXED = "mixed"
NATIVE = "other"
EAGER = "eager"

# From the top down.
ORDER = (AS_ASKED, AGAIN, DEFAULTS, LESS_MEMORY, FEWER, PIECES, MIXED, NATIVE, EAGER)
# How often the same is tried again.
RETRIES = 2

_RUNGS: dict[str, tuple[str, ...]] = {
    "out_of_memory": (LESS_MEMORY, PIECES, NATIVE, EAGER),
    "unsupported_op": (MIXED, EAGER),
    "timeout": (PIECES, EAGER),
    "compile_error": (FEWER, NATIVE, EAGER),
    "toolchain_missing": (NATIVE, EAGER),
    "incompatible": (DEFAULTS, EAGER),
    # Once may be chance; twice is most often memory, which the kernel ended it for.
    "crashed": (AGAIN, LESS_MEMORY, PIECES, NATIVE, EAGER),
    "busy": (AGAIN, EAGER),
    # It was removed when it was found: the next look compiles.
    "corrupt": (AGAIN, EAGER),
    "wrong_output": (EAGER,),
    "invalid_input": (EAGER,),
}
# Failures that another try of the same can end well.
TRANSIENT = ("busy", "crashed", "corrupt")
_AGAIN_MOST = {"busy": RETRIES, "crashed": 1, "corrupt": 1}
# What a part of a graph is already.
_NOT_OF_PIECES = (PIECES,)


def next_rung(
    kind: str, tried: Sequence[str], impossible: Collection[str] = (), *, piece: bool = False
) -> str:
    """Return what to try after a failure of ``kind``.

    ``tried``: the rungs that failed, in order, from ``AS_ASKED`` on; ``impossible``:
    those that cannot be tried here; ``piece``: whether it is a part of a graph.
    """
    lowest = max((ORDER.index(each) for each in tried), default=0)
    for rung in _RUNGS.get(kind, _RUNGS["compile_error"]):
        if rung in impossible or (piece and rung in _NOT_OF_PIECES):
            continue
        if rung == AGAIN:
            again = sum(each == AGAIN for each in tried)
            # Of what was tried last: a rung that is tried again is a rung above.
            if again < _AGAIN_MOST.get(kind, 0) and lowest <= ORDER.index(AGAIN):
                return rung
        elif ORDER.index(rung) > lowest:
            return rung
    return EAGER
