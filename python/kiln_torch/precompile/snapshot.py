"""A package as it was after one more frame was compiled, and its bytes.

Invariant: what is packed is complete in itself: a frame whose graph's code is not
there is left out, and a package with no frame left is none.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

from .. import report
from .noted import state_digest
from .store import Package

if TYPE_CHECKING:
    from torch._dynamo.package import _DynamoCacheEntry

    from .dropped import Check
    from .facts import Facts
    from .key import Asked


@dataclasses.dataclass
class Snapshot:
    """A package as it was after one more frame was compiled."""

    asked: Asked
    dynamo: _DynamoCacheEntry
    facts: Facts
    checks: dict[str, tuple[Check, ...]]
    cpu: bool
    seconds: float
    # The package that this one began as: its kernels are there.
    loaded: bytes | None
    # Packages of the list that could not be used.
    unusable: frozenset[str]

    def packed(self, *, last: bool) -> Package | None:
        """Put it together; ``None`` where a graph's code is not there, or not yet."""
        from torch._dynamo.package import PrecompileCacheEntry

        before: dict[Any, Any] = {}
        if self.loaded is not None:
            # Verified when it was loaded.
            before = pickle.loads(self.loaded).backends  # noqa: S301
        backends: dict[Any, Any] = {}
        codes = []
        for entry in self.dynamo.codes:
            found = {each: _backend(each) or before.get(each) for each in entry.backend_ids}
            if None in found.values():
                if not last:
                    return None
                report.count("precompile.no_backend")
                entry = dataclasses.replace(entry, guarded_codes=[], backend_ids=[], bypassed=True)
                found = {}
            codes.append(entry)
            backends.update(found)
        if all(entry.bypassed for entry in codes):
            return None
        dynamo = dataclasses.replace(self.dynamo, codes=codes)
        whole = PrecompileCacheEntry(dynamo=dynamo, backends=backends)
        states = {state_digest(each.guards_state) for code in codes for each in code.guarded_codes}
        checks = {state: rows for state, rows in self.checks.items() if state in states}
        return Package(pickle.dumps(whole), checks)


def _backend(name: Any) -> Any:
    """Return the code of one graph, complete in itself."""
    from torch._dynamo.precompile_context import PrecompileContext
    from torch._functorch._aot_autograd.aot_autograd_result import BundledAOTAutogradResult

    found = PrecompileContext.serialize_artifact_by_key(name)
    # An entry that another process stored without packages names a file that is not here.
    if found is None or not isinstance(found.content, BundledAOTAutogradResult):
        return None
    return found
