"""The list of completions above the prompt. It never takes the focus: the prompt sends it its keys."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.message import Message as TextualMessage
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from infinichat.ui.completion import Candidate
from infinichat.ui.palette import MUTED
from infinichat.ui.plain_text import visible


class CompletionList(OptionList, can_focus=False):
    """Hidden while there is nothing to offer."""

    @dataclass
    class Taken(TextualMessage):
        """A candidate was chosen; ``run`` says that it was with Enter on a complete command."""

        candidate: Candidate
        run: bool

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True, markup=False)
        self._candidates: list[Candidate] = []
        self.display = False

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    def offer(self, candidates: list[Candidate]) -> None:
        """Show these, or hide when there are none."""
        if candidates == self._candidates:
            return
        self._candidates = candidates
        self.display = bool(candidates)
        width = max((len(visible(c.label)) for c in candidates), default=0)
        self.set_options(
            Option(Content.assemble((visible(c.label).ljust(width + 2), "bold"), (visible(c.help), MUTED)))
            for c in candidates
        )
        if candidates:
            self.highlighted = 0

    def close(self) -> None:
        self.offer([])

    def press(self, key: str) -> None:
        """A key that the prompt passed on."""
        if key == "escape":
            self.display = False
        elif key == "up":
            self.action_cursor_up()
        elif key == "down":
            self.action_cursor_down()
        elif self.highlighted is not None:
            candidate = self._candidates[self.highlighted]
            self.post_message(self.Taken(candidate, run=key == "enter" and candidate.final))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        candidate = self._candidates[event.option_index]
        self.post_message(self.Taken(candidate, run=candidate.final))
