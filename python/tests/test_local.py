"""The socket of a node that is no node, or not a good one."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, eventually
from conftest import Clients
from kiln_torch import wire
from kiln_torch.errors import KilnError, NotFound, Refused, Unreachable
from kiln_torch.local import LocalNode
from kiln_torch.value import Values

KEY = b"k" * 32
PACK = b"pack " * 100
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

Answer = Callable[[socket.socket], None]


def memory(seals: int) -> int:
    """Return a descriptor of the pack with these seals."""
    descriptor = os.memfd_create("pack", os.MFD_ALLOW_SEALING)
    os.write(descriptor, PACK)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def answer(size: int = len(PACK), seals: int | None = SEALS, code: str = "OK") -> Answer:
    """Answer one request, with memory if there are seals."""

    def send(connection: socket.socket) -> None:
        response = wire.TransferResponse(code=wire.TRANSFER_CODES[code], size=size)
        response.manifest.signer = 1
        data = response.SerializeToString()
        frame = len(data).to_bytes(4, "big") + data
        if seals is None:
            connection.sendall(frame)
            return
        descriptor = memory(seals)
        # In two parts, as a stream may come.
        socket.send_fds(connection, [frame[:3]], [descriptor])
        os.close(descriptor)
        connection.sendall(frame[3:])

    return send


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[[Answer], LocalNode]]:
    """Make a client of a socket that gives one answer to each request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    answers: list[Answer] = []
    clients: list[LocalNode] = []

    def serve() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(1 << 16):
                        answers[0](connection)
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def make(given: Answer) -> LocalNode:
        answers[:] = [given]
        clients.append(LocalNode(str(tmp_path / "socket"), connect=5.0, answer=1.0))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def packs() -> int:
    """Count the packs' descriptors that are open, on both sides."""
    open_ = (entry for entry in Path("/proc/self/fd").iterdir())
    return sum("memfd:pack" in str(entry.readlink()) for entry in open_ if entry.is_symlink())


def none_left() -> None:
    """Wait until neither side has one open."""

    def gone() -> bool | None:
        try:
            return True if packs() == 0 else None
        except FileNotFoundError:
            return None

    eventually("end of all descriptors", gone, 10)


def test_sealed_memory_is_mapped(node: Callable[[Answer], LocalNode]) -> None:
    """Read-only, and its descriptor goes with it."""
    client = node(answer())
    assert client.usable
    for _ in range(3):
        signed, pack, _ = client.fetch(KEY, "")
        assert (signed.signer, bytes(pack)) == (1, PACK)
        assert pack.readonly
    del pack
    none_left()


BAD: dict[str, tuple[Answer, type[KilnError]]] = {
    "not sealed": (answer(seals=0), Refused),
    "may be written": (answer(seals=fcntl.F_SEAL_SHRINK), Refused),
    "may shrink": (answer(seals=fcntl.F_SEAL_WRITE), Refused),
    "another size": (answer(size=len(PACK) + 1), Refused),
    "no memory": (answer(seals=None), Refused),
    "not found": (answer(seals=None, code="NOT_FOUND"), NotFound),
    "nonsense": (lambda c: c.sendall(b"\x00\x00\x00\x04\xff\xff\xff\xff"), Unreachable),
    "too long": (lambda c: c.sendall(b"\xff" * 64), Unreachable),
    "more than an answer": (lambda c: c.sendall(b"\x00\x00\x00\x00more"), Unreachable),
    "closed": (lambda c: c.shutdown(socket.SHUT_RDWR), Unreachable),
    "silent": (lambda _: None, Unreachable),
}


@pytest.mark.parametrize("how", BAD)
def test_nothing_else_is(node: Callable[[Answer], LocalNode], how: str) -> None:
    """Refused or unreachable, within the deadline; no descriptor is left open."""
    given, expected = BAD[how]
    client = node(given)
    assert client.usable
    with pytest.raises(expected):
        client.fetch(KEY, "")
    none_left()
    assert client.usable == (expected is not Unreachable)


@pytest.mark.cluster
def test_a_socket_that_does_not_see_a_tenant_is_left_out(
    node: Callable[[Answer], LocalNode], cluster: Cluster, clients: Clients, tmp_path: Path
) -> None:
    """A node of an earlier version serves its own alone: what it does not find may be there."""
    asked = []

    def blind(connection: socket.socket) -> None:
        asked.append(connection)
        answer(seals=None, code="NOT_FOUND")(connection)

    node(blind)
    values = Values(clients.of(cluster.nodes[1], namespace="team-b"))
    assert values.put("blind", b"theirs")
    theirs = clients.of(cluster.nodes[0], namespace="team-b", socket=str(tmp_path / "socket"))
    assert Values(theirs).get("blind", wait=0) == b"theirs"
    # More than once where the cluster's nodes were too busy to give it at the first question.
    before = len(asked)
    assert before
    assert Values(theirs).get("blind", wait=0) == b"theirs"
    assert len(asked) == before


def test_no_socket_at_all(tmp_path: Path) -> None:
    """Costs nothing."""
    assert not LocalNode(str(tmp_path / "none"), connect=5.0, answer=1.0).usable
