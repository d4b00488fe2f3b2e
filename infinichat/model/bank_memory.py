"""The parameters of a memory with a bank of exact pairs beside its matrix: what the shipped checkpoint uses.

One projection makes keys and queries: what position t asks for is what the token after it is stored under, so
telling and asking meet wherever the words before the value are alike::

    f_t   = x_t .. x_{t-3}, e_t .. e_{t-5}     the layer's normed inputs and the token embeddings (unit rms)
    q_t   = headwise_unit(W [f_t, o_t]),   k_t = q_{t-1},   m_t = unit(W' f_{t-1}),   n'_t = n' + w' f_{t-1}
    a_t   = w y_t + c + o silu(G y_t + g),   y_t = x_t .. x_{t-3}
    b_t   = hard_gate(max(a_t, min(a_t + 5, a_{t+1}), a_t + 4 where b_{t-1} > 0))      exactly 0 for almost
                                                                                       every token
    v, n, e = bank read, its null weight, how much of that is a value that has ended;  m = matrix read
    h_t  += i_t g_t (alpha W_om (v + n mu m) + (1 - n) w + e w' + u + B z_t)
    z_t   = silu(A [x_t, 1 - n, e] + a),   i_t = max(open(D [x_t, 1 - n, e, z_t] + d), G - e)

and i_t v is carried on to the layers above, with i_t for their adapters (``adapters``). It is 0 almost
everywhere but in answers: a novel's words often look like something asked for, and are predicted worse with
what they find. (``infinichat.attention.bank``, ``.memory``; o_t are the topic heads of ``.topics``, if any.)
A token is written as soon as the one after it has been read, and nearly is enough if that one opens the gate
or the one before is written: of "Wednesdays" both parts, and of "The pass key is 59306" the blank before the
digits is a token of its own, after which anything might have come, and without it the value is not found. A
token does not wait until it leaves the window, where a small model finds little: of 24 things told a few
hundred tokens before, SmolLM2-135M said one with a memory written later, and 20 with one written at once.
Everything written goes into the matrix M by the per-token delta rule as well, so what the bank has to let go
is still there, blurred; mu says how much of that is read. The mark m decides what a token replaces, the key
k what it answers. With alpha, w, u and B at zero, the untrained start, nothing is added.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.attention.bank import BankRule, bank_read, bank_write, headwise_unit, unit, with_neighbours
from infinichat.attention.infini import ending, hard_gate, ragged_taps, recall_features, recall_read, taps
from infinichat.attention.memory import wide, write_delta
from infinichat.model.adapters import Adapters, Carried, wide_open
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.layer_state import TOKEN_TAPS, LayerState
from infinichat.model.looked_back import LookedBack
from infinichat.model.memories import ResidualMemory
from infinichat.model.topics import Topics

STATE_TAPS = 4
"""Inputs of the layer that make a context, the present one included."""

ADAPTER_RANK, GATE_RANK = 64, 32
"""Hidden units of the adapter of reads, and of the write gate."""


class BankMemory(ResidualMemory):
    """With C = hidden size, H heads, Dk key width, K = H Dk, N topic heads: ``context`` [K, (10 + N) C],
    ``topics`` (None without any; ``model.topics``), ``fade`` [F, 10 C], ``head_weight`` [H], the scalars of
    ``BankRule`` (``beta`` as a logarithm; ``erase`` [3]: ``alike`` and ``force`` as logarithms, ``new``),
    ``novelty`` [10 C], the write gate ``gate_taps`` [n, C], ``gate_bias``, ``gate_in`` [32, n C],
    ``gate_in_bias`` and ``gate_out`` [32], ``matrix_gain`` and ``softness`` [H] for the matrix, ``out`` [C,
    C], ``alpha``, ``confidence``, ``ending`` and ``found_bias`` [C], the token gate ``read_gate`` [C],
    ``read_confidence`` [2] (of what is found and of what has ended), ``read_bias``, and the adapter
    ``adapt_in`` [64, C + 2], ``adapt_in_bias``, ``adapt_out`` [C, 64]. For what is carried on: ``carry`` [2,
    C + 66] and ``carry_bias`` [2] (how far the adapters open, and whether the values are said), ``say_final``
    [C], ``say_out`` [C, C], ``say`` and, with a ``memory_rank``, ``adapters`` for the layers above
    ``layer``."""

    def __init__(self, config: InfiniConfig, layer: int) -> None:
        super().__init__(config)
        hidden, heads, rank = config.hidden_size, config.memory_heads, ADAPTER_RANK
        looked_at = config.memory_gate_taps * hidden

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape))

        self.width, around = heads * config.memory_key_dim, (STATE_TAPS + TOKEN_TAPS + 1) * hidden
        self.topics = Topics(hidden, config.memory_topics) if config.memory_topics else None
        self.context = parameter(self.width, around + config.memory_topics * hidden)
        self.fade = parameter(config.memory_fade_dim, around)
        self.head_weight = parameter(heads)
        self.beta, self.null, self.recency, self.erase = parameter(), parameter(), parameter(), parameter(3)
        self.novelty = parameter(around)
        self.gate_in, self.gate_in_bias = parameter(GATE_RANK, looked_at), parameter(GATE_RANK)
        self.gate_out = parameter(GATE_RANK)
        self.matrix_gain, self.softness = parameter(), parameter(heads)
        self.out, self.alpha = parameter(hidden, hidden), parameter()
        self.confidence, self.ending = parameter(hidden), parameter(hidden)
        self.found_bias, self.read_gate = parameter(hidden), parameter(hidden)
        self.read_confidence, self.read_bias = parameter(2), parameter()
        self.adapt_in, self.adapt_in_bias = parameter(rank, hidden + 2), parameter(rank)
        self.adapt_out = parameter(hidden, rank)
        self.carry, self.carry_bias = parameter(2, hidden + 2 + rank), parameter(2)
        self.say_final, self.say_out, self.say = parameter(hidden), parameter(hidden, hidden), parameter()
        self.adapters: Adapters | None = None
        if config.memory_rank and layer + 1 < config.num_hidden_layers:
            self.adapters = Adapters(config, below=layer, rank=config.memory_rank)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The untrained start: a read adds 0, and gradients exist."""
        super().reset_parameters()
        for matrix in (self.context, self.fade, self.adapt_in, self.gate_in):
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
        closed = [self.alpha, self.confidence, self.ending, self.found_bias, self.adapt_out, self.say]
        neutral = [self.head_weight, self.adapt_in_bias, self.read_gate, self.read_confidence]
        neutral += [self.gate_in_bias, self.gate_out]
        neutral += [self.matrix_gain, self.novelty, self.carry, self.carry_bias, self.say_final]
        for parameter in (*closed, *neutral):
            parameter.zero_()
        starts = {"beta": 2.7, "null": 0.5, "recency": 0.2, "softness": 0.5, "read_bias": 1.0}
        for name, value in starts.items():
            self.get_parameter(name).fill_(value)
        # Taking more than 3 nats (e^1.1) makes some corrections surer and costs more than that elsewhere:
        # what was wrongly taken for a correction is not found any more.
        self.erase.copy_(torch.tensor([3.5, 0.85, 1.1]))
        for square in (self.out, self.say_out):
            square.copy_(torch.eye(square.shape[0]))
        for part in (self.topics, self.adapters):
            if part is not None:
                part.reset_parameters()

    def write_logits(self, around: Tensor) -> Tensor:
        inner = F.silu(F.linear(around, self.gate_in.to(around.dtype), self.gate_in_bias.to(around.dtype)))
        return super().write_logits(around) + inner @ self.gate_out.to(around.dtype)

    def rule(self, dtype: torch.dtype) -> BankRule:
        """The bank's scalars in ``dtype``."""
        beta, erase = self.beta.to(dtype).exp(), self.erase.to(dtype)
        recency = self.recency.to(dtype).clamp(min=0)
        return BankRule(beta, self.null.to(dtype), recency, erase[0].exp(), erase[1], erase[2].exp())

    def forward(
        self,
        h: Tensor,
        x: Tensor,
        state: LayerState,
        *,
        real: Tensor | None,
        embeddings: Tensor,
        ids: Tensor,
    ) -> tuple[Tensor, Carried | None]:
        """As ``ResidualMemory.forward``; what is carried is zero where nothing was ever written."""
        assert state.memory is not None
        assert state.memory_k is not None
        assert state.strength is not None
        x, tokens = wide(x), self.unit_rms(embeddings)
        seen = self.looked_back(x, tokens, ids, state, real)
        writes = (seen.strength > 0).any(dim=0).nonzero()[:, 0].tolist()
        keys = self.marked(seen, writes)
        state.strength.append(seen.strength)
        state.memory_k.append(keys)
        start = 0
        parts: list[tuple[Tensor, Carried]] = []
        for stop, new in self._cuts(writes, x.shape[1]):
            parts.append(self._read_part(seen.projected, x, ids, state, slice(start, stop), real))
            self.write(
                state,
                keys[:, new],
                seen.tokens[:, new],
                seen.ids[:, new],
                strength=seen.strength[:, new],
                joined=seen.joined[:, new],
            )
            start = stop
        if start < x.shape[1]:
            parts.append(self._read_part(seen.projected, x, ids, state, slice(start, None), real))
        added = parts[0][0] if len(parts) == 1 else torch.cat([part for part, _ in parts], dim=1)
        return h + added.to(h.dtype), Carried.joined([carried for _, carried in parts])

    def marked(self, seen: LookedBack, writes: list[int]) -> Tensor:
        """Keys, marks and novelty beside each other [B, T, K + F + 1]; zeros for what is not among the tokens
        to be written, ``writes``: this product is as large as that of the keys."""
        marks = seen.projected.new_zeros((*seen.projected.shape[:2], self.fade.shape[0] + 1))
        if writes:
            written = seen.before[:, writes]
            both = [self._project(written, by) for by in (self.fade, self.novelty[None])]
            marks[:, writes] = torch.cat(both, dim=-1)
        return torch.cat((seen.keys, marks), dim=-1)

    def _cuts(self, writes: list[int], length: int) -> Iterable[tuple[int, slice | list[int]]]:
        """Where ``length`` tokens are cut, when those at the places ``writes`` show a token to be written:
        up to where is read, and which are written then."""
        # Nothing changes between two writes.
        return ((place + 1, slice(place, place + 1)) for place in writes)

    def looked_back(
        self, x: Tensor, tokens: Tensor, ids: Tensor, state: LayerState, real: Tensor | None
    ) -> LookedBack:
        """What each token shows of the one before it, for the layer's normed inputs x and the tokens' values
        [B, T, C]; ``state`` moves on."""
        assert state.tail is not None
        assert state.tail_tokens is not None
        assert state.tail_ids is not None
        assert state.tail_key is not None
        assert state.tail_around is not None
        assert state.tail_gate is not None
        assert state.tail_strength is not None
        # 0 stands for no token at all.
        numbered = (ids + 1)[..., None]
        if real is None:
            states = taps(x, state.tail, 0, STATE_TAPS)
            words = taps(tokens, state.tail_tokens, 0, TOKEN_TAPS + 1)
            around, asked = self._seen(states, words, state, real)
            last, number = taps(tokens, state.tail_tokens, 1, 1), taps(numbered, state.tail_ids, 1, 1)
            projected = self._project(asked, self.context)
            keys, before = taps(projected, state.tail_key, 2, 1), taps(around, state.tail_around, 2, 1)
            state.tail, state.tail_tokens = ending(state.tail, x), ending(state.tail_tokens, tokens)
            state.tail_ids = ending(state.tail_ids, numbered)
            state.tail_key = ending(state.tail_key, projected)
            state.tail_around = ending(state.tail_around, around)
        else:
            states, tail = ragged_taps(x, state.tail, real, 0, STATE_TAPS)
            words, tail_tokens = ragged_taps(tokens, state.tail_tokens, real, 0, TOKEN_TAPS + 1)
            last = ragged_taps(tokens, state.tail_tokens, real, 1, 1)[0]
            number, state.tail_ids = ragged_taps(numbered, state.tail_ids, real, 1, 1)
            state.tail, state.tail_tokens = tail, tail_tokens
            around, asked = self._seen(states, words, state, real)
            projected = self._project(asked, self.context)
            keys, state.tail_key = ragged_taps(projected, state.tail_key, real, 2, 1)
            before, state.tail_around = ragged_taps(around, state.tail_around, real, 2, 1)
        gate = self.write_logits(states[..., : self.gate_taps.numel()])[..., None]

        def back(of: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
            if real is None:
                return taps(of, tail, 1, 1), ending(tail, of)
            return ragged_taps(of, tail, real, 1, 1)

        alone, state.tail_gate = back(gate, state.tail_gate)
        there, tail = number > 0, state.tail_strength
        there = there if real is None else there & real[..., None]
        strength = hard_gate(with_neighbours(alone, gate, there, lambda of: back(of, tail)[0])) * there
        earlier, state.tail_strength = back(strength, tail)
        older = (number[..., 0] - 1).clamp(min=0)
        joined = earlier[..., 0] > 0
        return LookedBack(projected, keys, before, last, older, strength[..., 0], joined)

    def _seen(
        self, states: Tensor, words: Tensor, state: LayerState, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """f [B, T, 10 C] of the last states and words, and the same with what the topic heads find, which
        keys are made of; the heads' part of ``state`` moves on."""
        around = torch.cat((states, words), dim=-1)
        if self.topics is None:
            return around, around
        hidden = words.shape[-1] // (TOKEN_TAPS + 1)
        found = self.topics(states[..., : 2 * hidden], words[..., :hidden], state, real)
        return around, torch.cat((around, found), dim=-1)

    def _read_part(
        self,
        projected: Tensor,
        x: Tensor,
        ids: Tensor,
        state: LayerState,
        part: slice,
        real: Tensor | None,
    ) -> tuple[Tensor, Carried]:
        """What the tokens of ``part`` add, which see the same memory, and what they carry; rows without a
        written token exactly nothing."""
        assert state.memory is not None
        something = state.memory.written > 0
        if not torch.is_grad_enabled() and not bool(something.any()):
            return self._nothing(x[:, part])
        there, among = something[:, None, None], None if real is None else real[:, part]
        return self.read(projected[:, part], x[:, part], ids[:, part], state, something=there, real=among)

    @staticmethod
    def _project(around: Tensor, by: Tensor) -> Tensor:
        """W f [B, T, out] in float32 or wider for f [B, T, 10 C] and W = ``by`` [out, 10 C]."""
        # In the weight's own type: converting this matrix at every token would cost more than the product.
        return wide(F.linear(around.to(by.dtype), by))

    def read(
        self,
        projected: Tensor,
        x: Tensor,
        ids: Tensor,
        state: LayerState,
        *,
        something: Tensor | float = 1.0,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Carried]:
        """What to add to the residual [B, T, C], in x's type, and to carry on, for projections [B, T, K] of
        the tokens ``ids`` [B, T], as far as there is ``something`` [B, 1, 1] in the memory; ``real`` [B, T]
        is False at padding. What they found goes into ``state``, for the token to come."""
        return self.added(x, *self.found(projected, ids, state, real), something)

    def found(
        self, projected: Tensor, ids: Tensor, state: LayerState, real: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``read`` before anything is made of it: values [B, T, C], the null slot's weight, how much of that
        has ended, and how much of a value goes on [B, T, 1]."""
        assert state.memory is not None
        assert state.bank is not None
        dtype = projected.dtype
        queries = headwise_unit(projected, self.head_weight.to(dtype))
        got = bank_read(queries, ids, state.bank, state.memory.written, self.rule(dtype), real=real)
        state.bank = replace(state.bank, route=got.route)
        values, null = got.values, got.null[..., None]
        if self.training or bool(self.matrix_gain != 0):
            features = recall_features(projected, heads=self.heads, order=self.order)
            blurred = recall_read(features, state.memory, softness=self.softness).values
            values = values + self.matrix_gain.to(dtype) * null * blurred
        return values, null, got.ended[..., None], got.going[..., None]

    def added(
        self, x: Tensor, values: Tensor, null: Tensor, ended: Tensor, going: Tensor, something: Tensor | float
    ) -> tuple[Tensor, Carried]:
        """What goes into the residual [..., C], and what is carried on, for the layer's input x [..., C], a
        read's values [..., C], its null weight, how much of that has ended, how much of a value goes on
        [..., 1], and ``something`` [..., 1, 1]: 0 where the memory is empty."""
        dtype = x.dtype
        seen = torch.cat((1 - null, ended), dim=-1)
        inner, logits = self.carrying(x, seen)
        # In the middle of a value the layer's input is that of any name or number.
        opened = torch.maximum(wide_open(logits[..., :1]), going) * something
        if not torch.is_grad_enabled() and not bool(opened.any()):
            return self._nothing(x)
        gate = torch.sigmoid(
            (x @ self.read_gate.to(dtype) + seen @ self.read_confidence.to(dtype))[..., None]
            + self.read_bias.to(dtype)
        )
        added = self.alpha.to(dtype) * F.linear(values, self.out.to(dtype)) + self.found_bias.to(dtype)
        added = added + seen @ torch.stack((self.confidence, self.ending)).to(dtype)
        added = gate * (added + F.linear(inner, self.adapt_out.to(dtype)))
        values = F.linear(values, self.say_out.to(dtype)) * opened
        carried = Carried(self.adapters, opened, values, logits[..., 1:], self.say_final, self.say)
        return added * opened, carried

    def _nothing(self, x: Tensor) -> tuple[Tensor, Carried]:
        """What tokens [..., C] add and carry on that find nothing, or do not ask."""
        nothing = torch.zeros_like(x)
        shut = nothing[..., :1]
        # Nobody above need look at adapters that change nothing.
        return nothing, Carried(None, shut, nothing, shut, self.say_final, self.say)

    def carrying(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The adapter's hidden units [..., 64], and the logits [..., 2] of opening what is above and of
        saying what was found, for the layer's input x [..., C] and what is ``seen`` [..., 2] in a read:
        how much is found, and how much of it has ended."""
        dtype = x.dtype
        inner = F.linear(torch.cat((x, seen), dim=-1), self.adapt_in.to(dtype), self.adapt_in_bias.to(dtype))
        inner = F.silu(inner)
        features = torch.cat((x, seen, inner), dim=-1)
        return inner, F.linear(features, self.carry.to(dtype), self.carry_bias.to(dtype))

    def write(
        self,
        state: LayerState,
        keys: Tensor,
        values: Tensor,
        ids: Tensor,
        *,
        strength: Tensor,
        joined: Tensor,
    ) -> None:
        """Write tokens in order into bank and matrix of ``state``: the projections that they are stored and
        marked by and their novelty [B, n, K + F + 1], their values [B, n, C], ``ids`` [B, n], their strength
        [B, n]: 0 is not written, and whether the token right before was written, too: ``joined`` [B, n]."""
        assert state.memory is not None
        assert state.bank is not None
        keys, marks, novelty = keys.tensor_split((self.width, keys.shape[-1] - 1), dim=-1)
        state.bank = bank_write(
            state.bank,
            (headwise_unit(keys, self.head_weight.to(keys.dtype)), unit(marks), values, ids),
            strength=strength,
            joined=joined,
            novelty=novelty[..., 0],
            written=state.memory.written,
            rule=self.rule(keys.dtype),
        )
        features = recall_features(keys, heads=self.heads, order=self.order)
        state.memory = write_delta(state.memory, features, self.split(values), strength)

    def write_each(
        self,
        state: LayerState,
        keys: Tensor,
        ids: Tensor,
        embedding: nn.Embedding,
        *,
        strength: Tensor,
        joined: Tensor,
    ) -> None:
        """``write`` tokens one after the other, as a conversation does that they came up in: a full bank
        chooses anew at each of them what it lets go."""
        values = self.unit_rms(embedding(ids))
        for place in range(ids.shape[1]):
            new = slice(place, place + 1)
            self.write(
                state,
                keys[:, new],
                values[:, new],
                ids[:, new],
                strength=strength[:, new],
                joined=joined[:, new],
            )
