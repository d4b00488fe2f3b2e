"""The memory of the open session, layer by layer and turn by turn, and in words what that is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from infinichat.errors import InfiniChatError
from infinichat.messages import LayerMemory, MemoryMark, MemoryReport
from infinichat.text import figures
from infinichat.text.harmless import one_line, visible
from infinichat.ui.catalog import distance_table
from infinichat.ui.palette import MUTED

if TYPE_CHECKING:
    from infinichat.ui.screens.chat import ChatScreen

_LEVELS = "▁▂▃▄▅▆▇█"
_CHART = 40  # turns
_TURNS = 8
_LOOK_EVERY_S = 0.5


class MemoryScreen(ModalScreen[None]):
    """Follows the chat screen's newest report, so it stays true while an answer streams."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f4,q", "leave", "Back")]

    def __init__(self, chat: ChatScreen) -> None:
        super().__init__(id="memory")
        self._chat = chat
        self._shown: MemoryReport | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide"):
            yield Static(markup=False, id="report")
            yield Static(markup=False, id="measured")

    def on_mount(self) -> None:
        self.query_one("#measured").display = False
        self._paint()
        self._measured()
        if not self._chat.turns.busy and self._chat.engine_info is not None:
            self._chat.worker.measure()
        self.set_interval(_LOOK_EVERY_S, self._look)

    @work(thread=True, exit_on_error=False)
    def _measured(self) -> None:
        """What the card of the model in use says about its recall."""
        info = self._chat.engine_info
        try:
            entries = self._chat.services.catalog.entries()
        except InfiniChatError:
            return
        entry = next((entry for entry in entries if info is not None and entry.name == info.name), None)
        if entry is not None and entry.trained and entry.by_distance:
            self.app.call_from_thread(self._show_measured, distance_table(entry.by_distance))

    def _show_measured(self, table: str) -> None:
        if self.is_attached:
            self.query_one("#measured").display = True
            head = ("\nMeasured for this checkpoint, by tokens since the telling\n", MUTED)
            self.query_one("#measured", Static).update(Content.assemble(head, visible(table)))

    def _look(self) -> None:
        if self._chat.report is not self._shown:
            self._paint()

    def _paint(self) -> None:
        report = self._shown = self._chat.report
        content = (
            Content("The model is still loading.")
            if report is None
            else describe(report, now=self._chat.services.now())
        )
        self.query_one("#report", Static).update(content)

    def action_leave(self) -> None:
        self.dismiss(None)


def describe(report: MemoryReport, *, now: float) -> Content:
    """The whole screen as text. ``now`` is seconds since the epoch."""
    window = report.window_tokens / report.window_size if report.window_size else 0.0
    pieces: list[str | tuple[str, str]] = [
        ("Memory", "bold $text-accent"),
        (f"   {one_line(report.model, 40)}\n\n", MUTED),
        ("ever seen  ", MUTED),
        (f"{report.tokens_seen:,} tokens\n", "bold"),
        ("window     ", MUTED),
        f"{figures.bar(window, 20)} {report.window_tokens:,} of {report.window_size:,} tokens, exact\n",
        ("state      ", MUTED),
        f"{figures.size(report.state_bytes)}; it does not grow once the window is full\n\n",
    ]
    if report.layers and report.trained:
        pieces += _layers(report.layers)
        pieces += _turns(report.history, now)
    pieces.append(honest(report))
    return Content.assemble(*pieces)


def _layers(layers: tuple[LayerMemory, ...]) -> list[str | tuple[str, str]]:
    head = f"{'layer':>5}   {'saturation':<19}{'gate':<15}{'written':>11}{'norm':>10}\n"
    rows: list[str | tuple[str, str]] = [(head, MUTED)]
    for layer in layers:
        rows.append(f"{layer.layer:>5}   ")
        rows.append((figures.bar(layer.saturation, 10), "$text-accent"))
        rows.append(f" {figures.percent(layer.saturation):<8}")
        rows.append((figures.bar(layer.gate, 6), "$text-primary"))
        rows.append(f" {figures.percent(layer.gate):<8}{layer.written:>11,}{layer.norm:>10.1f}\n")
    return [*rows, "\n"]


def _turns(history: tuple[MemoryMark, ...], now: float) -> list[str | tuple[str, str]]:
    """What each turn wrote: a small chart of all, and a line for each of the newest."""
    if not any(mark.added for mark in history):
        return []
    steps = [mark.added for mark in history][-_CHART:]
    top = max(1, *steps)
    chart = "".join(_LEVELS[min(7, step * 8 // (top + 1))] for step in steps)
    pieces: list[str | tuple[str, str]] = [
        ("written per turn  ", MUTED),
        (chart, "$text-accent"),
        f"  at most {top:,}\n",
        (f"{'written':>8}{'saturation':>12}{'tokens':>9}{'when':>11}   turn\n", MUTED),
    ]
    for mark in reversed(history[-_TURNS:]):
        saturation = sum(layer.saturation for layer in mark.layers) / max(1, len(mark.layers))
        when = figures.ago(mark.created, now=now, short=True)
        row = f"{f'+{mark.added:,}':>8}{figures.percent(saturation):>12}{figures.tokens(mark.tokens_seen):>9}"
        pieces.append(f"{row}{when:>11}   ")
        pieces.append((f"{one_line(mark.words, 32)}\n", MUTED))
    return [*pieces, "\n"]


def honest(report: MemoryReport) -> str:
    """What the numbers mean, without promising anything."""
    if not report.trained or not report.layers:
        return (
            "This checkpoint's memory is not trained, so it runs as a sliding window: the model sees the "
            f"last {report.window_size:,} tokens and nothing older. The transcript keeps every word; F2 "
            "searches it."
        )
    return (
        "What is in the window is seen word for word. Of what is older only the memory keeps something. It "
        "has a fixed size and is lossy: it keeps what it was trained to keep, mostly facts that were told "
        "plainly, and the fuller it is the more they blur. F3 shows what was measured for this checkpoint. "
        "When it matters, check: the transcript keeps every word, and F2 searches it."
    )
