"""Which kind of failure an error is: what the ladder goes by.

Errors come from Python, torch, a C++ compiler's output and the kernel; most have no
type of their own. Needs no torch: types are told by their names.
Invariant: what is not recognised is ``compile_error``, whose rungs fit anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import BY_KIND, CompilationError, CompilationModuleError

if TYPE_CHECKING:
    from collections.abc import Iterator

# By the names of types, and of what they derive from.
_TYPES = {
    "MemoryError": "out_of_memory",
    "OutOfMemoryError": "out_of_memory",
    "bad_alloc": "out_of_memory",
    "MissingOperatorWithoutDecomp": "unsupported_op",
    "MissingOperatorWithDecomp": "unsupported_op",
    "UnsupportedOperatorException": "unsupported_op",
    "InvalidCxxCompiler": "toolchain_missing",
    "TritonMissing": "toolchain_missing",
    "GPUTooOldForTriton": "toolchain_missing",
    "BrokenProcessPool": "crashed",
}
# By words, the first that is there.
_WORDS = (
    (
        "out_of_memory",
        re.compile(
            r"out of memory|cannot allocate memory|virtual memory exhausted|std::bad_alloc"
            r"|memory exhausted|\bMemoryError\b|DefaultCPUAllocator: can't allocate"
            r"|can't start new thread|Killed signal terminated program|Errno 12\b",
            re.IGNORECASE,
        ),
    ),
    (
        "unsupported_op",
        re.compile(r"missing lowering|missing decomposition|UnsupportedOperator|unsupported_op"),
    ),
    (
        "toolchain_missing",
        re.compile(
            r"No working C\+\+ compiler|Compiler: \S+ is not found|working triton installation"
            r"|too old to be supported by the triton|toolchain_missing"
            r"|No such file or directory: '[^']*(?:g\+\+|gcc|clang|ptxas|nvcc)[^']*'"
            r"|Failed to find C compiler",
        ),
    ),
    ("busy", re.compile(r"\bbusy\b|RESOURCE_EXHAUSTED|UNAVAILABLE|no node can be reached")),
    ("crashed", re.compile(r"terminated abruptly|ended with status -?\d+|\bcrashed\b")),
)
_TARGET = re.compile(r"^\s*target: (\S+)", re.MULTILINE)


def classify_error_type(error: BaseException) -> str:
    """Return the kind of ``error``, by what it is or by what caused it."""
    chain = list(_causes(error))
    own = [each for each in chain if isinstance(each, CompilationModuleError)]
    for each in own:
        # One that says nothing of its kind may have been caused by one that does.
        if each.kind not in ("compile_error", "unknown"):
            return each.kind
    for each in chain:
        names = (base.__name__ for base in type(each).__mro__)
        found = next((_TYPES[name] for name in names if name in _TYPES), None)
        if found is not None:
            return found
    text = "\n".join(f"{type(each).__name__}: {each}" for each in chain)
    return next((kind for kind, words in _WORDS if words.search(text)), "compile_error")


def classified(error: Exception) -> CompilationModuleError:
    """Return ``error`` as this module's own, of its kind; its advice is that of its kind."""
    kind = classify_error_type(error)
    if isinstance(error, CompilationModuleError):
        if error.kind == kind or not isinstance(error, CompilationError):
            return error
        said = error.message
    else:
        said = f"{type(error).__name__}: {error}"
    made = of_kind(kind, said)
    made.__cause__ = error
    return made


def of_kind(kind: str, message: str) -> CompilationModuleError:
    """Return the error of a kind that another process named."""
    return BY_KIND.get(kind, CompilationError)(message)


def named_operations(error: BaseException) -> tuple[str, ...]:
    """Return the operations that an error of Inductor's says it has no rule for."""
    found: dict[str, None] = {}
    for each in _causes(error):
        for name in _TARGET.findall(str(each)):
            found.setdefault(name)
    return tuple(found)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        inner = getattr(now, "inner_exception", None)
        # Not what it was raised beside of: a rung's failure follows another one's.
        now = inner if isinstance(inner, BaseException) else now.__cause__
