"""The table of the compilation module's page: it is whole, and what is missing is noticed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest
from cluster import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = ROOT / "python"


def checker() -> Any:
    spec = importlib.util.spec_from_file_location("check_table", PYTHON / "check_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


README = (PYTHON / checker().PACKAGE / "README.md").read_text()


def test_the_table_is_whole() -> None:
    assert checker().problems(PYTHON, README) == []


def test_a_name_without_a_row_is_noticed() -> None:
    without = "\n".join(ln for ln in README.splitlines() if not ln.startswith("| `robust_compile`"))
    assert checker().problems(PYTHON, without) == ["The API: no row for robust_compile"]


def test_a_test_that_is_not_there_is_noticed() -> None:
    renamed = README.replace("::test_the_hash_has_all_factors", "::test_gone", 1)
    (problem,) = checker().problems(PYTHON, renamed)
    assert problem.endswith("there is no test test_compilation.py::test_gone")


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("counter.py", "num_cache_hits = 0", "num_hits = 0", "the code has no CompilationCounter."),
        (
            "manager.py",
            'cache_dir: str = "./compilation_cache"',
            'cache_dir: str = "/tmp"',
            "is not the document's",
        ),
        ("splitting.py", "def extract_subgraph", "def extract", "has no extract_subgraph"),
    ],
)
def test_a_name_that_left_the_code_is_noticed(
    tmp_path: Path, file: str, old: str, new: str, problem: str
) -> None:
    package = tmp_path / checker().PACKAGE
    package.mkdir(parents=True)
    for path in (PYTHON / checker().PACKAGE).glob("*.py"):
        text = path.read_text()
        (package / path.name).write_text(text.replace(old, new) if path.name == file else text)
    (tmp_path / "tests").symlink_to(PYTHON / "tests")
    found = checker().problems(tmp_path, README)
    assert found
    assert all(problem in each or "num_cache_hits" in each for each in found), found
