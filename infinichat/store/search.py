"""Full-text search over what users and models said and over the documents that were read.

A message is indexed in passages of 16,384 characters, so that a hit in a book of a million characters costs
a look at one passage and not at the book. The passages of message ``key`` have the rowids ``key << 20``
onwards. Hits come newest first: every hit holds all the words asked for, and the newest is found without
ranking the rest.

What a user types is never FTS5 syntax: words are quoted one by one, "quoted words" are a phrase, and the
last word, from its second letter on, also matches as a beginning (``bis`` finds Biscuit). Chinese and
Japanese are written without blanks; there every character is indexed as a word of its own, and a word of
several is searched as a phrase.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
from collections.abc import Iterator

from infinichat.store.records import SearchHit

PASSAGE = 16_384
OVERLAP = 256  # a phrase that crosses the end of a passage is whole in the next one
_SHIFT = 20
_SNIPPET_TOKENS = 24
_SNIPPET_CHARS = 240
_MAX_TERMS = 32
_CJK = re.compile("([\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f])")
_BREAK = "\u200b"  # zero-width space: separates words for the index, and is taken out of what is shown
_TERM = re.compile(r'"([^"]*)"|([^\s"]+)')


def index_message(
    connection: sqlite3.Connection, key: int, *, role: str, title: str | None, content: str
) -> None:
    """Add the words of one message. System messages are instructions, not conversation: they are left out."""
    if role == "system":
        return
    for number, passage in enumerate(passages(content if title is None else f"{title}\n{content}")):
        connection.execute(
            "INSERT INTO words(rowid, text) VALUES (?, ?)", ((key << _SHIFT) + number, _spread(passage))
        )


def unindex_message(connection: sqlite3.Connection, key: int) -> None:
    """Take the words of one message out of the index."""
    connection.execute(
        "DELETE FROM words WHERE rowid BETWEEN ? AND ?", (key << _SHIFT, (key << _SHIFT) + (1 << _SHIFT) - 1)
    )


def passages(text: str) -> Iterator[str]:
    """``text`` in overlapping pieces that end between words where there is a blank to end at."""
    start = 0
    while len(text) - start > PASSAGE:
        end = start + PASSAGE
        blank = max(text.rfind(" ", end - OVERLAP, end), text.rfind("\n", end - OVERLAP, end))
        end = blank if blank > 0 else end
        yield text[start:end]
        start = end - OVERLAP
    yield text[start:]


def match_expression(query: str) -> str | None:
    """The FTS5 expression for what a user typed, or ``None`` when it holds no letter and no digit."""
    parts = []
    for found in list(_TERM.finditer(query.replace("\0", " ")))[:_MAX_TERMS]:
        phrase, word = found.group(1), found.group(2)
        term = phrase if word is None else word
        if not any(character.isalnum() for character in term):
            continue
        # The last word may still be being typed: it is also a beginning. One letter begins too much.
        beginning = "*" if word is not None and len(word) > 1 and found.end() == len(query) else ""
        parts.append(f'"{_spread(term)}"{beginning}')
    return " ".join(parts) or None


def search(
    connection: sqlite3.Connection, query: str, *, session_id: str | None = None, limit: int = 50
) -> list[SearchHit]:
    """Messages of sessions that are not deleted (or of this session) that hold every word, newest first."""
    expression = match_expression(query)
    if expression is None or limit <= 0:
        return []
    found: list[sqlite3.Row] = []
    statement = ROWS if session_id is None else ROWS_IN_SESSION
    rows = connection.execute(statement, {"match": expression, "session": session_id})
    previous = None
    for row in rows:
        if row["key"] == previous:
            continue
        previous = row["key"]
        found.append(row)
        if len(found) == limit:
            break
    return _hits(connection, found, expression)


# CROSS JOIN keeps the index walk outside: newest passage first, and it ends when there are enough hits. A
# message that several sessions share is reported for the one that was used last.
ROWS = """
    SELECT words.rowid AS passage, m.key AS key, m.id AS id, m.role AS role, m.title AS title,
        (SELECT added FROM members WHERE session = s.key AND message = m.key) AS created,
        s.id AS session_id, s.name AS session_name
    FROM words CROSS JOIN messages m ON m.key = words.rowid >> 20
    CROSS JOIN sessions s ON s.key = (
        SELECT l.key FROM members JOIN sessions l ON l.key = members.session
        WHERE members.message = m.key AND l.deleted_at IS NULL ORDER BY l.updated DESC LIMIT 1)
    WHERE words MATCH :match
    ORDER BY words.rowid DESC"""

# In one session (deleted or not): its messages are listed once, and each row of the index is looked up there.
ROWS_IN_SESSION = """
    SELECT words.rowid AS passage, m.key AS key, m.id AS id, m.role AS role, m.title AS title,
        (SELECT added FROM members WHERE session = s.key AND message = m.key) AS created,
        s.id AS session_id, s.name AS session_name
    FROM words CROSS JOIN messages m ON m.key = words.rowid >> 20 CROSS JOIN sessions s ON s.id = :session
    WHERE words MATCH :match AND words.rowid >> 20 IN (
        SELECT message FROM members JOIN sessions l ON l.key = members.session WHERE l.id = :session)
    ORDER BY words.rowid DESC"""


# In one go: looking up a word's passages, let alone those of a beginning, takes milliseconds where it is
# common. The plus keeps SQLite from doing so for each passage.
SNIPPETS = f"""
    SELECT rowid AS passage, snippet(words, 0, :opening, :closing, '…', {_SNIPPET_TOKENS}) AS marked
    FROM words WHERE words MATCH :match AND rowid BETWEEN :first AND :last
        AND +rowid IN (SELECT value FROM json_each(:passages))"""


def _hits(connection: sqlite3.Connection, rows: list[sqlite3.Row], expression: str) -> list[SearchHit]:
    """The passages found, each with the words around its first match."""
    if not rows:
        return []
    # The marks around a match carry a random word, so that no text can contain them.
    mark = secrets.token_hex(8)
    opening, closing = f"\x02{mark}<", f"\x02{mark}>"
    passages = [row["passage"] for row in rows]
    values = {"match": expression, "opening": opening, "closing": closing}
    values |= {"first": min(passages), "last": max(passages), "passages": json.dumps(passages)}
    marked = {row["passage"]: row["marked"] for row in connection.execute(SNIPPETS, values)}
    return [_hit(row, *_unmark(marked[row["passage"]].replace(_BREAK, ""), opening, closing)) for row in rows]


def _hit(row: sqlite3.Row, snippet: str, matches: tuple[tuple[int, int], ...]) -> SearchHit:
    return SearchHit(
        session_id=row["session_id"],
        session_name=row["session_name"],
        message_id=row["id"],
        role=row["role"],
        title=row["title"],
        created=row["created"],
        snippet=snippet,
        matches=matches,
    )


def _unmark(marked: str, opening: str, closing: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Take the marks out, say where they were, and cut around the first match: a "word" can be endless."""
    text, matches = "", []
    for piece in marked.split(opening):
        match, closed, rest = piece.partition(closing)
        if closed:
            matches.append((len(text), len(text) + len(match)))
        text += match + rest
    if len(text) <= _SNIPPET_CHARS:
        return text, tuple(matches)
    start = max(0, (matches[0][0] if matches else 0) - _SNIPPET_CHARS // 4)
    end = start + _SNIPPET_CHARS
    head, tail = ("…" if start else ""), ("…" if end < len(text) else "")
    offset = len(head) - start
    kept = tuple((a + offset, min(b, end) + offset) for a, b in matches if a < end)
    return head + text[start:end] + tail, kept


def _spread(text: str) -> str:
    return _CJK.sub(f"{_BREAK}\\1{_BREAK}", text)
