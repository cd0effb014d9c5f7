"""What can go wrong in a compile, each with its code, its kind and what to do about it.

Codes and kinds are those of a node (``proto/src/failure.rs``); the codes are the
document's.
Invariant: an error of this module says in its text what the caller can do, and
``TimeoutError`` is no ``CompilationError``: who catches the one is not handed the
other.
"""

from __future__ import annotations

import builtins


class CompilationModuleError(Exception):
    """Any of them; ``code`` is the document's, ``kind`` a node's, ``advice`` what to do."""

    code = "C000"
    kind = "unknown"
    advice = ""

    def __str__(self) -> str:
        """Show the code, what happened, and what to do."""
        return f"{self.code}: {super().__str__()} ({self.advice})"

    @property
    def message(self) -> str:
        """What happened, without code and advice."""
        return super().__str__()


class CompilationError(CompilationModuleError):
    """The compiler refused the graph, or failed."""

    code = "C001"
    kind = "compile_error"
    advice = "check that the compiler supports the model, or set use_inductor=False for eager"


class UnsupportedOpError(CompilationError):
    """The graph has an operation that this compiler does not know."""

    kind = "unsupported_op"
    advice = "leave fallback=True: such operations run uncompiled, the others are compiled"


class InvalidInputError(CompilationError):
    """The graph or its inputs mean nothing to any compiler."""

    kind = "invalid_input"
    advice = "run the graph uncompiled: it fails there too, and says where"


class OutOfMemoryError(CompilationError):
    """The compile needed more memory than it may have."""

    code = "C005"
    kind = "out_of_memory"
    advice = "raise compile_memory_bytes, lower parallel_compiles, or compile by pieces"


class CrashedError(CompilationError):
    """The process that compiled died."""

    code = "C005"
    kind = "crashed"
    advice = "it is tried once more; where it comes back, look at the kernel's log for the reason"


class BusyError(CompilationError):
    """Whoever was to compile has too much to do."""

    code = "C005"
    kind = "busy"
    advice = "it is tried again; where it comes back, add nodes or compile here"


class ToolchainMissingError(CompilationError):
    """A program or library that the compiler needs is not installed."""

    code = "C005"
    kind = "toolchain_missing"
    advice = "install what is named: a C++ compiler for the CPU, Triton for a GPU"


class CacheCorruptedError(CompilationModuleError):
    """An entry is not what was written, or was not signed here: it is deleted."""

    code = "C002"
    kind = "corrupt"
    advice = "it is compiled again; where this comes back, clear cache_dir and check the disk"


class WrongOutputError(CompilationError):
    """What was compiled gives other values than its graph: it is deleted."""

    code = "C002"
    kind = "wrong_output"
    advice = "report it with the graph; until then set use_inductor=False for eager"


class IncompatibleConfigError(CompilationModuleError):
    """The configuration, or the version in an entry, does not fit."""

    code = "C003"
    kind = "incompatible"
    advice = "change the configuration, or use the version of the compiler that it is for"


class ArgumentError(IncompatibleConfigError):
    """What was given is no graph, no index or no shape: no other configuration mends that."""

    kind = "invalid_input"
    advice = "give compile what its documentation says"


class TimeoutError(CompilationModuleError, builtins.TimeoutError):  # noqa: A001 - the document's
    """The compile took longer than ``compile_timeout``; its process was ended."""

    code = "C004"
    kind = "timeout"
    advice = 'raise compile_timeout, or set compilation_level="piecewise"'


class InductorNotAvailableError(CompilationModuleError):
    """The torch that is installed has no such Inductor."""

    code = "C005"
    kind = "toolchain_missing"
    advice = "install a torch that has it (2.11 or newer), or set use_inductor=False for eager"


# The error of each kind, as another process or a node names it.
BY_KIND: dict[str, type[CompilationModuleError]] = {
    each.kind: each
    for each in (
        CompilationError,
        UnsupportedOpError,
        InvalidInputError,
        OutOfMemoryError,
        CrashedError,
        BusyError,
        ToolchainMissingError,
        CacheCorruptedError,
        WrongOutputError,
        IncompatibleConfigError,
        TimeoutError,
    )
}
