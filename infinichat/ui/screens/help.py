"""Help: the keys, the commands, and in three sentences what this is. Made from the tables the app runs on."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from infinichat.ui.commands import COMMANDS
from infinichat.ui.palette import MUTED

KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "send"),
    ("Shift+Enter Ctrl+J Alt+Enter", "new line"),
    ("Esc", "stop; what was answered is kept"),
    ("↑ ↓ in the prompt", "what was typed before"),
    ("PgUp PgDn", "scroll through the conversation"),
    ("Tab or Alt+↑", "walk the messages"),
    ("  c y e r b on a message", "copy, copy code, edit, again, branch"),
    ("  ← → on a message", "its other versions ‹ 2/3 ›"),
    ("Ctrl+R", "another answer"),
    ("Ctrl+G", "write in your own editor"),
    ("Ctrl+L", "latest message"),
    ("Ctrl+C", "copy; else stop; else empty the prompt"),
    ("F2 F3 F4", "sessions, checkpoints, memory"),
    ("Ctrl+N", "new session"),
    ("Ctrl+P", "palette: every command, themes"),
    ("Ctrl+Q", "quit; everything is saved"),
)


class HelpScreen(ModalScreen[None]):
    """Scrolls; any of its keys leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "leave", "Back")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog wide"):
            yield Static(help_text(), markup=False)

    def action_leave(self) -> None:
        self.dismiss(None)


def help_text() -> Content:
    """The whole help as text."""
    pieces: list[str | tuple[str, str]] = [
        ("∞ infinichat\n", "bold $text-accent"),
        "Everything stays on this machine. Every word is in the transcript; the model itself sees its window "
        "exactly and older text through a memory that is lossy (F4 says how full it is).\n\n",
        ("Keys\n", "bold"),
    ]
    for key, what in KEYS:
        pieces += [(f"  {key:<31}", "$text-accent"), f"{what}\n"]
    pieces.append(("\nCommands\n", "bold"))
    for command in COMMANDS:
        usage = f"/{command.name} {command.arguments}".rstrip()
        pieces += [(f"  {usage:<31}", "$text-accent"), f"{command.help}\n"]
    pieces.append(("\nesc leaves", MUTED))
    return Content.assemble(*pieces)
