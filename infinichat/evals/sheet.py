"""The card's tables out of what ``card.py`` left in its folder: Markdown, ``recall.json``, pictures.

Every cell that was measured is listed, also those that were asked too few questions so far: n says so, and
the interval is Wilson's for 95 %. ``recall.json`` has the cells as numbers, and under ``recall`` the few that
the app shows (recall by distance)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinichat.evals.card import MEASURES, lines_of
from infinichat.evals.plots import draw, short
from infinichat.evals.routes import NEVER
from infinichat.evals.task import MEMORIES, Cell, Memory, Report, wilson

ORDER = ("facts", "own words", "everyday", "updates", "two-step", "in the window", "passkey", "needle")
Key = tuple[Any, ...]

LEAST_SHOWN = 10
"""Questions that a cell needs before the app shows it; the tables have all cells."""


@dataclass(slots=True)
class Count:
    """``right`` of ``n``; ``refused`` of them were answered with "you have not told me"."""

    n: int = 0
    right: int = 0
    refused: int = 0

    def add(self, result: dict[str, Any]) -> None:
        """Count one answer."""
        self.n += 1
        self.right += bool(result["right"])
        self.refused += bool(result["refused"])

    @property
    def share(self) -> float:
        """Of right answers; 0 where nothing was asked."""
        return self.right / self.n if self.n else 0.0


@dataclass(slots=True)
class Row:
    """One line of the table: what was asked at which distance, by condition."""

    row: str
    facts: int
    label: str
    filler: str
    depth: float | None
    length: int
    counts: dict[Memory, Count] = field(default_factory=dict)
    distance: int = 0

    @property
    def name(self) -> str:
        """In words, for a reader: "16 facts", "passkey at depth 0.5"."""
        if self.row == "facts":
            plural = "" if self.facts == 1 else "s"
            held = ", kinds never trained on" if self.label == "held_out" else ""
            return f"{self.facts} fact{plural}{held}"
        if self.row == "own words":
            return f"{self.facts} facts in people's own words"
        if self.row == "everyday":
            return f"{self.facts} everyday sentences, written one by one"
        if self.row == "in the window":
            return f"{self.facts} facts, still in the window"
        if self.row == NEVER:
            return "never told, admitted"
        if self.row == "updates":
            return "corrected facts, newest wins"
        at = "" if self.depth is None else f", depth {self.depth:g}"
        words = {"passkey": "passkey", "needle": "needle in a book", "two-step": "two facts combined"}
        return f"{words.get(self.row, self.row)}{at}"


def rows(lines: Iterable[dict[str, Any]]) -> list[Row]:
    """The lines of all routes counted by cell."""
    found: dict[Key, Row] = {}
    for line in lines:
        label = line.get("side") or line.get("form") or ""
        for kind in (None, NEVER):
            results = [r for r in line["asked"] if (r["kind"] == NEVER) == (kind == NEVER)]
            if not results:
                continue
            row = NEVER if kind else line["row"]
            key = (row, line["facts"], label, line["filler"], line["depth"], line["length"])
            cell = found.setdefault(key, Row(*key))
            cell.distance = max(cell.distance, line["distance"])
            count = cell.counts.setdefault(line["memory"], Count())
            for result in results:
                count.add(result)
    rank = {name: place for place, name in enumerate((*ORDER[:4], NEVER, *ORDER[4:]))}
    return sorted(
        found.values(),
        key=lambda r: (rank.get(r.row, 99), r.label == "held_out", r.facts, r.filler, r.length, r.depth or 0),
    )


def table(found: Sequence[Row]) -> str:
    """Markdown: one line a cell."""
    head = "| what | filler | tokens | n | memory on | 95 % | refused | off | wiped | swapped |"
    out = [head, "|" + " --- |" * 10]
    for row in found:
        on = row.counts.get("on", Count())
        low, high = wilson(on.right, on.n)
        others = [_share(row.counts.get(use)) for use in MEMORIES if use != "on"]
        refused = "" if row.row == NEVER else f"{on.refused / on.n:.0%}" if on.n else ""
        filler = row.filler if row.row != "passkey" else f"{row.filler}, {row.label}"
        cells = [row.name, filler, short(row.length), str(on.n), f"{on.share:.1%}"]
        out.append("| " + " | ".join([*cells, f"{low:.0%} to {high:.0%}", refused, *others]) + " |")
    return "\n".join(out)


def _share(count: Count | None) -> str:
    return "" if count is None or not count.n else f"{count.share:.0%} of {count.n}"


def measured(out: Path) -> dict[str, dict[str, Any]]:
    """The measures that are no routes, by name, as far as they are there."""
    files = {name: out / f"{name}.json" for name in MEASURES}
    return {name: json.loads(f.read_text(encoding="utf-8")) for name, f in files.items() if f.exists()}


def measures_text(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown for perplexity, chat, the paper's memory, the base."""
    parts: list[str] = []
    if "perplexity" in reports:
        parts += ["| book, tokens up to | " + " | ".join(_readers(reports["perplexity"])) + " |"]
        parts += ["|" + " --- |" * (1 + len(_readers(reports["perplexity"])))]
        parts += [*_perplexity_lines(reports["perplexity"]), ""]
    for cell in reports.get("chat", {}).get("cells", []):
        if "over the base" in cell:
            parts.append(
                f"Chat: loss on {cell['n']:,} tokens of held-out answers {cell['loss']:.4f} with a memory "
                f"full of another conversation, {cell['over the base']:+.2%} against the base.\n"
            )
    for name in ("paper", "base"):
        for cell in reports.get(name, {}).get("cells", []):
            low, high = cell["interval"]
            parts.append(
                f"{cell['kind']}: {cell['facts']} facts at {short(cell['length'])}: {cell['correct']} of "
                f"{cell['n']}, {cell['accuracy']:.0%} ({low:.0%} to {high:.0%}).\n"
            )
    return "\n".join(parts)


def _readers(report: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(cell["model"] for cell in report["cells"]))


def _perplexity_lines(report: dict[str, Any]) -> list[str]:
    names = _readers(report)
    by = {(cell["length"], cell["model"]): cell["perplexity"] for cell in report["cells"]}
    lengths = sorted({length for length, _ in by})
    return [
        f"| {length:,} | "
        + " | ".join(f"{by[length, name]:.3f}" if (length, name) in by else "" for name in names)
        + " |"
        for length in lengths
    ]


def recall_json(out: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What goes beside the checkpoint: ``about`` (model, command, machine, date), every cell, and ``recall``,
    what the app shows."""
    found = rows(lines_of(out))
    shown = [r for r in found if r.row in ("facts", "updates", NEVER)] + _passkeys(found)
    return {
        "format": 1,
        **about,
        "recall": [_shown(row) for row in shown if row.counts.get("on", Count()).n >= LEAST_SHOWN],
        "cells": [_numbers(row) for row in found],
        "measures": {
            name: {"cells": report["cells"], "notes": report["notes"]}
            for name, report in measured(out).items()
        },
    }


def _passkeys(found: Sequence[Row]) -> list[Row]:
    """The passkey rows with all depths together: found at one says little where it is lost at others."""
    whole: dict[Key, Row] = {}
    for row in (row for row in found if row.row == "passkey"):
        key = (row.row, row.facts, row.label, row.filler, None, row.length)
        sum_of = whole.setdefault(key, Row(*key)).counts
        for use, count in row.counts.items():
            cell = sum_of.setdefault(use, Count())
            cell.n, cell.right = cell.n + count.n, cell.right + count.right
            cell.refused += count.refused
    return list(whole.values())


def _shown(row: Row) -> dict[str, Any]:
    on = row.counts["on"]
    interval = [round(bound, 4) for bound in wilson(on.right, on.n)]
    knocked = [count.share for use, count in row.counts.items() if use != "on" and count.n]
    paper = ", in the paper's words" if row.row == "passkey" and row.label == "plain" else ""
    entry: dict[str, Any] = {"name": row.name + paper, "filler": row.filler, "tokens": row.length}
    entry |= {"share": round(on.share, 4), "n": on.n, "interval": interval}
    return entry | ({"without": round(max(knocked), 4)} if knocked else {})


def _numbers(row: Row) -> dict[str, Any]:
    return {
        "what": row.row,
        "facts": row.facts,
        "kind": row.label,
        "filler": row.filler,
        "depth": row.depth,
        "length": row.length,
        **{
            use: {"n": count.n, "correct": count.right, "refused": count.refused}
            for use, count in row.counts.items()
        },
    }


def write(out: Path, about: dict[str, Any], *, plots: bool) -> list[Path]:
    """Write ``recall.json``, ``card.md``, ``wrong.txt`` and, with ``plots``, a heat map for each kind of row;
    the files."""
    found = rows(lines_of(out))
    files = [out / "recall.json", out / "card.md", out / "wrong.txt"]
    files[0].write_text(json.dumps(recall_json(out, about), indent=1) + "\n", encoding="utf-8")
    files[1].write_text(f"{table(found)}\n\n{measures_text(measured(out))}", encoding="utf-8")
    files[2].write_text("\n".join(wrong(lines_of(out))) + "\n", encoding="utf-8")
    if plots:
        for name in dict.fromkeys(row.row for row in found):
            cells = [
                Cell(row.length, row.depth, row.facts, use, count.n, count.right, _panel(row))
                for row in found
                if row.row == name
                for use, count in row.counts.items()
                if use == "on"
            ]
            file = out / f"{name.replace(' ', '-')}.png"
            draw(Report(name, str(about.get("model", "")), 0, cells), file)
            files.append(file)
    return files


def _panel(row: Row) -> dict[str, str]:
    return {"label": row.label, "filler": row.filler}


def wrong(lines: Iterable[dict[str, Any]]) -> list[str]:
    """Every wrong answer with the memory on: where, what was asked, expected and said."""
    return [
        f"{line['row']} {line['facts']} {line.get('side') or line.get('form')} {short(line['length'])} | "
        f"{result['asked']} | {result['expected']} | {' '.join(result['got'].split())}"
        for line in lines
        if line["memory"] == "on"
        for result in line["asked"]
        if not result["right"]
    ]
