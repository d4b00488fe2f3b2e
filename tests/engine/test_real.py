"""The default checkpoint's base weights through the engine: lossless formats, and a greedy answer that
survives a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infinichat.config import EngineSettings, Settings
from infinichat.engine.batch import Request, generate_many
from infinichat.engine.generate import InfiniEngine
from infinichat.engine.library import native_library
from infinichat.engine.load import load_engine
from infinichat.engine.quantize import smallest_lossless
from infinichat.errors import ModelError
from infinichat.messages import SamplingOptions
from infinichat.model.loading import load_model
from infinichat.model.registry import Registry
from infinichat.protocols import GeneratedToken

pytestmark = pytest.mark.real

TEXT = "The lighthouse keeper wrote down the weather every morning, in a small blue book that nobody read. "


@pytest.fixture(scope="module")
def weights() -> Path:
    try:
        return Registry().base_weights()
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> InfiniEngine:
    settings = Settings(engine=EngineSettings(device="cpu", threads=1, window=128, segment=32))
    return load_engine(weights, settings, cache=tmp_path_factory.mktemp("cache"))


def greedy(engine: InfiniEngine, state: object, count: int) -> list[int | None]:
    options = SamplingOptions(temperature=0, max_tokens=count)
    return [item.token_id for item in engine.generate(state, options, end_ids=[])]


def test_the_default_weights_are_found_to_be_four_bit(weights: Path) -> None:
    model = load_model(weights).model
    assert smallest_lossless(model.model.layers[7].mlp.down_proj.weight) == "int4"
    assert smallest_lossless(model.model.embed_tokens.weight) == "int8"


def test_single_tokens_are_as_good_as_whole_segments_in_float32(
    engine: InfiniEngine, weights: Path, tmp_path: Path
) -> None:
    if native_library(tmp_path) is None:
        pytest.skip("no C compiler on this machine")
    model = load_model(weights, window=128, segment=32).model
    ids = engine.tokenizer.encode(TEXT * 8)[:160]
    with torch.inference_mode():
        exact = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        state = engine.new_state()
        divergences = []
        for place, token_id in enumerate(ids):
            engine.step.feed(state, token_id)
            assert state.last_hidden is not None
            scores = engine.step.logits(state.last_hidden).float().log_softmax(-1)
            divergences.append(float((exact[place].exp() * (exact[place] - scores)).sum()))
    # bfloat16 itself is at 0.0002 to 0.0005 here.
    assert sum(divergences) / len(divergences) < 0.002


def test_no_bit_of_a_weight_is_lost_by_keeping_the_files_own(engine: InfiniEngine, weights: Path) -> None:
    exact = load_model(weights, window=128, segment=32).model.state_dict()
    ours = engine.model.state_dict()
    assert ours.keys() == exact.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, exact[name].to(tensor.dtype)), name


def test_sixteen_answers_together_are_those_of_each_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default checkpoint: one has been told facts and gone beyond the window since, one begins."""
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(weights))
    settings = Settings(engine=EngineSettings(device="cpu", threads=1))
    engine = load_engine(None, settings, cache=tmp_path)
    told = "My dog is called Biscuit. Clara's locker code is 4821. "
    words = "dog cat horse cow owl bear wolf fox hen duck goose trout pike crab ant bee"
    texts = [f"{told} {TEXT} The {word} that I saw" for word in words.split()]
    histories = [engine.tokenizer.encode(text) for text in texts]
    histories[3] = engine.tokenizer.encode(told + TEXT * 60 + "My dog is called")
    histories[5] = histories[5][:1]
    assert len(histories[3]) > engine.info.window
    first = [engine.new_state() for _ in histories]
    for state, ids in zip(first, histories, strict=True):
        list(engine.feed(state, ids))
    assert engine.layer_memory(first[3])[0].written > 0
    again = [engine.load_state(engine.dump_state(state)) for state in first]
    options = SamplingOptions(temperature=0, max_tokens=12)
    heard: list[list[GeneratedToken]] = [[] for _ in histories]
    for number, item in generate_many(engine, [Request(state, options) for state in first]):
        assert isinstance(item, GeneratedToken)
        heard[number].append(item)
    apart = 0
    for together, state in zip(heard, again, strict=True):
        copy = engine.load_state(engine.dump_state(state))
        by_itself = list(engine.generate(state, options, end_ids=()))
        if together != by_itself:
            # The memory's products are rounded otherwise in a batch: of two tokens that are as likely as each
            # other, either may be said.
            apart += 1
            at = next(n for n, pair in enumerate(zip(together, by_itself, strict=True)) if pair[0] != pair[1])
            for token in by_itself[:at]:
                engine.step.feed(copy, token.token_id)
            scores = engine.step.logits(copy.last_hidden).flatten()
            assert abs(float(scores[together[at].token_id] - scores[by_itself[at].token_id])) < 0.02
    assert apart <= 3
    assert "Biscuit" in "".join(item.text for item in heard[3])
    assert len({"".join(item.text for item in items) for items in heard}) > 8


def test_a_greedy_answer_goes_on_after_a_restart_as_if_never_stopped(engine: InfiniEngine) -> None:
    state = engine.new_state()
    for _ in engine.feed(state, engine.tokenizer.encode(TEXT * 10)):
        pass
    greedy(engine, state, 10)
    dump = engine.dump_state(state)
    assert engine.tokens_seen(state) > engine.info.window
    assert greedy(engine, engine.load_state(dump), 40) == greedy(engine, state, 40)
