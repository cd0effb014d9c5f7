"""Inductor's standalone artifacts as files: compile, save, check, load.

Invariant: an artifact loads only where the guards that its compile added to the
sizes hold, and they are then guards here as well; one without files is none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .graph import Unkeyable, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

# What torch saves, and the condition on symbolic sizes under which it is valid.
BINARY = "standalone.bin"
GUARDS = "guards"


class Unsaveable(Exception):
    """It was compiled, but torch cannot save the result."""


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> Any:
    """Compile ``gm``, a graph that Dynamo is tracing now, for other processes as well."""
    from torch._inductor import standalone_compile

    environment = _environment()
    known, taken = set(environment.backed_var_to_val), len(environment.guards)
    # Sizes that are symbols belong to Dynamo's shape environment: it takes the guards.
    # One key, one lease and one artifact for it: under torch's own keys it would be
    # serialised, leased and published twice more.
    own_keys_off = (
        torch._inductor.config.patch(fx_graph_remote_cache=False),
        torch._functorch.config.patch(enable_remote_autograd_cache=False),
    )
    with own_keys_off[0], own_keys_off[1]:
        compiled = standalone_compile(
            gm,
            list(example_inputs),
            dynamic_shapes="from_tracing_context",
            options={"config_patches": dict(patches)},
        )
    # But Inductor makes symbols of its own there (seen with torch 2.11 on a GPU), of
    # which Dynamo knows no source: it would fail to guard on them, after we returned.
    added = environment.guards[taken:]
    environment.guards[taken:] = [g for g in added if g.expr.free_symbols <= known]
    return compiled


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
