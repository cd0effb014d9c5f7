"""Whole functions of ``aot_compile``: a second process traces and compiles nothing."""

from __future__ import annotations

from typing import Any

import precompile_sources
import pytest

pytest.importorskip("torch")

from precompile_moves import BEFORE_COMPILE, PATCHED, UNDO
from precompile_processes import CLOSED, NO_GRAD, SAME, Programs, assert_loaded, assert_traced

pytestmark = [pytest.mark.torch, pytest.mark.cluster]

AHEAD = """
import contextlib, functools
bound = isinstance(target, torch.nn.Module)
options = {"fullgraph": True, **options}
with contextlib.ExitStack() as stack:
    for each in contexts:
        stack.enter_context(each)
    ahead = torch.compile(target.forward if bound else target, **options).aot_compile((inputs, {}))
compiled = functools.partial(ahead, target) if bound else ahead
"""
# By what is around the function: each is another process's own.
WEIGHED = f"{NO_GRAD}; target = traced.weighed"
HOLDING = f"{NO_GRAD}; weight = torch.eye(4); target = traced.holding(weight)"
MODEL = f"{NO_GRAD}; target = traced.holding(torch.eye(4), traced.Block().eval())"
TRAINED = "contexts = []"
SETUPS = {
    "model": NO_GRAD,
    "closure": CLOSED,
    "global tensor": WEIGHED,
    "tensor in the closure": HOLDING,
    "model in the closure": MODEL,
    "training": TRAINED,
}
# torch's `aot_compile` takes no float that is a symbol, with Kiln as without.
SYMBOLS = ("setting of Dynamo", "option")
CASES = {what: code for what, code in BEFORE_COMPILE.items() if what not in SYMBOLS}
Moved = dict[str, dict[str, Any]]


def ahead(programs: Programs, setup: str = NO_GRAD, *, node: int = 1, **more: Any) -> Any:
    """Run one case, compiled ahead, where no package of ``torch.compile`` is in the way."""
    switches = {"KILN_NAMESPACE": f"{programs.folder.name}-ahead", **more.pop("switches", {})}
    return programs.run(setup, AHEAD, node=node, switches=switches, **more)


@pytest.fixture(scope="module")
def begun(programs: Programs) -> Programs:
    """Each of the functions, compiled by a first process, on the first node."""
    for name, setup in SETUPS.items():
        first = ahead(programs, setup, node=0)
        assert_traced(first)
        assert first["stats"].get("precompile.published") == 1, (name, first)
    return programs


@pytest.mark.parametrize("what", SETUPS)
def test_a_second_process_traces_nothing(begun: Programs, what: str) -> None:
    told = ahead(begun, SETUPS[what], node=2)
    assert_loaded(told)
    assert "bugs" not in told["stats"] and "precompile.bugs" not in told["stats"], told


@pytest.mark.parametrize(
    "setup",
    [
        WEIGHED.replace("; target", "; traced.WEIGHT = torch.arange(4.0); target"),
        HOLDING.replace("torch.eye(4)", "2 * torch.eye(4) + 1"),
        MODEL.replace("target", "torch.manual_seed(1); target"),
        f"{NO_GRAD}; torch.manual_seed(1); target = traced.make()",
    ],
    ids=["global", "closure", "model in the closure", "model"],
)
def test_values_are_those_of_this_process(begun: Programs, setup: str) -> None:
    """Tensors are what a graph is called with: another's are not brought along."""
    assert_loaded(ahead(begun, setup))


@pytest.fixture(scope="module")
def moved(begun: Programs) -> Moved:
    """What each case gave; all run in one process, which publishes nothing."""
    cases = [
        {
            "setup": f"{NO_GRAD}\n{PATCHED.get(what, ('',))[0]}\n{code}",
            "before_call": AHEAD,
            "undo": UNDO.get(what, ""),
        }
        for what, code in CASES.items()
    ]
    switches = {"KILN_NAMESPACE": f"{begun.folder.name}-ahead"}
    told = begun.run_all(cases, publish=False, switches=switches)
    return dict(zip(CASES, told))


@pytest.mark.parametrize("what", [what for what in CASES if what != "grad mode"])
def test_what_moved_is_traced_again(moved: Moved, what: str) -> None:
    assert_traced(moved[what])


def test_the_same_under_autograd_is_another(moved: Moved) -> None:
    """It was compiled for training too."""
    assert_loaded(moved["grad mode"])


def test_another_constant_of_a_global_is_traced_again(begun: Programs) -> None:
    setup = WEIGHED.replace("; target", "; traced.SCALE = 5.0; target")
    assert_traced(ahead(begun, setup))


@pytest.mark.parametrize("what", ["global", "input"])
def test_another_layout_in_memory_is_traced_again(begun: Programs, what: str) -> None:
    setup = WEIGHED.replace("; target", "; traced.WEIGHT = torch.ones(4, 2)[:, 0]; target")
    if what == "input":
        setup = f"{WEIGHED}; inputs = (torch.ones(4, 2).t(),)"
    assert_traced(ahead(begun, setup))
    if what == "input":
        # It has a name of its own.
        assert_loaded(ahead(begun, setup))


def test_code_that_was_edited_is_traced_again(begun: Programs) -> None:
    helpers = precompile_sources.HELPERS.replace("x * by + FACTOR", "x * by - FACTOR")
    assert_traced(ahead(begun, sources=begun.edited(helpers=helpers)))


def test_what_was_loaded_refuses_what_torch_refuses(begun: Programs) -> None:
    """Called with another shape, and with the global of a function replaced: as torch's own."""
    after = """
told = []
for given in (torch.ones(3, 4), inputs[0].double()):
    try:
        told.append(compiled(given).shape)
    except RuntimeError as error:
        told.append("GuardManager check failed" in str(error))
"""
    told = ahead(begun, f"{NO_GRAD}\nafter = {after!r}")
    assert_loaded(told)
    assert told["told"] == [True, True], told


def test_torch_saves_and_loads_it(begun: Programs) -> None:
    """What was compiled here, and what was loaded: guards are not lost on the way."""
    after = """
import io, os, tempfile
from pathlib import Path
told = []
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    path = str(Path(folder) / "function")
    (ahead if bound else compiled).save_compiled_function(path)
    with open(path, "rb") as file:
        again = torch.compiler.load_compiled_function(file)
    told.append((again(*inputs) - target(*inputs)).abs().max().item())
    try:
        again(torch.ones(3, 4))
    except RuntimeError as error:
        told.append("GuardManager check failed" in str(error))
"""
    setup = f"{NO_GRAD}; target = traced.offset\nafter = {after!r}"
    for node, traces in ((0, 1), (2, 0)):
        told = ahead(begun, setup, node=node)
        assert told["traces"] == traces, told
        assert told["told"][0] < SAME, told
        assert told["told"][1] is True, told


def test_what_cannot_be_shared_is_compiled(begun: Programs) -> None:
    """Another backend; a function that holds what has no description."""
    for setup in (
        f"{NO_GRAD}; options = {{'backend': 'aot_eager'}}",
        f"{NO_GRAD}\nclass Local:\n    rate = 3\nheld = Local()\ntarget = lambda x: x * held.rate",
    ):
        plain = ahead(begun, setup, switches={"KILN_PRECOMPILE": "0"})
        for _ in range(2):
            told = ahead(begun, setup)
            assert told["out"] == plain["out"], (told, plain)
            assert "bugs" not in told["stats"], told
            assert "precompile.hits" not in told["stats"], told
