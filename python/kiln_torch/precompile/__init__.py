"""Without Dynamo: what ``torch.compile`` traced, shared through the cluster.

With KILN_PRECOMPILE=1 a second process of a program, on any node, installs the
traced code, guards and kernels that the first one published, and traces nothing.

Invariant: a package is unpickled only after a trusted node's signature and its
digest were checked and after every function that was traced into it proved to be
the same code here. What this process cannot vouch for is traced again, and counted
as ``precompile.REASON`` in ``kiln_torch.stats()``. No exception of this package
reaches a program.

Files, each importing only from those before it::

    code        digests of code, functions and classes; finding a function's code
    described   what an object is, in words that mean the same in every process
    dropped     the guards that mean nothing elsewhere, checked by what they guard
    noted       what was seen while guards were built
    facts       the code that was traced, and whether it is the same here
    graphs      what a traced graph calls, and where
    key         under which name a program's packages are listed
    store       the list, and the packages, in the cluster
    snapshot    a package as it was at one moment, and its bytes
    package     torch's package, with the above written down
    guards      torch's guard manager, so that no guard is lost
    names       the global names that a package brings along
    publishing  packages sent in the background
    aot         whole functions of ``aot_compile``
    loading     a package of the cluster, installed
    beginning   what happens when torch.compile is called
    hooks       where these take hold of torch
"""

from __future__ import annotations

from .hooks import install

__all__ = ["install"]
