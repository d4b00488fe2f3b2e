"""The shapes that commands print: JSON with nothing lost in it, and columns."""

from __future__ import annotations

import json

from infinichat.cli.text import table, to_json


def test_json_is_exact_and_has_no_raw_control_character() -> None:
    value = {"text": "\x1b[2J \x9b \x7f \u202e \u2028 \udc80 日本 \r\n"}
    printed = to_json(value)
    assert json.loads(printed) == value
    assert "日本" in printed
    assert not set(printed) & set("\x1b\x9b\x7f\u202e\u2028\udc80\r")


def test_columns_align_also_with_wide_characters() -> None:
    assert table(["A", "N"], [["日本", "1"], ["x", "10"]], right=(1,)) == "A      N\n日本   1\nx     10"
