"""transformers' own generate() with our state: greedy, sampled, beams, batches, going on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.errors import StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.model.tiny_infini import KINDS, WINDOWS, Kind, some_ids, tiny_model

kinds = pytest.mark.parametrize("kind", KINDS)
NEW = 12


def generate(model: InfiniForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    # Without a mask transformers takes generated ids that equal the padding's for padding.
    options = {"max_new_tokens": NEW, "do_sample": False, "attention_mask": torch.ones_like(ids), **options}
    out = model.generate(ids, **options)
    assert isinstance(out, Tensor)
    return out


@torch.no_grad()
def greedy_by_hand(model: InfiniForCausalLM, ids: Tensor, count: int = NEW) -> Tensor:
    """The whole conversation through a fresh state for every token."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(dim=-1)), dim=1)
    return ids


@kinds
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", [1, 16])
def test_greedy_generation_is_what_one_shot_logits_say(kind: Kind, window: str, length: int) -> None:
    model = tiny_model(memory=kind, **WINDOWS[window])
    ids = some_ids(length)
    assert torch.equal(generate(model, ids), greedy_by_hand(model, ids))


def test_generation_without_a_kept_state_is_the_same() -> None:
    model, ids = tiny_model(), some_ids(20)
    assert torch.equal(generate(model, ids, use_cache=False), generate(model, ids))


def test_a_left_padded_batch_generates_as_its_rows_alone() -> None:
    model = tiny_model()
    rows = [some_ids(n, seed=n) for n in (3, 19, 8)]
    ids = torch.cat([torch.nn.functional.pad(row, (19 - row.shape[1], 0)) for row in rows])
    got = generate(model, ids, attention_mask=(ids != 0).long())
    for i, row in enumerate(rows):
        assert torch.equal(got[i, -NEW:], generate(model, row)[0, -NEW:])


def test_the_same_seed_gives_the_same_sample_and_another_seed_another() -> None:
    model, ids = tiny_model(), some_ids(20)
    options = {"do_sample": True, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(generate(model, ids, **options))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    torch.manual_seed(1)
    assert torch.equal(generate(model, ids, use_cache=False, **options), samples[0])


@kinds
def test_beam_search_with_a_state_finds_what_it_finds_without(kind: Kind) -> None:
    model, ids = tiny_model(memory=kind, seed=4), some_ids(18, rows=2)
    options = {"num_beams": 4, "num_return_sequences": 2}
    with_state = generate(model, ids, **options)
    assert torch.equal(with_state, generate(model, ids, use_cache=False, **options))
    assert not torch.equal(with_state[::2], generate(model, ids))


def test_several_samples_of_one_prompt_do_not_mix() -> None:
    model, ids = tiny_model(), some_ids(18)
    torch.manual_seed(4)
    got = generate(model, ids, do_sample=True, temperature=2.0, num_return_sequences=3)
    assert got.shape == (3, 18 + NEW)
    assert len({tuple(row.tolist()) for row in got}) == 3


@kinds
@pytest.mark.parametrize("whole", [True, False], ids=["whole conversation", "new ids only"])
def test_generation_goes_on_with_the_state_of_before(kind: Kind, whole: bool) -> None:
    model, first, second = tiny_model(memory=kind), some_ids(14), some_ids(6, seed=8)
    cache = model.model.new_cache()
    answer = generate(model, first, past_key_values=cache)
    # The last generated id has not been fed; it comes first in what is new.
    assert cache.tokens_seen == answer.shape[1] - 1
    conversation = torch.cat((answer, second), dim=1)
    ids = conversation if whole else conversation[:, cache.tokens_seen :]
    mask = torch.ones_like(conversation)
    got = generate(model, ids, past_key_values=cache, attention_mask=mask)
    assert torch.equal(got[:, -NEW:], generate(model, conversation)[:, -NEW:])
    assert cache.tokens_seen == conversation.shape[1] + NEW - 1


def test_a_state_that_is_given_is_used_even_when_none_shall_be_kept() -> None:
    model, ids = tiny_model(), some_ids(20)
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids[:, :14], past_key_values=cache)
    got = generate(model, ids, past_key_values=cache, use_cache=False)
    assert torch.equal(got, generate(model, ids))
    assert cache.tokens_seen == 20 + NEW - 1


def test_a_padded_batch_goes_on_with_its_state() -> None:
    model = tiny_model()
    ids = torch.cat((torch.nn.functional.pad(some_ids(5), (6, 0)), some_ids(11, seed=6)))
    cache = model.model.new_cache(2)
    answer = generate(model, ids, attention_mask=(ids != 0).long(), past_key_values=cache)
    conversation = torch.cat((answer, some_ids(7, rows=2, seed=9)), dim=1)
    mask = torch.cat(((ids != 0).long(), torch.ones(2, NEW + 7, dtype=torch.int64)), dim=1)
    got = generate(model, conversation, attention_mask=mask, past_key_values=cache)
    for row in range(2):
        alone = conversation[row][mask[row].bool()][None]
        assert torch.equal(got[row, -NEW:], generate(model, alone)[0, -NEW:])


def test_a_state_that_has_seen_everything_already_is_not_fed_twice() -> None:
    model, ids = tiny_model(), some_ids(14)
    cache = model.model.new_cache()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    before = cache.to_tensors()
    with pytest.raises(StateError, match=r"input_ids has 14 tokens and the state has seen 14"):
        generate(model, ids, past_key_values=cache)
    assert all(torch.equal(tensor, before[name]) for name, tensor in cache.to_tensors().items())


def test_generation_stops_at_the_end_token() -> None:
    model, ids = tiny_model(), some_ids(14)
    free = generate(model, ids)[0, 14:].tolist()
    end = next(token for at, token in enumerate(free) if token not in free[:at] and at >= 3)
    stopped = generate(model, ids, eos_token_id=end)[0, 14:].tolist()
    assert stopped == free[: free.index(end) + 1]


def test_drafting_with_an_assistant_is_refused_because_a_memory_cannot_be_un_written() -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        generate(tiny_model(), some_ids(5), assistant_model=tiny_model())


def test_the_returned_state_is_ours() -> None:
    model, ids = tiny_model(), some_ids(14)
    out = model.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, InfiniCache)
    assert out.past_key_values.tokens_seen == 16
