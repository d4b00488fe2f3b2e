"""A made-up store is what it says, and every call in it is timed."""

from __future__ import annotations

import json

import pytest

from infinichat.bench.store import ABSENT, COMMON, RARE, _made
from infinichat.errors import UsageError
from tests.bench.test_bench import parsed, run


def test_the_common_word_is_everywhere_the_rare_one_once_the_absent_one_nowhere() -> None:
    with _made(6, 4, lambda _: None) as made:
        assert [record.messages for record in made.store.sessions()] == [4] * 6
        found = {word: made.store.search(word) for word in (COMMON, RARE, ABSENT)}
        assert {word: len(hits) for word, hits in found.items()} == {COMMON: 24, RARE: 1, ABSENT: 0}
        assert found[RARE][0].session_id == made.some.id
        assert len(made.store.path(made.some.id)) == 4
        assert made.paths.data.exists()
        folder = made.paths.data.parent
    assert not folder.exists()


def test_the_command_reports_every_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(parsed("store", "--sessions", "5", "--messages", "20", "--rounds", "2", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["notes"][0].startswith("5 sessions, 20 messages of 40 words")
    phases = {row["phase"]: row for row in document["rows"]}
    assert {"list all sessions", "open: the whole transcript", "search: a common word"} <= set(phases)
    assert all(row["n"] == 2 and row["messages"] == 20 and row["max_ms"] >= 0 for row in phases.values())
    with pytest.raises(UsageError, match="takes one number; --sessions has several"):
        run(parsed("store", "--sessions", "5,6"))
