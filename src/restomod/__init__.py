"""restomod: pretraining of ModernBERT-class encoders, from raw text to an exported model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restomod.model.hf import save_transformers
    from restomod.tools.runs import load_model
    from restomod.vectors.bulk import embed

__all__ = ["embed", "load_model", "save_transformers"]


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used."""
    if name == "embed":
        from restomod.vectors.bulk import embed

        return embed
    if name == "load_model":
        from restomod.tools.runs import load_model

        return load_model
    if name == "save_transformers":
        from restomod.model.hf import save_transformers

        return save_transformers
    raise AttributeError(f"module 'restomod' has no attribute {name!r}")
