"""What `make` goals say on a machine that lacks what they need: `python3 -B tests/goals.py`.

Each goal of `deploy/toolchain.sh` is started where some commands are missing and nothing can be
installed. It must end at once, with one line that names what to install.

Invariant: nothing is installed, fetched or written by it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Ways to install something.
INSTALLERS = {"apt-get", "sudo"}
# Goal, the commands that are missing, and what has to be named.
MISSING = [
    ("build", {"c++", "cc"}, "g++"),
    ("build", {"cargo"}, "https://rustup.rs"),
    ("kube", {"buildah", "debootstrap", "ip"}, "buildah debootstrap iproute2"),
    ("compose", {"ip"}, "iproute2"),
    ("faults", {"ip"}, "iproute2"),
    ("dist", {"dpkg-deb", "strip", "readelf"}, "dpkg binutils"),
    ("bare", {"debootstrap", "ip"}, "debootstrap iproute2"),
]
# Goal, a command that answers otherwise, what it prints, and what has to be said.
OTHERWISE = [
    ("build", "rustc", "rustc 1.63.0 (4b91a6ea7 2022-08-08)", "or newer is needed"),
    *[(goal, "id", "1000", "run it as root") for goal in ("kube", "compose", "faults", "bare")],
]


def link(folder: Path, wanted: Callable[[str], bool]) -> Path:
    """A folder with those of this machine's commands that are wanted."""
    folder.mkdir()
    for place in os.environ["PATH"].split(":"):
        for command in Path(place).glob("*") if place else ():
            own = folder / command.name
            if wanted(command.name) and not own.is_symlink():
                own.symlink_to(command)
    return folder


def told(path: str, goal: str, scratch: Path) -> list[str]:
    """The lines that the goal prints before it fails."""
    done = subprocess.run(
        [str(ROOT / "deploy/toolchain.sh"), goal],
        env={"HOME": str(scratch), "PATH": path, "KILN_CACHE": str(scratch / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    return lines if done.returncode == 1 else [*lines, f"exit code {done.returncode}"]


def main() -> int:
    """Tries each, and names those that say something else."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="kiln-goals-") as folder:
        scratch = Path(folder)
        cases = [(goal, f"without {without}", without, "", said) for goal, without, said in MISSING]
        cases += [
            (goal, f"{name} is {text}", {name}, text, said) for goal, name, text, said in OTHERWISE
        ]
        named = {name for _, _, without, _, _ in cases for name in without}
        others = link(scratch / "bin", lambda name: name not in named | INSTALLERS)
        for at, (goal, what, without, text, said) in enumerate(cases):
            own = link(scratch / f"bin-{at}", lambda name, but=without: name in named - but)
            # Who runs this need not be root; what a plain user is told is another case.
            answers = {next(iter(without)): text} if text else {"id": "0"}
            for name, answer in answers.items():
                stub = own / name
                stub.unlink(missing_ok=True)
                stub.write_text(f"#!/bin/sh\necho '{answer}'\n")
                stub.chmod(0o755)
            lines = told(f"{own}:{others}", goal, scratch)
            if len(lines) != 1 or said not in lines[0]:
                wrong.append(f"{goal} {what}: not one line with {said!r}: {lines}")
        if any((scratch / "cache").glob("*")):
            wrong.append("something was made before it was said what is missing")
    print("\n".join(wrong) or f"{len(cases)} cases say in one line what is missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
