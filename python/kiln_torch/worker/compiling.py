"""One compile: a job in, the artifact's files out.

Invariant: it writes in the job's folder alone, and the options that it adds to the
request's decide where Inductor keeps things, not what it makes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .artifact import AHEAD_OF_TIME, CONSTANTS, FORMAT, META, MODULES, STANDALONE
from .examples import example_inputs
from .messages import Job
from .options import check_options
from .program import Program, read_program
from .rebuilt import rebuild
from .refused import TOOLCHAIN_MISSING, UNSUPPORTED_OP, Refused
from .toolchain import compilers, compute_capability, digest


def compile_program(job: Job, folder: Path) -> dict[str, bytes]:
    """The artifact's files by path. Leaves its own traces in `folder` alone."""
    import torch

    if job.compiler not in compilers():
        raise Refused(TOOLCHAIN_MISSING, f"torch {torch.__version__} has no {job.compiler}")
    if job.device == "cuda" and compute_capability() != job.compute:
        have = compute_capability()
        what = f"a GPU of compute capability {have}" if have else "no GPU"
        raise Refused(TOOLCHAIN_MISSING, f"the request is for gpu_{job.compute}; here is {what}")
    check_options(job.options)
    if job.graph:
        program = rebuild(job.graph, job.constants, job.device)
    else:
        program = read_program(job.archive, job.device)
    inputs, shapes = example_inputs(program, job.runtime_shape)
    if all(
        isinstance(node.op, str) and node.op != "call_function"
        for node in program.module.graph.nodes
    ):
        raise Refused(UNSUPPORTED_OP, "the program computes nothing: there is nothing to compile")
    path = folder / MODULES[job.compiler]
    run = standalone if job.compiler == STANDALONE else ahead_of_time
    # Parameters ask for gradients, and a graph for training would be compiled.
    with torch.no_grad():
        run(program, inputs, shapes, dict(job.options), path)
    guards = "" if job.runtime_shape else guards_of(program)
    files = {path.name: path.read_bytes(), META: meta(job, program, guards)}
    if program.constants:
        held = io.BytesIO()
        torch.save({name: t.cpu() for name, t in program.constants.items()}, held)
        files[CONSTANTS] = held.getvalue()
    return files


def standalone(
    program: Program, inputs: Sequence[Any], shapes: str, patches: dict[str, Any], path: Path
) -> None:
    """What ``standalone_compile`` saves, at ``path``."""
    from torch._inductor import standalone_compile

    # The artifact is made of what the compile put into Inductor's own cache.
    patches |= {"fx_graph_cache": True, "fx_graph_remote_cache": False}
    made = standalone_compile(
        program.module, list(inputs), dynamic_shapes=shapes, options={"config_patches": patches}
    )
    made.save(path=str(path), format="binary")


def ahead_of_time(
    program: Program, inputs: Sequence[Any], shapes: str, patches: dict[str, Any], path: Path
) -> None:
    """A package of AOTInductor, at ``path``."""
    import torch
    from torch._inductor.package import package_aoti

    del shapes  # the inputs say it
    if not all(isinstance(one, torch.Tensor) for one in inputs):
        raise Refused(UNSUPPORTED_OP, f"{AHEAD_OF_TIME} takes tensors alone, and one is a number")
    patches |= {"aot_inductor.package": True, "fx_graph_remote_cache": False}
    made = torch._inductor.aot_compile(program.module, tuple(inputs), options=patches)
    package_aoti(str(path), made)


def guards_of(program: Program) -> str:
    """What must hold of the inputs' sizes: the exported ranges, and what the compile added."""
    import torch

    dims = [d for f in program.fakes if isinstance(f, torch.Tensor) for d in f.shape]
    symbolic = [d for d in dims if isinstance(d, torch.SymInt)]
    if not symbolic:
        return ""
    environment = symbolic[0].node.shape_env
    return environment.produce_guards_expression(program.fakes) or ""


def meta(job: Job, program: Program, guards: str) -> bytes:
    """The artifact's description: what goes in and comes out, and how to load it."""
    import torch
    from torch._inductor.codecache import torch_key

    said = {
        "format": FORMAT,
        "compiler": job.compiler,
        "file": MODULES[job.compiler],
        "load": "kiln_torch.worker.load_artifact(FOLDER)",
        "torch": torch.__version__,
        "torch_key": digest(torch_key()),
        "device": job.device,
        "runtime_shape": job.runtime_shape,
        "options": job.options,
        "guards": guards,
        "inputs": program.inputs,
        "outputs": program.outputs,
        "constants": sorted(program.constants),
    }
    return json.dumps(said, indent=1).encode()
