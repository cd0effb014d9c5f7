"""What a Python process that this one starts runs first.

Invariant: it imports what its parent can import, and nothing of the folder that it starts in,
which may be anybody's: ``python -c`` looks there first.
"""

# For `python -c`, before any other code; the first argument is the parent's path, as JSON, and is
# taken away.
ADOPT_PATH = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "import json; sys.path[:] = json.loads(sys.argv.pop(1)); "
)
