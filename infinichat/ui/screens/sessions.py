"""All sessions: search through titles and every word ever said, open, make, rename, pin, delete with undo."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from infinichat.errors import InfiniChatError
from infinichat.store import SearchHit, SessionRecord
from infinichat.text import figures
from infinichat.text.harmless import one_line, visible
from infinichat.ui.palette import MUTED
from infinichat.ui.screens.dialogs import TextDialog
from infinichat.ui.services import Services
from infinichat.ui.widgets.key_line import KeyLine

MOST_SESSIONS = 200
MOST_HITS = 50

Choice = tuple[SessionRecord, str | None]
"""The session to open, and the message of it to go to."""


class SessionsScreen(Screen[Choice | None]):
    """The list. What is typed searches at once; the arrow keys move in the list without leaving the
    search."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", priority=True),
        Binding("ctrl+n", "new", "New", priority=True, id="session-new"),
        Binding("ctrl+r,f2", "rename", "Rename", priority=True, key_display="^r", id="session-rename"),
        Binding("ctrl+t", "pin", "Pin", priority=True, id="session-pin"),
        Binding("ctrl+d", "delete", "Delete", priority=True, id="session-delete"),
        Binding("ctrl+z", "undo", "Undo delete", priority=True, id="session-undo"),
    ]

    def __init__(self, services: Services, current: str, query: str = "") -> None:
        super().__init__(id="sessions")
        self._services = services
        self._current = current
        self._query = query
        self._records: dict[str, SessionRecord] = {}
        self._deleted: list[str] = []

    def compose(self) -> ComposeResult:
        yield Static(Content.assemble((" Sessions", "bold")), markup=False, classes="screen-title", id="head")
        yield Input(self._query, placeholder="Search titles and every word ever said", id="search")
        yield OptionList(id="list", markup=False)
        yield Static(markup=False, id="empty")
        yield KeyLine(palette=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self._find(self._query)

    def _list(self) -> OptionList:
        return self.query_one("#list", OptionList)

    # -- finding

    @on(Input.Changed, "#search")
    def _typed(self, event: Input.Changed) -> None:
        self._query = event.value
        self._find(event.value)

    @work(thread=True, exclusive=True, group="find", exit_on_error=False)
    def _find(self, query: str) -> None:
        store = self._services.store
        try:
            records = store.sessions(query=query.strip() or None, limit=MOST_SESSIONS)
            hits = store.search(query, limit=MOST_HITS) if query.strip() else []
            by_id = {hit.session_id: store.session(hit.session_id) for hit in hits}
        except InfiniChatError as error:
            self.app.call_from_thread(self.notify, str(error), severity="error", markup=False)
            return
        self.app.call_from_thread(self._show, query, records, hits, by_id)

    def _show(
        self, query: str, records: list[SessionRecord], hits: list[SearchHit], by_id: dict[str, SessionRecord]
    ) -> None:
        if query != self._query or not self.is_attached:
            return
        options = self._list()
        before = options.highlighted_option.id if options.highlighted_option else f"s {self._current}"
        self._records = {record.id: record for record in records} | by_id
        now, width = self._services.now(), self.size.width
        rows = [
            Option(session_row(r, now, width, current=r.id == self._current), id=f"s {r.id}") for r in records
        ]
        if hits:
            rows.append(Option(Content.assemble((" Words", MUTED)), id="words", disabled=True))
            rows += [
                Option(hit_row(hit, now, width), id=f"m {hit.session_id} {hit.message_id}") for hit in hits
            ]
        options.set_options(rows)
        ids = [row.id for row in rows]
        options.highlighted = ids.index(before) if before in ids else (0 if rows else None)
        empty = self.query_one("#empty", Static)
        empty.display = not rows
        empty.update(f"Nothing was found for “{visible(query)}”." if query else "There is no session yet.")

    # -- the list

    def on_key(self, event: events.Key) -> None:
        moves = {
            "up": "cursor_up",
            "down": "cursor_down",
            "pageup": "page_up",
            "pagedown": "page_down",
        }
        if event.key in moves and self.focused is not self._list():
            event.stop()
            getattr(self._list(), f"action_{moves[event.key]}")()

    @on(Input.Submitted, "#search")
    def _enter(self) -> None:
        self._list().action_select()

    @on(OptionList.OptionSelected, "#list")
    def _selected(self, event: OptionList.OptionSelected) -> None:
        kind, session_id, *message = (event.option_id or "").split(" ")
        if kind in ("s", "m"):
            self.dismiss((self._records[session_id], message[0] if message else None))

    def _highlighted(self) -> SessionRecord | None:
        option = self._list().highlighted_option
        parts = (option.id or "").split(" ") if option else []
        return self._records.get(parts[1]) if len(parts) > 1 else None

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_new(self) -> None:
        self.dismiss((self._services.store.create_session(), None))

    def action_rename(self) -> None:
        record = self._highlighted()
        if record is None:
            return

        def renamed(text: str | None) -> None:
            name = " ".join((text or "").split())
            if not name or name == record.name:
                return
            try:
                self._services.store.rename(record.id, name)
                self._services.store.set_title(record.id, name)
            except InfiniChatError as error:
                self.notify(str(error), severity="error", markup=False)
            self._find(self._query)

        self.app.push_screen(TextDialog("Rename the session", record.title or record.name), renamed)

    def action_pin(self) -> None:
        record = self._highlighted()
        if record is not None:
            self._services.store.set_pinned(record.id, not record.pinned)
            self._find(self._query)

    def action_delete(self) -> None:
        record = self._highlighted()
        if record is None:
            return
        self._services.store.delete(record.id)
        self._deleted.append(record.id)
        name = one_line(record.title or record.name, 40)
        self.notify(f"Deleted “{name}”. Ctrl+Z brings it back.", timeout=6, markup=False)
        self._find(self._query)

    def action_undo(self) -> None:
        """Bring back what was deleted last, also in an earlier run."""
        store = self._services.store
        earlier = store.sessions(deleted=True, limit=1)
        wanted = self._deleted.pop() if self._deleted else (earlier[0].id if earlier else None)
        if wanted is None:
            self.notify("Nothing was deleted.", markup=False)
            return
        try:
            record = store.undelete(wanted)
        except InfiniChatError as error:
            self.notify(str(error), severity="error", markup=False)
            return
        self.notify(f"“{one_line(record.title or record.name, 40)}” is back.", markup=False)
        self._find(self._query)


def session_row(record: SessionRecord, now: float, width: int, *, current: bool) -> Content:
    """One line: mark, title, and at the right what it holds and when it was used."""
    mark = "▸" if current else " "
    star = "★" if record.pinned else " "
    right = [
        figures.counted(record.messages, "message").rjust(14),
        figures.ago(record.updated, now=now, short=True).rjust(10),
    ]
    if width >= 100:
        right.insert(1, f"{figures.tokens(record.tokens_seen)} tokens".rjust(13))
    tail = "".join(right)
    room = max(10, width - len(tail) - 8)
    title = one_line(record.title or record.name, room)
    name = one_line(record.name, 24)
    # The name is what one types after --session, so it is shown where there is room for it.
    beside = (
        f"  {name}" if record.title not in (None, record.name) and len(title) + len(name) + 2 <= room else ""
    )
    return Content.assemble(
        (f"{mark}{star} ", "$text-accent"),
        (title, "bold" if current else ""),
        (beside.ljust(room - len(title)), MUTED),
        (tail, MUTED),
    )


def hit_row(hit: SearchHit, now: float, width: int) -> Content:
    """One line: where and when it was said, and the words with the matches marked."""
    head = f"   {one_line(hit.session_name, 16)} · {figures.ago(hit.created, now=now, short=True)}  "
    pieces: list[str | tuple[str, str]] = [(head, MUTED)]
    place = 0
    for start, end in hit.matches:
        pieces.append(visible(hit.snippet[place:start]).replace("\n", " "))
        pieces.append((visible(hit.snippet[start:end]), "bold underline $text-accent"))
        place = end
    pieces.append(visible(hit.snippet[place:]).replace("\n", " "))
    return Content.assemble(*pieces).truncate(max(20, width - 4), ellipsis=True)
