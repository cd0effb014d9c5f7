"""The recovery diagram on real failures: each rung of the ladder, and what comes after it.

A C++ compiler that hangs, dies or is not there is a program in its place, which
Inductor starts as it starts any; memory is bounded by the kernel.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from cluster import alive, eventually  # noqa: E402
from compilation_graphs import block, close, layers, rows  # noqa: E402
from kiln_torch import stats  # noqa: E402
from kiln_torch.compilation import (  # noqa: E402
    CompilationConfig,
    CompilationError,
    CompilerManager,
    IncompatibleConfigError,
    KilnBackend,
    OutOfMemoryError,
    ToolchainMissingError,
    UnsupportedOpError,
    fork_server,
    robust_compile,
)
from kiln_torch.compilation import TimeoutError as TookTooLong  # noqa: E402
from kiln_torch.compilation.alerts import TIMEOUT, alerts  # noqa: E402
from kiln_torch.compilation.fallback import Fallback, fallback_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.torch

HERE: dict[str, Any] = {"compile_timeout": None}
# Bound, not expectation: a loaded machine compiles a kernel in less.
TAKES = 10.0
LONG = 300.0
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    for each in alerts.open:
        alerts.resolve(each.name)
    with torch.no_grad():
        yield


def manager(tmp_path: Path, **settings: Any) -> CompilerManager:
    return CompilerManager(CompilationConfig(**{**HERE, **settings}), str(tmp_path / "cache"))


def robustly(of: CompilerManager, graph: Any, *inputs: Any) -> Any:
    return robust_compile(graph, list(inputs), of.compilation_config, of)


def rungs(run: Any) -> list[tuple[str, str]]:
    """Return what failed before ``run``, and ``run`` itself, by rung and kind."""
    mark = fallback_of(run)
    assert mark is not None
    return [*((each.rung, each.kind) for each in mark.tried), (mark.rung, "")]


def sampled(x: torch.Tensor) -> torch.Tensor:
    """Between two parts that can be compiled: Inductor has no rule for it of its own.

    With ``implicit_fallbacks`` off it may not leave it to torch by itself.
    """
    moved = torch.tanh(x)
    return torch.sigmoid(torch.nn.functional.grid_sample(moved, moved, align_corners=False) * 2)


# Batch, channels and three sizes, which are the grid's batch and sizes and its three axes.
CUBE = (1, 3, 3, 3, 3)


def entries(tmp_path: Path) -> set[str]:
    return {path.stem for path in (tmp_path / "cache").glob("*.kiln")}


class Compiler:
    """A C++ compiler that works where the file ``works`` is, and else does as it is told."""

    def __init__(self, folder: Path, instead: str) -> None:
        """Write the program."""
        folder.mkdir()
        self.path = folder / "c++"
        self._works = folder / "works"
        self.started = folder / "started"
        self.path.write_text(
            f'#!/bin/sh\ncase "$*" in *--version*) exec g++ "$@";; esac\n'
            f'[ -e {self._works} ] && exec g++ "$@"\n'
            f"echo $$ >> {self.started}\n{instead}\n"
        )
        self.path.chmod(0o755)

    def work(self) -> None:
        """Compile from now on."""
        self._works.touch()

    @property
    def options(self) -> dict[str, Any]:
        """What makes Inductor start it."""
        return {"cpp.cxx": (str(self.path), None)}

    def pids(self) -> list[int]:
        """Return those that did not work."""
        return [int(line) for line in self.started.read_text().split()]


def test_an_unsupported_operation_runs_beside_what_is_compiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"inductor_config": {"implicit_fallbacks": False}}
    graph, x = torch.fx.symbolic_trace(sampled), torch.randn(*CUBE)
    strict = manager(tmp_path, **settings)
    with pytest.raises(UnsupportedOpError, match="grid_sampler_3d"):
        strict.compile(graph, [x])
    of = manager(tmp_path, **settings)
    with caplog.at_level(logging.WARNING, "kiln_torch"):
        run = robustly(of, graph, x)
    close(run(x), sampled(x))
    assert rungs(run) == [("wanted", "unsupported_op"), ("mixed", "")]
    assert "grid_sampler_3d" in run.tried[0].message
    assert "mixed instead: wanted: C001 unsupported_op" in caplog.text
    assert stats()["compilation.fallback.mixed.unsupported_op"] == 1
    assert of.compilation_counter.num_fallbacks == 1
    assert of.performance_monitor.fallbacks == {"mixed": 1}
    # Two parts were compiled, and nothing lies under the key of the whole.
    assert len(entries(tmp_path)) == 2
    assert run.wanted not in entries(tmp_path)
    assert run.expires is not None


def test_dynamos_graphs_are_mixed_as_well(tmp_path: Path) -> None:
    config = CompilationConfig(**HERE, inductor_config={"implicit_fallbacks": False})
    backend = KilnBackend(config, str(tmp_path / "cache"))
    x = torch.randn(*CUBE)
    close(torch.compile(sampled, backend=backend)(x), sampled(x))
    assert backend.last_fallback is not None
    assert backend.last_fallback.rung == "mixed"
    assert backend.last_result is not None
    assert sorted(each.outcome for each in backend.last_result.pieces) == [
        "compiled",
        "compiled",
        "eager",
    ]


def test_who_wants_the_error_gets_it(tmp_path: Path) -> None:
    config = CompilationConfig(
        **HERE, fallback=False, inductor_config={"implicit_fallbacks": False}
    )
    backend = KilnBackend(config, str(tmp_path / "cache"))
    with pytest.raises(Exception, match=r"C001.*missing lowering") as raised:
        torch.compile(sampled, backend=backend)(torch.randn(*CUBE))
    inner = getattr(raised.value, "inner_exception", raised.value)
    assert isinstance(inner, CompilationError)
    assert inner.kind == "unsupported_op"
    assert "compilation.fell_back" not in stats()


def test_too_little_memory_ends_at_eager_with_every_rung_told(tmp_path: Path) -> None:
    """No process can do anything with so little."""
    graph, x = block(), rows(4)
    of = manager(tmp_path, compile_timeout=LONG, compile_memory_bytes=had() + 2 * MIB)
    with pytest.raises(OutOfMemoryError, match="C005"):
        of.compile(graph, [x])
    run = robustly(of, graph, x)
    close(run(x), graph(x))
    assert rungs(run) == [
        ("wanted", "out_of_memory"),
        ("saving", "out_of_memory"),
        ("pieces", ""),
    ]
    # By pieces it is no better: its only piece runs as it is.
    assert of.performance_monitor.failures == {"out_of_memory": 4}
    assert of.performance_monitor.fallbacks == {"eager": 1, "pieces": 1}
    assert stats()["compilation.fallback.eager.out_of_memory"] == 1
    assert entries(tmp_path) == set()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one kernel at a time")
def test_too_little_memory_is_enough_for_smaller_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where helpers have no room, one process without them compiles it."""
    graph, x = block(), rows(4)
    seen = []
    for more in range(16, 120, 4):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"inductor{more}"))
        folder = tmp_path / str(more)
        # With too little torch's own helpers may wait for each other for ever.
        of = manager(folder, compile_timeout=60.0, compile_memory_bytes=had() + more * MIB)
        run = robustly(of, graph, x)
        close(run(x), graph(x))
        mark = fallback_of(run)
        seen.append("wanted" if mark is None else mark.rung)
        if mark is None or mark.rung == "saving":
            break
    assert seen[-1] == "saving", seen
    assert rungs(run) == [("wanted", "out_of_memory"), ("saving", "")]
    # Compiled, under a key of its own.
    assert len(entries(folder)) == 1
    assert run.wanted not in entries(folder)


def test_a_hang_is_ended_told_and_made_good_in_the_background(
    tmp_path: Path,
) -> None:
    compiler = Compiler(tmp_path / "bin", "exec sleep 600")
    ready(tmp_path)
    graph, x = block(), rows(4)
    of = manager(
        tmp_path, compile_timeout=TAKES, fallback_seconds=15.0, inductor_config=compiler.options
    )
    with pytest.raises(TookTooLong, match="C004"):
        of.compile(graph, [x])
    started = time.monotonic()
    run = robustly(of, graph, x)
    took = time.monotonic() - started
    # As asked, then by pieces: together as long as two, and a second.
    assert took < 2 * TAKES + 5, took
    close(run(x), graph(x))
    assert rungs(run)[0] == ("wanted", "timeout")
    assert [each.name for each in alerts.open] == [TIMEOUT]
    for pid in compiler.pids():
        eventually("end of a compiler", lambda pid=pid: None if alive(pid) else True)
    wanted = run.wanted
    assert entries(tmp_path) == set()
    # Known to fail: the next one does not wait for it.
    started = time.monotonic()
    again = robustly(of, graph, x)
    assert time.monotonic() - started < TAKES
    assert fallback_of(again) is not None
    assert stats()["compilation.remembered"] >= 1
    compiler.work()
    eventually("the real thing", lambda: wanted in entries(tmp_path) or None, LONG)
    eventually("its load", lambda: fallback_of(run(x) is not None and run) is None or None, LONG)
    close(run(x), graph(x))
    close(run(rows(7)), graph(rows(7)))
    assert stats()["compilation.replaced"] >= 1
    # And the next compile has it at once.
    assert not isinstance(
        robustly(
            manager(tmp_path, compile_timeout=TAKES, inductor_config=compiler.options), graph, x
        ),
        Fallback,
    )


def test_pieces_that_hang_share_the_time_that_is_left(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path / "bin", "exec sleep 600")
    ready(tmp_path)
    graph, x = (
        torch._dynamo.export(layers(2))(torch.randn(2, 5, 16)).graph_module,
        torch.randn(2, 5, 16),
    )
    of = manager(tmp_path, compile_timeout=TAKES, inductor_config=compiler.options)
    started = time.monotonic()
    run = robustly(of, graph, x)
    took = time.monotonic() - started
    close(run(x), layers(2)(x))
    assert rungs(run) == [("wanted", "timeout"), ("pieces", "")]
    # Several pieces hang, one process for all: the bound is not each one's.
    assert of.performance_monitor.failures["timeout"] >= 3
    assert took < 2 * TAKES + 10, took


def test_a_process_that_is_killed_once_is_tried_again(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path / "bin", "exec sleep 600")
    ready(tmp_path)
    graph, x = block(), rows(4)
    of = manager(tmp_path, compile_timeout=LONG, inductor_config=compiler.options)
    with ThreadPoolExecutor(1) as threads:

        def kill() -> None:
            eventually("a compiler", lambda: compiler.started.exists() or None, LONG)
            compiler.work()
            assert of.tiers.pool is not None
            for pid in of.tiers.pool.pids():
                os.kill(pid, signal.SIGKILL)

        killed = threads.submit(kill)
        with torch.no_grad():
            run = robustly(of, graph, x)
        killed.result()
    close(run(x), graph(x))
    # It is what was asked for.
    assert fallback_of(run) is None
    assert stats()["compilation.retried"] == 1
    assert of.performance_monitor.failures == {"crashed": 1}
    assert of.performance_monitor.successes == 1
    assert len(entries(tmp_path)) == 1


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    of = manager(tmp_path, inductor_config={"cpp.cxx": (str(tmp_path / "no-such-g++"), None)})
    with pytest.raises(ToolchainMissingError, match="C005"):
        of.compile(graph, [x])
    run = robustly(of, graph, x)
    close(run(x), graph(x))
    assert rungs(run) == [("wanted", "toolchain_missing"), ("eager", "")]


def test_a_compiler_that_refuses_is_tried_with_fewer_optimizations(tmp_path: Path) -> None:
    # It dies of vectors, as compilers of old machines do.
    probed(tmp_path)
    compiler = Compiler(tmp_path / "bin", VECTORS)
    graph, x = block(), rows(4)
    of = manager(tmp_path, inductor_config=compiler.options)
    run = robustly(of, graph, x)
    close(run(x), graph(x))
    assert rungs(run) == [("wanted", "compile_error"), ("fewer", "")]
    # It has a key of its own.
    assert len(entries(tmp_path)) == 1
    assert run.wanted not in entries(tmp_path)
    # A compiler that can: the real thing, beside it. torch remembers failures in a process.
    compiler.work()
    of = manager(tmp_path, compile_timeout=LONG, inductor_config=compiler.options)
    assert fallback_of(robustly(of, graph, x)) is None
    assert run.wanted in entries(tmp_path)


VECTORS = """case "$*" in *preprocess*) exec g++ "$@";; esac
for each in "$@"; do
  case "$each" in *.cpp)
    if grep -q 'at::vec::Vectorized' "$each"; then echo no vectors >&2; exit 1; fi;;
  esac
done
exec g++ "$@"
"""


def test_a_configuration_of_no_use_is_replaced_by_the_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph, x = block(), rows(4)
    of = manager(tmp_path, inductor_config={"typo": 1})
    with caplog.at_level(logging.WARNING, "kiln_torch"):
        run = robustly(of, graph, x)
    close(run(x), graph(x))
    assert rungs(run) == [("wanted", "incompatible"), ("defaults", "")]
    assert "no option typo" in caplog.text
    # No other compile of the same would end otherwise.
    assert run.expires is None
    with pytest.raises(IncompatibleConfigError):
        of.compile(graph, [x])
    with pytest.raises(IncompatibleConfigError):
        robustly(of, None, x)


def test_bytes_that_rot_on_disk_are_removed_and_compiled_again(tmp_path: Path) -> None:
    graph, x = block(), rows(4)
    robustly(manager(tmp_path), graph, x)
    (path,) = (tmp_path / "cache").glob("*.kiln")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    of = manager(tmp_path)
    run = robustly(of, graph, x)
    close(run(x), graph(x))
    assert fallback_of(run) is None
    assert of.compilation_counter.num_cache_corrupted == 1
    assert len(path.read_bytes()) >= len(whole) // 2 + 1


def test_a_piece_that_fails_goes_down_alone(tmp_path: Path) -> None:
    """What has vectors is compiled without; the other pieces are as they were asked."""
    probed(tmp_path)
    compiler = Compiler(tmp_path / "bin", VECTORS)
    config = CompilationConfig(
        **HERE, compilation_level="piecewise", inductor_config=compiler.options
    )
    backend = KilnBackend(config, str(tmp_path / "cache"))
    model, x = layers(2), torch.randn(2, 5, 16)
    close(torch.compile(model, backend=backend)(x), model(x))
    assert backend.last_result is not None
    outcomes = {each.outcome for each in backend.last_result.pieces}
    assert "fewer" in outcomes
    for each in backend.last_result.pieces:
        if each.outcome == "fewer":
            assert each.tried[0].startswith("wanted: C001 compile_error")
            assert each.key not in entries(tmp_path)


def probed(tmp_path: Path) -> None:
    """Have torch find out what this CPU can do, with the compiler that works."""
    manager(tmp_path / "probe")._generate_cache_key(block(), [rows(4)], None)


def ready(tmp_path: Path) -> None:
    """Have the fork server import all: that is no part of a compile's time."""
    server = fork_server.fork_server()
    server.ready.result(LONG)
    warm = manager(tmp_path / "warm", compile_timeout=LONG)
    warm.compile(block(), [rows(4)], runtime_shape=4)


def had() -> int:
    """Return the bytes of data that a process has which imported torch, and no more."""
    server = fork_server.fork_server()
    server.ready.result(LONG)
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmData"))
    return int(line.split()[1]) * 1024
