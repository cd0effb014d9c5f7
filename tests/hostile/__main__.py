"""`make hostile`: one node under those who mean it no good, while others ask it.

    make hostile HOSTILE='--idle 10000 --json'

A table of what each case did, what the others saw meanwhile at each door, and the most memory
that the node's process had. Invariant: the exit code is 0 only where others were served in every
case, and the node's memory stayed within what it was told, and what it took at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from publishers import Publishers
from strangers import Doors, WrongError, declared, deep, msets, silent, slow

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# What the node is told: the bytes of its memory tier, and of what is on its way. What is published
# is more than half of both together: it arrives alone, and leaves readers something.
MEMORY, IN_FLIGHT = 512, 1024
# What connections and buffers may take besides, in MiB.
BESIDES = 256
# Of the questions of others in a case, how many may fail: where all places are taken, one that
# comes late takes the place of one whose time is over, and may have to ask twice.
MAY_FAIL = 0.05


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--kiln", type=Path, required=True, help="the program")
    parser.add_argument("--seconds", type=float, default=30, help="of a case without an end")
    parser.add_argument("--idle", type=int, default=10_000, help="silent connections")
    parser.add_argument("--slow", type=int, default=600, help="that say a byte a second")
    parser.add_argument("--msets", type=int, default=16, help="MSETs of 32,000 pairs at once")
    parser.add_argument("--publishers", type=int, default=64, help="publishers at once")
    parser.add_argument("--size", type=int, default=1024, help="MiB that each publishes")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each case")
    parser.add_argument("cases", nargs="*", help="some of the cases, by name")
    return parser.parse_args()


class Node:
    """One node, and those who behave."""

    def __init__(self, kiln: Path, folder: Path) -> None:
        """Start both."""
        told = (
            f"memory.bytes={MEMORY}MiB",
            f"memory.in_flight={IN_FLIGHT}MiB",
            "disk.bytes=2GiB",
        )
        command = [str(kiln), "dev", "--json", "--nodes", "1", "--dir", str(folder / "dev")]
        for setting in told:
            command += ["--set", setting]
        with (folder / "log").open("w") as log:
            self._dev = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._dev.stdout is not None
        line = self._dev.stdout.readline()
        if not line:
            sys.exit(f"no node:\n{(folder / 'log').read_text()[-2000:]}")
        [node] = json.loads(line)["nodes"]
        self.doors = Doors(node["grpc"], node["http"], node["resp"])
        self._pid = node["pid"]
        self._others = subprocess.Popen(
            [sys.executable, "-B", str(HERE / "others.py"), *vars(self.doors).values()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seen(self) -> dict[str, Any]:
        """What the others saw since the last time."""
        assert self._others.stdin is not None and self._others.stdout is not None
        self._others.stdin.write("\n")
        self._others.stdin.flush()
        return json.loads(self._others.stdout.readline())

    def peak(self) -> int:
        """The most memory that its process had, in MiB, since the last time."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        # 5: the peak begins anew (proc(5)).
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        return int(line.split()[1]) >> 10

    def end(self) -> None:
        """End both, in that order."""
        assert self._others.stdin is not None
        self._others.stdin.close()
        self._others.wait(30)
        self._dev.terminate()
        self._dev.wait(60)


def cases(given: argparse.Namespace, doors: Doors) -> dict[str, Callable[[], str]]:
    """Each case by its name."""
    made: list[Publishers] = []

    def publishers() -> Publishers:
        if not made:
            made.append(Publishers(doors.grpc, given.publishers, given.size * MIB))
        return made[0]

    def plain(case: Callable[..., Any], count: int) -> Callable[[], str]:
        return lambda: asyncio.run(case(doors, count, given.seconds))

    return {
        "at rest": lambda: time.sleep(given.seconds) or "nobody else",
        "silent": plain(silent, given.idle),
        "slow": plain(slow, given.slow),
        "declared": plain(declared, 64),
        "deep": plain(deep, 64),
        "msets": plain(msets, given.msets),
        "stalled": lambda: publishers().stall(given.seconds),
        "publishers": lambda: publishers().publish(600),
    }


def main() -> int:
    """Each case, one after the other."""
    given = arguments()
    # So that the node ends with this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    wrong = []
    with tempfile.TemporaryDirectory(prefix="kiln-load-") as name:
        node = Node(given.kiln, Path(name))
        try:
            rest: int | None = None
            for case, run in cases(given, node.doors).items():
                if given.cases and case not in (*given.cases, "at rest"):
                    continue
                if case in ("stalled", "publishers"):
                    print(f"{case}: hashing", file=sys.stderr)
                node.seen(), node.peak()
                began = time.monotonic()
                try:
                    done = run()
                except WrongError as why:
                    done = str(why)
                    wrong.append(f"{case}: {done}")
                took, peak = round(time.monotonic() - began, 1), node.peak()
                rest = peak if rest is None else rest
                row: dict[str, Any] = {"case": case, "seconds": took, "done": done}
                row |= {"peak_mib": peak, "others": node.seen()}
                tell(row, as_json=given.json)
                wrong += judged(row, rest + MEMORY + IN_FLIGHT + BESIDES)
        finally:
            node.end()
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return 1 if wrong else 0


def judged(row: dict[str, Any], most: int) -> list[str]:
    """What does not hold in a case."""
    wrong = []
    if row["peak_mib"] > most:
        wrong.append(f"{row['case']}: {row['peak_mib']} MiB, and {most} at most")
    for door, seen in row["others"].items():
        asked = seen["answers"] + seen["failed"]
        if not seen["answers"] or seen["failed"] > asked * MAY_FAIL:
            why = "; ".join(seen["why"])
            wrong.append(f"{row['case']}: {door} failed {seen['failed']} of {asked}: {why}")
    return wrong


def tell(row: dict[str, Any], *, as_json: bool) -> None:
    """One case, for a person or a program."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    print(f"{row['case']:<11}{row['seconds']:>7.1f} s {row['peak_mib']:>5} MiB  {row['done']}")
    for door, seen in row["others"].items():
        times = f"p50 {seen['p50_ms']}, p99 {seen['p99_ms']}, most {seen['most_ms']} ms"
        print(
            f"    {door}: {seen['answers']} answers, {seen['failed']} failed; {times}", flush=True
        )


if __name__ == "__main__":
    sys.exit(main())
