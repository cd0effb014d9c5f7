"""The cluster-wide right to compile one key.

Invariant: it lives as long as its stream to the node that granted it; a process
that ends, in whatever way, holds nothing.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from .endpoint import Endpoint


class Lease:
    """Held until it is published under, released, or lost."""

    def __init__(
        self,
        key: bytes,
        token: int,
        grant: bytes,
        endpoint: Endpoint,
        call: Any,
        *,
        waited: bool,
    ) -> None:
        """Take over the stream ``call`` on which ``endpoint`` granted ``token``.

        ``grant`` proves to it that this process is the one to which it did.
        """
        self.key = key
        self.token = token
        self.grant = grant
        self.endpoint = endpoint
        # Another had it first, and ended without an artifact.
        self.waited = waited
        self._call = call
        self._pid = os.getpid()
        self._since = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was granted: what the compile took, when it is published under."""
        return time.monotonic() - self._since

    @property
    def alive(self) -> bool:
        """Whether it is still held, as far as is known here."""
        return self._call is not None and self._pid == os.getpid() and self._call.is_active()

    def release(self) -> None:
        """Let others have it. A second time does nothing."""
        call, self._call = self._call, None
        if call is not None and self._pid == os.getpid():
            call.cancel()

    def __enter__(self) -> Lease:
        """Hold it for a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it, whatever happened."""
        self.release()
