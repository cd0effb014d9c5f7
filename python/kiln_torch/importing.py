"""Does something to modules as soon as they are imported.

Invariant: nothing is imported that was not going to be, and no exception of what is
done leaves the import.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from . import report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(name: str, do: Callable[[ModuleType], None]) -> None:
    """Call ``do`` with module ``name``: now, or when it has been imported. Once, however asked."""
    module = sys.modules.get(name)
    if module is not None:
        _done(do, module)
    elif not any(isinstance(each, _Finder) and each.does(name, do) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, do))


def _done(do: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        do(module)
    except Exception as error:
        report.count("bugs")
        report.once(f"plug in {type(error).__name__}", "plug in: %r", error)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module as the others do, once."""

    def __init__(self, name: str, do: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._do = do

    def does(self, name: str, do: Callable[[ModuleType], None]) -> bool:
        """Whether it is there for this."""
        return (self._name, self._do) == (name, do)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as if this were not here, with a loader that does it."""
        del path, target
        if fullname != self._name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._do)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, do: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._do = do

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _done(self._do, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
