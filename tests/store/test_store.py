from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import infinichat.store
from infinichat.paths import Paths
from infinichat.store import Feed, Store, search, sessions, snapshots, transcripts


@pytest.fixture
def full(paths: Paths) -> Store:
    """Enough rows that SQLite's planner has a choice."""
    store = Store.open(paths)
    with store._database.write() as connection:
        for n in range(60):
            key = sessions.create(connection, f"session {n}")
            tip = None
            for m in range(20):
                tip = transcripts.add_message(
                    connection,
                    parent=tip,
                    role="user",
                    content=f"hello {n} {m}",
                    reason="complete",
                    chain="c",
                    title=None,
                    model=None,
                )
                transcripts.join(connection, key, tip)
            transcripts.move_tip(connection, key, tip)
        connection.execute("ANALYZE")
    return store


def plan(store: Store, statement: str, values: object) -> list[str]:
    with store._database.read() as connection:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)  # type: ignore[arg-type]
        return [row["detail"] for row in rows]


QUERIES = {
    "list": (sessions.LISTED, {"limit": -1}),
    "last": (sessions.RECENT, {}),
    "path": (transcripts.PATH, {"session": 1, "start": 1, "limit": 20}),
    "siblings": (transcripts.SIBLINGS, {"session": 1, "message": 5}),
    "versions": (transcripts.VERSIONS, {"session": 1, "message": 5}),
    "search": (search.ROWS, {"match": "hello"}),
    "search in a session": (search.ROWS_IN_SESSION, {"match": "hello", "session": "x"}),
    "saved states": (snapshots.ROWS, (1,)),
}


@pytest.mark.parametrize("name", QUERIES)
def test_no_frequent_query_scans_a_table(full: Store, name: str) -> None:
    steps = plan(full, *QUERIES[name])
    allowed = ("SCAN way", "SCAN words VIRTUAL TABLE", "SCAN s USING INDEX sessions_", "SCAN CONSTANT ROW")
    scans = [step for step in steps if step.startswith("SCAN") and not step.startswith(allowed)]
    assert scans == [], steps
    full.close()


@pytest.mark.parametrize(("name", "index"), [("list", "sessions_listed"), ("last", "sessions_recent")])
def test_sessions_come_out_of_an_index_in_order(full: Store, name: str, index: str) -> None:
    steps = plan(full, *QUERIES[name])
    assert any(f"USING INDEX {index}" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps
    full.close()


@pytest.mark.parametrize("name", ["search", "search in a session"])
def test_the_index_is_walked_outermost_and_nothing_is_sorted_around_it(full: Store, name: str) -> None:
    steps = plan(full, *QUERIES[name])
    assert steps[0].startswith("SCAN words VIRTUAL TABLE"), steps
    # What remains is the sort, in the global search, of the few sessions that share one message.
    sorts = [n for n, step in enumerate(steps) if "TEMP B-TREE" in step]
    subquery = next((n for n, step in enumerate(steps) if "SUBQUERY" in step), len(steps))
    assert all(n > subquery for n in sorts), steps
    full.close()


def test_the_store_imports_no_torch_and_no_numpy() -> None:
    heavy = {"torch", "numpy", "transformers", "textual"}
    code = f"import sys, infinichat.store; print({heavy} & set(sys.modules))"
    root = Path(infinichat.store.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "set()\n"


def test_importing_and_opening_write_only_under_the_data_folder(paths: Paths) -> None:
    assert not paths.data.exists()
    with Store.open(paths) as store:
        session = store.create_session()
        message = store.append(session.id, role="user", content="hello", reason="complete", chain="c")
        store.write_feeds(message.id, "f", [Feed("prefill", (1,), "c")])
    assert [path.name for path in paths.data.parent.iterdir()] == ["data"]
