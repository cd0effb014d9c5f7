"""`make fuzz`: runs each target for a while, keeps what it learns and what does harm.

Invariant: what was built is run once for each target, and a target that did harm, or that
never ran, is an exit code other than 0, with the input's path and how to try it again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Of the process, in MiB: what one input may take.
MEMORY = 1024
# Of one input, in seconds.
SLOWEST = 10
# Bytes of an input; the others have libFuzzer's own bound, 4 KiB, or their longest seed.
LONGEST = {"exported": 64 << 10, "graph": 32 << 10, "cubin": 16 << 10}


def targets() -> list[str]:
    """The names of all targets."""
    return sorted(path.stem for path in (HERE / "fuzz_targets").glob("*.rs"))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default: 60)")
    parser.add_argument("--binaries", type=Path, required=True, help="where cargo fuzz built")
    parser.add_argument("--folder", type=Path, required=True, help="for inputs that are kept")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    parser.add_argument("targets", nargs="*", help=f"of {' '.join(targets())}")
    given = parser.parse_args()
    unknown = set(given.targets) - set(targets())
    if unknown:
        parser.error(f"there is no target {' '.join(sorted(unknown))}; see --help")
    return given


def run(target: str, given: argparse.Namespace) -> dict[str, object]:
    """One target; its row of the table."""
    corpus, harm = given.folder / "corpus" / target, given.folder / "harm" / target
    for folder in (corpus, harm):
        folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(given.binaries / target),
        f"-max_total_time={given.seconds}",
        f"-timeout={SLOWEST}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={harm}/",
        "-print_final_stats=1",
        *([f"-max_len={LONGEST[target]}"] if target in LONGEST else []),
        str(corpus),
        str(HERE / "seeds" / target),
    ]
    before = os.times()
    began = time.monotonic()
    with (given.folder / f"{target}.log").open("w+b") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
        log.seek(0)
        text = log.read().decode(errors="replace")
    after = os.times()
    last = re.findall(r"cov: (\d+)", text)
    runs = re.search(r"stat::number_of_executed_units: (\d+)", text)
    peak = re.search(r"stat::peak_rss_mb:\s+(\d+)", text)
    found = re.search(r"Test unit written to (\S+)", text)
    return {
        "target": target,
        "exit": done.returncode,
        "runs": int(runs[1]) if runs else 0,
        "edges": int(last[-1]) if last else 0,
        "peak_mib": int(peak[1]) if peak else None,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system,
            1,
        ),
        "harm": found[1] if found else None,
    }


def main() -> int:
    """Runs the targets, and returns the exit code."""
    given = arguments()
    rows = []
    for target in given.targets or targets():
        print(f"fuzz: {target}, {given.seconds} s", file=sys.stderr, flush=True)
        rows.append(run(target, given))
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        form = "{target:10} {runs:>10} {edges:>7} {peak_mib!s:>6} {seconds:>8} {exit:>5}"
        heads = ["target", "runs", "edges", "peak_mib", "seconds", "exit"]
        print(form.format(**{name: name for name in heads}))
        for row in rows:
            print(form.format(**row))
        hours = sum(float(str(row["cpu_seconds"])) for row in rows) / 3600
        print(f"{hours:.2f} CPU-hours; a peak is in MiB, of at most {MEMORY}")
    failed = [row for row in rows if row["exit"] != 0 or row["runs"] == 0]
    for row in failed:
        binary, log = given.binaries / row["target"], given.folder / f"{row['target']}.log"
        again = f"{binary} {row['harm']}" if row["harm"] else f"see {log}"
        print(f"fuzz: {row['target']} ended with {row['exit']}: {again}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
