"""``KilnAdaptor``: vLLM's compiler interface, with the cluster behind it.

Each piece of a model is asked for by Kiln's key; a miss is compiled by vLLM's
own adaptor for Inductor and published.
Invariant: what is compiled, and how, is up to vLLM's adaptor. A handle is valid
only while the file that it names has the digest that it names; an artifact that
cannot be saved, or is empty, is never a hit. A piece runs on the GPU of the rank that
loads it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from blake3 import blake3
from torch._inductor.compile_fx import graph_returns_tuple
from vllm import envs
from vllm.compilation.compiler_interface import (
    CompilerInterface,
    InductorStandaloneAdaptor,
    is_compile_cache_enabled,
    set_inductor_config,
)
from vllm.compilation.counter import compilation_counter

from .. import placing, report
from ..asked import Asked
from ..client import Client
from ..graph import Unkeyable
from ..key import key_of
from ..manifest import Artifact
from ..standalone import BINARY, load_binary, own_keys_off

if TYPE_CHECKING:
    from collections.abc import Callable

_FORMAT = "binary"
# Changes with the meaning of the files, or of the forms that enter the key.
_FORM = "vllm-1"


class InvalidHandle(Exception):
    """Neither the folder nor the cluster has what the handle names."""


class KilnAdaptor(CompilerInterface):
    """vLLM makes one for each part of a model."""

    name = "kiln"

    def __init__(self) -> None:
        """Compile as vLLM's adaptor for Inductor does."""
        self._inductor = InductorStandaloneAdaptor(_FORMAT, use_aot_compile=True)
        self._folder: Path | None = None
        # By Kiln's key, what is here already: layers of a model are mostly equal.
        # Each on the GPU that it was loaded for.
        self._loaded: dict[tuple[bytes, int | None], tuple[Any, Any]] = {}

    def initialize_cache(
        self, cache_dir: str, disable_cache: bool = False, prefix: str = ""
    ) -> None:
        """Keep artifacts in ``cache_dir``, unless that is switched off."""
        self._folder = None if disable_cache else Path(cache_dir)
        self._inductor.initialize_cache(cache_dir, disable_cache, prefix)

    def compute_hash(self, vllm_config: Any) -> str:
        """Hash what decides Inductor's output; where artifacts are stored does not."""
        return self._inductor.compute_hash(vllm_config)

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: list[Any],
        compiler_config: dict[str, Any],
        compile_range: Any,
        key: str | None = None,
    ) -> tuple[Callable[..., Any] | None, Any | None]:
        """Return the compiled piece and its handle."""

        def inductor() -> tuple[Callable[..., Any] | None, Any | None]:
            return self._inductor.compile(
                graph, example_inputs, compiler_config, compile_range, key
            )

        try:
            client = Client.from_env() if is_compile_cache_enabled(compiler_config) else None
            if client is None:
                return inductor()
            asked = _asked(client, graph, example_inputs, compiler_config, compile_range)
            components = next(asked.candidates())
            wanted = key_of(components)
            known = self._loaded.get((wanted, asked.index))
            if known is not None:
                return known
            answer = client.acquire(wanted, client.settings.wait)
            if isinstance(answer, Artifact):
                binary = bytes(answer.file(BINARY))
                compiled = self._load(graph, binary, asked.index)
                report.count("vllm.loaded")
                client.loaded([answer.key])
                return self._keep((wanted, asked.index), compiled, self._handle(key, binary))
        except Unkeyable as reason:
            report.count("vllm.bypassed")
            report.log.info("compiled without the cluster: %s", reason)
            return inductor()
        except Exception as error:
            report.count("vllm.failed")
            report.once(f"vllm {type(error).__name__}", "compiled without the cluster: %r", error)
            return inductor()
        if answer is None:
            return inductor()
        started = time.monotonic()
        queued = False
        try:
            with own_keys_off():
                compiled, handle = inductor()
            seconds = time.monotonic() - started
            report.count("vllm.compiled")
            try:
                binary = self._binary(compiled, handle)
                if binary:
                    # From here on the lease ends with the publication, whatever that comes to.
                    queued = True
                    client.publish_later(
                        answer,
                        components,
                        {BINARY: binary},
                        fingerprint=asked.fingerprint,
                        target=asked.target,
                        label=asked.label.replace("torch.compile", "vLLM"),
                        seconds=seconds,
                    )
                    handle = self._handle(key, binary)
            except Exception as error:
                report.count("vllm.failed")
                report.once("vllm publish", "a piece was not published: %r", error)
        finally:
            if not queued:
                answer.release()
        return self._keep((wanted, asked.index), compiled, handle)

    def load(
        self,
        handle: Any,
        graph: torch.fx.GraphModule,
        example_inputs: list[Any],
        graph_index: int,  # noqa: ARG002 - the interface's
        compile_range: Any,  # noqa: ARG002
    ) -> Callable[..., Any]:
        """Load what ``compile`` left in the folder; raises where it is not that any more."""
        name, digest = handle
        binary = b""
        if self._folder is not None and (path := self._folder / Path(name).name).is_file():
            binary = path.read_bytes()
        if not binary or blake3(binary).hexdigest() != digest:
            report.count("vllm.invalid_handle")
            raise InvalidHandle(str(name))
        index = placing.index_of(graph, example_inputs) if _merge_ranks() else None
        return self._load(graph, binary, index)

    def _keep(self, key: tuple[bytes, int | None], compiled: Any, handle: Any) -> tuple[Any, Any]:
        if compiled is not None:
            self._loaded[key] = compiled, handle
        return compiled, handle

    def _load(
        self, graph: torch.fx.GraphModule, binary: bytes, index: int | None
    ) -> Callable[..., Any]:
        with placing.on(index):
            loaded = load_binary(binary)
        compilation_counter.num_compiled_artifacts_loaded += 1
        return loaded if graph_returns_tuple(graph) else _First(loaded)

    def _handle(self, key: str | None, binary: bytes) -> tuple[str, str] | None:
        """Leave it in the folder as vLLM's adaptor does; pieces of AOT models are in theirs."""
        if self._folder is None or key is None or envs.VLLM_USE_MEGA_AOT_ARTIFACT:
            return None
        path = self._folder / key
        temporary = path.with_name(f".{key}.kiln")
        temporary.write_bytes(binary)
        temporary.replace(path)
        return key, blake3(binary).hexdigest()

    def _binary(self, compiled: Any, handle: Any) -> bytes:
        if handle is not None:
            return Path(handle[1]).read_bytes()
        if not hasattr(compiled, "serialize"):
            return b""
        with (
            tempfile.TemporaryDirectory(prefix="kiln-") as folder,
            torch._functorch.config.patch("bundled_autograd_cache", True),
        ):
            path = Path(folder, BINARY)
            compiled.save(path=str(path), format=_FORMAT)
            return path.read_bytes()


class _First:
    """A piece whose graph returns one value, not a tuple of one as artifacts do."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def __call__(self, *args: Any) -> Any:
        return self._loaded(*args)[0]

    def __getattr__(self, name: str) -> Any:
        # vLLM serializes pieces into its own file where they can be.
        return getattr(self._loaded, name)


def _asked(
    client: Client,
    graph: torch.fx.GraphModule,
    example_inputs: list[Any],
    compiler_config: dict[str, Any],
    compile_range: Any,
) -> Asked:
    settings = dict(compiler_config or {})
    set_inductor_config(settings, compile_range)
    with torch._inductor.config.patch(settings):
        return Asked(
            graph,
            example_inputs,
            client.namespace,
            form=_FORM,
            # vLLM drops all guards: the range alone says where a piece is valid.
            guarded=False,
            facts={
                "vllm": vllm.__version__,
                "range": f"{compile_range.start}..{compile_range.end}",
                "bundled": str(bool(envs.VLLM_USE_MEGA_AOT_ARTIFACT)),
            },
            merge=_merge_ranks(),
        )


def _merge_ranks() -> bool:
    """Whether ranks share pieces; not those that vLLM puts in a file, and loads by itself."""
    return not envs.VLLM_USE_MEGA_AOT_ARTIFACT
