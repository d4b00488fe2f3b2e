"""``young``: a conversation as it begins. A few things are told, a message each, the model itself replies,
and each is asked for right after its reply.

Three things are counted of each telling:

    reply        what is answered to it; wrong is "Got it." and then anything but the value, and that it was
                 never told
    at once      whether the value is named when it is asked for right then
    at the end   the same when everything has been told

All of it is in the window: this is what somebody sees who tries it out, and distance is what every other
measure has. Lengths and filler have no part in it, and a conversation tells ``FACTS`` things.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infinichat.corpus.conversations import SAYING_BACK
from infinichat.corpus.facts import FactMaker
from infinichat.evals.asking import Asked
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.conditions import without_memory
from infinichat.evals.everyday import sayings
from infinichat.evals.judging import admits, names, says_fact
from infinichat.evals.task import Memory, Options, Report, Tally, per_conversation
from infinichat.evals.telling import distinct_facts

FACTS = 4
"""Things told in a conversation; more are not what this is about."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message that tells, and the question about it."""

    tell: str
    asked: Asked


Draw = Callable[[random.Random], list[Item]]


def fair(reply: str, value: str) -> bool:
    """Whether a reply to a telling of ``value`` neither says that it was never told, nor something else back
    in the way in which things are said back here."""
    if admits(reply):
        return False
    claims = reply.startswith(SAYING_BACK) and reply.strip() != SAYING_BACK.strip()
    return not claims or names(value)(reply)


def measure(bench: Bench, options: Options, transcript: list[dict[str, Any]] | None = None) -> Report:
    """Cells by what was told (a side of the corpus, or a collection), what is counted, and memory."""
    tally = Tally()
    told: dict[str, Draw] = {side: _of_corpus(side) for side in options.sides}
    told |= {among: _of_collection(among) for among in ("everyday", "stories")}
    for name, draw in told.items():
        for number in range(per_conversation(options.samples, FACTS)):
            items = draw(random.Random(f"{options.seed}/young/{name}/{number}"))
            for use in (use for use in options.memory if use in ("on", "off")):
                _play(bench, items, use, name, options, tally, transcript)
        done = [cell for cell in tally.cells() if cell.extra["told"] == name and cell.memory == "on"]
        bench.say(", ".join(f"{name} {c.extra['kind']}: {c.correct} of {c.n}" for c in done))
    return Report("young", bench.engine.info.name, options.seed, tally.cells())


def _play(
    bench: Bench,
    items: list[Item],
    use: Memory,
    name: str,
    options: Options,
    tally: Tally,
    transcript: list[dict[str, Any]] | None,
) -> None:
    line = bench.new_conversation()
    if use == "off":
        line = line.copy(without_memory(line.cache))

    def count(kind: str, text: str, answer: str, right: bool, item: Item) -> None:
        tally.add(right, memory=use, facts=FACTS, told=name, kind=kind)
        if transcript is not None:
            said = {"asked": text, "answer": answer, "expected": item.asked.expected, "right": right}
            transcript.append({"told": name, "kind": kind, "memory": use, **said})

    def ask(kind: str, item: Item, conversation: Conversation) -> None:
        answer = conversation.ask(item.asked.text, max_tokens=options.max_tokens)
        count(kind, item.asked.text, answer, item.asked.right(answer), item)

    for item in items:
        reply = line.say(item.tell, max_tokens=options.max_tokens)
        count("reply", item.tell, reply, fair(reply, item.asked.expected), item)
        ask("at once", item, line)
    for item in items:
        ask("at the end", item, line)


def _of_corpus(side: Any) -> Draw:
    maker = FactMaker(side)

    def draw(rng: random.Random) -> list[Item]:
        facts = distinct_facts(maker, FACTS, rng)
        return [
            Item(maker.tell(rng, f).text, Asked(maker.ask(rng, f).ask, says_fact(f), f.value)) for f in facts
        ]

    return draw


def _of_collection(among: str) -> Draw:
    def draw(rng: random.Random) -> list[Item]:
        chosen: dict[str, Item] = {}
        for one in rng.sample(sayings(among), len(sayings(among))):
            chosen.setdefault(one.topic, Item(one.tell, Asked(one.ask, names(one.value), one.value)))
        return list(chosen.values())[:FACTS]

    return draw
