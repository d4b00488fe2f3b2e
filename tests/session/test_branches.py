"""Regenerate, edit, branch, select, continue: the state is exactly that of a conversation that went that way
from the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.errors import UsageError
from infinichat.messages import SamplingOptions
from infinichat.paths import Paths
from infinichat.session import ChatSession
from tests.session.talking import finished, restored, said, state_of, stop_after, transcript

Open = Callable[..., ChatSession]
Elsewhere = Callable[[str], Paths]

WARM = SamplingOptions(temperature=0.7)


def test_a_regenerated_answer_stands_beside_the_first(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["one", "two", "three"]))
    first = finished(session.send("Hi", sampling=WARM)).message
    second = finished(session.regenerate(sampling=WARM)).message
    assert (first.content, second.content) == ("one", "two")
    assert session.versions(second.id) == session.versions(first.id) == [first.id, second.id]
    assert [m.content for m in session.messages()] == ["Hi", "two"]


def test_after_regenerating_the_state_has_no_trace_of_the_first_answer(
    opened: Open, elsewhere: Elsewhere
) -> None:
    session = opened()
    said(session.send("one"))
    stop_after(session, session.send("two"), 1)
    said(session.regenerate())
    said(session.send("three"))
    straight = opened(paths=elsewhere("straight"))
    for text in ("one", "two", "three"):
        said(straight.send(text))
    assert state_of(session) == state_of(straight)
    assert transcript(session) == transcript(straight)


def test_a_greedy_regeneration_is_the_same_message(opened: Open) -> None:
    session = opened()
    first = finished(session.send("Hi")).message
    assert finished(session.regenerate()).message.id == first.id
    assert session.versions(first.id) == [first.id]


def test_regenerating_reads_only_the_last_prompt_again(opened: Open) -> None:
    engine = ScriptedEngine()
    session = opened(engine=engine)
    said(session.send("a long beginning " * 50))
    prompt = finished(session.send("two")).stats.tokens_in
    fed = engine.fed
    said(session.regenerate())
    assert engine.fed - fed == prompt


def test_an_edited_message_is_a_new_branch_with_its_own_state(opened: Open, elsewhere: Elsewhere) -> None:
    session = opened()
    for text in ("one", "two", "three"):
        said(session.send(text))
    second = session.messages()[2]
    said(session.edit(second.id, "TWO"))
    said(session.send("four"))
    straight = opened(paths=elsewhere("straight"))
    for text in ("one", "TWO", "four"):
        said(straight.send(text))
    assert transcript(session) == transcript(straight)
    assert state_of(session) == state_of(straight)
    assert len(session.versions(session.messages()[2].id)) == 2


def test_the_first_message_can_be_edited(opened: Open, elsewhere: Elsewhere) -> None:
    session = opened()
    said(session.send("one"))
    said(session.edit(session.messages()[0].id, "ONE"))
    straight = opened(paths=elsewhere("straight"))
    said(straight.send("ONE"))
    assert transcript(session) == transcript(straight)
    assert state_of(session) == state_of(straight)


def test_selecting_goes_to_the_newest_end_of_that_branch_and_back(opened: Open) -> None:
    session = opened()
    for text in ("one", "two"):
        said(session.send(text))
    old = transcript(session)
    old_state = state_of(session).digest
    first = session.messages()[0].id
    said(session.edit(first, "ONE"))
    edited = session.messages()[0].id
    new, new_state = transcript(session), state_of(session).digest
    session.select(first)
    assert transcript(session) == old
    assert state_of(session).digest == old_state
    session.select(edited)
    assert transcript(session) == new
    assert state_of(session).digest == new_state


def test_going_back_to_a_branch_uses_its_saved_state(opened: Open) -> None:
    engine = ScriptedEngine()
    session = opened(engine=engine)
    said(session.send("one " * 100))
    first = session.messages()[0].id
    said(session.edit(first, "ONE"))
    session.select(first)
    fed = engine.fed
    assert restored(session.restore()).source == "snapshot"
    assert engine.fed == fed


@pytest.mark.parametrize("characters", [1, 5, 20])
def test_a_stopped_answer_goes_on_as_if_it_had_never_been_stopped(
    opened: Open, elsewhere: Elsewhere, characters: int
) -> None:
    session = opened(engine=ScriptedEngine())
    last = stop_after(session, session.send("one"), characters)
    assert last.message.reason == "stopped"
    rest = finished(session.continue_answer())
    straight = opened(paths=elsewhere("straight"))
    whole = finished(straight.send("one"))
    assert rest.message.content == whole.message.content
    assert rest.message.id == whole.message.id
    assert state_of(session) == state_of(straight)


def test_continuing_shows_only_what_is_new(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abcdef"]))
    said(session.send("Hi", sampling=SamplingOptions(temperature=0, max_tokens=2)))
    assert said(session.continue_answer()) == "cdef"
    assert session.messages()[-1].content == "abcdef"


def test_an_answer_that_was_gone_on_with_is_no_version_beside_the_whole(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["abcdef", "abXY"]))
    said(session.send("Hi", sampling=SamplingOptions(temperature=0, max_tokens=2)))
    cut = session.messages()[-1].id
    assert session.versions(cut) == [cut]
    said(session.continue_answer())
    whole = session.messages()[-1].id
    assert session.versions(whole) == [whole] != [cut]
    # One that was cut and not gone on with is a version.
    said(session.send("And?"))
    first = session.messages()[-1]
    said(session.regenerate(sampling=SamplingOptions(temperature=0, max_tokens=3)))
    second = session.messages()[-1]
    assert (first.content, second.content) == ("abXY", "abX")
    assert session.versions(second.id) == [first.id, second.id]


def test_an_answer_cut_inside_a_character_goes_on_whole(opened: Open, elsewhere: Elsewhere) -> None:
    reply = ["a🙂b"]
    session = opened(engine=ScriptedEngine(reply))
    said(session.send("Hi", sampling=SamplingOptions(temperature=0, max_tokens=3)))
    assert session.messages()[-1].content == "a"
    said(session.continue_answer())
    straight = opened(engine=ScriptedEngine(reply), paths=elsewhere("straight"))
    said(straight.send("Hi"))
    assert session.messages()[-1].content == "a🙂b"
    assert state_of(session) == state_of(straight)


def test_going_on_twice_in_a_new_process_is_exact(opened: Open, elsewhere: Elsewhere) -> None:
    two = SamplingOptions(temperature=0, max_tokens=2)
    session = opened()
    said(session.send("one", sampling=two))
    session.close()
    session = opened()
    said(session.continue_answer(sampling=two))
    session.close()
    session = opened()
    said(session.continue_answer())
    straight = opened(paths=elsewhere("straight"))
    said(straight.send("one"))
    assert transcript(session) == transcript(straight)
    assert state_of(session) == state_of(straight)


def test_an_answer_that_ended_by_itself_is_not_continued(opened: Open) -> None:
    session = opened()
    said(session.send("one"))
    with pytest.raises(UsageError, match="came to its end"):
        list(session.continue_answer())


def test_an_unanswered_message_is_answered_by_continue_and_regenerate(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["fine"]))
    session.store.append(session.id, role="user", content="Hi", reason="complete", chain="x")
    assert said(session.continue_answer()) == "fine"
    session.store.set_tip(session.id, session.messages()[0].id)
    assert said(session.regenerate()) == "fine"


def test_a_stop_before_the_first_word_of_a_regeneration_keeps_the_old_answer(opened: Open) -> None:
    session = opened(engine=ScriptedEngine(["one", "two"]))
    said(session.send("Hi", sampling=WARM))
    before = transcript(session)
    events = session.regenerate(sampling=WARM)
    session.stop()
    assert finished(events).message.content == "one"
    assert transcript(session) == before


def test_a_branch_is_a_session_of_its_own_that_shares_the_saved_states(opened: Open) -> None:
    engine = ScriptedEngine()
    session = opened(engine=engine)
    for text in ("one", "two"):
        said(session.send(text))
    at = session.messages()[1].id
    state_at_branch = state_of(session).digest
    branch = session.store.branch(session.id, at, "other")
    other = opened(branch.name, engine)
    fed = engine.fed
    assert restored(other.restore()).source == "snapshot"
    assert engine.fed == fed
    said(other.send("another two"))
    assert [m.content for m in other.messages()][2] == "another two"
    assert state_of(session).digest == state_at_branch
    assert [m.content for m in session.messages()][2] == "two"


@pytest.mark.parametrize("act", ["regenerate", "continue_answer"])
def test_an_empty_session_has_nothing_to_do_again(opened: Open, act: str) -> None:
    session = opened()
    with pytest.raises(UsageError, match="Nothing has been said"):
        list(getattr(session, act)())


def test_only_own_messages_of_this_session_can_be_edited(opened: Open) -> None:
    session = opened()
    said(session.send("one"))
    with pytest.raises(UsageError, match="role 'assistant'"):
        session.edit(session.messages()[1].id, "x")
    other = opened("other", ScriptedEngine())
    with pytest.raises(UsageError):
        other.edit(session.messages()[0].id, "x")
