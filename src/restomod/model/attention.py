"""Attention over packed documents: the one place where CPU and CUDA differ.

Enters: queries, keys and values of a packed batch, RoPE tables, and the documents' bounds. Leaves:
each token's mix of the values of its own document, all of it (global layers) or the `window` tokens
on either side (local layers). `encoder.py` calls it once per layer.

- CUDA in half precision: flash-attn's varlen kernel if installed, otherwise torch's own.
- CPU: torch's CPU flash kernel, per document in global layers; in local layers over fixed blocks of
  queries against the keys within reach, so that the cost is linear in T.
- Anything else (float32 on CUDA): `reference_attention`.

Shapes: T tokens in the packed batch, N documents, H heads, K head dim, B query blocks.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from restomod.model.rope import rotate, rotate_into

BLOCK = 64  # queries per block in local layers; 32 and 128 are slower (benchmarks/encoder_step.py)

_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Documents:
    """Bounds of the packed documents, and what the CPU derives from them once per batch."""

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, tokens: int) -> None:
        """Take cu_seqlens [N+1] int32 from 0 to `tokens`, and the length no document exceeds.

        Repeated numbers in cu_seqlens are empty documents.
        """
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self.tokens = tokens
        self._bounds: list[tuple[int, int]] = []
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    def bounds(self) -> list[tuple[int, int]]:
        """Return (start, end) of every document that is not empty; syncs once on CUDA."""
        if not self._bounds:
            cuts = self.cu_seqlens.tolist()
            self._bounds = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        return self._bounds

    def block_mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """Return [B, 1, BLOCK, BLOCK + 2 window]: 0 where the query sees the key, else -inf."""
        key = (window, dtype)
        if key not in self._masks:
            self._masks[key] = _block_mask(self.cu_seqlens, self.tokens, window, dtype)
        return self._masks[key]


def attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, window: int | None
) -> Tensor:
    """Attend within documents: qkv [T, 3, H, K], cos and sin [T, K/2] -> [T, H, K].

    `window` is how far a token sees to either side, inclusive; None means its whole document.
    """
    if qkv.device.type == "cpu":
        return _CpuAttention.apply(qkv, cos, sin, documents, window)
    if qkv.dtype in (torch.float16, torch.bfloat16):
        return _varlen_attention(qkv, cos, sin, documents, window)
    return reference_attention(qkv, cos, sin, documents, window)


def reference_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, window: int | None
) -> Tensor:
    """Compute what `attention` does, densely and document by document, on any device and dtype."""
    q, k = rotate(qkv[:, :2], cos, sin).unbind(1)
    outputs = []
    for start, end in documents.bounds():
        query, key, value = (x[start:end].transpose(0, 1) for x in (q, k, qkv[:, 2]))
        scores = query @ key.transpose(1, 2) * qkv.shape[-1] ** -0.5
        if window is not None:
            position = torch.arange(end - start, device=qkv.device)
            too_far = (position[:, None] - position).abs() > window
            scores = scores.masked_fill(too_far, float("-inf"))
        outputs.append((scores.softmax(-1) @ value).transpose(0, 1))
    return torch.cat(outputs)


def _varlen_attention(
    qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, window: int | None
) -> Tensor:
    q, k = rotate(qkv[:, :2], cos, sin).unbind(1)
    reach = (-1, -1) if window is None else (window, window)
    return _varlen_kernel()(q, k, qkv[:, 2], documents.cu_seqlens, documents.max_seqlen, reach)


@functools.cache
def _varlen_kernel() -> Callable[..., Tensor]:
    """Pick the best kernel installed: (q, k, v, cu_seqlens, max_seqlen, reach) -> [T, H, K]."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        def torch_kernel(
            q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, reach: tuple[int, int]
        ) -> Tensor:
            out = varlen_attn(q, k, v, cu, cu, longest, longest, window_size=reach)
            assert isinstance(out, Tensor)
            return out

        return torch_kernel

    def flash_kernel(
        q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, reach: tuple[int, int]
    ) -> Tensor:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return flash_attn_varlen_func(
            q, k, v, cu, cu, longest, longest, window_size=reach, deterministic=deterministic
        )

    return flash_kernel


class _CpuAttention(torch.autograd.Function):
    """RoPE and attention in one node, so that q, k and v, and their gradients, share buffers."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, documents: Documents, window: int | None
    ) -> Tensor:
        tokens, _, heads, head_size = qkv.shape
        margin = 0 if window is None else window
        padded = 2 * margin + (tokens if window is None else -(-tokens // BLOCK) * BLOCK)
        # Queries, keys and values between margins of zeros, so that every block has full reach.
        packed = qkv.new_empty(3, padded, heads, head_size)
        packed[:, :margin].zero_()
        packed[:, margin + tokens :].zero_()
        inner = packed[:, margin : margin + tokens].transpose(0, 1)
        rotate_into(inner[:, :2], qkv[:, :2], cos, sin)
        inner[:, 2] = qkv[:, 2]

        out = qkv.new_empty(tokens, heads, head_size)
        saved = []
        if window is None:
            for start, end in documents.bounds():
                q, k, v = packed[:, None, start:end].transpose(2, 3)
                result, logsumexp = _flash_cpu(q, k, v)
                out[start:end] = result[0].transpose(0, 1)
                saved.append(logsumexp)
        else:
            q, k, v = _blocks(packed, window)
            mask = documents.block_mask(window, qkv.dtype)
            result, logsumexp = _flash_cpu(q, k, v, attn_mask=mask)
            out = result.transpose(1, 2).reshape(-1, heads, head_size)[:tokens]
            saved.append(logsumexp)
        ctx.save_for_backward(packed, out, cos, sin, *saved)
        ctx.documents, ctx.window = documents, window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        packed, out, cos, sin, *saved = ctx.saved_tensors
        tokens, heads, head_size = out.shape
        grad_packed = torch.empty_like(packed)
        if ctx.window is None:
            for (start, end), logsumexp in zip(ctx.documents.bounds(), saved, strict=True):
                q, k, v = packed[:, None, start:end].transpose(2, 3)
                grad_out, result = (x[None, start:end].transpose(1, 2) for x in (grad, out))
                parts = _flash_cpu_backward(grad_out, q, k, v, result, logsumexp, 0.0, False)
                for i, part in enumerate(parts):
                    grad_packed[i, start:end] = part[0].transpose(0, 1)
            inner = grad_packed
        else:
            q, k, v = _blocks(packed, ctx.window)
            mask = ctx.documents.block_mask(ctx.window, out.dtype)
            grad_out, result = (_pad_to_blocks(x) for x in (grad, out))
            parts = _flash_cpu_backward(
                grad_out, q, k, v, result, saved[0], 0.0, False, attn_mask=mask
            )
            margin = ctx.window
            grad_packed[0, margin : grad_packed.shape[1] - margin] = (
                parts[0].transpose(1, 2).reshape(-1, heads, head_size)
            )
            for i in (1, 2):
                _overlap_add(grad_packed[i], parts[i].transpose(1, 2))
            inner = grad_packed[:, margin : margin + tokens]
        grad_qkv = out.new_empty(tokens, 3, heads, head_size)
        inner = inner.transpose(0, 1)
        rotate_into(grad_qkv[:, :2], inner[:, :2], cos, -sin)
        grad_qkv[:, 2] = inner[:, 2]
        return grad_qkv, None, None, None, None


def _blocks(packed: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """View packed [3, window + B BLOCK + window, H, K] as blocks.

    Queries are [B, H, BLOCK, K]; keys and values [B, H, BLOCK + 2 window, K], and overlap.
    """
    _, padded, heads, head_size = packed.shape
    blocks = (padded - 2 * window) // BLOCK
    row, head, _ = packed.stride()[1:]
    strides = (BLOCK * row, head, row, 1)
    reach = (blocks, heads, BLOCK + 2 * window, head_size)
    queries = packed[0, window:].as_strided((blocks, heads, BLOCK, head_size), strides)
    keys, values = (x.as_strided(reach, strides, x.storage_offset()) for x in packed[1:].unbind(0))
    return queries, keys, values


def _pad_to_blocks(x: Tensor) -> Tensor:
    """View or copy x [T, H, K] as [B, H, BLOCK, K]."""
    missing = -x.shape[0] % BLOCK
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.reshape(-1, BLOCK, *x.shape[1:]).transpose(1, 2)


def _overlap_add(out: Tensor, parts: Tensor) -> None:
    """Sum parts [B, BLOCK + 2 window, H, K], each BLOCK further on, to out [.., H, K]."""
    blocks, reach = parts.shape[:2]
    out.zero_()
    for start in range(0, reach, BLOCK):
        width = min(BLOCK, reach - start)
        row = out.stride(0)
        view = out[start:].as_strided(
            (blocks, width, *out.shape[1:]),
            (BLOCK * row, *out.stride()),
            out.storage_offset() + start * row,
        )
        view.add_(parts[:, start : start + width])


def _block_mask(cu_seqlens: Tensor, tokens: int, window: int, dtype: torch.dtype) -> Tensor:
    blocks = -(-tokens // BLOCK)
    slots = torch.arange(-window, blocks * BLOCK + window, device=cu_seqlens.device)
    document = torch.searchsorted(cu_seqlens.to(slots.dtype), slots, right=True)
    reach = BLOCK + 2 * window
    keys = document.as_strided((blocks, 1, reach), (BLOCK, 1, 1))
    queries = document[window:].as_strided((blocks, BLOCK, 1), (BLOCK, 1, 1), window)
    offset = torch.arange(reach, device=slots.device) - window
    near = (offset - torch.arange(BLOCK, device=slots.device)[:, None]).abs() <= window
    # Slots past the last token form a document of their own: no query is left without a key.
    seen = (queries == keys) & near
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))[:, None]
