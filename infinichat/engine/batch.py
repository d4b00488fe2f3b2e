"""Several conversations answer at once: one forward a step, one token for each.

    batch = Batch(engine)
    anna = batch.join(Request(state, options, end_ids))
    for number, item in batch.step(): ...           items of ``generate``, by conversation

A conversation joins and leaves between two steps; nothing is copied, because each keeps the state it came
with, whatever its length. The weights are read once for all of them (``native_rows``), so a step of many
takes far less time than as many steps of one. States share nothing: what one conversation says depends on no
other one, and when it has left, its state goes on alone as if it had always been alone (up to rounding in
the memory's products, which are made for all rows at once).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infinichat.engine.answer import Answer
from infinichat.engine.generate import InfiniEngine
from infinichat.errors import ModelError, UsageError
from infinichat.messages import SamplingOptions
from infinichat.model.cache import InfiniCache
from infinichat.protocols import CancelFlag, GeneratedToken

Item = tuple[int, GeneratedToken | ModelError]
"""A conversation's number in the batch, and what ``generate`` would have yielded, or raised, for it."""


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of ``Engine.generate`` for one conversation."""

    state: Any
    options: SamplingOptions
    end_ids: Sequence[int] = ()
    cancel: CancelFlag | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    cache: InfiniCache
    answer: Answer
    cancel: CancelFlag | None


class Batch:
    """Conversations of one engine. To be used from one thread at a time; a state in it must not be fed
    elsewhere meanwhile."""

    def __init__(self, engine: InfiniEngine) -> None:
        self._engine = engine
        self._rows: dict[int, _Row] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, request: Request) -> int:
        """Begin an answer with the next step; returns its number in this batch, never given twice. Raises
        ``UsageError`` when nothing was fed to the state yet, when it is in this batch already, or when no
        token is allowed."""
        cache = self._engine.ready(request.state)
        if any(row.cache is cache for row in self._rows.values()):
            raise UsageError("This state is answering in this batch already; expected each state once.")
        answer = Answer(request.options, request.end_ids, self._engine.tokenizer)
        if answer.full:
            raise UsageError(f"max_tokens is {request.options.max_tokens}; expected 1 or more.")
        number, self._next = self._next, self._next + 1
        self._rows[number] = _Row(cache, answer, request.cancel)
        return number

    def leave(self, number: int) -> GeneratedToken:
        """End an answer before its end; its last item. Raises ``UsageError`` for one that is not there."""
        row = self._rows.pop(number, None)
        if row is None:
            there = ", ".join(map(str, self._rows)) or "none"
            raise UsageError(f"Conversation {number} is not in this batch; there: {there}.")
        return row.answer.stopped()

    def step(self) -> list[Item]:
        """One id for every conversation, in the order in which they joined. Those whose item has a
        ``finish`` have left; one whose scores are not finite numbers leaves with a ``ModelError``."""
        items: dict[int, GeneratedToken | ModelError] = {}
        for number, row in list(self._rows.items()):
            if row.cancel is not None and row.cancel.is_set():
                items[number] = self.leave(number)
        chosen = self._choose(items)
        if chosen:
            caches = [self._rows[number].cache for number in chosen]
            self._engine.feed_each(caches, list(chosen.values()))
        for number, token_id in chosen.items():
            items[number] = item = self._rows[number].answer.said(token_id)
            if item.finish is not None:
                del self._rows[number]
        return sorted(items.items(), key=lambda item: item[0])

    def _choose(self, items: dict[int, GeneratedToken | ModelError]) -> dict[int, int]:
        """The ids to be fed, by number; those who have none leave, with an item."""
        if not self._rows:
            return {}
        scores = self._engine.scores_each([row.cache for row in self._rows.values()])
        chosen: dict[int, int] = {}
        for (number, row), logits in zip(list(self._rows.items()), scores, strict=True):
            try:
                found = row.answer.choose(logits)
            except ModelError as error:
                items[number] = error
                del self._rows[number]
                continue
            if isinstance(found, int):
                chosen[number] = found
            else:
                items[number] = found
                del self._rows[number]
        return chosen


def generate_many(engine: InfiniEngine, requests: Sequence[Request]) -> Iterator[Item]:
    """``generate`` for all ``requests`` at once, until each has ended; a number is a request's place."""
    batch = Batch(engine)
    for request in requests:
        batch.join(request)
    while len(batch):
        yield from batch.step()
