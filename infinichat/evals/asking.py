"""Tell, stream filler, ask: the driver of every measure that asks questions.

A ``Script`` is what one conversation tells and what is asked afterwards. At depth 0 the telling comes first
and one conversation serves all lengths: it goes on to the longest, and at each length it is copied, the copy
reads the last ``tail`` tokens of its filler through all layers, and every question is asked of a copy of that
copy. Nothing that is asked disturbs the stream. Tokens further back than ``tail`` go through
``stream_below``: the memory that comes out is the same to the last bit. At a greater depth filler comes
before the telling, too, and each length has a conversation of its own.

Lengths are tokens from the end of the telling to the question at depth 0, and of the whole filler otherwise;
the telling is always further back than any window, so depth d stands for the share d of what is beyond it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from infinichat.chat_format import Utterance
from infinichat.errors import UsageError
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.conditions import swapped, wiped, without_memory
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.judging import Judge
from infinichat.evals.streaming import least_tail
from infinichat.evals.task import FillerKind, Memory, Options, Tally


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, whether an answer is right, and the right answer in words (for a reader)."""

    text: str
    right: Judge
    expected: str
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """``told`` are messages; ``inside`` is text for the middle of an open document (or for no chat at all),
    ``spread`` are sentences for all over it;
    then the questions. ``facts`` is how many were told."""

    told: tuple[Utterance, ...]
    asked: tuple[Asked, ...]
    facts: int | None = None
    inside: str = ""
    spread: tuple[str, ...] = ()


MakeScript = Callable[[random.Random], Script]


class Takes(Protocol):
    """Filler of one conversation: ``filler.Stretch`` and whatever else gives ids."""

    def take(self, conversation: Conversation, least: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Where and how scripts are played. ``label`` goes into the cells; ``begin`` is the least filler (in
    tokens) before the telling; ``opening`` is raw text at the very start; ``stretch`` makes the filler of one
    conversation."""

    make: MakeScript
    stretch: Callable[[random.Random], Takes]
    lengths: Sequence[int]
    memory: Sequence[Memory]
    conversations: int
    seed: str
    tail: int
    max_tokens: int
    depth: float | None = None
    begin: int = 0
    opening: str = ""
    label: dict[str, Any] = field(default_factory=dict)


def plan(
    bench: Bench,
    options: Options,
    filler: FillerText,
    make: MakeScript,
    *,
    kind: FillerKind,
    conversations: int,
    seed: str,
    label: dict[str, Any],
    depth: float | None = None,
    begin: int = 0,
) -> Plan:
    """A plan with the options' lengths and conditions, after checking that they can be measured."""
    least = least_tail(bench.engine.model)
    tail = max(least, options.tail or 2 * bench.engine.info.window)
    short = [length for length in options.lengths if length < least]
    if short:
        raise UsageError(
            f"length {short[0]} is not beyond the window; this model needs at least {least} tokens (window + "
            "segment). Next: a longer --lengths, or a smaller window in the settings."
        )
    return Plan(
        make=make,
        stretch=lambda rng: Stretch(filler, kind, rng),
        lengths=sorted(options.lengths),
        memory=options.memory,
        conversations=conversations,
        seed=seed,
        tail=tail,
        max_tokens=options.max_tokens,
        depth=depth,
        begin=begin,
        label=label,
    )


def play(bench: Bench, plan: Plan, tally: Tally, transcript: list[dict[str, Any]] | None = None) -> None:
    """Play ``plan.conversations`` scripts and count the answers. ``transcript`` collects every answer."""
    donor = _donor(bench, plan) if "swapped" in plan.memory else None
    for number in range(plan.conversations):
        for length, use, conversation, script in _moments(bench, plan, f"{plan.seed}/{number}", donor):
            for asked in script.asked:
                answer = conversation.ask(asked.text, max_tokens=plan.max_tokens)
                right = asked.right(answer)
                label = plan.label if asked.kind is None else {**plan.label, "kind": asked.kind}
                tally.add(right, memory=use, length=length, depth=plan.depth, facts=script.facts, **label)
                if transcript is not None:
                    said = {"asked": asked.text, "answer": answer, "expected": asked.expected}
                    place = {"length": length, "depth": plan.depth, "facts": script.facts, "memory": use}
                    transcript.append({**place, **label, **said, "right": right})
            cell = next(c for c in reversed(tally.cells()) if c.length == length and c.memory == use)
            bench.say(f"{plan.label} length {length} memory {use}: {cell.correct} of {cell.n}")


def _moments(
    bench: Bench, plan: Plan, seed: str, donor: Conversation | None
) -> Iterator[tuple[int, Memory, Conversation, Script]]:
    """Every length under every condition, ready to be asked."""
    if not plan.depth and not plan.begin:
        rng = random.Random(seed)
        script = plan.make(rng)
        line = _opened(bench, plan)
        _tell(line, script)
        yield from _at_lengths(plan, line, script, plan.stretch(rng), plan.lengths, donor)
        return
    for length in plan.lengths:
        rng = random.Random(f"{seed}/{length}")
        script = plan.make(rng)
        line, stretch = _opened(bench, plan), plan.stretch(rng)
        least = least_tail(bench.engine.model)
        before = max(plan.begin, round((plan.depth or 0) * (length - least)))
        _feed(line, stretch.take(line, before))
        _tell(line, script)
        gap = max(0, length - least - line.tokens) // max(1, len(script.spread))
        for sentence in script.spread:
            line.feed(line.raw(f"\n\n{sentence}\n\n"))
            _feed(line, stretch.take(line, gap))
        rest = [max(least, length - line.tokens)]
        for _, use, conversation, _ in _at_lengths(plan, line, script, stretch, rest, donor):
            yield length, use, conversation, script


def _at_lengths(
    plan: Plan,
    line: Conversation,
    script: Script,
    stretch: Takes,
    lengths: Sequence[int],
    donor: Conversation | None,
) -> Iterator[tuple[int, Memory, Conversation, Script]]:
    """The stream goes on to each length in turn; copies of it read the end in full."""
    start = line.tokens
    waiting: list[int] = []
    for length in lengths:
        # What was taken from the stretch but is not in the line yet is in ``waiting``.
        waiting += stretch.take(line, length - (line.tokens - start) - len(waiting))
        cut = max(0, len(waiting) - plan.tail)
        _feed(line, waiting[:cut])
        waiting = waiting[cut:]
        end = line.copy()
        if any(use != "off" for use in plan.memory):
            end.feed(waiting)
        for use in plan.memory:
            if use == "off":
                # Before the tail: no state above the memory layer may have seen a read.
                alone = line.copy(without_memory(line.cache))
                alone.feed(waiting)
                yield length, use, alone, script
            else:
                yield length, use, _under(use, end, donor), script


def _under(use: Memory, end: Conversation, donor: Conversation | None) -> Conversation:
    """The conversation right before its questions, under a condition other than "off"."""
    if use == "wiped":
        return end.copy(wiped(end.cache))
    if use == "swapped":
        assert donor is not None
        return end.copy(swapped(end.cache, donor.cache))
    return end


def _donor(bench: Bench, plan: Plan) -> Conversation:
    """Another conversation, in which other things were told and have left the window."""
    rng = random.Random(f"{plan.seed}/donor")
    line = _opened(bench, plan)
    script = plan.make(rng)
    _tell(line, script)
    line.feed(line.raw(" ".join(script.spread)) if script.spread else [])
    _feed(line, plan.stretch(rng).take(line, least_tail(bench.engine.model)))
    return line


def _opened(bench: Bench, plan: Plan) -> Conversation:
    line = bench.new_conversation()
    if plan.opening:
        line.feed(line.raw(plan.opening))
    return line


def _tell(line: Conversation, script: Script) -> None:
    for message in script.told:
        line.tell(message)
    if script.inside:
        line.feed(line.raw(script.inside))


def _feed(line: Conversation, ids: Sequence[int]) -> None:
    """Through the lower layers where that is enough; the attention sinks always through all."""
    sinks = line.cache.config.sinks
    full = max(0, sinks - line.tokens) if line.tokens else max(1, sinks)
    line.feed(ids[:full])
    line.feed_below(ids[full:])
