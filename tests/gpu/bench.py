"""What the benches of first calls share: a `kiln dev`, a scratch folder, a table at the end.

Invariant: the nodes are stopped and the table of what there is by then is printed, however
a bench ends; it exits 1 where it noted a failure or printed nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from nodes import Nodes


class Bench:
    """The nodes, the scratch folder, and what the processes printed."""

    # Of its `kiln dev`.
    nodes = 2

    def __init__(self, kiln: Path, folder: Path, args: argparse.Namespace) -> None:
        self.kiln, self.folder, self.args = kiln, folder, args
        self.rows: list[tuple] = []
        self.failed = False
        self.dev = Nodes(kiln, folder, self.nodes)

    def run(self) -> None:
        """Measure."""
        raise NotImplementedError

    def table(self) -> None:
        """Print what was measured; note what is not as it should be."""
        raise NotImplementedError


def measured(kind: type[Bench], args: argparse.Namespace) -> int:
    """Run a bench in a folder of its own; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        bench = kind(args.kiln.resolve(), Path(folder), args)
        try:
            bench.run()
        finally:
            bench.dev.stop()
            if bench.rows:
                bench.table()
        return int(bench.failed or not bench.rows)
