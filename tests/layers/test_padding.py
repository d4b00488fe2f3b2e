"""Padding anywhere, also in the middle and over several calls: a row gives what it gives without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinichat.layers import InfiniState, InfiniTransformer
from tests.layers.definition import F64, VARIANTS, make, variants

LENGTHS = (19, 12, 3, 1)
SLOTS = 24


def padded(rows: list[Tensor], side: str, fill: float = float("nan")) -> tuple[Tensor, Tensor]:
    """Rows [T, C] beside each other with padding, and the mask, True at tokens."""
    x = torch.full((len(rows), SLOTS, rows[0].shape[-1]), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), SLOTS, dtype=torch.bool)
    for b, row in enumerate(rows):
        n = len(row)
        left = torch.arange(SLOTS - n, SLOTS)
        places = {
            "left": left,
            "right": torch.arange(n),
            "scattered": torch.randperm(SLOTS)[:n].sort().values,
        }
        x[b, places[side]] = row
        mask[b, places[side]] = True
    return x, mask


@variants
@pytest.mark.parametrize("side", ["left", "right", "scattered"])
def test_padding_of_any_kind_anywhere_changes_nothing(changed: dict[str, object], side: str) -> None:
    layer = make(**changed)
    rows = [torch.randn(n, 10, dtype=F64) for n in LENGTHS]
    x, mask = padded(rows, side)
    with torch.no_grad():
        out, state = layer(x, padding_mask=mask, return_state=True)
        for b, row in enumerate(rows):
            alone, after = layer(row[None], return_state=True)
            torch.testing.assert_close(out[b, mask[b]], alone[0])
            torch.testing.assert_close(state.memory.M[b], after.memory.M[0])
            torch.testing.assert_close(state.memory.z[b], after.memory.z[0])  # type: ignore[index]
    assert state.memory.written.tolist() == [max(0, n - _held(layer.window_len, n)) for n in LENGTHS]
    assert bool((out[~mask] == 0).all())


def _held(window: int, seen: int) -> int:
    """How many tokens are in a window with segments of 5 (or of 1, in a window of 1) after ``seen``."""
    segment = 5 if window >= 5 else 1
    while seen > window:
        seen -= segment
    return seen


STREAMED = {name: VARIANTS[name] for name in ("rope", "grouped", "streaming window", "learned start")}


@pytest.mark.parametrize("changed", STREAMED.values(), ids=STREAMED.keys())
@pytest.mark.parametrize("cuts", [[1] * SLOTS, [5, 5, 5, 5, 4], [7, 1, 16], [13, 11]], ids=str)
def test_rows_of_different_lengths_stream_together(changed: dict[str, object], cuts: list[int]) -> None:
    layer = make(**changed)
    rows = [torch.randn(n, 10, dtype=F64) for n in LENGTHS]
    x, mask = padded(rows, "scattered")
    state: InfiniState | None = None
    parts = []
    with torch.no_grad():
        whole, after = layer(x, padding_mask=mask, return_state=True)
        for piece, of_piece in zip(x.split(cuts, 1), mask.split(cuts, 1), strict=True):
            out, state = layer(piece, padding_mask=of_piece, state=state, return_state=True)
            parts.append(out)
        assert state is not None
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
        torch.testing.assert_close(state.memory.M, after.memory.M)
        assert state.seen.tolist() == list(LENGTHS)
        # And on without padding, from rows that stand at different places.
        more = torch.randn(4, 9, 10, dtype=F64)
        got = layer(more, state=state)
        for b, row in enumerate(rows):
            expected = layer(torch.cat((row, more[b]))[None])[0, len(row) :]
            torch.testing.assert_close(got[b], expected)


def test_what_stands_at_padding_changes_no_bit_and_gets_no_gradient() -> None:
    layer = InfiniTransformer(10, 8, 4, 4, 2, "gelu", 5, causal=True).to(F64)
    rows = [torch.randn(n, 10, dtype=F64) for n in LENGTHS]
    torch.manual_seed(1)
    x, mask = padded(rows, "left", fill=float("nan"))
    y, _ = padded(rows, "left", fill=7.0)
    x.requires_grad_()
    out = layer(x, padding_mask=mask)
    assert torch.equal(out, layer(y, padding_mask=mask))
    assert bool((out[~mask] == 0).all())
    out.square().sum().backward()
    assert x.grad is not None
    assert bool((x.grad[~mask] == 0).all())
    assert bool(x.grad.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_a_mask_of_ones_is_no_mask_and_whole_numbers_are_taken() -> None:
    layer, x = make(update="delta"), torch.randn(2, 18, 10, dtype=F64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, padding_mask=torch.ones(2, 18, dtype=torch.int64)), layer(x))


def test_a_row_of_padding_alone_writes_and_gives_nothing() -> None:
    layer = make(position_embedder="rope")
    mask = torch.tensor([[True] * 8, [False] * 8])
    with torch.no_grad():
        out, state = layer(torch.randn(2, 8, 10, dtype=F64), padding_mask=mask, return_state=True)
    assert bool((out[1] == 0).all())
    assert not bool(state.memory.M[1].any())
    assert state.seen.tolist() == [8, 0]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 7, dtype=torch.bool), r"padding_mask \(2, 7\) of type torch.bool; expected \(2, 8\)"),
        (torch.ones(2, 8), r"padding_mask \(2, 8\) of type torch.float32; expected \(2, 8\) of bool"),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(mask: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()(torch.randn(2, 8, 10, dtype=F64), padding_mask=mask)
