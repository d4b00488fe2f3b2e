from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest

from infinichat.errors import DatabaseError, DiskError, StoreError
from infinichat.paths import Paths
from infinichat.store import Store, database

REPOSITORY = Path(database.__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="uses POSIX's modes, users or limits")


def say(store: Store, content: str) -> None:
    session = store.find_session("notes") or store.create_session("notes")
    store.append(session.id, role="user", content=content, reason="complete", chain="c")


def run_child(code: str, *arguments: str) -> str:
    """What the code prints in a process of its own, which must end well."""
    script = "import sys\nfrom pathlib import Path\nfrom infinichat.paths import Paths\n" + textwrap.dedent(
        code
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@posix
def test_files_are_0600_and_folders_0700_whatever_the_umask(paths: Paths) -> None:
    previous = os.umask(0)
    try:
        with Store.open(paths) as store:
            say(store, "hello")
            modes = {p: stat.S_IMODE(p.stat().st_mode) for p in [paths.data, *paths.data.rglob("*")]}
            assert paths.database.with_name("infinichat.db-wal") in modes
    finally:
        os.umask(previous)
    assert {p: m for p, m in modes.items() if m != (0o700 if p.is_dir() else 0o600)} == {}


@posix
def test_modes_that_were_too_open_are_closed(paths: Paths) -> None:
    with Store.open(paths) as store:
        say(store, "hello")
    paths.data.chmod(0o755)
    paths.database.chmod(0o644)
    Store.open(paths).close()
    assert stat.S_IMODE(paths.data.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths.database.stat().st_mode) == 0o600


def test_a_commit_is_durable_and_refers_only_to_what_exists(paths: Paths) -> None:
    with Store.open(paths) as store, store._database.connection() as connection:
        values = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


@pytest.mark.parametrize("content", [b"not a database " * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_kept(paths: Paths, content: bytes) -> None:
    paths.data.mkdir(parents=True)
    paths.database.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"damaged or not a database .* Move it away to start anew"):
        Store.open(paths)
    assert paths.database.read_bytes() == content


def test_a_damaged_page_is_a_sentence_and_the_file_is_kept(paths: Paths) -> None:
    with Store.open(paths) as store:
        for n in range(200):
            say(store, f"{n} " + "words " * 200)
    size = paths.database.stat().st_size
    with paths.database.open("r+b") as file:
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xa5" * 64)
    with pytest.raises(DatabaseError, match="damaged"), Store.open(paths) as store:
        store.path(store.session("notes").id)
    assert paths.database.stat().st_size == size


def test_verify_finds_a_damaged_page(paths: Paths) -> None:
    with Store.open(paths) as store:
        for n in range(200):
            say(store, f"{n} " + "words " * 200)
        with store._database.connection() as connection:
            root = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'members_message'"
            ).fetchone()
    with paths.database.open("r+b") as file:
        file.seek((root[0] - 1) * 4096 + 200)
        file.write(b"\xa5" * 3000)
    with Store.open(paths) as store:
        assert any("damaged" in sentence for sentence in store.verify())


def test_a_full_disk_is_a_sentence_and_no_word_is_lost(paths: Paths) -> None:
    with Store.open(paths) as store:
        say(store, "before")
        with store._database.connection() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 10}")
        with pytest.raises(DiskError, match=r"The disk is full: .* Free some space"):
            say(store, "too much " * 100_000)
        with store._database.connection() as connection:
            connection.execute("PRAGMA max_page_count = 1000000")
        say(store, "after")
        assert [m.content for m in store.path(store.session("notes").id)] == ["before", "after"]
        assert store.verify() == []


@posix
def test_a_write_that_the_system_refuses_leaves_everything_as_it_was(paths: Paths) -> None:
    output = run_child(
        """
        import resource
        from infinichat.errors import DiskError
        from infinichat.protocols import StateDump, TensorRecord
        from infinichat.store import SnapshotHeader, Store
        roots = [Path(a) for a in sys.argv[1:]]
        store = Store.open(Paths(*roots))
        session = store.create_session("notes")
        store.append(session.id, role="user", content="before", reason="complete", chain="c")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        try:
            store.append(session.id, role="user", content="long " * 400_000, reason="complete", chain="c")
        except DiskError as exc:
            print(exc)
        header = SnapshotHeader("f", "t", "c", "float32", 8, 4, 3, "ab", "smol")
        big = StateDump({"x": TensorRecord("U8", (900_000,), bytes(900_000))}, {})
        try:
            store.save_snapshot(session.id, "ab", big, header=header)
        except DiskError as exc:
            print(exc)
        assert not store.has_snapshot(session.id, "ab")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        store.append(session.id, role="user", content="after", reason="complete", chain="c")
        store.save_snapshot(session.id, "ab", big, header=header)
        left = list((roots[0] / "snapshots").rglob("*-*"))
        print([m.content for m in store.path(session.id)], store.verify(), left)
        """,
        *(str(p) for p in (paths.data, paths.config, paths.cache, paths.state)),
    )
    first, second, third = output.splitlines()
    assert "Check that the disk is not full" in first or "The disk is full" in first
    assert "The disk is full: saving the state" in second
    assert third == "['before', 'after'] [] []"


@posix
def test_a_read_only_folder_is_a_sentence_with_the_next_step() -> None:
    home = Path(tempfile.mkdtemp(prefix="infinichat-test-"))
    roots = [home / name for name in ("data", "config", "cache", "state")]
    try:
        with Store.open(Paths(*roots)) as store:
            say(store, "before")
        home.chmod(0o755)
        output = run_child(
            """
            import os
            from infinichat.errors import DiskError
            from infinichat.store import Store
            roots = [Path(a) for a in sys.argv[1:]]
            home = roots[0].parent
            if os.getuid() == 0:  # root may write anywhere
                for path in [home, *home.rglob("*")]:
                    os.chown(path, 65534, 65534)
                os.setgid(65534)
                os.setuid(65534)
            os.chmod(roots[0] / "infinichat.db", 0o400)
            os.chmod(roots[0], 0o500)
            fresh = [home / "fresh" / name for name in "abcd"]
            os.mkdir(home / "fresh", 0o500)
            for paths in (Paths(*roots), Paths(*fresh)):
                try:
                    Store.open(paths)
                except DiskError as exc:
                    print(exc)
            os.chmod(roots[0], 0o700)
            os.chmod(roots[0] / "infinichat.db", 0o600)
            with Store.open(Paths(*roots)) as store:
                print(store.path(store.session("notes").id)[0].content)
            """,
            *map(str, roots),
        )
    finally:
        shutil.rmtree(home)
    first, second, third = output.splitlines()
    for sentence in (first, second):
        assert "INFINICHAT_HOME" in sentence
        assert "ermission" in sentence
    assert third == "before"


def test_a_file_where_the_folder_should_be_is_a_sentence(paths: Paths) -> None:
    paths.data.parent.mkdir(parents=True)
    paths.data.write_text("in the way", encoding="utf-8")
    with pytest.raises(DiskError, match=r"A file stands where a folder is needed"):
        Store.open(paths)


def test_another_process_that_writes_for_too_long_is_a_sentence(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    with Store.open(paths) as store, contextlib.closing(sqlite3.connect(paths.database)) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        assert store.sessions() == []  # reading goes on
        with store._database.connection() as connection:
            connection.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(DatabaseError, match="in use by another process"):
            store.create_session("notes")
        other.execute("ROLLBACK")
        store.create_session("notes")


def test_a_reader_never_waits_for_a_writer(paths: Paths) -> None:
    with Store.open(paths) as store:
        store.create_session("notes")
        seen: list[list[str]] = []
        with store._database.write() as connection:
            connection.execute("UPDATE sessions SET name = 'changed'")
            reader = threading.Thread(target=lambda: seen.append([s.name for s in store.sessions()]))
            reader.start()
            reader.join(timeout=10)
        assert seen == [["notes"]]
        assert [s.name for s in store.sessions()] == ["changed"]


def test_an_exception_inside_a_transaction_undoes_it(paths: Paths) -> None:
    def fail_after_writing(store: Store) -> None:
        with store._database.write() as connection:
            connection.execute("UPDATE sessions SET name = 'changed'")
            raise KeyboardInterrupt

    with Store.open(paths) as store:
        store.create_session("notes")
        with pytest.raises(KeyboardInterrupt):
            fail_after_writing(store)
        assert [s.name for s in store.sessions()] == ["notes"]


def test_a_closed_store_says_so(paths: Paths) -> None:
    store = Store.open(paths)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="has been closed"):
        store.sessions()
