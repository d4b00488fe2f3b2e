"""Many questions of one state at once, each answered as if it were the only one.

All questions stand beside each other in one forward: every layer's window is read by all of them and copied
for none, and a mask keeps each to the window and its own words. Positions go on from the state for each
question separately. Where a layer has a memory, the questions become rows of a batch, each with the tokens
before it that its convolutions look at, all over the same memory. So sixteen answers cost about twice what
one costs, and nothing about any of them changes but the rounding of the products: weights and states are
bfloat16 here where the engine's ``Step`` computes single tokens with the file's own 4-bit weights, and the
scores of the vocabulary are float32 in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from infinichat.attention.window import QueryBlock, rotary
from infinichat.engine.detokenize import StreamDecoder
from infinichat.evals.bench import Bench, Conversation
from infinichat.model.cache import InfiniCache
from infinichat.model.decoder_layer import InfiniDecoderLayer
from infinichat.model.layer_state import PLAIN_TENSORS, LayerState
from infinichat.model.memories import ResidualMemory
from infinichat.model.segments import SegmentPlan, Sight
from infinichat.model.slots import Slots


class Asker:
    """Asks questions of conversations with one model. Keeps a float32 copy of the vocabulary head."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._model = bench.engine.model
        self._head = self._model.lm_head.weight.detach().float()

    def ask(self, conversation: Conversation, questions: Sequence[str], *, max_tokens: int) -> list[str]:
        """The greedy answers, in order; the conversation is as before."""
        if not questions:
            return []
        encoded = [self._encoded(conversation, question) for question in questions]
        longest = max(len(ids) for ids in encoded) + max_tokens
        cache = conversation.cache.clone()
        self._model.model.evict(cache)
        layers = [layer.memory for layer in self._model.model.layers]
        known = all(memory is None or isinstance(memory, ResidualMemory) for memory in layers)
        # The mask of the branches knows no layers that slide, or that turn by other angles.
        known = known and self._model.config.sliding_window is None
        if not known or longest > cache.room or not cache.uniform:
            # A segment would leave in the middle, or attention is of another kind: one after the other.
            return [conversation.ask(question, max_tokens=max_tokens) for question in questions]
        return _Branches(self._bench, cache, encoded, self._head).run(max_tokens)

    def _encoded(self, conversation: Conversation, question: str) -> tuple[int, ...]:
        return tuple(conversation.copy(conversation.cache).encode_question(question))


class _Branches:
    """Questions as branches of one state. ``rows`` says, for each token that was added to the windows, whose
    it is; ``active`` are the branches that are not finished, in the order of the memory layers' rows."""

    def __init__(
        self, bench: Bench, cache: InfiniCache, questions: Sequence[Sequence[int]], head: Tensor
    ) -> None:
        self._bench = bench
        self._model = bench.engine.model
        self._body = self._model.model
        self._cache = cache
        self._head = head
        self._waiting = [list(ids) for ids in questions]
        self._said: list[list[int]] = [[] for _ in questions]
        self._fed = [0] * len(questions)
        self._active = list(range(len(questions)))
        self._rows: list[int] = []
        self._front = cache.config.sinks if cache.evicted > 0 else 0
        self._before = cache.window_tokens + self._front
        self._memories = {
            index: _repeated(state, len(questions))
            for index, state in enumerate(cache.states)
            if state.memory is not None
        }

    @torch.inference_mode()
    def run(self, max_tokens: int) -> list[str]:
        """The answers, after every branch has come to its end."""
        ends = frozenset(self._bench.format.end_ids)
        for count in range(1, max_tokens + 1):
            chosen = F.linear(self._forward(), self._head).argmax(dim=-1).tolist()
            going = []
            for place, (branch, token) in enumerate(zip(self._active, chosen, strict=True)):
                if token in ends:
                    continue
                self._said[branch].append(token)
                self._waiting[branch] = [token]
                going.append(place)
            if not going or count == max_tokens:
                break
            self._keep(going)
        return [self._text(ids) for ids in self._said]

    def _text(self, ids: Sequence[int]) -> str:
        decoder = StreamDecoder(self._bench.engine.tokenizer)
        return "".join(decoder.add(token)[0] for token in ids) + decoder.rest()

    def _forward(self) -> Tensor:
        """Feed what waits in every active branch; the final states [n, C] of their last tokens, float32."""
        waiting = [self._waiting[branch] for branch in self._active]
        lengths = [len(ids) for ids in waiting]
        rows = [branch for branch, ids in zip(self._active, waiting, strict=True) for _ in ids]
        ids = torch.tensor([[token for part in waiting for token in part]], device=self._cache.device)
        plan = self._plan(rows, ids)
        real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # [n, longest]
        h = plan.embeddings
        for index, (layer, state) in enumerate(zip(self._body.layers, self._cache.states, strict=True)):
            rowwise = self._memories.get(index)
            h = layer(h, plan, state) if rowwise is None else _with_rows(layer, h, plan, state, rowwise, real)
        for branch, count in zip(self._active, lengths, strict=True):
            self._fed[branch] += count
        last = torch.tensor(lengths).cumsum(0) - 1
        return plan.spoken(self._body.norm(h).float())[0, last]

    def _plan(self, rows: list[int], ids: Tensor) -> SegmentPlan:
        """Positions, and a mask that shows each token the window and its own branch so far."""
        cache, old = self._cache, len(self._rows)
        embeddings = self._body.embed_tokens(ids)
        self._rows += rows
        steps: dict[int, int] = {}
        places = []
        for row in rows:
            places.append(cache.seen + self._fed[row] + steps.get(row, 0))
            steps[row] = steps.get(row, 0) + 1
        positions = torch.tensor(places, device=cache.device)
        turn = self._body._rotations(cache.device).full
        cos, sin = rotary(positions, turn.inv_freq, embeddings.dtype, scale=turn.scale)
        whose = torch.tensor(self._rows)
        own = whose[None, :] == torch.tensor(rows)[:, None]
        own &= torch.arange(len(self._rows))[None] <= torch.arange(old, len(self._rows))[:, None]
        count = self._before + len(self._rows)
        mask = torch.zeros(len(rows), count, dtype=embeddings.dtype, device=cache.device)
        mask[:, self._before :].masked_fill_(~own.to(cache.device), torch.finfo(embeddings.dtype).min)
        group = cache.config.num_attention_heads // cache.config.num_key_value_heads
        block = QueryBlock(0, len(rows), count, mask.repeat(group, 1)[None, None])
        sight = Sight(cos, sin, (block,), causal=False)
        return SegmentPlan(positions, sight, sight, None, self._front > 0, ids, embeddings)

    def _keep(self, going: list[int]) -> None:
        """Only the active branches at these places go on."""
        if len(going) == len(self._active):
            return
        self._active = [self._active[place] for place in going]
        chosen = torch.tensor(going, device=self._cache.device)
        self._memories = {index: _chosen(state, chosen) for index, state in self._memories.items()}


def _with_rows(
    layer: InfiniDecoderLayer,
    h: Tensor,
    plan: SegmentPlan,
    state: LayerState,
    rowwise: LayerState,
    real: Tensor,
) -> Tensor:
    """A layer with a memory: ``InfiniDecoderLayer.forward`` with the branches as rows for the memory."""
    assert isinstance(layer.memory, ResidualMemory)
    place = (real.flatten().cumsum(0) - 1).clamp(min=0).view(real.shape)

    def rows(flat: Tensor) -> Tensor:
        return flat[0][place]

    x = layer.input_layernorm(h)
    h = layer.after_attention(h, x, plan, state)
    read, carried = layer.memory(
        rows(h),
        rows(x),
        rowwise,
        real=None if real.all() else real,
        embeddings=rows(plan.embeddings),
        ids=rows(plan.ids),
    )
    h = read[real][None]
    if carried is not None:
        plan.carried.append(
            replace(
                carried,
                opened=carried.opened[real][None],
                values=carried.values[real][None],
                wish=carried.wish[real][None],
            )
        )
    return layer.after_mlp(h)


def _repeated(state: LayerState, count: int) -> LayerState:
    """The memory's part of a layer's state for ``count`` rows that share one memory: views, until a row
    writes. What rows keep for later is collected in slots of their own and dropped."""
    assert state.memory is not None

    def shared(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:])

    memory, bank = state.memory, state.bank
    copy = replace(state)
    copy.memory = replace(
        memory, M=shared(memory.M), z=memory.z if memory.z is None else shared(memory.z),
        written=shared(memory.written),
    )  # fmt: skip
    if bank is not None:
        copy.bank = type(bank)(*(shared(tensor) for tensor in bank.tensors()))
    for name in PLAIN_TENSORS:
        tensor = getattr(state, name)
        setattr(copy, name, None if tensor is None else shared(tensor))
    return _without_own(copy, count)


def _without_own(state: LayerState, count: int) -> LayerState:
    for name in ("memory_k", "strength"):
        slots: Slots | None = getattr(state, name)
        if slots is not None:
            content = slots.content
            fresh = content.new_zeros((count, 0, *content.shape[2:]))
            setattr(state, name, Slots(fresh, dim=1, limit=slots.limit))
    return state


def _chosen(state: LayerState, rows: Tensor) -> LayerState:
    """The rows [n] of a state made by ``_repeated``."""

    def picked(tensor: Tensor) -> Tensor:
        # Still the one memory that all began with: a view will do.
        shared = tensor.stride(0) == 0
        return tensor[: rows.shape[0]] if shared else tensor.index_select(0, rows)

    copy = replace(state)
    assert state.memory is not None
    memory = state.memory
    copy.memory = replace(
        memory, M=picked(memory.M), z=None if memory.z is None else picked(memory.z),
        written=picked(memory.written),
    )  # fmt: skip
    if state.bank is not None:
        copy.bank = type(state.bank)(*(picked(tensor) for tensor in state.bank.tensors()))
    for name in PLAIN_TENSORS:
        tensor = getattr(state, name)
        setattr(copy, name, None if tensor is None else tensor.index_select(0, rows))
    return _without_own(copy, rows.shape[0])
