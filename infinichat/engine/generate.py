"""``InfiniEngine``: ids in, ids out, on a state that belongs to the caller (``protocols.Engine``).

Reading ("prefill") runs the model over whole segments and looks for a cancel between two of them; "read" does
so without the layers above the memory until they are needed (``model.reading``); answering ("decode") runs a
``Step`` for each id. Every generated id is fed exactly once, an end token never, so the state has seen what
was said and nothing else. The next id comes from the state's last hidden state: a state that was just loaded
answers without being fed anything.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from infinichat.engine.answer import Answer
from infinichat.engine.heap import give_back_memory
from infinichat.engine.kernels import ModuleStep, Step
from infinichat.engine.report import layer_reports
from infinichat.engine.state import dump_cache, load_cache, state_meta
from infinichat.errors import StateError, UsageError
from infinichat.messages import LayerMemory, SamplingOptions
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.reading import can_read, read_piece, settle
from infinichat.protocols import (
    CancelFlag,
    EngineInfo,
    FeedMode,
    FeedProgress,
    GeneratedToken,
    StateDump,
    TextTokenizer,
)

DECODE_REPORT = 64
"""Ids between two reports when ids are fed one by one (``protocols.Engine.feed``)."""

GIVE_BACK_FROM = 512
"""Ids in one feed after which the memory of its forwards is given back: less than 2 % of its time."""

FILLING_SEGMENTS = 2
"""Segments in one forward while none has to leave yet: 8 % less time than one by one (512 ids in segments of
256), and a stop still never waits for a whole window."""


class InfiniEngine:
    """The engine over a model in memory.

    Args:
        model: in evaluation mode, on its device, in the dtype that reading runs in.
        tokenizer: turns ids into bytes.
        info: what to report; its fingerprint is what a saved state must match.
        step: what runs single ids; the model's own forward when not given.
    """

    def __init__(
        self,
        model: InfiniForCausalLM,
        tokenizer: TextTokenizer,
        *,
        info: EngineInfo,
        step: Step | None = None,
    ) -> None:
        self.model = model
        self.step = step or ModuleStep(model)
        self._tokenizer = tokenizer
        self._info = info
        # A step has scratch memory; two conversations in two threads take turns, token by token.
        self._stepping = threading.Lock()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def tokenizer(self) -> TextTokenizer:
        return self._tokenizer

    @torch.inference_mode()
    def new_state(self) -> InfiniCache:
        return _settled(self.model.model.new_cache())

    def tokens_seen(self, state: Any) -> int:
        return _cache(state).tokens_seen

    def window_tokens(self, state: Any) -> int:
        return _cache(state).window_tokens

    def feed(
        self, state: Any, ids: Sequence[int], *, mode: FeedMode = "prefill", cancel: CancelFlag | None = None
    ) -> Iterator[FeedProgress]:
        cache = _cache(state)
        self._check_ids(ids)
        done = 0
        while done < len(ids):
            if cancel is not None and cancel.is_set():
                return
            if mode == "decode":
                count = min(DECODE_REPORT, len(ids) - done)
                count = self._decode(cache, ids[done : done + count], cancel)
            else:
                count = min(self._to_segment_end(cache), len(ids) - done)
                self._prefill(cache, ids[done : done + count], mode)
            done += count
            if done == len(ids) and mode != "decode" and done >= GIVE_BACK_FROM:
                give_back_memory()
            yield FeedProgress(done, len(ids))

    def generate(
        self,
        state: Any,
        options: SamplingOptions,
        *,
        end_ids: Sequence[int],
        cancel: CancelFlag | None = None,
    ) -> Iterator[GeneratedToken]:
        cache = self.ready(state)
        answer = Answer(options, end_ids, self._tokenizer)
        while not answer.full:
            if cancel is not None and cancel.is_set():
                yield answer.stopped()
                return
            found = answer.choose(self.scores_each([cache])[0])
            if not isinstance(found, int):
                yield found
                return
            self._decode(cache, (found,))
            item = answer.said(found)
            yield item
            if item.finish is not None:
                return

    @torch.inference_mode()
    def ready(self, state: Any) -> InfiniCache:
        """The state with every layer up to date, so that it can answer. Raises ``StateError`` for what is
        none, ``UsageError`` when nothing was fed yet."""
        cache = _cache(state)
        settle(self.model.model, cache)
        if cache.last_hidden is None:
            raise UsageError("Nothing was fed yet; expected at least one token before an answer.")
        return cache

    @torch.inference_mode()
    def scores_each(self, caches: Sequence[InfiniCache]) -> Tensor:
        """Scores [B, V] of what comes next in each of B states that are ``ready``."""
        hidden = [cache.last_hidden for cache in caches if cache.last_hidden is not None]
        with self._stepping:
            return self.step.logits_each(torch.cat(hidden))

    @torch.inference_mode()
    def feed_each(self, caches: Sequence[InfiniCache], ids: Sequence[int]) -> None:
        """One of ``ids`` to each of different states that are ``ready``, in one forward where the step can
        do that."""
        with self._stepping:
            self.step.feed_each(caches, ids)

    def dump_state(self, state: Any) -> StateDump:
        return dump_cache(_cache(state), self._meta())

    @torch.inference_mode()
    def load_state(self, dump: StateDump) -> InfiniCache:
        return _settled(load_cache(dump, self.model.config, self._meta(), device=self.model.device))

    def layer_memory(self, state: Any) -> tuple[LayerMemory, ...]:
        return layer_reports(self.model, _cache(state))

    def state_bytes(self, state: Any) -> int:
        return _cache(state).nbytes

    def close(self) -> None:
        """Nothing is open; memory goes with the last reference."""

    @torch.inference_mode()
    def _prefill(self, cache: InfiniCache, ids: Sequence[int], mode: FeedMode) -> None:
        batch = torch.tensor([list(ids)], device=cache.device)
        if mode == "read" and can_read(cache):
            read_piece(self.model.model, cache, batch)
        else:
            self.model.model(input_ids=batch, past_key_values=cache, keep=1)

    @torch.inference_mode()
    def _decode(self, cache: InfiniCache, ids: Sequence[int], cancel: CancelFlag | None = None) -> int:
        """Feed ids one by one; how many were fed before a cancel, at least one."""
        settle(self.model.model, cache)
        for count, token_id in enumerate(ids):
            if count and cancel is not None and cancel.is_set():
                return count
            with self._stepping:
                self.step.feed(cache, token_id)
        return len(ids)

    def _to_segment_end(self, cache: InfiniCache) -> int:
        """Ids in the next forward: up to where a segment ends, also while the window is not full yet. Depends
        on the position alone."""
        piece = FILLING_SEGMENTS * cache.config.segment
        return min(cache.room, piece - cache.seen % piece)

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self.model.config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise UsageError(f"Token id {wrong} does not exist in this model; expected 0 to {size - 1}.")

    def _meta(self) -> dict[str, str]:
        weight = self.model.model.norm.weight
        return state_meta(self.model.config, fingerprint=self._info.fingerprint, dtype=weight.dtype)


def _cache(state: Any) -> InfiniCache:
    if not isinstance(state, InfiniCache):
        raise StateError(f"The state is a {type(state).__name__}; expected one that this engine made.")
    return state


def _settled(cache: InfiniCache) -> InfiniCache:
    """With room for the whole window in every layer: no copying while it grows, and one memory layout whether
    the state was loaded or has been here all along."""
    for state in cache.states:
        for slots in state.slots():
            slots.reserve()
    cache.ids.reserve()
    return cache
