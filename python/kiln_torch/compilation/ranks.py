"""How many processes of one job share this machine's cores.

Invariant: at least one, this one; what nobody says is not guessed.
"""

from __future__ import annotations

import os
import sys


def ranks_here() -> int:
    """Return how many ranks run beside this one, and itself: by the launcher, or by torch."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    if told.isdecimal():
        return max(1, int(told))
    torch = sys.modules.get("torch")
    if torch is None:
        return 1
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    # Those of other machines are among them: a rank has a GPU, where there are any.
    world = distributed.get_world_size()
    return max(1, min(world, torch.cuda.device_count() or world))
