"""The model's layers on whole short streams, without a state: what training runs instead of the product's
forward.

``decode`` is causal attention over the stream and the MLP, layer by layer; ``added`` goes into the residual
after the first layer's attention, where a memory's read goes. Several rows may have the same tokens before
them: those are run once (``past_of``). ``offsets_of`` is the tokenizer with character places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.window import inverse_frequencies, rotary, rotate
from infinichat.model.adapters import Carried
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.protocols import TextTokenizer

CONTROLS = ("<|im_start|>", "<|im_end|>")
"""Control tokens that generated streams are written with."""


Past = Sequence[tuple[Tensor, Tensor]]
"""Rotated keys and values [1, kv heads, P, D] of P earlier tokens, layer by layer."""


def decode(
    model: InfiniForCausalLM,
    h: Tensor,
    *,
    first: int,
    last: int,
    added: Tensor | None = None,
    carried: Carried | None = None,
    past: Past = (),
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """States h [B, T, C] before layer ``first`` to states before layer ``last``, the layers above ``first``
    with what its read has ``carried`` there. Rows may be padded at the right. All of them come after the
    tokens of ``past``, which has one pair for each of these layers; keys and values go into ``kept``."""
    config = model.config
    frequencies = inverse_frequencies(config.head_dim, config.infini_rope["theta"])
    rows, own = h.shape[:2]
    earlier = past[0][0].shape[2] if past else 0
    cos, sin = rotary(torch.arange(earlier, earlier + own), frequencies, h.dtype)
    seen = torch.ones(own, earlier + own, dtype=torch.bool).tril(earlier) if past else None
    for index in range(first, last):
        layer = model.model.layers[index]
        at, x = layer.self_attn, layer.input_layernorm(h)
        flat = at.q_proj(x), at.k_proj(x), at.v_proj(x)
        changing = carried.changing if carried is not None and index > first else None
        if changing is not None:
            adapters, opened = changing
            changed = adapters.qkv(index, x, opened)
            flat = flat[0] + changed[0], flat[1] + changed[1], flat[2] + changed[2]
        q, k, v = (part.unflatten(-1, (-1, config.head_dim)).transpose(1, 2) for part in flat)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if kept is not None:
            kept.append((k, v))
        if past:
            k, v = (
                torch.cat((old.expand(rows, -1, -1, -1), new), dim=2)
                for old, new in zip(past[index - first], (k, v), strict=True)
            )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=True)
        out = out.transpose(1, 2).flatten(2)
        h = h + at.o_proj(out)
        if changing is not None:
            adapters, opened = changing
            h = h + adapters.out(index, out, opened)
        if index == first and added is not None:
            h = h + added.to(h.dtype)
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return h


@torch.no_grad()
def past_of(model: InfiniForCausalLM, h: Tensor, *, first: int, last: int) -> Past:
    """What tokens with the states h [1, P, C] before layer ``first`` leave to those after them in layers
    ``first`` to ``last`` - 1."""
    kept: list[tuple[Tensor, Tensor]] = []
    if h.shape[1]:
        decode(model, h, first=first, last=last, kept=kept)
    return kept


def lower(model: InfiniForCausalLM, layer: int) -> Callable[[Tensor], Tensor]:
    """ids [B, T] to states [B, T, C] before ``layer``."""

    @torch.inference_mode()
    def states(ids: Tensor) -> Tensor:
        return decode(model, model.model.embed_tokens(ids), first=0, last=layer)

    return states


def offsets_of(tokenizer: TextTokenizer) -> Callable[..., dict[str, list[Any]]]:
    """A callable like transformers' fast tokenizers: text to ``input_ids`` and ``offset_mapping``. The
    control
    tokens of ``CONTROLS`` in the text become themselves."""

    def encode(text: str, **_: Any) -> dict[str, list[Any]]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        while start < len(text):
            control = next((c for c in CONTROLS if text.startswith(c, start)), None)
            if control is not None:
                ids.append(tokenizer.control_id(control))
                offsets.append((start, start + len(control)))
                start += len(control)
                continue
            ends = [place for c in CONTROLS if (place := text.find(c, start)) >= 0]
            end = min(ends, default=len(text))
            piece = text[start:end]
            places = [start + i for i, char in enumerate(piece) for _ in char.encode()] + [end]
            byte = 0
            for token in tokenizer.encode(piece):
                size = len(tokenizer.token_bytes(token))
                ids.append(token)
                offsets.append((places[byte], places[min(byte + size, len(places) - 1)]))
                byte += size
            start = end
        return {"input_ids": ids, "offset_mapping": offsets}

    return encode
