"""Why something is not shared.

Invariant: caught inside this package, and counted as ``precompile.REASON``.
"""


class NotShared(Exception):
    """Raised where a process traces by itself: ``reason`` is one word for the counter."""

    def __init__(self, reason: str, why: str = "") -> None:
        """Say why in one word, and in a sentence for the log."""
        super().__init__(why or reason)
        self.reason = reason
