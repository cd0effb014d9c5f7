"""``make_compiler``: the compiler that a configuration names.

Invariant: what is not available raises here, with what to do, and not at the
first compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import EAGER, NATIVE, STANDALONE

if TYPE_CHECKING:
    from .config import CompilationConfig
    from .counter import CompilationCounter
    from .interface import CompilerInterface


def make_compiler(
    compilation_config: CompilationConfig, counter: CompilationCounter | None = None
) -> CompilerInterface:
    """Make the compiler; its numbers go to ``counter``."""
    return make_named(compilation_config.compiler, counter)


def make_named(name: str, counter: CompilationCounter | None = None) -> CompilerInterface:
    """Make a compiler by its name."""
    if name == EAGER:
        from .eager import EagerAdaptor

        return EagerAdaptor(counter)
    if name == NATIVE:
        from .native import NativeAdaptor

        return NativeAdaptor(counter)
    if name == STANDALONE:
        from .standalone import InductorStandaloneAdaptor

        return InductorStandaloneAdaptor(counter)
    from .inductor import InductorAdaptor

    return InductorAdaptor(counter)
