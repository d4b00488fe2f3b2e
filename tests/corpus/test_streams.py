"""Streams for training: corrections in order, talk without values, and questions about other things."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from infinichat.corpus.conversations import IGNORE, OTHER, VALUE, VERSIONS, StreamMaker
from infinichat.corpus.facts import FactMaker
from infinichat.corpus.filler import Filler
from infinichat.corpus.general import general_questions
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.training.plain import offsets_of


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    """Forty instructions and a book."""
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"How are {n} apples?"},
                    {"role": "assistant", "content": "Well."},
                ]
            }
        )
        for n in range(40)
    ]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    for name in ("one.txt", "two.txt", "three.txt"):
        (tmp_path / name).write_text("The rain came down on the old town and nobody went out. " * 40)
    return Filler(tmp_path)


def maker_of(filler: Filler) -> StreamMaker:
    general = [("What is gravity?", "Gravity is a force.")]
    tokenizer = offsets_of(ByteTokenizer())
    return StreamMaker(FactMaker("train"), filler, tokenizer, random.Random(4), general=general)


def test_facts_are_corrected_once_and_twice_in_the_same_stream_and_in_later_ones(filler: Filler) -> None:
    maker = maker_of(filler)
    streams = [maker.tell_stream(12) for _ in range(12)]
    assert {len(versions) for versions in maker.facts} == set(range(1, VERSIONS + 1))
    where: dict[int, set[int]] = {}
    for number, stream in enumerate(streams):
        for told in stream.told:
            where.setdefault(told.fact, set()).add(number)
    assert any(len(places) > 1 for places in where.values())
    for versions in maker.facts:
        assert len({fact.key for fact in versions}) == 1


def test_talk_has_no_values_and_general_questions_come_between_others(filler: Filler) -> None:
    maker, tokenizer = maker_of(filler), ByteTokenizer()
    assert VALUE not in maker.talk_stream(4).labels
    maker.tell_stream(12)
    texts = [tokenizer.decode(maker.ask_stream([0, 1, 2, 3], unknown=0.2, chatter=0).ids) for _ in range(20)]
    assert any("What is gravity?" in text and "Gravity is a force." in text for text in texts)


@pytest.mark.parametrize(
    ("user", "judged"),
    [("I collect stamps.", False), ("so my dog ate it", False), ("How are Ida's apples?", True)],
)
def test_what_users_say_of_themselves_in_real_talk_is_not_judged(
    user: str, judged: bool, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": user}, {"role": "assistant", "content": "I like those."}]
    (tmp_path / "talk.jsonl").write_text("\n".join(json.dumps({"messages": said}) for _ in range(40)))
    maker, tokenizer = maker_of(Filler(tmp_path)), ByteTokenizer()
    stream = maker.talk_stream(2)
    judged_text = tokenizer.decode(
        [token for token, label in zip(stream.ids, stream.labels, strict=True) if label == OTHER]
    )
    assert (user in judged_text) == judged
    assert "I like those." in judged_text
    assert (IGNORE in stream.labels) != judged


def test_general_questions_are_made_and_taken_from_instructions(filler: Filler) -> None:
    questions = general_questions(random.Random(0), filler, 60)
    assert len(questions) == len(set(questions)) == 60
    assert sum("apples" in question for question in questions) == 30
    assert not any("{" in question for question in questions)
