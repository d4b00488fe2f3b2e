"""Measuring: the wire, the rows, the ratios; one whole run over tiny peers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from infinichat.bench import speed
from infinichat.bench.peers import Options, prompt_ids
from infinichat.bench.report import Report, Row, median_ratio, plot, speeds, table
from infinichat.bench.roofs import machine_rates, needed, roof
from infinichat.bench.wire import Child, PeerError, Task
from infinichat.bench.worker import serve
from infinichat.cli import bench
from infinichat.cli.console import Console
from infinichat.cli.context import Context
from infinichat.cli.parser import Parser
from infinichat.errors import UsageError
from infinichat.paths import default_paths
from tests.engine.tiny import engine_over, tiny_model

PEER = """
import json, sys
name, slow = sys.argv[1], float(sys.argv[2])
for line in sys.stdin:
    call = json.loads(line)
    do = call["do"]
    answer = {
        "describe": {"engine": name, "weights": "w", "load_s": 0.1, "threads": 3, "device": "cpu",
                     "model": "m", "trained": False},
        "read": {"seconds": len(call.get("ids", ())) * slow},
        "decode": {"seconds": [slow] * call.get("count", 0)},
        "suspend": {"seconds": 0.1, "bytes": 5_000_000},
        "resume": {"seconds": 0.2},
        "memory": {"rss_mb": 100.0, "state_mb": 5.0},
        "document": {"seconds": len(call.get("ids", ())) * slow / 2},
        "roof": {"bytes": 1e8, "operations": 3e8, "bytes_per_s": 2e10, "operations_per_s": 1e11},
    }.get(do, {"error": "cannot " + do})
    print(json.dumps(answer), flush=True)
"""


def child(name: str, slow: float = 0.01) -> Child:
    return Child(name, [sys.executable, "-c", PEER, name, str(slow)])


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """Fake processes: ours takes 10 ms a token, transformers 20, llama.cpp cannot be started."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def python_peer(name: str, arguments: Sequence[str]) -> Child:
        asked.append((name, tuple(arguments)))
        return child(name, 0.01 if name == "infinichat" else 0.02)

    def llamacpp(*_: object, **__: object) -> Child:
        raise PeerError("no node here")

    monkeypatch.setattr("infinichat.bench.peers.python_peer", python_peer)
    monkeypatch.setattr("infinichat.bench.peers.llamacpp_peer", llamacpp)
    monkeypatch.setattr("infinichat.model.registry.Registry.base_weights", lambda *_: Path("x.gguf"))
    return asked


def parsed(*argv: str) -> Any:
    parser = Parser()
    parser.add_argument("--model")
    bench.add_arguments(parser)
    return parser.parse_all(list(argv))


def run(args: Any) -> int:
    return bench.run(args, Context(default_paths(), Console()))


def test_a_child_answers_fails_and_ends_in_words() -> None:
    with child("one") as one:
        assert one.ask("read", ids=[1, 2])["seconds"] == 0.02
        with pytest.raises(PeerError, match="one: cannot fly"):
            one.ask("fly")
    with (
        Child("two", [sys.executable, "-c", "raise SystemExit('no weights')"]) as two,
        pytest.raises(
            PeerError, match=r"two ended while it was asked to describe, exit status 1: no weights"
        ),
    ):
        two.ask("describe")


def test_decode_measures_in_turn_and_compares_round_by_round(
    peers: list[tuple[str, tuple[str, ...]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(parsed("decode", "--against", "transformers,llamacpp", "--histories", "8,16", "--json")) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["task"], out["device"], out["threads"]) == ("decode", "cpu", 3)
    assert [(row["engine"], row["history"], row["tokens_per_s"], row["ratio"]) for row in out["rows"]] == [
        ("infinichat", 8, 100.0, 1.0),
        ("transformers", 8, 50.0, 2.0),
        ("transformers-generate", 8, 50.0, 2.0),
        ("infinichat", 16, 100.0, 1.0),
        ("transformers", 16, 50.0, 2.0),
        ("transformers-generate", 16, 50.0, 2.0),
    ]
    assert {"engine", "weights", "history", "tokens_per_s", "first_token_s", "rss_mb", "state_mb"} <= set(
        out["rows"][0]
    )
    assert "no node here" in out["notes"]
    # Whoever comes later gets the threads that the first one chose.
    assert peers[0] == ("infinichat", ("--weights", "auto"))
    assert peers[1] == ("transformers", ("--weights", "bfloat16", "--threads", "3"))


def test_prefill_and_resume_give_the_time_to_the_first_token(
    peers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(parsed("prefill", "--histories", "50", "--rounds", "2", "--json"))
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["tokens_per_s"], row["first_token_s"]) == (100.0, 0.5)
    run(
        parsed("resume", "--histories", "50", "--rounds", "2", "--against", "transformers-generate", "--json")
    )
    ours, theirs = json.loads(capsys.readouterr().out)["rows"]
    assert (ours["first_token_s"], ours["file_mb"]) == (0.2, 5.0)
    assert theirs["first_token_s"] == 1.0


def test_a_document_is_read_in_our_own_way(peers: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(parsed("read", "--histories", "50", "--rounds", "2", "--against", "transformers-generate", "--json"))
    ours, theirs = json.loads(capsys.readouterr().out)["rows"]
    assert (ours["tokens_per_s"], theirs["tokens_per_s"], theirs["ratio"]) == (200.0, 50.0, 4.0)


def test_beside_a_figure_stands_what_the_machine_could_do(
    peers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(parsed("decode", "--histories", "8", "--rounds", "1", "--against", "transformers", "--json"))
    ours, *theirs = json.loads(capsys.readouterr().out)["rows"]
    # 100 MB at 20 GB/s take 5 ms, 300 MFLOP at 100 GFLOP/s only 3; a token took 10.
    assert (ours["token_mb"], ours["token_mflop"], ours["reached"]) == (100.0, 300.0, 0.5)
    assert (ours["gb_per_s"], ours["gflop_per_s"]) == (20.0, 100.0)
    assert not any("reached" in row for row in theirs)
    run(parsed("decode", "--histories", "8", "--rounds", "1"))
    text = capsys.readouterr().out
    assert "100.0 MB 300 MFLOP" in text
    assert "50%" in text
    assert "20.0 GB/s from memory, 100 GFLOP/s" in text


def test_what_a_token_needs_is_counted_from_the_model() -> None:
    model = tiny_model(memory="bank", num_hidden_layers=4)
    engine = engine_over(model)
    per_layer = sum(
        p.numel() for n, p in model.model.layers[0].named_parameters() if n.endswith("proj.weight")
    )
    memory = needed(engine, "prefill", 1)[1] / 2 - 4 * per_layer
    attended = 4.0 * 4 * 16  # four operations for each number of each head
    assert 0 < memory < sum(p.numel() for n, p in model.named_parameters() if ".memory." in n) + attended
    for history, slots in ((10, 10), (500, 24)):
        bytes_, operations = needed(engine, "decode", history)
        head = model.lm_head.weight.numel()
        assert operations == needed(engine, "decode", 0)[1] + attended * slots * 4
        assert operations > 2 * (4 * per_layer + head)
        assert bytes_ > 4 * (4 * per_layer + head)
    read, prefill = needed(engine, "read", 500)[1], needed(engine, "prefill", 500)[1]
    assert prefill - read > 2 * 2 * per_layer  # two of the four layers are above the memory
    rates = machine_rates(torch.float32, 8)
    assert min(rates) > 1e7
    assert roof(engine, "decode", 10, rates).tokens_per_s > 0


def test_the_table_names_machine_engine_and_doubts(
    peers: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run(parsed("decode", "--histories", "8", "--rounds", "1"))
    text = capsys.readouterr().out
    assert "decode on cpu, 3 thread(s)" in text
    assert "100.0" in text
    assert "is not trained" in text


def test_a_plot_is_drawn(peers: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(parsed("decode", "--histories", "8,64", "--rounds", "1", "--plot", str(tmp_path / "x.png")))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    rows = (Row("a", "w", 1000, rss_mb=5.0), Row("a", "w", 10_000, rss_mb=5.0))
    plot(Report("soak", "cpu", 1, rows, {"cpu": "x", "cores": 1, "load": None}), tmp_path / "y.png")
    assert (tmp_path / "y.png").exists()


def test_mistakes_are_named(peers: list[Any]) -> None:
    with pytest.raises(UsageError, match="'ollama'"):
        run(parsed("decode", "--against", "ollama"))
    for argv in (["fly"], ["decode", "--tokens", "0"], ["decode", "--histories", "5,x"]):
        with pytest.raises(UsageError):
            parsed(*argv)


def test_speeds_and_ratios() -> None:
    assert speeds([[0.1, 0.3], [0.5]]) == [5.0, 2.0]
    # The second round met something: both were slow, the ratio is not.
    assert median_ratio([10.0, 1.0, 10.0], [5.0, 0.5, 5.0]) == 2.0


def test_a_table_without_a_load_has_no_load() -> None:
    report = Report("decode", "cpu", 1, (Row("a", "w", 5),), {"cpu": "x", "cores": 1, "load": None})
    assert "load" not in table(report)


def test_prompt_ids_are_the_same_for_all_and_other_for_another_seed() -> None:
    assert prompt_ids(100) == prompt_ids(200)[:100]
    assert prompt_ids(100) != prompt_ids(100, seed=1)
    assert all(0 <= token_id < 32_000 for token_id in prompt_ids(1000, seed=3))


class FakePeer:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.seen_document: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake", "weights": "none"}

    def read(self, ids: Sequence[int]) -> None:
        self.seen = list(ids)

    def decode(self, count: int) -> list[float]:
        return [0.5] * count

    def suspend(self) -> int:
        raise UsageError("cannot be put away")

    def resume(self) -> None:
        return

    def state_bytes(self) -> int:
        return 3_000_000

    def read_document(self, ids: Sequence[int]) -> None:
        self.seen_document = list(ids)

    def roof(self, task: Task, history: int) -> dict[str, float]:
        return {"bytes": float(history)}


def test_a_worker_answers_every_call_and_says_what_it_cannot_do() -> None:
    calls: list[dict[str, Any]] = [
        {"do": "describe"},
        {"do": "read", "ids": [1, 2]},
        {"do": "decode", "count": 2},
        {"do": "suspend"},
        {"do": "resume"},
        {"do": "memory"},
        {"do": "document", "ids": [3]},
        {"do": "roof", "task": "decode", "history": 5},
        {"do": "fly"},
    ]
    peer, out = FakePeer(), io.StringIO()
    serve(peer, io.StringIO("".join(json.dumps(call) + "\n" for call in calls)), out, load_s=1.5)
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[0] == {"engine": "fake", "weights": "none", "load_s": 1.5}
    assert peer.seen == [1, 2]
    assert answers[2] == {"seconds": [0.5, 0.5]}
    assert answers[3] == {"error": "cannot be put away"}
    assert answers[5]["state_mb"] == 3.0
    assert answers[5]["rss_mb"] > 1
    assert peer.seen_document == [3]
    assert answers[7] == {"bytes": 5.0}
    assert "error" in answers[8]


def test_options_are_for_all_engines(peers: list[Any]) -> None:
    options = Options("m", ("transformers-float32",), ("int8", "float32"), 2, 64, 100)
    speed.decode(options, histories=[8], tokens=2, rounds=1, say=lambda _: None)
    assert [arguments for _, arguments in peers] == [
        ("--weights", "int8", "--model", "m", "--threads", "2", "--window", "64"),
        ("--weights", "float32", "--model", "m", "--threads", "3", "--window", "64"),
        ("--weights", "float32", "--model", "m", "--threads", "3"),
    ]
