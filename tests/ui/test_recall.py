"""What a card measured is in the menu and on the memory screen, by distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.model.card import RecallPoint
from infinichat.paths import Paths
from infinichat.ui.catalog import CatalogEntry, RegistryCatalog, distance_table, headline
from tests.ui.acting import ENTRIES, ListCatalog, press, shows, wait_until
from tests.ui.conftest import MakeApp

K = 1024
POINTS = tuple(
    RecallPoint(name, filler, tokens, share, 144, (0.8, 0.99))
    for name, filler, tokens, share in (
        ("16 facts", "dialogues", 2 * K, 0.98),
        ("16 facts", "dialogues", 64 * K, 0.93),
        ("16 facts", "dialogues", 256 * K, 0.91),
        ("16 facts", "books", 1024 * K, 0.88),
        ("corrected facts, newest wins", "dialogues", 16 * K, 0.86),
    )
)


class Measured(ListCatalog):
    """The first checkpoint has a card with figures."""

    def entries(self) -> list[CatalogEntry]:
        first = replace(ENTRIES[0], recall=headline(POINTS), by_distance=POINTS)
        return [first, *ENTRIES[1:]]


def test_a_line_has_room_for_the_headline() -> None:
    assert headline(POINTS) == {"16 facts 64K": 0.93, "corrected facts 16K": 0.86}


def test_the_table_has_a_column_for_each_distance_and_no_figure_where_none_was_measured() -> None:
    lines = distance_table(POINTS).splitlines()
    assert lines[0].split() == ["2K", "16K", "64K", "256K", "1M"]
    assert lines[1].split("(dialogues)")[1].split() == ["98", "%", "93", "%", "91", "%"]
    assert lines[2].startswith("16 facts (books)")
    assert lines[2].endswith("88 %")
    assert len({len(line.rstrip()) for line in lines[:1] + lines[2:3]}) == 1


def test_the_real_list_reads_it_from_the_checkpoints_card(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shipped" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "infini", "memory_trained": true}')
    point = {"name": "16 facts", "filler": "dialogues", "tokens": 65536, "share": 0.9, "n": 100}
    card = {"recall": [{**point, "interval": [0.8, 0.95]}], "cells": [{"share": 0.5}]}
    (folder / "recall.json").write_text(json.dumps(card))
    monkeypatch.setattr("infinichat.model.registry.bundled_models", lambda: (folder.parent,))
    [entry] = [entry for entry in RegistryCatalog(paths).entries() if entry.name == "tiny"]
    assert entry.recall == {"16 facts 64K": 0.9}
    assert entry.by_distance == (RecallPoint("16 facts", "dialogues", 65536, 0.9, 100, (0.8, 0.95)),)


async def test_the_menu_shows_the_measured_recall_by_distance(
    make: MakeApp, running: Callable[..., Any]
) -> None:
    app = make(ScriptedEngine(["x"], name="small-infini"), catalog=Measured())
    async with running(app, (110, 36)) as pilot:
        await press(pilot, "f3")
        await wait_until(pilot, lambda: app.screen.id == "models")
        await shows(pilot, "16 facts 64K 93 %", "256K", "91 %", "88 %")


async def test_the_memory_screen_shows_what_was_measured_for_the_model_in_use(
    make: MakeApp, running: Callable[..., Any]
) -> None:
    app = make(ScriptedEngine(["x"], name="small-infini"), catalog=Measured())
    async with running(app, (110, 60)) as pilot:
        await press(pilot, "f4")
        await wait_until(pilot, lambda: app.screen.id == "memory")
        await shows(pilot, "Measured for this checkpoint", "16 facts (books)", "88 %")
