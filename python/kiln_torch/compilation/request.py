"""One graph's way through the tiers: memory, disk or cluster, then the compiler.

``begin`` and ``finish`` use torch, whose compiler state belongs to the process:
they run in the caller's thread, under torch's lock. ``look`` uses none, and may
run in any (``lookup.py``).
Invariant: what is returned admits the graph's sizes, and was looked for in memory
once more under torch's lock before it is compiled.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .. import report, standalone
from ..graph import Unkeyable
from ..key import key_of
from .errors import CompilationModuleError
from .keys import ask
from .lookup import Lookup, said_here
from .memory import Cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..manifest import Artifact
    from .interface import CompilerInterface
    from .tiers import Tiers
    from .traced import Traced


class Request:
    """One graph to be compiled or loaded."""

    def __init__(
        self,
        tiers: Tiers,
        compiler: CompilerInterface,
        traced: Traced,
        config: Mapping[str, Any],
        runtime_shape: int | None,
        facts: Mapping[str, str],
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        alone: bool = False,
    ) -> None:
        """Take what is asked; ``config``: the caller's options for the compiler.

        ``timeout``: of a compile in another process, which ends by ``deadline`` as well;
        ``alone``: with no other beside it.
        """
        self._tiers = tiers
        self._compiler = compiler
        self._traced = traced
        self._config = config
        self._shape = runtime_shape
        self._facts = facts
        self._settings = compiler.merged_config(config, runtime_shape)
        self._lookup = Lookup(
            tiers, stored=compiler.portable, timeout=timeout, deadline=deadline, alone=alone
        )

    @property
    def key(self) -> bytes | None:
        """The key; ``None`` where there is none."""
        return self._lookup.candidates[0][0] if self._lookup.candidates else None

    @property
    def _index(self) -> int | None:
        asked = self._lookup.asked
        return None if asked is None else asked.index

    @property
    def sent(self) -> bool:
        """Whether another process compiles it, as far as is known."""
        return self._lookup.job is not None

    @property
    def elsewhere(self) -> bool:
        """Whether another process compiled it."""
        return self._lookup.made is not None and not self._lookup.follows

    @property
    def missed(self) -> bool:
        """Whether no cache had it."""
        return self._lookup.missed

    @property
    def seconds(self) -> float:
        """Seconds that its compile took, here or in another process; 0 for a hit."""
        return self._lookup.seconds

    @property
    def waited(self) -> float:
        """Seconds until another process began it."""
        return self._lookup.waited

    @property
    def phases(self) -> Mapping[str, float]:
        """Where torch says that the seconds in another process went; some are within others."""
        return self._lookup.phases

    def describe(self) -> bool:
        """Find the key; ``False``: there is none."""
        try:
            asked = ask(
                self._traced, self._compiler, self._settings, self._facts, self._tiers.namespace
            )
            self._lookup.candidates = [(key_of(each), each) for each in asked.candidates()]
            self._lookup.asked = asked
        except Unkeyable as reason:
            report.count("compilation.bypassed")
            report.log.info("compiled without a cache: %s", reason)
        return self.key is not None

    def begin(self) -> Callable[..., Any] | None:
        """Find the key, and look in memory."""
        return self.in_memory() if self.describe() else None

    def in_memory(self) -> Callable[..., Any] | None:
        """Return what this process has already; else make ready for ``look``."""
        run = self._remembered()
        if run is not None:
            return run
        if self._tiers.pool is not None and self._compiler.portable and self.key is not None:
            self._lookup.job = self._described()
        return None

    def look(self) -> None:
        """Ask the store, and compile in another process where it has nothing. No torch."""
        self._lookup.look()

    def again(self) -> bool:
        """Look once more, in any thread; whether there is something to ``adopt`` now."""
        return self._lookup.look_again()

    def adopt(self) -> Callable[..., Any] | None:
        """Load what ``again`` found, and compile nothing."""
        if (made := self._lookup.made) is not None:
            return self._kept(made, self._compiler.adopt, self.seconds)
        artifact = self._lookup.artifact
        return None if artifact is None else self._load(artifact)

    def finish(self) -> Callable[..., Any]:
        """Load what was found, or compile here."""
        try:
            if self._lookup.postponed:
                self._lookup.look()
            self._raise()
            # Another thread may have had torch's lock before.
            return self._remembered() or self._found() or self._compiled()
        finally:
            self._lookup.end()

    def found(self) -> Callable[..., Any] | None:
        """Return what the store has, and compile nothing."""
        while True:
            artifact = self._lookup.fetch()
            run = None if artifact is None else self._load(artifact)
            if run is not None:
                return run
            if not self._lookup.next():
                break
        self._lookup.end()
        self._lookup.count_miss()
        return None

    def save(self, files: Mapping[str, bytes], seconds: float = 0.0) -> bool:
        """Store files under the first key, unless it is there already."""
        try:
            return self._lookup.save(files, seconds)
        finally:
            self._lookup.end()

    def keep(self, run: Callable[..., Any], guards: str = "", seconds: float = 0.0) -> None:
        """Keep a callable over all inputs of the graph in memory; ``seconds``: its compile's."""
        if self._tiers.memory is not None and self._lookup.key is not None:
            cached = Cached(run, guards, seconds, self._index)
            self._tiers.memory.store(self._lookup.key.hex(), cached)

    def _raise(self) -> None:
        if self._lookup.failure is not None:
            self._lookup.count_miss()
            raise self._lookup.failure

    def _remembered(self) -> Callable[..., Any] | None:
        memory = self._tiers.memory
        for key, _ in self._lookup.candidates:
            cached = None if memory is None else memory.lookup(key.hex())
            if cached is None or cached.index != self._index:
                continue
            if self._traced.admits(cached.guards):
                self._lookup.count_hit()
                return cached.run
        return None

    def _found(self) -> Callable[..., Any] | None:
        while (artifact := self._lookup.artifact) is not None:
            run = self._load(artifact)
            if run is not None:
                return run
            if self._lookup.artifact is not artifact:
                # It was broken: another one, or the right to make it, is in its place.
                continue
            # Not valid for these sizes: there is a key for them alone.
            if not self._lookup.next():
                return None
            self._lookup.look()
            self._raise()
        return None

    def _load(self, artifact: Artifact) -> Callable[..., Any] | None:
        started = time.monotonic()
        try:
            took = artifact.manifest.compile_seconds
            run = self._kept(artifact.files, self._compiler.load, took)
        except Exception as error:
            report.count("compilation.load_failed")
            report.log.warning("an entry does not load, compiled again: %s", error)
            self._lookup.discard(artifact)
            return None
        if run is None:
            return None
        self._tiers.counter.count("num_cache_hits")
        self._tiers.monitor.record_disk_cache_hit()
        self._tiers.monitor.record_cache_load_time(time.monotonic() - started)
        if self._tiers.store is not None:
            self._tiers.store.loaded(artifact.key)
        return run

    def _kept(
        self,
        files: Mapping[str, Any],
        load: Callable[..., Callable[..., Any] | None],
        seconds: float,
    ) -> Callable[..., Any] | None:
        run = load(files, self._traced.gm, self._traced.inputs, 0, self._shape)
        if run is not None:
            self.keep(run, bytes(files.get(standalone.GUARDS, b"")).decode(), seconds)
        return run

    def _compiled(self) -> Callable[..., Any]:
        made = self._lookup.made_meanwhile()
        run = None if made is None else self._kept(made, self._compiler.adopt, self.seconds)
        if run is not None:
            self._lookup.count_hit()
            return run
        self._lookup.count_miss()
        if self.elsewhere:
            run = self._kept(self._lookup.made or {}, self._compiler.adopt, self.seconds)
            if run is not None:
                return run
        started = time.monotonic()
        if self.key is None and self._traced.dynamo and self._compiler.portable:
            # For training, for example: only this way gives what it needs.
            run, handle = self._by_inductor(), None
        else:
            run, handle = self._by_compiler()
        self._lookup.seconds = time.monotonic() - started
        self._tiers.monitor.record_compilation_time(self.seconds)
        if handle is not None and self._compiler.portable:
            self._lookup.compiled(handle)
        guards = bytes((handle or {}).get(standalone.GUARDS, b"")).decode()
        self.keep(run, guards, self.seconds)
        return run

    def _by_inductor(self) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        self._tiers.counter.count("num_inductor_compiles")
        gm, patches = self._traced.gm, self._settings
        with self._traced.as_given() as inputs:
            return compile_fx(gm, inputs, config_patches=patches)

    def _by_compiler(self) -> tuple[Callable[..., Any], Any]:
        run, handle = self._compiler.compile(
            graph=self._traced.gm,
            example_inputs=self._traced.inputs,
            compiler_config=self._config,
            runtime_shape=self._shape,
            key=None if self.key is None else self.key.hex(),
        )
        assert run is not None
        return run, handle

    def _described(self) -> bytes | None:
        from . import job

        try:
            return job.describe(
                self._traced,
                compiler=self._compiler.name,
                config=dict(self._config),
                runtime_shape=self._shape,
                facts=dict(self._facts),
                namespace=self._tiers.namespace,
                keys=[key.hex() for key, _ in self._lookup.candidates],
            )
        except CompilationModuleError:
            raise
        except Exception as error:
            said_here(error)
            return None
