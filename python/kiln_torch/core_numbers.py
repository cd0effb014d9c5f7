"""Functions of numbers over tensors, as the node's interpreter defines them.

``src/native/interp/number.rs`` is the judge. Floats are computed in ``f32`` (``f64``
where one takes part) and rounded once to the result's type, whole numbers in ``i64``.
Invariant: what torch leaves open or raises for (whole numbers by zero, shifts out of
range, floats beyond a whole number's) is what the interpreter gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_RANGE = {torch.int64: (-(2.0**63), 2.0**63), torch.int32: (-(2.0**31), 2.0**31 - 1)}


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the same numbers as elements of ``dtype``."""
    if x.dtype == dtype:
        return x
    if dtype == torch.bool:
        return x != 0
    if x.dtype in FLOATS and dtype not in FLOATS:
        return _whole(x, dtype)
    if dtype in FLOATS or dtype == torch.int64:
        return x.to(dtype)
    # Its low bits.
    return x.to(torch.int64).to(dtype)


def arithmetic(dtypes: list[torch.dtype]) -> torch.dtype:
    """Return the type in which floats of these types are computed."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def float_(fun: str, args: list[torch.Tensor]) -> torch.Tensor:
    """Compute ``fun`` of floats, all of one type."""
    return _FLOAT[fun](*args)


def int_(fun: str, args: list[torch.Tensor]) -> torch.Tensor:
    """Compute ``fun`` of whole numbers, wrapping."""
    return _INT[fun](*args)


def truth(fun: str, args: list[torch.Tensor]) -> torch.Tensor:
    """Compute ``fun`` of truth values, given as 0 and 1."""
    return args[0] == 0 if fun == "BitNot" else int_(fun, args) != 0


def knows(fun: str, domain: str) -> bool:
    """Whether there is such a function of such numbers."""
    return fun in (_FLOAT if domain == "Float" else _INT)


def _whole(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round towards zero; beyond the range its nearest end, NaN zero."""
    if dtype not in (torch.int64, torch.int32):
        return _whole(x, torch.int64).to(dtype)
    wide = x.to(torch.float64).nan_to_num(nan=0.0, posinf=2.0**63, neginf=-(2.0**63))
    low, high = _RANGE[dtype]
    inside = wide.clamp(low, high)
    made = torch.where(inside >= high, 0.0, inside).to(dtype)
    return torch.where(inside >= high, torch.iinfo(dtype).max, made)


def _sign(a: torch.Tensor) -> torch.Tensor:
    return (a > 0).to(a.dtype) - (a < 0).to(a.dtype)


def _at_zero(
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    instead: Callable[[torch.Tensor], Any],
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return ``of`` but for divisors of zero."""

    def divided(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        zero = b == 0
        return torch.where(zero, instead(a), of(a, torch.where(zero, 1, b)))

    return divided


def _pow(base: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    odd = (power & 1) != 0
    minus = torch.where(base == -1, torch.where(odd, -1, 1), 0)
    below = torch.where(base == 1, 1, minus)
    return torch.where(power < 0, below, base ** power.clamp(min=0))


def _left(a: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    inside = (by >= 0) & (by < 64)
    return torch.where(inside, a << torch.where(inside, by, 0), 0)


def _right(a: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    inside = (by >= 0) & (by < 64)
    return a >> torch.where(inside, by, 63)


def _of_floats(of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return ``of``, whose truth values become numbers."""

    def numbers(*args: torch.Tensor) -> torch.Tensor:
        return of(*args).to(args[0].dtype)

    return numbers


_COMPARED: dict[str, Callable[..., torch.Tensor]] = {
    "Eq": torch.eq,
    "Ne": torch.ne,
    "Lt": torch.lt,
    "Le": torch.le,
    "Gt": torch.gt,
    "Ge": torch.ge,
}
_BOTH: dict[str, Callable[..., torch.Tensor]] = {
    "Id": lambda a: a,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sign": _sign,
    "Not": _of_floats(lambda a: a == 0),
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Min": torch.minimum,
    "Max": torch.maximum,
    "Where": lambda a, b, c: torch.where(a != 0, b, c),
    **{name: _of_floats(of) for name, of in _COMPARED.items()},
}
_FLOAT: dict[str, Callable[..., torch.Tensor]] = {
    **_BOTH,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Trunc": torch.trunc,
    "Round": torch.round,
    "Sqrt": torch.sqrt,
    "Rsqrt": torch.rsqrt,
    "Reciprocal": torch.reciprocal,
    "Exp": torch.exp,
    "Exp2": torch.exp2,
    "Expm1": torch.expm1,
    "Log": torch.log,
    "Log2": torch.log2,
    "Log10": torch.log10,
    "Log1p": torch.log1p,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Erf": torch.erf,
    "Sigmoid": torch.sigmoid,
    "IsNan": _of_floats(torch.isnan),
    "IsInf": _of_floats(torch.isinf),
    "Div": torch.div,
    "FloorDiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "TruncDiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "Remainder": torch.remainder,
    "Fmod": torch.fmod,
    "Pow": torch.pow,
    "Atan2": torch.atan2,
}
_INT: dict[str, Callable[..., torch.Tensor]] = {
    **_BOTH,
    **dict.fromkeys(("Floor", "Ceil", "Trunc", "Round"), _BOTH["Id"]),
    **dict.fromkeys(("IsNan", "IsInf"), torch.zeros_like),
    "BitNot": torch.bitwise_not,
    "FloorDiv": _at_zero(lambda a, b: torch.div(a, b, rounding_mode="floor"), lambda _: -1),
    "TruncDiv": _at_zero(lambda a, b: torch.div(a, b, rounding_mode="trunc"), lambda _: -1),
    "Remainder": _at_zero(torch.remainder, lambda a: a),
    "Fmod": _at_zero(torch.fmod, lambda a: a),
    "Pow": _pow,
    "And": torch.bitwise_and,
    "Or": torch.bitwise_or,
    "Xor": torch.bitwise_xor,
    "Shl": _left,
    "Shr": _right,
}
