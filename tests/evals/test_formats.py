"""Formats are compared on the same text and the same conversations; what is the same costs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infinichat.engine.generate import InfiniEngine
from infinichat.engine.kernels import PlainStep
from infinichat.engine.library import native_library
from infinichat.engine.native import NativeStep
from infinichat.errors import UsageError
from infinichat.evals import formats
from infinichat.evals.bench import Bench
from infinichat.evals.perplexity import streamed_losses
from infinichat.evals.task import Options, table
from tests.engine.tiny import engine_over, tiny_model

from .conftest import MakeEngine
from .test_command import parsed, run

OPTIONS = Options(lengths=(64,), facts=(2,), samples=2, sides=("seen",))


def test_every_format_has_its_perplexity_and_the_same_questions(
    make_engine: MakeEngine, folder: Path
) -> None:
    loaded: list[str] = []

    def load(name: str) -> Bench:
        loaded.append(name)
        engine = make_engine()
        if name == "int8":
            engine.step = PlainStep(engine.model, format="int8")
            with torch.no_grad():
                engine.model.lm_head.weight.mul_(1.5)
        return Bench.of(engine)

    transcript: list[dict[str, object]] = []
    options = Options(**{**vars_of(OPTIONS), "filler": folder})
    report = formats.measure(load, options, transcript, ("float32", "bfloat16", "int8"))
    assert loaded == ["bfloat16", "float32", "int8"]
    *losses, first, second, third = report.cells
    assert [cell.extra["format"] for cell in losses] == ["float32", "bfloat16", "int8"]
    assert [cell.n for cell in losses] == [63, 63, 63]
    # float32 is the same model here.
    assert (losses[0].extra["more"], losses[0].extra["error"]) == ("+0.00 %", "0.00 %")
    assert losses[0].extra["loss"] == losses[1].extra["loss"] != losses[2].extra["loss"]
    assert losses[2].extra["more"] != "+0.00 %"
    assert [cell.extra["format"] for cell in (first, second, third)] == ["float32", "bfloat16", "int8"]
    assert {cell.n for cell in (first, second, third)} == {2}
    asked = [[a["asked"] for a in transcript if a["format"] == name] for name in ("float32", "int8")]
    assert asked[0] == asked[1] != []
    assert "| int8 |" in table(report)


def vars_of(options: Options) -> dict[str, object]:
    return {name: getattr(options, name) for name in Options.__slots__}


def test_a_packed_step_is_measured_token_by_token_as_it_answers(tmp_path: Path) -> None:
    library = native_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    model = tiny_model(vocab_size=288, memory="bank", memory_slots=9)
    engine = engine_over(model, step=NativeStep(model, library, format="float32"))
    texts = [list(range(40)), list(range(100, 170))]
    exact = torch.cat([streamed_losses(model, engine.new_state(), ids) for ids in texts])
    torch.testing.assert_close(formats._losses(Bench.of(engine), texts), exact, rtol=1e-3, atol=1e-4)


def test_the_command_loads_each_format_and_prints_them(
    make_engine: MakeEngine, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    made: list[InfiniEngine] = []

    def load() -> InfiniEngine:
        made.append(make_engine())
        return made[-1]

    arguments = ["formats", "--lengths", "64", "--facts", "2", "--samples", "2", "--sides", "seen"]
    arguments += ["--filler", str(folder), "--formats", "bfloat16,int4"]
    assert run(parsed(*arguments, "--json"), load) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(made) == 2
    assert [cell["format"] for cell in document["cells"]] == ["bfloat16", "int4"] * 2
    assert "int4 runs as float32 here" in document["notes"]
    with pytest.raises(UsageError, match="--formats has 'int3'"):
        run(parsed("formats", "--formats", "int3"), load)
    with pytest.raises(UsageError, match="draws nothing"):
        run(parsed("formats", "--plot", "x.png"), load)
