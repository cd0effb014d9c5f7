"""What this interpreter compiles with: all that can change Inductor's output, by name.

Invariant: two machines with the same versions make the same artifact; paths,
folders and numbers of threads are in none of them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import subprocess
import sys

from .artifact import AHEAD_OF_TIME, STANDALONE


def digest(data: bytes) -> str:
    """Enough of a hash to tell versions apart."""
    return hashlib.sha256(data).hexdigest()[:16]


def _said(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def config_digest() -> str:
    """Inductor's defaults, without what only says where and with how many threads it works."""
    from torch._inductor import config

    local = re.compile(r"thread|path|_dir|log|worker|cache")
    portable = config.save_config_portable()
    kept = {name: repr(value) for name, value in portable.items() if not local.search(name)}
    return digest(json.dumps(kept, sort_keys=True).encode())


def versions() -> dict[str, str]:
    """Everything of this machine that can change Inductor's output, by name."""
    import torch
    from torch._inductor.codecache import CacheBase, torch_key

    found = {
        "torch": torch.__version__,
        "torch_key": digest(torch_key()),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "cuda": torch.version.cuda or "none",
        "inductor_defaults": config_digest(),
    }
    triton = CacheBase.get_system().get("version", {}).get("triton")
    release = getattr(sys.modules.get("triton"), "__version__", "")
    found["triton"] = f"{release}-{digest(str(triton).encode())}" if triton else "none"
    try:
        found["cudnn"] = str(torch.backends.cudnn.version() or "none")
    except RuntimeError:
        found["cudnn"] = "none"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(0)
    found.update(_cpu())
    return found


def read_ahead() -> None:
    """Find out what takes time and what all forks of this process may share."""
    from torch._inductor.codecache import torch_key

    torch_key()
    # Before anything here changes one: ``_cpu`` does.
    config_digest()
    _cpu()


@functools.cache
def _cpu() -> dict[str, str]:
    """Inductor builds C++ with -march=native: what that means here is part of the output."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    try:
        compiler = get_cpp_compiler()
    except Exception:  # no compiler, so what needs one is refused
        return {"cxx": "none", "isa": "none"}
    release = _said(compiler, "--version").partition("\n")[0] or "unknown"
    macros = _said(compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    if "__AVX2__" in macros:
        # It builds for this CPU: three test programs that would show it take ten seconds.
        config.cpp.vec_isa_ok = True
    isa = str(pick_vec_isa()).strip() or "none"
    target = _said(compiler, "-march=native", "-Q", "--help=target")
    named = re.search(r"-march=\s+(\S+)", target)
    march = f"{named[1] if named else 'native'}-{digest((macros + target).encode())}"
    return {"cxx": release, "isa": isa, "march": march}


def compute_capability() -> int:
    """Of the first GPU, times ten; 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability(0)
    return major * 10 + minor


def compilers() -> list[str]:
    """Names of the compilers that this torch has."""
    import torch._inductor

    has = hasattr(torch._inductor, "standalone_compile")
    return [AHEAD_OF_TIME, STANDALONE] if has else [AHEAD_OF_TIME]
