"""Adapters change nothing at their start, and merged they are what they were beside the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infinichat.errors import ModelFileError
from infinichat.model.adapters import Adapters, merge
from infinichat.training.plain import decode
from tests.model.tiny_infini import tiny_model

Stored = dict[str, Tensor]


def learned(rank: int = 3) -> Adapters:
    torch.manual_seed(1)
    adapters = Adapters(tiny_model().config, first=1, rank=rank).double()
    for name, parameter in adapters.pairs.items():
        if name.endswith("up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return adapters


@torch.no_grad()
def states(adapters: Adapters | None, *, merged: bool = False) -> Tensor:
    model = tiny_model(memory_layers=[])
    if merged and adapters is not None:
        merge(model, adapters.stored())
    h = torch.randn(2, 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    last = model.config.num_hidden_layers
    return decode(model, h, first=1, last=last, adapters=None if merged else adapters)


def test_new_adapters_change_nothing() -> None:
    assert torch.equal(states(Adapters(tiny_model().config, first=1, rank=3)), states(None))


def test_merged_adapters_do_what_they_did_beside_the_weights() -> None:
    adapters = learned()
    assert not torch.allclose(states(adapters), states(None))
    torch.testing.assert_close(states(adapters, merged=True), states(adapters), rtol=1e-5, atol=1e-6)


def test_layers_below_stay_as_they_are() -> None:
    model, before = tiny_model(), tiny_model().state_dict()
    merge(model, learned().stored())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkvo"}


def test_stored_adapters_come_back() -> None:
    adapters, again = learned(), Adapters(tiny_model().config, first=1, rank=3)
    again.take(adapters.stored())
    assert all(torch.equal(again.stored()[name], value) for name, value in adapters.stored().items())


def drop(stored: Stored) -> None:
    del stored[next(name for name in stored if name.endswith("down"))]


def widen(stored: Stored) -> None:
    name = next(name for name in stored if name.endswith("up"))
    stored[name] = torch.cat((stored[name], stored[name]))


def misname(stored: Stored) -> None:
    for part in ("up", "down"):
        name = next(name for name in stored if name.endswith(part))
        stored[name.replace("layers.1", "layers.7")] = stored.pop(name)


@pytest.mark.parametrize(("spoil", "words"), [(drop, "alone"), (widen, "must be"), (misname, "changes no")])
def test_adapters_that_do_not_fit_are_refused_by_name(spoil: Callable[[Stored], None], words: str) -> None:
    stored = learned().stored()
    spoil(stored)
    with pytest.raises(ModelFileError, match=words):
        merge(tiny_model(), stored)


def test_adapters_of_another_rank_are_not_taken() -> None:
    with pytest.raises(ModelFileError, match="expected"):
        learned(rank=2).take(learned(rank=3).stored())
