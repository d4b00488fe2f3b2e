"""Documents from every kind of file, held-out ones apart, and blocks that several processes share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.errors import UsageError
from infinichat.training import texts as texts_module
from infinichat.training.blocks import BlockSource, Share, blocks, end_id, validation_batches
from infinichat.training.texts import Part, Texts

BYTES = ByteTokenizer()


def read(texts: Texts, part: Part = "train") -> list[str]:
    return ["".join(document) for document in texts.documents(part)]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_text_and_jsonl_files_in_a_folder_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Second,\r\nas it is.")
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two", "more": 1}])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert read(Texts(tmp_path, held_out=0)) == ["one", "two", "Second,\r\nas it is."]
    assert read(Texts(tmp_path / "a.jsonl", held_out=0)) == ["one", "two"]


def test_a_long_file_comes_in_pieces_that_end_between_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "PIECE_CHARS", 10)
    text = "some words of a text " * 40
    (tmp_path / "long.txt").write_text(text)
    pieces = next(Texts(tmp_path / "long.txt", held_out=0).documents("train"))
    found = list(pieces)
    assert "".join(found) == text
    assert len(found) > 1


def test_parts_named_in_a_folder_are_taken_as_they_say(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "book.txt").write_text(name)
    assert read(Texts(tmp_path)) == ["train"]
    assert read(Texts(tmp_path), "validation") == ["validation"]
    write_jsonl(tmp_path / "other.jsonl", [{"text": "given"}])
    assert read(Texts(tmp_path, tmp_path / "other.jsonl"), "validation") == ["given"]


def test_held_out_documents_are_never_trained_on(tmp_path: Path) -> None:
    rows = [{"text": f"document {number % 150}"} for number in range(300)]
    texts = Texts(write_jsonl(tmp_path / "x.jsonl", rows), held_out=20)
    train, held_out = read(texts), read(texts, "validation")
    assert len(train) + len(held_out) == 300
    assert not set(train) & set(held_out), "also not what is there twice"
    assert 20 < len(held_out) < 120
    assert read(texts) == train


def test_parquet_and_arrow_files_and_saved_datasets(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'infinichat[train]'")
    from pyarrow import parquet

    table = pyarrow.table({"n": [1, 2, 3], "text": ["one", "two", None]})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert read(Texts(tmp_path / "x.parquet", held_out=0)) == ["one", "two"]
    with pytest.raises(UsageError, match="no column 'body', but n, text"):
        read(Texts(tmp_path / "x.parquet", held_out=0, column="body"))
    # As datasets.save_to_disk writes a dictionary of splits.
    saved = tmp_path / "saved"
    for split in ("train", "validation"):
        (saved / split).mkdir(parents=True)
        shard = saved / split / "data-00000-of-00001.arrow"
        with pyarrow.OSFile(str(shard), "wb") as out, pyarrow.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
        (saved / split / "state.json").write_text("{}")
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert read(Texts(saved)) == read(Texts(saved), "validation") == ["one", "two"]
    with pyarrow.OSFile(str(tmp_path / "y.arrow"), "wb") as out, pyarrow.ipc.new_file(out, table.schema) as f:
        f.write_table(table)
    assert read(Texts(tmp_path / "y.arrow", held_out=0)) == ["one", "two"]
    (tmp_path / "broken.parquet").write_bytes(b"nothing of that kind")
    with pytest.raises(UsageError, match="broken.parquet cannot be read"):
        read(Texts(tmp_path / "broken.parquet", held_out=0))


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="neither a file nor a folder with"):
        read(Texts(tmp_path / "wikitext"))
    broken = tmp_path / "x.jsonl"
    broken.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UsageError, match=r"x.jsonl, line 2 is not JSON"):
        read(Texts(broken, held_out=0))
    write_jsonl(broken, [{"body": "a"}])
    with pytest.raises(UsageError, match="no text under 'text', but body. Name it: --text_column_name"):
        read(Texts(broken, held_out=0))
    assert read(Texts(broken, held_out=0, column="body")) == ["a"]
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow.*infinichat\[train\]"):
        read(Texts(tmp_path / "x.parquet", held_out=0))


def test_blocks_are_the_documents_with_an_end_mark_between(tmp_path: Path) -> None:
    texts = Texts(write_jsonl(tmp_path / "x.jsonl", [{"text": "abcdefg"}, {"text": "hij"}]), held_out=0)
    end = end_id(BYTES)
    ids = [*b"abcdefg", end, *b"hij", end]
    assert list(blocks(texts, "train", BYTES, 5)) == [ids[:5], ids[5:10], ids[10:]]
    # One id alone predicts nothing.
    assert list(blocks(texts, "train", BYTES, 11)) == [ids[:11]]


@pytest.fixture
def numbered(tmp_path: Path) -> Texts:
    return Texts(write_jsonl(tmp_path / "n.jsonl", [{"text": f"{n:03}"} for n in range(23)]), held_out=0)


def steps_of(texts: Texts, first: int = 0, share: Share | None = None) -> list[tuple[list[Any], int, bool]]:
    source = BlockSource(texts, BYTES, size=4, rows=2, accumulation=2, epochs=2, share=share)
    return [
        ([batch.ids.tolist() for batch in step.batches], step.epoch, step.ends)
        for step in source.steps(first)
    ]


def test_a_run_that_goes_on_sees_what_it_would_have_seen(numbered: Texts) -> None:
    whole = steps_of(numbered)
    assert [(epoch, ends) for _, epoch, ends in whole] == [(0, False)] * 4 + [(0, True)] + [
        (1, False)
    ] * 4 + [(1, True)]
    assert whole[0][0] != whole[1][0]
    for first in (1, 4, 5, 6, 9, 10):
        assert steps_of(numbered, first) == whole[first:]


def test_processes_share_each_batch(numbered: Texts) -> None:
    alone = BlockSource(numbered, BYTES, size=4, rows=4, epochs=1)
    parts = [BlockSource(numbered, BYTES, size=4, rows=2, epochs=1, share=Share(i, 2)) for i in range(2)]
    for whole, left, right in zip(alone.steps(0), parts[0].steps(0), parts[1].steps(0), strict=True):
        both = left.batches[0].ids.tolist() + right.batches[0].ids.tolist()
        assert both == whole.batches[0].ids.tolist()


def test_too_little_text_says_so(numbered: Texts, tmp_path: Path) -> None:
    source = BlockSource(numbered, BYTES, size=64, rows=8)
    with pytest.raises(UsageError, match="gives 1 blocks of 64 tokens, and a step takes 8"):
        next(source.steps(0))
    with pytest.raises(UsageError, match="holds out no text"):
        validation_batches(numbered, BYTES, size=4, rows=2, most=None, share=Share())


def test_all_held_out_text_is_measured_the_shorter_last_block_too(numbered: Texts) -> None:
    texts = Texts(numbered.train, numbered.train)
    found = validation_batches(texts, BYTES, size=15, rows=4, most=None, share=Share())
    assert [tuple(batch.ids.shape) for batch in found] == [(4, 15), (2, 15), (1, 2)]
    halves = [validation_batches(texts, BYTES, size=15, rows=4, most=None, share=Share(i, 2)) for i in (0, 1)]
    assert [tuple(batch.ids.shape) for batch in halves[1]] == [(2, 15)]
    assert len(validation_batches(texts, BYTES, size=15, rows=4, most=3, share=Share())[0].ids) == 3
