"""What a bank of exact pairs promises; its equality with the definition is tested through the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infinichat.attention.bank import (
    HEIR_MARGIN,
    KIN,
    BankRead,
    BankRule,
    BankState,
    bank_read,
    bank_write,
    headwise_unit,
    with_neighbours,
)
from infinichat.attention.infini import hard_gate

F64 = torch.float64
SLOTS, WIDTH = 4, 6


def rule(**changes: float) -> BankRule:
    values = {"beta": 40.0, "null": 0.5, "recency": 0.2, "alike": 40.0, "new": 0.8, "force": 9.0, **changes}
    return BankRule(**{name: torch.tensor(value, dtype=F64) for name, value in values.items()})


def empty() -> BankState:
    pairs, counts = torch.zeros(1, SLOTS, WIDTH, dtype=F64), torch.zeros(1, SLOTS, dtype=torch.int64)
    nothing = torch.zeros(1, SLOTS, dtype=F64)
    return BankState(pairs, pairs, pairs, counts, nothing, counts, counts, nothing, counts)


def told(
    bank: BankState,
    facts: list[tuple[int, int]],
    written: int,
    *,
    joined: tuple[int, ...] = (),
    novelty: float = 0.0,
    marks: list[int] | None = None,
    **changes: float,
) -> BankState:
    """The bank after facts of (key number, value number), all in one call; those at ``joined`` come right
    after the one before them. ``marks``: the numbers of theirs (default: the keys')."""
    axes = torch.eye(WIDTH, dtype=F64)
    keys, values = (axes[[fact[at] for fact in facts]][None] for at in (0, 1))
    marked = keys if marks is None else axes[marks][None]
    ids = torch.tensor([[value for _, value in facts]])
    sure, before = torch.ones_like(ids, dtype=F64), torch.tensor([written])
    together = torch.tensor([[at in joined for at in range(len(facts))]])
    return bank_write(
        bank,
        (keys, marked, values, ids),
        strength=sure,
        joined=together,
        novelty=torch.full_like(values[..., 0], novelty),
        written=before,
        rule=rule(**changes),
    )


def asked(bank: BankState, key: int, written: int) -> tuple[Tensor, float]:
    query, nothing = torch.eye(WIDTH, dtype=F64)[None, key : key + 1], torch.tensor([[-1]])
    got = bank_read(query, nothing, bank, torch.tensor([written]), rule())
    return got.values[0, 0], float(got.null[0, 0])


def said(bank: BankState, queries: list[int], tokens: list[int], written: int) -> BankRead:
    """Reads by ``tokens``, one after the other, that ask for the keys ``queries``."""
    asking = torch.eye(WIDTH, dtype=F64)[queries][None]
    return bank_read(asking, torch.tensor([tokens]), bank, torch.tensor([written]), rule())


def test_an_empty_bank_answers_that_nothing_matches() -> None:
    values, null = asked(empty(), 0, 0)
    assert null == 1
    assert torch.equal(values, torch.zeros(WIDTH, dtype=F64))


def test_a_told_key_gives_its_value_and_an_unknown_key_the_null_answer() -> None:
    bank = told(empty(), [(0, 3), (1, 4)], 0)
    values, null = asked(bank, 1, 2)
    assert int(values.argmax()) == 4
    assert float(values[4]) > 0.99
    assert null < 0.01
    assert asked(bank, 5, 2)[1] > 0.99


def test_a_correction_replaces_what_it_corrects_and_nothing_else() -> None:
    bank = told(empty(), [(0, 3), (1, 4), (0, 5)], 0)
    assert int(asked(bank, 0, 3)[0].argmax()) == 5
    assert float(asked(bank, 0, 3)[0][3]) < 0.02
    assert float(asked(bank, 1, 3)[0][4]) > 0.99


def test_of_three_versions_the_newest_is_answered() -> None:
    bank = told(empty(), [(0, 3), (0, 4), (0, 5)], 0)
    values = asked(bank, 0, 3)[0]
    assert int(values.argmax()) == 5
    assert float(values[4]) < 0.02


def test_what_sounds_told_for_the_first_time_replaces_nothing() -> None:
    bank = told(told(empty(), [(0, 3)], 0), [(0, 5)], 1, novelty=0.5)
    assert float(bank.faded[0, 0]) > -0.01
    assert int(bank.heir[0, 0]) == 0


@pytest.mark.parametrize(("missed_by", "takes"), [(0.5 * KIN, True), (2 * KIN, False)])
def test_a_token_replaces_only_what_its_own_question_would_find(missed_by: float, takes: bool) -> None:
    """One person's street is about the same thing as another's, and asked for in other words."""
    bank, axes = told(empty(), [(0, 3)], 0), torch.eye(WIDTH, dtype=F64)
    cosine = 0.5 - missed_by / 40
    key = (cosine * axes[0] + math.sqrt(1 - cosine**2) * axes[1])[None, None]
    bank = bank_write(
        bank,
        (key, axes[None, :1], axes[None, 5:], torch.tensor([[5]])),
        strength=torch.ones(1, 1, dtype=F64),
        joined=torch.zeros(1, 1, dtype=torch.bool),
        novelty=torch.zeros(1, 1, dtype=F64),
        written=torch.tensor([1]),
        rule=rule(),
    )
    assert (int(bank.heir[0, 0]) == 2) == takes
    assert (float(bank.faded[0, 0]) < -5) == takes
    assert takes or float(bank.faded[0, 0]) == 0


def heirs(**changes: float) -> BankState:
    """3 under the key 0, corrected to 4 and to 5 in words that fit the question only in part."""
    bank = told(empty(), [(0, 3)], 0, marks=[0], **changes)
    near = 1 - 0.8 * HEIR_MARGIN / float(rule().beta)
    axes = torch.eye(WIDTH, dtype=F64)
    partly = (near * axes[0] + math.sqrt(1 - near**2) * axes[1])[None, None]
    for written, value in ((1, 4), (2, 5)):
        bank = bank_write(
            bank,
            (partly, axes[None, :1], axes[None, value : value + 1], torch.tensor([[value]])),
            strength=torch.ones(1, 1, dtype=F64),
            joined=torch.zeros(1, 1, dtype=torch.bool),
            novelty=torch.zeros(1, 1, dtype=F64),
            written=torch.tensor([written]),
            rule=rule(**changes),
        )
    return bank


def test_the_newest_value_inherits_what_is_asked_in_the_words_of_the_first() -> None:
    bank = heirs(force=1.0)
    assert bank.heir[0, :3].tolist() == [3, 3, 0]
    values, null = asked(bank, 0, 3)
    assert float(values[5]) > 0.99
    assert null < 0.01
    unlinked = replace(bank, heir=torch.zeros_like(bank.heir))
    assert float(asked(unlinked, 0, 3)[0][3]) > 0.9


def test_what_was_told_twice_is_inherited_from_both_tellings() -> None:
    bank = told(empty(), [(0, 3), (0, 3)], 0, novelty=0.5)
    bank = told(bank, [(0, 5)], 2, novelty=0.0)
    assert bank.heir[0, :3].tolist() == [3, 3, 0]
    assert int(asked(bank, 0, 3)[0].argmax()) == 5


def test_an_heir_that_answers_far_worse_inherits_nothing() -> None:
    bank = heirs(force=1.0)
    away = torch.eye(WIDTH, dtype=F64)[4]
    bank.keys[0, 2] = away
    assert float(asked(bank, 0, 3)[0][3]) > 0.9


def test_what_has_left_the_bank_inherits_nothing() -> None:
    bank = heirs(force=1.0)
    bank = replace(bank, heir=torch.where(bank.heir > 0, 77, 0))
    assert float(asked(bank, 0, 3)[0][3]) > 0.9


def test_a_full_bank_lets_the_faded_pair_go_and_then_the_oldest() -> None:
    bank = told(empty(), [(0, 3), (1, 4), (2, 5), (1, 2)], 0)
    bank = told(bank, [(3, 1)], 4)
    assert bank.ids[0].tolist() == [3, 5, 2, 1]
    bank = told(bank, [(4, 0)], 5)
    assert bank.ids[0].tolist() == [5, 2, 1, 0]
    assert bank.order[0].tolist() == [3, 4, 5, 6]


def test_how_writes_are_cut_into_calls_changes_nothing_while_there_is_room() -> None:
    facts = [(0, 3), (1, 4), (0, 5), (2, 1)]
    together, apart = told(empty(), facts, 0), empty()
    for number, fact in enumerate(facts):
        apart = told(apart, [fact], number)
    for one, other in zip(together.tensors(), apart.tensors(), strict=True):
        torch.testing.assert_close(one, other)


def doubtful(strengths: list[float], joined: tuple[int, ...] = (), size: int | None = None) -> BankState:
    """The bank after tokens written with ``strengths``, each under a key and with a mark of its own."""
    count = len(strengths)
    axes, ids = torch.eye(WIDTH, dtype=F64)[:count][None], torch.arange(count)[None]
    return bank_write(
        empty() if size is None else BankState(*(tensor[:, :size] for tensor in empty().tensors())),
        (axes, axes, axes, ids),
        strength=torch.tensor([strengths], dtype=F64),
        joined=torch.tensor([[at in joined for at in range(count)]]),
        novelty=torch.full((1, count), 9.0, dtype=F64),
        written=torch.tensor([0]),
        rule=rule(recency=0.0),
    )


def test_what_the_gate_was_not_sure_of_starts_out_faded_and_leaves_a_full_bank_first() -> None:
    strength = hard_gate(torch.tensor([2.0, 9.0, 4.0, 7.0], dtype=F64)).tolist()
    faded = doubtful(strength).faded[0, :4]
    expected = torch.tensor([-2.0, 0.0, -1.0, 0.0], dtype=F64)
    torch.testing.assert_close(faded, expected, atol=1e-3, rtol=0)
    assert doubtful(strength, size=3).ids[0].tolist() == [1, 2, 3]
    assert doubtful(strength, size=2).ids[0].tolist() == [1, 3]


def test_the_rest_of_a_value_is_doubted_no_more_than_its_beginning() -> None:
    strength = hard_gate(torch.tensor([9.0, 1.0, 2.0, 1.0], dtype=F64)).tolist()
    faded = doubtful(strength, joined=(1, 3)).faded[0, :4]
    expected = torch.tensor([0.0, 0.0, -2.0, -2.0], dtype=F64)
    torch.testing.assert_close(faded, expected, atol=1e-3, rtol=0)


def test_tokens_that_are_not_chosen_leave_no_trace() -> None:
    bank = told(empty(), [(0, 3)], 0)
    keys = torch.eye(WIDTH, dtype=F64)[None, :2]
    new, ids = (keys, keys, keys * 7), torch.tensor([[1, 2]])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    after = bank_write(
        bank,
        (*new, ids),
        strength=torch.zeros(1, 2, dtype=F64),
        joined=nothing,
        novelty=torch.zeros(1, 2, dtype=F64),
        written=torch.tensor([1]),
        rule=rule(),
    )
    assert all(torch.equal(one, other) for one, other in zip(bank.tensors(), after.tensors(), strict=True))


def test_a_value_is_followed_where_its_next_token_is_not_found() -> None:
    """Told 3 4 under one key; after 3 is said the query fits nothing, and 4 is read all the same."""
    bank = told(empty(), [(0, 3), (1, 4)], 0, joined=(1,))
    read = said(bank, [0, 5], [9, 3], 2)
    assert int(read.values[0, 1].argmax()) == 4
    assert float(read.null[0, 1]) < 0.02
    apart = said(told(empty(), [(0, 3), (1, 4)], 0), [0, 5], [9, 3], 2)
    assert float(apart.null[0, 1]) > 0.98


def test_a_value_that_has_been_said_to_its_end_is_followed_by_nothing() -> None:
    """3 is all of the value; what is stored under the next key belongs to something else."""
    bank = told(empty(), [(0, 3), (1, 4)], 0)
    read = said(bank, [0, 1], [9, 3], 2)
    assert float(read.null[0, 1]) > 0.98
    assert float(read.ended[0, 1]) > 0.98
    assert float(read.ended[0, 0]) == 0


def test_who_says_something_else_than_what_was_read_is_not_led_on() -> None:
    bank = told(empty(), [(0, 3), (1, 4)], 0, joined=(1,))
    assert float(said(bank, [0, 5], [9, 2], 2).null[0, 1]) > 0.98


def test_a_value_is_followed_through_any_cut_into_calls() -> None:
    bank = told(empty(), [(0, 3), (1, 4), (2, 5)], 0, joined=(1, 2))
    whole = said(bank, [0, 5, 5, 5], [9, 3, 4, 5], 3)
    step, rows = bank, []
    for query, token in zip([0, 5, 5, 5], [9, 3, 4, 5], strict=True):
        read = said(step, [query], [token], 3)
        step = replace(step, route=read.route)
        rows.append(read)
    torch.testing.assert_close(torch.cat([r.values for r in rows], dim=1), whole.values)
    torch.testing.assert_close(torch.cat([r.ended for r in rows], dim=1), whole.ended)
    torch.testing.assert_close(rows[-1].route, whole.route)
    assert whole.values[0, :3].argmax(dim=-1).tolist() == [3, 4, 5]


def test_padding_does_not_break_a_value_off() -> None:
    bank = told(empty(), [(0, 3), (1, 4)], 0, joined=(1,))
    asking = torch.eye(WIDTH, dtype=F64)[[0, 4, 5]][None]
    real = torch.tensor([[True, False, True]])
    read = bank_read(asking, torch.tensor([[9, 3, 3]]), bank, torch.tensor([2]), rule(), real=real)
    assert int(read.values[0, 2].argmax()) == 4
    assert float(read.null[0, 2]) < 0.02


def test_headwise_units_have_length_one_and_compare_as_a_mean_over_heads() -> None:
    a, b = torch.randn(2, 12, dtype=F64)
    weight = torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    ours = [headwise_unit(x, weight) for x in (a, b)]
    assert torch.allclose(ours[0].norm(), torch.ones((), dtype=F64))
    cosines = torch.nn.functional.cosine_similarity(a.view(3, 4), b.view(3, 4), dim=1)
    torch.testing.assert_close(ours[0] @ ours[1], weight.softmax(dim=0) @ cosines)


@pytest.mark.parametrize(
    ("logits", "written"),
    [
        ([-6.0, 1.0, -3.9, -3.9, -6.0, -3.9], [0, 1, 1, 1, 0, 0]),  # on to its end, and not again after it
        ([-4.9, 1.0, -4.1], [1, 1, 0]),  # what begins may miss it by more than what goes on
        ([-4.9, -4.9, 1.0], [0, 1, 1]),  # nothing begins before a token that nearly is one
        ([-1.0, -1.0, -1.0], [0, 0, 0]),
    ],
)
def test_what_stands_beside_a_written_token_is_written_if_it_nearly_would_be(
    logits: list[float], written: list[int]
) -> None:
    alone = torch.tensor(logits)
    following = torch.cat((alone[1:], torch.tensor([-99.0])))

    def before(of: Tensor) -> Tensor:
        return torch.cat((torch.zeros(1), of[:-1]))

    there = torch.ones(len(logits), dtype=torch.bool)
    assert (with_neighbours(alone, following, there, before) > 0).int().tolist() == written
    nowhere = with_neighbours(alone, following, ~there, before)
    assert torch.equal(nowhere, torch.maximum(alone, torch.minimum(alone + 5, following)))
