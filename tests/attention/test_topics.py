"""Topic heads: what they find is the definition's, in blocks, token by token, and around padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinichat.attention.topics import BLOCK, RECENT, pooled, ragged_pooled


def drawn(length: int, *, batch: int = 2, heads: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and how salient they are, none before the first of ``length``; and what is left of them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, length, 5, generator=generator, dtype=torch.float64)
    salient = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64) * 3
    left = torch.rand(heads, RECENT, generator=generator, dtype=torch.float64)
    return after_nothing(tokens), after_nothing(salient), left


def after_nothing(rows: Tensor) -> Tensor:
    return torch.cat((rows.new_zeros(rows.shape[0], RECENT - 1, rows.shape[2]), rows), dim=1)


def defined(tokens: Tensor, salient: Tensor, left: Tensor) -> Tensor:
    """The sums of the module's docstring, one term after the other."""
    batch, whole, hidden = tokens.shape
    found = tokens.new_zeros(batch, whole - RECENT + 1, left.shape[0], hidden)
    for b, t, h in torch.cartesian_prod(*(torch.arange(n) for n in found.shape[:3])).tolist():
        weights = [left[h, j] * salient[b, RECENT - 1 + t - j, h] for j in range(RECENT)]
        summed = sum(w * tokens[b, RECENT - 1 + t - j] for j, w in enumerate(weights))
        found[b, t, h] = summed / (1 + sum(weights))
    return found.flatten(2)


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_blocks_give_what_is_defined(length: int) -> None:
    tokens, salient, left = drawn(length)
    torch.testing.assert_close(pooled(tokens, salient, left), defined(tokens, salient, left))


def test_a_token_counts_as_long_as_it_is_recent_and_never_before_it_came() -> None:
    tokens, salient, left = drawn(3 * RECENT, batch=1)
    at = RECENT - 1 + 40
    changed = tokens.clone()
    changed[:, at] += 5
    differs = (pooled(tokens, salient, left) != pooled(changed, salient, left)).any(dim=2)[0]
    assert differs.nonzero()[:, 0].tolist() == list(range(40, 40 + RECENT))


def test_where_nothing_stands_out_nothing_is_found() -> None:
    tokens, salient, left = drawn(40)
    assert torch.equal(pooled(tokens, salient * 0, left), torch.zeros(2, 40, 15, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 9, 70])
def test_padding_is_nowhere(length: int) -> None:
    tokens, salient, left = drawn(length, batch=3, seed=length)
    real = torch.rand(3, length, generator=torch.Generator().manual_seed(1)) < 0.6
    real[0], real[1] = True, False
    found, last_tokens, last_salient = ragged_pooled(tokens, salient, left, real)
    for row in range(3):
        own = torch.cat((torch.ones(RECENT - 1, dtype=torch.bool), real[row]))
        one, its = tokens[row : row + 1, own], salient[row : row + 1, own]
        assert torch.equal(last_tokens[row], one[0, 1 - RECENT :])
        assert torch.equal(last_salient[row], its[0, 1 - RECENT :])
        if bool(real[row].any()):
            torch.testing.assert_close(found[row, real[row]], pooled(one, its, left)[0])


def test_gradients_are_those_of_the_sums() -> None:
    tokens, salient, left = drawn(6, batch=1, heads=2)
    salient.requires_grad_(True)
    left.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda s, d: pooled(tokens, s, d), (salient, left))
