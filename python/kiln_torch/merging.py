"""Inductor's own caches, local and remote: one entry for all ranks of a job.

A graph for the current GPU alone has the key that torch gives it on GPU 0, and what
is stored under that key is for GPU 0: also in the local folder, so that processes
without this package find there what they would have stored. Elsewhere it is placed
on the GPU that it is asked for with (``placing.py``).

Invariant: an entry under a key of GPU 0 is for GPU 0 or is not stored. Torch's key
is left alone where ``devices.only_index`` has no index, and where the entry goes on
to where nobody could place it: standalone artifacts, and bundles for precompilation.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from typing import TYPE_CHECKING, Any

import torch

from . import devices, placing, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType


class _Here(threading.local):
    # The GPU that is to read as the first, while a key is made.
    reads: int | None = None
    # How many standalone artifacts are being compiled.
    standalone: int = 0


_here = _Here()
# Keys of GPU 0 that this process made for another GPU. One for each graph at most.
_merged: set[str] = set()


def plug(module: ModuleType) -> None:
    """Plug into one of ``MODULES``, once it is imported."""
    _PLUGS[module.__name__](module)


def _graphs(module: Any) -> None:
    """FxGraphCache: the graphs themselves."""
    cache, pickler = module.FxGraphCache, module.FxGraphCachePickler
    load, save, begin = cache.load_with_key, cache._save_graph, pickler.__init__

    @functools.wraps(begin)
    def begin_(self: Any, *args: Any, **named: Any) -> None:
        begin(self, *args, **named)
        if _here.reads is not None:
            _read_as_first(self.dispatch_table, _here.reads)

    @functools.wraps(load)
    def load_with_key(key: str, lines: Any, inputs: Sequence[Any], *args: Any, **named: Any) -> Any:
        index = placing.current()
        if index is None and key in _merged:
            index = devices.input_index(inputs)
        with placing.on(index):
            return load(key, lines, inputs, *args, **named)

    @functools.wraps(save)
    def _save_graph(key: str, graph: Any, *args: Any, **named: Any) -> Any:
        if key not in _merged:
            return save(key, graph, *args, **named)
        from . import moving

        try:
            first = moving.graph(graph, devices.FIRST)
        except moving.Refused as reason:
            _unstored(key, reason)
            return None
        done = save(key, first, *args, **named)
        # What it found out for others as well.
        for name in ("guards_expr", "extern_libs_key"):
            if hasattr(first, name):
                setattr(graph, name, getattr(first, name))
        return done

    pickler.__init__ = begin_
    cache.load_with_key = staticmethod(load_with_key)
    cache._save_graph = staticmethod(_save_graph)
    module.compiled_fx_graph_hash = _keyed(module.compiled_fx_graph_hash)


def _entries(module: Any) -> None:
    """AOTAutogradCache: what is around the graphs, and their keys."""
    # First: what is wrapped here is to be placed already.
    placing.install()
    cache = module.AOTAutogradCache
    lookup, save = cache._lookup, cache.save
    result = module.GenericAOTAutogradResult
    finish = result.wrap_post_compile

    @functools.wraps(lookup)
    def _lookup(
        key: str, local: bool, remote: bool, args: Sequence[Any], *more: Any, **named: Any
    ) -> Any:
        found = lookup(key, local, remote, args, *more, **named)
        if found is not None and key in _merged:
            found[0].__dict__["_kiln_index"] = devices.input_index(args)
        return found

    @functools.wraps(finish)
    def wrap_post_compile(self: Any, *args: Any, **named: Any) -> Any:
        index = self.__dict__.pop("_kiln_index", None)
        with placing.on(placing.current() if index is None else index):
            return finish(self, *args, **named)

    @functools.wraps(save)
    def save_(key: str, entry: Any, *args: Any, **named: Any) -> Any:
        if key not in _merged:
            return save(key, entry, *args, **named)
        from . import moving

        try:
            for part in (entry.compiled_fw, entry.compiled_bw):
                if part is not None and part.fx_graph_cache_info[0] not in _merged:
                    raise moving.Refused("a graph of it is not shared")
            entry = moving.entry(entry, devices.FIRST)
        except (moving.Refused, AttributeError) as reason:
            return _unstored(key, reason)
        return save(key, entry, *args, **named)

    cache._lookup = staticmethod(_lookup)
    cache.save = staticmethod(save_)
    result.wrap_post_compile = wrap_post_compile
    module.autograd_cache_key = _keyed(module.autograd_cache_key)


def _standalone(module: Any) -> None:
    original = module.standalone_compile

    @functools.wraps(original)
    def standalone_compile(*args: Any, **named: Any) -> Any:
        _here.standalone += 1
        try:
            return original(*args, **named)
        finally:
            _here.standalone -= 1

    module.standalone_compile = standalone_compile


def _keyed(original: Callable[..., tuple[str, list[str]]]) -> Callable[..., tuple[str, list[str]]]:
    @functools.wraps(original)
    def key_of(*args: Any, **named: Any) -> tuple[str, list[str]]:
        gm, inputs = (*args, *named.values())[:2]
        try:
            index = _index(gm, inputs)
        except Exception as error:
            # A graph, or a torch, that is not known here has torch's own key.
            report.count("bugs")
            report.once("ranks", "KILN_RANKS=keep for a graph: %r", error)
            index = None
        if index is None:
            return original(*args, **named)
        with _reading(gm, index):
            key, lines = original(*args, **named)
        _merged.add(key)
        report.count("ranks.merged")
        return key, lines

    return key_of


def _index(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> int | None:
    """Return the GPU that shall read as the first one; ``None``: torch's key stays."""
    from torch._functorch._aot_autograd.autograd_cache import should_bundle_autograd_cache

    if _here.standalone or should_bundle_autograd_cache():
        return None
    if getattr(torch.compiler.config, "compile_on_one_rank", False):
        # Torch's own way to the same.
        return None
    if getattr(gm, "graph", None) is None or not isinstance(gm, torch.fx.GraphModule):
        return None
    index = placing.index_of(gm, inputs)
    return None if index == devices.FIRST else index


@contextlib.contextmanager
def _reading(gm: torch.fx.GraphModule, index: int) -> Iterator[None]:
    """Make keys as if GPU ``index`` were the first."""
    there = {str(torch.device(devices.GPU, index)): torch.device(devices.GPU, devices.FIRST)}

    def first(given: Any) -> Any:
        found = there.get(str(given))
        return given if found is None else (str(found) if isinstance(given, str) else found)

    before, _here.reads = _here.reads, index
    back = devices.renamed(gm, first)
    try:
        yield
    finally:
        back()
        _here.reads = before


def _read_as_first(table: dict[type, Any], index: int) -> None:
    """Have a pickler write GPU ``index`` as torch writes the first one."""
    from torch._inductor.cudagraph_utils import BoxedDeviceIndex

    def device(given: torch.device) -> Any:
        here = given.type == devices.GPU and given.index == index
        return (torch.device(devices.GPU, devices.FIRST) if here else given).__reduce__()

    def boxed(given: BoxedDeviceIndex) -> Any:
        if given.value == index:
            given = copy.copy(given)
            given.value = devices.FIRST
        return given.__reduce_ex__(2)

    table[torch.device] = device
    table[BoxedDeviceIndex] = boxed


def _unstored(key: str, reason: object) -> None:
    _merged.discard(key)
    report.count("ranks.unstored")
    report.once(
        "ranks unstored",
        "a graph of this GPU is not stored: %s (KILN_RANKS=keep stores it for this GPU)",
        reason,
    )


_PLUGS: dict[str, Callable[[Any], None]] = {
    "torch._inductor.codecache": _graphs,
    "torch._functorch._aot_autograd.autograd_cache": _entries,
    "torch._inductor.standalone_compile": _standalone,
}
