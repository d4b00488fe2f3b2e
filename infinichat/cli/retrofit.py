"""``infinichat retrofit``: a pretrained model becomes a checkpoint with an untrained memory.

What it does is in ``infinichat.model.retrofit``, which is imported only here, because it brings torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infinichat.cli.context import Context
from infinichat.cli.models import entry_json, registry_of
from infinichat.cli.parser import add_json, whole
from infinichat.errors import UsageError
from infinichat.text.figures import size

MEMORIES = ("bank", "recall", "linear", "delta")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="a model's name, Hugging Face folder or GGUF file")
    parser.add_argument("out", metavar="OUT", help="the checkpoint's folder, a new one")
    group = parser.add_argument_group("the memory (what is not given is chosen to fit BASE)")
    group.add_argument(
        "--memory",
        choices=MEMORIES,
        help="recall (default): trained to find facts; bank: with exact pairs beside it, as the shipped "
        "checkpoint; linear and delta: the paper's",
    )
    group.add_argument("--slots", type=whole(1), metavar="N", help="exact pairs of a bank; default 1024")
    group.add_argument("--key-dim", type=whole(1), metavar="N", help="width of a bank's or recall's keys")
    group.add_argument("--order", type=whole(1), metavar="N", help="of their features (DPFP); default 3")
    group.add_argument("--layers", type=layer_list, metavar="N,N", help="which layers have a memory, from 0")
    group.add_argument("--window", type=whole(16), metavar="TOKENS", help="attended exactly")
    group.add_argument("--segment", type=whole(1), metavar="TOKENS", help="the unit that leaves the window")
    group.add_argument("--sinks", type=whole(0), metavar="N", help="first tokens that stay attended for ever")
    parser.add_argument("--chat-format", metavar="NAME", help="chatml, llama3, …; default: what BASE speaks")
    parser.add_argument("--copy", action="store_true", help="copy the weights of BASE into OUT")
    add_json(parser)


def layer_list(text: str) -> list[int]:
    """ "12,18" as numbers; argparse reports what is not."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers like 12,18") from None


def _check_fits(args: argparse.Namespace) -> None:
    """Raises ``UsageError`` for an option that the chosen memory does not have: it would do nothing."""
    memory = args.memory or "recall"
    owners = {"slots": ("bank",), "key_dim": ("bank", "recall"), "order": ("bank", "recall")}
    for name, kinds in owners.items():
        if getattr(args, name) is not None and memory not in kinds:
            option = f"--{name.replace('_', '-')}"
            expected = " or ".join(f"--memory {kind}" for kind in kinds)
            raise UsageError(f"{option} does nothing for --memory {memory}; expected {expected}.")


def run(args: argparse.Namespace, context: Context) -> int:
    _check_fits(args)
    from infinichat.model.retrofit import retrofit

    console = context.console
    registry = registry_of(context)
    out = retrofit(
        args.base,
        Path(args.out).expanduser(),
        window=args.window,
        segment=args.segment,
        sinks=args.sinks,
        memory=args.memory,
        memory_layers=args.layers,
        memory_slots=args.slots,
        memory_key_dim=args.key_dim,
        memory_order=args.order,
        chat_format=args.chat_format,
        copy=args.copy,
        registry=registry,
        on_progress=lambda done, total: console.progress(
            f"reading the weights  {100 * done // max(1, total)} %"
        ),
    )
    console.clear_progress()
    entry = registry.entry(out)
    if args.json:
        console.json(entry_json(entry))
    else:
        console.status(
            f"wrote {out} ({size(entry.size_bytes)}); its memory is not trained yet, so it remembers "
            f"its window only. Next: infinichat models use '{out}'"
        )
    return 0
