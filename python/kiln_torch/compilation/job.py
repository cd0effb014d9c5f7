"""A compile as bytes, for a process that does nothing else.

The other process builds the graph again under the same settings, and finds its
key; a key that differs says that something was not carried over.
Invariant: what it gives back has the key that was asked for, or it is ``Unfit``.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

from ..graph import Unkeyable
from ..key import key_of
from .counter import CompilationCounter
from .pool import Unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .traced import Traced


def describe(traced: Traced, **asked: Any) -> bytes:
    """Write down a compile. Raises where the graph holds what cannot be sent."""
    from . import plain_graph

    if any(_reads_number(node) for node in traced.gm.graph.nodes):
        # Dynamo knows the number that it reads; only here can it be asked.
        raise Unkeyable("it reads a number from a tensor")
    return pickle.dumps(
        {
            **asked,
            "dynamo": traced.dynamo,
            "graph": plain_graph.write(traced.gm),
            "state": _state(),
        }
    )


def perform(job: bytes) -> dict[str, bytes]:
    """Compile; return the files. ``Unfit``: this process is not like the one that asked.

    ``job`` came from the process that started this one, through its own pipe.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from . import plain_graph
    from .keys import ask
    from .making import make_named
    from .traced import Traced
    from .tracing import restarts

    mode = FakeTensorMode(shape_env=ShapeEnv())
    try:
        told = pickle.loads(job)  # noqa: S301 - our own parent's
        _restore(told["state"])
        gm = plain_graph.read(told["graph"], mode)
    except MemoryError:
        # Elsewhere there may be more, and is none to be taken.
        raise
    except Exception as error:
        # It names what is only there: a function of its main module, for example.
        raise Unfit(f"it cannot be read: {error!r}") from error
    traced = Traced(gm, mode, dynamo=told["dynamo"])
    compiler = make_named(told["compiler"], CompilationCounter())
    with traced.context(), torch.no_grad():
        settings = compiler.merged_config(told["config"], told["runtime_shape"])
        try:
            asked = ask(traced, compiler, settings, told["facts"], told["namespace"])
            found = [key_of(each).hex() for each in asked.candidates()]
        except MemoryError:
            raise
        except Exception as error:
            raise Unfit(f"it has no key there: {error!r}") from error
        if found != told["keys"]:
            raise Unfit("its key is another one there")
        try:
            _, files = compiler.compile(gm, traced.inputs, told["config"], told["runtime_shape"])
        except Exception as error:
            if restarts(error):
                raise Unfit("Dynamo is to trace again") from error
            if isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                # Of the GPU, which several such processes share: one alone may do.
                raise Unfit(f"it has too little of the GPU's memory: {error}") from error
            raise
    if files is None:
        raise Unfit("torch cannot save it")
    return files


# What a process has set that decides code: how it is read, and how it is set.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "matmul": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "fp16": (
        lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        lambda value: _set_matmul("allow_fp16_reduced_precision_reduction", value),
    ),
    "bf16": (
        lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        lambda value: _set_matmul("allow_bf16_reduced_precision_reduction", value),
    ),
    # What is tuned runs there: not all ranks of a machine on the first GPU.
    "gpu": (
        lambda: torch.cuda.current_device() if torch.cuda.is_initialized() else None,
        lambda index: None if index is None else torch.cuda.set_device(index),
    ),
}


def _set_matmul(name: str, value: Any) -> None:
    setattr(torch.backends.cuda.matmul, name, value)


def _configs() -> dict[str, Any]:
    from torch._functorch import config as functorch

    return {"inductor": torch._inductor.config, "functorch": functorch}


def _state() -> dict[str, Any]:
    read = {name: get() for name, (get, _) in _SETTINGS.items()}
    return {**read, **{name: each.save_config_portable() for name, each in _configs().items()}}


def _restore(state: Mapping[str, Any]) -> None:
    """Set what differs, and nothing else: setting a default is not always nothing."""
    for name, config in _configs().items():
        have = config.save_config_portable()
        config.load_config({k: v for k, v in state[name].items() if k not in have or have[k] != v})
    for name, (get, put) in _SETTINGS.items():
        if get() != state[name]:
            put(state[name])


def _reads_number(node: torch.fx.Node) -> bool:
    target = node.target
    return target == "item" or "local_scalar_dense" in str(target)
