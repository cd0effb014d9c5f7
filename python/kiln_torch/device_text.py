"""Moves code that Inductor generated for one GPU to another, by parsing it.

Invariant: what ``moved`` returns names no GPU by an index but the one that was asked
for, and differs from what it was given in that alone; code that names several, or in
a way that is not known here, is ``Refused``. It is generated code, of a signer that is
trusted: this finds what Inductor wrote, not what somebody hides.

Comments, and strings that are statements (the tuning block of a standalone artifact),
are never run: they are changed too, so that they mislead nobody.
"""

from __future__ import annotations

import ast
import re
from itertools import pairwise

from .devices import GPU


class Refused(Exception):
    """It cannot be moved: compile it on its own GPU."""


# Functions of an index alone.
_RAW_STREAM, _GET_STREAM = "torch._C._cuda_getCurrentRawStream", "get_raw_stream"
_OF_INDEX = ("torch.cuda._DeviceGuard", "torch.cuda.set_device", _RAW_STREAM, _GET_STREAM)
# Asked for the current GPU; and what torch 2.15 calls the answer, in code that is for
# any GPU (``compile_on_one_rank``).
_ASKS, _CURRENT = "torch.cuda.current_device", "_coor_device_idx"
_DESCRIBES = ("device", "torch.device", "DeviceProperties")
_GENERATORS = "torch.cuda.default_generators"
# Of torch's part for GPUs nothing else may be used, but what is about the current one.
_ABOUT_GPUS = ("torch.cuda", "torch._C._cuda", "torch.accelerator", "torch.Stream")
_HARMLESS = ("torch.cuda.synchronize", "torch.cuda.nvtx")
# How kernels come in: those of Triton are Python themselves.
_COMPILE = "async_compile."
_TRITON = "async_compile.triton"
_OTHER_KERNELS = ("cpp", "cpp_pybinding", "multi_kernel", "wait")
# Names with an index in them.
_NAME = re.compile(rf"((?:raw_)?stream|semaphores_{GPU}_)(\d+)\Z")
_EXACT = re.compile(rf"{GPU}:(\d+)\Z")
_PROSE = re.compile(
    rf"(\b{GPU}:|\btype='{GPU}', index=|_DeviceGuard\(|set_device\(|get_raw_stream\("
    rf"|\b(?:raw_)?stream|\bsemaphores_{GPU}_)(\d+)\b".encode()
)


def moved(code: str, index: int) -> tuple[str, dict[str, str]]:
    """Return the code for GPU ``index``, and by their old text the kernels in it."""
    read = _Code(code)
    found = read.indices()
    if found <= {index}:
        return code, dict(zip(read.kernels, read.kernels, strict=True))
    if len(found) > 1:
        raise Refused(f"the code names GPUs {', '.join(map(str, sorted(found)))}")
    new = read.rewritten(found.pop(), index)
    again = _Code(new)
    if again.indices() != {index} or len(again.kernels) != len(read.kernels):
        raise Refused("the code names a GPU where none was seen")
    return new, dict(zip(read.kernels, again.kernels, strict=True))


class _Code:
    """One Python source, and what in it names a GPU."""

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        try:
            self._tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise Refused(f"the code is no Python: {type(error).__name__}") from error
        self._lines = [0]
        for line in self._data.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        # Each with its index, and what stands before that within the node.
        self._mentions: list[tuple[ast.expr | ast.arg, int, str]] = []
        self._nested: list[tuple[ast.Constant, _Code]] = []
        self._strings: list[ast.Constant] = []
        self._prose: list[ast.Constant] = []
        # Nodes that a node above them explains.
        self._explained: set[int] = set()
        # Parents come before their children.
        for node in ast.walk(self._tree):
            self._visit(node)

    @property
    def kernels(self) -> list[str]:
        """Return the source of each Triton kernel, in order."""
        return [str(node.value) for node, _ in self._nested]

    def indices(self) -> set[int]:
        """Return the index of each GPU that is named."""
        found = {index for _, index, _ in self._mentions}
        return found.union(*(inner.indices() for _, inner in self._nested))

    def rewritten(self, before: int, after: int) -> str:
        """Return the text with GPU ``after`` for ``before``."""
        edits: list[tuple[int, int, bytes]] = []
        for node, _, prefix in self._mentions:
            text = f"{prefix}{after}"
            edits.append((*self._span(node), (repr(text) if _string(node) else text).encode()))
        edits += [self._kernel(node, inner, before, after) for node, inner in self._nested]
        edits += self._unread(before, after)
        new = bytearray(self._data)
        edits.sort(reverse=True)
        for (start, _, _), (_, end, _) in pairwise(edits):
            if end > start:
                raise Refused("two changes of one place")
        for start, end, text in edits:
            new[start:end] = text
        return new.decode()

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.Expr) and _string(node.value):
            self._prose.append(node.value)  # type: ignore[arg-type]
            self._explained.add(id(node.value))
        elif isinstance(node, ast.Assign):
            self._assigned(_dotted(node.targets[0]), node.value)
        elif isinstance(node, ast.Subscript) and _dotted(node.value) == _GENERATORS:
            self._explained.add(id(node.value))
            self._mention(node.slice)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, (ast.Name, ast.arg)):
            self._name(node)
        elif isinstance(node, ast.Constant):
            self._constant(node)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    _refuse_number(str(key.value), value)
        elif isinstance(node, ast.keyword):
            _refuse_number(node.arg or "", node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            _refuse_import(node)

    def _assigned(self, name: str, value: ast.expr) -> None:
        if name == _GET_STREAM and _dotted(value) == _RAW_STREAM:
            self._explained.add(id(value))
        elif name == _CURRENT:
            if not isinstance(value, ast.Call) or _dotted(value.func) != _ASKS or value.args:
                raise Refused(f"{name} is not the current GPU")
            self._explained.add(id(value.func))

    def _call(self, node: ast.Call) -> None:
        name = _dotted(node.func)
        if name in _OF_INDEX:
            if len(node.args) != 1 or node.keywords:
                raise Refused(f"{name} with other arguments")
            self._explained.add(id(node.func))
            if _dotted(node.args[0]) != _CURRENT:
                self._mention(node.args[0])
        elif name in _DESCRIBES:
            self._described(node)
        elif name == _TRITON:
            if len(node.args) < 2 or not _string(node.args[1]):
                raise Refused("a kernel that is no text")
            self._explained.add(id(node.args[1]))
            self._nested.append((node.args[1], _Code(node.args[1].value)))  # type: ignore
        elif name.startswith(_COMPILE):
            if name.removeprefix(_COMPILE) not in _OTHER_KERNELS:
                raise Refused(f"a kernel by {name}")
        elif name.startswith(_HARMLESS) and (node.args or node.keywords):
            raise Refused(f"{name} with arguments")

    def _described(self, node: ast.Call) -> None:
        given = {each.arg: each.value for each in node.keywords}
        of = dict(zip(("type", "index"), node.args, strict=False)) | given
        kind, index = of.get("type"), of.get("index")
        if index is None or (isinstance(index, ast.Constant) and index.value is None):
            return
        if not _string(kind):
            raise Refused("a device of an unknown kind")
        if kind.value == GPU:  # type: ignore[union-attr]
            self._mention(index)

    def _mention(self, node: ast.expr) -> None:
        if not isinstance(node, ast.Constant) or type(node.value) is not int:
            raise Refused(f"a GPU by {ast.unparse(node)[:80]}")
        self._explained.add(id(node))
        self._mentions.append((node, node.value, ""))

    def _attribute(self, node: ast.Attribute) -> None:
        name = _dotted(node)
        inner: ast.expr = node
        explained = id(node) in self._explained
        while isinstance(inner, ast.Attribute):
            self._explained.add(id(inner))
            inner = inner.value
        if not explained and name.startswith(_ABOUT_GPUS) and not name.startswith(_HARMLESS):
            raise Refused(f"the code uses {name}")

    def _name(self, node: ast.Name | ast.arg) -> None:
        name = node.id if isinstance(node, ast.Name) else node.arg
        if match := _NAME.match(name):
            self._mentions.append((node, int(match[2]), match[1]))
            return
        made = isinstance(getattr(node, "ctx", None), ast.Store)
        if name == _GET_STREAM and id(node) not in self._explained and not made:
            raise Refused(f"the code passes {name} on")

    def _constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        self._strings.append(node)
        if id(node) in self._explained or f"{GPU}:" not in node.value:
            return
        match = _EXACT.match(node.value)
        if not match:
            raise Refused(f"a GPU within the text {node.value[:80]!r}")
        self._mentions.append((node, int(match[1]), f"{GPU}:"))

    def _kernel(
        self, node: ast.Constant, inner: _Code, before: int, after: int
    ) -> tuple[int, int, bytes]:
        start, end = self._span(node)
        new = inner.rewritten(before, after)
        quotes = b"'''"
        plain = quotes + str(node.value).encode() + quotes == self._data[start:end]
        return start, end, quotes + new.encode() + quotes if plain else repr(new).encode()

    def _unread(self, before: int, after: int) -> list[tuple[int, int, bytes]]:
        """Edit what is never run."""
        parts = [self._span(node) for node in self._prose]
        # Lines that begin within a string are no comments.
        within: set[int] = set()
        for node in self._strings:
            within.update(range(node.lineno, node.end_lineno or node.lineno))
        for at, (start, end) in enumerate(pairwise(self._lines)):
            if at not in within and self._data[start:end].lstrip().startswith(b"#"):
                parts.append((start, end))
        return [
            (start + match.start(2), start + match.end(2), str(after).encode())
            for start, end in parts
            for match in _PROSE.finditer(self._data[start:end])
            if int(match[2]) == before
        ]

    def _span(self, node: ast.expr | ast.arg) -> tuple[int, int]:
        start = self._lines[node.lineno - 1] + node.col_offset
        if isinstance(node, ast.arg):
            # Without its annotation.
            return start, start + len(node.arg.encode())
        if node.end_lineno is None or node.end_col_offset is None:
            raise Refused("a node without an end")
        return start, self._lines[node.end_lineno - 1] + node.end_col_offset


def _dotted(node: ast.AST) -> str:
    steps: list[str] = []
    while isinstance(node, ast.Attribute):
        steps.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(steps)]) if isinstance(node, ast.Name) else ""


def _string(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _refuse_number(name: str, value: ast.expr) -> None:
    if "device" in name and isinstance(value, ast.Constant) and type(value.value) is int:
        raise Refused(f"{name} is a number")


def _refuse_import(node: ast.Import | ast.ImportFrom) -> None:
    for alias in node.names:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        name = f"{module}{alias.name}"
        # Inductor's own line, and one that it leaves unused.
        known = name == _RAW_STREAM and alias.asname in (None, _GET_STREAM)
        if name.startswith(_ABOUT_GPUS) and not name.startswith(_HARMLESS) and not known:
            raise Refused(f"the code imports {name}")
