"""One graph's way through the tiers: memory, disk or cluster, then the compiler.

``begin`` and ``finish`` use torch, whose compiler state belongs to the process:
they run in the caller's thread. ``look`` uses none, so that many can look, wait
for others and compile in processes of their own at once.
Invariant: a permit is published under or released before anything else is waited
for, so that two processes never wait for each other; each request counts one hit
or one miss.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .. import report, standalone
from ..graph import Unkeyable
from ..key import key_of
from ..manifest import Artifact
from .errors import CompilationModuleError
from .keys import ask
from .memory import Cached
from .pool import Unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..asked import Asked
    from ..key import Component
    from .interface import CompilerInterface
    from .store import Permit
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
    ) -> None:
        """Take what is asked; ``config``: the caller's options for the compiler."""
        self._tiers = tiers
        self._compiler = compiler
        self._traced = traced
        self._config = config
        self._shape = runtime_shape
        self._facts = facts
        self._settings = compiler.merged_config(config, runtime_shape)
        self._asked: Asked | None = None
        self._candidates: list[tuple[bytes, tuple[Component, ...]]] = []
        self._at = 0
        self._answer: Artifact | Permit | None = None
        self._job: bytes | None = None
        # What another process made.
        self._made: Mapping[str, bytes] | None = None
        self._failure: Exception | None = None
        self._postponed = False
        # Whether no cache had it.
        self.missed = False
        # Seconds that its compile took, here or in another process; 0 for a hit.
        self.seconds = 0.0

    @property
    def key(self) -> bytes | None:
        """The key; ``None`` where there is none."""
        return self._candidates[0][0] if self._candidates else None

    def describe(self) -> bool:
        """Find the key; ``False``: there is none."""
        try:
            self._asked = ask(
                self._traced, self._compiler, self._settings, self._facts, self._tiers.namespace
            )
            self._candidates = [(key_of(each), each) for each in self._asked.candidates()]
        except Unkeyable as reason:
            report.count("compilation.bypassed")
            report.log.info("compiled without a cache: %s", reason)
        return bool(self._candidates)

    @property
    def sent(self) -> bool:
        """Whether another process compiles it, as far as is known."""
        return self._job is not None

    @property
    def elsewhere(self) -> bool:
        """Whether another process compiled it."""
        return self._made is not None

    def begin(self) -> Callable[..., Any] | None:
        """Find the key, and look in memory."""
        return self.in_memory() if self.describe() else None

    def in_memory(self) -> Callable[..., Any] | None:
        """Return what this process has already; else make ready for ``look``."""
        memory = self._tiers.memory
        for key, _ in self._candidates:
            cached = None if memory is None else memory.lookup(key.hex())
            if cached is not None and self._traced.admits(cached.guards):
                self._tiers.counter.count("num_cache_hits")
                self._tiers.monitor.record_memory_cache_hit()
                return cached.run
        if self._tiers.pool is not None and self._compiler.portable and self._candidates:
            self._job = self._described()
        return None

    def look(self) -> None:
        """Ask the store, and compile in another process where it has nothing. No torch."""
        try:
            self._seek()
            if not isinstance(self._answer, Artifact):
                self._compile_elsewhere()
        except Exception as error:
            # ``finish`` raises it, in the caller's thread.
            self._failure = error

    def finish(self) -> Callable[..., Any]:
        """Load what was found, or compile here."""
        try:
            if self._postponed:
                self._postponed = False
                self.look()
            if self._failure is not None:
                raise self._failure
            return self._found() or self._compiled()
        finally:
            self._release()

    def found(self) -> Callable[..., Any] | None:
        """Return what the store has, and compile nothing."""
        store = self._tiers.store
        for at, (key, _) in enumerate(self._candidates):
            if store is None:
                break
            self._at = at
            self._answer = self._tiers.checked(key, store.fetch, self._asked)
            if isinstance(self._answer, Artifact):
                run = self._load(self._answer)
                if run is not None:
                    return run
        self._count_miss()
        return None

    def save(self, files: Mapping[str, bytes], seconds: float = 0.0) -> bool:
        """Store files under the first key, unless it is there already."""
        store = self._tiers.store
        if store is None or self._asked is None:
            return False
        key, components = self._candidates[0]
        permit = self._tiers.checked(key, store.acquire, self._asked)
        if permit is None or isinstance(permit, Artifact):
            return False
        try:
            return self._published(permit, components, files, seconds)
        finally:
            permit.release()

    def keep(self, run: Callable[..., Any], guards: str = "") -> None:
        """Keep a callable over all inputs of the graph in memory."""
        if self._tiers.memory is not None and self._candidates:
            self._tiers.memory.store(self._candidates[self._at][0].hex(), Cached(run, guards))

    def _seek(self) -> None:
        store = self._tiers.store
        self._answer = None
        if store is not None and self._at < len(self._candidates) and self._compiler.portable:
            self._answer = self._tiers.checked(
                self._candidates[self._at][0], store.acquire, self._asked
            )

    def _found(self) -> Callable[..., Any] | None:
        while self._candidates:
            if isinstance(self._answer, Artifact):
                run = self._load(self._answer)
                if run is not None:
                    return run
            if not isinstance(self._answer, Artifact) or self._at + 1 >= len(self._candidates):
                return None
            # Not valid for these sizes: there is a key for them alone.
            self._at += 1
            self.look()
            if self._failure is not None:
                raise self._failure
        return None

    def _load(self, artifact: Artifact) -> Callable[..., Any] | None:
        started = time.monotonic()
        try:
            run = self._kept(artifact.files, self._compiler.load)
        except Exception as error:
            report.count("compilation.load_failed")
            report.log.warning("an entry does not load, compiled again: %s", error)
            self._tiers.counter.count("num_cache_corrupted")
            store = self._tiers.store
            if self._tiers.discard(artifact.key) and store is not None:
                self._answer = self._tiers.checked(artifact.key, store.acquire, self._asked)
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
        self, files: Mapping[str, Any], load: Callable[..., Callable[..., Any] | None]
    ) -> Callable[..., Any] | None:
        run = load(files, self._traced.gm, self._traced.inputs, 0, self._shape)
        if run is not None:
            self.keep(run, bytes(files.get(standalone.GUARDS, b"")).decode())
        return run

    def _compile_elsewhere(self) -> None:
        pool = self._tiers.pool
        if pool is None or self._job is None:
            return
        try:
            made = pool.compile(self._job, self._tiers.timeout)
        except CompilationModuleError:
            self._count_miss()
            raise
        except Unfit as why:
            # Until it is compiled here, by ``finish``, others may: a permit is never
            # held by who waits for something else.
            self._release()
            self._job, self._postponed = None, True
            _said_here(why)
            return
        self._count_miss()
        files, self.seconds = made
        self._made = files
        self._tiers.counter.count("num_inductor_compiles")
        self._tiers.monitor.record_compilation_time(self.seconds)
        self._publish(files)

    def _compiled(self) -> Callable[..., Any]:
        self._count_miss()
        if self._made is not None:
            run = self._kept(self._made, self._compiler.adopt)
            if run is not None:
                return run
        started = time.monotonic()
        if self._asked is None and self._traced.dynamo and self._compiler.portable:
            # For training, for example: only this way gives what it needs.
            run, handle = self._by_inductor(), None
        else:
            run, handle = self._by_compiler()
        self.seconds = time.monotonic() - started
        self._tiers.monitor.record_compilation_time(self.seconds)
        if handle is not None and self._asked is not None and self._compiler.portable:
            self._publish(handle)
        self.keep(run, bytes((handle or {}).get(standalone.GUARDS, b"")).decode())
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

    def _publish(self, files: Mapping[str, bytes]) -> None:
        permit = self._answer
        if permit is None or isinstance(permit, Artifact):
            return
        self._answer = None
        try:
            self._published(permit, self._candidates[self._at][1], files, self.seconds)
        finally:
            permit.release()

    def _published(
        self,
        permit: Permit,
        components: tuple[Component, ...],
        files: Mapping[str, bytes],
        seconds: float,
    ) -> bool:
        assert self._asked is not None
        done = permit.publish(components, files, self._asked, seconds)
        if done:
            self._tiers.counter.count("num_compiled_artifacts_saved")
        return done

    def _release(self) -> None:
        permit, self._answer = self._answer, None
        if permit is not None and not isinstance(permit, Artifact):
            permit.release()

    def _count_miss(self) -> None:
        # With the cache switched off nothing was looked up.
        if not self.missed and self._tiers.memory is not None:
            self._tiers.counter.count("num_cache_misses")
            self._tiers.monitor.record_cache_miss()
        self.missed = True

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
                keys=[key.hex() for key, _ in self._candidates],
            )
        except CompilationModuleError:
            raise
        except Exception as error:
            _said_here(error)
            return None


def _said_here(why: Exception) -> None:
    """Say that a compile was for another process, and is done in this one."""
    report.count("compilation.here")
    report.once(f"here {type(why).__name__}", "compiled in this process, one by one: %r", why)
    report.log.info("compiled in this process: %r", why)
