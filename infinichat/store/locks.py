"""One process at a time in a session: a lock file per session that holds the pid of its owner.

The lock is the operating system's (``flock``, on Windows a locked byte): it ends with the process, however
that ends, so a file that a dead process left is simply taken over. Where the file system knows no locks,
the record in the file decides: its owner must be alive, and must be the process that wrote it (a pid is
given out again; the time at which a process started tells the two apart).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from infinichat.errors import SessionLockedError
from infinichat.store.files import disk_errors, private_folder

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_SETTLE_S = 0.05


class SessionLock:
    """Held from construction to ``release``; also a context manager. ``recovered`` is true when the process
    that had the session before died without releasing it."""

    def __init__(self, folder: Path, session_id: str, *, name: str) -> None:
        """Raises ``SessionLockedError`` with the owner's pid, or ``DiskError``."""
        self.recovered = False
        self._descriptor: int | None = None
        self._path = folder / f"{session_id}.lock"
        self._name = name
        self.acquire()

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock again after ``release``; does nothing while it is held."""
        if self.held:
            return
        private_folder(self._path.parent)
        with disk_errors(self._path, doing="locking"):
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o600)
            try:
                before = _read_record(descriptor)
                if not _try_lock(descriptor, before):
                    raise self._refusal(before)
                _write_record(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self.recovered = bool(before)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the session back. Releasing twice is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # The file stays: removing it would let a third process lock a new file beside a second one's old one.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)

    def _refusal(self, record: dict[str, Any]) -> SessionLockedError:
        pid = record.get("pid", "unknown")
        owner = "this process" if pid == os.getpid() else f"process {pid}"
        host = record.get("host", "")
        where = f" on {host}" if host and host != socket.gethostname() else ""
        return SessionLockedError(
            f"The session {self._name!r} is open in {owner}{where}. Close it there, or use another session; "
            "all other sessions stay usable."
        )

    def __enter__(self) -> SessionLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def this_process() -> dict[str, Any]:
    """What tells this process from every other one, also from a later one with its pid."""
    return {"pid": os.getpid(), "start": process_start(os.getpid()), "host": socket.gethostname()}


def process_start(pid: int) -> str:
    """When the process started, as an opaque word; empty where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    # The name of the program, in parentheses, may hold blanks and parentheses: count from the last one.
    return f"{boot}:{stat.rpartition(')')[2].split()[19]}"


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the process that wrote this record still runs. One that cannot be asked counts as alive."""
    pid = record.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    if record.get("host") != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it belongs to someone else, and it runs
    now = process_start(pid)
    return not now or not record.get("start") or now == record["start"]


def _read_record(descriptor: int) -> dict[str, Any]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        record = json.loads(os.read(descriptor, 4096) or b"{}")
    except ValueError:
        return {"pid": None}  # half a record: its writer died while it wrote
    return record if isinstance(record, dict) else {"pid": None}


def _write_record(descriptor: int) -> str:
    token = secrets.token_hex(8)
    record = {**this_process(), "token": token}
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, json.dumps(record).encode("utf-8"))
    return token


def _try_lock(descriptor: int, record: dict[str, Any]) -> bool:
    supported, locked = _system_lock(descriptor)
    if supported:
        return locked
    if is_alive(record):
        return False
    # Without system locks two processes may find the same dead owner at once: the later record wins.
    token = _write_record(descriptor)
    time.sleep(_SETTLE_S)
    return bool(_read_record(descriptor).get("token") == token)


if sys.platform == "win32":

    def _system_lock(descriptor: int) -> tuple[bool, bool]:
        """(whether the system can lock this file, whether we have the lock now)."""
        import msvcrt

        # A byte far behind the record, so that others can read whose lock it is.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as exc:
            return exc.errno not in _UNSUPPORTED - {errno.EINVAL}, False
        return True, True

else:

    def _system_lock(descriptor: int) -> tuple[bool, bool]:
        """(whether the system can lock this file, whether we have the lock now)."""
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, False
        except OSError as exc:
            if exc.errno in _UNSUPPORTED:
                return False, False
            raise
        return True, True
