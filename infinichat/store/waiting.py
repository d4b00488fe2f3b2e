"""What was sent and has no answer yet: messages that wait for a model to load or for the answer before them.

A message is here from the moment at which it is sent until its answer has come to an end. Who sent it is
kept as well: what a living process sent it will say itself; what a dead one sent becomes part of the
transcript when the session is recovered.
"""

from __future__ import annotations

import json
import sqlite3
import time

from infinichat.store import transcripts
from infinichat.store.locks import is_alive, this_process
from infinichat.store.records import Waiting


def put(connection: sqlite3.Connection, session: int, text: str, *, instead_of: int | None) -> int:
    """Keep a message that this process has sent; returns its number."""
    values = (session, transcripts.storable(text), instead_of, json.dumps(this_process()), time.time())
    number = connection.execute(
        "INSERT INTO waiting (session, text, instead_of, sender, created) VALUES (?, ?, ?, ?, ?)", values
    ).lastrowid
    assert number is not None
    return number


def said(connection: sqlite3.Connection, number: int, message: int) -> None:
    """The message is in the transcript now, as this one. (It may have been taken back meanwhile.)"""
    connection.execute("UPDATE waiting SET message = ? WHERE key = ?", (message, number))


def left_behind(connection: sqlite3.Connection, session: int) -> list[Waiting]:
    """What processes that have ended sent, oldest first."""
    rows = connection.execute(
        "SELECT w.key, w.text, w.sender, s.id AS said, i.id AS instead_of FROM waiting w "
        "LEFT JOIN messages s ON s.key = w.message LEFT JOIN messages i ON i.key = w.instead_of "
        "WHERE w.session = ? ORDER BY w.key",
        (session,),
    )
    return [
        Waiting(number=row["key"], text=row["text"], said=row["said"], instead_of=row["instead_of"])
        for row in rows
        if not is_alive(json.loads(row["sender"]))
    ]


def clear(connection: sqlite3.Connection, number: int) -> None:
    """Answered, failed, or taken back."""
    connection.execute("DELETE FROM waiting WHERE key = ?", (number,))
