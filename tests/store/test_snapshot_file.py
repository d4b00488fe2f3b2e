from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from infinichat.errors import DiskError, SnapshotError
from infinichat.protocols import StateDump, TensorRecord
from infinichat.store import SnapshotHeader
from infinichat.store.snapshot_file import read_snapshot, stored_header, write_snapshot

MakeHeader = Callable[..., SnapshotHeader]


@pytest.fixture
def file(tmp_path: Path, dump: StateDump, make_header: MakeHeader) -> Path:
    path = tmp_path / "cc.safetensors"
    write_snapshot(path, dump, header=make_header())
    return path


def edit_header(file: Path, change: Callable[[dict[str, dict[str, str]]], None]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_a_state_is_read_back_exactly(file: Path, dump: StateDump, make_header: MakeHeader) -> None:
    assert read_snapshot(file, expected=make_header()) == dump
    assert stored_header(file) == make_header()
    assert file.stat().st_size == write_snapshot(file, dump, header=make_header())


def test_the_file_is_what_safetensors_reads(file: Path, dump: StateDump) -> None:
    safetensors = pytest.importorskip("safetensors")
    tensors = dict(safetensors.deserialize(file.read_bytes()))
    assert {name: bytes(entry["data"]) for name, entry in tensors.items()} == {
        name: record.data for name, record in dump.tensors.items()
    }
    assert tensors["layer.18.M"]["shape"] == [2, 3]


def test_a_state_without_tensors_is_possible(tmp_path: Path, make_header: MakeHeader) -> None:
    empty = StateDump(tensors={}, meta={})
    write_snapshot(tmp_path / "e", empty, header=make_header())
    assert read_snapshot(tmp_path / "e", expected=make_header()) == empty


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path, make_header: MakeHeader) -> None:
    with pytest.raises(SnapshotError, match="is missing. The state will be rebuilt"):
        read_snapshot(tmp_path / "none", expected=make_header())


def test_a_file_cut_off_anywhere_is_refused(file: Path, make_header: MakeHeader) -> None:
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(SnapshotError, match="truncated"):
            read_snapshot(file, expected=make_header())


def test_one_flipped_bit_anywhere_is_refused(file: Path, make_header: MakeHeader) -> None:
    whole = file.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << (position % 8)
        file.write_bytes(data)
        try:
            with pytest.raises(SnapshotError):
                read_snapshot(file, expected=make_header())
        except pytest.fail.Exception:
            # The padding behind the header's JSON is no content: a blank that became a tab says the same.
            assert whole[position : position + 1] == b" "


def test_a_flipped_bit_in_a_tensor_is_called_damage(file: Path, make_header: MakeHeader) -> None:
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    file.write_bytes(data)
    with pytest.raises(SnapshotError, match="checksum does not match"):
        read_snapshot(file, expected=make_header())


def test_something_added_behind_the_tensors_is_refused(file: Path, make_header: MakeHeader) -> None:
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(SnapshotError, match="something was added"):
        read_snapshot(file, expected=make_header())


@pytest.mark.parametrize(
    ("version", "age"), [("0", "an older"), ("2", "a newer"), ("99999999999", "a newer")]
)
def test_another_format_is_named(file: Path, make_header: MakeHeader, version: str, age: str) -> None:
    edit_header(file, lambda header: header["__metadata__"].update({"infinichat.format": version}))
    with pytest.raises(SnapshotError, match=f"of {age} infinichat; this one reads format 1"):
        read_snapshot(file, expected=make_header())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("fingerprint", "a" * 64, "model fingerprint ffffffffffff… instead of aaaaaaaaaaaa…"),
        ("tokenizer", "other", "tokenizer tttttttttttt… instead of other"),
        ("chat_format", "llama3-1", "chat format chatml-1 instead of llama3-1"),
        ("dtype", "bfloat16", "number type float32 instead of bfloat16"),
        ("window", 2048, "window size 1024 instead of 2048"),
        ("segment", 64, "segment size 128 instead of 64"),
        ("tokens_seen", 11, "tokens seen 10 instead of 11"),
        ("chain", "d" * 64, "chain cccccccccccc… instead of dddddddddddd…"),
    ],
)
def test_what_differs_is_named(
    file: Path, make_header: MakeHeader, field: str, value: object, words: str
) -> None:
    expected = replace(make_header(), **{field: value})  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match="made by model smol and does not fit smol") as raised:
        read_snapshot(file, expected=expected)
    assert words in str(raised.value)


def test_everything_that_differs_is_named_at_once(file: Path, make_header: MakeHeader) -> None:
    with pytest.raises(SnapshotError, match="window size .*; segment size "):
        read_snapshot(file, expected=replace(make_header(), window=1, segment=1, model="big"))


def test_the_models_name_alone_is_no_difference(file: Path, dump: StateDump, make_header: MakeHeader) -> None:
    assert read_snapshot(file, expected=replace(make_header(), model="renamed")) == dump


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (10).to_bytes(8, "little") + b"[" * 10,
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2).to_bytes(8, "little") + b"[]",
    ],
    ids=["empty", "huge header", "no JSON", "no metadata", "deep", "list"],
)
def test_a_file_of_something_else_is_refused(file: Path, make_header: MakeHeader, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(SnapshotError, match="damaged"):
        read_snapshot(file, expected=make_header())


@pytest.mark.parametrize("offsets", [[0, 10**12], [-1, 24], [24, 0], ["0", 24], [0], None, [0, True]])
def test_tensors_that_lie_elsewhere_are_refused(file: Path, make_header: MakeHeader, offsets: object) -> None:
    edit_header(file, lambda header: header["layer.18.M"].update({"data_offsets": offsets}))  # type: ignore[dict-item]
    with pytest.raises(SnapshotError, match="damaged"):
        read_snapshot(file, expected=make_header())


def test_a_write_that_fails_leaves_the_old_state_and_no_other_file(
    file: Path, dump: StateDump, make_header: MakeHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    other = StateDump(tensors={"x": TensorRecord("U8", (1,), b"x")}, meta={})
    with pytest.raises(DiskError, match=r"The disk is full: saving the state .*cc.safetensors"):
        write_snapshot(file, other, header=make_header())
    assert read_snapshot(file, expected=make_header()) == dump
    assert list((file.parent / ".partial").iterdir()) == []
