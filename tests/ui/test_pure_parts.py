"""The parts of the app that are plain functions: figures, harmless text, commands, completion, files,
history."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events

from infinichat.errors import InfiniChatError, UsageError
from infinichat.messages import LayerMemory, MemoryMark, MemoryReport, PrefillProgress
from infinichat.ui import clipboard, external_editor
from infinichat.ui.catalog import flat_recall
from infinichat.ui.commands import COMMANDS, parse
from infinichat.ui.completion import candidates
from infinichat.ui.history import KEEP, PromptHistory
from infinichat.ui.screens.chat_commands import ChatCommands
from infinichat.ui.screens.memory import describe, honest
from infinichat.ui.terminal_keys import teach_alt_enter
from infinichat.ui.widgets.activity import describe as describe_progress
from infinichat.ui.widgets.entry import fences
from infinichat.ui.widgets.status import Status, line

# -- the status line


FULL = Status(
    model="SmolLM2-135M",
    tokens_seen=1_234_567,
    window=(800, 1024),
    memory=0.31,
    tokens_per_s=31.2,
    first_token_s=0.42,
    rss=812_000_000,
)


def test_the_status_line_has_every_field_where_there_is_room() -> None:
    text = line(FULL, 160).plain
    assert text == (
        "● SmolLM2-135M  1.23M tokens  window ▰▰▰▰▰▰▱▱ 78 %  memory ▰▰▱▱▱▱▱▱ 31 %"
        "  31 tok/s  first 0.4 s  812 MB"
    )


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120])
def test_the_status_line_never_grows_over_its_width_and_keeps_the_model(width: int) -> None:
    text = line(FULL, width).plain
    assert len(text) <= width
    assert "SmolLM2-135M" in text


def test_eighty_columns_show_the_window_and_the_memory() -> None:
    text = line(FULL, 78).plain
    assert "window 78 %" in text
    assert "memory 31 %" in text
    assert "tok/s" in text


def test_an_untrained_memory_is_never_shown_as_a_gauge() -> None:
    text = line(Status(model="m", window=(1, 2), memory=0.5, trained=False), 100).plain
    assert "memory off" in text
    assert "memory ▰" not in text


def test_progress_says_what_how_far_how_fast_and_how_long_and_fits() -> None:
    event = PrefillProgress("document", 31_000, 100_000, 1203.4, 57.0, "moby dick.txt")
    assert describe_progress(event, 120) == (
        "reading moby dick.txt ▰▰▰▱▱▱▱▱▱▱ 31 %  57 s left  1,203 tok/s  31.0k of 100k tokens  esc stops"
    )
    for width in (40, 60, 80):
        assert len(describe_progress(event, width)) <= width


# -- the memory screen's words


LAYERS = (LayerMemory(18, 48_210, 112.3, 0.31, 0.62),)


def mark(words: str, added: int) -> MemoryMark:
    return MemoryMark("id", "assistant", words, 2_000.0, 1_234_567, added, LAYERS)


def report(*, trained: bool) -> MemoryReport:
    history = (mark("moby.txt", 48_000), mark("What about \u202etides?", 210))
    return MemoryReport("s", "m", trained, 1_234_567, 800, 1024, 2_700_000, LAYERS, history)


def test_the_memory_is_described_by_layer_by_turn_and_honestly() -> None:
    text = describe(report(trained=True), now=10_000.0).plain
    assert "1,234,567 tokens" in text
    assert "48,210" in text
    assert "lossy" in text
    assert "+210        31 %    1.23M    2 h ago   What about \\u202etides" in text
    assert text.index("tides") < text.index("moby.txt")


def test_a_memory_that_nothing_was_written_to_has_no_turns_to_show() -> None:
    nothing = replace(report(trained=True), history=(mark("a", 0), mark("b", 0)))
    assert "turn" not in describe(nothing, now=10_000.0).plain


def test_an_untrained_checkpoint_says_that_it_is_a_sliding_window() -> None:
    text = describe(report(trained=False), now=10_000.0).plain
    assert "sliding window" in text
    assert "1,024" in text
    assert "48,210" not in text
    assert "lossy" in honest(report(trained=True))


# -- slash commands


def test_every_command_has_a_method_and_every_method_a_command() -> None:
    methods = {name.removeprefix("command_") for name in dir(ChatCommands) if name.startswith("command_")}
    assert methods == {command.name for command in COMMANDS}


def test_a_command_is_parsed_and_a_mistake_names_what_is_near() -> None:
    command, rest = parse("/read  a b.txt ")
    assert (command.name, rest) == ("read", "a b.txt")
    assert parse("/q")[0].name == "quit"
    with pytest.raises(UsageError, match="/regenerate"):
        parse("/regenrate")
    with pytest.raises(UsageError, match="/rename NAME"):
        parse("/rename")


def test_commands_complete_by_prefix_and_then_by_letters() -> None:
    names = [c.text for c in candidates("/re", {})]
    assert names[:3] == ["/read ", "/regenerate", "/rename "]
    assert [c.text for c in candidates("/rgn", {})] == ["/regenerate"]
    assert candidates("hello", {}) == []
    assert candidates("//re", {}) == []
    assert candidates("/re\nx", {}) == []


def test_a_command_that_needs_nothing_may_run_at_once() -> None:
    final = {c.text.strip(): c.final for c in candidates("/", {})}
    assert final["/memory"]
    assert final["/new"]
    assert not final["/read"]


def test_arguments_complete_from_their_choices() -> None:
    choices = {"theme": lambda: [("nord", ""), ("gruvbox", "")]}
    assert [c.text for c in candidates("/theme g", choices)] == ["/theme gruvbox"]
    assert candidates("/theme nord", choices) == []


def test_what_is_typed_in_full_comes_before_longer_names_with_it_inside() -> None:
    choices = {"open": lambda: [("chat-10", ""), ("old chat-1", ""), ("chat-1", "")]}
    assert [c.label for c in candidates("/open chat-1", choices)] == ["chat-1", "chat-10", "old chat-1"]


def test_a_folder_can_be_read_whole_or_gone_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my books").mkdir()
    (tmp_path / "my books" / "b.txt").touch()
    (tmp_path / "my books" / "b").touch()
    monkeypatch.chdir(tmp_path)
    (folder,) = candidates("/read my", {})
    assert (folder.text, folder.final) == ('/read "my books/"', False)
    inside = candidates(folder.text, {})
    assert [(c.text, c.final) for c in inside] == [
        ('/read "my books/"', True),
        ('/read "my books/b"', True),
        ('/read "my books/b.txt"', True),
    ]
    assert [c.label for c in candidates('/read "my books/b"', {})] == ["my books/b", "my books/b.txt"]


def test_paths_complete_with_folders_first_and_blanks_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "b one.txt").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    found = candidates("/read b", {})
    assert [(c.text, c.final) for c in found] == [("/read books/", False), ('/read "b one.txt"', True)]
    assert candidates("/read x ", {})[0].text == "/read x books/"
    assert [c.text for c in candidates('/read "b o', {})] == ['/read "b one.txt"']
    assert candidates("/read nowhere/x", {}) == []


# -- keys


@pytest.mark.parametrize("sequence", ["\x1b\r", "\x1b\n", "\x1b[13;3u"])
def test_alt_enter_is_understood_from_every_terminal(sequence: str) -> None:
    from textual._xterm_parser import XTermParser

    teach_alt_enter()
    keys = [event.key for event in XTermParser().feed(sequence) if isinstance(event, events.Key)]
    assert keys == ["alt+enter"]


def test_enter_alone_stays_enter() -> None:
    from textual._xterm_parser import XTermParser

    teach_alt_enter()
    assert [event.key for event in XTermParser().feed("\r") if isinstance(event, events.Key)] == ["enter"]


# -- history


def test_the_history_is_walked_and_what_was_typed_waits_at_its_end(tmp_path: Path) -> None:
    history = PromptHistory(tmp_path / "deep" / "history.jsonl")
    for text in ("one", "two\nlines", "two\nlines", "  "):
        history.add(text)
    assert [history.older("typing"), history.older(""), history.older("")] == ["two\nlines", "one", None]
    assert [history.newer(), history.newer(), history.newer()] == ["two\nlines", "typing", None]


def test_the_history_outlives_the_app_and_survives_a_damaged_line(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    PromptHistory(file).add("kept \x1b words")
    with open(file, "a") as out:
        out.write('{"half\n')
    assert PromptHistory(file).older("") == "kept \x1b words"
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_history_file_is_cut_when_it_is_long(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text("".join(f'"{i}"\n' for i in range(2 * KEEP + 1)))
    assert PromptHistory(file).older("") == str(2 * KEEP)
    assert len(file.read_text().splitlines()) == KEEP


def test_a_history_that_cannot_be_written_goes_on_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = PromptHistory(tmp_path / "file" / "history.jsonl")
    history.add("one")
    assert history.older("") == "one"


# -- code, clipboard, editor, cards


def test_fences_are_found_also_inside_lists_with_longer_marks_and_unclosed() -> None:
    assert fences("a\n```py\nx = 1\n```\nb\n~~~\ny\n~~~") == ["x = 1", "y"]
    assert fences("````\n```\ninner\n```\n````") == ["```\ninner\n```"]
    assert fences("```\nstopped here") == ["stopped here"]
    assert fences("none `inline` at all") == []


def test_the_clipboard_uses_the_tool_that_is_there() -> None:
    assert clipboard.tool({"TMUX": "/tmp/x,1,0"}) == (
        ["tmux", "load-buffer", "-w", "-"] if sys.platform.startswith("linux") else clipboard.tool({})
    )
    assert clipboard.tool({}) is None or sys.platform in ("darwin", "win32")


@pytest.mark.skipif(sys.platform == "win32", reason="the test's editor is a shell command")
def test_the_editor_gets_the_text_and_gives_it_back(tmp_path: Path) -> None:
    script = tmp_path / "edit.sh"
    script.write_text('#!/bin/sh\necho " edited" >> "$1"\n')
    script.chmod(0o700)
    assert external_editor.edit("text", environ={"EDITOR": str(script)}) == "text edited\n"
    with pytest.raises(InfiniChatError, match="status 1"):
        external_editor.edit("text", environ={"EDITOR": "false"})
    with pytest.raises(InfiniChatError, match="set EDITOR"):
        external_editor.edit("text", environ={"VISUAL": str(tmp_path / "missing")})


def test_a_card_of_any_shape_gives_its_fractions() -> None:
    card = {"facts": {"8": 0.9, "n": 100}, "passkey_1m": 0.95, "date": "2026", "interval": [0.1, 0.2]}
    assert flat_recall(card) == {"facts 8": 0.9, "passkey 1m": 0.95}
