"""What is done to the release, one function each; each tells a figure.

A phase leaves three voters and two agents, all well, for the next one.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kube.bench import AGENTS, RELEASE, STORED, VOTERS, Bench, Phase
from kube.machine import Failed, wait_for

# A silent node is NotReady after 20 s.
OUT_OF_SIGHT = 60.0


def require(what: str, holds: object) -> None:
    """Ends the phase unless it holds."""
    if not holds:
        raise Failed(what)


def timed(begin: float) -> str:
    """Since `begin`."""
    return f"{time.monotonic() - begin:.1f} s"


def install(b: Bench) -> str:
    """Three voters and two agents in under a minute."""
    begin = time.monotonic()
    b.release("install")
    took = time.monotonic() - begin
    b.settled()
    require(f"helm install --wait took {took:.1f} s", took < 60)
    return f"helm install --wait {took:.1f} s, settled {timed(begin)}"


def share(b: Bench) -> str:
    """A pod on one node compiles, a pod on the other one hits."""
    where = {p["spec"]["nodeName"]: p["status"]["podIP"] for p in b.pods(AGENTS)}
    first, second = sorted(where)
    one = b.ask_in_pod(first, f"{b.scheme}://{where[first]}:7400", "ask-one")
    other = b.ask_in_pod(second, f"{b.scheme}://{where[second]}:7400", "ask-other")
    require(f"{first}: {one['outcome']}", one["outcome"] == "compiled")
    require(f"{second}: {other['outcome']}", other["outcome"] == "hit")
    require("the same bytes", one["artifact"] == other["artifact"])
    b.store()
    b.start_asking()
    took = f"{one['elapsed_seconds']:.2f} s, {other['elapsed_seconds'] * 1000:.0f} ms"
    return f"{first} compiled, {second} hit ({other['tier']}): {took}"


def leader_killed(b: Bench) -> str:
    """The leader's pod ends without a word."""
    pod, begin = b.leader(), time.monotonic()
    b.kube.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    took = wait_for("another leader", lambda: b.leader() != pod and timed(begin))
    b.settled()
    return f"{pod} killed; another leads (as kubectl sees it) {took}, settled {timed(begin)}"


def network(b: Bench) -> str:
    """The cable of the node with fewer voters, out until the node is NotReady, and in."""
    homes = [p["spec"]["nodeName"] for p in b.pods(VOTERS)]
    node = min(("node1", "node2"), key=homes.count)

    def condition() -> str:
        conditions = b.kube.get("node", node)["status"]["conditions"]
        return {c["type"]: c["status"] for c in conditions}["Ready"]

    begin = time.monotonic()
    b.kube("net-down", node)
    try:
        wait_for(f"{node} out of sight", lambda: condition() != "True", OUT_OF_SIGHT)
        down = timed(begin)
    finally:
        b.kube("net-up", node)
    begin = time.monotonic()
    wait_for(f"{node} back", lambda: condition() == "True")
    b.settled()
    return f"{node} ({homes.count(node)} voters) away {down}, settled {timed(begin)} after"


def wiped(b: Bench) -> str:
    """A voter that does not lead comes back with an empty volume, as a new node."""
    before = b.settled()
    leader = b.leader()
    pod = next(p["metadata"]["name"] for p in b.pods(VOTERS) if p["metadata"]["name"] != leader)
    old = next(n["id"] for n in before["nodes"] if n["grpc"].startswith(f"{pod}."))
    begin = time.monotonic()
    b.kube.kubectl("delete", "pvc", f"data-{pod}", "--wait=false")
    b.kube.kubectl("delete", "pod", pod)

    def replaced() -> dict[str, Any] | None:
        status = b.settled()
        return status if all(n["id"] != old for n in status["nodes"]) else None

    after = wait_for("a new node in its place", replaced)
    new = next(n["id"] for n in after["nodes"] if n["grpc"].startswith(f"{pod}."))
    return f"{pod}: node {old} replaced by node {new} in {timed(begin)}"


def versions(b: Bench) -> set[str]:
    """Of all nodes."""
    pods = b.pods(VOTERS) + b.pods(AGENTS)
    return {b.status(pod["metadata"]["name"])["version"] for pod in pods}


def upgrade(b: Bench) -> str:
    """All nodes to another version, one voter at a time."""
    before = versions(b)
    begin = time.monotonic()
    b.values["image"]["tag"] = b.tags[1]
    b.release("upgrade")
    took = timed(begin)
    b.settled()
    after = versions(b)
    require(f"{before} became {after}", len(after) == 1 and after != before)
    return f"{before.pop()} -> {after.pop()} in {took}"


def rollback(b: Bench) -> str:
    """And back, by helm's own history."""
    before = versions(b)
    begin = time.monotonic()
    b.kube.helm("rollback", RELEASE, "--wait", "--timeout", "8m", "--server-side=false")
    took = timed(begin)
    b.values["image"]["tag"] = b.tags[0]
    b.settled()
    after = versions(b)
    require(f"{before} became {after}", len(after) == 1 and after != before)
    return f"{before.pop()} -> {after.pop()} in {took}"


def scale(b: Bench) -> str:
    """Five voters by one helm upgrade; two leave, and there are three."""
    begin = time.monotonic()
    b.values["voters"]["replicas"] = 5
    b.release("upgrade")
    b.settled(voters=5)
    up, begin = timed(begin), time.monotonic()
    for pod in ("kiln-4", "kiln-3"):
        b.kiln(pod, "cluster", "leave")
    b.kiln("kiln-0", "cluster", "voters", "3")
    b.values["voters"]["replicas"] = 3
    b.release("upgrade")
    wait_for("three pods", lambda: len(b.kube.get("pods", "-l", VOTERS)["items"]) == 3)
    b.kube.kubectl("delete", "pvc", "data-kiln-3", "data-kiln-4", "--wait=false")
    b.settled()
    return f"3 -> 5 in {up}, 5 -> 3 in {timed(begin)}"


def drain(b: Bench) -> str:
    """A node is emptied for maintenance, and comes back."""
    homes = [p["spec"]["nodeName"] for p in b.pods(VOTERS)]
    node = min(("node1", "node2"), key=homes.count)
    begin = time.monotonic()
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=240s")
    b.kube.kubectl("drain", node, *flags)
    b.settled()
    took = timed(begin)
    left = [p for p in b.pods(VOTERS) if p["spec"]["nodeName"] == node]
    require(f"{node} still has voters", not left)
    b.kube.kubectl("uncordon", node)
    return f"{homes.count(node)} voters moved off {node} in {took}"


def object_store(b: Bench) -> str:
    """L3 moves from a folder to a bucket: copied first, then the values change."""
    wait_for("the uploads", b.all_uploaded)
    b.bucket.start()
    begin = time.monotonic()
    copied = b.bucket.copy(b.folder / "l3")
    b.values["object"] = b.bucket.values()
    b.release("upgrade")
    took = timed(begin)
    b.settled()
    # What is compiled from now on goes to the bucket.
    before = len(b.bucket.objects())
    b.fresh()
    wait_for("an upload to the bucket", lambda: len(b.bucket.objects()) > before)
    return f"{copied} objects copied, upgraded in {took}"


def restore(b: Bench) -> str:
    """All nodes and their disks are lost; the index comes from a backup, bytes from L3."""
    wait_for("the uploads", b.all_uploaded)
    b.stop_asking()
    backup = b.kiln("kiln-0", "cluster", "backup")
    known = len(b.entries())
    b.uninstall(volumes=True)
    begin = time.monotonic()
    b.release("install")
    b.settled()
    require("a new cluster is empty", not b.entries())
    told = json.loads(b.kiln("kiln-0", "cluster", "restore", "--json", data=backup))
    took = timed(begin)
    require(f"{told} of {known}", told["restored"] == known and not told["refused"])
    answers = [b.compile(number) for number in range(STORED)]
    outcomes = {(a["outcome"], a["tier"]) for a in answers}
    require(f"all from L3: {outcomes}", all(a["outcome"] == "hit" for a in answers))
    require(f"from L3: {outcomes}", any(a["tier"] == "object" for a in answers))
    b.note_epochs()
    b.start_asking()
    return f"{len(backup)} bytes, {known} keys; installed and restored in {took}; {outcomes}"


def uninstall(b: Bench) -> str:
    """Leaves the volumes: installed again, it is the same cluster. Then told to delete."""
    b.stop_asking()
    known = {entry["key"] for entry in b.entries()}
    nodes = {n["id"] for n in b.settled()["nodes"]}
    begin = time.monotonic()
    b.uninstall(volumes=False)
    gone = timed(begin)
    claims = len(b.kube.get("pvc")["items"])
    require(f"{claims} claims stay", claims == 3)
    b.release("install")
    status = b.settled()
    require("the same nodes", nodes == {n["id"] for n in status["nodes"]})
    require("the same keys", known == {entry["key"] for entry in b.entries()})
    answer = b.compile(0)
    require(f"a hit: {answer}", answer["outcome"] == "hit")
    b.uninstall(volumes=True)
    require("no claims stay", not b.kube.get("pvc")["items"])
    same = f"the same {len(nodes)} nodes and {len(known)} keys"
    return f"gone in {gone}, {claims} claims stayed; again {same}"


PHASES: dict[str, Phase] = {
    "install": install,
    "share": share,
    "leader-killed": leader_killed,
    "network": network,
    "wiped-volume": wiped,
    "upgrade": upgrade,
    "rollback": rollback,
    "scale": scale,
    "drain": drain,
    "object-store": object_store,
    "restore": restore,
    "uninstall": uninstall,
}
