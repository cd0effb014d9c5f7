"""What belongs to a process: forks, `import torch`, and where Kiln is not asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from conftest import Clients
from kiln_torch.key import key_of, value_components
from kiln_torch.lease import Lease


@pytest.mark.cluster
def test_a_forked_child_neither_hangs_nor_takes_the_lease(cluster: Cluster) -> None:
    """GRPC's threads are not in it: it has the socket, and else no cache.

    In a process of its own, without gRPC's handlers of forks: they hide the hang
    as long as no thread happens to be in a call.
    """
    node = cluster.nodes[0]
    code = f"""
import os
from kiln_torch import stats
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
settings = Settings(endpoints=({node.grpc!r},), socket={node.socket!r}, connect=10.0)
values = Values(Client(settings))
assert values.put("fork", b"x")
assert values.get("fork-held", wait=1.0) is None
assert stats()["leases"] == 1
child = os.fork()
if child == 0:
    assert values.get("fork") == b"x"
    assert values.get("fork-other", wait=30) is None
    values.put("fork-held", b"y")
    values.abandon()
    raise SystemExit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
# The parent's lease is still its own.
assert values.put("fork-held", b"z")
assert values.get("fork-held") == b"z"
assert stats().get("errors", 0) == 0, stats()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        start_new_session=True,
    )
    try:
        assert process.wait(30) == 0
    finally:
        # Its child as well, if that hangs.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.cluster
def test_a_child_forked_before_has_all(cluster: Cluster) -> None:
    """As Inductor's compile workers are: the parent has made a client and not used it.

    In a process of its own: in this one gRPC was used long ago.
    """
    code = f"""
import os
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
values = Values(Client(Settings(endpoints=({cluster.nodes[0].grpc!r},), connect=10.0)))
child = os.fork()
assert values.put(f"both-{{os.getpid()}}", b"x")
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.cluster
def test_a_child_forked_while_grpc_is_imported(cluster: Cluster) -> None:
    """In a thread of its parent: the child does not wait for an import that nobody ends."""
    code = f"""
import importlib.abc, importlib.util, os, signal, sys, threading
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
begun, go = threading.Event(), threading.Event()
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "grpc" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def slowly(module):
            begun.set()
            assert go.wait(60)
            run(module)
        spec.loader.exec_module = slowly
        return spec
sys.meta_path.insert(0, Slow())
values = Values(Client(Settings(endpoints=({cluster.nodes[0].grpc!r},), connect=10.0)))
asking = threading.Thread(target=values.get, args=("behind",))
asking.start()
assert begun.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    assert values.get("other") is None
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
go.set()
asking.join(60)
assert values.put("forked-while-imported", b"x")
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=90, check=False)
    assert done.returncode == 0


@pytest.mark.cluster
def test_a_process_that_ends_holds_nothing(cluster: Cluster, clients: Clients) -> None:
    """However it ends: the next one is granted the lease."""
    name = f"killed-{os.getpid()}"
    code = f"""
import os, signal
from kiln_torch.client import Client
from kiln_torch.config import Settings
from kiln_torch.value import Values
values = Values(Client(Settings(endpoints=({cluster.nodes[0].grpc!r},), connect=10.0)))
assert values.get({name!r}, wait=1.0) is None
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    client = clients.of(cluster.nodes[1])
    key = key_of(value_components("default", name))
    assert isinstance(client.acquire(key, 30), Lease)


@pytest.mark.torch
def test_import_torch_is_left_alone(tmp_path: Path) -> None:
    """Without KILN_ENDPOINT nothing is loaded or set; with it nothing of Inductor is."""
    code = """
import os, sys
before = set(os.environ)
import torch
assert "torch._inductor" not in sys.modules
assert "grpc" not in sys.modules
print(sorted(set(os.environ) - before))
import torch._inductor.remote_cache as remote_cache
print(remote_cache.RemoteFxGraphCache.backend_override_cls is not None)
"""

    def run(**env: str) -> list[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH", "KILN"))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**inherited, **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert run() == ["[]", "False"]
    assert run(KILN_ENDPOINT="http://127.0.0.1:1", KILN_DISABLE="1") == ["[]", "False"]
    switched, plugged = run(
        KILN_ENDPOINT="http://127.0.0.1:1", TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE="0"
    )
    assert "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE" in switched
    assert "TORCHINDUCTOR_AUTOTUNE_REMOTE_CACHE" not in switched, "the user's own"
    assert plugged == "True"
