"""Loads a stitched whole by ``kiln_torch.load`` and compares: FOLDER GOLDEN.

The inputs are the golden file's by position, as the whole takes them; its outputs were
computed by eager torch in float64.
"""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import kiln_torch  # noqa: E402
import torch  # noqa: E402
from check_rebuilt import LIMITS, error, read_golden  # noqa: E402
from kiln_torch.launching import DTYPES  # noqa: E402


def main() -> None:
    """Run it once."""
    folder, golden = Path(sys.argv[1]), read_golden(Path(sys.argv[2]))
    loaded: Any = kiln_torch.load(folder)
    inputs = [
        golden[f"in{at}"].to(DTYPES[loaded.plan.inputs[at].dtype]) for at in loaded.plan.given
    ]
    with torch.no_grad():
        outputs = loaded(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    worst = max(error(output, golden[f"out{at}"]) for at, output in enumerate(outputs))
    limit = LIMITS["f32"]
    assert worst <= limit, f"relative error {worst:.1e} over {limit}"
    print(f"{len(outputs)} outputs, worst relative error {worst:.1e}")


if __name__ == "__main__":
    main()
