"""Small dialogs: one text to write or change. Enter takes it, Escape leaves everything as it was."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from infinichat.text.harmless import visible
from infinichat.ui.history import PromptHistory
from infinichat.ui.widgets.prompt import Prompt


class TextDialog(ModalScreen[str | None]):
    """Asks for a text, which may have several lines; the result is ``None`` when the user leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]

    def __init__(self, title: str, text: str, hint: str = "") -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._hint = hint

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(Content(visible(self._title)), markup=False, classes="dialog-title")
            yield Prompt(PromptHistory(None), id="dialog-text")
            hint = f"{self._hint}\n" if self._hint else ""
            yield Static(Content(f"{visible(hint)}enter takes it · esc leaves"), markup=False, classes="hint")

    def on_mount(self) -> None:
        prompt = self.query_one(Prompt)
        prompt.placeholder = ""
        prompt.set_text(self._text)
        prompt.focus()

    @on(Prompt.Submitted)
    def _submitted(self, event: Prompt.Submitted) -> None:
        event.stop()
        self.dismiss(event.text)

    def action_leave(self) -> None:
        self.dismiss(None)
