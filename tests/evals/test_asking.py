"""The driver: everything is told beyond the window, and nothing that is asked disturbs the stream."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infinichat.chat_format import Utterance
from infinichat.errors import UsageError
from infinichat.evals.asking import Asked, Script, _moments, plan, play
from infinichat.evals.bench import Bench
from infinichat.evals.filler import FillerText
from infinichat.evals.task import FillerKind, Memory, Options, Tally

FACT = Utterance("user", "My code is 417.")


def script(rng: random.Random) -> Script:
    """One fact, one question; "right" whatever is answered."""
    return Script(
        (FACT, Utterance("assistant", "Ok.")), (Asked("Code?", lambda answer: True, "417"),), facts=1
    )


def a_plan(bench: Bench, *, depth: float | None = None, kind: FillerKind = "dialogues", **options: object):
    chosen = Options(lengths=(64, 200), max_tokens=2, **options)  # type: ignore[arg-type]
    return plan(
        bench,
        chosen,
        FillerText(),
        script,
        kind=kind,
        conversations=2,
        seed="s",
        label={"side": "seen"},
        depth=depth,
    )


@pytest.mark.parametrize("kind", ["dialogues", "books"])
def test_at_every_length_the_fact_is_out_of_the_window(bench: Bench, kind: FillerKind) -> None:
    fact = bench.engine.tokenizer.encode("417")
    lengths = []
    for length, _, conversation, _ in _moments(bench, a_plan(bench, kind=kind), "s", None):
        window = conversation.cache.ids.content[0].tolist()
        assert not any(window[at : at + 3] == fact for at in range(len(window)))
        told = len(bench.format.encode_user(FACT.content, first=True).ids) + 3
        assert conversation.tokens - told >= length
        lengths.append(length)
    assert lengths == [64, 64, 200, 200]


def test_the_filler_is_streamed_once_and_read_like_one_full_stream(bench: Bench) -> None:
    wanted = replace(a_plan(bench), memory=("on",))
    found = {length: c.cache for length, _, c, _ in _moments(bench, wanted, "s", None)}
    alone = replace(wanted, lengths=(200,), tail=10_000)
    [(_, _, full, _)] = list(_moments(bench, alone, "s", None))
    assert found[200].tokens_seen == full.tokens
    memory = found[200].memories[1]
    # Fed in other pieces, so equal up to rounding here; test_streaming has the exact claim.
    torch.testing.assert_close(memory.M, full.cache.memories[1].M, rtol=1e-3, atol=1e-3)


def test_asking_changes_nothing(bench: Bench) -> None:
    conversation = bench.new_conversation()
    conversation.tell(FACT)
    conversation.tell(Utterance("assistant", "Ok."))
    before = conversation.cache.to_tensors()
    answers = {conversation.ask("Code?", max_tokens=5) for _ in range(2)}
    assert len(answers) == 1
    assert all(torch.equal(t, before[name]) for name, t in conversation.cache.to_tensors().items())


def test_a_conversation_is_encoded_as_the_product_encodes_it(bench: Bench) -> None:
    said = [
        FACT,
        Utterance("assistant", "Ok."),
        Utterance("document", "Text.", title="T"),
        Utterance("user", "Code?"),
    ]
    conversation = bench.new_conversation()
    ids = [i for message in said for i in conversation.encode(message)]
    assert ids == list(bench.format.encode_conversation(said).ids)


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_depth_puts_filler_before_the_fact_and_keeps_it_out_of_the_window(bench: Bench, depth: float) -> None:
    fact = bench.engine.tokenizer.encode("417")
    for length, _, conversation, _ in _moments(bench, a_plan(bench, depth=depth), "s", None):
        window = conversation.cache.ids.content[0].tolist()
        assert not any(window[at : at + 3] == fact for at in range(len(window)))
        assert conversation.tokens >= length


def test_every_condition_is_asked_and_counted(bench: Bench) -> None:
    uses: tuple[Memory, ...] = ("on", "off", "wiped", "swapped")
    tally, transcript = Tally(), []
    play(bench, a_plan(bench, memory=uses), tally, transcript)
    assert [(c.length, c.memory, c.n, c.correct) for c in tally.cells()] == [
        (length, use, 2, 2) for length in (64, 200) for use in uses
    ]
    assert len(transcript) == 16
    assert {"asked", "answer", "expected", "right"} <= set(transcript[0])


def test_off_has_never_read_or_written(bench: Bench) -> None:
    wanted = replace(a_plan(bench), memory=("off",))
    for _, _, conversation, _ in _moments(bench, wanted, "s", None):
        assert conversation.cache.memories == {}


def test_a_length_inside_the_window_is_refused(bench: Bench) -> None:
    with pytest.raises(UsageError, match="length 20 is not beyond the window; .* at least 32 tokens"):
        plan(
            bench,
            Options(lengths=(20,)),
            FillerText(),
            script,
            kind="dialogues",
            conversations=1,
            seed="s",
            label={},
        )


def test_a_folder_is_read_without_the_files_that_tell_facts(folder: Path) -> None:
    filler = FillerText(folder)
    assert [[m.content for m in dialogue] for dialogue in filler.dialogues] == [["Hi you", "Ho"]]
    assert [title for title, _ in filler.books] == ["book"]
    assert filler.notes == []


def test_an_empty_folder_is_an_error_and_none_is_generated_text_with_a_note(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no \\*.jsonl dialogues"):
        FillerText(tmp_path)
    assert "generated" in FillerText().notes[0]
