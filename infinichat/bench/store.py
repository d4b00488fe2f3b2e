"""``bench store``: how long listing, searching and opening take in a store with years of talk in it.

The store is made up in a temporary home: so many sessions with equally many messages of some forty words,
drawn as words are in a language (the n-th most common one 1/n as often as the first). Three words are looked
for: one that every message holds, one that a single message holds, one that none does. Each time is that of
a call as the app and the commands make it, in a store that was opened before.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infinichat.bench.app_times import summary
from infinichat.bench.peers import Say
from infinichat.bench.report import Report, Row, machine_now
from infinichat.paths import Paths
from infinichat.store import SessionRecord, Store

COMMON, RARE, ABSENT = "common", "rare", "absent"
SESSIONS, MESSAGES = 1000, 100_000
WORDS, VOCABULARY = 40, 20_000
PAGE = 20
"""Messages that the app reads when it opens a session."""

SAY_EVERY = 100


@dataclass(frozen=True, slots=True)
class _Made:
    """A store with talk in it; ``some``, in the middle of it, is the session that is opened."""

    store: Store
    paths: Paths
    some: SessionRecord


def measure_store(*, sessions: int, messages: int, rounds: int, say: Say) -> Report:
    """``bench store``: each call ``rounds`` times, after one that is not counted."""
    machine = machine_now()
    with _made(sessions, max(1, messages // sessions), say) as made:
        total = sum(record.messages for record in made.store.sessions())
        rows = tuple(_row(what, call, total, rounds, say) for what, call in _calls(made).items())
        mb = sum(file.stat().st_size for file in made.paths.data.rglob("*") if file.is_file()) / 1e6
    note = f"{sessions:,} sessions, {total:,} messages of {WORDS} words, {mb:,.0f} MB on disk"
    return Report("store", "disk", 1, rows, machine, (note,))


def _calls(made: _Made) -> dict[str, Callable[[], object]]:
    store, some = made.store, made.some.id

    def reopened() -> None:
        with Store.open(made.paths) as again:
            again.last_session()

    calls: dict[str, Callable[[], object]] = {
        "open the store, last session": reopened,
        "list all sessions": store.sessions,
        "open: the newest page": lambda: store.path(some, limit=PAGE),
        "open: the whole transcript": lambda: store.path(some),
    }
    for word in (COMMON, RARE, ABSENT):
        calls[f"search: a {word} word"] = lambda word=word: store.search(word)  # type: ignore[misc]
    for word in (COMMON, RARE, ABSENT):
        calls[f"list sessions with a {word} word"] = lambda word=word: store.sessions(query=word)  # type: ignore[misc]
    calls["search in one session"] = lambda: store.search(COMMON, session_id=some)
    return calls


def _row(what: str, call: Callable[[], object], messages: int, rounds: int, say: Say) -> Row:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    figures = summary(times)
    say(f"{what}: {figures['p50_ms']} ms")
    return Row("store", "", None, extra={"phase": what, "messages": messages, **figures})


@contextmanager
def _made(sessions: int, each: int, say: Say) -> Iterator[_Made]:
    words, some = _words(random.Random(7)), None
    with tempfile.TemporaryDirectory(prefix="infinichat-bench-") as folder:
        home = Path(folder)
        paths = Paths(home / "data", home / "config", home / "cache", home / "state")
        with Store.open(paths) as store:
            for number in range(sessions):
                middle = number == sessions // 2
                record = store.import_session(_session(number, each, words, rare=middle))
                some = record if middle else some
                if number % SAY_EVERY == 0:
                    say(f"making a store: session {number:,} of {sessions:,}")
            assert some is not None
            yield _Made(store, paths, some)


def _words(rng: random.Random) -> Iterator[str]:
    """Words without end, as often as words of a language are."""
    vocabulary = [f"w{number:x}" for number in range(VOCABULARY)]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(VOCABULARY)))
    while True:
        yield from rng.choices(vocabulary, cum_weights=weights, k=10_000)


def _session(number: int, messages: int, words: Iterator[str], *, rare: bool) -> str:
    """A session as ``import_session`` takes it; its first message holds the rare word, if any does."""
    made, parent = [], None
    for place in range(messages):
        talk = [COMMON, *itertools.islice(words, WORDS - 1)]
        if rare and place == 0:
            talk[-1] = RARE
        made.append(
            {
                "id": f"{place:064x}",
                "parent": parent,
                "role": "assistant" if place % 2 else "user",
                "content": " ".join(talk),
                "reason": "stop" if place % 2 else "complete",
                "created": 1.7e9 + 1000 * number + place,
                "title": None,
                "model": None,
                "chain": "",
            }
        )
        parent = made[-1]["id"]
    about = {"name": f"talk-{number}", "title": f"About {number}", "system": None, "model": None}
    session = {**about, "created": 1.7e9 + 1000 * number, "tip": parent}
    return json.dumps({"format": "infinichat-session", "version": 1, "session": session, "messages": made})
