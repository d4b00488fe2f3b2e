"""Generated facts: every sentence says where its value is, sides never share words, answers keep the asker's
verb."""

from __future__ import annotations

import random

import pytest

from infinichat.corpus.facts import NOT_TOLD, Fact, FactMaker, Side, combined
from infinichat.corpus.phrasings import (
    ASK,
    ASK_HELD_OUT,
    ASK_MORE,
    CORRECT,
    CORRECT_HELD_OUT,
    CORRECT_MORE,
    TELL,
    TELL_HELD_OUT,
    TELL_MORE,
)

SIDES: tuple[Side, ...] = ("train", "seen", "held_out")
CLARA = Fact("person", "Clara", "home town", "town", "Toronto")
LOCKER = Fact("person", "Clara", "locker code", "code", "4821")


@pytest.mark.parametrize("side", SIDES)
def test_a_marked_span_is_the_value(side: Side) -> None:
    maker, rng = FactMaker(side), random.Random(1)
    for _ in range(300):
        fact = maker.fact(rng)
        new = maker.corrected(rng, fact)
        other = maker.fact_about(rng, fact.subject, fact.name)
        told = [maker.tell(rng, fact), maker.tell(rng, new, old=fact)]
        if fact.subject != "thing":
            told.append(maker.tell_both(rng, fact, other))
        for sentence in told:
            assert sentence.spans
            for start, end, whose in sentence.spans:
                assert sentence.text[start:end] == whose.value
        for known in (True, False):
            question = maker.ask(rng, fact, told=known)
            start, end = question.span
            said = question.answer[start:end]
            assert said == fact.value if known else "have not told me" in said
            assert "{" not in question.ask + question.answer + "".join(s.text for s in told)


def test_held_out_phrasings_are_never_trained_on() -> None:
    assert not set(TELL_HELD_OUT) & set(TELL + TELL_MORE)
    assert not set(CORRECT_HELD_OUT) & set(CORRECT + CORRECT_MORE)
    assert not set(ASK_HELD_OUT) & set(ASK + ASK_MORE)
    made = {combined(random.Random(seed)) for seed in range(5000)}
    assert len(made) > 1000
    assert not set(ASK_HELD_OUT) & made


def test_a_combined_question_is_a_sentence() -> None:
    made = [combined(random.Random(seed)) for seed in range(300)]
    assert all(form.count("{p}") == 1 for form in made)
    assert "Sorry, what is {p} again?" in {combined(random.Random(seed)) for seed in range(60_000)}
    for form in made:
        begins = form[0] == form[0].upper()
        assert begins, form


def test_measured_phrasings_do_not_grow_with_those_of_training() -> None:
    assert set(FactMaker("seen").tell_forms) == set(TELL)
    assert set(FactMaker("train").ask_forms) == set(ASK + ASK_MORE)


def test_who_asks_with_a_verb_is_answered_with_it() -> None:
    maker, rng = FactMaker("train"), random.Random(2)
    answers = {q.ask: q.answer for q in (maker.ask(rng, CLARA) for _ in range(1000))}
    assert answers["Where does Clara live?"] == "Clara lives in Toronto."
    assert answers["What is Clara's home town?"] == "Clara's home town is Toronto."
    unknown = {q.ask: q.answer for q in (maker.ask(rng, CLARA, told=False) for _ in range(1000))}
    assert unknown["Where does Clara live?"] == "Clara lives in a place you have not told me."
    assert unknown["What is Clara's home town?"] == f"Clara's home town is {NOT_TOLD}."


def test_two_facts_share_a_sentence_and_the_second_has_a_pronoun() -> None:
    maker, rng = FactMaker("train"), random.Random(3)
    texts = [maker.tell_both(rng, CLARA, LOCKER).text for _ in range(60)]
    assert any(", and " in text for text in texts)
    for text in texts:
        assert "Toronto" in text
        assert any(f"{word} locker code is 4821" in text.lower() for word in ("her", "his", "their"))
