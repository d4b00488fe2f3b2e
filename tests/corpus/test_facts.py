"""Generated facts: every sentence says where its value is, sides never share words, answers keep the asker's
verb."""

from __future__ import annotations

import random
import re

import pytest

from infinichat.corpus.attributes import EVERYDAY
from infinichat.corpus.facts import FactMaker, Side, combined
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
from infinichat.corpus.sentences import NOT_TOLD, Fact, answer_start, asks_for
from infinichat.corpus.spoken import EVENT_SPOKEN, KIN_SPOKEN, PET_SPOKEN, SPOKEN
from infinichat.corpus.vocabulary import MAKERS, is_held_out
from infinichat.corpus.ways import ways

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
    answers = {q.ask: q.answer for q in (maker.ask(rng, CLARA) for _ in range(20000))}
    assert answers["Where does Clara live?"] == "Clara lives in Toronto."
    assert answers["What is Clara's home town?"] == "Clara's home town is Toronto."
    unknown = {q.ask: q.answer for q in (maker.ask(rng, CLARA, told=False) for _ in range(1000))}
    assert unknown["Where does Clara live?"] == "Clara lives in a place you have not told me."
    assert unknown["What is Clara's home town?"] == f"Clara's home town is {NOT_TOLD}."


def test_what_people_tell_first_is_trained_on_whatever_its_checksum() -> None:
    nouns = {noun for noun, _ in FactMaker("train").personal}
    assert set(EVERYDAY) - {noun for noun, _ in FactMaker("train").daily} <= {"anniversary"}
    assert {"name", "job", "dog's name", "sister", "favourite food"} <= nouns
    assert any(is_held_out(noun) for noun in EVERYDAY)
    assert not nouns & {noun for noun, _ in FactMaker("held_out").personal}
    rng, maker = random.Random(5), FactMaker("seen")
    drawn = [maker.fact(rng).noun for _ in range(2000)]
    assert sum(noun in EVERYDAY for noun in drawn) > 500
    assert drawn.count("name") > 5


def test_only_the_user_is_asked_for_their_name() -> None:
    maker, rng = FactMaker("train"), random.Random(6)
    for _ in range(500):
        beside = maker.sibling(rng, Fact("person", "Clara", "surname", "made_up", "Quilbel"))
        assert (beside.noun == "name") <= (beside.subject == "user")
    fact = Fact("user", "", "name", "name", "Tomas")
    told = {maker.tell(rng, fact).text for _ in range(5000)}
    assert {"My name is Tomas.", "I'm Tomas.", "Hi, I am Tomas, nice to meet you."} & told
    answers = {maker.ask(rng, fact).answer for _ in range(300)}
    assert "Your name is Tomas." in answers
    starts = {answer_start(fact, form) for form in (None, *(ask.answer for ask in asks_for(fact)))}
    assert answers <= {f"{start}Tomas." for start in starts}


def test_a_relative_and_their_name_are_one_thing_and_said_in_the_words_of_the_question() -> None:
    sister = Fact("user", "", "sister", "person", "Anna")
    assert sister.key == Fact("user", "", "sister's name", "person", "Anna").key
    maker, rng = FactMaker("train"), random.Random(7)
    answers = {q.ask: q.answer for q in (maker.ask(rng, sister) for _ in range(10000))}
    assert answers["Who is my sister?"] == "Your sister is Anna."
    assert answers["What's my sister's name?"] == "Your sister's name is Anna."
    assert answers["What is my sister called?"] == "Your sister is called Anna."


def test_the_article_before_a_value_is_the_values() -> None:
    maker, rng = FactMaker("train"), random.Random(8)
    for value, article in (("electrician", " an "), ("plumber", " a ")):
        fact = Fact("user", "", "job", "job", value)
        answers = [maker.ask(rng, fact).answer for _ in range(500)]
        before = [answer.removesuffix(f"{value}.") for answer in answers]
        articles = {
            " an " if start.endswith(" an ") else " a " for start in before if start.endswith((" a ", " an "))
        }
        assert articles == {article}
    untold = {maker.ask(rng, Fact("user", "", "job", "job", "actor"), told=False).answer for _ in range(500)}
    assert not any(" an something" in answer for answer in untold)


@pytest.mark.parametrize(
    ("kind", "value", "answer"),
    [
        ("weekday", "Friday", "Your flight is on Friday."),
        ("date", "14 March", "Your flight is on 14 March."),
        ("time", "15:30", "Your flight is at 15:30."),
    ],
)
def test_an_event_is_on_a_day_and_at_a_time(kind: str, value: str, answer: str) -> None:
    maker, rng = FactMaker("train"), random.Random(8)
    event = Fact("user", "", "flight", kind, value)
    answers = {(q.ask, q.answer) for q in (maker.ask(rng, event) for _ in range(3000))}
    assert ("When is my flight?", answer) in answers
    echoes = {maker.tell(rng, event).echo for _ in range(300)}
    assert answer.removesuffix(f"{value}.") in echoes


def test_articles_contractions_and_corrections_are_as_people_type_them() -> None:
    maker, rng = FactMaker("train"), random.Random(9)
    old, new = (Fact("user", "", "job", "job", job) for job in ("plumber", "electrician"))
    told = {maker.tell(rng, new).text for _ in range(2000)}
    assert {"I work as an electrician.", "I'm an electrician."} <= told
    assert any(text.endswith(", I'm an electrician.") for text in told)
    assert not any(" a electrician" in text for text in told)
    corrected = {maker.tell(rng, new, old=old).text for _ in range(3000)}
    assert any(text.endswith((", I'm an electrician.", ", I am an electrician.")) for text in corrected)
    home = Fact("user", "", "home town", "town", "Oslo")
    corrected = {maker.tell(rng, home, old=CLARA).text for _ in range(3000)}
    assert any(text.endswith(", we live in Oslo.") for text in corrected)
    colour = Fact("user", "", "favourite colour", "colour", "red")
    asked = {maker.ask(rng, colour).ask for _ in range(5000)}
    assert {"What is my favourite colour?", "What is my favorite color?"} <= asked


def test_each_way_says_what_it_is_about_before_the_value_and_asks_without_it() -> None:
    assert len(ways()) > 1500
    for kind, way in ways().items():
        spoken = way.spoken
        answers = [ask.answer for ask in spoken.asks_mine]
        assert len(spoken.mine) >= 3, kind
        assert len(answers) >= 3, kind
        for form in (*spoken.mine, *(ask.text for ask in spoken.asks_mine), spoken.echo_mine):
            assert form.count("{s}") == way.other, form
            assert form.count("{v}") == (form in spoken.mine), form
            assert not re.search(r"\{(?!s\}|v\})", form), form
        assert not any(form.startswith("{v}") for form in spoken.mine), kind
        assert spoken.echo_mine.endswith(" "), kind
        assert (way.maker in MAKERS) != (len(way.values) >= 10), kind
        assert way.key not in ("", *SPOKEN), kind


def test_an_answer_turns_its_question_around_in_the_words_of_it() -> None:
    """What comes up to the value must follow from the question: a model of this size cannot guess it."""
    everything = [*SPOKEN.values(), PET_SPOKEN, KIN_SPOKEN, *EVENT_SPOKEN.values()]
    everything += [way.spoken for way in ways().values()]
    shares = []
    for spoken in everything:
        for ask in (*spoken.asks_mine, *spoken.asks_theirs):
            assert ask.answer.endswith(" "), ask
            assert ask.answer == ask.answer.strip() + " ", ask
            assert not re.search(r"\{(?![sSn]\})", ask.answer), ask
            assert ("{n}" in ask.text) == ("{n}" in ask.answer), ask
            assert not re.search(r"\b(my|our|we|us)\b", ask.answer), ask
            assert re.match(r"[A-Z{\d]", ask.answer), ask
            assert ask.answer[-2] not in ".!?:", ask
            said = re.findall(r"[a-z]{4,}", ask.answer.lower().replace("your", "my"))
            asked = ask.text.lower()
            shares += [word[:4] in asked for word in said]
        for ask in spoken.asks_theirs:
            assert ("{s}" in ask.text.lower()) == ("{s}" in ask.answer.lower()), ask
    assert sum(shares) / len(shares) > 0.9


def test_ways_are_drawn_told_corrected_and_asked_for_on_both_sides() -> None:
    for side in SIDES:
        maker, rng, met = FactMaker(side, own_words=0.3), random.Random(10), set()
        for _ in range(1500):
            fact = maker.fact(rng)
            if fact.kind not in ways():
                continue
            met.add(fact.kind)
            assert (fact.subject == "person") == ways()[fact.kind].other
            assert is_held_out(fact.noun) == (side == "held_out")
            told, again = maker.tell(rng, fact), maker.tell(rng, maker.corrected(rng, fact), old=fact)
            assert fact.value in told.text
            starts = {answer_start(fact, ask.answer) for ask in asks_for(fact)}
            assert maker.ask(rng, fact).answer.removesuffix(f"{fact.value}.") in starts
            assert fact.name in told.text
            assert fact.name in again.text
            assert maker.sibling(rng, fact).key != fact.key
            assert maker.ask_on_page(rng, fact).answer == f" {told.echo}{fact.value}"
        assert len(met) > 20, side


def test_two_facts_share_a_sentence_and_the_second_has_a_pronoun() -> None:
    maker, rng = FactMaker("train"), random.Random(3)
    texts = [maker.tell_both(rng, CLARA, LOCKER).text for _ in range(60)]
    assert any(", and " in text for text in texts)
    for text in texts:
        assert "Toronto" in text
        assert any(f"{word} locker code is 4821" in text.lower() for word in ("her", "his", "their"))
