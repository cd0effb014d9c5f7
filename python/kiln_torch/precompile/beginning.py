"""What happens when ``torch.compile`` is called on a function.

Invariant: afterwards the package is torch's to fill, loaded, or off.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import torch

from .errors import NotShared
from .key import ask
from .loading import load

if TYPE_CHECKING:
    from .package import SharedPackage
    from .store import Store


def begin(context: Any, package: SharedPackage, fn: Any, store: Store, *, local: bool) -> None:
    """Ask the cluster for ``fn``; with ``local``, leave torch's own folder to torch."""
    from torch._dynamo.eval_frame import innermost_fn

    given = fn.forward if isinstance(fn, torch.nn.Module) else fn
    root = innermost_fn(given)
    function = root.__func__ if isinstance(root, types.MethodType) else root
    if not isinstance(function, types.FunctionType):
        # torch's packages fail for these: a callable object, an operation.
        package.turn_off("callable", repr(type(function)))
        return
    if function.__globals__.get("__name__") not in sys.modules:
        # torch names the module of what runs after a graph break, off or not.
        package.turn_off("source", "its globals are no module's")
        _detach(context.callback, package)
        return
    try:
        package.asked = ask(context, root, function)
    except NotShared as refused:
        package.turn_off(refused.reason, refused)
        return
    except Exception as error:
        package.turn_off("key", repr(error))
        return
    if not load(package, given, store) and not local:
        package.initialize(given, None, ignore_inlined_sources=False)


def _detach(callback: Any, package: SharedPackage) -> None:
    """Let torch compile as if there was no package at all."""
    while callback is not None:
        if getattr(callback, "_package", None) is package:
            callback._package = None
        inner = getattr(callback, "_inner_convert", None)
        callback = inner or getattr(callback, "_torchdynamo_orig_backend", None)
