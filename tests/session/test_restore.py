"""Coming back: from a saved state in one step, from the transcript when there is none, never from a wrong
state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import ModelError, SessionLockedError
from infinichat.messages import PrefillProgress, SamplingOptions, StateRestored
from infinichat.paths import Paths
from infinichat.session import ChatSession
from tests.session.talking import finished, restored, said, state_of, transcript

Open = Callable[..., ChatSession]
Elsewhere = Callable[[str], Paths]


def talk(session: ChatSession, *texts: str) -> str:
    for text in texts:
        said(session.send(text))
    return state_of(session).digest


def snapshots(paths: Paths) -> list[Path]:
    return sorted(paths.snapshots.glob("*.safetensors"), key=lambda file: file.stat().st_size)


def test_a_session_comes_back_from_its_saved_state_and_feeds_nothing(opened: Open) -> None:
    session = opened()
    digest = talk(session, "one", "two")
    session.close()
    engine = ScriptedEngine()
    session = opened(engine=engine)
    assert restored(session.restore()) == StateRestored("snapshot")
    assert engine.fed == 0
    assert state_of(session).digest == digest


def test_after_coming_back_the_answers_are_those_of_a_session_that_never_stopped(
    opened: Open, elsewhere: Elsewhere
) -> None:
    for text in ("one", "two", "three"):
        session = opened()
        said(session.send(text))
        session.close()
    straight = opened(paths=elsewhere("straight"))
    talk(straight, "one", "two", "three")
    assert transcript(opened()) == transcript(straight)


def _remove(file: Path) -> None:
    file.unlink()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(bytes(data))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_remove, _truncate, _flip, _empty])
def test_a_damaged_state_is_said_and_rebuilt_from_the_one_before(
    opened: Open, paths: Paths, damage: Callable[[Path], None]
) -> None:
    session = opened()
    digest = talk(session, "one", "two")
    session.close()
    damage(snapshots(paths)[-1])
    engine = ScriptedEngine()
    session = opened(engine=engine)
    events = list(session.restore())
    event = restored(events)
    assert event.source == "replay"
    assert event.why is not None
    assert event.replay_tokens == engine.fed > 0
    progress = [e for e in events if isinstance(e, PrefillProgress)]
    assert {e.stage for e in progress} == {"replay"}
    assert progress[-1].done == progress[-1].total == event.replay_tokens
    assert state_of(session).digest == digest
    session.close()
    assert restored(opened().restore()).source == "snapshot"


def test_without_any_saved_state_everything_is_streamed_again(opened: Open, paths: Paths) -> None:
    session = opened()
    digest = talk(session, "one", "two")
    tokens = session.record.tokens_seen
    session.close()
    for file in snapshots(paths):
        file.unlink()
    session = opened()
    event = restored(session.restore())
    assert (event.source, event.replay_tokens) == ("replay", tokens)
    assert event.why
    assert state_of(session).digest == digest


def test_a_newer_format_is_said_and_rebuilt(opened: Open, paths: Paths) -> None:
    session = opened()
    digest = talk(session, "one")
    session.close()
    file = snapshots(paths)[-1]
    data = file.read_bytes()
    marked = data.replace(b'format":"1"', b'format":"9"', 1)
    assert marked != data
    file.write_bytes(marked)
    session = opened()
    event = restored(session.restore())
    assert event.source == "replay"
    assert event.why is not None
    assert "format" in event.why
    assert state_of(session).digest == digest


def test_sending_restores_by_itself_and_says_how(opened: Open, paths: Paths, elsewhere: Elsewhere) -> None:
    session = opened()
    talk(session, "one", "two")
    session.close()
    _flip(snapshots(paths)[-1])
    session = opened()
    events = list(session.send("three"))
    assert restored(events).source == "replay"
    stages = [e.stage for e in events if isinstance(e, PrefillProgress)]
    assert stages == sorted(stages, reverse=True)  # replay before prompt
    straight = opened(paths=elsewhere("straight"))
    assert talk(straight, "one", "two", "three") == state_of(session).digest


def test_a_rebuild_that_was_stopped_goes_on_where_it_was(opened: Open, paths: Paths) -> None:
    session = opened()
    digest = talk(session, "word " * 500)
    session.close()
    for file in snapshots(paths):
        file.unlink()
    engine = ScriptedEngine()
    session = opened(engine=engine)
    for event in session.restore():
        if isinstance(event, PrefillProgress) and event.done > 1000:
            session.stop()
    fed = engine.fed
    assert 1000 < fed < session.record.tokens_seen
    list(session.restore())
    assert engine.fed == session.record.tokens_seen
    assert state_of(session).digest == digest


def test_a_session_open_elsewhere_is_refused_and_others_are_not(opened: Open) -> None:
    session = opened("one")
    with pytest.raises(SessionLockedError, match="one"):
        opened("one")
    said(opened("two").send("Hi"))
    session.close()
    assert opened("one").name == "one"


class TestAnotherCheckpoint:
    def test_the_session_is_streamed_into_it_and_the_way_back_is_free(self, opened: Open) -> None:
        first, second = ScriptedEngine(name="a"), ScriptedEngine(name="b")
        session = opened(engine=first)
        digest = talk(session, "one", "two")
        events = list(session.switch_model(second))
        assert restored(events).source == "replay"
        assert [e for e in events if isinstance(e, PrefillProgress)][-1].seconds_left == 0
        assert session.engine_info.name == session.record.model == "b"
        assert second.fed == session.record.tokens_seen
        fed = first.fed
        assert restored(session.switch_model(first)).source == "snapshot"
        assert first.fed == fed
        assert state_of(session).digest == digest

    def test_what_was_said_there_is_read_here_from_its_words(self, opened: Open) -> None:
        first = ScriptedEngine(name="a")
        session = opened(engine=first)
        talk(session, "one")
        list(session.switch_model(ScriptedEngine(["from b"], name="b")))
        assert said(session.send("two")) == "from b"
        fed = first.fed
        list(session.switch_model(first))
        prompt, answer = "X\nXuser\ntwo\nXassistant\n", "from b"
        assert first.fed - fed == len("X\nXuser\ntwoX\nXassistant\n") + len(answer)
        assert prompt
        assert [m[1] for m in transcript(session)][2:] == ["two", "from b"]

    def test_there_and_back_again_uses_both_saved_states(self, opened: Open) -> None:
        first, second = ScriptedEngine(name="a"), ScriptedEngine(name="b")
        session = opened(engine=first)
        talk(session, "one")
        list(session.switch_model(second))
        list(session.switch_model(first))
        fed = second.fed
        assert restored(session.switch_model(second)).source == "snapshot"
        assert second.fed == fed

    def test_an_answer_of_the_other_checkpoint_can_be_continued(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(["abcdef"], name="a"))
        said(session.send("Hi", sampling=SamplingOptions(temperature=0, max_tokens=3)))
        list(session.switch_model(ScriptedEngine(["XYZ"], name="b")))
        assert said(session.continue_answer()) == "XYZ"
        assert session.messages()[-1].content == "abcXYZ"
        digest = state_of(session).digest
        session.close()
        session = opened(engine=ScriptedEngine(["XYZ"], name="b"))
        assert restored(session.restore()).source == "snapshot"
        assert state_of(session).digest == digest

    def test_a_switch_that_is_stopped_stays(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(name="a"))
        digest = talk(session, "word " * 300)
        for event in session.switch_model(ScriptedEngine(name="b")):
            if isinstance(event, PrefillProgress):
                session.stop()
        assert session.engine_info.name == session.record.model == "a"
        assert state_of(session).digest == digest

    def test_a_switch_that_fails_stays(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(name="a"))
        digest = talk(session, "one")
        with pytest.raises(ModelError):
            list(session.switch_model(ScriptedEngine(name="b", fail_feed_at=0)))
        assert session.engine_info.name == "a"
        assert state_of(session).digest == digest

    def test_opening_with_another_checkpoint_streams_the_session_into_it(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(name="a"))
        talk(session, "one")
        session.close()
        session = opened(engine=ScriptedEngine(name="b"))
        assert restored(session.restore()).source == "replay"
        assert session.record.model == "b"

    def test_another_window_is_another_state(self, opened: Open) -> None:
        session = opened(engine=ScriptedEngine(window=1024))
        talk(session, "one")
        session.close()
        assert restored(opened(engine=ScriptedEngine(window=512)).restore()).source == "replay"


def test_states_of_two_sessions_never_mix(opened: Open, elsewhere: Elsewhere) -> None:
    engine = ScriptedEngine()
    one, two = opened("one", engine), opened("two", engine)
    for text in ("alpha", "beta"):
        said(one.send(text))
        said(two.send(text[::-1]))
    straight = opened(paths=elsewhere("straight"))
    assert talk(straight, "alpha", "beta") == state_of(one).digest
    assert state_of(one).digest != state_of(two).digest


def test_two_system_texts_are_two_conversations(opened: Open) -> None:
    engine = ScriptedEngine()
    one, two = opened("one", engine, system="Be brief."), opened("two", engine, system="")
    said(one.send("same words"))
    said(two.send("same words"))
    assert one.messages()[0].id != two.messages()[0].id
    assert len(state_of(one)) - len(state_of(two)) == len("Xsystem\nBe brief.X\n")


def test_resuming_does_not_depend_on_the_length_of_the_session(opened: Open) -> None:
    session = opened()
    for number in range(30):
        said(session.send(f"message {number}"))
    session.close()
    engine = ScriptedEngine()
    session = opened(engine=engine)
    asked = finished(session.send("now"))
    assert engine.fed == asked.stats.tokens_in
    assert replace(asked.stats).tokens_seen == session.record.tokens_seen


def test_what_was_written_when_is_kept_with_the_session(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(window=16))
    talk(session, "one", "two")
    before = session.memory_report().history
    assert [mark.words for mark in before] == ["one", "two"]
    assert all(mark.added > 0 for mark in before)
    assert before[-1].layers == session.memory_report().layers
    session.close()
    session = opened(engine=ScriptedEngine(["x", "y", "z"], window=16))
    assert session.memory_report().history == before
    said(session.regenerate(sampling=SamplingOptions(temperature=1.0, seed=1)))
    history = session.memory_report().history
    assert [mark.words for mark in history] == ["one", "two"]
    assert history[-1].message == session.record.tip != before[-1].message


def test_a_document_has_its_place_in_the_history(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(window=16))
    finished(session.read("book.txt", "many words " * 50))
    (mark,) = session.memory_report().history
    assert (mark.role, mark.words) == ("document", "book.txt")
    assert mark.added == mark.layers[0].written > 400


def test_a_state_of_another_model_or_of_other_weights_is_named(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(name="small"))
    talk(session, "one")
    session.close()
    session = opened(engine=ScriptedEngine(name="small", window=64))
    why = restored(session.restore()).why
    assert why is not None
    assert why.startswith("small has changed since the session's state was saved: ")
    session.close()
    session = opened(engine=ScriptedEngine(name="large", window=32))
    why = restored(session.restore()).why
    assert why is not None
    assert why.startswith("The session's saved state is one of small, not of large: ")
