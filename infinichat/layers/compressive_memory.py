"""Multi-head Infini-attention as one module: attention within the window, a compressive memory beyond it.

Arguments, defaults, shapes and state_dict keys are those of dingo-actual/infini-transformer's module of the
same name; the mathematics are the paper's (arXiv 2404.07143, eqs. 7 to 10), so heads are split into heads,
``causal`` hides the future, and the memory is read before the segment's own tokens are in it. What it has
beyond that is keyword-only: ``num_kv_heads``, ``window_len``, and in ``forward`` padding and state.

    layer = CompressiveMemory(768, 64, 64, 8, 2048, causal=True)
    y = layer(x)                                              # x, y [B, S, 768], any S
    y, state = layer(x, return_state=True)                    # and on from there:
    y, state = layer(more, state=state, return_state=True)    # the same as layer(cat(x, more))
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast, get_args, overload

import torch
from torch import Tensor, nn

from infinichat.attention.memory import MemoryState, UpdateRule, wide
from infinichat.layers.arguments import (
    either_spelling,
    refuse_unknown,
    require_choice,
    require_counts,
    require_number,
)
from infinichat.layers.checks import check_embedder, check_input, check_mask, check_selection, check_state
from infinichat.layers.positions import PositionEmbeddings, RoPEEmbeddings
from infinichat.layers.segments import NOWHERE, Rule, Tokens, attend_even, attend_ragged
from infinichat.layers.state import InfiniState


class CompressiveMemory(nn.Module):
    """Infini-attention of x [B, S, dim_input].

    ``dim_key`` and ``dim_value`` are per head; ``segment_len`` tokens leave the window at once; ``update`` is
    "linear" (eq. 8) or "delta" (eq. 9); ``causal=False`` lets a token see its whole segment;
    ``position_embedder`` turns queries and keys of the exact attention, None for none, "rope" for
    ``RoPEEmbeddings(dim_key, window_len)``; ``init_state_learnable`` learns the memory that a sequence starts
    with. ``num_kv_heads``: keys, values and memories that groups of heads share (None: one each).
    ``window_len``: tokens attended exactly, at least a segment (None: a segment, as in the paper); with more,
    a token sees at least ``window_len - segment_len`` tokens before it, and it needs ``causal``.

    ``sampling_factor`` allows ``sample_mask`` in ``forward``, for Mixture-of-Depths: a segment is then
    ``full_segment_len`` positions of the whole sequence (None: segment_len * sampling_factor), of which about
    ``segment_len`` are selected, and ``window_len`` counts positions too.

    state_dict: ``proj_q.weight`` [H Dk, dim_input], ``proj_k.weight`` [Hkv Dk, dim_input], ``proj_v.weight``
    [Hkv Dv, dim_input], ``proj_out.weight`` [dim_input, H Dv], ``betas`` [1, H, 1, Dv], and where learnable
    ``init_mem`` [1, Hkv, Dk, Dv], ``init_z`` [1, Hkv, Dk, 1]. ``positional_embedder`` is accepted for
    ``position_embedder``. Raises ``TypeError`` for unknown arguments, ``ValueError`` for impossible values.
    """

    init_mem: nn.Parameter | None
    init_z: nn.Parameter | None

    def __init__(
        self,
        dim_input: int,
        dim_key: int,
        dim_value: int,
        num_heads: int,
        segment_len: int,
        sampling_factor: float | None = None,
        update: str = "linear",
        causal: bool = False,
        position_embedder: PositionEmbeddings | Literal["rope"] | None = None,
        init_state_learnable: bool = False,
        *,
        num_kv_heads: int | None = None,
        window_len: int | None = None,
        full_segment_len: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        owner = type(self)
        embedder = either_spelling(owner, others, "position_embedder", position_embedder, None)
        refuse_unknown(owner, others)
        kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        require_counts(owner, dim_input=dim_input, dim_key=dim_key, dim_value=dim_value, num_heads=num_heads)
        require_counts(owner, segment_len=segment_len, num_kv_heads=kv_heads)
        require_choice(owner, "update", update, get_args(UpdateRule))
        if num_heads % kv_heads:
            raise ValueError(
                f"{owner.__name__}: num_heads is {num_heads} and num_kv_heads {kv_heads}; num_kv_heads has "
                "to divide num_heads, because heads share keys in groups of one size."
            )
        self.dim_input, self.dim_key, self.dim_value = dim_input, dim_key, dim_value
        self.num_heads, self.num_kv_heads, self.segment_len = num_heads, kv_heads, segment_len
        self.sampling_factor, self.update, self.causal = sampling_factor, cast(UpdateRule, update), causal
        self._set_segment(full_segment_len, window_len)
        if isinstance(embedder, str) and embedder == "rope":
            embedder = RoPEEmbeddings(dim_key, self.window_len)
        check_embedder(owner, embedder, dim_key)
        self.position_embedder = embedder

        self.proj_k = nn.Linear(dim_input, kv_heads * dim_key, bias=False)
        self.proj_v = nn.Linear(dim_input, kv_heads * dim_value, bias=False)
        self.proj_q = nn.Linear(dim_input, num_heads * dim_key, bias=False)
        self.proj_out = nn.Linear(num_heads * dim_value, dim_input, bias=False)
        self.betas = nn.Parameter(torch.randn(1, num_heads, 1, dim_value))
        self.init_mem = self.init_z = None
        if init_state_learnable:
            self.init_mem = nn.Parameter(torch.randn(1, kv_heads, dim_key, dim_value))
            self.init_z = nn.Parameter(torch.ones(1, kv_heads, dim_key, 1))

    def _set_segment(self, full_segment_len: int | None, window_len: int | None) -> None:
        """``full_segment_len``: a segment in positions, and ``window_len``, at least as long."""
        owner, factor = type(self), self.sampling_factor
        if factor is None:
            if full_segment_len is not None:
                raise ValueError(f"{owner.__name__}: full_segment_len needs a sampling_factor; it is None.")
            self.full_segment_len = self.segment_len
        else:
            require_number(owner, "sampling_factor", factor, 1, math.inf)
            if full_segment_len is None:
                full_segment_len = int(self.segment_len * factor)
            require_counts(owner, full_segment_len=full_segment_len)
            self.full_segment_len = full_segment_len
        self.window_len = self.full_segment_len if window_len is None else window_len
        require_counts(owner, window_len=self.window_len)
        if self.window_len < self.full_segment_len:
            raise ValueError(
                f"{owner.__name__}: window_len is {self.window_len} and a segment {self.full_segment_len}; a "
                "segment leaves the window whole, so it cannot be longer."
            )
        if self.window_len > self.full_segment_len and not self.causal:
            raise ValueError(
                f"{owner.__name__}: window_len is {self.window_len}, longer than a segment of "
                f"{self.full_segment_len}; without causal=True a token sees its segment and nothing else."
            )

    def extra_repr(self) -> str:
        """The arguments that print(module) shows."""
        return (
            f"heads={self.num_heads}, kv_heads={self.num_kv_heads}, segment_len={self.segment_len}, "
            f"window_len={self.window_len}, update={self.update!r}, causal={self.causal}"
        )

    def initial_state(self, batch: int) -> InfiniState:
        """The state before the first token of ``batch`` sequences: nothing, or what was learned."""
        weight = self.betas
        k = weight.new_zeros(batch, self.num_kv_heads, 0, self.dim_key)
        v = weight.new_zeros(batch, self.num_kv_heads, 0, self.dim_value)
        nothing = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        if self.init_mem is not None and self.init_z is not None:
            # Of either sign in the original; a mass below zero makes denominators vanish.
            z = wide(self.init_z).abs().squeeze(-1).repeat(batch, 1, 1)
            memory = MemoryState(wide(self.init_mem).repeat(batch, 1, 1, 1), z, nothing)
        else:
            memory = MemoryState.empty(
                batch,
                self.num_kv_heads,
                self.dim_key,
                self.dim_value,
                normalised=True,
                device=weight.device,
                dtype=wide(weight).dtype,
            )
        return InfiniState(memory, k, v, nothing)

    @overload
    def forward(
        self,
        x: Tensor,
        sample_mask: Tensor | None = ...,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[False] = ...,
        most_sampled: int | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        sample_mask: Tensor | None = ...,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[True],
        most_sampled: int | None = ...,
    ) -> tuple[Tensor, InfiniState]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        sample_mask: Tensor | None = ...,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: bool,
        most_sampled: int | None = ...,
    ) -> Tensor | tuple[Tensor, InfiniState]: ...

    def forward(
        self,
        x: Tensor,
        sample_mask: Tensor | None = None,
        *,
        padding_mask: Tensor | None = None,
        state: InfiniState | None = None,
        return_state: bool = False,
        most_sampled: int | None = None,
    ) -> Tensor | tuple[Tensor, InfiniState]:
        """x [B, S, dim_input] -> the same shape, and the state after it where ``return_state``.

        ``padding_mask`` [B, S]: True (or 1) at tokens, False at padding. Padding anywhere in a row changes
        nothing: the row gives what it gives without it, and zeros at padding. ``state``: where an earlier
        call on these sequences ended; without ``causal`` that has to be the end of a segment.

        ``sample_mask`` [B, N] bool: x holds only the tokens selected from N, in order, S = the most that any
        row selects; rows with fewer end in anything, and give zeros there. ``padding_mask`` is then [B, N].
        ``most_sampled``: at most so many are selected in any segment, if that is known (it is counted
        otherwise, which waits for the device).
        """
        check_input(self, x, self.dim_input, self.proj_q.weight)
        fresh = state is None
        if state is None:
            state = self.initial_state(x.shape[0])
        else:
            check_state(self, state, x)
        if sample_mask is not None:
            out, after = self._forward_sampled(x, sample_mask, padding_mask, state, fresh, most_sampled)
        elif padding_mask is not None or state.positions is not None:
            out, after = self._forward_padded(x, padding_mask, state, fresh)
        else:
            attended, after = attend_even(self._project(x), state, self._rule(), fresh=fresh)
            out = self._merge(attended)
        return (out, after) if return_state else out

    def _forward_padded(
        self, x: Tensor, mask: Tensor | None, state: InfiniState, fresh: bool
    ) -> tuple[Tensor, InfiniState]:
        """Each row's tokens moved together, attended, and moved back."""
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mask = check_mask(self, "padding_mask", mask, x.shape[:2])
        order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)
        packed = _rows(x.masked_fill(~mask[..., None], 0), order)
        count = mask.sum(dim=1)
        column = torch.arange(x.shape[1], device=x.device)
        positions = torch.where(column < count[:, None], state.seen[:, None] + column, NOWHERE)
        rule = self._rule()
        attended, after = attend_ragged(
            self._project(packed),
            positions,
            count,
            state,
            rule,
            fresh=fresh,
            longest=x.shape[1],
            densest=rule.segment,
        )
        back = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return _rows(self._merge(attended), back).masked_fill(~mask[..., None], 0), after

    def _forward_sampled(
        self,
        x: Tensor,
        sampled: Tensor,
        padding: Tensor | None,
        state: InfiniState,
        fresh: bool,
        most: int | None,
    ) -> tuple[Tensor, InfiniState]:
        """Tokens selected from a longer sequence, at the positions that they have there."""
        sampled, padding = check_selection(self, x, sampled, padding)
        count = sampled.sum(dim=1)
        columns = torch.argsort((~sampled).to(torch.int8), dim=1, stable=True)[:, : x.shape[1]]
        real = torch.arange(columns.shape[1], device=x.device) < count[:, None]
        if padding is None:
            rank, fed = columns, torch.full_like(count, sampled.shape[1])
        else:
            rank, fed = (padding.cumsum(dim=1) - 1).gather(1, columns), padding.sum(dim=1)
        positions = torch.where(real, state.seen[:, None] + rank, NOWHERE)
        rule = self._rule(sampled=True)
        attended, after = attend_ragged(
            self._project(x.masked_fill(~real[..., None], 0)),
            positions,
            fed,
            state,
            rule,
            fresh=fresh,
            longest=sampled.shape[1],
            densest=self._densest(positions, state.seen, sampled.shape[1]) if most is None else most,
        )
        return self._merge(attended).masked_fill(~real[..., None], 0), after

    def _densest(self, positions: Tensor, seen: Tensor, longest: int) -> int:
        """The most tokens at ``positions`` [B, n] in any one segment."""
        segment = self.full_segment_len
        if torch.compiler.is_compiling():
            return min(positions.shape[1], segment)
        number = positions // segment - (seen // segment)[:, None]
        slots = longest // segment + 2  # all segments that can be touched; one more takes padding
        inside = torch.zeros(len(seen), slots + 1, dtype=torch.bool, device=seen.device)
        counts = torch.zeros_like(inside, dtype=torch.int64)
        counts = counts.scatter_add(1, number.clamp(max=slots), torch.ones_like(number))
        return max(1, int(counts[:, :slots].max()))

    def _rule(self, *, sampled: bool = False) -> Rule:
        segment, window = self.full_segment_len, self.window_len
        if self.sampling_factor is not None and not sampled:
            if window > segment:
                raise ValueError(
                    f"{type(self).__name__}: window_len is {window}, which counts positions of a "
                    "sample_mask, and no sample_mask was given. Give one, or leave sampling_factor out."
                )
            segment = window = self.segment_len
        return Rule(
            window=window,
            segment=segment,
            causal=self.causal,
            update=self.update,
            betas=self.betas,
            embedder=self.position_embedder,
            starts_empty=self.init_mem is None,
        )

    def _project(self, x: Tensor) -> Tokens:
        """Queries, keys and values [B, heads, S, D] of x [B, S, C]."""
        q, k, v = self.proj_q(x), self.proj_k(x), self.proj_v(x)
        heads = ((q, self.num_heads), (k, self.num_kv_heads), (v, self.num_kv_heads))
        return Tokens(*(t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in heads))

    def _merge(self, attended: Tensor) -> Tensor:
        """Heads [B, H, S, Dv] beside each other, projected to [B, S, dim_input]."""
        out: Tensor = self.proj_out(attended.transpose(1, 2).flatten(2))
        return out


def _rows(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, N, C] at ``columns`` [B, n] of each row: [B, n, C]."""
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))
