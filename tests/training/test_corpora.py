"""``train prepare``: corpora as they are published become parts that ``train lm`` reads, nothing changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infinichat.cli.main import main
from infinichat.errors import UsageError
from infinichat.training import corpora
from infinichat.training.corpora import kind_of, prepare_corpus
from infinichat.training.texts import Part, Texts


def read(folder: Path, part: Part) -> list[str]:
    return ["".join(document) for document in Texts(folder).documents(part)]


def test_a_file_of_bytes_is_split_as_enwik8_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "COPIED", 7)
    data = bytes(32 + n % 90 for n in range(1003))
    (tmp_path / "enwik8").write_bytes(data)
    record = prepare_corpus(tmp_path / "enwik8", tmp_path / "out")
    sizes = {part: about["bytes"] for part, about in record["parts"].items()}
    assert sizes == {"train": 903, "validation": 50, "test": 50}
    parts = [(tmp_path / "out" / f"{part}.txt").read_bytes() for part in ("train", "validation", "test")]
    assert b"".join(parts) == data
    assert read(tmp_path / "out", "validation") == [parts[1].decode()]
    assert json.loads((tmp_path / "out" / "prepared.json").read_text()) == record
    # 90, 5 and 5 million of a hundred.
    size = 100_000_000
    share = size // corpora.HELD_OUT
    assert (size - 2 * share, share) == (90_000_000, 5_000_000)


def test_wikitext_becomes_articles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "wikitext"
    source.mkdir()
    first = (
        " \n = Valkyria Chronicles III = \n \n Senjō no <unk> . \n \n = = Gameplay = = \n \n As with it . \n"
    )
    table = " = not a title = \n"
    second = " \n = X = \n \n One letter . \n"
    (source / "wiki.train.tokens").write_text(first + table + second)
    (source / "wiki.valid.tokens").write_text(" \n = Y = \n \n Held out . \n")
    (source / "wiki.test.tokens").write_text(" \n = Z = \n \n One letter . \n")
    assert main(["train", "prepare", str(source), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "train       2 " in shown.out
    assert "--dataset_name" in shown.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["title"] for row in rows] == ["Valkyria Chronicles III", "X"]
    assert "= = Gameplay = =" in rows[0]["text"]
    assert table in rows[0]["text"]
    assert "".join(row["text"] for row in rows) == first + table + second
    assert len(read(tmp_path / "out", "validation")) == 1


def test_books_keep_their_parts_and_titles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "pg19"
    for part, books in {"train": {"10": "Ten.\r\n", "9": "Nine."}, "validation": {"7": "Nine."}}.items():
        (source / part).mkdir(parents=True)
        for name, text in books.items():
            (source / part / f"{name}.txt").write_bytes(text.encode())
    (source / "metadata.csv").write_text('10,"A book, of ten",1850,link\n9,Nine Lives,1860,link\n')
    assert main(["train", "prepare", str(source), str(tmp_path / "out"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "books"
    assert record["parts"]["train"]["documents"] == 2
    assert record["parts"]["validation"]["in_earlier_parts"] == 1, "what is in two parts is counted"
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [row["title"] for row in rows] == ["A book, of ten", "Nine Lives"]
    assert read(tmp_path / "out", "train") == ["Ten.\r\n", "Nine."]


def test_what_it_is_not_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no wiki.train.\* and no folder train"):
        kind_of(empty)
    with pytest.raises(UsageError, match="no folder train"):
        prepare_corpus(empty, tmp_path / "a", "books")
    with pytest.raises(UsageError, match="no wiki.train.tokens"):
        prepare_corpus(empty, tmp_path / "b", "wikitext")
    with pytest.raises(UsageError, match="no file of 20 bytes"):
        prepare_corpus(empty, tmp_path / "c", "bytes")
    (empty / "train").mkdir()
    with pytest.raises(UsageError, match="the part train has no document"):
        prepare_corpus(empty, tmp_path / "d")
    (tmp_path / "x").write_text("x" * 100)
    with pytest.raises(UsageError, match="is there already"):
        prepare_corpus(tmp_path / "x", empty)
