"""A conversation that shares a filler ends where one that streamed all of it for itself ends."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from infinichat.chat_format import Utterance
from infinichat.corpus.passkeys import REPEATED
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.passkey import RepeatedLines
from infinichat.evals.trail import ROOM, Arrival, Planted, Trail
from infinichat.model.cache import InfiniCache

from .conftest import MakeEngine

TOLD = (Utterance("user", "My code is 417, and my cat is Tom."), Utterance("assistant", "Ok."))
CHANGES = {"window": 128, "segment": 32, "memory_slots": 1500}


def a_trail(make_engine: MakeEngine, kind: str, folder: Path | None = None, **changes: object) -> Trail:
    bench = Bench.of(make_engine(**{**CHANGES, **changes}))
    if kind == "repeated":
        return Trail(bench, RepeatedLines(), opening="Find the key.")
    stretch = Stretch(FillerText(folder), kind, random.Random(5))  # type: ignore[arg-type]
    return Trail(bench, stretch)


def tell(conversation: Conversation, kind: str) -> Conversation:
    """Tell something in a multiple of a segment's tokens, the title of a book that goes on included: where
    segments end is then the same with it and without."""
    start = conversation.tokens
    if kind == "repeated":
        conversation.feed(conversation.raw(" The key is 417. Remember it. "))
    else:
        for message in TOLD:
            conversation.tell(message)
    reopened = len("<|im_end|>\n<|im_start|>user\nDocument: Notes\n\n") if kind == "books" else 0
    # A control token is one id, not ten bytes.
    reopened -= 2 * (len("<|im_start|>") - 1) - 2 if reopened else 0
    conversation.feed([33] * (-(conversation.tokens - start + reopened) % CHANGES["segment"]))
    return conversation


def shared(trail: Trail, kind: str, start: int, distance: int) -> tuple[Conversation, Arrival, Planted]:
    trail.go(start)
    planted = trail.plant(tell(trail.line.copy(), kind), start)
    arrival = trail.arrive(trail.place(start + distance, room_for=20))
    trail.follow(planted, arrival.before)
    return trail.arrived(planted, arrival), arrival, planted


def alone(trail: Trail, kind: str, start: int, end: int) -> InfiniCache:
    """The same conversation, streamed by itself through all layers."""
    other = Trail(trail.bench, _Nothing(), opening="Find the key." if kind == "repeated" else "")
    line = other.line
    line.feed(trail.ids[:start])
    line.previous = trail.line.previous if start else line.previous
    tell(line, kind)
    line.feed(trail.rejoin(line, start))
    line.feed(trail.ids[start:end])
    return line.cache


class _Nothing:
    title = None

    def take(self, conversation: Conversation, least: int) -> list[int]:
        return []


@pytest.mark.parametrize("memory", ["bank", "recall"])
@pytest.mark.parametrize("kind", ["dialogues", "books", "repeated"])
@pytest.mark.parametrize("begin", [0, 150])
def test_a_shared_filler_leaves_the_memory_of_an_own_one(
    make_engine: MakeEngine, kind: str, begin: int, memory: str
) -> None:
    trail = a_trail(make_engine, kind, memory=memory)
    start = trail.place(begin)
    found, arrival, _ = shared(trail, kind, start, 900)
    own = alone(trail, kind, start, arrival.place)
    assert (own.seen - found.tokens) % 32 == 0
    mine, theirs = found.cache.states[1], own.states[1]
    assert mine.memory is not None
    assert theirs.memory is not None
    count = int(mine.memory.written)
    assert count == int(theirs.memory.written) > 50
    if memory == "bank":
        assert mine.bank is not None
        assert theirs.bank is not None
        assert torch.equal(mine.bank.ids, theirs.bank.ids)
        torch.testing.assert_close(mine.bank.keys, theirs.bank.keys, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mine.memory.M, theirs.memory.M, rtol=1e-3, atol=1e-3)
    assert found.cache.last_hidden is not None
    assert own.last_hidden is not None
    torch.testing.assert_close(found.cache.last_hidden, own.last_hidden, rtol=1e-3, atol=1e-3)


def test_what_was_told_is_in_the_memory_once_and_first(make_engine: MakeEngine) -> None:
    told, _, _ = shared(a_trail(make_engine, "books"), "books", 0, 900)
    again, _, _ = shared(a_trail(make_engine, "books"), "books", 0, 600)
    assert told.cache.states[1].bank is not None
    assert again.cache.states[1].bank is not None
    short = int(again.cache.memories[1].written)
    assert short < int(told.cache.memories[1].written)
    assert torch.equal(told.cache.states[1].bank.ids[0, :short], again.cache.states[1].bank.ids[0, :short])


def test_the_window_above_the_memory_is_read_with_the_conversations_own_memory(
    make_engine: MakeEngine,
) -> None:
    trail = a_trail(make_engine, "dialogues")
    found, arrival, planted = shared(trail, "dialogues", 0, 600)
    plain = arrival.after.cache
    assert not torch.equal(found.cache.states[2].k.content, plain.states[2].k.content)
    assert torch.equal(found.cache.states[0].k.content, plain.states[0].k.content)
    # By hand: the same memory, and the last tokens once more through all layers.
    again = arrival.after.copy(arrival.before.clone())
    for index, (memory, bank) in planted.memories.items():
        again.cache.states[index].memory, again.cache.states[index].bank = memory, bank
    again.feed([token for part in arrival.passed for token in part.ids])
    assert found.cache.last_hidden is not None
    assert again.cache.last_hidden is not None
    torch.testing.assert_close(found.cache.last_hidden, again.cache.last_hidden, rtol=1e-4, atol=1e-4)


def test_off_is_the_same_filler_without_any_memory(make_engine: MakeEngine) -> None:
    trail = a_trail(make_engine, "dialogues")
    _, arrival, _ = shared(trail, "dialogues", 0, 600)
    assert arrival.off.cache.memories == {}
    assert arrival.off.tokens == arrival.after.tokens
    assert torch.equal(arrival.off.cache.ids.content, arrival.after.cache.ids.content)


def test_a_place_has_room_and_stands_between_exchanges(make_engine: MakeEngine) -> None:
    trail = a_trail(make_engine, "dialogues", segment=128)
    place = trail.place(500, room_for=ROOM)
    assert place >= 500
    state = trail.bench.new_conversation()
    state.feed([1] * (trail.start + place))
    assert state.cache.room >= ROOM
    close = trail.bench.format.encode_user("x", first=False, after_answer=True).ids[:3]
    assert tuple(trail.ids[place : place + 3]) == tuple(close) or place == len(trail.ids)


def test_a_book_goes_on_under_its_title_after_a_message(make_engine: MakeEngine, folder: Path) -> None:
    trail = a_trail(make_engine, "books", folder)
    trail.go(trail.place(300))
    conversation = tell(trail.line.copy(), "books")
    header = trail.bench.engine.tokenizer.decode(trail.rejoin(conversation, 300))
    assert "Document: book" in header
    assert trail.rejoin(conversation, 300) == []


def test_no_text_of_a_book_is_lost_between_two_takes(make_engine: MakeEngine, folder: Path) -> None:
    bench = Bench.of(make_engine())
    parts, whole = bench.new_conversation(), bench.new_conversation()
    one = Stretch(FillerText(folder), "books", random.Random(1))
    other = Stretch(FillerText(folder), "books", random.Random(1))
    taken = [token for _ in range(9) for token in one.take(parts, 70)]
    assert taken == other.take(whole, 630)


def test_repeated_lines_are_told_and_asked_between_never_inside(make_engine: MakeEngine) -> None:
    """In the paper's filler: "The sun is What is the pass key?" is no question that anybody asks."""
    trail = a_trail(make_engine, "repeated")
    line = len(trail.line.raw(REPEATED))
    for least in (1, line - 1, line + 3, 7 * line, 12 * line + 1):
        place = trail.place(least, room_for=20)
        assert place >= least
        assert place % line == 0
