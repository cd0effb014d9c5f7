"""The global names that a package brings along.

torch numbers what it puts into a module's globals from zero in every process, so a
package's names can be those of something else here.

Invariant: a package whose names are taken is not installed, and after a load torch
numbers on from above all numbers that are there.
"""

from __future__ import annotations

import itertools
import re
import sys
from typing import TYPE_CHECKING, Any

from .errors import NotShared

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBERED = re.compile(r"__(?:builtins_dict__|compiled_fn|resume_at_\d+|comprehension_\w+)_(\d+)")


def refuse_taken(codes: Iterable[Any]) -> None:
    """Raise ``NotShared`` where a module has one of the package's names already."""
    for entry in codes:
        there = vars(sys.modules[entry.python_module])
        brought = [*entry.backend_ids, *(entry.function_names if entry.install_to_global else ())]
        taken = [name for name in brought if name in there]
        taken += [
            alias
            for alias, module in entry.import_sources.items()
            if alias in there and there[alias] is not sys.modules.get(module)
        ]
        if taken:
            raise NotShared("name", f"{entry.python_module} has {taken[0]}")


def number_on(codes: Iterable[Any]) -> None:
    """Let torch number on from above what the package brought."""
    from torch._dynamo import bytecode_transformation

    highest = next(bytecode_transformation._unique_id_counter)
    for module in {entry.python_module for entry in codes}:
        for name in list(vars(sys.modules[module])):
            numbered = _NUMBERED.match(name)
            if numbered is not None:
                highest = max(highest, int(numbered.group(1)) + 1)
    bytecode_transformation._unique_id_counter = itertools.count(highest)
