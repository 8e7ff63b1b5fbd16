"""Everything that is measured on a GPU, with one command; logs go to benchmarks/results.

python benchmarks/gpu                   # kernels, then training steps of base and large
python benchmarks/gpu --parts kernels
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
STEP = [str(HERE.parent / "encoder_step.py"), "--device", "cuda", "--sizes", "150m,395m"]
PARTS = {
    "kernels": [str(HERE / "kernels.py")],
    # 98,304 tokens of full documents, about 25,000 of short ones: transformers' dense logits fit.
    "step": [*STEP, "--batch", "6", "--contenders", "ours,compiled,padded,sparse,sorted"],
    # As many tokens of short documents as a micro-batch of the base recipe has.
    "packed": [*STEP, "--batch", "24", "--kinds", "short", "--contenders", "ours,compiled"],
}


def main() -> int:
    """Run the parts one after the other; return 0, 1 if one failed, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no CUDA device here: nothing to measure", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    failed = 0
    for part in arguments.parts.split(","):
        out = arguments.out / f"{name}-{part}.txt"
        failed |= subprocess.run([sys.executable, *PARTS[part], "--out", str(out)]).returncode
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
