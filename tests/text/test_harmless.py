"""Text made harmless: nothing that came from a model is obeyed, nothing is lost."""

from __future__ import annotations

import pytest

from infinichat.text.harmless import one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "␛[2J␛]0;owned␇"),
        ("a\rb", "a␍b"),
        ("a\r\nb", "a\nb"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\x00\x08", "␡␀␈"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\udc80", "\\udc80"),
        ("naïve 日本語 🐕 ‹2/3›", "naïve 日本語 🐕 ‹2/3›"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_control_characters_are_shown_and_text_stays_as_it_is() -> None:
    assert visible("a\x1b[31mred\x07\x7f\tb\nc") == "a␛[31mred␇␡\tb\nc"
    assert visible("\x9b31m") == "\\x9b31m"
    assert visible("safe \u202etxt.exe") == "safe \\u202etxt.exe"
    assert visible("one\r\ntwo\rthree") == "one\ntwo␍three"
    assert visible("größer [b]not markup[/b] 漢字 🙂") == "größer [b]not markup[/b] 漢字 🙂"


def test_every_character_below_space_is_shown_except_tab_and_newline() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        kept = chr(code) in "\t\n"
        assert (visible(chr(code)) == chr(code)) is kept


def test_one_line_is_cut_to_its_width_and_has_no_line_end() -> None:
    assert one_line("a\n b\t c", 10) == "a b c"
    assert one_line("x" * 50, 10) == "xxxxxxxxx…"
    assert len(one_line("word " * 1_000_000, 40)) <= 40
    assert one_line("日本語" * 20, 11) == "日本語日本…"
