"""What a model's folder says about it, for the list of models: description, size, measured recall.

The description is the first paragraph of the card (``README.md``) after its headings; the measured recall is
``recall.json``, written by the evaluation. Parameters are counted from the configuration's numbers, so that a
list needs neither torch nor the weights.
"""

from __future__ import annotations

import json
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


def parameters_of(config: dict[str, Any]) -> int | None:
    """Weights of a Llama-like model, from its ``config.json``, memories not counted; ``None`` when the
    numbers are not there."""
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        vocabulary = int(config["vocab_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    per_layer = attention + 3 * hidden * inner + 2 * hidden
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return embeddings + layers * per_layer + hidden
