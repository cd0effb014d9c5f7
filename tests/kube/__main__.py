"""The chart on a real Kubernetes of two nodes, while clients ask without pause.

    python3 tests/kube --script KUBE --kiln target/debug/kiln --next other/kiln

Runs each phase, prints what it came to and what the clients saw, and exits with 1
where a phase fails. --only runs some phases after those that they need; --keep
leaves the cluster up, and a later run finds it. Needs root; see `make test-kube`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from kube.bench import RELEASE, Bench
from kube.image import REPOSITORY, Images
from kube.machine import Failed, Kube
from kube.phases import PHASES as PLAIN
from kube.trust import BEFORE, SECURE

ROOT = Path(__file__).resolve().parents[2]
PHASES = {**PLAIN, **SECURE}
# A bench of two nodes on few cores: little is asked for, and limits are kept.
SMALL = {
    "requests": {"cpu": "50m", "memory": "64Mi"},
    "limits": {"memory": "2Gi"},
}


def values(tag: str, nvrtc: str, folder: Path) -> dict[str, object]:
    """Of the chart: small nodes, L3 in a folder, NVRTC from this machine."""
    l3 = folder / "l3"
    l3.mkdir(parents=True, exist_ok=True)
    l3.chmod(0o777)
    return {
        "image": {"repository": REPOSITORY, "tag": tag, "pullPolicy": "Never"},
        "config": {
            "memory": {"bytes": "128MiB"},
            "disk": {"bytes": "1GiB"},
            "compile": {"concurrency": 1},
        },
        "object": {"volume": {"hostPath": {"path": str(l3)}}},
        "nvrtc": {"volume": {"hostPath": {"path": nvrtc}}},
        "voters": {"storage": {"size": "1Gi"}, "resources": SMALL},
        "agents": {
            "resources": SMALL,
            "maxUnavailable": 1,
        },
    }


def run(bench: Bench, names: list[str]) -> bool:
    """All phases, each with its line; whether all held."""
    well = True
    for name in names:
        begin = time.monotonic()
        try:
            told = PHASES[name](bench)
            seen = bench.seen()
            bench.judge(seen)
            mark = "ok  "
        except (Failed, RuntimeError) as error:
            told, seen, mark, well = str(error), None, "FAIL", False
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            if not recovered(bench):
                return False
        print(f"{mark} {name:14} {time.monotonic() - begin:6.1f} s  {told}", flush=True)
        for kind, what in zip(("reads", "writes"), seen or ()):
            print(f"{'':20}{kind:7} {what.text()}", flush=True)
            for error in what.errors[:2]:
                print(f"{'':28}{error}", flush=True)
    return well


def recovered(bench: Bench) -> bool:
    """Whether the next phase can begin where this one should have left off."""
    try:
        bench.settled()
        bench.seen()
    except (Failed, RuntimeError):
        return False
    return True


def main() -> int:
    """From nothing to nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--script", required=True, type=Path, help="the kube script")
    parser.add_argument("--kiln", required=True, type=Path, help="the program to install")
    parser.add_argument("--next", required=True, type=Path, help="the one to upgrade to")
    parser.add_argument("--folder", required=True, type=Path, help="for images and scratch")
    parser.add_argument("--only", action="append", choices=list(PHASES), help="may be repeated")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    nvrtc = os.environ["KILN_NVRTC_DIR"]
    images = Images(ROOT, options.folder / "images")
    scratch = options.folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    # As it is now: phases upgrade to the same chart that was installed.
    shutil.copytree(ROOT / "helm/kiln", scratch / "chart")
    kube = Kube(options.script, scratch / "chart")
    tags = [os.popen(f"{p} --version").read().split()[-1] for p in (options.kiln, options.next)]  # noqa: S605
    archives = [images.build(p, t) for p, t in zip((options.kiln, options.next), tags)]
    bench = Bench(kube, options.kiln.resolve(), scratch, {}, tags)
    bench.values = values(tags[0], nvrtc, scratch)
    names = list(PHASES)
    if options.only:
        needed = {n for name in options.only for n in [*BEFORE.get(name, []), name]}
        names = [n for n in PHASES if n in needed | {"install", "share"}]
    well = False
    try:
        begin = time.monotonic()
        if not (options.keep and kube.is_up()):
            kube.down()
            kube.up()
        else:
            bench.uninstall(volumes=True)
        for archive in archives:
            kube("load", str(archive))
        sizes = ", ".join(f"{a.name} {a.stat().st_size / 1e6:.0f} MB" for a in archives)
        print(
            f"     up in {time.monotonic() - begin:.1f} s; release {RELEASE}, {sizes}", flush=True
        )
        well = run(bench, names)
    finally:
        bench.stop_asking()
        bench.bucket.stop()
        if not options.keep:
            kube.down()
            shutil.rmtree(scratch, ignore_errors=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
