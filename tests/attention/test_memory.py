"""Reads and writes of the memory against the definition, in values, gradients, types and over long runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infinichat.attention import reference
from infinichat.attention.memory import (
    SOLVE_TOKENS,
    MemoryState,
    UpdateRule,
    dpfp,
    elu1,
    gather_written,
    read,
    read_normalised,
    unit,
    wide,
    write_delta,
    write_normalised,
)

F64 = torch.float64
B, HKV, GROUP, D = 2, 2, 3, 4


def filled(dtype: torch.dtype = F64) -> MemoryState:
    empty = MemoryState.empty(B, HKV, D, D, normalised=True, dtype=dtype)
    keys, values = torch.randn(B, HKV, 5, D, dtype=dtype), torch.randn(B, HKV, 5, D, dtype=dtype)
    return write_normalised(empty, elu1(keys), values, rule="linear")


def same_gradients(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    pairs = zip(
        torch.autograd.grad((ours * weight).sum(), inputs, allow_unused=True),
        torch.autograd.grad((theirs * weight).sum(), inputs, allow_unused=True),
        strict=True,
    )
    for mine, other in pairs:
        assert mine is not None
        assert other is not None
        torch.testing.assert_close(mine, other)


def test_the_feature_maps_are_the_definitions() -> None:
    x = torch.randn(3, 6, dtype=F64)
    torch.testing.assert_close(elu1(x), reference.sigma(x))
    for order in (1, 2, 3):
        torch.testing.assert_close(dpfp(x, order), torch.stack([reference.dpfp(row, order) for row in x]))
    torch.testing.assert_close(unit(x), torch.stack([reference.unit(row) for row in x]))
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_a_group_of_query_heads_reads_its_own_memory() -> None:
    state = filled()
    q = torch.randn(B, HKV * GROUP, 7, D, dtype=F64, requires_grad=True)
    M = state.M.clone().requires_grad_()
    z = (state.z if state.z is not None else state.M).clone().requires_grad_()
    got = read_normalised(elu1(q), replace(state, M=M, z=z))
    expected = torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [reference.retrieve(q[b, h, t], M[b, h // GROUP], z[b, h // GROUP]) for t in range(7)]
                    )
                    for h in range(HKV * GROUP)
                ]
            )
            for b in range(B)
        ]
    )
    same_gradients(got, expected, (q, M, z))


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("length", [1, 6])
def test_a_segment_is_written_as_the_paper_says(rule: UpdateRule, length: int) -> None:
    state = filled()
    assert state.z is not None
    k = torch.randn(B, HKV, length, D, dtype=F64, requires_grad=True)
    v = torch.randn(B, HKV, length, D, dtype=F64, requires_grad=True)
    got = write_normalised(state, elu1(k), v, rule=rule)
    assert got.z is not None
    expected = [
        [
            reference.update(state.M[b, h], state.z[b, h], list(k[b, h]), list(v[b, h]), rule)
            for h in range(HKV)
        ]
        for b in range(B)
    ]
    same_gradients(got.M, torch.stack([torch.stack([M for M, _ in row]) for row in expected]), (k, v))
    torch.testing.assert_close(got.z, torch.stack([torch.stack([z for _, z in row]) for row in expected]))
    assert got.written.tolist() == [5 + length] * B


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_masked_tokens_leave_the_memory_bit_identical(rule: UpdateRule) -> None:
    state = filled(torch.float32)
    keys, values = elu1(torch.randn(B, HKV, 6, D)), torch.randn(B, HKV, 6, D)
    mask = torch.tensor([[True, False, True, True, False, False], [False] * 6])
    first = write_normalised(state, keys, values, rule=rule, mask=mask)
    hidden = ~mask[:, None, :, None]
    other_keys = torch.where(hidden, keys * 3 + 1, keys)
    other_values = torch.where(hidden, values - 7, values)
    second = write_normalised(state, other_keys, other_values, rule=rule, mask=mask)
    assert torch.equal(first.M, second.M)
    assert first.z is not None
    assert second.z is not None
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.M[1], state.M[1])
    assert first.written.tolist() == [5 + 3, 5]


def delta_inputs(length: int, features: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    keys = unit(torch.randn(B, HKV, length, features, dtype=F64)).requires_grad_()
    values = torch.randn(B, HKV, length, D, dtype=F64, requires_grad=True)
    strength = torch.rand(B, length, dtype=F64).requires_grad_()
    return keys, values, strength


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_solved_delta_rule_is_the_token_by_token_one(length: int) -> None:
    keys, values, strength = delta_inputs(length)
    start = torch.randn(B, HKV, 12, D, dtype=F64, requires_grad=True)
    state = MemoryState(start, None, torch.zeros(B, dtype=torch.int64))
    got = write_delta(state, keys, values, strength).M
    rows = []
    for b in range(B):
        heads = []
        for h in range(HKV):
            M = start[b, h]
            for t in range(length):
                M = reference.store(M, keys[b, h, t], values[b, h, t], strength[b, t])
            heads.append(M)
        rows.append(torch.stack(heads))
    same_gradients(got, torch.stack(rows), (start, keys, values, strength))


@pytest.mark.parametrize("length", [SOLVE_TOKENS - 1, SOLVE_TOKENS, SOLVE_TOKENS + 1, 2 * SOLVE_TOKENS + 3])
def test_where_the_solves_are_cut_does_not_matter(length: int) -> None:
    keys, values, strength = (tensor.detach() for tensor in delta_inputs(length, features=48))
    empty = MemoryState.empty(B, HKV, 48, D, normalised=False, dtype=F64)
    together = write_delta(empty, keys, values, strength)
    one = empty
    for t in range(length):
        at = slice(t, t + 1)
        one = write_delta(one, keys[:, :, at], values[:, :, at], strength[:, at])
    torch.testing.assert_close(together.M, one.M)
    assert torch.equal(together.written, one.written)


def test_gathering_the_written_tokens_first_changes_nothing() -> None:
    keys, values, strength = (tensor.detach() for tensor in delta_inputs(20))
    strength = strength * torch.tensor([[1, 0, 0, 1] * 5, [0, 0, 0, 1] * 5])
    empty = MemoryState.empty(B, HKV, 12, D, normalised=False, dtype=F64)
    index, gathered = gather_written(strength)
    assert index.shape == (2, 10)
    assert gathered[1, 5:].tolist() == [0] * 5

    def pick(x: Tensor) -> Tensor:
        return x.gather(2, index[:, None, :, None].expand(-1, HKV, -1, x.shape[-1]))

    sparse = write_delta(empty, pick(keys), pick(values), gathered)
    dense = write_delta(empty, keys, values, strength)
    torch.testing.assert_close(sparse.M, dense.M)
    assert sparse.written.tolist() == dense.written.tolist() == [10, 5]


def test_nothing_to_write_gathers_nothing() -> None:
    index, strength = gather_written(torch.zeros(3, 8))
    assert index.shape == strength.shape == (3, 0)


def test_tokens_of_strength_zero_leave_the_memory_bit_identical() -> None:
    keys, values, strength = (tensor.detach().float() for tensor in delta_inputs(9))
    state = MemoryState(torch.randn(B, HKV, 12, D), None, torch.zeros(B, dtype=torch.int64))
    assert torch.equal(write_delta(state, keys, values, torch.zeros_like(strength)).M, state.M)


def test_writing_a_pair_again_changes_nothing_and_a_new_value_replaces_the_old() -> None:
    keys, values, _ = (tensor.detach() for tensor in delta_inputs(1))
    one = torch.ones(B, 1, dtype=F64)
    state = write_delta(MemoryState.empty(B, HKV, 12, D, normalised=False, dtype=F64), keys, values, one)
    torch.testing.assert_close(read(keys, state), values)
    torch.testing.assert_close(write_delta(state, keys, values, one).M, state.M)
    for _ in range(16):
        state = write_delta(state, keys, torch.randn_like(values), one)
    newest = torch.randn_like(values)
    torch.testing.assert_close(read(keys, write_delta(state, keys, newest, one)), newest)


def test_a_write_is_a_new_value_and_the_old_state_stays() -> None:
    state = filled()
    before = state.M.clone()
    write_normalised(
        state, elu1(torch.randn(B, HKV, 3, D, dtype=F64)), torch.randn(B, HKV, 3, D), rule="delta"
    )
    assert torch.equal(state.M, before)
    copy = state.clone()
    copy.M.zero_()
    copy.written.zero_()
    assert torch.equal(state.M, before)
    assert state.written.tolist() == [5, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_stay_float32_under_half_precision_inputs(dtype: torch.dtype) -> None:
    paper = MemoryState.empty(1, 1, D, D, normalised=True)
    keys = elu1(wide(torch.randn(1, 1, 8, D, dtype=dtype)))
    paper = write_normalised(paper, keys, torch.randn(1, 1, 8, D, dtype=dtype), rule="delta")
    assert paper.z is not None
    assert paper.M.dtype == paper.z.dtype == torch.float32
    recall = MemoryState.empty(1, 1, D, D, normalised=False)
    recall = write_delta(
        recall, unit(keys), torch.randn(1, 1, 8, D, dtype=dtype), torch.rand(1, 8, dtype=dtype)
    )
    assert recall.M.dtype == torch.float32
    assert read_normalised(torch.rand(1, 2, 3, D, dtype=dtype), paper).dtype == torch.float32


def test_a_memory_without_z_is_refused_by_the_paper_s_rules() -> None:
    recall = MemoryState.empty(1, 1, D, D, normalised=False)
    x = torch.rand(1, 1, 2, D)
    with pytest.raises(ValueError, match="needs a memory with z"):
        read_normalised(x, recall)
    with pytest.raises(ValueError, match="needs a memory with z"):
        write_normalised(recall, x, x, rule="linear")


def test_detach_cuts_the_graph_and_nbytes_counts_everything() -> None:
    state = filled()
    state = replace(state, M=state.M.requires_grad_())
    assert not state.detach().M.requires_grad
    assert state.nbytes == B * HKV * D * D * 8 + B * HKV * D * 8 + B * 8
    assert MemoryState.empty(1, 1, D, D, normalised=False).nbytes == D * D * 4 + 8


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_million_tokens_of_the_paper_s_memory_stay_finite_and_right(rule: UpdateRule) -> None:
    """Against the same sums in float64; half precision is 14 to 28 % wrong here, or infinite."""
    segment, width = 4096, 16
    state = MemoryState.empty(1, 1, width, width, normalised=True)
    exact = MemoryState.empty(1, 1, width, width, normalised=True, dtype=F64)
    for _ in range(245):
        keys, values = elu1(torch.randn(1, 1, segment, width)), torch.randn(1, 1, segment, width)
        state = write_normalised(state, keys, values, rule=rule)
        exact = write_normalised(exact, keys, values, rule=rule)
    assert state.written.item() > 1_000_000
    probe = elu1(torch.randn(1, 1, 64, width, dtype=F64))
    got, expected = read_normalised(probe, state), read_normalised(probe, exact)
    assert bool(got.isfinite().all())
    assert state.z is not None
    assert exact.z is not None
    torch.testing.assert_close(state.z.double(), exact.z, rtol=1e-4, atol=0)
    scale = state.z.mean().item()
    assert (state.M.double() - exact.M).abs().max().item() / scale < 1e-4
    assert (got - expected).abs().max() < 1e-4


def test_a_million_written_tokens_of_the_recall_memory_stay_finite_and_bounded() -> None:
    """Correlated keys at full strength, the case in which the delta rule without a solve diverges."""
    state = MemoryState.empty(1, 1, 16, 4, normalised=False)
    centre = torch.randn(16)
    strength = torch.ones(1, 8192)
    for _ in range(123):
        keys = unit(centre + 0.1 * torch.randn(1, 1, 8192, 16))
        state = write_delta(state, keys, torch.randn(1, 1, 8192, 4), strength)
    assert state.written.item() > 1_000_000
    assert bool(state.M.isfinite().all())
    last = write_delta(state, keys[:, :, -1:], torch.ones(1, 1, 1, 4), torch.ones(1, 1))
    torch.testing.assert_close(read(keys[:, :, -1:], last), torch.ones(1, 1, 1, 4), rtol=1e-3, atol=1e-3)
