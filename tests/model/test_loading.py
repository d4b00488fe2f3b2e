"""Names and paths become models: the base's logits exactly, every damage refused by name, fingerprints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from infinichat.errors import ConfigError, ModelFileError, ModelNotFoundError, UnsupportedModelError
from infinichat.model.checkpoint import write_checkpoint
from infinichat.model.gguf import gguf_tensors
from infinichat.model.gguf_file import read_gguf_header
from infinichat.model.loading import LoadedModel, load_model
from infinichat.model.registry import Registry
from infinichat.model.retrofit import retrofit
from infinichat.paths import Paths

from .conftest import WriteFolder, WriteGguf, byte_tokenizer_json, tiny_llama
from .test_gguf import loaded as loaded_by_transformers

IDS = torch.arange(3, 43).unsqueeze(0)


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def assert_same_logits(loaded: LoadedModel, source: LlamaForCausalLM) -> None:
    torch.testing.assert_close(logits(loaded.model), logits(source), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gguf_a_folder_and_shards_give_the_base_models_logits(
    registry: Registry, write_gguf: WriteGguf, write_folder: WriteFolder, tied: bool, bias: bool
) -> None:
    source = tiny_llama(tie_word_embeddings=tied, attention_bias=bias)
    for path in (write_gguf(source), write_folder(source), write_folder(source, name="shards", shards=3)):
        loaded = load_model(path, registry=registry)
        assert_same_logits(loaded, source)
        assert not loaded.trained
        assert not loaded.model.training
        assert loaded.name == path.stem


def test_tied_weights_share_their_memory(registry: Registry, write_folder: WriteFolder) -> None:
    model = load_model(write_folder(), registry=registry).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_llama_3_scaling_and_mistral_are_read(registry: Registry, write_folder: WriteFolder) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    source = tiny_llama(rope_parameters={"rope_theta": 500.0, **scaling})
    assert_same_logits(load_model(write_folder(source), registry=registry), source)
    older = write_folder(
        source, name="older", config={"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": scaling}
    )
    assert_same_logits(load_model(older, registry=registry), source)
    mistral = write_folder(name="mistral", config={"model_type": "mistral", "sliding_window": 64})
    assert_same_logits(load_model(mistral, registry=registry), tiny_llama())


def test_the_dtype_is_the_weights_and_memories_stay_float32(
    registry: Registry, write_folder: WriteFolder
) -> None:
    model = load_model(write_folder(), dtype=torch.bfloat16, registry=registry).model
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".memory." in name else torch.bfloat16), name
    assert torch.isfinite(logits(model)).all()


def test_a_random_start_is_the_same_every_time_and_disturbs_no_generator(
    registry: Registry, write_folder: WriteFolder
) -> None:
    folder = write_folder()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (load_model(folder, registry=registry).model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert any(".memory." in name for name in first)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_window_is_bounded_by_what_the_base_was_trained_for(
    registry: Registry, write_folder: WriteFolder
) -> None:
    config = load_model(write_folder(), registry=registry).model.config
    assert (config.window, config.segment) == (512, 256)


def test_window_and_segment_can_be_chosen_and_change_the_fingerprint(
    registry: Registry, write_folder: WriteFolder
) -> None:
    folder = write_folder()
    plain = load_model(folder, registry=registry)
    other = load_model(folder, window=64, registry=registry)
    assert (other.model.config.window, other.model.config.segment) == (64, 64)
    third = load_model(folder, window=64, segment=32, registry=registry)
    assert third.model.config.segment == 32
    assert len({plain.fingerprint, other.fingerprint, third.fingerprint}) == 3
    with pytest.raises(ConfigError, match="segment is 128 and window 64"):
        load_model(folder, window=64, segment=128, registry=registry)


def test_fingerprints_are_stable_follow_the_weights_and_not_the_place(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder()
    first = load_model(folder, registry=registry).fingerprint
    assert load_model(folder, dtype=torch.bfloat16, registry=registry).fingerprint == first
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert load_model(moved, registry=registry).fingerprint == first
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, moved / "model.safetensors")
    assert load_model(moved, registry=registry).fingerprint != first


def test_progress_counts_every_tensor(registry: Registry, write_folder: WriteFolder) -> None:
    seen: list[tuple[int, int]] = []
    load_model(write_folder(), registry=registry, on_progress=lambda done, total: seen.append((done, total)))
    total = seen[0][1]
    assert seen == [(done, total) for done in range(1, total + 1)]


# Refused, by name


Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Q: None}, rf"lacks 1 tensors .*{Q} \[64, 64\]"),
        ({Q: torch.zeros(64, 32)}, rf"'{Q}' of shape \[64, 32\], but the configuration says \[64, 64\]"),
        (
            {"model.layers.7.mlp.up_proj.weight": torch.zeros(3, 2)},
            r"7.mlp.up_proj.weight' of .*\[3, 2\], for which",
        ),
        ({Q: torch.full((64, 64), torch.nan)}, rf"4,096 of 4,096 weights in tensor '{Q}' that are NaN"),
        ({NORM: torch.tensor([torch.inf] + [0.0] * 63)}, f"1 of 64 weights in tensor '{NORM}'"),
        ({"lm_head.weight": torch.zeros(267, 64)}, "tied, but 'lm_head.weight' differs"),
    ],
    ids=["missing", "shape", "extra", "nan", "inf", "tied"],
)
def test_wrong_tensors_are_refused_by_name_and_shape(
    registry: Registry, write_folder: WriteFolder, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelFileError, match=words):
        load_model(write_folder(changes=changes), registry=registry)


def test_what_holds_nothing_to_read_and_a_tied_copy_are_accepted(
    registry: Registry, write_folder: WriteFolder
) -> None:
    source = tiny_llama()
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": source.model.embed_tokens.weight.detach().clone(),
    }
    assert_same_logits(load_model(write_folder(source, changes=extra), registry=registry), source)


def test_a_tensor_in_two_shards_is_refused(registry: Registry, write_folder: WriteFolder) -> None:
    folder = write_folder(shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    save_file({**load_file(second), **load_file(first)}, second)
    with pytest.raises(ModelFileError, match="a second time"):
        load_model(folder, registry=registry)


def test_missing_and_truncated_shards_are_refused_by_name(
    registry: Registry, write_folder: WriteFolder
) -> None:
    folder = write_folder(shards=2)
    second = sorted(folder.glob("*.safetensors"))[1]
    whole = second.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        second.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=f"{second.name} is truncated or altered"):
            load_model(folder, registry=registry)
    second.unlink()
    with pytest.raises(ModelFileError, match=f"lacks {second.name}"):
        load_model(folder, registry=registry)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_and_never_opened(
    registry: Registry, write_folder: WriteFolder, name: str, tmp_path: Path
) -> None:
    folder = write_folder()
    (folder / "model.safetensors").unlink()
    witness = tmp_path / "was-run"
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(witness).encode() + b"'\ntR.")
    for ref in (folder, folder / name):
        with pytest.raises(UnsupportedModelError, match=f"{name} is a pickle checkpoint"):
            load_model(ref, registry=registry)
    assert not witness.exists()


def test_an_index_cannot_lead_out_of_its_folder(registry: Registry, write_folder: WriteFolder) -> None:
    folder = write_folder(shards=2)
    index = folder / "model.safetensors.index.json"
    for name, error in (("../x.safetensors", ModelFileError), ("x.bin", UnsupportedModelError)):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(error):
            load_model(folder, registry=registry)


def test_whole_numbers_and_quantized_folders_are_refused(
    registry: Registry, write_folder: WriteFolder
) -> None:
    with pytest.raises(UnsupportedModelError, match="has type I8"):
        load_model(
            write_folder(changes={Q: torch.zeros(64, 64, dtype=torch.int8)}),
            registry=registry,
        )
    quantized = write_folder(name="awq", config={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(UnsupportedModelError, match="quantized weights .*awq"):
        load_model(quantized, registry=registry)


def test_another_family_is_refused_with_the_known_ones(registry: Registry, write_folder: WriteFolder) -> None:
    with pytest.raises(UnsupportedModelError, match="type 'mamba'; supported are gemma, .*llama, mistral"):
        load_model(write_folder(config={"model_type": "mamba"}), registry=registry)
    with pytest.raises(ModelFileError, match="says hidden_size = None, expected a whole number"):
        load_model(write_folder(name="b", config={"hidden_size": None}), registry=registry)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModelError),
        ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, ConfigError),
        ({"rope_parameters": {"rope_theta": [1]}}, ModelFileError),
        ({"rope_parameters": 5}, ModelFileError),
        ({"hidden_act": "no-such"}, ConfigError),
        ({"num_hidden_layers": 10**30}, ModelFileError),
        ({"num_attention_heads": True}, ModelFileError),
        ({"num_key_value_heads": 3}, ConfigError),
        ({"tie_word_embeddings": "yes"}, ModelFileError),
        ({"rms_norm_eps": None}, None),
        ({"eos_token_id": [2, 3]}, None),
    ],
    ids=str,
)
def test_values_of_a_wrong_type_or_size_are_refused_by_the_loader(
    registry: Registry, write_folder: WriteFolder, config: dict[str, Any], error: type[Exception] | None
) -> None:
    folder = write_folder(config=config)
    if error is None:
        load_model(folder, registry=registry)
    else:
        with pytest.raises(error):
            load_model(folder, registry=registry)


def test_a_vocabulary_that_is_too_large_is_refused(registry: Registry, write_folder: WriteFolder) -> None:
    folder = write_folder()
    definition = byte_tokenizer_json()
    definition["model"]["vocab"]["surplus"] = len(definition["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ModelFileError, match="tokenizer of 268 tokens but embeddings for 267"):
        load_model(folder, registry=registry)


def test_padding_rows_behind_the_vocabulary_are_fine(registry: Registry, write_folder: WriteFolder) -> None:
    loaded = load_model(write_folder(tiny_llama(vocab_size=320)), registry=registry)
    assert loaded.tokenizer.vocab_size == 267
    assert loaded.tokenizer.token_bytes(319) == b""


def test_a_truncated_gguf_is_refused_although_its_checksum_was_remembered(
    registry: Registry, write_gguf: WriteGguf
) -> None:
    path = write_gguf()
    load_model(path, registry=registry)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match="tiny.gguf is truncated: tensor"):
        load_model(path, registry=registry)


# Checkpoints made here


Made = Callable[..., Path]


@pytest.fixture
def made(registry: Registry, write_folder: WriteFolder, tmp_path: Path) -> Made:
    """A checkpoint folder with a memory of random weights, on a tiny folder."""

    def make(**changes: Any) -> Path:
        base = write_folder()
        out = retrofit(base, tmp_path / "made", registry=registry, window=64, segment=16)
        loaded = load_model(out, registry=registry)
        torch.manual_seed(3)
        memory = {
            name: torch.randn_like(tensor) * 0.1
            for name, tensor in loaded.model.state_dict().items()
            if ".memory." in name
        }
        loaded.model.config.memory_trained = True
        write_checkpoint(out, loaded.model.config, memory={**memory, **changes})
        return out

    return make


def test_trained_parts_come_back_bit_for_bit(made: Made, registry: Registry) -> None:
    out = made()
    stored = load_file(out / "memory.safetensors")
    loaded = load_model(out, dtype=torch.bfloat16, registry=registry)
    assert loaded.trained
    assert stored
    state = loaded.model.state_dict()
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor), name


def unpin(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "files": {}}))


def test_an_altered_memory_is_refused_and_another_one_has_another_fingerprint(
    made: Made, registry: Registry
) -> None:
    out = made()
    first = load_model(out, registry=registry).fingerprint
    file = out / "memory.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="memory.safetensors is altered: its SHA-256"):
        load_model(out, registry=registry)
    assert any("memory.safetensors is altered" in problem for problem in registry.verify(out))
    unpin(out)
    assert load_model(out, registry=registry).fingerprint != first


def test_a_trained_memory_that_is_missing_or_wrong_is_refused(made: Made, registry: Registry) -> None:
    out = made()
    unpin(out)
    stored = load_file(out / "memory.safetensors")
    name = next(iter(stored))
    fewer = {key: value for key, value in stored.items() if key != name}
    for wrong, words in (
        (fewer, f"memory.safetensors lacks 1 .*{name}"),
        ({**stored, "model.layers.0.memory.surplus": torch.zeros(2)}, "memory.surplus"),
        ({**stored, name: stored[name] * torch.nan}, f"{name}.*NaN"),
    ):
        save_file(wrong, out / "memory.safetensors")
        with pytest.raises(ModelFileError, match=words):
            load_model(out, registry=registry)
    (out / "memory.safetensors").unlink()
    with pytest.raises(ModelFileError, match="memory is trained, but memory.safetensors is missing"):
        load_model(out, registry=registry)
    assert any("memory.safetensors is missing" in problem for problem in registry.verify(out))


def test_a_checkpoint_whose_configuration_is_not_its_bases_is_refused(made: Made, registry: Registry) -> None:
    out = made()
    config = json.loads((out / "config.json").read_text())
    for key, value in (("rms_norm_eps", 0.5), ("infini_rope", {"theta": 7.0, "scaling": None})):
        (out / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ConfigError, match=f"says {key} = "):
            load_model(out, registry=registry)


def test_a_base_that_changed_or_went_away_is_refused(made: Made, registry: Registry, tmp_path: Path) -> None:
    out = made()
    weights = tmp_path / "tiny-llama" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(ModelFileError, match="model.safetensors is altered: its SHA-256"):
        load_model(out, registry=registry)
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match="no model.safetensors any more"):
        load_model(out, registry=registry)
    assert not registry.entry(out).installed


def test_a_model_saved_by_transformers_loads_with_its_memory(
    made: Made, registry: Registry, tmp_path: Path
) -> None:
    source = load_model(made(), registry=registry)
    complete = tmp_path / "complete"
    source.model.save_pretrained(complete)
    source.tokenizer.as_transformers().save_pretrained(complete)
    loaded = load_model(complete, registry=registry)
    assert loaded.trained
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.tokenizer.encode("low 12 <|im_end|>") == source.tokenizer.encode("low 12 <|im_end|>")


def test_a_complete_checkpoint_without_its_trained_memory_is_refused(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    out = retrofit(write_folder(), tmp_path / "out", copy=True, registry=registry)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "memory_trained": True}))
    with pytest.raises(ModelFileError, match=r"lacks \d+ tensors .*\.memory\."):
        load_model(out, registry=registry)


def test_loading_needs_no_accelerate(write_folder: WriteFolder) -> None:
    code = (
        "import sys\nsys.modules['accelerate'] = None\n"
        "from infinichat.model.loading import load_model\nload_model(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(write_folder())], check=True)


@pytest.mark.real
def test_with_an_empty_memory_the_default_checkpoint_has_transformers_logits(
    base_weights: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(base_weights))
    loaded = load_model("smollm2-135m-infini", registry=Registry(paths))
    assert loaded.chat_format == "chatml"
    ids = torch.tensor([loaded.tokenizer.encode("The capital of France is Paris, and 12 + 30 = 42.")])
    with torch.no_grad():
        ours, theirs = loaded.model(ids).logits, loaded_by_transformers(base_weights)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.real
def test_the_default_checkpoint_is_ready_in_three_seconds_of_one_core(
    base_weights: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(base_weights))
    # Processor time, so that what else the machine does is not counted.
    began = time.process_time()
    load_model("smollm2-135m-infini", registry=Registry(paths))
    assert time.process_time() - began < 3


def test_kinds_of_weights_change_the_numbers_little(registry: Registry, write_gguf: WriteGguf) -> None:
    exact = dict(gguf_tensors(read_gguf_header(write_gguf(name="a.gguf")), dtype=torch.float32))
    loaded = load_model(write_gguf(kind=Kind.Q8_0, name="b.gguf"), registry=registry)
    for name, tensor in loaded.model.state_dict().items():
        if name in exact:
            assert (tensor - exact[name]).abs().max() < 0.02, name
