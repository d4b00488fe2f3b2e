"""Conversations that answer together say what each says alone, and none sees anything of another one."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from infinichat.engine.batch import Batch, Request, generate_many
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import ModuleStep, PlainStep
from infinichat.engine.library import native_library
from infinichat.engine.native import NativeStep
from infinichat.engine.quantize import WeightFormat
from infinichat.errors import ModelError, UsageError
from infinichat.messages import SamplingOptions
from infinichat.model.cache import InfiniCache
from infinichat.protocols import GeneratedToken
from tests.engine.conftest import MakeModel, some_ids
from tests.engine.tiny import engine_over

SIZES: dict[str, Any] = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 128}
BANK: dict[str, Any] = {
    **SIZES,
    "memory": "bank",
    "memory_slots": 9,
    "memory_rank": 2,
    "memory_topics": 2,
}
HISTORIES = [1, 90, 5, 24, 33, 57, 17, 23, 40, 25, 8, 64, 3, 77, 32, 12]
"""Tokens before an answer: next to none, and far beyond the window of 24 with a full bank of 9."""


class Wide(ByteTokenizer):
    """Tiles need ids in thirty-twos; those beyond the bytes are silent."""

    def token_bytes(self, token_id: int) -> bytes:
        return super().token_bytes(token_id) if token_id < self.vocab_size else b""


GREEDY = SamplingOptions(temperature=0, max_tokens=16)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = native_library(tmp_path_factory.mktemp("native"))
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


@pytest.fixture
def engine(make_model: MakeModel, library: ctypes.CDLL) -> InfiniEngine:
    return native(make_model(**BANK), library)


def native(
    model: Any, library: ctypes.CDLL, format: WeightFormat = "float32", threads: int = 1
) -> InfiniEngine:
    torch.set_num_threads(threads)
    step = NativeStep(model, library, format=format)
    return engine_over(model, step=step, tokenizer=Wide())


def states(engine: InfiniEngine, histories: Sequence[int] = HISTORIES) -> list[InfiniCache]:
    made = []
    for seed, count in enumerate(histories):
        state = engine.new_state()
        for _ in engine.feed(state, some_ids(count, seed)):
            pass
        made.append(state)
    return made


def alone(engine: InfiniEngine, state: InfiniCache, options: SamplingOptions = GREEDY) -> list[Any]:
    return list(engine.generate(state, options, end_ids=()))


def together(engine: InfiniEngine, requests: Sequence[Request]) -> list[list[GeneratedToken]]:
    items: list[list[GeneratedToken]] = [[] for _ in requests]
    for number, item in generate_many(engine, requests):
        assert isinstance(item, GeneratedToken)
        items[number].append(item)
    return items


def assert_close(ours: InfiniCache, theirs: InfiniCache) -> None:
    expected = theirs.to_tensors()
    assert ours.to_tensors().keys() == expected.keys()
    for name, tensor in ours.to_tensors().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def assert_same(ours: InfiniCache, theirs: InfiniCache) -> None:
    expected = theirs.to_tensors()
    for name, tensor in ours.to_tensors().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({}, 1),
        ({}, 3),
        ({"memory": "recall", "memory_rank": 0}, 1),
        ({"memory_layers": [0, 2]}, 1),
        ({"sinks": 0, "attention_bias": True, "tie_word_embeddings": False}, 1),
    ],
    ids=str,
)
def test_sixteen_conversations_say_together_what_each_says_alone(
    changes: dict[str, Any], threads: int, make_model: MakeModel, library: ctypes.CDLL
) -> None:
    engine = native(make_model(**{**BANK, **changes}), library, threads=threads)
    expected = states(engine)
    said = [alone(engine, state) for state in expected]
    in_batch = states(engine)
    assert together(engine, [Request(state, GREEDY) for state in in_batch]) == said
    for ours, theirs in zip(in_batch, expected, strict=True):
        assert_close(ours, theirs)
    # As if it had always been alone: the answers after the batch, too.
    assert [alone(engine, state) for state in in_batch] == [alone(engine, state) for state in expected]


@pytest.mark.parametrize(("format", "threads"), [("float32", 1), ("int8", 3), ("int4", 1)])
def test_what_is_in_c_is_the_same_to_the_last_bit(
    format: WeightFormat, threads: int, make_model: MakeModel, library: ctypes.CDLL
) -> None:
    engine = native(make_model(**SIZES, memory_trained=False), library, format, threads)
    expected, in_batch = states(engine), states(engine)
    said = [alone(engine, state) for state in expected]
    assert together(engine, [Request(state, GREEDY) for state in in_batch]) == said
    for ours, theirs in zip(in_batch, expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("step", [ModuleStep, lambda model: PlainStep(model, format="int8")])
def test_a_step_for_one_at_a_time_takes_them_in_turn(step: Any, make_model: MakeModel) -> None:
    model = make_model()
    engine = engine_over(model, step=step(model))
    expected, in_batch = states(engine), states(engine)
    said = [alone(engine, state) for state in expected]
    assert together(engine, [Request(state, GREEDY) for state in in_batch]) == said
    for ours, theirs in zip(in_batch, expected, strict=True):
        assert_same(ours, theirs)


def test_no_other_row_changes_when_one_is_another(engine: InfiniEngine) -> None:
    victim = 1
    untouched, touched = states(engine), states(engine)
    with torch.inference_mode():
        for state in touched[victim].states:
            state.k.content.mul_(-3)
            state.v.content.add_(7)
        assert touched[victim].last_hidden is not None
        touched[victim].last_hidden.neg_()
    first = together(engine, [Request(state, GREEDY) for state in untouched])
    second = together(engine, [Request(state, GREEDY) for state in touched])
    assert first[victim] != second[victim]
    for row in set(range(len(HISTORIES))) - {victim}:
        assert first[row] == second[row]
        assert_same(touched[row], untouched[row])


def test_rows_join_and_leave_between_steps(engine: InfiniEngine) -> None:
    expected, ours = states(engine), states(engine)
    said = [alone(engine, state) for state in expected]
    batch = Batch(engine)
    heard: dict[int, list[Any]] = {}
    for place, state in enumerate(ours):
        assert batch.join(Request(state, GREEDY)) == place
        for number, item in batch.step():
            heard.setdefault(number, []).append(item)
    gone = batch.leave(3)
    assert (gone.token_id, gone.fed, gone.finish) == (None, False, "stopped")
    cut = len(heard[3])
    while len(batch):
        for number, item in batch.step():
            heard.setdefault(number, []).append(item)
    assert batch.step() == []
    for number, items in heard.items():
        assert items == (said[3][:cut] if number == 3 else said[number])
    # Alone, the rest of what it would have said.
    options = replace(GREEDY, max_tokens=GREEDY.max_tokens - cut)
    ids = [item.token_id for item in alone(engine, ours[3], options)]
    assert ids == [item.token_id for item in said[3][cut:]]
    assert batch.join(Request(ours[0], GREEDY)) == len(HISTORIES)


def test_each_row_has_its_own_sampling_stops_and_ends(engine: InfiniEngine) -> None:
    options = [
        GREEDY,
        SamplingOptions(temperature=1.0, seed=1, max_tokens=20),
        SamplingOptions(temperature=1.5, seed=1, top_k=5, max_tokens=3, repetition_penalty=2.0),
        SamplingOptions(temperature=1.0, seed=2, max_tokens=20),
    ]
    histories = [40, 40, 40, 40]
    free = [item.token_id for item in alone(engine, states(engine, histories)[3], options[3])]
    ends = [(), (), (), (free[4],)]
    said = [
        list(engine.generate(state, option, end_ids=end))
        for state, option, end in zip(states(engine, histories), options, ends, strict=True)
    ]
    requests = [
        Request(state, option, end)
        for state, option, end in zip(states(engine, histories), options, ends, strict=True)
    ]
    assert together(engine, requests) == said
    assert [items[-1].finish for items in said] == ["length", "length", "length", "stop"]
    assert len({tuple(item.token_id for item in items) for items in said}) == 4


def test_a_cancelled_row_leaves_and_the_others_go_on(engine: InfiniEngine) -> None:
    cancel = threading.Event()
    first, second = states(engine, [30, 30])
    batch = Batch(engine)
    batch.join(Request(first, GREEDY, cancel=cancel))
    batch.join(Request(second, GREEDY))
    batch.step()
    cancel.set()
    (zero, stopped), (one, item) = batch.step()
    assert (zero, one, len(batch)) == (0, 1, 1)
    assert isinstance(stopped, GeneratedToken)
    assert isinstance(item, GeneratedToken)
    assert (stopped.finish, item.finish) == ("stopped", None)
    assert (engine.tokens_seen(first), engine.tokens_seen(second)) == (31, 32)


def test_a_damaged_row_leaves_with_its_error_and_the_others_go_on(engine: InfiniEngine) -> None:
    good, damaged = states(engine, [30, 30])
    said = alone(engine, states(engine, [30])[0])
    assert damaged.last_hidden is not None
    with torch.inference_mode():
        damaged.last_hidden.fill_(float("nan"))
    heard: list[list[Any]] = [[], []]
    for number, item in generate_many(engine, [Request(good, GREEDY), Request(damaged, GREEDY)]):
        heard[number].append(item)
    assert heard[0] == said
    assert [type(item) for item in heard[1]] == [ModelError]
    assert engine.tokens_seen(damaged) == 30


def test_mistakes_are_named(engine: InfiniEngine) -> None:
    batch = Batch(engine)
    (state,) = states(engine, [10])
    batch.join(Request(state, GREEDY))
    with pytest.raises(UsageError, match="each state once"):
        batch.join(Request(state, GREEDY))
    with pytest.raises(UsageError, match="Nothing was fed"):
        batch.join(Request(engine.new_state(), GREEDY))
    with pytest.raises(UsageError, match="max_tokens is 0; expected 1"):
        batch.join(Request(states(engine, [10])[0], replace(GREEDY, max_tokens=0)))
    with pytest.raises(UsageError, match="Conversation 9 .* there: 0"):
        batch.leave(9)
    assert len(batch) == 1
