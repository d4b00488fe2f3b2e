"""What a configuration keeps, derives and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from infinichat.attention.window import inverse_frequencies
from infinichat.errors import ConfigError, UnsupportedModelError
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.rope import scaled_frequencies
from tests.model.tiny_infini import tiny_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_every_field_survives_saving(tmp_path: Path) -> None:
    config = tiny_config(
        rope_theta=12345.0,
        rope_scaling=LLAMA3,
        memory="delta",
        memory_layers=[1],
        memory_gate_taps=2,
        memory_order=2,
        family="qwen2",
        chat_format="llama3",
        base={"file": "x.gguf", "sha256": "0" * 64, "size": 7},
        tie_word_embeddings=False,
        attention_bias=True,
    )
    config.save_pretrained(tmp_path)
    loaded = InfiniConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.infini_rope == {"theta": 12345.0, "scaling": LLAMA3}
    assert loaded.differs_in_state(config) is None
    assert not loaded.tie_word_embeddings


def test_smollm2_s_shape_gives_the_recall_memory_of_the_design() -> None:
    """9 heads x 384 x 64 float32 = 0.88 MB a layer."""
    config = InfiniConfig(num_key_value_heads=3)
    assert (config.memory_heads, config.memory_features, config.memory_value_dim) == (9, 384, 64)
    assert (config.head_dim, config.memory_trained, config.memory_layers) == (64, False, [])


def test_hidden_sizes_that_heads_do_not_divide_store_values_whole() -> None:
    config = tiny_config(hidden_size=36, head_dim=16)
    assert (config.memory_heads, config.memory_value_dim) == (1, 36)


def test_the_paper_s_memory_has_features_as_wide_as_a_head() -> None:
    assert tiny_config(memory="linear").memory_features == 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 0}, "window is 0 and segment 4; both must be at least 1"),
        ({"segment": 0}, "segment 0"),
        ({"segment": 13}, "segment is 13 and window 12"),
        ({"window": 12.5}, "window is 12.5; it must be a whole number"),
        ({"segment": True}, "segment is True; it must be a whole number"),
        ({"sinks": 5}, r"sinks is 5; it must be 0 to segment \(4\)"),
        ({"sinks": -1}, "sinks is -1"),
        ({"memory": "compressive"}, "memory is 'compressive'; valid are .*recall, linear, delta"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"num_key_value_heads": 8}, "4 attention heads cannot share 8"),
        ({"head_dim": 7}, "head_dim is 7; rotary embeddings need an even number"),
        ({"memory_layers": [2]}, r"memory_layers is \[2\]; expected different layers from 0 to 1"),
        ({"memory_layers": [-1]}, r"memory_layers is \[-1\]"),
        ({"memory_layers": [1, 1]}, r"memory_layers is \[1, 1\]"),
        ({"memory_gate_taps": 6}, "memory_gate_taps is 6; it must be 1 to 5"),
        ({"memory_gate_taps": 0}, "memory_gate_taps is 0"),
        ({"memory_order": 0}, "memory_order 0; both must be at least 1"),
        ({"memory_key_dim": 0}, "memory_key_dim is 0"),
    ],
    ids=str,
)
def test_values_that_cannot_work_together_are_refused_with_what_was_got(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_config(**changes)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
def test_every_allowed_number_of_gate_taps_runs(taps: int) -> None:
    from tests.model.tiny_infini import some_ids, tiny_model

    with torch.no_grad():
        assert bool(tiny_model(memory_gate_taps=taps)(some_ids(30)).logits.isfinite().all())


def test_configurations_name_the_first_field_in_which_their_states_differ() -> None:
    assert tiny_config().differs_in_state(tiny_config(rms_norm_eps=1e-6, family="other")) is None
    assert tiny_config().differs_in_state(tiny_config(memory_layers=[0])) == "memory_layers"
    assert tiny_config().differs_in_state(tiny_config(rope_theta=1.0)) == "infini_rope"


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "default"}, {"type": "linear", "factor": 4.0}, LLAMA3], ids=str
)
def test_scaled_frequencies_are_transformers(scaling: dict[str, Any] | None) -> None:
    kind = "default" if scaling is None else scaling.get("rope_type", scaling.get("type"))
    parameters = {**(scaling or {}), "rope_type": kind, "rope_theta": 500_000.0}
    parameters.pop("type", None)
    llama = LlamaConfig(
        hidden_size=64, num_attention_heads=1, max_position_embeddings=8192 * 8, rope_parameters=parameters
    )
    theirs = LlamaRotaryEmbedding(llama).inv_freq
    ours = scaled_frequencies(inverse_frequencies(64, 500_000.0), scaling)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-6, atol=0)


def test_unknown_scalings_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UnsupportedModelError, match="'yarn'; supported are default, linear, llama3, longrope"
    ):
        scaled_frequencies(inverse_frequencies(64, 1e4), {"rope_type": "yarn", "factor": 2.0})
