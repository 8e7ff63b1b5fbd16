"""`restomod export --onnx`: an exported folder's model as an ONNX graph, checked with onnxruntime.

In: a folder that `save_transformers` wrote, and the model in it. Out: onnx/model.onnx beside it,
which takes padded batches of any size and length and gives the hidden states and the logits. The
graph is of transformers' ModernBERT, since packed documents need operators of our own.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restomod.errors import UserError
from restomod.model.encoder import MaskedLM

GRAPH = "onnx/model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("last_hidden_state", "logits")
SINGLE_FILE_BYTES = 1_900_000_000
"""Larger graphs keep their weights in a file of their own: protobuf ends at 2 GB."""
TOLERANCE = 1e-4


class _Graph(nn.Module):
    """transformers' masked-language model with its hidden states as an output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[N, S] and [N, S] -> [N, S, D] and [N, S, V]."""
        hidden = self.model.model(input_ids, attention_mask).last_hidden_state
        return hidden, self.model.decoder(self.model.head(hidden))


def export_onnx(folder: Path, model: MaskedLM) -> str:
    """Write the graph; return where it is and how far it is from `model`, as text.

    Raises UserError if a library that it needs is missing, RuntimeError if the graph's numbers are
    not the model's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--onnx needs {error.name}, which is not installed: pip install 'restomod[judge]'"
        ) from None
    from transformers import AutoModelForMaskedLM

    theirs = AutoModelForMaskedLM.from_pretrained(
        folder, attn_implementation="sdpa", reference_compile=False, dtype=torch.float32
    )
    path = folder / GRAPH
    path.parent.mkdir(exist_ok=True)
    size = sum(weight.nbytes for weight in theirs.state_dict().values())
    sequence = torch.export.Dim("sequence", min=2, max=model.config.max_sequence_length)
    axes = {0: torch.export.Dim("batch"), 1: sequence}
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about itself
        torch.onnx.export(
            _Graph(theirs).eval(),
            (ids, torch.ones_like(ids)),
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=(axes, axes),
            dynamo=True,
            external_data=size > SINGLE_FILE_BYTES,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path))
    difference, largest = compare(session, model)
    if not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(f"{path}: logits up to {largest:.3g} differ by {difference:.3g}")
    return f"ONNX graph: {path}; its logits differ from the model's by {difference:.1e} at most\n"


def compare(session: Any, model: MaskedLM) -> tuple[float, float]:
    """Return the largest difference of the graph's logits on padded batches from the model's on
    the same documents, and the largest logit."""
    generator = torch.Generator().manual_seed(0)
    limit = min(model.config.max_sequence_length, 4 * model.config.local_window)
    difference = largest = 0.0
    for lengths in ([limit, 3], [model.config.local_window // 2 + 3, 2, 5]):
        ids = torch.full((len(lengths), max(lengths)), model.config.pad_id)
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        shape = (sum(lengths),)
        packed = torch.randint(model.config.vocab_size, shape, generator=generator)
        ids[mask] = packed
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
        (logits,) = session.run(["logits"], feed)
        bounds = torch.tensor([0, *itertools.accumulate(lengths)])
        with torch.no_grad():
            ours = model.logits(packed, bounds).numpy()
        difference = max(difference, float(np.abs(logits[mask.numpy()] - ours).max()))
        largest = max(largest, float(np.abs(ours).max()))
    return difference, largest
