"""The Hugging Face face: configuration, model, cache, and everything that reads weights.

Importing ``infinichat.model`` imports nothing heavy. ``register()`` makes transformers' Auto classes know the
model type "infini".
"""

from __future__ import annotations


def register() -> None:
    """Register with AutoConfig, AutoModel and AutoModelForCausalLM; calling it again does nothing."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from infinichat.model.hugging_face import InfiniConfig, InfiniForCausalLM, InfiniModel

    AutoConfig.register(InfiniConfig.model_type, InfiniConfig, exist_ok=True)
    AutoModel.register(InfiniConfig, InfiniModel, exist_ok=True)
    AutoModelForCausalLM.register(InfiniConfig, InfiniForCausalLM, exist_ok=True)
