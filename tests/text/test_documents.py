"""Files as documents: which files a path means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinichat.errors import InfiniChatError, UsageError
from infinichat.text.documents import Document, documents, named_paths, split_names


def test_a_file_is_one_document_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffnaïve\r\n".encode())
    assert list(documents([tmp_path / "a.txt"])) == [Document("a.txt", "naïve\r\n")]


def test_a_folder_is_its_text_files_in_order_without_hidden_and_binary_ones(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, data in (("b/2.md", b"two"), ("a.txt", b"one"), (".git/config", b"no"), ("x.bin", b"\0\1")):
        (tmp_path / name).write_bytes(data)
    assert list(documents([tmp_path])) == [Document("a.txt", "one"), Document("b/2.md", "two")]


def test_another_encoding_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "old.txt"
    file.write_bytes("naïve".encode("latin-1"))
    assert next(documents([file], encoding="latin-1")).text == "naïve"
    with pytest.raises(InfiniChatError, match=r"is not utf-8 at byte 2\. Next: .*--encoding latin-1"):
        list(documents([file]))
    with pytest.raises(UsageError, match="'klingon' is not a known encoding"):
        list(documents([file], encoding="klingon"))


def test_what_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"ab\0cd")
    with pytest.raises(InfiniChatError, match=r"x\.bin' is not a text file"):
        list(documents([tmp_path / "x.bin"]))
    with pytest.raises(InfiniChatError, match="no text file under"):
        list(documents([tmp_path]))


def test_a_missing_file_is_found_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match=r"There is no file 'nope\.txt'"):
        named_paths([str(tmp_path / "a.txt"), "nope.txt"])
    with pytest.raises(UsageError, match="There is no file"):
        list(documents([Path("nope.txt")]))


def test_names_with_blanks_are_quoted_and_an_open_quotation_mark_is_refused() -> None:
    assert split_names('a.txt "b c.txt"') == ["a.txt", "b c.txt"]
    with pytest.raises(UsageError, match="open quotation mark"):
        split_names('"a')


def test_a_folder_with_a_file_that_cannot_be_read_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InfiniChatError, match=r"a\.txt' cannot be read \(Permission denied\)"):
        list(documents([tmp_path]))
