"""A model whose weights stay as the file stores them is the same model, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from torch import nn

from infinichat.config import EngineSettings, Settings
from infinichat.engine.device import Plan
from infinichat.engine.kernels import Step
from infinichat.engine.library import native_library
from infinichat.engine.load import load_engine
from infinichat.engine.placing import placed
from infinichat.engine.tiles import Tiles
from infinichat.errors import ModelFileError
from infinichat.model.loading import LoadedModel, load_model
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.stored import StoredEmbedding, StoredLinear, parameter_count, stored

from .conftest import WriteGguf, tiny_llama

IDS = torch.randint(0, 260, (1, 50), generator=torch.Generator().manual_seed(0))
KINDS = [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0]


def light_and_dense(path: Path) -> tuple[LoadedModel, LoadedModel]:
    return load_model(path, window=32, segment=8, light=True), load_model(path, window=32, segment=8)


def native(model: InfiniForCausalLM, cache: Path) -> Step:
    """Placed with the compiled step, in bfloat16, as on a processor that multiplies it fast."""
    if native_library(cache) is None:
        pytest.skip("no C compiler on this machine")
    plan = Plan("cpu", "bfloat16", "int4", threads=1, step="native")
    return placed(model, plan, EngineSettings(), cache=cache)[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.inference_mode()
def test_a_packed_model_has_the_dense_ones_logits(
    kind: Kind, tied: bool, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = tiny_llama(vocab_size=272, tie_word_embeddings=tied, attention_bias=True)
    light, dense = light_and_dense(write_gguf(source, kind=kind))
    assert not any(isinstance(module, nn.Linear) for module in light.model.modules())
    assert light.parameters == dense.parameters == parameter_count(dense.model)
    assert torch.equal(light.model(IDS).logits, dense.model(IDS).logits)  # still as they were read

    packed = native(light.model, tmp_path)
    for name, parameter in dense.model.named_parameters():
        parameter.data = parameter.data if ".memory." in name else parameter.data.bfloat16()
    modules = stored(light.model)
    assert len(modules) == 2 * 7 + 2
    assert all(isinstance(module.store, Tiles) for module in modules.values())
    assert torch.equal(light.model(IDS).logits, dense.model(IDS).logits)
    theirs = dense.model.state_dict()
    assert light.model.state_dict().keys() == theirs.keys()
    for name, tensor in light.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    # One token at a time, too: the same tiles, multiplied by the compiled step.
    state, fed = light.model.model.new_cache(), dense.model.model.new_cache()
    for token_id in IDS[0].tolist():
        packed.feed(state, token_id)
    last = dense.model.model(input_ids=IDS, past_key_values=fed, keep=1).last_hidden_state[0]
    assert state.last_hidden is not None
    near = torch.nn.functional.cosine_similarity(state.last_hidden.float(), last.float())
    assert float(near) > 0.999


@torch.inference_mode()
def test_one_copy_of_the_weights_serves_reading_and_answering(write_gguf: WriteGguf, tmp_path: Path) -> None:
    light, _ = light_and_dense(write_gguf(tiny_llama(vocab_size=272), kind=Kind.Q4_1))
    native(light.model, tmp_path)
    modules = stored(light.model)
    embedding, head = modules["model.embed_tokens"], modules["lm_head"]
    assert isinstance(embedding, StoredEmbedding)
    assert isinstance(head, StoredLinear)
    assert head.store is embedding.store
    left = sum(parameter.nbytes for name, parameter in light.model.named_parameters() if "memory" not in name)
    packed = sum(module.store.nbytes for module in modules.values()) - head.store.nbytes
    assert left < 2000  # norms
    assert packed == 0.625 * (light.parameters - left / 2 - memory_size(light.model))


def memory_size(model: InfiniForCausalLM) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "memory" in name)


def test_without_a_compiler_weights_become_ordinary_ones(
    write_gguf: WriteGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINICHAT_CC", "")
    path = write_gguf(tiny_llama(vocab_size=272), kind=Kind.Q4_1)
    settings = Settings(engine=EngineSettings(device="cpu", threads=1, dtype="float32"))
    engine = load_engine(path, settings, cache=tmp_path)
    assert not stored(engine.model)
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight
    with torch.inference_mode():
        assert torch.equal(engine.model(IDS).logits, load_model(path).model(IDS).logits)


def test_an_id_past_the_vocabulary_is_refused_as_ever(write_gguf: WriteGguf) -> None:
    from infinichat.errors import StateError

    light, _ = light_and_dense(write_gguf(tiny_llama(vocab_size=272), kind=Kind.Q8_0))
    for wrong in (272, -1):
        with pytest.raises(StateError, match="vocabulary has ids 0 to 271"):
            light.model(torch.tensor([[1, wrong]]))


def test_a_scale_that_is_no_number_is_refused_by_name(write_gguf: WriteGguf) -> None:
    from infinichat.model.gguf_file import read_gguf_header

    path = write_gguf(tiny_llama(vocab_size=272), kind=Kind.Q4_1)
    header = read_gguf_header(path)
    at = header.data_start + header.tensors["blk.1.ffn_up.weight"].offset
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\x00\x7e")  # float16's NaN
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(path, light=True)
