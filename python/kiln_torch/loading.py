"""``kiln_torch.load``: a compiled artifact as a callable over torch tensors.

Artifacts of the native compiler (``module.cubin`` and ``plan.json``, or a
``stitching.json`` and those of its pieces) run through the CUDA driver on torch's
current stream; Inductor's, those that nodes made (``meta.json``) and standalone ones of
this package, through torch; the eager compiler's, the graphs as they are, by torch's own
operations. A stitched whole may have pieces of all of them. A folder of the native
compiler may have artifacts for static sizes beside the dynamic one: each call runs what
is for the size of its inputs.

Invariant: what is loaded was checked: by its manifest where it came from the
cluster, pieces by the manifest of the whole too, and for hanging together in any
case.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import plan, stitching
from .by_size import BySize
from .client import Client
from .eager import CONSTANTS as EAGER_CONSTANTS
from .eager import GRAPH, Eager
from .foreign import GRAPH as PORTABLE
from .foreign import Foreign
from .manifest import Artifact
from .mixed import Mixed
from .native import Native
from .program import CUBIN, PLAN, Stitched, Whole
from .sizes import BrokenArtifact
from .standalone import BINARY, load_binary
from .worker.artifact import CONSTANTS, META, MODULES, load_artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from .graph_inputs import TorchGraph
    from .program import Program

    Source: TypeAlias = str | bytes | Path | Artifact

# What the client that compiled wrote beside the artifact: the inputs' names.
SIGNATURE = "signature.json"
# Beside a stitching: the pieces' keys, and a folder for each by its position.
PIECE_KEYS = "pieces.json"
PIECES = "pieces"
# Beside an artifact: the static sizes that there are others for, in a folder for each.
SIZES = "sizes.json"
SIZE_DIRS = "sizes"
# What a node's Inductor makes.
_INDUCTOR = (META, CONSTANTS, *MODULES.values())
# Files of pieces that torch runs.
_BY_TORCH = (BINARY, META, GRAPH, PORTABLE)
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
    if BINARY in files or META in files:
        if params is not None:
            raise TypeError("an artifact of Inductor takes all of its inputs at each call")
        loaded = inductor_of(files, "")
    elif any(name.startswith(f"{PIECES}/") and name.endswith(_BY_TORCH) for name in files):
        if params is not None:
            raise TypeError("pieces that torch runs take all of their inputs at each call")
        loaded = mixed_of(files)
    elif _is_torchs(files) and stitching.FILE not in files:
        eager = eager_of(files)
        loaded = eager if params is None else eager.bind(params)
    else:
        native = native_of(files)
        loaded = native if params is None else native.bind(params)
    client = Client.from_env()
    if artifact is not None and client is not None:
        client.loaded([artifact.key, *(piece.key for piece in artifact.manifest.pieces)])
    return loaded


def eager_of(files: Mapping[str, Any], folder: str = "") -> TorchGraph:
    """Return the graph that the eager compiler wrote down, to be run by torch."""
    kind = Foreign if folder + PORTABLE in files else Eager
    name = PORTABLE if kind is Foreign else GRAPH
    missing = [name for name in (name, PLAN) if folder + name not in files]
    if missing:
        raise BrokenArtifact(f"it has no {missing[0]}: nothing that can be loaded")
    # It is for all sizes: those for one size alone, beside it, compute the same.
    graph, plan_json = bytes(files[folder + name]), bytes(files[folder + PLAN])
    constants = bytes(files.get(folder + EAGER_CONSTANTS, b""))
    signature = bytes(files[SIGNATURE]) if not folder and SIGNATURE in files else None
    return kind(graph, plan_json, constants, signature)


def _is_torchs(files: Mapping[str, Any], folder: str = "") -> bool:
    """Whether the eager compiler wrote it down."""
    return folder + GRAPH in files or folder + PORTABLE in files


def native_of(files: Mapping[str, Any]) -> Native:
    """Return the graph whose files these are, by their paths in the artifact's folder."""
    signature = bytes(files[SIGNATURE]) if SIGNATURE in files else None
    program = _program(files)
    static = {}
    for size in _sizes(files):
        folder = f"{SIZE_DIRS}/{size}/"
        own = {name[len(folder) :]: files[name] for name in files if name.startswith(folder)}
        with _naming(f"size {size}"):
            static[size] = _program(own)
    return Native.of(BySize(program, static) if static else program, signature)


def _program(files: Mapping[str, Any]) -> Program:
    if stitching.FILE not in files:
        cubin, plan_json = _module(files, "")
        return Whole(plan.read(plan_json), cubin)
    told, names = _stitching(files)
    pieces = []
    for at, name in enumerate(names):
        with _naming(name):
            cubin, plan_json = _module(files, f"{PIECES}/{at}/")
            pieces.append((cubin, plan.read(plan_json)))
    return Stitched(told, pieces, names)


def _sizes(files: Mapping[str, Any]) -> list[int]:
    """Return the static sizes that ``files`` has artifacts for, beside the dynamic one."""
    if SIZES not in files:
        return []
    try:
        sizes = [each["size"] for each in json.loads(bytes(files[SIZES]))]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenArtifact(f"{SIZES} cannot be read: {error!r}") from error
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise BrokenArtifact(f"{SIZES}: {sizes} are no sizes")
    return sizes


def mixed_of(files: Mapping[str, Any]) -> Mixed:
    """Return a stitched whole that has pieces which torch runs."""
    told, names = _stitching(files)
    pieces: list[Callable[..., Any]] = []
    for at, (name, interface) in enumerate(zip(names, told.pieces)):
        folder = f"{PIECES}/{at}/"
        with _naming(name):
            if folder + BINARY in files or folder + META in files:
                pieces.append(inductor_of(files, folder, interface))
                continue
            eager = _is_torchs(files, folder)
            own = eager_of(files, folder) if eager else Native(*_module(files, folder))
            why = stitching.misfit(interface, own.plan)
            if why is not None:
                raise BrokenArtifact(why)
            pieces.append(own)
    return Mixed(told, pieces, names)


def inductor_of(
    files: Mapping[str, Any], folder: str, interface: stitching.Interface | None = None
) -> Callable[..., Any]:
    """Return what Inductor compiled, if it is what ``interface`` says."""
    if folder + BINARY in files:
        return load_binary(bytes(files[folder + BINARY]))
    with tempfile.TemporaryDirectory(prefix="kiln-") as place:
        for name in _INDUCTOR:
            if folder + name in files:
                Path(place, name).write_bytes(bytes(files[folder + name]))
        try:
            loaded = load_artifact(place)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise BrokenArtifact(f"{META}: it cannot be loaded: {error!r}") from error
    if interface is not None:
        takes = [spec for spec in interface.takes if not spec.constant]
        found = (len(loaded.inputs), len(loaded.meta["outputs"]))
        if found != (len(takes), len(interface.gives)):
            wanted = f"{len(takes)} and {len(interface.gives)}"
            raise BrokenArtifact(f"it has {found[0]} inputs and {found[1]} outputs, not {wanted}")
    return loaded


def _stitching(files: Mapping[str, Any]) -> tuple[stitching.Stitching, list[str]]:
    beside = [name for name in (CUBIN, PLAN, GRAPH, PORTABLE, BINARY, META) if name in files]
    if beside:
        raise BrokenArtifact(f"{beside[0]} is beside {stitching.FILE}, of another artifact")
    told = stitching.read(bytes(files[stitching.FILE]))
    return told, _names(files, len(told.pieces))


@contextlib.contextmanager
def _naming(piece: str) -> Iterator[None]:
    """Say of which piece it is what is broken."""
    try:
        yield
    except BrokenArtifact as error:
        raise BrokenArtifact(f"{piece}: {error}") from error


def _module(files: Mapping[str, Any], folder: str) -> tuple[bytes, bytes]:
    missing = [name for name in (CUBIN, PLAN) if folder + name not in files]
    if missing:
        raise BrokenArtifact(f"it has no {missing[0]}: nothing that can be loaded")
    return bytes(files[folder + CUBIN]), bytes(files[folder + PLAN])


def _names(files: Mapping[str, Any], count: int) -> list[str]:
    """Return what pieces are called in messages: with their keys, where they are known."""
    try:
        keys = [f" (key {each['key']})" for each in json.loads(bytes(files[PIECE_KEYS]))]
    except (ValueError, KeyError, TypeError):
        keys = []
    if len(keys) != count:
        keys = [""] * count
    return [f"piece {at}{key}" for at, key in enumerate(keys)]


def _files(source: Source) -> tuple[Mapping[str, Any], Artifact | None]:
    if isinstance(source, Artifact):
        return whole_files(source, _fetch), source
    if not isinstance(source, bytes) and Path(source).is_dir():
        return _folder(Path(source)), None
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
    return whole_files(artifact, _fetch), artifact


def _fetch(key: bytes) -> Artifact | None:
    client = Client.from_env()
    return client.fetch(key) if client is not None else None


def _folder(folder: Path) -> dict[str, bytes]:
    files = _one_folder(folder)
    for size in _sizes(files):
        # What else is there is not its.
        place = folder / SIZE_DIRS / str(size)
        if not place.is_dir():
            raise BrokenArtifact(f"{place} is missing: {SIZES} names it")
        files |= {f"{SIZE_DIRS}/{size}/{name}": data for name, data in _one_folder(place).items()}
    return files


def _one_folder(folder: Path) -> dict[str, bytes]:
    files = {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    if stitching.FILE in files:
        # By position, as the stitching counts them: what else is there is not its.
        for at in range(len(stitching.read(files[stitching.FILE]).pieces)):
            for name in (CUBIN, PLAN, GRAPH, PORTABLE, EAGER_CONSTANTS, BINARY, *_INDUCTOR):
                path = folder / PIECES / str(at) / name
                if path.is_file():
                    files[f"{PIECES}/{at}/{name}"] = path.read_bytes()
    return files


def whole_files(artifact: Artifact, fetch: Callable[[bytes], Artifact | None]) -> Mapping[str, Any]:
    """Return the artifact's files, and below ``pieces/`` those of the pieces it is made of.

    ``KeyError``: ``fetch`` has one of them not. ``BrokenArtifact``: it has another.
    """
    pieces = artifact.manifest.pieces
    if not pieces:
        return artifact.files
    # Its other files do not pass for a piece's.
    files: dict[str, Any] = {stitching.FILE: artifact.file(stitching.FILE)}
    keys = []
    for at, piece in enumerate(pieces):
        name = f"piece {at} (key {piece.key.hex()})"
        found = fetch(piece.key)
        if found is None:
            raise KeyError(f"{name}: the cluster has it no more, or KILN_ENDPOINT is not set")
        if found.manifest.pack_digest != piece.pack:
            raise BrokenArtifact(f"{name} is another than was stitched")
        files |= {f"{PIECES}/{at}/{path}": data for path, data in found.files.items()}
        keys.append({"key": piece.key.hex()})
    files[PIECE_KEYS] = json.dumps(keys).encode()
    return files
