"""What the pages say of other files, against the tree: `python3 tests/page_links.py`.

Links of all pages lead to a file, and to a heading where they name one; CHANGELOG's table
of formats has each format's version as the code has it.
Invariant: a link or a row that does not hold, and a table without rows, fail.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(([^)\s]+)\)")
# | format | `text` ... | `file` | before |
_ROW = re.compile(r"\| [^|]+ \| `([^`]+)`[^|]*\| `([^`]+)` \|")


def formats(page: str, root: Path) -> list[str]:
    """What CHANGELOG's table says and the code does not."""
    rows = [match.groups() for match in map(_ROW.match, page.splitlines()) if match]
    found = [] if rows else ["CHANGELOG.md: no row of formats was found"]
    for text, file in rows:
        if not (root / file).is_file():
            found.append(f"CHANGELOG.md: there is no {file}")
        elif text not in (root / file).read_text():
            found.append(f"CHANGELOG.md: {file} does not have {text!r}: a new version of a format?")
    return found


def links(name: str, root: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    page = root / name
    found = []
    for line_number, line in enumerate(_prose(page.read_text()), 1):
        for link in _LINK.findall(line):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                found.append(f"{name}:{line_number}: {link}: there is no such file")
            elif anchor and anchor not in _anchors(target.read_text()):
                found.append(f"{name}:{line_number}: {link}: there is no such heading")
    return found


def _prose(page: str) -> list[str]:
    """The lines, those of fenced blocks empty."""
    lines, fenced = [], False
    for line in page.splitlines():
        fence = line.startswith("```")
        fenced ^= fence
        lines.append("" if fenced or fence else line)
    return lines


def _anchors(page: str) -> set[str]:
    """The headings of a page as GitHub makes anchors of them."""
    heads = (line.lstrip("#").strip().lower() for line in _prose(page) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in heads}


def main() -> int:
    """Prints what is wrong."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = formats((ROOT / "CHANGELOG.md").read_text(), ROOT)
    for name in listed.split():
        found += links(name, ROOT)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
