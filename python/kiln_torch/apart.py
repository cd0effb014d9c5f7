"""Whether memory that a run writes to is given as another input as well.

Kernels read what they do not write as if nobody wrote it, and a copy behind the run would
give another answer than PyTorch, which writes in place (``src/exec/session/apart.rs``).

Invariant: inputs that share no byte are never taken to, and where one of two that do is
written to that is always found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

# Where an input lies, from a byte up to another; whether it is written to; which it is.
_Span = tuple[int, int, bool, int]


class Apart:
    """Inputs of which some are written to: of certain sizes, and some of them fixed."""

    def __init__(
        self, written: Sequence[bool], lengths: Sequence[int], fixed: Mapping[int, int]
    ) -> None:
        """Take each input's bytes, and where the fixed ones start."""
        self._written = written
        self._lengths = lengths
        self._fixed = [self._span(at, start) for at, start in fixed.items()]
        # What was found to be apart last: most calls are given the same memory again.
        self._seen: Sequence[tuple[int, int]] | None = None

    def shared(self, given: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """Return two inputs that share bytes, the first of which is written to.

        ``given`` has positions and addresses of those that are not fixed.
        """
        if given == self._seen:
            return None
        found = _first([*self._fixed, *(self._span(at, start) for at, start in given)])
        if found is None:
            self._seen = given
        return found

    def _span(self, at: int, start: int) -> _Span:
        return start, start + self._lengths[at], self._written[at], at


def among(tensors: Sequence[torch.Tensor], written: Sequence[bool]) -> tuple[int, int] | None:
    """Return two of ``tensors`` that share bytes, the first of which is written to."""
    if not any(written):
        return None
    whole = Apart(written, [length(each) for each in tensors], {})
    return whole.shared([(at, each.data_ptr()) for at, each in enumerate(tensors)])


def length(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return (last + 1) * tensor.element_size()


def refusal(written: str, other: str) -> ValueError:
    """Say what is wrong with two inputs."""
    return ValueError(
        f"input {written} is written to, and input {other} lies in the same memory: "
        "give each memory of its own, or a clone"
    )


def _first(spans: list[_Span]) -> tuple[int, int] | None:
    # Of those before, the ones that reach furthest, and of these the ones written to.
    reach, holder = 0, -1
    written_reach, writer = 0, -1
    for start, end, written, at in sorted(spans):
        if start == end:
            continue
        if start < written_reach:
            return writer, at
        if written and start < reach:
            return at, holder
        if end > reach:
            reach, holder = end, at
        if written:
            written_reach, writer = end, at
    return None
