"""The comparison's figures as tables, in the paper's form, and as a picture.

Rows of texts: whoever prints them aligns them or makes Markdown of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinichat.training.paper.one_model import Figures
from infinichat.training.paper.variants import LABELS

SMOOTHED = 20
"""Points of a loss curve, at most: a step's loss says more about its text than about the model."""


@dataclass(frozen=True, slots=True)
class Table:
    """A ``title``, column names, and rows of as many texts, the first of which names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As Markdown, numbers to the right."""
        lines = [self.header, ["---", *("---:" for _ in self.header[1:])], *self.rows]
        return "\n".join([f"{self.title}:", "", *("| " + " | ".join(line) + " |" for line in lines)])


def tables(results: Sequence[Figures]) -> list[Table]:
    """The paper's table 2 (language modelling), perplexity by position, and table 3 (passkey)."""
    return [language(results), positions(results), asked(results)]


def language(results: Sequence[Figures]) -> Table:
    """One row a model, as in the paper's table 2."""
    header = ["model", "parameters", "of the memory", "numbers kept", "compression", "perplexity", "tokens/s"]
    rows = [
        [
            _name(each),
            f"{each['parameters']:,}",
            f"{each['memory_parameters']:,}",
            f"{each['state']:,}",
            f"{each['compression']:,.0f}×" if each["compression"] else "",
            f"{each['perplexity']:.2f}",
            f"{each['tokens_per_second']:,.0f}",
        ]
        for each in results
    ]
    first = results[0]
    title = f"Trained on {first['tokens']:,} tokens, measured on {first['held_out_tokens']:,} of whole books"
    return Table(title, header, rows)


def positions(results: Sequence[Figures]) -> Table:
    """Perplexity of the tokens up to a position in a book, from the position before."""
    ends = [short(bucket["upto"]) for bucket in results[0]["by_position"]]
    rows = [
        [_name(each), *(f"{math.exp(min(700.0, b['loss'])):.1f}" for b in each["by_position"])]
        for each in results
    ]
    return Table("Perplexity by position, up to token", ["model", *ends], rows)


def asked(results: Sequence[Figures]) -> Table:
    """Exact matches in percent, start/middle/end, as in the paper's table 3."""
    cells = results[0]["fine_tuned"]
    lengths = list(dict.fromkeys(cell["length"] for cell in cells))
    rows = []
    for stage, label in (("zero_shot", "zero-shot"), ("fine_tuned", "fine-tuned")):
        for each in results:
            found = [
                "/".join(f"{100 * cell['exact']:.0f}" for cell in each[stage] if cell["length"] == length)
                for length in lengths
            ]
            rows.append([f"{_name(each)}, {label}", *found])
    title = f"Passkey, % exact of {cells[0]['n']} keys at each of start/middle/end, by tokens"
    return Table(title, ["model", *map(short, lengths)], rows)


def _name(figures: Figures) -> str:
    label: str = LABELS[figures["kind"]]
    return f"{label} ({figures['segment']:,})" if figures["kind"] in ("local", "full") else label


def short(tokens: int) -> str:
    """1024 as 1K."""
    return f"{tokens / 1024:.3g}K" if tokens >= 1024 else str(tokens)


def draw(results: Sequence[Figures], out: Path) -> Path | None:
    """Write ``<out>/paper.png``: loss by tokens trained on, perplexity by position; None without
    matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(16, 4.8))
    for each in results:
        label = LABELS[each["kind"]]
        of_step = each["tokens"] / each["steps"]
        training, checks = curves(out / each["kind"] / "lm.jsonl")
        for axis, points in ((left, training), (middle, checks)):
            axis.plot([step * of_step for step, _ in points], [loss for _, loss in points], label=label)
        buckets = each["by_position"]
        right.plot([b["upto"] for b in buckets], [math.exp(b["loss"]) for b in buckets], "o-", label=label)
    named = ((left, "training loss"), (middle, "held-out blocks"), (right, "held-out books, by position"))
    for axis, title in named:
        axis.set_title(title)
        axis.set_xlabel("tokens")
        axis.set_ylabel("perplexity" if axis is right else "nats a token")
        axis.grid(alpha=0.3)
    right.set_xscale("log", base=2)
    right.legend(fontsize=8)
    figure.tight_layout()
    file = out / "paper.png"
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return file


Points = list[tuple[float, float]]


def curves(log: Path) -> tuple[Points, Points]:
    """(step, loss) of training, in means of equally many steps, and of the checks."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [(float(line["step"]), float(line["loss"])) for line in lines if "loss" in line]
    checks = [(float(line["step"]), float(line["check"]["loss"])) for line in lines if "check" in line]
    size = max(1, -(-len(steps) // SMOOTHED))
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    means = [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
    return means, checks
