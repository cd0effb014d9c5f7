"""The cluster that `demo.py` works on: `kiln dev` and what the command line says of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, TypeVar

T = TypeVar("T")

NODES = 3
# Bounds, not expectations: what takes longer is broken.
START = 90.0
SOON = 60.0
COMPILE = 180.0


class ClaimFailed(Exception):
    """A claim does not hold; the message says what was seen instead."""


def require(holds: bool, otherwise: str) -> None:
    """Ends the claim where it does not hold."""
    if not holds:
        raise ClaimFailed(otherwise)


def wait_for(what: str, ask: Callable[[], T | None], within: float = SOON) -> T:
    """Asks until there is an answer, at most `within` seconds: None and False are none yet."""
    end = time.monotonic() + within
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        require(time.monotonic() < end, f"no {what} within {within:.0f} s")
        time.sleep(0.05)


@dataclass
class Node:
    """A running node; `process` is set where this script started it itself."""

    number: int
    id: int
    grpc: str
    transfer: str
    http: str
    pid: int
    config: Path
    data: Path
    log: Path
    resp: str = ""
    process: subprocess.Popen[str] | None = None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a node that has ended already is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait_ended(self) -> None:
        """Waits until the process is gone."""
        if self.process is not None:
            self.process.wait(SOON)
            return
        wait_for(f"end of node {self.number}", lambda: None if alive(self.pid) else True)

    def counter(self, name: str) -> int:
        """Sum of a metric over its labels, 0 where it was never counted."""
        url = f"http://{self.http}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@dataclass
class Cluster:
    """`kiln dev` and the nodes that were restarted beside it."""

    kiln: Path
    folder: Path
    dev: subprocess.Popen[str] | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def dir(self) -> Path:
        """The folder of `kiln dev`."""
        return self.folder / "dev"

    def start(self) -> None:
        """Starts all nodes, or the same nodes again."""
        command = [str(self.kiln), "dev", "--dir", str(self.dir), "--nodes", str(NODES)]
        command += ["--object", f"file://{self.folder}/object"]
        command += ["--set", "cluster.lease_ttl=3s", "--set", "cluster.dead_after=6s"]
        command += ["--ready-timeout", f"{START:.0f}s"]
        (self.folder / "object").mkdir(exist_ok=True)
        nvrtc = os.environ.get("KILN_NVRTC_DIR")
        if nvrtc:
            command += ["--set", f"compile.nvrtc={nvrtc}"]
        # Groups of their own, here and below: ctrl-C is for this script to pass on.
        with (self.folder / "dev.log").open("a") as log:
            self.dev = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        line = first_line(self.dev, START + 10)
        self.nodes = [
            Node(
                number=number,
                id=node["id"],
                grpc=node["grpc"],
                transfer=node["transfer"],
                http=node["http"],
                pid=node["pid"],
                config=Path(node["config"]),
                data=Path(node["data"]),
                log=Path(node["log"]),
                resp=node["resp"],
            )
            for number, node in enumerate(json.loads(line)["nodes"], start=1)
        ]

    def restart(self, node: Node, *flags: str) -> None:
        """Starts a node that ended, through its own configuration file."""
        command = [str(self.kiln), "serve", "--config", str(node.config), *flags]
        with node.log.open("a") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        node.process, node.pid = process, process.pid
        node.id = json.loads(first_line(process, START))["id"]

    def stop(self) -> None:
        """Stops everything, whatever state it is in."""
        running = [node for node in self.nodes if node.process is not None]
        for node in running:
            node.signal(signal.SIGTERM)
        if self.dev is not None:
            self.dev.send_signal(signal.SIGTERM)
        for process in [node.process for node in running] + [self.dev]:
            if process is None:
                continue
            try:
                process.wait(SOON)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.nodes, self.dev = [], None

    def run(self, node: Node, *arguments: str, within: float = SOON) -> list[dict[str, Any]]:
        """Asks `node` by the command line and returns the JSON objects of the answer."""
        command = [str(self.kiln), *arguments, "--json", "--endpoint", f"http://{node.grpc}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)
        require(done.returncode == 0, f"{arguments[0]} on node {node.number}: {complaint(done)}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def compile(self, node: Node, file: Path) -> dict[str, Any]:
        """One compile for one target."""
        (answer,) = self.run(node, "compile", str(file), within=COMPILE)
        return answer

    def compiling(self, node: Node, file: Path) -> subprocess.Popen[str]:
        """A compile in the background that tells each step on stderr."""
        command = [str(self.kiln), "compile", str(file), "--json", "--progress", "plain"]
        command += ["--endpoint", f"http://{node.grpc}", "--deadline", f"{COMPILE:.0f}s"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def status(self, node: Node) -> dict[str, Any] | None:
        """What `node` says of the cluster; None where it does not answer."""
        try:
            return self.run(node, "status", within=10)[0]
        except (ClaimFailed, subprocess.TimeoutExpired):
            return None

    def leader(self, among: Sequence[Node]) -> Node:
        """The node that leads, as soon as one of `among` knows."""

        def ask() -> Node | None:
            for node in among:
                status = self.status(node)
                if status is not None and status["quorum"]:
                    return next((n for n in among if n.id == status["leader"]), None)
            return None

        return wait_for("leader", ask)

    def whole(self) -> None:
        """Waits until each node sees a quorum of these nodes, and the leader reaches all."""
        ids = {node.id for node in self.nodes}

        def ask() -> bool | None:
            for node in self.nodes:
                status = self.status(node)
                if status is None or not status["quorum"]:
                    return None
                leads = status["leader"] == node.id
                up = [True] if leads else [True, None]  # a follower knows the leader only
                voters = {n["id"] for n in status["nodes"] if n["voter"] and n["reachable"] in up}
                if voters != ids:
                    return None
            return True

        wait_for("whole cluster", ask)

    def compiler_runs(self, nodes: Sequence[Node] | None = None) -> int:
        """Compiles that ran, on all nodes, since each of them started."""
        return sum(n.counter("kiln_compiler_runs_total") for n in nodes or self.nodes)

    def tails(self) -> str:
        """The last lines of every log."""
        parts = []
        for log in [self.folder / "dev.log", *sorted(self.dir.glob("node-*/log"))]:
            lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
            parts.append("\n".join([f"--- {log.relative_to(self.folder)}", *lines]))
        return "\n".join(parts)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Why a command failed, in its own words."""
    for line in done.stdout.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            error = json.loads(line).get("error")
            if error:
                return f"{error['code'] or error['kind']}: {error['message']}"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def first_line(process: subprocess.Popen[str], within: float) -> str:
    """The first line of a child's stdout."""
    assert process.stdout is not None
    with ThreadPoolExecutor(1) as reader:
        line = reader.submit(process.stdout.readline)
        try:
            text = line.result(timeout=within)
        except FutureTimeoutError:
            process.kill()
            raise ClaimFailed(f"not ready within {within:.0f} s") from None
    require(bool(text), "ended before it was ready")
    return text


def wait_for_step(process: subprocess.Popen[str], step: str) -> None:
    """Reads a compile's steps until `step`; the compile's own deadline bounds it."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.split(" ")[0] == step:
            return
    raise ClaimFailed(f"the compile ended before it was {step}")


def answer_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The answer of a compile in the background."""
    try:
        out, err = process.communicate(timeout=COMPILE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ClaimFailed(f"a waiter had no answer within {COMPILE:.0f} s") from None
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    require(done.returncode == 0, f"a waiter failed: {complaint(done)}")
    return json.loads(out)
