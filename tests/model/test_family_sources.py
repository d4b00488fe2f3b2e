"""What a family's configuration and tokenizer may say: older spellings, variants that are refused with a
sentence, and the chat format that comes with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infinichat.bench.peer_transformers import llama_of
from infinichat.chat_format import chat_format
from infinichat.errors import ConfigError, ModelFileError, UnsupportedModelError, UsageError
from infinichat.model.card import parameters_of
from infinichat.model.checkpoint import config_json
from infinichat.model.configuration_infini import FEATURES, InfiniConfig
from infinichat.model.loading import load_model
from infinichat.model.registry import Registry
from infinichat.model.retrofit import retrofit
from infinichat.paths import Paths
from infinichat.training.prepare import memory_of

from .conftest import CONTROL, byte_tokenizer_json
from .tiny_families import VARIANTS, family_ids, save_family, tiny_family

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


def edited(**changes: Any) -> Edit:
    """Set these keys, or take away those that are None."""

    def edit(config: dict[str, Any]) -> None:
        config.update(changes)
        for key, value in changes.items():
            if value is None:
                del config[key]

    return edit


OLD_ROPE: dict[str, Any] = {"rope_parameters": None, "rope_theta": 10_000.0}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 9.0]}


@pytest.mark.parametrize(
    ("variant", "changes", "edit"),
    [
        ("mistral", {}, edited(**OLD_ROPE)),
        ("qwen2", {}, edited(**OLD_ROPE, layer_types=None, sliding_window=9, max_window_layers=2)),
        ("qwen2.5-sliding", {}, edited(**OLD_ROPE, layer_types=None)),
        (
            "qwen2-moe",
            {"use_sliding_window": True, "sliding_window": 8},
            edited(layer_types=None, qkv_bias=None),
        ),
        ("gemma", {}, edited(**OLD_ROPE, hidden_act="gelu", tie_word_embeddings=None)),
        (
            "gemma2",
            {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            edited(
                **OLD_ROPE,
                layer_types=None,
                hidden_act="gelu",
                query_pre_attn_scalar=None,
                attn_logit_softcapping=None,
                final_logit_softcapping=None,
            ),
        ),
        (
            "gemma3",
            {"num_hidden_layers": 7, "layer_types": None},
            edited(
                rope_parameters=None,
                rope_theta=1_000_000,
                rope_local_base_freq=10_000,
                rope_scaling={"rope_type": "linear", "factor": 8.0},
                sliding_window_pattern=6,
                layer_types=None,
                tie_word_embeddings=None,
            ),
        ),
        ("phi3", {}, edited(**OLD_ROPE)),
        (
            "phi3-longrope",
            {},
            edited(**OLD_ROPE, rope_scaling={"type": "su", **LONG}, partial_rotary_factor=0.75),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@torch.no_grad()
def test_configurations_in_older_spellings_mean_the_same(
    registry: Registry, tmp_path: Path, variant: str, changes: dict[str, Any], edit: Edit
) -> None:
    base, ids = tiny_family(variant, **changes), family_ids(64)
    folder = save_family(base, tmp_path / "base", edit=edit)
    loaded = load_model(folder, registry=registry, window=64)
    torch.testing.assert_close(loaded.model(ids).logits, base(ids).logits, rtol=1e-5, atol=2e-5)


def set_rope(**changes: Any) -> Edit:
    return lambda config: config["rope_parameters"].update(changes)


@pytest.mark.parametrize(
    ("variant", "edit", "error", "words"),
    [
        ("qwen3", edited(quantization_config={"bits": 4}), UnsupportedModelError, "quantized weights"),
        ("gemma2", edited(quantization_config={"bits": 4}), UnsupportedModelError, "quantized weights"),
        (
            "qwen2",
            set_rope(rope_type="dynamic", factor=4.0),
            UnsupportedModelError,
            "'dynamic'; supported are default, linear, llama3, longrope",
        ),
        ("qwen3", set_rope(rope_type="yarn", factor=4.0), UnsupportedModelError, "'yarn'; supported are"),
        ("gemma", edited(use_bidirectional_attention=True), UnsupportedModelError, "both directions"),
        ("gemma3", edited(use_bidirectional_attention=True), UnsupportedModelError, "both directions"),
        (
            "gemma3",
            edited(layer_types=["chunked_attention"] * 4),
            ConfigError,
            "layer_types is .*chunked_attention.*full_attention, sliding_attention",
        ),
        ("gemma3", edited(layer_types=["full_attention"]), ModelFileError, "kinds of 4 layers"),
        ("gemma3", edited(layer_types=7), ModelFileError, "layer_types = 7, expected a list"),
        ("gemma2", edited(sliding_window=-1), ModelFileError, "sliding_window = -1"),
        ("gemma2", edited(attn_logit_softcapping=0.0), ModelFileError, "attn_logit_softcapping = 0.0"),
        ("qwen2-moe", edited(num_experts_per_tok=99), ConfigError, "num_experts_per_tok 99"),
        ("qwen2-moe", edited(decoder_sparse_step=0), ModelFileError, "decoder_sparse_step = 0"),
        ("qwen2-moe", edited(mlp_only_layers="all"), ModelFileError, "mlp_only_layers = 'all'"),
        ("qwen2-moe", edited(num_experts=7), ModelFileError, "mlp.gate.weight.*configuration says .7, 64"),
        ("phi3-longrope", set_rope(short_factor="x"), ModelFileError, "short_factor = 'x'"),
        ("phi3-longrope", set_rope(short_factor=[1.0]), UnsupportedModelError, "1 factors; expected 6"),
        ("phi3", edited(num_key_value_heads=2), ModelFileError, "qkv_proj.weight.*no place"),
        ("qwen2", edited(model_type="llama"), ModelFileError, "_proj.bias.*no place"),
    ],
)
def test_what_is_not_supported_is_refused_with_a_sentence(
    registry: Registry, tmp_path: Path, variant: str, edit: Edit, error: type[Exception], words: str
) -> None:
    folder = save_family(tiny_family(variant), tmp_path / "base", edit=edit)
    with pytest.raises(error, match=words) as caught:
        load_model(folder, registry=registry)
    assert str(caught.value).endswith(".")


def test_a_gemma_that_sees_images_is_refused_by_what_it_is(registry: Registry, tmp_path: Path) -> None:
    def multimodal(config: dict[str, Any]) -> None:
        text = dict(config)
        config.clear()
        config.update({"model_type": "gemma3", "text_config": text, "vision_config": {}})

    folder = save_family(tiny_family("gemma3"), tmp_path / "base", edit=multimodal)
    with pytest.raises(UnsupportedModelError, match="'gemma3', which sees images; .*'gemma3_text'.*GGUF"):
        load_model(folder, registry=registry)


def test_an_unknown_type_is_refused_with_the_known_ones(registry: Registry, tmp_path: Path) -> None:
    folder = save_family(tiny_family("llama1"), tmp_path / "base", edit=edited(model_type="mamba"))
    with pytest.raises(UnsupportedModelError, match="'mamba'; supported are gemma, gemma2, gemma3_text, lla"):
        load_model(folder, registry=registry)


def with_token(folder: Path, token: str, token_id: int) -> None:
    definition = byte_tokenizer_json()
    definition["added_tokens"].append({**definition["added_tokens"][0], "content": token, "id": token_id})
    (folder / "tokenizer.json").write_text(json.dumps(definition))


def test_a_token_for_images_needs_no_embedding_in_a_text_model(registry: Registry, tmp_path: Path) -> None:
    base = tiny_family("gemma3")
    folder = save_family(base, tmp_path / "base")
    with_token(folder, "<image_soft_token>", base.config.vocab_size)
    assert load_model(folder, registry=registry).parameters > 0
    with_token(folder, "<other_token>", base.config.vocab_size)
    with pytest.raises(ModelFileError, match="belong to different models"):
        load_model(folder, registry=registry)


@pytest.mark.parametrize(
    ("variant", "control", "template", "expected"),
    [
        ("smollm2", CONTROL, "You are a helpful AI assistant named SmolLM", "chatml"),
        (
            "llama3",
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "",
            "llama3",
        ),
        ("llama1", ("<s>", "</s>"), "{{ '[INST] <<SYS>>\\n' }}", "llama2"),
        ("mistral", ("<s>", "</s>", "[INST]", "[/INST]"), "{{ '[INST]' }}", "mistral"),
        ("qwen2", CONTROL, "system\\nYou are a helpful assistant.<|im_end|>", "qwen2"),
        ("qwen2-moe", CONTROL, "system\\nYou are a helpful assistant.<|im_end|>", "qwen2"),
        ("qwen2.5-sliding", CONTROL, "You are Qwen, created by Alibaba Cloud.", "qwen"),
        ("qwen3", (*CONTROL, "<think>", "</think>"), "{%- if enable_thinking is false %}", "qwen3-hybrid"),
        ("qwen3-biased", (*CONTROL, "<think>", "</think>"), "{{- '<|im_start|>' }}", "qwen3"),
        ("gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "", "gemma"),
        ("gemma2", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "", "gemma"),
        ("gemma3", ("<bos>", "<start_of_turn>", "<end_of_turn>"), "", "gemma"),
        ("phi3", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "", "phi3"),
    ],
)
def test_a_family_s_chat_format_comes_from_its_tokenizer(
    registry: Registry, tmp_path: Path, variant: str, control: tuple[str, ...], template: str, expected: str
) -> None:
    base = tiny_family(variant, vocab_size=300)
    folder = save_family(base, tmp_path / "base")
    definition = byte_tokenizer_json()
    first = definition["added_tokens"][0]
    for token in CONTROL:
        definition["model"]["vocab"].pop(token)
    definition["model"]["unk_token"] = None
    definition["added_tokens"] = [
        {**first, "content": token, "id": 280 + at} for at, token in enumerate(control)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    loaded = load_model(folder, registry=registry)
    assert loaded.chat_format == expected
    chat = chat_format(loaded.tokenizer, loaded.chat_format)
    turn = chat.encode_user("Hi", first=True, system="S").ids
    assert len([token for token in turn if token >= 280]) >= 1
    assert chat.end_ids


def test_a_plain_llama_s_configuration_knows_nothing_of_other_families(tmp_path: Path) -> None:
    """Every feature has its plain value as default, and a saved configuration leaves it out."""
    plain = InfiniConfig()
    assert plain.features == ()
    assert {name: getattr(plain, name) for name in FEATURES} == FEATURES
    assert not set(FEATURES) & set(json.loads(config_json(plain, tmp_path)))
    other = InfiniConfig(use_qk_norm=True, sliding_window=8)
    assert other.features == ("use_qk_norm", "sliding_window")
    assert set(FEATURES) & set(json.loads(config_json(other, tmp_path))) == set(other.features)
    assert plain.infini_rope == {"theta": 10000.0, "scaling": None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_list_of_models_knows_about_how_many_weights_one_has(variant: str) -> None:
    model = tiny_family(variant)
    counted = parameters_of(json.loads(model.config.to_json_string(use_diff=False)))
    assert counted is not None
    assert counted == pytest.approx(sum(each.numel() for each in model.parameters()), rel=0.02)


def test_what_runs_llama_s_layers_by_hand_refuses_others(registry: Registry, tmp_path: Path) -> None:
    folder = save_family(tiny_family("qwen3"), tmp_path / "base")
    made = retrofit(folder, tmp_path / "out", memory="bank", memory_layers=[1], registry=registry)
    with pytest.raises(UsageError, match=r"family 'qwen3', with use_qk_norm; these stages.*SmolLM2"):
        memory_of(load_model(made, registry=registry))
    with pytest.raises(UsageError, match=r"family 'qwen3'; transformers is compared"):
        llama_of(str(folder), torch.float32)
