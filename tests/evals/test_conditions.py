"""Memory off, wiped and swapped are states, and the window stays."""

from __future__ import annotations

import torch

from infinichat.evals.conditions import swapped, wiped, without_memory
from infinichat.evals.streaming import stream

from .conftest import MakeEngine
from .test_streaming import some_ids


def test_without_memory_is_the_checkpoint_that_has_none(make_engine: MakeEngine) -> None:
    engine, plain = make_engine(), make_engine(memory_trained=False)
    for name, parameter in plain.model.named_parameters():
        parameter.data.copy_(engine.model.get_parameter(name).data)
    ids = some_ids(120)
    off, other, on = without_memory(engine.new_state()), plain.new_state(), engine.new_state()
    stream(engine, off, ids)
    stream(plain, other, ids)
    stream(engine, on, ids)
    assert off.last_hidden is not None
    assert torch.equal(off.last_hidden, other.last_hidden)
    assert not torch.equal(off.last_hidden, on.last_hidden)


def test_wiped_holds_nothing_and_leaves_its_source_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    state = engine.new_state()
    stream(engine, state, some_ids(120))
    before = state.to_tensors()
    empty = wiped(state)
    assert int(empty.memories[1].written) == 0
    assert not bool(empty.memories[1].M.any())
    assert torch.equal(empty.states[2].k.content, state.states[2].k.content)
    stream(engine, empty, some_ids(40, seed=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.to_tensors().items())


def test_swapped_has_the_others_memory_and_its_own_window(make_engine: MakeEngine) -> None:
    engine = make_engine()
    mine, other = engine.new_state(), engine.new_state()
    stream(engine, mine, some_ids(120))
    stream(engine, other, some_ids(120, seed=2))
    mixed = swapped(mine, other)
    assert torch.equal(mixed.memories[1].M, other.memories[1].M)
    assert mixed.states[1].bank is not None
    assert other.states[1].bank is not None
    assert torch.equal(mixed.states[1].bank.keys, other.states[1].bank.keys)
    assert torch.equal(mixed.ids.content, mine.ids.content)
