"""A real S3 that the pods reach: SeaweedFS beside the control plane.

It is the program `weed`, named by KILN_WEED, as for the other tests.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from kube.machine import Kube, wait_for

# The control plane's own address; see the script.
HOST = "10.231.8.10"
S3, FILER = 8333, 8888
NAME = "kiln"
KEYS = {"AWS_ACCESS_KEY_ID": "kiln", "AWS_SECRET_ACCESS_KEY": "kiln-secret"}


class Bucket:
    """One bucket on one server."""

    def __init__(self, kube: Kube, folder: Path) -> None:
        """Nothing runs yet."""
        self.kube, self.folder = kube, folder
        self.server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Starts the server, makes the bucket, and the secret that the chart reads."""
        if self.server:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        credentials = [
            {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
        ]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "kiln", "actions": actions, "credentials": credentials}
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        options = [f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={self.folder}", "-filer", "-s3"]
        options += [f"-s3.port={S3}", f"-s3.config={config}", f"-filer.port={FILER}"]
        options += ["-s3.port.iceberg=0", "-volume.max=20", "-master.volumeSizeLimitMB=256"]
        log = (self.folder / "weed.log").open("w")
        command = (os.environ["KILN_WEED"], "server", *options)
        self.server = self.kube.popen(*command, stdout=log, stderr=subprocess.STDOUT)
        wait_for("the S3 server", lambda: self._curl(f"http://{HOST}:{S3}/healthz") is not None)
        wait_for("its files", lambda: self._curl(f"http://{HOST}:{FILER}/") is not None)
        self._curl("-X", "POST", f"http://{HOST}:{FILER}/buckets/{NAME}/")
        data = {name: base64.b64encode(value.encode()).decode() for name, value in KEYS.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}}
        self.kube.apply({**secret, "data": data})

    def _curl(self, *what: str) -> str:
        return self.kube.text("run", "curl", "-sf", "-m", "5", *what)

    def values(self) -> dict[str, Any]:
        """For the chart."""
        url, endpoint = f"s3://{NAME}/l3", f"http://{HOST}:{S3}"
        return {"url": url, "endpoint": endpoint, "existingSecret": "bucket", "volume": None}

    def copy(self, folder: Path) -> int:
        """Puts the files of a folder tier where the bucket tier looks for them."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            to = f"http://{HOST}:{FILER}/buckets/{NAME}/l3/{path.relative_to(folder)}"
            self._curl("-T", str(path), to)
        return len(files)

    def objects(self) -> list[str]:
        """Names of all objects."""
        found: list[str] = []
        folders = [f"/buckets/{NAME}/"]
        while folders:
            folder = folders.pop()
            listed = self.kube.text(
                *("run", "curl", "-sf", "-m", "5", "-H", "Accept: application/json"),
                f"http://{HOST}:{FILER}{folder}?limit=10000",
            )
            for entry in json.loads(listed).get("Entries") or ():
                is_folder = entry["Mode"] & (1 << 31)
                folders += [entry["FullPath"] + "/"] if is_folder else []
                found += [] if is_folder else [entry["FullPath"]]
        return found

    def stop(self) -> None:
        """Ends the server."""
        if self.server:
            # The script waits for what it started, and does not pass a signal on.
            os.killpg(self.server.pid, signal.SIGTERM)
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server = None
