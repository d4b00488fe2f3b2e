"""``infinichat models``: which checkpoints there are, and getting, choosing, checking and removing them.

The list needs neither torch nor the weights. NAME is a name from the list or the path of a model's folder or
GGUF file; without one the chosen model is meant.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from infinichat.cli.context import Context
from infinichat.cli.parser import add_json
from infinichat.cli.streaming import stops_on_ctrl_c
from infinichat.cli.text import table
from infinichat.config import save_setting
from infinichat.text.figures import counted, size
from infinichat.text.harmless import one_line

if TYPE_CHECKING:
    from infinichat.model.pull import PullProgress
    from infinichat.model.registry import Entry, Registry

Verb = Callable[[argparse.Namespace, Context, "Registry"], int]

_STAGES = {
    "wait": "waiting for another infinichat that is fetching",
    "download": "fetching",
    "extract": "unpacking",
    "copy": "copying",
    "check": "checking",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(verb=_list, json=False)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs (list when there is none)")
    add_json(_verb(verbs, "list", _list, "installed and available, trained or not"))
    for name, function, text in (
        ("pull", _pull, "fetch what a checkpoint lacks, and check it"),
        ("info", _info, "size, place, measured recall"),
        ("verify", _verify, "read every byte of a model (of all installed ones without a NAME)"),
    ):
        verb = _verb(verbs, name, function, text)
        verb.add_argument("name", nargs="?", metavar="NAME")
        add_json(verb)
    for name, function, text in (
        ("use", _use, "make a model the one that new sessions use"),
        ("remove", _remove, "delete a model, or the fetched weights of a shipped one"),
    ):
        _verb(verbs, name, function, text).add_argument("name", metavar="NAME")


def run(args: argparse.Namespace, context: Context) -> int:
    verb: Verb = args.verb
    return verb(args, context, registry_of(context))


def registry_of(context: Context) -> Registry:
    """The models of this user, with the one from the settings as the default."""
    from infinichat.model.registry import Registry

    return Registry(context.paths, default=context.settings().model)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, function: Verb, text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text)
    parser.set_defaults(verb=function)
    return parser


def _list(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    entries = registry.entries()
    if args.json:
        context.console.json([entry_json(entry) for entry in entries])
    elif entries:
        context.console.line(models_table(entries))
    else:
        context.console.status(f"there is no model in {context.paths.models}. Next: infinichat doctor")
    return 0


def models_table(entries: list[Entry]) -> str:
    """The list that people see; a star marks the chosen model."""
    rows = [
        [
            ("* " if entry.default else "  ") + entry.name,
            state_of(entry),
            "trained" if entry.trained else "window only",
            size(entry.size_bytes),
            one_line(entry.problem or entry.description, 60),
        ]
        for entry in entries
    ]
    return table(["  NAME", "STATE", "MEMORY", "SIZE", "ABOUT"], rows, right=(3,))


def state_of(entry: Entry) -> str:
    if entry.problem:
        return "broken"
    return "installed" if entry.installed else "available"


def entry_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "path": str(entry.path),
        "kind": entry.kind,
        "installed": entry.installed,
        "trained": entry.trained,
        "size_bytes": entry.size_bytes,
        "parameters": entry.parameters,
        "description": entry.description,
        "recall": entry.recall,
        "default": entry.default,
        "problem": entry.problem,
    }


def _pull(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    before = registry.entry(args.name)
    entry = fetch(context, registry, args.name)
    if args.json:
        context.console.json(entry_json(entry))
    else:
        context.console.status(
            f"{entry.name} is {'here' if before.installed else 'installed'}: {size(entry.size_bytes)}"
        )
    return 0


def fetch(context: Context, registry: Registry, name: str | None) -> Entry:
    """Pull with progress; Ctrl+C ends it in order (``CancelledError``), and a later pull goes on."""
    cancel = threading.Event()
    with stops_on_ctrl_c(cancel.set):
        entry = registry.pull(
            name, on_progress=lambda p: context.console.progress(describe(p)), cancel=cancel
        )
    context.console.clear_progress()
    return entry


def offer_to_fetch(context: Context, name: str | None) -> None:
    """Ask whether to fetch a model whose weights are not here, and do it; a no leaves things as they are."""
    registry = registry_of(context)
    entry = registry.entry(name)
    if entry.installed or entry.problem:
        return
    question = (
        f"The weights of {entry.name} ({size(entry.size_bytes)}) are not on this machine. Fetch them now?"
    )
    if context.console.confirm(question, default=True):
        fetch(context, registry, name)


def describe(progress: PullProgress) -> str:
    """ "fetching model.gguf  41 %  40.3 MB of 98.4 MB"."""
    what = f"{_STAGES[progress.stage]} {progress.file}"
    if not progress.total:
        return f"{what}  {size(progress.done)}" if progress.done else what
    percent = 100 * progress.done // progress.total
    return f"{what}  {percent} %  {size(progress.done)} of {size(progress.total)}"


def _recall_rows(entry: Entry) -> list[tuple[str, str]]:
    """What was measured, by distance where the card has it so."""
    from infinichat.model.card import recall_points

    points = recall_points(entry.recall)
    if points:
        return [
            (
                f"recall, {point.name}, {point.distance} of {point.filler}",
                f"{point.share:.0%} of {point.n} ({point.interval[0]:.0%} to {point.interval[1]:.0%})",
            )
            for point in points
        ]
    return [(f"recall, {key}", str(value)) for key, value in (entry.recall or {}).items()]


def _info(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    entry = registry.entry(args.name)
    if args.json:
        context.console.json(entry_json(entry))
        return 0
    rows = [
        ("name", entry.name + (" (chosen)" if entry.default else "")),
        ("about", entry.description),
        ("state", state_of(entry)),
        ("memory", "trained" if entry.trained else "not trained: it remembers the exact window only"),
        ("parameters", f"{entry.parameters:,}" if entry.parameters else "unknown"),
        ("size", size(entry.size_bytes)),
        ("place", str(entry.path)),
    ]
    rows += _recall_rows(entry)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        context.console.line(f"{name:<{width}}  {value}")
    if entry.problem:
        context.console.status(entry.problem)
    elif not entry.installed:
        context.console.status(f"Next: infinichat models pull {entry.name}")
    return 0


def _use(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    entry = registry.use(args.name)
    known = {other.name: other.path for other in registry.entries()}
    save_setting(
        context.paths, "model", entry.name if known.get(entry.name) == entry.path else str(entry.path)
    )
    context.console.status(f"new sessions use {entry.name}; a session keeps its own until --model changes it")
    return 0


def _remove(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    freed = registry.remove(args.name)
    if freed:
        context.console.status(f"removed {args.name}: {size(freed)} are free again")
    else:
        context.console.status(f"nothing of {args.name} was fetched, so there is nothing to remove")
    return 0


def _verify(args: argparse.Namespace, context: Context, registry: Registry) -> int:
    console = context.console
    problems = registry.verify(args.name, on_progress=lambda p: console.progress(describe(p)))
    console.clear_progress()
    if args.json:
        console.json({"model": args.name, "problems": problems})
    elif not problems:
        console.line("every byte is as it should be")
    for problem in [] if args.json else problems:
        console.line(problem)
    if problems:
        console.fail(
            f"{counted(len(problems), 'problem')} found. "
            "Next: infinichat models remove NAME, then pull it again"
        )
    return 1 if problems else 0
