"""Which messages of a long transcript are mounted: a window over a list that is loaded page by page.

Pure arithmetic, no widgets. The newest messages come first; older ones are asked of ``fetch`` when the window
moves up past what is loaded. ``MOST`` mounted messages keep a key under the screen's budget (20 to 40 mounted
Markdown messages: 4 ms from key to paint; 100 take a second to mount).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infinichat.messages import Message

PAGE = 20
MOST = 50
FEW = 4
"""Mounted in one go where the user waits for it: a screen full. One answer takes 10 to 50 ms to mount."""

Fetch = Callable[[str, int], list[Message]]
"""``fetch(before, limit)``: the newest ``limit`` messages before the one with this id, oldest first."""

Get = Callable[[str], Message]


@dataclass(frozen=True, slots=True)
class Move:
    """What changes on the screen: messages to mount at one end, and how many to take away at the other."""

    mount: tuple[Message, ...]
    drop: int


class Window:
    """``loaded[start:end]`` is mounted; ``loaded`` is a part of the transcript that reaches to its end."""

    def __init__(self, fetch: Fetch, get: Get) -> None:
        self._fetch = fetch
        self._get = get
        self.loaded: list[Message] = []
        self.start = 0
        self.end = 0
        self.complete = False  # the first message of the session is loaded

    def __repr__(self) -> str:
        return f"Window({self.start}..{self.end} of {len(self.loaded)} loaded)"

    @property
    def mounted(self) -> list[Message]:
        return self.loaded[self.start : self.end]

    @property
    def has_older(self) -> bool:
        return self.start > 0 or not self.complete

    @property
    def has_newer(self) -> bool:
        return self.end < len(self.loaded)

    def reset(self, tip: str | None) -> list[Message]:
        """Load the page that ends at the message ``tip`` and mount its newest messages. The tip is named,
        because the store may know of a newer one already that has not been announced."""
        self.loaded = self._tail(tip, PAGE)
        self.complete = len(self.loaded) < PAGE
        return self.to_end()

    def to_end(self) -> list[Message]:
        """Mount the newest few messages; ``up`` with ``FEW`` fills the page."""
        self.end = len(self.loaded)
        self.start = max(0, self.end - FEW)
        return self.mounted

    def up(self, count: int = PAGE, *, keep_end: bool = False) -> Move:
        """Older messages. With ``keep_end`` nothing is dropped at the other end (it is in use)."""
        if self.start == 0 and not self.complete:
            self._load_older()
        first = max(0, self.start - count)
        added = tuple(self.loaded[first : self.start])
        self.start = first
        drop = 0 if keep_end else max(0, self.end - self.start - MOST)
        self.end -= drop
        return Move(added, drop)

    def down(self) -> Move:
        """One page of newer messages."""
        last = min(len(self.loaded), self.end + PAGE)
        added = tuple(self.loaded[self.end : last])
        self.end = last
        drop = max(0, self.end - self.start - MOST)
        self.start += drop
        return Move(added, drop)

    def append(self, message: Message) -> None:
        """A new message at the end of the transcript; the window must reach it."""
        self.loaded.append(message)
        self.end = len(self.loaded)

    def cut(self, message_id: str) -> None:
        """Forget this message and everything after it: the transcript is about to go another way."""
        for index, message in enumerate(self.loaded):
            if message.id == message_id:
                del self.loaded[index:]
                self.end = min(self.end, index)
                self.start = min(self.start, self.end)
                return

    def differing(self, tip: str | None) -> list[Message] | None:
        """Compare with the transcript that ends at ``tip``: forget what is no longer in it, and return the
        messages to append. ``None`` when the two have nothing in common and ``reset`` is needed."""
        fresh = self._tail(tip, max(PAGE, len(self.loaded) + 2))
        places = {message.id: index for index, message in enumerate(self.loaded)}
        while fresh and fresh[0].id not in places:
            fresh = fresh[1:]
        if not fresh:
            return None if self.loaded else []
        offset = places[fresh[0].id]
        if offset and self.loaded[offset].parent != self.loaded[offset - 1].id:
            # A message that took the place of another one: a document that was read to its end now.
            return None
        same = 0
        while (
            same < len(fresh)
            and offset + same < len(self.loaded)
            and fresh[same] == self.loaded[offset + same]
        ):
            same += 1
        if offset + same < len(self.loaded):
            self.cut(self.loaded[offset + same].id)
        return fresh[same:]

    def trim(self) -> int:
        """Forget mounted messages at the top that are more than a page; returns how many."""
        drop = max(0, self.end - self.start - PAGE)
        self.start += drop
        return drop

    def around(self, message_id: str) -> list[Message] | None:
        """Mount a page around this message, loading back to it; ``None`` when it is not in the transcript."""
        while True:
            for index, message in enumerate(self.loaded):
                if message.id == message_id:
                    self.start = max(0, index - PAGE // 2)
                    self.end = min(len(self.loaded), self.start + PAGE)
                    return self.mounted
            if self.complete:
                return None
            self._load_older()

    def _tail(self, tip: str | None, limit: int) -> list[Message]:
        return [] if tip is None else [*self._fetch(tip, limit - 1), self._get(tip)]

    def _load_older(self) -> None:
        older = self._fetch(self.loaded[0].id, PAGE * 5) if self.loaded else []
        self.complete = len(older) < PAGE * 5
        self.loaded[:0] = older
        self.start += len(older)
        self.end += len(older)
