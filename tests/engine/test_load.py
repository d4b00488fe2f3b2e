"""A loaded model becomes an engine in the format that was asked for, and answers as the model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infinichat.config import EngineSettings, Settings
from infinichat.engine.byte_tokenizer import ByteTokenizer
from infinichat.engine.device import FILE
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.load import engine_of
from infinichat.messages import SamplingOptions
from infinichat.model.loading import LoadedModel
from tests.engine.conftest import MakeModel, some_ids


@pytest.fixture
def make_loaded(make_model: MakeModel) -> MakeModel:
    def make(**changes: object) -> LoadedModel:
        model = make_model(**changes)
        return LoadedModel(
            model=model,
            tokenizer=ByteTokenizer(),  # type: ignore[arg-type]
            name="tiny",
            fingerprint="f" * 64,
            trained=model.config.memory_trained,
            chat_format="chatml",
            parameters=sum(p.numel() for p in model.parameters()),
            path=Path("tiny"),
        )

    return make  # type: ignore[return-value]


def loaded_engine(loaded: LoadedModel, cache: Path, **settings: object) -> InfiniEngine:
    return engine_of(loaded, Settings(engine=EngineSettings(device="cpu", **settings)), cache=cache)  # type: ignore[arg-type]


def greedy(engine: InfiniEngine, count: int = 20) -> list[int | None]:
    state = engine.new_state()
    for _ in engine.feed(state, some_ids(40)):
        pass
    options = SamplingOptions(temperature=0, max_tokens=count)
    return [item.token_id for item in engine.generate(state, options, end_ids=[])]


def test_float32_answers_exactly_as_transformers_generate_does(
    make_loaded: MakeModel, tmp_path: Path
) -> None:
    loaded = make_loaded()
    ids = torch.tensor([some_ids(40)])
    expected = loaded.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 40:]
    engine = loaded_engine(loaded, tmp_path, dtype="float32", threads=1)
    assert engine.info.dtype == "float32"
    assert greedy(engine) == expected.tolist()


@pytest.mark.parametrize(("dtype", "weights"), [("bfloat16", "bfloat16"), ("int8", "int8")])
def test_a_narrow_engine_keeps_what_memories_add_up_in_float32(
    dtype: str, weights: str, make_loaded: MakeModel, tmp_path: Path
) -> None:
    engine = loaded_engine(make_loaded(), tmp_path, dtype=dtype, threads=1)
    assert engine.step.weights == weights
    for name, parameter in engine.model.named_parameters():
        kept = ".memory." in name and not name.endswith(".memory.context")
        assert (parameter.dtype == torch.float32) == (kept or engine.info.dtype == "float32")
    assert len(greedy(engine)) == 20


def test_what_was_measured_is_remembered(
    make_loaded: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import device, load, placing

    monkeypatch.setattr(load, "machine_is_busy", lambda cores: False)
    first = loaded_engine(make_loaded(), tmp_path)
    assert (tmp_path / FILE).exists()

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(device, "make_plan", never)
    monkeypatch.setattr(placing, "measured_threads", never)
    monkeypatch.setattr(placing, "_token_seconds", never)
    assert loaded_engine(make_loaded(), tmp_path).info == first.info


def test_threads_measured_on_a_busy_machine_are_not_kept(
    make_loaded: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import load, placing

    monkeypatch.setattr(load, "machine_is_busy", lambda cores: True)
    measured: list[int] = []
    monkeypatch.setattr(placing, "measured_threads", lambda model, step: measured.append(1) or 1)
    for _ in range(2):
        loaded_engine(make_loaded(), tmp_path)
    assert measured == [1, 1]


def test_the_settings_threads_are_not_measured(
    make_loaded: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import placing

    monkeypatch.setattr(placing, "measured_threads", lambda model, step: pytest.fail("measured"))
    assert loaded_engine(make_loaded(), tmp_path, threads=1).info.threads == 1


def test_where_the_compiled_step_is_known_to_be_fast_nothing_is_packed_for_torch(
    make_loaded: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import placing
    from infinichat.engine.library import native_library

    library = native_library(tmp_path)
    if library is None:
        pytest.skip("no C compiler on this machine")
    made: list[str] = []

    class Noted(placing.PlainStep):
        def __init__(self, *arguments: object, **named: object) -> None:
            made.append("plain")
            super().__init__(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(placing, "PlainStep", Noted)
    sizes = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 128}
    for fast, packed in ((1, []), (0, ["plain"])):
        made.clear()
        monkeypatch.setattr(library, "infini_multiplies_in_fours", lambda fast=fast: fast, raising=False)
        monkeypatch.setattr(placing, "native_library", lambda cache: library)
        loaded_engine(make_loaded(**sizes), tmp_path / str(fast), threads=1)
        assert made == packed


def test_a_machine_without_torch_loaded_compiles_while_it_is_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from infinichat.engine.library import begin_compiling, native_library; "
        "from pathlib import Path; begin_compiling(Path(sys.argv[1])); native_library(Path(sys.argv[1])); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
