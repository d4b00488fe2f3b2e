"""transformers' own Llama over the very same weights: what a Python programmer would run.

Two ways: its modules in a hand-written greedy loop with a growing cache, and its ``generate()`` as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from infinichat.bench.wire import Task
from infinichat.errors import UsageError
from infinichat.model.loading import load_model

SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)
"""What a configuration of ours and one of transformers' Llama call alike."""


class TransformersPeer:
    """``weights`` is "float32" or anything else for bfloat16. ``whole_generate``: through ``generate()``."""

    def __init__(
        self,
        model: str | None,
        *,
        threads: int | None = None,
        weights: str = "bfloat16",
        whole_generate: bool = False,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._dtype = torch.float32 if weights == "float32" else torch.bfloat16
        self._whole = whole_generate
        self._model = llama_of(model, self._dtype)
        self._cache: Any = None
        self._ids: list[int] = []

    def describe(self) -> dict[str, Any]:
        kind = "generate" if self._whole else "loop"
        return {"engine": f"transformers {kind}", "weights": str(self._dtype).removeprefix("torch.")}

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        out = self._model(torch.tensor([list(ids)]), past_key_values=self._cache, logits_to_keep=1)
        self._ids = [*ids, int(out.logits[0, -1].argmax())]

    @torch.inference_mode()
    def read_document(self, ids: Sequence[int]) -> None:
        self.read(ids)

    def roof(self, task: Task, history: int) -> dict[str, float]:
        raise UsageError("roof is measured for infinichat only; expected a call to our own engine.")

    def decode(self, count: int) -> list[float]:
        if self._cache is None:
            raise UsageError("Nothing was read yet; expected a read before a decode.")
        return self._generate(count) if self._whole else [self._one() for _ in range(count)]

    def suspend(self) -> int:
        raise UsageError("a saved conversation is read again from the start")

    def resume(self) -> None:
        raise UsageError("a saved conversation is read again from the start")

    def state_bytes(self) -> int:
        if self._cache is None:
            return 0
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._cache.layers)

    def _one(self) -> float:
        start = time.perf_counter()
        out = self._model(torch.tensor([self._ids[-1:]]), past_key_values=self._cache)
        self._ids.append(int(out.logits[0, -1].argmax()))
        return time.perf_counter() - start

    def _generate(self, count: int) -> list[float]:
        ids = torch.tensor([self._ids])
        start = time.perf_counter()
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self._cache,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        seconds = time.perf_counter() - start
        self._ids = out[0].tolist()
        return [seconds / count] * count


def llama_of(ref: str | None, dtype: torch.dtype) -> Any:
    """A ``LlamaForCausalLM`` with the base weights of the checkpoint ``ref``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = load_model(ref, dtype=dtype).model
    config = ours.config
    if config.features or isinstance(config.attention_bias, str):
        raise UsageError(
            f"{ref or 'The default model'} is of family {config.family!r}; transformers is compared on "
            "Llama's decoder only. Choose a Llama or SmolLM2."
        )
    rope = {"rope_theta": config.infini_rope["theta"], **(config.infini_rope["scaling"] or {})}
    theirs = LlamaConfig(
        **{name: getattr(config, name) for name in SHARED},
        rope_parameters={"rope_type": "default", **rope},
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(theirs)
    weights = {name: value for name, value in ours.state_dict().items() if ".memory." not in name}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    # Buffers are not in a state dict: the rotary frequencies are made again outside the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=theirs)
    model.train(False)
    return model.requires_grad_(False)
