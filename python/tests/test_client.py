"""The client against a real cluster."""

from __future__ import annotations

import os
import threading
import time

import pytest
from cluster import Cluster
from conftest import Clients
from kiln_torch import stats
from kiln_torch.client import Client
from kiln_torch.key import key_of, value_components
from kiln_torch.lease import Lease
from kiln_torch.manifest import Artifact, Fingerprint

pytestmark = pytest.mark.cluster

FINGERPRINT = Fingerprint("value")


def name_of(request: pytest.FixtureRequest) -> str:
    """Return a name that no other test uses."""
    return f"{request.node.nodeid}-{os.getpid()}"


def put(client: Client, name: str, data: bytes, lease: Lease | None = None) -> bool:
    """Publish ``data`` as the value of ``name``."""
    components = value_components(client.namespace, name)
    return client.publish(
        lease,
        components,
        {"value": data},
        fingerprint=FINGERPRINT,
        target="any",
        label=name,
        seconds=1.0,
        replace=lease is None,
    )


def key(client: Client, name: str) -> bytes:
    """Return the key of ``name``."""
    return key_of(value_components(client.namespace, name))


def test_what_one_publishes_another_fetches(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Under a lease on node 1, read on node 3 by gRPC and by its socket."""
    name = name_of(request)
    data = os.urandom(3 << 20)
    first = clients.of(cluster.nodes[0])
    lease = first.acquire(key(first, name), 0)
    assert isinstance(lease, Lease), stats()
    assert put(first, name, data, lease), stats()
    assert not lease.alive
    for settings in ({}, {"socket": cluster.nodes[2].socket}):
        other = clients.of(cluster.nodes[2], **settings)
        described = other.lookup(key(other, name))
        assert described is not None
        assert described.label == name
        found = other.fetch(key(other, name))
        assert found is not None, stats()
        assert found.file("value") == data
        assert list(found.files) == ["value"]
    assert stats().get("errors", 0) == 0, stats()


def test_one_compiles_and_the_others_wait(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Of three that ask on three nodes one is granted the lease; two get its artifact."""
    name = name_of(request)
    asking = [clients.of(node) for node in cluster.nodes]
    answers: list[object] = []

    def ask(client: Client) -> None:
        answer = client.acquire(key(client, name), 60)
        if isinstance(answer, Lease):
            # Until both others wait, or one of them has it as well.
            end = time.monotonic() + 30
            while stats().get("waits", 0) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            put(client, name, b"made once", answer)
        answers.append(answer)

    threads = [threading.Thread(target=ask, args=(client,)) for client in asking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(answers) == 3
    assert sum(isinstance(answer, Lease) for answer in answers) == 1, stats()
    found = [answer for answer in answers if isinstance(answer, Artifact)]
    assert [bytes(artifact.file("value")) for artifact in found] == [b"made once"] * 2


def test_a_released_lease_is_anothers(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Whoever gives up, or leaves, makes room for the next."""
    name = name_of(request)
    first, second = clients.of(cluster.nodes[0]), clients.of(cluster.nodes[1])
    lease = first.acquire(key(first, name), 0)
    assert isinstance(lease, Lease)
    assert second.acquire(key(second, name), 0) is None
    lease.release()
    again = second.acquire(key(second, name), 30)
    assert isinstance(again, Lease)
    second.close()
    third = first.acquire(key(first, name), 30)
    assert isinstance(third, Lease)


def test_a_value_is_replaced(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Without a lease, and everywhere."""
    name = name_of(request)
    first, other = clients.of(cluster.nodes[0]), clients.of(cluster.nodes[1])
    for data in (b"old", b"new"):
        assert put(first, name, data)
    found = first.fetch(key(first, name))
    assert found is not None
    assert found.file("value") == b"new"

    def seen() -> bool | None:
        elsewhere = other.fetch(key(other, name))
        return True if elsewhere is not None and elsewhere.file("value") == b"new" else None

    from cluster import eventually

    eventually("new value on the other node", seen)


def test_namespaces_are_apart(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Another tenant has another key, and does not see ours."""
    name = name_of(request)
    ours = clients.of(cluster.nodes[0])
    theirs = clients.of(cluster.nodes[0], namespace="team-b")
    assert put(ours, name, b"ours")
    assert key(ours, name) != key(theirs, name)
    assert theirs.fetch(key(theirs, name)) is None
    assert theirs.fetch(key(ours, name)) is None


@pytest.mark.parametrize("tenant", ["default", "team-b"])
def test_a_socket_serves_the_tenant_that_is_named(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest, tenant: str
) -> None:
    """And that one alone: what another has is not found, and nobody else is asked for it."""
    name = name_of(request)
    node = cluster.nodes[0]
    other = "team-c"
    assert put(clients.of(node, namespace=tenant), name, b"ours")
    assert put(clients.of(node, namespace=other), name, b"theirs")
    theirs = key(clients.of(node, namespace=other), name)
    ours = clients.of(node, namespace=tenant, socket=node.socket)
    fetches = node.counter("kiln_grpc_requests_total", "Fetch")
    found = ours.fetch(key(ours, name))
    assert found is not None and found.file("value") == b"ours"
    assert ours.fetch(theirs) is None
    assert ours.fetch(key(ours, f"{name}-none")) is None
    assert node.counter("kiln_grpc_requests_total", "Fetch") == fetches
    assert "refused" not in stats()


def test_what_was_loaded_is_reported(cluster: Cluster, clients: Clients) -> None:
    """In a batch, when the client closes at the latest."""
    client = clients.of(cluster.nodes[0])
    before = cluster.nodes[0].counter("kiln_loaded_total")
    client.loaded([b"k" * 32] * 3)
    client.close()
    assert cluster.nodes[0].counter("kiln_loaded_total") == before + 3
