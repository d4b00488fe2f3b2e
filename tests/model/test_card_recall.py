"""recall.json as ``infinichat eval card`` writes it, and as anybody may have damaged it."""

from __future__ import annotations

from infinichat.model.card import RecallPoint, recall_points

GOOD = {"name": "16 facts", "filler": "books", "tokens": 65536, "share": 0.9, "n": 48, "interval": [0.8, 1]}


def test_points_are_read_with_their_distance() -> None:
    [point] = recall_points({"recall": [GOOD], "cells": []})
    assert point == RecallPoint("16 facts", "books", 65536, 0.9, 48, (0.8, 1.0))
    assert point.distance == "64K"
    assert RecallPoint("x", "", 1 << 20, 1.0, 1, (0, 1)).distance == "1M"


def test_what_is_no_point_is_left_out() -> None:
    damaged = [{**GOOD, "share": 2}, {**GOOD, "n": 0}, {"name": "x"}, "text", None, {**GOOD, "interval": 3}]
    assert recall_points({"recall": damaged}) == ()
    assert recall_points({"recall": "none"}) == ()
    assert recall_points({"facts": {"8": 0.9}}) == ()
    assert recall_points(None) == ()
