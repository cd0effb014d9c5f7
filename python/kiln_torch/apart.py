"""Whether memory that a run writes to is given as another input as well.

Kernels read what they do not write as if nobody wrote it, and a copy behind the run would
give another answer than PyTorch, which writes in place (``src/exec/session/apart.rs``).

Invariant: two inputs that share a byte are always found where one of them is written to.
Inputs that share none are refused only where that would take too long to tell, and then the
message says so. No tensor of any device or kind makes this raise.
"""

from __future__ import annotations

import bisect
import itertools
import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

# Steps in which it must be told whether two inputs share a byte.
_MOST_STEPS = 4096
# Where a tensor's address is one: elsewhere it is a handle, or nothing at all.
_ADDRESSED = ("cpu", "cuda")


class Form(NamedTuple):
    """The bytes of a tensor, from where it starts: runs of ``run`` bytes, at distances."""

    run: int
    # Distances in bytes, the largest first, and how often each is taken at most.
    steps: tuple[tuple[int, int], ...]
    # From the first byte to the end of the last one.
    length: int


class Place(NamedTuple):
    """Where an input lies: starts are comparable within one space alone."""

    space: Any
    start: int
    form: Form


class Shared(NamedTuple):
    """Two inputs, the first of which is written to."""

    written: int
    other: int
    # Whether they share a byte: false where that could not be told in time.
    known: bool


class _Span(NamedTuple):
    start: int
    end: int
    at: int
    form: Form


class Apart:
    """Inputs of which some are written to, and some of them stay where they are."""

    def __init__(self, written: Sequence[bool], fixed: Mapping[int, torch.Tensor]) -> None:
        """Take which inputs are written to, and the fixed ones."""
        self._written = written
        places = ((at, place(tensor)) for at, tensor in fixed.items())
        by_space = _by_space((at, each) for at, each in places if each is not None)
        self._fixed = {
            space: (_Sorted(spans), _Sorted([each for each in spans if written[each.at]]))
            for space, spans in by_space.items()
        }
        found = (self._among(spans) for spans in by_space.values())
        self._among_fixed = next((pair for pair in found if pair is not None), None)

    def shared(self, given: Iterable[tuple[int, Place | None]]) -> Shared | None:
        """Return two inputs that share bytes, or may; ``given`` are those that are not fixed."""
        if self._among_fixed is not None:
            return self._among_fixed
        for space, spans in _by_space((at, each) for at, each in given if each).items():
            pair = self._among(spans)
            if pair is not None:
                return pair
            if space not in self._fixed:
                continue
            every, written = self._fixed[space]
            for span in spans:
                # Of two that are only read neither matters.
                for other in (every if self._written[span.at] else written).meeting(span):
                    pair = self._pair(span, other)
                    if pair is not None:
                        return pair
        return None

    def _among(self, spans: list[_Span]) -> Shared | None:
        # Of those that start before, the ones that reach as far: read, written to.
        before: tuple[list[_Span], list[_Span]] = [], []
        for span in sorted(spans):
            is_written = self._written[span.at]
            for which in (1, 0) if is_written else (1,):
                before[which][:] = [each for each in before[which] if each.end > span.start]
                for other in before[which]:
                    pair = self._pair(span, other)
                    if pair is not None:
                        return pair
            before[is_written].append(span)
        return None

    def _pair(self, a: _Span, b: _Span) -> Shared | None:
        share = _share(a, b)
        if share is False:
            return None
        first, second = (a, b) if self._written[a.at] else (b, a)
        return Shared(first.at, second.at, share is True)


class Given:
    """Inputs of known forms in one space, asked about at each call."""

    def __init__(self, inputs: Apart, places: Sequence[tuple[int, Place]]) -> None:
        """Take where they are for now."""
        self._inputs = inputs
        self._places = places
        # What was found to be apart last: most calls are given the same memory again.
        self._seen: Sequence[tuple[int, int]] | None = None

    def shared(self, pointers: Sequence[tuple[int, int]]) -> Shared | None:
        """Return two inputs that share bytes; ``pointers`` has positions and addresses."""
        if pointers == self._seen:
            return None
        found = self._inputs.shared(
            (at, place._replace(start=start))
            for (at, place), (_, start) in zip(self._places, pointers)
        )
        if found is None:
            self._seen = pointers
        return found


class _Sorted:
    """Spans by their starts, with how far those up to each reach."""

    def __init__(self, spans: Iterable[_Span]) -> None:
        self._spans = sorted(spans)
        self._starts = [span.start for span in self._spans]
        self._reach = list(itertools.accumulate((span.end for span in self._spans), max))

    def meeting(self, span: _Span) -> Iterable[_Span]:
        at = bisect.bisect_left(self._starts, span.end)
        while at and self._reach[at - 1] > span.start:
            at -= 1
            if self._spans[at].end > span.start:
                yield self._spans[at]


def among(tensors: Sequence[torch.Tensor], written: Sequence[bool]) -> Shared | None:
    """Return two of ``tensors`` that share bytes, or may, the first of which is written to."""
    if not any(written):
        return None
    return Apart(written, {}).shared((at, place(each)) for at, each in enumerate(tensors))


def place(tensor: torch.Tensor) -> Place | None:
    """Return where a tensor lies; nothing of one that has no memory of its own."""
    try:
        form = form_of(tensor)
        if not form.length:
            return None
        if tensor.device.type in _ADDRESSED and not _is_fake(tensor):
            start = tensor.data_ptr()
            if start:
                return Place(tensor.device, start, form)
        # Only what is of one storage can be compared.
        start = int(tensor.storage_offset()) * tensor.element_size()
        return Place(tensor.untyped_storage()._cdata, start, form)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        # Sparse, nested, or of a device that tells neither.
        return None


def form_of(tensor: torch.Tensor) -> Form:
    """Return which bytes a tensor has, from its first element's on."""
    if not int(tensor.numel()):
        return Form(0, (), 0)
    size = tensor.element_size()
    run, steps = size, []
    for step, last in sorted(
        (int(stride) * size, int(count) - 1) for count, stride in zip(tensor.shape, tensor.stride())
    ):
        if step <= run:
            # Without a gap.
            run += step * last
        elif last:
            steps.append((step, last))
    length = run + sum(step * last for step, last in steps)
    return Form(run, tuple(reversed(steps)), length)


def refusal(pair: Shared, written: str, other: str) -> ValueError:
    """Say what is wrong with two inputs, by their names."""
    if pair.known:
        why = f"and input {other} lies in the same memory"
    else:
        why = f"and whether input {other} shares bytes with it takes too long to tell"
    return ValueError(
        f"input {written} is written to, {why}: give each memory of its own, or a clone"
    )


def _by_space(places: Iterable[tuple[int, Place]]) -> dict[Any, list[_Span]]:
    spaces: dict[Any, list[_Span]] = {}
    for at, (space, start, form) in places:
        if form.length:
            spaces.setdefault(space, []).append(_Span(start, start + form.length, at, form))
    return spaces


def _share(a: _Span, b: _Span) -> bool | None:
    """Return whether two share a byte: nothing where that takes too long to tell."""
    if min(a.end, b.end) <= max(a.start, b.start):
        return False
    # A run of `a` starts at `a.start` and some of its steps, one of `b` alike. They share a
    # byte where the difference of both is above -a.run and below b.run. With the steps of
    # `b` counted from its last one all signs are alike, and equal distances are one.
    counts: dict[int, int] = {}
    for step, last in (*a.form.steps, *b.form.steps):
        counts[step] = counts.get(step, 0) + last
    base = a.start - b.start - sum(step * last for step, last in b.form.steps)
    steps = sorted(counts.items(), reverse=True)
    # What those from each on reach at most, and of what all their sums are multiples.
    reach, unit = [0], [0]
    for step, last in reversed(steps):
        reach.append(reach[-1] + step * last)
        unit.append(math.gcd(unit[-1], step))
    reach.reverse()
    unit.reverse()
    left, tried = [(0, 1 - a.form.run - base, b.form.run - 1 - base)], 0
    while left:
        at, low, high = left.pop()
        # A sum between both?
        if low <= 0 <= high or low <= reach[at] <= high:
            return True
        if high < 0 or low > reach[at] or high // unit[at] * unit[at] < low:
            continue
        if at + 1 == len(steps):
            return True
        step, last = steps[at]
        first = max(0, -((reach[at + 1] - low) // step))
        most = min(last, high // step)
        tried += max(0, most + 1 - first)
        if tried > _MOST_STEPS:
            return None
        left += [(at + 1, low - step * n, high - step * n) for n in range(first, most + 1)]
    return False


def _is_fake(tensor: torch.Tensor) -> bool:
    # Its device is one of those, and to ask for its address warns.
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    return fake is not None and isinstance(tensor, fake.FakeTensor)
