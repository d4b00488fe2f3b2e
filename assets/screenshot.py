"""Make the README's screenshot: a real conversation with the real default checkpoint, in the real app.

    python assets/screenshot.py [--model NAME] [--size 100x30] [--theme NAME] [--seed N]

The app runs without a terminal (Textual's own way), in a folder of its own, so no session of yours is
touched; the checkpoint is the one installed on this machine. Every answer on the picture was generated while
the script ran. Writes ``screenshot.svg`` here, and ``screenshot.png`` when ``cairosvg`` is installed. The
picture asks no other machine for its font."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from infinichat.config import load_settings
from infinichat.messages import SamplingOptions
from infinichat.paths import Paths, default_paths
from infinichat.store import Store
from infinichat.ui.app import InfiniChatApp, engine_loader, make_app
from infinichat.ui.catalog import RegistryCatalog
from infinichat.ui.widgets.entry import Note

HERE = Path(__file__).resolve().parent

TALK = (
    "My dog is called Biscuit.",
    "What is my dog called?",
    "Give me a short list of three things to take along when I walk him.",
)

LONGEST_WAIT_S = 300.0


async def take(app: InfiniChatApp, size: tuple[int, int]) -> str:
    """Hold the conversation and return the screen as SVG. Raises ``RuntimeError`` when something failed."""
    async with app.run_test(size=size) as pilot:
        await until(lambda: app.chat.report is not None or app.chat.status.status.problem is not None)
        if app.chat.status.status.problem:
            await pilot.pause(0.5)
            raise RuntimeError(" ".join(note.sentence for note in app.chat.transcript.query(Note)))
        app.chat.prompt.cursor_blink = False
        for number, text in enumerate(TALK, start=1):
            app.chat.prompt.set_text(text)
            await pilot.press("enter")
            await until(lambda wanted=2 * number: app.chat.record.messages >= wanted)
        await pilot.pause(0.5)
        return app.export_screenshot()


async def until(true: object) -> None:
    assert callable(true)
    for _ in range(int(LONGEST_WAIT_S / 0.05)):
        if true():
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"waited {LONGEST_WAIT_S:.0f} s for an answer")


def without_web_fonts(svg: str) -> str:
    """The font as the viewer has it, never fetched from somewhere."""
    svg = re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the README's screenshot from a real run.")
    parser.add_argument("--model", help="checkpoint; the default one when it is not given")
    parser.add_argument("--size", default="100x30", help="columns x rows")
    parser.add_argument("--theme", default="infinichat")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    columns, rows = (int(number) for number in args.size.split("x"))

    settings = load_settings(default_paths())
    sampling = SamplingOptions(temperature=0.3, seed=args.seed, max_tokens=160)
    settings = replace(settings, sampling=sampling, ui=replace(settings.ui, theme=args.theme))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        paths = Paths(home / "data", home / "config", home / "cache", home / "state")
        with Store.open(paths) as store:
            app = make_app(
                store,
                store.create_session("biscuit"),
                paths=paths,
                settings=settings,
                model=args.model or settings.model,
                load_engine=engine_loader(settings),
                catalog=RegistryCatalog(default_paths()),
            )
            try:
                svg = without_web_fonts(asyncio.run(take(app, (columns, rows))))
            except RuntimeError as error:
                print(f"no screenshot: {error}", file=sys.stderr)
                return 1
            finally:
                app.services.worker.close()
    (HERE / "screenshot.svg").write_text(svg, encoding="utf-8")
    try:
        import cairosvg
    except ImportError:
        return 0
    # cairosvg takes the first family of a list as one name.
    svg = svg.replace("DejaVu Sans Mono, Menlo, Consolas", "DejaVu Sans Mono")
    cairosvg.svg2png(bytestring=svg.encode(), write_to=str(HERE / "screenshot.png"), output_width=1200)
    return 0


if __name__ == "__main__":
    sys.exit(main())
