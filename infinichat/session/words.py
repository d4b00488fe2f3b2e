"""What a user typed, made fit to be kept: as it is, except for what no file can hold; and a title from it."""

from __future__ import annotations

import re

from infinichat.errors import UsageError

TITLE_LENGTH = 60

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")
_MARKDOWN = re.compile(r"^[#>*\-\s`]+")


def storable(text: str) -> str:
    """``text`` with surrogate pairs joined and lone surrogates, which no encoding can store, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def words(text: str, kind: str) -> str:
    """``storable`` text that says something; raises ``UsageError`` for an empty message or document."""
    text = storable(text)
    if not text.strip():
        raise UsageError(f"The {kind} is empty; expected at least one character that is not a blank.")
    return text


def title_from(text: str) -> str | None:
    """A session's title: the beginning of its first message in one line of at most ``TITLE_LENGTH``
    characters, cut between words; ``None`` when nothing printable is in it."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    line = _MARKDOWN.sub("", line).strip() or line
    if len(line) <= TITLE_LENGTH:
        return line or None
    cut = line[: TITLE_LENGTH - 1]
    at_word = cut.rsplit(" ", 1)[0] if " " in cut[TITLE_LENGTH // 2 :] else cut
    return at_word.rstrip(" ,;:.-") + "…"
