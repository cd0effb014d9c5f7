"""Cold first calls, whole and by pieces, alternating: each in a process and caches of its own.

    python3 benches/pieces/compare.py [--runs N] [--seconds S] [arguments of measure.py]

A JSON line for each run as it ends, then medians, spreads and the ratio. With `--seconds`
no run begins after that.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

MEASURE = pathlib.Path(__file__).with_name("measure.py")


def measured(how, arguments):
    done = subprocess.run(
        [sys.executable, str(MEASURE), how, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{how}: failed with {done.returncode}", flush=True)
        return None
    print(done.stdout.strip(), flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given, rest = parser.parse_known_args()
    begun = time.monotonic()
    calls = {"full": [], "pieces": []}
    for run in range(2 * given.runs):
        if time.monotonic() - begun > given.seconds:
            break
        how = ("full", "pieces")[run % 2]
        told = measured(how, rest)
        if told is not None:
            calls[how].append(told["first_call"])
    for how, took in calls.items():
        if took:
            print(
                f"{how}: median {statistics.median(took):.2f} s of {len(took)}, "
                f"{min(took):.2f} to {max(took):.2f}"
            )
    if all(calls.values()):
        ratio = statistics.median(calls["pieces"]) / statistics.median(calls["full"])
        print(f"pieces / full: {ratio:.3f}")


if __name__ == "__main__":
    main()
