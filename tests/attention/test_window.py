"""The window rule, rotary angles and exact attention, against the definition."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinichat.attention import reference
from infinichat.attention.reference import Window, steps
from infinichat.attention.window import (
    blockwise_attention,
    causal_blocks,
    evicted_before,
    evicted_before_each,
    inverse_frequencies,
    local_attention,
    room,
    rotary,
    rotate,
    visible,
)

F64 = torch.float64
limits = st.tuples(st.integers(1, 40), st.integers(1, 40)).map(lambda pair: (max(pair), min(pair)))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(limits)
def test_the_formula_for_what_has_left_is_what_the_definition_does(limit: tuple[int, int]) -> None:
    window, segment = limit
    expected = [step.first for step in steps(150, Window(window, segment))]
    assert [evicted_before(p, window=window, segment=segment) for p in range(150)] == expected
    positions = torch.tensor([-1, *range(150)])
    assert evicted_before_each(positions, window=window, segment=segment).tolist() == [0, *expected]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(limits, st.integers(0, 10**9))
def test_room_is_how_far_it_is_to_the_next_change(limit: tuple[int, int], seen: int) -> None:
    window, segment = limit
    fits = room(seen, window=window, segment=segment)
    assert fits >= 1
    now = evicted_before(seen, window=window, segment=segment)
    assert evicted_before(seen + fits - 1, window=window, segment=segment) == now
    assert evicted_before(seen + fits, window=window, segment=segment) == now + segment


@settings(deadline=None, derandomize=True, max_examples=100)
@given(limits, st.integers(0, 10**9))
def test_the_window_always_holds_its_promised_number_of_tokens(limit: tuple[int, int], position: int) -> None:
    window, segment = limit
    held = position - evicted_before(position, window=window, segment=segment) + 1
    assert held <= window
    assert held >= min(position + 1, window - segment + 1)


@pytest.mark.parametrize("position", [0, 1, 4_095, 1_048_575, 10_000_000])
def test_rotary_angles_are_exact_to_float32_at_any_position(position: int) -> None:
    cos, sin = rotary(torch.tensor([position]), inverse_frequencies(64, 10_000.0))
    with mpmath.workdps(40):
        for i in range(32):
            angle = position * mpmath.power(10_000, mpmath.mpf(-2 * i) / 64)
            assert abs(float(cos[0, i]) - float(mpmath.cos(angle))) < 1e-7
            assert abs(float(sin[0, i + 32]) - float(mpmath.sin(angle))) < 1e-7


def test_rotation_is_the_definitions() -> None:
    x = torch.randn(1, 2, 5, 8, dtype=F64)
    positions = torch.tensor([0, 3, 4, 900, 10_000_000])
    cos, sin = rotary(positions, inverse_frequencies(8, 500.0), F64)
    got = rotate(x, cos, sin)
    for head in range(2):
        for t, position in enumerate(positions.tolist()):
            torch.testing.assert_close(got[0, head, t], reference.rotated(x[0, head, t], position, 500.0))


def test_rotary_comes_in_the_type_asked_for_and_angles_do_not_suffer_from_it() -> None:
    frequencies = inverse_frequencies(8, 10_000.0)
    half, _ = rotary(torch.tensor([9_999_999]), frequencies, torch.bfloat16)
    exact, _ = rotary(torch.tensor([9_999_999]), frequencies, F64)
    assert half.dtype == torch.bfloat16
    assert (half.to(F64) - exact).abs().max() < 2**-8


def test_a_query_sees_its_window_and_never_padding_or_the_future() -> None:
    queries, keys = torch.tensor([[4, 5], [-1, 2]]), torch.tensor([[1, 2, 3, 4, 5], [-1, -1, 0, 1, 2]])
    seen = visible(queries, keys, evicted=torch.tensor([2, 0]))
    assert seen[0].tolist() == [[False, True, True, True, False], [False, True, True, True, True]]
    assert seen[1].tolist() == [[False] * 5, [False, False, True, True, True]]


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (3, 1)])
def test_local_attention_is_softmax_over_the_group_s_keys(length: int, heads: int, kv_heads: int) -> None:
    q = torch.randn(2, heads, length, 8, dtype=F64, requires_grad=True)
    k = torch.randn(2, kv_heads, 6, 8, dtype=F64, requires_grad=True)
    v = torch.randn(2, kv_heads, 6, 8, dtype=F64, requires_grad=True)
    hidden = torch.ones(length, 6, dtype=torch.bool).tril(6 - length).logical_not()
    mask = torch.zeros(length, 6, dtype=F64).masked_fill(hidden, -math.inf)
    group = heads // kv_heads
    got = local_attention(q, k, v, scale=8**-0.5, mask=mask.repeat(group, 1)[None, None])
    expected = torch.zeros_like(got)
    for b in range(2):
        for h in range(heads):
            scores = q[b, h] @ k[b, h // group].T / math.sqrt(8) + mask
            expected[b, h] = torch.softmax(scores, dim=-1) @ v[b, h // group]
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_one_query_and_many_queries_take_different_kernels_to_the_same_result() -> None:
    q, k, v = torch.randn(1, 6, 5, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    together = local_attention(q, k, v, scale=0.25, mask=torch.zeros(1, 1, 15, 9))
    apart = [local_attention(q[:, :, t : t + 1], k, v, scale=0.25, mask=None) for t in range(5)]
    torch.testing.assert_close(together, torch.cat(apart, dim=2))


@pytest.mark.parametrize("length", [1, 5, 8, 11])
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_queries_in_blocks_see_what_one_causal_mask_shows(length: int, before: int, block: int) -> None:
    q = torch.randn(1, 6, length, 8, dtype=F64)
    k, v = (torch.randn(1, 2, before + length, 8, dtype=F64) for _ in range(2))
    blocks = causal_blocks(length, before, group=3, block=block, dtype=F64, device=q.device)
    got = blockwise_attention(q, k, v, scale=0.3, blocks=blocks)
    hidden = torch.ones(length, before + length, dtype=torch.bool).tril(before).logical_not()
    mask = torch.zeros(hidden.shape, dtype=F64).masked_fill(hidden, -math.inf)
    expected = local_attention(q, k, v, scale=0.3, mask=mask.repeat(3, 1)[None, None])
    torch.testing.assert_close(got, expected)
    assert max(b.stop - b.start for b in blocks) <= block
    assert [b.keys for b in blocks] == [before + b.stop for b in blocks]
