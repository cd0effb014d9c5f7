"""``torch.compile(model, backend="kiln")``: compiled once in the cluster.

Asks for the artifact of the graph's key. A hit is loaded, without Inductor. A
miss takes the lease, compiles with ``standalone_compile`` and publishes; others
that miss meanwhile wait for that. What no key says in full (``Unkeyable``), and
graphs that need gradients, compile as ``backend="inductor"`` does, its remote
caches included; see ``bypassed`` for the counters.

Invariant: the result is what Inductor gives under equal options, and nothing but
Inductor's own error ever leaves: a cluster that is dead, slow or wrong costs a
compile here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

# Here, as `torch.compile` itself imports it for Inductor, before the first call.
from torch._inductor.compile_fx import compile_fx

from . import bypassed, placing, report, standalone
from .asked import Asked
from .client import Client
from .graph import Unkeyable
from .key import key_of
from .manifest import Artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .key import Component
    from .lease import Lease


def kiln(
    gm: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile for Dynamo; ``mode`` and ``options`` are those of ``backend="inductor"``."""
    compile_ = _Compile(gm, example_inputs, _patches(mode, options))
    try:
        found = compile_.through_cluster()
    except Unkeyable as reason:
        bypassed.count(str(reason))
        report.log.info("compiled without the cluster: %s", reason)
        found = None
    except Exception as error:
        report.count("backend.failed")
        report.once(f"backend {type(error).__name__}", "compiled without the cluster: %r", error)
        found = None
    return found or compile_.by_inductor()


class _Compile:
    """One graph, with its inputs and Inductor's options."""

    def __init__(
        self, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: dict[str, Any]
    ) -> None:
        self._gm = gm
        self._inputs = example_inputs
        self._patches = patches

    def by_inductor(self) -> Callable[..., Any]:
        return compile_fx(self._gm, self._inputs, config_patches=self._patches)

    def through_cluster(self) -> Callable[..., Any] | None:
        client = Client.from_env()
        if client is None:
            return None
        with torch._inductor.config.patch(self._patches):
            asked = Asked.of_dynamo(self._gm, self._inputs, client.namespace)
        for components in asked.candidates():
            answer = client.acquire(key_of(components), client.settings.wait)
            if answer is None:
                return None
            if not isinstance(answer, Artifact):
                return self._make(client, answer, components, asked)
            loaded = self._load(client, answer, asked.index)
            if loaded is not None:
                return loaded
        return None

    def _load(
        self, client: Client, artifact: Artifact, index: int | None
    ) -> Callable[..., Any] | None:
        place: placing.Place | None = None
        try:
            with placing.on(index) as place:
                loaded = standalone.load(artifact.files, self._gm)
        except Exception as error:
            if place is not None and place.refused:
                report.count("backend.not_placed")
                return None
            report.count("backend.load_failed")
            report.once("backend load", "an artifact does not load, compiled here: %r", error)
            return None
        if loaded is None:
            report.count("backend.guards_failed")
            return None
        report.count("backend.loaded")
        client.loaded([artifact.key])
        return _callable(loaded)

    def _make(
        self, client: Client, lease: Lease, components: tuple[Component, ...], asked: Asked
    ) -> Callable[..., Any]:
        started = time.monotonic()
        try:
            compiled = standalone.compile_graph(self._gm, self._inputs, self._patches)
        except BaseException:
            lease.release()
            raise
        seconds = time.monotonic() - started
        report.count("backend.compiled")
        try:
            # Here, while Dynamo's sizes are at hand; torch serialised the code when it
            # compiled it, so that these are the bytes of what runs.
            files = standalone.save(compiled, self._gm)
        except Exception as error:
            # It runs here all the same.
            lease.release()
            report.count("backend.unsaveable")
            report.log.info("compiled, but not for others: %s", error)
        else:
            client.publish_later(
                lease,
                components,
                files,
                fingerprint=asked.fingerprint,
                target=asked.target,
                label=asked.label,
                seconds=seconds,
            )
        return _callable(compiled)


def _callable(compiled: Any) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return compiled(*args)

    return run


def _patches(mode: str | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge as ``backend="inductor"`` does: a mode, then single options."""
    patches: dict[str, Any] = {}
    if mode is not None and mode != "default":
        patches.update(torch._inductor.list_mode_options(mode))
    patches.update({name.replace("-", "_"): value for name, value in (given or {}).items()})
    return patches
