"""What a program used last time is there before it asks; and no list can do harm."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from conftest import Clients
from kiln_torch import stats
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.key import key_of, value_components
from kiln_torch.manifest import Artifact
from kiln_torch.prefetch import helper, listed, program
from kiln_torch.prefetch.received import Received
from kiln_torch.value import Values
from processes import Processes, kiln

# A bound, not an expectation.
LONG = 60.0
PLENTY = 64 << 20


def key(name: str) -> bytes:
    """Return the key of the value ``name``."""
    return key_of(value_components("default", name))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return f"{request.node.nodeid}-{os.getpid()}"


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end, and the helper's."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    theirs.close()
    ours.close()


Prefetch = Callable[..., Client]


@pytest.fixture
def prefetched(cluster: Cluster, clients: Clients, name: str) -> Prefetch:
    """Makes a client that has what the list ``name`` holds, and has no node to ask."""

    def make(most_bytes: int = PLENTY) -> Client:
        ours, theirs = socket.socketpair()
        with theirs:
            helper.prefetch(clients.of(cluster.nodes[0]), name, most_bytes, theirs)
        nobody = Settings(endpoints=("127.0.0.1:1",))
        return Client(nobody, Received(name, ours))

    return make


def put(values: Values, name: str, data: dict[str, bytes]) -> None:
    """Store values, and the list of them."""
    for each, content in data.items():
        assert values.put(each, content)
    assert values.put(name, listed.write(dict.fromkeys(map(key, data), 0)))


def test_what_is_listed_is_there_without_a_node(
    cluster: Cluster, clients: Clients, name: str, prefetched: Prefetch
) -> None:
    """Each of them, byte for byte, once; what is not listed is asked for as ever."""
    data = {f"{name}-{n}": os.urandom(n * 70_000 + 1) for n in range(5)}
    put(Values(clients.of(cluster.nodes[1])), name, data)
    client = prefetched()
    before = stats().get("hits", 0)
    for each, content in data.items():
        found = client.acquire(key(each), 0)
        assert isinstance(found, Artifact)
        assert found.file("value") == content
    assert stats()["prefetched"] == len(data)
    assert stats()["hits"] == before + len(data)
    # It was the caller's.
    assert client.fetch(key(next(iter(data)))) is None
    assert client.fetch(key("other")) is None
    client.close()


def test_another_tenant_has_its_own(cluster: Cluster, clients: Clients, name: str) -> None:
    """Its list and its artifacts, though this machine's socket serves another tenant."""
    node = cluster.nodes[0]
    told = {"namespace": "team-b", "socket": node.socket}
    storing = clients.of(cluster.nodes[1], **told)
    wanted = key_of(value_components("team-b", f"{name}-v"))
    assert Values(storing).put(f"{name}-v", b"theirs")
    assert Values(storing).put(name, listed.write({wanted: 0}))
    ours, theirs = socket.socketpair()
    with theirs:
        helper.prefetch(clients.of(node, **told), name, PLENTY, theirs)
    nobody = Settings(endpoints=("127.0.0.1:1",), namespace="team-b")
    client = Client(nobody, Received(name, ours))
    found = client.fetch(wanted)
    assert found is not None
    assert found.file("value") == b"theirs"
    client.close()


def test_what_is_too_large_is_left_out(
    cluster: Cluster, clients: Clients, name: str, prefetched: Prefetch
) -> None:
    """Of all that is listed, as much as fits comes."""
    data = {f"{name}-{size}": os.urandom(size) for size in (1_000_000, 1000, 2000)}
    put(Values(clients.of(cluster.nodes[1])), name, data)
    client = prefetched(most_bytes=10_000)
    assert client.fetch(key(f"{name}-1000000")) is None
    assert client.fetch(key(f"{name}-1000")) is not None
    assert client.fetch(key(f"{name}-2000")) is not None
    client.close()


def hostile() -> dict[str, bytes]:
    """Lists that somebody wrote who may write to the cluster."""
    keys = [[os.urandom(32).hex(), 0] for _ in range(20_000)]
    return {
        "no JSON": os.urandom(1000),
        "nothing": b"",
        "another shape": b'{"keys": {"a": 1}}',
        "another shape still": b'[[["keys"]]]',
        "numbers": b'{"keys": [[1, 2], [3, 4]]}',
        "short keys": json.dumps({"keys": [["ab", 0], ["", 0]]}).encode(),
        "deep": b'{"keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many": json.dumps({"keys": keys[:5000]}).encode(),
        "huge": json.dumps({"keys": keys}).encode(),
        "unknown keys": json.dumps({"keys": keys[:3]}).encode(),
        "a huge number": b'{"keys": [["' + b"ab" * 32 + b'", 1e999]]}',
    }


@pytest.mark.parametrize("how", list(hostile()))
def test_a_hostile_list_is_nothing(
    cluster: Cluster, clients: Clients, name: str, prefetched: Prefetch, how: str
) -> None:
    """Bounded, and never the answer to another key."""
    values = Values(clients.of(cluster.nodes[1]))
    assert values.put(name, hostile()[how])
    assert len(listed.read(hostile()[how])) <= listed.MOST_KEYS
    client = prefetched()
    assert client.fetch(key(f"{name}-other")) is None
    assert "prefetched" not in stats()
    assert "bugs" not in stats()
    client.close()


def test_a_list_that_is_stale(
    cluster: Cluster, clients: Clients, name: str, prefetched: Prefetch
) -> None:
    """What is gone is left out, the rest comes; what changed since comes as it is now."""
    values = Values(clients.of(cluster.nodes[0]))
    data = {f"{name}-here": b"old"}
    put(values, name, data)
    stale = {key(f"{name}-gone"): 0, key(f"{name}-here"): 3}
    assert values.put(name, listed.write(stale))
    assert values.put(f"{name}-here", b"new")
    client = prefetched()
    assert client.fetch(key(f"{name}-gone")) is None
    found = client.fetch(key(f"{name}-here"))
    assert found is not None
    assert found.file("value") == b"new"
    client.close()


def test_what_this_process_put_counts_more(cluster: Cluster, clients: Clients, name: str) -> None:
    """A value that it replaced is not taken from what was fetched before."""
    put(Values(clients.of(cluster.nodes[0])), name, {f"{name}-v": b"old"})
    ours, theirs = socket.socketpair()
    with theirs:
        helper.prefetch(clients.of(cluster.nodes[0]), name, PLENTY, theirs)
    settings = Settings(endpoints=(cluster.nodes[0].grpc,), connect=10.0)
    client = Client(settings, Received(name, ours))
    values = Values(client)
    # Something was taken, so all has come.
    assert client.fetch(key("other")) is None
    assert values.put(f"{name}-v", b"new", later=True)
    assert values.get(f"{name}-v") == b"new"
    client.close()


LIES: dict[str, Callable[[socket.socket], None]] = {
    "closed": lambda _: None,
    "garbage": lambda s: s.sendall(b"\xff\xfe\n"),
    "no descriptor": lambda s: s.sendall(listing() + b'{"size": 10, "header": 2}\n'),
    "not sealed": lambda s: send(s, {"size": 64, "header": 2}, seal=False),
    "another size": lambda s: send(s, {"size": 65, "header": 2}),
    "a header too long": lambda s: send(s, {"size": 64, "header": 1 << 40}),
    "no header": lambda s: send(s, {"size": 64, "header": 5}),
}


def listing() -> bytes:
    """Say that one key is fetched."""
    return json.dumps({"listed": [key("lie").hex()]}).encode() + b"\n"


def send(connection: socket.socket, told: dict[str, Any], *, seal: bool = True) -> None:
    """Hand over memory with nothing sensible in it."""
    memory = os.memfd_create("lie", os.MFD_ALLOW_SEALING)
    os.write(memory, b"[]" + b"x" * 62)
    if seal:
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    socket.send_fds(connection, [listing() + json.dumps(told).encode() + b"\n"], [memory])
    os.close(memory)


@pytest.mark.parametrize("lie", list(LIES))
def test_a_helper_that_fails(sockets: tuple[socket.socket, socket.socket], lie: str) -> None:
    """Is a miss, and counted once; no descriptor is left open."""
    ours, theirs = sockets
    LIES[lie](theirs)
    theirs.close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    received = Received("name", ours)
    for _ in range(3):
        assert received.take(key("lie")) is None
    assert stats()["prefetch_failed"] == 1
    assert len(list(Path("/proc/self/fd").iterdir())) < before


def test_a_helper_that_says_nothing(sockets: tuple[socket.socket, socket.socket]) -> None:
    """Nobody waits for it for long, and what it says later is used."""
    ours, theirs = sockets
    received = Received("name", ours)
    assert received.take(key("lie")) is None
    theirs.sendall(listing())
    # Not listed: not waited for.
    assert received.take(key("other")) is None
    assert "prefetch_late" not in stats()


def test_memory_that_nobody_can_write_to(cluster: Cluster, clients: Clients, name: str) -> None:
    """What the helper hands over is sealed."""
    put(Values(clients.of(cluster.nodes[0])), name, {f"{name}-v": b"data"})
    found = clients.of(cluster.nodes[0]).fetch(key(f"{name}-v"))
    assert found is not None
    memory, size, _ = helper.packed([found])
    try:
        with pytest.raises(OSError, match="permitted"):
            os.pwrite(memory, b"x", 0)
        with pytest.raises(OSError, match="permitted"):
            os.ftruncate(memory, 0)
        with pytest.raises(OSError, match="permitted"):
            mmap.mmap(memory, size)
    finally:
        os.close(memory)


def test_the_list_follows_what_is_used() -> None:
    """What is used comes first; what goes unused for several runs is dropped."""
    a, b, c = (os.urandom(32) for _ in range(3))
    first = listed.updated({}, [a, b])
    assert first == {a: 0, b: 0}
    assert listed.read(listed.write(first)) == first
    then = listed.updated(first, [c, a])
    assert list(then.items()) == [(c, 0), (a, 0), (b, 1)]
    for _ in range(10):
        then = listed.updated(then, [a])
    assert then == {a: 0}
    many = [os.urandom(32) for _ in range(listed.MOST_KEYS + 10)]
    assert len(listed.updated({}, many)) == listed.MOST_KEYS


def test_which_program_it_is(tmp_path: Path) -> None:
    """The source and the arguments say it, or the tag; never the path."""
    script, copy = tmp_path / "a.py", tmp_path / "b.py"
    for each in (script, copy):
        each.write_text("print(1)")

    def of(*argv: object, **env: str) -> str | None:
        return program.name_of(env, [str(each) for each in argv])

    first = of(script, "--layers", "3")
    assert first is not None
    assert of(copy, "--layers", "3") == first
    others = [
        of(script, "--layers", "4"),
        of(script, "--layers3"),
        of(script, "--layers", "3", LOCAL_RANK="1"),
        of(script, "--layers", "3", KILN_TAG="tag"),
    ]
    script.write_text("print(2)")
    others.append(of(script, "--layers", "3"))
    assert None not in others
    assert len({first, *others}) == 6
    assert of("/nowhere", KILN_TAG="tag") == others[3]
    # Nothing can be said of these.
    assert [of("-c"), of(""), of(), of(tmp_path), of("\0")] == [None] * 5
    worker = "/x/torch/_inductor/compile_worker/__main__.py"
    assert of(worker, KILN_TAG="tag") is None


PROGRAM = """
import sys
from kiln_torch import flush, plugin, stats
plugin.autoload()
from kiln_torch.client import Client
from kiln_torch.value import Values
assert "grpc" not in sys.modules
client = Client.from_env()
values = Values(client)
from kiln_torch.manifest import Artifact
from kiln_torch.prefetch import received
helper = received.started() and received.started()._helper
{body}
"""


def run(tmp_path: Path, cluster: Cluster, body: str, **env: str) -> list[str]:
    """Run a program that is plugged in as `import torch` does it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(body=body))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("KILN_")}
    inherited["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**inherited, **kiln(cluster.nodes[0]), **env},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# The same program both times, as it is: the first run stores, the second one finds.
TWICE = """
import os
if helper:
    # As if torch had been imported meanwhile.
    assert helper.wait(60) == 0
if values.get(os.environ["NAME"]) is None:
    values.put(os.environ["NAME"], b"made", later=True)
else:
    values.used(os.environ["NAME"])
print(stats().get("prefetched", 0), "grpc" in sys.modules)
for _ in range(3):
    child = os.fork()
    if child == 0:
        # It has what a child had before: all where the parent did not use gRPC.
        values.get("other")
        raise SystemExit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_program_finds_what_it_used(cluster: Cluster, tmp_path: Path, name: str) -> None:
    """From its second run on, with neither a thread nor grpc in it; and it forks."""
    assert run(tmp_path, cluster, TWICE, NAME=name) == ["0", "True"]
    assert run(tmp_path, cluster, TWICE, NAME=name) == ["1", "False"]
    assert run(tmp_path, cluster, TWICE, NAME=name) == ["1", "False"]
    # Switched off, it asks.
    off = run(tmp_path, cluster, TWICE, NAME=name, KILN_PREFETCH_BYTES="0")
    assert off == ["0", "True"]


FORKED_FIRST = """
import os
assert helper.wait(60) == 0
child = os.fork()
if child == 0:
    # By asking a node: what was fetched ahead is its parent's.
    found = values.get(os.environ["NAME"])
    raise SystemExit(0 if (found, stats().get("prefetched", 0)) == (b"made", 0) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert values.get(os.environ["NAME"]) == b"made"
print(stats()["prefetched"])
"""


def test_a_child_takes_nothing_from_its_parent(
    cluster: Cluster, clients: Clients, tmp_path: Path, name: str
) -> None:
    """Not one byte of the connection to the helper."""
    values = Values(clients.of(cluster.nodes[1]))
    tagged = program.name_of({"KILN_TAG": name}, [])
    assert tagged is not None
    assert values.put(name, b"made")
    assert values.put(tagged, listed.write({key(name): 0}))
    assert run(tmp_path, cluster, FORKED_FIRST, NAME=name, KILN_TAG=name) == ["1"]


def test_its_helper_is_paused(cluster: Cluster, tmp_path: Path, name: str) -> None:
    """The program goes on without it, and ends."""
    body = """
import os, signal
os.kill(helper.pid, signal.SIGSTOP)
assert values.put("NAME", b"x")
assert values.get("NAME") == b"x"
os.kill(helper.pid, signal.SIGKILL)
helper.wait()
print("ended")
""".replace("NAME", name)
    assert run(tmp_path, cluster, body) == ["ended"]


@pytest.mark.torch
def test_torch_compiles_with_it(cluster: Cluster, processes: Processes) -> None:
    """The second process of one program has all of it before it asks."""
    width = str(40 + os.getpid() % 400 * 2)
    model = {"WIDTH": width, "KILN_TAG": f"tag-{width}-{os.getpid()}"}
    first = processes.start(kiln(cluster.nodes[0], **model)).report()
    assert first["fx_miss"] == 1, first["stats"]

    second = processes.start(kiln(cluster.nodes[2], **model)).report()
    assert (second["fx_hit"], second["fx_miss"]) == (1, 0), second["stats"]
    assert second["autograd_hit"] == 1, second["stats"]
    assert second["stats"]["prefetched"] >= 2, second["stats"]
    assert second["stats"].get("misses", 0) <= first["stats"]["misses"], second["stats"]
    assert second["out"] == first["out"]
