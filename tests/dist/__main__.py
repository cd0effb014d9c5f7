"""What `make dist` makes, installed and run on a bare Debian: `make test-dist`.

A system root is made by debootstrap, with Python and nothing of Kiln. In a copy of it each of
the archive, the Debian package, `make install` and the wheels is installed, two nodes of
`kiln dev` are started, and what the first one stored or compiled must be a hit on the second.
The case `clone` is from the sources, and runs where it is named alone: a cold build.

Invariant: what is installed runs without this machine's files, with loopback as its only
network, and it leaves nothing behind: no process, no mount, no folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import clone
from bare import Bare, Failed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INSIDE = "python3 /test/inside.py"


class Packages:
    """The files of one `make dist`."""

    def __init__(self, folder: Path) -> None:
        """Finds them, and holds them against their sums."""
        self.folder = folder
        done = subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False
        )
        if done.returncode:
            raise Failed(f"{folder}: not what SHA256SUMS says; run `make dist`")

    def one(self, pattern: str) -> Path:
        """The only file of that name."""
        found = sorted(self.folder.glob(pattern))
        if len(found) != 1:
            raise Failed(f"{self.folder}: {len(found)} files named {pattern}; run `make dist`")
        return found[0]


def archive(bare: Bare, packages: Packages) -> None:
    """Unpacked into /usr/local, NVRTC in Kiln's cache folder."""
    file = packages.one("kiln-*-x86_64-linux-gnu.tar.gz")
    bare.run(f"tar -xzf /packages/{file.name} -C /usr/local --no-same-owner")
    bare.copy(nvrtc(), "root/.cache/kiln/nvrtc-1/nvidia/cu13/lib")
    bare.run(f"{INSIDE} --pages /usr/local/share/man --compiles")


def debian(bare: Bare, packages: Packages) -> None:
    """Installed by dpkg, its dependencies checked, and removed without a trace."""
    file = packages.one("kiln_*_amd64.deb")
    before = bare.files("usr", "etc")
    bare.run(f"dpkg --install /packages/{file.name}")
    bare.run("grep -qx 'ExecStart=/usr/bin/kiln serve' /usr/lib/systemd/system/kiln.service")
    bare.run("test -s /usr/share/doc/kiln/copyright -a -s /usr/share/doc/kiln/kiln.env.example")
    bare.run("! find /usr/share/doc/kiln /usr/bin/kiln -perm /022 | grep .")
    bare.copy(nvrtc(), "opt/nvrtc")
    bare.run(f"KILN_NVRTC_DIR=/opt/nvrtc {INSIDE} --pages /usr/share/man --compiles")
    bare.run("dpkg --purge kiln")
    left = bare.files("usr", "etc") - before
    if left:
        raise Failed(f"dpkg --purge left {sorted(left)[:5]}")


def installed(bare: Bare, packages: Packages) -> None:
    """By `make install`'s script, without NVRTC: stored and fetched all the same."""
    file = packages.one("kiln-*-x86_64-linux-gnu.tar.gz")
    program = bare.scratch / "kiln"
    command = ["tar", "-xzOf", str(file), "bin/kiln"]
    with program.open("wb") as out:
        subprocess.run(command, stdout=out, check=True)
    program.chmod(0o755)
    before = bare.files("usr")
    script = ROOT / "deploy/install.sh"
    environment = {**os.environ, "PREFIX": "/usr/local", "DESTDIR": str(bare.root)}
    for words in (["install", str(program)], ["install", str(program)]):
        subprocess.run([str(script), *words], env=environment, check=True)
    bare.run(f"{INSIDE} --pages /usr/local/share/man")
    # Not ours, and beside ours.
    (bare.root / "usr/local/share/man/man1/kiln-other.1").write_text("")
    subprocess.run([str(script), "uninstall"], env=environment, check=True)
    left = bare.files("usr") - before - {"usr/local/share/man/man1/kiln-other.1"}
    if left or not (bare.root / "usr/local/share/man/man1/kiln-other.1").exists():
        raise Failed(f"uninstall left {sorted(left)[:5]}, or took what is not Kiln's")


def wheels(bare: Bare, packages: Packages) -> None:
    """Both in one virtual environment, NVRTC as the program's extra, kiln_torch beside it."""
    program, torch = packages.one("kiln_bin-*.whl"), packages.one("kiln_torch-*.whl")
    bare.run("python3 -m venv /venv")
    pip = "/venv/bin/pip install --no-index --find-links /wheels --disable-pip-version-check"
    bare.run(f"{pip} --quiet '/packages/{program.name}[nvrtc]' /packages/{torch.name}")
    # The environment is not activated: `kiln` looks where it lies.
    bare.run(f"PATH=/venv/bin:$PATH {INSIDE} --compiles --torch /venv/bin/python")
    bare.run("/venv/bin/pip uninstall --quiet --yes kiln-bin && test ! -e /venv/bin/kiln")


CASES = {"archive": archive, "debian": debian, "installed": installed, "wheels": wheels}
# Needs no packages, a network, and the time of a cold build.
CLONE = "clone"


def nvrtc() -> Path:
    """The folder that `deploy/toolchain.sh` names."""
    return Path(os.environ["KILN_NVRTC_DIR"])


def fetch_wheels(folder: Path) -> None:
    """What the wheels need, for the Python of the root, by this repository's pins."""
    for pins in ("nvrtc.txt", "python.txt"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
        command += ["--python-version", "3.11", "--platform", "manylinux_2_35_x86_64"]
        command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"]
        command += ["--platform", "manylinux2014_x86_64"]
        subprocess.run([*command, "-r", str(ROOT / "deploy/tools" / pins)], check=True)


def main() -> int:
    """Runs the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, help="what `make dist` wrote")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--base", type=Path, help="a root that debootstrap made already")
    names = ", ".join([*CASES, CLONE])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=names)
    given = parser.parse_args()
    chosen = given.cases or list(CASES)
    unknown = [name for name in chosen if name not in CASES and name != CLONE]
    if unknown:
        parser.error(f"{unknown[0]!r} is no case; there are {names}")
    packed = [name for name in chosen if name in CASES]
    if packed and not given.packages:
        parser.error(f"--packages is missing, which {packed[0]} needs: see `make test-dist`")
    failed = []
    with tempfile.TemporaryDirectory(prefix="kiln-dist-") as folder:
        scratch = Path(folder)
        if packed:
            failed += of_packages(packed, Packages(given.packages.resolve()), scratch, given)
        if CLONE in chosen:
            failed += of_sources(scratch, given.mirror)
    return 1 if failed else 0


def of_packages(
    names: list[str], packages: Packages, scratch: Path, given: argparse.Namespace
) -> list[str]:
    """Runs these cases, and tells which of them failed."""
    base = given.base or Bare.debootstrap(scratch / "base", given.mirror)
    (scratch / "wheels").mkdir()
    shown = {"packages": packages.folder, "test": HERE, "wheels": scratch / "wheels"}
    shown["examples"] = ROOT / "tests/examples"
    failed = []
    for name in names:
        if name == "wheels":
            fetch_wheels(scratch / "wheels")
        bare = Bare.copy_of(base, scratch / f"root-{name}", shown)
        failed += tried(name, bare, lambda bare, name=name: CASES[name](bare, packages))
    return failed


def of_sources(scratch: Path, mirror: str) -> list[str]:
    """Runs the case `clone`."""
    base = Bare.debootstrap(scratch / "base-clone", mirror, clone.INCLUDED)
    bare = Bare.copy_of(base, scratch / "root-clone", clone.shown(ROOT, scratch))
    return tried(CLONE, bare, lambda bare: clone.clone(bare, ROOT))


def tried(name: str, bare: Bare, case: Callable[[Bare], None]) -> list[str]:
    """Runs one case and removes its root; its name, where it failed."""
    start, failed = time.monotonic(), []
    try:
        case(bare)
        print(f"ok      {name}: {time.monotonic() - start:.1f} s", flush=True)
    except (Failed, subprocess.CalledProcessError) as why:
        failed.append(name)
        print(f"FAILED  {name}: {why}", flush=True)
    shutil.rmtree(bare.scratch)
    return failed


if __name__ == "__main__":
    sys.exit(main())
