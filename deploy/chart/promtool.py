"""Prometheus' own judgement of the metrics and the alerts, where promtool is installed.

Debian has it in the package `prometheus`; KILN_PROMTOOL names one that is elsewhere.
Invariant: what promtool says is a problem is one; without it, that is said and nothing
is judged.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path

import metric_names

# Bounds, not expectations.
READY = 60.0
STOP = 30.0


def find() -> str | None:
    """Return promtool, if it is there."""
    return os.environ.get("KILN_PROMTOOL") or shutil.which("promtool")


def rules(promtool: str, chart: Path) -> list[str]:
    """What is wrong with the alerts, or with when they fire."""
    found = _said(promtool, "check", "rules", str(chart / "files/alerts.yaml"))
    return found + _said(promtool, "test", "rules", str(Path(__file__).parent / "alerts_test.yaml"))


def metrics(promtool: str, kiln: Path, root: Path) -> list[str]:
    """What is wrong with the page of a node that has answered a few calls."""
    page = _page(kiln)
    known = metric_names.exported(root)
    names = {line.split("{")[0].split(" ")[0] for line in page.splitlines() if line[:1] != "#"}
    unknown = sorted(name for name in names if name and name not in known)
    found = [f"a node exports {name}, which deploy/METRICS.md does not have" for name in unknown]
    return found + _said(promtool, "check", "metrics", given=page)


def _said(*command: str, given: str = "") -> list[str]:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode == 0 and not done.stderr.strip():
        return []
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def _page(kiln: Path) -> str:
    """Start a node, ask it a few things, and return its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        listen = [f"--{port}-listen=127.0.0.1:0" for port in ("grpc", "http", "transfer", "resp")]
        node = subprocess.Popen(
            [kiln, "serve", "--data-dir", folder, *listen, "--log-level=warn"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert node.stdout is not None
            ready = json.loads(node.stdout.readline())
            endpoint = f"http://{ready['grpc']}"
            for asked in ("status", "ls", "metrics"):
                subprocess.run(
                    [kiln, asked, "--endpoint", endpoint],
                    stdout=subprocess.DEVNULL,
                    check=True,
                    timeout=READY,
                )
            with urllib.request.urlopen(f"http://{ready['http']}/metrics", timeout=READY) as page:
                return page.read().decode()
        finally:
            node.send_signal(signal.SIGTERM)
            node.wait(STOP)
