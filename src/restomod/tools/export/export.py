"""`restomod export`: a run's model as a folder that transformers loads.

In: a run, a checkpoint, an average or a folder. Out: the folder, with its card. `commands.py` calls
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from restomod.model.hf import save_transformers
from restomod.tools.export.card import write_card
from restomod.tools.export.card_facts import gather
from restomod.tools.runs import load_model, run_of
from restomod.train.checkpoints.manifest import MANIFEST, checkpoint_folder


def export_run(
    path: Path,
    out: Path | None = None,
    step: int | None = None,
    onnx: bool = False,
    overrides: Sequence[str] = (),
) -> str:
    """Write the newest whole checkpoint of a run, the one at `step`, or the checkpoint, average or
    transformers folder that `path` is, to `out`, with a model card and, if asked, an ONNX graph;
    return how to load it, as text. `overrides` are keys of the card.

    Reads weights only, whatever number of ranks wrote them: in memory is one model.
    """
    if step is not None:
        path = checkpoint_folder(path, step)
    model = load_model(path)
    run = run_of(path)
    if out is None:  # not in a checkpoint's own folder, which goes when it is too old
        out = run / (f"exported-{path.name}" if (path / MANIFEST).is_file() else "exported")
    folders = (run / "tokenizer", path)
    tokenizer = next((f for f in folders if (f / "tokenizer.json").is_file()), None)
    facts = gather(model, path, run, list(overrides))
    save_transformers(model, out, tokenizer)
    done = how_to_load(out) + write_card(facts, out)
    if onnx:
        from restomod.tools.export.onnx_graph import export_onnx

        done += export_onnx(out, model)
    return done


def how_to_load(out: Path) -> str:
    """Return where the exported model is, and the code that loads it."""
    return (
        f"exported model: {out}; load it with\n\n"
        "    from transformers import AutoModelForMaskedLM, AutoTokenizer\n"
        f'    model, tokenizer = AutoModelForMaskedLM.from_pretrained("{out}"), '
        f'AutoTokenizer.from_pretrained("{out}")\n'
    )
