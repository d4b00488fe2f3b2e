"""Every measure runs on a tiny model, asks what it says it asks, and counts all of it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from infinichat.chat_format import Utterance
from infinichat.corpus.facts import FactMaker
from infinichat.corpus.phrasings import ASK, ASK_MORE, TELL, TELL_MORE
from infinichat.corpus.spoken import KIN_SPOKEN, PET_SPOKEN, SPOKEN
from infinichat.corpus.ways import ways
from infinichat.evals import (
    babilong,
    chat,
    everyday,
    facts,
    gates,
    needle,
    passkey,
    perplexity,
    stories,
    two_step,
    unknown,
    updates,
    young,
)
from infinichat.evals.bench import Bench
from infinichat.evals.judging import names
from infinichat.evals.task import Options, Report
from infinichat.evals.telling import distinct_facts, neighbours

from .conftest import MakeEngine

SMALL = Options(
    lengths=(160, 200), depths=(0.0, 1.0), facts=(2,), samples=2, memory=("on", "off"), max_tokens=1
)


@pytest.fixture
def bench(make_engine: MakeEngine) -> Bench:
    """Segments of 64 tokens: a token is a byte here, and long messages go in few pieces."""
    return Bench.of(make_engine(window=64, segment=64))


@pytest.mark.parametrize(
    ("measure", "cells", "asked"),
    [
        (facts.measure, 2 * 2 * 2, 2),
        (updates.measure, 2 * 2 * 2 * 2, 1),
        (unknown.measure, 2 * 2 * 2 * 3, 2),
        (two_step.measure, 2 * 2 * 2, 2),
        (everyday.measure, 2 * 2, 2),
        (stories.measure, 2 * 2, 2),
    ],
)
def test_a_measure_asks_at_each_length_on_each_side_under_each_condition(
    bench: Bench, measure: Callable[..., Report], cells: int, asked: int
) -> None:
    report = measure(bench, SMALL)
    assert len(report.cells) == cells
    assert {cell.n for cell in report.cells} == {asked}
    assert {cell.facts for cell in report.cells} == {2}


def test_a_young_conversation_counts_replies_and_questions_of_all_that_is_told(bench: Bench) -> None:
    transcript: list[dict[str, object]] = []
    report = young.measure(bench, SMALL, transcript)
    kinds = ("reply", "at once", "at the end")
    found = {(c.extra["told"], c.extra["kind"], c.memory) for c in report.cells}
    among = ("seen", "held_out", "everyday", "stories")
    assert found == {(told, kind, use) for told in among for kind in kinds for use in ("on", "off")}
    assert {cell.n for cell in report.cells} == {young.FACTS}
    assert len(transcript) == len(found) * young.FACTS
    everyday_ones = {one.tell: one.value for one in everyday.sayings()}
    for line in transcript:
        if (line["told"], line["kind"]) == ("everyday", "reply"):
            assert everyday_ones[str(line["asked"])] == line["expected"]


def test_what_is_said_belongs_to_a_conversation_and_what_is_asked_does_not(bench: Bench) -> None:
    line = bench.new_conversation()
    line.tell(Utterance("user", "Hello."))
    before = line.tokens
    line.ask("How are you?", max_tokens=2)
    assert line.tokens == before
    line.say("How are you?", max_tokens=2)
    assert line.tokens > before + len("How are you?")
    assert line.previous == "assistant"


@pytest.mark.parametrize(
    ("reply", "is_fair"),
    [
        ("Got it. Your dog is called Rufus.", True),
        ("Got it. Your dog is called Rex.", False),
        ("Got it, I will remember that.", True),
        ("Got it.", True),
        ("Rufus is something you have not told me.", False),
        ("Your shoes are something you have not told me.", False),
        ("Oh dear, not the shoes!", True),
    ],
)
def test_a_reply_is_fair_that_claims_nothing_else(reply: str, is_fair: bool) -> None:
    assert young.fair(reply, "Rufus") is is_fair


def test_passkey_is_measured_plain_and_in_a_chat_at_each_depth(bench: Bench) -> None:
    report = passkey.measure(bench, Options(**{**_as(SMALL), "samples": 1}))
    found = {(c.extra["form"], c.depth, c.length, c.memory) for c in report.cells}
    assert len(found) == 2 * 2 * 2 * 2 == len(report.cells)


def test_a_needle_is_in_the_book_and_its_distance_beyond_the_window(bench: Bench, folder: Path) -> None:
    report = needle.measure(bench, Options(**{**_as(SMALL), "samples": 1, "filler": folder}))
    assert {(c.length, c.extra["side"]) for c in report.cells} == {
        (length, side) for length in (160, 200) for side in ("seen", "held_out")
    }


def _as(options: Options) -> dict[str, object]:
    return {name: getattr(options, name) for name in Options.__slots__}


def test_all_facts_of_a_script_are_different_and_told(bench: Bench) -> None:
    script = facts.script(random.Random(1), side="seen", count=64, questions=10)
    said = " ".join(message.content for message in script.told)
    assert all(asked.expected in said for asked in script.asked)
    assert len({asked.text for asked in script.asked}) == 10
    assert all(asked.right(f"It is {asked.expected}.") for asked in script.asked)


@pytest.mark.parametrize("among", ["everyday", "stories"])
def test_everyday_sentences_hold_their_values_and_never_contradict_each_other(among: str) -> None:
    everything = everyday.sayings(among)
    assert len(everything) >= 100
    for one in everything:
        assert names(one.value)(one.tell), one
        assert not names(one.value)(one.ask), one
    script = everyday.script(random.Random(1), side="held_out", count=32, among=among)
    said = [message.content for message in script.told if message.role == "user"]
    told = [one for one in everything if one.tell in said]
    assert len({one.topic for one in told}) == len(told) == len(script.asked) == 32
    assert {asked.text for asked in script.asked} == {one.ask for one in told}
    for asked in script.asked:
        assert asked.right(f"That would be {asked.expected} in the end.")
        assert not asked.right(f"That would be un{asked.expected}ed.")


def test_a_third_of_the_everyday_sentences_fit_no_pattern_of_training_at_all() -> None:
    """Most do on one side or the other, with values of their own: "My name is ..." is how one says it."""
    spoken = [*SPOKEN.values(), PET_SPOKEN, KIN_SPOKEN, *(way.spoken for way in ways().values())]
    told = [form for one in spoken for form in one.mine]
    asked = [ask.text for one in spoken for ask in one.asks_mine]
    tells, asks = patterns((*told, *TELL, *TELL_MORE)), patterns((*asked, *ASK, *ASK_MORE))

    def fits(text: str, forms: list[re.Pattern[str]]) -> bool:
        return any(form.fullmatch(plain(text)) for form in forms)

    fitting = [(fits(one.tell, tells), fits(one.ask, asks)) for one in everyday.sayings()]
    assert sum(not tell and not ask for tell, ask in fitting) >= len(fitting) / 3
    assert sum(tell and ask for tell, ask in fitting) <= len(fitting) / 3


def plain(text: str) -> str:
    """As it is compared: without case, contractions and the mark at its end."""
    for short, long in (("i'm", "i am"), ("what's", "what is"), ("who's", "who is")):
        text = text.lower().replace(short, long)
    return text.strip(" .!?")


def patterns(forms: Iterable[str]) -> list[re.Pattern[str]]:
    """Each form with anything in its fields."""
    fields = {"{v}": ".+", "{n}": ".+", "{p}": "my .+", "{s}": r"\w+"}
    found = []
    for form in forms:
        pattern = re.escape(plain(form))
        for field, words in fields.items():
            pattern = pattern.replace(re.escape(field), words)
        found.append(re.compile(pattern))
    return found


def test_the_newest_value_is_told_last_and_an_older_one_is_wrong() -> None:
    script = updates.script(random.Random(1), side="seen", count=16)
    messages = [message.content for message in script.told if message.role == "user"]
    assert {asked.kind for asked in script.asked} == {"corrected once", "corrected twice"}
    for asked in script.asked:
        assert asked.right(f"It is {asked.expected}.")
        assert any(asked.expected in message for message in messages[8:])
    first = facts.script(random.Random(1), side="seen", count=16, questions=16)
    assert first.told[0].content == messages[0]


def test_what_is_asked_as_never_told_was_not_told() -> None:
    script = unknown.script(random.Random(1), side="seen", count=32)
    never = [asked for asked in script.asked if asked.kind == "never told"]
    told = [asked for asked in script.asked if asked.kind == "told, not refused"]
    assert len(never) == len(told) == 32
    assert all(asked.right("It is something you have not told me.") for asked in never)
    assert not any(asked.right("It is something you have not told me.") for asked in told)


def test_neighbours_resemble_what_was_told_and_were_not() -> None:
    maker, rng = FactMaker("seen"), random.Random(4)
    told = distinct_facts(maker, 12, rng)
    near = neighbours(maker, told, 24, rng)
    known = {fact.key for fact in told}
    assert len({fact.key for fact in near} - known) == 24
    nouns, owners = {fact.noun for fact in told}, {fact.key[:2] for fact in told}
    assert all(fact.noun in nouns or fact.key[:2] in owners for fact in near)
    assert any(fact.key[:2] not in owners for fact in near)
    assert any(fact.noun not in nouns for fact in near)
    script = unknown.script(random.Random(1), side="seen", count=32)
    asked = [asked for asked in script.asked if asked.kind == "never told, a neighbour was"]
    assert len(asked) == 32
    assert all(each.right("It is something you have not told me.") for each in asked)


def test_the_two_steps_are_told_apart_and_only_together_answer() -> None:
    script = two_step.script(random.Random(1), side="seen", count=16)
    assert len(script.asked) == 8
    for asked in script.asked:
        holding = [m.content for m in script.told if m.role == "user" and asked.expected in m.content]
        assert holding


def test_perplexity_covers_every_token_once(bench: Bench, folder: Path) -> None:
    options = Options(**{**_as(SMALL), "lengths": (1100,), "samples": 1, "filler": folder})
    report = perplexity.measure(bench, options)
    assert [(c.extra["model"], c.length, c.n) for c in report.cells] == [
        ("memory on", 1024, 1023),
        ("memory on", 1100, 76),
        ("memory off", 1024, 1023),
        ("memory off", 1100, 76),
        ("base, full attention", 1024, 1023),
        ("base, full attention", 1100, 76),
    ]


def test_streamed_losses_are_the_models_own(bench: Bench) -> None:
    ids = list(range(1, 60))
    model = bench.engine.model
    found = perplexity.streamed_losses(model, model.model.new_cache(), ids)
    whole = torch.tensor([ids])
    assert float(found.mean()) == pytest.approx(float(model(whole, labels=whole).loss), rel=1e-4)


def test_full_attention_sees_all_and_leaves_the_model_as_it_was(
    bench: Bench, make_engine: MakeEngine
) -> None:
    model = bench.engine.model
    ids = list(range(1, 100))
    full = perplexity.full_losses(model, ids)
    assert model.config.window == 64
    wide = make_engine(window=128, memory_trained=False)
    for name, parameter in wide.model.named_parameters():
        parameter.data.copy_(model.get_parameter(name).data)
    expected = perplexity.streamed_losses(wide.model, wide.new_state(), ids)
    assert torch.equal(full, expected)


def test_chat_compares_the_same_tokens_with_a_dirty_memory_and_without(
    make_engine: MakeEngine,
) -> None:
    report = chat.measure(Bench.of(make_engine(window=512, segment=64)), SMALL)
    assert [cell.memory for cell in report.cells] == ["on", "off"]
    assert report.cells[0].n == report.cells[1].n > 0
    assert report.cells[0].extra["loss"] != report.cells[1].extra["loss"]


def test_gates_find_the_tokens_of_a_value(bench: Bench) -> None:
    text = "Clara's code is 482."
    ids = bench.format.encode_user(text, first=True).ids
    at = text.index("482")
    places = gates.value_tokens(bench, ids, text, [(at, at + 3)])
    assert bench.engine.tokenizer.decode([ids[place] for place in sorted(places)]) == "482"


def test_gates_count_what_is_written(bench: Bench) -> None:
    report = gates.measure(bench, SMALL)
    kinds = [cell.extra["tokens"] for cell in report.cells]
    assert kinds[-2:] == ["dialogues", "books"]
    assert "values of facts, seen" in kinds
    assert report.data["bars"]["share of tokens written"]


def test_gates_of_the_papers_memory_are_its_heads(make_engine: MakeEngine) -> None:
    report = gates.measure(Bench.of(make_engine(memory="linear")), SMALL)
    assert len(report.data["bars"]["mixing gates of layer 1"]) == 4


def test_a_story_is_spread_over_the_book_and_ends_beyond_the_window(bench: Bench, folder: Path) -> None:
    options = Options(**{**_as(SMALL), "samples": 1, "memory": ("on",), "filler": folder})
    report = babilong.measure(bench, options)
    assert {(c.extra["qa"], c.length, c.n) for c in report.cells} == {
        (number, length, 1) for number in range(1, 6) for length in (160, 200)
    }


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_story_answers_its_question(number: int) -> None:
    for seed in range(20):
        script = babilong.script(random.Random(seed), number)
        assert any(script.asked[0].right(sentence) for sentence in script.spread)


def test_the_last_move_counts() -> None:
    for seed in range(20):
        told, question, answer = babilong.one_fact(random.Random(seed))
        name = question.removeprefix("Where is ").removesuffix("?")
        assert answer in [sentence for sentence in told if sentence.startswith(name)][-1]
