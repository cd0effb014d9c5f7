"""What deploy/clients does to a pod: the patch, the kustomize components, values of vLLM's charts.

Invariant: all of them give a client the same, which is what the chart's defaults
serve, and leave alone what else a pod has.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rendering
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the files assume: `helm install kiln --namespace kiln` with defaults.
VOLUME = {"name": "kiln", "hostPath": {"path": "/run/kiln", "type": "DirectoryOrCreate"}}
MOUNT = {"name": "kiln", "mountPath": "/run/kiln", "readOnly": True}
SOCKET = {"name": "KILN_SOCKET", "value": "/run/kiln/kiln.sock"}

APPLICATION = """\
{kind: Deployment, apiVersion: apps/v1, metadata: {name: bare, labels: {kiln.enabled: "true"}},
 spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}},
  spec: {containers: [{name: main, image: x}, {name: sidecar, image: y}]}}}}
---
{kind: StatefulSet, apiVersion: apps/v1, metadata: {name: full, labels: {kiln.enabled: "true"}},
 spec: {serviceName: full, selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: c}},
  spec: {volumes: [{name: own, emptyDir: {}}], containers: [{name: main, image: x,
   env: [{name: OWN, value: x}], volumeMounts: [{name: own, mountPath: /own}]}]}}}}
---
{kind: Job, apiVersion: batch/v1, metadata: {name: once, labels: {kiln.enabled: "true"}},
 spec: {template: {metadata: {labels: {a: d}}, spec: {restartPolicy: Never,
  containers: [{name: main, image: x}]}}}}
---
{kind: Deployment, apiVersion: apps/v1, metadata: {name: other},
 spec: {selector: {matchLabels: {a: e}}, template: {metadata: {labels: {a: e}},
  spec: {containers: [{name: main, image: x}]}}}}
---
{kind: Service, apiVersion: v1, metadata: {name: service, labels: {kiln.enabled: "true"}},
 spec: {ports: [{port: 80}]}}
"""


def problems(chart: Path, clients: Path, version: str) -> list[str]:
    """Where a client gets something else than what there is."""
    served = rendering.render(chart, None, version, namespace="kiln")
    (config,) = [m for m in served.of("ConfigMap") if m["metadata"]["name"] == "kiln-client"]
    endpoint = {"name": "KILN_ENDPOINT", "value": config["data"]["KILN_ENDPOINT"]}
    found = list(_served(served))
    socket = _kustomized(clients, {"components": ["kustomize"]})
    found += _judge("kustomize", socket, [endpoint, SOCKET], [VOLUME], [MOUNT])
    network = _kustomized(clients, {"components": ["kustomize/network"]})
    found += _judge("kustomize/network", network, [endpoint], [], [])
    patched = _kustomized(clients, {"patches": ["patch.yaml"]})
    found += _judge("patch.yaml", patched, [endpoint, SOCKET], [VOLUME], [MOUNT])
    for name, env, volumes, mounts in _values(clients):
        if (env, volumes, mounts) != ([endpoint, SOCKET], [VOLUME], [MOUNT]):
            found.append(f"{name} gives {env}, {volumes}, {mounts}")
    return [f"clients: {problem}" for problem in found]


def _served(served: rendering.Rendering) -> Iterator[str]:
    """Whether agents have the socket where clients look for it."""
    (agents,) = served.of("DaemonSet")
    spec = agents["spec"]["template"]["spec"]
    (socket,) = [v for v in spec["volumes"] if v["name"] == "socket"]
    if socket["hostPath"]["path"] != VOLUME["hostPath"]["path"]:
        yield f"agents' sockets are in {socket['hostPath']['path']}"


def _kustomized(clients: Path, how: dict[str, list[str]]) -> list[dict[str, Any]]:
    """The application, as kustomize changes it."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        (here / "application.yaml").write_text(APPLICATION)
        kustomization: dict[str, Any] = {"resources": ["application.yaml"]}
        if "components" in how:
            paths = [os.path.relpath(clients / name, here) for name in how["components"]]
            kustomization["components"] = paths
        else:
            # A patch for one workload, as `kubectl patch` takes it: named here.
            patch = (clients / how["patches"][0]).read_text()
            targets = [
                {"kind": "Deployment", "name": "bare"},
                {"kind": "StatefulSet"},
                {"kind": "Job"},
            ]
            whole = "kind: any\nmetadata: {name: any}\n" + patch
            kustomization["patches"] = [{"patch": whole, "target": target} for target in targets]
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        done = subprocess.run(
            ["kubectl", "kustomize", str(here)],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise SystemExit(f"kubectl kustomize: {done.stderr}")
    return list(yaml.safe_load_all(done.stdout))


def _judge(
    name: str,
    manifests: list[dict[str, Any]],
    env: list[Any],
    volumes: list[Any],
    mounts: list[Any],
) -> Iterator[str]:
    before = {m["metadata"]["name"]: m for m in yaml.safe_load_all(APPLICATION)}
    if {m["metadata"]["name"] for m in manifests} != set(before):
        yield f"{name} leaves {[m['metadata']['name'] for m in manifests]}"
        return
    for manifest in manifests:
        which = manifest["metadata"]["name"]
        wanted = before[which]
        if which in ("bare", "full", "once"):
            wanted["spec"]["template"]["metadata"]["labels"]["kiln.enabled"] = "true"
            pod = wanted["spec"]["template"]["spec"]
            for at, key, more in (
                (pod["containers"][0], "env", env),
                (pod["containers"][0], "volumeMounts", mounts),
                (pod, "volumes", volumes),
            ):
                if more:
                    at[key] = at.get(key, []) + more
        if _sorted(manifest) != _sorted(wanted):
            yield f"{name} makes of {which}: {manifest}, not {wanted}"


def _sorted(value: Any) -> Any:  # noqa: ANN401
    """Lists of named things have no order."""
    if isinstance(value, dict):
        return {key: _sorted(child) for key, child in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(child) for child in value), key=_text)
    return value


def _text(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, sort_keys=True)


def _values(clients: Path) -> Iterator[tuple[str, list[Any], list[Any], list[Any]]]:
    """Name, environment, volumes and mounts of each engine in the charts' values."""
    stack = yaml.safe_load((clients / "vllm-production-stack.yaml").read_text())
    for model in stack["servingEngineSpec"]["modelSpec"]:
        name = f"vllm-production-stack.yaml: {model['name']}"
        yield name, model["env"], model["extraVolumes"], model["extraVolumeMounts"]
    service = yaml.safe_load((clients / "llm-d-modelservice.yaml").read_text())
    for role in ("decode", "prefill"):
        for container in service[role]["containers"]:
            name = f"llm-d-modelservice.yaml: {role}"
            yield name, container["env"], service[role]["volumes"], container["volumeMounts"]
