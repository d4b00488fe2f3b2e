"""``infinichat eval``: arguments, which measure, and what is printed. What is measured is in
``infinichat.evals``, which is imported inside functions only, because it brings torch."""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json, add_plot, count, counts, names, require_matplotlib
from infinichat.errors import UsageError

if TYPE_CHECKING:
    from infinichat.engine.generate import InfiniEngine
    from infinichat.evals.bench import Bench
    from infinichat.evals.task import Options, Report

TASKS: dict[str, str] = {
    "facts": "N facts told, filler, a question about each",
    "everyday": "what people tell about themselves, in sentences written one by one",
    "stories": "the same with a story around it, asked for in other words",
    "young": "told, replied to and asked for at once, as a conversation begins",
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
FORMATS = "formats"
"""The task that loads the checkpoint once for each number format."""

CARD = "card"
"""The task that is all of the others, as a checkpoint's card has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {what}" for name, what in TASKS.items())
    everything = f"{CARD}: everything a checkpoint's card says, into --out; goes on where it was stopped"
    formats = f"{FORMATS}: what answering in fewer bits costs, in perplexity and in facts"
    parser.add_argument("task", choices=(*TASKS, FORMATS, CARD), help=f"{listed}; {formats}; {everything}")
    parser.add_argument("--lengths", type=counts, metavar="N,...", help="tokens before the question")
    parser.add_argument("--depths", type=_shares, metavar="D,...", help="0: at the start, 1: last (0,0.5,1)")
    parser.add_argument("--facts", type=counts, metavar="N,...", help="facts in a conversation (16)")
    parser.add_argument("--samples", type=count, metavar="N", help="least questions in a cell (48)")
    parser.add_argument(
        "--memory", type=names, metavar="NAME,...", help="on, off, wiped, swapped (default: on,off)"
    )
    parser.add_argument("--sides", type=names, metavar="NAME,...", help="seen, held_out (default: both)")
    parser.add_argument("--filler", type=Path, metavar="DIR", help="a folder of held-out *.jsonl and *.txt")
    parser.add_argument(
        "--filler-kind", type=names, metavar="NAME,...", help="dialogues, books (default: dialogues)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other questions (0)")
    parser.add_argument("--tail", type=count, metavar="N", help="last tokens that run through all layers")
    parser.add_argument(
        "--formats", type=names, metavar="NAME,...", help="float32, bfloat16, int8, int4 (default: all)"
    )
    parser.add_argument("--answers", type=Path, metavar="FILE.jsonl", help="also write every answer")
    add_json(parser, "one JSON document instead of a table")
    add_plot(parser, "also draw it")
    card = parser.add_argument_group(CARD)
    card.add_argument("--out", type=Path, metavar="DIR", help="the folder for results, tables and pictures")
    card.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="N,...", help="(0,1,2)")
    card.add_argument("--workers", type=count, default=1, metavar="N", help="one core each (1)")
    card.add_argument(
        "--only", type=names, default=(), metavar="NAME,...", help="parts that begin with these"
    )
    card.add_argument("--budget", action="store_true", help="print what would be done, and how long it takes")


def run(args: argparse.Namespace, context: Context) -> int:
    """Measure and print. The engine is loaded after the arguments were checked."""
    if args.task == CARD:
        return _card(args, context)
    options = _options(args)
    from infinichat.evals.bench import Bench
    from infinichat.evals.task import table

    say = context.console.status
    transcript: list[dict[str, Any]] = []
    if args.task == FORMATS:
        bench, report = _formats(args, context, options, transcript)
    else:
        bench = Bench.of(_engine(args, context), say)
        module = importlib.import_module(f"infinichat.evals.{MODULES.get(args.task, args.task)}")
        report = module.measure(bench, options, transcript)
    if not bench.engine.info.trained:
        report.notes.append("the memory of this checkpoint is not trained: it has a window only")
    report.settings = {
        **{key: value for key, value in asdict(options).items() if key != "filler"},
        "filler": None if options.filler is None else options.filler.name,
        "fingerprint": bench.engine.info.fingerprint,
        "dtype": None if args.task == FORMATS else bench.engine.info.dtype,
        "window": bench.engine.info.window,
        "segment": bench.engine.info.segment,
    }
    if args.answers is not None:
        args.answers.write_text("".join(json.dumps(a) + "\n" for a in transcript), encoding="utf-8")
    if args.json:
        context.console.json(report.as_json())
    else:
        context.console.line(table(report))
    if args.plot is not None:
        from infinichat.evals.plots import draw

        draw(report, args.plot)
        say(f"drawn: {args.plot}")
    return 0


def _formats(
    args: argparse.Namespace, context: Context, options: Options, transcript: list[dict[str, Any]]
) -> tuple[Bench, Report]:
    """The report, and the bench over the last format that was loaded."""
    from infinichat.evals import formats
    from infinichat.evals.bench import Bench

    names = args.formats or formats.FORMATS
    _known(names, formats.FORMATS, "--formats")
    if args.plot is not None:
        raise UsageError("eval formats draws nothing; leave --plot out")
    loaded: list[Bench] = []

    def load(name: str) -> Bench:
        loaded.clear()
        # "auto" is 4 bits wherever a file's weights are.
        engine = _engine(args, context, dtype="auto" if name == "int4" else name)
        loaded.append(Bench.of(engine, context.console.status))
        return loaded[0]

    report = formats.measure(load, options, transcript, names)
    return loaded[0], report


def _card(args: argparse.Namespace, context: Context) -> int:
    from infinichat.evals import card, sheet

    if args.out is None:
        raise UsageError("eval card has no folder for its results. Next: name one with --out.")
    order = card.Order(args.out, args.filler, args.seeds, args.workers, args.only)
    if not card.parts(order):
        known = ", ".join(part.name for part in card.parts(replace(order, only=())))
        raise UsageError(f"--only {','.join(args.only)} names no part; there are {known}")
    if args.budget:
        context.console.line(card.budget(order))
        return 0
    require_matplotlib("eval card")
    # Other processes load the checkpoint themselves; an engine that was handed in cannot go there.
    remote = None if context.engine_factory else (args.model, context.settings())
    card.run_all(order, lambda: _engine(args, context), remote)
    files = sheet.write(args.out, card.about(order), plots=True)
    context.console.line((args.out / "card.md").read_text(encoding="utf-8"))
    for file in files:
        context.console.status(f"written: {file}")
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


def _engine(args: argparse.Namespace, context: Context, dtype: str | None = None) -> InfiniEngine:
    from infinichat.engine.generate import InfiniEngine

    engine = context.load_engine(args.model, dtype=dtype)
    if not isinstance(engine, InfiniEngine):
        raise UsageError(f"the engine is a {type(engine).__name__}; measuring needs a real model")
    return engine


def _seeds(text: str) -> tuple[int, ...]:
    """Whole numbers between commas, 0 too."""
    try:
        found = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        found = ()
    if not found or min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds like 0,1,2")
    return found


def _shares(text: str) -> tuple[float, ...]:
    """Shares from 0 to 1 between commas."""
    try:
        found = tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        found = (-1.0,)
    if not found or not all(0 <= share <= 1 for share in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of shares from 0 to 1 like 0,0.5,1")
    return found
