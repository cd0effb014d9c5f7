"""Real PyTorch, unmodified, through a node's RESP port: environment variables alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from processes import Process, Processes, kiln, redis
from relay import Nonsense, Proxy

pytestmark = [pytest.mark.torch, pytest.mark.cluster]

SAME = 1e-4


def sets(cluster: Cluster) -> int:
    """SETs so far, however they ended."""
    ends = ("stored", "unchanged", "failed", "late")
    return sum(cluster.counter(f"kiln_resp_sets_{end}_total") for end in ends)


def outcome(report: dict[str, Any]) -> tuple[int, int, int, int]:
    """Hits and misses of both caches."""
    names = ("fx_hit", "fx_miss", "autograd_hit", "autograd_miss")
    fx_hit, fx_miss, autograd_hit, autograd_miss = (report[name] for name in names)
    return fx_hit, fx_miss, autograd_hit, autograd_miss


HIT = (1, 0, 1, 0)
MISS = (0, 1, 0, 1)


def test_a_second_process_compiles_nothing(cluster: Cluster, processes: Processes) -> None:
    """With a fresh folder, on another node; and neither does one with kiln_torch."""
    model = {"WIDTH": "40"}
    before = sets(cluster)
    first = processes.start(redis(cluster.nodes[0].resp, **model)).report()
    assert outcome(first) == MISS
    assert sets(cluster) == before + 2
    second = processes.start(redis(cluster.nodes[2].resp, **model)).report()
    assert outcome(second) == HIT
    assert second["out"] == first["out"]
    third = processes.start(kiln(cluster.nodes[1], **model)).report()
    assert outcome(third) == HIT, third["stats"]
    assert third["out"] == first["out"]
    assert sets(cluster) == before + 2
    assert "published" not in third["stats"]


def test_three_at_once_compile_once(cluster: Cluster, processes: Processes) -> None:
    """On three nodes: exactly one SET a key."""
    before = sets(cluster)
    model = {"WIDTH": "48", "READY": "1"}
    started = [processes.start(redis(node.resp, **model)) for node in cluster.nodes]
    for process in started:
        process.until("ready")
    for process in started:
        process.go()
    reports = [process.report() for process in started]
    assert sorted(outcome(report) for report in reports) == [MISS, HIT, HIT]
    assert sets(cluster) == before + 2
    assert all(report["out"] == reports[0]["out"] for report in reports)


def held_up(cluster: Cluster, processes: Processes, width: str) -> tuple[Process, list[Process]]:
    """Start one on the first node that stops while it compiles, and two that ask for the same."""
    model = {"WIDTH": width}
    holder = processes.start(redis(cluster.nodes[0].resp, STALL="1", **model))
    holder.until("compiling")
    others = [processes.start(redis(node.resp, TELL="1", **model)) for node in cluster.nodes[1:]]
    for process in others:
        process.until("asking")
    return holder, others


def test_the_holder_is_killed(cluster: Cluster, processes: Processes) -> None:
    """In the middle of its compile: of those that wait one compiles, the other hits."""
    waits = cluster.counter("kiln_resp_waits_total")
    holder, others = held_up(cluster, processes, "56")
    holder.kill()
    reports = [process.report() for process in others]
    assert sorted(outcome(report) for report in reports) == [MISS, HIT]
    assert cluster.counter("kiln_resp_waits_total") > waits


def test_a_node_is_killed_while_its_client_waits(
    own_cluster: Cluster, processes: Processes
) -> None:
    """The client compiles by itself: unmodified PyTorch knows one address."""
    holder, others = held_up(own_cluster, processes, "16")
    own_cluster.nodes[2].signal(signal.SIGKILL)
    alone = others[1].report()
    assert outcome(alone) == MISS
    assert alone["difference"] < SAME
    holder.go()
    assert outcome(holder.report()) == MISS
    assert outcome(others[0].report()) == HIT


@pytest.fixture(scope="module")
def stored(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model that the cluster has, and the folder with its compiled C++."""
    folder = tmp_path_factory.mktemp("stored")
    processes = Processes(folder)
    processes.start(redis(cluster.nodes[0].resp, WIDTH="16")).report()
    yield folder / "process-0"
    processes.close()


FAULTS = ("garbage", "truncated", "silent", '"data">"date"', '{"data">!"data"')


@pytest.mark.parametrize("how", FAULTS)
def test_a_bad_answer(cluster: Cluster, processes: Processes, stored: Path, how: str) -> None:
    """Between node and client: PyTorch warns and compiles."""
    resp = cluster.nodes[1].resp
    assert resp is not None
    proxy = Proxy(resp, how)
    try:
        environment = redis(proxy.address, timeout=1, WIDTH="16")
        report = processes.start(environment, binaries=stored).report()
        assert proxy.broken > 0
        assert report["fx_miss"] == 1
        assert report["difference"] < SAME
    finally:
        proxy.close()


@pytest.mark.parametrize("how", ["closed", "refused"])
def test_no_node_at_all(processes: Processes, stored: Path, how: str) -> None:
    """PyTorch compiles without.

    Where something else than a RESP server answers, its SET raises: against that
    only kiln_torch helps (see test_faults.py).
    """
    nonsense = Nonsense(how)
    try:
        address = "127.0.0.1:1" if how == "refused" else nonsense.address
        environment = redis(address, timeout=1, WIDTH="16")
        report = processes.start(environment, binaries=stored).report()
        assert outcome(report) == MISS
        assert report["difference"] < SAME
    finally:
        nonsense.close()


def test_a_set_that_cannot_be_stored_is_no_error(
    own_cluster: Cluster, processes: Processes, stored: Path
) -> None:
    """An error would fail the compile: without a quorum the answer is OK all the same."""
    for node in own_cluster.nodes[1:]:
        node.signal(signal.SIGSTOP)
    environment = redis(own_cluster.nodes[0].resp, WIDTH="16")
    report = processes.start(environment, binaries=stored).report()
    assert report["fx_miss"] == 1
    assert report["difference"] < SAME
