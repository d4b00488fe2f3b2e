"""Make the README's recording: told two things, the app reads a book, is closed, opened again, and asked.

    python assets/recording.py [--book FILE] [--model NAME] [--size 100x26] [--seed N]

As for the screenshot, the real app with the real checkpoint runs in a folder of its own, and nothing on the
pictures was made by anything else. Without ``--book`` it reads the language reference that every Python
brings along (``pydoc_data.topics``, about 120,000 tokens). Typing and answering are shown as fast as they
were, reading and starting some thirty times as fast. Writes ``recording.gif``; needs ``cairosvg`` and
``pillow``."""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics

import cairosvg
from PIL import Image
from screenshot import HERE, until, without_web_fonts
from textual.pilot import Pilot

from infinichat.config import Settings, load_settings
from infinichat.messages import SamplingOptions
from infinichat.paths import Paths, default_paths
from infinichat.store import Store
from infinichat.ui.app import InfiniChatApp, engine_loader, make_app
from infinichat.ui.catalog import RegistryCatalog
from infinichat.ui.widgets.entry import Note

BEFORE = ("My dog is called Biscuit.", "My locker code is 48213.")
AFTER = ("What is my locker code?", "And what is my dog called?")
EVERY_S, LONG_S = 0.15, 5.0
"""Between two pictures: of what is shown as fast as it was, and of what takes minutes."""
HELD_S = 2.5
"""How long an answer stays before the next message."""
WIDTH = 900


@dataclass(slots=True)
class Film:
    """Pictures as SVG, and how many seconds each is shown."""

    frames: list[tuple[str, float]]

    def take(self, app: InfiniChatApp, seconds: float) -> None:
        """The screen as it is; one that did not change is shown for longer."""
        # A picture's names are drawn anew each time.
        svg = re.sub(r"terminal-\d+", "terminal", without_web_fonts(app.export_screenshot()))
        if self.frames and self.frames[-1][0] == svg:
            seconds += self.frames.pop()[1]
        self.frames.append((svg, seconds))

    def save(self, file: Path) -> None:
        """An animated GIF."""
        pictures = [_picture(svg) for svg, _ in self.frames]
        times = [int(1000 * seconds) for _, seconds in self.frames]
        pictures[0].save(
            file, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True
        )


def _picture(svg: str) -> Image.Image:
    # cairosvg takes the first family of a list as one name.
    svg = svg.replace("DejaVu Sans Mono, Menlo, Consolas", "DejaVu Sans Mono")
    drawn = cairosvg.svg2png(bytestring=svg.encode(), output_width=WIDTH)
    return Image.open(io.BytesIO(drawn)).convert("RGB").quantize(48, dither=Image.Dither.NONE)


async def say(app: InfiniChatApp, pilot: Pilot[object], film: Film, text: str, *, every_s: float) -> None:
    """Type a line, send it, and wait until it is answered or read."""
    prompt, wanted = app.chat.prompt, app.chat.record.messages + 2
    for end in range(1, len(text) + 1, 2):
        prompt.set_text(text[: end + 1])
        await pilot.pause()
        film.take(app, 0.08)
    if text.startswith("/"):
        wanted -= 1
    await pilot.press("enter")
    task = asyncio.create_task(until(lambda: app.chat.record.messages >= wanted and not app.chat.turns.busy))
    while not task.done():
        await asyncio.sleep(every_s)
        film.take(app, EVERY_S)
    await task
    await pilot.pause(0.5)
    film.take(app, HELD_S)


async def hold(app: InfiniChatApp, film: Film, size: tuple[int, int], lines: list[tuple[str, float]]) -> None:
    """One run of the app. Raises ``RuntimeError`` when something failed."""
    async with app.run_test(size=size) as pilot:
        await until(lambda: app.chat.report is not None or app.chat.status.status.problem is not None)
        if app.chat.status.status.problem:
            await pilot.pause(0.5)
            raise RuntimeError(" ".join(note.sentence for note in app.chat.transcript.query(Note)))
        app.chat.prompt.cursor_blink = False
        await pilot.pause(0.5)
        film.take(app, 1.0)
        for text, every_s in lines:
            await say(app, pilot, film, text, every_s=every_s)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the README's recording from a real run.")
    parser.add_argument("--book", type=Path, help="a text to read; Python's reference when not given")
    parser.add_argument("--model", help="checkpoint; the default one when it is not given")
    parser.add_argument("--size", default="100x26", help="columns x rows")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    columns, rows = (int(number) for number in args.size.split("x"))
    settings = load_settings(default_paths())
    settings = replace(settings, sampling=SamplingOptions(temperature=0, seed=args.seed, max_tokens=120))
    film = Film([])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        book = args.book.resolve() if args.book else home / "python-reference.txt"
        if args.book is None:
            book.write_text("\n\n".join(topics.values()), encoding="utf-8")
        os.chdir(book.parent)  # so that its name alone is typed
        told = [(text, EVERY_S) for text in BEFORE]
        asked = [(text, EVERY_S) for text in AFTER]
        try:
            for lines in ([*told, (f"/read {book.name}", LONG_S)], asked):
                _run(home, settings, args.model or settings.model, film, (columns, rows), lines)
        except RuntimeError as error:
            print(f"no recording: {error}", file=sys.stderr)
            return 1
    film.save(HERE / "recording.gif")
    return 0


def _run(
    home: Path,
    settings: Settings,
    model: str,
    film: Film,
    size: tuple[int, int],
    lines: list[tuple[str, float]],
) -> None:
    """The app on the one session, from its start to its end."""
    paths = Paths(home / "data", home / "config", home / "cache", home / "state")
    with Store.open(paths) as store:
        sessions = store.sessions()
        app = make_app(
            store,
            sessions[0] if sessions else store.create_session("biscuit"),
            paths=paths,
            settings=settings,
            model=model,
            load_engine=engine_loader(settings),
            catalog=RegistryCatalog(default_paths()),
        )
        try:
            asyncio.run(hold(app, film, size, lines))
        finally:
            app.services.worker.close()


if __name__ == "__main__":
    sys.exit(main())
