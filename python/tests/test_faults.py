"""Whatever a node or the network does: no exception, no long wait, no bad byte."""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import Cluster
from conftest import Clients
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kiln_torch import stats, wire
from kiln_torch.client import Client
from kiln_torch.key import key_of, value_components
from kiln_torch.manifest import SIGNING_CONTEXT, Fingerprint, Target
from kiln_torch.packing import pack
from kiln_torch.value import Values
from relay import Nonsense, Relay

pytestmark = pytest.mark.cluster

# What a test's client waits for an answer, and what it may cost in the worst case.
ANSWER = 1.0
AT_MOST = 8.0


@pytest.fixture
def relay(cluster: Cluster) -> Iterator[Relay]:
    """A relay in front of the first node."""
    made = Relay(cluster.nodes[0].grpc)
    yield made
    made.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"{request.node.nodeid}-{os.getpid()}"


def key(name: str) -> bytes:
    """Return the key of the value ``name``."""
    return key_of(value_components("default", name))


def impatient(clients: Clients, *endpoints: str, **settings: Any) -> Client:
    """Make a client that waits briefly."""
    return clients.of(*endpoints, answer=ANSWER, **settings)


def flip(data: bytes, at: int) -> bytes:
    """Alter one bit in the middle of the bytes; the header is left as it is."""
    if at == 0:
        return data
    altered = bytearray(data)
    altered[len(altered) // 2] ^= 1
    return bytes(altered)


def twice(data: bytes) -> bytes:
    """Return a chunk with the bytes twice."""
    return wire.FetchChunk(data=wire.FetchChunk.FromString(data).data * 2).SerializeToString()


FETCH_FAULTS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "tampered bytes": flip,
    "tampered manifest": lambda data, at: flip(data, 1) if at == 0 else data,
    "truncated": lambda data, at: data if at == 0 else None,
    "nothing": lambda _data, _at: None,
    "garbage": lambda _data, _at: b"\xff\xfe garbage",
    "no header": lambda _data, _at: wire.FetchChunk(data=b"x").SerializeToString(),
    "more than announced": lambda data, at: data if at == 0 else twice(data),
}


@pytest.mark.parametrize("fault", FETCH_FAULTS)
def test_a_bad_answer_is_a_miss(
    cluster: Cluster, relay: Relay, clients: Clients, name: str, fault: str
) -> None:
    """And is never handed out; the next compile stores a good one all the same."""
    assert Values(clients.of(cluster.nodes[0])).put(name, b"good " * 1000)
    relay.alter["Fetch"] = FETCH_FAULTS[fault]
    values = Values(impatient(clients, relay.address))
    assert values.get(name, wait=1.0) is None
    assert stats().get("refused", 0) + stats().get("errors", 0) > 0, stats()
    assert values.put(name, b"better")
    relay.alter.clear()
    assert values.get(name) == b"better"


@pytest.mark.parametrize("method", ["Fetch", "Lease", "Publish", "Status"])
@pytest.mark.parametrize("how", ["silent", "error"])
def test_a_call_that_fails(
    relay: Relay, clients: Clients, name: str, how: str, method: str
) -> None:
    """Costs a bounded time, once: then the node is left out until it answers again."""
    if how == "silent":
        relay.silent.add(method)
    else:
        relay.fail[method] = grpc.StatusCode.INTERNAL
    values = Values(impatient(clients, relay.address))
    began = time.monotonic()
    assert values.get(name, wait=0.5) is None
    values.put(name, b"x")
    assert time.monotonic() - began < AT_MOST
    values.abandon()


def test_publishing_fails_and_the_compile_goes_on(
    relay: Relay, clients: Clients, name: str
) -> None:
    """An error at SET breaks unmodified PyTorch; here it is a counter."""
    relay.fail["Publish"] = grpc.StatusCode.INTERNAL
    values = Values(impatient(clients, relay.address))
    assert values.get(name, wait=1.0) is None
    assert not values.put(name, b"x")
    assert stats()["unpublished"] == 1
    relay.fail.clear()
    # The lease is not held on to: others get it at once.
    assert values.get(name, wait=1.0) is None
    assert values.put(name, b"x")
    assert stats()["leases"] == 2


@pytest.mark.parametrize("how", ["garbage", "closed", "silent"])
def test_no_node_at_all(cluster: Cluster, clients: Clients, name: str, how: str) -> None:
    """Something else listens there: bounded, once, and the next endpoint is used."""
    nonsense = Nonsense(how)
    try:
        client = impatient(clients, nonsense.address)
        began = time.monotonic()
        for _ in range(20):
            assert client.acquire(key(name), 30) is None
        assert time.monotonic() - began < AT_MOST
        both = Values(impatient(clients, nonsense.address, cluster.nodes[0].grpc))
        assert both.put(name, b"x")
        assert both.get(name) == b"x"
    finally:
        nonsense.close()


def test_a_node_that_comes_back_is_used_again(
    cluster: Cluster, clients: Clients, name: str
) -> None:
    """Found out in the background: no call waits for it."""
    from cluster import eventually

    relay = Relay(cluster.nodes[0].grpc)
    try:
        values = Values(impatient(clients, relay.address))
        assert values.put(name, b"x")
        relay.silent.update(("Fetch", "Status"))
        assert values.get(name) is None
        began = time.monotonic()
        assert values.get(name) is None
        assert time.monotonic() - began < ANSWER / 2
        relay.silent.clear()
        eventually("the node again", lambda: values.get(name))
    finally:
        relay.close()


class Mark:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        """Leave ``path``."""
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made by writing the file."""
        return (Path.touch, (self._path,))


def evil(mark: Path) -> bytes:
    """Return what a remote cache's entry looks like, with a pickle that leaves ``mark``."""
    data = base64.b64encode(pickle.dumps(Mark(mark))).decode()
    return json.dumps({"data": data, "time_taken_ms": 1}).encode()


def forge(relay: Relay, data: bytes, signing: Ed25519PrivateKey) -> None:
    """Answer every Fetch with ``data``, in an artifact that is consistent in itself."""

    def answer(message: bytes, at: int) -> bytes | None:
        if at > 0:
            return wire.FetchChunk(data=data).SerializeToString() if at == 1 else None
        real = wire.FetchChunk.FromString(message).header.manifest
        label = wire.Manifest.FromString(real.manifest).label
        packed = pack(
            value_components("default", label),
            {"value": data},
            fingerprint=Fingerprint("value"),
            target=Target.any(),
            namespace="default",
            label=label,
            seconds=1.0,
        )
        packed.manifest.producer = real.signer
        bytes_ = packed.manifest.SerializeToString()
        forged = wire.FetchChunk()
        forged.header.manifest.manifest = bytes_
        forged.header.manifest.signer = real.signer
        forged.header.manifest.signature = signing.sign(SIGNING_CONTEXT + bytes_)
        return forged.SerializeToString()

    relay.alter["Fetch"] = answer


def test_a_forged_artifact_is_refused(
    cluster: Cluster, relay: Relay, clients: Clients, name: str, tmp_path: Path
) -> None:
    """Though key, digests and sizes fit: it was signed by nobody that is trusted."""
    assert Values(clients.of(cluster.nodes[0])).put(name, b"good")
    signing = Ed25519PrivateKey.generate()
    forge(relay, evil(tmp_path / "mark"), signing)
    assert Values(impatient(clients, relay.address)).get(name) is None
    assert stats()["refused"] == 1, stats()
    # The forgery is good enough for whoever trusts its maker: that check alone refuses it.
    public = signing.public_key().public_bytes_raw()
    trusting = impatient(clients, relay.address, signers=(public,))
    assert Values(trusting).get(name) == evil(tmp_path / "mark")
    # And pinning the nodes' own keys refuses it as well.
    status = grpc.insecure_channel(cluster.nodes[0].grpc).unary_unary(
        "/kiln.v1.Kiln/Status", response_deserializer=wire.StatusResponse.FromString
    )(b"")
    own = tuple(signer.key for signer in status.signers)
    assert len(own) == 3
    assert Values(impatient(clients, relay.address, signers=own)).get(name) is None
    relay.alter.clear()
    assert Values(impatient(clients, relay.address, signers=own)).get(name) == b"good"


@pytest.mark.torch
def test_inductor_never_unpickles_what_is_forged(
    cluster: Cluster, relay: Relay, clients: Clients, tmp_path: Path
) -> None:
    """The real remote cache of PyTorch on top: the pickle leaves its mark if it gets there."""
    from kiln_torch import inductor
    from torch._inductor import remote_cache
    from torch._inductor.codecache import FxGraphCache

    def candidates(client: Client) -> int:
        """Ask as Inductor does, and return how many entries it unpickled."""
        shared = inductor._Shared(client)
        backend = inductor._backend(remote_cache.RemoteCacheBackend, shared, "fx_graph")
        remote_cache.RemoteFxGraphCache.backend_override_cls = backend
        try:
            cache = remote_cache.RemoteFxGraphCache("fx-graph-v1")
            return len(list(FxGraphCache.iterate_over_candidates(False, cache, "f" + "a" * 51)))
        finally:
            remote_cache.RemoteFxGraphCache.backend_override_cls = None

    name = f"pt2:fx-graph-v1::f{'a' * 51}:c1"
    assert Values(clients.of(cluster.nodes[0])).put(name, b"{}")
    signing = Ed25519PrivateKey.generate()
    mark = tmp_path / "mark"
    forge(relay, evil(mark), signing)
    assert candidates(impatient(clients, relay.address)) == 0
    assert not mark.exists()
    assert stats()["refused"] == 1, stats()
    # Trusted, it is unpickled: what kept it away above was the signature.
    public = signing.public_key().public_bytes_raw()
    assert candidates(impatient(clients, relay.address, signers=(public,))) == 1
    assert mark.exists()
