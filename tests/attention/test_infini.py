"""Gates, taps and reads of the recall memory, against the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from infinichat.attention import reference
from infinichat.attention.infini import (
    ending,
    hard_gate,
    mix,
    paper_attention,
    ragged_taps,
    recall_features,
    recall_read,
    taps,
)
from infinichat.attention.memory import MemoryState, elu1, read_normalised, write_normalised

F64 = torch.float64


def test_the_gate_mixes_per_head_by_equation_10() -> None:
    local, memory = torch.randn(1, 3, 2, 4, dtype=F64), torch.randn(1, 3, 2, 4, dtype=F64)
    beta = torch.tensor([-1.0, 0.0, 2.0], dtype=F64)
    got = mix(local, memory, beta, torch.ones(1, dtype=torch.int64))
    for head in range(3):
        gate = 1 / (1 + math.exp(-float(beta[head])))
        torch.testing.assert_close(got[0, head], gate * memory[0, head] + (1 - gate) * local[0, head])


def test_rows_with_an_empty_memory_skip_the_gate_bit_for_bit() -> None:
    local = torch.randn(2, 3, 2, 4)
    got = mix(local, torch.zeros(2, 3, 2, 4), torch.zeros(3), torch.tensor([0, 5]))
    assert torch.equal(got[0], local[0])
    torch.testing.assert_close(got[1], local[1] / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closed_gate_gives_local_attention_bit_for_bit(dtype: torch.dtype) -> None:
    local = torch.randn(1, 3, 2, 4, dtype=dtype)
    got = mix(local, torch.randn(1, 3, 2, 4), torch.full((3,), -math.inf), torch.ones(1, dtype=torch.int64))
    assert got.dtype == dtype
    assert torch.equal(got, local)


def test_the_paper_s_attention_reads_with_features_of_unrotated_queries() -> None:
    state = MemoryState.empty(1, 1, 4, 4, normalised=True, dtype=F64)
    k, v, q = (torch.randn(1, 1, n, 4, dtype=F64) for n in (5, 5, 2))
    state = write_normalised(state, elu1(k), v, rule="linear")
    local = torch.randn(1, 1, 2, 4, dtype=F64)
    beta = torch.zeros(1, dtype=F64)
    expected = local / 2 + read_normalised(elu1(q), state) / 2
    torch.testing.assert_close(paper_attention(local, q, beta, state), expected)


def test_taps_are_the_states_before_each_token_with_zeros_before_the_first() -> None:
    x = torch.arange(1.0, 7).view(1, 6, 1)
    tail = torch.zeros(1, 4, 1)
    got = taps(x, tail, 1, 4)
    assert got[0].tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [2, 1, 0, 0],
        [3, 2, 1, 0],
        [4, 3, 2, 1],
        [5, 4, 3, 2],
    ]


@pytest.mark.parametrize("cut", [1, 3, 4, 5])
def test_taps_go_on_over_a_cut(cut: int) -> None:
    x, tail = torch.randn(2, 9, 3), torch.zeros(2, 4, 3)
    whole = taps(x, tail, 0, 5)
    middle = ending(tail, x[:, :cut])
    parts = [taps(x[:, :cut], tail, 0, 5), taps(x[:, cut:], middle, 0, 5)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(ending(middle, x[:, cut:]), x[:, -4:])


def test_taps_of_rows_with_padding_skip_the_padding_wherever_it_stands() -> None:
    real = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0, 1], [0] * 7], dtype=torch.bool)
    x, tail = torch.randn(3, 7, 2), torch.randn(3, 4, 2)
    got, new_tail = ragged_taps(x, tail, real, 0, 5)
    for row in range(3):
        tokens = x[row, real[row]][None]
        if tokens.shape[1]:
            torch.testing.assert_close(got[row, real[row]], taps(tokens, tail[row : row + 1], 0, 5)[0])
        assert torch.equal(new_tail[row], torch.cat((tail[row], tokens[0]))[-4:])
    other, other_tail = ragged_taps(torch.where(real[..., None], x, 99.0), tail, real, 0, 5)
    assert torch.equal(other[real], got[real])
    assert torch.equal(other_tail, new_tail)


def test_features_are_unit_dpfp_per_head() -> None:
    projected = torch.randn(2, 3, 10, dtype=F64)
    got = recall_features(projected, heads=2, order=3)
    assert got.shape == (2, 2, 3, 30)
    for b in range(2):
        for h in range(2):
            for t in range(3):
                torch.testing.assert_close(got[b, h, t], reference.recall_features(projected[b, t], h, 2, 3))


def test_the_write_gate_is_exactly_zero_below_its_threshold() -> None:
    logits = torch.tensor([-50.0, -1e-3, 0.0, 0.1, 50.0])
    got = hard_gate(logits)
    assert got[:3].tolist() == [0, 0, 0]
    assert 0 < float(got[3]) < 0.1
    assert float(got[4]) == 1


def test_a_clear_read_has_full_strength_and_a_faint_one_stays_faint() -> None:
    state = MemoryState(torch.zeros(1, 2, 3, 4, dtype=F64), None, torch.ones(1, dtype=torch.int64))
    value = torch.tensor([1.0, -1, 1, -1], dtype=F64)  # norm sqrt(4), as stored values have
    state.M[0, 0, 0], state.M[0, 1, 1] = value, 1e-3 * value
    keys = torch.eye(3, dtype=F64)[None, None, :2].expand(1, 2, 2, 3)
    softness = torch.tensor([0.1, 0.1], dtype=F64)
    got = recall_read(keys, state, softness=softness)
    assert got.values.shape == (1, 2, 8)
    torch.testing.assert_close(got.values[0, 0, :4], 2 * value / math.sqrt(4 + 0.01))
    torch.testing.assert_close(got.values[0, 1, 4:], 2e-3 * value / math.sqrt(4e-6 + 0.01))
    expected: Tensor = torch.tensor([[1.0, 0.0], [0.0, 1e-3]], dtype=F64)
    torch.testing.assert_close(got.confidence[0], expected, atol=1e-6, rtol=0)


def test_a_read_of_nothing_has_a_finite_gradient() -> None:
    features = torch.zeros(1, 1, 1, 3, requires_grad=True)
    state = MemoryState(torch.zeros(1, 1, 3, 4, requires_grad=True), None, torch.ones(1, dtype=torch.int64))
    got = recall_read(features, state, softness=torch.full((1,), 0.5))
    (got.values.sum() + got.confidence.sum()).backward()
    assert features.grad is not None
    assert state.M.grad is not None
    assert bool(features.grad.isfinite().all())
    assert bool(state.M.grad.isfinite().all())
