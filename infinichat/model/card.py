"""What a model's folder says about it, for the list of models: description, size, measured recall.

The description is the first paragraph of the card (``README.md``) after its headings; the measured recall is
``recall.json``, written by the evaluation. Parameters are counted from the configuration's numbers, so that a
list needs neither torch nor the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DESCRIPTION_LENGTH = 200


def description_of(folder: Path) -> str:
    """The card's first paragraph on one line, at most 200 characters; empty without a card."""
    try:
        text = (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    if text.startswith("---\n"):  # Hugging Face cards open with YAML
        text = text.partition("\n---\n")[2]
    for paragraph in text.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        words = " ".join(line for line in lines if line and not line.startswith(("#", "<", "![", "[![")))
        if words:
            return (
                words
                if len(words) <= _DESCRIPTION_LENGTH
                else words[: _DESCRIPTION_LENGTH - 1].rstrip() + "…"
            )
    return ""


def recall_of(folder: Path) -> dict[str, Any] | None:
    """The measured recall in ``recall.json``; ``None`` when nothing was measured or it cannot be read."""
    try:
        value = json.loads((folder / "recall.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """What was measured at one distance: ``share`` of ``n`` questions about ``name`` were answered exactly,
    ``tokens`` of ``filler`` after it was told. ``interval`` is the 95 % one."""

    name: str
    filler: str
    tokens: int
    share: float
    n: int
    interval: tuple[float, float]

    @property
    def distance(self) -> str:
        """1024 tokens as 1K, 1048576 as 1M."""
        if self.tokens >= 1 << 20:
            return f"{self.tokens / (1 << 20):.3g}M"
        return f"{self.tokens / (1 << 10):.3g}K"


def recall_points(recall: dict[str, Any] | None) -> tuple[RecallPoint, ...]:
    """The points under ``recall`` in a ``recall.json`` that ``infinichat eval card`` wrote; what does not
    look like one is left out, and so is everything in files of another kind."""
    listed = (recall or {}).get("recall")
    found = []
    for item in listed if isinstance(listed, list) else []:
        try:
            low, high = item["interval"]
            point = RecallPoint(
                str(item["name"]),
                str(item.get("filler", "")),
                int(item["tokens"]),
                float(item["share"]),
                int(item["n"]),
                (float(low), float(high)),
            )
        except (KeyError, TypeError, ValueError):
            continue
        if 0 <= point.share <= 1 and point.n > 0 and point.tokens > 0:
            found.append(point)
    return tuple(found)


def parameters_of(config: dict[str, Any]) -> int | None:
    """Weights of a model from its ``config.json``, without memories, biases and the norms of heads; ``None``
    when the numbers are not there."""
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        vocabulary = int(config["vocab_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        with_experts, experts = _experts(config, layers)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    mlps = (layers - with_experts) * 3 * hidden * inner + with_experts * hidden * experts
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + layers * (attention + 2 * hidden) + mlps + hidden


def _experts(config: dict[str, Any], layers: int) -> tuple[int, int]:
    """How many layers have routed experts (Qwen2-MoE), and their weights in such a layer for each channel of
    the hidden states."""
    count = int(config.get("num_experts") or 0)
    if not count:
        return 0, 0
    plain, step = config.get("mlp_only_layers") or (), int(config.get("decoder_sparse_step") or 1)
    chosen = [layer for layer in range(layers) if layer not in plain and (layer + 1) % step == 0]
    shared = int(config["shared_expert_intermediate_size"])
    return len(chosen), 3 * (count * int(config["moe_intermediate_size"]) + shared) + count + 1
