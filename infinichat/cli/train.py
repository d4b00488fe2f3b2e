"""``infinichat train``: teach a model. What each verb does is in ``infinichat.training``.

``train memory`` is here; ``lm``, ``passkey`` and ``prepare`` are in ``train_lm.py``, ``paper`` in
``train_paper.py``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.cli import train_lm, train_paper
from infinichat.cli.context import Context
from infinichat.cli.pages import keep_pages
from infinichat.cli.parser import add_model, whole

if TYPE_CHECKING:
    from infinichat.training.lm_run import Processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    text = "a checkpoint's memory, to recall, on generated facts"
    memory = verbs.add_parser("memory", help=text, description=text)
    add_model(memory, again=True)
    memory.set_defaults(verb=train_memory_verb)
    add_memory_arguments(memory)
    train_lm.add_verbs(verbs)
    train_paper.add_verb(verbs)


def run(args: argparse.Namespace, context: Context) -> int:
    verb: Callable[[argparse.Namespace, Context], int] = args.verb
    return verb(args, context)


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FOLDER", help="*.jsonl dialogues, *.txt, *.md"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="cache, logs and checkpoint"
    )
    parser.add_argument(
        "--stage",
        default="all",
        metavar="NAME,...",
        help="gate, keys, marks, recall (default: all); what is done already is only read",
    )
    parser.add_argument(
        "--shards", type=whole(1), default=16, metavar="N", help="cached streams, 40,000 tokens each"
    )
    parser.add_argument("--tokens", type=whole(500), default=40_000, metavar="N", help="tokens of a shard")
    parser.add_argument(
        "--steps", type=whole(1), metavar="N", help="of each stage; default: what was enough before"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--general",
        type=whole(0),
        default=240,
        metavar="N",
        help="general questions to leave as the base answers",
    )
    parser.add_argument(
        "--rank",
        type=whole(0),
        default=8,
        metavar="N",
        help="of the changes to attention above the memory; 0: none (8)",
    )
    parser.add_argument(
        "--topics",
        type=whole(0),
        default=4,
        metavar="N",
        help="heads that look for whose and what, where the checkpoint has none; 0: none (4)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="start from the checkpoint's trained memory, not from an untrained one",
    )


def processes_of() -> Processes | None:
    """Those that ``accelerate launch`` or ``torchrun`` started; None for one process, which needs no
    Accelerate."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from infinichat.training.lm_run import Processes

    return Processes(cpu=True)


def train_memory_verb(args: argparse.Namespace, context: Context) -> int:
    keep_pages()
    import torch

    from infinichat.model.loading import load_model
    from infinichat.training.plots import draw
    from infinichat.training.prepare import STAGES, Options, train_memory

    console = context.console
    loaded = load_model(args.model, dtype=torch.bfloat16)
    stages = STAGES if args.stage == "all" else tuple(args.stage.split(","))
    steps = None if args.steps is None else dict.fromkeys(STAGES, args.steps)
    options = Options(
        text=args.text,
        out=args.out,
        stages=stages,
        shards=args.shards,
        tokens=args.tokens,
        steps=steps,
        seed=args.seed,
        general=args.general,
        rank=args.rank,
        topics=args.topics,
        fresh=not args.keep,
    )

    def say(line: str) -> None:
        console.clear_progress()
        console.status(line)

    processes = processes_of()
    if processes is not None and not processes.first:
        train_memory(loaded, options, report=lambda _: None, processes=processes)
        return 0
    folder = train_memory(loaded, options, report=console.progress, say=say, processes=processes)
    console.clear_progress()
    console.line(str(folder))
    for picture in draw(args.out):
        console.line(str(picture))
    return 0
