"""Whatever a user does in whatever order, the state is what the transcript's feeds say, and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.scripted import ScriptedEngine, ScriptedState
from infinichat.messages import PrefillProgress, SamplingOptions, StreamEvent, TextDelta, TurnFinished
from infinichat.paths import Paths
from infinichat.session import ChatSession
from tests.session.talking import finished, restored, said, state_of

Open = Callable[..., ChatSession]

TEXT = "".join(f"Line {number}, é.\n" for number in range(500))  # two pieces


def expected_state(session: ChatSession) -> ScriptedState:
    """All feeds of the selected branch, one after the other."""
    state = ScriptedState()
    for message in session.messages():
        for feed in session.store.feeds(message.id, session._keeper.root) or ():
            state.add(feed.ids, 1 if feed.mode == "decode" else 0)
    return state


class User:
    """Does something at random; every act leaves a session that can go on."""

    def __init__(self, seed: int, opened: Open, paths: Paths) -> None:
        self.random = random.Random(seed)
        self.opened = opened
        self.paths = paths
        self.engines = [ScriptedEngine(segment=256, name=name) for name in ("a", "b")]
        self.session = opened("s", self.engines[0])
        self.counter = 0

    def act(self) -> str:
        acts: dict[str, int] = {"send": 5, "reopen": 2, "lose": 1, "read": 2, "switch": 1}
        messages = self.session.messages()
        if any(m.role == "user" for m in messages):
            acts |= {"edit": 2, "select": 2}
        if messages and messages[-1].role in ("user", "assistant"):
            acts["regenerate"] = 3
        if messages and messages[-1].role == "assistant" and messages[-1].reason in ("stopped", "length"):
            acts["continue_answer"] = 8
        act = self.random.choices(list(acts), weights=list(acts.values()))[0]
        getattr(self, act)()
        return act

    def play(self, events: object) -> None:
        """Iterate a turn; sometimes stop it at some event."""
        left = self.random.choice([10**9, 10**9, 1, 3, 9, 25])
        for _ in events:  # type: ignore[attr-defined]
            left -= 1
            if left == 0:
                self.session.stop()

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(
            temperature=self.random.choice([0, 0.7]), max_tokens=self.random.choice([5, 1000])
        )

    def send(self) -> None:
        self.counter += 1
        self.play(self.session.send(f"message {self.counter}", sampling=self.sampling()))

    def regenerate(self) -> None:
        self.play(self.session.regenerate(sampling=self.sampling()))

    def continue_answer(self) -> None:
        self.play(self.session.continue_answer(sampling=self.sampling()))

    def edit(self) -> None:
        self.counter += 1
        message = self.random.choice([m for m in self.session.messages() if m.role == "user"])
        self.play(self.session.edit(message.id, f"edit {self.counter}", sampling=self.sampling()))

    def select(self) -> None:
        message = self.random.choice([m for m in self.session.messages() if m.role == "user"])
        self.session.select(self.random.choice(self.session.versions(message.id)))

    def read(self) -> None:
        self.play(self.session.read("book", TEXT))

    def reopen(self) -> None:
        name = self.session.engine_info.name
        self.session.close()
        self.session = self.opened("s", next(e for e in self.engines if e.info.name == name))

    def lose(self) -> None:
        """A saved state disappears."""
        files = sorted(self.paths.snapshots.glob("*.safetensors"))
        if files:
            self.random.choice(files).unlink()

    def switch(self) -> None:
        self.play(self.session.switch_model(self.random.choice(self.engines)))


@pytest.mark.parametrize("seed", range(6))
def test_the_state_is_what_the_transcript_says_after_any_acts(seed: int, opened: Open, paths: Paths) -> None:
    user = User(seed, opened, paths)
    done = []
    for _ in range(22):
        done.append(user.act())
        state = state_of(user.session)
        assert state == expected_state(user.session), done
        words = ByteTokenizer().decode(list(state.ids))
        at = 0
        for message in user.session.messages():
            at = words.index(message.content, at) + len(message.content)
    # What the user took away is missing, and nothing else is wrong.
    assert [p for p in user.session.store.verify() if "safetensors is missing" not in p] == []
    messages = user.session.messages()
    final = state_of(user.session)
    user.reopen()
    assert user.session.messages() == messages
    assert state_of(user.session) == final


def test_every_turn_ends_with_its_message_on_the_selected_branch(opened: Open, paths: Paths) -> None:
    user = User(99, opened, paths)
    ends: list[StreamEvent] = []
    user.play = lambda events: ends.append(list(events)[-1])  # type: ignore[attr-defined,method-assign,call-overload]
    for _ in range(15):
        user.act()
        tip = user.session.messages()[-1:] or None
        if ends and isinstance(ends[-1], TurnFinished) and tip:
            assert user.session.store.message(ends[-1].message.id) == ends[-1].message


def test_a_million_tokens_come_back_in_under_a_second(opened: Open) -> None:
    session = opened("s", ScriptedEngine())
    said(session.read("library", "All work and no play makes a dull book.\n" * 25_000))
    session.close()
    for text in ("what was it?", "and then?"):
        engine = ScriptedEngine(["A dull book."])
        started = time.perf_counter()
        session = opened("s", engine)
        events = session.send(text)
        first = next(event for event in events if isinstance(event, TextDelta))
        elapsed = time.perf_counter() - started
        list(events)
        assert first.text
        assert engine.fed < 100
        assert session.record.tokens_seen > 1_000_000
        session.close()
        assert elapsed < 1.0


def test_ctrl_c_in_an_answer_keeps_it(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(["abcdef"], fail_at=3)
    engine.failure = KeyboardInterrupt()  # type: ignore[assignment]
    session = opened("s", engine)
    with pytest.raises(KeyboardInterrupt):
        list(session.send("Hi"))
    last = session.messages()[-1]
    assert (last.content, last.reason) == ("abc", "stopped")
    engine.fail_at = None
    assert finished(session.continue_answer()).message.content == "abcdef"


def test_ctrl_c_in_a_reading_keeps_what_is_saved(opened: Open) -> None:
    engine = ScriptedEngine()
    session = opened("s", engine)
    engine.failure = KeyboardInterrupt()  # type: ignore[assignment]
    engine.fail_feed_at = 0
    with pytest.raises(KeyboardInterrupt):
        list(session.read("book", TEXT))
    (document,) = session.messages()
    assert document.reason == "stopped"
    engine.fail_feed_at = None
    events = list(session.read("book", TEXT))
    assert [e for e in events if isinstance(e, PrefillProgress)][-1].seconds_left == 0
    assert session.messages()[-1].content == TEXT
    assert restored(session.restore()).source == "memory"
