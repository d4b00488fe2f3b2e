"""A chain names exactly what was fed: ids, mode, order and model, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infinichat.engine.scripted import ScriptedEngine
from infinichat.session.chain import (
    LAST_PIECE,
    PIECE,
    document_pieces,
    make_feeds,
    next_chain,
    place_chain,
    root_chain,
)

ENGINE = ScriptedEngine()
ROOT = root_chain(ENGINE.info, ENGINE.tokenizer, "chatml-1")


def test_the_root_depends_on_engine_tokenizer_and_format() -> None:
    other = replace(ENGINE.info, fingerprint="0" * 64)
    assert root_chain(other, ENGINE.tokenizer, "chatml-1") != ROOT
    assert root_chain(ENGINE.info, ENGINE.tokenizer, "chatml-2") != ROOT
    assert root_chain(replace(ENGINE.info, threads=7, device="cuda"), ENGINE.tokenizer, "chatml-1") == ROOT


def test_every_difference_in_what_was_fed_is_another_chain() -> None:
    chains = {
        next_chain(ROOT, "prefill", [1, 2]),
        next_chain(ROOT, "decode", [1, 2]),
        next_chain(ROOT, "prefill", [2, 1]),
        next_chain(ROOT, "prefill", [1]),
        next_chain(next_chain(ROOT, "prefill", [1]), "prefill", [2]),
        next_chain(next_chain(ROOT, "prefill", [1, 2]), "prefill", []),
    }
    assert len(chains) == 6


def test_the_chain_is_part_of_the_format_on_disk() -> None:
    assert next_chain("0" * 64, "prefill", [1, 2, 70000]) == (
        "38c80a2eec09fd461a29e31108348c48cb9712ff4c2a7730866d61662a762b73"
    )


def test_empty_pieces_feed_nothing() -> None:
    assert make_feeds(ROOT, [("prefill", []), ("decode", [])]) == ()
    (feed,) = make_feeds(ROOT, [("prefill", []), ("decode", [5])])
    assert feed.chain == next_chain(ROOT, "decode", [5])


def test_only_at_the_root_does_the_system_text_tell_messages_apart() -> None:
    assert len({place_chain(None, None), place_chain(None, ""), place_chain(None, "default")}) == 3
    assert place_chain("p", None) == place_chain("p", "x")


@pytest.mark.parametrize("length", [1, PIECE, PIECE + 1, PIECE + LAST_PIECE, 3 * PIECE + 77])
def test_a_documents_pieces_are_its_ids_and_the_last_is_fed_like_a_prompt(length: int) -> None:
    pieces = document_pieces(range(length))
    assert [i for _, ids in pieces for i in ids] == list(range(length))
    *first, (mode, last) = pieces
    assert mode == "prefill"
    assert all(mode == "read" and 0 < len(ids) <= PIECE for mode, ids in first)
    assert len(last) == (length if length <= PIECE else LAST_PIECE)
