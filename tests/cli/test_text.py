"""Text for people and for terminals: nothing that came from a model is obeyed, nothing is lost in JSON."""

from __future__ import annotations

import json

import pytest

from infinichat.cli.text import ago, counted, duration, one_line, safe, size, table, to_json


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
    assert safe(text) == shown


def test_json_is_exact_and_has_no_raw_control_character() -> None:
    value = {"text": "\x1b[2J \x9b \x7f \u202e \u2028 \udc80 日本 \r\n"}
    printed = to_json(value)
    assert json.loads(printed) == value
    assert "日本" in printed
    assert not set(printed) & set("\x1b\x9b\x7f\u202e\u2028\udc80\r")


def test_one_line_is_never_wider_than_asked() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("word " * 50, 20) == "word word word word…"
    assert one_line("日本語" * 20, 11) == "日本語日本…"


def test_columns_align_also_with_wide_characters() -> None:
    assert table(["A", "N"], [["日本", "1"], ["x", "10"]], right=(1,)) == "A      N\n日本   1\nx     10"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (98_362_432, "98.4 MB"), (3e12, "3.0 TB")],
)
def test_sizes_are_in_units_that_people_use(count: float, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (120, "2 min"), (3599, "59 min"), (3700, "1 h 1 min")],
)
def test_durations_have_at_most_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "just now"),
        (60, "1 minute ago"),
        (7300, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (-5, "just now"),
    ],
)
def test_moments_are_told_from_now(seconds: float, words: str) -> None:
    assert ago(1_000_000_000 - seconds, now=1_000_000_000) == words


def test_a_moment_long_ago_is_a_date() -> None:
    assert ago(0.0, now=1e9)[:3] in {"197", "196"}


def test_counts_agree_with_their_noun() -> None:
    assert (counted(1, "message"), counted(1204, "message")) == ("1 message", "1,204 messages")
