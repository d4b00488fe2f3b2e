"""Mixture-of-Depths (arXiv 2404.02258) on Infini-attention: only some tokens of a segment pass the layer.

``proj_sampling`` scores every token. In training the ``ceil(segment_len / sampling_factor)`` highest of each
segment are selected (of a shorter last segment proportionally many), which no token can know while the
segment is still being written; so in inference a token is selected where its own score is above 0, and a
binary cross-entropy teaches the scores to say what the top k will be. Selected tokens attend to each other
and to the memory at the positions that they have in the whole sequence, and

    y = x + mlp(attn(x))  where selected,     y = x, bit for bit, elsewhere.

Rows of a batch may select different numbers of tokens, none among them: one pass serves them all.
"""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.layers.arguments import either_spelling, refuse_unknown, require_counts, require_number
from infinichat.layers.checks import check_input, check_mask, check_state
from infinichat.layers.positions import PositionEmbeddings
from infinichat.layers.segments import longest_row
from infinichat.layers.state import InfiniState
from infinichat.layers.transformer import InfiniTransformer

Selected = tuple[Tensor, Tensor, Tensor]
"""The output [B, S, dim_input]; 1 where a token was selected, else 0 [B * S, 1]; scores [B * S, 1]."""


class MoDInfiniTransformer(InfiniTransformer):
    """``InfiniTransformer`` whose MLP and attention run on about one token in ``sampling_factor``.

    ``segment_len`` (and ``window_len``) count tokens of the whole sequence; ``sampling_factor`` is a number
    from 1 to segment_len. All else as in ``InfiniTransformer``, except that there is no norm after the sum:
    tokens that are not selected pass unchanged. state_dict: that of ``InfiniTransformer`` (``layer_norm.*``
    is there, as in the original, and takes no part) and ``proj_sampling.weight``, ``proj_sampling.bias``.
    """

    def __init__(
        self,
        dim_input: int,
        dim_hidden: int,
        dim_key: int,
        dim_value: int,
        num_heads: int,
        activation: str,
        segment_len: int,
        sampling_factor: float,
        update: str = "linear",
        causal: bool = False,
        position_embedder: PositionEmbeddings | Literal["rope"] | None = None,
        init_state_learnable: bool = False,
        dropout: float = 0.0,
        *,
        num_kv_heads: int | None = None,
        window_len: int | None = None,
        **others: Any,
    ) -> None:
        owner = type(self)
        embedder = either_spelling(owner, others, "position_embedder", position_embedder, None)
        refuse_unknown(owner, others)
        require_counts(owner, segment_len=segment_len)
        require_number(owner, "sampling_factor", sampling_factor, 1, segment_len)
        super().__init__(
            dim_input,
            dim_hidden,
            dim_key,
            dim_value,
            num_heads,
            activation,
            math.ceil(segment_len / sampling_factor),
            update,
            causal,
            embedder,
            init_state_learnable,
            dropout,
            sampling_factor=sampling_factor,
            full_segment_len=segment_len,
            num_kv_heads=num_kv_heads,
            window_len=window_len,
        )
        self.dim_input, self.sampling_factor = dim_input, sampling_factor
        self.segment_len, self.full_segment_len = math.ceil(segment_len / sampling_factor), segment_len
        self.proj_sampling = nn.Linear(dim_input, 1)
        # Never used: with gradients wanted, data-parallel training would wait for them.
        self.layer_norm.requires_grad_(False)

    @overload  # type: ignore[override]  # the original returns three tensors from a subclass, too
    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[False] = ...,
    ) -> Selected: ...
    @overload
    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[True],
    ) -> tuple[Tensor, Tensor, Tensor, InfiniState]: ...

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        state: InfiniState | None = None,
        return_state: bool = False,
    ) -> Selected | tuple[Tensor, Tensor, Tensor, InfiniState]:
        """x [B, S, dim_input] -> (y [B, S, dim_input], selected [B * S, 1], scores [B * S, 1]), and the state
        after it where ``return_state``.

        In training the last two are target and logits of ``selection_loss``; in inference they say what was
        selected, and can be ignored. ``padding_mask`` [B, S] and ``state`` as in
        ``CompressiveMemory.forward``; padding is never selected. In training a ``state`` has to end a
        segment, because the top k of a segment are chosen at once. x is not changed.
        """
        check_input(self, x, self.dim_input, self.attn.proj_q.weight)
        if state is not None:
            check_state(self.attn, state, x)
        tokens = x
        if padding_mask is not None:
            padding_mask = check_mask(self, "padding_mask", padding_mask, x.shape[:2])
            tokens = x.masked_fill(~padding_mask[..., None], 0)
        scores = self.proj_sampling(tokens).squeeze(-1)
        if self.training:
            self._check_segment_end(state)
            selected, size, most = self._highest(scores, padding_mask)
        else:
            selected = scores > 0 if padding_mask is None else (scores > 0) & padding_mask
            size, most = max(1, longest_row(selected)), None
        columns = torch.argsort((~selected).to(torch.int8), dim=1, stable=True)[:, :size]
        index = columns[..., None].expand(-1, -1, x.shape[-1])
        attended, after = self.attn(
            tokens.gather(1, index),
            selected,
            padding_mask=padding_mask,
            state=state,
            return_state=True,
            most_sampled=most,
        )
        here, chosen = x.gather(1, index), selected.gather(1, columns)[..., None]
        out = x.scatter(1, index, torch.where(chosen, here + self.mlp(attended).to(x.dtype), here))
        target, logits = selected.to(scores.dtype).view(-1, 1), scores.reshape(-1, 1)
        return (out, target, logits, after) if return_state else (out, target, logits)

    def _highest(self, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, int, int]:
        """Where the highest of each segment's ``scores`` [B, S] are [B, S] bool, how many a row selects at
        most, and a segment. Segments are counted in tokens, without padding."""
        batch, length = scores.shape
        segment, most = self.full_segment_len, self.segment_len
        count = -(-length // segment)
        if mask is None:
            packed, sizes = scores, torch.full((batch,), length, device=scores.device)
        else:
            order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
            packed, sizes = scores.gather(1, order), mask.sum(dim=1)
        inside = torch.arange(count * segment, device=scores.device) < sizes[:, None]
        packed = F.pad(packed.detach(), (0, count * segment - length)).masked_fill(~inside, -torch.inf)
        # Of r tokens in a segment so many are selected; whole numbers from a table, exact for any factor.
        shares = [math.ceil(r / self.sampling_factor) for r in range(segment + 1)]
        quota = torch.tensor(shares, device=scores.device)[inside.view(batch, count, segment).sum(dim=-1)]
        best = packed.view(batch, count, segment).topk(most, dim=-1).indices
        taken = torch.arange(most, device=scores.device) < quota[..., None]
        selected = torch.zeros(batch, count, segment, dtype=torch.bool, device=scores.device)
        selected = selected.scatter(2, best, taken).view(batch, -1)[:, :length]
        if mask is not None:
            back = (mask.cumsum(dim=1) - 1).clamp(min=0)
            selected = selected.gather(1, back) & mask
        return selected, (length // segment) * most + shares[length % segment], most

    def _check_segment_end(self, state: InfiniState | None) -> None:
        if state is None or torch.compiler.is_compiling():
            return
        inside = int((state.seen % self.full_segment_len).max())
        if inside:
            raise ValueError(
                f"{type(self).__name__} in training got a state that ends {inside} tokens into a segment of "
                f"{self.full_segment_len}; the highest scores of a segment are chosen at once. Feed whole "
                "segments, or use eval()."
            )


def selection_loss(selected: Tensor, scores: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """The auxiliary loss: mean binary cross-entropy of ``scores`` (logits) against ``selected``, both as
    ``MoDInfiniTransformer`` returns them, over the tokens of ``padding_mask`` [B, S] where it is given."""
    each = F.binary_cross_entropy_with_logits(scores.float(), selected.float(), reduction="none")
    if padding_mask is None:
        return each.mean()
    real = padding_mask.reshape(-1, 1).to(each.dtype)
    return (each * real).sum() / real.sum().clamp(min=1)
