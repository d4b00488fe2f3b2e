"""Weights out of a GGUF, in the names and shapes that transformers gives the same model.

Four things may differ between a GGUF and the Hugging Face checkpoint it was made from. Names:
``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``. The rows of the query and key
projections of architecture llama: llama.cpp rotates neighbouring pairs (0, 1), (2, 3), ... there,
transformers the halves (0, d/2), (1, d/2 + 1), ..., so the converter interleaves each head's rows;
``_halves`` undoes that exactly. Gemma's norms: a GGUF holds 1 + w, transformers w. And the experts of a
layer, which a GGUF stacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf_config import ROPE_TENSORS, gguf_config
from infinichat.model.gguf_dequantize import read_tensor
from infinichat.model.gguf_file import GgufFile, GgufTensor, check_extents

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")},
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}
# What an architecture has besides, or calls otherwise.
_OWN_NAMES: dict[str, dict[str, str]] = {
    "qwen3": _QK_NORMS,
    "qwen2moe": _EXPERTS,
    "gemma2": _POST_NORMS,
    "gemma3": {**_POST_NORMS, **_QK_NORMS},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}
_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


def hf_name(name: str, architecture: str = "llama") -> str | None:
    """Transformers' name of a GGUF tensor; ``None`` for a name that the architecture does not have."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    match = _LAYER.fullmatch(name)
    names = {**_LAYER_NAMES, **_OWN_NAMES.get(architecture, {})}
    if match is None or match[2] not in names:
        return None
    return f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}"


def gguf_tensors(
    file: GgufFile, *, dtype: torch.dtype | Callable[[str], torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the file as ``(transformers' name, tensor)``, one at a time, each a copy in ``dtype``
    (one for all, or what a function says for a name). Fused tensors stay fused.

    Raises ``ModelFileError`` when the file's table does not fit the file, ``UnsupportedModelError`` naming a
    tensor that the architecture does not have or whose type cannot be read.
    """
    check_extents(file)
    config = gguf_config(file)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor in file.tensors.values():
        if tensor.name in ROPE_TENSORS:
            continue  # already in the configuration
        name = hf_name(tensor.name, file.architecture)
        if name is None:
            raise UnsupportedModelError(
                f"{file.path.name} has a tensor {tensor.name!r} that a model of architecture "
                f"{file.architecture!r} does not have; this kind of model is not supported."
            )
        weights = read_tensor(file, tensor)
        projection = name.split(".")[-2]
        if file.architecture == "llama" and projection in heads:
            weights = _halves(weights, heads[projection], tensor, file)
        elif file.architecture.startswith("gemma") and name.endswith("norm.weight"):
            weights = weights - 1
        elif projection == "shared_expert_gate":
            weights = weights.view(1, -1)  # one row, stored as a vector
        yield name, weights.to(dtype(name) if callable(dtype) else dtype)


def _halves(weights: Tensor, heads: int, tensor: GgufTensor, file: GgufFile) -> Tensor:
    """Undo the interleaving of each head's rows: (0, 1), (2, 3), ... back to (0, d/2), (1, d/2 + 1), ..."""
    rows = weights.shape[0]
    if rows % (2 * heads):
        raise ModelFileError(
            f"{file.path.name}: tensor {tensor.name!r} has {rows} rows, expected a multiple of {2 * heads} "
            f"({heads} heads)."
        )
    pairs = weights.reshape(heads, rows // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)
