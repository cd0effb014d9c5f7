"""Where a compiled graph runs once it is loaded: on the caller's GPU.

``on(index)`` is for those who load an artifact: every graph of it that is loaded
within is for that GPU, or is refused as a miss is. Invariant: outside of it torch
loads as ever; no graph is changed that is on its GPU already.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import config, devices, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@dataclass
class Place:
    """Where what is loaded goes."""

    index: int
    # Whether something could not go there.
    refused: bool = False


class _Here(threading.local):
    place: Place | None = None


_here = _Here()
_lock = threading.Lock()
_installed = False


def index_of(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> int | None:
    """Return the GPU to place on what is loaded for a graph; ``None``: as it was made.

    Under torch's settings in force: C++ around the kernels, and tensors of a GPU
    within the code, cannot be moved; and a compile in which ranks talk to each other
    hangs where one of them loads instead.
    """
    settings = torch._inductor.config
    if not config.merge_ranks() or settings.cpp_wrapper or settings.freezing:
        return None
    if getattr(torch._functorch.config, "_sync_decision_cross_ranks", False):
        return None
    return devices.only_index(gm, inputs)


@contextlib.contextmanager
def on(index: int | None) -> Iterator[Place | None]:
    """Place what is loaded within on GPU ``index``; ``None``: as around it."""
    if index is None:
        yield _here.place
        return
    install()
    before, _here.place = _here.place, Place(index)
    try:
        yield _here.place
    finally:
        _here.place = before


def current() -> int | None:
    """Return the GPU that is placed on now."""
    return None if _here.place is None else _here.place.index


def refused(reason: object) -> None:
    """Count and say that something is compiled on its own GPU."""
    if _here.place is not None:
        _here.place.refused = True
    report.count("ranks.refused")
    report.log.info("not shared between GPUs: %s", reason)


def install() -> None:
    """Have torch ask here, from now on."""
    global _installed
    from torch._functorch._aot_autograd.aot_autograd_result import GenericAOTAutogradResult
    from torch._inductor.codecache import FxGraphCache

    with _lock:
        if _installed:
            return
        # All graphs that come from anywhere pass here before their files are written.
        graphs = _graphs(FxGraphCache.cache_hit_post_compile)
        FxGraphCache.cache_hit_post_compile = staticmethod(graphs)  # type: ignore[method-assign]
        entries = _entries(GenericAOTAutogradResult.wrap_post_compile)
        GenericAOTAutogradResult.wrap_post_compile = entries  # type: ignore[method-assign]
        _installed = True


def _graphs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def cache_hit_post_compile(graph: Any, cache_info: Any, constants: Any) -> Any:
        index = current()
        if index is not None:
            from . import moving

            try:
                graph = moving.graph(graph, index)
            except moving.Refused as reason:
                refused(reason)
                return None, cache_info
        return original(graph, cache_info, constants)

    return cache_hit_post_compile


def _entries(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrap_post_compile(self: Any, *args: Any, **named: Any) -> Any:
        index = current()
        if index is None:
            return original(self, *args, **named)
        from . import moving

        try:
            moved = moving.entry(self, index)
        except moving.Refused as reason:
            from torch._functorch._aot_autograd.autograd_cache import FXGraphCacheMiss

            refused(reason)
            raise FXGraphCacheMiss from reason
        return original(moved, *args, **named)

    return wrap_post_compile
