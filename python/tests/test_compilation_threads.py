"""Several threads that compile: one compile a key, no thread that waits for another for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import block, close, rows  # noqa: E402
from kiln_torch import standalone  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilationError,
    CompilerManager,
    KilnBackend,
)
from kiln_torch.compilation.flights import Flights  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Seen with 2.11: its FakeTensorMode has a guard for the GPU that is not there, which
# ends with the thread that made it; the next thread uses it. Not with 2.15.
_CRASHES = torch.version.cuda is not None and not torch.cuda.is_available()
_OLD = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 15)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(_CRASHES and _OLD, reason="this torch, without a GPU, crashes in threads"),
]

THREADS = 6


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Do ``work`` in all threads, which begin together."""
    together = threading.Barrier(THREADS)

    def begin(at: int) -> Any:
        together.wait(timeout=60)
        # Each thread has its own switch for gradients.
        with torch.no_grad():
            return work(at)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(begin, range(THREADS)))


@pytest.mark.parametrize("timeout", [None, 600.0], ids=["here", "in a process"])
@pytest.mark.parametrize("managers", [1, THREADS], ids=["one manager", "one each"])
def test_one_key_is_compiled_once(tmp_path: Path, timeout: float | None, managers: int) -> None:
    config = CompilationConfig(compile_timeout=timeout)
    folder = str(tmp_path / "cache")
    own = [CompilerManager(config, folder) for _ in range(managers)]
    graph, x = block(), rows(4)
    # Tracing by fx is not for several threads at once.
    graphs = [block() for _ in range(THREADS)]
    runs = at_once(lambda at: own[at % managers].compile(graphs[at], [rows(4)]))
    for run in runs:
        close(run(x), graph(x))
    told = [each.compilation_counter for each in own]
    assert sum(each.num_inductor_compiles for each in told) == 1
    assert sum(each.num_compiled_artifacts_saved for each in told) == 1
    assert sum(each.num_cache_misses for each in told) == 1
    assert sum(each.num_cache_hits for each in told) == THREADS - 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_different_graphs_from_different_threads_are_their_own(tmp_path: Path) -> None:
    own = CompilerManager(CompilationConfig(compile_timeout=None), str(tmp_path / "cache"))

    def graph(at: int) -> torch.fx.GraphModule:
        return torch.fx.symbolic_trace(lambda x: torch.sin(x) * (at % 3 + 2))

    graphs = [graph(at) for at in range(THREADS)]
    runs = at_once(lambda at: own.compile(graphs[at], [rows(4)]))
    for run, expected in zip(runs, graphs):
        close(run(rows(4)), expected(rows(4)))
    assert own.compilation_counter.num_inductor_compiles == 3


def test_dynamo_and_plain_calls_wait_for_each_other_and_end(tmp_path: Path) -> None:
    """Dynamo calls with torch's lock held; the others take it only to use torch."""
    config = CompilationConfig(parallel_compiles=2, fallback=False, compilation_level="piecewise")
    folder = str(tmp_path / "cache")
    manager = CompilerManager(config, folder)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval()

    graphs = [torch.fx.symbolic_trace(model) for _ in range(THREADS)]

    def work(at: int) -> torch.Tensor:
        if at % 2:
            return manager.compile(graphs[at], [rows(4)])(rows(4))
        return torch.compile(model, backend=KilnBackend(config, folder))(rows(4))

    for result in at_once(work):
        close(result, model(rows(4)))


def test_a_failure_is_everybodys_and_the_next_one_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("not today")

    own = CompilerManager(CompilationConfig(compile_timeout=None), str(tmp_path / "cache"))
    graph, graphs = block(), [block() for _ in range(THREADS)]

    def attempt(at: int) -> str:
        try:
            own.compile(graphs[at], [rows(4)])
        except CompilationError as error:
            return str(error)
        return ""

    with monkeypatch.context() as patched:
        patched.setattr(standalone, "compile_graph", fail)
        assert all("not today" in each for each in at_once(attempt))
    close(own.compile(graph, [rows(4)])(rows(4)), graph(rows(4)))


def test_a_flight_has_one_permit_and_ends() -> None:
    flights, permit = Flights(), object()
    flight, first = flights.join("here", b"key")
    assert first
    assert flights.join("here", b"key") == (flight, False)
    assert flights.join("there", b"key")[1]
    waiting = ThreadPoolExecutor(1).submit(flight.wait)
    flight.looked(None, permit, None, None)  # pyrefly: ignore
    waiting.result(timeout=60)
    assert [flight.take(), flight.take()] == [permit, None]
    flights.end("here", b"key", flight)
    later, first = flights.join("here", b"key")
    assert first
    # Who comes late ends nobody else's.
    flights.end("here", b"key", flight)
    assert flights.join("here", b"key") == (later, False)
