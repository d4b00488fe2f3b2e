"""What is kept of what was typed, and the title made of it."""

from __future__ import annotations

import pytest

from infinichat.errors import UsageError
from infinichat.session.words import TITLE_LENGTH, storable, title_from, words


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello", "Hello"),
        ("  Hello\n\n world\t!", "Hello world !"),
        ("# Heading\ntext", "Heading text"),
        ("- - -", "- - -"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\u202eevil\u2066", "evil"),
        ("\x00\x1b", None),
        ("word " * 40, "word word word word word word word word word word word…"),
        ("x" * 200, "x" * (TITLE_LENGTH - 1) + "…"),
    ],
)
def test_a_title_is_one_printable_line(text: str, title: str | None) -> None:
    assert title_from(text) == title
    assert len(title or "") <= TITLE_LENGTH


def test_text_is_kept_as_it_is_except_for_lone_surrogates() -> None:
    assert storable("a\x1b[0m\n  é 🙂\r\n") == "a\x1b[0m\n  é 🙂\r\n"
    assert storable("\ud83d\ude42") == "🙂"
    assert storable("a\ud83db") == "a\ufffdb"


def test_nothing_is_nothing_to_say() -> None:
    with pytest.raises(UsageError, match="The message is empty"):
        words(" \n\t", "message")
