"""Shards to mixture to lanes to packed rows to masked batches: reading order is the data's."""

from restomod.data.mlm import mask_tokens
from restomod.data.packer import pack

__all__ = ["mask_tokens", "pack"]
