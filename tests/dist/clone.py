"""From `git clone` to a hit on a second node, as a newcomer does it: `make test-dist CASES=clone`.

The root is bare: no Python, no git. Every command is one that README prints. What a newcomer has
from elsewhere is this machine's: the commit, by a bind mount in place of its host; Rust, in place
of rustup; the network and the certificates by which package registries are reached.

Invariant: nothing is there that README does not name, and a step that fails ends the case.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from bare import PATH, Bare, Failed

# Bounds, not expectations: a cold build may share its cores.
BUILD_SECONDS = 3600
INCLUDED = "ca-certificates"
REQUIRED = "apt-get install --yes git make python3"
NODES = "kiln dev --nodes 3 --object file://$PWD/l3"
COMPILE = "kiln compile tests/examples/saxpy.cu --target sm_90 -o out"
AGAIN = "kiln compile tests/examples/saxpy.cu --target sm_90 --endpoint http://127.0.0.1:7410"
ENDPOINT = "export KILN_ENDPOINT=http://127.0.0.1:7400"
# `script` gives it a terminal: people have ports that they can remember.
FIVE_MINUTES = f"""
say() {{ printf '\\n[%4d s] $ %s\\n' $(($(date +%s) - began)) "$1"; }}
say '{NODES}'
script --quiet --flush --command '{NODES}' /tmp/dev >/dev/null &
waited=0
until grep -qs "Ctrl-C stops" /tmp/dev; do
    [ $waited -lt 1200 ] || {{ cat /tmp/dev; exit 1; }}
    sleep 0.1; waited=$((waited + 1))
done
sed 1d /tmp/dev
say '{ENDPOINT}'
{ENDPOINT}
say '{COMPILE}'
{COMPILE}
say '{AGAIN}'
{AGAIN} | tee /tmp/again
grep -q '^hit ' /tmp/again
"""


def shown(source: Path, folder: Path) -> dict[str, Path]:
    """What stands in for other machines, by its place in the root."""
    bundle = folder / "kiln.git"
    command = ["git", "clone", "--quiet", "--bare", "--no-hardlinks", str(source), str(bundle)]
    subprocess.run(command, check=True)
    sysroot = subprocess.run(
        ["rustc", "--print", "sysroot"], cwd=source, capture_output=True, text=True, check=True
    )
    return {"kiln.git": bundle, "rust": Path(sysroot.stdout.strip())}


def reach(bare: Bare) -> None:
    """The root reaches what this machine reaches."""
    for name in ("resolv.conf", "hosts", "pip.conf"):
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), bare.root / "etc" / name)
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    shutil.copyfile(certificates, bare.root / str(certificates).removeprefix("/"))


def clone(bare: Bare, source: Path) -> None:
    """Goes through README, and prints each command with the seconds since the first."""
    readme = (source / "README.md").read_text()
    for command in (REQUIRED, "make demo", "make install", NODES, ENDPOINT, COMPILE, AGAIN):
        if command not in readme:
            raise Failed(f"README.md does not print `{command}`")
    reach(bare)
    began = time.monotonic()

    def step(command: str, folder: str = "/root") -> None:
        print(f"\n[{time.monotonic() - began:4.0f} s] $ {command}", flush=True)
        path = f"/rust/bin:{PATH}"
        bare.run(f"cd {folder}; PATH={path}; {command}", network=True, seconds=BUILD_SECONDS)

    step(f"apt-get update --quiet=2 && {REQUIRED} --quiet=2 >/dev/null")
    step("git clone --quiet /kiln.git kiln")
    step("make demo", "/root/kiln")
    step("make install PROFILE=dev", "/root/kiln")
    so_far = f"began=$(($(date +%s) - {time.monotonic() - began:.0f}))"
    bare.run(f"{so_far}; cd /root/kiln; PATH=/root/.local/bin:$PATH; {FIVE_MINUTES}")
    print(f"\n[{time.monotonic() - began:4.0f} s] a hit on a second node", flush=True)
