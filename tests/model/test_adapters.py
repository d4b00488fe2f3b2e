"""What a read carries on changes nothing at the start and nothing where nothing was written, and is otherwise
what the definition says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infinichat.errors import ConfigError
from infinichat.model.adapters import LEAST_OPEN, Adapters, Carried, copy_matrix, cut, wide_open
from infinichat.model.bank_memory import BankMemory
from infinichat.model.loading import load_model
from infinichat.model.modeling_infini import InfiniForCausalLM
from tests.model.reference_model import expected
from tests.model.tiny_infini import shut_write_gate, some_ids, streamed, tiny_config, tiny_model

LENGTH = 30


def bank_model(**changes: object) -> InfiniForCausalLM:
    return tiny_model(memory="bank", num_hidden_layers=3, memory_layers=[0], **changes)


def memory_of(model: InfiniForCausalLM) -> BankMemory:
    memory = model.model.layers[0].memory
    assert isinstance(memory, BankMemory)
    return memory


@torch.no_grad()
def logits(model: InfiniForCausalLM) -> Tensor:
    return streamed(model, some_ids(LENGTH), cuts=[7, 8, 21])[0]


def test_adapters_are_there_for_the_layers_above_and_only_for_those() -> None:
    adapters = memory_of(bank_model()).adapters
    assert adapters is not None
    assert (adapters.first, len(adapters.q_up)) == (1, 2)
    assert memory_of(bank_model(memory_rank=0)).adapters is None
    top = tiny_model(memory="bank", memory_layers=[1]).model.layers[1].memory
    assert isinstance(top, BankMemory)
    assert top.adapters is None


def test_open_adapters_and_said_values_are_those_of_the_definition() -> None:
    model = bank_model()
    with torch.no_grad():
        want = expected(model, some_ids(LENGTH)[0]).logits
        torch.testing.assert_close(logits(model), want)
        for name in ("say", "carry_bias"):
            without = bank_model()
            parameter = memory_of(without).get_parameter(name)
            parameter.copy_(torch.zeros_like(parameter) - (0 if name == "say" else 99))
            assert not torch.allclose(logits(without), want), f"{name} does not matter"


def test_new_adapters_change_nothing() -> None:
    model, plain = bank_model(), bank_model(memory_rank=0)
    fresh = memory_of(model).adapters
    assert fresh is not None
    fresh.reset_parameters()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=1e-12)


def test_nothing_is_carried_before_something_is_written() -> None:
    model = bank_model()
    shut_write_gate(model)
    base = tiny_model(memory="bank", num_hidden_layers=3, memory_layers=[])
    base.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(logits(model), logits(base))


def test_where_adapters_stay_shut_a_full_memory_is_the_base_bit_for_bit() -> None:
    model = bank_model()
    base = tiny_model(memory="bank", num_hidden_layers=3, memory_layers=[])
    base.load_state_dict(model.state_dict(), strict=False)
    memory = memory_of(model)
    with torch.no_grad():
        memory.carry[0] = 0
        memory.carry_bias[0] = -9
        ids = torch.randperm(40)[None, :LENGTH]  # no token twice: nothing that was found is being said
        cache = model.model.new_cache()
        ours = model(ids, past_key_values=cache).logits
        assert all(int(memory.written) > 0 for memory in cache.memories.values())
        assert torch.equal(ours, base(ids).logits)


def test_adapters_stay_open_while_a_value_that_was_found_goes_on() -> None:
    memory = memory_of(bank_model())
    memory.carry_bias[0].data.fill_(-99)
    x, one = torch.randn(1, 2, 32), torch.ones(1, 2, 1)
    going = torch.tensor([[[0.0], [0.75]]])
    with torch.no_grad():
        added, carried = memory.added(x, x, 0 * one, 0 * one, going, 1.0)
    assert carried.opened.flatten().tolist() == [0.0, 0.75]
    assert not bool(added[0, 0].any())
    assert bool(added[0, 1].any())


def test_rows_without_a_written_token_stay_the_bases_beside_rows_with_one() -> None:
    model, ids = bank_model(), some_ids(12, rows=2)
    memory = memory_of(model)
    with torch.no_grad():
        memory.gate_taps.zero_()
        memory.gate_out.zero_()
        memory.gate_bias.fill_(5.0)
        cache = model.model.new_cache(2)
        model(ids[:, :6], past_key_values=cache)
        state = cache.states[0]
        assert state.memory is not None
        assert state.bank is not None
        memory.gate_bias.fill_(-9.0)
        assert state.tail_gate is not None
        state.tail_gate.fill_(-9.0)
        empty = torch.tensor([1, 0])
        state.memory.written.mul_(empty)
        state.memory.M.mul_(empty[:, None, None, None])
        for tensor in state.bank.tensors():
            tensor.mul_(empty.view(-1, *[1] * (tensor.dim() - 1)).to(tensor.dtype))
        seen = []
        handle = memory.register_forward_hook(lambda *call: seen.append(call[2]))
        model(ids[:, 6:], past_key_values=cache)
        handle.remove()
    _, carried = seen[0]
    assert bool(carried.values[0].any())
    assert not bool(carried.opened[1].any())
    assert not bool(carried.values[1].any())


def test_a_gate_is_exactly_shut_below_its_least() -> None:
    edge = torch.logit(torch.tensor(LEAST_OPEN, dtype=torch.float64))
    gates = cut(edge + torch.tensor([-1e-6, 1e-6], dtype=torch.float64))
    assert gates[0] == 0
    assert gates[1] == pytest.approx(LEAST_OPEN, rel=1e-4)
    opened = wide_open(edge + torch.tensor([-1e-6, 1e-6], dtype=torch.float64))
    assert opened[0] == 0
    assert opened[1] == pytest.approx(2 * LEAST_OPEN, rel=1e-4)


def test_adapters_are_wholly_open_from_even_odds_on() -> None:
    assert wide_open(torch.tensor([-9.0, -0.5, 0.0, 0.6, 9.0])).tolist() == pytest.approx(
        [0, 2 * torch.tensor(-0.5).sigmoid().item(), 1, 1, 1]
    )


def test_the_last_tokens_say_what_is_theirs() -> None:
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    wish = torch.tensor([[[9.0], [99.0]]])
    carried = Carried(None, torch.zeros(1, 2, 1), values, wish, torch.zeros(2), torch.tensor(3.0))
    assert torch.equal(carried.spoken(torch.zeros(1, 1, 2)), torch.tensor([[[0.0, 3.0]]]))


def test_adapters_are_no_wider_than_they_say() -> None:
    adapters = Adapters(tiny_config(), below=0, rank=3)
    adapters.reset_parameters()
    assert adapters.qkv_down.shape == (1, 9, 32)
    assert all(float(up.detach().abs().max()) == 0 for up in (adapters.q_up, adapters.o_up))
    assert float(adapters.qkv_down.detach().abs().max()) > 0


def test_a_copied_value_scores_highest_for_its_own_token() -> None:
    torch.manual_seed(4)
    head = torch.randn(1000, 64) * torch.linspace(0.1, 2, 64) + 3 * torch.randn(64)
    values = BankMemory.unit_rms(head)
    plain, copied = values @ head.T, values @ copy_matrix(values, head).T @ head.T
    own = torch.arange(1000)
    assert float((plain.argmax(dim=1) == own).float().mean()) < 0.2
    assert float((copied.argmax(dim=1) == own).float().mean()) > 0.95


@pytest.mark.parametrize("gate", [cut, wide_open])
def test_what_is_shut_can_be_opened_and_what_is_open_shut(gate: Callable[[Tensor], Tensor]) -> None:
    logits = torch.tensor([-9.0, 9.0], requires_grad=True)
    gate(logits).sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())
    with torch.no_grad():
        assert gate(logits).tolist() == pytest.approx([0, 1], abs=1e-3)


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory_rank is -1"):
        tiny_config(memory_rank=-1)


@pytest.mark.real
@torch.no_grad()
def test_the_default_models_tokens_are_told_apart_by_their_copy_scores(base_weights: Path) -> None:
    head = load_model(base_weights).model.lm_head.weight
    values, own = BankMemory.unit_rms(head), torch.arange(0, len(head), 160)
    plain, copied = values[own] @ head.T, values[own] @ copy_matrix(values, head).T @ head.T
    assert float((plain.argmax(dim=1) == own).float().mean()) < 0.15
    assert float((copied.argmax(dim=1) == own).float().mean()) > 0.99
