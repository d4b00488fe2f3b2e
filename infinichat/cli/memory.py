"""``infinichat memory show``: what the state of one session holds, layer by layer, and what was written when.

The state is read from its snapshot, or rebuilt from the transcript with progress when there is none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from infinichat.cli.console import INTERRUPTED
from infinichat.cli.context import Context
from infinichat.cli.parser import add_json, add_plot
from infinichat.cli.streaming import play
from infinichat.cli.text import table
from infinichat.errors import InfiniChatError
from infinichat.messages import LayerMemory, MemoryReport
from infinichat.text.figures import ago, counted, size
from infinichat.text.harmless import one_line

# Of the history, in the text for people.
TURNS_SHOWN = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    show = verbs.add_parser("show", help="one session's memory", description="what a session's memory holds")
    show.add_argument("session", metavar="SESSION")
    add_plot(show, "also draw the layers into a picture")
    show.add_argument(
        "--model", metavar="NAME|PATH", default=argparse.SUPPRESS, help="look at it under this checkpoint"
    )
    add_json(show)


def run(args: argparse.Namespace, context: Context) -> int:
    with context.open_store() as store:
        name = store.session(args.session).id  # looking at a session never makes one
    with context.open_session(name, model=args.model) as session:
        _, interrupted = play(session, session.restore(), context.console)
        if interrupted:
            return INTERRUPTED
        report = session.memory_report()
    if args.plot:
        plot(report, args.plot)
        context.console.status(f"wrote {args.plot}")
    if args.json:
        context.console.json(report_json(report))
    else:
        context.console.line(memory_text(report))
    return 0


def report_json(report: MemoryReport) -> dict[str, object]:
    """What ``--json`` prints."""
    history = [
        {
            "message": mark.message,
            "role": mark.role,
            "words": mark.words,
            "created": mark.created,
            "tokens_seen": mark.tokens_seen,
            "added": mark.added,
            "layers": [_layer_json(layer) for layer in mark.layers],
        }
        for mark in report.history
    ]
    return {
        "session": report.session,
        "model": report.model,
        "trained": report.trained,
        "tokens_seen": report.tokens_seen,
        "window_tokens": report.window_tokens,
        "window_size": report.window_size,
        "state_bytes": report.state_bytes,
        "layers": [_layer_json(layer) for layer in report.layers],
        "history": history,
    }


def _layer_json(layer: LayerMemory) -> dict[str, object]:
    return {
        "layer": layer.layer,
        "written": layer.written,
        "norm": layer.norm,
        "saturation": layer.saturation,
        "gate": layer.gate,
    }


def memory_text(report: MemoryReport) -> str:
    """The report for people, with a sentence on what it means."""
    lines = [
        f"session {report.session}, model {report.model}",
        f"{report.tokens_seen:,} tokens seen, the last {report.window_tokens:,} of them in the exact window "
        f"(which holds {report.window_size:,}); the state is {size(report.state_bytes)}",
    ]
    if report.layers:
        rows = [
            [
                str(row.layer),
                f"{row.written:,}",
                f"{row.norm:.2f}",
                f"{row.saturation:.0%}",
                f"{row.gate:.2f}",
            ]
            for row in report.layers
        ]
        lines.append(table(["LAYER", "WRITTEN", "NORM", "SATURATION", "GATE"], rows, right=(0, 1, 2, 3, 4)))
    if report.history and report.trained:
        lines += ["", _history(report), ""]
    lines.append(_meaning(report))
    return "\n".join(lines)


def _history(report: MemoryReport) -> str:
    """The newest turns: how many tokens each one wrote, and how full the memory was after it."""
    shown = report.history[-TURNS_SHOWN:]
    rows = [
        [
            ago(mark.created),
            f"{mark.tokens_seen:,}",
            f"+{mark.added:,}",
            f"{sum(layer.saturation for layer in mark.layers) / max(1, len(mark.layers)):.0%}",
            one_line(mark.words, 50),
        ]
        for mark in shown
    ]
    earlier = len(report.history) - len(shown)
    text = table(["WHEN", "TOKENS", "WRITTEN", "SATURATION", "TURN"], rows, right=(1, 2, 3))
    return text + (f"\n({counted(earlier, 'earlier turn')}; --json has more)" if earlier else "")


def _meaning(report: MemoryReport) -> str:
    left = max(0, report.tokens_seen - report.window_tokens)
    written = max((layer.written for layer in report.layers), default=0)
    if not report.trained:
        return "The memory of this checkpoint is not trained: what has left the window is not remembered."
    if left == 0:
        return "Everything said so far is still in the exact window."
    return (
        f"{left:,} tokens have left the window. {written:,} tokens were written into the memory, which "
        "chooses what it keeps. It is compressive: it keeps some of what was said, not all, and what it "
        "gives back can be wrong. How much it recalls was measured and is in the checkpoint's card. The "
        "transcript has every word: infinichat sessions search."
    )


def plot(report: MemoryReport, file: Path) -> None:
    """Bars per layer: tokens written, saturation, gate; and what each turn wrote. Raises ``InfiniChatError``
    when the picture cannot be written."""
    from matplotlib.figure import Figure

    layers = [str(layer.layer) for layer in report.layers]
    figure = Figure(figsize=(8, 8), layout="constrained")
    panels = (
        ("tokens written", [layer.written for layer in report.layers]),
        ("saturation", [layer.saturation for layer in report.layers]),
        ("gate", [layer.gate for layer in report.layers]),
    )
    *rows, turns = figure.subplots(len(panels) + 1, 1)
    for axes, (name, values) in zip(rows, panels, strict=True):
        axes.bar(layers, values)
        axes.set_ylabel(name)
    rows[-1].set_xlabel("layer")
    turns.bar(range(1, len(report.history) + 1), [mark.added for mark in report.history], color="tab:orange")
    turns.set_ylabel("written")
    turns.set_xlabel("turn")
    figure.suptitle(f"{report.session}: {report.tokens_seen:,} tokens seen by {report.model}")
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise InfiniChatError(f"'{file}' cannot be written ({error}). Next: choose another place") from error
