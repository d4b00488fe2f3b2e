"""Right is the whole value, alone at its place."""

from __future__ import annotations

import pytest

from infinichat.corpus.sentences import Fact
from infinichat.evals.judging import admits, completes, says, says_fact

RIGHT = [
    ("417", "417"),
    ("417", "Your code is 417."),
    ("417", "It's 417 now, I think."),
    ("34", "Clara is 34 years old."),
    ("The Last Castle", "it\u2019s \u201cthe last castle\u201d!"),
    ("AB-12", "It is AB-12."),
    ("7:30", "You get up at 7:30."),
    ("green tea", "Your favourite drink is **green tea**."),
    ("Oslo", "You live in Oslo, as you told me."),
    ("Volvo", "You drive a Volvo."),
    ("red", "The kitchen, as you said, is red."),
    ("May", "Your month: May"),
    ("Lantern", "It is the Lantern."),
]
WRONG = [
    ("Tomas", "His name is Tomaso."),
    ("Clara", "It is Clara Quilbel."),
    ("Clara Quilbel", "It is Clara."),
    ("Lantern", "It is The Silver Lantern."),
    ("The Silver Lantern", "It is The Lantern."),
    ("28 March", "It is 28 March 1960."),
    ("March 28", "It is 28 March."),
    ("417", "It is 4170."),
    ("417", "It is 3417."),
    ("417", ""),
    ("417", "It is 417 or 312."),
    ("417", "It is 312 or 417."),
    ("417", "It is 312, 417."),
    ("821", "It is 4,821."),
    ("12", "It is 12-34."),
    ("4", "You get up at 4 pm."),
    ("7", "You get up at 7:30."),
    ("Asus", "Your brand is asus.com."),
    ("Baker Street", "You live at 12 Baker Street."),
    ("blue", "It is dark blue."),
    ("Clara", "Your sister Clara's code is 12."),
    ("juice", "It is apple juice."),
    ("apple", "It is apple juice."),
]


@pytest.mark.parametrize(("value", "answer"), RIGHT, ids=str)
def test_the_value_alone_is_right(value: str, answer: str) -> None:
    assert says(value)(answer)


@pytest.mark.parametrize(("value", "answer"), WRONG, ids=str)
def test_more_less_or_another_value_is_wrong(value: str, answer: str) -> None:
    assert not says(value)(answer)


def test_an_older_value_anywhere_makes_an_answer_wrong() -> None:
    assert says("417", never=["312"])("It is 417.")
    assert not says("417", never=["312"])("It is 417, not 312.")


def test_a_completion_has_to_begin_with_the_value() -> None:
    judge = completes("12345")
    assert judge(" 12345. Remember it.")
    assert not judge(" 123456")
    assert not judge(" 54321. No: 12345")


@pytest.mark.parametrize(
    ("answer", "admitted"),
    [
        ("Your PIN is something you have not told me.", True),
        ("You haven\u2019t told me that.", True),
        ("I'm sorry, I don't know.", True),
        ("I do not have that information.", True),
        ("Your PIN is 4471.", False),
        ("Your motto is Never Say Never.", False),
    ],
)
def test_admitting_is_recognised(answer: str, admitted: bool) -> None:
    assert admits(answer) is admitted


def test_a_fact_may_be_said_in_any_of_the_ways_in_which_it_is_answered() -> None:
    dog = Fact("user", "", "dog's name", "pet", "Rufus")
    for answer in ("Your dog is called Rufus.", "You named your dog Rufus.", "It's Rufus."):
        assert says_fact(dog)(answer), answer
    # A word that none of them ends with is part of another name.
    assert not says_fact(dog)("Your dog is called Old Rufus.")
    assert not says("Rufus")("You named your dog Rufus.")
    assert not says_fact(dog, never=["Bello"])("You named your dog Rufus, not Bello.")
    drink = Fact("person", "Gloria", "diet", "diet", "pescatarian")
    assert says_fact(drink)("Gloria eats pescatarian.")
