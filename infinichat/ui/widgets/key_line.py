"""The line at the bottom that says which keys do what, on one widget.

Textual's ``Footer`` makes a widget for each key and makes them all anew whenever an action may have become
possible: at the start, and at the beginning and end of every turn, each time with the whole screen laid out
again. This one paints one line of text, and only when the words on it have changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from textual import events
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static


@dataclass(frozen=True, slots=True)
class KeyHelp:
    """One key: ``key`` as Textual calls it, ``shown`` as people do."""

    key: str
    shown: str
    help: str

    @property
    def width(self) -> int:
        """Cells with the blanks around: " f1 Help "."""
        return cell_len(self.shown) + cell_len(self.help) + 3


class KeyLine(Static):
    """See the module. A click on a key presses it; ``palette`` says whether its key stands at the right."""

    ALLOW_SELECT = False

    def __init__(self, *, palette: bool = True) -> None:
        super().__init__(markup=False, classes="keys")
        self._palette = palette
        self._shown: tuple[list[KeyHelp], KeyHelp | None, int] | None = None

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def on_resize(self) -> None:
        self._show()

    def _changed(self, screen: Screen[object]) -> None:
        if screen is self.screen and self.app.app_focus:
            self._show()

    def _show(self) -> None:
        keys, last = self._keys()
        width = self.size.width
        if not width or (keys, last, width) == self._shown:
            return
        self._shown = keys, last, width
        self.update(line(keys, last, width), layout=False)

    def _keys(self) -> tuple[list[KeyHelp], KeyHelp | None]:
        """The keys that may be pressed now, in the order of their screens, and the palette's."""
        found: dict[str, KeyHelp] = {}
        palette = None
        for key, (_, binding, enabled, _) in self.screen.active_bindings.items():
            if not enabled:
                continue
            shown = KeyHelp(binding.key, self.app.get_key_display(binding), binding.description)
            if key == self.app.COMMAND_PALETTE_BINDING:
                palette = shown if self._palette else None
            elif binding.show:
                found.setdefault(binding.action, shown)
        return list(found.values()), palette

    def on_click(self, event: events.Click) -> None:
        keys, last, width = self._shown or ([], None, 0)
        pressed = key_at(keys, last, width, event.x)
        if pressed is not None:
            event.stop()
            self.app.simulate_key(pressed)


def line(keys: list[KeyHelp], last: KeyHelp | None, width: int) -> Content:
    """The keys from the left as far as they fit whole, ``last`` at the right end."""
    room = _room(last, width)
    pieces: list[tuple[str, str]] = []
    used = 0
    for key in keys:
        if used + key.width > room:
            break
        pieces += [(f" {key.shown} ", "bold $footer-key-foreground"), (f"{key.help} ", "$foreground")]
        used += key.width
    if last is not None and room >= 0:
        pieces.append((" " * (room - used), ""))
        pieces += [
            ("▏", "$foreground 20%"),
            (last.shown, "bold $footer-key-foreground"),
            (f" {last.help} ", ""),
        ]
    return Content.assemble(*pieces)


def key_at(keys: list[KeyHelp], last: KeyHelp | None, width: int, x: int) -> str | None:
    """Which key of the line stands at column ``x``."""
    room = _room(last, width)
    if last is not None and x >= room >= 0:
        return last.key
    used = 0
    for key in keys:
        used += key.width
        if used > room:
            return None
        if x < used:
            return key.key
    return None


def _room(last: KeyHelp | None, width: int) -> int:
    """Columns left of ``last``."""
    return width - last.width if last is not None else width
