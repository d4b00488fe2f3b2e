"""A route with a tiny model: everything is asked once, where it should be, and a stopped run goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinichat.chat_format import Utterance
from infinichat.evals import travel
from infinichat.evals.asking import Asked, Script
from infinichat.evals.bench import Bench, Conversation
from infinichat.evals.filler import FillerText, Stretch
from infinichat.evals.routes import NEVER, Group, Route, all_routes, recalling
from infinichat.evals.task import MEMORIES
from infinichat.evals.trail import Trail
from infinichat.evals.travel import Journey, Log

from .conftest import MakeEngine

CODE = "4711"


def told(rng: random.Random) -> Script:
    """A fact, a question about it, and one about something else."""
    return Script(
        (Utterance("user", f"My code is {CODE}."), Utterance("assistant", "Ok.")),
        (
            Asked("Code?", lambda answer: True, CODE),
            Asked("PIN?", lambda answer: False, "never", NEVER),
        ),
        facts=1,
    )


def route(*groups: Group, kind: str = "dialogues", folder: Path | None = None) -> Route:
    def opened(bench: Bench, filler: FillerText) -> Trail:
        return Trail(bench, Stretch(filler, kind, random.Random(3)))  # type: ignore[arg-type]

    return Route("tiny-0", 0, groups, opened)


def group(**changes: Any) -> Group:
    label = {"side": "seen", "filler": "dialogues"}
    plain = Group("facts", told, 2, (1500,), 1, max_tokens=2, label=label)
    return replace(plain, **changes)


@pytest.fixture
def bench(make_engine: MakeEngine) -> Bench:
    return Bench.of(make_engine(window=256, segment=128, memory_slots=8000))


Go = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def go(bench: Bench, tmp_path: Path) -> Go:
    def run(*groups: Group, **changes: Any) -> list[dict[str, Any]]:
        log = Log(tmp_path / "log.jsonl")
        Journey(bench, route(*groups, **changes), FillerText(), log).run()
        return log.lines

    return run


def test_every_conversation_is_asked_at_every_length_under_every_condition(go: Go) -> None:
    lines = go(group(lengths=(400, 1500, 2600)))
    found = {(line["number"], line["length"], line["memory"]) for line in lines}
    assert found == {(n, length, use) for n in (0, 1) for length in (400, 1500, 2600) for use in MEMORIES}
    assert len(lines) == len(found)
    # Told at the start, so the distance is at least the length; never asked within the window.
    assert all(line["length"] <= line["distance"] < line["length"] + 4000 for line in lines)


def test_what_was_never_told_is_asked_with_the_memory_on_only(go: Go) -> None:
    for line in go(group(conversations=1)):
        kinds = [result["kind"] for result in line["asked"]]
        assert kinds == ([None, NEVER] if line["memory"] == "on" else [None])


@pytest.mark.parametrize("kind", ["dialogues", "books"])
def test_a_depth_has_a_telling_of_its_own_for_each_length(go: Go, kind: str) -> None:
    lines = go(
        group(depth=0.5, lengths=(1600, 3000), conversations=1),
        group(row="end", depth=1.0, lengths=(1600,), conversations=1),
        kind=kind,
    )
    distances = {(line["row"], line["length"]): line["distance"] for line in lines}
    # Half of what lies beyond the window, and whole messages.
    assert distances["facts", 1600] >= 384
    assert 1000 < distances["facts", 3000] < 1000 + 3000
    assert distances["end", 1600] >= 384
    if kind == "books":
        least = {("facts", 1600): 1040, ("facts", 3000): 1740, ("end", 1600): 480}
        late = {key: distances[key] - far for key, far in least.items()}
        assert all(0 <= more < 128 for more in late.values()), late


def test_a_stopped_run_goes_on_with_what_is_missing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = route(group(lengths=(400, 1500)))
    whole, part = Log(tmp_path / "whole.jsonl"), tmp_path / "part.jsonl"
    Journey(bench, wanted, FillerText(), whole).run()
    text = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    part.write_text("".join(text[:5]) + text[5][:40])
    again = Log(part)
    assert len(again.lines) == 5
    Journey(bench, wanted, FillerText(), again).run()

    def plain(lines: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps({k: v for k, v in line.items() if k != "seconds"}) for line in lines)

    assert plain(Log(part).lines) == plain(whole.lines)

    def nothing(*args: Any, **more: Any) -> list[str]:
        raise AssertionError("asked again")

    monkeypatch.setattr(travel.Asker, "ask", nothing)
    Journey(bench, wanted, FillerText(), Log(part)).run()


def states_of(bench: Bench, wanted: Route, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The conversations that are asked, by (group's row, number, length, condition)."""
    found: dict[Any, Conversation] = {}

    def keep(
        self: Any, group: Group, number: int, script: Script, length: int, far: int, states: Any
    ) -> None:
        found.update({(group.row, number, length, use): state for use, state in states.items()})

    monkeypatch.setattr(Journey, "_ask", keep)
    Journey(bench, wanted, FillerText(), Log(tmp_path / "none.jsonl")).run()
    return found


def pairs(conversation: Conversation) -> set[tuple[float, ...]]:
    """The keys of what is in the bank."""
    bank = conversation.cache.states[1].bank
    assert bank is not None
    return {tuple(key.tolist()) for key, order in zip(bank.keys[0], bank.order[0], strict=True) if order > 0}


@pytest.mark.parametrize(("length", "next_one"), [(400, 4), (1500, 1)])
def test_the_conditions_are_what_their_names_say(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int, next_one: int
) -> None:
    def other(rng: random.Random) -> Script:
        script = told(rng)
        name = rng.choice("abcdefgh") * 5
        return replace(script, told=(Utterance("user", f"The {name} is {rng.random()}."), *script.told[1:]))

    wanted = route(group(make=other, lengths=(length,), conversations=next_one + 1))
    states = states_of(bench, wanted, monkeypatch, tmp_path)
    on, off = states["facts", 0, length, "on"], states["facts", 0, length, "off"]
    peer = states["facts", next_one, length, "on"]
    swapped, wiped = states["facts", 0, length, "swapped"], states["facts", 0, length, "wiped"]

    def matrix(conversation: Conversation) -> torch.Tensor:
        return conversation.cache.memories[1].M

    assert off.cache.memories == {}
    assert int(wiped.cache.memories[1].written) == 0
    assert not torch.equal(matrix(swapped), matrix(on))
    # Another user's memory: what was told there is in it, nothing of what was told here.
    given, mine, theirs = (pairs(conversation) for conversation in (swapped, on, peer))
    assert given <= theirs
    assert len(mine - theirs) > 5
    assert not given & (mine - theirs)
    for conversation in (on, off, wiped, swapped):
        ids = conversation.cache.ids.content[0].tolist()
        assert CODE not in bench.engine.tokenizer.decode(ids)


def test_only_what_is_meant_to_be_is_asked_inside_the_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = route(group(row="near", lengths=(90,), inside=True), group(lengths=(90,)), kind="books")
    states = states_of(bench, wanted, monkeypatch, tmp_path)
    for row, inside in (("near", True), ("facts", False)):
        for use in MEMORIES:
            ids = states[row, 0, 90, use].cache.ids.content[0].tolist()
            assert (CODE in bench.engine.tokenizer.decode(ids)) is inside


@pytest.mark.parametrize("length", [400, 1500])
def test_conversations_of_a_group_are_asked_after_different_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int
) -> None:
    wanted = route(group(lengths=(length,)), kind="books")
    states = states_of(bench, wanted, monkeypatch, tmp_path)
    windows = [states["facts", n, length, "on"].cache.ids.content[0].tolist() for n in (0, 1)]
    assert windows[0] != windows[1]
    assert states["facts", 0, length, "off"].cache.ids.content[0].tolist() == windows[0]


def test_a_lone_conversation_gets_a_strangers_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def named(rng: random.Random) -> Script:
        return replace(told(rng), told=(Utterance("user", f"It is {rng.random()}."),))

    states = states_of(bench, route(group(make=named, conversations=1)), monkeypatch, tmp_path)
    on, given = states["facts", 0, 1500, "on"], states["facts", 0, 1500, "swapped"]
    assert not torch.equal(on.cache.memories[1].M, given.cache.memories[1].M)
    assert int(given.cache.memories[1].written) > 0


def test_a_script_is_the_same_in_every_run_and_differs_by_seed_and_number() -> None:
    def make(rng: random.Random) -> Script:
        return recalling(rng, side="seen", count=4, unknown=3)

    wanted = group(make=make)
    first = wanted.script(0, 0)
    assert first.told == wanted.script(0, 0).told
    assert [a.text for a in first.asked] == [a.text for a in wanted.script(0, 0).asked]
    assert len({wanted.script(seed, number).told for seed in (0, 1) for number in (0, 1)}) == 4
    assert [asked.kind for asked in first.asked] == [None] * 4 + [NEVER] * 3


def test_the_card_asks_enough_questions_in_every_headline_cell() -> None:
    counts: dict[Any, int] = {}
    for each in all_routes((0, 1, 2)):
        for wanted in each.groups:
            for length in wanted.lengths:
                key = (wanted.row, wanted.facts, *wanted.label.values(), wanted.depth, length // 1024)
                questions = sum(a.kind != NEVER for a in wanted.script(each.seed, 0).asked)
                counts[key] = counts.get(key, 0) + wanted.conversations * questions
    for key in (
        ("facts", 16, "seen", "dialogues", None, 64),
        ("facts", 16, "held_out", "dialogues", None, 64),
        ("facts", 64, "seen", "dialogues", None, 64),
        ("updates", 16, "seen", "dialogues", None, 16),
        ("facts", 16, "seen", "books", None, 64),
    ):
        assert counts[key] >= 100, key
    assert min(counts.values()) >= 10
    assert counts["facts", 16, "seen", "books", None, 1024] >= 10
    for depth in (0.0, 0.5, 1.0):
        assert all(counts["passkey", 1, "chat", kind, depth, 32] >= 10 for kind in ("dialogues", "books"))
        assert counts["passkey", 1, "chat", "books", depth, 128] >= 10
