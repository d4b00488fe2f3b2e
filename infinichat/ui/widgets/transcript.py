"""The conversation: a scrolling window over the transcript, newest message at the bottom.

It stays at the bottom while an answer streams, until the user scrolls. Only a window of messages is mounted
(``ui/window.py``); scrolling to its top mounts a page of older ones and lets go of the newest, so that the
thousandth message costs what the first did. With the focus on it, a cursor walks from message to message and
one key acts on the message under it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message as TextualMessage
from textual.widget import Widget
from textual.widgets import Static

from infinichat.messages import Message
from infinichat.ui.widgets.entry import AnswerEntry, Entry, MetaLine, Note, entry_of
from infinichat.ui.window import FEW, MOST, PAGE, Fetch, Get, Window

Act = Literal["copy", "copy_code", "edit", "regenerate", "branch", "continue"]


class Transcript(VerticalScroll, can_focus=True):
    """See the module. ``positions`` gives (number, count) of a message among its siblings."""

    HELP = "Walk the messages with ↑ ↓; copy, edit, regenerate or branch the one with the bar."

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "walk(-1)", "Message", key_display="↑↓", id="message-previous"),
        Binding("down,j", "walk(1)", "Next message", show=False, id="message-next"),
        Binding("c", "act('copy')", "Copy", id="message-copy"),
        Binding("y", "act('copy_code')", "Code", id="message-copy-code"),
        Binding("e", "act('edit')", "Edit", id="message-edit"),
        Binding("r", "act('regenerate')", "Again", id="message-regenerate"),
        Binding("b", "act('branch')", "Branch", id="message-branch"),
        Binding("left", "turn(-1)", "Version", key_display="←→", id="message-version-before"),
        Binding("right", "turn(1)", "Next version", show=False, id="message-version-after"),
        Binding("g", "first", "First", show=False),
        Binding("G,shift+g", "last", "Latest", show=False),
        Binding("end", "last", "Latest", show=False),
    ]

    @dataclass
    class Acted(TextualMessage):
        """A key asked for something to be done with a message."""

        act: Act
        entry: Entry

    @dataclass
    class Turned(TextualMessage):
        """Another sibling of this message was asked for."""

        entry: Entry
        step: int

    class Left(TextualMessage):
        """The cursor went down past the newest message."""

    def __init__(
        self,
        fetch: Fetch,
        get: Get,
        positions: Callable[[Message], tuple[int, int]],
        welcome: Callable[[], Content],
        *,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._window = Window(fetch, get)
        self._positions = positions
        self._welcome = welcome
        self._moving = asyncio.Lock()
        self._cursor: Entry | None = None
        self._top = Static("", markup=False, id="older")
        self._settled = False
        self._paging = False
        self.live: list[Entry] = []

    def compose(self) -> list[Widget]:
        return [self._top]

    # -- what is shown

    @property
    def entries(self) -> list[Entry]:
        return list(self.query_children(Entry))

    @property
    def messages(self) -> list[Message]:
        """The messages that are loaded, oldest first, up to the newest."""
        return self._window.loaded

    async def show_session(self, tip: str | None) -> None:
        """Show the newest page of the transcript that ends at this message."""
        async with self._moving:
            self.live.clear()
            await self._remount(self._window.reset(tip))
            self.anchor()

    async def sync(self, tip: str | None, *, keep: Sequence[Entry] = ()) -> None:
        """Make the screen agree with the store again: after a turn, a failure, or on another branch. Live
        entries go away except those to ``keep``."""
        async with self._moving:
            place = self.cursor.message.parent if self.cursor and self.cursor.message else None
            gone = [entry for entry in self.live if entry not in keep]
            self.live = [entry for entry in self.live if entry in keep]
            await self.remove_children(gone)
            added = self._window.differing(tip)
            if added is None:
                await self._remount(self._window.reset(tip))
                return
            kept = {message.id for message in self._window.loaded}
            stale = [e for e in self.entries if e.message is not None and e.message.id not in kept]
            if stale or added:
                with self.app.batch_update():
                    await self.remove_children(stale)
                    for message in added:
                        self._window.append(message)
                    await self.mount_all(self._made(added), before=self.live[0] if self.live else None)
            self._refresh_top()
            if self.has_focus and self.cursor is None:
                self._set_cursor_below(place)

    async def latest(self) -> None:
        """Go to the newest message, wherever the window is."""
        async with self._moving:
            if self._window.has_newer:
                await self._remount(self._window.to_end())
        self.anchor()

    async def reveal(self, message_id: str) -> bool:
        """Scroll to this message, loading back to it; ``False`` when it is not on the selected branch."""
        async with self._moving:
            around = self._window.around(message_id)
            if around is None:
                return False
            await self._remount(around)
        for entry in self.entries:
            if entry.message is not None and entry.message.id == message_id:
                self._set_cursor(entry)
                self.call_after_refresh(entry.scroll_visible, top=True, animate=False)
        return True

    # -- a turn

    async def begin(self, *entries: Entry, instead_of: str | None = None, after: Entry | None = None) -> None:
        """Mount entries that are not on disk yet, at the end or ``after`` a live one; ``instead_of`` takes
        that message and all after it away."""
        await self.latest()
        async with self._moving:
            if instead_of is not None:
                self._window.cut(instead_of)
                await self.remove_children(self._from(instead_of))
            drop = self._window.trim()
            with self.app.batch_update():
                await self.remove_children(self.entries[:drop])
                await self.mount_all(entries, after=after)
            place = self.live.index(after) + 1 if after in self.live else len(self.live)
            self.live[place:place] = entries
            self._refresh_top()

    async def note(self, note: Note) -> None:
        """Put a sentence of the app at the end, before an answer that has not begun."""
        waiting = [e for e in self.live if isinstance(e, AnswerEntry) and not e.text]
        await self.mount(note, before=waiting[0] if waiting else None)

    def settled(self, entry: Entry, message: Message) -> None:
        """A live entry is on disk now as ``message``."""
        if entry in self.live:
            self.live.remove(entry)
        self._window.append(message)
        self._refresh_top()

    async def discard(self, entry: Entry) -> None:
        """Take a live entry away that never became a message."""
        if entry in self.live:
            self.live.remove(entry)
        await entry.remove()

    # -- paging

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if not self._settled or self._moving.locked():
            return
        if new_value <= 1 and new_value < old_value and self._window.has_older:
            self._page(self._page_up)
        elif new_value >= self.max_scroll_y - 1 and new_value > old_value and self._window.has_newer:
            self._page(self._page_down)

    def _page(self, move: Callable[[], Awaitable[None]]) -> None:
        """Begin to page, unless that is going on. A page is never given up half-way: the window would count
        messages as mounted that are not."""

        async def page() -> None:
            try:
                await move()
            finally:
                self._paging = False
            # Twice: a page that was mounted puts the scroll back after its first refresh.
            self.call_after_refresh(self.call_after_refresh, self._look_at_ends)

        if not self._paging:
            self._paging = True
            self.run_worker(page(), group="page")

    def _look_at_ends(self) -> None:
        """Page on for someone who came to an end while a page was being mounted: no scrolling tells it."""
        if not self._settled or self._moving.locked() or self.max_scroll_y == 0:
            return
        if self.scroll_y <= 1 and self._window.has_older:
            self._page(self._page_up)
        elif self.scroll_y >= self.max_scroll_y - 1 and self._window.has_newer:
            self._page(self._page_down)

    async def _page_up(self, count: int = PAGE) -> None:
        async with self._moving:
            first = next(iter(self.entries), None)
            move = self._window.up(count, keep_end=bool(self.live))
            await self._shift(first, self._made(move.mount), self.entries[-move.drop :] if move.drop else [])

    async def _page_down(self) -> None:
        async with self._moving:
            last = self.entries[-1] if self.entries else None
            move = self._window.down()
            await self._shift(last, self._made(move.mount), self.entries[: move.drop], at_end=True)

    async def _shift(
        self, keep: Entry | None, added: Sequence[Entry], removed: Sequence[Entry], *, at_end: bool = False
    ) -> None:
        """Mount at one end, remove at the other, and leave ``keep`` where it is on the screen."""
        at_bottom = self.is_anchored and not self._anchor_released and not at_end
        if not at_bottom:
            self.release_anchor()
        offset = keep.virtual_region.y - self.scroll_y if keep is not None else 0
        with self.app.batch_update():
            await self.mount_all(added, before=None if at_end or keep is None else keep)
            await self.remove_children(removed)
            self._refresh_top()
        if not at_bottom:
            self.call_after_refresh(self._restore, keep, offset)

    def _restore(self, keep: Entry | None, offset: float) -> None:
        if keep is not None and keep.is_attached:
            self.scroll_to(y=keep.virtual_region.y - offset, animate=False, force=True)

    async def _remount(self, messages: Sequence[Message]) -> None:
        self._settled = False
        self._cursor = None
        made = self._made(messages)
        with self.app.batch_update():
            await self.remove_children(
                [w for w in self.children if w is not self._top and w not in self.live]
            )
            self._refresh_top()
            await self.mount_all(made, before=self.live[0] if self.live else None)
        self.call_after_refresh(self._settle)

    def _settle(self) -> None:
        self._settled = True
        self._page(self._fill)

    async def _fill(self) -> None:
        """Mount the rest of the page a few at a time, with a pause for paints and keys between."""
        while self._is_short and self._window.has_older:
            await self._page_up(FEW)
            await asyncio.sleep(0.01)

    @property
    def _is_short(self) -> bool:
        """Less than a page, or a page of one-line messages that does not fill a tall terminal."""
        mounted = len(self._window.mounted)
        return mounted < PAGE or (mounted < MOST and self.max_scroll_y == 0 and self.screen.is_current)

    def _made(self, messages: Sequence[Message]) -> list[Entry]:
        return [entry_of(message, self._positions(message)) for message in messages]

    def _from(self, message_id: str) -> list[Widget]:
        """The mounted widgets from this message on."""
        for index, child in enumerate(self.children):
            if isinstance(child, Entry) and child.message is not None and child.message.id == message_id:
                return [w for w in self.children[index:] if w not in self.live]
        return []

    def _refresh_top(self) -> None:
        if not self._window.loaded and not self.live:
            self._top.update(self._welcome())
        elif self._window.has_older:
            self._top.update("↑ earlier messages")
        else:
            self._top.update("")
        self._top.set_class(not self._window.loaded and not self.live, "-welcome")
        self._top.display = bool(self._window.has_older or (not self._window.loaded and not self.live))

    def refresh_welcome(self) -> None:
        """What the empty session says has changed."""
        self._refresh_top()

    def on_click(self) -> None:
        if self.scroll_y <= 1 and self._window.has_older:
            self._page(self._page_up)

    # -- the cursor

    @property
    def cursor(self) -> Entry | None:
        return self._cursor if self._cursor is not None and self._cursor.is_attached else None

    def _set_cursor(self, entry: Entry | None) -> None:
        if self.cursor is not None:
            self.cursor.remove_class("-cursor")
        self._cursor = entry
        if entry is not None:
            entry.add_class("-cursor")

    def _set_cursor_below(self, parent: str | None) -> None:
        """Put the cursor on the message that follows ``parent``: where it was before another version came."""
        entries = self.entries
        same = [entry for entry in entries if entry.message is not None and entry.message.parent == parent]
        choice = same or entries
        self._set_cursor(choice[-1] if choice else None)

    def on_focus(self) -> None:
        if self.cursor is None and self.entries:
            self._set_cursor(self.entries[-1])

    def on_blur(self) -> None:
        self._set_cursor(None)

    async def action_walk(self, step: int) -> None:
        entries = self.entries
        if not entries:
            self.post_message(self.Left())
            return
        here = entries.index(self.cursor) if self.cursor in entries else len(entries)
        target = here + step
        if target < 0 and self._window.has_older:
            await self._page_up()
            entries = self.entries
            target = max(0, entries.index(self.cursor) - 1) if self.cursor in entries else 0
        if target >= len(entries):
            if self._window.has_newer:
                await self._page_down()
                entries = self.entries
                target = min(
                    len(entries) - 1, entries.index(self.cursor) + 1 if self.cursor in entries else 0
                )
            else:
                self.post_message(self.Left())
                return
        entry = entries[max(0, target)]
        self._set_cursor(entry)
        entry.scroll_visible(animate=False, top=entry.size.height > self.size.height)

    def action_act(self, act: Act) -> None:
        if self.cursor is not None:
            self.post_message(self.Acted(act, self.cursor))

    def action_turn(self, step: int) -> None:
        if self.cursor is not None:
            self.post_message(self.Turned(self.cursor, step))

    def on_meta_line_turned(self, event: MetaLine.Turned) -> None:
        event.stop()
        self.post_message(self.Turned(event.entry, event.step))

    def on_entry_clicked(self, event: Entry.Clicked) -> None:
        event.stop()
        if self.screen.get_selected_text() is None:
            self.focus()
            self._set_cursor(event.entry)

    async def action_last(self) -> None:
        await self.latest()
        if self.entries:
            self._set_cursor(self.entries[-1])

    def action_first(self) -> None:
        self.scroll_home(animate=False)
