"""Runs in an environment with transformers 5: `transformers_5.py MODE FOLDER`.

`read` loads FOLDER as a user would, stores the logits of its documents.safetensors in its
logits.safetensors, and saves the model to its subfolder `again`. `make` writes a small random model
to FOLDER, in transformers 5's own words.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, ModernBertConfig, ModernBertForMaskedLM


def read(folder: Path) -> None:
    model, loading = AutoModelForMaskedLM.from_pretrained(
        folder, attn_implementation="sdpa", output_loading_info=True
    )
    assert type(model) is ModernBertForMaskedLM
    assert not any(loading.values()), loading
    documents = load_file(folder / "documents.safetensors")
    with torch.no_grad():
        logits = {name: model(input_ids=ids[None]).logits[0] for name, ids in documents.items()}
    save_file(logits, folder / "logits.safetensors")
    model.save_pretrained(folder / "again")


def make(folder: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    bases = {"full_attention": 4_000.0, "sliding_attention": 70.0}
    config = ModernBertConfig(
        vocab_size=150,
        hidden_size=48,
        num_attention_heads=3,
        intermediate_size=80,
        num_hidden_layers=6,
        local_attention=16,
        layer_types=[*kinds, *kinds[:2]],
        rope_parameters={
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        norm_bias=True,
        pad_token_id=3,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = ModernBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="50KB")


if __name__ == "__main__":
    assert transformers.__version__.startswith("5."), transformers.__version__
    {"read": read, "make": make}[sys.argv[1]](Path(sys.argv[2]))
