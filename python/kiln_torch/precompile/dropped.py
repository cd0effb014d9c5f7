"""The guards that torch cannot pickle, checked by what they guard.

torch drops guards on identity (functions, builtins, modules, classes) from what it
saves: an address means nothing in another process. Here each is kept as its
expression and the description of the object, and a loaded package is used only
where every expression gives an object of that description.

Invariant: after the first call that passed, the objects are compared by identity,
as torch's own guards do; an expression that raises is a guard that failed.
"""

from __future__ import annotations

from operator import is_
from typing import TYPE_CHECKING, Any

from .. import report
from .described import describe
from .errors import NotShared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# As `CheckFunctionManager` has them where `caching_precompile` is on.
_TYPES = ("ID_MATCH", "CLOSURE_MATCH", "WEAKREF_ALIVE", "DICT_VERSION")
_DERIVED = ("ID_MATCH", "DICT_VERSION")
MOST = 4096

Dropped = list[tuple[str, list[str]]]


def is_dropped(entry: Any) -> bool:
    """Whether torch leaves this guard out of what it saves."""
    derived = entry.derived_guard_types
    return entry.guard_type in _TYPES or any(each in derived for each in _DERIVED)


def note(entries: Iterable[Any], scope: Mapping[str, object]) -> Dropped:
    """Write down the guards that torch drops; ``NotShared`` where one cannot be told."""
    noted: Dropped = []
    for entry in entries:
        if not is_dropped(entry):
            continue
        name = entry.orig_guard.name
        described = describe(entry.value) if entry.has_value else None
        if described is None:
            raise NotShared("undescribed", f"{entry.guard_type} on {name}")
        try:
            # The expression is torch's own, as in its guards.
            found = eval(name, dict(scope))  # noqa: S307
        except Exception as error:
            raise NotShared("undescribed", f"{name}: {error!r}") from error
        if found is not entry.value:
            raise NotShared("undescribed", f"{name} gives another object")
        noted.append((name, described))
    if len(noted) > MOST:
        raise NotShared("undescribed", f"{len(noted)} guards")
    return noted


class Checks:
    """One guard in place of those that were dropped: called with a frame's locals."""

    def __init__(
        self, dropped: Dropped, scope: Mapping[str, object], unchanged: Callable[[], bool]
    ) -> None:
        """Check under ``scope``; ``unchanged``: whether the settings are those of the package."""
        self._described = [described for _, described in dropped]
        self._names = [name for name, _ in dropped]
        text = "".join(f"({name}), " for name in self._names)
        # From a package that was verified; what torch unpickles of it can do more.
        self._find = eval(f"lambda L: ({text})", dict(scope))  # noqa: S307
        self._known: tuple[object, ...] | None = None
        self._unchanged: bool | None = None
        self._settings = unchanged

    def __call__(self, f_locals: Any) -> bool:
        """Whether all is as it was where the package was made."""
        try:
            found = self._find(f_locals)
        except Exception:
            return False
        if self._known is not None:
            return all(map(is_, found, self._known))
        if self._unchanged is None:
            self._unchanged = self._settings()
            if not self._unchanged:
                report.count("precompile.settings_moved")
        if not self._unchanged:
            return False
        for name, described, value in zip(self._names, self._described, found):
            if describe(value) != described:
                report.count("precompile.guard_failed")
                report.log.info("precompile: %s is not what was traced", name)
                return False
        self._known = found
        return True
