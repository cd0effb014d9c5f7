"""Fixtures: one cluster for all tests that change nothing about its nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster, Node, binary
from kiln_torch import report
from kiln_torch.client import Client
from kiln_torch.config import Settings
from precompile_processes import Programs, begun
from processes import Processes

# Nothing that the caller's shell says about a cluster reaches a test.
for name in [name for name in os.environ if name.startswith("KILN_") and name != "KILN_BINARY"]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def _counters_from_zero() -> None:
    report.reset()


@pytest.fixture(scope="session")
def kiln() -> Path:
    """The binary."""
    path = binary()
    if path is None:
        pytest.fail("no kiln binary: run `make build`, or set KILN_BINARY")
    return path


@pytest.fixture(scope="session")
def cluster(kiln: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; a test leaves them as they are."""
    with Cluster(kiln, tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def programs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """A program and a function without Dynamo that were compiled once."""
    return begun(cluster, tmp_path_factory.mktemp("precompile"))


@pytest.fixture
def own_cluster(kiln: Path, tmp_path: Path) -> Iterator[Cluster]:
    """Three nodes that a test may kill."""
    with Cluster(kiln, tmp_path) as running:
        yield running


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Clients that are closed after the test."""
    made = Clients()
    yield made
    made.close()


class Clients:
    """Makes clients of nodes, and closes them."""

    def __init__(self) -> None:
        """Make none yet."""
        self._made: list[Client] = []

    def of(self, *nodes: Node | str, **settings: object) -> Client:
        """Make a client of these nodes."""
        endpoints = tuple(n if isinstance(n, str) else n.grpc for n in nodes)
        # A loaded machine is slower than any network.
        chosen = {"connect": 10.0, **settings}
        client = Client(Settings(endpoints=endpoints, **chosen))  # pyrefly: ignore
        self._made.append(client)
        return client

    def close(self) -> None:
        """Close all of them."""
        for client in self._made:
            client.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Start processes that end with the test."""
    made = Processes(tmp_path / "processes")
    yield made
    made.close()
