"""Kiln behind all of Inductor's remote caches.

Invariant: no exception leaves a backend, every value was verified before torch
unpickles it, and all waits are bounded. What torch does not do by itself is
nobody's to wait for: leases end with the compile that they were taken for.

``install`` imports nothing of torch: it switches the caches on through torch's
own environment variables, unless they are set, and takes over when Inductor is
imported. Entries have the names that Inductor's Redis backend gives them, so
processes with and without this package share them.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from . import config, decoding, report
from .bypassed import TorchBypasses
from .client import Client
from .importing import when_imported
from .settle import Settling
from .value import Values

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# Read by torch when its config modules are imported, here and in the processes
# that compile for this one. Bundled autotuning is left off: with it, torch 2.11
# to 2.15 fail to compile for the CPU.
SWITCHES = (
    "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE",
    "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE",
    "TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE",
    "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_REMOTE_PGO",
)
_REMOTE_CACHE = "torch._inductor.remote_cache"
# Where one entry is made to do for all ranks of a job.
_MERGED = (
    "torch._inductor.codecache",
    "torch._functorch._aot_autograd.autograd_cache",
    "torch._inductor.standalone_compile",
)

# One process of the cluster compiles the graph, the others wait for it.
FX_GRAPH = "fx_graph"
# As above; but with a backward pass the entry comes only with that, if ever: then
# all go on together, and wait for each other at the graphs inside.
AUTOGRAD = "autograd"
# Looked up and stored; nobody waits, because a put may come much later, or never.
PLAIN = "plain"

CACHES = {
    "RemoteFxGraphCache": FX_GRAPH,
    "RemoteAOTAutogradCache": AUTOGRAD,
    "RemoteAutotuneCache": PLAIN,
    "RemoteBundledAutotuneCache": PLAIN,
    "RemoteDynamoPGOCache": PLAIN,
}


def install() -> None:
    """Plug in now, or as soon as Inductor is imported."""
    for switch in SWITCHES:
        os.environ.setdefault(switch, "1")
    when_imported(_REMOTE_CACHE, plug)
    if config.merge_ranks():
        for name in _MERGED:
            when_imported(name, _merge)


def plug(module: ModuleType) -> None:
    """Make Kiln the backend of the remote caches in ``torch._inductor.remote_cache``."""
    client = Client.from_env()
    if client is None:
        return
    shared = _Shared(client)
    atexit.register(shared.end)
    for name, family in CACHES.items():
        cache = getattr(module, name, None)
        if cache is None:
            report.once(name, "this torch has no %s", name)
        else:
            cache.backend_override_cls = _backend(module.RemoteCacheBackend, shared, family)
            if family in (FX_GRAPH, AUTOGRAD) and hasattr(cache, "_decode"):
                cache._decode = _decode(cache._decode)


def _decode(original: Callable[..., Any]) -> Callable[..., Any]:
    def decode(self: Any, data: Any, *more: Any) -> Any:
        read = decoding.entry(data) if isinstance(data, bytes) else None
        return original(self, data, *more) if read is None else read

    return decode


def _merge(module: ModuleType) -> None:
    from . import merging

    merging.plug(module)


class _Shared:
    """What the backends of one process share."""

    def __init__(self, client: Client) -> None:
        self.wait = client.settings.wait
        self.values = Values(client)
        self.settling = Settling(self.values.used)
        self.bypasses = TorchBypasses()

    def get(self, family: str, key: str) -> bytes | None:
        self._settle_after_compile()
        waits = family in (FX_GRAPH, AUTOGRAD)
        data = self.values.get(key, wait=self.wait if waits else None, cascade=family == AUTOGRAD)
        if data is not None:
            self.settling.handed_out(family, key)
        return data

    def end(self, _: object = None) -> None:
        """Settle what the compile that ended leaves behind. Raises nothing."""
        try:
            self.settling.settle()
            self.bypasses.count()
            self.values.abandon()
        except Exception as error:
            _swallowed("settle", error)

    def _settle_after_compile(self) -> None:
        from torch._dynamo.callback import callback_handler

        # `torch._dynamo.reset` forgets callbacks.
        if self.end not in callback_handler.end_callbacks:
            callback_handler.register_end_callback(self.end)


def _backend(base: Any, shared: _Shared, family: str) -> Callable[[], Any]:
    class KilnBackend(base):
        """What torch asks: bytes by name."""

        def _get(self, key: str) -> bytes | None:
            try:
                return shared.get(family, key)
            except Exception as error:
                return _swallowed("get", error)

        def _put(self, key: str, data: bytes) -> None:
            try:
                shared.values.put(key, data, later=True)
            except Exception as error:
                _swallowed("put", error)

    return KilnBackend


def _swallowed(doing: str, error: Exception) -> None:
    report.count("bugs")
    report.once(f"{doing} {type(error).__name__}", "%s: %r", doing, error)
