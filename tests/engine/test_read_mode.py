"""Ids that are fed in the mode "read": the engine answers after them as if all layers had read them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.errors import StateError
from infinichat.messages import SamplingOptions
from infinichat.model.cache import InfiniCache
from tests.engine.conftest import MakeEngine, some_ids

# With two layers above the memory what is kept while reading is enough for every result.
TWO_ABOVE = {
    "memory": "bank",
    "memory_slots": 9,
    "memory_rank": 2,
    "memory_topics": 2,
    "num_hidden_layers": 4,
}
GREEDY = SamplingOptions(temperature=0, max_tokens=30)


@pytest.fixture(params=["float32", None], ids=["plain step", "module step"])
def engine(request: pytest.FixtureRequest, make_engine: MakeEngine) -> InfiniEngine:
    made: InfiniEngine = make_engine(request.param, **TWO_ABOVE)
    return made


def fed(engine: InfiniEngine, ids: list[int], mode: Any, state: Any = None) -> InfiniCache:
    state = engine.new_state() if state is None else state
    progress = list(engine.feed(state, ids, mode=mode))
    assert progress[-1].done == len(ids)
    assert isinstance(state, InfiniCache)
    return state


def answer(engine: InfiniEngine, state: InfiniCache) -> list[int | None]:
    return [item.token_id for item in engine.generate(state, GREEDY, end_ids=[])]


@pytest.mark.parametrize("length", [3, 24, 100, 200])
def test_the_answer_is_that_after_reading_with_all_layers(engine: InfiniEngine, length: int) -> None:
    ids = some_ids(length)
    read, whole = fed(engine, ids, "read"), fed(engine, ids, "prefill")
    assert (read.pending is not None) == (length > 16)  # the first forward goes through all layers
    assert engine.tokens_seen(read) == engine.tokens_seen(whole)
    assert [r.written for r in engine.layer_memory(read)] == [r.written for r in engine.layer_memory(whole)]
    assert answer(engine, read) == answer(engine, whole)
    torch.testing.assert_close(read.last_hidden, whole.last_hidden, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_what_is_fed_after_a_reading_meets_an_ordinary_state(engine: InfiniEngine, mode: str) -> None:
    ids, more = some_ids(100), some_ids(9, seed=5)
    read = fed(engine, more, mode, fed(engine, ids, "read"))
    assert read.pending is None
    whole = fed(engine, more, mode, fed(engine, ids, "prefill"))
    assert answer(engine, read) == answer(engine, whole)


def test_a_reading_that_is_stopped_dumped_and_taken_up_is_one_that_was_not(engine: InfiniEngine) -> None:
    ids = some_ids(150)
    straight = fed(engine, ids, "read")
    state, cancel = engine.new_state(), threading.Event()
    done = 0
    for progress in engine.feed(state, ids, mode="read", cancel=cancel):
        done = progress.done
        if done > 60:
            cancel.set()
    assert 60 < done < 100
    dump = engine.dump_state(state)
    answer(engine, state)  # asked in between; the dump knows nothing of it
    again = fed(engine, ids[done:], "read", engine.load_state(dump))
    ours, theirs = again.to_tensors(), straight.to_tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert answer(engine, again) == answer(engine, straight)


def test_a_model_that_cannot_leave_layers_out_refuses_such_a_state(make_engine: MakeEngine) -> None:
    reader = make_engine(**TWO_ABOVE)
    dump = reader.dump_state(fed(reader, some_ids(100), "read"))
    top = make_engine(**{**TWO_ABOVE, "memory_layers": [3], "memory_rank": 0})
    with pytest.raises(StateError):
        top.load_state(dump)


@pytest.mark.parametrize(("length", "times"), [(100, 0), (600, 1)])
def test_after_many_ids_the_memory_of_their_forwards_goes_back(
    length: int, times: int, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import generate

    given_back: list[int] = []
    monkeypatch.setattr(generate, "give_back_memory", lambda: given_back.append(1))
    fed(make_engine(), some_ids(length), "prefill")
    assert len(given_back) == times
