"""Digests of code, functions and classes; the code behind a qualified name.

Invariant: equal digests mean the same bytecode, names and constants. File names
and line numbers do not count; what cannot be read as a plain constant makes a
digest that no other process has, or is left out where the text says so.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis))
_NAMES = ("co_names", "co_varnames", "co_freevars", "co_cellvars")
_NUMBERS = ("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_flags")
# Functions inside functions: decorators. Deeper than this is nobody's.
_DEPTH = 8
# Dynamo replaces these when it first compiles, by ones that count and call them.
_REPLACED = (
    "torch.nn.modules.module.Module.__init__",
    "torch.nn.modules.module.Module.__setstate__",
)
# Code objects are immutable. By identity, with the object kept: comparing is dear.
_digests: dict[int, tuple[types.CodeType, str]] = {}


def qualname_of(code: types.CodeType) -> str:
    """Return the name under which code can be found; Python 3.10 has only the last part."""
    return str(getattr(code, "co_qualname", code.co_name))


def code_digest(code: types.CodeType) -> str:
    """Return the digest of what ``code`` does."""
    known = _digests.get(id(code))
    if known is not None:
        return known[1]
    hasher = blake3()
    told: list[Any] = [getattr(code, name) for name in (*_NUMBERS, *_NAMES)]
    told += [code.co_name, qualname_of(code), constant(code.co_consts)]
    for part in (repr(told).encode(), code.co_code, getattr(code, "co_exceptiontable", b"")):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    digest = hasher.hexdigest()
    _digests[id(code)] = (code, digest)
    return digest


def constant(value: object) -> str:
    """Write a constant of code, with its type; what is none of these by its type alone."""
    if type(value) in _PLAIN:
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, types.CodeType):
        return f"code {code_digest(value)}"
    if type(value) is tuple:
        return f"tuple {[constant(each) for each in value]}"
    if type(value) is frozenset:
        return f"frozenset {sorted(constant(each) for each in value)}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def function_digest(function: types.FunctionType, depth: int = _DEPTH) -> str:
    """Return the digest of a function: code, defaults, and the functions in its closure."""
    told = [code_digest(function.__code__), constant(function.__defaults__)]
    told.append(str(sorted((n, constant(v)) for n, v in (function.__kwdefaults__ or {}).items())))
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            told.append("empty")
            continue
        inner = functions_of(content) if depth else ()
        told += [function_digest(each, depth - 1) for each in inner] or [constant(content)]
    return blake3(repr(told).encode()).hexdigest()


def functions_of(value: object) -> tuple[types.FunctionType, ...]:
    """Return the Python functions that an attribute of a class or module stands for."""
    if isinstance(value, types.FunctionType):
        return (value,)
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return functions_of(value.__func__)
    if isinstance(value, property):
        return tuple(f for each in (value.fget, value.fset, value.fdel) for f in functions_of(each))
    return ()


def class_digest(cls: type, known: dict[type, str] | None = None) -> str:
    """Return the digest of what objects of a class do: its functions and its bases'.

    ``known``: digests of classes by themselves, while nobody replaces a method.
    """
    known = {} if known is None else known
    for base in cls.__mro__:
        if base not in known:
            known[base] = _own_digest(base)
    return blake3(repr([known[base] for base in cls.__mro__]).encode()).hexdigest()


def _own_digest(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    told = [
        (attribute, at, function.__module__, function_digest(function))
        for attribute, value in sorted(vars(cls).items())
        if f"{name}.{attribute}" not in _REPLACED
        for at, function in enumerate(functions_of(value))
    ]
    return blake3(repr((name, told)).encode()).hexdigest()


def module_named(name: str) -> types.ModuleType | None:
    """Return a module, imported as torch's own packages have it; ``None``: it fails."""
    module = sys.modules.get(name)
    if module is not None:
        return module
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def resolves_to(module: str, qualname: str, digest: str) -> bool:
    """Whether the code that a name stands for in this process has ``digest``."""
    found: Any = module_named(module)
    for part in qualname.split("."):
        if found is None or part == "<locals>":
            break
        if isinstance(found, types.FunctionType):
            break
        found = inspect.getattr_static(found, part, None)
    return any(code_digest(code) == digest for code in _codes_of(found, qualname, _DEPTH))


def _codes_of(found: object, qualname: str, depth: int) -> Iterator[types.CodeType]:
    """Yield the code of that name in a function, the functions that it wraps and defines."""
    for function in functions_of(found):
        yield from (c for c in _nested(function.__code__) if qualname_of(c) == qualname)
        if not depth:
            continue
        for content in _contents(function):
            yield from _codes_of(content, qualname, depth - 1)
        yield from _codes_of(getattr(function, "__wrapped__", None), qualname, depth - 1)


def _contents(function: types.FunctionType) -> Iterator[object]:
    """Yield what the closure holds; a cell that is empty yet holds nothing."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _nested(each)
