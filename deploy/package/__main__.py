"""What is shipped of one build: `python3 -B deploy/package --program PROGRAM --out FOLDER`.

Writes an archive of the stripped program with its manual and completions, a Debian package, a
wheel that carries the program, the wheel of `kiln_torch`, and SHA256SUMS over them.

Invariant: names, versions and times come from the sources alone, so that one commit and one
program give the same files; and nothing is written where one of them cannot be made.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from deb import write_deb
from needs import Needs
from wheel import write_wheel

ROOT = Path(__file__).resolve().parents[2]
SHELLS = {
    "bash": "share/bash-completion/completions/kiln",
    "zsh": "share/zsh/site-functions/_kiln",
    "fish": "share/fish/vendor_completions.d/kiln.fish",
}


def main() -> None:
    """Packs one program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", type=Path, required=True, help="the kiln to pack")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument(
        "--own-paths", action="store_true", help="take a program that names this machine's folders"
    )
    given = parser.parse_args()
    version, epoch = versions(), commit_time()
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
    with tempfile.TemporaryDirectory(prefix="kiln-package-") as scratch:
        work, made = Path(scratch), Path(scratch, "made")
        made.mkdir()
        tree = staged(given.program, work / "tree", version)
        if not given.own_paths:
            refuse_own_paths(tree / "bin/kiln")
        needs = Needs.of(tree / "bin/kiln")
        write_archive(tree, made / f"kiln-{version}-x86_64-linux-gnu.tar.gz", epoch)
        write_deb(ROOT, tree, needs, version, made, work / "deb")
        write_wheel(tree, needs, version, epoch, made)
        write_torch_wheel(work / "torch", made)
        sums = [f"{sha256(file)}  {file.name}\n" for file in sorted(made.iterdir())]
        (made / "SHA256SUMS").write_text("".join(sums))
        given.out.mkdir(parents=True, exist_ok=True)
        for file in sorted(made.iterdir()):
            shutil.copyfile(file, given.out / file.name)
            print(f"{file.stat().st_size / 1e6:8.1f} MB  {given.out / file.name}")


def versions() -> str:
    """The version that Cargo.toml names, which is that of the Python package too."""
    first = re.compile(r'^version = "([^"]+)"$', re.MULTILINE)
    found = [
        first.search((ROOT / name).read_text()) for name in ("Cargo.toml", "python/pyproject.toml")
    ]
    version, python = [match[1] if match else "" for match in found]
    if python != version:
        sys.exit(f"python/pyproject.toml has version {python}, and Cargo.toml {version}")
    return version


def commit_time() -> int:
    """When these sources were committed, or what SOURCE_DATE_EPOCH says; 1980 without both."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not told:
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        told = found.stdout.strip()
    # A zip archive knows no time before.
    return max(int(told or 0), 315_532_800)


def staged(program: Path, tree: Path, version: str) -> Path:
    """What all but the wheels have: bin, share; the program stripped."""
    (tree / "bin").mkdir(parents=True)
    kiln = tree / "bin/kiln"
    # A program without symbols already stays as it is.
    run("strip", "--strip-all", "-o", kiln, program)
    kiln.chmod(0o755)
    told = run(kiln, "--version").strip()
    if told != f"kiln {version}":
        sys.exit(f"{program} is {told}, and Cargo.toml has {version}")
    run(kiln, "man", "--dir", tree / "share/man/man1")
    for page in sorted((tree / "share/man/man1").iterdir()):
        page.with_name(f"{page.name}.gz").write_bytes(gzip.compress(page.read_bytes(), mtime=0))
        page.unlink()
    for shell, place in SHELLS.items():
        (tree / place).parent.mkdir(parents=True)
        (tree / place).write_text(run(kiln, "completions", shell))
    doc = tree / "share/doc/kiln"
    doc.mkdir(parents=True)
    shutil.copyfile(ROOT / "LICENSE", doc / "LICENSE")
    (doc / "third-party.txt").write_text(linked())
    return tree


def linked() -> str:
    """The crates that are linked into the program, with their licences."""
    words = ["tree", "--locked", "--package", "kiln", "--edges", "normal", "--prefix", "none"]
    lines = run("cargo", *words, "--format", "{p}\t{l}", cwd=ROOT).splitlines()
    # Those of this workspace are named with their folder.
    others = {line.removesuffix(" (*)") for line in lines if line and "(/" not in line}
    head = "Linked into kiln, with the licence that each names:\n\n"
    crates = (line.replace(" (proc-macro)", "").split("\t") for line in sorted(others))
    return head + "".join(f"{name}: {licence}\n" for name, licence in crates)


def refuse_own_paths(program: Path) -> None:
    """No folder of the machine that compiled it is in what is shipped."""
    content = program.read_bytes()
    cargo = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    for folder in (str(ROOT), cargo):
        if folder.encode() + b"/" in content:
            sys.exit(
                f"the program names {folder}: build it with `make dist`, which maps such paths, "
                "or pack it with --own-paths for a test"
            )


def write_archive(tree: Path, archive: Path, epoch: int) -> None:
    """`tree` as it is unpacked into /usr/local."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        member.mtime = epoch
        member.mode = 0o755 if member.isdir() or member.name == "bin/kiln" else 0o644
        return member

    with (
        archive.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            tar.add(path, str(path.relative_to(tree)), recursive=False, filter=plain)


def write_torch_wheel(work: Path, out: Path) -> None:
    """The wheel of `kiln_torch`, from a copy: a build writes beside its sources."""
    ignored = shutil.ignore_patterns("tests", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT / "python", work, ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, work)


def sha256(file: Path) -> str:
    """Of its content, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; one that fails ends this, after its own words."""
    command = [str(word) for word in words]
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=cwd
        ).stdout
    except FileNotFoundError:
        sys.exit(f"{command[0]} is missing: install it first")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"{' '.join(command)} ended with {failed.returncode}")


if __name__ == "__main__":
    main()
