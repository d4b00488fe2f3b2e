"""Messages that were sent and not answered: what a dead process left is found, what a living one has is its
own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from infinichat.errors import UsageError
from infinichat.paths import Paths
from infinichat.store import Store

SEND = """
import sys
from pathlib import Path
from infinichat.paths import Paths
from infinichat.store import Store
store = Store.open(Paths(*map(Path, sys.argv[1:5])))
for text in sys.argv[6:]:
    store.put_waiting(sys.argv[5], text)
import os
os.kill(os.getpid(), 9)
"""


def send_and_die(paths: Paths, session: str, *texts: str) -> None:
    folders = (paths.data, paths.config, paths.cache, paths.state)
    done = subprocess.run([sys.executable, "-c", SEND, *map(str, folders), session, *texts], check=False)
    assert done.returncode == -9


def test_what_a_dead_process_sent_is_left_in_order_and_what_this_one_sent_is_not(
    store: Store, paths: Paths
) -> None:
    session = store.create_session().id
    store.put_waiting(session, "mine")
    send_and_die(paths, session, "one", "two")
    assert [(w.text, w.said) for w in store.left_waiting(session)] == [("one", None), ("two", None)]
    assert store.left_waiting(store.create_session().id) == []
    for waiting in store.left_waiting(session):
        store.clear_waiting(waiting.number)
        store.clear_waiting(waiting.number)
    assert store.left_waiting(session) == []


def test_saying_it_and_remembering_that_it_was_said_are_one_step(store: Store, paths: Paths) -> None:
    session = store.create_session().id
    send_and_die(paths, session, "one")
    [waiting] = store.left_waiting(session)
    message = store.append(
        session, role="user", content="one", reason="complete", chain="", waited=waiting.number
    )
    assert [w.said for w in store.left_waiting(session)] == [message.id]


def test_a_later_process_with_the_same_pid_is_another_one(store: Store, paths: Paths) -> None:
    session = store.create_session().id
    number = store.put_waiting(session, "mine")
    with sqlite3.connect(paths.database) as connection:
        [sender] = connection.execute("SELECT sender FROM waiting").fetchone()
        other = {**json.loads(sender), "start": "another boot:1"}
        connection.execute("UPDATE waiting SET sender = ?", (json.dumps(other),))
    assert [w.number for w in store.left_waiting(session)] == [number]


def test_what_takes_the_place_of_a_message_must_name_one_of_the_session(store: Store) -> None:
    session, other = store.create_session().id, store.create_session().id
    message = store.append(other, role="user", content="there", reason="complete", chain="")
    with pytest.raises(UsageError):
        store.put_waiting(session, "here", instead_of=message.id)


def test_a_session_that_is_removed_for_good_takes_its_waiting_messages_along(
    store: Store, paths: Paths
) -> None:
    session = store.create_session().id
    send_and_die(paths, session, "one")
    store.delete(session)
    assert store.purge_deleted(older_than_s=-1) == 1
    with sqlite3.connect(paths.database) as connection:
        assert connection.execute("SELECT count(*) FROM waiting").fetchone() == (0,)
