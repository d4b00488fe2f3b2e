"""Everything about conversations in one zip file, and the way back.

    manifest.json                 format, version, time, and size and SHA-256 of every other member
    infinichat.db                 a compact copy of the database at one moment
    snapshots/<chain>.safetensors the states that the copy knows

Restoring checks every name, size and hash before it touches anything, puts the old data aside instead of
deleting it, and needs infinichat not to be running.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from infinichat.errors import DatabaseError, DiskError, StoreError, UsageError
from infinichat.paths import Paths
from infinichat.store.database import Database, connect, sentences
from infinichat.store.files import disk_errors, fsync_folder, private_folder
from infinichat.store.migrations import checked_version, copy_database

FORMAT = "infinichat-backup"
VERSION = 1
_DATABASE = "infinichat.db"
_MANIFEST = "manifest.json"
_MEMBER = re.compile(r"infinichat\.db|snapshots/[0-9A-Za-z_-]{1,128}\.safetensors")
_MAX_MANIFEST = 64 * 1024 * 1024
_PIECE = 1024 * 1024


def write_backup(database: Database, paths: Paths, file: Path) -> None:
    """Write everything to ``file``, which must not exist. Raises ``UsageError`` or ``DiskError``."""
    if file.exists():
        raise UsageError(f"{file} exists already; choose another name, so that no backup is overwritten.")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {file.absolute().parent}; create it, or choose another place.")
    private_folder(paths.backups)
    with _scratch(paths.backups) as scratch:
        copy = scratch / _DATABASE
        copy_database(database, copy)
        members: dict[str, dict[str, Any]] = {}
        with (
            _beside(file) as raw,
            disk_errors(file, doing="writing"),
            # Words shrink to a third at the fastest level, states not at all.
            zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            members[_DATABASE] = _add(archive, _DATABASE, copy)
            for chain in _chains(copy):
                name = f"snapshots/{chain}.safetensors"
                # One that was thinned since the copy was made is rebuilt from the words after a restore.
                with contextlib.suppress(FileNotFoundError):
                    members[name] = _add(
                        archive, zipfile.ZipInfo(name), paths.snapshots / f"{chain}.safetensors"
                    )
            manifest = {"format": FORMAT, "version": VERSION, "created": time.time(), "members": members}
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))


def restore_backup(file: Path, paths: Paths, *, replace: bool = False) -> Path | None:
    """Put a backup in place; returns the folder that the old data was moved to, if there was any.

    Raises ``UsageError`` when there are conversations already and ``replace`` is not given, ``StoreError``
    when the file is no whole backup or infinichat is running. Then nothing has changed.
    """
    private_folder(paths.data)
    private_folder(paths.backups)
    if paths.database.exists() and paths.database.stat().st_size and not replace:
        raise UsageError(
            f"{paths.database} exists already. Allow it to be replaced: "
            f"the old one is kept in {paths.backups}."
        )
    with _scratch(paths.data) as scratch:
        _extract(file, scratch)
        checked_version(scratch / _DATABASE)
        _check_database(scratch / _DATABASE, file)
        with disk_errors(paths.data, doing="restoring into"):
            aside = _put_aside(paths)
            os.replace(scratch / "snapshots", paths.snapshots)
            os.replace(scratch / _DATABASE, paths.database)
            fsync_folder(paths.data)
    return aside


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A private folder on the same disk, gone afterwards."""
    with disk_errors(folder, doing="writing to"):
        scratch = Path(tempfile.mkdtemp(prefix=".scratch-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``file`` when the block ends well. The user's folder keeps its mode."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with disk_errors(file, doing="writing"):
        try:
            descriptor = os.open(
                partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600
            )
            with os.fdopen(descriptor, "w+b") as raw:
                yield raw
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(partial, file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        fsync_folder(file.absolute().parent)


def _add(archive: zipfile.ZipFile, member: str | zipfile.ZipInfo, source: Path) -> dict[str, Any]:
    """Copy a file into the archive; a member given as ``ZipInfo`` is stored as it is."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, archive.open(member, "w", force_zip64=True) as writer:
        while piece := reader.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            writer.write(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _chains(copy: Path) -> list[str]:
    with sentences(copy), contextlib.closing(connect(copy)) as connection:
        return [row["chain"] for row in connection.execute("SELECT chain FROM snapshots ORDER BY chain")]


def _extract(file: Path, scratch: Path) -> None:
    """Unpack into ``scratch`` what the manifest lists, comparing sizes and hashes."""
    (scratch / "snapshots").mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(file) as archive:
            members = _manifest(archive, file)
            for name, entry in members.items():
                _extract_member(archive, name, entry, target=scratch / name, file=file)
    except FileNotFoundError as exc:
        raise UsageError(f"There is no file {file}; give one that `infinichat backup` wrote.") from exc
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as exc:
        raise _not_whole(file, str(exc)) from exc
    except OSError as exc:
        raise DiskError(
            f"{file} could not be unpacked: {exc.strerror or exc}. Check the disk's free space."
        ) from exc


def _manifest(archive: zipfile.ZipFile, file: Path) -> dict[str, dict[str, Any]]:
    if archive.getinfo(_MANIFEST).file_size > _MAX_MANIFEST:
        raise _not_whole(file, "its list of contents is too long")
    try:
        manifest = json.loads(archive.read(_MANIFEST))
        version, members = manifest["version"], manifest["members"]
        sound = manifest["format"] == FORMAT and _DATABASE in members
        sound = sound and all(
            _MEMBER.fullmatch(name) and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for name, entry in members.items()
        )
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as exc:
        raise _not_whole(file, "its list of contents cannot be read") from exc
    if not sound:
        raise _not_whole(file, "its list of contents is not infinichat's")
    if version != VERSION:
        raise StoreError(
            f"{file} has the backup format {version!r}, this infinichat reads {VERSION}. Update infinichat."
        )
    return dict(members)


def _extract_member(
    archive: zipfile.ZipFile, name: str, entry: dict[str, Any], *, target: Path, file: Path
) -> None:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(descriptor, "wb") as writer, archive.open(name) as reader:
        # Never more than was announced: a member cannot fill the disk.
        while piece := reader.read(min(_PIECE, entry["bytes"] - size + 1)):
            digest.update(piece)
            size += len(piece)
            if size > entry["bytes"]:
                break
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    if size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
        raise _not_whole(file, f"{name} is damaged")


def _check_database(path: Path, file: Path) -> None:
    with sentences(path), contextlib.closing(connect(path)) as connection:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _not_whole(file, f"the database in it is damaged ({found})")


def _put_aside(paths: Paths) -> Path | None:
    """Move the present database and snapshots into a new folder under backups."""
    if not paths.database.exists():
        shutil.rmtree(paths.snapshots, ignore_errors=True)
        return None
    _fold_log(paths.database)
    aside = paths.backups / time.strftime(f"replaced-%Y%m%d-%H%M%S-{secrets.token_hex(3)}")
    aside.mkdir(mode=0o700)
    if paths.snapshots.exists():
        os.replace(paths.snapshots, aside / "snapshots")
    os.replace(paths.database, aside / _DATABASE)
    return aside


def _fold_log(path: Path) -> None:
    """Write the log into the database file, which works only while no other process has it open."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
            mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except sqlite3.DatabaseError as exc:
        if "locked" not in str(exc):
            return  # a damaged database may be replaced: that is what the backup is for
        mode = "locked"
    if mode != "delete":
        raise DatabaseError(
            f"{path} is in use. Close every infinichat, then restore again; nothing was changed."
        )


def _not_whole(file: Path, why: str) -> StoreError:
    return StoreError(
        f"{file} is not a whole infinichat backup: {why}. Nothing was changed; use another backup."
    )
