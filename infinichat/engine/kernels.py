"""One token through the whole model: the hot path of an answer, replaceable as a whole.

A ``Step`` takes a cache and an id and does what the model's forward does for that one id: it folds away what
has to leave, appends keys and values, moves the counts and sets ``last_hidden``. Two exist:

    ModuleStep   the model's own forward: the definition, for every device and every kind of layer
    PlainStep    the same arithmetic on plain tensors for one conversation on the CPU: query, key and value
                 weights fused, gate and up fused, weights in any format of ``quantize``, no modules on the
                 way

With float32 weights PlainStep equals ModuleStep up to rounding, and a test says so; where 60 % of the time is
not in matrix products, fewer and cheaper calls are what counts. Something faster (a compiled graph, a native
operator) is one more class with these methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.engine.quantize import Product, WeightFormat
from infinichat.model.adapters import Carried
from infinichat.model.cache import InfiniCache
from infinichat.model.decoder_layer import InfiniDecoderLayer
from infinichat.model.decoder_parts import InfiniMLP, RMSNorm, scaled
from infinichat.model.memories import PaperMemory, ResidualMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.rope import Rotation, rotations
from infinichat.model.stored import StoredLinear


class Step(Protocol):
    """One id at a time. ``weights`` names the format of the weights that run, for reports."""

    @property
    def weights(self) -> str: ...

    def feed(self, cache: InfiniCache, token_id: int) -> None:
        """Add one token to ``cache`` and set its ``last_hidden`` [1, C]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [V] of the next token for ``last_hidden`` [1, C]."""
        ...

    def feed_each(self, caches: Sequence[InfiniCache], token_ids: Sequence[int]) -> None:
        """``feed`` one token to each of different caches of batch 1, as long as they are."""
        ...

    def logits_each(self, hidden: Tensor) -> Tensor:
        """Scores [B, V] for the ``last_hidden`` of B caches, [B, C]."""
        ...


class OneByOne(ABC):
    """A step that takes several caches one after the other."""

    @abstractmethod
    def feed(self, cache: InfiniCache, token_id: int) -> None: ...

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor: ...

    def feed_each(self, caches: Sequence[InfiniCache], token_ids: Sequence[int]) -> None:
        for cache, token_id in zip(caches, token_ids, strict=True):
            self.feed(cache, token_id)

    def logits_each(self, hidden: Tensor) -> Tensor:
        return torch.stack([self.logits(hidden[row : row + 1]) for row in range(hidden.shape[0])])


class ModuleStep(OneByOne):
    """The model's forward."""

    def __init__(self, model: InfiniForCausalLM) -> None:
        self._model = model

    @property
    def weights(self) -> str:
        return str(self._model.lm_head.weight.dtype).removeprefix("torch.")

    def feed(self, cache: InfiniCache, token_id: int) -> None:
        ids = torch.tensor([[token_id]], device=cache.device)
        self._model.model(input_ids=ids, past_key_values=cache, keep=1)

    def logits(self, hidden: Tensor) -> Tensor:
        scores: Tensor = self._model.lm_head(hidden)[0]
        return scores


class PlainStep(OneByOne):
    """``ModuleStep`` on plain tensors, for batch 1 on the CPU. The residual stream is float32."""

    def __init__(
        self, model: InfiniForCausalLM, *, format: WeightFormat, head: WeightFormat | None = None
    ) -> None:
        """Packs copies of the model's weights in ``format``; the vocabulary head in ``head`` (default: the
        same). The model stays as it is and may have another dtype."""
        config = model.config
        self._model = model.model
        self._embedding, self._multiplier = model.model.embed_tokens.weight, config.embedding_multiplier
        self.layers = [_Layer(layer, format) for layer in model.model.layers]
        self._norm = _Norm(model.model.norm)
        self._head = Product(model.lm_head.weight, format=head or format)
        self._head_cap, self._cap = config.final_logit_softcapping, config.attn_logit_softcapping
        self._rotations = rotations(config)
        self._sinks, self._span = config.sinks, config.sliding_window
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim = config.head_dim
        self._scale = torch.ones(self._heads + self._kv_heads, 1)
        self._scale[: self._heads] = model.model.layers[0].self_attn.scale
        # Of heads that are rotated in part: with what each channel is rotated, the others with themselves.
        half = config.rotary_dim // 2
        rest = torch.arange(2 * half, self._dim)
        self._partner = torch.cat((torch.arange(half, 2 * half), torch.arange(half), rest))
        self._still = len(rest)
        # The constant last slot makes the vector's norm include eps: |[h, sqrt(C eps)]|^2 = |h|^2 + C eps.
        self._residual = torch.empty(1, config.hidden_size + 1)
        self._residual[0, -1] = (config.hidden_size * config.rms_norm_eps) ** 0.5

    @staticmethod
    def fits(model: InfiniForCausalLM) -> bool:
        """Whether this step knows every layer of ``model``; otherwise ``ModuleStep`` has to run it."""
        known = (PaperMemory, ResidualMemory)
        layers = model.model.layers
        plain = all(isinstance(layer.mlp, InfiniMLP) for layer in layers)
        return plain and all(layer.memory is None or isinstance(layer.memory, known) for layer in layers)

    @property
    def weights(self) -> str:
        """The layers' format (the head may have another one)."""
        return self.layers[0].down.format

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights: what one token reads."""
        return self._head.nbytes + sum(layer.nbytes for layer in self.layers)

    def share_embedding(self) -> None:
        """Use the model's embedding as it is now, after its dtype was changed; the old one can then go."""
        self._embedding = self._model.embed_tokens.weight

    def feed(self, cache: InfiniCache, token_id: int) -> None:
        self._model.evict(cache)
        residual = self._residual
        h = residual[:, :-1]
        embedded = scaled(self._embedding[token_id][None, None], self._multiplier)
        h.copy_(embedded[0])
        full = self._angles(cache.seen, self._rotations.full)
        other = self._rotations.sliding is not self._rotations.full
        sliding = self._angles(cache.seen, self._rotations.sliding) if other else full
        front = cache.evicted > 0 and self._sinks > 0
        told: list[Carried] = []
        for number, (layer, state) in enumerate(zip(self.layers, cache.states, strict=True)):
            x = layer.input_norm(residual)
            flat = layer.qkv(x)
            changing = told[-1].changing if told else None
            if changing is not None:
                adapters, opened = changing
                changed = adapters.qkv(number, x.float(), opened[0])
                flat = flat + torch.cat(changed, dim=-1).to(flat.dtype)
            qkv = flat[0].view(-1, self._dim)  # [H + 2 Hkv, D]
            plain = qkv[: self._heads + self._kv_heads]
            if layer.head_norm is not None:
                plain = layer.head_norm(plain)
            # One multiply-add rotates queries and keys together; the table holds the signs and the scale.
            cos, sin = sliding if layer.slides else full
            turned = torch.addcmul(plain * cos, self._partners(plain), sin)
            state.k.append(turned[None, self._heads :, None])
            state.v.append(qkv[None, self._heads + self._kv_heads :, None])
            keys = (state.k.with_front if front else state.k.content)[0]
            values = (state.v.with_front if front else state.v.content)[0]
            if layer.slides:
                assert self._span is not None
                keys, values = keys[:, -self._span :], values[:, -self._span :]
            q = turned[: self._heads].to(keys.dtype).view(self._kv_heads, -1, self._dim)
            scores = torch.bmm(q, keys.transpose(1, 2))
            if self._cap is not None:
                scores = torch.tanh(scores / self._cap) * self._cap
            out = torch.bmm(torch.softmax(scores, dim=-1), values)  # [Hkv, G, D]
            if state.memory is not None and isinstance(layer.memory, PaperMemory):
                assert state.memory_k is not None
                plain_q = plain[None, : self._heads, None]
                out = layer.memory.attend(out.view(1, self._heads, 1, self._dim), plain_q, state.memory)
                state.memory_k.append(plain[None, self._heads :, None])
            mixed = out.reshape(1, -1)
            attended = layer.out(mixed.to(layer.out.dtype))
            if changing is not None:
                adapters, opened = changing
                attended = attended + adapters.out(number, mixed.float(), opened[0])
            h.add_(attended if layer.out_norm is None else layer.out_norm(attended.float()))
            if state.memory is not None and isinstance(layer.memory, ResidualMemory):
                ids = torch.tensor([[token_id]])
                read, more = layer.memory(h[None], x[None], state, real=None, embeddings=embedded, ids=ids)
                h.copy_(read[0])
                told += [] if more is None else [more]
            gate, up = layer.gate_up(layer.mlp_norm(residual)).chunk(2, dim=1)
            added = layer.down(layer.activation(gate).mul_(up))
            h.add_(added if layer.down_norm is None else layer.down_norm(added.float()))
        cache.ids.append(torch.tensor([[token_id]]))
        cache.slots_fed += 1
        cache.seen += 1
        final = self._norm(residual)
        for carried in told:
            final = carried.spoken(final[None])[0]
        cache.last_hidden = final.to(cache.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        scores = self._head(hidden.to(self._head.dtype))[0]
        cap = self._head_cap
        return scores if cap is None else torch.tanh(scores.float() / cap) * cap

    def _partners(self, heads: Tensor) -> Tensor:
        """What each channel of heads [n, D] is rotated with."""
        return heads[:, self._partner] if self._still else heads.roll(self._dim // 2, 1)

    def _angles(self, position: int, by: Rotation) -> tuple[Tensor, Tensor]:
        """Tables [H + Hkv, D] for queries and keys; the queries' rows carry the attention's scale, the first
        half of sin its sign."""
        angles = position * by.inv_freq  # float64, exact at any position
        cos, sin = angles.cos().float() * by.scale, angles.sin().float() * by.scale
        cosine, sine = torch.cat((cos, cos)), torch.cat((-sin, sin))
        if self._still:
            cosine = F.pad(cosine, (0, self._still), value=1.0)
            sine = F.pad(sine, (0, self._still))
        return self._scale * cosine, self._scale * sine


class _Norm:
    """x / rms(x) * weight for the residual with its constant last slot: [1, C + 1] to [1, C]."""

    __slots__ = ("_dtype", "_weight")

    def __init__(self, norm: RMSNorm, dtype: torch.dtype = torch.float32) -> None:
        self._weight = norm.gain.detach().float() * norm.weight.shape[0] ** 0.5
        self._dtype = dtype

    def __call__(self, residual: Tensor) -> Tensor:
        scaled = residual[:, :-1] * self._weight
        normed: Tensor = scaled.div_(torch.linalg.vector_norm(residual))
        return normed.to(self._dtype)


class _RowNorm:
    """x / rms(x) * weight for each row of x [n, C], with a weight for all rows or [n, C]."""

    __slots__ = ("_eps", "_weight")

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight, self._eps = weight.detach().float(), eps

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self._eps)
        return (normed * self._weight).to(x.dtype)


class _Layer:
    """One decoder layer's weights as products; ``head_norm`` is that of queries and keys, ``out_norm`` and
    ``down_norm`` come after attention and MLP, None where there is none."""

    __slots__ = (
        "activation",
        "down",
        "down_norm",
        "gate_up",
        "head_norm",
        "input_norm",
        "memory",
        "mlp_norm",
        "out",
        "out_norm",
        "qkv",
        "slides",
    )

    def __init__(self, layer: InfiniDecoderLayer, format: WeightFormat) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(mlp, InfiniMLP)
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj, format=format)
        self.out = _fused(attention.o_proj, format=format)
        self.gate_up = _fused(mlp.gate_proj, mlp.up_proj, format=format)
        self.down = _fused(mlp.down_proj, format=format)
        self.input_norm = _Norm(layer.input_layernorm, self.qkv.dtype)
        before, after = layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm
        self.mlp_norm = _Norm(before or layer.post_attention_layernorm, self.gate_up.dtype)
        self.out_norm = self.down_norm = self.head_norm = None
        if after is not None:
            self.out_norm = _RowNorm(layer.post_attention_layernorm.gain, after.eps)
            self.down_norm = _RowNorm(after.gain, after.eps)
        if attention.q_norm is not None and attention.k_norm is not None:
            gains = [attention.q_norm.gain] * attention.heads + [attention.k_norm.gain] * attention.kv_heads
            self.head_norm = _RowNorm(torch.stack(gains), attention.q_norm.eps)
        self.slides = attention.slides
        self.activation = mlp.act_fn
        self.memory = layer.memory

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.out.nbytes + self.gate_up.nbytes + self.down.nbytes


def _fused(*linears: nn.Linear, format: WeightFormat) -> Product:
    """The outputs of several linears of one input beside each other."""
    return Product(torch.cat([linear.weight for linear in linears]), joined_bias(linears), format=format)


def joined_bias(linears: Sequence[nn.Linear | StoredLinear]) -> Tensor | None:
    """The biases of linears beside each other, zeros for those without one; None where none has one."""
    # Not "linear.bias is None": a Linear says that it always has one.
    found = [dict(linear.named_parameters()).get("bias") for linear in linears]
    if all(bias is None for bias in found):
        return None
    rows = [each.out_features if isinstance(each, nn.Linear) else each.store.shape[0] for each in linears]
    return torch.cat([torch.zeros(n) if b is None else b.float() for n, b in zip(rows, found, strict=True)])
