"""The definition itself, against numbers worked out by hand: everything else is tested against it."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from infinichat.attention.reference import (
    RecallParameters,
    Window,
    attend_locally,
    dpfp,
    paper_layer,
    recall_layer,
    retrieve,
    rotated,
    sigma,
    steps,
    store,
    token_values,
    unit,
    update,
)

F64 = torch.float64


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def test_sigma_is_one_above_elu() -> None:
    assert torch.allclose(sigma(row(-1, 0, 2)), row(math.exp(-1), 1, 3))


def test_a_hard_window_starts_a_new_segment_every_segment() -> None:
    firsts = [step.first for step in steps(9, Window(4, 4))]
    assert firsts == [0, 0, 0, 0, 4, 4, 4, 4, 8]


def test_a_streaming_window_lets_its_oldest_segment_go_when_it_is_full() -> None:
    got = [(step.position, list(step.leaving), step.first) for step in steps(9, Window(4, 2)) if step.leaving]
    assert got == [(4, [0, 1], 2), (6, [2, 3], 4), (8, [4, 5], 6)]


def test_the_window_never_holds_more_than_its_tokens() -> None:
    assert max(step.position - step.first + 1 for step in steps(100, Window(10, 3))) == 10


def test_a_linear_update_adds_outer_products_and_sums_of_features() -> None:
    M, z = update(
        torch.zeros(2, 2, dtype=F64), row(0, 0), [row(1, 0), row(0, 1)], [row(1, 2), row(3, 4)], "linear"
    )  # sigma of the keys is (2, 1) and (1, 2)
    assert torch.equal(M, torch.tensor([[2 + 3, 4 + 4], [1 + 6, 2 + 8]], dtype=F64))
    assert torch.equal(z, row(3, 3))


def test_a_delta_update_stores_what_the_memory_from_before_the_segment_gets_wrong() -> None:
    M, z = torch.tensor([[5.0, 8], [7, 10]], dtype=F64), row(3, 3)
    # sigma(k) = (2, 1): it reads (17, 26) / 9 for both tokens of the segment, also the second one.
    new_M, new_z = update(M, z, [row(1, 0), row(1, 0)], [row(1, 2), row(0, 0)], "delta")
    stored = row(1 - 17 / 9, 2 - 26 / 9) + row(-17 / 9, -26 / 9)
    assert torch.allclose(new_M, M + torch.outer(row(2, 1), stored))
    assert torch.equal(new_z, row(7, 5))


def test_a_retrieval_is_a_weighted_mean_of_what_was_stored() -> None:
    M, z = update(
        torch.zeros(2, 2, dtype=F64), row(0, 0), [row(1, 0), row(0, 1)], [row(1, 2), row(3, 4)], "linear"
    )  # weights sigma(q) . sigma(k) for q = (1, 0): 5 and 4
    assert torch.allclose(retrieve(row(1, 0), M, z), (5 * row(1, 2) + 4 * row(3, 4)) / 9)


def test_an_empty_memory_reads_as_zero() -> None:
    assert torch.equal(retrieve(row(1, 0), torch.zeros(2, 2, dtype=F64), row(0, 0)), row(0, 0))


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    x = row(1, 2, 3, 4)
    for i, frequency in enumerate((1.0, 1 / 100)):
        turned = complex(x[i], x[i + 2]) * cmath.exp(1j * 7 * frequency)
        got = rotated(x, 7, theta=10_000)
        assert complex(got[i], got[i + 2]) == pytest.approx(turned)


def test_attention_depends_on_distance_and_sinks_stand_right_before_the_window() -> None:
    window = Window(4, 2, sinks=1)
    q, k, v = torch.randn(10, 4, dtype=F64), torch.randn(10, 4, dtype=F64), torch.randn(10, 3, dtype=F64)
    step = list(steps(10, window))[9]
    assert step.first == 6
    got = attend_locally(q[9], k, v, step, window, 10_000)
    # Token 0 seen from 9 stands at 5; shifting every position by -5 changes nothing.
    tokens, places = [0, 6, 7, 8, 9], [0, 1, 2, 3, 4]
    scores = torch.stack(
        [rotated(q[9], 4, 10_000) @ rotated(k[t], p, 10_000) for t, p in zip(tokens, places, strict=True)]
    )
    assert torch.allclose(got, torch.softmax(scores / 2, dim=0) @ v[tokens])


def test_query_heads_of_a_group_share_one_key_value_head() -> None:
    q, (k, v) = torch.randn(4, 7, 4, dtype=F64), torch.randn(2, 2, 7, 4, dtype=F64)
    beta, window = torch.randn(4, dtype=F64), Window(3, 3)
    whole = paper_layer(q, k, v, beta, window=window, rule="delta").output
    second = paper_layer(q[2:], k[1:], v[1:], beta[2:], window=window, rule="delta").output
    assert torch.equal(whole[2:], second)


def test_sinks_are_not_written() -> None:
    q, k, v = (torch.randn(1, 5, 4, dtype=F64) for _ in range(3))
    layer = paper_layer(q, k, v, row(0), window=Window(4, 4, sinks=1), rule="linear")
    assert torch.allclose(layer.z[0], sigma(k[0, 1:4]).sum(dim=0))


def test_dpfp_is_the_products_of_neighbours() -> None:
    # r = (2, 0, 0, 3): order 1 gives r_i r_{i-1}, order 2 r_i r_{i-2}
    assert torch.equal(dpfp(row(2, -3), 2), row(2 * 3, 0, 0, 0, 0, 0, 0, 0))
    assert torch.equal(dpfp(row(1, 2), 2), row(0, 2, 0, 0, 0, 0, 0, 0))


def test_unit_leaves_zero_alone() -> None:
    assert torch.equal(unit(row(3, 4)), row(0.6, 0.8))
    assert torch.equal(unit(row(0, 0)), row(0, 0))


def test_the_delta_rule_replaces_the_value_of_a_key_and_leaves_others() -> None:
    first, second = row(1, 0), row(0, 1)
    M = store(torch.zeros(2, 2, dtype=F64), first, row(1, 2), row(1))
    M = store(M, second, row(3, 4), row(1))
    M = store(M, first, row(5, 6), row(1))
    assert torch.equal(first @ M, row(5, 6))
    assert torch.equal(second @ M, row(3, 4))
    assert torch.equal(store(M, first, row(5, 6), row(1)), M)


def test_stored_values_have_root_mean_square_one() -> None:
    values = token_values(torch.randn(3, 6, dtype=F64) * 5, 2)
    assert values.shape == (3, 2, 3)
    assert torch.allclose(values.square().mean(dim=(1, 2)), row(1, 1, 1), atol=1e-5)


def test_a_recall_memory_answers_a_context_it_has_seen_with_the_token_that_followed() -> None:
    """The state before a stored token equals the state of the query: the query finds that token's value."""
    hidden, heads, width = 6, 1, 3
    x = torch.randn(8, hidden, dtype=F64)
    x[5:7] = x[0:2]  # tokens 5, 6 repeat 0, 1, so the query at 6 looks for what followed 1: token 2
    projection = torch.zeros(width, 4 * hidden, dtype=F64)
    projection[:, : 2 * hidden] = torch.randn(width, 2 * hidden, dtype=F64)
    none = torch.zeros(hidden, dtype=F64)
    parameters = RecallParameters(
        k_taps=projection,
        q_taps=projection,
        gate_taps=torch.zeros(3, hidden, dtype=F64),
        gate_bias=torch.tensor(50.0, dtype=F64),
        out=torch.eye(hidden, dtype=F64),
        alpha=torch.ones((), dtype=F64),
        softness=torch.full((1,), 1e-3, dtype=F64),
        confidence=torch.zeros(hidden, heads, dtype=F64),
        found_bias=none,
        read_gate=none,
        read_confidence=torch.zeros(heads, dtype=F64),
        read_bias=torch.tensor(50.0, dtype=F64),
    )
    values = token_values(torch.randn(8, hidden, dtype=F64), heads)
    recall = recall_layer(x, values, parameters, window=Window(4, 4), order=3)
    assert torch.equal(recall.strengths, torch.ones(8, dtype=F64))
    assert torch.equal(recall.added[:4], torch.zeros(4, hidden, dtype=F64))
    found = torch.nn.functional.cosine_similarity(recall.added[6], values[:, 0])
    assert int(found.argmax()) == 2
