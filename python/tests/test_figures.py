"""``kiln_torch.metrics()`` against a real cluster."""

from __future__ import annotations

import os
import signal

import kiln_torch
import pytest
from cluster import Cluster
from conftest import Clients
from kiln_torch import figures
from kiln_torch.errors import Failed, Unreachable
from test_client import key, put

# What the document's function returns.
SHAPE = {
    "compilation_stats": {
        "total_compilations",
        "inductor_compilations",
        "cache_hits",
        "cache_misses",
        "artifacts_saved",
        "artifacts_loaded",
    },
    "performance": {
        "cache_hit_rate",
        "avg_compilation_time",
        "avg_cache_load_time",
        "total_compilation_time",
    },
    "resources": {"cache_disk_usage", "memory_usage_mb", "active_compiler_processes"},
}


def test_every_figure_of_the_wire_format_has_its_place() -> None:
    """None is left out, and the document's shape is in it."""
    shaped = figures.shaped(figures.wire.CompilationMetrics(cache_hits=3))
    assert {name for group in shaped.values() for name in group} == figures.described()
    for group, names in SHAPE.items():
        assert names <= set(shaped[group]), group
    assert shaped["compilation_stats"]["cache_hits"] == 3


def test_without_an_endpoint_the_figures_are_the_process_s_own() -> None:
    """The same shape."""
    own = kiln_torch.metrics()
    assert {group: set(names) for group, names in own.items()} == SHAPE


@pytest.mark.cluster
def test_what_a_node_did_is_in_its_figures_and_in_the_clusters(
    own_cluster: Cluster, clients: Clients
) -> None:
    """A publication at one node, a hit at another; a dead node is not asked for ever."""
    first, second, third = own_cluster.nodes
    writer, reader = clients.of(first), clients.of(second)
    assert put(writer, "figures", os.urandom(1 << 20))
    assert reader.fetch(key(reader, "figures"))
    assert kiln_torch.metrics(client=writer)["compilation_stats"]["artifacts_saved"] == 1
    read = kiln_torch.metrics(client=reader)
    assert read["compilation_stats"]["cache_hits"] == 1
    assert read["performance"]["cache_hit_rate"] == 1.0
    assert read["performance"]["compilation_time_saved"] == pytest.approx(1.0)
    assert read["resources"]["cache_disk_usage"] >= 1 << 20
    both = kiln_torch.metrics(client=writer, cluster=True)["compilation_stats"]
    assert (both["artifacts_saved"], both["cache_hits"]) == (1, 1)
    third.signal(signal.SIGKILL)
    answer = writer.metrics(cluster=True)
    assert [(node.node, bool(node.error)) for node in answer.nodes if node.error] == [
        (third.id, True)
    ]
    with pytest.raises(Unreachable):
        kiln_torch.metrics(client=clients.of(third, connect=1.0))


@pytest.mark.cluster
def test_a_call_is_in_the_trace_of_whoever_runs_the_process(
    cluster: Cluster, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error names it; what is no traceparent is not sent."""
    endpoint = clients.of(cluster.nodes[0])._process().endpoints[0]
    assert endpoint.usable
    request = figures.wire.LookupRequest(key=b"too short")
    for parent, known in (
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", True),
        ("no\ntraceparent", False),
    ):
        monkeypatch.setenv("TRACEPARENT", parent)
        with pytest.raises(Failed) as refused:
            endpoint.unary("Lookup", request, figures.wire.LookupResponse)
        assert "(trace " in str(refused.value)
        assert ("4bf92f3577b34da6a3ce929d0e0e4736" in str(refused.value)) is known
