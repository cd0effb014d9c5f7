"""The key of a graph: everything that decides the code, through Kiln's own encoding.

Invariant: a graph's place among others is not in it, so equal pieces have one
key; what cannot be said in full is ``Unkeyable``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..asked import Asked, refuse_graph
from ..graph import Unkeyable
from .writes import may_write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .interface import CompilerInterface
    from .traced import Traced

# Changes with the meaning of the files, or of the forms that enter the key.
FORM = "compilation-1"


def ask(
    traced: Traced,
    compiler: CompilerInterface,
    settings: Mapping[str, Any],
    facts: Mapping[str, str],
    namespace: str,
) -> Asked:
    """Describe all that decides the result. ``Unkeyable``: no key says all of it."""
    refuse_graph(traced.gm, overlap=not may_write(traced.gm))
    with torch._inductor.config.patch(dict(settings)):
        if torch._inductor.config.force_disable_caches:
            raise Unkeyable("caches are disabled")
        return Asked(
            traced.gm,
            traced.inputs,
            namespace,
            form=FORM,
            guarded=traced.dynamo,
            facts={**facts, "adaptor": compiler.name},
        )
