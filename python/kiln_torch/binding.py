"""Inputs of a loaded graph by the names that its program and its module have for them.

Invariant: a name that is not known is an error that says so; no input is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .sizes import BrokenArtifact

# Of signature.json.
VERSION = 1

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .plan import Plan


def names_of(told: Plan, signature: bytes | None) -> list[list[str]] | None:
    """Return, for each input that is given, its names in the graph and in the module."""
    if signature is None:
        return None
    try:
        said = json.loads(signature)
        if said["version"] != VERSION:
            raise BrokenArtifact(f"signature.json: version {said['version']}, not {VERSION}")
        inputs = said["inputs"]
        names = [
            [each["name"], *([each["target"]] if each.get("target") else [])] for each in inputs
        ]
    except BrokenArtifact:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenArtifact(f"signature.json cannot be read: {error!r}") from error
    if len(names) != len(told.inputs):
        raise BrokenArtifact(f"signature.json: {len(names)} inputs, not {len(told.inputs)}")
    return [names[at] for at in told.given]


def named(told: Plan, names: Sequence[Sequence[str]] | None) -> Plan:
    """Return the plan with the program's own names, where they are known: for messages."""
    if names is None:
        return told
    own = dict(zip(told.given, names))
    inputs = [
        replace(tensor, name=own[at][0]) if at in own else tensor
        for at, tensor in enumerate(told.inputs)
    ]
    return replace(told, inputs=tuple(inputs))


def by_name(
    told: Plan, names: Sequence[Sequence[str]] | None, state: Any
) -> dict[int, torch.Tensor]:
    """Return the parameters and buffers of ``state``, by the position at which they are given.

    ``state``: a ``state_dict``, an ``nn.Module`` or an ``ExportedProgram``.
    """
    known = state
    if hasattr(state, "graph_signature"):
        specs = [each for each in state.graph_signature.input_specs if each.arg is not None]
        everything = [[each.arg.name, *([each.target] if each.target else [])] for each in specs]
        if len(everything) == len(told.inputs):
            names = [everything[at] for at in told.given]
        known = {**state.constants, **state.state_dict}
    elif isinstance(state, torch.nn.Module):
        known = {
            **dict(state.named_parameters(remove_duplicate=False)),
            **dict(state.named_buffers(remove_duplicate=False)),
        }
    elif not isinstance(state, Mapping):
        raise TypeError(f"bind takes tensors or what names them, not {type(state).__name__}")
    if names is None:
        raise KeyError(
            "the artifact has no signature.json, which has the names: write it by "
            "`kiln compile -o`, or give an ExportedProgram, or tensors in order"
        )
    fixed, missing = {}, []
    for position, at in enumerate(told.given):
        kind = told.inputs[at].kind
        found = [known[name] for name in names[position] if name in known]
        if found and not (kind == "user" and hasattr(state, "graph_signature")):
            fixed[position] = found[0]
        elif kind != "user":
            missing.append(names[position][-1])
    if missing:
        raise KeyError(f"no tensor for {', '.join(missing)}")
    return fixed
