"""Real Redis clients against a cluster: sccache, ccache and redis-py, unmodified.

Each stores through one node and must hit through another. Run by `make test-clients`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Callable

import redis  # pyrefly: ignore[missing-import]  # of `deploy/tools/clients.txt`

SOURCE = "int twice(int x) { return 2 * x; }\n"
SOON = 60.0


def run(*command: str, **variables: str) -> str:
    """Output of a command that must succeed in time."""
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def ccache(ports: list[int], folder: Path) -> str:
    """The second node's client has an empty folder of its own, and hits."""
    source = folder / "a.c"
    source.write_text(SOURCE)
    objects = []
    for number, port in enumerate(ports):
        variables = {
            "CCACHE_DIR": str(folder / f"cache-{number}"),
            "CCACHE_REMOTE_STORAGE": f"redis://127.0.0.1:{port}",
        }
        objects.append(folder / f"{number}.o")
        run("ccache", "cc", "-c", str(source), "-o", str(objects[-1]), **variables)
        stats = run("ccache", "--print-stats", **variables)
        counts = dict(line.split("\t") for line in stats.splitlines() if "\t" in line)
        assert int(counts["remote_storage_hit"]) == min(number, 1), f"node {number + 1}: {stats}"
        assert int(counts["remote_storage_error"]) == 0, stats
    assert len({path.read_bytes() for path in objects}) == 1, "the objects differ"
    return "one miss, then hits"


def sccache(ports: list[int], folder: Path) -> str:
    """The same with a daemon for each node."""
    source = folder / "a.c"
    source.write_text(SOURCE)
    for number, port in enumerate(ports):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            own = free.getsockname()[1]
        variables = {
            "SCCACHE_SERVER_PORT": str(own),
            "SCCACHE_DIR": str(folder / f"cache-{number}"),
            "SCCACHE_REDIS_ENDPOINT": f"redis://127.0.0.1:{port}",
        }
        try:
            compile_ = ("sccache", "cc", "-c", str(source), "-o", str(folder / f"{number}.o"))
            run(*compile_, **variables)
            stats = json.loads(run("sccache", "--show-stats", "--stats-format=json", **variables))
        finally:
            run("sccache", "--stop-server", **variables)
        counts = stats["stats"]
        hits = sum(counts["cache_hits"]["counts"].values())
        assert hits == min(number, 1), f"node {number + 1}: {counts}"
        failures = [counts[name] for name in ("cache_write_errors", "cache_read_errors")]
        assert failures in ([0, 0], [0, {"counts": {}, "adv_counts": {}}]), counts
    return "one miss, then hits"


def redis_py(ports: list[int], _: Path) -> str:
    """HELLO 3 and all that it sends beside; three clients, one of which computes."""
    clients = [redis.Redis(port=port, socket_timeout=SOON) for port in ports]
    clients[0].set("key", b"\0value")
    assert [client.get("key") for client in clients] == [b"\0value"] * len(clients)
    assert clients[0].get("computed") is None
    answers: list[object] = []
    others = [
        threading.Thread(target=lambda client=client: answers.append(client.get("computed")))
        for client in clients[1:]
    ]
    for other in others:
        other.start()
    # What must not happen: one of them is answered before there is an answer.
    others[0].join(0.5)
    assert not answers, f"a client did not wait: {answers}"
    clients[0].set("computed", "once")
    for other in others:
        other.join(SOON)
    assert answers == [b"once"] * len(others), answers
    old = redis.Redis(port=ports[0], protocol=2)
    assert old.mget("key", "absent") == [b"\0value", None]
    return f"redis-py {redis.__version__}: RESP3 and RESP2, one of three computes"


CLIENTS: list[tuple[str, Callable[[list[int], Path], str]]] = [
    ("redis-py", redis_py),
    ("ccache", ccache),
    ("sccache", sccache),
]


def main() -> int:
    """Starts three nodes and lets each client work on them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kiln", required=True, help="the kiln program")
    kiln = shutil.which(parser.parse_args().kiln)
    assert kiln is not None, "there is no such program"
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [kiln, "dev", "--nodes", "3", "--dir", str(folder / "dev")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dev:
            try:
                assert dev.stdout is not None
                ready = json.loads(dev.stdout.readline())
                ports = [int(node["resp"].rpartition(":")[2]) for node in ready["nodes"]]
                for client, check in CLIENTS:
                    own = folder / client
                    own.mkdir()
                    try:
                        print(f"{client}: {check(ports, own)}", flush=True)
                    except (AssertionError, redis.RedisError, subprocess.SubprocessError) as e:
                        print(f"{client} FAILED: {e}", flush=True)
                        failed += 1
            finally:
                dev.send_signal(signal.SIGINT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
