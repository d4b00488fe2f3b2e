"""A process that is killed between any two writes, as often as there are writes.

Run as a program with a scenario's name and a folder. For n = 1, 2, 3 ... it forks a child that plays the
scenario and is killed (SIGKILL) at its n-th moment: before and after every write to the store, at every id
of an answer and every segment that is fed. Then it opens the session in a second child, checks that all
that was said and shown is there, finishes the scenario and compares transcript and state with those of a
run that nobody killed. Prints one JSON line per kill. Forking keeps this fast; nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infinichat.config import Settings
from infinichat.engine.scripted import ScriptedEngine, ScriptedState
from infinichat.messages import (
    PrefillProgress,
    SamplingOptions,
    StateRestored,
    StreamEvent,
    TextDelta,
    TurnFinished,
)
from infinichat.paths import Paths
from infinichat.session import ChatSession, answering, keeper, open_session, recover_interrupted
from infinichat.store import Store, database

SETTINGS = Settings(sampling=SamplingOptions(temperature=0))
BOOK = "".join(f"Line {number} of the book.\n" for number in range(500))  # three pieces
WRITES = (
    "create_session",
    "append",
    "write_draft",
    "clear_draft",
    "commit_answer",
    "set_tip",
    "set_title",
    "set_tokens_seen",
    "write_feeds",
    "save_snapshot",
    "set_reason",
    "put_waiting",
    "clear_waiting",
)

# What the child that is killed tells: a pipe keeps what was written before the end.
Tell = Callable[[str, str], None]


class Moments:
    """Counts moments and ends the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self()
            result = method(*args, **options)
            self()
            return result

        return call


class TerseEngine(ScriptedEngine):
    """Answers with six characters that depend on everything it has seen."""

    def __init__(self) -> None:
        super().__init__(segment=1024)

    def _reply(self, state: ScriptedState, start: int, options: SamplingOptions) -> str:
        return ScriptedState(state.ids[:start], bytes(state.modes[:start])).digest[:6]


class MortalEngine(TerseEngine):
    """Every id and every segment is a moment."""

    def __init__(self, moment: Callable[[], None]) -> None:
        super().__init__()
        self.moment = moment

    def feed(self, *args: Any, **options: Any) -> Iterator[Any]:
        for progress in super().feed(*args, **options):
            self.moment()
            yield progress

    def generate(self, *args: Any, **options: Any) -> Iterator[Any]:
        for token in super().generate(*args, **options):
            self.moment()
            yield token


def play(events: Iterator[StreamEvent], tell: Tell, *, text: str = "", shown: str = "") -> None:
    """Iterate a turn and tell what the user may rely on from then on."""
    for event in events:
        if isinstance(event, StateRestored) and text:
            tell("said", text)
        elif isinstance(event, TextDelta):
            shown += event.text
            tell("shown", shown)
        elif isinstance(event, TurnFinished):
            tell("finished", event.message.content)


def say(session: ChatSession, text: str, tell: Tell) -> None:
    """Make sure that ``text`` is said and answered to the end, whatever of it has happened already."""
    messages = session.messages()
    at = next((i for i, m in enumerate(messages) if (m.role, m.content) == ("user", text)), None)
    if at is None:
        play(session.send(text), tell, text=text)
    elif at == len(messages) - 1:
        play(session.continue_answer(), tell, text=text)
    elif at == len(messages) - 2 and messages[-1].reason == "interrupted":
        play(session.continue_answer(), tell, shown=messages[-1].content)


def talk(session: ChatSession, tell: Tell) -> None:
    for text in ("one", "two"):
        say(session, text, tell)


def wait(session: ChatSession, tell: Tell) -> None:
    """Two messages are sent before anything can answer; they are said and answered one after the other. What
    a crash left of them is answered together."""
    if not session.messages():
        waited = []
        for text in ("one", "two"):
            waited.append((text, session.store.put_waiting(session.id, text)))
            tell("said", text)
        for text, number in waited:
            play(session.send(text, waited=number), tell)
    elif session.messages()[-1].role == "user" or session.messages()[-1].reason == "interrupted":
        play(session.continue_answer(), tell)


def edit(session: ChatSession, tell: Tell) -> None:
    """Two turns, then the first message is said otherwise."""
    edited = any(m.content == "ONE" for m in session.messages()[:1])
    if not edited:
        for text in ("one", "two"):
            say(session, text, tell)
        play(session.edit(session.messages()[0].id, "ONE"), tell, text="ONE")
    else:
        say(session, "ONE", tell)


def read(session: ChatSession, tell: Tell) -> None:
    """A turn, a book that is stopped in the middle, the rest of the book, a turn."""
    say(session, "one", tell)
    documents = [m for m in session.messages() if m.role == "document"]
    if not documents:
        for event in session.read("book", BOOK):
            if isinstance(event, PrefillProgress) and event.done > 6_000:
                tell("read", BOOK[:4_000])
                session.stop()
    if not any(m.content == BOOK for m in documents):
        for _ in session.read("book", BOOK):
            pass
    tell("read", BOOK)
    say(session, "two", tell)


SCENARIOS = {"talk": talk, "wait": wait, "edit": edit, "read": read}


def home(root: Path) -> Paths:
    return Paths(root / "data", root / "config", root / "cache", root / "state")


def run(scenario: str, root: Path, *, kill_at: int | None, tell: Tell) -> int:
    """Play a scenario in this process; returns how many moments it had."""
    moment = Moments(kill_at)
    answering.DRAFT_EVERY_S = answering.FLUSH_EVERY_S = keeper.SNAPSHOT_EVERY_S = 0.0
    for name in WRITES:
        setattr(Store, name, moment.around(getattr(Store, name)))
    with open_session("s", engine=MortalEngine(moment), paths=home(root), settings=SETTINGS) as session:
        SCENARIOS[scenario](session, tell)
    return moment.count


def outcome(scenario: str, root: Path, tell: Tell) -> dict[str, Any]:
    """Open what is on disk, finish the scenario, and say what there is before and after."""
    store = Store.open(home(root))
    record = store.find_session("s")
    if record is not None:
        recover_interrupted(store, record.id)
    before = [] if record is None else [(m.role, m.content) for m in store.path(record.id)]
    everything = store.export_session(record.id) if record is not None else ""
    store.close()
    with open_session("s", engine=TerseEngine(), paths=home(root), settings=SETTINGS) as session:
        SCENARIOS[scenario](session, tell)
        session.memory_report()
        return {
            "before": before,
            "everything": everything,
            "transcript": [(m.role, m.content, m.reason) for m in session.messages()],
            "state": session._keeper.state.digest,
            "problems": session.store.verify(),
        }


def in_child(work: Callable[[Tell], Any]) -> tuple[int, list[tuple[str, Any]]]:
    """Do ``work`` in a forked child; how it ended, and everything that it told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)

        def tell(kind: str, text: Any) -> None:
            os.write(writer, json.dumps([kind, text]).encode() + b"\n")

        try:
            tell("result", work(tell))
        except BaseException:
            tell("crash", traceback.format_exc())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = [tuple(json.loads(line)) for line in pipe if line.endswith(b"\n")]
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), told


def forget_the_platter() -> None:
    """No syncing: what a process wrote outlives it; only a power cut needs more, and nobody cuts it here."""
    os.fsync = lambda descriptor: None
    database.PRAGMAS = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "PRAGMA foreign_keys = ON")


def main() -> None:
    forget_the_platter()
    scenario, folder, first, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    _, told = in_child(lambda tell: run(scenario, folder / "straight", kill_at=None, tell=tell))
    moments = told[-1][1]
    _, told = in_child(lambda tell: outcome(scenario, folder / "straight", tell))
    print(json.dumps({"moments": moments, "straight": told[-1][1]}), flush=True)
    for at in range(first, moments + 1, step):
        root = folder / f"kill-{at}"
        status, told = in_child(lambda tell, r=root, n=at: run(scenario, r, kill_at=n, tell=tell))
        ended, after = in_child(lambda tell, r=root: outcome(scenario, r, tell))
        line = {"at": at, "status": status, "told": told, "ended": ended, "after": after[-1]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
