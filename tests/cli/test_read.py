"""``read`` and ``memory show``: documents into the memory, stopped and gone on with; what it holds then."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infinichat.paths import Paths
from infinichat.store import Store
from tests.cli.conftest import Run

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "moby.txt"
    file.write_text("Call me Ishmael. " * 300, encoding="utf-8")
    return file


def documents(paths: Paths, name: str) -> list[tuple[str | None, str]]:
    with Store.open(paths) as store:
        messages = store.path(store.session(name).id)
    return [(m.title, m.reason) for m in messages if m.role == "document"]


def test_a_document_is_read_with_a_line_about_it(run: Run, paths: Paths, book: Path) -> None:
    result = run("read", str(book), "--session", "t")
    assert (result.status, result.out) == (0, "")
    assert "read moby.txt: " in result.err
    assert documents(paths, "t") == [("moby.txt", "complete")]


def test_json_says_what_each_document_cost(run: Run, book: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("short")
    result = run("read", str(book), str(tmp_path / "note.txt"), "--session", "t", "--json")
    rows = result.json["documents"]
    assert [(row["title"], row["reason"]) for row in rows] == [
        ("moby.txt", "complete"),
        ("note.txt", "complete"),
    ]
    assert rows[0]["tokens"] > 5000
    assert result.json["tokens_seen"] >= sum(row["tokens"] for row in rows)


def test_what_was_read_is_passed_over_unless_asked_again(run: Run, paths: Paths, book: Path) -> None:
    run("read", str(book), "--session", "t")
    result = run("read", str(book), "--session", "t")
    assert "moby.txt has been read in this session already." in result.err
    assert len(documents(paths, "t")) == 1
    run("read", str(book), "--session", "t", "--again")
    assert len(documents(paths, "t")) == 2


def test_a_folder_and_a_pipe_are_documents(run: Run, paths: Paths, book: Path) -> None:
    run("read", str(book.parent), "-", "--session", "t", stdin="piped words")
    assert ("stdin", "complete") in documents(paths, "t")
    assert ("moby.txt", "complete") in documents(paths, "t")


def test_a_missing_file_is_found_before_a_session_is_made(run: Run, paths: Paths) -> None:
    result = run("read", "nope.txt", "--session", "t")
    assert (result.status, result.out) == (2, "")
    assert result.err == "infinichat: There is no file 'nope.txt'. Next: check the path.\n"
    with Store.open(paths) as store:
        assert store.sessions() == []


def test_ctrl_c_stops_reading_and_the_same_command_goes_on(
    start: Start, run: Run, paths: Paths, tmp_path: Path
) -> None:
    book = tmp_path / "long.txt"
    book.write_text("Call me Ishmael. " * 3000)
    process = start("read", str(book), "--session", "t", prefill_tokens_per_s=20_000)
    deadline = time.monotonic() + 30
    while not paths.database.exists() or not _has_document(paths):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from here" in error
    assert documents(paths, "t") == [("long.txt", "stopped")]
    result = run("read", str(book), "--session", "t", "--json")
    assert documents(paths, "t") == [("long.txt", "complete")]
    assert 0 < result.json["documents"][0]["tokens"] < result.json["tokens_seen"]


def _has_document(paths: Paths) -> bool:
    with Store.open(paths) as store:
        found = store.find_session("t")
        return bool(found and store.path(found.id))


def test_memory_show_has_the_promised_keys(run: Run, book: Path) -> None:
    run("read", str(book), "--session", "t")
    shown = run("memory", "show", "t", "--json").json
    assert set(shown) >= {"session", "model", "tokens_seen", "window_tokens", "state_bytes", "layers"}
    assert (shown["session"], shown["model"], shown["window_tokens"]) == ("t", "scripted", 1024)
    assert shown["tokens_seen"] > 5000
    assert set(shown["layers"][0]) >= {"layer", "written", "norm", "saturation"}


def test_memory_show_for_people_says_what_it_means(run: Run, book: Path) -> None:
    run("read", str(book), "--session", "t")
    assert "have left the window" in run("memory", "show", "t").out
    assert "compressive" in run("memory", "show", "t").out
    run("ask", "what is in it?", "--session", "t", replies=["words"])
    shown = run("memory", "show", "t").out
    assert "moby.txt" in shown
    assert "what is in it?" in shown
    history = run("memory", "show", "t", "--json").json["history"]
    assert [(turn["role"], turn["words"]) for turn in history] == [
        ("document", "moby.txt"),
        ("assistant", "what is in it?"),
    ]
    assert history[0]["added"] > history[1]["added"] > 0
    run("ask", "hello", "--session", "u", replies=["hi"])
    assert "still in the exact window" in run("memory", "show", "u").out


def test_an_untrained_memory_says_so(run: Run, book: Path) -> None:
    run("read", str(book), "--session", "t", trained=False)
    assert "is not trained" in run("memory", "show", "t", trained=False).out


def test_looking_at_a_session_never_makes_one(run: Run, paths: Paths) -> None:
    result = run("memory", "show", "nope")
    assert (result.status, result.out) == (1, "")
    with Store.open(paths) as store:
        assert store.sessions() == []


def test_the_layers_can_be_drawn(run: Run, book: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run("read", str(book), "--session", "t")
    picture = tmp_path / "memory.png"
    assert run("memory", "show", "t", "--plot", str(picture)).status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("memory", "show", "t", "--plot", str(tmp_path / "no" / "x.png")).status == 1
