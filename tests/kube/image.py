"""Images without a registry: buildah on a Debian base, as one archive.

A base image is imported once from a folder that debootstrap made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BASE = "localhost/kiln-base:bookworm"
REPOSITORY = "localhost/kiln"


class Images:
    """Builds below one folder, and leaves nothing elsewhere."""

    def __init__(self, root: Path, folder: Path) -> None:
        """`root`: the checkout."""
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)
        storage = folder / "storage.conf"
        roots = f'runroot="{folder}/run"\ngraphroot="{folder}/storage"\n'
        storage.write_text(f'[storage]\ndriver="vfs"\n{roots}')
        self.environment = dict(
            os.environ, BUILDAH_ISOLATION="chroot", CONTAINERS_STORAGE_CONF=str(storage)
        )

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[:3])}: {done.stderr[-2000:]}")
        return done.stdout

    def base(self) -> str:
        """Debian with what the image takes from it."""
        if BASE in self._run("buildah", "images", "--format", "{{.Name}}:{{.Tag}}"):
            return BASE
        tree = self.folder / "base"
        if not (tree / "etc/ssl/certs/ca-certificates.crt").exists():
            shutil.rmtree(tree, ignore_errors=True)
            packages = "--include=ca-certificates"
            self._run("debootstrap", "--variant=minbase", packages, "bookworm", str(tree))
        container = self._run("buildah", "from", "scratch").strip()
        self._run("buildah", "copy", container, str(tree), "/")
        self._run("buildah", "commit", "--rm", container, BASE)
        return BASE

    def build(self, program: Path, tag: str) -> Path:
        """An archive of the image with a program that is compiled already."""
        archive = self.folder / f"kiln-{tag}.tar"
        newest = max(program.stat().st_mtime, (self.root / "deploy/Dockerfile").stat().st_mtime)
        if archive.exists() and archive.stat().st_mtime > newest:
            return archive
        base = self.base()
        context = self.folder / "context"
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(self.root / "deploy", context / "deploy")
        (context / "image").mkdir()
        self._run("strip", "-o", str(context / "image/kiln"), str(program))
        arguments = {"BUILD_IMAGE": base, "BASE_IMAGE": base, "PROGRAM": "given", "VERSION": tag}
        flags = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        flags += ["--pull-never", "--format=docker", "--layers=false"]
        name = f"{REPOSITORY}:{tag}"
        file = str(context / "deploy/Dockerfile")
        self._run("buildah", "bud", *flags, "-f", file, "-t", name, str(context))
        archive.unlink(missing_ok=True)
        self._run("buildah", "push", name, f"docker-archive:{archive}:{name}")
        return archive
