"""One session as text: JSON that can be imported again, or Markdown to read.

    {"format": "infinichat-session", "version": 1,
     "session": {"name", "title", "system", "model", "created", "tip"},
     "messages": [{"id", "parent", "role", "content", "reason", "created", "title", "model", "chain"}, ...]}

All branches are in it, parents before children. An import trusts nothing: every field is checked, ids are
derived again from the words (so an export that was edited by hand becomes a sound tree of its own), and
nothing in the text is ever executed or used as a path.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, overload

from infinichat.errors import UsageError
from infinichat.messages import FinishReason, Message, Role
from infinichat.store import sessions, transcripts

FORMAT = "infinichat-session"
VERSION = 1
MAX_TEXT = 1_000_000_000
MAX_MESSAGES = 1_000_000
MAX_CONTENT = 100_000_000
MAX_FIELD = 100_000


@dataclass(frozen=True, slots=True)
class ImportedMessage:
    id: str
    parent: str | None
    role: Role
    content: str
    reason: FinishReason
    created: float
    title: str | None
    model: str | None
    chain: str


@dataclass(frozen=True, slots=True)
class ImportedSession:
    name: str
    title: str | None
    system: str | None
    model: str | None
    created: float
    tip: str | None
    messages: tuple[ImportedMessage, ...]


def to_json(connection: sqlite3.Connection, session: int) -> str:
    """The whole tree of a session as JSON."""
    record = sessions.by_key(connection, session)
    rows = connection.execute(
        "SELECT m.id, p.id AS parent, m.role, m.content, m.reason, members.added AS created, m.title, "
        "m.model, m.chain FROM members JOIN messages m ON m.key = members.message "
        "LEFT JOIN messages p ON p.key = m.parent WHERE members.session = ? ORDER BY members.position",
        (session,),
    )
    document = {
        "format": FORMAT,
        "version": VERSION,
        "session": {
            "name": record.name,
            "title": record.title,
            "system": record.system,
            "model": record.model,
            "created": record.created,
            "tip": record.tip,
        },
        "messages": [dict(row) for row in rows],
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


_HEADINGS = {"user": "You", "assistant": "Answer", "system": "System", "document": "Document"}


def to_markdown(connection: sqlite3.Connection, session: int) -> str:
    """The selected branch as Markdown; words stand as they were said."""
    record = sessions.by_key(connection, session)
    tip: int | None = connection.execute("SELECT tip FROM sessions WHERE key = ?", (session,)).fetchone()[0]
    parts = [f"# {_one_line(record.title or record.name)}"]
    if record.system:
        parts.append(f"> {record.system.replace(chr(10), chr(10) + '> ')}")
    for message in transcripts.path(connection, session, tip):
        parts += [_heading(message), _body(message)]
    return "\n\n".join(parts) + "\n"


def _heading(message: Message) -> str:
    heading = _HEADINGS[message.role]
    if message.title:
        heading += f": {_one_line(message.title)}"
    if message.reason in ("stopped", "interrupted", "error", "length"):
        heading += f" ({message.reason})"
    return f"## {heading}"


def _body(message: Message) -> str:
    if message.role != "document":
        return message.content
    # A document is quoted: its own headings must not look like turns. The fence is longer than any inside it.
    longest = max((len(run) for run in re.findall("`{3,}", message.content)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{message.content}\n{fence}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def parse(text: str) -> ImportedSession:
    """Check all of an export before anything is stored. Raises ``UsageError`` naming the first fault."""
    if len(text) > MAX_TEXT:
        _refuse(f"it has {len(text)} characters, at most {MAX_TEXT} are read")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        _refuse("it is nested too deeply")
    except ValueError as exc:
        _refuse(f"it is not JSON ({exc})")
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse(f'it has no "format": "{FORMAT}"')
    version = document.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        _refuse(f"its version is {version!r}, this infinichat reads versions 1 to {VERSION}")
    session, entries = document.get("session"), document.get("messages")
    if not isinstance(session, dict) or not isinstance(entries, list):
        _refuse("it has no session or no messages")
    if len(entries) > MAX_MESSAGES:
        _refuse(f"it has {len(entries)} messages, at most {MAX_MESSAGES} are read")
    messages = _messages(entries)
    tip = _text(session, "tip", "the session", optional=True)
    if tip is not None and tip not in {message.id for message in messages}:
        _refuse(f"its tip {tip[:20]!r} is none of its messages")
    name = sessions.checked_name(_text(session, "name", "the session"))
    return ImportedSession(
        name=name,
        title=_text(session, "title", "the session", optional=True),
        system=_text(session, "system", "the session", optional=True),
        model=_text(session, "model", "the session", optional=True),
        created=_time(session, "the session"),
        tip=tip,
        messages=messages,
    )


def insert(connection: sqlite3.Connection, parsed: ImportedSession) -> int:
    """Store a parsed session under its name, or the next free one, and return its key."""
    session = sessions.create(
        connection,
        sessions.free_name(connection, parsed.name),
        title=parsed.title,
        system=parsed.system,
        model=parsed.model,
        created=parsed.created,
    )
    keys: dict[str, int] = {}
    for message in parsed.messages:
        key = transcripts.add_message(
            connection,
            parent=None if message.parent is None else keys[message.parent],
            role=message.role,
            content=message.content,
            reason=message.reason,
            chain=message.chain,
            title=message.title,
            model=message.model,
            created=message.created,
        )
        transcripts.join(connection, session, key, added=message.created)
        keys[message.id] = key
    transcripts.move_tip(connection, session, None if parsed.tip is None else keys[parsed.tip])
    return session


def _messages(entries: list[Any]) -> tuple[ImportedMessage, ...]:
    messages: list[ImportedMessage] = []
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        where = f"message {number}"
        if not isinstance(entry, dict):
            _refuse(f"{where} is no object")
        identity = _text(entry, "id", where)
        parent = _text(entry, "parent", where, optional=True)
        if identity in seen:
            _refuse(f"{where} has the same id as one before it")
        if parent is not None and parent not in seen:
            _refuse(f"the parent of {where} does not come before it")
        seen.add(identity)
        role, reason = _text(entry, "role", where), _text(entry, "reason", where)
        if role not in transcripts.ROLES or reason not in transcripts.REASONS:
            _refuse(
                f"{where} has the role {role[:20]!r} and the reason {reason[:20]!r}, one of which is unknown"
            )
        messages.append(
            ImportedMessage(
                id=identity,
                parent=parent,
                role=cast(Role, role),
                content=_text(entry, "content", where, most=MAX_CONTENT),
                reason=cast(FinishReason, reason),
                created=_time(entry, where),
                title=_text(entry, "title", where, optional=True),
                model=_text(entry, "model", where, optional=True),
                chain=_text(entry, "chain", where),
            )
        )
    return tuple(messages)


@overload
def _text(entry: dict[str, Any], field: str, where: str, *, most: int = ...) -> str: ...


@overload
def _text(
    entry: dict[str, Any], field: str, where: str, *, optional: Literal[True], most: int = ...
) -> str | None: ...


def _text(
    entry: dict[str, Any], field: str, where: str, *, optional: bool = False, most: int = MAX_FIELD
) -> str | None:
    value = entry.get(field)
    if value is None and optional:
        return None
    if not isinstance(value, str):
        _refuse(f'"{field}" of {where} is {type(value).__name__}, expected text')
    if len(value) > most:
        _refuse(f'"{field}" of {where} has {len(value)} characters, at most {most} are read')
    return value


def _time(entry: dict[str, Any], where: str) -> float:
    value = entry.get("created", time.time())
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(f'"created" of {where} is no time in seconds')
    return float(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _refuse(what: str) -> NoReturn:
    raise UsageError(f"This is not an export that can be imported: {what}. Nothing was imported.")
