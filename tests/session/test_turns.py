"""One turn: what is on disk when, what is shown, what a stop, a failure or a lost listener leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import DiskError, InfiniChatError, ModelError, UsageError
from infinichat.messages import (
    Notice,
    PrefillProgress,
    SamplingOptions,
    StateRestored,
    TextDelta,
    TurnFinished,
)
from infinichat.paths import Paths
from infinichat.session import ChatSession, answering
from tests.session.talking import finished, restored, said, state_of, stop_after, transcript

Open = Callable[..., ChatSession]
Elsewhere = Callable[[str], Paths]


def test_a_turn_goes_restored_progress_text_finished(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["Hello!"]))
    events = list(session.send("Hi"))
    kinds = [type(event) for event in events]
    assert kinds[0] is StateRestored
    assert kinds[-1] is TurnFinished
    order = [kind for index, kind in enumerate(kinds) if index == 0 or kind is not kinds[index - 1]]
    assert order == [StateRestored, PrefillProgress, TextDelta, TurnFinished]
    assert said(events) == "Hello!"


def test_the_message_is_on_disk_before_anything_is_generated(opened: Open) -> None:
    session = opened()
    events = session.send("My dog is called Biscuit.")
    assert isinstance(next(events), StateRestored)
    assert transcript(session) == [("user", "My dog is called Biscuit.", "complete")]


def test_what_is_shown_is_on_disk_already(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "DRAFT_EVERY_S", 0.0)
    session = opened(engine=ScriptedEngine(["Biscuit it is"]))
    shown = ""
    for event in session.send("Hi"):
        if isinstance(event, TextDelta):
            shown += event.text
            draft = session.store.draft(session.id)
            assert draft is not None
            assert draft.content == shown
            assert bytes(draft.ids).decode() == shown
    assert session.store.draft(session.id) is None


def test_words_are_shown_in_few_flushes(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "FLUSH_EVERY_S", 0.05)
    session = opened(engine=ScriptedEngine(["x" * 200], tokens_per_s=400))
    flushes = [event.text for event in session.send("Hi") if isinstance(event, TextDelta)]
    assert "".join(flushes) == "x" * 200
    assert 2 <= len(flushes) <= 60


def test_only_the_new_turn_is_fed(opened: Open) -> None:
    engine = ScriptedEngine(["one", "two"])
    session = opened(engine=engine)
    first = finished(session.send("A"))
    fed = engine.fed
    second = finished(session.send("B"))
    assert engine.fed - fed == second.stats.tokens_in == len("X\nXuser\nBX\nXassistant\n")
    assert second.stats.tokens_seen == first.stats.tokens_seen + second.stats.tokens_in + 3


def test_the_statistics_and_the_session_row_count_tokens(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abcd"]))
    stats = finished(session.send("Hi")).stats
    assert stats.tokens_out == 4
    assert stats.tokens_seen == stats.tokens_in + 4 == len(state_of(session))
    assert session.record.tokens_seen == stats.tokens_seen
    assert stats.first_token_s is not None
    assert stats.first_token_s >= stats.prefill_s


def test_the_title_is_the_first_message_and_stays(opened: Open) -> None:
    session = opened()
    said(session.send("  # Plan   a trip\nto Rome "))
    said(session.send("something else"))
    assert session.record.title == "Plan a trip to Rome"


def test_the_answer_ends_at_the_limit_of_tokens(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abcdef"]))
    last = finished(session.send("Hi", sampling=SamplingOptions(temperature=0, max_tokens=3)))
    assert (last.message.content, last.message.reason) == ("abc", "length")


def test_a_stop_keeps_what_there_is_and_the_state_fits_it(opened: Open, elsewhere: Elsewhere) -> None:
    session = opened(engine=ScriptedEngine(["abcdefgh" * 8]))
    last = stop_after(session, session.send("Hi"), 4)
    assert last.message.reason == "stopped"
    assert last.message.content != "abcdefgh" * 8
    assert last.message.content.startswith("abcd")
    ids = list(state_of(session).ids)
    assert bytes(ids[-len(last.message.content) :]).decode() == last.message.content


def test_a_stop_from_another_thread_ends_the_turn(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["x" * 5000], tokens_per_s=500))
    threading.Timer(0.2, session.stop).start()
    last = finished(session.send("Hi"))
    assert last.message.reason == "stopped"
    assert 0 < len(last.message.content) < 5000


def test_a_stop_before_the_first_event_counts(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["never"]))
    events = session.send("Hi")
    session.stop()
    last = finished(events)
    assert (last.message.role, last.message.content, last.message.reason) == ("assistant", "", "stopped")


def test_a_stop_while_the_prompt_is_read_costs_nothing_later(opened: Open, elsewhere: Elsewhere) -> None:
    text = "word " * 400
    session = opened(engine=ScriptedEngine())
    events = session.send(text)
    for event in events:
        if isinstance(event, PrefillProgress) and event.done > 500:
            session.stop()
    assert transcript(session)[-1] == ("assistant", "", "stopped")
    said(session.continue_answer())
    straight = opened(paths=elsewhere("straight"))
    said(straight.send(text))
    assert state_of(session) == state_of(straight)
    assert transcript(session) == transcript(straight)


def test_a_new_turn_clears_an_old_stop(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["Hello"]))
    session.stop()
    assert said(session.send("Hi")) == "Hello"


def test_a_listener_that_goes_away_leaves_a_stopped_answer(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abcdef" * 20], tokens_per_s=300))
    events = session.send("Hi")
    for event in events:
        if isinstance(event, TextDelta):
            break
    events.close()  # type: ignore[attr-defined]
    role, content, reason = transcript(session)[-1]
    assert (role, reason) == ("assistant", "stopped")
    assert content
    assert list(state_of(session).ids)[-len(content) :] == list(content.encode())
    assert restored(session.restore()).source == "memory"


def test_one_turn_at_a_time(opened: Open) -> None:
    session = opened()
    events = session.send("Hi")
    next(events)
    with pytest.raises(UsageError, match="running"):
        session.send("Again")
    with pytest.raises(UsageError, match="running"):
        session.memory_report()
    list(events)
    assert said(session.send("Again"))


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused_and_leaves_nothing(opened: Open, text: str) -> None:
    session = opened()
    with pytest.raises(UsageError, match="empty"):
        session.send(text)
    assert session.messages() == []


def test_lone_surrogates_do_not_break_a_turn(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["ok"]))
    said(session.send("pasted \ud800 half"))
    assert session.messages()[0].content == "pasted \ufffd half"


class TestWhenTheEngineFails:
    def test_while_it_reads_the_message_stays_and_the_state_is_that_before(
        self, opened: Open, elsewhere: Elsewhere
    ) -> None:
        engine = ScriptedEngine()
        session = opened(engine=engine)
        said(session.send("one"))
        before = state_of(session).digest
        engine.fail_feed_at = 0
        with pytest.raises(ModelError):
            list(session.send("two"))
        assert transcript(session)[-1] == ("user", "two", "complete")
        engine.fail_feed_at = None
        session.store.set_tip(session.id, session.messages()[-2].id)
        assert state_of(session).digest == before

    def test_sending_the_same_again_answers_it_and_says_it_once(
        self, opened: Open, elsewhere: Elsewhere
    ) -> None:
        engine = ScriptedEngine(fail_feed_at=0)
        session = opened(engine=engine)
        with pytest.raises(ModelError):
            list(session.send("one"))
        engine.fail_feed_at = None
        said(session.send("one"))
        straight = opened(paths=elsewhere("straight"))
        said(straight.send("one"))
        assert transcript(session) == transcript(straight)
        assert state_of(session) == state_of(straight)

    def test_in_the_middle_of_an_answer_the_words_are_kept(self, opened: Open, elsewhere: Elsewhere) -> None:
        engine = ScriptedEngine(["abcdef"], fail_at=3)
        session = opened(engine=engine)
        with pytest.raises(ModelError, match="told to fail"):
            list(session.send("one"))
        assert transcript(session)[-1] == ("assistant", "abc", "error")
        engine.fail_at = None
        assert said(session.send("one")) == "abcdef"
        assert [m[1] for m in transcript(session)] == ["one", "abcdef"]

    def test_a_foreign_exception_becomes_a_sentence(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(fail_feed_at=0, failure=RuntimeError("CUDA went away")))
        with pytest.raises(InfiniChatError, match="RuntimeError: CUDA went away.*Next:") as caught:
            list(session.send("Hi"))
        assert isinstance(caught.value.__cause__, RuntimeError)

    def test_the_session_goes_on_after_it(self, opened: Open) -> None:
        engine = ScriptedEngine(["fine"], fail_feed_at=0)
        session = opened(engine=engine)
        with pytest.raises(ModelError):
            list(session.send("one"))
        engine.fail_feed_at = None
        assert said(session.send("two")) == "fine"
        assert [m[:2] for m in transcript(session)] == [
            ("user", "one"),
            ("user", "two"),
            ("assistant", "fine"),
        ]


class TestWhenTheDiskIsFull:
    FULL = DiskError("The disk is full. Free some space and try again.")

    def test_a_message_that_cannot_be_kept_is_not_answered(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = ScriptedEngine()
        session = opened(engine=engine)

        def full(*args: object, **options: object) -> None:
            raise self.FULL

        monkeypatch.setattr(session.store, "append", full)
        with pytest.raises(DiskError, match="Free some space"):
            list(session.send("Hi"))
        assert session.messages() == []
        assert engine.fed == 0

    def test_an_answer_that_cannot_be_kept_ends_the_turn(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = opened(engine=ScriptedEngine(["abc", "def"]))
        said(session.send("one"))

        def full(*args: object, **options: object) -> None:
            raise self.FULL

        with monkeypatch.context() as patch:
            patch.setattr(session.store, "commit_answer", full)
            with pytest.raises(DiskError):
                list(session.send("two"))
        assert said(session.send("two")) == "def"
        assert [m[1] for m in transcript(session)] == ["one", "abc", "two", "def"]

    def test_a_state_that_cannot_be_saved_is_a_notice_and_the_words_are_safe(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = opened(engine=ScriptedEngine(["abc"]))

        def full(*args: object, **options: object) -> None:
            raise self.FULL

        monkeypatch.setattr(session.store, "save_snapshot", full)
        events = list(session.send("one"))
        notices = [event.text for event in events if isinstance(event, Notice)]
        assert len(notices) == 1
        assert "not saved (The disk is full." in notices[0]
        assert isinstance(events[-1], TurnFinished)
        assert transcript(session)[-1] == ("assistant", "abc", "stop")


def test_a_closed_session_says_so_and_ends_its_turn(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abc" * 50], tokens_per_s=200))
    events = session.send("Hi")
    while not isinstance(next(events), TextDelta):
        pass
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.send("Hi")
    again = opened()
    assert transcript(again)[-1][2] == "stopped"


def test_closing_waits_for_the_thread_that_talks(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["x" * 5000], tokens_per_s=500))
    started = threading.Event()

    def talk() -> None:
        for event in session.send("Hi"):
            if isinstance(event, TextDelta):
                started.set()

    thread = threading.Thread(target=talk)
    thread.start()
    assert started.wait(10)
    session.close()
    thread.join(10)
    assert not thread.is_alive()
    assert transcript(opened())[-1][2] == "stopped"


def test_memory_report_describes_the_state_at_the_tip(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abc"], window=64))
    said(session.send("Hi"))
    report = session.memory_report()
    assert (report.session, report.model, report.trained) == ("notes", "scripted", True)
    assert report.tokens_seen == session.record.tokens_seen
    assert (report.window_tokens, report.window_size) == (64, 64)
    assert report.state_bytes > 0
    assert report.layers[0].written == report.tokens_seen - 64


def test_an_empty_session_has_an_empty_memory(opened: Open) -> None:
    session = opened()
    assert session.memory_report().tokens_seen == 0
    assert restored(session.restore()).source in ("fresh", "memory")


def test_a_seeded_answer_is_the_same_again(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["a", "b", "c"]))
    options = replace(SamplingOptions(), seed=1)
    assert said(session.send("Hi", sampling=options)) == said(session.regenerate(sampling=options)) == "b"
