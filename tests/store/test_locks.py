from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infinichat.errors import SessionLockedError
from infinichat.store import SessionLock, SessionRecord, Store, locks
from infinichat.store.locks import is_alive, process_start

HOLDER = """
import sys
from pathlib import Path
from infinichat.store.locks import SessionLock
lock = SessionLock(Path(sys.argv[1]), sys.argv[2], name="notes")
print("held", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
"""


@contextmanager
def other_process(store: Store, session: SessionRecord) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.paths.locks), session.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(locks.__file__).parents[2],
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_a_second_process_is_refused_with_the_first_ones_pid(store: Store, session: SessionRecord) -> None:
    other = store.create_session("other")
    with other_process(store, session) as child:
        with pytest.raises(
            SessionLockedError, match=rf"'notes' is open in process {child.pid}\. Close it there"
        ):
            store.lock(session.id)
        with store.lock(other.id) as lock:
            assert lock.held
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "released\n"
        with store.lock(session.id) as lock:
            assert not lock.recovered


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_the_lock_of_a_killed_process_is_taken_over(store: Store, session: SessionRecord) -> None:
    with other_process(store, session) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        with store.lock(session.id) as lock:
            assert lock.recovered


def test_the_same_process_is_refused_too(store: Store, session: SessionRecord) -> None:
    with store.lock(session.id), pytest.raises(SessionLockedError, match="open in this process"):
        store.lock(session.id)
    store.lock(session.id).release()


def test_a_lock_can_be_released_and_taken_again(store: Store, session: SessionRecord) -> None:
    lock = store.lock(session.id)
    assert lock.held
    lock.acquire()
    lock.release()
    lock.release()
    assert not lock.held
    with lock:
        assert lock.held
    assert not lock.held


@pytest.fixture
def without_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_system_lock", lambda descriptor: (False, False))


def leave_record(store: Store, session: SessionRecord, **record: object) -> None:
    (store.paths.locks / f"{session.id}.lock").write_text(json.dumps(record), encoding="utf-8")


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.usefixtures("without_system_locks")
class TestWhereTheFileSystemKnowsNoLocks:
    def test_a_living_owner_keeps_the_session(self, store: Store, session: SessionRecord) -> None:
        with store.lock(session.id), pytest.raises(SessionLockedError, match="open in this process"):
            store.lock(session.id)
        with store.lock(session.id) as lock:
            assert not lock.recovered

    def test_a_dead_owner_loses_it(self, store: Store, session: SessionRecord) -> None:
        leave_record(store, session, pid=dead_pid(), start="", host=socket.gethostname())
        with store.lock(session.id) as lock:
            assert lock.recovered

    @pytest.mark.skipif(
        not process_start(os.getpid()), reason="this system does not say when a process started"
    )
    def test_a_pid_that_was_given_out_again_is_not_the_owner(
        self, store: Store, session: SessionRecord
    ) -> None:
        leave_record(store, session, pid=os.getppid(), start="another boot:1", host=socket.gethostname())
        with store.lock(session.id) as lock:
            assert lock.recovered
        leave_record(
            store, session, pid=os.getppid(), start=process_start(os.getppid()), host=socket.gethostname()
        )
        with pytest.raises(SessionLockedError, match=f"process {os.getppid()}"):
            store.lock(session.id)

    def test_an_owner_on_another_machine_cannot_be_asked_and_keeps_it(
        self, store: Store, session: SessionRecord
    ) -> None:
        leave_record(store, session, pid=1, start="", host="elsewhere.example")
        with pytest.raises(SessionLockedError, match=r"process 1 on elsewhere\.example"):
            store.lock(session.id)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": -1}', "\xff"])
    def test_half_a_record_is_a_dead_owners(self, store: Store, session: SessionRecord, content: str) -> None:
        (store.paths.locks / f"{session.id}.lock").write_text(content, encoding="latin-1")
        with store.lock(session.id) as lock:
            assert lock.held


def test_a_process_of_another_user_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_ours(pid: int, signum: int) -> None:
        raise PermissionError(errno.EPERM, "not ours")

    monkeypatch.setattr("os.kill", not_ours)
    assert is_alive({"pid": os.getpid(), "host": socket.gethostname(), "start": process_start(os.getpid())})


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_lock_files_belong_to_their_owner_alone(tmp_path: Path) -> None:
    with SessionLock(tmp_path / "locks", "abc", name="notes"):
        assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
        text = (tmp_path / "locks" / "abc.lock").read_text(encoding="utf-8")
        assert (tmp_path / "locks" / "abc.lock").stat().st_mode & 0o777 == 0o600
        assert re.search(rf'"pid": {os.getpid()}\b', text)
