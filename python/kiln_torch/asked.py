"""What is asked of the cluster for one graph: the components of its key.

Invariant: everything that decides the code is in them, or the graph is refused. A
graph for the current GPU alone has one key on all of them: its artifact is placed
where it is loaded (``placing.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import devices, graph, placing, standalone
from .graph import Unkeyable
from .key import FINGERPRINT, GRAPH, INPUTS, NAMESPACE, OPTIONS, TARGET, Component, Field
from .manifest import Fingerprint
from .options import COMPILER, device_types, options, target_of, versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Changes with the meaning of the files, or of the forms that enter the key.
_FORM = "dynamo-1"


class Asked:
    """A graph, under Inductor's settings in force."""

    def __init__(
        self,
        gm: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        namespace: str,
        *,
        form: str,
        guarded: bool,
        facts: Mapping[str, str],
        merge: bool = True,
    ) -> None:
        """Describe it; ``Unkeyable`` where that cannot be done in full.

        ``guarded``: the artifact's guards on sizes go with it. ``facts``: what else
        decides the output. ``merge``: ranks may share it, where KILN_RANKS says so.
        """
        met = devices.Devices()
        structure, inputs = graph.form(gm, guarded=guarded, devices=met)
        # The GPU on which the artifact runs wherever it was made; ``None``: as it was made.
        self.index = placing.index_of(gm, example_inputs) if merge else None
        types = device_types(gm)
        told = dict(versions(types))
        self.target = target_of(example_inputs, types)
        self.fingerprint = Fingerprint.of(COMPILER, told)
        self.label = f"torch.compile, {len(gm.graph.nodes)} nodes, {'+'.join(sorted(types))}"
        self.sizes = standalone.symbolic_sizes(gm)
        described = Field.of_bytes("inputs", inputs)
        # On the GPUs that it was traced on; before, where that is one, on any.
        own = [Field("device", ",".join(met.met))] if met.met else []
        self._inputs = [(described, *own)]
        if self.index is not None:
            self._inputs.insert(0, (described, Field("device", "current")))
        settings = Field.of_bytes("inductor", options(gm, example_inputs))
        more = (Field(name, value) for name, value in sorted(facts.items()))
        self._components = (
            Component(GRAPH, (Field("form", form), Field.of_bytes("structure", structure))),
            Component(INPUTS, self._inputs[0]),
            Component(OPTIONS, (settings, *more)),
            Component.of(FINGERPRINT, compiler=COMPILER, **told),
            Component.of(TARGET, target=str(self.target)),
            Component.of(NAMESPACE, namespace=namespace),
        )

    @classmethod
    def of_dynamo(
        cls, gm: torch.fx.GraphModule, example_inputs: Sequence[Any], namespace: str
    ) -> Asked:
        """Ask for what Dynamo hands to a backend."""
        _refuse(gm)
        return cls(gm, example_inputs, namespace, form=_FORM, guarded=True, facts={})

    def candidates(self) -> Iterator[tuple[Component, ...]]:
        """Yield the components for any sizes, then those for the sizes of this process.

        The second key is for sizes at which the first one's artifact is not valid. More
        of them are for where that cannot be placed on this process's GPU.
        """
        for inputs in self._inputs:
            yield self._with(inputs)
            if self.sizes:
                now = ",".join(map(str, standalone.hints(self.sizes)))
                yield self._with((*inputs, Field("sizes", now)))

    def _with(self, inputs: tuple[Field, ...]) -> tuple[Component, ...]:
        described = Component(INPUTS, inputs)
        return tuple(described if each.name == INPUTS else each for each in self._components)


def _refuse(gm: torch.fx.GraphModule) -> None:
    """Leave to Inductor's own path what a standalone artifact cannot give back."""
    config = torch._inductor.config
    if config.triton.cudagraphs:
        raise Unkeyable("CUDA graphs are recorded by the process that compiles")
    if config.force_disable_caches:
        raise Unkeyable("caches are disabled")
    refuse_graph(gm)


def refuse_graph(gm: torch.fx.GraphModule, *, overlap: bool = False) -> None:
    """Refuse a graph whose code an artifact cannot stand for, whatever the settings.

    ``overlap``: its inputs may share memory, because it writes to none of them.
    """
    held = [value for node in gm.graph.nodes if (value := _tensor(node)) is not None]
    switched = any(_switches_grad(node) for node in gm.graph.nodes)
    if any(value.requires_grad for value in held) and (torch.is_grad_enabled() or switched):
        raise Unkeyable("the graph needs gradients")
    if any(node.target in ("requires_grad_", "requires_grad") for node in gm.graph.nodes):
        raise Unkeyable("the graph turns gradients on")
    if not overlap and len({value.untyped_storage()._cdata for value in held}) < len(held):
        # Where one of them is written to, the code depends on how they overlap.
        raise Unkeyable("inputs share their memory")


def _tensor(node: torch.fx.Node) -> torch.Tensor | None:
    value = graph.value_of(node) if node.op == "placeholder" else None
    return value if isinstance(value, torch.Tensor) else None


def _switches_grad(node: torch.fx.Node) -> bool:
    return "grad_enabled" in getattr(node.target, "__name__", "")
