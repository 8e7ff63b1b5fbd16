"""torch.compile of the model's parts: each layer as one graph, the embedding, and the head.

Layers of a kind share their compiled code: there are three kinds (the first layer has no norm
before its attention, the others attend globally or locally). Called by the trainer before anything
else wraps the model.
"""

import os
import shutil
import subprocess
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from restomod.config import ComputeConfig
from restomod.errors import UserError
from restomod.model.encoder import MaskedLM

RECOMPILE_LIMIT = 96
"""Shapes and kinds of layers for which one function is compiled before that counts as a mistake."""


def compiles(compute: ComputeConfig, device: str) -> bool:
    """Return whether the recipe's `compute.compile` means yes on this device."""
    return compute.compile == "always" or (compute.compile == "auto" and device == "cuda")


def check_compiler(device: str) -> None:
    """Raise UserError where torch.compile lacks the C++ compiler that it needs on a CPU."""
    if device == "cpu" and not _has_cpp_compiler():
        raise UserError(
            "compute.compile: torch.compile needs a C++ compiler on the CPU, and neither $CXX nor "
            "g++ runs here; install one, or set compute.compile=never"
        )


def compile_model(model: MaskedLM, device: str, cache_dir: Path) -> None:
    """Compile in place, when first called; names of parameters stay.

    Lengths are constants in the code: a batch of another length, such as another phase's, compiles
    anew. What the compiler makes is kept in `cache_dir`, where the next process finds it, unless
    TORCHINDUCTOR_CACHE_DIR names another folder.
    """
    # Imports of the compiler's modules set the variable to its default.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir.resolve() / "compiled")
    for layer in model.encoder.layers:
        layer.compile(fullgraph=True, dynamic=False, recompile_limit=RECOMPILE_LIMIT)
    model.encoder.embedding.compile(fullgraph=True, dynamic=False, recompile_limit=RECOMPILE_LIMIT)
    # On the CPU the head is spared the padding of its positions: their number varies.
    model.head.compile(fullgraph=True, dynamic=device == "cpu", recompile_limit=RECOMPILE_LIMIT)


def _has_cpp_compiler() -> bool:
    compiler = os.environ.get("CXX", "g++")
    return (
        shutil.which(compiler) is not None
        and subprocess.run([compiler, "--version"], capture_output=True, check=False).returncode
        == 0
    )
