"""Checkpoints as transformers writes and reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from infinichat.errors import ConfigError
from infinichat.model import register
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.memories import RecallMemory
from infinichat.model.modeling_infini import InfiniForCausalLM, InfiniModel
from tests.model.tiny_infini import KINDS, Kind, some_ids, tiny_model


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_saved_model_comes_back_the_same(kind: Kind, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(memory=kind, tie_word_embeddings=tied, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = InfiniForCausalLM.from_pretrained(tmp_path)
    assert ("lm_head.weight" in names_in(tmp_path)) is not tied
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    theirs = dict(loaded.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(theirs[name], parameter), name
    with torch.no_grad():
        # Not bit for bit: tensors of a mapped file stand at odd addresses, which changes the rounding.
        torch.testing.assert_close(loaded(some_ids(30)).logits, model(some_ids(30)).logits)
    # What transformers notes while it saves aside.
    saved = {**model.config.to_diff_dict(), "architectures": ["InfiniForCausalLM"], "dtype": "float32"}
    assert loaded.config.to_diff_dict() == saved


def test_auto_classes_know_the_model(tmp_path: Path) -> None:
    register()
    register()
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), InfiniConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), InfiniModel)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, InfiniForCausalLM)
    assert isinstance(AutoModelForCausalLM.from_config(model.config.as_transformers()), InfiniForCausalLM)
    with torch.no_grad():
        assert torch.equal(loaded(some_ids(20)).logits, model(some_ids(20)).logits)


def test_a_model_loads_in_half_precision(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    loaded = InfiniForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    cache = loaded.model.new_cache()
    with torch.no_grad():
        assert loaded(some_ids(30), past_key_values=cache).logits.dtype == torch.bfloat16
    assert cache.memories[0].M.dtype == torch.float32


def test_a_plain_checkpoint_loads_with_memories_at_their_start(tmp_path: Path) -> None:
    """What a retrofit relies on: parameters that the file lacks are those of a new memory."""
    tiny_model(memory_layers=[], dtype=torch.float32).save_pretrained(tmp_path)
    config = InfiniConfig.from_pretrained(tmp_path, memory_layers=[1])
    loaded = InfiniForCausalLM.from_pretrained(tmp_path, config=config)
    memory = loaded.model.layers[1].memory
    assert isinstance(memory, RecallMemory)
    assert memory.alpha.item() == 0
    assert torch.equal(memory.out, torch.eye(32))
    assert bool((memory.k_taps != 0).any())
    assert bool(memory.k_taps.isfinite().all())


def test_a_checkpoint_whose_configuration_cannot_work_is_refused(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"segment": 4', '"segment": 99'))
    with pytest.raises(ConfigError, match="segment is 99 and window 12"):
        InfiniForCausalLM.from_pretrained(tmp_path)


def test_the_base_part_has_transformers_llama_s_names() -> None:
    names = {name for name, _ in tiny_model().named_parameters() if ".memory." not in name}
    layer = {
        *(f"self_attn.{p}_proj.weight" for p in "qkvo"),
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }
    expected = {f"model.layers.{i}.{name}" for i in range(2) for name in layer}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight"}


def test_embeddings_can_be_reached_and_replaced() -> None:
    model = tiny_model()
    assert model.get_input_embeddings() is model.model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    new = torch.nn.Embedding(40, 32).double()
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
