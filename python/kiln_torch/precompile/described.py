"""What an object is, in words that mean the same in every process.

Invariant: two objects with equal descriptions do the same where Dynamo took one as
a constant; an object for which this cannot be promised has no description.
"""

from __future__ import annotations

import enum
import types
from typing import TYPE_CHECKING, Any

import torch

from .code import class_digest, code_digest, constant

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(Ellipsis), type(NotImplemented))
_BY_TEXT = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_OPERATIONS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
_BUILTINS = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.GetSetDescriptorType,
    types.ClassMethodDescriptorType,
)
OUTLINE = "object"
# `torch.compiler.assume_constant_result`: its value is in the traced code, unguarded.
_ASSUMED = "_dynamo_marked_constant"


def describe(value: Any) -> list[str] | None:
    """Describe ``value``; ``None``: it cannot be told apart from others of its kind."""
    if type(value) in _PLAIN:
        return ["value", constant(value)]
    if type(value) is tuple and all(type(each) in _PLAIN for each in value):
        return ["value", constant(value)]
    if type(value) in _BY_TEXT:
        return ["value", type(value).__qualname__, str(value)]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, enum.Enum):
        return ["enum", *_name(type(value)), value.name]
    if isinstance(value, type):
        return ["class", *_name(value), class_digest(value)]
    if isinstance(value, types.FunctionType):
        if getattr(value, _ASSUMED, False):
            return None
        return ["function", *_name(value), code_digest(value.__code__), *_defaults(value)]
    if isinstance(value, types.MethodType):
        return _method(value)
    if isinstance(value, _OPERATIONS):
        return ["operation", type(value).__qualname__, str(value)]
    if isinstance(value, _BUILTINS):
        return ["builtin", *_name(type(value)), *_name(value), *_owner(value)]
    return None


def outline(value: Any) -> list[str]:
    """Tell the kind of what has no description: its class, its size, a tensor's layout."""
    words = [OUTLINE, *_name(type(value))]
    if isinstance(value, torch.Tensor):
        strides = value.stride() if value.layout is torch.strided else value.layout
        layout = (value.dtype, value.device, tuple(value.shape), value.requires_grad, strides)
        return [*words, *map(str, layout)]
    if type(value) in (list, tuple, dict, set, frozenset):
        words.append(str(len(value)))
    if type(value) is dict:
        words += map(constant, value)
    return words


def _method(value: types.MethodType) -> list[str] | None:
    function = describe(value.__func__)
    return None if function is None else ["method", *_name(type(value.__self__)), *function]


def _defaults(value: types.FunctionType) -> tuple[str, str]:
    # Dynamo takes them as constants, unguarded.
    named = sorted((value.__kwdefaults__ or {}).items())
    return constant(value.__defaults__), constant(tuple(named))


def _owner(value: object) -> Sequence[str]:
    owner = getattr(value, "__self__", None)
    if isinstance(owner, types.ModuleType):
        return (owner.__name__,)
    return _name(owner if isinstance(owner, type) else type(owner))


def _name(value: object) -> tuple[str, str]:
    return str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))
