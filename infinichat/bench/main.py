"""``infinichat bench``: arguments, and what is printed. What is measured is in ``speed.py`` and
``soak.py``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.errors import UsageError

if TYPE_CHECKING:
    from infinichat.bench.report import Report

TASKS = ("decode", "prefill", "resume", "soak")
HISTORIES = {"decode": (512, 4096), "prefill": (512, 4096), "resume": (512, 4096, 16384), "soak": ()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments after ``infinichat bench``; the command line adds ``--model`` itself."""
    parser.add_argument("task", choices=TASKS, help="what to measure")
    parser.add_argument(
        "--histories",
        type=_numbers,
        metavar="N,...",
        help="tokens before what is measured (decode: 512,4096)",
    )
    parser.add_argument(
        "--tokens",
        type=_number,
        metavar="N",
        help="tokens to generate (decode: 80) or to stream (soak: 1000000)",
    )
    parser.add_argument("--rounds", type=_number, default=5, metavar="N", help="interleaved rounds (5)")
    parser.add_argument(
        "--against",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="also measure transformers, transformers-float32, llamacpp (fetched through npm)",
    )
    parser.add_argument(
        "--weights",
        type=_names,
        default=("auto",),
        metavar="FORMAT,...",
        help="our number formats to measure: auto, float32, bfloat16, int8",
    )
    parser.add_argument("--threads", type=_number, metavar="N", help="for every engine (default: our choice)")
    parser.add_argument("--window", type=_number, metavar="N", help="tokens of our exact window")
    parser.add_argument("--file", type=Path, metavar="FILE", help="soak: text to stream, over and over")
    parser.add_argument("--restart", action="store_true", help="soak: do not go on where one was stopped")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the figures")


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 when it could be measured. ``soak`` gives 1 when a number was not finite."""
    from infinichat.bench.report import plot, table

    if args.plot is not None:
        _require_matplotlib()
    report = _measure(args)
    print(json.dumps(report.as_json(), indent=1) if args.json else table(report))
    if args.plot is not None:
        plot(report, args.plot)
        _say(f"drawn: {args.plot}")
    return 0 if all(row.extra.get("finite", True) for row in report.rows) else 1


def _measure(args: argparse.Namespace) -> Report:
    if args.task == "soak":
        from infinichat.bench.soak import soak

        return soak(
            args.model,
            tokens=args.tokens or 1_000_000,
            threads=args.threads,
            window=args.window,
            weights=args.weights[0],
            text=args.file,
            restart=args.restart,
            say=_say,
        )
    from infinichat.bench import speed
    from infinichat.bench.peers import Options

    histories = args.histories or HISTORIES[args.task]
    tokens = args.tokens or 80
    options = Options(
        model=args.model,
        against=args.against,
        weights=args.weights,
        threads=args.threads,
        window=args.window,
        context=max(histories) + tokens + 64,
    )
    if args.task == "decode":
        return speed.decode(options, histories=histories, tokens=tokens, rounds=args.rounds, say=_say)
    if args.task == "prefill":
        return speed.prefill(options, histories=histories, rounds=args.rounds, say=_say)
    return speed.resume(options, histories=histories, rounds=args.rounds, say=_say)


def _require_matplotlib() -> None:
    # Before an hour of measuring, not after it.
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib. Next: pip install 'infinichat[plot]'.") from None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _number(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in text.split(",") if part)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
