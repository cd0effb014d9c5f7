"""What a build compiles, its tests use: `python3 tests/same_build.py`.

Cargo gives a library the features that all who are compiled with it ask for. A feature that a
dependency of tests alone asks for makes `make test` compile that library, and all that stand on
it, once more.
Invariant: a library that tests have in other features than `make build` or `cargo build -p kiln`
fails, and is named with the features that the build lacks.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The whole of it, and what goals build that need the program alone.
BUILDS = (("--workspace",), ("--package", "kiln"))

# Of each package, apart for what runs while others are compiled: its sets of features.
Features = dict[str, set[frozenset[str]]]


def features(selection: tuple[str, ...], edges: str, target: str) -> Features:
    """What is compiled with `selection`."""
    # With a target that is named, cargo tells the two uses of a package apart.
    command = ["cargo", "tree", "--locked", *selection, "--edges", edges, "--target", target]
    command += ["--charset", "ascii", "--format", "{p}|{f}|"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return parsed(run.stdout)


def parsed(tree: str) -> Features:
    """The packages of a tree that cargo drew: who stands deeper belongs to who stands above."""
    found: Features = {}
    builds_at: int | None = None
    for line in filter(None, tree.splitlines()):
        text = line.lstrip("|`- ")
        column = len(line) - len(text)
        if builds_at is not None and column <= builds_at:
            builds_at = None
        if text.startswith("["):
            builds_at = column if builds_at is None and "build" in text else builds_at
            continue
        package, names, _ = text.split("|")
        if builds_at is None and package.endswith("(proc-macro)"):
            builds_at = column
        use = package if builds_at is None else f"{package} of builds"
        found.setdefault(use, set()).add(frozenset(filter(None, names.split(","))))
    return found


def compiled_again(build: Features, tests: Features) -> list[str]:
    """The packages of `build` that `tests` have otherwise, and what that differs in."""
    found = []
    for package, ours in sorted(build.items()):
        theirs = tests.get(package, set())
        for lacking in ours - theirs:
            more = set().union(*(each - lacking for each in theirs))
            found.append(f"{package}: the tests' one has also {', '.join(sorted(more)) or 'less'}")
    return found


def main() -> int:
    """Prints what is wrong."""
    command = ["rustc", "-vV"]
    version = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    target = version.split("host: ")[1].split()[0]
    tests = features(("--workspace",), "normal,build,dev", target)
    found = False
    for build in BUILDS:
        for line in compiled_again(features(build, "normal,build", target), tests):
            found = True
            print(f"cargo build {' '.join(build)}: {line}", file=sys.stderr)
    if found:
        print(
            "Name these features where Cargo.toml has those of libraries that Kiln does not call, "
            "or the tests compile all that stands on these libraries a second time.",
            file=sys.stderr,
        )
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
