"""Documents: streamed in pieces, stopped and taken up again, and the state is that of reading in one go."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import ModelError, UsageError
from infinichat.messages import Notice, PrefillProgress, StreamEvent, TurnFinished
from infinichat.paths import Paths
from infinichat.session import ChatSession, keeper
from infinichat.session.chain import LAST_PIECE, PIECE
from infinichat.session.reading import characters_in
from tests.session.talking import finished, said, state_of, transcript

Open = Callable[..., ChatSession]
Elsewhere = Callable[[str], Paths]

BOOK = "".join(f"Line {number} of the book, with an é.\n" for number in range(700))  # 22,000 bytes, 6 pieces


@pytest.fixture
def snapshot_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SNAPSHOT_EVERY_S", 0.0)


def read_until(session: ChatSession, done: int, text: str = BOOK) -> TurnFinished:
    """Read and stop when so many ids are in."""
    last: StreamEvent | None = None
    for event in session.read("book.txt", text):
        last = event
        if isinstance(event, PrefillProgress) and event.stage == "document" and event.done >= done:
            session.stop()
    assert isinstance(last, TurnFinished)
    return last


def test_a_document_is_on_disk_before_it_is_read_and_progress_counts_to_its_end(opened: Open) -> None:
    session = opened()
    events = session.read("book.txt", BOOK)
    next(events)
    assert transcript(session) == [("document", BOOK, "complete")]
    progress = [event for event in events if isinstance(event, PrefillProgress)]
    assert {(event.stage, event.title) for event in progress} == {("document", "book.txt")}
    assert [event.done for event in progress] == sorted({event.done for event in progress})
    assert progress[-1].done == progress[-1].total == session.record.tokens_seen
    assert progress[-1].seconds_left == 0
    assert all(event.tokens_per_s > 0 for event in progress)


def test_a_document_is_fed_in_pieces_and_closed(opened: Open) -> None:
    session = opened()
    said(session.read("book.txt", BOOK))
    feeds = session.store.feeds(session.messages()[0].id, session._keeper.root)
    assert feeds is not None
    assert [len(feed.ids) for feed in feeds][:-2] == [PIECE] * (len(feeds) - 2)
    # Without the layers above the memory, but for the end, with which somebody may have asked something.
    assert [feed.mode for feed in feeds] == ["read"] * (len(feeds) - 1) + ["prefill"]
    assert len(feeds[-1].ids) == LAST_PIECE
    assert bytes(i for feed in feeds for i in feed.ids if i < 256).endswith(BOOK.encode() + b"\n")


@pytest.mark.parametrize("at", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 77, 20_000])
@pytest.mark.parametrize("restart", [False, True])
def test_a_stopped_reading_goes_on_exactly_where_it_was(
    opened: Open, elsewhere: Elsewhere, at: int, restart: bool
) -> None:
    engine = ScriptedEngine()
    session = opened(engine=engine)
    said(session.send("before"))
    start = engine.fed
    stopped = read_until(session, at)
    assert stopped.message.reason == "stopped"
    assert BOOK.startswith(stopped.message.content)
    assert stopped.stats.tokens_in == engine.fed - start
    if restart:
        session.close()
        session = opened(engine=engine)
    done = finished(session.read("book.txt", BOOK))
    assert done.message.reason == "complete"
    straight = opened(paths=elsewhere("straight"))
    said(straight.send("before"))
    whole = finished(straight.read("book.txt", BOOK)).stats.tokens_in
    # Not one id is fed twice.
    assert engine.fed - start == whole
    assert done.stats.tokens_in == whole - stopped.stats.tokens_in
    assert transcript(session) == transcript(straight)
    said(session.send("what was it about?"))
    said(straight.send("what was it about?"))
    assert state_of(session) == state_of(straight)


def test_a_question_can_be_asked_in_the_middle_and_the_rest_is_read_later(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["so far good", "a whole book"]))
    part = read_until(session, 9_000).message
    said(session.send("how is it?"))
    done = finished(session.read("book.txt", BOOK)).message
    roles = [(m.role, m.reason) for m in session.messages()]
    assert roles == [
        ("document", "stopped"),
        ("user", "complete"),
        ("assistant", "stop"),
        ("document", "complete"),
    ]
    assert part.content + done.content == BOOK
    text = ByteTokenizer().decode(list(state_of(session).ids))
    assert text.count("Line 350 of") == 1
    assert text.index("how is it?") > text.index(part.content[-30:])


def test_the_rest_can_be_stopped_and_taken_up_too(opened: Open, elsewhere: Elsewhere) -> None:
    session = opened()
    read_until(session, 9_000)
    said(session.send("how is it?"))
    read_until(session, 5_000)
    assert [m.reason for m in session.messages() if m.role == "document"] == ["stopped", "stopped"]
    session.close()
    session = opened()
    done = finished(session.read("book.txt", BOOK)).message
    documents = [m.content for m in session.messages() if m.role == "document"]
    assert "".join(documents) == BOOK
    assert done.reason == "complete"
    assert session.pending_documents() == []


def test_after_a_stop_the_model_has_seen_exactly_the_transcript(opened: Open, elsewhere: Elsewhere) -> None:
    session = opened(engine=ScriptedEngine(["fine"]))
    part = read_until(session, 9_000).message
    said(session.send("how is it?"))
    shown = ByteTokenizer().decode([i for i in state_of(session).ids if i < 256])
    assert part.content + "\nuser\nhow is it?\nassistant\nfine" in shown.replace("\ufffd", "")


def test_stopped_readings_are_listed_until_they_are_finished(opened: Open) -> None:
    session = opened()
    assert session.pending_documents() == []
    part = read_until(session, 9_000).message
    (pending,) = session.pending_documents()
    assert (pending.title, pending.text, pending.message_id) == ("book.txt", BOOK, part.id)
    assert pending.read_chars == len(part.content)
    said(session.send("hm"))
    read_until(session, 5_000)
    (pending,) = session.pending_documents()
    assert pending.text == BOOK
    assert pending.read_chars > len(part.content)
    said(session.read(pending.title or "", pending.text))
    assert session.pending_documents() == []


def test_what_was_read_whole_is_passed_over_except_when_asked_again(opened: Open) -> None:
    engine = ScriptedEngine()
    session = opened(engine=engine)
    said(session.read("book.txt", BOOK))
    said(session.send("nice"))
    fed, before = engine.fed, transcript(session)
    events = list(session.read("book.txt", BOOK))
    assert any(isinstance(event, Notice) and "already" in event.text for event in events)
    assert isinstance(events[-1], TurnFinished)
    assert (engine.fed, transcript(session)) == (fed, before)
    said(session.read("book.txt", BOOK, again=True))
    assert [m.role for m in session.messages()].count("document") == 2


def test_a_document_has_one_version_on_the_screen(opened: Open) -> None:
    session = opened()
    part = read_until(session, 9_000).message
    assert session.versions(part.id) == [part.id]


def test_a_short_document_that_is_stopped_is_fed_with_the_next_turn(
    opened: Open, elsewhere: Elsewhere
) -> None:
    session = opened()
    text = "short " * 100
    events = session.read("note.txt", text)
    session.stop()
    assert finished(events).message.content == text
    said(session.send("and?"))
    straight = opened(paths=elsewhere("straight"))
    said(straight.read("note.txt", text))
    said(straight.send("and?"))
    assert state_of(session) == state_of(straight)


@pytest.mark.usefixtures("snapshot_each_piece")
class TestWhenTheEngineFails:
    @staticmethod
    def read_and_break(session: ChatSession, engine: ScriptedEngine, at: int) -> None:
        for event in session.read("book.txt", BOOK):
            if isinstance(event, PrefillProgress) and event.done > at:
                engine.fail_feed_at = 0

    def test_what_is_in_a_saved_state_stays_and_reading_goes_on(
        self, opened: Open, elsewhere: Elsewhere
    ) -> None:
        engine = ScriptedEngine()
        session = opened(engine=engine)
        with pytest.raises(ModelError):
            self.read_and_break(session, engine, 2 * PIECE + 500)
        (document,) = session.messages()
        assert document.reason == "error"
        assert 7_000 < len(document.content) < len(BOOK)
        engine.fail_feed_at = None
        said(session.read("book.txt", BOOK))
        straight = opened(paths=elsewhere("straight"))
        said(straight.read("book.txt", BOOK))
        assert state_of(session) == state_of(straight)

    def test_nothing_read_is_nothing_in_the_conversation(self, opened: Open) -> None:
        engine = ScriptedEngine()
        session = opened(engine=engine)
        said(session.send("before"))
        before, digest = transcript(session), state_of(session).digest
        engine.fail_feed_at = 0
        with pytest.raises(ModelError):
            list(session.read("book.txt", BOOK))
        assert transcript(session) == before
        engine.fail_feed_at = None
        assert state_of(session).digest == digest


def test_a_listener_that_goes_away_leaves_a_stopped_reading(opened: Open) -> None:
    session = opened()
    events = session.read("book.txt", BOOK)
    for event in events:
        if isinstance(event, PrefillProgress) and event.done > 9_000:
            break
    events.close()  # type: ignore[attr-defined]
    (document,) = session.messages()
    assert document.reason == "stopped"
    assert len(document.content) > 8_000


def test_an_empty_document_is_refused(opened: Open) -> None:
    session = opened()
    with pytest.raises(UsageError, match="document is empty"):
        session.read("empty.txt", " \n ")


def test_characters_are_counted_between_header_and_end() -> None:
    tokenizer = ByteTokenizer()
    text = "aé🙂"
    end = tokenizer.control_id("<|im_end|>")
    ids = [end, *b"user\n", *text.encode(), end, *b"\n"]
    counts = [characters_in(tokenizer, ids, count=n, text=text) for n in range(len(ids) + 1)]
    assert counts == [0] * 7 + [1, 1, 2, 2, 2, 2, 3, 3, 3]
