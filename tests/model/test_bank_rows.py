"""One token of each of several conversations through a memory is what each gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infinichat.model.bank_rows import one_token_each
from infinichat.model.cache import InfiniCache
from tests.engine.tiny import tiny_model


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": "recall"},
        {"memory": "bank", "memory_slots": 5, "memory_rank": 2},
        {"memory": "bank", "memory_slots": 5, "memory_rank": 2, "memory_topics": 2},
    ],
    ids=str,
)
@torch.inference_mode()
def test_rows_read_and_write_as_each_does_alone(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    memory = model.model.layers[1].memory
    generator = torch.Generator().manual_seed(5)
    for name, parameter in memory.named_parameters():
        if name in ("alpha", "gate_taps", "carry", "say", "matrix_gain", "adapt_out"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    caches = [model.model.new_cache() for _ in range(4)]
    ids = torch.randint(0, 256, (4, 40), generator=generator)
    for row, cache in enumerate(caches[1:], start=1):
        model.model(input_ids=ids[row : row + 1, : 10 * row], past_key_values=cache)
    wrote: set[tuple[int, ...]] = set()
    for place in range(8):
        x, h = torch.randn(2, 4, 1, 64, generator=generator)
        new = ids[:, place : place + 1]
        embeddings = model.model.embed_tokens(new)
        copies = [cache.clone() for cache in caches]
        expected = [
            memory(h[i : i + 1], x[i : i + 1], copy.states[1], real=None,
                   embeddings=embeddings[i : i + 1], ids=new[i : i + 1])
            for i, copy in enumerate(copies)
        ]  # fmt: skip
        got, carried = one_token_each(
            memory, h, x, [cache.states[1] for cache in caches], embeddings=embeddings, ids=new
        )
        torch.testing.assert_close(got, torch.cat([read for read, _ in expected]))
        for row, (_, theirs) in enumerate(expected):
            if theirs is None:
                assert carried is None
            else:
                assert carried is not None
                torch.testing.assert_close(carried.opened[row : row + 1], theirs.opened)
                torch.testing.assert_close(carried.values[row : row + 1], theirs.values)
                final = torch.randn(1, 1, 64, generator=generator)
                said = carried.spoken(final.expand(4, 1, 64))[row : row + 1]
                torch.testing.assert_close(said, theirs.spoken(final))
        _assert_close(caches, copies)
        wrote.add(tuple(int(cache.memories[1].written) for cache in caches))
    if changes["memory"] == "bank":
        assert len(wrote) > 2


def _assert_close(ours: list[InfiniCache], theirs: list[InfiniCache]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        expected = {
            name: tensor for name, tensor in other.states[1].named().items() if name not in ("k", "v")
        }
        for name, tensor in expected.items():
            torch.testing.assert_close(one.states[1].named()[name], tensor, msg=name)
