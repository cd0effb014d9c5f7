"""A client that says who it is, and one that does not, at a cluster that wants to know."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Node, eventually
from conftest import Clients
from kiln_torch.client import Client
from test_client import key, name_of, put

pytestmark = pytest.mark.cluster


@pytest.fixture
def closed(kiln: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes that serve nobody unknown."""
    with Cluster(kiln, tmp_path, settings=("access.required=true",)) as running:
        yield running


def token(kiln: Path, node: Node, by: str, *words: str) -> str:
    """Make a token: by an admin's, or at the node's socket."""
    endpoint = node.endpoint if by else f"unix:{node.socket}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
    if by:
        environment["KILN_TOKEN"] = by
    command = [str(kiln), "token", "create", "--endpoint", endpoint, *words]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return made.stdout.strip()


def test_a_token_opens_its_namespace_and_nothing_opens_without(
    kiln: Path, closed: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """By gRPC and by the socket; what is refused is a miss, and never an exception."""
    name, data = name_of(request), os.urandom(1 << 20)
    node = closed.nodes[0]
    admin = token(kiln, node, "", "--role", "admin")
    writer = token(kiln, node, admin, "--role", "write", "--namespace", "default")
    reader = token(kiln, node, admin, "--role", "read", "--namespace", "default")
    other = token(kiln, node, admin, "--role", "write", "--namespace", "other")

    def of(where: Node, shown: str | None, **settings: str | None) -> Client:
        return clients.of(where, token=shown, **settings)

    assert put(of(node, writer), name, data)
    for where in closed.nodes:
        for settings in ({}, {"socket": where.socket}):
            client = of(where, reader, **settings)
            found = eventually("the value", lambda c=client: c.fetch(key(c, name)))
            assert found.file("value") == data
    assert not put(of(node, reader), name, b"changed")
    for shown in (None, other, "kiln_" + "0" * 16 + "_" + "0" * 64):
        for settings in ({}, {"socket": node.socket}):
            client = of(node, shown, **settings)
            assert client.fetch(key(client, name)) is None, shown
            assert not put(client, name, b"changed"), shown
    found = of(node, reader).fetch(key(of(node, reader), name))
    assert found is not None
    assert found.file("value") == data
