"""Sizes as torch.export writes them: text that sympy evaluates.

Invariant: what passes is made of symbols, numbers and the words below alone.
"""

from __future__ import annotations

import re

from .refused import INVALID_INPUT, Refused

_SYMBOL = re.compile(r"'?\b[a-z]{1,2}\d+\b'?")
_WORDS = frozenset(
    [
        "Symbol",
        "Integer",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "CeilDiv",
        "CleanDiv",
        "ModularIndexing",
        "Where",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Identity",
        "ToFloat",
        "TruncToInt",
        "FloorToInt",
        "CeilToInt",
        "IntTrueDiv",
        "FloatTrueDiv",
        "PowByNatural",
        "oo",
        "int_oo",
        "True",
        "False",
        "integer",
        "positive",
        "negative",
        "nonnegative",
        "nonzero",
        "real",
        "zero",
    ]
)
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),<>=!&|~]*")


def check_expression(text: str) -> None:
    """Refuse a size that is not a plain expression."""
    rest = _SYMBOL.sub(" ", text)
    words = re.findall(r"[A-Za-z_]\w*", rest)
    plain = len(text) <= 4096 and _EXPRESSION.fullmatch(rest)
    if not plain or not all(word in _WORDS for word in words):
        raise Refused(INVALID_INPUT, f"{text[:100]!r} is no size that torch.export writes")
