"""stream_below: the memory and the lower windows to the last bit, the layers above not at all."""

from __future__ import annotations

import pytest
import torch

from infinichat.errors import UsageError
from infinichat.evals.streaming import least_tail, stream, stream_below
from infinichat.model.cache import InfiniCache

from .conftest import MakeEngine


def some_ids(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(0, 256, (count,), generator=generator).tolist()
    return ids


def both(
    make_engine: MakeEngine, first: int, skipped: int, tail: int, **changes: object
) -> list[InfiniCache]:
    """The state after a full stream, and after one whose middle stayed below."""
    engine, ids = make_engine(**changes), some_ids(first + skipped + tail)
    full, below = engine.new_state(), engine.new_state()
    # Fed in the same parts: where a part ends, matrix products have other sizes and round otherwise.
    for part in (ids[:first], ids[first : first + skipped], ids[first + skipped :]):
        stream(engine, full, part)
    stream(engine, below, ids[:first])
    stream_below(engine, below, ids[first : first + skipped])
    stream(engine, below, ids[first + skipped :])
    return [full, below]


@pytest.mark.parametrize("memory", ["bank", "recall", "linear", "delta"])
@pytest.mark.parametrize(("first", "skipped", "tail"), [(2, 200, 0), (37, 101, 0), (10, 150, 64), (5, 3, 1)])
def test_the_memory_is_exactly_that_of_a_full_stream(
    make_engine: MakeEngine, memory: str, first: int, skipped: int, tail: int
) -> None:
    full, below = both(make_engine, first, skipped, tail, memory=memory)
    assert int(full.memories[1].written.sum()) > 0 or first + skipped + tail < 24
    wanted, found = full.to_tensors(), below.to_tensors()
    for name, tensor in wanted.items():
        if name.startswith(("layers.0.", "layers.1.", "ids", "counts")):
            assert torch.equal(tensor, found[name]), name


def test_two_memory_layers_are_both_exact(make_engine: MakeEngine) -> None:
    full, below = both(make_engine, 20, 90, 0, memory_layers=[0, 1])
    for layer, memory in full.memories.items():
        assert torch.equal(memory.M, below.memories[layer].M)


def test_after_the_tail_no_window_holds_a_zero(make_engine: MakeEngine) -> None:
    engine = make_engine()
    _, below = both(make_engine, 20, 90, least_tail(engine.model))
    for state in below.states:
        assert bool((state.k.content.abs().sum(dim=-1) > 0).all())


def test_a_long_tail_brings_the_upper_layers_back_to_a_full_stream(make_engine: MakeEngine) -> None:
    def apart(tail: int) -> float:
        full, below = both(make_engine, 20, 90, tail)
        assert full.last_hidden is not None
        assert below.last_hidden is not None
        return float((full.last_hidden - below.last_hidden).abs().max())

    # Two windows deep nothing of the zeros is left here: one layer above the memory sees one window back.
    assert apart(24 + 24 + 8) == 0.0
    assert apart(2) > 0.0


def test_a_state_that_was_only_streamed_below_cannot_be_asked(make_engine: MakeEngine) -> None:
    _, below = both(make_engine, 20, 30, 0)
    assert below.last_hidden is None


def test_the_sinks_have_to_come_first(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(UsageError, match="2 attention sinks"):
        stream_below(engine, engine.new_state(), some_ids(9))
