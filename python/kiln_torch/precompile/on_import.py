"""Calls a function when a module has been imported.

Invariant: the import goes on as if this were not here, whatever the function does.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from .. import report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Plug = Callable[[ModuleType], None]


def on_import(plugs: dict[str, Plug]) -> None:
    """Call each function now, or as soon as its module is imported."""
    later = {}
    for name, plug in plugs.items():
        module = sys.modules.get(name)
        if module is None:
            later[name] = plug
        else:
            _call(plug, module)
    if later:
        sys.meta_path.insert(0, _Finder(later))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, plugs: dict[str, Plug]) -> None:
        self._plugs = plugs

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module with the other finders; give it a loader that calls."""
        del path, target
        plug = self._plugs.pop(fullname, None)
        if plug is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, plug)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, plug: Plug) -> None:
        self._loader = loader
        self._plug = plug

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _call(self._plug, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _call(plug: Plug, module: ModuleType) -> None:
    try:
        plug(module)
    except Exception as error:
        report.count("bugs")
        report.once(f"plug into {module.__name__}", "%s: %r", module.__name__, error)
