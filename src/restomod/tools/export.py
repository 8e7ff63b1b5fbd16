"""`restomod export`: a run's model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

from restomod.model.hf import save_transformers
from restomod.tools.runs import load_model


def export_run(run: Path, out: Path) -> str:
    """Write the newest whole checkpoint of `run` to `out`; return how to load it, as text."""
    model = load_model(run)
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
