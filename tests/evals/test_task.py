"""Counting, intervals, and the JSON that scripts rely on."""

from __future__ import annotations

import pytest

from infinichat.evals.task import Report, Tally, per_conversation, table, wilson


def test_the_interval_is_wilsons() -> None:
    # Figures from the formula's textbook example: 8 of 10.
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(10, 10)[1] == 1.0


def test_cells_are_counted_by_all_their_keys() -> None:
    tally = Tally()
    for correct, length in ((True, 10), (False, 10), (True, 20)):
        tally.add(correct, memory="on", length=length, side="seen")
    tally.add(True, memory="off", length=10, side="seen")
    assert [(c.memory, c.length, c.n, c.correct) for c in tally.cells()] == [
        ("on", 10, 2, 1),
        ("on", 20, 1, 1),
        ("off", 10, 1, 1),
    ]


def test_the_json_has_the_keys_of_the_contract_and_counts_the_memory_on_only() -> None:
    tally = Tally()
    tally.add(True, memory="on", length=10, facts=4, side="seen")
    tally.add(False, memory="off", length=10, facts=4, side="seen")
    document = Report("facts", "tiny", 7, tally.cells()).as_json()
    assert {"task", "model", "seed", "cells", "accuracy"} <= set(document)
    assert document["accuracy"] == 1.0
    keys = {"length", "depth", "facts", "memory", "n", "correct", "accuracy"}
    assert all(keys <= set(cell) for cell in document["cells"])
    assert document["cells"][0]["depth"] is None


def test_the_table_shows_every_cell_and_note() -> None:
    tally = Tally()
    tally.add(True, memory="on", length=16384, facts=4, side="seen")
    shown = table(Report("facts", "tiny", 7, tally.cells(), ["be careful"]))
    assert "| 16,384 | 4 | on | seen | 1 | 100.0% |" in shown
    assert "note: be careful" in shown


def test_conversations_are_enough_for_the_samples() -> None:
    assert [per_conversation(48, n) for n in (1, 16, 47, 48, 64)] == [48, 3, 2, 1, 1]
