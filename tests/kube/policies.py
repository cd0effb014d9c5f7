"""What the NetworkPolicies of the release mean for the pods that run.

Invariant: selectors and ports are taken from the API server, labels and ports from live
pods; nothing is read from the chart. The bench's network enforces no policy: that is a
real network's part, and was not run.
"""

from __future__ import annotations

from typing import Any

from kube.bench import RELEASE, Bench

Labels = dict[str, str]


def selects(selector: dict[str, Any] | None, labels: Labels) -> bool:
    """As Kubernetes has it: an empty selector is everybody, none is nobody."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        key, operator = expression["key"], expression["operator"]
        values = expression.get("values", [])
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds[operator]:
            return False
    return True


class Policies:
    """Of the release, as they are."""

    def __init__(self, b: Bench) -> None:
        """Asks for policies, pods and services."""
        every = f"app.kubernetes.io/instance={RELEASE}"
        self.policies = b.kube.get("networkpolicies", "-l", every)["items"]
        self.pods = b.pods(every)
        self.services = b.kube.get("services", "-l", every)["items"]

    def selected(self, policy: dict[str, Any]) -> set[str]:
        """Names of the pods that a policy is for."""
        selector = policy["spec"]["podSelector"]
        return {p["metadata"]["name"] for p in self.pods if selects(selector, labels(p))}

    def reaches(
        self, own: Labels, namespace: Labels, of_release: bool, pod: dict[str, Any]
    ) -> set[str]:
        """Names of the ports of `pod` that one with such labels may connect to."""
        ports: set[str] = set()
        for policy in self.policies:
            if pod["metadata"]["name"] not in self.selected(policy):
                continue
            for rule in policy["spec"].get("ingress", []):
                if any(_is_of(peer, own, namespace, of_release) for peer in rule["from"]):
                    ports |= {_name(pod, port["port"]) for port in rule["ports"]}
        return ports


def _is_of(peer: dict[str, Any], own: Labels, namespace: Labels, of_release: bool) -> bool:
    """Without a selector of namespaces a peer is of the policy's own."""
    if "ipBlock" in peer:
        return False
    spaces = peer.get("namespaceSelector")
    of_space = of_release if spaces is None else selects(spaces, namespace)
    return of_space and selects(peer.get("podSelector", {}), own)


def labels(thing: dict[str, Any]) -> Labels:
    """Of an object."""
    return thing["metadata"].get("labels", {})


def ports_of(pod: dict[str, Any]) -> dict[str, int]:
    """Those that a pod says it listens on."""
    ports = (port for c in pod["spec"]["containers"] for port in c.get("ports", []))
    return {port["name"]: port["containerPort"] for port in ports}


def _name(pod: dict[str, Any], port: int | str) -> str:
    """A port's name, however the rule has it; a name that the pod lacks is an error."""
    known = ports_of(pod)
    return next(name for name, number in known.items() if port in (name, number))
