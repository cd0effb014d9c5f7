"""Real Triton through kiln_torch: an sm_90 kernel, without a GPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster, eventually
from conftest import Clients
from kiln_torch import stats
from kiln_torch.lease import Lease
from processes import Processes, kiln
from relay import Nonsense, Relay, tampered

pytestmark = [pytest.mark.triton, pytest.mark.cluster]

# A bound, not an expectation.
LONG = 60.0

# As the README has it.
TRITON = {
    "TRITON_CACHE_MANAGER": "triton.runtime.cache:RemoteCacheManager",
    "TRITON_REMOTE_CACHE_BACKEND": "kiln_torch.triton:KilnBackend",
}


def test_a_second_process_compiles_nothing(cluster: Cluster, processes: Processes) -> None:
    """The same CUBIN from another node, in a fraction of the time; one artifact a kernel."""
    first = processes.start(kiln(cluster.nodes[0], **TRITON), "kernel.py").report()
    assert first["stats"]["published"] == 2, first["stats"]
    second = processes.start(kiln(cluster.nodes[1], **TRITON), "kernel.py").report()
    assert second["cubin"] == first["cubin"]
    assert second["size"] > 0
    assert (second["stats"]["hits"], second["stats"]["loaded"]) == (2, 2), second["stats"]
    assert "misses" not in second["stats"]
    assert "published" not in second["stats"]
    print(f"cold {first['seconds']:.3f} s, from another node {second['seconds']:.3f} s")


def test_two_at_once_compile_once(cluster: Cluster, processes: Processes) -> None:
    """The second waits for the first, kernel by kernel."""
    environment = {**TRITON, "STAGES": "4"}
    started = [
        processes.start(kiln(node, **environment), "kernel.py") for node in cluster.nodes[:2]
    ]
    reports = [process.report() for process in started]
    assert reports[0]["cubin"] == reports[1]["cubin"]
    assert sum(report["stats"].get("published", 0) for report in reports) == 2, reports


@pytest.mark.parametrize("fails", ["early", "late"])
def test_a_failed_compile_holds_nobody_up(
    cluster: Cluster, processes: Processes, fails: str
) -> None:
    """Its lease ends with it, though the process lives on and keeps the traceback."""
    # Longer than this test waits for the second one.
    environment = kiln(cluster.nodes[0], **TRITON, FAILS=fails, KILN_WAIT="3600")
    first = processes.start(environment, "failing_kernel.py")
    error = first.until("tried ")
    assert error in ("CompilationError", "CompileTimeAssertionFailure", "PTXASError"), first.log()
    second = processes.start(environment, "failing_kernel.py")
    assert second.until("tried ") == error
    for process in (second, first):
        process.go()
        counted = process.report()["stats"]
        assert (counted["leases"], counted["abandoned"]) == (1, 1), counted
        assert "published" not in counted


def test_those_that_waited_in_vain_go_on_together(cluster: Cluster, clients: Clients) -> None:
    """None of them holds the others up with a compile that fails again."""
    backend = pytest.importorskip("kiln_torch.triton")
    first = backend._Store(clients.of(cluster.nodes[0]))
    kernel = f"waited-{os.getpid()}"
    asking = [backend.KilnBackend(kernel) for _ in range(3)]
    for each in asking:
        # Streams of their own, as processes have.
        each._store = backend._Store(clients.of(cluster.nodes[1]))
    lease = first.client.acquire(backend.key_of(asking[0]._components(first)), LONG)
    assert isinstance(lease, Lease)
    with ThreadPoolExecutor(len(asking)) as threads:
        found = [threads.submit(each.get, ["__grp__kernel.json"]) for each in asking]
        eventually("all wait", lambda: stats().get("waits", 0) >= len(asking))
        lease.release()
        assert [each.result(timeout=LONG) for each in found] == [{}] * len(asking)
    assert [each._lease for each in asking] == [None] * len(asking)


@pytest.mark.parametrize("how", ["garbage", "closed", "tampered"])
def test_faults_cost_a_compile(cluster: Cluster, processes: Processes, how: str) -> None:
    """And nothing else: an exception in the backend would reach the user."""
    nonsense, relay = Nonsense(how), Relay(cluster.nodes[0].grpc)
    try:
        relay.alter["Fetch"] = tampered
        address = relay.address if how == "tampered" else nonsense.address
        # What the others compiled is there, for the relay to break.
        processes.start(kiln(cluster.nodes[0], **TRITON), "kernel.py").report()
        report = processes.start(kiln(address, **TRITON), "kernel.py").report()
        assert report["size"] > 0
        assert "hits" not in report["stats"], report["stats"]
    finally:
        nonsense.close()
        relay.close()
