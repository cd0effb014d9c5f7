"""Every manifest against the strict schema of its version of Kubernetes.

Invariant: a manifest whose schema is not known is a failure, never a warning;
the Prometheus operator's two kinds have a schema of their own here.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    from rendering import Rendering

# Untyped, and in no environment but this check's.
_kubernetes: Any = importlib.import_module("kubernetes_validate.utils")
# It reads 2 MB for each manifest otherwise.
_kubernetes.schema_contents = functools.lru_cache(maxsize=None)(_kubernetes.schema_contents)

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(required: list[str], **properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


_TEXT = {"type": "string", "minLength": 1}
_ENDPOINT = _closed(
    ["port"],
    port={"type": "string"},
    path={"type": "string", "pattern": "^/"},
    interval={"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
    scheme={"enum": ["http", "https"]},
    tlsConfig=_closed(
        ["ca", "serverName"],
        ca=_closed(["configMap"], configMap=_closed(["name", "key"], name=_TEXT, key=_TEXT)),
        serverName=_TEXT,
    ),
)
_RULE = _closed(
    ["alert", "expr", "labels", "annotations"],
    alert={"type": "string", "pattern": "^Kiln[A-Za-z]+$"},
    expr={"type": "string"},
    **{"for": {"type": "string", "pattern": "^[0-9]+[smh]$"}},
    labels=_closed(["severity"], severity={"enum": ["critical", "warning", "info"]}),
    annotations=_closed(["summary"], summary={"type": "string"}, description={"type": "string"}),
)
_GROUP = _closed(
    ["name", "rules"],
    name={"type": "string"},
    interval={"type": "string"},
    rules={"type": "array", "minItems": 1, "items": _RULE},
)
_SPECS: dict[str, object] = {
    "ServiceMonitor": _closed(
        ["selector", "endpoints"],
        jobLabel={"type": "string"},
        selector=_closed([], matchLabels=_TEXTS, matchExpressions={"type": "array"}),
        namespaceSelector=_closed([], matchNames={"type": "array", "items": {"type": "string"}}),
        endpoints={"type": "array", "minItems": 1, "items": _ENDPOINT},
    ),
    "PrometheusRule": _closed(["groups"], groups={"type": "array", "items": _GROUP}),
}
OWN_API = "monitoring.coreos.com/v1"


def versions() -> list[str]:
    """Versions of Kubernetes whose schemas are known, oldest first."""
    return sorted({str(v) for v in _kubernetes.all_versions()}, key=lambda v: _numbers(v))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def problems(rendering: Rendering) -> list[str]:
    """What the schemas refuse."""
    found = []
    for manifest in rendering.manifests:
        name = f"{rendering}: {manifest['kind']} {manifest['metadata']['name']}"
        try:
            if manifest["apiVersion"] == OWN_API:
                _own(manifest)
            else:
                _kubernetes.validate(manifest, rendering.version, strict=True)
        except jsonschema.ValidationError as e:
            found.append(f"{name}: {e.json_path}: {e.message}")
        except (_kubernetes.SchemaNotFoundError, LookupError) as e:
            found.append(f"{name}: {manifest['apiVersion']} has no schema: {e}")
    return found


def _own(manifest: dict[str, Any]) -> None:
    spec = _SPECS.get(manifest["kind"])
    if spec is None:
        raise LookupError(manifest["kind"])
    schema = _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": OWN_API},
        kind={"const": manifest["kind"]},
        metadata=_closed(["name", "labels"], name={"type": "string"}, labels=_TEXTS),
        spec=spec,
    )
    jsonschema.validate(manifest, schema)
