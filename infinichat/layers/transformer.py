"""A transformer layer on Infini-attention: LayerNorm(x + mlp(attn(x))), as the original has it.

One residual goes around attention and MLP together, and the norm comes after the sum; who wants another
arrangement has ``CompressiveMemory`` itself. Padding comes out as zeros.
"""

from __future__ import annotations

from typing import Any, Literal, overload

from torch import Tensor, nn

from infinichat.layers.activations import make_activation
from infinichat.layers.arguments import either_spelling, refuse_unknown, require_counts
from infinichat.layers.checks import check_mask
from infinichat.layers.compressive_memory import CompressiveMemory
from infinichat.layers.positions import PositionEmbeddings
from infinichat.layers.state import InfiniState


class InfiniTransformer(nn.Module):
    """``CompressiveMemory``, then Linear, Dropout, activation, Linear, Dropout, added to x and normed.

    ``dim_hidden``: the MLP's width; ``activation``: a name in ``ACTIVATIONS``; ``dropout``: of the MLP. All
    other arguments are those of ``CompressiveMemory``, and so are the errors. state_dict: ``attn.*``,
    ``mlp.0.*``, ``mlp.3.*``, ``layer_norm.*``, and ``mlp.2.*`` where the activation has parameters.
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
        update: str = "linear",
        causal: bool = False,
        position_embedder: PositionEmbeddings | Literal["rope"] | None = None,
        init_state_learnable: bool = False,
        dropout: float = 0.0,
        *,
        sampling_factor: float | None = None,
        num_kv_heads: int | None = None,
        window_len: int | None = None,
        full_segment_len: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        owner = type(self)
        embedder = either_spelling(owner, others, "position_embedder", position_embedder, None)
        refuse_unknown(owner, others)
        require_counts(owner, dim_hidden=dim_hidden)
        self.attn = CompressiveMemory(
            dim_input,
            dim_key,
            dim_value,
            num_heads,
            segment_len,
            sampling_factor,
            update,
            causal,
            embedder,
            init_state_learnable,
            num_kv_heads=num_kv_heads,
            window_len=window_len,
            full_segment_len=full_segment_len,
        )
        self.mlp = nn.Sequential(
            nn.Linear(dim_input, dim_hidden),
            nn.Dropout(dropout),
            make_activation(activation, dim_hidden),
            nn.Linear(dim_hidden, dim_input),
            nn.Dropout(dropout),
        )
        self.layer_norm = nn.LayerNorm(dim_input)

    def initial_state(self, batch: int) -> InfiniState:
        """The state before the first token of ``batch`` sequences."""
        return self.attn.initial_state(batch)

    @overload
    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = ...,
        state: InfiniState | None = ...,
        return_state: Literal[True],
    ) -> tuple[Tensor, InfiniState]: ...

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        state: InfiniState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, InfiniState]:
        """x [B, S, dim_input] -> the same shape, and the state after it where ``return_state``;
        ``padding_mask`` [B, S] and ``state`` as in ``CompressiveMemory.forward``."""
        attended, after = self.attn(x, padding_mask=padding_mask, state=state, return_state=True)
        if padding_mask is None:
            out = self.layer_norm(x + self.mlp(attended))
        else:
            padding = ~check_mask(self, "padding_mask", padding_mask, x.shape[:2])[..., None]
            # Before the sum, too: numbers that are not finite would reach the gradients.
            out = self.layer_norm(x.masked_fill(padding, 0) + self.mlp(attended)).masked_fill(padding, 0)
        return (out, after) if return_state else out
