"""A state in and out: copies that share nothing, and a sentence for every damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from infinichat.errors import StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.model.tiny_infini import KINDS, Kind, some_ids, tiny_config, tiny_model

Tensors = dict[str, Tensor]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def fed(model: InfiniForCausalLM, length: int, *, ragged: bool = False) -> InfiniCache:
    cache = model.model.new_cache(2)
    mask = torch.ones(2, length, dtype=torch.int64)
    if ragged:
        mask[1, : length // 2] = 0
    model(some_ids(length, rows=2), attention_mask=mask, past_key_values=cache)
    return cache


def following(model: InfiniForCausalLM, cache: InfiniCache) -> Tensor:
    return model(some_ids(15, rows=2, seed=9), past_key_values=cache).logits


def same(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- copies


@kinds
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("length", [1, 11, 12, 13, 30])
def test_saved_loaded_and_fed_on_is_as_if_never_stopped(kind: Kind, ragged: bool, length: int) -> None:
    model = tiny_model(memory=kind)
    cache = fed(model, length, ragged=ragged)
    loaded = InfiniCache.from_tensors(model.config, cache.to_tensors())
    assert same(loaded.to_tensors(), cache.to_tensors())
    assert torch.equal(model.next_logits(loaded), model.next_logits(cache))
    assert torch.equal(following(model, loaded), following(model, cache))
    assert same(loaded.to_tensors(), cache.to_tensors())


@kinds
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_a_clone_goes_its_own_way(kind: Kind, ragged: bool) -> None:
    model = tiny_model(memory=kind)
    cache = fed(model, 30, ragged=ragged)
    before = cache.to_tensors()
    clone = cache.clone()
    want = following(model, cache.clone())
    model(some_ids(40, rows=2, seed=1), past_key_values=clone)
    assert same(cache.to_tensors(), before)
    assert torch.equal(following(model, cache), want)


def storages(cache: InfiniCache) -> set[int]:
    tensors = [cache.ids.content, cache.last_hidden, cache.row_seen, cache.row_evicted, cache.positions]
    for state in cache.states:
        tensors += [*state.named().values(), state.k.with_front, state.v.with_front]
    return {t.untyped_storage().data_ptr() for t in tensors if t is not None} - {0}


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_no_copy_shares_storage_with_its_source(ragged: bool) -> None:
    model = tiny_model()
    cache = fed(model, 30, ragged=ragged)
    tensors = cache.to_tensors()
    saved = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    loaded = InfiniCache.from_tensors(model.config, tensors)
    assert not storages(cache) & saved
    assert not storages(loaded) & saved
    assert not storages(cache) & storages(cache.clone())


def test_two_conversations_share_nothing() -> None:
    """Interleaved with another one, a conversation says what it says alone."""
    model = tiny_model()
    ids, other = some_ids(40), some_ids(40, seed=77)
    alone = model(ids).logits
    first, second = model.model.new_cache(), model.model.new_cache()
    parts = []
    for start in range(0, 40, 5):
        parts.append(model(ids[:, start : start + 5], past_key_values=first).logits)
        model(other[:, start : start + 5], past_key_values=second)
    torch.testing.assert_close(torch.cat(parts, dim=1), alone, rtol=1e-9, atol=1e-9)


def test_a_call_without_a_state_leaves_nothing_in_the_model() -> None:
    model = tiny_model()
    want = model(some_ids(30)).logits
    model(some_ids(30, seed=8))
    assert torch.equal(model(some_ids(30)).logits, want)


def test_reset_forgets_everything() -> None:
    model = tiny_model()
    cache = fed(model, 30, ragged=True)
    cache.reset()
    assert same(cache.to_tensors(), model.model.new_cache(2).to_tensors())


# ---- rows


@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
@pytest.mark.parametrize("length", [9, 30])
def test_chosen_rows_go_on_as_they_would_have(ragged: bool, length: int) -> None:
    model = tiny_model()
    cache = fed(model, length, ragged=ragged)
    chosen = cache.clone()
    rows = torch.tensor([1, 0, 1])
    chosen.reorder_cache(rows)
    assert chosen.batch_size == chosen.max_batch_size == 3
    ids = some_ids(15, rows=2, seed=9)
    want = model(ids, past_key_values=cache).logits[rows]
    torch.testing.assert_close(model(ids[rows], past_key_values=chosen).logits, want, rtol=1e-9, atol=1e-9)


def test_the_shorter_row_of_a_batch_can_be_taken_out_saved_and_loaded() -> None:
    model = tiny_model()
    cache = fed(model, 14, ragged=True)
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.tokens_seen == 7
    loaded = InfiniCache.from_tensors(model.config, cache.to_tensors())
    ids = some_ids(9)
    alone = model(torch.cat((some_ids(14, rows=2)[1:, 7:], ids), dim=1)).logits[:, -9:]
    torch.testing.assert_close(model(ids, past_key_values=loaded).logits, alone, rtol=1e-9, atol=1e-9)


def test_repeated_rows_are_independent() -> None:
    model = tiny_model()
    cache = fed(model, 20)
    cache.batch_repeat_interleave(2)
    got = model(some_ids(6, rows=4, seed=2), past_key_values=cache).logits
    assert not torch.equal(got[0], got[1])
    assert cache.batch_size == 4


# ---- what callers ask


def test_counts_and_room_follow_the_window() -> None:
    model = tiny_model()
    cache = model.model.new_cache()
    assert (cache.tokens_seen, cache.window_tokens, cache.room) == (0, 0, 12)
    rooms = []
    for t in range(17):
        model(some_ids(17)[:, t : t + 1], past_key_values=cache)
        assert cache.tokens_seen == cache.get_seq_length() == t + 1
        rooms.append(cache.room)
    assert rooms == [*range(11, 0, -1), 4, 3, 2, 1, 4, 3]
    assert cache.window_tokens == 9
    assert repr(cache) == "InfiniCache(tokens_seen=17, window=9, evicted=8)"


def test_room_of_a_batch_is_that_of_the_row_that_is_next() -> None:
    model = tiny_model()
    cache = model.model.new_cache(2)
    mask = torch.ones(2, 13, dtype=torch.int64)
    mask[1, :2] = 0
    model(some_ids(13, rows=2), attention_mask=mask, past_key_values=cache)
    assert cache.tokens_seen == 13
    assert cache.room == 1  # 11 of 12 tokens in the second row; the first has 3 left of its segment


def test_bytes_are_those_of_the_saved_tensors_and_stop_growing() -> None:
    model = tiny_model()
    sizes = []
    for length in (16, 400):
        cache = fed(model, length)
        sizes.append(cache.nbytes)
        assert cache.nbytes == sum(tensor.nbytes for tensor in cache.to_tensors().values())
    assert sizes[0] == sizes[1]


def test_crop_refuses_to_un_write() -> None:
    cache = fed(tiny_model(), 30)
    cache.crop(30)
    cache.crop(1000)
    for length in (29, 0, -1):
        with pytest.raises(StateError, match=f"crop to {length} tokens .* seen 30"):
            cache.crop(length)


# ---- damage


def drop(name: str) -> Callable[[Tensors], None]:
    def remove(tensors: Tensors) -> None:
        del tensors[name]

    return remove


def change(name: str, how: Callable[[Tensor], object]) -> Callable[[Tensors], None]:
    return lambda t: t.__setitem__(name, how(t[name]))  # type: ignore[arg-type]


def counted(index: int, value: int) -> Callable[[Tensors], None]:
    def put(tensors: Tensors) -> None:
        tensors["counts"][index] = value

    return put


DAMAGE: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "empty": (lambda t: t.clear(), "no tensor 'counts'"),
    "no ids": (drop("ids"), "no tensor 'ids'"),
    "no keys": (drop("layers.0.k"), r"no tensor 'layers\.0\.k'"),
    "a layer short": (drop("layers.1.v"), r"no tensor 'layers\.1\.v'"),
    "no memory": (drop("layers.0.M"), r"no tensor 'layers\.0\.M'"),
    "no count of writes": (drop("layers.1.written"), "written"),
    "no tail": (drop("layers.0.tail"), "tail"),
    "no strengths": (drop("layers.0.strength"), "strength"),
    "no pending keys": (drop("layers.0.memory_k"), "memory_k"),
    "no sinks": (drop("layers.0.sink_k"), "sink_k"),
    "no last hidden": (drop("last_hidden"), "last_hidden"),
    "a tensor too many": (
        lambda t: t.update(extra=torch.zeros(1)),
        "'extra', which this model has no place for",
    ),
    "a layer too many": (lambda t: t.update({"layers.2.k": t["layers.1.k"]}), r"layers\.2\.k"),
    "not a tensor": (change("layers.0.v", lambda v: v.tolist()), r"layers\.0\.v is a list"),
    "counts as floats": (change("counts", lambda c: c.double()), "counts is torch.float64"),
    "counts too short": (change("counts", lambda c: c[:3]), r"counts is torch.int64 \(3,\), expected"),
    "no rows": (counted(0, 0), "cannot belong together"),
    "other rows": (counted(0, 3), "cannot belong together"),
    "negative tokens": (counted(2, -1), "cannot belong together"),
    "more tokens than slots": (counted(2, 31), "cannot belong together"),
    "fewer slots than tokens": (counted(1, 50), "do not add up|add up"),
    "tokens that do not fit the window": (counted(2, 29), "add up|other settings"),
    "more gone than seen": (counted(3, 31), "cannot belong together"),
    "gone by half a segment": (counted(3, 22), "22 of them gone"),
    "ids of one dimension": (change("ids", lambda i: i[0]), "cannot belong together"),
    "ids as floats": (change("ids", lambda i: i.double()), "ids is torch.float64"),
    "ids cut short": (change("ids", lambda i: i[:, 1:]), "is torch"),
    "ids beyond the vocabulary": (
        change("ids", lambda i: i + 40),
        "ids goes from .* this model expects 0 to 39",
    ),
    "negative ids": (change("ids", lambda i: i - 40), "ids goes from -"),
    "more written than seen": (change("layers.0.written", lambda w: w + 30), "written goes from .* 0 to 30"),
    "strengths above one": (change("layers.1.strength", lambda s: s + 1), "strength goes from"),
    "keys as whole numbers": (change("layers.0.k", lambda k: k.long()), "expected a floating-point type"),
    "keys of another precision": (
        change("layers.1.k", lambda k: k.float()),
        r"layers\.1\.k is torch.float32",
    ),
    "keys with other heads": (change("layers.1.k", lambda k: k[:, :1]), r"layers\.1\.k"),
    "values cut short": (
        change("layers.0.v", lambda v: v[:, :, 1:]),
        r"layers\.0\.v is .* this model expects",
    ),
    "memory of another width": (change("layers.0.M", lambda m: m[..., 1:]), r"layers\.0\.M"),
    "memory in half precision": (change("layers.0.M", lambda m: m.bfloat16()), "bfloat16"),
    "memory with a NaN": (change("layers.0.M", lambda m: m.index_fill(2, torch.tensor(3), torch.nan)), "NaN"),
    "memory with an infinity": (
        change("layers.1.M", lambda m: m.index_fill(2, torch.tensor(0), torch.inf)),
        "inf",
    ),
    "keys with a NaN": (
        change("layers.0.k", lambda k: k.index_fill(2, torch.tensor(3), torch.nan)),
        "damaged",
    ),
    "tail of another size": (change("layers.0.tail", lambda t: t[:, 1:]), "tail"),
    "last hidden of one row": (change("last_hidden", lambda h: h[:1]), "last_hidden"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_refused_by_name(damage: str) -> None:
    model = tiny_model()
    tensors = fed(model, 30).to_tensors()
    spoil, words = DAMAGE[damage]
    spoil(tensors)
    with pytest.raises(StateError, match=words):
        InfiniCache.from_tensors(model.config, tensors)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("positions"), "positions"),
        (drop("row_evicted"), "row_evicted"),
        (drop("row_seen"), "no place for"),
        (change("row_seen", lambda r: r + 1), "do not agree with the counts"),
        (change("row_seen", lambda r: r * torch.tensor([1, -1])), "do not agree"),
        (change("row_evicted", lambda r: r - 4), "other settings"),
        (change("positions", lambda p: p + 1), "positions of row 0"),
        (change("positions", lambda p: p.flip(1)), "positions of row 0"),
        (change("positions", lambda p: torch.full_like(p, -1)), "0 in the window"),
        (change("positions", lambda p: p[:, 1:]), "positions is"),
    ],
)
def test_a_damaged_state_of_a_padded_batch_is_refused(spoil: Callable[[Tensors], None], words: str) -> None:
    model = tiny_model()
    tensors = fed(model, 30, ragged=True).to_tensors()
    spoil(tensors)
    with pytest.raises(StateError, match=words):
        InfiniCache.from_tensors(model.config, tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 16},
        {"segment": 6},
        {"sinks": 1},
        {"sinks": 0},
        {"memory": "linear"},
        {"memory_layers": [0]},
        {"memory_layers": []},
        {"memory_trained": False},
        {"memory_key_dim": 8},
        {"memory_order": 2},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 4},
        {"hidden_size": 64},
        {"vocab_size": 20},
    ],
    ids=str,
)
def test_a_state_of_another_model_is_refused(changes: dict[str, object]) -> None:
    tensors = fed(tiny_model(), 30).to_tensors()
    with pytest.raises(StateError):
        InfiniCache.from_tensors(tiny_config(**changes), tensors)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop("layers.0.bank_values"), "bank_values"),
        (drop("layers.0.tail_key"), "tail_key"),
        (change("layers.1.bank_ids", lambda i: i + 40), "bank_ids goes from .* expects 0 to 39"),
        (change("layers.1.bank_order", lambda o: o - 99), "bank_order goes from -"),
        (change("layers.1.bank_keys", lambda k: k[:, 1:]), "bank_keys"),
    ],
)
def test_a_damaged_bank_is_refused(spoil: Callable[[Tensors], None], words: str) -> None:
    model = tiny_model(memory="bank")
    tensors = fed(model, 30).to_tensors()
    spoil(tensors)
    with pytest.raises(StateError, match=words):
        InfiniCache.from_tensors(model.config, tensors)


def test_a_delta_state_needs_its_z() -> None:
    model = tiny_model(memory="delta")
    tensors = fed(model, 30).to_tensors()
    del tensors["layers.0.z"]
    with pytest.raises(StateError, match=r"layers\.0\.z"):
        InfiniCache.from_tensors(model.config, tensors)


def test_a_half_precision_state_keeps_its_types() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    cache = fed(model, 30)
    loaded = InfiniCache.from_tensors(model.config, cache.to_tensors())
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(following(model, loaded), following(model, cache))
