"""Where packages take hold of torch.

Invariant: imports nothing of torch before torch does; a program that sets
TORCH_CACHING_PRECOMPILE=0 has no packages, and one that sets it to 1 keeps torch's
own local folder beside the cluster.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import report
from ..client import Client
from ..importing import when_imported

if TYPE_CHECKING:
    from types import ModuleType

_SWITCH = "TORCH_CACHING_PRECOMPILE"


class _Plugged:
    """What the hooks of one process share."""

    def __init__(self, client: Client, *, local: bool) -> None:
        self.client = client
        # Whether torch's own folder was asked for.
        self.local = local
        self.store: Any = None
        self.publisher: Any = None
        self._missing = 3

    def took_hold(self) -> None:
        """Switch torch's packages on, once everything here is in place."""
        self._missing -= 1
        if self._missing == 0:
            import torch._functorch.config
            from torch._dynamo import config

            config.caching_precompile = True
            # As that implies; but this is in the key of AOTAutograd's entries: those of
            # processes without packages name files that a package would lack.
            torch._functorch.config.bundled_autograd_cache = True


def install() -> None:
    """Plug in now, or as soon as Dynamo is imported."""
    asked = os.environ.get(_SWITCH)
    if asked is not None and asked != "1":
        return
    if sys.version_info < (3, 11):
        report.once("precompile", "KILN_PRECOMPILE needs Python 3.11: it is off")
        return
    client = Client.from_env()
    if client is not None:
        _hold(_Plugged(client, local=asked == "1"))


def _hold(plugged: _Plugged) -> None:
    for name, plug in (
        ("torch._dynamo.package", _plug_package),
        ("torch._dynamo.guards", _plug_guards),
        ("torch._dynamo.eval_frame", _plug_context),
        ("torch._dynamo.aot_compile", _plug_aot),
    ):
        when_imported(name, partial(plug, plugged))


def _plug_package(plugged: _Plugged, module: Any) -> None:
    # Connecting takes its time, and so does the rest of Dynamo's import.
    threading.Thread(target=_warm, args=(plugged.client,), daemon=True).start()
    from . import guards
    from .package import SharedPackage
    from .publishing import Publisher
    from .store import Store

    plugged.store = Store(plugged.client)
    plugged.publisher = Publisher(plugged.store)
    guards.plug_loading(module)
    original = module.DynamoCache.record_package

    def record_package(package: Any) -> None:
        if not isinstance(package, SharedPackage):
            original(package)
            return
        try:
            snapshot = package.snapshot()
            if snapshot is not None:
                plugged.publisher.send(snapshot)
            if plugged.local and package.off is None:
                original(package)
        except Exception as error:
            _swallowed("record", error)

    module.DynamoCache.record_package = record_package
    module.CompilePackage = SharedPackage
    plugged.took_hold()


def _plug_guards(plugged: _Plugged, module: ModuleType) -> None:
    from . import guards

    guards.plug(module)
    plugged.took_hold()


def _plug_context(plugged: _Plugged, module: Any) -> None:
    context = module._TorchDynamoContext
    original = context.__call__

    def call(self: Any, fn: Any) -> Any:
        _prepare(self, fn, plugged)
        return original(self, fn)

    context.__call__ = call
    plugged.took_hold()


def _plug_aot(plugged: _Plugged, module: Any) -> None:
    from torch._dynamo import convert_frame

    from . import aot

    aot.plug_capture(convert_frame)
    aot.plug(module, plugged.store, plugged.publisher)


def _prepare(context: Any, fn: Any, plugged: _Plugged) -> None:
    """Load the package of ``fn``, or say why it is not shared. Raises nothing."""
    from .package import SharedPackage

    package = getattr(context, "_package", None)
    if not isinstance(package, SharedPackage) or package.is_initialized():
        return
    # torch compiles the functions of a class one by one, through here.
    if isinstance(fn, (type, staticmethod)):
        return
    try:
        from .beginning import begin

        begin(context, package, fn, plugged.store, local=plugged.local)
    except Exception as error:
        _swallowed("begin", error)
        package.turn_off("bugs", error)


def _warm(client: Client) -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401

        client.lookup(bytes(32))
    except Exception as error:
        _swallowed("connect", error)


def _swallowed(doing: str, error: Exception) -> None:
    report.count("bugs")
    report.once(f"precompile {doing} {type(error).__name__}", "precompile: %s: %r", doing, error)
