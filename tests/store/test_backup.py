from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinichat.errors import DatabaseError, DiskError, InfiniChatError, StoreError, UsageError
from infinichat.paths import Paths
from infinichat.protocols import StateDump
from infinichat.store import Feed, SnapshotHeader, Store
from infinichat.store.backup import restore_backup

FP = "f" * 64


@pytest.fixture
def backup(store: Store, tmp_path: Path, dump: StateDump, make_header: Callable[..., SnapshotHeader]) -> Path:
    session = store.create_session("notes")
    message = store.append(session.id, role="user", content="kept words", reason="complete", chain="c")
    store.write_feeds(message.id, FP, [Feed("prefill", (1, 2), "ab")])
    store.save_snapshot(session.id, "ab", dump, header=make_header("ab"))
    file = tmp_path / "copy.zip"
    store.backup(file)
    return file


@pytest.fixture
def elsewhere(tmp_path: Path) -> Paths:
    root = tmp_path / "elsewhere"
    return Paths(root / "data", root / "config", root / "cache", root / "state")


def rewritten(backup: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A zip with the members of ``backup`` after ``change``."""
    with zipfile.ZipFile(backup) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    file = backup.with_name("changed.zip")
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def with_manifest(archive: dict[str, bytes], /, **changes: Any) -> None:
    archive["manifest.json"] = json.dumps(json.loads(archive["manifest.json"]) | changes).encode()


def test_a_backup_restored_elsewhere_has_every_word_and_state(
    backup: Path, elsewhere: Paths, dump: StateDump, make_header: Callable[..., SnapshotHeader]
) -> None:
    assert restore_backup(backup, elsewhere) is None
    with Store.open(elsewhere) as store:
        session = store.session("notes")
        (message,) = store.path(session.id)
        assert message.content == "kept words"
        assert store.feeds(message.id, FP) == [Feed("prefill", (1, 2), "ab")]
        assert store.load_snapshot(session.id, "ab", header=make_header("ab")) == dump
        assert len(store.search("kept")) == 1
        assert store.verify() == []
    names = sorted(path.name for path in elsewhere.data.iterdir())
    assert names == ["backups", "infinichat.db", "locks", "snapshots"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_backup_and_what_it_restores_belong_to_their_owner_alone(backup: Path, elsewhere: Paths) -> None:
    assert backup.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in backup.parent.glob("*copy*")) == ["copy.zip"]
    restore_backup(backup, elsewhere)
    for path in (elsewhere.database, elsewhere.snapshots / "ab.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert elsewhere.snapshots.stat().st_mode & 0o777 == 0o700


def test_a_backup_never_overwrites_a_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "precious.zip"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        store.backup(file)
    with pytest.raises(UsageError, match="no folder"):
        store.backup(tmp_path / "nowhere" / "copy.zip")
    assert file.read_text(encoding="utf-8") == "precious"


def test_a_backup_that_does_not_fit_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()

    def full(self: zipfile.ZipFile, *arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(DiskError, match="The disk is full"):
        store.backup(target / "copy.zip")
    assert list(target.iterdir()) == []
    assert list(store.paths.backups.iterdir()) == []


def test_a_restore_over_existing_sessions_needs_consent_and_puts_them_aside(
    store: Store, backup: Path, dump: StateDump, make_header: Callable[..., SnapshotHeader]
) -> None:
    session = store.session("notes")
    store.append(session.id, role="user", content="said later", reason="complete", chain="c")
    store.close()
    with pytest.raises(UsageError, match="exists already. Allow it to be replaced"):
        restore_backup(backup, store.paths)
    aside = restore_backup(backup, store.paths, replace=True)
    with Store.open(store.paths) as restored:
        assert [m.content for m in restored.path(session.id)] == ["kept words"]
        assert restored.load_snapshot(session.id, "ab", header=make_header("ab")) == dump
        assert restored.verify() == []
    assert aside is not None
    old = Paths(aside, aside, aside, aside)
    with Store.open(old) as before:
        assert [m.content for m in before.path(session.id)] == ["kept words", "said later"]
        assert before.load_snapshot(session.id, "ab", header=make_header("ab")) == dump


def test_a_restore_while_infinichat_runs_is_refused(store: Store, backup: Path) -> None:
    with pytest.raises(DatabaseError, match="Close every infinichat"):
        restore_backup(backup, store.paths, replace=True)
    assert [s.name for s in store.sessions()] == ["notes"]
    assert store.verify() == []


def test_a_damaged_database_can_be_replaced_by_a_backup(store: Store, backup: Path) -> None:
    store.close()
    store.paths.database.write_bytes(b"rubbish" * 10_000)
    aside = restore_backup(backup, store.paths, replace=True)
    assert aside is not None
    assert (aside / "infinichat.db").read_bytes().startswith(b"rubbish")
    with Store.open(store.paths) as restored:
        assert [s.name for s in restored.sessions()] == ["notes"]


HARMFUL: dict[str, Callable[[dict[str, bytes]], None]] = {
    "a flipped byte": lambda m: m.update({"infinichat.db": m["infinichat.db"][:-1] + b"\xff"}),
    "a shorter member": lambda m: m.update({"snapshots/ab.safetensors": b""}),
    "a longer member": lambda m: m.update({"infinichat.db": m["infinichat.db"] + b"x" * 9}),
    "a missing member": lambda m: m.__delitem__("snapshots/ab.safetensors") or None,
    "no manifest": lambda m: m.__delitem__("manifest.json") or None,
    "no JSON": lambda m: m.update({"manifest.json": b"{"}),
    "deep JSON": lambda m: m.update({"manifest.json": b"[" * 200_000}),
    "another format": lambda m: with_manifest(m, format="zip of holiday pictures"),
    "a newer version": lambda m: with_manifest(m, version=2),
    "a list": lambda m: with_manifest(m, members=[]),
    "a path upwards": lambda m: with_manifest(
        m, members={"infinichat.db": {"bytes": 0, "sha256": ""}, "../evil": {"bytes": 1, "sha256": ""}}
    ),
    "an absolute path": lambda m: with_manifest(
        m, members={"infinichat.db": {"bytes": 0, "sha256": ""}, "/etc/evil": {"bytes": 1, "sha256": ""}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_a_backup_that_is_not_whole_changes_nothing(backup: Path, elsewhere: Paths, name: str) -> None:
    changed = rewritten(backup, HARMFUL[name])
    with pytest.raises(StoreError, match="not a whole infinichat backup|Update infinichat"):
        restore_backup(changed, elsewhere)
    assert [p.name for p in elsewhere.data.iterdir()] == ["backups"]
    assert not (elsewhere.data.parent / "evil").exists()


def test_a_backup_cut_off_anywhere_changes_nothing(backup: Path, elsewhere: Paths) -> None:
    whole = backup.read_bytes()
    for size in range(0, len(whole), len(whole) // 40):
        backup.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            restore_backup(backup, elsewhere)
    assert not elsewhere.database.exists()


def test_a_backup_of_a_newer_infinichat_is_refused(backup: Path, elsewhere: Paths, tmp_path: Path) -> None:
    import contextlib
    import hashlib
    import sqlite3

    def newer(members: dict[str, bytes]) -> None:
        file = tmp_path / "newer.db"
        file.write_bytes(members["infinichat.db"])
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA user_version = 99")
        data = file.read_bytes()
        members["infinichat.db"] = data
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        with_manifest(members, members={"infinichat.db": entry})

    with pytest.raises(DatabaseError, match="newer infinichat: format 99"):
        restore_backup(rewritten(backup, newer), elsewhere)
    assert not elsewhere.database.exists()


def test_a_member_that_unpacks_to_more_than_it_said_is_cut_off(backup: Path, elsewhere: Paths) -> None:
    def bomb(members: dict[str, bytes]) -> None:
        members["infinichat.db"] = bytes(50_000_000)

    changed = rewritten(backup, bomb)
    with pytest.raises(StoreError, match=r"infinichat\.db is damaged"):
        restore_backup(changed, elsewhere)
    assert not list(elsewhere.data.rglob("*.db"))


def test_a_file_that_is_missing_or_no_zip_is_a_sentence(elsewhere: Paths, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        restore_backup(tmp_path / "none.zip", elsewhere)
    other = tmp_path / "other.zip"
    other.write_bytes(io.BytesIO(b"PK\x03\x04 not really").getvalue())
    with pytest.raises(InfiniChatError, match="not a whole infinichat backup"):
        restore_backup(other, elsewhere)
