"""The list of completions above the prompt. It never takes the focus: the prompt gives it its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual.content import Content
from textual.message import Message as TextualMessage
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from infinichat.text.harmless import visible
from infinichat.ui.completion import Candidate
from infinichat.ui.palette import MUTED


class CompletionList(OptionList, can_focus=False):
    """Hidden while there is nothing to offer."""

    @dataclass
    class Taken(TextualMessage):
        """A candidate was clicked; ``run`` says that it is a complete command."""

        candidate: Candidate
        run: bool

    def __init__(self, source: Callable[[str], list[Candidate]], *, id: str | None = None) -> None:
        """``source`` gives the candidates for the text before the cursor."""
        super().__init__(id=id, compact=True, markup=False)
        self._source = source
        self._candidates: list[Candidate] = []
        self._typed = ""
        self.display = False

    @property
    def is_open(self) -> bool:
        return bool(self.display)

    def typed(self, text: str, before: str) -> None:
        """Offer what fits; nothing while the cursor stands inside the text."""
        self._typed = before
        self.offer(self._source(before) if text == before else [])

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

    def press(self, key: str) -> Candidate | None:
        """A key that the prompt passed on; Tab and Enter return the candidate they choose."""
        if key == "escape":
            self.display = False
        elif key == "up":
            self.action_cursor_up()
        elif key == "down":
            self.action_cursor_down()
        elif self.highlighted is not None:
            candidate = self._candidates[self.highlighted]
            if key == "tab" and candidate.text == self._typed and len(self._candidates) > 1:
                # Tab goes on, into a folder that Enter would take as it is.
                return self._candidates[(self.highlighted + 1) % len(self._candidates)]
            return candidate
        return None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        candidate = self._candidates[event.option_index]
        self.post_message(self.Taken(candidate, run=candidate.final))
