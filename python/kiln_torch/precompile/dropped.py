"""The guards that mean nothing in another process, checked by what they guard.

torch drops guards on identity (functions, builtins, modules, classes) from what it
saves: an address is nobody else's. Others it saves by name alone: the constant that
a global has is looked up again where the guard is loaded, so that it fits whatever
is there. Here each is kept as its expression and the description of the object, and
a loaded package is used only where every expression gives an object of that
description.

Invariant: after the first call that passed, objects of dropped guards are compared
by identity, as torch does; the others torch's own guards then hold to the value
that was checked. An expression that raises is a guard that failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

from .. import report
from .described import OUTLINE, describe, outline
from .errors import NotShared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

# As `CheckFunctionManager` has them where `caching_precompile` is on.
_TYPES = ("ID_MATCH", "CLOSURE_MATCH", "WEAKREF_ALIVE", "DICT_VERSION")
_DERIVED = ("ID_MATCH", "DICT_VERSION")
# Guards on what a value is: for others another value of its kind is as good.
_VALUES = ("EQUALS_MATCH", "CONSTANT_MATCH", "BOOL_MATCH", "NONE_MATCH")
_MOST = 65_536


@dataclass(frozen=True)
class Check:
    """One guard: an expression, and what it gives."""

    name: str
    # Compared by identity after the first call; else checked at that alone.
    identity: bool
    words: tuple[str, ...]

    def told(self) -> list[Any]:
        """Return it as JSON."""
        return [self.name, self.identity, list(self.words)]

    @classmethod
    def read(cls, told: Any) -> Check:
        """Read what ``told`` wrote; ``ValueError`` or ``TypeError`` for anything else."""
        name, identity, words = told
        if not (isinstance(name, str) and isinstance(identity, bool)):
            raise TypeError("a check has no name")
        return cls(name, identity, tuple(map(str, words)))


def note(entries: Iterable[Any], scope: Mapping[str, object]) -> tuple[Check, ...]:
    """Write down guards that torch does not keep; ``NotShared`` where one cannot be told."""
    noted: dict[tuple[str, bool], Check] = {}
    for entry in entries:
        name, dropped = entry.orig_guard.name, _is_dropped(entry)
        if not name or not (dropped or entry.has_value):
            if dropped:
                raise NotShared("undescribed", f"{entry.guard_type} on nothing")
            continue
        words = describe(entry.value) if dropped or _is_of_value(entry) else None
        if words is None and entry.is_global and not dropped:
            words = outline(entry.value)
        if words is None:
            if dropped:
                raise NotShared("undescribed", f"{entry.guard_type} on {name}")
            # What a local is, torch saves by value.
            continue
        found = _evaluated(name, scope)
        if found is not entry.value and _told(found, words) != words:
            raise NotShared("undescribed", f"{name} gives another object")
        noted[name, dropped] = Check(name, dropped, tuple(words))
    if len(noted) > _MOST:
        raise NotShared("undescribed", f"{len(noted)} guards")
    return tuple(noted.values())


# What an outline tells as well.
_OUTLINED = (
    "TYPE_MATCH",
    "TENSOR_MATCH",
    "SEQUENCE_LENGTH",
    "LIST_LENGTH",
    "DICT_LENGTH",
    "DICT_KEYS_MATCH",
    "DICT_KEYS",
    "DICT_CONST_KEYS",
)


def lost(
    entries: Iterable[Any],
    kept: Iterable[bool],
    noted: Iterable[Check],
    scope: Mapping[str, object],
) -> tuple[Check, ...]:
    """Return what else is to be checked where a filter leaves guards out.

    ``NotShared`` for a guard that neither this nor ``noted`` checks.
    """
    by_name: dict[str, list[Check]] = {}
    for check in noted:
        by_name.setdefault(check.name, []).append(check)
    found: dict[str, Check] = {}
    for entry, keep in zip(entries, kept):
        if keep:
            continue
        name = entry.orig_guard.name
        other = getattr(entry.orig_guard.create_fn, "keywords", {}).get("source_b")
        if entry.guard_type == "DUPLICATE_INPUT" and name and other is not None:
            of_other = other.name() if callable(other.name) else other.name
            same = f"({name}) is ({of_other})"
            if _evaluated(same, scope) is not True:
                raise NotShared("undescribed", f"{same} is not so")
            found[same] = Check(same, False, tuple(describe(True) or ()))
            continue
        outlined = entry.guard_type in _OUTLINED
        told = by_name.get(name, ())
        if not any(outlined or check.words[0] != OUTLINE for check in told):
            what = name or "the state of the process"
            raise NotShared("undescribed", f"{entry.guard_type} on {what}")
    return tuple(found.values())


def _is_dropped(entry: Any) -> bool:
    derived = entry.derived_guard_types
    return entry.guard_type in _TYPES or any(each in derived for each in _DERIVED)


def _is_of_value(entry: Any) -> bool:
    return any(each in _VALUES for each in (entry.guard_type, *entry.derived_guard_types))


def _told(value: object, words: Sequence[str]) -> list[str] | None:
    """Tell an object as ``words`` tell another."""
    return outline(value) if words[0] == OUTLINE else describe(value)


def _evaluated(name: str, scope: Mapping[str, object]) -> object:
    try:
        # The expression is torch's own, as in its guards.
        return eval(name, dict(scope))  # noqa: S307
    except Exception as error:
        raise NotShared("undescribed", f"{name}: {error!r}") from error


class Checks:
    """One guard in place of these: called with a frame's locals, after torch's own passed."""

    def __init__(
        self, checks: Iterable[Check], scope: Mapping[str, object], unchanged: Callable[[], bool]
    ) -> None:
        """Check under ``scope``; ``unchanged``: whether the settings are those of the package."""
        told = tuple(checks)
        self._lasting = [check for check in told if check.identity]
        self._once: list[Check] | None = [check for check in told if not check.identity]
        self._scope = dict(scope)
        # From a package that was verified; what torch unpickles of it can do more.
        self._find = eval(_finding(self._lasting), self._scope)  # noqa: S307
        self._known: tuple[object, ...] | None = None
        self._unchanged: bool | None = None
        self._settings = unchanged

    def __call__(self, f_locals: Any) -> bool:
        """Whether all is as it was where the package was made."""
        try:
            found = self._find(f_locals)
            if self._once is not None:
                return self._first(found, f_locals)
        except Exception as error:
            report.log.info("precompile: a guard cannot be evaluated: %r", error)
            return False
        return self._known is not None and all(map(is_, found, self._known))

    def _first(self, found: tuple[object, ...], f_locals: Any) -> bool:
        if self._unchanged is None:
            self._unchanged = self._settings()
            if not self._unchanged:
                report.count("precompile.settings_moved")
        if not self._unchanged:
            return False
        once = self._once or []
        values = eval(_finding(once), self._scope)(f_locals)  # noqa: S307
        for check, value in zip((*once, *self._lasting), (*values, *found)):
            if tuple(_told(value, check.words) or ()) != check.words:
                report.count("precompile.guard_failed")
                report.log.info("precompile: %s is not what was traced", check.name)
                return False
        self._once, self._known = None, found
        return True


def _finding(checks: Iterable[Check]) -> str:
    return f"lambda L: ({''.join(f'({check.name}), ' for check in checks)})"
