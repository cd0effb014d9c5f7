"""What a Python process that this one starts runs first.

Invariant: it imports what its parent can import, and nothing of the folder that it starts in,
which may be anybody's: ``python -c`` looks there first, and so does an empty entry of PYTHONPATH.
"""

import sys

# For `python -c`, before any other code; the first argument is ``adopted()``, and is taken away.
# `sys` is part of the interpreter: nothing is looked for before the path is the parent's.
ADOPT_PATH = "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); "


def adopted() -> str:
    """Return this process's import path, for one that it starts."""
    return "\n".join(each for each in sys.path if isinstance(each, str))
