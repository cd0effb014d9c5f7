"""``kiln_torch.load``: a compiled artifact as a callable over torch tensors.

Artifacts of the native compiler (``module.cubin`` and ``plan.json``) run through
the CUDA driver on torch's current stream; standalone artifacts of Inductor
through torch.

Invariant: what is loaded was checked: by its manifest where it came from the
cluster, and for hanging together in any case.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .client import Client
from .manifest import Artifact
from .native import Native
from .sizes import BrokenArtifact
from .standalone import BINARY, load_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    Source: TypeAlias = str | bytes | Path | Artifact

CUBIN = "module.cubin"
PLAN = "plan.json"
# What the client that compiled wrote beside the artifact: the inputs' names.
SIGNATURE = "signature.json"
# Only artifacts of the eager compiler have it.
GRAPH = "graph.json"
_KEY_BYTES = 32


def load(source: Source, params: Any = None) -> Callable[..., Any]:
    """Load an artifact: a key (bytes or hex), what ``Client.fetch`` gave, or a folder.

    A folder is what ``kiln get KEY -o DIR`` or ``kiln compile -o DIR`` wrote.
    ``params`` fixes the parameters and buffers, so that a call takes only the
    arguments: a ``state_dict``, an ``nn.Module`` or an ``ExportedProgram``, all on
    the GPU (see ``Native.bind``).
    ``KeyError``: the cluster has none. ``BrokenArtifact``: fetch it again.
    """
    files, artifact = _files(source)
    loaded: Callable[..., Any]
    if BINARY in files:
        if params is not None:
            raise TypeError("an artifact of Inductor takes all of its inputs at each call")
        loaded = load_binary(bytes(files[BINARY]))
    else:
        if GRAPH in files:
            raise BrokenArtifact("compiled by the eager compiler, for `kiln exec` on the CPU")
        missing = [name for name in (CUBIN, PLAN) if name not in files]
        if missing:
            raise BrokenArtifact(f"it has no {missing[0]}: nothing that can be loaded")
        signature = bytes(files[SIGNATURE]) if SIGNATURE in files else None
        native = Native(bytes(files[CUBIN]), bytes(files[PLAN]), signature)
        loaded = native if params is None else native.bind(params)
    client = Client.from_env()
    if artifact is not None and client is not None:
        client.loaded([artifact.key])
    return loaded


def _files(source: Source) -> tuple[Mapping[str, Any], Artifact | None]:
    if isinstance(source, Artifact):
        return source.files, source
    if not isinstance(source, bytes) and Path(source).is_dir():
        paths = [each for each in Path(source).iterdir() if each.is_file()]
        return {each.name: each.read_bytes() for each in paths}, None
    try:
        key = source if isinstance(source, bytes) else bytes.fromhex(str(source))
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(f"neither a folder nor a key: {source!r}")
    client = Client.from_env()
    artifact = client.fetch(key) if client is not None else None
    if artifact is None:
        why = "KILN_ENDPOINT is not set" if client is None else "the cluster has no such artifact"
        raise KeyError(f"{key.hex()}: {why}")
    return artifact.files, artifact
