"""What beside the graph decides Inductor's output: options, versions, machine.

Invariant: a superset of what torch hashes for its own caches, less the switches
of those caches themselves: where an artifact is looked for does not change it.
What torch refuses to cache is ``Unkeyable`` here too.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import torch

from . import cpu
from .graph import Unkeyable, scalar, value_of
from .manifest import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

# The fingerprint's compiler.
COMPILER = "inductor-standalone"
# Said by the graph's form already, or not about this compile.
_ELSEWHERE = (
    "gm",
    "example_inputs",
    "aot_config",
    "fx_kwargs",
    "inputs_to_check",
    "autograd_config",
)
# In the fingerprint.
_FINGERPRINTED = ("torch_version", "system_info")
# Switches of torch's own caches, by part of their name.
_CACHE_SWITCHES = (
    "autograd_cache",
    "bundled_autotune",
    "fx_graph_cache",
    "fx_graph_remote_cache",
    "autotune_local_cache",
    "autotune_remote_cache",
)


def options(gm: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> bytes:
    """Write down the settings in force that decide the code of ``gm``."""
    from torch._functorch import config as functorch
    from torch._functorch._aot_autograd import autograd_cache
    from torch._inductor.codecache import BypassFxGraphCache

    try:
        autograd_cache.check_cacheable(gm)
        details = autograd_cache.AOTAutogradCacheDetails(gm, example_inputs, None, {})
    except (autograd_cache.BypassAOTAutogradCache, BypassFxGraphCache) as refused:
        raise Unkeyable(str(refused)) from refused
    told = {
        name: value
        for name, value in vars(details).items()
        if name not in _ELSEWHERE and name not in _FINGERPRINTED
    }
    told["functorch"] = functorch.save_config_portable()
    return json.dumps(plain(told), separators=(",", ":"), sort_keys=True).encode()


def plain(value: Any) -> Any:
    """Write a setting as JSON, the same in every process."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {
            name if isinstance(name, str) else scalar(name): plain(each)
            for name, each in value.items()
            if not (isinstance(name, str) and any(switch in name for switch in _CACHE_SWITCHES))
        }
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, (set, frozenset)) or type(value).__name__ == "OrderedSet":
        return sorted(json.dumps(plain(each), sort_keys=True) for each in value)
    if isinstance(value, bytes):
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, type) or callable(value):
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        if name.partition(".")[0] == "torch" and "<" not in name:
            return name
    return scalar(value)


def versions(types: set[str]) -> list[tuple[str, str]]:
    """Versions and the machine's properties, as fields of the key and the manifest."""
    from torch._inductor.codecache import CacheBase, torch_key

    fields = [
        ("torch", torch.__version__),
        ("torch_key", torch_key().hex()),
        ("python", f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"),
        ("triton", _triton()),
    ]
    if "cpu" in types:
        # In no key of torch's: code for AVX-512 ends in SIGILL elsewhere.
        fields += [("isa", cpu.instruction_sets())]
    if types != {"cpu"}:
        fields += [
            ("cuda", str(torch.version.cuda)),
            ("cudnn", str(torch.backends.cudnn.version())),
            ("system", json.dumps(plain(CacheBase.get_system()), sort_keys=True)),
        ]
    return fields


def device_types(gm: torch.fx.GraphModule) -> set[str]:
    """Return the types of all devices that the graph's values are on; at least one."""
    values = (value_of(node) for node in gm.graph.nodes)
    return {value.device.type for value in values if isinstance(value, torch.Tensor)} or {"cpu"}


def target_of(example_inputs: Sequence[Any], types: set[str]) -> Target:
    """Return what the output runs on: a GPU's architecture, or anything."""
    if "cuda" not in types:
        return Target.any()
    devices = {each.device for each in example_inputs if isinstance(each, torch.Tensor)}
    capabilities = {torch.cuda.get_device_capability(d) for d in devices if d.type == "cuda"}
    if len(capabilities) > 1:
        raise Unkeyable("GPUs of several architectures")
    major, minor = capabilities.pop() if capabilities else torch.cuda.get_device_capability()
    return Target("FILES", 10 * major + minor)


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__
