"""Both ways to train give the same logits, losses and gradients; only one of them grows with the text."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infinichat.errors import UsageError
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.training.streamed import Streamed, target_count, targets_of
from tests.model.tiny_infini import KINDS, WINDOWS, Kind, some_ids, tiny_model

LONG = 37
kinds = pytest.mark.parametrize("kind", KINDS)
windows = pytest.mark.parametrize("window", WINDOWS)


def model_of(kind: Kind, window: str, **changes: Any) -> InfiniForCausalLM:
    return tiny_model(memory=kind, **{**WINDOWS[window], **changes}).requires_grad_(True)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def type_one(model: InfiniForCausalLM, ids: Tensor, labels: Tensor, **more: Any) -> tuple[float, Any]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=labels, **more).loss
    loss.backward()
    return loss.item(), gradients_of(model)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def labels_of(ids: Tensor) -> Tensor:
    """Some tokens have no target, among them those at a border."""
    labels = ids.clone()
    labels[:, 3:9] = -100
    return labels


@kinds
@windows
@pytest.mark.parametrize("segment", [None, 5, 16, LONG])
def test_full_backpropagation_gives_the_gradients_of_one_forward(
    kind: Kind, window: str, segment: int | None
) -> None:
    model, ids = model_of(kind, window), some_ids(LONG, rows=2) % 7 + 1
    labels = labels_of(ids)
    loss, theirs = type_one(model, ids, labels)
    model.zero_grad()
    counted, cache = Streamed(model, segment=segment).backward(ids, labels)
    assert counted.tokens == target_count(labels) == 2 * (LONG - 1 - 6)
    # The model's own loss is float32 whatever the weights are.
    assert counted.loss / counted.tokens == pytest.approx(loss, rel=1e-6)
    same(gradients_of(model), theirs, rtol=1e-5, atol=1e-7)
    assert cache.tokens_seen == LONG
    memory = model.model.layers[0].memory
    assert memory is not None
    assert all(bool((parameter.grad != 0).any()) for parameter in memory.parameters())


@windows
def test_in_float32_as_well(window: str) -> None:
    model, ids = model_of("delta", window, dtype=torch.float32), some_ids(LONG, rows=2)
    _, theirs = type_one(model, ids, ids)
    model.zero_grad()
    Streamed(model).backward(ids, ids)
    same(gradients_of(model), theirs, rtol=1e-3, atol=1e-5)


@kinds
def test_rows_with_padding_give_the_gradients_of_one_forward(kind: Kind) -> None:
    model, ids = model_of(kind, "streaming"), some_ids(LONG, rows=3)
    mask = torch.ones_like(ids)
    mask[1, 20:], mask[2, :11] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[2, 11] = -100  # would be said by padding
    _, theirs = type_one(model, ids, labels, attention_mask=mask)
    model.zero_grad()
    Streamed(model).backward(ids, labels, mask=mask)
    same(gradients_of(model), theirs, rtol=1e-5, atol=1e-7)


@kinds
def test_streamed_logits_are_those_of_one_forward(kind: Kind) -> None:
    model, ids = model_of(kind, "hard"), some_ids(LONG, rows=2)
    counted, _ = Streamed(model, segment=8).evaluate(ids, ids)
    with torch.no_grad():
        logits = model(ids).logits
    logs = logits.log_softmax(dim=-1)[:, :-1].gather(2, ids[:, 1:, None])
    assert counted.loss == pytest.approx(-logs.sum().item(), rel=1e-9)
    assert counted.correct == int((logits[:, :-1].argmax(dim=-1) == ids[:, 1:]).sum())
    assert counted.tokens == 2 * (LONG - 1), "the first token of each segment is a target, too"


def test_truncation_over_all_segments_is_full_backpropagation() -> None:
    model, ids = model_of("recall", "hard"), some_ids(LONG)
    Streamed(model).backward(ids, ids)
    theirs = gradients_of(model)
    model.zero_grad()
    Streamed(model, truncate=-(-LONG // 8)).backward(ids, ids)
    same(gradients_of(model), theirs, rtol=1e-9, atol=1e-12)


def test_truncation_stops_gradients_after_k_segments_and_changes_no_loss() -> None:
    """Token 1 stands in the first segment only, and only the last segment is learned from: the gradient of
    its embedding comes back through the memory, or not at all."""
    ids = some_ids(32) % 5 + 10
    ids[:, 2] = 1
    labels = torch.full_like(ids, -100)
    labels[:, 26:] = ids[:, 26:]
    losses, reached = [], []
    for truncate in (None, 4, 3, 1):
        model = model_of("linear", "hard", tie_word_embeddings=False)
        counted, _ = Streamed(model, truncate=truncate).backward(ids, labels)
        assert model.model.embed_tokens.weight.grad is not None
        losses.append(counted.loss)
        reached.append(bool((model.model.embed_tokens.weight.grad[1] != 0).any()))
    assert reached == [True, True, False, False]
    assert losses == pytest.approx([losses[0]] * 4)


class Kept:
    """A tensor that the graph keeps, counted for as long as it does."""

    now = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.nbytes
        Kept.now += self.size
        Kept.most = max(Kept.most, Kept.now)

    def __del__(self) -> None:
        Kept.now -= self.size


def most_kept(model: InfiniForCausalLM, length: int, truncate: int | str | None) -> int:
    """The most bytes that the graph of a step over ``length`` tokens keeps at a time."""
    gc.collect()
    Kept.now = Kept.most = 0
    ids = some_ids(length)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        if truncate == "one forward":
            model(input_ids=ids, labels=ids).loss.backward()
        else:
            Streamed(model, truncate=truncate).backward(ids, ids)  # type: ignore[arg-type]
    return Kept.most


@pytest.mark.parametrize("kind", ["linear", "delta"])
def test_what_a_step_keeps_does_not_grow_with_the_text(kind: Kind) -> None:
    model = model_of(kind, "hard")
    grown = {way: most_kept(model, 192, way) / most_kept(model, 48, way) for way in ("one forward", None, 2)}
    assert grown["one forward"] > 3.5
    assert grown[None] < 1.05
    assert grown[2] < 1.05


def test_state_goes_in_and_out() -> None:
    """Two texts one after the other, the second from the first one's state: losses of the text in one."""
    model, ids = model_of("delta", "streaming"), some_ids(40)
    whole, end = Streamed(model).evaluate(ids, ids)
    streamed = Streamed(model, truncate=2)
    first, cache = streamed.backward(ids[:, :20], ids[:, :20])
    assert cache.memories[0].M.grad_fn is None
    before = cache.memories[0].M.clone()
    second, after = streamed.backward(ids[:, 20:], ids[:, 20:], cache=cache)
    torch.testing.assert_close(after.memories[0].M, end.memories[0].M)
    assert torch.equal(cache.memories[0].M, before), "what was handed in stays as it was"
    # The one target in between belongs to neither.
    assert 0 < whole.loss - first.loss - second.loss < 20
    assert whole.tokens - first.tokens - second.tokens == 1


def test_dropout_is_the_same_in_both_passes() -> None:
    """Gradients with dropout are those of a truncation that never runs anything twice."""
    found = []
    for truncate in (None, 99):
        model = model_of("delta", "hard").train()
        layer = model.model.layers[1]
        layer.mlp = nn.Sequential(layer.mlp, nn.Dropout(0.4))
        layer.self_attn.q_proj = nn.Sequential(nn.Dropout(0.4), layer.self_attn.q_proj)
        torch.manual_seed(11)
        Streamed(model, truncate=truncate).backward(some_ids(LONG), some_ids(LONG))
        found.append((gradients_of(model), torch.rand(())))
    same(found[0][0], found[1][0], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[0][1], found[1][1]), "what comes afterwards draws the same numbers"


def test_targets_reach_across_and_the_last_token_has_none() -> None:
    assert targets_of(torch.tensor([[1, 2, 3]])).tolist() == [[2, 3, -100]]


def test_what_cannot_be_streamed_says_so() -> None:
    with pytest.raises(UsageError, match="Linear cannot be streamed"):
        Streamed(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="at least 1 token and 1 segment"):
        Streamed(tiny_model(), truncate=0)
