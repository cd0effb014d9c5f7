"""vLLM's AOT model files, shared: one rank compiles each, the others load it.

vLLM keeps a compiled model, Dynamo's work included, as one file
``torch_aot_compile/<hash>/rank_<i>_<j>/model``. Before vLLM looks for it, it is
fetched to its place; what vLLM saves is published. The hash leaves out the
model's source, which vLLM compares after loading: so what is stored under a key
can be replaced.

Invariant: vLLM's own functions do the loading, the comparing and the saving. An
artifact without compiled pieces is neither published nor taken for a hit, and
whatever fails here, vLLM goes on as if Kiln were not there.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from .. import report
from ..client import Client
from ..key import VALUE, key_of, value_components
from ..manifest import Artifact, Fingerprint, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..key import Component
    from ..lease import Lease

# Where RESP clients have a value, too.
MODEL = "value"
_INSTALLED = "_kiln_installed"


@dataclass
class _Wanted:
    """A model that this process is about to compile."""

    client: Client
    components: tuple[Component, ...]
    label: str
    # None where another version of the file is there: it is replaced.
    lease: Lease | None
    since: float


_lock = threading.Lock()
# By the path of vLLM's file.
_wanted: dict[str, _Wanted] = {}


def install() -> None:
    """Put Kiln around what vLLM calls to load, compile and save. Again: no-op."""
    from torch._dynamo.aot_compile import AOTCompiledFunction
    from vllm.compilation import decorators
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    if getattr(decorators, _INSTALLED, False):
        return
    load = decorators._try_load_aot_compiled_fn
    make = TorchCompileWithNoGuardsWrapper.aot_compile
    save = AOTCompiledFunction.save_compiled_function
    decorators._try_load_aot_compiled_fn = functools.wraps(load)(functools.partial(_load, load))
    TorchCompileWithNoGuardsWrapper.aot_compile = _around(make, _make)
    AOTCompiledFunction.save_compiled_function = _around(save, _save)
    setattr(decorators, _INSTALLED, True)


def _around(inner: Callable[..., Any], outer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return outer(inner, self, *args, **kwargs)

    return method


def _load(load: Callable[..., Any], model: Any, path: str) -> Any:
    """Load from the folder, else from the cluster, else take the lease."""
    if Path(path).exists():
        # With VLLM_FORCE_AOT_LOAD this raises: what is asked for is this file.
        found = load(model, path)
        if found is not None:
            return found
    try:
        artifact = _ask(model, path)
    except Exception as error:
        report.count("vllm.failed")
        report.once("vllm aot", "AOT model not asked for: %r", error)
        artifact = None
    if artifact is None:
        return None if not _forced() else load(model, path)
    before = _pieces_loaded()
    found = load(model, path)
    if found is not None and _mega() and _pieces_loaded() == before:
        report.count("vllm.empty")
        found = None
    if found is None:
        # Another version of the source made it, or it is broken.
        report.count("vllm.stale")
        Path(path).unlink(missing_ok=True)
        return None
    with _lock:
        wanted = _wanted.pop(path, None)
    report.count("vllm.loaded")
    if wanted is not None:
        wanted.client.loaded([artifact.key])
    return found


def _ask(model: Any, path: str) -> Artifact | None:
    client = Client.from_env()
    if client is None:
        return None
    name = _name(model, path)
    components = value_components(client.namespace, name)
    answer = client.acquire(key_of(components), client.settings.wait)
    artifact = answer if isinstance(answer, Artifact) else None
    lease = None if isinstance(answer, Artifact) else answer
    if artifact is not None or lease is not None:
        with _lock:
            _wanted[path] = _Wanted(client, components, name, lease, time.monotonic())
    if artifact is not None:
        _place(path, artifact.file(MODEL))
    return artifact


def _make(make: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """Compile; a compile that fails lets others try."""
    try:
        return make(model, *args, **kwargs)
    except BaseException:
        with _lock:
            failed = list(_wanted.values())
            _wanted.clear()
        for wanted in failed:
            if wanted.lease is not None:
                wanted.lease.release()
        raise


def _save(save: Callable[..., Any], compiled: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    """Save; vLLM writes to ``<path>.<pid>.tmp`` and renames that."""
    result = save(compiled, path, *args, **kwargs)
    with _lock:
        wanted = _wanted.pop(str(path).removesuffix(f".{os.getpid()}.tmp"), None)
    if wanted is not None:
        try:
            _publish(wanted, compiled, Path(path).read_bytes())
        except Exception as error:
            report.count("vllm.failed")
            report.once("vllm publish", "AOT model not published: %r", error)
        finally:
            if wanted.lease is not None:
                wanted.lease.release()
    return result


def _publish(wanted: _Wanted, compiled: Any, data: bytes) -> None:
    if not data or (_mega() and not _pieces(compiled)):
        # Loaded elsewhere it would run uncompiled, and nobody would see it.
        report.count("vllm.empty")
        return
    wanted.client.publish(
        wanted.lease,
        wanted.components,
        {MODEL: data},
        fingerprint=Fingerprint(VALUE),
        target=Target.any(),
        label=wanted.label,
        seconds=time.monotonic() - wanted.since,
        replace=True,
    )


def _name(model: Any, path: str) -> str:
    """Name the file by vLLM's hash and the rank, and by what that hash leaves out."""
    import torch
    import vllm
    from torch._inductor.codecache import torch_key

    from ..options import versions

    types = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    source = Path(model.forward.__func__.__code__.co_filename)
    facts = blake3(torch_key())
    facts.update(repr((vllm.__version__, _mega(), versions(types))).encode())
    facts.update(source.read_bytes() if source.is_file() else b"")
    rank, folder = Path(path).parent.name, Path(path).parent.parent.name
    return f"vllm-aot/{folder}/{rank}/{facts.hexdigest()[:32]}"


def _place(path: str, data: memoryview) -> None:
    """Write the file in one step: another process of this machine may read it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    number, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=".kiln-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _mega() -> bool:
    """Whether the file holds the compiled pieces too, not Dynamo's work alone."""
    import vllm.envs

    return bool(getattr(vllm.envs, "VLLM_USE_MEGA_AOT_ARTIFACT", False))


def _forced() -> bool:
    import vllm.envs

    return bool(getattr(vllm.envs, "VLLM_FORCE_AOT_LOAD", False))


def _pieces_loaded() -> int:
    from vllm.compilation.counter import compilation_counter

    return compilation_counter.num_compiled_artifacts_loaded


def _pieces(compiled: Any) -> int:
    """Count the compiled pieces that what was just saved has; the rest vLLM leaves out."""
    backend = compiled._artifacts.compiled_fn.vllm_backend
    if backend is None:
        return 0
    children = (getattr(backend.split_gm, name) for name, _ in backend.split_gm.named_children())
    ranges = (
        getattr(getattr(child, "runnable", child), "range_entries", {}).values()
        for child in children
    )
    return sum(hasattr(each.runnable, "serialize") for entries in ranges for each in entries)
