"""``InductorStandaloneAdaptor``: artifacts as torch unpacks them, one file each.

With a ``cache_dir`` of its own it keeps them there, and a handle is ``(key, path)``
as in the document; the path's file is signed, and what it holds is unpacked into a
folder that only this process writes. Under a ``CompilerManager`` a handle is the
files, and the manager is the cache.
Invariant: nothing outside of ``cache_dir`` is ever removed, whatever a handle says.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import report, standalone
from ..key import key_of, value_components
from ..manifest import Fingerprint, Target
from ..packing import pack
from .config import compile_cache_disabled
from .errors import CacheCorruptedError, IncompatibleConfigError, InductorNotAvailableError
from .inductor import InductorAdaptor
from .local_cache import SUFFIX, LocalCache
from .signing import LocalKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

_LEAST = (2, 8)
_META = "meta.json"
_TREE = "unpacked/"
_NAMESPACE = "standalone"
_LIMIT = 10 << 30


class InductorStandaloneAdaptor(InductorAdaptor):
    """Compiles with ``standalone_compile``; files are those of format "unpacked"."""

    name = "inductor-standalone"

    def __init__(self, counter: Any = None, cache_dir: str | Path | None = None) -> None:
        """Check torch's version; keep artifacts in ``cache_dir`` where one is given."""
        if _version() < _LEAST:
            raise InductorNotAvailableError(
                f"standalone compilation requires PyTorch 2.8+, this is {torch.__version__}"
            )
        super().__init__(counter)
        self._cache: LocalCache | None = None
        if cache_dir is not None:
            self.initialize_cache(cache_dir)

    def initialize_cache(self, cache_dir: str | Path, disable_cache: bool = False) -> None:
        """Keep artifacts in ``cache_dir``."""
        self._cache = None if disable_cache else LocalCache(Path(cache_dir), LocalKey(), _LIMIT)

    def merged_config(
        self, compiler_config: Mapping[str, Any] | None, runtime_shape: int | None
    ) -> dict[str, Any]:
        """Return Inductor's options in full."""
        return self._prepare_standalone_config(compiler_config, runtime_shape)

    def compile(
        self,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        compiler_config: Mapping[str, Any],
        runtime_shape: int | None = None,
        key: str | None = None,
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Compile, and save under ``key`` where there is a ``cache_dir``."""
        started = time.monotonic()
        compiled, files = super().compile(graph, example_inputs, compiler_config, runtime_shape)
        if self._cache is None or files is None:
            return compiled, files
        if not key or compile_cache_disabled():
            return compiled, None
        packed = pack(
            value_components(_NAMESPACE, key),
            files,
            fingerprint=Fingerprint.of(self.name, {"torch": torch.__version__}),
            target=Target.any(),
            namespace=_NAMESPACE,
            label=key,
            seconds=time.monotonic() - started,
        )
        path = self._cache.write(_filename(key), packed)
        if path is None:
            return compiled, None
        self.counter.count("num_compiled_artifacts_saved")
        return compiled, (key, str(path))

    def load(
        self,
        handle: Any,
        graph: fx.GraphModule,
        example_inputs: Sequence[Any],
        graph_index: int,
        runtime_shape: int | None = None,
    ) -> Callable[..., Any] | None:
        """Load what ``compile`` gave; ``None`` where it is gone, corrupt or of another torch."""
        if not handle:
            return None
        if isinstance(handle, tuple):
            files = self._saved(*handle) if len(handle) == 2 else None
            if files is None:
                return None
            try:
                return super().load(files, graph, example_inputs, graph_index, runtime_shape)
            except IncompatibleConfigError as error:
                report.log.warning("not loaded: %s", error)
                return None
        return super().load(handle, graph, example_inputs, graph_index, runtime_shape)

    def _prepare_standalone_config(
        self, compiler_config: Mapping[str, Any] | None, runtime_shape: int | None
    ) -> dict[str, Any]:
        return self._merge_inductor_config(compiler_config, runtime_shape)

    def _saved(self, key: str, artifact_path: str) -> Mapping[str, Any] | None:
        if self._cache is None:
            return None
        filename = _filename(key)
        if Path(artifact_path) != self._cache.folder / filename:
            report.log.warning("%s is not in %s", artifact_path, self._cache.folder)
            return None
        try:
            found = self._cache.read(filename, key_of(value_components(_NAMESPACE, key)))
        except CacheCorruptedError as error:
            report.log.warning("%s", error)
            self.counter.count("num_cache_corrupted")
            self._cache.delete(filename)
            return None
        if found is None:
            report.log.warning("compilation artifact not found: %s", artifact_path)
            return None
        return found.files

    def _save_files(self, compiled: Any) -> dict[str, bytes]:
        if hasattr(compiled, "is_saveable") and not compiled.is_saveable():
            raise standalone.Unsaveable("torch made no artifact of it")
        with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
            compiled.save(path=folder, format="unpacked")
            files = {
                _TREE + path.relative_to(folder).as_posix(): path.read_bytes()
                for path in Path(folder).rglob("*")
                if path.is_file() and not path.is_symlink()
            }
        return {**files, _META: json.dumps(_made_by()).encode()}

    def _load_files(self, files: Mapping[str, Any]) -> Callable[..., Any]:
        made_by = json.loads(bytes(files.get(_META, b"{}")))
        if made_by != _made_by():
            raise IncompatibleConfigError(
                f"made by torch {made_by.get('torch')}, and this is {torch.__version__}"
            )
        from torch._inductor.standalone_compile import CompiledArtifact

        folder = Path(tempfile.mkdtemp(prefix="kiln-"))
        for name, data in files.items():
            if name.startswith(_TREE):
                # The manifest's paths are relative and without "..".
                path = folder / name.removeprefix(_TREE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        try:
            loaded = CompiledArtifact.load(path=str(folder), format="unpacked")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Kernels may be read from it at their first launch.
        weakref.finalize(loaded, shutil.rmtree, folder, ignore_errors=True)
        return loaded


def _filename(key: str) -> str:
    if not key.isalnum():
        raise IncompatibleConfigError(f"{key!r} is no key: letters and digits name a file")
    return key + SUFFIX


def _made_by() -> dict[str, str]:
    from torch._inductor.codecache import torch_key

    return {"torch": torch.__version__, "torch_key": torch_key().hex()}


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
