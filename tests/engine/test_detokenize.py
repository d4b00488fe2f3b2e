"""Streaming text: whole characters, no beginning of a stop string, nothing lost."""

from __future__ import annotations

import pytest

from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.detokenize import StreamDecoder


def stream(data: bytes, stops: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    decoder = StreamDecoder(ByteTokenizer(), stops)
    pieces = []
    for byte in data:
        text, stopped = decoder.add(byte)
        pieces.append(text)
        if stopped:
            return pieces, True
    return [*pieces, decoder.rest()], False


@pytest.mark.parametrize("text", ["plain", "é", "naïve — 漢字 🐕‍🦺", "a\u0301"])
def test_every_piece_is_whole_characters_and_nothing_is_lost(text: str) -> None:
    pieces, _ = stream(text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_a_character_cut_at_the_end_is_not_shown() -> None:
    assert "".join(stream("ab🐕".encode()[:-1])[0]) == "ab"


def test_bytes_that_are_no_text_become_the_replacement_character() -> None:
    assert "".join(stream(b"a\xff\xfeb")[0]) == "a\ufffd\ufffdb"


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    pieces, stopped = stream(b"say END now", ("END",))
    assert stopped
    assert "".join(pieces) == "say "
    assert pieces[4] == ""


def test_what_looked_like_a_stop_string_is_shown_once_it_is_none() -> None:
    pieces, stopped = stream(b"ENd EN", ("END",))
    assert not stopped
    assert pieces[:3] == ["", "", "ENd"]
    assert "".join(pieces) == "ENd EN"


def test_the_first_of_several_stops_wins_and_empty_ones_are_none() -> None:
    assert "".join(stream(b"one\n\ntwo", ("two", "\n\n", ""))[0]) == "one"


def test_a_stop_that_overlaps_itself_is_found() -> None:
    pieces, stopped = stream(b"xaaab", ("aab",))
    assert stopped
    assert "".join(pieces) == "xa"


def test_control_tokens_have_no_text() -> None:
    decoder = StreamDecoder(ByteTokenizer())
    assert decoder.add(ByteTokenizer().control_id("<|im_end|>")) == ("", False)
