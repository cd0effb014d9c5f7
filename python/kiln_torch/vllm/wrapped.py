"""The platform that vLLM detects, with Kiln as its compiler.

vLLM takes one out-of-tree platform, and it in place of the detected one. So this
is a subclass of the detected one, which says what it says about everything but
the compiler.
Invariant: wherever vLLM treats Inductor specially it does so here as well: the
code that is compiled is Inductor's.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vllm import platforms
from vllm.utils.import_utils import resolve_obj_by_qualname

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADAPTOR = "kiln_torch.vllm.adaptor.KilnAdaptor"
_UNSPECIFIED = "vllm.platforms.interface.UnspecifiedPlatform"


def _detected() -> Any:
    """Return the class that vLLM would use; several at once are its error to report."""
    names = [name for detect in platforms.builtin_platform_plugins.values() if (name := detect())]
    if len(names) > 1:
        raise RuntimeError(f"several platforms: {names}")
    return resolve_obj_by_qualname(names[0] if names else _UNSPECIFIED)


@contextmanager
def _as_inductor(vllm_config: Any) -> Iterator[None]:
    settings = vllm_config.compilation_config
    if settings.backend != _ADAPTOR:
        yield
        return
    settings.backend = "inductor"
    try:
        yield
    finally:
        if settings.backend == "inductor":
            settings.backend = _ADAPTOR


class KilnPlatform(_detected()):  # type: ignore[misc]
    """See the module."""

    @classmethod
    def get_compile_backend(cls) -> str:
        """Name the compiler that vLLM uses where it was not told another."""
        return _ADAPTOR

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: Any) -> None:
        """Set what vLLM sets for its own "inductor", right after this."""
        with _as_inductor(vllm_config):
            super().apply_config_platform_defaults(vllm_config)
        settings = vllm_config.compilation_config
        if settings.backend != _ADAPTOR:
            return
        # Not at import: vLLM asks for the platform while it imports its configuration.
        from vllm.config import CompilationMode

        mode = settings.mode
        if mode is None and vllm_config.optimization_level:
            # As vLLM chooses it in a moment.
            mode = CompilationMode.VLLM_COMPILE
        if mode in (None, CompilationMode.NONE):
            return
        if getattr(settings, "ir_enable_torch_wrap", False) is None:
            settings.ir_enable_torch_wrap = mode == CompilationMode.VLLM_COMPILE
        if not {"all", "none"} & set(settings.custom_ops):
            settings.custom_ops.append("none")

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Check as for Inductor."""
        with _as_inductor(vllm_config):
            super().check_and_update_config(vllm_config)

    @classmethod
    def get_default_ir_op_priority(cls, vllm_config: Any) -> Any:
        """Prefer what is preferred for Inductor."""
        with _as_inductor(vllm_config):
            return super().get_default_ir_op_priority(vllm_config)
