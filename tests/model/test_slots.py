"""Growing tensors: appended, dropped and shared with nobody, with and without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from infinichat.model.slots import Slots


@pytest.fixture(params=[False, True], ids=["no_grad", "grad"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled(request.param):
        yield


def made(front: int = 2, limit: int = 8) -> Slots:
    return Slots(torch.zeros(1, front, 3), dim=1, limit=limit, front=front)


def numbered(first: int, last: int) -> Tensor:
    return torch.arange(first, last).float().view(1, -1, 1).expand(1, -1, 3)


@pytest.mark.usefixtures("mode")
def test_content_is_what_was_appended_and_not_dropped_behind_the_front() -> None:
    slots = made()
    slots.set_front(numbered(100, 102))
    first = end = 0
    for last, drop in ((1, 0), (5, 2), (6, 0), (13, 5), (14, 7), (20, 1)):
        slots.append(numbered(end, last))
        end = last
        slots.drop(drop)
        first += drop
        assert slots.content[0, :, 0].tolist() == list(range(first, last))
        assert slots.with_front[0, :, 0].tolist() == [100, 101, *range(first, last)]
        assert slots.length == last - first


def test_appending_one_at_a_time_seldom_moves_the_content() -> None:
    for limit, count in ((1000, 1000), (100, 1000)):
        slots, moves, before = made(limit=limit), 0, 0
        with torch.no_grad():
            for t in range(count):
                slots.append(numbered(t, t + 1))
                moves += slots.content.data_ptr() != before
                before = slots.content.data_ptr()
        assert moves < 40


def test_room_is_not_made_beyond_the_usual_limit() -> None:
    slots = made(front=0, limit=1000)
    with torch.no_grad():
        for t in range(1000):
            slots.append(numbered(t, t + 1))
    assert slots.content.untyped_storage().nbytes() == 1000 * 3 * 4


@pytest.mark.usefixtures("mode")
def test_a_clone_shares_nothing() -> None:
    slots = made()
    slots.append(numbered(0, 3))
    copy = slots.clone()
    slots.append(numbered(3, 4))
    slots.content.zero_()
    copy.append(numbered(9, 10))
    assert copy.content[0, :, 0].tolist() == [0, 1, 2, 9]


def test_what_autograd_has_seen_never_changes() -> None:
    """Frozen content beside trained queries: the product keeps a view of the content for its backward."""
    slots, query = made(), torch.ones(3, requires_grad=True)
    with torch.no_grad():
        slots.append(numbered(0, 4))
    loss = (slots.content @ query).sum()
    slots.append(numbered(4, 5))
    slots.drop(3)
    slots.set_front(numbered(7, 9))
    (gradient,) = torch.autograd.grad(loss, query)
    assert gradient.tolist() == [6, 6, 6]


def test_gradients_flow_through_appended_and_kept_slots() -> None:
    slots, leaf = made(), torch.ones(1, 4, 3, requires_grad=True)
    slots.append(leaf * 2)
    slots.drop(1)
    (gradient,) = torch.autograd.grad(slots.content.sum(), leaf)
    assert gradient[0, :, 0].tolist() == [0, 2, 2, 2]


def test_rows_are_kept_in_the_order_asked_for() -> None:
    slots = Slots(torch.zeros(2, 0), dim=1, limit=4)
    with torch.no_grad():
        slots.append(torch.tensor([[1.0], [2.0]]))
    slots.select_rows(torch.tensor([1, 0, 1]))
    assert slots.content[:, 0].tolist() == [2, 1, 2]
