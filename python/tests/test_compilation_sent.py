"""Graphs on their way to a process of their own: what goes, what does not, who says so."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from compilation_graphs import close  # noqa: E402
from kiln_torch import graph as forms  # noqa: E402
from kiln_torch import report  # noqa: E402
from kiln_torch.compilation import CompilationConfig, KilnBackend, job, plain_graph  # noqa: E402
from kiln_torch.compilation.plain_values import Unsent  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.symbolic_shapes import ShapeEnv  # noqa: E402
from torch.nn import functional  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch._dynamo.reset()
    with torch.no_grad():
        yield


class Hostile:
    """What nothing that compiles may touch."""

    def __reduce_ex__(self, protocol: object) -> Any:
        """Refuse."""
        raise RuntimeError("pickled")

    def __deepcopy__(self, memo: object) -> Any:
        """Refuse."""
        raise RuntimeError("copied")


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotate halves, as rotary embeddings do: views of views."""
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def attends(x: torch.Tensor) -> torch.Tensor:
    """Attention on views of one tensor, with views of its own on both sides."""
    q, k, v = x.view(x.shape[0], 4, 3, 8).unbind(2)
    q, k, v = (each.unsqueeze(1) for each in (q, k, v))
    mixed = functional.scaled_dot_product_attention(turned(q), turned(k), v)
    return torch.tanh(turned(mixed).transpose(1, 2).reshape(x.shape[0], 32))


def pooled(tmp_path: Path, **settings: Any) -> KilnBackend:
    chosen: dict[str, Any] = {"compilation_level": "piecewise", "fallback": False}
    chosen = {**chosen, "parallel_compiles": 2, **settings}
    return KilnBackend(CompilationConfig(**chosen), str(tmp_path / "cache"))


def captured(function: Callable[..., Any], *inputs: Any) -> tuple[Any, list[bytes]]:
    """Write down the graph that Dynamo makes, and read it again; return that and both forms."""
    found: list[Any] = []

    def backend(gm: Any, _: Any) -> Any:
        mode = FakeTensorMode(shape_env=ShapeEnv())
        again = plain_graph.read(plain_graph.write(gm), mode)
        told = [b"".join(forms.form(each)) for each in (gm, again)]
        found.append((again, told, gm))
        return gm.forward

    torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    ((again, told, gm),) = found
    assert [n.name for n in again.graph.nodes] == [n.name for n in gm.graph.nodes]
    return again, told


def test_a_graph_is_read_as_it_was_written() -> None:
    x = torch.randn(6, 96)
    again, (mine, theirs) = captured(attends, x)
    assert mine == theirs
    close(again(x), attends(x))


def test_symbolic_sizes_keep_names_hints_and_ranges() -> None:
    x, y = torch.randn(6, 96), torch.randn(9, 96)
    torch._dynamo.mark_dynamic(x, 0, min=3, max=100)
    torch._dynamo.mark_dynamic(y, 0)

    def both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return attends(torch.cat((x, y)))[x.shape[0] - 1 : 2 * y.shape[0] - 3]

    again, (mine, theirs) = captured(both, x, y)
    assert mine == theirs
    values = [forms.value_of(n) for n in again.graph.nodes if n.op == "placeholder"]
    assert sorted(each.node.hint for each in values if isinstance(each, torch.SymInt)) == [6, 9]


def test_a_graph_within_a_graph_goes_along() -> None:
    def branches(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x.sin(), (x,))

    for x in (torch.ones(4), -torch.ones(4)):
        torch._dynamo.reset()
        again, (mine, theirs) = captured(branches, x)
        assert mine == theirs
        close(again(x), branches(x))


@pytest.mark.parametrize("kind", ["offset", "shared", "parameter", "inference", "gradient"])
def test_tensors_keep_what_compilers_ask_of_them(kind: str) -> None:
    base = torch.randn(40)
    x, y = base[2:14].view(3, 4).t(), torch.randn(4, 3)
    if kind == "shared":
        y = base[10:22].view(4, 3)
    elif kind == "parameter":
        y = torch.nn.Parameter(y)
    elif kind == "gradient":
        y.requires_grad_()
    elif kind == "inference":
        with torch.inference_mode():
            y = torch.randn(4, 3)
    graph = torch.fx.symbolic_trace(lambda x, y: x * y)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    first, second = (n for n in graph.graph.nodes if n.op == "placeholder")
    first.meta["val"], second.meta["val"] = x, y
    again = plain_graph.read(plain_graph.write(graph), mode)
    assert b"".join(forms.form(graph)) == b"".join(forms.form(again))
    mine, theirs = (n.meta["val"] for n in again.graph.nodes if n.op == "placeholder")
    assert (mine.shape, mine.stride(), mine.storage_offset()) == ((4, 3), (1, 4), 2)
    same = mine.untyped_storage()._cdata == theirs.untyped_storage()._cdata
    assert same == (kind == "shared")
    assert isinstance(theirs, torch.nn.Parameter) == (kind == "parameter")
    assert theirs.is_inference() == (kind == "inference")


def test_what_is_no_plain_data_is_refused() -> None:
    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    node = next(iter(graph.graph.nodes))
    for value, why in (
        (Hostile(), "of type Hostile"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugate"),
        (torch.ones(2).to_sparse(), "sparse"),
    ):
        node.meta["val"] = value
        with pytest.raises(Unsent, match=why):
            plain_graph.write(graph)
    # A Triton kernel of the user's is a number there.
    node.meta["val"] = torch.ones(2)
    call = next(each for each in graph.graph.nodes if each.op == "call_function")
    call.kwargs = {"kernel_idx": 0}
    with pytest.raises(Unsent, match="in a table of this process"):
        plain_graph.write(graph)


def test_nothing_that_hangs_on_a_node_keeps_it_here(tmp_path: Path) -> None:
    """Modes with their weak references, locks, what raises when it is pickled or copied."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        fake = torch.empty(3)
    own = pooled(tmp_path)

    def backend(gm: Any, inputs: Any) -> Any:
        for node in gm.graph.nodes:
            node.meta["hostile"] = Hostile()
            node.meta["kept"] = [mode, fake, threading.Lock(), weakref.ref(fake)]
            node.meta["stack_trace"] = Hostile()
        gm.meta["hostile"] = Hostile()
        return own(gm, inputs)

    x = torch.randn(6, 96)
    close(torch.compile(attends, backend=backend)(x), attends(x))
    assert own.last_result is not None
    assert [each.elsewhere for each in own.last_result.pieces] == [True] * 3
    assert "compilation.here" not in report.stats()


def test_what_cannot_be_sent_is_compiled_here_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = pooled(tmp_path)
    # The object that Inductor calls is of a class that only this process has.
    own.register_pass(lambda graph: graph.lint(), "a pass")
    x = torch.randn(6, 96)
    with caplog.at_level(logging.WARNING, "kiln_torch"):
        close(torch.compile(attends, backend=own)(x), attends(x))
    assert own.last_result is not None
    for each in own.last_result.pieces:
        assert (each.outcome, each.elsewhere) == ("compiled", False), each
    assert report.stats()["compilation.here"] == 3
    assert sum("compiled in this process" in each.message for each in caplog.records) == 1


def test_a_process_that_is_not_like_this_one_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = job._state

    def other() -> dict[str, Any]:
        told = state()
        told["inductor"] = {**told["inductor"], "epilogue_fusion": False}
        return told

    monkeypatch.setattr(job, "_state", other)
    own = pooled(tmp_path)
    x = torch.randn(6, 96)
    with caplog.at_level(logging.WARNING, "kiln_torch"):
        close(torch.compile(attends, backend=own)(x), attends(x))
    assert report.stats()["compilation.here"] == 3
    assert "its key is another one there" in caplog.text
    told = own.compiler_manager.compilation_counter.snapshot()
    assert told["num_inductor_compiles"] == told["num_compiled_artifacts_saved"] == 3
