"""What can go wrong in a compile, each with its code and what to do about it.

Invariant: an error of this module says in its text what the caller can do, and
``TimeoutError`` is no ``CompilationError``: who catches the one is not handed the
other.
"""

from __future__ import annotations

import builtins


class CompilationModuleError(Exception):
    """Any of the five; ``code`` is the document's, ``advice`` is what to do."""

    code = "C000"
    advice = ""

    def __str__(self) -> str:
        """Show the code, what happened, and what to do."""
        return f"{self.code}: {super().__str__()} ({self.advice})"


class CompilationError(CompilationModuleError):
    """The compiler refused the graph, or failed."""

    code = "C001"
    advice = "check that the compiler supports the model, or set use_inductor=False for eager"


class CacheCorruptedError(CompilationModuleError):
    """An entry is not what was written, or was not signed here: it is deleted."""

    code = "C002"
    advice = "it is compiled again; where this comes back, clear cache_dir and check the disk"


class IncompatibleConfigError(CompilationModuleError):
    """The configuration, or the version in an entry, does not fit."""

    code = "C003"
    advice = "change the configuration, or use the version of the compiler that it is for"


class TimeoutError(CompilationModuleError, builtins.TimeoutError):  # noqa: A001 - the document's
    """The compile took longer than ``compile_timeout``; its process was ended."""

    code = "C004"
    advice = 'raise compile_timeout, or set compilation_level="piecewise"'


class InductorNotAvailableError(CompilationModuleError):
    """The torch that is installed has no such Inductor."""

    code = "C005"
    advice = "install a torch that has it (2.11 or newer), or set use_inductor=False for eager"
