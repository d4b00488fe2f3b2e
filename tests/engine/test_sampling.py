"""The next id: each filter does what its name says, in the promised order, and a seed decides everything."""

from __future__ import annotations

from collections import Counter, deque

import pytest
import torch

from infinichat.engine.sampling import Said, Sampler, candidates, penalised
from infinichat.errors import ModelError
from infinichat.messages import SamplingOptions

OFF = SamplingOptions(
    temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, dry_multiplier=0.0, seed=1
)


def options(**changes: object) -> SamplingOptions:
    from dataclasses import replace

    return replace(OFF, **changes)  # type: ignore[arg-type]


def kept(scores: torch.Tensor, **changes: object) -> set[int]:
    ids, probabilities = candidates(scores, options(**changes))
    assert ids is None or ids.shape == probabilities.shape
    return set(range(scores.shape[0])) if ids is None else set(ids.tolist())


PROBABILITIES = torch.tensor([0.05, 0.5, 0.15, 0.3])


def test_temperature_zero_is_the_likeliest_id_whatever_the_other_filters_say() -> None:
    sampler = Sampler(options(temperature=0.0, repetition_penalty=100.0, top_k=3, seed=None))
    assert [sampler.next_id(torch.tensor([0.1, 3.0, 2.9])) for _ in range(3)] == [1, 1, 1]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert kept(PROBABILITIES.log(), top_k=2) == {1, 3}
    assert kept(PROBABILITIES.log(), top_k=99) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "expected"), [(0.0, {1}), (0.4, {1}), (0.6, {1, 3}), (0.81, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, expected: set[int]) -> None:
    assert kept(PROBABILITIES.log(), top_p=top_p) == expected


def test_top_p_counts_among_what_top_k_left() -> None:
    # Of the two left, 0.5 is 0.625 of the probability.
    assert kept(PROBABILITIES.log(), top_k=2, top_p=0.62) == {1}
    assert kept(PROBABILITIES.log(), top_k=2, top_p=0.63) == {1, 3}


def test_min_p_is_a_part_of_the_likeliest() -> None:
    assert kept(PROBABILITIES.log(), min_p=0.31) == {1, 3}
    assert kept(PROBABILITIES.log(), min_p=0.29) == {1, 2, 3}
    assert kept(PROBABILITIES.log(), min_p=5.0) == {1}
    assert kept(PROBABILITIES.log(), top_k=3, min_p=0.31) == {1, 3}


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_top_p_without_a_sort_equals_top_p_with_one(spread: float) -> None:
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * spread
    probabilities, order = torch.softmax(scores, dim=-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    expected = set(order[before < 0.9].tolist())
    assert kept(scores, top_p=0.9) == expected


def test_the_penalty_pushes_recent_ids_down_on_both_sides_of_zero() -> None:
    scores = torch.tensor([2.0, -2.0, 1.0, -1.0])
    assert penalised(scores, deque([0, 1, 1]), 2.0).tolist() == [1.0, -4.0, 1.0, -1.0]
    assert scores.tolist() == [2.0, -2.0, 1.0, -1.0]
    assert penalised(scores, deque(), 2.0) is scores


def test_the_penalty_forgets_what_left_its_window() -> None:
    scores = torch.tensor([10.0, 9.9, -100.0])
    sampler = Sampler(options(repetition_penalty=1.5, repetition_window=1, top_k=1))
    assert [sampler.next_id(scores) for _ in range(4)] == [0, 1, 0, 1]
    sampler = Sampler(options(repetition_penalty=1.5, repetition_window=0, top_k=1))
    assert [sampler.next_id(scores) for _ in range(2)] == [0, 0]


def test_what_would_repeat_the_answer_is_known_with_the_length_of_the_match() -> None:
    said = Said()
    assert said.matches() == {}
    for token in (1, 2, 3, 9, 2, 3, 7, 1, 2, 3):
        said.add(token)
    # "1 2 3" went on with 9, and only "2 3" with 7.
    assert said.matches() == {9: 3, 7: 2}


def test_a_paragraph_is_not_said_a_second_time_and_a_few_words_may_be() -> None:
    def likeliest(sampler: Sampler, count: int) -> list[int]:
        """A model that says 0 to 9 over and over, and would as soon say 10 or end with 11."""
        ids: list[int] = []
        for _ in range(count):
            scores = torch.full((12,), -50.0)
            scores[[len(ids) % 10, 10, 11]] = torch.tensor([10.0, 2.0, 1.0])
            ids.append(sampler.next_id(scores))
        return ids

    assert likeliest(Sampler(options(top_k=1)), 30) == [*range(10)] * 3
    dry = likeliest(Sampler(options(top_k=1, dry_multiplier=0.8, dry_allowed_length=6)), 30)
    assert dry[:16] == [*range(10), *range(6)]  # six ids more may be the same
    assert 10 in dry[16:]
    longest = max(n for at in range(1, 30) for n in range(30 - at) if dry[at : at + n] == dry[:n])
    assert longest < 14


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(OFF)
    counts = Counter(sampler.next_id(PROBABILITIES.log()) for _ in range(4000))
    for token_id, probability in enumerate(PROBABILITIES.tolist()):
        assert counts[token_id] / 4000 == pytest.approx(probability, abs=0.03)


def test_the_same_seed_gives_the_same_ids() -> None:
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def ids(seed: int | None) -> list[int]:
        sampler = Sampler(options(seed=seed))
        return [sampler.next_id(scores) for _ in range(20)]

    assert ids(7) == ids(7)
    assert ids(7) != ids(8)
    assert ids(None) != ids(None)


def test_other_random_numbers_are_not_touched() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Sampler(OFF).next_id(PROBABILITIES.log())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error(temperature: float, bad: float) -> None:
    with pytest.raises(ModelError, match="finite"):
        Sampler(options(temperature=temperature)).next_id(torch.tensor([0.0, bad]))
