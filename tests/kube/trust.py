"""TLS, tokens, rotation and revocation, done to a release while clients ask.

The phases go on from one another, in the order of SECURE; the first one needs a release
in plain text, and installs it where there is none. Each leaves three voters and two agents.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kube.admin import (
    GRPC,
    ask_as,
    authority,
    certificates,
    containers,
    let_in,
    metric,
    nodes,
    refusal,
    secret_file,
    token,
    trust,
)
from kube.asker import write_kernel
from kube.authority import NAME, Authority, Pair, put_secret
from kube.bench import AGENTS, RELEASE, TARGET, VOTERS, Bench, Phase
from kube.machine import Failed, wait_for
from kube.phases import install, require, share, timed
from kube.policies import Policies, labels, ports_of, selects

# On every object of the release.
EVERY = f"app.kubernetes.io/instance={RELEASE}"
# Secrets with the token of clients, and with that of nodes that join.
ASKERS = "kiln-askers"
FLEET = "kiln-join"


def to_tls(b: Bench) -> str:
    """From plain text to TLS, for members and clients, in DAY2's rounds."""
    if not b.pods(VOTERS):
        install(b)
        share(b)
    own = authority(b)
    put_secret(b.kube, NAME, own.files())
    b.values["tls"] = {"authoritySecret": NAME, "members": {}, "clients": {}}
    trust(b, own.files())
    rounds = []
    for mode in ("accept", "dial", "require"):
        begin = time.monotonic()
        b.values["tls"]["members"]["mode"] = b.values["tls"]["clients"]["mode"] = mode
        b.release("upgrade")
        b.settled()
        rounds.append(f"{mode} {timed(begin)}")
        if mode == "dial":
            # Nobody speaks plain text any more: the next round may begin.
            ask_as(b, "https", KILN_CA=str(b.folder / "trusted.pem"))
            count = lambda: [  # noqa: E731
                metric(b, a, "kiln_plain_connections_total", 'port="members"')
                for a in nodes(b).values()
            ]
            before = count()
            b.settled()
            require("no plain connection is made any more", count() == before)
    for (name, audience), shown in certificates(b).items():
        require(f"{name}: {audience} see {shown.text}", shown.signed_by == own.key_id(audience))
    for name, address in nodes(b).items():
        plain = refusal(b, "status", endpoint=f"http://{address}:{GRPC}")
        require(f"{name} takes no plain text: {plain}", plain)
    stranger = Authority(b, "stranger").member("stranger", 1)
    require("no node lets a stranger in", not any(let_in(b, nodes(b).values(), stranger)))
    return f"{', '.join(rounds)}; {len(nodes(b))} nodes take TLS alone"


def to_tokens(b: Bench) -> str:
    """From open to tokens: agents ask for them first, the voters once all clients have one."""
    begin = time.monotonic()
    b.values["agents"].setdefault("config", {})["access"] = {"required": True}
    b.release("upgrade")
    b.settled()
    agent = b.pods(AGENTS)[0]["metadata"]["name"]
    # At the node's socket, by the user that runs it.
    admin = b.kiln(agent, "token", "create", "--role", "admin", "--name", "operator")
    secret_file(b, "admin.token", admin.decode())
    asker = token(b, "write", "askers", "--namespace", "default")
    put_secret(b.kube, ASKERS, {"token": asker.encode()})
    ca = b.environment["KILN_CA"]
    ask_as(b, "https", KILN_CA=ca, KILN_TOKEN_FILE=secret_file(b, "asker.token", asker))
    b.values["config"]["access"] = {"required": True}
    b.values["tests"] = {"tokenSecret": ASKERS}
    b.release("upgrade")
    b.settled()
    took = timed(begin)
    answers = with_and_without(b)
    b.kube.helm("test", RELEASE, "--timeout", "3m")
    return f"{took}; {answers}; helm test passed"


def with_and_without(b: Bench) -> str:
    """A pod with a token hits, one without is refused, at a voter and at its node's agent."""
    where = {p["spec"]["nodeName"]: p["status"]["podIP"] for p in b.pods(AGENTS)}
    node, address = sorted(where.items())[0]
    told = []
    for name, endpoint in (("voter", b.endpoints()), ("agent", f"https://{address}:{GRPC}")):
        b.token_secret = ""
        try:
            answer = b.ask_in_pod(node, endpoint, f"ask-{name}-without")
            raise Failed(f"a pod without a token is served by the {name}: {answer}")
        except RuntimeError as refused:
            error = json.loads(str(refused).splitlines()[-1])["error"]
        require(f"refused with its type: {error}", error["code"] == "A001")
        b.token_secret = ASKERS
        answer = b.ask_in_pod(node, endpoint, f"ask-{name}-with")
        require(f"a pod with a token: {answer['outcome']}", answer["outcome"] == "hit")
        told.append(f"{name}: without {error['code']} {error['kind']}, with {answer['outcome']}")
    return "; ".join(told)


def rotate(b: Bench) -> str:
    """Another authority takes the place of the old one, and a node signs with another key."""
    before = containers(b)
    old, new = Authority(b, "authority"), Authority(b, "authority-2")
    known = {shown.serial for shown in certificates(b).values()}
    of_old, of_new = old.member("probe", 4711), new.member("probe", 4711)
    steps = []

    def everywhere(pair: Pair, wanted: bool) -> bool:
        return set(let_in(b, nodes(b).values(), pair)) == {wanted}

    def step(name: str, files: dict[str, bytes], done: Any) -> None:  # noqa: ANN401
        begin = time.monotonic()
        put_secret(b.kube, NAME, files)
        # The kubelet looks at a pod's secrets once a minute, and whenever the pod changes.
        mark = f"example.com/looked={time.time_ns()}"
        b.kube.kubectl("annotate", "pods", "--overwrite", "-l", EVERY, mark)
        trust(b, files)
        b.release("upgrade")
        wait_for(name, done)
        steps.append(f"{name} {timed(begin)}")

    step("both are believed", old.and_then(new), lambda: everywhere(of_new, True))

    def signed_anew() -> set[str] | None:
        now = certificates(b)
        right = all(s.signed_by == new.key_id(audience) for (_, audience), s in now.items())
        return {s.serial for s in now.values()} if right else None

    step("signed by the new one", new.and_then(old), signed_anew)
    require("no port shows an old serial", not known & (signed_anew() or known))
    step("the old one is refused", new.files(), lambda: everywhere(of_old, False))
    require("the new one is let in", everywhere(of_new, True))
    require("no container restarted", containers(b) == before)
    b.settled()
    return f"{', '.join(steps)}; no restart; {signing_key(b)}"


def signing_key(b: Bench) -> str:
    """Another key to sign with, for a voter that then starts again: its certificate stays good."""
    leader = b.leader()
    pod = next(p["metadata"]["name"] for p in b.pods(VOTERS) if p["metadata"]["name"] != leader)
    node = next(n["id"] for n in b.settled()["nodes"] if n["grpc"].startswith(f"{pod}."))
    admin = {"KILN_TOKEN_FILE": str(b.folder / "admin.token")}
    b.client("signer", "rotate", "--node", str(node), **admin)
    b.kube.kubectl("delete", "pod", pod)
    b.settled()
    same = next(n["id"] for n in b.settled()["nodes"] if n["grpc"].startswith(f"{pod}."))
    require(f"node {node} came back as {same}", same == node)
    return f"node {node} signs with another key"


def revoke(b: Bench) -> str:
    """A token that was stolen, and a node that somebody else had."""
    admin = {"KILN_TOKEN_FILE": str(b.folder / "admin.token")}
    stolen = token(b, "write", "stolen", "--namespace", "default")
    path = secret_file(b, "stolen.token", stolen)
    endpoints = [f"https://{address}:{GRPC}" for address in nodes(b).values()]
    ask = lambda endpoint: refusal(b, "ls", endpoint=endpoint, KILN_TOKEN_FILE=path)  # noqa: E731
    wait_for("the token to be known", lambda: not any(map(ask, endpoints)))
    b.client("token", "revoke", stolen.split("_")[1], "--yes", **admin)
    begin = time.monotonic()
    for endpoint in endpoints:
        error = wait_for(f"{endpoint} to refuse it", lambda endpoint=endpoint: ask(endpoint))
        require(f"{endpoint}: {error}", error["code"] == "A001" and "revoked" in error["message"])
    took = timed(begin)
    return f"token refused by {len(endpoints)} nodes {took} after the command; {revoke_node(b)}"


def revoke_node(b: Bench) -> str:
    """An agent's key is revoked and the agent removed; an emptied disk joins as a new node."""
    admin = {"KILN_TOKEN_FILE": str(b.folder / "admin.token")}
    agent = b.pods(AGENTS)[0]
    machine, address = agent["spec"]["nodeName"], agent["status"]["podIP"]
    node = next(n["id"] for n in b.settled()["nodes"] if n["grpc"].startswith(f"{address}:"))
    source = write_kernel(b.folder, f"of_the_revoked_{time.time_ns()}", 5)
    compiling = ("compile", str(source), "--target", TARGET, "--json")
    made = json.loads(b.client(*compiling, endpoint=f"https://{address}:{GRPC}"))
    require(f"the agent compiled it: {made}", made["outcome"] == "compiled")
    wait_for("a hit at the voters", lambda: json.loads(b.client(*compiling))["outcome"] == "hit")
    # What the thief of its disk and of its certificate would show.
    stolen = authority(b).member(f"of-node-{node}", node)
    voters = [p["status"]["podIP"] for p in b.pods(VOTERS)]
    require("it is a member", all(let_in(b, voters, stolen)))
    begin = time.monotonic()
    b.client("signer", "revoke", str(node), "--reason", "somebody had it", "--yes", **admin)
    b.client("cluster", "remove", str(node), "--yes", **admin)
    gone = wait_for(
        "the miss", lambda: made["key"] not in {e["key"] for e in b.entries()} and timed(begin)
    )
    again = json.loads(b.client(*compiling))
    require(f"it is a miss: {again['outcome']}", again["outcome"] == "compiled")
    out = wait_for(
        "its certificate to be refused",
        lambda: not any(let_in(b, voters, stolen)) and timed(begin),
    )
    # Off that machine, its disk emptied, and on it again.
    label = "nvidia.com/gpu.present"
    b.kube.kubectl("label", "node", machine, f"{label}-")
    wait_for("the agent's end", lambda: len(b.kube.get("pods", "-l", AGENTS)["items"]) == 1)
    b.kube("exec-in-node", machine.removeprefix("node"), "rm", "-rf", "/var/lib/kiln")
    b.kube.kubectl("label", "node", machine, f"{label}=true")
    after = b.settled()
    require("another node is in its place", node not in {n["id"] for n in after["nodes"]})
    return f"node {node}: its artifact misses {gone} later, its certificate is refused {out} later"


def network_policies(b: Bench) -> str:
    """What the policies mean for the pods and services that run; nothing here enforces them."""
    rules = Policies(b)
    names = {p["metadata"]["name"] for p in b.pods(VOTERS) + b.pods(AGENTS)}
    live = [pod for pod in rules.pods if pod["metadata"]["name"] in names]
    require("there are policies", rules.policies)
    for policy in rules.policies:
        what = policy["metadata"]["name"]
        require(f"{what} is for all nodes, and no other pod", rules.selected(policy) == names)
        require(
            f"{what} denies both ways", set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        )
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    elsewhere = {"kubernetes.io/metadata.name": "jobs"}
    # Who, its labels, its namespace's, whether that is the release's, and what it reaches.
    client = {"kiln.enabled": "true"}
    wanted = [
        *(
            (f"the node {p['metadata']['name']}", labels(p), elsewhere, True, {"grpc", "transfer"})
            for p in live
        ),
        ("a client", client, elsewhere, False, {"grpc"}),
        ("a client beside it", client, elsewhere, True, {"grpc"}),
        ("Prometheus", {"app": "prometheus"}, monitoring, False, {"http"}),
        ("a stranger", {"app": "x"}, elsewhere, False, set()),
        ("a stranger beside it", {"app": "x"}, elsewhere, True, set()),
    ]
    for pod in live:
        name = pod["metadata"]["name"]
        for who, own, namespace, beside, ports in wanted:
            found = rules.reaches(own, namespace, beside, pod)
            require(f"{who} reaches {found} of {name}, not {ports}", found == ports)
        for port, number in ports_of(pod).items():
            address = pod["status"]["podIP"]
            probe = f"import socket; socket.create_connection(('{address}', {number}), 5)"
            require(f"{name} listens on {port}", b.kube("run", "python3", "-c", probe) == b"")
    for service in rules.services:
        spec = service["spec"]
        chosen = [p for p in live if selects({"matchLabels": spec["selector"]}, labels(p))]
        require(f"Service {service['metadata']['name']} has pods", chosen)
        known = {port for pod in chosen for port in ports_of(pod)}
        lost = {port["targetPort"] for port in spec["ports"]} - known
        require(f"Service {service['metadata']['name']} leads to {lost}", not lost)
    counts = f"{len(rules.policies)} policies, {len(live)} pods, {len(rules.services)} services"
    return f"{counts}, {len(wanted)} callers at each pod"


def secure_install(b: Bench) -> str:
    """From nothing with TLS, tokens, and a token to join; then nothing again."""
    b.stop_asking()
    b.uninstall(volumes=True)
    b.kube.kubectl("delete", "secret", "--ignore-not-found", ASKERS, FLEET)
    own = Authority(b, "authority-3")
    put_secret(b.kube, NAME, own.files())
    both = {"mode": "require"}
    b.values["tls"] = {"authoritySecret": NAME, "members": dict(both), "clients": dict(both)}
    trust(b, own.files())
    b.values["config"]["access"] = {"required": True}
    b.values["config"]["cluster"] = {"join_needs_token": True}
    b.values["join"] = {"tokenSecret": FLEET}
    b.values["tests"] = {"tokenSecret": ASKERS}
    b.values["agents"].pop("config", None)
    b.scheme, b.environment = "https", {"KILN_CA": str(b.folder / "trusted.pem")}
    begin = time.monotonic()
    # Agents need the token that the founders make: there is nothing to wait for yet.
    b.release("install", wait=False)
    wait_for("the founders", lambda: b.ready(VOTERS) == 3)
    founded = timed(begin)
    admin = b.kiln("kiln-0", "token", "create", "--role", "admin", "--name", "operator")
    secret_file(b, "admin.token", admin.decode())
    fleet = token(b, "join", "fleet", "--uses", "0")
    put_secret(b.kube, FLEET, {"token": fleet.encode()})
    b.kube.kubectl("delete", "pod", "-l", AGENTS)
    asker = token(b, "write", "askers", "--namespace", "default")
    put_secret(b.kube, ASKERS, {"token": asker.encode()})
    b.environment["KILN_TOKEN_FILE"] = secret_file(b, "asker.token", asker)
    b.settled()
    settled = timed(begin)
    b.token_secret = ASKERS
    shared = share(b)
    b.judge(b.seen())
    for pod in b.pods(VOTERS):
        log = b.kube.text("kubectl", "logs", pod["metadata"]["name"], "-c", "kiln")
        require("no node says that it is insecure", "INSECURE" not in log)
    answers = with_and_without(b)
    b.kube.helm("test", RELEASE, "--timeout", "3m")
    b.stop_asking()
    b.uninstall(volumes=True)
    return f"founded {founded}, settled {settled}; {shared}; {answers}; uninstalled"


SECURE: dict[str, Phase] = {
    "to-tls": to_tls,
    "to-tokens": to_tokens,
    "network-policies": network_policies,
    "revoke": revoke,
    "rotate": rotate,
    "secure-install": secure_install,
}
# Phases that a phase goes on from.
BEFORE: dict[str, list[str]] = {
    "to-tokens": ["to-tls"],
    "rotate": ["to-tls", "to-tokens"],
    "revoke": ["to-tls", "to-tokens"],
}
