"""Under which name a program's packages are listed in the cluster.

Invariant: two processes have the same name only if the function, the model, the
compiler and its settings, the versions and the kind of machine are the same. What
torch's guards check at every call (shapes, grad mode, autocast) is not in it.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3

from .. import __version__
from ..graph import Unkeyable
from ..options import plain
from .code import class_digest, function_digest
from .errors import NotShared

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

# Of the layout of what is stored, and of what the name is made of.
_FORMAT = 1
_SETTINGS = ("torch._inductor.config", "torch._functorch.config", "torch._dynamo.config")
# Where things lie, how many threads compile, what is logged: nothing of the output.
_NO_MATTER = (
    "_",
    "base_dir",
    "debug_dir_root",
    "trace",
    "cuda.cutlass_dir",
    "cutlass.cutlass_dir",
    "xpu.cutlass_dir",
    "worker_start_method",
    "compile_threads",
    "repro_",
    "log_",
    "verbose",
)
_FLAGS = (
    "backends.cuda.matmul.allow_tf32",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cudnn.enabled",
    "backends.cudnn.allow_tf32",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
    "backends.mkldnn.enabled",
)
_ASKED = (
    "backends.cuda.flash_sdp_enabled",
    "backends.cuda.mem_efficient_sdp_enabled",
    "backends.cuda.math_sdp_enabled",
    "backends.cuda.cudnn_sdp_enabled",
    "get_float32_matmul_precision",
    "are_deterministic_algorithms_enabled",
    "is_deterministic_algorithms_warn_only_enabled",
    "get_default_dtype",
)


@dataclass(frozen=True)
class Asked:
    """What a call of ``torch.compile`` asks for."""

    name: str
    # Digest of those that a call leaves alone, which may be changed before the first one.
    settings: str
    label: str


def ask(context: Any, fn: Callable[..., Any], root: types.FunctionType) -> Asked:
    """Name what compiling ``fn`` in Dynamo's ``context`` asks for."""
    return named("precompile", fn, root, _compiler(context))


def named(door: str, fn: Callable[..., Any], root: types.FunctionType, how: list[Any]) -> Asked:
    """Name what compiling ``fn`` asks for at ``door``; ``how``: what the call itself says."""
    told = {
        "format": _FORMAT,
        "function": [root.__module__, root.__qualname__, root.__code__.co_firstlineno],
        "code": function_digest(root),
        "model": model(getattr(fn, "__self__", None)),
        "compiler": how,
        "settings": settings(),
        "versions": _versions(),
        "machine": _machine(),
    }
    label = f"{root.__module__}.{root.__qualname__}"
    return Asked(f"{door}/{_digest(told)}", settings(called=True), f"{door} {label}")


# What ``torch.compile(dynamic=...)`` itself sets while the function is called.
_OF_DYNAMIC = ("automatic_dynamic_shapes", "assume_static_by_default")


def settings(*, called: bool = False) -> str:
    """Return the digest of the settings in force; ``called``: of those that a call leaves alone.

    What a call sets says which shapes a graph is for, and that is guarded.
    """
    left_out = (*_NO_MATTER, *_OF_DYNAMIC) if called else _NO_MATTER
    told: dict[str, Any] = {}
    try:
        for name in _SETTINGS:
            values = _module(name).get_config_copy()
            told[name] = {
                key: plain(value) for key, value in values.items() if not key.startswith(left_out)
            }
    except Unkeyable as error:
        raise NotShared("settings", str(error)) from error
    told["flags"] = [repr(_at(name)) for name in _FLAGS]
    told["asked"] = [repr(ask()) for ask in map(_at, _ASKED) if ask is not None]
    return _digest(told)


def _compiler(context: Any) -> list[Any]:
    from torch._dynamo.eval_frame import innermost_backend

    told = backend_told(innermost_backend(context.callback))
    if getattr(context._hooks, "guard_filter_fn", None) is not None:
        raise NotShared("guard_filter")
    if context.export:
        raise NotShared("export")
    marks = (context.fullgraph, context.error_on_graph_break, context._dynamic)
    return [*told, [repr(each) for each in marks]]


def backend_told(backend: Any) -> list[Any]:
    """Tell Inductor's options; ``NotShared`` for another backend."""
    # Others leave nothing that could be shared, or share it by themselves.
    if type(backend) is not torch._TorchCompileInductorWrapper:
        raise NotShared("backend", f"backend {backend!r}")
    try:
        return [plain(backend.config), repr(backend.dynamic)]
    except Unkeyable as error:
        raise NotShared("settings", str(error)) from error


def model(module: object) -> list[Any]:
    """Tell a model's layers and tensors: one class is many models."""
    if not isinstance(module, torch.nn.Module):
        return []
    classes: dict[type, str] = {}
    known: dict[type, str] = {}
    told: list[Any] = []
    for name, layer in module.named_modules():
        cls = type(layer)
        if cls not in classes:
            classes[cls] = class_digest(cls, known)
        told.append([name, f"{cls.__module__}.{cls.__qualname__}", classes[cls]])
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        told.append([name, str(tensor.dtype), str(tensor.device), *map(str, tensor.shape)])
    return told


def _versions() -> list[str]:
    try:
        import triton

        with_triton = triton.__version__
    except ImportError:
        with_triton = "none"
    of_torch = (torch.__version__, torch.version.git_version, str(torch.version.cuda))
    return [*of_torch, with_triton, platform.python_version(), __version__]


def _machine() -> list[Any]:
    """Tell the machine, the device in use with its index, and this process's rank."""
    vectors = [
        name
        for name in (
            "_is_avx512_vnni_supported",
            "_is_avx512_bf16_supported",
            "_is_amx_tile_supported",
        )
        if getattr(torch.cpu, name, bool)()
    ]
    told: list[Any] = [platform.machine(), torch.backends.cpu.get_cpu_capability(), *vectors]
    if torch.cuda.is_initialized():
        # An index is in Inductor's text: a package is of one device.
        device = torch.cuda.current_device()
        told += [torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)]
        told += [device, torch.cuda.device_count()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Dynamo takes both as constants.
        told += [torch.distributed.get_rank(), torch.distributed.get_world_size()]
    return told


def _module(name: str) -> Any:
    from importlib import import_module

    return import_module(name)


def _at(path: str) -> Any:
    found: Any = torch
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _digest(told: object) -> str:
    return blake3(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
