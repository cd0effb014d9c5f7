"""Load for the dashboard's test: compiles and Redis values, hostile names among them.

Invariant: what is asked is known, so that what the page shows can be held against it.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from demo import kernel
from demo_cluster import Cluster, Node, require

if TYPE_CHECKING:
    from pathlib import Path

# It would run if it were markup anywhere.
HOSTILE = '<img src=x onerror="window.hacked=1">'
KERNELS = 4


class Redis:
    """A few words of the Redis protocol to one node."""

    def __init__(self, node: Node) -> None:
        """Connects."""
        host, port = node.resp.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.file = self.socket.makefile("rb")

    def ask(self, *words: str) -> bytes | None:
        """Sends one command; its value, None where there is none."""
        parts = [word.encode() for word in words]
        lines = [b"*%d\r\n" % len(parts)]
        lines += [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts]
        self.socket.sendall(b"".join(lines))
        head = self.file.readline().rstrip()
        require(head[:1] not in (b"", b"-"), f"{words[0]}: {head!r}")
        if head[:1] != b"$" or head == b"$-1":
            return None
        return self.file.read(int(head[1:]) + 2)[:-2]

    def close(self) -> None:
        """Ends the connection."""
        self.file.close()
        self.socket.close()


def compiles(cluster: Cluster, folder: Path) -> None:
    """Each kernel on one node, then hits of it on all, twice."""
    files = [folder / f"kernel_{n}.cu" for n in range(KERNELS)]
    files.append(folder / f"{HOSTILE.replace('/', '')}.cu")
    for n, file in enumerate(files):
        file.write_text(kernel(f"kernel_{n}"))
    nodes = cluster.nodes
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: cluster.compile(nodes[one[0] % 3], one[1]), enumerate(files)))
        again = [(node, file) for file in files for node in nodes for _ in range(2)]
        list(pool.map(lambda one: cluster.compile(*one), again))


class Values:
    """Redis clients that go on until they are told to stop."""

    def __init__(self, cluster: Cluster) -> None:
        """Begins, with one client a node."""
        self.over = threading.Event()
        self.pool = ThreadPoolExecutor(3)
        self.clients = [self.pool.submit(self.run, node) for node in cluster.nodes]

    def run(self, node: Node) -> None:
        """Values that are there, and one in ten that is not."""
        client = Redis(node)
        client.ask("SET", f"value-{node.id}", "x" * 1000)
        turn = 0
        while not self.over.wait(0.005):
            turn += 1
            # Of its own: others would wait for whoever missed it first.
            missing = f"{HOSTILE} {node.id} {turn}"
            name = missing if turn % 10 == 0 else f"value-{node.id}"
            client.ask("GET", name)
        client.close()

    def stop(self) -> None:
        """Ends them; what one of them complained of is raised."""
        self.over.set()
        for client in self.clients:
            client.result(timeout=60)
        self.pool.shutdown()
