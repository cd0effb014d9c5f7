"""Without Dynamo, where the cluster lies, is away, or holds what cannot be used."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")

from cluster import Cluster
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from precompile_processes import NO_GRAD, TELL, Programs, assert_loaded, assert_traced
from relay import Relay

pytestmark = [pytest.mark.torch, pytest.mark.cluster]


@pytest.fixture
def relay(cluster: Cluster) -> Iterator[Relay]:
    """A relay in front of the first node."""
    made = Relay(cluster.nodes[0].grpc)
    yield made
    made.close()


def flip(data: bytes, at: int) -> bytes:
    """Alter one bit of the bytes; the manifest is left as it is."""
    altered = bytearray(data)
    if at:
        altered[len(altered) // 2] ^= 1
    return bytes(altered)


def test_an_altered_entry_is_not_used(programs: Programs, relay: Relay) -> None:
    relay.alter["Fetch"] = flip
    told = programs.run(endpoint=f"http://{relay.address}")
    assert_traced(told)
    assert told["stats"]["refused"] >= 1, told
    assert "precompile.hits" not in told["stats"], told


def test_an_entry_of_an_unknown_signer_is_not_used(programs: Programs) -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    told = programs.run(switches={"KILN_SIGNERS": other})
    assert_traced(told)
    assert told["stats"]["refused"] >= 1, told


def test_without_a_cluster_it_is_traced(programs: Programs) -> None:
    told = programs.run(endpoint="http://127.0.0.1:1", switches={"KILN_CONNECT_TIMEOUT": "1"})
    assert_traced(told)
    assert told["stats"]["precompile.misses"] == 1, told
    assert told["stats"]["precompile.unpublished"] == 1, told


def test_switched_off_nothing_is_asked_for(programs: Programs) -> None:
    for switch in ("KILN_PRECOMPILE", "TORCH_CACHING_PRECOMPILE"):
        told = programs.run(switches={switch: "0"})
        assert_traced(told)
        assert not [each for each in told["stats"] if each.startswith("precompile")], told


Break = Callable[[bytes], bytes]
BROKEN: dict[str, Break] = {
    "no pickle": lambda _: b"no pickle",
    "another object": lambda _: pickle.dumps({"no": "package"}),
    "half": lambda entry: entry[: len(entry) // 2],
    "a name that is not there": lambda entry: entry.replace(b"GuardsState", b"GuardsStatf"),
}


HOW = [*BROKEN, "no checks", "no list"]
# Looks for the case's own list, and for nothing that torch's caches have of it.
RENAMED = """
import dataclasses
import kiln_torch.precompile.beginning as beginning
real_ask = beginning.ask
beginning.ask = lambda *given: dataclasses.replace(real_ask(*given), name="precompile/{name}")
"""


@pytest.fixture(scope="module")
def used(programs: Programs) -> dict[str, list[dict[str, Any]]]:
    """What came of packages that were signed all the same: first, and once replaced."""
    from kiln_torch.client import Client
    from kiln_torch.config import Settings
    from kiln_torch.precompile.store import Store

    named = programs.run(f"{NO_GRAD}\n{TELL}")
    assert_loaded(named)
    name, label = named["told"]
    endpoints = (programs.cluster.nodes[0].grpc,)
    client = Client(Settings(endpoints=endpoints, namespace=programs.folder.name, connect=10.0))
    store = Store(client)
    (candidate,) = store.candidates(name)
    package = store.fetch(candidate)
    assert package is not None
    cases = []
    for how in HOW:
        listed = f"precompile/{how}"
        checks = {} if how == "no checks" else package.checks
        entry = BROKEN.get(how, bytes)(package.entry)
        broken = dataclasses.replace(package, entry=entry, checks=checks)
        if how == "no list":
            assert store._put(listed, label, {"value": b"no list"}, 0.0)
        else:
            became = store.publish(listed, label, broken, candidate.facts, candidate.isa, 1.0)
            assert became == "published"
        setup = f"{NO_GRAD}\n{RENAMED.format(name=how)}"
        cases += [{"setup": setup, "undo": "beginning.ask = real_ask"}] * 2
    client.close()
    told = iter(programs.run_all(cases))
    return {how: [next(told), next(told)] for how in HOW}


@pytest.mark.parametrize("how", HOW)
def test_a_package_that_cannot_be_used_is_traced(
    used: dict[str, list[dict[str, Any]]], how: str
) -> None:
    first, second = used[how]
    assert_traced(first)
    assert first["stats"]["precompile.broken"] >= 1, first
    assert "precompile.hits" not in first["stats"], first
    # What could not be used is replaced.
    assert first["stats"]["precompile.published"] == 1, first
    assert_loaded(second)
