"""The window over a long transcript."""

from __future__ import annotations

import pytest

from infinichat.messages import Message
from infinichat.ui.window import FEW, MOST, PAGE, Window


class Transcript:
    """A list of messages with the store's way of asking for a part of it; counts what it gave out."""

    def __init__(self, count: int) -> None:
        self.messages = [message(i) for i in range(count)]
        self.given = 0

    @property
    def tip(self) -> str | None:
        return self.messages[-1].id if self.messages else None

    def window(self) -> Window:
        window = Window(self.fetch, lambda wanted: next(m for m in self.messages if m.id == wanted))
        window.reset(self.tip)
        return window

    def fetch(self, before: str, limit: int) -> list[Message]:
        end = [m.id for m in self.messages].index(before)
        found = self.messages[max(0, end - limit) : end]
        self.given += len(found)
        return found


def message(number: int, content: str = "") -> Message:
    return Message(f"m{number}", f"m{number - 1}" if number else None, "user", content, "complete", 0.0)


def shown(window: Window) -> list[str]:
    return [m.id for m in window.mounted]


def test_only_the_newest_page_is_loaded_at_first() -> None:
    source = Transcript(1000)
    window = source.window()
    assert shown(window) == [f"m{i}" for i in range(1000 - FEW, 1000)]
    window.up(PAGE - FEW)
    assert shown(window) == [f"m{i}" for i in range(1000 - PAGE, 1000)]
    assert source.given == PAGE - 1  # and the tip
    assert window.has_older
    assert not window.has_newer


def test_walking_up_to_the_first_and_down_again_never_mounts_more_than_the_limit() -> None:
    window = Transcript(1000).window()
    on_screen = list(window.mounted)
    while window.has_older:
        move = window.up()
        on_screen = [*move.mount, *on_screen]
        on_screen = on_screen[: len(on_screen) - move.drop]
        assert [m.id for m in on_screen] == shown(window)
        assert len(on_screen) <= MOST
    assert shown(window)[0] == "m0"
    while window.has_newer:
        move = window.down()
        on_screen = [*on_screen, *move.mount][move.drop :]
        assert [m.id for m in on_screen] == shown(window)
        assert len(on_screen) <= MOST
    assert shown(window)[-1] == "m999"


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, MOST, MOST + 1])
def test_the_first_message_is_reached_and_then_there_is_nothing_older(count: int) -> None:
    window = Transcript(count).window()
    for _ in range(10):
        window.up()
    assert len(window.loaded) == count
    assert not window.has_older


def test_the_end_is_kept_while_it_is_in_use() -> None:
    window = Transcript(200).window()
    for _ in range(5):
        assert window.up(keep_end=True).drop == 0
    assert shown(window)[-1] == "m199"


def test_a_message_is_revealed_wherever_it_is() -> None:
    window = Transcript(1000).window()
    assert window.around("m3") is not None
    assert "m3" in shown(window)
    assert len(shown(window)) <= PAGE
    assert window.around("elsewhere") is None


def test_the_difference_to_the_store_is_what_another_branch_changes() -> None:
    source = Transcript(30)
    window = source.window()
    source.messages = [*source.messages[:28], message(100), message(101)]
    added = window.differing(source.tip)
    assert added is not None
    assert [m.id for m in added] == ["m100", "m101"]
    assert shown(window)[-1] == "m27"


def test_a_message_whose_words_changed_is_taken_again() -> None:
    source = Transcript(5)
    window = source.window()
    source.messages[4] = message(4, "now with words")
    added = window.differing(source.tip)
    assert added is not None
    assert [m.content for m in added] == ["now with words"]


def test_a_transcript_with_nothing_in_common_is_loaded_anew() -> None:
    source = Transcript(5)
    window = source.window()
    source.messages = [message(50)]
    assert window.differing(source.tip) is None


def test_trimming_keeps_the_newest_page() -> None:
    window = Transcript(10).window()
    for i in range(10, 80):
        window.append(message(i))
    dropped = window.trim()
    assert dropped == FEW + 70 - PAGE
    assert shown(window)[-1] == "m79"
    assert len(shown(window)) == PAGE
