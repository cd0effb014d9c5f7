"""Seconds of a first call by phase: functions of torch and Kiln, timed from outside.

Invariant: nothing of what is timed is changed; a function that this torch does not
have is left out. Seconds are inclusive: a phase contains those that its functions
call, and of a function that calls itself the outermost call alone counts.
"""

from __future__ import annotations

import functools
import gc
import importlib
import threading
import time

_INDUCTOR = "torch._inductor"
_AOT = "torch._functorch._aot_autograd.autograd_cache"
# Phase, module, functions of it.
TORCH = (
    ("dynamo and all below", "torch._dynamo.convert_frame", ("_compile",)),
    ("backend and all below", "torch._dynamo.output_graph", ("OutputGraph.call_user_compiler",)),
    ("guards", "torch._dynamo.guards", ("CheckFunctionManager.__init__",)),
    ("AOTAutograd's key", _AOT, ("autograd_cache_key",)),
    ("torch's own digest", f"{_INDUCTOR}.codecache", ("torch_key",)),
    ("AOTAutograd's look-up", _AOT, ("AOTAutogradCache._lookup",)),
    ("FX graph's look-up", f"{_INDUCTOR}.codecache", ("FxGraphCache._lookup_graph",)),
    ("entry found", f"{_INDUCTOR}.codecache", ("GuardedCache.find_guarded_entry",)),
    ("entry in use", f"{_INDUCTOR}.codecache", ("FxGraphCache.cache_hit_post_compile",)),
    ("Triton's driver", "triton.backends.nvidia.driver", ("CudaUtils.__init__",)),
    ("host module built", "triton.runtime.build", ("_build",)),
    ("Inductor's meta", f"{_INDUCTOR}.runtime.autotune_cache", ("inductor_meta_from_config",)),
    ("artifact recorded", "torch.compiler._cache", ("CacheArtifactManager.record_artifact",)),
    ("base64", "base64", ("b64decode",)),
    ("unpickled", "pickle", ("loads",)),
    ("imports", "builtins", ("__import__",)),
    ("remote get", f"{_INDUCTOR}.remote_cache", ("RemoteCache.get",)),
    ("remote put", f"{_INDUCTOR}.remote_cache", ("RemoteCache.put",)),
    ("Triton's files", f"{_INDUCTOR}.triton_bundler", ("TritonBundler.read_and_emit",)),
    ("local cache written", f"{_INDUCTOR}.codecache", ("FxGraphCache._write_to_local_cache",)),
    ("code loaded", f"{_INDUCTOR}.codecache", ("PyCodeCache.load_by_key_path",)),
    (
        "kernels loaded",
        f"{_INDUCTOR}.runtime.triton_heuristics",
        ("CachingAutotuner.precompile", "CachingAutotuner.recheck_autotune_cache"),
    ),
    (
        "kernels tuned",
        f"{_INDUCTOR}.runtime.triton_heuristics",
        ("CachingAutotuner.benchmark_all_configs",),
    ),
)
KILN = (
    ("kiln: find", "kiln_torch.client", ("Client._find",)),
    ("kiln: node usable", "kiln_torch.endpoint", ("Endpoint.usable",)),
    ("kiln: lease", "kiln_torch.client", ("Client._lease",)),
    ("kiln: publish", "kiln_torch.client", ("Client.publish",)),
    ("kiln: socket", "kiln_torch.local", ("LocalNode.fetch",)),
    ("kiln: verify manifest", "kiln_torch.manifest", ("verify",)),
    ("kiln: verify bytes", "kiln_torch.manifest", ("Artifact.verified",)),
    ("kiln: graph's key", "kiln_torch.asked", ("Asked.of_dynamo",)),
    ("kiln: load artifact", "kiln_torch.standalone", ("load",)),
)


class Phases:
    """Adds up seconds and calls by phase, over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        # A collection may begin while it is held.
        self._lock = threading.RLock()
        self._inside = threading.local()

    def watch(self, table) -> None:
        """Time the functions of ``table``."""
        for phase, module, names in table:
            try:
                loaded = importlib.import_module(module)
            except ImportError:
                continue
            for name in names:
                self._wrap(phase, loaded, name)

    def watch_collector(self) -> None:
        """Time Python's garbage collector, which may run within any other phase."""
        began = 0.0

        def collecting(phase, _) -> None:
            nonlocal began
            if phase == "start":
                began = time.perf_counter()
            else:
                self._add("garbage collected", time.perf_counter() - began)

        gc.callbacks.append(collecting)

    def told(self) -> dict[str, list]:
        """Seconds and calls of each phase that ran."""
        return {p: [round(self.seconds[p], 3), self.calls[p]] for p in self.seconds}

    def _wrap(self, phase, module, name) -> None:
        *path, last = name.split(".")
        owner = module
        for step in path:
            owner = getattr(owner, step, None)
        held = vars(owner).get(last) if owner is not None else None
        if held is None:
            return
        if isinstance(held, property):
            setattr(owner, last, property(self._timed(phase, held.fget)))
        elif isinstance(held, (staticmethod, classmethod)):
            setattr(owner, last, type(held)(self._timed(phase, held.__func__)))
        else:
            setattr(owner, last, self._timed(phase, held))

    def _timed(self, phase, function):
        @functools.wraps(function)
        def timed(*args, **kwargs):
            inside = self._inside.__dict__.setdefault("phases", set())
            if phase in inside:
                return function(*args, **kwargs)
            inside.add(phase)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside.discard(phase)
                self._add(phase, time.perf_counter() - began)

        return timed

    def _add(self, phase, seconds) -> None:
        with self._lock:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
            self.calls[phase] = self.calls.get(phase, 0) + 1
