"""A wheel that carries the program, as maturin's `bin` bindings lay it out: uv, ruff.

Invariant: two builds of one program give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import time
import zipfile
from pathlib import Path

from needs import Needs

NAME = "kiln_bin"
METADATA = """\
Metadata-Version: 2.3
Name: kiln-bin
Version: {version}
Summary: A cluster-wide cache of compiled GPU code: the program kiln
License: Apache-2.0
Requires-Python: >=3.8
Provides-Extra: nvrtc
Requires-Dist: nvidia-cuda-nvrtc>=13; extra == 'nvrtc'
"""
WHEEL = """\
Wheel-Version: 1.0
Generator: kiln deploy/package
Root-Is-Purelib: false
Tag: {tag}
"""


def write_wheel(tree: Path, needs: Needs, version: str, epoch: int, out: Path) -> None:
    """`kiln` in the folder of scripts, and its metadata."""
    tag = f"py3-none-{needs.platform()}"
    info = f"{NAME}-{version}.dist-info"
    doc = tree / "share/doc/kiln"
    files = {
        f"{NAME}-{version}.data/scripts/kiln": (tree / "bin/kiln").read_bytes(),
        f"{info}/METADATA": METADATA.format(version=version).encode(),
        f"{info}/WHEEL": WHEEL.format(tag=tag).encode(),
        f"{info}/licenses/LICENSE": (doc / "LICENSE").read_bytes(),
        f"{info}/licenses/third-party.txt": (doc / "third-party.txt").read_bytes(),
    }
    record = f"{info}/RECORD"
    rows = [f"{name},{digest(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    moment = time.gmtime(epoch)[:6]
    file = out / f"{NAME}-{version}-{tag}.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as wheel:
        for name, content in files.items():
            member = zipfile.ZipInfo(name, moment)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            mode = 0o755 if name.endswith("/scripts/kiln") else 0o644
            member.external_attr = (0o100000 | mode) << 16
            wheel.writestr(member, content)


def digest(content: bytes) -> str:
    """As RECORD has it."""
    value = base64.urlsafe_b64encode(hashlib.sha256(content).digest())
    return "sha256=" + value.rstrip(b"=").decode()
