"""Without Dynamo: a second process of a program traces nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from precompile_processes import (
    CLOSED,
    NO_GRAD,
    SAME,
    Programs,
    assert_loaded,
    assert_traced,
)

pytestmark = [pytest.mark.torch, pytest.mark.cluster]


def test_a_second_process_traces_nothing(programs: Programs) -> None:
    """On another node, with an empty folder; its results are those of the first, to the bit."""
    first = programs.run(node=0)
    second = programs.run(node=2)
    assert_loaded(second)
    assert second["out"] == first["out"]
    assert "precompile.published" not in second["stats"], second
    assert_loaded(programs.run(CLOSED))


# Each compiles with KILN_PRECOMPILE as without, whatever can be shared of it.
ODD = """
import dataclasses, functools, types
contexts = [torch.no_grad()]

class Called:
    def __call__(self, x):
        return torch.sin(x) + 1

@dataclasses.dataclass
class Made:
    value: object

def twice(x, times):
    return x * times

def makes(x):
    return Made(torch.cos(x)).value

def breaks(x):
    def local(y):
        return torch.sin(y) + y.numel()
    torch._dynamo.graph_break()
    return local(torch.cos(x))

class Local(torch.nn.Module):
    def forward(self, x):
        return x - 1

class Compiled:
    @torch.compile
    def method(self, x):
        return x * 5

text = types.ModuleType("text")
exec("def made(x):\\n    return x * 3", vars(text))
x = inputs[0]
odd = {
    "callable object": Called(), "operation": torch.sin,
    "partial": functools.partial(twice, times=3),
    "dataclass": makes, "graph break": breaks, "local class": Local(), "no source": text.made,
    "lambda": lambda x: x * 2,
    "constant": traced.assumes, "decorated": functools.wraps(twice)(makes),
    "in no module": traced.broken_in_two,
}
told = {}
for name, each in odd.items():
    try:
        told[name] = (torch.compile(each)(x) - each(x)).abs().max().item()
    except Exception as error:
        told[name] = repr(error)
told["method"] = (Compiled().method(x) - x * 5).abs().max().item()
"""


def test_nothing_that_compiles_without_fails_with_it(programs: Programs) -> None:
    """Callable objects, local functions, code without a source; twice: some are loaded."""
    plain = programs.run(ODD, switches={"KILN_PRECOMPILE": "0"})
    for _ in range(2):
        told = programs.run(ODD, switches={"KILN_NAMESPACE": "odd"})
        assert told["told"] == plain["told"], (told["told"], plain["told"])
        assert told["difference"] < SAME, told
        assert "bugs" not in told["stats"] and "precompile.bugs" not in told["stats"], told
    assert told["stats"]["precompile.hits"] >= 1, told
    # What these give is in the traced code, and nothing says whether it still is so.
    assert told["stats"]["precompile.undescribed"] >= 1, told


def test_what_runs_after_a_graph_break_is_loaded_too(programs: Programs) -> None:
    setup = f"{NO_GRAD}; target = traced.broken_in_two"
    first = programs.run(setup)
    assert first["traces"] == 2, first
    assert_loaded(programs.run(setup, node=2))
    assert_traced(programs.run(f"{setup}; traced.SCALE = 6.0"))


def test_a_training_step_is_loaded(programs: Programs) -> None:
    """Forward and backward: the latter is there once it was compiled."""
    setup = "contexts = []"
    assert_traced(programs.run(setup))
    assert_loaded(programs.run(setup, node=2))


def test_a_fleet_that_switches_it_on_publishes(programs: Programs) -> None:
    """What is in torch's caches already, of processes without packages, is in the way of none."""
    setup = f"{NO_GRAD}; target.act.power = 4"
    namespace = {"KILN_NAMESPACE": "fleet"}
    assert_traced(programs.run(setup, switches={**namespace, "KILN_PRECOMPILE": "0"}))
    first = programs.run(setup, switches=namespace)
    assert_traced(first)
    assert first["stats"]["precompile.published"] == 1, first
    assert_loaded(programs.run(setup, node=2, switches=namespace))


def test_a_package_grows(programs: Programs) -> None:
    """A process that meets another shape adds it; the next one has both."""
    one = f"{NO_GRAD}; options = {{'dynamic': False}}"
    other = f"{one}; inputs = (torch.ones(5, 4),)"
    for setup in (one, other):
        assert_traced(programs.run(setup))
    for told in programs.run_all([{"setup": one}, {"setup": other}], node=2):
        assert_loaded(told)
