"""Text as blocks of token ids: documents one after the other, an end mark between them, cut to one length.

The order is fixed, so a place in it is a number: a run that goes on reads the text again up to there. Of a
batch for several processes each takes its own rows, so that together they see what one process would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from infinichat.errors import UsageError
from infinichat.protocols import TextTokenizer
from infinichat.training.texts import Part, Texts

END_MARKS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")
"""Where the tokenizer names no end of its own: the first of these that it has."""


def end_id(tokenizer: TextTokenizer) -> int | None:
    """The id between two documents, None where the vocabulary has none."""
    own = getattr(tokenizer, "eos_id", None)
    if own is not None:
        return int(own)
    known = getattr(tokenizer, "control_tokens", None)
    for mark in END_MARKS:
        if known is None or mark in known:
            return tokenizer.control_id(mark)
    return None


def blocks(texts: Texts, part: Part, tokenizer: TextTokenizer, size: int) -> Iterator[list[int]]:
    """The part's ids in blocks of ``size``; the last one may be shorter, but has two ids at least."""
    waiting: list[int] = []
    end = end_id(tokenizer)
    for document in texts.documents(part):
        for piece in document:
            waiting += tokenizer.encode(piece)
            whole = len(waiting) // size * size
            for start in range(0, whole, size):
                yield waiting[start : start + size]
            waiting = waiting[whole:]
        if end is not None:
            waiting.append(end)
    for start in range(0, len(waiting), size):
        if len(waiting) - start >= 2:
            yield waiting[start : start + size]


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids`` and ``labels`` [B, T]; -100: no target."""

    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Step:
    """This process's batches of one optimizer step; ``ends``: the last one of an epoch, which is number
    ``epoch`` from 0."""

    batches: list[Batch]
    epoch: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Which of ``count`` processes this is: ``index`` from 0."""

    index: int = 0
    count: int = 1


class BlockSource:
    """Steps of ``rows`` blocks for each process, ``accumulation`` times, over ``epochs`` epochs. What does
    not fill a step at an epoch's end is left out, and so is a shorter last block."""

    def __init__(
        self,
        texts: Texts,
        tokenizer: TextTokenizer,
        *,
        size: int,
        rows: int,
        accumulation: int = 1,
        epochs: int | None = None,
        share: Share | None = None,
    ) -> None:
        self.texts, self.tokenizer, self.size = texts, tokenizer, size
        self.rows, self.accumulation, self.epochs = rows, accumulation, epochs
        self.share = share or Share()

    @property
    def of_step(self) -> int:
        """Blocks of one optimizer step, of all processes."""
        return self.rows * self.share.count * self.accumulation

    def steps_of_epoch(self) -> int:
        """Reads the whole part once; raises ``UsageError`` when it does not fill one step."""
        count = sum(
            len(block) == self.size for block in blocks(self.texts, "train", self.tokenizer, self.size)
        )
        if count < self.of_step:
            raise UsageError(
                f"{self.texts.train} gives {count} blocks of {self.size:,} tokens, and a step takes "
                f"{self.of_step}. Lower --block_size, --per_device_train_batch_size or "
                "--gradient_accumulation_steps, or name more text."
            )
        return count // self.of_step

    def steps(self, first: int) -> Iterator[Step]:
        """Steps from number ``first`` of the run on (0: from the start)."""
        number, epoch = 0, 0
        while self.epochs is None or epoch < self.epochs:
            before, ready = number, None
            for group in self._groups():
                if ready is not None and number > first:
                    yield Step(ready, epoch, False)
                ready = self._mine(group) if number >= first else []
                number += 1
            if number == before:
                self.steps_of_epoch()
            if ready is not None and number > first:
                yield Step(ready, epoch, True)
            epoch += 1

    def _groups(self) -> Iterator[list[list[int]]]:
        group: list[list[int]] = []
        for block in blocks(self.texts, "train", self.tokenizer, self.size):
            if len(block) == self.size:
                group.append(block)
            if len(group) == self.of_step:
                yield group
                group = []

    def _mine(self, group: list[list[int]]) -> list[Batch]:
        whole, found = self.rows * self.share.count, []
        for start in range(0, len(group), whole):
            at = start + self.rows * self.share.index
            ids = torch.tensor(group[at : at + self.rows])
            found.append(Batch(ids, ids))
        return found


def validation_batches(
    texts: Texts, tokenizer: TextTokenizer, *, size: int, rows: int, most: int | None, share: Share
) -> list[Batch]:
    """This process's batches of at most ``most`` blocks of the held-out text, the shorter last one included.
    Raises ``UsageError`` when there is none."""
    found: list[list[int]] = []
    for block in blocks(texts, "validation", tokenizer, size):
        found.append(block)
        if len(found) == most:
            break
    if not found:
        raise UsageError(
            f"{texts.validation or texts.train} holds out no text. Name some with --validation_file, or "
            "raise --validation_split_percentage."
        )
    even, last = (found, []) if len(found[-1]) == len(found[0]) else (found[:-1], found[-1:])
    groups = [even[at : at + rows] for at in range(0, len(even), rows)] + ([last] if last else [])
    mine = groups[share.index :: share.count]
    return [Batch(ids := torch.tensor(group), ids) for group in mine]
