"""A decoder with Infini-attention, on torch alone.

The base part is a plain decoder whose weights have transformers' names; what the families of ``families.py``
differ in, the configuration says. Each layer attends exactly over the window in an ``InfiniCache``; layers in
``config.memory_layers`` also read and write a memory. One forward may be given any number of tokens: it is
cut where a segment leaves the window, each piece is run through all layers, and every output is the same as
if the tokens had come one at a time.

    cache = InfiniCache(model.config)
    out = model(ids, past_key_values=cache, logits_to_keep=1)     # ids of a million tokens are fine
    model.generate(ids, past_key_values=cache)                    # transformers' own loop

What is transformers' (``generate``, ``from_pretrained``, ``save_pretrained``, the Auto classes) is in
``hugging_face``, imported only where it is called for: that takes seconds, and a chat needs none of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.errors import ConfigError, StateError
from infinichat.model.cache import InfiniCache
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.decoder_layer import InfiniDecoderLayer
from infinichat.model.decoder_parts import CappedHead, RMSNorm, ScaledEmbedding, norm_of
from infinichat.model.memories import (
    PaperMemory,
    ResidualMemory,
    is_paper,
    is_recall,
)
from infinichat.model.outputs import LanguageModelOutput, NetworkOutput
from infinichat.model.rope import Rotations, rotations
from infinichat.model.segments import (
    advance,
    drop_left,
    keep_last_hidden,
    keep_sinks,
    leaving,
    make_ragged,
    pieces,
    plan_segment,
    turn_sinks,
)


class InfiniPreTrainedModel(nn.Module):
    """What both model classes share: the configuration, how weights start, the way to transformers."""

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.parameters()).dtype

    def post_init(self) -> None:
        """Give every weight its start, but those of a network inside, which has done so itself."""
        for module in self.children():
            if not isinstance(module, InfiniPreTrainedModel):
                module.apply(self._init_weights)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make one what are two names of one matrix; without a head there are none."""

    def save_pretrained(self, *arguments: Any, **named: Any) -> Any:
        """transformers' own, as all methods of that name."""
        return self.as_transformers().save_pretrained(*arguments, **named)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
        """transformers' own: returns a model of ``hugging_face``'s class of the same name."""
        from infinichat.model import hugging_face

        return getattr(hugging_face, cls.__name__).from_pretrained(*arguments, **named)

    def as_transformers(self) -> Any:
        """This model as ``hugging_face``'s class of the same name; nothing is copied."""
        from infinichat.model import hugging_face

        return getattr(hugging_face, type(self).__name__).of(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, 0 if module.unit_offset else 1)
        elif isinstance(module, ResidualMemory):
            module.reset_parameters()
        elif isinstance(module, PaperMemory):
            nn.init.constant_(module.beta, PaperMemory.BETA_START)


class InfiniModel(InfiniPreTrainedModel):
    """Embeddings, layers, final norm."""

    layers: Any  # a ModuleList, whose items are no InfiniDecoderLayer to a type checker

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__(config)
        self.embed_tokens = ScaledEmbedding(
            config.vocab_size, config.hidden_size, scale=config.embedding_multiplier
        )
        self.layers = nn.ModuleList(InfiniDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = norm_of(config)
        self.post_init()

    def new_cache(self, batch_size: int = 1) -> InfiniCache:
        """An empty state that fits these weights."""
        weight = self.norm.weight
        return InfiniCache(self.config, batch_size, dtype=weight.dtype, device=weight.device)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: InfiniCache | None = None,
        use_cache: bool | None = None,
        keep: int = 0,
        **kwargs: Any,
    ) -> NetworkOutput:
        """Final hidden states of the last ``keep`` tokens (0: of all) of input_ids [B, T], T >= 1.

        ``attention_mask`` [B, T] or longer (then its last T columns count): 0 marks padding. Positions follow
        from the cache and the mask; ``position_ids`` and ``cache_position`` are not looked at. Raises
        ``StateError`` for what does not fit the cache or the vocabulary, ``ConfigError`` for arguments of
        transformers that are not supported.
        """
        _refuse_unsupported(kwargs)
        if input_ids is None:
            raise ConfigError(
                "input_ids is None; the memory stores tokens, so pass input_ids [batch, tokens]."
            )
        cache = self._cache_for(input_ids, past_key_values)
        if cache.pending is not None:
            from infinichat.model.reading import settle

            settle(self, cache)
        mask = self._padding(cache, input_ids, attention_mask)
        outputs: list[Tensor] = []
        start, length = 0, input_ids.shape[1]
        while start < length:
            rest = None if mask is None else mask[:, start:]
            self.evict(cache)
            stop = start + pieces(cache, rest, length - start)
            piece = None if mask is None else mask[:, start:stop]
            # Nobody asked for the others' output: they need no more than the top layer's keys and values.
            only_last = piece is None and 0 < keep <= 1 + length - stop
            hidden = self._forward_piece(input_ids[:, start:stop], piece, cache, only_last=only_last)
            if piece is not None:
                keep_last_hidden(cache, hidden, piece)
            if keep == 0 or stop > length - keep:
                whole = keep == 0 or only_last
                outputs.append(hidden if whole else hidden[:, max(0, length - keep - start) :])
            start = stop
        if mask is None:
            # A copy, so that one row does not keep a whole piece's states alive.
            cache.last_hidden = hidden[:, -1].clone() if hidden.shape[1] > 1 else hidden[:, -1]
        return NetworkOutput(
            last_hidden_state=outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1),
            past_key_values=cache if use_cache is not False or past_key_values is not None else None,
        )

    def evict(self, cache: InfiniCache) -> None:
        """Fold into the memories what has to leave the window before the next token; often nothing."""
        due = leaving(cache)
        if due is None:
            turn_sinks(cache, self._rotations(cache.device))
            return
        count, write = due
        span = count if write is None else write.shape[1]
        for layer, state in zip(self.layers, cache.states, strict=True):
            if state.memory is None:
                continue
            if is_recall(layer.memory):
                ids = cache.ids.content[:, :span]
                state.memory = layer.memory.commit(state, span, write, ids, self.embed_tokens)
            elif is_paper(layer.memory):
                state.memory = layer.memory.commit(state, span, write)
        keep_sinks(cache)
        drop_left(cache, count)
        turn_sinks(cache, self._rotations(cache.device))

    def _forward_piece(
        self, ids: Tensor, mask: Tensor | None, cache: InfiniCache, *, only_last: bool
    ) -> Tensor:
        try:
            h = self.embed_tokens(ids)
        except IndexError:
            raise StateError(
                f"input_ids go from {int(ids.min())} to {int(ids.max())}; this model's vocabulary has ids 0 "
                f"to {self.config.vocab_size - 1}."
            ) from None
        turning = self._rotations(cache.device)
        plan = plan_segment(cache, mask, ids, h, rotations=turning)
        top = len(self.layers) - 1
        for number, (layer, state) in enumerate(zip(self.layers, cache.states, strict=True)):
            last = only_last and number == top and state.memory is None
            h = layer(h, plan, state, last=last)
        if only_last:
            h = h[:, -1:]
        advance(cache, ids, plan)
        return plan.spoken(self.norm(h))

    def _rotations(self, device: torch.device) -> Rotations:
        # MPS has no float64: there the angles are worked out on the CPU.
        kind = "cpu" if device.type == "mps" else device.type
        # Plain attribute rather than buffers: .to(bfloat16) must never touch float64.
        cached: Rotations | None = self.__dict__.get("_turning")
        if cached is None or cached.full.inv_freq.device.type != kind:
            cached = rotations(self.config).to("cpu" if kind == "cpu" else device)
            self.__dict__["_turning"] = cached
        return cached

    def _cache_for(self, ids: Tensor, cache: InfiniCache | None) -> InfiniCache:
        if ids.dim() != 2 or ids.shape[1] == 0 or ids.dtype not in (torch.int64, torch.int32):
            raise StateError(
                f"input_ids is {ids.dtype} {tuple(ids.shape)}; expected whole numbers [batch, tokens], one "
                "token or more."
            )
        if cache is None:
            return self.new_cache(ids.shape[0])
        if not isinstance(cache, InfiniCache):
            raise StateError(
                f"past_key_values is a {type(cache).__name__}; this model keeps its state in an InfiniCache. "
                "Make one with model.model.new_cache()."
            )
        if cache.batch_size != ids.shape[0]:
            raise StateError(
                f"input_ids has {ids.shape[0]} rows and the state {cache.batch_size}; use one state per "
                "batch."
            )
        weights = self.norm.weight.dtype
        if cache.dtype != weights:
            raise StateError(
                f"The state is {cache.dtype} and the weights {weights}; make it with new_cache()."
            )
        differing = None if cache.config is self.config else self.config.differs_in_state(cache.config)
        if differing is not None:
            raise StateError(
                f"The state was made with {differing} {getattr(cache.config, differing)}; this model has "
                f"{getattr(self.config, differing)}. Make it with this model's new_cache()."
            )
        return cache

    def _padding(self, cache: InfiniCache, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None if cache.uniform else torch.ones_like(ids, dtype=torch.bool)
        length = ids.shape[1]
        if mask.dim() != 2 or mask.shape[0] != ids.shape[0] or mask.shape[1] < length:
            raise StateError(
                f"attention_mask has shape {tuple(mask.shape)}; expected [{ids.shape[0]}, {length} or more]."
            )
        real = mask[:, -length:].to(torch.bool)
        if cache.uniform:
            if bool(real.all()):
                return None
            make_ragged(cache)
        return real


def _refuse_unsupported(arguments: dict[str, Any]) -> None:
    """What callers of transformers' models may pass and would miss: an error rather than silence."""
    for name, value in arguments.items():
        if name == "return_dict":
            refused = value is False
        else:
            refused = value is not None and value is not False
            refused = refused and name not in ("position_ids", "cache_position")
        if refused:
            raise ConfigError(f"{name} was given; an Infini model does not support it. Leave it out.")


class InfiniForCausalLM(InfiniPreTrainedModel):
    """The language model: ``InfiniModel`` and a vocabulary head."""

    def __init__(self, config: InfiniConfig) -> None:
        super().__init__(config)
        self.model = InfiniModel(config)
        self.lm_head = CappedHead(config.hidden_size, config.vocab_size, cap=config.final_logit_softcapping)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: InfiniCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> LanguageModelOutput:
        """Logits [B, logits_to_keep or T, V] and, with ``labels`` [B, T] (-100 is ignored), the mean
        cross-entropy of each token's successor over all segments. Other arguments as ``InfiniModel``."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            keep=0 if labels is not None else logits_to_keep,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            shifted = logits[:, :-1].float().flatten(0, 1)
            loss = F.cross_entropy(shifted, labels[:, 1:].flatten(), ignore_index=-100)
        return LanguageModelOutput(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def next_logits(self, cache: InfiniCache) -> Tensor:
        """Logits [B, V] for the token after the last one fed, without feeding anything.

        Raises ``StateError`` when nothing has been fed yet.
        """
        if cache.last_hidden is None:
            raise StateError("The state has seen 0 tokens; feed at least one before asking what comes next.")
        logits: Tensor = self.lm_head(cache.last_hidden)
        return logits

    def get_input_embeddings(self) -> nn.Module:
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value  # type: ignore[assignment]  # whatever gives rows for ids

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def tie_weights(self) -> None:
        """Make the vocabulary head the embedding's own matrix where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def generate(self, *arguments: Any, **named: Any) -> Any:
        """transformers' own loop over ``as_transformers()``."""
        return self.as_transformers().generate(*arguments, **named)
