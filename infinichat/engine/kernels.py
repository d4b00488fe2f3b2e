"""One token through the whole model: the hot path of an answer, replaceable as a whole.

A ``Step`` takes a cache and an id and does what the model's forward does for that one id: it folds away what
has to leave, appends keys and values, moves the counts and sets ``last_hidden``. Two exist:

    ModuleStep   the model's own forward: the definition, for every device and every kind of layer
    PlainStep    the same arithmetic on plain tensors for one conversation on the CPU: query, key and value
                 weights fused, gate and up fused, weights in any format of ``quantize``, no modules on the
                 way

With float32 weights PlainStep equals ModuleStep up to rounding, and a test says so; where 60 % of the time is
not in matrix products, fewer and cheaper calls are what counts. Something faster (a compiled graph, a native
operator) is one more class with these three methods.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from infinichat.attention.window import inverse_frequencies
from infinichat.engine.quantize import Product, WeightFormat
from infinichat.model.adapters import Carried
from infinichat.model.cache import InfiniCache
from infinichat.model.memories import PaperMemory, ResidualMemory
from infinichat.model.modeling_infini import InfiniDecoderLayer, InfiniForCausalLM, RMSNorm
from infinichat.model.rope import scaled_frequencies


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


class ModuleStep:
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


class PlainStep:
    """``ModuleStep`` on plain tensors, for batch 1 on the CPU. The residual stream is float32."""

    def __init__(
        self, model: InfiniForCausalLM, *, format: WeightFormat, head: WeightFormat | None = None
    ) -> None:
        """Packs copies of the model's weights in ``format``; the vocabulary head in ``head`` (default: the
        same). The model stays as it is and may have another dtype."""
        config = model.config
        self._model = model.model
        self._embedding = model.model.embed_tokens.weight
        self.layers = [_Layer(layer, format) for layer in model.model.layers]
        self._norm = _Norm(model.model.norm)
        self._head = Product(model.lm_head.weight, format=head or format)
        rope = config.infini_rope
        plain = inverse_frequencies(config.head_dim, rope["theta"])
        self._inv_freq = scaled_frequencies(plain, rope["scaling"])
        self._sinks = config.sinks
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim = config.head_dim
        self._scale = torch.ones(self._heads + self._kv_heads, 1)
        self._scale[: self._heads] = self._dim**-0.5
        # The constant last slot makes the vector's norm include eps: |[h, sqrt(C eps)]|^2 = |h|^2 + C eps.
        self._residual = torch.empty(1, config.hidden_size + 1)
        self._residual[0, -1] = (config.hidden_size * config.rms_norm_eps) ** 0.5

    @staticmethod
    def fits(model: InfiniForCausalLM) -> bool:
        """Whether this step knows every layer of ``model``; otherwise ``ModuleStep`` has to run it."""
        known = (PaperMemory, ResidualMemory)
        return all(layer.memory is None or isinstance(layer.memory, known) for layer in model.model.layers)

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
        embedded = self._embedding[token_id][None, None]
        h.copy_(embedded[0])
        cos, sin = self._angles(cache.seen)
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
            turned = qkv[: self._heads + self._kv_heads]
            # One multiply-add rotates queries and keys together; the table holds the signs and the scale.
            turned = torch.addcmul(turned * cos, turned.roll(self._dim // 2, 1), sin)
            state.k.append(turned[None, self._heads :, None])
            state.v.append(qkv[None, self._heads + self._kv_heads :, None])
            keys = (state.k.with_front if front else state.k.content)[0]
            values = (state.v.with_front if front else state.v.content)[0]
            q = turned[: self._heads].to(keys.dtype).view(self._kv_heads, -1, self._dim)
            weights = torch.softmax(torch.bmm(q, keys.transpose(1, 2)), dim=-1)
            out = torch.bmm(weights, values)  # [Hkv, G, D]
            if state.memory is not None and isinstance(layer.memory, PaperMemory):
                assert state.memory_k is not None
                plain_q = qkv[None, : self._heads, None]
                out = layer.memory.attend(out.view(1, self._heads, 1, self._dim), plain_q, state.memory)
                state.memory_k.append(qkv[None, self._heads : self._heads + self._kv_heads, None])
            mixed = out.reshape(1, -1)
            h.add_(layer.out(mixed.to(layer.out.dtype)))
            if changing is not None:
                adapters, opened = changing
                h.add_(adapters.out(number, mixed.float(), opened[0]))
            if state.memory is not None and isinstance(layer.memory, ResidualMemory):
                ids = torch.tensor([[token_id]])
                read, more = layer.memory(h[None], x[None], state, real=None, embeddings=embedded, ids=ids)
                h.copy_(read[0])
                told += [] if more is None else [more]
            gate, up = layer.gate_up(layer.mlp_norm(residual)).chunk(2, dim=1)
            h.add_(layer.down(layer.activation(gate).mul_(up)))
        cache.ids.append(torch.tensor([[token_id]]))
        cache.slots_fed += 1
        cache.seen += 1
        final = self._norm(residual)
        for carried in told:
            final = carried.spoken(final[None])[0]
        cache.last_hidden = final.to(cache.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden.to(self._head.dtype))[0]

    def _angles(self, position: int) -> tuple[Tensor, Tensor]:
        """Tables [H + Hkv, D] for queries and keys; the queries' rows carry the attention's scale, the first
        half of sin its sign."""
        angles = position * self._inv_freq  # float64, exact at any position
        cos, sin = angles.cos().float(), angles.sin().float()
        return self._scale * torch.cat((cos, cos)), self._scale * torch.cat((-sin, sin))


class _Norm:
    """x / rms(x) * weight for the residual with its constant last slot: [1, C + 1] to [1, C]."""

    __slots__ = ("_dtype", "_weight")

    def __init__(self, norm: RMSNorm, dtype: torch.dtype = torch.float32) -> None:
        self._weight = norm.weight.detach().float() * norm.weight.shape[0] ** 0.5
        self._dtype = dtype

    def __call__(self, residual: Tensor) -> Tensor:
        scaled = residual[:, :-1] * self._weight
        normed: Tensor = scaled.div_(torch.linalg.vector_norm(residual))
        return normed.to(self._dtype)


class _Layer:
    """One decoder layer's weights as products."""

    __slots__ = ("activation", "down", "gate_up", "input_norm", "memory", "mlp_norm", "out", "qkv")

    def __init__(self, layer: InfiniDecoderLayer, format: WeightFormat) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj, format=format)
        self.out = _fused(attention.o_proj, format=format)
        self.gate_up = _fused(mlp.gate_proj, mlp.up_proj, format=format)
        self.down = _fused(mlp.down_proj, format=format)
        self.input_norm = _Norm(layer.input_layernorm, self.qkv.dtype)
        self.mlp_norm = _Norm(layer.post_attention_layernorm, self.gate_up.dtype)
        self.activation = mlp.act_fn
        self.memory = layer.memory

    @property
    def nbytes(self) -> int:
        return self.qkv.nbytes + self.out.nbytes + self.gate_up.nbytes + self.down.nbytes


def _fused(*linears: nn.Linear, format: WeightFormat) -> Product:
    """The outputs of several linears of one input beside each other."""
    biases = [tensor for linear in linears for name, tensor in linear.named_parameters() if name == "bias"]
    bias = torch.cat(tuple(biases)) if biases else None
    return Product(torch.cat([linear.weight for linear in linears]), bias, format=format)
