"""Attention of many new tokens in compiled C (``attend.c``): a third of torch's time on processors that
multiply bfloat16, with the same rounding.

Measured on one core for 256 tokens of nine heads after 772 others: 3.2 ms instead of 9.3; a layer's matrix
products take 9.6.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from infinichat.engine.matrix_unit import has_matrix_unit
from infinichat.model.decoder_layer import InfiniAttention
from infinichat.model.modeling_infini import InfiniForCausalLM

HEAD = 64
"""Numbers in a head that ``attend.c`` is written for."""


class NativeAttention:
    """``decoder_layer.AttentionKernel``; ``usable`` says for which processors."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @staticmethod
    def usable(library: ctypes.CDLL) -> bool:
        """Whether the functions of ``library`` were compiled for a processor that can do this."""
        return bool(library.infini_can_attend())

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor | None:
        """As the protocol; None for another type or width than bfloat16 and 64, for several rows, and where
        gradients are wanted."""
        batch, heads, count, dim = q.shape
        kv_heads, keys = k.shape[1], k.shape[2]
        fits = batch == 1 and count > 1 and dim == HEAD and not torch.is_grad_enabled()
        fits = fits and q.device.type == "cpu" and q.dtype == k.dtype == v.dtype == torch.bfloat16
        # Keys below each other, heads anywhere: a part of the window's buffer.
        if not fits or k.stride() != v.stride() or k.stride()[2:] != (dim, 1):
            return None
        q = q.contiguous()
        out = torch.empty_like(q)
        failed = self._library.infini_attend(
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            out.data_ptr(),
            k.stride(1),
            kv_heads,
            heads // kv_heads,
            count,
            keys - count,
            scale,
            torch.get_num_threads(),
        )
        return None if failed else out


def use_native_attention(model: InfiniForCausalLM, library: ctypes.CDLL) -> None:
    """Have ``model`` attend with ``library`` where that fits and torch is not faster."""
    faster = NativeAttention.usable(library) and not has_matrix_unit()
    kernel = NativeAttention(library) if faster else None
    for module in model.modules():
        if isinstance(module, InfiniAttention):
            module.kernel = kernel
