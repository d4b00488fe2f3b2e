from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from infinichat.errors import DatabaseError, DiskError
from infinichat.messages import LayerMemory, Message
from infinichat.paths import Paths
from infinichat.store import Store, migrations
from infinichat.store.database import Database
from infinichat.store.migrations import MIGRATIONS, m001_transcripts, m002_search, migrate
from infinichat.store.transcripts import message_id

WORDS = "My dog is called Biscuit."


def make_version_1(paths: Paths, *, with_data: bool = True) -> str:
    """A database as the first format had it, written with plain SQL; returns the id of its message."""
    paths.data.mkdir(parents=True)
    identity = message_id(parent=None, role="user", content=WORDS, title=None, chain="c")
    with contextlib.closing(sqlite3.connect(paths.database)) as connection:
        m001_transcripts(connection)
        connection.execute("PRAGMA user_version = 1")
        if with_data:
            connection.execute(
                "INSERT INTO messages (id, depth, role, content, size, reason, chain, created) "
                "VALUES (?, 0, 'user', ?, 25, 'complete', 'c', 1.0)",
                (identity, WORDS),
            )
            connection.execute(
                "INSERT INTO sessions (id, name, tip, created, updated) VALUES (?, 'notes', 1, 1, 1)",
                ("a" * 32,),
            )
            connection.execute("INSERT INTO members (session, message, added) VALUES (1, 1, 1)")
        connection.commit()
    return identity


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_a_new_database_has_the_newest_format_and_needs_no_copy(paths: Paths) -> None:
    with Store.open(paths) as store:
        assert store.verify() == []
    assert version(paths.database) == len(MIGRATIONS) >= 2
    assert not paths.backups.exists()


def test_version_1_is_brought_forward_with_its_words_searchable(paths: Paths) -> None:
    identity = make_version_1(paths)
    with Store.open(paths) as store:
        assert [m.id for m in store.path(store.session("notes").id)] == [identity]
        assert [hit.message_id for hit in store.search("biscuit")] == [identity]
        assert store.verify() == []
    assert version(paths.database) == len(MIGRATIONS)


def test_before_a_step_a_whole_copy_is_made(paths: Paths) -> None:
    make_version_1(paths)
    Store.open(paths).close()
    copies = sorted(paths.backups.iterdir())
    assert [copy.name.split("-")[1] for copy in copies] == ["format1", "format2", "format3"]
    copy = copies[0]
    assert copy.stat().st_mode & 0o777 == 0o600
    assert version(copy) == 1
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT content FROM messages").fetchall() == [(WORDS,)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    Store.open(paths).close()
    assert sorted(paths.backups.iterdir()) == copies


def test_version_2_is_brought_forward_and_can_hold_what_was_written_when(paths: Paths) -> None:
    identity = make_version_1(paths)
    with contextlib.closing(sqlite3.connect(paths.database)) as connection:
        connection.row_factory = sqlite3.Row
        m002_search(connection)
        connection.execute("PRAGMA user_version = 2")
        connection.commit()
    with Store.open(paths) as store:
        session = store.session("notes")
        assert [m.id for m in store.path(session.id)] == [identity]
        assert store.memory_marks(session.id, "f") == ()
        store.mark_memory(identity, "f", tokens_seen=7, layers=[LayerMemory(18, 2, 1.0, 0.1, 0.5)])
        (mark,) = store.memory_marks(session.id, "f")
        assert (mark.message, mark.words, mark.added) == (identity, WORDS, 2)
        assert store.verify() == []
    assert version(paths.database) == len(MIGRATIONS)


def test_an_empty_database_of_version_1_is_brought_forward(paths: Paths) -> None:
    make_version_1(paths, with_data=False)
    with Store.open(paths) as store:
        assert store.sessions() == []
        store.append(store.create_session("a").id, role="user", content=WORDS, reason="complete", chain="c")
        assert len(store.search("biscuit")) == 1


def test_a_step_that_fails_leaves_the_old_format_and_every_word(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(paths)

    def half_a_step(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (x)")
        connection.execute("UPDATE messages SET content = ''")
        raise sqlite3.OperationalError("no such module: fts5")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (m001_transcripts, half_a_step))
        with pytest.raises(DatabaseError, match="no such module: fts5"):
            Store.open(paths)
    with contextlib.closing(sqlite3.connect(paths.database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT content FROM messages").fetchall() == [(WORDS,)]
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    with Store.open(paths) as store:
        assert len(store.search("biscuit")) == 1


def test_without_room_for_the_copy_nothing_is_changed(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    make_version_1(paths)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(DiskError, match="The disk is full"):
            Store.open(paths)
    assert version(paths.database) == 1
    assert list(paths.backups.iterdir()) == []


def test_a_newer_format_is_refused_and_not_touched(paths: Paths) -> None:
    Store.open(paths).close()
    with contextlib.closing(sqlite3.connect(paths.database)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = paths.database.read_bytes()
    with pytest.raises(
        DatabaseError, match=rf"newer infinichat: format 99, .* up to {len(MIGRATIONS)}. Update"
    ):
        Store.open(paths)
    assert paths.database.read_bytes() == before
    assert sorted(p.name for p in paths.data.iterdir()) == ["infinichat.db", "locks", "snapshots"]


def test_another_programs_database_is_refused_and_not_touched(paths: Paths) -> None:
    paths.data.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(paths.database)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
        connection.commit()
    before = paths.database.read_bytes()
    with pytest.raises(DatabaseError, match="of another program"):
        Store.open(paths)
    assert paths.database.read_bytes() == before


def test_a_step_that_another_process_took_meanwhile_is_not_taken_twice(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(paths)
    copy_before = migrations._copy_before

    def slow_copy(database: Database, version: int, *, backups: Path) -> Path:
        copy = copy_before(database, version, backups=backups)
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "_copy_before", copy_before)
            Store.open(paths).close()
        return copy

    monkeypatch.setattr(migrations, "_copy_before", slow_copy)
    database = Database(paths.database)
    migrate(database, backups=paths.backups)
    database.close()
    with Store.open(paths) as store:
        found: list[Message] = store.path(store.session("notes").id)
        assert len(found) == len(store.search("biscuit")) == 1
        assert store.verify() == []


def test_steps_taken_one_by_one_give_the_shape_of_a_new_database(paths: Paths, tmp_path: Path) -> None:
    make_version_1(paths)
    Store.open(paths).close()
    other = Paths(tmp_path / "n", tmp_path / "c", tmp_path / "ca", tmp_path / "s")
    Store.open(other).close()

    def shape(path: Path) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    assert shape(paths.database) == shape(other.database)
