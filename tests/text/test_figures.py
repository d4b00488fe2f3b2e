"""Figures: counts, sizes, times and gauges as people read them."""

from __future__ import annotations

import pytest

from infinichat.text import figures
from infinichat.text.figures import ago, counted, size


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_000, "1.0k"), (12_345, "12.3k"), (123_456, "123k"), (1_234_567, "1.23M")],
)
def test_a_count_of_tokens_is_at_most_five_characters(count: int, text: str) -> None:
    assert figures.tokens(count) == text


def test_a_gauge_is_full_only_at_one_and_empty_only_at_zero() -> None:
    assert figures.bar(0, 4) == "▱▱▱▱"
    assert figures.bar(0.001, 4) == "▰▱▱▱"
    assert figures.bar(0.999, 4) == "▰▰▰▱"
    assert figures.bar(1, 4) == figures.bar(7, 4) == "▰▰▰▰"
    assert [figures.percent(x) for x in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "1 %", "50 %", "99 %", "100 %"]


def test_times_are_in_at_most_two_units() -> None:
    assert [figures.duration(s) for s in (0.41, 42, 75, 1800, 5400)] == [
        "0.4 s",
        "42 s",
        "1 min 15 s",
        "30 min",
        "1 h 30 min",
    ]
    assert figures.ago(0, now=30) == "just now"
    assert figures.ago(0, now=7200, short=True) == "2 h ago"
    assert figures.ago(0, now=40 * 86400) == "1970-01-01"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (98_362_432, "98.4 MB"), (3e12, "3.0 TB")],
)
def test_sizes_are_in_units_that_people_use(count: float, words: str) -> None:
    assert size(count) == words


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


def test_counts_agree_with_their_noun() -> None:
    assert (counted(1, "message"), counted(1204, "message")) == ("1 message", "1,204 messages")
