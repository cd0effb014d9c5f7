"""Launch plans of the native compiler (``src/compiler/native/plan.rs``), read and checked.

Invariant: a plan that was read hangs together: its kernels name inputs, outputs
and scratch memory that exist.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

VERSION = 1
# What every tensor that the caller holds must be aligned to, in bytes.
ALIGNMENT = 16
CONSTANT = "constant"


class BrokenArtifact(ValueError):
    """Fetch it again, or compile it again."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that the caller holds."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One launch; ``args`` are places ("input", 3), ("output", 0), ("workspace", 512)."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    args: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """How to run a module."""

    target: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace_bytes: int
    kernels: tuple[Kernel, ...]


def read(data: bytes) -> Plan:
    """Read ``plan.json``."""
    try:
        told = json.loads(data)
        if told["version"] != VERSION:
            raise BrokenArtifact(f"plan.json: version {told['version']}, not {VERSION}")
        plan = Plan(
            target=told["target"],
            inputs=tuple(_tensor(each) for each in told["inputs"]),
            outputs=tuple(_tensor(each) for each in told["outputs"]),
            workspace_bytes=int(told["workspace_bytes"]),
            kernels=tuple(_kernel(each) for each in told["kernels"]),
        )
    except BrokenArtifact:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenArtifact(f"plan.json cannot be read: {error!r}") from error
    for kernel in plan.kernels:
        if not (
            all(kernel.grid) and all(kernel.block) and all(_exists(plan, a) for a in kernel.args)
        ):
            raise BrokenArtifact(f"plan.json: kernel {kernel.name} cannot be launched")
    return plan


def runs_on(target: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for ``target`` runs there: its architecture, or a later minor one."""
    digits = target.removeprefix("sm_").removesuffix("a")
    if not target.startswith("sm_") or not digits.isdecimal():
        raise BrokenArtifact(f"target {target!r} is not machine code")
    wanted, here = int(digits), 10 * capability[0] + capability[1]
    if target.endswith("a"):
        return wanted == here
    return wanted // 10 == here // 10 and wanted <= here


def _tensor(told: dict[str, Any]) -> Tensor:
    shape, strides = tuple(told["shape"]), tuple(told["strides"])
    return Tensor(told["name"], told["kind"], told["dtype"], shape, strides)


def _kernel(told: dict[str, Any]) -> Kernel:
    (gx, gy, gz), (bx, by, bz) = told["grid"], told["block"]
    places = tuple((kind, int(at)) for each in told["args"] for kind, at in each.items())
    return Kernel(told["name"], (gx, gy, gz), (bx, by, bz), told["shared_bytes"], places)


def _exists(plan: Plan, place: tuple[str, int]) -> bool:
    kind, at = place
    if kind == "input":
        return at < len(plan.inputs) and plan.inputs[at].kind != CONSTANT
    if kind == "output":
        return at < len(plan.outputs)
    return kind == "workspace" and at < plan.workspace_bytes
