"""Position embedders for the exact part of the attention: RoPE and YaRN, and the base of one's own.

An embedder turns queries and keys by where they stand; the compressive memory never sees turned ones. It is
called as ``embedder(t, total_seq_len=..., offset=..., select_mask=...)`` on queries and on keys, each
[B, H, S, D], and token s of S stands at position 1 + offset + s, or, with ``select_mask`` [B, N], at 1 +
offset + (the column of the s-th True of its row).

    RoPE   pair (2i, 2i+1) of the first D_r = int(D * dim_embedding_pct) dimensions is turned by
           position * theta_i, theta_i = base^(-2i / D_r)                                 (arXiv 2104.09864)
    YaRN   theta_i -> (1 - g_i) theta_i / s + g_i theta_i, g_i = ramp of context_len * theta_i / 2 pi from
           alpha to beta, and queries and keys scaled by 0.1 ln s + 1                     (arXiv 2309.00071)

Angles are worked out in float64 (float32 on devices without it) and nothing is stored: no buffers, an empty
state_dict, any length, dtype and device.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from infinichat.attention.memory import wide
from infinichat.layers.arguments import either_spelling, refuse_unknown, require_counts


class PositionEmbeddings(nn.Module):
    """The base: define ``forward``, and set ``relative`` if scores then depend on distances only.

    With ``relative`` the layers count positions from the start of the window, which is exact at any length
    and needs no host synchronisation; without it they pass true positions.
    """

    relative: ClassVar[bool] = False

    def forward(
        self, x: Tensor, total_seq_len: int, offset: int = 0, select_mask: Tensor | None = None
    ) -> Tensor:
        """x [B, H, S, D] -> the same shape, as the file's paragraph says."""
        raise NotImplementedError(
            f"{type(self).__name__} has to define forward(x, total_seq_len, offset, select_mask)."
        )

    def at(self, x: Tensor, positions: Tensor, *, total_seq_len: int) -> Tensor:
        """x [B, H, S, D] with its tokens at ``positions`` [1 or B, S] int64, from 0, increasing; -1 marks
        padding, which is left as it is. In terms of ``forward``: once for rows that are alike and without
        gaps, else row by row."""
        first = positions[0]
        alike = positions.shape[0] == 1 or bool((positions == first).all())
        if alike and bool((first == first[0] + torch.arange(len(first), device=first.device)).all()):
            return self(x, total_seq_len=total_seq_len, offset=int(first[0]))  # type: ignore[no-any-return]
        rows = [self._row(x[b : b + 1], p, total_seq_len) for b, p in enumerate(positions.expand(len(x), -1))]
        return torch.cat(rows)

    def _row(self, x: Tensor, positions: Tensor, total_seq_len: int) -> Tensor:
        real = positions >= 0
        if not bool(real.any()):
            return x
        offset = int(positions[real][0])
        columns = positions[real] - offset
        mask = torch.zeros(1, int(columns[-1]) + 1, dtype=torch.bool, device=x.device)
        mask[:, columns] = True
        turned = self(x[:, :, real], total_seq_len=total_seq_len, offset=offset, select_mask=mask)
        return x.index_copy(2, real.nonzero()[:, 0], turned)


class RoPEEmbeddings(PositionEmbeddings):
    """Rotary embeddings. ``dim``: key width; ``seq_len``: the segment's length, kept for compatibility (any
    length is embedded); ``dim_embedding_pct`` in (0, 1]: the part of ``dim`` that is turned; ``base``.

    ``dim_embeddings_pct`` is accepted for ``dim_embedding_pct``. Raises ``ValueError`` where the turned part
    is not an even number of dimensions, ``TypeError`` for unknown arguments.
    """

    relative = True

    def __init__(
        self, dim: int, seq_len: int, dim_embedding_pct: float = 0.5, base: int = 10000, **others: Any
    ) -> None:
        super().__init__()
        owner = type(self)
        pct = either_spelling(owner, others, "dim_embedding_pct", dim_embedding_pct, 0.5)
        refuse_unknown(owner, others)
        require_counts(owner, dim=dim, seq_len=seq_len)
        turned = int(dim * pct)
        if not 0 < pct <= 1 or turned < 2 or turned % 2:
            raise ValueError(
                f"{owner.__name__}: dim_embedding_pct is {pct} of dim {dim}, {turned} dimensions; it must be "
                "above 0 and at most 1 and give an even number of at least 2."
            )
        if base <= 1:
            raise ValueError(f"{owner.__name__}: base is {base}; it must be above 1.")
        self.dim, self.seq_len, self.dim_embedding_pct, self.base = dim, seq_len, pct, base
        self.effective_dim = turned

    def forward(
        self, x: Tensor, total_seq_len: int = 0, offset: int = 0, select_mask: Tensor | None = None
    ) -> Tensor:
        """x [B, H, S, dim] -> the same; S at most as many as a row of ``select_mask`` selects."""
        self._check(x)
        if select_mask is None:
            positions = torch.arange(x.shape[2], device=x.device)[None]
        else:
            if select_mask.shape[0] != x.shape[0] or select_mask.shape[1] < x.shape[2]:
                raise ValueError(
                    f"select_mask is {tuple(select_mask.shape)} for x {tuple(x.shape)}; expected "
                    f"({x.shape[0]}, N) with N at least {x.shape[2]}."
                )
            # Stable, so that the columns of the selected tokens come first and in order.
            positions = torch.argsort((~select_mask.bool()).to(torch.int8), dim=1, stable=True)
            positions = positions[:, : x.shape[2]]
        return self.at(x, offset + positions, total_seq_len=total_seq_len)

    def at(self, x: Tensor, positions: Tensor, *, total_seq_len: int) -> Tensor:
        """x [B, H, S, dim] with its tokens at ``positions`` [1 or B, S], counted from 0."""
        self._check(x)
        exact = torch.float32 if x.device.type == "mps" else torch.float64
        pairs = torch.arange(0, self.effective_dim, 2, dtype=exact, device=x.device)
        frequencies = self.frequencies(self.base ** (-pairs / self.effective_dim), total_seq_len)
        angles = (1 + positions).to(exact)[:, None, :, None] * frequencies  # [1 or B, 1, S, D_r / 2]
        whole = wide(x)
        cos, sin = angles.cos().to(whole.dtype), angles.sin().to(whole.dtype)
        even, odd = whole[..., 0 : self.effective_dim : 2], whole[..., 1 : self.effective_dim : 2]
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        joined = torch.cat((turned, whole[..., self.effective_dim :]), dim=-1)
        return (self.scale(total_seq_len) * joined).to(x.dtype)

    def frequencies(self, theta: Tensor, total_seq_len: int) -> Tensor:
        """The frequencies [D_r / 2] that are really used; ``theta`` are RoPE's."""
        return theta

    def scale(self, total_seq_len: int) -> float:
        """What queries and keys are multiplied by, each."""
        return 1.0

    def _check(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__} got a tensor {tuple(x.shape)}; expected (batch, heads, tokens, "
                f"{self.dim})."
            )


class YaRNEmbeddings(RoPEEmbeddings):
    """YaRN: RoPE for windows longer than a model was trained with.

    ``context_len``: the length it was trained with; ``context_len_ext``: the longest it is extended to;
    ``alpha`` and ``beta``: turns over ``context_len`` below which a frequency is interpolated fully and above
    which not at all; ``length_scale``: what queries and keys are multiplied by, None for 0.1 ln s + 1. The
    extension is s = total_seq_len / context_len, at least 1 and at most context_len_ext / context_len. The
    layers pass the length of their window as ``total_seq_len``: no two tokens that attend to each other are
    further apart, and neither how the input is cut nor how long it becomes may change what was said before.

    ``dim_embeddings_pct`` and ``len_scale`` are accepted for ``dim_embedding_pct`` and ``length_scale``.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        context_len: int,
        context_len_ext: int,
        dim_embedding_pct: float = 0.5,
        base: int = 10000,
        alpha: int = 1,
        beta: int = 32,
        length_scale: float | None = None,
        **others: Any,
    ) -> None:
        owner = type(self)
        length_scale = either_spelling(owner, others, "length_scale", length_scale, None)
        pct = either_spelling(owner, others, "dim_embedding_pct", dim_embedding_pct, 0.5)
        refuse_unknown(owner, others)
        super().__init__(dim, seq_len, pct, base)
        require_counts(owner, context_len=context_len, context_len_ext=context_len_ext)
        if context_len_ext < context_len:
            raise ValueError(
                f"{owner.__name__}: context_len_ext is {context_len_ext}; it must be at least context_len, "
                f"{context_len}."
            )
        if not 0 <= alpha < beta:
            raise ValueError(f"{owner.__name__}: alpha is {alpha} and beta {beta}; alpha must be below beta.")
        self.context_len, self.context_len_ext = context_len, context_len_ext
        self.alpha, self.beta, self.length_scale = alpha, beta, length_scale

    def forward(  # type: ignore[override]  # the original, too, requires the length here and not in RoPE
        self, x: Tensor, total_seq_len: int, offset: int = 0, select_mask: Tensor | None = None
    ) -> Tensor:
        """x [B, H, S, dim] -> the same; ``total_seq_len`` sets the extension."""
        return super().forward(x, total_seq_len, offset, select_mask)

    def extension(self, total_seq_len: int) -> float:
        """s: how many times ``context_len`` is extended."""
        return max(1.0, min(total_seq_len, self.context_len_ext) / self.context_len)

    def frequencies(self, theta: Tensor, total_seq_len: int) -> Tensor:
        """Slow pairs by s slower, fast ones as they are, a ramp between."""
        turns = self.context_len * theta / (2 * math.pi)
        kept = ((turns - self.alpha) / (self.beta - self.alpha)).clamp(0, 1)
        return theta * (kept + (1 - kept) / self.extension(total_seq_len))

    def scale(self, total_seq_len: int) -> float:
        """``length_scale``, or the paper's 0.1 ln s + 1."""
        if self.length_scale is not None:
            return self.length_scale
        return 0.1 * math.log(self.extension(total_seq_len)) + 1
