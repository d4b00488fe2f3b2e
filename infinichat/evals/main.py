"""``infinichat eval``: arguments, which measure, and what is printed."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinichat.errors import UsageError

if TYPE_CHECKING:
    from infinichat.config import Settings
    from infinichat.engine.generate import InfiniEngine
    from infinichat.evals.task import Options

TASKS: dict[str, str] = {
    "facts": "N facts told, filler, a question about each",
    "passkey": "a random key at a depth, in the paper's words and in a chat",
    "unknown": "what was never told is admitted, what was told is not refused",
    "updates": "facts corrected once or twice: the newest wins",
    "perplexity": "a held-out book by position: memory on, off, and the base with full attention",
    "chat": "held-out answers' loss with a memory full of other things",
    "needle": "a sentence in the middle of a held-out book",
    "two-step": "a question that needs two facts",
    "babilong": "stories of bAbI's first five kinds, spread over a held-out book",
    "gates": "what the write gate learned to write",
}
MODULES = {"two-step": "two_step"}
CARD = "card"
"""The task that is all of the others, as a checkpoint's card has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments after ``infinichat eval``; the command line adds ``--model`` itself."""
    listed = "; ".join(f"{name}: {what}" for name, what in TASKS.items())
    everything = f"{CARD}: everything a checkpoint's card says, into --out; goes on where it was stopped"
    parser.add_argument("task", choices=(*TASKS, CARD), help=f"{listed}; {everything}")
    parser.add_argument("--lengths", type=numbers, metavar="N,...", help="tokens before the question")
    parser.add_argument("--depths", type=shares, metavar="D,...", help="0: at the start, 1: last (0,0.5,1)")
    parser.add_argument("--facts", type=numbers, metavar="N,...", help="facts in a conversation (16)")
    parser.add_argument("--samples", type=number, metavar="N", help="least questions in a cell (48)")
    parser.add_argument(
        "--memory", type=words, metavar="NAME,...", help="on, off, wiped, swapped (default: on,off)"
    )
    parser.add_argument("--sides", type=words, metavar="NAME,...", help="seen, held_out (default: both)")
    parser.add_argument("--filler", type=Path, metavar="DIR", help="a folder of held-out *.jsonl and *.txt")
    parser.add_argument(
        "--filler-kind", type=words, metavar="NAME,...", help="dialogues, books (default: dialogues)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other questions (0)")
    parser.add_argument("--tail", type=number, metavar="N", help="last tokens that run through all layers")
    parser.add_argument("--answers", type=Path, metavar="FILE.jsonl", help="also write every answer")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw it")
    card = parser.add_argument_group(CARD)
    card.add_argument("--out", type=Path, metavar="DIR", help="the folder for results, tables and pictures")
    card.add_argument("--seeds", type=seeds, default=(0, 1, 2), metavar="N,...", help="(0,1,2)")
    card.add_argument("--workers", type=number, default=1, metavar="N", help="one core each (1)")
    card.add_argument(
        "--only", type=words, default=(), metavar="NAME,...", help="parts that begin with these"
    )
    card.add_argument("--budget", action="store_true", help="print what would be done, and how long it takes")


def run(
    args: argparse.Namespace, load: Callable[[], Any], remote: tuple[str | None, Settings] | None = None
) -> int:
    """Measure and print. ``load`` gives the engine; it is called after the arguments were checked. ``remote``
    is what other processes load: a checkpoint's name and the settings."""
    if args.task == CARD:
        return _card(args, load, remote)
    options = _options(args)
    if args.plot is not None:
        _require_matplotlib()
    from infinichat.evals.bench import Bench
    from infinichat.evals.task import table

    bench = Bench.of(_checked(load()), _say)
    module = importlib.import_module(f"infinichat.evals.{MODULES.get(args.task, args.task)}")
    transcript: list[dict[str, Any]] = []
    report = module.measure(bench, options, transcript)
    if not bench.engine.info.trained:
        report.notes.append("the memory of this checkpoint is not trained: it has a window only")
    report.settings = {
        **{key: value for key, value in asdict(options).items() if key != "filler"},
        "filler": None if options.filler is None else options.filler.name,
        "fingerprint": bench.engine.info.fingerprint,
        "dtype": bench.engine.info.dtype,
        "window": bench.engine.info.window,
        "segment": bench.engine.info.segment,
    }
    if args.answers is not None:
        args.answers.write_text("".join(json.dumps(a) + "\n" for a in transcript), encoding="utf-8")
    print(json.dumps(report.as_json(), indent=1) if args.json else table(report))
    if args.plot is not None:
        from infinichat.evals.plots import draw

        draw(report, args.plot)
        _say(f"drawn: {args.plot}")
    return 0


def _card(
    args: argparse.Namespace, load: Callable[[], Any], remote: tuple[str | None, Settings] | None
) -> int:
    from infinichat.evals import card, sheet

    if args.out is None:
        raise UsageError("eval card has no folder for its results. Next: name one with --out.")
    order = card.Order(args.out, args.filler, args.seeds, args.workers, args.only)
    if not card.parts(order):
        known = ", ".join(part.name for part in card.parts(replace(order, only=())))
        raise UsageError(f"--only {','.join(args.only)} names no part; there are {known}")
    if args.budget:
        print(card.budget(order))
        return 0
    _require_matplotlib()
    card.run_all(order, lambda: _checked(load()), remote)
    about = card.about(order)
    files = sheet.write(args.out, about, plots=True)
    print((args.out / "card.md").read_text(encoding="utf-8"))
    for file in files:
        _say(f"written: {file}")
    return 0


def _options(args: argparse.Namespace) -> Options:
    from infinichat.evals.task import FILLER_KINDS, MEMORIES, Options

    _known(args.memory, MEMORIES, "--memory")
    _known(args.sides, ("seen", "held_out"), "--sides")
    _known(args.filler_kind, FILLER_KINDS, "--filler-kind")
    given: dict[str, Any] = {
        "lengths": args.lengths,
        "depths": args.depths,
        "facts": args.facts,
        "samples": args.samples,
        "memory": args.memory,
        "sides": args.sides,
        "kinds": args.filler_kind,
        "filler": args.filler,
        "seed": args.seed,
        "tail": args.tail,
    }
    return Options(**{key: value for key, value in given.items() if value is not None})


def _known(names: tuple[str, ...] | None, known: tuple[str, ...], option: str) -> None:
    wrong = [name for name in names or () if name not in known]
    if wrong:
        raise UsageError(f"{option} has '{wrong[0]}'; expected some of {', '.join(known)}")


def _checked(engine: Any) -> InfiniEngine:
    from infinichat.engine.generate import InfiniEngine

    if not isinstance(engine, InfiniEngine):
        raise UsageError(f"the engine is a {type(engine).__name__}; measuring needs a real model")
    return engine


def _require_matplotlib() -> None:
    # Before an hour of measuring, not after it.
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib. Next: pip install 'infinichat[plot]'.") from None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def number(text: str) -> int:
    """An argparse type: a whole number of 1 or more; 16K and 1M are understood."""
    factors = {"k": 1024, "m": 1024 * 1024}
    digits, factor = text.replace("_", ""), 1
    if digits[-1:].lower() in factors:
        digits, factor = digits[:-1], factors[digits[-1].lower()]
    try:
        value = int(digits) * factor
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return value


def numbers(text: str) -> tuple[int, ...]:
    """Numbers between commas."""
    return tuple(number(part) for part in text.split(",") if part)


def seeds(text: str) -> tuple[int, ...]:
    """Whole numbers between commas, 0 too."""
    try:
        found = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        found = ()
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds like 0,1,2")
    return found


def shares(text: str) -> tuple[float, ...]:
    """Shares from 0 to 1 between commas."""
    try:
        found = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        found = (-1.0,)
    if not found or not all(0 <= share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of shares from 0 to 1 like 0,0.5,1")
    return found


def words(text: str) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
