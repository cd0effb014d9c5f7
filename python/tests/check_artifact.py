"""Loads an artifact of the block and compares it with golden data: FOLDER GOLDEN ROWS."""

import importlib
import importlib.util
import sys
from pathlib import Path

import torch

# Isolated mode leaves this folder out.
sys.path.insert(0, str(Path(__file__).resolve().parent))
read_golden = importlib.import_module("golden").read_golden

root = Path(__file__).resolve().parent.parent
source = root / "kiln_torch" / "worker" / "artifact.py"
spec = importlib.util.spec_from_file_location("artifact", source)
assert spec is not None
assert spec.loader is not None
artifact = importlib.util.module_from_spec(spec)
spec.loader.exec_module(artifact)


def main() -> None:
    folder, golden, rows = Path(sys.argv[1]), read_golden(Path(sys.argv[2])), int(sys.argv[3])
    loaded = artifact.load_artifact(folder)
    weights = [golden[f"in{i}"] for i in range(len(loaded.inputs) - 1)]
    x = golden[f"in{len(weights)}"][:1].repeat(rows, 1, 1)
    (out,) = loaded.bind(weights)(x)
    torch.testing.assert_close(out, golden["out0"][:1].repeat(rows, 1, 1), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
