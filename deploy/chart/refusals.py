"""Values that the chart must refuse, and words that its refusal must have.

Invariant: each line is refused for its own reason: alone, over the defaults.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rendering import helm

if TYPE_CHECKING:
    from pathlib import Path

# Assignments for helm's --set-json, and what the message says: where, and what would do.
REFUSED: list[tuple[list[str], list[str]]] = [
    (["voters.replicas=4"], ["/voters/replicas", "one of 1, 3, 5"]),
    (['voters.replicas="3"'], ["/voters/replicas", "one of 1, 3, 5"]),
    (["replicas=3"], ["additional properties 'replicas' not allowed"]),
    (["voters.storge={}"], ["/voters", "'storge' not allowed"]),
    (['voters.storage.size="50GB"'], ["/voters/storage/size", "(Mi|Gi|Ti)"]),
    (["voters.storage.size=50"], ["/voters/storage/size", "want string"]),
    (['voters.storage.whenDeleted="Keep"'], ["whenDeleted", "'Retain', 'Delete'"]),
    (['voters.antiAffinity="hard"'], ["/voters/antiAffinity", "'preferred', 'required', 'none'"]),
    (["voters.terminationGracePeriodSeconds=1"], ["minimum", "15"]),
    (['voters.env=[{"value":"x"}]'], ["/voters/env/0", "missing property 'name'"]),
    (['agents.network="hostNetwork"'], ["/agents/network", "'pod', 'hostPort', 'host'"]),
    (['agents.storage.type="pvc"'], ["/agents/storage/type", "'ephemeral'"]),
    (['agents.storage.hostPath="var/lib"'], ["/agents/storage/hostPath", "'^/'"]),
    (['agents.socket.mode="rw"'], ["/agents/socket/mode", "does not match pattern"]),
    (['agents.maxUnavailable="ten"'], ["/agents/maxUnavailable", "%"]),
    (['agents.enabled="yes"'], ["/agents/enabled", "want boolean"]),
    (['image.repository=""'], ["/image/repository", "minLength"]),
    (['image.digest="abc"'], ["/image/digest", "sha256:"]),
    (['image.pullPolicy="always"'], ["/image/pullPolicy", "'Always'"]),
    (["config.memory.byts=1"], ["/config/memory", "'byts' not allowed"]),
    (["config.memory.bytes=1073741824"], ["/config/memory/bytes", "want string"]),
    (['config.cluster.lease_ttl="10"'], ["/config/cluster/lease_ttl", "ms|s|m"]),
    (['config.grpc_listen="0.0.0.0:1"'], ["/config", "'grpc_listen' not allowed"]),
    (['agents.config.disk.policy="fifo"'], ["/agents/config/disk/policy", "'cost', 'lru'"]),
    (['object.url="http://bucket"'], ["/object/url", "s3://"]),
    (
        ['object.url="s3://b"', 'object.volume={"emptyDir":{}}'],
        ["/object/url", "must be ''"],
    ),
    (['object.volume={"nfs":{},"emptyDir":{}}'], ["/object/volume", "maxProperties"]),
    (
        ['nvrtc.image="cuda"', 'nvrtc.volume={"hostPath":{"path":"/x"}}'],
        ["/nvrtc/image", "must be ''"],
    ),
    (['networkPolicy.nodeCIDRs=["10.0.0.1"]'], ["/networkPolicy/nodeCIDRs/0", "pattern"]),
    (['networkPolicy.clients=[{"pods":{}}]'], ["/networkPolicy/clients/0", "'pods' not allowed"]),
    (['client.env={"KILN WAIT":"1"}'], ["/client/env", "'KILN WAIT' not allowed"]),
    (['client.env={"KILN_WAIT":1}'], ["/client/env/KILN_WAIT", "want string"]),
    (['metrics.serviceMonitor.interval="often"'], ["/metrics/serviceMonitor/interval", "pattern"]),
    (['tls.members.mode="on"'], ["/tls/members/mode", "'off', 'accept', 'dial', 'require'"]),
    (['tls.clients.ca="ca.pem"'], ["/tls/clients/ca", "pattern"]),
    (['tls.clients.volume={"secret":{},"csi":{}}'], ["/tls/clients/volume", "maxProperties"]),
    (["tls.days=0"], ["/tls/days", "minimum"]),
    (["priorityClass.value=2000000000"], ["/priorityClass/value", "maximum"]),
    # No schema can say these: the templates do.
    (['tls.members.mode="accept"'], ["tls.authoritySecret", "tls.members.volume"]),
    (
        ['tls.clients.mode="require"', 'tls.authoritySecret="ca"'],
        ["tls.clients.ca", "--set-file"],
    ),
    (['agents.network="host"'], ["networkPolicy.nodeCIDRs"]),
]


def problems(chart: Path) -> list[str]:
    """Values that pass, and refusals that do not say why."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return [p for found in pool.map(lambda line: _judge(chart, *line), REFUSED) for p in found]


def _judge(chart: Path, assignments: list[str], told: list[str]) -> list[str]:
    arguments = [part for assignment in assignments for part in ("--set-json", assignment)]
    done = helm("template", "kiln", str(chart), *arguments)
    what = ", ".join(assignments)
    if done.returncode == 0:
        return [f"values {what} are accepted"]
    missing = [words for words in told if words not in done.stderr]
    return [f"values {what}: the refusal lacks {w!r}: {done.stderr.strip()}" for w in missing]
