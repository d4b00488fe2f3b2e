"""``infinichat eval``: what a checkpoint remembers. What is measured is in ``infinichat.evals``, which is
imported here only, because it brings torch."""

from __future__ import annotations

import argparse

from infinichat.cli.context import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from infinichat.evals.main import add_arguments as add

    add(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from infinichat.evals.main import run as measure

    # Other processes load the checkpoint themselves; an engine that was handed in cannot go there.
    remote = None if context.engine_factory else (args.model, context.settings())
    return measure(args, lambda: context.load_engine(args.model), remote)
