"""What the chart promises beyond well-formed manifests.

Invariant: judged on what was rendered, never on templates. Pods run as nobody
with nothing ("restricted" of Pod Security) but for what a folder of the host
needs, selectors find what they mean, and whatever is mounted exists.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rendering import Rendering

COMPONENT = "app.kubernetes.io/component"
# Volumes that "restricted" allows.
ALLOWED = {
    *("configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral", "image", "csi"),
}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# What a folder of the host needs once, and nothing else may have.
FOLDERS = "folders"


def problems(rendering: Rendering) -> list[str]:
    """All promises, on one rendering."""
    judges = (
        *(_security, _tokens, _probes, _tls, _mounts),
        *(_services, _disruption, _network, _versions),
    )
    return [f"{rendering}: {problem}" for judge in judges for problem in judge(rendering)]


def _pods(rendering: Rendering) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Name, spec and labels of each pod."""
    for m in rendering.manifests:
        name = f"{m['kind']} {m['metadata']['name']}"
        if m["kind"] == "Pod":
            yield name, m["spec"], m["metadata"]["labels"]
        elif m["kind"] in ("StatefulSet", "DaemonSet"):
            template = m["spec"]["template"]
            yield name, template["spec"], template["metadata"]["labels"]


def _of_host(spec: dict[str, Any]) -> bool:
    volumes = spec.get("volumes", [])
    return spec.get("hostNetwork", False) or any("hostPath" in v for v in volumes)


def _security(rendering: Rendering) -> Iterator[str]:
    for name, spec, labels in _pods(rendering):
        pod = spec.get("securityContext", {})
        if pod.get("runAsNonRoot") is not True or not pod.get("runAsUser"):
            yield f"{name} may run as root"
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name} has no seccomp profile"
        for volume in spec.get("volumes", []):
            if not ALLOWED & set(volume) and "hostPath" not in volume:
                yield f"{name}: volume {volume} is none that restricted pods may have"
        if labels.get(COMPONENT) == "test" and _of_host(spec):
            yield f"{name} takes something of the host"
        for container in spec.get("initContainers", []) + spec["containers"]:
            yield from _container(f"{name}/{container['name']}", container, _of_host(spec))


def _container(name: str, container: dict[str, Any], of_host: bool) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{name} may become more than it is"
    if context.get("readOnlyRootFilesystem") is not True:
        yield f"{name} can write its root"
    if context.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{name} keeps capabilities"
    if container["name"] == FOLDERS and of_host:
        if context["capabilities"].get("add") != ["CHOWN"]:
            yield f"{name} has other capabilities than CHOWN"
    elif context.get("runAsNonRoot") is not True or context["capabilities"].get("add"):
        yield f"{name} runs as root or with capabilities"
    if not container.get("resources", {}).get("limits", {}).get("memory"):
        yield f"{name} has no bound on its memory"


def _tokens(rendering: Rendering) -> Iterator[str]:
    for name, spec, _ in _pods(rendering):
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} gets a token of the API"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: variables of services would look like configuration"
    for account in rendering.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield "the service account gives its token to pods"


def _probes(rendering: Rendering) -> Iterator[str]:
    for name, spec, labels in _pods(rendering):
        if labels.get(COMPONENT) not in ("voters", "agents"):
            continue
        node = _node(spec)
        asked = [node.get(probe, {}).get("httpGet", {}) for probe in PROBES]
        paths = dict(zip(PROBES, (get.get("path") for get in asked), strict=True))
        wanted = {"startupProbe": "/healthz", "livenessProbe": "/healthz"}
        if paths != {**wanted, "readinessProbe": "/readyz"}:
            yield f"{name}: probes ask {paths}"
        # The kubelet believes any certificate.
        settings = _settings(rendering, labels[COMPONENT])
        required = settings.get("tls", {}).get("clients", {}).get("mode") == "require"
        if any((get.get("scheme") == "HTTPS") != required for get in asked):
            yield f"{name}: probes do not speak as the HTTP port does"


def _node(spec: dict[str, Any]) -> dict[str, Any]:
    """The container that is the node."""
    (node,) = [c for c in spec["containers"] if c["name"] == "kiln"]
    return node


def _settings(rendering: Rendering, component: str) -> dict[str, Any]:
    """kiln.toml of a component, as helm writes it: a line for each section and each value."""
    (text,) = [
        config["data"]["kiln.toml"]
        for config in rendering.of("ConfigMap")
        if config["metadata"]["name"].endswith(f"-{component}") and "kiln.toml" in config["data"]
    ]
    settings: dict[str, Any] = {}
    here = settings
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            here = settings
            for part in line.strip("[]").split("."):
                here = here.setdefault(part, {})
        elif line:
            name, value = line.split(" = ", 1)
            here[name] = json.loads(value)
    return settings


def _tls(rendering: Rendering) -> Iterator[str]:
    """What the node reads is mounted, only signers have the authorities' keys."""
    for name, spec, labels in _pods(rendering):
        if labels.get(COMPONENT) not in ("voters", "agents"):
            continue
        settings = _settings(rendering, labels[COMPONENT])
        tls, node = settings.get("tls", {}), _node(spec)
        mounted = tuple(f"{mount['mountPath']}/" for mount in node["volumeMounts"])
        for audience, files in tls.items():
            for what in ("cert", "key", "ca"):
                if what in files and not files[what].startswith(mounted):
                    yield f"{name}: tls.{audience}.{what} is {files[what]}, which is not mounted"
        plain = any(tls.get(a, {}).get("mode") != "require" for a in ("members", "clients"))
        if settings.get("insecure", False) != plain:
            yield f"{name}: insecure is not what its ports are"
        keys = {v["name"] for v in spec["volumes"] if _has_keys(v)}
        signers = [c for c in spec.get("initContainers", []) + spec["containers"] if _signs(c)]
        for container in spec.get("initContainers", []) + spec["containers"]:
            has = keys & {mount["name"] for mount in container.get("volumeMounts", [])}
            if bool(has) != (container in signers):
                yield f"{name}/{container['name']} has the authorities' keys, or signs without"
        if keys and len(signers) != len(("before the node", "beside it")):
            yield f"{name}: certificates are not signed before the node starts, and kept in force"
    yield from _clients(rendering)


def _has_keys(volume: dict[str, Any]) -> bool:
    """Whether it is the authorities' secret as a whole."""
    return volume["name"] == "authority" and "items" not in volume["secret"]


def _signs(container: dict[str, Any]) -> bool:
    return container.get("args", [])[:2] == ["certs", "node"]


def _clients(rendering: Rendering) -> Iterator[str]:
    """Who is told https:// is told whom to believe, and finds it."""
    maps = {
        (m["metadata"]["name"], m["metadata"].get("namespace")): m
        for m in rendering.of("ConfigMap")
    }
    for (name, namespace), told in maps.items():
        endpoint = told["data"].get("KILN_ENDPOINT")
        if endpoint is None:
            continue
        schemes = {url.split("://")[0] for url in endpoint.split(",")}
        if schemes != ({"https"} if "KILN_CA" in told["data"] else {"http"}):
            yield f"{name}: clients are told {endpoint} and KILN_CA {told['data'].get('KILN_CA')}"
        if "KILN_CA" in told["data"] and (f"{name}-ca", namespace) not in maps:
            yield f"{name} in {namespace}: there is no authority beside it"
    for monitor in rendering.of("ServiceMonitor"):
        required = _settings(rendering, "voters").get("tls", {}).get("clients", {}).get("mode")
        for endpoint in monitor["spec"]["endpoints"]:
            if (endpoint.get("scheme") == "https") != (required == "require"):
                yield "Prometheus does not speak as the HTTP port does"


def _mounts(rendering: Rendering) -> Iterator[str]:
    maps = {m["metadata"]["name"] for m in rendering.of("ConfigMap")}
    claims = {
        claim["metadata"]["name"]
        for m in rendering.of("StatefulSet")
        for claim in m["spec"]["volumeClaimTemplates"]
    }
    for name, spec, _ in _pods(rendering):
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        if len(volumes) != len(spec.get("volumes", [])):
            yield f"{name} has two volumes of one name"
        used = set()
        for container in spec.get("initContainers", []) + spec["containers"]:
            mounts = container.get("volumeMounts", [])
            used |= {m["name"] for m in mounts}
            if len({m["mountPath"] for m in mounts}) != len(mounts):
                yield f"{name}/{container['name']} mounts two volumes at one path"
        if used - set(volumes) - claims:
            yield f"{name} mounts what it has not: {used - set(volumes) - claims}"
        if set(volumes) - used:
            yield f"{name} does not mount {set(volumes) - used}"
        for volume in volumes.values():
            wanted = volume.get("configMap", {}).get("name")
            if wanted and wanted not in maps:
                yield f"{name} mounts the config map {wanted}, which nothing makes"


def _selected(rendering: Rendering, selector: dict[str, str]) -> list[str]:
    return [
        name
        for name, _, labels in _pods(rendering)
        if all(labels.get(key) == value for key, value in selector.items())
    ]


def _services(rendering: Rendering) -> Iterator[str]:
    for service in rendering.of("Service"):
        spec, name = service["spec"], service["metadata"]["name"]
        found = _selected(rendering, spec["selector"])
        if len(found) != 1:
            yield f"Service {name} finds {found}, not one kind of pod"
            continue
        ports = {
            port["name"]
            for pod, pod_spec, _ in _pods(rendering)
            if pod in found
            for port in _node(pod_spec)["ports"]
        }
        unknown = {port["targetPort"] for port in spec["ports"]} - ports
        if unknown:
            yield f"Service {name} leads to ports that no pod has: {unknown}"
    for workload in rendering.of("StatefulSet") + rendering.of("DaemonSet"):
        found = _selected(rendering, workload["spec"]["selector"]["matchLabels"])
        if len(found) != 1:
            yield f"{workload['kind']} {workload['metadata']['name']} selects {found}"
    for voters in rendering.of("StatefulSet"):
        name = voters["spec"]["serviceName"]
        (headless,) = [s for s in rendering.of("Service") if s["metadata"]["name"] == name]
        if headless["spec"].get("publishNotReadyAddresses") is not True:
            yield "voters cannot find each other before they are ready"


def _disruption(rendering: Rendering) -> Iterator[str]:
    for budget in rendering.of("PodDisruptionBudget"):
        found = _selected(rendering, budget["spec"]["selector"]["matchLabels"])
        if found != [f"StatefulSet {budget['metadata']['name']}"]:
            yield f"the disruption budget is for {found}"
        if budget["spec"].get("maxUnavailable") != 1:
            yield "the disruption budget lets more than one voter go"


def _network(rendering: Rendering) -> Iterator[str]:
    for policy in rendering.of("NetworkPolicy"):
        spec = policy["spec"]
        if set(spec["policyTypes"]) != {"Ingress", "Egress"}:
            yield "the network policy does not deny both ways"
        for rule in spec["ingress"]:
            if not rule.get("from"):
                yield f"the network policy lets everybody in: {rule}"
        open_ports = {p["port"] for r in spec["egress"] if not r.get("to") for p in r["ports"]}
        if not rendering.manifests or open_ports & {7400, 7401, 7402}:
            yield "nodes may speak to others' nodes"


def _versions(rendering: Rendering) -> Iterator[str]:
    """Fields come with the version that has them."""
    minor = int(rendering.version.split(".")[1])
    for voters in rendering.of("StatefulSet"):
        retention = "persistentVolumeClaimRetentionPolicy" in voters["spec"]
        if retention != (minor >= 27):
            yield "the retention of volumes belongs to Kubernetes 1.27 and later"
        if voters["spec"]["podManagementPolicy"] != "Parallel":
            yield "voters wait for one another"
