"""The transformer layer and what all three layers accept: names, order, keys, bad input."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from infinichat.layers import (
    CompressiveMemory,
    InfiniTransformer,
    MoDInfiniTransformer,
    RoPEEmbeddings,
    YaRNEmbeddings,
)

SIZES: dict[str, Any] = {"dim_input": 6, "dim_key": 4, "dim_value": 2, "num_heads": 4, "segment_len": 8}
LAYERS: dict[type, dict[str, Any]] = {
    CompressiveMemory: SIZES,
    InfiniTransformer: {**SIZES, "dim_hidden": 10, "activation": "gelu"},
    MoDInfiniTransformer: {**SIZES, "dim_hidden": 10, "activation": "gelu", "sampling_factor": 4},
}
all_layers = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)

ATTENTION_KEYS = {
    "proj_k.weight": (16, 6),
    "proj_v.weight": (8, 6),
    "proj_q.weight": (16, 6),
    "proj_out.weight": (6, 8),
    "betas": (1, 4, 1, 2),
}
LEARNED_KEYS = {"init_mem": (1, 4, 4, 2), "init_z": (1, 4, 4, 1)}
MLP_KEYS = {
    "mlp.0.weight": (10, 6),
    "mlp.0.bias": (10,),
    "mlp.3.weight": (6, 10),
    "mlp.3.bias": (6,),
    "layer_norm.weight": (6,),
    "layer_norm.bias": (6,),
}


def test_it_is_one_residual_around_attention_and_mlp_with_the_norm_after_it() -> None:
    layer = InfiniTransformer(6, 10, 4, 2, 4, "swiglu", 8, causal=True, dropout=0.5).eval()
    x = torch.randn(2, 19, 6)
    hidden = F.linear(layer.attn(x), layer.mlp[0].weight, layer.mlp[0].bias)  # type: ignore[arg-type]
    fed = F.linear(layer.mlp[2](hidden), layer.mlp[3].weight, layer.mlp[3].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(layer(x), F.layer_norm(x + fed, (6,)))


def test_dropout_is_in_the_mlp_while_training_only() -> None:
    layer = InfiniTransformer(6, 10, 4, 2, 4, "relu", 8, dropout=0.5)
    x = torch.randn(1, 9, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert [m.p for m in layer.mlp if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


@all_layers
@pytest.mark.parametrize("learned", [False, True])
def test_the_state_dict_has_the_original_s_keys_and_shapes(kind: type, learned: bool) -> None:
    attention = {**ATTENTION_KEYS, **(LEARNED_KEYS if learned else {})}
    expected: dict[str, tuple[int, ...]] = dict(attention)
    if kind is not CompressiveMemory:
        expected = {f"attn.{name}": shape for name, shape in attention.items()} | MLP_KEYS
    if kind is MoDInfiniTransformer:
        expected |= {"proj_sampling.weight": (1, 6), "proj_sampling.bias": (1,)}
    layer = kind(**LAYERS[kind], init_state_learnable=learned, position_embedder="rope")
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == expected


@pytest.mark.parametrize("name", ["swish", "swiglu", "geglu", "ffnglu", "ffngeglu", "ffnswiglu"])
def test_an_activation_s_parameters_stand_under_mlp_2(name: str) -> None:
    keys = InfiniTransformer(6, 10, 4, 2, 4, name, 8).state_dict()
    assert any(key.startswith("mlp.2.") for key in keys)


def test_arguments_stand_in_the_original_s_order_with_its_defaults() -> None:
    def order(kind: type) -> list[str]:
        parameters = inspect.signature(kind).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    tail = ["update", "causal", "position_embedder", "init_state_learnable"]
    sizes = ["dim_key", "dim_value", "num_heads"]
    assert order(CompressiveMemory) == ["dim_input", *sizes, "segment_len", "sampling_factor", *tail]
    head = ["dim_input", "dim_hidden", *sizes, "activation", "segment_len"]
    assert order(InfiniTransformer) == [*head, *tail, "dropout"]
    assert order(MoDInfiniTransformer) == [*head, "sampling_factor", *tail, "dropout"]
    for kind in LAYERS:
        parameters = inspect.signature(kind).parameters
        assert [parameters[name].default for name in tail] == ["linear", False, None, False]
    assert inspect.signature(CompressiveMemory).parameters["sampling_factor"].default is None
    assert inspect.signature(InfiniTransformer).parameters["dropout"].default == 0.0


@all_layers
def test_the_attributes_of_the_original_are_there(kind: type) -> None:
    embedder = RoPEEmbeddings(4, 8)
    layer = kind(**LAYERS[kind], update="delta", causal=True, position_embedder=embedder)
    attention = layer if kind is CompressiveMemory else layer.attn
    assert (attention.dim_input, attention.dim_key, attention.dim_value, attention.num_heads) == (6, 4, 2, 4)
    assert (attention.update, attention.causal) == ("delta", True)
    assert attention.position_embedder is embedder
    if kind is MoDInfiniTransformer:
        assert (layer.segment_len, layer.full_segment_len, layer.sampling_factor) == (2, 8, 4)
        assert (attention.segment_len, attention.sampling_factor) == (2, 4)
    else:
        assert attention.segment_len == 8


@all_layers
def test_the_readme_s_and_the_code_s_names_are_one_argument(kind: type) -> None:
    embedder = YaRNEmbeddings(4, 8, 100, 200)
    for name in ("position_embedder", "positional_embedder"):
        layer = kind(**LAYERS[kind], **{name: embedder})
        attention = layer if kind is CompressiveMemory else layer.attn
        assert attention.position_embedder is embedder
    with pytest.raises(TypeError, match="both position_embedder and positional_embedder"):
        kind(**LAYERS[kind], position_embedder=embedder, positional_embedder=embedder)
    kind(**LAYERS[kind], positional_embedder=None)


def test_rope_by_name_is_rope_for_the_window() -> None:
    embedder = InfiniTransformer(6, 10, 4, 2, 4, "gelu", 8, positional_embedder="rope").attn.position_embedder
    assert type(embedder) is RoPEEmbeddings
    assert (embedder.dim, embedder.seq_len) == (4, 8)


@all_layers
def test_unknown_arguments_are_refused_with_the_valid_ones(kind: type) -> None:
    with pytest.raises(TypeError, match="does not know the argument memory; valid are dim_input, .*update"):
        kind(**LAYERS[kind], memory=3)
    with pytest.raises(TypeError, match="argument a, b; .*position_embedder.*positional_embedder"):
        kind(**LAYERS[kind], b=1, a=2)


@all_layers
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"update": "bogus"}, "update is 'bogus'; valid are delta, linear"),
        ({"segment_len": 0}, "segment_len is 0; it must be a whole number of at least 1"),
        ({"num_heads": 2.5}, "num_heads is 2.5; it must be a whole number"),
        ({"num_kv_heads": 3}, "num_heads is 4 and num_kv_heads 3; num_kv_heads has to divide num_heads"),
        ({"window_len": 4, "causal": True}, "window_len is 4 and a segment 8"),
        ({"window_len": 12}, "window_len is 12, longer than a segment of 8; without causal=True"),
        ({"position_embedder": "yarn"}, "position_embedder is 'yarn'; valid are None, \"rope\""),
        ({"position_embedder": RoPEEmbeddings(8, 8)}, "made for keys of width 8; dim_key is 4"),
    ],
)
def test_values_that_cannot_be_are_refused(kind: type, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**{**LAYERS[kind], **changed})


@all_layers
def test_an_embedder_that_is_none_is_refused(kind: type) -> None:
    with pytest.raises(TypeError, match="position_embedder is a Linear"):
        kind(**LAYERS[kind], position_embedder=torch.nn.Linear(2, 2))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid activation function: 'tanh'; valid are abs"):
        InfiniTransformer(6, 10, 4, 2, 4, "tanh", 8)


@all_layers
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(2, 0, 6), r"x of shape \(2, 0, 6\); expected \(batch, tokens, 6\) with at least one"),
        (torch.randn(2, 3, 5), r"x of shape \(2, 3, 5\); expected \(batch, tokens, 6\)"),
        (torch.randn(3, 6), r"x of shape \(3, 6\)"),
        (torch.randn(2, 3, 6, dtype=torch.float64), "x of type torch.float64; its weights are torch.float32"),
        (torch.ones(2, 3, 6, dtype=torch.int64), "x of type torch.int64"),
        (torch.empty(2, 3, 6, device="meta"), "x on meta; its weights are on cpu"),
    ],
)
def test_input_of_another_shape_type_or_device_is_refused(kind: type, x: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**LAYERS[kind])(x)


@all_layers
def test_one_token_is_a_sequence(kind: type) -> None:
    out = kind(**LAYERS[kind])(torch.randn(2, 1, 6))
    assert (out[0] if isinstance(out, tuple) else out).shape == (2, 1, 6)


@all_layers
@pytest.mark.parametrize("autocast", [True, False])
def test_layers_train_in_bfloat16_and_under_autocast(kind: type, autocast: bool) -> None:
    layer = kind(**LAYERS[kind], causal=True, position_embedder="rope", update="delta")
    x = torch.randn(2, 21, 6)
    mask = torch.rand(2, 21) < 0.7
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    for given in ({}, {"padding_mask": mask}):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = layer(x, **given)
        out = out[0] if isinstance(out, tuple) else out
        out.float().square().mean().backward()
    assert bool(
        layer.get_parameter("betas" if kind is CompressiveMemory else "attn.betas").grad.isfinite().all()
    )
