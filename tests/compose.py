"""deploy/compose.yaml as processes: its nodes and its S3 server, without containers.

    python3 tests/compose.py --kiln target/debug/kiln [--compose docker-compose]

Every service gets a network of its own on a common switch, the names of the others,
and the very command and environment that the file gives it. Checks that the nodes
found one cluster, that what one compiles another serves, that it is stored in the
bucket, and that it is served from there once all disks are gone. Needs root, PyYAML
(KILN_CHART_PACKAGES) and the S3 server that KILN_WEED names; leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parent.parent / "deploy/compose.yaml"
KERNEL = 'extern "C" __global__ void doubled(float *x) { x[threadIdx.x] *= 2.0f; }\n'
PATIENCE = 90.0
SWITCH = "kiln-compose"
# Of the host's folders, those that a service has as its own.
DATA = "/var/lib/kiln"


def run(*command: str, check: bool = True) -> str:
    """A command of the host."""
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def wait_for(what: str, holds: Callable[[], object]) -> None:
    """Waits until it holds."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(RuntimeError, ValueError, KeyError):
            if holds():
                return
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.2)


def interpolated(text: str) -> str:
    """With `${NAME:-default}` replaced, as compose does."""
    pattern = r"\$\{(\w+):-([^}]*)\}"
    return re.sub(pattern, lambda m: os.environ.get(m[1]) or m[2], text)


class Project:
    """The services as processes."""

    def __init__(self, folder: Path, kiln: Path) -> None:
        """Reads the file; starts nothing."""
        self.folder, self.kiln = folder, kiln
        self.file: dict[str, Any] = yaml.safe_load(interpolated(FILE.read_text()))
        self.services: dict[str, dict[str, Any]] = self.file["services"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.address = {name: f"10.231.9.{n + 1}" for n, name in enumerate(self.services)}
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in self.address.items())
        )

    def network(self) -> None:
        """One namespace for each service, and a switch that nothing else reaches."""
        run("ip", "netns", "add", SWITCH)
        run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", SWITCH, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(self.address.items()):
            space, port = f"{SWITCH}-{name}", f"port{number}"
            run("ip", "netns", "add", space)
            link = ("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "-n", SWITCH, *link)
            run("ip", "-n", SWITCH, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")

    def inside(self, name: str, *command: str) -> list[str]:
        """The command line that runs in a service's network, with the services' names."""
        bind = 'mount --bind "$0" /etc/hosts && exec "$@"'
        space = f"--net=/run/netns/{SWITCH}-{name}"
        hosts = str(self.folder / "hosts")
        return ["nsenter", space, "unshare", "--mount", "sh", "-c", bind, hosts, *command]

    def start(self, name: str) -> None:
        """Starts one service with what the file says."""
        service, home = self.services[name], self.folder / name
        home.mkdir(exist_ok=True)
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        environment.update(service.get("environment", {}))
        if name == "s3":
            config = home / "s3.json"
            config.write_text(self.file["configs"]["s3"]["content"])
            data = home / "data"
            data.mkdir(exist_ok=True)
            moved = {"-dir=/data": f"-dir={data}", "-s3.config=/s3.json": f"-s3.config={config}"}
            arguments = [moved.get(word, word) for word in service["command"]]
            command = [os.environ["KILN_WEED"], *arguments, "-s3.port.iceberg=0"]
        else:
            # Two things that the image brings: its data folder and NVRTC's place.
            environment["KILN_DATA_DIR"] = str(home / "data")
            environment["LD_LIBRARY_PATH"] = os.environ["KILN_NVRTC_DIR"]
            command = [str(self.kiln), "serve"]
        log = (home / "log").open("ab")
        self.running[name] = subprocess.Popen(
            self.inside(name, *command), env=environment, stdout=log, stderr=log, cwd=home
        )

    def ask(self, name: str, *command: str) -> str:
        """A program in a service's network."""
        return run(*self.inside(name, *command))

    def status(self, name: str) -> dict[str, Any]:
        """What a node says of the cluster; the file's health check."""
        test = self.services[name]["healthcheck"]["test"]
        return json.loads(self.ask(name, str(self.kiln), *test[2:]))

    def stop(self, names: list[str]) -> None:
        """As `docker stop` does."""
        for name in names:
            self.running[name].send_signal(signal.SIGTERM)
        for name in names:
            process = self.running.pop(name)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise RuntimeError(f"{name} did not end in its grace period") from None

    def down(self) -> None:
        """Ends all, and removes the networks."""
        with contextlib.suppress(RuntimeError):
            self.stop(list(self.running))
        for process in self.running.values():
            process.kill()
            process.wait()
        for name in (*self.address, ""):
            space = f"{SWITCH}-{name}" if name else SWITCH
            run("ip", "netns", "del", space, check=False)


def claims(project: Project) -> Iterator[str]:
    """What has to hold, one after the other."""
    nodes = [name for name in project.services if name.startswith("kiln-")]
    source = project.folder / "doubled.cu"
    source.write_text(KERNEL)
    project.network()
    project.start("s3")
    wait_for("S3", lambda: project.ask("s3", "curl", "-sf", "http://127.0.0.1:8333/healthz") or 1)
    make = project.services["bucket"]["command"][0]
    weed = str(Path(os.environ["KILN_WEED"]))
    wait_for(
        "the bucket",
        lambda: project.ask("bucket", "sh", "-ec", make.replace("weed ", f"{weed} ")),
    )
    for name in nodes:
        project.start(name)

    def together() -> bool:
        states = [project.status(name) for name in nodes]
        return all(s["quorum"] and sum(n["voter"] for n in s["nodes"]) == 3 for s in states)

    wait_for("three voters", together)
    yield "three nodes found one cluster"

    def compile_at(name: str) -> dict[str, Any]:
        command = (str(project.kiln), "compile", str(source), "--target", "sm_90", "--json")
        return json.loads(project.ask(name, *command))

    made, found = compile_at(nodes[0]), compile_at(nodes[1])
    if (made["outcome"], found["outcome"]) != ("compiled", "hit"):
        raise RuntimeError(f"{made} then {found}")
    yield "one compiles, another hits"

    def stored() -> bool:
        listed = project.ask(nodes[2], str(project.kiln), "ls", "--json")
        return json.loads(listed)["stored"]

    wait_for("the upload", stored)
    yield "the bucket has it"
    project.stop(nodes)
    yield "all end in order"
    for name in nodes:
        for tier in (project.folder / name / "data").glob("tier*"):
            shutil.rmtree(tier)
        project.start(name)
    wait_for("three voters again", together)
    again = compile_at(nodes[2])
    if (again["outcome"], again["tier"]) != ("hit", "object"):
        raise RuntimeError(f"{again}")
    yield "started again without their disk tiers, they serve it from the bucket"


def main() -> int:
    """Checks the file, then what it describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", required=True, type=Path)
    parser.add_argument("--compose", help="docker-compose, to validate the file")
    options = parser.parse_args()
    if options.compose:
        run(options.compose, "-f", str(FILE), "config", "-q")
        print("ok  docker-compose takes the file")
    folder = Path(tempfile.mkdtemp(prefix="kiln-compose-"))
    project = Project(folder, options.kiln.resolve())
    try:
        for claim in claims(project):
            print(f"ok  {claim}", flush=True)
    except RuntimeError as error:
        print(f"FAIL {error}", flush=True)
        for log in folder.glob("*/log"):
            print(log.parent.name, log.read_text(errors="replace")[-1500:], file=sys.stderr)
        return 1
    finally:
        project.down()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
