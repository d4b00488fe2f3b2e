"""Mixture-of-Depths: what is selected, that nothing else changes, batches of any size, and its loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.layers import CompressiveMemory, InfiniState, MoDInfiniTransformer, selection_loss
from tests.layers.definition import F64, defined


def make(**changed: Any) -> MoDInfiniTransformer:
    """A small layer in float64: 3 of each 8 tokens."""
    arguments: dict[str, Any] = {
        "dim_input": 10,
        "dim_hidden": 12,
        "dim_key": 4,
        "dim_value": 6,
        "num_heads": 4,
        "activation": "geglu",
        "segment_len": 8,
        "sampling_factor": 3,
        "causal": True,
    }
    return MoDInfiniTransformer(**{**arguments, **changed}).to(F64)


VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {},
    "delta, rope, grouped": {"update": "delta", "position_embedder": "rope", "num_kv_heads": 2},
    "streaming window": {"window_len": 13, "position_embedder": "rope"},
    "learned start": {"init_state_learnable": True},
    "sees its segment": {"causal": False},
    "one of eight": {"sampling_factor": 8},
    "all": {"sampling_factor": 1},
}
variants = pytest.mark.parametrize("changed", VARIANTS.values(), ids=VARIANTS.keys())


def expected_rows(layer: MoDInfiniTransformer, x: Tensor, selected: Tensor) -> Tensor:
    """y of one row [T, C] by the definition: x + mlp(attn(selected x)) where selected."""
    out = x.clone()
    places = selected.nonzero()[:, 0]
    if len(places):
        with torch.no_grad():
            out[places] += layer.mlp(defined(layer.attn, x[places], places.tolist()))
    return out


@variants
@pytest.mark.parametrize("training", [True, False])
def test_selected_tokens_are_attended_at_their_places_and_all_others_pass(
    changed: dict[str, Any], training: bool
) -> None:
    layer, x = make(**changed).train(training), torch.randn(3, 27, 10, dtype=F64)
    with torch.no_grad():
        out, selected, scores = layer(x)
    assert out.shape == x.shape
    assert selected.shape == scores.shape == (3 * 27, 1)
    mask = selected.view(3, 27) == 1
    torch.testing.assert_close(
        out, torch.stack([expected_rows(layer, *row) for row in zip(x, mask, strict=True)])
    )
    assert torch.equal(out[~mask], x[~mask])
    assert bool((out[mask] != x[mask]).any(dim=-1).all())
    torch.testing.assert_close(scores.view(3, 27), layer.proj_sampling(x)[..., 0])


def test_training_selects_the_highest_of_each_segment_and_a_share_of_a_short_last_one() -> None:
    layer, x = make(), torch.randn(4, 29, 10, dtype=F64)
    _, selected, scores = layer(x)
    mask, value = selected.view(4, 29) == 1, scores.view(4, 29)
    for start, stop, quota in ((0, 8, 3), (8, 16, 3), (16, 24, 3), (24, 29, 2)):
        chosen = mask[:, start:stop]
        assert chosen.sum(dim=1).tolist() == [quota] * 4
        inside = value[:, start:stop]
        lowest = inside.masked_fill(~chosen, math.inf).amin(dim=1)
        assert bool((inside.masked_fill(chosen, -math.inf).amax(dim=1) <= lowest).all())


def test_inference_selects_by_each_token_s_own_score() -> None:
    layer, x = make().eval(), torch.randn(4, 29, 10, dtype=F64)
    _, selected, scores = layer(x)
    assert torch.equal(selected, (scores > 0).to(F64))


def scored(layer: MoDInfiniTransformer, wanted: Tensor) -> Tensor:
    """Inputs [B, S, 10] of which exactly ``wanted`` [B, S] get scores above 0."""
    layer.proj_sampling.weight.data = torch.eye(10, dtype=F64)[:1]
    layer.proj_sampling.bias.data.zero_()
    x = torch.randn(*wanted.shape, 10, dtype=F64)
    x[..., 0] = torch.where(wanted, 1.0, -1.0)
    return x


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_inference_of_a_batch_is_that_of_its_rows_whatever_each_selects(update: str) -> None:
    """The original's open issue: rows with different numbers of selected tokens, none and all among them."""
    layer = make(update=update, position_embedder="rope").eval()
    counts = (0, 1, 7, 20, 35)
    wanted = torch.zeros(len(counts), 35, dtype=torch.bool)
    for row, count in enumerate(counts):
        wanted[row, torch.randperm(35)[:count]] = True
    x = scored(layer, wanted)
    with torch.no_grad():
        out, selected, _ = layer(x)
        assert selected.view(-1, 35).sum(dim=1).tolist() == list(counts)
        for row in range(len(counts)):
            torch.testing.assert_close(out[row], layer(x[row : row + 1])[0][0])
            torch.testing.assert_close(out[row], expected_rows(layer, x[row], wanted[row]))
    assert torch.equal(out[0], x[0])


def test_a_batch_that_selects_nothing_passes_as_it_is() -> None:
    layer = make().eval()
    x = scored(layer, torch.zeros(2, 20, dtype=torch.bool))
    with torch.no_grad():
        out, selected, scores, state = layer(x, return_state=True)
    assert torch.equal(out, x)
    assert not bool(selected.any())
    assert scores.shape == (40, 1)
    assert state.seen.tolist() == [20, 20]
    assert not bool(state.memory.M.any())


def test_inference_is_causal_at_every_position() -> None:
    layer, x = make(position_embedder="rope").eval(), torch.randn(2, 21, 10, dtype=F64)
    with torch.no_grad():
        before = layer(x)[0]
        for changed in range(21):
            other = x.clone()
            other[:, changed] += torch.randn(10, dtype=F64)
            torch.testing.assert_close(layer(other)[0][:, :changed], before[:, :changed])


@pytest.mark.parametrize("name", [name for name, changed in VARIANTS.items() if changed.get("causal", True)])
@pytest.mark.parametrize("cuts", [[1] * 27, [8, 8, 8, 3], [3, 17, 7]], ids=str)
def test_inference_in_pieces_is_inference_at_once(name: str, cuts: list[int]) -> None:
    layer, x = make(**VARIANTS[name]).eval(), torch.randn(3, 27, 10, dtype=F64)
    state: InfiniState | None = None
    parts = []
    with torch.no_grad():
        whole, _, _, after = layer(x, return_state=True)
        for piece in x.split(cuts, dim=1):
            out, _, _, state = layer(piece, state=state, return_state=True)
            parts.append(out)
    assert state is not None
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(state.memory.M, after.memory.M)


def test_training_in_whole_segments_is_training_at_once_and_other_pieces_are_refused() -> None:
    layer, x = make(position_embedder="rope"), torch.randn(2, 20, 10, dtype=F64)
    whole, target, _ = layer(x)
    first, of_first, _, state = layer(x[:, :8], return_state=True)
    second, of_second, _ = layer(x[:, 8:], state=state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    assert torch.equal(torch.cat((of_first.view(2, -1), of_second.view(2, -1)), dim=1), target.view(2, -1))
    _, _, _, state = layer(x[:, :5], return_state=True)
    with pytest.raises(ValueError, match="in training got a state that ends 5 tokens into a segment of 8"):
        layer(x, state=state)


@pytest.mark.parametrize("training", [True, False])
def test_padding_is_never_selected_and_changes_nothing(training: bool) -> None:
    layer = make(position_embedder="rope", update="delta").train(training)
    rows = [torch.randn(n, 10, dtype=F64) for n in (27, 14, 1)]
    x = torch.full((3, 30, 10), math.nan, dtype=F64)
    mask = torch.zeros(3, 30, dtype=torch.bool)
    for b, row in enumerate(rows):
        places = torch.randperm(30)[: len(row)].sort().values
        x[b, places] = row
        mask[b, places] = True
    with torch.no_grad():
        out, selected, scores = layer(x, padding_mask=mask)
        for b, row in enumerate(rows):
            alone, target, logits = layer(row[None])
            torch.testing.assert_close(out[b, mask[b]], alone[0])
            torch.testing.assert_close(selected.view(3, 30)[b, mask[b]], target[:, 0])
            torch.testing.assert_close(scores.view(3, 30)[b, mask[b]], logits[:, 0])
    assert bool(selection_loss(selected, scores, mask).isfinite())
    assert bool((selected.view(3, 30)[~mask] == 0).all())
    assert bool(out[~mask].isnan().all())  # padding comes out as it came in


def test_the_input_is_not_changed_and_may_want_gradients() -> None:
    layer, x = make(), torch.randn(2, 20, 10, dtype=F64, requires_grad=True)
    before = x.detach().clone()
    out, selected, scores = layer(x)
    (out.square().sum() + selection_loss(selected, scores)).backward()
    assert torch.equal(x.detach(), before)
    assert x.grad is not None
    wanting = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert {name for name, p in layer.named_parameters() if p.grad is not None} == wanting
    assert not {name for name in wanting if name.startswith("layer_norm")}


def test_gradients_are_right() -> None:
    layer = make(dim_input=3, dim_hidden=4, dim_value=2, num_heads=2, segment_len=4, sampling_factor=2)
    x = torch.randn(1, 10, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: layer(t)[0], (x,), fast_mode=True)


def test_the_auxiliary_loss_is_the_mean_binary_cross_entropy_of_real_tokens() -> None:
    target, logits = torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.tensor([[2.0], [-1.0], [0.5], [3.0]])
    each = [
        math.log1p(math.exp(-2)),
        math.log1p(math.exp(-1)),
        math.log1p(math.exp(-0.5)),
        math.log1p(math.exp(3)),
    ]
    assert selection_loss(target, logits).item() == pytest.approx(sum(each) / 4)
    mask = torch.tensor([[True, True], [True, False]])
    assert selection_loss(target, logits, mask).item() == pytest.approx(sum(each[:3]) / 3)


def test_the_auxiliary_loss_teaches_inference_to_select_what_training_does() -> None:
    layer, x = make(segment_len=16, sampling_factor=4), torch.randn(8, 64, 10, dtype=F64)
    optimizer = torch.optim.Adam(layer.proj_sampling.parameters(), lr=0.1)
    losses = []
    for _ in range(60):
        _, target, logits = layer(x)
        loss = selection_loss(target, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    _, target, _ = layer(x)
    _, selected, _ = layer.eval()(x)
    assert float((selected == target).double().mean()) > 0.9


@pytest.mark.parametrize("factor", [1, 1.5, 2, 7.9, 8])
def test_any_factor_from_one_to_the_segment_is_taken(factor: float) -> None:
    layer = make(sampling_factor=factor)
    assert layer.segment_len == math.ceil(8 / factor)
    _, selected, _ = layer(torch.randn(1, 16, 10, dtype=F64))
    assert int(selected.sum()) == 2 * math.ceil(8 / factor)


@pytest.mark.parametrize("factor", [0, 0.5, 9, "4", True, math.nan])
def test_any_other_factor_is_refused(factor: object) -> None:
    with pytest.raises(ValueError, match="sampling_factor is .*; it must be a number from 1 to 8"):
        make(sampling_factor=factor)


def test_the_memory_takes_a_selection_by_itself_too() -> None:
    layer = CompressiveMemory(10, 4, 6, 2, 4, 2, causal=True, position_embedder="rope").to(F64)
    assert layer.full_segment_len == layer.window_len == 8
    mask = torch.rand(2, 21) < 0.5
    x = torch.randn(2, 21, 10, dtype=F64)
    most = int(mask.sum(dim=1).max())
    chosen = torch.full((2, most, 10), math.nan, dtype=F64)
    for b in range(2):
        chosen[b, : int(mask[b].sum())] = x[b, mask[b]]
    out = layer(chosen, mask)
    for b in range(2):
        places = mask[b].nonzero()[:, 0].tolist()
        torch.testing.assert_close(out[b, : len(places)], defined(layer, x[b, mask[b]], places))
        assert bool((out[b, len(places) :] == 0).all())


def test_a_factor_without_a_selection_is_plain_attention_in_segments() -> None:
    x = torch.randn(2, 21, 10, dtype=F64)
    layer = CompressiveMemory(10, 4, 6, 2, 4, 2, causal=True).to(F64)
    plain = CompressiveMemory(10, 4, 6, 2, 4, causal=True).to(F64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    with pytest.raises(ValueError, match="window_len is 12, which counts positions of a sample_mask, and no"):
        CompressiveMemory(10, 4, 6, 2, 4, 2, causal=True, window_len=12).to(F64)(x)


def test_a_selection_that_does_not_fit_is_refused() -> None:
    x = torch.randn(2, 3, 10, dtype=F64)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="sample_mask, which needs a sampling_factor; it is None"):
        CompressiveMemory(10, 4, 6, 2, 4).to(F64)(x, mask)
    layer = CompressiveMemory(10, 4, 6, 2, 4, 2).to(F64)
    with pytest.raises(ValueError, match=r"sample_mask \(2, 2\) for x \(2, 3, 10\); expected \(2, N\)"):
        layer(x, mask[:, :2])
    mask[1, :5] = True
    with pytest.raises(ValueError, match="x with 3 tokens and a sample_mask that selects 5 in one row"):
        layer(x, mask)
