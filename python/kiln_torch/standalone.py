"""Inductor's standalone artifacts as files: compile, save, check, load.

Invariant: an artifact loads only where the guards that its compile added to the
sizes hold, and they are then guards here as well; one without files is none.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .graph import Unkeyable, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import fx

# What torch saves, and the condition on symbolic sizes under which it is valid.
BINARY = "standalone.bin"
GUARDS = "guards"
# `standalone_compile` sets it: each kernel runs once more, on made-up inputs, for the
# artifact to hold the fastest of its variants.
_TUNE = "triton.autotune_at_compile_time"
# Inductor's settings that give a kernel of its own several variants.
_VARIANTS = ("max_autotune", "max_autotune_pointwise", "coordinate_descent_tuning")


class Unsaveable(Exception):
    """It was compiled, but torch cannot save the result."""


@contextlib.contextmanager
def own_keys_off() -> Iterator[None]:
    """Compile under one key, one lease and one artifact: ours.

    Under torch's own keys it would be serialised, leased and published twice more.
    """
    with (
        torch._inductor.config.patch(fx_graph_remote_cache=False),
        torch._functorch.config.patch(enable_remote_autograd_cache=False),
    ):
        yield


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> Any:
    """Compile ``gm``, a graph that Dynamo is tracing now, for other processes as well."""
    from torch._inductor import standalone_compile

    environment = _environment()
    traced = _as_dynamo_traced(example_inputs)
    known, taken = set(environment.backed_var_to_val), len(environment.guards)
    # Sizes that are symbols belong to Dynamo's shape environment: it takes the guards.
    with own_keys_off():
        compiled = standalone_compile(
            gm,
            list(example_inputs),
            dynamic_shapes="from_tracing_context",
            options={"config_patches": {_TUNE: _tunes(gm, patches), **patches}},
        )
    del traced
    # But Inductor makes symbols of its own there (seen with torch 2.11 on a GPU), of
    # which Dynamo knows no source: it would fail to guard on them, after we returned.
    added = environment.guards[taken:]
    environment.guards[taken:] = [g for g in added if g.expr.free_symbols <= known]
    return compiled


def _as_dynamo_traced(inputs: Sequence[Any]) -> list[torch.Tensor]:
    """Make the fake tensors of ``inputs``, with the sizes that Dynamo knows to be fixed.

    `standalone_compile` begins a tracing context of its own, in which all are unknown: each
    would be a symbol until the first operation that fixes it. Inductor takes these instead
    while they live, as the tracing mode remembers them.
    """
    context = torch._guards.TracingContext.get()
    known = ((each, context.tensor_to_context.get(each)) for each in _tensors(inputs))
    return [
        context.fake_mode.from_tensor(
            each, symbolic_context=sizes, source=sizes.tensor_source, trace=False
        )
        for each, sizes in known
        if sizes is not None
    ]


def _tensors(inputs: Sequence[Any]) -> Iterator[torch.Tensor]:
    return (each for each in inputs if isinstance(each, torch.Tensor))


def _tunes(gm: fx.GraphModule, patches: Mapping[str, Any]) -> bool:
    """Whether a kernel of ``gm`` may have variants to choose from: else there is no use in it."""
    config = torch._inductor.config
    if config.triton.autotune_at_compile_time is not None:
        return config.triton.autotune_at_compile_time
    if any(patches.get(name, getattr(config, name)) for name in _VARIANTS):
        return True
    # Kernels of the user's have those that they were written with.
    modules = (each for each in gm.modules() if isinstance(each, torch.fx.GraphModule))
    nodes = (node for module in modules for node in module.graph.nodes)
    return any("triton_kernel_wrapper" in str(node.target) for node in nodes)


def save(compiled: Any, gm: fx.GraphModule) -> dict[str, bytes]:
    """Return the files of what ``compile_graph`` made."""
    files = {BINARY: binary(compiled)}
    if sizes := symbolic_sizes(gm):
        environment = _environment()
        guards = environment.get_pruned_guards(sizes)
        said = environment.produce_guards_expression(placeholders=sizes, guards=guards)
        if said:
            files[GUARDS] = said.encode()
    return files


def load(files: Mapping[str, Any], gm: fx.GraphModule) -> Callable[..., Any] | None:
    """Return the callable, or ``None`` where its guards do not hold; raises if it is broken."""
    binary = files.get(BINARY)
    if binary is None or not len(binary):
        raise ValueError("the artifact is empty")
    sizes = symbolic_sizes(gm)
    guards = bytes(files.get(GUARDS, b"")).decode()
    if guards and not _hold(guards, sizes):
        return None
    loaded = load_binary(bytes(binary))
    if guards:
        # Again with the symbols: what the code assumes becomes Dynamo's guard when it
        # is asked whether it is true.
        bool(_environment().evaluate_guards_expression(guards, sizes))
    return loaded


def load_binary(binary: bytes) -> Callable[..., Any]:
    """Load what torch saved, without a look at guards; raises where torch is another one."""
    from torch._inductor.standalone_compile import CompiledArtifact

    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        path = Path(folder, BINARY)
        path.write_bytes(binary)
        return CompiledArtifact.load(path=str(path), format="binary")


def symbolic_sizes(gm: fx.GraphModule) -> list[torch.SymInt]:
    """Return the graph's inputs that are symbolic sizes, in order."""
    values = (value_of(node) for node in gm.graph.nodes if node.op == "placeholder")
    return [value for value in values if isinstance(value, torch.SymInt)]


def hints(sizes: Sequence[torch.SymInt]) -> list[int]:
    """Return the sizes that this process has now."""
    found = [size.node.hint for size in sizes]
    if None in found:
        raise Unkeyable("a size without a hint")
    return [int(hint) for hint in found]


def _hold(guards: str, sizes: Sequence[torch.SymInt]) -> bool:
    return bool(_environment().evaluate_guards_expression(guards, hints(sizes)))


def _environment() -> Any:
    return torch._guards.TracingContext.get().fake_mode.shape_env


def binary(compiled: Any) -> bytes:
    """Return what ``compile_graph`` made as torch saves it."""
    if hasattr(compiled, "is_saveable") and not compiled.is_saveable():
        raise Unsaveable("torch made no artifact of it")
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        path = Path(folder, BINARY)
        compiled.save(path=str(path), format="binary")
        return path.read_bytes()
