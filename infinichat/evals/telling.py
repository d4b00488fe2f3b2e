"""Generated facts as messages of a conversation: what the user says, and short answers to it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from infinichat.chat_format import Utterance
from infinichat.corpus.facts import FactMaker
from infinichat.corpus.phrasings import ACKS
from infinichat.corpus.sentences import Fact, Sentence, is_bound, join


def distinct_facts(maker: FactMaker, count: int, rng: random.Random) -> list[Fact]:
    """``count`` facts about different things (a fact about the same thing would be a correction)."""
    found: dict[tuple[str, str, str], Fact] = {}
    while len(found) < count:
        fact = maker.fact(rng)
        found.setdefault(fact.key, fact)
    return list(found.values())


def as_messages(sentences: Sequence[Sentence], rng: random.Random) -> tuple[Utterance, ...]:
    """One to three sentences a message, each message acknowledged."""
    messages: list[Utterance] = []
    rest = list(sentences)
    while rest:
        count = rng.choice((1, 1, 1, 2, 3))
        messages.append(Utterance("user", join(rest[:count]).text))
        messages.append(Utterance("assistant", rng.choice(ACKS)))
        rest = rest[count:]
    return tuple(messages)


def strangers(maker: FactMaker, told: Sequence[Fact], count: int, rng: random.Random) -> list[Fact]:
    """Facts that were never told; every second one, where possible, about somebody of whom something was."""
    known = {fact.key for fact in told}
    people = [fact for fact in told if fact.subject != "thing"]
    found: list[Fact] = []
    while len(found) < count:
        fact = maker.fact(rng)
        if len(found) % 2 and people and fact.subject != "thing" and not is_bound(fact):
            near = rng.choice(people)
            fact = Fact(near.subject, near.name, fact.noun, fact.kind, fact.value)
        if fact.key not in known:
            known.add(fact.key)
            found.append(fact)
    return found


def neighbours(maker: FactMaker, told: Sequence[Fact], count: int, rng: random.Random) -> list[Fact]:
    """Facts that were never told and resemble one that was: in turns the same of somebody else, and another
    of the same kind about the same one."""
    known = {fact.key for fact in told}
    found: list[Fact] = []
    while len(found) < count:
        near = rng.choice(told)
        fact = maker.sibling(rng, near)
        if len(found) % 2 and near.subject != "thing" and not is_bound(near):
            fact = Fact(*maker.subject(rng), near.noun, near.kind, near.value)
        if fact.key not in known:
            known.add(fact.key)
            found.append(fact)
    return found
