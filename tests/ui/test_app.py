"""The app as a whole: long sessions, locks, crashes, leaving, a terminal without colour, and no torch."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.paths import Paths
from infinichat.store import SessionRecord, Store
from infinichat.ui.window import MOST, PAGE
from tests.ui.acting import idle, page_mounted, press, say, screen_text, shows, wait_until

Make = Callable[..., Any]
Running = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]


def long_session(store: Store, count: int) -> SessionRecord:
    record = store.create_session("long")
    for number in range(count):
        role = "assistant" if number % 2 else "user"
        text = f"**message** {number}" if number % 2 else f"message {number}"
        store.append(record.id, role=role, content=text, reason="complete", chain="", model="m")
    return store.session(record.id)


async def test_a_thousand_messages_cost_one_page(make: Make, running: Running, store: Store) -> None:
    record = long_session(store, 1000)
    app = make(session=record)
    async with running(app) as pilot:
        transcript = app.chat.transcript
        await page_mounted(pilot)
        await shows(pilot, "message 999")
        assert len(transcript.messages) == PAGE
        first = store.path(record.id)[0]
        assert await transcript.reveal(first.id)
        await shows(pilot, "message 0")
        assert len(transcript.entries) <= PAGE
        await press(pilot, "ctrl+l")
        await shows(pilot, "message 999")


async def test_scrolling_up_reaches_the_first_message_and_never_mounts_all(
    make: Make, running: Running, store: Store
) -> None:
    app = make(session=long_session(store, 110))
    async with running(app) as pilot:
        transcript = app.chat.transcript
        await page_mounted(pilot)
        most = 0

        def is_at(words: str, scroll: Callable[..., None]) -> bool:
            nonlocal most
            most = max(most, len(transcript.entries))
            scroll(animate=False)
            return words in screen_text(app)

        await wait_until(pilot, lambda: is_at("message 0", transcript.scroll_home))
        await wait_until(pilot, lambda: len(transcript.entries) <= MOST)
        await wait_until(pilot, lambda: is_at("message 109", transcript.scroll_end))
        assert most <= MOST + PAGE


async def test_paging_up_leaves_what_one_was_reading_where_it_was(
    make: Make, running: Running, store: Store
) -> None:
    app = make(session=long_session(store, 200))
    async with running(app) as pilot:
        transcript = app.chat.transcript
        await page_mounted(pilot)
        transcript.scroll_to(y=2, animate=False)
        await wait_until(pilot, lambda: transcript.scroll_y == 2)
        top = transcript.entries[0]
        await wait_until(pilot, lambda: 0 < top.region.y <= transcript.region.y + top.virtual_region.y - 2)
        before, lines = top.region.y, transcript.max_scroll_y
        transcript.scroll_to(y=1, animate=False)
        await wait_until(pilot, lambda: len(transcript.entries) > 20 and transcript.max_scroll_y > lines + 20)
        await wait_until(pilot, lambda: abs(top.region.y - before) <= 2)
        for _ in range(10):
            # And there it stays.
            await asyncio.sleep(0.02)
            assert abs(top.region.y - before) <= 2


async def test_a_page_key_in_the_prompt_scrolls_the_transcript(
    make: Make, running: Running, store: Store
) -> None:
    app = make(session=long_session(store, 60))
    async with running(app) as pilot:
        await page_mounted(pilot)
        bottom = app.chat.transcript.scroll_y
        await press(pilot, "pageup")
        await wait_until(pilot, lambda: app.chat.transcript.scroll_y < bottom)
        assert app.focused is app.chat.prompt


async def test_an_answer_does_not_pull_one_down_who_scrolled_up(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(["line\n\n" * 40], tokens_per_s=200), session=long_session(store, 40))
    async with running(app) as pilot:
        transcript = app.chat.transcript
        await page_mounted(pilot)
        await say(pilot, "go")
        await shows(pilot, "answering")
        await press(pilot, "pageup")
        place, lines = transcript.scroll_y, transcript.max_scroll_y
        await wait_until(pilot, lambda: transcript.max_scroll_y > lines + 4)
        assert transcript.scroll_y <= place
        await press(pilot, "escape")
        await idle(pilot)


async def test_a_session_that_another_process_has_open_is_a_sentence_and_the_words_return(
    make: Make, store: Store, paths: Paths
) -> None:
    record = store.create_session("busy")
    code = (
        "import sys, time\nfrom infinichat.paths import default_paths\nfrom infinichat.store import Store\n"
        "with Store.open(default_paths()) as s:\n"
        "    with s.lock(sys.argv[1]):\n        print('locked', flush=True)\n        time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, record.id],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        app = make(session=record)
        async with app.run_test(size=(80, 24)) as pilot:
            await shows(pilot, str(other.pid))
            await say(pilot, "hello")
            await wait_until(pilot, lambda: app.chat.prompt.text == "hello")
            await press(pilot, "ctrl+u")
            await say(pilot, "/new")
            await wait_until(pilot, lambda: app.chat.report is not None)
            await say(pilot, "hello")
            await idle(pilot)
            assert store.path(app.chat.session_id)[-1].content == "Hello!"
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


SCRIPT = """
import sys
from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.paths import default_paths
from infinichat.ui.app import run_app
engine = ScriptedEngine(["word " * 2000], tokens_per_s=200)
code = run_app(paths=default_paths(), settings=Settings(), load_engine=lambda model, progress: engine)
assert not {"torch", "transformers"} & set(sys.modules)
print("LEFT WITH", code, "CLOSED", engine.closed)
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
async def test_what_was_said_before_the_process_was_killed_is_there_and_goes_on(
    make: Make, running: Running, store: Store
) -> None:
    pid, terminal = start_app()
    read_until(terminal, b"Message")
    type_line(terminal, b"hello")
    # A draft is on disk twice a second: wait for more than one.
    read_until(terminal, b"word word word")
    time.sleep(1.5)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    record = store.last_session()
    assert record is not None
    app = make(ScriptedEngine(["word " * 100]), session=record)
    async with running(app) as pilot:
        await shows(pilot, "interrupted · /continue goes on")
        kept = store.path(record.id)[-1].content
        assert kept.startswith("word word")
        await say(pilot, "/continue")
        await idle(pilot)
        answer = store.path(record.id)[-1]
        assert answer.content.startswith(kept)
        assert answer.reason == "stop"


def start_app(**environ: str) -> tuple[int, int]:
    """The app in a process and a terminal of its own; its pid and the terminal's file descriptor."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("NO_COLOR", None)
        os.environ.update(
            TERM="xterm-256color", COLORTERM="truecolor", PYTHONPATH=str(ROOT), COLUMNS="80", LINES="24"
        )
        os.environ.update(environ)
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT])
    return pid, terminal


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["colour", "no-colour"])
def test_leaving_while_an_answer_streams_keeps_it_and_exits_with_0(
    environ: dict[str, str], paths: Paths
) -> None:
    pid, terminal = start_app(**environ)
    seen = read_until(terminal, b"Message")
    seen += type_line(terminal, b"hello")
    seen += read_until(terminal, b"word word word")
    os.write(terminal, b"\x11")
    seen += read_until(terminal, b"LEFT WITH 0 CLOSED True")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"Traceback" not in seen
    colours = set(re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", seen))
    assert colours
    if environ:
        assert all(red == green == blue for red, green, blue in colours)
    with Store.open(paths) as store:
        record = store.last_session()
        assert record is not None
        user, answer = store.path(record.id)
        assert (user.content, answer.reason) == ("hello", "stopped")
        assert answer.content.startswith("word word word")


def type_line(terminal: int, words: bytes) -> bytes:
    """Enter comes after the words were seen: until the app has set the terminal up, it would arrive as
    Ctrl+J."""
    os.write(terminal, words)
    seen = read_until(terminal, words)
    os.write(terminal, b"\r")
    return seen


def read_until(terminal: int, wanted: bytes, timeout_s: float = 60.0) -> bytes:
    """Read the terminal until it has shown this; answers nothing the app asks the terminal."""
    seen = b""
    end = time.monotonic() + timeout_s
    while wanted not in seen:
        assert time.monotonic() < end, f"waited in vain for {wanted!r}; got {seen[-2000:]!r}"
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            break
    assert wanted in seen, f"the app ended without {wanted!r}: {seen[-2000:]!r}"
    return seen


async def test_the_page_is_filled_although_a_message_is_sent_at_once(make: Make, store: Store) -> None:
    app = make(session=long_session(store, 60))
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until(pilot, lambda: app.chat.query("#prompt"))
        await say(pilot, "quick")
        await wait_until(pilot, lambda: app.chat.report is not None)
        await idle(pilot)
        await wait_until(pilot, lambda: len(app.chat.transcript.entries) >= PAGE)
        texts = [entry.text for entry in app.chat.transcript.entries]
        assert texts == [m.content for m in store.path(app.chat.session_id)][-len(texts) :]
