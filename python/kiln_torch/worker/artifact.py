"""An artifact of Inductor: its files, and how any process runs them.

Invariant: it runs only with the very torch that made it, on inputs of sizes that
it was made for; parameters and buffers come from the caller.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

STANDALONE = "inductor-standalone"
AHEAD_OF_TIME = "inductor"
FORMAT = "kiln-inductor-1"
META = "meta.json"
CONSTANTS = "constants.pt"
MODULES = {STANDALONE: "artifact.bin", AHEAD_OF_TIME: "model.pt2"}


class Loaded:
    """An artifact, ready to run. Called with its inputs in order, constants left out."""

    def __init__(
        self, run: Callable[..., Any], meta: dict[str, Any], constants: dict[str, Any]
    ) -> None:
        """Take what ``load_artifact`` read."""
        self.meta = meta
        self._run = run
        self._constants = constants
        self.inputs = [i for i in meta["inputs"] if i["target"] not in constants]

    def __call__(self, *inputs: Any) -> list[Any]:
        """Run it; the outputs in order."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(i["name"] for i in self.inputs)
            raise TypeError(f"{len(inputs)} inputs for {len(self.inputs)}: {names}")
        given = iter(inputs)
        ordered = [
            self._constants[i["target"]] if i["target"] in self._constants else next(given)
            for i in self.meta["inputs"]
        ]
        if guards := self.meta["guards"]:
            from torch.fx.experimental.symbolic_shapes import ShapeEnv

            if not ShapeEnv().evaluate_guards_expression(guards, ordered):
                raise ValueError(f"the artifact is not for inputs of these sizes: {guards}")
        return list(self._run(*ordered))

    def bind(self, state: Mapping[str, Any] | Sequence[Any]) -> Callable[..., list[Any]]:
        """A function of the user's inputs alone, with parameters and buffers from `state`.

        By name, or in the graph's order. Names are those of the program that was compiled
        first: a renamed module has the same artifact, and gives its state in order.
        """
        held = [i for i in self.inputs if i["kind"] in ("parameter", "buffer")]
        if isinstance(state, Mapping):
            missing = [i["target"] for i in held if i["target"] not in state]
            if missing:
                raise KeyError(f"the state lacks {', '.join(missing)}")
            state = [state[i["target"]] for i in held]
        if len(state) != len(held):
            raise TypeError(f"{len(state)} tensors of state for {len(held)}")
        known = {i["name"]: tensor for i, tensor in zip(held, state)}
        buffers = {i["target"]: tensor for i, tensor in zip(held, state)}
        outputs = self.meta["outputs"]

        def bound(*inputs: Any) -> list[Any]:
            given = iter(inputs)
            made = self(
                *[known[i["name"]] if i["name"] in known else next(given) for i in self.inputs]
            )
            for said, value in zip(outputs, made):
                if said["kind"] == "buffer_mutation":
                    buffers[said["target"]].copy_(value)
            return [v for said, v in zip(outputs, made) if said["kind"] == "user_output"]

        return bound


def load_artifact(folder: str | os.PathLike[str]) -> Loaded:
    """Loads what a node's Inductor made, in any process and folder with the same torch.

    The files are code: load only what came from a node through a checked manifest.
    """
    import torch

    folder = Path(folder)
    meta = json.loads((folder / META).read_text())
    if meta.get("format") != FORMAT:
        found = meta.get("format")
        raise ValueError(
            f"{folder} has an artifact of {found!r}, and this Kiln reads {FORMAT!r}: "
            "load it with the version that wrote it, or compile it again"
        )
    if meta["torch"] != torch.__version__:
        raise RuntimeError(f"made by torch {meta['torch']}, and this is {torch.__version__}")
    constants = {}
    if meta["constants"]:
        held = torch.load(folder / CONSTANTS, weights_only=True)
        constants = {name: held[name].to(meta["device"]) for name in meta["constants"]}
    path = str(folder / meta["file"])
    if meta["compiler"] == STANDALONE:
        from torch._inductor.standalone_compile import CompiledArtifact

        run = CompiledArtifact.load(path=path, format="binary")
    else:
        package = torch._inductor.aoti_load_package(path)

        def run(*inputs: Any) -> Any:
            return package.loader.boxed_run(list(inputs))

    return Loaded(run, meta, constants)
