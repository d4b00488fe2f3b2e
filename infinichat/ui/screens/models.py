"""The checkpoints: what is installed, what can be pulled, what each one's memory was measured to recall."""

from __future__ import annotations

import threading
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from infinichat.errors import CancelledError, InfiniChatError
from infinichat.text import figures
from infinichat.text.harmless import one_line, visible
from infinichat.ui.catalog import CatalogEntry, distance_table
from infinichat.ui.palette import MUTED
from infinichat.ui.services import Services
from infinichat.ui.widgets.key_line import KeyLine


class ModelsScreen(Screen[str | None]):
    """The list; the result is the name of the checkpoint to switch to."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", priority=True),
        Binding("enter", "use", "Use", show=True),
        Binding("p", "pull", "Pull", id="model-pull"),
    ]

    def __init__(self, services: Services, current: str | None) -> None:
        super().__init__(id="models")
        self._services = services
        self._current = current
        self._entries: list[CatalogEntry] = []
        self._cancel: threading.Event | None = None

    def compose(self) -> ComposeResult:
        head = Content.assemble((" Checkpoints", "bold"), ("  enter switches to one", MUTED))
        yield Static(head, markup=False, classes="screen-title")
        yield OptionList(id="list", markup=False)
        yield Static(markup=False, id="details")
        yield Static(markup=False, id="pulling")
        yield KeyLine(palette=False)

    def on_mount(self) -> None:
        self.query_one("#pulling").display = False
        self.query_one("#list", OptionList).focus()
        self.query_one("#details", Static).update("Looking for checkpoints…")
        self._find()

    def on_unmount(self) -> None:
        if self._cancel is not None:
            self._cancel.set()

    @work(thread=True, exclusive=True, group="find", exit_on_error=False)
    def _find(self) -> None:
        try:
            entries = self._services.catalog.entries()
        except InfiniChatError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self._show, entries)

    def _say(self, text: str) -> None:
        self.query_one("#details", Static).update(Content(visible(text)))

    def _show(self, entries: list[CatalogEntry]) -> None:
        if not self.is_attached:
            return
        options = self.query_one("#list", OptionList)
        chosen = options.highlighted
        self._entries = entries
        width = self.size.width
        options.set_options(model_row(entry, width, current=entry.name == self._current) for entry in entries)
        names = [entry.name for entry in entries]
        if entries:
            here = names.index(self._current) if self._current in names else 0
            options.highlighted = here if chosen is None else min(chosen, len(entries) - 1)
        else:
            self._say("There is no checkpoint yet. Next: infinichat models pull")

    def _entry(self) -> CatalogEntry | None:
        place = self.query_one("#list", OptionList).highlighted
        return self._entries[place] if place is not None and place < len(self._entries) else None

    @on(OptionList.OptionHighlighted, "#list")
    def _highlighted(self) -> None:
        entry = self._entry()
        if entry is not None:
            self.query_one("#details", Static).update(details(entry))

    @on(OptionList.OptionSelected, "#list")
    def _selected(self) -> None:
        self.action_use()

    def action_use(self) -> None:
        entry = self._entry()
        if entry is None or self._cancel is not None:
            return
        if not entry.installed:
            self._start_pull(entry.name, then_use=True)
        else:
            self.dismiss(None if entry.name == self._current else entry.name)

    def action_pull(self) -> None:
        entry = self._entry()
        if entry is not None and self._cancel is None:
            self._start_pull(entry.name, then_use=False)

    def action_leave(self) -> None:
        """The first Escape stops what is being pulled, the next one leaves."""
        if self._cancel is not None and not self._cancel.is_set():
            self._cancel.set()
            return
        self.dismiss(None)

    def _start_pull(self, name: str, *, then_use: bool) -> None:
        self._cancel = threading.Event()
        self._progress(f"pulling {name}", 0, None)
        self._pull(name, self._cancel, then_use)

    @work(thread=True, group="pull", exit_on_error=False)
    def _pull(self, name: str, cancel: threading.Event, then_use: bool) -> None:
        def report(what: str, done: int, total: int | None) -> None:
            if not cancel.is_set():
                self.app.call_from_thread(self._progress, what, done, total)

        problem: str | None = None
        try:
            self._services.catalog.pull(name, report=report, cancel=cancel)
        except CancelledError:
            problem = f"Stopped. What was fetched of {name} is kept; pulling again goes on."
        except InfiniChatError as error:
            problem = str(error)
        if self.app.is_running:
            self.app.call_from_thread(self._pulled, name, problem, then_use)

    def _progress(self, what: str, done: int, total: int | None) -> None:
        if self.is_attached:
            line = self.query_one("#pulling", Static)
            line.display = True
            line.update(Content(pull_line(what, done, total)))

    def _pulled(self, name: str, problem: str | None, then_use: bool) -> None:
        self._cancel = None
        if not self.is_attached:
            return
        self.query_one("#pulling").display = False
        if problem is not None:
            self.notify(problem, severity="error", timeout=10, markup=False)
        elif then_use:
            self.dismiss(name)
            return
        self._find()


def pull_line(what: str, done: int, total: int | None) -> str:
    """ "fetching x.gguf ▰▰▰▱▱▱▱▱▱▱ 31 %  30.4 MB of 98.4 MB  esc stops"."""
    shown = one_line(what, 40)
    if total:
        part = done / total
        return (
            f"{shown} {figures.bar(part, 10)} {figures.percent(part)}  "
            f"{figures.size(done)} of {figures.size(total)}  esc stops"
        )
    return f"{shown} {figures.size(done) if done else ''}  esc stops"


def model_row(entry: CatalogEntry, width: int, *, current: bool) -> Option:
    """One line: mark, name, state, memory, size, and the best-known measure of recall."""
    mark = "▸" if current else " "
    state = (
        "in use"
        if current
        else "broken"
        if entry.problem
        else "installed"
        if entry.installed
        else "available"
    )
    memory = "memory trained" if entry.trained else "sliding window"
    size = figures.size(entry.size) if entry.size else ""
    recall = _recall(entry)
    tail = f"{state:<11}{memory:<16}{size:>8}" + (f"  {recall}" if width >= 110 and recall else "")
    room = max(12, width - len(tail) - 8)
    return Option(
        Content.assemble(
            (f"{mark} ", "$text-accent"),
            (one_line(entry.name, room).ljust(room), "bold" if current else ""),
            (tail, MUTED),
        )
    )


def details(entry: CatalogEntry) -> Content:
    """What is known of one checkpoint, in sentences."""
    pieces: list[str | tuple[str, str]] = [(f"{visible(entry.name)}\n", "bold")]
    if entry.problem:
        pieces.append((f"{visible(entry.problem)}\n", "$text-error"))
    if entry.description:
        pieces.append(f"{visible(entry.description)}\n")
    if not entry.trained:
        pieces.append(
            "Its memory is not trained: it runs as a sliding window and forgets what leaves the window.\n"
        )
    elif entry.recall:
        pieces.append(("Measured recall: ", MUTED))
        pieces.append(f"{_recall(entry)}\n")
        if entry.by_distance:
            pieces.append((f"{visible(distance_table(entry.by_distance))}\n", MUTED))
    else:
        pieces.append("Its memory is trained; no measurement of its recall is recorded with it.\n")
    if entry.path is not None:
        pieces.append((f"{visible(str(entry.path))}\n", MUTED))
    if not entry.installed:
        pieces.append(("Not on this machine yet: Enter pulls it and uses it.", "$text-warning"))
    return Content.assemble(*pieces)


def _recall(entry: CatalogEntry) -> str:
    return " · ".join(
        f"{one_line(name, 30)} {figures.percent(value)}" for name, value in entry.recall.items()
    )
