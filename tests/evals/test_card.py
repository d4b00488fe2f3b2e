"""The card's command with a tiny model: parts, going on, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinichat.errors import UsageError
from infinichat.evals import card, peers, sheet
from infinichat.evals.bench import Bench
from infinichat.evals.card import Order
from infinichat.evals.routes import NEVER, Group
from infinichat.evals.task import Options
from infinichat.model.memories import PaperMemory

from .conftest import MakeEngine
from .test_command import parsed, run
from .test_travel import route, told


def line(**changes: Any) -> dict[str, Any]:
    """One line of a route's log: one question answered, one refused, one about what was never told."""
    results = [
        {"asked": "A?", "expected": "a", "got": "It is a.", "right": True, "refused": False, "kind": None},
        {"asked": "B?", "expected": "b", "got": "Not told.", "right": False, "refused": True, "kind": None},
        {"asked": "C?", "expected": "-", "got": "Not told.", "right": True, "refused": True, "kind": NEVER},
    ]
    plain = {"row": "facts", "facts": 16, "depth": None, "side": "seen", "filler": "dialogues", "seed": 0}
    plain |= {"number": 0, "length": 65536, "memory": "on", "distance": 65600, "asked": results, "seconds": 1}
    return {**plain, **changes}


def test_rows_count_told_and_never_told_apart() -> None:
    told_only = line()["asked"][:2]
    [facts, never] = sheet.rows([line(), line(number=1), line(memory="off", asked=told_only)])
    assert facts.name == "16 facts"
    on, off = facts.counts["on"], facts.counts["off"]
    assert (on.n, on.right, on.refused) == (4, 2, 2)
    assert (off.n, off.right) == (2, 1)
    assert (never.name, never.counts["on"].n, never.counts["on"].share) == ("never told, admitted", 2, 1.0)


def test_the_table_has_every_cell_with_its_interval_and_the_memory_knocked_out() -> None:
    shown = sheet.table(sheet.rows([line(), line(memory="off"), line(length=16384)]))
    assert "| 16 facts | dialogues | 64K | 2 | 50.0% | 9% to 91% | 50% | 50% of 2 |  |  |" in shown
    assert "| 16 facts | dialogues | 16K | 2 |" in shown


def test_recall_is_by_distance_with_questions_and_interval(tmp_path: Path) -> None:
    told_only = line()["asked"][:2]
    lines = [line(number=number) for number in range(10)]
    lines += [line(memory="wiped"), line(row="needle", facts=1, depth=0.5, asked=told_only)]
    lines += [line(facts=64)]  # two questions: in the table, and not in the app
    (tmp_path / "dialogues-0.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = sheet.recall_json(tmp_path, {"model": "tiny"})
    [facts, never] = found["recall"]
    assert (facts["name"], facts["tokens"], facts["share"], facts["n"]) == ("16 facts", 65536, 0.5, 20)
    assert facts["without"] == 0.5
    assert facts["interval"][0] < 0.5 < facts["interval"][1]
    assert never["name"] == "never told, admitted"
    assert {cell["what"] for cell in found["cells"]} == {"facts", NEVER, "needle"}


def test_the_app_shows_passkeys_over_all_depths(tmp_path: Path) -> None:
    """Found at the start of the text and lost in its middle is found half of the time."""
    right, wrong = line()["asked"][0] | {"right": True}, line()["asked"][1] | {"right": False}
    told = {"row": "passkey", "facts": 1, "side": None, "form": "plain", "filler": "repeated", "length": 4096}
    lines = [line(**told, depth=0.0, asked=[right], number=n) for n in range(10)]
    lines += [line(**told, depth=0.5, asked=[wrong], number=n) for n in range(10)]
    (tmp_path / "repeated-0.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    [shown] = sheet.recall_json(tmp_path, {"model": "tiny"})["recall"]
    assert (shown["name"], shown["n"], shown["share"]) == ("passkey, in the paper's words", 20, 0.5)


def test_parts_come_with_the_headline_first_and_can_be_picked(tmp_path: Path) -> None:
    order = Order(tmp_path, None, seeds=(4, 5))
    names = [part.name for part in card.parts(order)]
    assert names[:3] == ["books-4", "dialogues-4", "dialogues-5"]
    assert names.index("perplexity") < names.index("books-5")
    assert {"dialogues-4", "dialogues-5", "repeated-4", "perplexity", "paper", "base"} <= set(names)
    picked = Order(tmp_path, None, seeds=(4, 5), only=("dialogues", "gates"))
    assert [part.name for part in card.parts(picked)] == ["dialogues-4", "dialogues-5", "gates"]
    assert "| dialogues-4 | 65,536 |" in card.budget(picked)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of one short route and one measure."""
    label = {"side": "seen", "filler": "dialogues"}
    tiny = route(Group("facts", told, 1, (1200,), 1, max_tokens=2, label=label))
    monkeypatch.setattr(card, "all_routes", lambda seeds: [tiny])
    gates = card.MEASURES["gates"][0]
    monkeypatch.setattr(card, "MEASURES", {"gates": (gates, {"lengths": (600,), "samples": 2}, 1)})
    monkeypatch.setattr(sheet, "MEASURES", card.MEASURES)


@pytest.mark.usefixtures("small")
def test_the_command_writes_its_folder_and_goes_on(
    make_engine: MakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    def load() -> Any:
        return make_engine(window=256, segment=128)

    out = tmp_path / "out"
    arguments = parsed("card", "--out", str(out), "--seeds", "0")
    assert run(arguments, load) == 0
    shown = capsys.readouterr()
    assert "| 1 fact | dialogues |" in shown.out
    recall = json.loads((out / "recall.json").read_text())
    assert recall["model"] == "tiny"
    assert recall["cells"][0]["on"]["n"] == 1
    assert (out / "facts.png").read_bytes()[:4] == b"\x89PNG"
    before = (out / "tiny-0.jsonl").read_text()
    assert run(arguments, load) == 0
    assert (out / "tiny-0.jsonl").read_text() == before
    assert "memory on" not in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_folder_of_another_model_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    order = Order(tmp_path, None)
    (tmp_path / "model.json").write_text(json.dumps({"fingerprint": "other"}))
    with pytest.raises(UsageError, match="has results of the model other"):
        card.run_part(make_engine(), order, "gates", lambda sentence: None)


@pytest.mark.parametrize("argv", [["card"], ["card", "--out", "x", "--only", "nothing"]], ids=" ".join)
def test_a_card_without_a_folder_or_parts_is_refused(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="--out|--only nothing names no part"):
        run(parsed(*argv), lambda: None)


def test_the_budget_needs_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(parsed("card", "--out", str(tmp_path), "--budget"), lambda: None) == 0
    assert "| part | filler | asked | minutes |" in capsys.readouterr().out


def test_the_papers_memory_stands_on_the_same_weights(make_engine: MakeEngine) -> None:
    engine = make_engine()
    other = peers.with_memory(engine, memory="delta", memory_trained=True)
    memory = other.model.model.layers[1].memory
    assert isinstance(memory, PaperMemory)
    assert memory.rule == "delta"
    assert memory.beta.tolist() == [0.0] * 4
    own, shared = engine.model.model.layers[2], other.model.model.layers[2]
    assert own.mlp.up_proj.weight.data_ptr() == shared.mlp.up_proj.weight.data_ptr()
    assert other.model.lm_head.weight.data_ptr() == other.model.model.embed_tokens.weight.data_ptr()


def test_the_papers_memory_is_reported_by_rule(make_engine: MakeEngine) -> None:
    report = peers.paper(
        Bench.of(make_engine()), Options(lengths=(200,), facts=(2,), samples=2, max_tokens=2)
    )
    assert [(cell.extra["kind"], cell.n) for cell in report.cells] == [
        ("paper, linear, gate half open, not trained", 2),
        ("paper, delta, gate half open, not trained", 2),
    ]


def test_the_base_sees_all_of_what_was_told(make_engine: MakeEngine) -> None:
    bench = Bench.of(make_engine(max_position_embeddings=2048))
    report = peers.base(bench, Options(lengths=(200,), facts=(2,), samples=4, max_tokens=2))
    [cell] = report.cells
    assert (cell.n, cell.memory, cell.length) == (4, "off", 200)
    assert "2,048" in cell.extra["kind"]
