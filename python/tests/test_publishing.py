"""Publishing behind the caller's back: bounded, and nothing is held or lost by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from cluster import Cluster, Node, eventually
from conftest import Clients
from kiln_torch import stats
from kiln_torch.key import key_of, value_components
from kiln_torch.lease import Lease
from kiln_torch.publishing import PublishQueue, Work
from kiln_torch.value import Values
from relay import Relay

# A bound, not an expectation.
LONG = 60.0


class Works:
    """Makes works, and remembers what became of them."""

    def __init__(self) -> None:
        """Make none yet. What runs waits until ``go`` is set."""
        self.go = threading.Event()
        self.ran: list[bytes] = []
        self.given_up: list[bytes] = []

    def make(self, key: bytes, size: int = 1) -> Work:
        """Make one."""

        def run() -> None:
            assert self.go.wait(LONG)
            self.ran.append(key)

        return Work(key, size, run, lambda: self.given_up.append(key))


@pytest.fixture
def works() -> Iterator[Works]:
    """Works that end with the test."""
    made = Works()
    yield made
    made.go.set()


def test_in_order_and_behind_the_caller(works: Works) -> None:
    """Adding does not wait for what runs; whoever needs a key waits for that alone."""
    queue = PublishQueue()
    assert all(queue.add(works.make(key)) for key in (b"a", b"b", b"c"))
    assert works.ran == []
    assert not queue.wait_for(b"c", 0)
    assert queue.wait_for(b"other", 0)
    assert not queue.flush(0)
    works.go.set()
    assert queue.wait_for(b"a", LONG)
    assert queue.flush(LONG)
    assert works.ran == [b"a", b"b", b"c"]
    # Its thread has ended meanwhile, or does now: another one is started.
    assert queue.add(works.make(b"d"))
    assert queue.flush(LONG)
    assert works.given_up == []


@pytest.mark.parametrize(("most_bytes", "most_works"), [(10, 99), (99, 1)])
def test_a_full_queue_drops_and_counts(works: Works, most_bytes: int, most_works: int) -> None:
    """In bytes or in works; and there is room again afterwards."""
    queue = PublishQueue(most_bytes, most_works)
    assert queue.add(works.make(b"a", 4))
    # It runs, so it is none of those that wait, but its bytes are held.
    eventually("the first to run", lambda: not queue._works or None)
    assert queue.add(works.make(b"b", 4))
    assert not queue.add(works.make(b"c", 4))
    assert works.given_up == [b"c"]
    assert stats()["publish_dropped"] == 1
    works.go.set()
    assert queue.flush(LONG)
    assert queue.add(works.make(b"c", 4))
    assert queue.flush(LONG)
    assert works.ran == [b"a", b"b", b"c"]


def test_closing_gives_up_what_has_not_begun(works: Works) -> None:
    """After the time that it is given; nothing is taken any more then."""
    queue = PublishQueue()
    for key in (b"a", b"b"):
        assert queue.add(works.make(key))
    eventually("the first to run", lambda: len(queue._works) == 1 or None)
    queue.close(0.0)
    assert works.given_up == [b"b"]
    assert not queue.add(works.make(b"c"))
    assert works.given_up == [b"b", b"c"]
    works.go.set()
    assert queue.flush(LONG)
    assert works.ran == [b"a"]


@pytest.fixture
def relay(cluster: Cluster) -> Iterator[Relay]:
    """A relay in front of the first node."""
    made = Relay(cluster.nodes[0].grpc)
    yield made
    made.close()


def name_of(request: pytest.FixtureRequest) -> str:
    """Return a name that no other test uses."""
    return f"{request.node.nodeid}-{os.getpid()}"


@pytest.mark.cluster
def test_the_lease_is_held_until_it_is_published(
    cluster: Cluster, relay: Relay, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Others get the artifact and compile nothing; whoever made it gets it as well."""
    name = name_of(request)
    go = threading.Event()

    def hold(data: bytes, _: int) -> bytes:
        assert go.wait(LONG)
        return data

    # The node has it by then; the answer, which ends the lease, is held up.
    relay.alter["Publish"] = hold
    values = Values(clients.of(relay.address))
    assert values.get(name, wait=1.0) is None
    assert values.put(name, b"made once", later=True)
    assert "published" not in stats()
    other = Values(clients.of(cluster.nodes[1]))
    assert eventually("the value elsewhere", lambda: other.get(name, wait=LONG)) == b"made once"
    assert stats()["leases"] == 1
    threading.Timer(0.2, go.set).start()
    assert values.get(name, wait=0.0) == b"made once"
    assert stats()["published"] == 1
    assert stats()["leases"] == 1


@pytest.mark.cluster
def test_a_failed_publication_releases_the_lease(
    relay: Relay, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """It is counted, and the next one is granted the lease at once."""
    import grpc

    relay.fail["Publish"] = grpc.StatusCode.INTERNAL
    client = clients.of(relay.address)
    values = Values(client)
    assert values.get(name_of(request), wait=1.0) is None
    assert values.put(name_of(request), b"x", later=True)
    assert client.flush(LONG)
    assert stats()["unpublished"] == 1
    relay.fail.clear()
    key = key_of(value_components("default", name_of(request)))
    assert isinstance(client.acquire(key, LONG), Lease)


PUBLISHER = """
import atexit, os, signal, sys
from kiln_torch import stats
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
node, name, size, end = sys.argv[1:]
# Called after the client's own, which is registered later.
atexit.register(lambda: print("cut", stats().get("publish_cut", 0), flush=True))
client = Client(Settings(endpoints=(node,), connect=10.0, answer=600.0, exit=2.0))
values = Values(client)
assert values.get(name, wait=1.0) is None
print("leased", flush=True)
sys.stdin.readline()
assert values.put(name, os.urandom(int(size)), later=True)
print("queued", flush=True)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def publisher(node: Node, name: str, size: int, end: str) -> subprocess.Popen[str]:
    """Start a process that takes a lease, and publishes when it reads a line."""
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, node.grpc, name, str(size), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """Return its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.cluster
def test_a_process_that_ends_publishes_first(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """What is queued when it reaches its end is there afterwards."""
    name = name_of(request)
    with publisher(cluster.nodes[0], name, 4 << 20, "end") as process:
        assert said(process) == "leased"
        go(process)
        assert said(process) == "queued"
        assert said(process) == "cut 0"
        assert process.wait(LONG) == 0
    found = Values(clients.of(cluster.nodes[1])).get(name, wait=LONG)
    assert found is not None
    assert len(found) == 4 << 20


@pytest.mark.cluster
def test_killed_while_it_publishes(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Nothing half-written, and nothing held: all of it is there, or the lease is free."""
    name = name_of(request)
    size = 64 << 20
    with publisher(cluster.nodes[0], name, size, "kill") as process:
        assert said(process) == "leased"
        go(process)
        assert said(process) == "queued"
        assert process.wait(LONG) == -signal.SIGKILL
    client = clients.of(cluster.nodes[1])
    answer = client.acquire(key_of(value_components("default", name)), LONG)
    assert answer is not None
    if isinstance(answer, Lease):
        # Whoever has it now can publish under it.
        assert Values(client).put(name, b"x")
    else:
        assert len(answer.file("value")) == size


@pytest.mark.cluster
def test_exit_is_bounded_while_the_node_is_paused(
    own_cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """The process ends though its publication cannot, and then the lease is free."""
    name = name_of(request)
    node = own_cluster.nodes[0]
    with publisher(node, name, 1 << 20, "end") as process:
        assert said(process) == "leased"
        node.signal(signal.SIGSTOP)
        try:
            go(process)
            assert said(process) == "queued"
            # It did not wait for the end of that, which comes when the connection breaks.
            assert said(process) == "cut 1"
            assert process.wait(LONG) == 0
        finally:
            node.signal(signal.SIGCONT)
    client = clients.of(own_cluster.nodes[1])
    assert client.acquire(key_of(value_components("default", name)), LONG) is not None


@pytest.mark.cluster
def test_a_child_of_multiprocessing_publishes_before_it_ends(
    cluster: Cluster, clients: Clients, request: pytest.FixtureRequest
) -> None:
    """Such children end without atexit."""
    name = name_of(request)
    code = f"""
import multiprocessing
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
values = Values(Client(Settings(endpoints=({cluster.nodes[0].grpc!r},), connect=10.0)))
def publish():
    assert values.put({name!r}, b"x" * (8 << 20), later=True)
child = multiprocessing.get_context("fork").Process(target=publish)
child.start()
child.join()
assert child.exitcode == 0
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=LONG, check=False)
    assert done.returncode == 0
    assert Values(clients.of(cluster.nodes[1])).get(name) is not None


@pytest.mark.cluster
def test_a_fork_while_it_publishes(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """The child neither hangs nor publishes what is its parent's."""
    name = name_of(request)
    code = f"""
import os, sys
from kiln_torch import flush, stats
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
client = Client(Settings(endpoints=({cluster.nodes[0].grpc!r},), connect=10.0))
values = Values(client)
assert values.get({name!r}, wait=1.0) is None
assert values.put({name!r}, os.urandom(32 << 20), later=True)
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        assert client.flush(1.0)
        assert values.get({name!r}) is None
        assert not values.put({name!r}, b"y")
        raise SystemExit(0)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert client.flush(60.0)
assert stats()["published"] == 1, stats()
assert len(values.get({name!r})) == 32 << 20
"""
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    done = subprocess.run([sys.executable, "-c", code], timeout=LONG, check=False, env=environment)
    assert done.returncode == 0
