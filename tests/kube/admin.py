"""What an operator of a secured release does, from a machine that is no node.

Invariant: nothing is asked but through the ports that the release opens, with the
authorities, the certificates and the tokens that an operator has.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kube.authority import Authority, Pair, Shown, lets_in
from kube.bench import AGENTS, VOTERS, Bench
from kube.machine import Failed

GRPC, HTTP, MEMBERS = 7400, 7401, 7402


def nodes(b: Bench) -> dict[str, str]:
    """Address of each node's pod, by the pod's name."""
    pods = b.pods(VOTERS) + b.pods(AGENTS)
    return {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods}


def ask_as(b: Bench, scheme: str, **environment: str) -> None:
    """Clients go on with another endpoint or another token; what they saw so far is judged."""
    b.judge(b.seen())
    b.stop_asking()
    b.scheme, b.environment = scheme, environment
    b.start_asking()


def metric(b: Bench, address: str, name: str, *with_labels: str) -> float:
    """The sum of a counter's lines that have all those labels, as Prometheus reads it."""
    ca = b.environment["KILN_CA"]
    page = b.kube.text(
        "run", "curl", "-sf", "-m", "5", "--cacert", ca, f"https://{address}:{HTTP}/metrics"
    )
    lines = (line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if all(w in line for w in with_labels)
    )


def refusal(b: Bench, *command: str, endpoint: str = "", **more: str) -> dict[str, Any] | None:
    """How the program is refused; nothing where it is not."""
    whole = b.command(*command, "--json", endpoint=endpoint, **more)
    done = b.kube.popen(*whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, told = done.communicate(timeout=60)
    if done.returncode == 0:
        return None
    try:
        return json.loads(out.splitlines()[-1])["error"]
    except (IndexError, KeyError, ValueError):
        raise Failed(f"{command}: {out} {told}") from None


def authority(b: Bench) -> Authority:
    """The one in force."""
    return Authority(b, "authority-2" if (b.folder / "authority-2").exists() else "authority")


def certificates(b: Bench) -> dict[tuple[str, str], Shown]:
    """What each port shows, by the node's pod and the audience."""
    places = [
        (name, audience, address, port)
        for name, address in nodes(b).items()
        for audience, port in (("clients", GRPC), ("members", MEMBERS))
    ]
    with ThreadPoolExecutor() as pool:
        shown = list(pool.map(lambda place: Shown(b.kube, place[2], place[3]), places))
    return {(p[0], p[1]): s for p, s in zip(places, shown)}


def let_in(b: Bench, addresses: Iterable[str], pair: Pair) -> list[bool]:
    """Whether the members' port of each goes on with one who shows that certificate."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda a: lets_in(b.kube, a, MEMBERS, pair), addresses))


def containers(b: Bench) -> set[str]:
    """Ids of all nodes' containers: a restart gives another one."""
    pods = b.pods(VOTERS) + b.pods(AGENTS)
    return {c["containerID"] for p in pods for c in p["status"]["containerStatuses"]}


def secret_file(b: Bench, name: str, text: str) -> str:
    """A token of this machine's user alone."""
    path = b.folder / name
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def trust(b: Bench, files: dict[str, bytes]) -> None:
    """Clients believe these authorities from now on, in pods from the next upgrade."""
    path = b.folder / "trusted.new"
    path.write_bytes(files["clients-ca.pem"])
    path.rename(b.folder / "trusted.pem")
    b.values["tls"]["clients"]["ca"] = files["clients-ca.pem"].decode()


def token(b: Bench, role: str, name: str, *options: str) -> str:
    """Made by the operator, from his own machine."""
    admin = {"KILN_TOKEN_FILE": str(b.folder / "admin.token")}
    return (
        b.client("token", "create", "--role", role, "--name", name, *options, **admin)
        .decode()
        .strip()
    )
