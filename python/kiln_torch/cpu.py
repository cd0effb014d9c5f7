"""What code that was built for this CPU may use of it.

Invariant: two machines say the same only where each runs what was built on the other
with ``-march=native``, as Inductor builds it. Nothing is compiled to find that out:
``pick_vec_isa`` builds test programs, for ten seconds in an empty folder, and its answer
is a part of this one's.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from pathlib import Path

import torch

# Beginnings of x86's flags that a compiler may use: those of ``kiln run``'s tool `isa`. The
# rest tells of bugs, virtual machines and power, and differs among machines that run the
# same code.
_USED = (
    *("3dnow", "abm", "adx", "aes", "amx", "apx", "avx", "bmi", "cldemote", "clflushopt"),
    *("clwb", "clzero", "cmov", "cmpccxadd", "cx16", "cx8", "f16c", "fma", "fsgsbase", "fxsr"),
    *("gfni", "hle", "lahf_lm", "lzcnt", "mmx", "movbe", "movdir", "mwaitx", "pclmulqdq"),
    *("popcnt", "prefetchwt1", "ptwrite", "rdpid", "rdrand", "rdseed", "rtm", "serialize"),
    *("sha", "sse", "ssse3", "tbm", "tsxldtrk", "vaes", "vpclmulqdq", "waitpkg", "wbnoinvd"),
    *("xop", "xsave"),
)


@functools.cache
def instruction_sets() -> str:
    """Return the machine, what PyTorch makes of it, and a digest of its instruction sets."""
    flags = _flags(Path("/proc/cpuinfo"))
    said = " ".join(sorted(flags)) if flags else platform.processor()
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {digest}"


def _flags(cpuinfo: Path) -> set[str]:
    """Return the first processor's; empty where nothing says so."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return set()
    lines = (line.partition(":") for line in reversed(text.splitlines()))
    said = {name.strip(): value.split() for name, _, value in lines}
    used = {flag for flag in said.get("flags", ()) if flag.startswith(_USED)}
    # Arm names nothing but instruction sets.
    return used or set(said.get("Features", ()))
