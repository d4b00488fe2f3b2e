"""``infinichat bench``: arguments, and what is printed. What is measured and how is in ``infinichat.bench``,
which is imported inside ``run`` only, because most of it brings the engine and torch with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json, add_plot, count, counts, names, number
from infinichat.errors import UsageError

if TYPE_CHECKING:
    from infinichat.bench.report import Report

TASKS = {
    "decode": "tokens/s of an answer after so many tokens of history",
    "prefill": "tokens/s of reading so many tokens",
    "read": "the same, as a document is read",
    "resume": "seconds to the first token of a conversation that comes back from disk",
    "soak": "a million tokens and more through one state: does a token still cost what it cost?",
    "batch": "many sessions that answer at once: tokens/s in sum, and what each of them costs",
    "store": "listing, searching and opening in a store with years of talk in it",
    "train": "a training step's speed and peak memory: SDPA, one forward, streamed by segments",
    "start": "from starting the app to its first paint, its words and an answer's first token; its imports",
    "ui": "from a key to its letter on the screen, by length of the transcript, also while an answer streams",
}
HISTORIES = {
    "decode": (512, 4096),
    "prefill": (512, 4096),
    "read": (7600, 16384),
    "resume": (512, 4096, 16384),
}
MESSAGES = {"start": (1000,), "ui": (10, 1000, 10_000)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "task", choices=tuple(TASKS), help="; ".join(f"{name}: {what}" for name, what in TASKS.items())
    )
    parser.add_argument("--threads", type=count, metavar="N", help="for every engine (default: our choice)")
    add_json(parser, "one JSON document instead of a table")
    add_plot(parser, "also draw the figures (decode, prefill, read, resume, soak)")
    engines = parser.add_argument_group("decode, prefill, read, resume")
    engines.add_argument(
        "--histories",
        type=counts,
        metavar="N,...",
        help="tokens before what is measured (decode, prefill: 512,4096; read: 7600,16384; resume: "
        "512,4096,16384; batch: 1024)",
    )
    engines.add_argument(
        "--rounds", type=count, default=5, metavar="N", help="in turns; also for batch, store, start (5)"
    )
    engines.add_argument(
        "--against",
        type=names,
        default=(),
        metavar="NAME,...",
        help="also measure transformers, transformers-float32, llamacpp (fetched through npm)",
    )
    engines.add_argument(
        "--weights",
        type=names,
        default=("auto",),
        metavar="FORMAT,...",
        help="our number formats to measure: auto, float32, bfloat16, int8, int4; soak, batch take the first",
    )
    engines.add_argument("--window", type=count, metavar="N", help="tokens of our window; also for soak")
    engines.add_argument(
        "--tokens",
        type=count,
        metavar="N",
        help="tokens to generate (decode: 80; batch: 16 of each in a round) or to stream (soak: 1000000)",
    )
    many = parser.add_argument_group("batch, store")
    many.add_argument(
        "--sessions", type=counts, metavar="N,...", help="at once (batch: 1,4,16,64); in it (store: 1000)"
    )
    soak = parser.add_argument_group("soak")
    soak.add_argument("--file", type=Path, metavar="FILE", help="text to stream, over and over")
    soak.add_argument("--restart", action="store_true", help="do not go on where one was stopped")
    train = parser.add_argument_group("train (random weights; one process for each step)")
    train.add_argument("--lengths", type=counts, metavar="N,...", help="of the text (2K,8K,32K,128K)")
    train.add_argument("--ways", type=names, metavar="NAME,...", help="sdpa, type1, type2, type2-full (all)")
    train.add_argument("--hidden", type=count, default=64, metavar="N", help="width of the model (64)")
    train.add_argument("--layers", type=count, default=2, metavar="N", help="of the model (2)")
    train.add_argument("--segment", type=count, default=2048, metavar="N", help="tokens of a segment (2048)")
    train.add_argument("--truncate", type=count, default=2, metavar="N", help="type2: segments back (2)")
    train.add_argument(
        "--limit", type=number(1, 86400), default=300.0, metavar="S", help="seconds a step may take (300)"
    )
    app = parser.add_argument_group("start, ui (in a terminal and a home of their own; Linux, macOS)")
    app.add_argument(
        "--messages",
        type=counts,
        metavar="N,...",
        help="in the session (start: 1000; ui: 10,1000,10000); in all of them (store: 100000)",
    )
    app.add_argument("--keys", type=count, default=150, metavar="N", help="ui: keys in each phase (150)")
    app.add_argument(
        "--engine",
        choices=("scripted", "real"),
        default="scripted",
        help="ui: what answers; real is the checkpoint (scripted)",
    )


def run(args: argparse.Namespace, context: Context) -> int:
    """Measure and print; 0 when it could be measured. ``soak`` gives 1 when a number was not finite."""
    from infinichat.bench.report import plot, table

    if args.plot is not None and args.task in (*MESSAGES, "batch", "store"):
        raise UsageError(
            f"bench {args.task} draws nothing; --plot is for decode, prefill, read, resume, soak and train"
        )
    if args.task == "train":
        report = _train(args, context)
        from infinichat.bench.train import table
    elif args.task == "store":
        report = _store(args, context)
    elif args.task == "batch":
        report = _batch(args, context)
        from infinichat.bench.batch import table
    else:
        report = _app(args, context) if args.task in MESSAGES else _engines(args, context)
    if args.json:
        context.console.json(report.as_json())
    else:
        context.console.line(table(report))
    if args.plot is not None:
        plot(report, args.plot)
        context.console.status(f"drawn: {args.plot}")
    return 0 if all(row.extra.get("finite", True) for row in report.rows) else 1


def _train(args: argparse.Namespace, context: Context) -> Report:
    from infinichat.bench.train import LENGTHS, WAYS, Sizes, train

    sizes = Sizes(
        hidden=args.hidden,
        layers=args.layers,
        segment=args.segment,
        truncate=args.truncate,
        limit=args.limit,
    )
    return train(
        lengths=args.lengths or LENGTHS,
        ways=args.ways or WAYS,
        sizes=sizes,
        threads=args.threads,
        say=context.console.status,
    )


def _batch(args: argparse.Namespace, context: Context) -> Report:
    from infinichat.bench.batch import HISTORY, SESSIONS, TOKENS, Sizes, batch

    history = _one(args.histories, HISTORY, "batch", "--histories")
    sizes = Sizes(args.sessions or SESSIONS, history, args.tokens or TOKENS, args.rounds)
    return batch(
        args.model, sizes=sizes, threads=args.threads, weights=args.weights[0], say=context.console.status
    )


def _store(args: argparse.Namespace, context: Context) -> Report:
    from infinichat.bench.store import MESSAGES, SESSIONS, measure_store

    return measure_store(
        sessions=_one(args.sessions, SESSIONS, "store", "--sessions"),
        messages=_one(args.messages, MESSAGES, "store", "--messages"),
        rounds=args.rounds,
        say=context.console.status,
    )


def _one(given: tuple[int, ...] | None, default: int, task: str, option: str) -> int:
    """The one number that ``task`` takes where others take several."""
    if given is not None and len(given) > 1:
        raise UsageError(f"bench {task} takes one number; {option} has several")
    return given[0] if given else default


def _engines(args: argparse.Namespace, context: Context) -> Report:
    say = context.console.status
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
            say=say,
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
        return speed.decode(options, histories=histories, tokens=tokens, rounds=args.rounds, say=say)
    if args.task in ("prefill", "read"):
        return speed.prefill(options, histories=histories, rounds=args.rounds, say=say, task=args.task)
    return speed.resume(options, histories=histories, rounds=args.rounds, say=say)


def _app(args: argparse.Namespace, context: Context) -> Report:
    from infinichat.bench.app_times import Model, measure_start, measure_ui

    say = context.console.status
    messages = args.messages or MESSAGES[args.task]
    model = Model(args.model, args.threads)
    if args.task == "ui":
        return measure_ui(messages=messages, keys=args.keys, engine=args.engine, model=model, say=say)
    one = _one(messages, 0, "start", "--messages")
    return measure_start(messages=one, rounds=args.rounds, model=model, say=say)
