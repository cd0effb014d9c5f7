"""Real PyTorch through kiln_torch: one compile in the cluster, whatever fails."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from cluster import Cluster
from processes import Processes, kiln

pytestmark = [pytest.mark.torch, pytest.mark.cluster]

SAME = 1e-4


def assert_hit(report: dict[str, Any], graphs: int = 1) -> None:
    """Assert that both caches were hit, and nothing was compiled."""
    assert (report["fx_hit"], report["fx_miss"]) == (graphs, 0), report["stats"]
    assert (report["autograd_hit"], report["autograd_miss"]) == (1, 0), report["stats"]


@pytest.mark.parametrize("grad", ["0", "1"], ids=["inference", "training"])
def test_a_second_process_compiles_nothing(
    cluster: Cluster, processes: Processes, grad: str
) -> None:
    """With a fresh folder, on another node; it publishes nothing, and says what it loaded."""
    graphs = 1 + int(grad)
    model = {"WIDTH": "16", "GRAD": grad}
    first = processes.start(kiln(cluster.nodes[0], **model)).report()
    assert first["fx_miss"] == graphs, first["stats"]
    assert first["stats"]["published"] == graphs + 1, first["stats"]
    before = cluster.nodes[2].counter("kiln_loaded_total")
    socket = cluster.nodes[2].socket
    assert socket is not None
    second = processes.start(kiln(cluster.nodes[2], KILN_SOCKET=socket, **model)).report()
    assert_hit(second, graphs)
    assert second["out"] == first["out"]
    assert "published" not in second["stats"], second["stats"]
    assert "errors" not in second["stats"], second["stats"]
    assert cluster.nodes[2].counter("kiln_loaded_total") == before + graphs + 1


def test_three_at_once_compile_once(cluster: Cluster, processes: Processes) -> None:
    """On three nodes: each key is published once, and all have the same result."""
    model = {"WIDTH": "24", "READY": "1"}
    started = [processes.start(kiln(node, **model)) for node in cluster.nodes]
    for process in started:
        process.until("ready")
    for process in started:
        process.go()
    reports = [process.report() for process in started]
    assert sum(report["fx_miss"] for report in reports) == 1, reports
    assert sum(report["fx_hit"] for report in reports) == 2, reports
    assert sum(report["autograd_hit"] for report in reports) == 2, reports
    assert sum(report["stats"].get("published", 0) for report in reports) == 2, reports
    assert all(report["out"] == reports[0]["out"] for report in reports)


def test_the_holder_is_killed(cluster: Cluster, processes: Processes) -> None:
    """In the middle of its compile: of those that wait one compiles, the other hits."""
    model = {"WIDTH": "32"}
    holder = processes.start(kiln(cluster.nodes[0], STALL="1", **model))
    holder.until("compiling")
    waiting = [processes.start(kiln(node, TELL="1", **model)) for node in cluster.nodes[1:]]
    for process in waiting:
        process.until("waiting")
    holder.kill()
    reports = [process.report() for process in waiting]
    assert sorted(report["fx_miss"] for report in reports) == [0, 1], reports
    assert sorted(report["fx_hit"] for report in reports) == [0, 1], reports
    assert reports[0]["out"] == reports[1]["out"]


def test_a_node_is_killed_while_its_client_waits(
    own_cluster: Cluster, processes: Processes
) -> None:
    """The client goes on with the next node, and still compiles nothing."""
    model = {"WIDTH": "16"}
    first, second, third = own_cluster.nodes
    holder = processes.start(kiln(first, second, STALL="1", **model))
    holder.until("compiling")
    client = processes.start(kiln(third, second, TELL="1", **model))
    client.until("waiting")
    third.signal(signal.SIGKILL)
    # Whoever waits on the second node now, or asks there later, gets this.
    holder.go()
    assert holder.report()["fx_miss"] == 1
    report = client.report()
    assert_hit(report)
    # Once more where its port still took connections when the stream broke.
    assert report["stats"]["errors"] in (1, 2), (report["stats"], client.log())


def test_a_dead_address_costs_a_second_once(processes: Processes) -> None:
    """Nobody listens there, or nobody answers; the compile is as without Kiln."""
    import time

    from kiln_torch.client import Client
    from kiln_torch.config import Settings

    # No route: packets to it are dropped, as to a host that is off.
    for dead in ("127.0.0.1:1", "192.0.2.1:7400", "no-such-host.invalid:7400"):
        client = Client(Settings(endpoints=(dead,)))
        began = time.monotonic()
        for _ in range(50):
            assert client.acquire(b"k" * 32, 60) is None
        assert time.monotonic() - began < 1.25, dead
        client.close()
    report = processes.start(kiln("http://127.0.0.1:1")).report()
    assert (report["fx_miss"], report["autograd_miss"]) == (1, 1)
    assert report["difference"] < SAME
