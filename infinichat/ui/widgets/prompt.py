"""The prompt: a text area that grows with its text, sends on Enter and remembers what was sent.

Shift+Enter makes a new line where the terminal can tell it from Enter (kitty protocol); Ctrl+J and Alt+Enter
do everywhere. With ``enter_sends`` off, Enter makes the line and Ctrl+J, Alt+Enter or Ctrl+Enter sends. Up
on the first line and Down on the last walk through the history. While the completion list is open it gets
Up, Down, Tab, Enter and Escape first, and it always is the list of what is typed at that moment, however
fast the keys come. Pasted control characters turn into their pictures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar, Protocol

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.message import Message as TextualMessage
from textual.widgets import TextArea

from infinichat.text.harmless import visible
from infinichat.ui.completion import Candidate
from infinichat.ui.history import PromptHistory

LARGEST = 10
"""Rows that the prompt grows to; more text scrolls inside."""

# The last three are what xterm's and tmux's extended keys look like to Textual.
_NEWLINE_KEYS = {"shift+enter", "ctrl+j", "alt+enter", "ctrl+enter", "shift+\r", "alt+\r", "ctrl+\r"}


_POPUP_KEYS = {"up", "down", "tab", "enter", "escape"}


class Popup(Protocol):
    """What the prompt needs of the list of completions above it."""

    @property
    def is_open(self) -> bool: ...

    def typed(self, text: str, before: str) -> None:
        """The text or the place of the cursor has changed; ``before`` is what is before the cursor."""
        ...

    def press(self, key: str) -> Candidate | None:
        """A key while the list is open; returns what it chose, if anything."""
        ...


class Prompt(TextArea):
    """Where one types. Posts ``Submitted`` and ``Leave``; ``popup`` is the list of completions, if any."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c,super+c", "copy", "Copy", show=False),
        Binding("ctrl+d", "delete_or_quit", "Quit when empty", show=False),
    ]

    @dataclass
    class Submitted(TextualMessage):
        """The text was sent."""

        text: str

    @dataclass
    class Leave(TextualMessage):
        """The user goes from the prompt up into the transcript, by pages or to its messages."""

        pages: int = 0

    def __init__(self, history: PromptHistory, *, enter_sends: bool = True, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, compact=True, highlight_cursor_line=False, show_line_numbers=False
        )
        self._entries = history
        self._enter_sends = enter_sends
        self._walked: str | None = None
        self._rows = 1
        self._typed_at = float("-inf")
        self._reported = ("", "")
        self.popup: Popup | None = None
        self.placeholder = "Message… (/ for commands)"

    def on_text_area_changed(self) -> None:
        if self._walked != self.text:
            self._entries.rest()
        self._grow()
        self._report()

    def on_text_area_selection_changed(self) -> None:
        self._report()

    def on_resize(self) -> None:
        self._grow()

    def _grow(self) -> None:
        rows = max(1, min(LARGEST, self.wrapped_document.height))
        # Setting a height lays the whole screen out again, 30 ms with a page of messages: not at every key.
        if rows != self._rows:
            self._rows = rows
            self.styles.height = rows

    def _report(self) -> None:
        before = self.get_text_range((0, 0), self.cursor_location)
        if (self.text, before) != self._reported:
            self._reported = (self.text, before)
            if self.popup is not None:
                self.popup.typed(self.text, before)

    def set_text(self, text: str) -> None:
        """Replace everything and put the cursor at the end; undo brings the old text back."""
        self.replace(visible(text), (0, 0), self.document.end)
        self.move_cursor(self.document.end)

    @property
    def idle_s(self) -> float:
        """Seconds since the last key."""
        return time.monotonic() - self._typed_at

    async def _on_key(self, event: events.Key) -> None:
        self._typed_at = time.monotonic()
        if event.key in _POPUP_KEYS and self._popup_takes(event.key):
            self._swallow(event)
            return
        sends = event.key == "enter" if self._enter_sends else event.key in _NEWLINE_KEYS
        if sends:
            self._swallow(event)
            self.submit()
        elif event.key == "enter" or event.key in _NEWLINE_KEYS:
            self._swallow(event)
            self.insert("\n")
            self.scroll_cursor_visible()
        else:
            await super()._on_key(event)

    def _popup_takes(self, key: str) -> bool:
        """Give the key to the completion list; ``False`` when it is not open."""
        # The message about the last change may still be in the queue behind this key.
        self._report()
        if self.popup is None or not self.popup.is_open:
            return False
        candidate = self.popup.press(key)
        if candidate is not None:
            self.take(candidate, run=key == "enter" and candidate.final)
        return True

    def take(self, candidate: Candidate, *, run: bool) -> None:
        """Make the text that of a candidate, and send it when it is to ``run``."""
        self.set_text(candidate.text)
        self._report()
        if run:
            self.submit()

    @staticmethod
    def _swallow(event: events.Key) -> None:
        event.stop()
        event.prevent_default()

    def submit(self) -> None:
        """Send what is typed; blanks alone are not sent."""
        text = self.text.strip("\n")
        if not text.strip():
            return
        self._entries.add(text)
        self.clear()
        self._report()
        self.post_message(self.Submitted(text))

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        await super()._on_paste(events.Paste(visible(event.text)))

    def action_cursor_up(self, select: bool = False) -> None:
        if not select and self._on_first_row():
            self._walk(self._entries.older(self.text))
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if not select and self._on_last_row():
            self._walk(self._entries.newer())
        else:
            super().action_cursor_down(select)

    def _on_first_row(self) -> bool:
        return self.wrapped_document.location_to_offset(self.cursor_location).y == 0

    def _on_last_row(self) -> bool:
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        return row >= self.wrapped_document.height - 1

    def _walk(self, text: str | None) -> None:
        if text is not None:
            self._walked = visible(text)
            self.set_text(text)

    def action_cursor_page_up(self) -> None:
        self.post_message(self.Leave(pages=-1))

    def action_cursor_page_down(self) -> None:
        self.post_message(self.Leave(pages=1))

    def action_copy(self) -> None:
        if not self.selected_text:
            raise SkipAction()
        super().action_copy()

    async def action_delete_or_quit(self) -> None:
        if self.text:
            self.action_delete_right()
        else:
            await self.app.action_quit()
