"""Attention over packed documents: the one place where CPU and CUDA differ.

Enters: queries, keys and values of a packed batch as one linear layer made them, RoPE tables, and
the documents' bounds. Leaves: each token's mix of the values of its own document, all of it (global
layers) or those within reach (local layers). `encoder.py` calls `attend` once per layer.

RoPE and the kernel are one functional custom operator with a fake and a gradient, so that a whole
layer compiles to one graph, and q, k and v, and their gradients, share buffers. `choose_backend`
decides which kernel runs; each lives in a module of this package and is a `Backend`.

Shapes: T tokens in the packed batch, N documents, H heads, K head dim, R turned channels (R <= K).
"""

from restomod.model.attention.backends import BACKENDS, choose_backend
from restomod.model.attention.operator import attend
from restomod.model.attention.plan import AttentionPlan, alibi_slopes, plan_attention

__all__ = [
    "BACKENDS",
    "AttentionPlan",
    "alibi_slopes",
    "attend",
    "choose_backend",
    "plan_attention",
]
