"""The code that was traced into a package, and whether it is the same here.

Invariant: ``same`` is true only if every function that Dynamo traced, and every
Python function of the classes whose objects it saw, is the same code in this
process as in the one that traced. What can't be found again by its name, nor by
its source text, is in no package.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo import package as torch_package

from .code import (
    class_digest,
    code_digest,
    functions_of,
    module_named,
    qualname_of,
    resolves_to,
)
from .errors import NotShared

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable

_MOST = 16_384
Row = tuple[str, str, str]


@dataclass
class Facts:
    """Names and digests."""

    codes: set[Row] = field(default_factory=set)
    # Module, "first-last" line, digest of the text: of code that no name leads to.
    texts: set[Row] = field(default_factory=set)
    classes: set[Row] = field(default_factory=set)

    def add_classes(self, classes: Iterable[type]) -> None:
        """Add the classes whose objects were seen: their functions may have been traced."""
        known: dict[type, str] = {}
        for cls in classes:
            if not _matters(cls):
                continue
            if _class_named(cls.__module__, cls.__qualname__) is not cls:
                raise NotShared("class", f"{cls.__module__}.{cls.__qualname__} has no name")
            self.classes.add((cls.__module__, cls.__qualname__, class_digest(cls, known)))

    def add_codes(self, codes: Iterable[types.CodeType], classes: Iterable[type]) -> None:
        """Add the code that was traced, some of it made by ``classes`` at run time."""
        made: set[str] | None = None
        for code in codes:
            module = inspect.getmodule(code)
            digest = code_digest(code)
            if module is None:
                made = _made_by(classes) if made is None else made
                if digest not in made:
                    raise NotShared("source", f"{code.co_name} is in no module")
                continue
            if resolves_to(module.__name__, qualname_of(code), digest):
                self.codes.add((module.__name__, qualname_of(code), digest))
            else:
                self.texts.add(_text(module, code))

    def same(self) -> str | None:
        """Return ``None`` where all of it is the same in this process, else what is not."""
        known: dict[type, str] = {}
        for module, qualname, digest in sorted(self.classes):
            cls = _class_named(module, qualname)
            if cls is None or class_digest(cls, known) != digest:
                return f"class {module}.{qualname}"
        for module, qualname, digest in sorted(self.codes):
            if not resolves_to(module, qualname, digest):
                return f"{module}.{qualname}"
        for module, lines, digest in sorted(self.texts):
            first, _, last = lines.partition("-")
            found = module_named(module)
            if found is None:
                return module
            try:
                here = torch_package._hash_sourcelines(found, int(first), int(last))
            except (OSError, TypeError):
                return f"{module}:{lines}"
            if here != digest:
                return f"{module}:{lines}"
        return None

    def told(self) -> dict[str, list[Row]]:
        """Return it as JSON."""
        return {name: sorted(getattr(self, name)) for name in ("codes", "texts", "classes")}

    @classmethod
    def read(cls, told: Any) -> Facts:
        """Read what ``told`` wrote; ``ValueError`` for anything else."""
        made = cls()
        for name in ("codes", "texts", "classes"):
            rows = told[name]
            if not isinstance(rows, list) or len(rows) > _MOST:
                raise ValueError(f"{name} is no list")
            for row in rows:
                if len(row) != 3 or not all(isinstance(each, str) for each in row):
                    raise ValueError(f"{name} has {row!r}")
                getattr(made, name).add(tuple(row))
        return made

    def copy(self) -> Facts:
        """Copy it: the package goes on growing."""
        return Facts(set(self.codes), set(self.texts), set(self.classes))


def _matters(cls: type) -> bool:
    """Whether the class's functions can be the user's, or be replaced by the user."""
    if not any(functions_of(value) for b in cls.__mro__ for value in list(vars(b).values())):
        return False
    return not cls.__module__.startswith("torch.") or issubclass(cls, torch.nn.Module)


def _class_named(module: str, qualname: str) -> type | None:
    found: Any = module_named(module)
    for part in qualname.split("."):
        if found is None:
            return None
        found = inspect.getattr_static(found, part, None)
    return found if isinstance(found, type) else None


def _made_by(classes: Iterable[type]) -> set[str]:
    """Return the digests of the functions of classes: a dataclass makes its own."""
    values = (value for cls in classes for b in cls.__mro__ for value in list(vars(b).values()))
    return {code_digest(each.__code__) for value in values for each in functions_of(value)}


def _text(module: types.ModuleType, code: types.CodeType) -> Row:
    try:
        lines, first = inspect.getsourcelines(code)
        last = first + len(lines)
        digest = torch_package._hash_sourcelines(module, first, last)
    except (OSError, TypeError) as error:
        raise NotShared("source", f"{code.co_name} has no source: {error}") from error
    return module.__name__, f"{first}-{last}", digest
