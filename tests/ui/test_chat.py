"""The chat screen by keys: sending, queueing, streaming, stopping, versions, reading, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events

from infinichat.config import Settings, UiSettings
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import ModelError, ModelFileError
from infinichat.protocols import Engine
from infinichat.store import SessionRecord, Store
from infinichat.ui.widgets.entry import AnswerEntry, DocumentEntry, UserEntry
from infinichat.ui.worker import Progress
from tests.ui.acting import (
    click,
    handled,
    idle,
    notes,
    press,
    say,
    screen_text,
    shows,
    shows_no,
    wait_until,
)

Make = Callable[..., Any]
Running = Callable[..., Any]

SLOW = {"tokens_per_s": 150.0}


def said(store: Store, app: Any) -> list[tuple[str, str, str]]:
    return [(m.role, m.content, m.reason) for m in store.path(app.chat.session_id)]


async def test_a_message_is_typed_sent_and_answered(make: Make, running: Running, store: Store) -> None:
    app = make(ScriptedEngine(["**Hello** there!"]))
    async with running(app) as pilot:
        await press(pilot, *"hi you", "enter")
        await idle(pilot)
        assert said(store, app) == [
            ("user", "hi you", "complete"),
            ("assistant", "**Hello** there!", "stop"),
        ]
        await shows(pilot, "Hello there!")
        assert app.chat.prompt.text == ""
        assert app.chat.status.status.tokens_seen == store.session(app.chat.session_id).tokens_seen > 0


async def test_the_transcript_is_there_and_the_prompt_is_usable_before_the_model_is(
    make: Make, store: Store
) -> None:
    loaded = threading.Event()

    def load(model: str | None, progress: Progress) -> Engine:
        progress("loading", 0.5)
        loaded.wait(20)
        return ScriptedEngine(["Later."])

    record = store.create_session("old")
    store.append(record.id, role="user", content="from last month", reason="complete", chain="")
    app = make(load, session=record)
    async with app.run_test(size=(80, 24)) as pilot:
        await shows(pilot, "from last month")
        await shows(pilot, "loading the default checkpoint 50 %")
        await press(pilot, *"now", "enter")
        await shows(pilot, "waiting: the model is loading")
        loaded.set()
        await shows(pilot, "Later.")
        await idle(pilot)
        await shows_no(pilot, "waiting")
        assert [content for _, content, _ in said(store, app)] == ["from last month", "now", "Later."]


async def test_what_a_crash_left_of_an_answer_is_there_before_the_model_is(make: Make, store: Store) -> None:
    loaded = threading.Event()

    def load(model: str | None, progress: Progress) -> Engine:
        loaded.wait(60)
        return ScriptedEngine(["Later."])

    def crashed(name: str) -> SessionRecord:
        record = store.create_session(name)
        asked = store.append(record.id, role="user", content="go", reason="complete", chain="")
        store.write_draft(
            record.id,
            parent=asked.id,
            content=f"half an answer in {name}",
            ids=(5, 6),
            prompt_ids=(),
            model="scripted",
            fingerprint="f",
        )
        return store.session(record.id)

    first, second = crashed("one"), crashed("two")
    app = make(load, session=first)
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await shows(pilot, "half an answer in one", "interrupted · /continue goes on")
            assert store.path(first.id)[-1].reason == "interrupted"
            await say(pilot, "/open two")
            await shows(pilot, "half an answer in two", "interrupted · /continue goes on")
            assert store.path(second.id)[-1].reason == "interrupted"
    finally:
        loaded.set()


@pytest.mark.parametrize("key", ["shift+enter", "ctrl+j", "alt+enter"])
async def test_a_new_line_has_three_keys(make: Make, running: Running, key: str) -> None:
    app = make()
    async with running(app) as pilot:
        await press(pilot, "a", key, "b")
        assert app.chat.prompt.text == "a\nb"


async def test_enter_can_be_the_new_line_and_ctrl_j_the_sender(
    make: Make, running: Running, store: Store
) -> None:
    app = make(settings=Settings(ui=UiSettings(theme="infinichat", enter_sends=False)))
    async with running(app) as pilot:
        await press(pilot, "a", "enter", "b")
        assert app.chat.prompt.text == "a\nb"
        await press(pilot, "ctrl+j")
        await idle(pilot)
        assert said(store, app)[0][1] == "a\nb"


async def test_the_prompt_grows_with_its_text_up_to_ten_rows(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        await wait_until(pilot, lambda: app.chat.prompt.size.height == 1)
        await press(pilot, "a", "ctrl+j", "b", "ctrl+j", "c")
        await wait_until(pilot, lambda: app.chat.prompt.size.height == 3)
        app.chat.prompt.set_text("x\n" * 40)
        await wait_until(pilot, lambda: app.chat.prompt.size.height == 10)


async def test_what_was_sent_comes_back_with_the_arrow_keys(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        await say(pilot, "first")
        await say(pilot, "second")
        await idle(pilot)
        await press(pilot, *"half")
        await press(pilot, "up", "up")
        assert app.chat.prompt.text == "first"
        await press(pilot, "down", "down")
        assert app.chat.prompt.text == "half"


async def test_escape_stops_and_keeps_what_there_is(make: Make, running: Running, store: Store) -> None:
    app = make(ScriptedEngine(["word " * 200], **SLOW))
    async with running(app) as pilot:
        await say(pilot, "go")
        await shows(pilot, "word word")
        await press(pilot, "escape")
        await idle(pilot)
        role, content, reason = said(store, app)[-1]
        assert (role, reason) == ("assistant", "stopped")
        assert 0 < len(content) < 1000
        await shows(pilot, "stopped · /continue goes on")


async def test_continue_goes_on_from_where_the_answer_was_stopped(
    make: Make, running: Running, store: Store
) -> None:
    words = " ".join(str(i) for i in range(60))
    engine = ScriptedEngine([words], tokens_per_s=100)
    app = make(engine)
    async with running(app) as pilot:
        await say(pilot, "count")
        await shows(pilot, "0 1 2")
        await press(pilot, "escape")
        await idle(pilot)
        engine.tokens_per_s = None
        await say(pilot, "/continue")
        await idle(pilot)
        assert said(store, app)[-1] == ("assistant", words, "stop")
        assert [e.text for e in app.chat.transcript.entries] == ["count", words]


async def test_messages_sent_while_an_answer_streams_wait_and_can_be_taken_back(
    make: Make, running: Running, store: Store
) -> None:
    engine = ScriptedEngine(["word " * 200, "two"], **SLOW)
    app = make(engine)
    async with running(app) as pilot:
        await say(pilot, "one")
        await shows(pilot, "word")
        await say(pilot, "second")
        await say(pilot, "third")
        await shows(pilot, "waiting: the answer before it")
        assert len(app.chat.turns.waiting) == 2
        app.chat.worker.cancel(app.chat.turns.waiting[-1].ticket)
        await press(pilot, "escape")
        await idle(pilot)
        assert [c for _, c, _ in said(store, app)][2:] == ["second", "two"]
        assert app.chat.prompt.text == "third"
        assert [e.text for e in app.chat.transcript.entries][2:] == ["second", "two"]


async def test_regenerate_makes_a_version_and_the_arrows_change_between_them(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(["first answer", "second answer"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await press(pilot, "ctrl+r")
        await idle(pilot)
        await shows(pilot, "‹ 2/2 ›")
        newest = said(store, app)[-1][1]
        await press(pilot, "tab")
        assert app.chat.transcript.cursor is not None
        await press(pilot, "left")
        await idle(pilot)
        await shows(pilot, "‹ 1/2 ›")
        assert said(store, app)[-1][1] == "first answer"
        await shows(pilot, "first answer")
        await wait_until(pilot, lambda: app.chat.transcript.cursor is not None or app.focused)
        app.chat.transcript.focus()
        await press(pilot, "right")
        await idle(pilot)
        assert said(store, app)[-1][1] == newest


async def test_clicking_an_arrow_changes_the_version(make: Make, running: Running, store: Store) -> None:
    app = make(ScriptedEngine(["first answer", "second answer"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await press(pilot, "ctrl+r")
        await idle(pilot)
        meta = app.chat.transcript.entries[-1].meta
        await click(pilot, meta, offset=(0, 0))
        await idle(pilot)
        assert said(store, app)[-1][1] == "first answer"


async def test_a_message_is_edited_and_the_old_version_stays(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(lambda prompt: f"echo {prompt.strip().splitlines()[-2:]}"))
    async with running(app) as pilot:
        await say(pilot, "tea")
        await idle(pilot)
        await say(pilot, "/edit")
        await shows(pilot, "Edit your message")
        await press(pilot, *" please", "enter")
        await idle(pilot)
        assert [c for r, c, _ in said(store, app) if r == "user"] == ["tea please"]
        await shows(pilot, "‹ 2/2 ›")
        assert len(app.chat.transcript.entries) == 2


async def test_a_branch_is_a_new_session_that_shares_what_was_said(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(["one", "two"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        first = app.chat.session_id
        await say(pilot, "/branch other")
        await idle(pilot)
        assert app.chat.session_id != first
        assert store.session("other").id == app.chat.session_id
        await say(pilot, "more")
        await idle(pilot)
        assert len(store.path(first)) == 2
        assert len(store.path("other" and app.chat.session_id)) == 4


async def test_a_document_is_read_with_its_name_and_its_end(
    make: Make, running: Running, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("chapter one. " * 100)
    app = make(ScriptedEngine(["yes"]))
    async with running(app) as pilot:
        await say(pilot, f"/read {tmp_path / 'book.txt'}")
        await idle(pilot)
        await shows(pilot, "≡ book.txt · 1,300 characters")
        await shows(pilot, "▌ read to its end")
        assert said(store, app)[-1][0] == "document"


async def test_reading_stops_with_escape_and_the_same_command_goes_on(
    make: Make, running: Running, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("".join(f"line {i}\n" for i in range(3000)))
    engine = ScriptedEngine(["yes"], prefill_tokens_per_s=2000)
    app = make(engine)
    async with running(app) as pilot:
        await say(pilot, f"/read {tmp_path / 'book.txt'}")
        await shows(pilot, "esc stops", "reading book", "tok/s")
        await press(pilot, "escape")
        await idle(pilot)
        await shows(pilot, "not read to its end")
        # The figures of before the book are not those of now.
        assert app.chat.status.status.window is None
        engine.prefill_tokens_per_s = None
        await say(pilot, f"/read {tmp_path / 'book.txt'}")
        await idle(pilot)
        documents = [m for m in store.path(app.chat.session_id) if m.role == "document"]
        assert "".join(m.content for m in documents) == (tmp_path / "book.txt").read_text()
        assert len(app.chat.transcript.query(DocumentEntry)) == len(documents)


async def test_a_folder_is_read_file_by_file(
    make: Make, running: Running, store: Store, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"words of {name}")
    app = make()
    async with running(app) as pilot:
        await say(pilot, f"/read {tmp_path}")
        await idle(pilot)
        assert [m.title for m in store.path(app.chat.session_id)][:2] == ["a.txt", "b.txt"]


async def test_a_checkpoint_that_cannot_be_loaded_is_said_and_the_message_comes_back(
    make: Make, running: Running, store: Store
) -> None:
    def load(model: str | None, progress: Progress) -> Engine:
        raise ModelFileError("weights.gguf is truncated. Next: infinichat models pull")

    app = make(load)
    async with running(app) as pilot:
        await shows(pilot, "weights.gguf is truncated")
        await say(pilot, "hello")
        await wait_until(pilot, lambda: app.chat.prompt.text == "hello")
        assert said(store, app) == []
        assert not app.chat.transcript.entries


async def test_an_engine_that_fails_keeps_the_words_and_gives_the_prompt_back(
    make: Make, running: Running, store: Store
) -> None:
    engine = ScriptedEngine(["a long answer"], fail_at=4, failure=ModelError("Out of memory. Next: restart."))
    app = make(engine)
    async with running(app) as pilot:
        await say(pilot, "hello")
        await idle(pilot)
        await shows(pilot, "Out of memory. Next: restart.")
        assert app.chat.prompt.text == "hello"
        engine.fail_at = None
        await press(pilot, "enter")
        await idle(pilot)
        assert [c for _, c, _ in said(store, app)] == ["hello", "a long answer"]
        assert [e.text for e in app.chat.transcript.entries] == ["hello", "a long answer"]


async def test_a_failure_that_is_a_bug_is_a_sentence_and_not_a_traceback(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(["answer"], fail_at=2, failure=ModelError("x")))
    async with running(app) as pilot:

        def broken(session: object, cancelled: object) -> Any:
            raise ZeroDivisionError("division by zero")

        app.chat.turns._submit("read", broken)
        await idle(pilot)
        await shows(pilot, "ZeroDivisionError")
        await say(pilot, "still there?")
        await idle(pilot)
        assert said(store, app)[0][1] == "still there?"


async def test_escapes_markup_and_control_characters_are_shown_and_never_obeyed(
    make: Make, running: Running
) -> None:
    hostile = "\x1b[31mred\x1b[0m [b]bold[/b] [@click=app.quit]x[/] \x07 \x9b2J \u202eevil"
    app = make(ScriptedEngine([hostile]))
    async with running(app, size=(120, 30)) as pilot:
        app.chat.prompt.set_text(hostile)
        await press(pilot, "enter")
        await idle(pilot)
        app.chat.store.set_title(app.chat.session_id, "ti\x1btle [red]")
        app.chat.refresh_session()
        await app.chat.say(hostile, error=True)
        await wait_until(pilot, lambda: screen_text(app).count("␛[31mred␛[0m [b]bold[/b]") == 3)
        await shows(pilot, "ti␛tle [red]")
        text = screen_text(app)
        assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e"]
        assert app.is_running


async def test_pasted_control_characters_turn_into_their_pictures(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        app.chat.prompt.post_message(events.Paste("a\x1b]0;title\x07b\r\nc"))
        await wait_until(pilot, lambda: app.chat.prompt.text == "a␛]0;title␇b\nc")


async def test_a_link_in_an_answer_opens_nothing(
    make: Make, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    app = make(ScriptedEngine(["[click](https://example.org)"]))
    monkeypatch.setattr(app, "open_url", lambda url, **_: opened.append(url))
    async with running(app) as pilot:
        await say(pilot, "link")
        await idle(pilot)
        answer = app.chat.transcript.query(AnswerEntry).last()
        await click(pilot, answer.markdown, offset=(3, 0))
        await handled(pilot)
        assert opened == []


async def test_code_and_messages_are_copied(make: Make, running: Running) -> None:
    app = make(ScriptedEngine(["text\n```py\nx = 1\n```\n"]))
    async with running(app) as pilot:
        await say(pilot, "code")
        await idle(pilot)
        await say(pilot, "/copy code")
        assert app.clipboard == "x = 1"
        await press(pilot, "tab", "c")
        assert app.clipboard == "text\n```py\nx = 1\n```\n"
        await press(pilot, "up", "c")
        assert app.clipboard == "code"


async def test_the_message_cursor_goes_up_from_the_prompt_and_down_back_into_it(
    make: Make, running: Running
) -> None:
    app = make(ScriptedEngine(["one", "two"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await press(pilot, "ctrl+up")
        assert isinstance(app.chat.transcript.cursor, AnswerEntry)
        await press(pilot, "up")
        assert isinstance(app.chat.transcript.cursor, UserEntry)
        await press(pilot, "down", "down")
        assert app.focused is app.chat.prompt


async def test_commands_complete_and_run(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        await press(pilot, "/", "m", "e")
        assert app.chat.completions.is_open
        await press(pilot, "enter")
        await wait_until(pilot, lambda: app.screen.id == "memory")
        await press(pilot, "escape")
        await wait_until(pilot, lambda: app.screen is app.chat and app.focused is app.chat.prompt)
        await press(pilot, "/", "r", "e", "tab")
        assert app.chat.prompt.text == "/read "
        await press(pilot, "ctrl+u", "/", "escape")
        assert not app.chat.completions.is_open


async def test_keys_that_come_all_at_once_are_typed_into_the_list_that_belongs_to_them(
    make: Make, running: Running, store: Store
) -> None:
    record = store.create_session("a")
    store.create_session("a-longer-name")
    app = make()

    def at_once(*keys: str) -> None:
        # As from a paste into the terminal or over a slow line: no pause in which the app could catch up.
        for key in keys:
            character = " " if key == "space" else key if len(key) == 1 else None
            app._driver.send_message(events.Key(key, character))

    async with running(app) as pilot:
        at_once("/", "m", "e", "enter")
        await wait_until(pilot, lambda: app.screen.id == "memory")
        await press(pilot, "escape")
        await wait_until(pilot, lambda: app.screen is app.chat and app.focused is app.chat.prompt)
        at_once(*"/open", "space", "a", "enter", "h", "i")
        await wait_until(pilot, lambda: app.chat.session_id == record.id)
        await wait_until(pilot, lambda: app.chat.prompt.text == "hi")
        assert not app.chat.completions.is_open


async def test_a_mistyped_command_returns_with_a_hint(make: Make, running: Running, store: Store) -> None:
    app = make()
    async with running(app) as pilot:
        await say(pilot, "/regenrate")
        await shows(pilot, "Near: /regenerate")
        assert app.chat.prompt.text == "/regenrate"
        await say(pilot, "//not a command")
        await idle(pilot)
        assert said(store, app)[0][1] == "/not a command"


async def test_sampling_is_set_for_the_next_answers(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        await say(pilot, "/set temperature 0.2")
        assert app.chat.sampling.temperature == 0.2
        await say(pilot, "/set temprature 1")
        await wait_until(pilot, lambda: notes(app)[-1].startswith("temperature") is False)
        assert "temperature" in notes(app)[-1]


async def test_a_session_is_exported_beside_what_is_there(
    make: Make, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = make(ScriptedEngine(["yes"]))
    async with running(app) as pilot:
        await say(pilot, "hi")
        await idle(pilot)
        await say(pilot, "/export")
        await say(pilot, "/export")
        await say(pilot, "/export all.json")
        names = sorted(p.name for p in tmp_path.iterdir() if p.is_file())
        assert names == ["all.json", "chat-1-2.md", "chat-1.md"]
        assert "hi" in (tmp_path / "chat-1.md").read_text()
        await say(pilot, "/import all.json")
        await idle(pilot)
        assert [e.text for e in app.chat.transcript.entries] == ["hi", "yes"]


async def test_a_system_prompt_of_a_session_with_words_is_a_new_session(
    make: Make, running: Running, store: Store
) -> None:
    app = make(ScriptedEngine(["yes", "no"]))
    async with running(app) as pilot:
        await say(pilot, "/system Be brief.")
        assert store.session(app.chat.session_id).system == "Be brief."
        await say(pilot, "hi")
        await idle(pilot)
        first = app.chat.session_id
        await say(pilot, "/system Be long.")
        await idle(pilot)
        assert app.chat.session_id != first
        assert store.session(app.chat.session_id).system == "Be long."


async def test_a_slow_screen_is_painted_less_often_while_someone_types(make: Make, running: Running) -> None:
    app = make()
    async with running(app) as pilot:
        assert app.chat.pace(0.001) == 0.05
        assert app.chat.pace(0.2) == 0.2
        await press(pilot, "a")
        app.chat.prompt._typed_at = time.monotonic()
        assert app.chat.pace(0.001) == 0.8
        assert app.chat.pace(0.05) == pytest.approx(1.5)
        assert app.chat.pace(60.0) == 3.0
