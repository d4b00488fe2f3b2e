"""Hidden states of the frozen base, computed once and kept on disk, so that training a memory is cheap.

With one memory layer L, what enters layer L does not depend on the memory. A shard holds, for a few hundred
streams, the residual state before layer L of every token, with ids, labels and places. Shards are
safetensors; they are written whole (temporary name, then renamed), so a stopped preparation goes on at the
next shard, and training may start on the first.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from infinichat.corpus.conversations import Asked, Stream, StreamMaker, Told
from infinichat.corpus.facts import IN_OWN_WORDS, FactMaker, Side
from infinichat.corpus.filler import Filler
from infinichat.corpus.sentences import Fact

GROUPS = (7, 7, 4, 1, 1, 1)
"""Questions in a stream. A question that comes after others is known by their answers; the first one of a
conversation has to be known by itself."""

MIXED_LONGEST = 400
"""Tokens of a young conversation."""

Lower = Callable[[Tensor], Tensor]
"""ids [B, T] to states [B, T, C] before the memory's layer (``plain.lower``)."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard in memory. ``hidden`` [T, D] before layer L, ``ids`` [T], ``labels`` [T]; ``streams`` are
    (start, length, kind) with kind "tell", "book", "talk", "ask", "mixed", "page" or "general"; places in
    ``told`` and ``asked`` count from 0 to T."""

    hidden: Tensor
    ids: Tensor
    labels: Tensor
    streams: list[tuple[int, int, str]]
    facts: list[list[Fact]]
    told: list[Told]
    asked: list[Asked]


def draw_streams(maker: StreamMaker, tokens: int) -> list[tuple[str, Stream]]:
    """About ``tokens`` tokens of streams: first what is told (chats and books) and talk, then the questions
    about it."""
    rng = maker.rng
    streams: list[tuple[str, Stream]] = []
    size = 0
    while size < tokens * 0.6:
        draw = rng.random()
        if draw < 0.16:
            kind, stream = "book", maker.book_stream(rng.randint(800, 3000), rng.choice((0, 0, 0, 1, 2)))
        elif draw < 0.35:
            kind, stream = "talk", maker.talk_stream(rng.randint(2, 6))
        elif draw < 0.57:
            # A fact that comes up in the middle of other talk.
            kind, stream = "tell", maker.tell_stream(rng.randint(1, 3), before=rng.randint(2, 5))
        else:
            kind, stream = "tell", maker.tell_stream(rng.randint(5, 14))
        if len(stream.ids) <= 1400:
            streams.append((kind, stream))
            size += len(stream.ids)
    kept = sorted({told.fact for _, stream in streams for told in stream.told})
    rng.shuffle(kept)
    while kept:
        count = rng.choice(GROUPS)
        chatter = rng.choice((0.0, 0.0, 0.1, 0.3))
        before = rng.choice((0, 0, 0, 0, 3) if count > 1 else (0, 0, 1, 2))
        group, kept = kept[:count], kept[count:]
        streams.append(("ask", maker.ask_stream(group, unknown=0.2, chatter=chatter, before=before)))
    return streams


def draw_mixed(maker: StreamMaker, tokens: int) -> list[tuple[str, Stream]]:
    """About ``tokens`` tokens of young conversations."""
    streams: list[tuple[str, Stream]] = []
    while sum(len(stream.ids) for _, stream in streams) < tokens:
        stream = maker.mixed_stream()
        if len(stream.ids) <= MIXED_LONGEST:
            streams.append(("mixed", stream))
    return streams


def draw_pages(maker: StreamMaker, tokens: int) -> list[tuple[str, Stream]]:
    """About ``tokens`` tokens outside of any conversation: pages that tell, then pages that ask for what
    others told."""
    rng = maker.rng
    streams: list[tuple[str, Stream]] = []
    size = 0
    while size < tokens * 0.6:
        stream = maker.page_stream(rng.randint(1, 4), ())
        streams.append(("page", stream))
        size += len(stream.ids)
    told = list(range(len(maker.facts)))
    rng.shuffle(told)
    while told and size < tokens:
        count = rng.randint(2, 5)
        stream = maker.page_stream(0, told[:count])
        streams.append(("page", stream))
        size, told = size + len(stream.ids), told[count:]
    return streams


def write_shard(file: Path, streams: list[tuple[str, Stream]], facts: list[list[Fact]], lower: Lower) -> None:
    """Runs the streams through ``lower`` in batches of similar length and writes ``file``."""
    order = sorted(range(len(streams)), key=lambda i: len(streams[i][1].ids))
    states: dict[int, Tensor] = {}
    batch: list[int] = []
    for place, index in enumerate(order):
        batch.append(index)
        longest = len(streams[index][1].ids)
        if longest * (len(batch) + 1) > 4096 or place == len(order) - 1:
            padded = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, i in enumerate(batch):
                padded[row, : len(streams[i][1].ids)] = torch.tensor(streams[i][1].ids)
            hidden = lower(padded)
            for row, i in enumerate(batch):
                states[i] = hidden[row, : len(streams[i][1].ids)].to(torch.bfloat16).clone()
            batch = []
    spans, told, asked, start = [], [], [], 0
    for kind, stream in streams:
        spans.append((start, len(stream.ids), kind))
        told += [Told(t.fact, t.version, t.start + start, t.count) for t in stream.told]
        asked += [
            Asked(a.fact, a.version, a.answer + start, a.value + start, a.count, a.end + start)
            for a in stream.asked
        ]
        start += len(stream.ids)
    meta = {
        "streams": spans,
        "facts": [[[f.subject, f.name, f.noun, f.kind, f.value] for f in versions] for versions in facts],
        "told": [list(asdict(t).values()) for t in told],
        "asked": [list(asdict(a).values()) for a in asked],
    }
    tensors = {
        "hidden": torch.cat([states[i] for i in range(len(streams))]),
        "ids": torch.tensor([i for _, s in streams for i in s.ids], dtype=torch.int32),
        "labels": torch.tensor([i for _, s in streams for i in s.labels], dtype=torch.int8),
    }
    temporary = file.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"shard": json.dumps(meta)})
    os.replace(temporary, file)


def read_shard(file: Path) -> Shard:
    """Reads a shard written by ``write_shard``."""
    with safe_open(file, framework="pt") as opened:
        meta = json.loads(opened.metadata()["shard"])
        hidden, ids, labels = (opened.get_tensor(name) for name in ("hidden", "ids", "labels"))
    return Shard(
        hidden,
        ids,
        labels,
        [(s[0], s[1], s[2]) for s in meta["streams"]],
        [[Fact(*f) for f in versions] for versions in meta["facts"]],
        [Told(*t) for t in meta["told"]],
        [Asked(*a) for a in meta["asked"]],
    )


Kind = Side | Literal["general", "mixed", "page"]


def shard_files(folder: Path, side: Kind) -> list[Path]:
    """The finished shards of ``side``, of general questions, young conversations or pages, in order."""
    return sorted(folder.glob(f"{side}-*.safetensors"))


def prepare(
    folder: Path,
    side: Side,
    lower: Lower,
    tokenizer: Any,
    filler: Filler,
    *,
    shards: int,
    tokens: int,
    seed: int,
    general: Sequence[tuple[str, str]] = (),
) -> Iterator[Path]:
    """Writes shards 0 ... ``shards`` - 1 of ``side`` that are not there yet; yields each as it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        file = folder / f"{side}-{number:05d}.safetensors"
        if file.exists():
            continue
        rng = random.Random(f"{seed}/{side}/{number}")
        maker = StreamMaker(FactMaker(side, own_words=IN_OWN_WORDS), filler, tokenizer, rng, general=general)
        streams = draw_streams(maker, tokens)
        write_shard(file, streams, maker.facts, lower)
        yield file
