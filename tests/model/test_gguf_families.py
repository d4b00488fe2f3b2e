"""GGUF files of every architecture, written by gguf's own writer and table of names, as llama.cpp's converter
writes them: the model in the file is the transformers model that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.constants import GGMLQuantizationType as Kind
from torch import Tensor

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf_config import gguf_config
from infinichat.model.gguf_file import GgufFile, GgufTensor, read_gguf_header
from infinichat.model.loading import load_model
from infinichat.model.registry import Registry
from infinichat.model.retrofit import retrofit
from infinichat.model.stored import stored
from infinichat.paths import Paths

from .conftest import CONTROL, MERGES, byte_vocabulary, interleaved
from .tiny_families import GEMMA3_ROPE, LONGROPE, family_ids, tiny_family

# The converter's rules: what it writes besides the common keys, and what llama.cpp takes from the model's
# size, so that the models here must agree with it (a head's width as the scale of queries, five sliding
# layers to a full one).
ARCHITECTURES: dict[str, tuple[MODEL_ARCH, str, dict[str, Any], dict[str, Any]]] = {
    "llama": (MODEL_ARCH.LLAMA, "llama-biased", {}, {}),
    "qwen2": (MODEL_ARCH.QWEN2, "qwen2", {}, {}),
    "qwen3": (MODEL_ARCH.QWEN3, "qwen3", {}, {}),
    "qwen2moe": (
        MODEL_ARCH.QWEN2MOE,
        "qwen2-moe",
        {"norm_topk_prob": False},
        {"expert_count": 6, "expert_used_count": 2},
    ),
    "gemma": (MODEL_ARCH.GEMMA, "gemma", {}, {}),
    "gemma2": (
        MODEL_ARCH.GEMMA2,
        "gemma2",
        {"query_pre_attn_scalar": 32},
        {"attention.sliding_window": 8, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        MODEL_ARCH.GEMMA3,
        "gemma3",
        {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "layer_types": None},
        {
            "attention.sliding_window": 8,
            "rope.freq_base": GEMMA3_ROPE["full_attention"]["rope_theta"],
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    "phi3": (MODEL_ARCH.PHI3, "phi3", {}, {"attention.sliding_window": 24}),
    "phi3-longrope": (
        MODEL_ARCH.PHI3,
        "phi3-longrope",
        {},
        {
            "rope.dimension_count": 12,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": (1 + np.log(2) / np.log(128)) ** 0.5,
        },
    ),
}
architectures = pytest.mark.parametrize("name", ARCHITECTURES)


def weights_of(model: Any) -> dict[str, Tensor]:
    """The weights under the names that a checkpoint on disk has, experts one by one."""
    state = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def as_converted(arch: MODEL_ARCH, model: Any) -> dict[str, Tensor]:
    """The converter's tensors by their GGUF names."""
    config = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def name_of(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found

    out: dict[str, Tensor] = {}
    for name, tensor in weights_of(model).items():
        if ".experts.gate_up_proj" in name:
            # transformers keeps gate and up of all experts in one tensor in memory, the converter in two.
            gate, up = tensor.chunk(2, dim=1)
            stem = name.removesuffix("gate_up_proj")
            out[name_of(f"{stem}gate_proj.weight")] = gate
            out[name_of(f"{stem}up_proj.weight")] = up
            continue
        if ".experts.down_proj" in name:
            name += ".weight"
        if arch == MODEL_ARCH.LLAMA and ".q_proj." in name:
            tensor = interleaved(tensor, config.num_attention_heads)
        if arch == MODEL_ARCH.LLAMA and ".k_proj." in name:
            tensor = interleaved(tensor, config.num_key_value_heads)
        if MODEL_ARCH_NAMES[arch].startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if name.endswith("shared_expert_gate.weight"):
            tensor = tensor.squeeze()
        out[name_of(name)] = tensor
    if getattr(config, "rope_parameters", {}).get("rope_type") == "longrope":
        out["rope_factors_short.weight"] = torch.tensor(LONGROPE["short_factor"])
        out["rope_factors_long.weight"] = torch.tensor(LONGROPE["long_factor"])
    return out


Write = Callable[..., tuple[Path, Any]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A GGUF of an architecture, and the transformers model in it."""

    def written(name: str, *, kind: Kind = Kind.F32, keys: dict[str, Any] | None = None) -> tuple[Path, Any]:
        arch, variant, changes, own = ARCHITECTURES[name]
        model = tiny_family(variant, **changes)
        config, prefix = model.config, MODEL_ARCH_NAMES[arch]
        path = tmp_path / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, prefix)
        head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
        common = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": 10000.0,
        }
        for key, value in {**common, **own, **(keys or {})}.items():
            if isinstance(value, str):
                writer.add_string(f"{prefix}.{key}", value)
            elif isinstance(value, list):
                writer.add_array(f"{prefix}.{key}", value)
            elif isinstance(value, int):
                writer.add_uint32(f"{prefix}.{key}", value)
            else:
                writer.add_float32(f"{prefix}.{key}", value)
        tokens = byte_vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in CONTROL else 1 for token in tokens])
        writer.add_token_merges([f"{left} {right}" for left, right in MERGES])
        writer.add_eos_token_id(2)
        for tensor_name, tensor in as_converted(arch, model).items():
            data = np.ascontiguousarray(tensor.float().numpy())
            actual = kind if data.ndim >= 2 else Kind.F32
            writer.add_tensor(tensor_name, quants.quantize(data, actual), raw_dtype=actual)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, model

    return written


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    out: Tensor = model(ids).logits
    return out


@architectures
def test_the_model_in_a_gguf_is_the_one_it_was_made_from(write: Write, registry: Registry, name: str) -> None:
    path, base = write(name)
    loaded, ids = load_model(path, registry=registry, window=64), family_ids(64)
    torch.testing.assert_close(logits(loaded.model, ids), logits(base, ids), rtol=1e-4, atol=5e-5)


@architectures
def test_a_retrofitted_gguf_is_the_same(write: Write, registry: Registry, tmp_path: Path, name: str) -> None:
    path, base = write(name)
    out = retrofit(path, tmp_path / "out", registry=registry, window=64, segment=16)
    loaded, ids = load_model(out, registry=registry), family_ids(64)
    torch.testing.assert_close(logits(loaded.model, ids), logits(base, ids), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("name", ["qwen2moe", "gemma3", "phi3"])
def test_quantized_tensors_are_taken_apart_as_plain_ones(write: Write, registry: Registry, name: str) -> None:
    path, base = write(name, kind=Kind.Q8_0)
    loaded, ids = load_model(path, registry=registry, window=64), family_ids(64)
    got, want = logits(loaded.model, ids), logits(base, ids)
    assert 0 < float((got - want).norm() / want.norm()) < 0.1


def test_layers_that_slide_can_be_a_list_or_every_so_many(write: Write) -> None:
    kinds = [True, False] * 3 + [True]
    for pattern, expected in (
        (kinds, ["sliding_attention" if one else "full_attention" for one in kinds]),
        (3, 3),
    ):
        path, _ = write("gemma3", keys={"attention.sliding_window_pattern": pattern})
        config = gguf_config(read_gguf_header(path))
        assert config.get("layer_types", config.get("sliding_window_pattern")) == expected


def test_the_largest_gemmas_scale_queries_by_another_width(tmp_path: Path) -> None:
    """Their numbers of layers are how llama.cpp knows them."""
    for name, layers, hidden, heads, head_dim, expected in (
        ("gemma2", 46, 4608, 32, 128, 144),
        ("gemma2", 42, 3584, 16, 256, 256),
        ("gemma3", 62, 5376, 32, 128, 168),
        ("gemma3", 26, 1152, 4, 256, 256),
    ):
        keys = {
            "block_count": layers,
            "context_length": 8192,
            "embedding_length": hidden,
            "feed_forward_length": 4 * hidden,
            "attention.head_count": heads,
            "attention.head_count_kv": heads,
            "attention.key_length": head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
        }
        metadata = {"general.architecture": name, **{f"{name}.{key}": keys[key] for key in keys}}
        table = {"token_embd.weight": GgufTensor("token_embd.weight", (100, hidden), 0, 0)}
        config = gguf_config(GgufFile(tmp_path / "x.gguf", 0, 0, metadata, table))
        assert config["query_pre_attn_scalar"] == expected


def test_what_an_architecture_does_not_have_is_refused_by_name(write: Write, registry: Registry) -> None:
    for name, keys, words in (
        ("qwen3", {"attention.value_length": 16}, "keys of 32 and values of 16"),
        ("qwen3", {"rope.dimension_count": 16}, "rotates 16 of 32"),
        ("qwen2", {"expert_count": 4}, "qwen2.expert_count = 4, expected 0"),
        ("qwen2", {"rope.scaling.type": "yarn"}, "'yarn'; none, linear, Llama 3's and LongRoPE"),
    ):
        path, _ = write(name, keys=keys)
        with pytest.raises(UnsupportedModelError, match=words):
            gguf_config(read_gguf_header(path))
    path, _ = write("phi3-longrope")
    file = read_gguf_header(path)
    del file.tensors["rope_factors_short.weight"]
    with pytest.raises(ModelFileError, match="no tensor 'rope_factors_short.weight'"):
        gguf_config(file)
    path, _ = write("qwen2moe")
    file = read_gguf_header(path)
    del file.tensors["blk.0.ffn_gate_exps.weight"]
    with pytest.raises(ModelFileError, match="blk.0.ffn_gate_exps.weight"):
        gguf_config(file)


@architectures
def test_loaded_without_transformers_and_in_blocks_it_is_the_same(
    write: Write, registry: Registry, name: str
) -> None:
    """Where blocks are not taken as they are, and where scales and caps would be lost with their modules."""
    if name == "phi3-longrope":
        return  # as phi3
    path, _ = write(name, kind=Kind.Q8_0)
    ids = family_ids(64)
    plain, light = (load_model(path, registry=registry, window=64, light=light) for light in (False, True))
    torch.testing.assert_close(logits(light.model, ids), logits(plain.model, ids), rtol=1e-4, atol=1e-4)
    assert light.parameters == plain.parameters
    assert bool(stored(light.model)) is (name in ("llama", "qwen2"))
