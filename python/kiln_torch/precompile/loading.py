"""Install what the cluster has of a function that is about to be compiled.

Invariant: raises nothing; after a load that failed the function is as if nothing
had been found. A package is unpickled only after its facts proved to be the same.
"""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

from torch._dynamo.package import PrecompileCacheEntry

from .. import report
from .errors import NotShared
from .guards import loading
from .key import settings
from .names import number_on, refuse_taken
from .package import SharedPackage

if TYPE_CHECKING:
    from collections.abc import Callable

    from .store import Candidate, Package, Store


def load(package: SharedPackage, fn: Callable[..., Any], store: Store) -> bool:
    """Install the first package that fits; whether there is one."""
    if package.asked is None:
        return False
    began = time.monotonic()
    for candidate, found in store.fitting(package.asked.name):
        try:
            _install(package, fn, candidate, found)
        except NotShared as refused:
            report.count(f"precompile.{refused.reason}")
            report.log.info("precompile: not loaded: %s", refused)
            package.forget()
            continue
        except Exception as error:
            report.count("precompile.broken")
            report.once("precompile load", "precompile: a package cannot be used: %r", error)
            package.unusable |= {candidate.package}
            package.forget()
            continue
        report.count("precompile.hits")
        report.count("precompile.load_ms", int((time.monotonic() - began) * 1000))
        store.loaded(found)
        return True
    report.count("precompile.misses")
    return False


def _install(
    package: SharedPackage, fn: Callable[..., Any], candidate: Candidate, found: Package
) -> None:
    asked = package.asked
    assert asked is not None
    entry = pickle.loads(found.entry)  # noqa: S301
    if not isinstance(entry, PrecompileCacheEntry):
        raise TypeError(f"{type(entry).__name__} is no package")
    refuse_taken(entry.dynamo.codes)
    # Its facts were checked: the texts of the sources are not in it.
    package.initialize(fn, entry.dynamo, ignore_inlined_sources=True)

    def unchanged() -> bool:
        try:
            return settings(called=True) == asked.settings
        except NotShared:
            return False

    with loading(found.checks, unchanged):
        package.install(entry.backends)
    number_on(entry.dynamo.codes)
    package.facts, package.checks = candidate.facts, dict(found.checks)
    package.cpu, package.loaded = bool(candidate.isa), found.entry
