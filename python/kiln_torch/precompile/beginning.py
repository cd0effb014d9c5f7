"""What happens when ``torch.compile`` is called on a function.

Invariant: afterwards the package is torch's to fill, loaded, or off.
"""

from __future__ import annotations

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
