"""Reading without the layers above the memory: the memory gets the same, and so do they in the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.errors import StateError
from infinichat.model import reading
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.reading import can_read, first_above, read_piece, settle
from tests.model.tiny_infini import Kind, some_ids, tiny_config, tiny_model

BELOW = {"num_hidden_layers": 4, "memory_layers": [1]}  # two layers above the memory
DEEP = {"num_hidden_layers": 8, "memory_layers": [1]}


def model_of(**changes: Any) -> InfiniForCausalLM:
    return tiny_model(**{"memory": "bank", **BELOW, **changes})


@torch.no_grad()
def feed(model: InfiniForCausalLM, cache: InfiniCache, ids: Tensor, *, read: bool = False) -> InfiniCache:
    """As the engine does it: never further than where a segment ends."""
    at = 0
    while at < ids.shape[1]:
        part = ids[:, at : at + cache.room]
        if read and can_read(cache):
            read_piece(model.model, cache, part)
        else:
            model.model(input_ids=part, past_key_values=cache, keep=1)
        at += part.shape[1]
    return cache


@torch.no_grad()
def settled(model: InfiniForCausalLM, cache: InfiniCache) -> dict[str, Tensor]:
    settle(model.model, cache)
    return cache.to_tensors()


def both(model: InfiniForCausalLM, length: int, *, start: int = 5) -> tuple[InfiniCache, InfiniCache]:
    """Read with all layers, and without those above the memory after the first ``start`` tokens."""
    ids = some_ids(length)
    whole = feed(model, model.model.new_cache(), ids)
    left_out = feed(model, model.model.new_cache(), ids[:, :start])
    return whole, feed(model, left_out, ids[:, start:], read=True)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], only: str = "") -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if name.startswith(only):
            torch.testing.assert_close(
                ours[name], tensor, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("kind", ["bank", "recall"])
@pytest.mark.parametrize("window", [{}, {"window": 8, "segment": 8, "sinks": 0}], ids=["streaming", "hard"])
@pytest.mark.parametrize("length", [6, 13, 16, 24, 60, 99])
def test_two_layers_above_the_memory_get_all_that_they_would_have_got(
    kind: Kind, window: dict[str, Any], length: int
) -> None:
    model = model_of(memory=kind, **window)
    whole, left_out = both(model, length)
    assert left_out.pending is not None
    assert left_out.last_hidden is None
    assert_equal(settled(model, left_out), whole.to_tensors())


@pytest.mark.parametrize("length", [13, 24, 60])
def test_sliding_layers_above_keep_their_own_angles_and_sight(length: int) -> None:
    types = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    model = model_of(sliding_window=12, layer_types=types, rope_local_base_freq=77.0)
    whole, left_out = both(model, length)
    assert_equal(settled(model, left_out), whole.to_tensors())


@pytest.mark.parametrize("length", [13, 24])
def test_a_text_that_is_kept_whole_is_settled_exactly_under_any_number_of_layers(length: int) -> None:
    model = model_of(**DEEP)
    whole, left_out = both(model, length)
    assert_equal(settled(model, left_out), whole.to_tensors())


def test_of_a_longer_one_only_what_came_through_many_windows_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(**DEEP)
    missing = []
    for windows in (1, 2, 6):
        monkeypatch.setattr(reading, "KEPT_WINDOWS", windows)
        whole, left_out = both(model, 200)
        ours, theirs = settled(model, left_out), whole.to_tensors()
        # The memory, the layers below and the first ``windows`` above are exact, and so are all sinks.
        for layer in range(2 + windows):
            assert_equal(ours, theirs, only=f"layers.{layer}.")
        for layer in range(8):
            assert_equal(ours, theirs, only=f"layers.{layer}.sink")
        missing.append(max(float((ours[n] - theirs[n]).abs().max()) for n in theirs if n.endswith(".k")))
    assert missing[0] > missing[1] > 1e-3 > 1e-9 > missing[2]


def test_reading_leaves_the_layers_above_alone() -> None:
    model = model_of()
    state = feed(model, model.model.new_cache(), some_ids(5))

    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError("a layer above the memory was run")

    for layer in model.model.layers[2:]:
        layer.forward = never
    feed(model, state, some_ids(50), read=True)
    assert state.seen == 55


@pytest.mark.parametrize("stop", [7, 12, 30, 53, 64, 90])
@pytest.mark.parametrize("changes", [BELOW, DEEP], ids=["two above", "six above"])
def test_a_reading_that_was_stopped_saved_and_taken_up_gives_the_same_state(
    stop: int, changes: dict[str, Any]
) -> None:
    model, ids = model_of(**changes), some_ids(120)
    start = feed(model, model.model.new_cache(), ids[:, :3])
    straight = feed(model, start.clone(), ids[:, 3:], read=True)
    stopped = feed(model, start, ids[:, 3:stop], read=True)
    saved = stopped.to_tensors()
    settle(model.model, stopped)  # somebody asked; the saved state must not know
    again = InfiniCache.from_tensors(model.config, saved)
    assert again.nbytes == sum(tensor.nbytes for tensor in saved.values())
    again = feed(model, again, ids[:, stop:], read=True)
    assert_equal(again.to_tensors(), straight.to_tensors())
    assert_equal(settled(model, again), settled(model, straight))


def test_a_copy_of_a_pending_state_is_its_own() -> None:
    model, ids = model_of(), some_ids(40)
    state = feed(model, model.model.new_cache(), ids[:, :5])
    feed(model, state, ids[:, 5:20], read=True)
    before, copy = state.to_tensors(), state.clone()
    feed(model, copy, ids[:, 20:], read=True)
    settled(model, copy)
    assert_equal(state.to_tensors(), before)


def test_whoever_asks_first_settles() -> None:
    model = model_of()
    whole, left_out = both(model, 70)
    with torch.no_grad():
        more = some_ids(3, seed=9)
        ours = model(more, past_key_values=left_out).logits
        torch.testing.assert_close(ours, model(more, past_key_values=whole).logits)


def test_what_cannot_be_left_out_is_not() -> None:
    assert first_above(tiny_config(memory="bank", **BELOW)) == 2
    assert first_above(tiny_config(memory="bank", memory_layers=[1])) is None  # nothing above
    assert first_above(tiny_config(memory="bank", memory_layers=[0, 1], num_hidden_layers=4)) is None
    assert first_above(tiny_config(memory="delta", **BELOW)) is None  # mixed into attention
    assert first_above(tiny_config(memory="bank", memory_trained=False, **BELOW)) is None
    model = model_of()
    state = model.model.new_cache()
    assert not can_read(state)  # the sinks must have been through all layers
    assert can_read(feed(model, state, some_ids(3)))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("pending.hidden", lambda t: t[:, :0], "at least one"),
        ("pending.opened", lambda t: t[:, 1:], "pending.opened"),
        ("pending.wish", lambda t: t * float("nan"), "NaN"),
        ("layers.2.k", lambda t: t.new_zeros(*t.shape[:2], 99, t.shape[3]), "cannot belong together"),
        ("layers.3.v", lambda t: t.new_zeros(*t.shape[:2], 1, t.shape[3]), "layers.3.v"),
    ],
)
def test_a_damaged_pending_state_is_refused_by_name(name: str, change: Any, said: str) -> None:
    model = model_of()
    _, state = both(model, 50)
    tensors = state.to_tensors()
    InfiniCache.from_tensors(model.config, tensors)
    with pytest.raises(StateError, match=said):
        InfiniCache.from_tensors(model.config, {**tensors, name: change(tensors[name])})
