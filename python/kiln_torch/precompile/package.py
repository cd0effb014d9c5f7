"""torch's package, with what has to be true where it is used again.

Invariant: what goes wrong with the bookkeeping is counted and makes the frame, or
the whole function, one that is not shared; it never fails a compile, as torch's own
class does for local functions, callable objects and code without a source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo.package import CompilePackage, SourceInfo, _lookup_code

from .. import report
from . import noted
from .errors import NotShared
from .facts import Facts
from .graphs import has_cpu, refuse_foreign
from .snapshot import Snapshot

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Iterator

    from torch._dynamo.package import _DynamoCacheEntry

    from .dropped import Check
    from .key import Asked


class SharedPackage(CompilePackage):
    """A function that is compiled, or was loaded."""

    def __init__(
        self,
        fn: Callable[..., Any] | None,
        dynamo: _DynamoCacheEntry | None = None,
        ignore_inlined_sources: bool = False,
    ) -> None:
        """Share nothing before ``asked`` is known."""
        self.off: str | None = None
        self.asked: Asked | None = None
        self.facts = Facts()
        self.checks: dict[str, tuple[Check, ...]] = {}
        self.cpu = False
        self.seconds = 0.0
        self.loaded: bytes | None = None
        self.unusable: frozenset[str] = frozenset()
        super().__init__(fn, dynamo, ignore_inlined_sources)

    def turn_off(self, reason: str, why: object = "") -> None:
        """Share nothing of this function: it is compiled as if there were no packages."""
        self.off = reason
        _not_shared(reason, why)

    def is_initialized(self) -> bool:
        """Whether torch shall leave it alone."""
        return self.off is not None or super().is_initialized()

    @property
    def shares(self) -> bool:
        """Whether what is compiled now is written down."""
        return self.off is None and self.asked is not None and self._current_entry is not None

    @contextlib.contextmanager
    def code_context(self, code: types.CodeType) -> Iterator[None]:
        """Compile a frame, written down where its code can be found again by name."""
        began = time.monotonic()
        inner: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.off is None and self.asked is not None and self._current_entry is None:
            try:
                if code not in self._codes:
                    self._add_user_function(code)
                inner = super().code_context(code)
            except Exception as error:
                _not_shared("unresolved", error)
        try:
            with inner:
                yield
        finally:
            self.seconds += time.monotonic() - began

    def add_guarded_code(self, guards_state: bytes, dynamo_code: types.CodeType) -> None:
        """Write down a compiled frame, unless its guards could not be."""
        if not self.shares:
            return
        with self._or_bypass():
            seen = noted.take(guards_state)
            if seen is None:
                raise NotShared("guards")
            state, about = seen
            self.facts.add_classes(about.classes)
            self._about = about
            super().add_guarded_code(guards_state, dynamo_code)
            self.checks[state] = about.checks

    def add_inlined_source(self, sources: list[types.CodeType]) -> None:
        """Write down the code that was traced: by digest, not by its text."""
        if not self.shares or self._entry.bypassed:
            return
        with self._or_bypass():
            codes = [code for code in dict.fromkeys(sources) if code not in self._resume_codes]
            self.facts.add_codes(codes, self._about.classes)

    def update_device_type(self, graph: torch.fx.Graph | None) -> None:
        """Look at the graph: its devices, and operations whose code is in no package."""
        if not self.shares or self._entry.bypassed:
            return
        with self._or_bypass():
            super().update_device_type(graph)
            refuse_foreign(graph)
            self.cpu |= has_cpu(graph)

    def bypass_current_entry(self) -> None:
        """Leave out the frame that is compiled (torch 2.11)."""
        if self.shares:
            _not_shared("bypassed")
            self._bypass()

    def bypass_current_compile(self) -> None:
        """Leave out the frame that is compiled."""
        if self.shares:
            _not_shared("bypassed")
            self._bypass()

    def add_resume_function(
        self, python_code: types.CodeType, python_module: str, function_name: str | None
    ) -> None:
        """Write down what runs after a graph break."""
        if self.shares:
            with self._or_bypass():
                super().add_resume_function(python_code, python_module, function_name)

    def add_import_source(self, alias: str, module_name: str) -> None:
        """Write down an import that traced code needs."""
        if self.shares:
            super().add_import_source(alias, module_name)

    def add_backend_id(self, backend_id: str, backend: Any | None = None) -> None:
        """Write down which compiled graph the frame calls."""
        if self.shares:
            super().add_backend_id(backend_id, backend)

    def snapshot(self) -> Snapshot | None:
        """Copy what is there now; ``None`` where there is nothing to share."""
        if self.off is not None or self.asked is None:
            return None
        dynamo = self.cache_entry()
        codes = []
        for entry in dynamo.codes:
            # Without guarded code torch would never compile it again.
            bypassed = entry.bypassed or not entry.guarded_codes
            copied = dataclasses.replace(
                entry,
                function_names=list(entry.function_names),
                import_sources=dict(entry.import_sources),
                guarded_codes=[] if bypassed else list(entry.guarded_codes),
                backend_ids=[] if bypassed else list(entry.backend_ids),
                bypassed=bypassed,
            )
            codes.append(copied)
        if all(entry.bypassed for entry in codes):
            return None
        dynamo = dataclasses.replace(dynamo, codes=codes, source_info=SourceInfo(set()))
        states = {
            noted.state_digest(guarded.guards_state)
            for entry in codes
            for guarded in entry.guarded_codes
        }
        checks = {state: rows for state, rows in self.checks.items() if state in states}
        if len(checks) != len(states):
            _not_shared("guards", "a guard state was not noted")
            return None
        facts = self.facts.copy()
        return Snapshot(
            self.asked,
            dynamo,
            facts,
            checks,
            self.cpu,
            self.seconds,
            self.loaded,
            self.unusable,
        )

    def forget(self) -> None:
        """Undo a load that failed half-way: trace as if nothing had been found."""
        from torch._C._dynamo.eval_frame import _reset_precompile_entries

        if self._innermost_fn is not None:
            for code, entry in list(self._codes.items()):
                with contextlib.suppress(Exception):
                    _reset_precompile_entries(_lookup_code(entry) if entry.code_source else code)
            with contextlib.suppress(Exception):
                self.uninstall()
        asked, unusable = self.asked, self.unusable
        SharedPackage.__init__(self, None)
        self.asked, self.unusable = asked, unusable

    @property
    def _entry(self) -> Any:
        return self._current_entry

    @contextlib.contextmanager
    def _or_bypass(self) -> Iterator[None]:
        try:
            yield
        except NotShared as refused:
            _not_shared(refused.reason, refused)
            self._bypass()
        except Exception as error:
            _not_shared("bugs", repr(error))
            self._bypass()

    def _bypass(self) -> None:
        # All guarded codes of this code object: which of them a load would need is not known.
        self._entry.guarded_codes.clear()
        self._entry.backend_ids.clear()
        self._entry.bypassed = True
        if hasattr(self, "_current_backend_ids"):
            self._current_backend_ids = []


def _not_shared(reason: str, why: object = "") -> None:
    report.count(f"precompile.{reason}")
    report.log.info("precompile: not shared: %s: %s", reason, why)
