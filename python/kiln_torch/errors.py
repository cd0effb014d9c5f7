"""Why Kiln has no answer; the client alone catches these.

Invariant: a type says what the caller does next, and none of them leaves
``Client``: there a miss and a failure look alike, because both mean "compile".
"""


class KilnError(Exception):
    """Anything that keeps the cluster from helping."""


class Unreachable(KilnError):
    """The node is dead, silent or talks nonsense: ask another."""


class NotFound(KilnError):
    """Nothing is stored under the key."""


class Refused(KilnError):
    """What came is not what a node signed: neither use it nor ask again."""


class Stale(KilnError):
    """The lease is over: whoever has it now publishes."""


class Failed(KilnError):
    """The node answered that it will not or cannot."""
