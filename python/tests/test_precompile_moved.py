"""Without Dynamo, where something moved: it is traced again, and is right."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import precompile_sources
from precompile_moves import BEFORE_CALL, BEFORE_COMPILE, PATCHED, UNDO
from precompile_processes import (
    CLOSED,
    NO_GRAD,
    SAME,
    Programs,
    assert_loaded,
    assert_traced,
)

pytestmark = [pytest.mark.torch, pytest.mark.cluster]


Moved = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def moved(programs: Programs) -> Moved:
    """What each case gave; all run in one process, which publishes nothing."""
    names, cases = [("nothing", "nothing")], [{"setup": NO_GRAD}]
    for when, table in (("compile", BEFORE_COMPILE), ("call", BEFORE_CALL)):
        for what, code in table.items():
            before = f"{NO_GRAD}\n{PATCHED.get(what, ('',))[0]}"
            case = {"setup": f"{before}\n{code}"}
            if when == "call":
                case = {"setup": before, "before_call": code}
            if what == "default device":
                names.append(("nothing", "nothing any more"))
                cases.append({"setup": NO_GRAD})
            names.append((when, what))
            cases.append({**case, "undo": UNDO.get(what, "")})
    return dict(zip(names, programs.run_all(cases, publish=False)))


@pytest.mark.parametrize("what", ["nothing", "nothing any more"])
def test_where_nothing_moved_it_is_loaded(moved: Moved, what: str) -> None:
    assert_loaded(moved["nothing", what])


@pytest.mark.parametrize("what", BEFORE_COMPILE)
def test_what_moved_before_the_compile_is_traced_again(moved: Moved, what: str) -> None:
    assert_traced(moved["compile", what])


@pytest.mark.parametrize("what", BEFORE_CALL)
def test_what_moved_before_the_first_call_is_traced_again(moved: Moved, what: str) -> None:
    told = moved["call", what]
    assert_traced(told)
    assert told["stats"]["precompile.hits"] == 1, told


def test_autocast_is_traced_again(programs: Programs) -> None:
    both = "contexts = [torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16)]"
    # bfloat16 has three digits, and the values are up to 13.
    assert_traced(programs.run(both), 0.2)


@pytest.mark.parametrize("what", ["function", "helper", "class", "compiled function"])
def test_code_that_was_edited_is_traced_again(programs: Programs, what: str) -> None:
    """The name and the lines are the same; nothing says so but the code."""
    traced, helpers, setup = precompile_sources.TRACED, precompile_sources.HELPERS, NO_GRAD
    if what == "function":
        traced = traced.replace("* SCALE + divmod", "* SCALE - divmod")
    elif what == "class":
        traced = traced.replace("gelu(x) *", "gelu(x) +")
    elif what == "helper":
        helpers = helpers.replace("x * by + FACTOR", "x * by - FACTOR")
    else:
        traced, setup = traced.replace("torch.sin(x) * factor", "torch.cos(x) * factor"), CLOSED
    assert_traced(programs.run(setup, sources=programs.edited(traced=traced, helpers=helpers)))


def test_code_of_both_versions_is_kept(programs: Programs) -> None:
    """While a program is rolled out, the old and the new one each find their own."""
    helpers = precompile_sources.HELPERS.replace("FACTOR = 3", "FACTOR = 3.5").replace(
        "by +", "by * "
    )
    new = programs.edited(helpers=helpers)
    first = programs.run(sources=new)
    assert_traced(first)
    assert_loaded(programs.run(sources=new))
    assert_loaded(programs.run())


def test_what_is_replaced_after_the_first_call_is_traced_again(programs: Programs) -> None:
    """Where the package was loaded, and where it was made: no guard is lost."""
    after = """after = '''
traced.scaled = lambda x: x * 11
told = (compiled(*inputs) - target(*inputs)).abs().max().item()
'''"""
    for namespace, hits in ((programs.folder.name, 1), ("replaced", 0)):
        told = programs.run(
            f"stack = torch.no_grad(); stack.__enter__()\n{after}",
            switches={"KILN_NAMESPACE": namespace},
        )
        assert told["stats"].get("precompile.hits", 0) == hits, told
        assert told["traces"] == 2 - hits, told
        assert told["told"] < SAME, told
