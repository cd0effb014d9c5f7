"""What a page says is to be run, and what it says is printed: text alone, nothing runs here.

Invariant: a comment `<!-- run ... -->` that is of no known kind, or has no `sh` block right
behind it, is an error, never a block that is passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = {"run": "plain", "run: torch": "torch", "run: nodes": "nodes"}
_MARK = re.compile(r"<!-- (run\b.*?) -->")
_GRPC = re.compile(r"http://127\.0\.0\.1:\d+")
_RESP = re.compile(r"redis://127\.0\.0\.1:\d+")
# The order counts: a size is a number, too. Which tier has an artifact is the cluster's to say.
_SHAPES = (
    (re.compile(r"\bfrom (?:memory|disk|peer|object)\b"), "from TIER"),
    (re.compile(r"\b[0-9a-f]{7,}\b"), "HEX"),
    (re.compile(r"\b[\d.,]+ ?(?:B|KiB|MiB|GiB)\b"), "SIZE"),
    (re.compile(r"\b[\d.,]+ ?(?:ns|µs|us|ms|s|m|h)\b"), "TIME"),
    (re.compile(r"\d+(?:\.\d+)?"), "N"),
)


@dataclass(frozen=True)
class Block:
    """One block of a page, with the output that the page prints for it."""

    line: int
    kind: str
    text: str
    output: list[str]


def blocks_of(page: str) -> list[Block]:
    """The page's blocks that are to be run, in order."""
    lines = page.splitlines()
    found = []
    for at, line in enumerate(lines):
        mark = _MARK.fullmatch(line.strip())
        if not mark:
            continue
        kind = KINDS.get(mark[1])
        if kind is None:
            raise ValueError(f"line {at + 1}: {line} is none of {', '.join(KINDS)}")
        text, after = _fenced(lines, at + 1, "sh")
        if text is None:
            raise ValueError(f"line {at + 1}: no sh block behind {line}")
        output, _ = _fenced(lines, after, "text")
        kept = [ln for ln in output or [] if ln.strip()]
        found.append(Block(at + 2, kind, "\n".join(text), kept))
    return found


def _fenced(lines: list[str], at: int, language: str) -> tuple[list[str] | None, int]:
    """The block that begins at the next line with text, if it is one; and the line behind it."""
    while at < len(lines) and not lines[at].strip():
        at += 1
    if at == len(lines) or lines[at].strip() != f"```{language}":
        return None, at
    end = lines.index("```", at + 1)
    return lines[at + 1 : end], end + 1


def with_addresses(blocks: list[Block], text: str, grpc: list[str], resp: list[str]) -> str:
    """The text with the nodes' addresses for those that the page writes."""
    page = "\n".join(block.text for block in blocks)
    for pattern, nodes in ((_GRPC, grpc), (_RESP, resp)):
        written = list(dict.fromkeys(pattern.findall(page)))
        if len(written) > len(nodes):
            raise ValueError(f"{len(written)} addresses for {len(nodes)} nodes: {written}")
        places = dict(zip(written, nodes))
        text = pattern.sub(lambda found, places=places: places[found[0]], text)
    return text


def missing_line(wanted: list[str], output: str) -> str | None:
    """The first printed line that the output does not have behind the ones before it."""
    rest = iter(output.splitlines())
    for line in wanted:
        parts = re.split(r" ?\.\.\. ?", _shape(line))
        pattern = re.compile(".*".join(re.escape(part) for part in parts))
        if not any(pattern.fullmatch(_shape(candidate)) for candidate in rest):
            return line
    return None


def _shape(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, name in _SHAPES:
        line = pattern.sub(name, line)
    return " ".join(line.split())
