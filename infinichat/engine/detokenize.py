"""Ids to text while they are generated: whole characters only, and never the beginning of a stop string.

A token may end in the middle of a UTF-8 character, and a stop string may span tokens. So bytes wait until the
character is complete, and text that could still become a stop string waits until that is decided::

    add(first half of "é") -> ""          add(second half) -> "é"
    with the stop "END":   add("the E") -> "the "   add("ND") -> "" and stopped
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from infinichat.protocols import TextTokenizer


class StreamDecoder:
    """Text of one answer, piece by piece. Bytes that are no UTF-8 at all become U+FFFD."""

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def add(self, token_id: int) -> tuple[str, bool]:
        """What became printable with this id, and whether a stop string is complete (then the text ends
        before it and nothing more may be added)."""
        self._held += self._decoder.decode(self._tokenizer.token_bytes(token_id))
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            text, self._held = self._held[: min(found)], ""
            return text, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def rest(self) -> str:
        """What was held back for a stop string that did not come. A character cut in the middle is not shown:
        the answer may be continued."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, shorter than ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
