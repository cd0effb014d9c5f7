"""Kiln on that Kubernetes: installed by its chart, looked at from outside.

Everything asked here is asked as a user would: kubectl, helm and the program.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kube.asker import write_kernel
from kube.bucket import Bucket
from kube.client import Asker, Seen
from kube.machine import Failed, Kube, wait_for

RELEASE = "kiln"
TARGET = "sm_90"
NAMESPACE = "default"
VOTERS = "app.kubernetes.io/component=voters"
AGENTS = "app.kubernetes.io/component=agents"
# What a follower waits at most before it stands for election, twice, and a heartbeat:
# one round may be a tie.
ELECTION = 2 * 2.0 + 0.25
# The client's own bound on a node that does not answer.
CONNECT = 3.0
STORED = 6


class Bench:
    """The release and its clients."""

    def __init__(
        self, kube: Kube, program: Path, folder: Path, values: dict[str, Any], tags: list[str]
    ) -> None:
        """Nothing is installed yet."""
        self.kube, self.program, self.folder, self.values = kube, program, folder, values
        # The image's versions: installed, and upgraded to.
        self.tags = tags
        self.bucket = Bucket(kube, folder / "bucket")
        self.sources = folder / "sources"
        self.sources.mkdir(parents=True, exist_ok=True)
        for number in range(STORED):
            write_kernel(self.sources, f"stored{number}", number + 2)
        self.keys: dict[str, int] = {}
        self.reader: Asker | None = None
        self.writer: Asker | None = None
        # How clients ask: what they have in their environment, and pods in a secret's `token`.
        self.scheme = "http"
        self.environment: dict[str, str] = {}
        self.token_secret = ""

    # ------------------------------------------------------------ the release

    def release(self, verb: str, *options: str, wait: bool = True) -> None:
        """Installs or upgrades with the values as they are now."""
        path = self.folder / "values.json"
        path.write_text(json.dumps(self.values))
        self.kube.helm(
            *(verb, RELEASE, str(self.kube.chart), "-f", str(path), "--timeout", "8m"),
            *("--server-side=false", *(["--wait"] if wait else []), *options),
        )

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Those that are not being ended."""
        pods = self.kube.get("pods", "-l", selector)["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, selector: str) -> int:
        """How many pods are."""
        conditions = (
            {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
            for pod in self.pods(selector)
        )
        return sum(c.get("Ready") == "True" for c in conditions)

    def kiln(self, pod: str, *command: str, data: bytes | None = None) -> bytes:
        """The program in a pod."""
        flags = ["-i"] if data is not None else []
        return self.kube.kubectl("exec", *flags, pod, "--", "kiln", *command, data=data)

    def status(self, pod: str) -> dict[str, Any]:
        """The cluster as that node sees it."""
        return json.loads(self.kiln(pod, "status", "--json"))

    def host(self, ordinal: int) -> str:
        """A voter's name in the cluster's DNS."""
        return f"kiln-{ordinal}.kiln-voters.{NAMESPACE}.svc"

    def endpoints(self) -> str:
        """What a client is given: the first three voters, in their order."""
        return ",".join(f"{self.scheme}://{self.host(n)}.cluster.local:7400" for n in range(3))

    def cluster(self) -> dict[str, Any]:
        """The status of whichever voter answers."""
        for pod in self.pods(VOTERS):
            with contextlib.suppress(Failed):
                return self.status(pod["metadata"]["name"])
        raise Failed("no voter answers")

    def leader(self) -> str:
        """The leader's pod."""
        status = self.cluster()
        nodes = {node["id"]: node["grpc"] for node in status["nodes"]}
        return nodes[status["leader"]].split(".")[0]

    def settled(self, voters: int = 3, agents: int = 2) -> dict[str, Any]:
        """Waits until so many vote, all of them answer, and nobody else is a member."""

        def look() -> dict[str, Any] | None:
            leader = self.leader()
            status = self.status(leader)
            voting = [n for n in status["nodes"] if n["voter"]]
            well = all(n["reachable"] for n in status["nodes"]) and status["role"] == "leader"
            own = all(n["grpc"].startswith("kiln-") for n in voting)
            pods = self.ready(VOTERS) >= voters and self.ready(AGENTS) == agents
            full = len(voting) == voters and len(status["nodes"]) == voters + agents
            if well and own and pods and full:
                return status
            raise Failed(
                f"{[(n['id'], n['grpc'], n['voter'], n['reachable']) for n in status['nodes']]}"
            )

        return wait_for(f"{voters} voters and {agents} agents", look)

    # ------------------------------------------------------------ clients

    def command(self, *command: str, endpoint: str = "", **more: str) -> list[str]:
        """The program as a client in the cluster's network, with `more` in its environment."""
        environment = {**self.environment, **more}
        pairs = [f"{name}={value}" for name, value in environment.items()]
        return [
            "env",
            *pairs,
            str(self.program),
            *command,
            "--endpoint",
            endpoint or self.endpoints(),
        ]

    def client(self, *command: str, endpoint: str = "", **more: str) -> bytes:
        """What it prints; that it fails is an error."""
        return self.kube("run", *self.command(*command, endpoint=endpoint, **more))

    def compile(self, number: int, endpoint: str = "") -> dict[str, Any]:
        """One stored kernel, asked for from the cluster's network."""
        source = str(self.sources / f"stored{number}.cu")
        command = ("compile", source, "--target", TARGET, "--json")
        return json.loads(self.client(*command, endpoint=endpoint))

    def ask_in_pod(self, node: str, endpoint: str, name: str) -> dict[str, Any]:
        """A pod on `node` that asks for a kernel of its own; what it printed is its error."""
        source = write_kernel(self.sources, "from_pods", 99)
        config = {"name": "sources", "namespace": NAMESPACE}
        data = {"kernel.cu": source.read_text()}
        self.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": config, "data": data})
        image = self.values["image"]
        command = ["compile", "/sources/kernel.cu", "--target", TARGET, "--json"]
        container: dict[str, Any] = {
            "name": "ask",
            "image": f"{image['repository']}:{image['tag']}",
            "imagePullPolicy": "Never",
            "args": [*command, "--endpoint", endpoint],
            "securityContext": {
                "runAsNonRoot": True,
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "sources", "mountPath": "/sources"}],
            "env": [],
        }
        volumes: list[dict[str, Any]] = [{"name": "sources", "configMap": {"name": "sources"}}]
        if self.scheme == "https":
            container["env"] += [{"name": "KILN_CA", "value": "/etc/kiln-client/ca.crt"}]
            container["volumeMounts"] += [{"name": "ca", "mountPath": "/etc/kiln-client"}]
            volumes += [{"name": "ca", "configMap": {"name": f"{RELEASE}-client-ca"}}]
        if self.token_secret:
            token = {"secretKeyRef": {"name": self.token_secret, "key": "token"}}
            container["env"] += [{"name": "KILN_TOKEN", "valueFrom": token}]
        spec = {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": volumes,
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.kube.apply(pod)

        def ended() -> str | None:
            phase = self.kube.get("pod", name)["status"]["phase"]
            return phase if phase in ("Succeeded", "Failed") else None

        phase = wait_for(f"the pod {name}", ended)
        told = self.kube.text("kubectl", "logs", name)
        self.kube.kubectl("delete", "pod", name)
        if phase == "Failed":
            raise RuntimeError(told)
        return json.loads(told)

    def store(self) -> None:
        """Compiles what the reader will ask for, and notes the keys' epochs."""
        for number in range(STORED):
            self.compile(number)
        self.note_epochs()

    def note_epochs(self) -> None:
        """Of the stored keys, as they should stay."""
        stored = {self.compile(number)["key"] for number in range(STORED)}
        self.keys = {key: epoch for key, epoch in self.epochs().items() if key in stored}

    def fresh(self) -> None:
        """Compiles something that nobody has."""
        name = f"fresh_{time.time_ns()}"
        source = write_kernel(self.folder, name, 7)
        self.client("compile", str(source), "--target", TARGET)

    def entries(self) -> list[dict[str, Any]]:
        """The index, as `kiln ls` shows it."""
        return [json.loads(line) for line in self.client("ls", "--json").splitlines()]

    def epochs(self) -> dict[str, int]:
        """Of every key; a compile that was committed anew would raise it."""
        return {entry["key"]: entry["epoch"] for entry in self.entries()}

    def all_uploaded(self) -> bool:
        """Whether L3 has the stored keys; the writer's newest are on their way."""
        return all(e["stored"] for e in self.entries() if e["key"] in self.keys)

    def uninstall(self, volumes: bool) -> None:
        """Takes the release away, and its data if told."""
        self.kube.helm("uninstall", RELEASE, "--wait", "--ignore-not-found")
        every = f"app.kubernetes.io/instance={RELEASE}"

        def none_left() -> bool:
            return not self.kube.get("pods", "-l", every)["items"]

        wait_for("the end of all pods", none_left)
        if volumes:
            self.kube.kubectl("delete", "pvc", "-l", every)
            for node in ("1", "2"):
                self.kube("exec-in-node", node, "rm", "-rf", "/var/lib/kiln")

    def start_asking(self) -> None:
        """Reads of stored keys, and writes of new ones, until told."""
        make = lambda new: Asker(  # noqa: E731
            self.kube, self.program, self.endpoints(), self.sources, new, self.environment
        )
        self.reader, self.writer = make(False), make(True)

    def stop_asking(self) -> None:
        """Ends the clients."""
        for asker in (self.reader, self.writer):
            if asker:
                asker.end()
        self.reader = self.writer = None

    def seen(self) -> tuple[Seen, Seen] | None:
        """What both saw since the last time, once each is answered again."""
        if not (self.reader and self.writer):
            return None
        for asker in (self.reader, self.writer):
            lines = asker.lines
            wait_for("an answer", lambda lines=lines: lines and lines[-1]["ok"], 60)
        return self.reader.take(), self.writer.take()

    def judge(self, seen: tuple[Seen, Seen] | None) -> None:
        """No outage beyond an election, and no second compile of a stored key."""
        if seen is None:
            return
        reads, writes = seen
        errors = reads.errors[:2] + writes.errors[:2]
        limit = ELECTION + CONNECT
        if reads.outage > limit or writes.outage > limit:
            raise Failed(f"an outage over {limit:.1f} s: {errors}")
        if reads.compiled:
            raise Failed(f"{reads.compiled} stored keys were compiled again")
        now = self.epochs()
        again = {key: now.get(key) for key, epoch in self.keys.items() if now.get(key) != epoch}
        if again:
            raise Failed(f"stored keys have other epochs: {again}")


Phase = Callable[[Bench], str]
