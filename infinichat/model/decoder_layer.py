"""One layer of the decoder: exact attention over the window, and the memory that the layer may have.

    x = norm(h);  h += attention(x);  h += what a recall memory reads;  h += MLP(norm(h))

The paper's memory is mixed into attention's output instead. Parameters have transformers' names.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from infinichat.attention.window import blockwise_attention, local_attention, rotate
from infinichat.model.bank_memory import BankMemory
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.decoder_parts import mlp_of, norm_of
from infinichat.model.layer_state import LayerState
from infinichat.model.memories import PaperMemory, RecallMemory, ResidualMemory, is_paper, is_residual
from infinichat.model.segments import SegmentPlan


class AttentionKernel(Protocol):
    """Another way to attend, for whoever knows the machine."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor | None:
        """``local_attention`` of T new tokens q [B, H, T, D], the last T of the N that k and v [B, Hkv, N, D]
        hold: each sees those before it and itself. None where it does not fit."""
        ...


class InfiniAttention(nn.Module):
    """Exact attention over the window, and the paper's memory where the layer has one."""

    kernel: AttentionKernel | None = None

    def __init__(self, config: InfiniConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = (config.query_pre_attn_scalar or config.head_dim) ** -0.5
        self.softcap, self.slides = config.attn_logit_softcapping, config.slides(layer_idx)
        hidden, biased = config.hidden_size, config.biased
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias="q" in biased)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias="k" in biased)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias="v" in biased)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias="o" in biased)
        self.q_norm = norm_of(config, self.head_dim) if config.use_qk_norm else None
        self.k_norm = norm_of(config, self.head_dim) if config.use_qk_norm else None

    def forward(
        self,
        x: Tensor,
        plan: SegmentPlan,
        state: LayerState,
        memory: PaperMemory | None,
        *,
        last: bool = False,
    ) -> Tensor:
        """x [B, T, C] to [B, T, C]; the T new keys and values are added to ``state``'s window. ``last``: only
        the last token's output [B, 1, C], for a layer without memory."""
        asked = x[:, -1:] if last else x
        flat_q, flat_k, flat_v = self.q_proj(asked), self.k_proj(x), self.v_proj(x)
        if plan.changing is not None:
            adapters, opened = plan.changing
            changed_q, changed_k, changed_v = adapters.qkv(self.layer_idx, x, opened)
            flat_q = flat_q + (changed_q[:, -1:] if last else changed_q)
            flat_k, flat_v = flat_k + changed_k, flat_v + changed_v
        q, k, v = (
            flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for flat in (flat_q, flat_k, flat_v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        sight = plan.sliding if self.slides else plan.full
        state.k.append(rotate(k, sight.cos, sight.sin))
        state.v.append(v)
        keys = state.k.with_front if plan.use_front else state.k.content
        values = state.v.with_front if plan.use_front else state.v.content
        if last:
            turned = rotate(q, sight.cos[-1:], sight.sin[-1:])
            if sight.span is not None:
                keys, values = keys[:, :, -sight.span :], values[:, :, -sight.span :]
            out = local_attention(turned, keys, values, scale=self.scale, mask=None, softcap=self.softcap)
        else:
            turned = rotate(q, sight.cos, sight.sin)
            plain = sight.causal and sight.span is None and plan.real is None and self.softcap is None
            own = self.kernel if plain else None
            got = None if own is None else own(turned, keys, values, self.scale)
            if got is None:
                got = blockwise_attention(
                    turned, keys, values, scale=self.scale, blocks=sight.blocks, softcap=self.softcap
                )
            out = got
        if memory is not None and state.memory is not None and state.memory_k is not None:
            out = memory.attend(out, q, state.memory)
            state.memory_k.append(k)
        flat = out.transpose(1, 2).flatten(2)
        projected: Tensor = self.o_proj(flat)
        if plan.changing is not None:
            adapters, opened = plan.changing
            projected = projected + adapters.out(self.layer_idx, flat, opened[:, -1:] if last else opened)
        return projected


class InfiniDecoderLayer(nn.Module):
    """Attention and MLP with pre-norms, of some families also with norms after them; a recall memory adds its
    read between the two."""

    def __init__(self, config: InfiniConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = InfiniAttention(config, layer_idx)
        self.mlp = mlp_of(config, layer_idx)
        self.input_layernorm = norm_of(config)
        # Gemma 2 calls the norm after attention what Llama calls the one before the MLP.
        self.post_attention_layernorm = norm_of(config)
        self.pre_feedforward_layernorm = norm_of(config) if config.post_norms else None
        self.post_feedforward_layernorm = norm_of(config) if config.post_norms else None
        self.memory: PaperMemory | ResidualMemory | None = None
        if layer_idx in config.memory_layers:
            if config.memory == "bank":
                self.memory = BankMemory(config, layer_idx)
            else:
                self.memory = (RecallMemory if config.memory == "recall" else PaperMemory)(config)

    def forward(self, h: Tensor, plan: SegmentPlan, state: LayerState, *, last: bool = False) -> Tensor:
        """h [B, T, C] to [B, T, C], or [B, 1, C] with ``last`` (see ``InfiniAttention``)."""
        x = self.input_layernorm(h)
        h = self.after_attention(h, x, plan, state, last=last)
        if is_residual(self.memory) and state.memory is not None:
            h, carried = self.memory(h, x, state, real=plan.real, embeddings=plan.embeddings, ids=plan.ids)
            if carried is not None:
                plan.carried.append(carried)
        return self.after_mlp(h)

    def after_attention(
        self, h: Tensor, x: Tensor, plan: SegmentPlan, state: LayerState, *, last: bool = False
    ) -> Tensor:
        """h [B, T, C], whose normed form is x, with what attention adds."""
        mixed = self.memory if is_paper(self.memory) else None
        attended: Tensor = self.self_attn(x, plan, state, mixed, last=last)
        if self.pre_feedforward_layernorm is not None:
            attended = self.post_attention_layernorm(attended)
        return (h[:, -1:] if last else h) + attended

    def after_mlp(self, h: Tensor) -> Tensor:
        """h [B, T, C] with what the MLP adds."""
        added: Tensor = self.mlp((self.pre_feedforward_layernorm or self.post_attention_layernorm)(h))
        if self.post_feedforward_layernorm is not None:
            added = self.post_feedforward_layernorm(added)
        return h + added
