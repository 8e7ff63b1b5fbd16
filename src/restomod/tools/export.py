"""`restomod export`: a run's model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

from restomod.model.hf import save_transformers
from restomod.tools.runs import load_model, run_of
from restomod.train.manifest import MANIFEST, checkpoint_folder


def export_run(path: Path, out: Path | None = None, step: int | None = None) -> str:
    """Write the newest whole checkpoint of a run, the one at `step`, or the checkpoint or average
    that `path` is, to `out`; return how to load it, as text.

    Reads weights only, whatever number of ranks wrote them: in memory is one model.
    """
    if step is not None:
        path = checkpoint_folder(path, step)
    model = load_model(path)
    run = run_of(path)
    if out is None:  # not in a checkpoint's own folder, which goes when it is too old
        out = run / (f"exported-{path.name}" if (path / MANIFEST).is_file() else "exported")
    tokenizer = run / "tokenizer"
    save_transformers(model, out, tokenizer if tokenizer.is_dir() else None)
    return how_to_load(out)


def how_to_load(out: Path) -> str:
    """Return where the exported model is, and the code that loads it."""
    return (
        f"exported model: {out}; load it with\n\n"
        "    from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        f'    model, tokenizer = AutoModelForMaskedLM.from_pretrained("{out}"), '
        f'AutoTokenizer.from_pretrained("{out}")\n'
    )
