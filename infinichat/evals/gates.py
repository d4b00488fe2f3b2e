"""``gates``: what the write gate learned to write, and how far the memory's own gates are open.

Facts are told and filler is read, and every token's write strength is looked at: a good gate is near 1 on the
values of facts and exactly 0 on everything else, because at a million tokens a leak of a ten-thousandth fills
the memory. For the paper's memory, which writes everything, there are the mixing gates of its heads only."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from infinichat.chat_format import Utterance
from infinichat.corpus.facts import FactMaker
from infinichat.corpus.phrasings import ACKS
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.task import FILLER_KINDS, Cell, Options, Report
from infinichat.evals.telling import distinct_facts
from infinichat.model.memories import PaperMemory

VALUE, OTHER = "values of facts", "other words of facts"


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by kind of token: ``n`` tokens, ``correct`` of them treated as they should be (values written,
    everything else not). The plot has the shares written and the tokens of filler written most often."""
    filler = FillerText(options.filler)
    written: dict[str, list[float]] = defaultdict(list)
    stray: Counter[str] = Counter()
    for side in options.sides:
        _tell(bench, options, side, written)
    for kind in FILLER_KINDS:
        rng = random.Random(f"{options.seed}/gates/{kind}")
        line = bench.new_conversation()
        ids = Stretch(filler, kind, rng).take(line, max(options.lengths))
        for token, strength in zip(ids, strengths(line, ids), strict=True):
            written[kind].append(strength)
            if strength > 0:
                stray[bench.engine.tokenizer.decode([token]).strip()] += 1
    cells = [
        Cell(
            None,
            None,
            None,
            "on",
            n=len(values),
            correct=sum((value > 0) == (name.startswith(VALUE)) for value in values),
            extra={"tokens": name, "written": sum(v > 0 for v in values), "strength": _mean(values)},
        )
        for name, values in written.items()
        if values
    ]
    shares = {name: sum(v > 0 for v in values) / len(values) for name, values in written.items() if values}
    bars: dict[str, dict[str, float]] = {}
    if shares:
        bars["share of tokens written"] = shares
    if stray:
        bars["tokens of filler written most often"] = {
            w or "(blank)": float(n) for w, n in stray.most_common(15)
        }
    bars |= head_gates(bench)
    data = {"bars": bars}
    return Report("gates", bench.engine.info.name, options.seed, cells, list(filler.notes), data)


def head_gates(bench: Bench) -> dict[str, dict[str, float]]:
    """sigmoid(beta) of every head of the paper's memories, by layer."""
    found: dict[str, dict[str, float]] = {}
    for index, layer in enumerate(bench.engine.model.model.layers):
        if isinstance(layer.memory, PaperMemory):
            opened = torch.sigmoid(layer.memory.beta.detach().float()).tolist()
            found[f"mixing gates of layer {index}"] = {f"head {n}": share for n, share in enumerate(opened)}
    return found


def _tell(bench: Bench, options: Options, side: Any, written: dict[str, list[float]]) -> None:
    rng = random.Random(f"{options.seed}/gates/{side}")
    maker, line = FactMaker(side), bench.new_conversation()
    for fact in distinct_facts(maker, options.samples, rng):
        sentence = maker.tell(rng, fact)
        ids = line.encode(Utterance("user", sentence.text))
        found = strengths(line, ids)
        places = value_tokens(bench, ids, sentence.text, [(a, b) for a, b, _ in sentence.spans])
        for at, strength in enumerate(found):
            written[f"{VALUE if at in places else OTHER}, {side}"].append(strength)
        line.tell(Utterance("assistant", rng.choice(ACKS)))


def strengths(line: Conversation, ids: Sequence[int]) -> list[float]:
    """Feed ``ids`` and give the write strength of each in the highest memory layer that has a write gate; an
    empty list's worth of zeros where no layer has one. A bank says it one token later, so never of the last
    one."""
    # Of a longer piece the first tokens could have left the window already.
    found: list[float] = []
    step = line.cache.config.segment
    gated = [state for state in line.cache.states if state.strength is not None]
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        line.feed(piece)
        if gated and gated[-1].strength is not None:
            found += gated[-1].strength.content[0, -len(piece) :].tolist()
    if found and gated[-1].bank is not None:
        found = [*found[1:], 0.0]
    return found or [0.0] * len(ids)


def value_tokens(bench: Bench, ids: Sequence[int], text: str, spans: Sequence[tuple[int, int]]) -> set[int]:
    """Which of the ``ids`` of a message that contains ``text`` lie in one of its character ``spans``."""
    pieces = [bench.engine.tokenizer.token_bytes(token) for token in ids]
    start = b"".join(pieces).rfind(text.encode())
    bounds = [(start + len(text[:a].encode()), start + len(text[:b].encode())) for a, b in spans]
    places, at = set(), 0
    for number, piece in enumerate(pieces):
        # A token's leading blank does not make it part of a value.
        low = at + (len(piece) - len(piece.lstrip()))
        if any(low < high and at + len(piece) > first for first, high in bounds) and low < at + len(piece):
            places.add(number)
        at += len(piece)
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
