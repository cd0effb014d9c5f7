"""``python -m kiln_torch``: what it says of a good day and of bad ones."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import kiln_torch
import pytest
from cluster import SOON, Cluster, eventually
from kiln_torch.describing import SETTINGS

# Set by one process of the package for another, never by a person.
INTERNAL = {"KILN_COMPILATION_CHANNEL", "KILN_CONFINE"}


def run(*arguments: str, **env: str) -> tuple[int, str]:
    """Run it; nothing may be written to stderr."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("KILN_", "TORCH"))}
    done = subprocess.run(
        [sys.executable, "-m", "kiln_torch", *arguments],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def look(**env: str) -> tuple[int, dict[str, Any]]:
    """Return its exit code, and the checks by name."""
    code, out = run("--json", **env)
    found = {each["name"]: each for each in json.loads(out)["checks"]}
    assert all(set(e) == {"name", "state", "said", "advice"} for e in found.values())
    assert code == int(any(e["state"] == "problem" for e in found.values()))
    return code, found


def test_off_without_an_endpoint() -> None:
    """It says so, and how it is switched on; off is no problem."""
    code, out = run()
    assert code == 0
    said = r"^off +kiln +off: KILN_ENDPOINT is not set -> export KILN_ENDPOINT="
    assert re.search(said, out, re.MULTILINE)
    code, found = look(KILN_ENDPOINT="a:1", KILN_DISABLE="1")
    assert (code, found["kiln"]["state"]) == (0, "off")
    assert "KILN_DISABLE" in found["kiln"]["said"]


@pytest.mark.cluster
def test_a_good_day(cluster: Cluster) -> None:
    """Each node answers with its version, and the socket may be used."""
    nodes = cluster.nodes
    assert nodes[0].socket is not None
    code, found = look(
        KILN_ENDPOINT=",".join(node.endpoint for node in nodes),
        KILN_SOCKET=nodes[0].socket,
        KILN_CONNECT_TIMEOUT="30",
        KILN_PRECOMPILE="1",
    )
    for node in nodes:
        said = found[f"endpoint {node.grpc}"]
        assert said["state"] == "ok"
        assert re.fullmatch(rf"kiln \d+\.\d+\.\d+\S*, node {node.id}, [\d.]+ ms", said["said"])
    assert found["socket"]["state"] == "ok"
    assert {found[n]["state"] for n in ("kiln", "precompile", "ranks", "prefetch")} == {"ok"}
    if found["torch.backends"]["state"] == "ok":
        assert code == 0


@pytest.mark.cluster
def test_a_port_of_another_protocol(cluster: Cluster) -> None:
    """The HTTP port and the Redis port are told by name."""
    node = cluster.nodes[0]
    assert node.resp is not None
    code, found = look(KILN_ENDPOINT=f"{node.http},{node.resp}", KILN_CONNECT_TIMEOUT="30")
    assert code == 1
    assert "HTTP, not gRPC" in found[f"endpoint {node.http}"]["said"]
    assert "Redis" in found[f"endpoint {node.resp}"]["said"]
    assert "gRPC port" in found[f"endpoint {node.http}"]["advice"]


@pytest.mark.cluster
def test_signers_that_the_node_does_not_have(cluster: Cluster) -> None:
    """All of its artifacts would be refused; no key is printed."""
    key = "ab" * 32
    code, out = run(
        KILN_ENDPOINT=cluster.nodes[0].grpc,
        KILN_SIGNERS=f"{key},zz9",
        KILN_CONNECT_TIMEOUT="30",
    )
    assert code == 1
    assert "no signer of it is in KILN_SIGNERS" in out
    assert "1 of 2 keys can be read" in out
    assert key not in out
    assert "zz9" not in out


@pytest.mark.cluster
def test_a_node_without_quorum(own_cluster: Cluster) -> None:
    """It answers, and that is not enough."""
    kept, *others = own_cluster.nodes
    for node in others:
        node.signal(signal.SIGKILL)

    def told() -> str | None:
        check = look(KILN_ENDPOINT=kept.grpc, KILN_CONNECT_TIMEOUT="30")[1][f"endpoint {kept.grpc}"]
        return check["advice"] if check["state"] == "problem" else None

    assert "start the nodes" in eventually("word of the quorum", told)


def test_endpoints_that_do_not_answer(tmp_path: Path) -> None:
    """A dead one, and one that accepts and says nothing: told, within a bound."""
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        dead, mute = (f"127.0.0.1:{s.getsockname()[1]}" for s in (closed, silent))
        code, found = look(
            KILN_ENDPOINT=f"http://{dead},http://{mute}",
            KILN_SOCKET=str(tmp_path / "none.sock"),
            KILN_CONNECT_TIMEOUT="1e300",
        )
    assert code == 1
    assert "cannot be reached" in found[f"endpoint {dead}"]["said"]
    assert found[f"endpoint {mute}"]["state"] == "problem"
    assert "does not exist" in found["socket"]["said"]


def test_bad_values_are_told() -> None:
    """Each with its variable, and a name that is nearly one with the one that was meant."""
    code, found = look(
        KILN_ENDPOINT="https://nowhere",
        KILN_WAIT="soon",
        KILN_PREFETCH_BYTES="1G",
        KILN_RANKS="kept",
        KILN_SIGNERS="zz",
        KILN_ENDPIONT="http://a:1",
        KILN_RESP_SOCKET="/node's/own",
        KILN_HOLD="60",
    )
    assert code == 1
    bad = ["KILN_ENDPOINT", "KILN_WAIT", "KILN_PREFETCH_BYTES", "KILN_RANKS", "KILN_SIGNERS"]
    assert {found[name]["state"] for name in (*bad, "kiln")} == {"problem"}
    assert "'soon'" in found["KILN_WAIT"]["said"]
    assert found["KILN_ENDPIONT"]["advice"] == "did you mean KILN_ENDPOINT?"
    assert "KILN_RESP_SOCKET" not in found
    assert (found["KILN_HOLD"]["state"], found["KILN_HOLD"]["said"]) == ("ok", "60")
    assert found["KILN_TIMEOUT"]["said"] == "10 (default)"


def test_every_variable_that_the_code_reads_is_told() -> None:
    """A new one has to be added."""
    root = Path(kiln_torch.__file__).parent
    names = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r"[\"'](KILN_[A-Z_]*[A-Z])[\"']", path.read_text())
    }
    assert names - INTERNAL == set(SETTINGS)


def test_torch_is_not_imported() -> None:
    """Importing it takes seconds, and may be what fails."""
    code = (
        "import sys, kiln_torch.__main__ as looked; looked.checks({}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SOON)
