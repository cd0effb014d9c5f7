#!/usr/bin/env python3
"""Kiln's own part of a hit, by phase: what a first call pays beside torch.

    benches/hit.py --kiln target/release/kiln [--python PYTHON] [--megabytes 12] [--repeats 5]

PYTHON has kiln_torch and its dependencies; torch is not needed. Each repeat is a fresh
process against the second of two nodes, which has the entry in memory: imports, the
connection, an entry by gRPC, by the socket and fetched ahead, and what torch does with
it (JSON, base64). Medians, least and most, in milliseconds.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = "bench:hit"
LIST = "bench:hit:list"


def phases(grpc: str, socket: str) -> dict[str, float]:
    """Measure in this process, which is fresh."""
    took: dict[str, float] = {}

    def timed(phase: str, step):  # noqa: ANN001, ANN202
        began = time.perf_counter()
        result = step()
        took[phase] = (time.perf_counter() - began) * 1000
        return result

    timed("import protobuf and descriptors", lambda: __import__("kiln_torch.wire"))
    timed("import the client", lambda: __import__("kiln_torch.client"))
    from kiln_torch import decoding
    from kiln_torch.client import Client
    from kiln_torch.config import Settings
    from kiln_torch.key import key_of, value_components
    from kiln_torch.prefetch import received

    key = key_of(value_components("default", NAME))
    environment = os.environ | {"KILN_ENDPOINT": f"http://{grpc}"}
    os.environ.update(environment)
    timed("start the helper", lambda: received.start(LIST, 256 << 20))
    started = received.started()
    assert started is not None
    # As long as torch's import takes, and more.
    timed("(helper, beside the program)", lambda: started._helper.wait(60))
    ahead = Client(Settings(endpoints=("127.0.0.1:1",)), started)
    found = timed("fetched ahead", lambda: ahead.fetch(key))
    assert found is not None
    assert "grpc" not in sys.modules
    timed("import grpc", lambda: __import__("grpc"))
    timed(
        "import cryptography",
        lambda: __import__("cryptography.hazmat.primitives.asymmetric.ed25519"),
    )
    remote = Client(Settings(endpoints=(grpc,), connect=10.0))
    timed("connect and hello", lambda: list(remote._process().usable()))
    assert timed("by gRPC", lambda: remote.fetch(key)) is not None
    assert timed("by gRPC, again", lambda: remote.fetch(key)) is not None
    local = Client(Settings(endpoints=(grpc,), socket=socket, connect=10.0))
    list(local._process().usable())
    assert timed("by the socket", lambda: local.fetch(key)) is not None
    data = timed("copy", lambda: bytes(found.file("value")))
    timed("JSON as torch reads it", lambda: json.loads(data)["data"])
    text = timed("JSON as Kiln reads it", lambda: decoding.entry(data)["data"])
    timed("base64", lambda: base64.b64decode(text))
    return took


def store(grpc: str, megabytes: int) -> None:
    """Put an entry as torch's remote caches have them, and the list that names it."""
    from kiln_torch.client import Client
    from kiln_torch.config import Settings
    from kiln_torch.key import key_of, value_components
    from kiln_torch.prefetch import listed
    from kiln_torch.value import Values

    values = Values(Client(Settings(endpoints=(grpc,), connect=10.0)))
    data = base64.b64encode(os.urandom(megabytes << 20)).decode()
    assert values.put(NAME, json.dumps({"data": data, "time_taken_ms": 1}).encode())
    assert values.put(LIST, listed.write({key_of(value_components("default", NAME)): 0}))


def main() -> None:
    """Start nodes, store, and measure in fresh processes."""
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(phases(*sys.argv[2:])))
        return
    if sys.argv[1:2] == ["store"]:
        store(sys.argv[2], int(sys.argv[3]))
        return
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--kiln", required=True)
    asked.add_argument("--python", default=sys.executable)
    asked.add_argument("--megabytes", type=int, default=12)
    asked.add_argument("--repeats", type=int, default=5)
    given = asked.parse_args()

    def run(*arguments: str) -> str:
        command = [given.python, __file__, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        command = [given.kiln, "dev", "--nodes", "2", "--dir", str(Path(folder, "dev"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as dev:
            assert dev.stdout is not None
            try:
                first, second = json.loads(dev.stdout.readline())["nodes"]
                run("store", first["grpc"], str(given.megabytes))
                where = (second["grpc"], second["socket"])
                # The first brings it to the second node.
                run("child", *where)
                told = [json.loads(run("child", *where)) for _ in range(given.repeats)]
            finally:
                dev.send_signal(signal.SIGINT)
    print(f"{given.megabytes} MB, {given.repeats} processes\n{'':34} median    least     most, ms")
    for phase in told[0]:
        each = [row[phase] for row in told]
        print(f"{phase:34} {statistics.median(each):7.1f}  {min(each):7.1f}  {max(each):7.1f}")


if __name__ == "__main__":
    main()
