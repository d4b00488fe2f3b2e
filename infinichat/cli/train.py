"""``infinichat train memory``: teach a checkpoint's memory to recall. The work is in
``infinichat.training``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from infinichat.cli.context import Context
from infinichat.cli.parser import whole

ALLOCATORS = (
    "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
    "/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4",
)
"""Where an allocator that keeps its pages may be; without one, half of a training step goes into page
faults."""


TUNABLES = ":".join(
    f"glibc.malloc.{name}={size}"
    for name, size in (("mmap_threshold", 1 << 32), ("trim_threshold", 1 << 34), ("top_pad", 1 << 28))
)
"""The same from the C library's own allocator; its limits would otherwise move, and give pages back."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("memory",), help="what to train")
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
        help="keys, marks, gate, recall (default: all); what is done already is only read",
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
        "--keep",
        action="store_true",
        help="start from the checkpoint's trained memory, not from an untrained one",
    )


def run(args: argparse.Namespace, context: Context) -> int:
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
        fresh=not args.keep,
    )

    def say(line: str) -> None:
        console.clear_progress()
        console.status(line)

    folder = train_memory(loaded, options, report=console.progress, say=say)
    console.clear_progress()
    console.line(str(folder))
    for picture in draw(args.out):
        console.line(str(picture))
    return 0


def keep_pages() -> None:
    """Start this command once more with an allocator that keeps freed pages, where the system has one."""
    if (
        os.environ.get("INFINICHAT_ALLOCATOR")
        or os.environ.get("LD_PRELOAD")
        or not sys.platform.startswith("linux")
    ):
        return
    library = next((path for path in ALLOCATORS if Path(path).exists()), None)
    change = {"GLIBC_TUNABLES": TUNABLES} if library is None else {"LD_PRELOAD": library}
    environment = os.environ | change | {"INFINICHAT_ALLOCATOR": "set"}
    os.execve(sys.executable, [sys.executable, "-m", "infinichat", *sys.argv[1:]], environment)
