"""The model as classes of transformers: ``generate``, ``from_pretrained``, ``save_pretrained``, Auto classes.

Importing transformers takes longer than loading the default checkpoint, so the network and its configuration
(``modeling_infini``, ``configuration_infini``) are classes on torch alone, and a chat never comes here. The
classes of this file have the same names and are subclasses of those: they add what transformers expects and
compute nothing themselves. The plain classes come here by themselves where a method of transformers is called
on them.

    model.as_transformers().generate(ids)           # shares the weights with ``model``
    AutoModelForCausalLM.from_pretrained(folder)    # after infinichat.model.register()
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from infinichat.errors import StateError
from infinichat.model import configuration_infini as plain
from infinichat.model import modeling_infini as network
from infinichat.model.cache import InfiniCache


class _Configuration(plain.Fields, PretrainedConfig):  # type: ignore[no-untyped-call]  # __init_subclass__
    """Takes ``PretrainedConfig``'s place of ``plain.Fields`` among the bases."""

    def __init__(self, **fields: Any) -> None:
        PretrainedConfig.__init__(self, **fields)

    to_dict = PretrainedConfig.to_dict
    to_diff_dict = PretrainedConfig.to_diff_dict
    to_json_string = PretrainedConfig.to_json_string
    save_pretrained = PretrainedConfig.save_pretrained

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
        return super(plain.Fields, cls).from_pretrained(*arguments, **named)


class InfiniConfig(plain.InfiniConfig, _Configuration):  # type: ignore[no-untyped-call]
    """``plain.InfiniConfig`` as a ``PretrainedConfig``."""

    # Written out, or transformers would make one of its own.
    def __init__(self, **fields: Any) -> None:
        plain.InfiniConfig.__init__(self, **fields)

    @classmethod
    def of(cls, config: plain.Fields) -> InfiniConfig:
        """``config`` itself, or a copy of it in this class."""
        return config if isinstance(config, cls) else cls(**vars(config))


# The ignored types here and below: __init_subclass__, and members that both sides describe in their own way.
class _Network(network.InfiniPreTrainedModel, PreTrainedModel):  # type: ignore[no-untyped-call,misc]
    """What both model classes take from transformers rather than from the plain network."""

    config_class = InfiniConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    # The loss here is a mean; a trainer must not expect it to be divided by its own count of tokens.
    accepts_loss_kwargs = False

    def __init__(self, config: plain.InfiniConfig) -> None:
        PreTrainedModel.__init__(self, InfiniConfig.of(config))

    @classmethod
    def of(cls, model: network.InfiniPreTrainedModel) -> Any:
        """``model`` itself, or a model of this class with the very same modules: weights are shared."""
        if isinstance(model, cls):
            return model
        with torch.device("meta"):
            made = cls(model.config)
        for name, module in model.named_children():
            setattr(made, name, module)
        return made.train(model.training)

    post_init = PreTrainedModel.post_init
    tie_weights = PreTrainedModel.tie_weights
    save_pretrained = PreTrainedModel.save_pretrained

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
        return super(network.InfiniPreTrainedModel, cls).from_pretrained(*arguments, **named)


class InfiniModel(network.InfiniModel, _Network):  # type: ignore[no-untyped-call,misc]
    """``network.InfiniModel`` as a ``PreTrainedModel``."""

    @functools.wraps(network.InfiniModel.forward)
    def forward(self, *arguments: Any, **named: Any) -> BaseModelOutputWithPast:  # type: ignore[override]
        out = network.InfiniModel.forward(self, *arguments, **named)
        state: Any = out.past_key_values  # no Cache of transformers', but all that is asked of one
        return BaseModelOutputWithPast(last_hidden_state=out.last_hidden_state, past_key_values=state)


class InfiniForCausalLM(network.InfiniForCausalLM, _Network, GenerationMixin):  # type: ignore[no-untyped-call,misc]
    """``network.InfiniForCausalLM`` with transformers' ``generate``."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  transformers' form
    # Refuses what needs an un-writable state, such as assisted generation.
    _is_stateful = True

    # Named here, because the plain class is the first among the bases and has some of its own.
    tie_weights = PreTrainedModel.tie_weights
    generate = GenerationMixin.generate

    @functools.wraps(network.InfiniForCausalLM.forward)
    def forward(self, *arguments: Any, **named: Any) -> CausalLMOutputWithPast:  # type: ignore[override]
        out = network.InfiniForCausalLM.forward(self, *arguments, **named)
        state: Any = out.past_key_values
        return CausalLMOutputWithPast(loss=out.loss, logits=out.logits, past_key_values=state)

    def _prepare_cache_for_generation(  # type: ignore[override]  # says bool, returns nothing
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any
    ) -> None:
        # The first forward makes the cache, for as many rows as generate() really uses (beams, samples).
        return

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: InfiniCache | None = None,
        attention_mask: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Only what the state has not seen goes in.

        To go on with a state, pass ``generate`` either the whole conversation as ``input_ids``, or only the
        new ids with an ``attention_mask`` over everything. Raises ``StateError`` when that leaves nothing to
        feed.
        """
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        new = next_sequence_length
        if seen and new is None and not is_first_iteration:
            new = 1
        if new is not None:
            if new < 1:
                raise StateError(
                    f"input_ids has {input_ids.shape[1]} tokens and the state has seen {seen}; pass the "
                    "whole conversation with at least one new token, or only new tokens with an "
                    "attention_mask over all."
                )
            input_ids = input_ids[:, -new:]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache", True),
            "logits_to_keep": 1,
        }
