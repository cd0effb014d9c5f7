"""The Debian package: the program, its unit, manual, completions and copyright.

Invariant: it has no script that runs when it is installed, so that nothing starts by itself.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

from needs import Needs

UNIT_HEAD = """\
# One node of a cluster. Settings: /etc/kiln/kiln.env, for which
# /usr/share/doc/kiln/kiln.env.example is an example; then systemctl enable --now kiln.
"""
CONTROL = """\
Package: kiln
Version: {version}
Architecture: amd64
Section: devel
Priority: optional
Maintainer: Kiln <kiln@localhost>
Installed-Size: {kib}
Depends: {depends}
Recommends: ca-certificates
Description: cluster-wide cache of compiled GPU code
 What one machine compiled once, every other machine fetches, checks and
 runs; nobody compiles it again. A node compiles CUDA itself where it finds
 NVRTC, which is not part of this package.
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: kiln

Files: *
Copyright: the authors of Kiln
License: Apache-2.0

License: Apache-2.0
 On Debian systems, the full text of the Apache License version 2.0 is in
 /usr/share/common-licenses/Apache-2.0.
Comment:
 The crates that are linked into the program, and their licences, are listed
 in /usr/share/doc/kiln/third-party.txt.
"""


def write_deb(root: Path, tree: Path, needs: Needs, version: str, out: Path, work: Path) -> None:
    """Packs `tree` below /usr; the times of its files are SOURCE_DATE_EPOCH's."""
    shutil.copytree(tree, work / "usr")
    # Below /usr zsh looks here for what packages bring, and below /usr/local where it lies.
    zsh = work / "usr/share/zsh"
    (zsh / "site-functions").rename(zsh / "vendor-completions")
    doc = work / "usr/share/doc/kiln"
    # Debian has the licence's text already.
    (doc / "LICENSE").unlink()
    (doc / "copyright").write_text(COPYRIGHT)
    changes = (root / "CHANGELOG.md").read_bytes()
    (doc / "changelog.gz").write_bytes(gzip.compress(changes, mtime=0))
    shutil.copyfile(root / "deploy/kiln.env.example", doc / "kiln.env.example")
    units = work / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    (units / "kiln.service").write_text(unit((root / "deploy/kiln.service").read_text()))
    for path in work.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path == work / "usr/bin/kiln" else 0o644)
    bytes_ = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    (work / "DEBIAN").mkdir()
    control = CONTROL.format(version=version, kib=bytes_ // 1024 + 1, depends=needs.depends())
    (work / "DEBIAN/control").write_text(control)
    file = out / f"kiln_{version}_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(work), str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def unit(text: str) -> str:
    """The unit of `deploy/` for a program in /usr/bin, with a head that fits."""
    lines = text.splitlines()
    body = "\n".join(lines[lines.index("[Unit]") :]) + "\n"
    ours = body.replace("/usr/local/bin/kiln", "/usr/bin/kiln")
    if ours == body:
        raise SystemExit("deploy/kiln.service starts no /usr/local/bin/kiln")
    return f"{UNIT_HEAD}\n{ours}"
