"""Checkov on what was rendered.

Invariant: a rule that does not fit has its reason here; a rule that is skipped
and would fail nowhere is taken off the list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rendering import Rendering

# Rule: why it is not ours to keep.
SKIPPED: dict[str, str] = {
    "CKV_K8S_21": "the release has a namespace, which helm adds when it installs",
    "CKV_K8S_11": "compiles come in bursts: a limit on CPU would slow them for nothing",
    "CKV_K8S_43": "whoever installs decides: image.digest is a value",
    "CKV_K8S_15": "whoever installs decides: image.pullPolicy; the default tag is a version",
    "CKV_K8S_8": "the pods of `helm test` run once, and nobody probes them",
    "CKV_K8S_9": "the pods of `helm test` run once, and nobody probes them",
    "CKV_K8S_25": "`folders` needs CHOWN for the host's folders, as judgements.py bounds it",
    "CKV_K8S_19": "agents.network host is asked for by name, for jobs in the machines' network",
    "CKV_K8S_26": "agents.network hostPort is asked for by name",
    "CKV_K8S_35": "kiln reads S3's keys as AWS_*, as every S3 client does; a role needs no secret",
}

OPTIONS = ("--framework=kubernetes", "--output=json", "--skip-download", "--compact", "--quiet")


class Checkov:
    """A run in the background: it takes its time to start."""

    def __init__(self, renderings: Iterable[Rendering]) -> None:
        """Starts it."""
        self._folder = tempfile.TemporaryDirectory()
        for rendering in renderings:
            file = Path(self._folder.name) / f"{rendering.values}.yaml"
            file.write_text(rendering.text)
        program = "import sys; from checkov.main import Checkov; sys.exit(Checkov().run())"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "-d", self._folder.name, *OPTIONS],
            env={**os.environ, "LOG_LEVEL": "ERROR", "BC_SKIP_MAPPING": "TRUE"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def problems(self) -> list[str]:
        """What it found, less what does not fit."""
        with self._folder:
            stdout, stderr = self._process.communicate()
        try:
            report: dict[str, Any] = json.loads(stdout)
        except ValueError:
            return [f"checkov gave no report: {stderr[-2000:]}"]
        failed = report["results"]["failed_checks"]
        found = [
            f"checkov {check['check_id']} ({check['check_name']}): "
            f"{Path(check['file_path']).stem}: {check['resource']}"
            for check in failed
            if check["check_id"] not in SKIPPED
        ]
        if not report["summary"]["passed"] or report["summary"]["parsing_errors"]:
            found.append(f"checkov read nothing: {report['summary']}")
        idle = set(SKIPPED) - {check["check_id"] for check in failed}
        found += [f"checkov {rule} is skipped but fails nowhere" for rule in sorted(idle)]
        return found
