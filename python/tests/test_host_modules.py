"""Triton's host modules are built once in the cluster, by the C compiler of one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from processes import Processes, kiln
from relay import Nonsense, Relay, tampered

pytestmark = [pytest.mark.triton, pytest.mark.cluster]


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A C compiler that writes down each time it runs; no other test's name."""
    real = shutil.which("cc") or shutil.which("gcc")
    assert real is not None
    wrapper = tmp_path / "cc"
    wrapper.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


class Builds:
    """Runs processes that want the module, and counts runs of the compiler."""

    def __init__(self, processes: Processes, compiler: Path) -> None:
        """Run none yet."""
        self._processes, self._compiler = processes, compiler

    def run(self, *nodes: Any, answer: str = "42", **more: str) -> dict[str, Any]:
        """Run one, through ``nodes``."""
        environment = kiln(*nodes, CC=str(self._compiler), ANSWER=answer, **more)
        report = self._processes.start(environment, "host_module.py").report()
        assert report["answer"] == int(answer)
        assert "bugs" not in report["stats"], report["stats"]
        return report["stats"]

    @property
    def runs(self) -> int:
        """How often the compiler ran."""
        log = self._compiler.with_name("runs")
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def builds(processes: Processes, compiler: Path) -> Builds:
    """See the class."""
    return Builds(processes, compiler)


def test_a_second_process_builds_nothing(cluster: Cluster, builds: Builds) -> None:
    """It loads what the first one built, from another node."""
    assert builds.run(cluster.nodes[0])["host_modules.built"] == 1
    second = builds.run(cluster.nodes[1])
    assert (second["host_modules.fetched"], second["loaded"]) == (1, 1)
    assert builds.runs == 1


def test_another_source_is_another_module(cluster: Cluster, builds: Builds) -> None:
    """Never the first one's."""
    builds.run(cluster.nodes[0])
    assert "host_modules.fetched" not in builds.run(cluster.nodes[0], answer="43")
    assert builds.runs == 2


def test_a_build_of_the_users_own_is_its_own(cluster: Cluster, builds: Builds) -> None:
    """What else it reads, no name can say."""
    for _ in range(2):
        stats = builds.run(cluster.nodes[0], OWN_IMPL="1")
        assert not [name for name in stats if name.startswith("host_modules")], stats
    assert builds.runs == 2


@pytest.mark.parametrize("how", ["garbage", "closed", "tampered"])
def test_faults_cost_a_build(cluster: Cluster, builds: Builds, how: str) -> None:
    """And nothing else: what was not verified is never loaded."""
    builds.run(cluster.nodes[0])
    nonsense, relay = Nonsense(how), Relay(cluster.nodes[0].grpc)
    try:
        relay.alter["Fetch"] = tampered
        address = relay.address if how == "tampered" else nonsense.address
        assert "host_modules.fetched" not in builds.run(address)
        assert builds.runs == 2
    finally:
        nonsense.close()
        relay.close()
