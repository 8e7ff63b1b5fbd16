"""Attention on CUDA in half precision: flash-attn 2, 3 and 4, and torch's own varlen kernel.

All take documents by cu_seqlens and a window. RoPE runs before and after them, in our kernel. The
calls go to the libraries' forward and backward functions, not to their autograd classes: these sit
inside our operator, and the backward can write dq, dk and dv where they are wanted.

None of this has run on a GPU yet: the signatures were checked against flash-attn 2.8.3 (its source
and that of its `hopper` folder), flash-attn-4 4.0.0b36 and torch 2.13.

Shapes: T tokens, H heads, K head dim.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from restomod.kernels.rope import rope_qk, rope_qk_backward_
from restomod.model.attention.spec import Spec
from restomod.model.flops import UNLIMITED

HALF = (torch.bfloat16, torch.float16)


class Varlen(ABC):
    """What the four kernels share: RoPE before, the kernel, RoPE back."""

    name: str
    alibi = False
    dtypes: tuple[torch.dtype, ...] = HALF
    device = "cuda"
    needs_input = True
    head_sizes = range(8, 257, 8)
    module: str
    """What must be importable."""
    functions: ClassVar[dict[str, set[str]]]
    """Its functions that are called, and parameters by whose names they are known."""
    capabilities = range(8, 100)
    """Major compute capabilities that it runs on."""

    def missing(self) -> str:
        if not torch.cuda.is_available():
            return "torch sees no CUDA device here"
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        if int(capability.partition(".")[0]) not in self.capabilities:
            return f"it does not run on compute capability {capability}"
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            return f"the module {self.module} is not installed ({error})"
        except Exception as error:  # built for another torch or CUDA
            return f"the module {self.module} cannot be loaded ({error})"
        for name, parameters in self.functions.items():
            if not hasattr(module, name):
                return f"{self.module} has no {name}: another version than this was written for"
            unknown = parameters - inspect.signature(getattr(module, name)).parameters.keys()
            if unknown:
                return f"{name} of {self.module} does not take {', '.join(sorted(unknown))}"
        return ""

    def forward(self, qkv: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        kept = rope_qk(qkv, spec.cos, spec.sin) if spec.cos.numel() else qkv.new_empty(0)
        q, k = (kept if kept.numel() else qkv[:, :2]).unbind(1)
        out, logsumexp = self.kernel(q, k, qkv[:, 2], spec)
        return out, logsumexp, kept

    def backward(
        self, grad: Tensor, qkv: Tensor, out: Tensor, logsumexp: Tensor, kept: Tensor, spec: Spec
    ) -> Tensor:
        q, k = (kept if kept.numel() else qkv[:, :2]).unbind(1)
        grad_qkv = torch.empty_like(qkv)
        self.kernel_backward(
            grad.contiguous(), (q, k, qkv[:, 2]), out, logsumexp, grad_qkv.unbind(1), spec
        )
        if kept.numel():
            rope_qk_backward_(grad_qkv, spec.cos, spec.sin)
        return grad_qkv

    def saved_shapes(
        self, qkv_shape: tuple[int, ...], left: int, right: int, rotated: bool
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokens, _, heads, head_size = qkv_shape
        return (heads, tokens), (tokens, 2, heads, head_size) if rotated else (0,)

    @abstractmethod
    def kernel(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        """Take q, k, v [T, H, K]; return out [T, H, K] and logsumexp [H, T] float32."""

    @abstractmethod
    def kernel_backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsumexp: Tensor,
        grads: tuple[Tensor, ...],
        spec: Spec,
    ) -> None:
        """Write the gradients of q, k and v to `grads`."""


class FlashAttention2(Varlen):
    """flash-attn 2 (arXiv 2307.08691); the only one with ALiBi."""

    name = "flash_attn_2"
    alibi = True
    module = "flash_attn.flash_attn_interface"
    functions: ClassVar = {
        "_flash_attn_varlen_forward": {"window_size_left", "window_size_right", "alibi_slopes"},
        "_flash_attn_varlen_backward": {"window_size_left", "deterministic", "softcap"},
    }

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

        out, logsumexp, _, _ = _flash_attn_varlen_forward(
            q,
            k,
            v,
            spec.cu_seqlens,
            spec.cu_seqlens,
            spec.max_seqlen,
            spec.max_seqlen,
            0.0,
            q.shape[-1] ** -0.5,
            causal=spec.right == 0,
            window_size_left=spec.left,
            window_size_right=spec.right,
            alibi_slopes=spec.slopes,
        )
        return out, logsumexp

    def kernel_backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsumexp: Tensor,
        grads: tuple[Tensor, ...],
        spec: Spec,
    ) -> None:
        from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

        _flash_attn_varlen_backward(
            grad,
            *qkv,
            out,
            logsumexp,
            *grads,
            spec.cu_seqlens,
            spec.cu_seqlens,
            spec.max_seqlen,
            spec.max_seqlen,
            0.0,
            qkv[0].shape[-1] ** -0.5,
            spec.right == 0,
            spec.left,
            spec.right,
            0.0,
            spec.slopes,
            spec.deterministic,
        )


class FlashAttention3(Varlen):
    """flash-attn 3 for Hopper (arXiv 2407.08608)."""

    name = "flash_attn_3"
    module = "flash_attn_interface"
    functions: ClassVar = {
        "_flash_attn_forward": {"rotary_cos", "seqlens_rotary", "window_size"},
        "_flash_attn_backward": {"window_size", "deterministic"},
    }
    capabilities = range(9, 10)

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        from flash_attn_interface import _flash_attn_forward

        unused = (None,) * 4
        out, logsumexp, *_ = _flash_attn_forward(
            q,
            k,
            v,
            *unused,  # k_new, v_new, qv, out
            spec.cu_seqlens,
            spec.cu_seqlens,
            *unused[:3],  # cu_seqlens_k_new, seqused_q, seqused_k
            spec.max_seqlen,
            spec.max_seqlen,
            *unused[:3],  # page_table, kv_batch_idx, leftpad_k
            *unused[:3],  # rotary_cos, rotary_sin, seqlens_rotary
            *unused[:3],  # q_descale, k_descale, v_descale
            q.shape[-1] ** -0.5,
            causal=spec.right == 0,
            window_size=(spec.left, spec.right),
        )
        return out, logsumexp

    def kernel_backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsumexp: Tensor,
        grads: tuple[Tensor, ...],
        spec: Spec,
    ) -> None:
        from flash_attn_interface import _flash_attn_backward

        _flash_attn_backward(
            grad,
            *qkv,
            out,
            logsumexp,
            spec.cu_seqlens,
            spec.cu_seqlens,
            None,  # seqused_q
            None,  # seqused_k
            spec.max_seqlen,
            spec.max_seqlen,
            *grads,
            qkv[0].shape[-1] ** -0.5,
            spec.right == 0,
            window_size=(spec.left, spec.right),
            deterministic=spec.deterministic,
        )


class FlashAttention4(Varlen):
    """flash-attn 4 (`flash_attn.cute`), for Hopper and Blackwell."""

    name = "flash_attn_4"
    module = "flash_attn.cute.interface"
    functions: ClassVar = {
        "_flash_attn_fwd": {"cu_seqlens_q", "window_size_left", "return_lse"},
        "_flash_attn_bwd": {"cu_seqlens_q", "window_size_left", "deterministic"},
    }
    head_sizes = range(8, 129, 8)
    capabilities = range(9, 12)

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        from flash_attn.cute.interface import _flash_attn_fwd

        out, logsumexp, *_ = _flash_attn_fwd(
            q, k, v, softmax_scale=q.shape[-1] ** -0.5, return_lse=True, **self._bounds(spec)
        )
        return out, logsumexp

    def kernel_backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsumexp: Tensor,
        grads: tuple[Tensor, ...],
        spec: Spec,
    ) -> None:
        from flash_attn.cute.interface import _flash_attn_bwd

        # Without dq, dk and dv of our own: it asks for contiguous ones.
        parts = _flash_attn_bwd(
            *qkv,
            out,
            grad,
            logsumexp,
            softmax_scale=qkv[0].shape[-1] ** -0.5,
            deterministic=spec.deterministic,
            **self._bounds(spec),
        )
        for target, part in zip(grads, parts, strict=False):
            target.copy_(part)

    def _bounds(self, spec: Spec) -> dict[str, object]:
        return {
            "cu_seqlens_q": spec.cu_seqlens,
            "cu_seqlens_k": spec.cu_seqlens,
            "max_seqlen_q": spec.max_seqlen,
            "max_seqlen_k": spec.max_seqlen,
            "causal": spec.right == 0 and spec.left == UNLIMITED,
            "window_size_left": spec.left if spec.is_local else None,
            "window_size_right": spec.right if spec.is_local else None,
        }


class TorchVarlen(Varlen):
    """The flash kernel that comes with torch."""

    name = "varlen"
    module = "torch.nn.attention.varlen"
    functions: ClassVar = {}

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            spec.cu_seqlens,
            spec.cu_seqlens,
            spec.max_seqlen,
            spec.max_seqlen,
            0.0,
            spec.right == 0 and spec.left == UNLIMITED,
            False,
            window_size_left=spec.left,
            window_size_right=spec.right,
        )
        return out, logsumexp

    def kernel_backward(
        self,
        grad: Tensor,
        qkv: tuple[Tensor, Tensor, Tensor],
        out: Tensor,
        logsumexp: Tensor,
        grads: tuple[Tensor, ...],
        spec: Spec,
    ) -> None:
        # Dropout is off: the random state that the kernel asks for is never read.
        state = torch.zeros(2, dtype=torch.uint64, device=grad.device)
        parts = torch.ops.aten._flash_attention_backward(
            grad,
            *qkv,
            out,
            logsumexp,
            spec.cu_seqlens,
            spec.cu_seqlens,
            spec.max_seqlen,
            spec.max_seqlen,
            0.0,
            spec.right == 0 and spec.left == UNLIMITED,
            state,
            grad.new_empty(0),
            window_size_left=spec.left,
            window_size_right=spec.right,
        )
        for target, part in zip(grads, parts, strict=True):
            target.copy_(part)
