"""A node's Inductor worker, and the loader of what it makes.

A node sends these modules to an interpreter that has torch (see ``bootstrap``), and
speaks to it through stdin and stdout (see ``proto/kiln/v1/worker.proto``). They need
torch and the standard library, nothing else.

Invariants: one process compiles one program, in folders that the node gave it
and removes; nothing that came with a request is unpickled or evaluated, and no
weight is read: parameters are inputs of the artifact.

To load an artifact elsewhere: ``kiln_torch.worker.load_artifact(folder)``.
"""

from .artifact import Loaded, load_artifact

__all__ = ["Loaded", "load_artifact"]
