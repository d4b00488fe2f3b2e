"""The line of keys: what fits, where a click goes, and that it follows what may be pressed now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.ui.widgets.key_line import KeyHelp, KeyLine, key_at, line
from tests.ui.acting import click, idle, press, say, shows, shows_no, wait_until

KEYS = [KeyHelp("f1", "f1", "Help"), KeyHelp("ctrl+n", "^n", "New")]
PALETTE = KeyHelp("ctrl+p", "^p", "palette")


def test_keys_stand_at_the_left_and_the_palette_at_the_right() -> None:
    assert line(KEYS, PALETTE, 40).plain == " f1 Help  ^n New " + " " * 11 + "▏^p palette "
    assert line(KEYS, None, 40).plain == " f1 Help  ^n New "


@pytest.mark.parametrize("width", range(1, 60))
def test_a_narrow_line_has_whole_keys_only(width: int) -> None:
    text = line(KEYS, PALETTE, width).plain
    assert len(text) <= width
    for key in (*KEYS, PALETTE):
        assert text.count(key.shown) == text.count(key.help)


def test_a_column_belongs_to_the_key_that_is_painted_there() -> None:
    text = line(KEYS, PALETTE, 40).plain
    assert key_at(KEYS, PALETTE, 40, text.index("Help")) == "f1"
    assert key_at(KEYS, PALETTE, 40, text.index("^n")) == "ctrl+n"
    assert key_at(KEYS, PALETTE, 40, text.index("palette")) == "ctrl+p"
    assert key_at(KEYS, PALETTE, 40, text.index("New") + 8) is None
    assert key_at(KEYS, None, 12, 11) is None


async def test_it_shows_the_keys_of_what_has_the_focus(
    make: Callable[..., Any], running: Callable[..., Any]
) -> None:
    app = make(ScriptedEngine(["one"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await shows(pilot, "f1 Help", "^p palette")
        await press(pilot, "tab")
        await shows(pilot, "c Copy")
        await press(pilot, "escape")
        await shows_no(pilot, "c Copy")


async def test_a_click_presses_the_key(make: Callable[..., Any], running: Callable[..., Any]) -> None:
    app = make()
    async with running(app) as pilot:
        await shows(pilot, "f4 Memory")
        keys = app.chat.query_one(KeyLine)
        text = line(*app.chat.query_one(KeyLine)._shown).plain
        await click(pilot, keys, offset=(text.index("Memory"), 0))
        await wait_until(pilot, lambda: app.screen.id == "memory")
