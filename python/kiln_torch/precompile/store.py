"""A program's packages in the cluster: a short list, and each package by its digest.

Invariant: what ``candidates`` and ``fetch`` return was signed by a trusted node,
hashes to its name, and has been looked at as JSON alone: nothing is unpickled
here. A list has at most ``_MOST`` packages, the newest first; a writer that loses a
race loses a hit of others, never a right answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from .. import cpu, report
from ..key import VALUE, key_of, value_components
from ..manifest import Fingerprint, Target
from .dropped import Check
from .facts import Facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..client import Client

_MOST = 8
# Bytes and guarded codes that a package may have: one that never fits would grow
# by one in every process.
_MOST_BYTES = 256 << 20
_MOST_CODES = 16
_MOST_LIST = 64 << 20
_LIST, _ENTRY, _CHECKS = "value", "entry", "checks"


@dataclass
class Candidate:
    """One package of the list."""

    package: str
    facts: Facts
    # What the code of its CPU kernels was written for; empty without any.
    isa: str
    # How many guarded codes it has.
    compiled: int
    told: dict[str, Any] = field(repr=False)

    def fits(self) -> bool:
        """Whether what was traced into it is the same here, and its code runs on this CPU."""
        moved = self.facts.same()
        if moved is not None:
            report.count("precompile.source_moved")
            report.log.info("precompile: %s is not what was traced", moved)
            return False
        if self.isa and self.isa != cpu.instruction_sets():
            report.count("precompile.isa")
            return False
        return True


@dataclass
class Package:
    """The bytes of a package, and the guards that torch dropped, by guard state."""

    entry: bytes
    checks: dict[str, tuple[Check, ...]]
    key: bytes = b""


class Store:
    """The packages of a cluster."""

    def __init__(self, client: Client) -> None:
        """Look up and publish through ``client``."""
        self._client = client

    def candidates(self, name: str) -> list[Candidate]:
        """Return the packages listed under ``name``, newest first; none for a miss."""
        found = self._client.fetch(self._key(name))
        if found is None:
            return []
        try:
            data = found.file(_LIST)
            if len(data) > _MOST_LIST:
                raise ValueError(f"{len(data)} bytes")
            return [_candidate(told) for told in json.loads(bytes(data))["packages"][:_MOST]]
        except (KeyError, TypeError, ValueError) as error:
            report.count("precompile.broken")
            report.once("precompile list", "precompile: a list cannot be read: %r", error)
            return []

    def fitting(self, name: str) -> Iterator[tuple[Candidate, Package]]:
        """Yield the packages listed under ``name`` that are of the code of this process."""
        for candidate in self.candidates(name):
            found = self.fetch(candidate) if candidate.fits() else None
            if found is not None:
                yield candidate, found

    def fetch(self, candidate: Candidate) -> Package | None:
        """Return a package, checked against its digest; ``None`` for a miss."""
        found = self._client.fetch(self._key(f"precompile/package/{candidate.package}"))
        if found is None:
            return None
        try:
            entry, checks = bytes(found.file(_ENTRY)), bytes(found.file(_CHECKS))
            if _digest(entry, checks) != candidate.package:
                raise ValueError("it is not the package of its name")
            told = json.loads(checks)
            read = {str(s): tuple(map(Check.read, rows)) for s, rows in told.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            report.count("precompile.broken")
            report.once("precompile package", "precompile: a package cannot be read: %r", error)
            return None
        return Package(entry, read, found.key)

    def loaded(self, package: Package) -> None:
        """Say that a package is in use."""
        self._client.loaded([package.key])

    def publish(
        self,
        name: str,
        label: str,
        package: Package,
        facts: Facts,
        isa: str,
        seconds: float,
        unusable: frozenset[str] = frozenset(),
    ) -> str:
        """Publish a package and list it, in place of ``unusable`` ones.

        Returns the counter that says what became of it.
        """
        rows = {state: [each.told() for each in of] for state, of in package.checks.items()}
        checks = json.dumps(rows, sort_keys=True).encode()
        if len(package.entry) + len(checks) > _MOST_BYTES or len(rows) > _MOST_CODES:
            return "too_large"
        digest = _digest(package.entry, checks)
        told = {
            "package": digest,
            "facts": facts.told(),
            "isa": isa,
            "compiled": len(package.checks),
        }
        listed = self.candidates(name)
        same = json.dumps(told["facts"])
        kept = []
        for each in listed:
            if each.package in unusable:
                continue
            if json.dumps(each.facts.told()) == same:
                if each.compiled >= len(package.checks):
                    return "already"
                # This one has grown: it replaces that.
                continue
            kept.append(each.told)
        files = {_ENTRY: package.entry, _CHECKS: checks}
        if not self._put(f"precompile/package/{digest}", label, files, seconds):
            return "unpublished"
        listing = json.dumps({"packages": [told, *kept][:_MOST]}).encode()
        if not self._put(name, label, {_LIST: listing}, seconds):
            return "unpublished"
        return "published"

    def _put(self, name: str, label: str, files: dict[str, bytes], seconds: float) -> bool:
        return self._client.publish(
            None,
            value_components(self._client.namespace, name),
            files,
            fingerprint=Fingerprint(VALUE),
            target=Target.any(),
            label=label,
            seconds=seconds,
            replace=True,
        )

    def _key(self, name: str) -> bytes:
        return key_of(value_components(self._client.namespace, name))


def _candidate(told: dict[str, Any]) -> Candidate:
    package, isa, compiled = told["package"], told["isa"], told["compiled"]
    if not (isinstance(package, str) and isinstance(isa, str) and isinstance(compiled, int)):
        raise TypeError("a package of the list has no digest")
    return Candidate(package, Facts.read(told["facts"]), isa, compiled, told)


def _digest(entry: bytes, checks: bytes) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update(len(entry).to_bytes(8, "big"))
    hasher.update(entry)
    hasher.update(checks)
    return hasher.hexdigest()
