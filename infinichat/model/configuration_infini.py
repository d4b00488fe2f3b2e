"""The configuration of an Infini model: a decoder of a family plus a window, a segment and memory layers.

Everything that changes a result is here and is saved with the checkpoint: two models with equal configuration
and weights give equal states.
"""

from __future__ import annotations

from typing import Any, Literal

from infinichat.errors import ConfigError

MemoryKind = Literal["bank", "recall", "linear", "delta"]
MAX_GATE_TAPS = 5
"""The present state and the four before it that a layer keeps for its convolutions."""

MEMORY_KINDS: tuple[MemoryKind, ...] = ("bank", "recall", "linear", "delta")

LAYER_TYPES = ("full_attention", "sliding_attention")

# What the families' decoders differ in, each at the value that it has in a Llama. A configuration that has a
# field at this value is, to a fingerprint, one from before there was the field.
FEATURES: dict[str, Any] = {
    "use_qk_norm": False,
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": None,
    "layer_types": None,
    "norm_unit_offset": False,
    "post_norms": False,
    "embedding_multiplier": 1.0,
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "moe_intermediate_size": 0,
    "shared_expert_intermediate_size": 0,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}

STATE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "window",
    "segment",
    "sinks",
    "memory",
    "memory_layers",
    "memory_trained",
    "memory_key_dim",
    "memory_order",
    "memory_slots",
    "memory_fade_dim",
    "memory_topics",
    "infini_rope",
)
"""What decides the form of a state: models that differ in one of these cannot exchange states."""


class Fields:
    """What ``InfiniConfig`` has of transformers' ``PretrainedConfig`` without importing it: an attribute for
    each further argument, and its methods by way of ``hugging_face``, where it is one."""

    dtype: Any = None

    def __init__(self, *, tie_word_embeddings: bool = True, **fields: Any) -> None:
        self.tie_word_embeddings = tie_word_embeddings
        for role in ("bos", "eos", "pad"):
            fields.setdefault(f"{role}_token_id", None)
        for name, value in fields.items():
            setattr(self, name, value)

    def as_transformers(self) -> Any:
        """This configuration as ``hugging_face.InfiniConfig``."""
        from infinichat.model import hugging_face

        return hugging_face.InfiniConfig.of(self)

    def to_dict(self) -> dict[str, Any]:
        """transformers' own, as all methods below."""
        values: dict[str, Any] = self.as_transformers().to_dict()
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = self.as_transformers().to_diff_dict()
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        return str(self.as_transformers().to_json_string(use_diff=use_diff))

    def save_pretrained(self, *arguments: Any, **named: Any) -> Any:
        return self.as_transformers().save_pretrained(*arguments, **named)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
        from infinichat.model import hugging_face

        return hugging_face.InfiniConfig.from_pretrained(*arguments, **named)


class InfiniConfig(Fields):
    """Configuration of ``InfiniForCausalLM``.

    The first group has the names and meanings of transformers' Llama; ``attention_bias`` may also be a text
    with the projections that have one ("qkv"). The second group, ``FEATURES``, is what other families add,
    with transformers' names where it has one: RMS norms of queries and keys (``use_qk_norm``), scores scaled
    by ``query_pre_attn_scalar`` ** -0.5, tanh caps of scores and logits, layers that see ``sliding_window``
    tokens (all, or those that ``layer_types`` says; with angles of ``rope_local_base_freq`` where given),
    norms with weight 1 + w (``norm_unit_offset``), norms after attention and MLP (``post_norms``),
    embeddings times ``embedding_multiplier``, and routed experts beside a shared one in all layers but
    ``mlp_only_layers``.

    ``window`` and ``segment`` are in tokens (``infinichat.attention.window``): ``window == segment`` is the
    paper's hard segmentation, ``window > segment`` the streaming window. ``sinks`` first tokens stay attended
    for ever and are never written. ``memory`` is "recall" (own projections, DPFP, write gate, per-token
    delta), "bank" (the same with ``memory_slots`` exact pairs beside the matrix, with marks
    ``memory_fade_dim`` wide, ``infinichat.attention.bank``, and changes of rank ``memory_rank`` in the
    attention above it, ``infinichat.model.adapters``; 0: none) and ``memory_topics`` heads that look further
    back (``infinichat.attention.topics``; 0: none) or the paper's "linear" or "delta";
    ``memory_layers`` are the layers that have one. ``memory_trained`` False keeps every memory closed: the
    model is then exactly its base with a sliding window.

    Raises ``ConfigError`` for values that cannot work together.
    """

    model_type = "infini"
    # A trainer that evaluates collects logits, not states.
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  transformers' form

    def __init__(
        self,
        *,
        vocab_size: int = 32000,
        hidden_size: int = 576,
        intermediate_size: int = 1536,
        num_hidden_layers: int = 30,
        num_attention_heads: int = 9,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 8192,
        attention_bias: bool | str = False,
        mlp_bias: bool = False,
        initializer_range: float = 0.02,
        partial_rotary_factor: float = 1.0,
        rope_local_base_freq: float | None = None,
        use_qk_norm: bool = False,
        query_pre_attn_scalar: float | None = None,
        attn_logit_softcapping: float | None = None,
        final_logit_softcapping: float | None = None,
        sliding_window: int | None = None,
        layer_types: list[str] | None = None,
        norm_unit_offset: bool = False,
        post_norms: bool = False,
        embedding_multiplier: float = 1.0,
        num_experts: int = 0,
        num_experts_per_tok: int = 0,
        moe_intermediate_size: int = 0,
        shared_expert_intermediate_size: int = 0,
        norm_topk_prob: bool = False,
        mlp_only_layers: list[int] | None = None,
        window: int = 1024,
        segment: int = 256,
        sinks: int = 4,
        memory: MemoryKind = "recall",
        memory_layers: list[int] | tuple[int, ...] | None = None,
        memory_trained: bool = False,
        memory_key_dim: int = 64,
        memory_order: int = 3,
        memory_gate_taps: int = 3,
        memory_slots: int = 1024,
        memory_fade_dim: int = 256,
        memory_rank: int = 0,
        memory_topics: int = 0,
        family: str = "llama",
        chat_format: str = "chatml",
        base: dict[str, Any] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        # Not rope_parameters: transformers rewrites that on load, and the angles here are computed in
        # float64.
        self.infini_rope: dict[str, Any] = {"theta": float(rope_theta), "scaling": rope_scaling}
        if partial_rotary_factor != 1:
            self.infini_rope["partial"] = float(partial_rotary_factor)
        if rope_local_base_freq is not None:
            self.infini_rope["local_theta"] = float(rope_local_base_freq)
        self.max_position_embeddings = max_position_embeddings
        self.attention_bias = attention_bias
        self.mlp_bias = mlp_bias
        self.initializer_range = initializer_range
        self.use_qk_norm = use_qk_norm
        self.query_pre_attn_scalar = query_pre_attn_scalar
        self.attn_logit_softcapping = attn_logit_softcapping
        self.final_logit_softcapping = final_logit_softcapping
        self.sliding_window = sliding_window
        self.layer_types = layer_types
        self.norm_unit_offset = norm_unit_offset
        self.post_norms = post_norms
        self.embedding_multiplier = embedding_multiplier
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_intermediate_size = moe_intermediate_size
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.norm_topk_prob = norm_topk_prob
        self.mlp_only_layers = mlp_only_layers
        self.window = window
        self.segment = segment
        self.sinks = sinks
        self.memory = memory
        self.memory_layers = list(memory_layers) if memory_layers is not None else []
        self.memory_trained = memory_trained
        self.memory_key_dim = memory_key_dim
        self.memory_order = memory_order
        self.memory_gate_taps = memory_gate_taps
        self.memory_slots = memory_slots
        self.memory_fade_dim = memory_fade_dim
        self.memory_rank = memory_rank
        self.memory_topics = memory_topics
        self.family = family
        self.chat_format = chat_format
        self.base = base
        self.use_cache = use_cache
        stored_rope = kwargs.pop("infini_rope", None)
        if stored_rope is not None:
            self.infini_rope = dict(stored_rope)
        # Passed on rather than set: transformers ties the weights by it.
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self._check()

    @property
    def memory_heads(self) -> int:
        """Heads of the recall memory: its values are token embeddings split over them."""
        return self.hidden_size // self.memory_value_dim

    @property
    def memory_value_dim(self) -> int:
        """Width of one value head of the recall memory."""
        return self.head_dim if self.hidden_size % self.head_dim == 0 else self.hidden_size

    @property
    def memory_features(self) -> int:
        """Width of a key of our own after DPFP, or of the paper's features."""
        own = self.memory in ("recall", "bank")
        return 2 * self.memory_key_dim * self.memory_order if own else self.head_dim

    @property
    def biased(self) -> frozenset[str]:
        """Which of attention's projections q, k, v and o have a bias."""
        if isinstance(self.attention_bias, str):
            return frozenset(self.attention_bias)
        return frozenset("qkvo" if self.attention_bias else "")

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated, the first ones."""
        return int(self.head_dim * self.infini_rope.get("partial", 1.0))

    def slides(self, layer: int) -> bool:
        """Whether ``layer`` sees only ``sliding_window`` tokens."""
        if self.sliding_window is None:
            return False
        return self.layer_types is None or self.layer_types[layer] == "sliding_attention"

    def has_experts(self, layer: int) -> bool:
        """Whether ``layer`` has routed experts in place of one MLP."""
        return self.num_experts > 0 and layer not in (self.mlp_only_layers or ())

    @property
    def features(self) -> tuple[str, ...]:
        """What this decoder has and a Llama has not, by the names of the configuration's fields."""
        rope = {"partial": "partial_rotary_factor", "local_theta": "rope_local_base_freq"}
        own = [name for name, plain in FEATURES.items() if getattr(self, name) != plain]
        return (*own, *(name for key, name in rope.items() if key in self.infini_rope))

    def differs_in_state(self, other: InfiniConfig) -> str | None:
        """The first field in which states of the two differ, None when they can be exchanged."""
        return next((f for f in STATE_FIELDS if getattr(self, f) != getattr(other, f)), None)

    def _check(self) -> None:
        whole = (
            "window",
            "segment",
            "sinks",
            "memory_key_dim",
            "memory_order",
            "memory_gate_taps",
            "memory_slots",
            "memory_fade_dim",
            "memory_rank",
            "memory_topics",
        )
        for name in whole:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number.")
        if self.memory_key_dim < 1 or self.memory_order < 1:
            raise ConfigError(
                f"memory_key_dim is {self.memory_key_dim} and memory_order {self.memory_order}; both must be "
                "at least 1."
            )
        if self.memory_slots < 1 or self.memory_fade_dim < 1:
            raise ConfigError(
                f"memory_slots is {self.memory_slots} and memory_fade_dim {self.memory_fade_dim}; a bank "
                "needs at least 1 of each."
            )
        for name in ("memory_rank", "memory_topics"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0, for none, or more.")
        if not 1 <= self.memory_gate_taps <= MAX_GATE_TAPS:
            raise ConfigError(
                f"memory_gate_taps is {self.memory_gate_taps}; it must be 1 to {MAX_GATE_TAPS}, the states "
                "that a layer keeps."
            )
        if self.segment < 1 or self.window < 1:
            raise ConfigError(
                f"window is {self.window} and segment {self.segment}; both must be at least 1 token."
            )
        if self.segment > self.window:
            raise ConfigError(
                f"segment is {self.segment} and window {self.window}; a segment leaves the window whole, so "
                "it cannot be longer. Lower segment or raise window."
            )
        if not 0 <= self.sinks <= self.segment:
            raise ConfigError(f"sinks is {self.sinks}; it must be 0 to segment ({self.segment}).")
        if self.memory not in MEMORY_KINDS:
            raise ConfigError(f"memory is {self.memory!r}; valid are {', '.join(MEMORY_KINDS)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share {self.num_key_value_heads} "
                "key-value heads evenly; the first must be a multiple of the second."
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            part = "" if self.rotary_dim == self.head_dim else f", {self.rotary_dim} of them rotated"
            raise ConfigError(f"head_dim is {self.head_dim}{part}; rotary embeddings need an even number.")
        self._check_features()
        outside = [layer for layer in self.memory_layers if not 0 <= layer < self.num_hidden_layers]
        if outside or len(set(self.memory_layers)) != len(self.memory_layers):
            raise ConfigError(
                f"memory_layers is {self.memory_layers}; expected different layers from 0 to "
                f"{self.num_hidden_layers - 1}."
            )

    def _check_features(self) -> None:
        if not self.biased <= set("qkvo"):
            raise ConfigError(
                f"attention_bias is {self.attention_bias!r}; it must be true, false or some of 'qkvo'."
            )
        kinds = self.layer_types
        if kinds is not None and (len(kinds) != self.num_hidden_layers or set(kinds) - set(LAYER_TYPES)):
            raise ConfigError(
                f"layer_types is {kinds!r}; expected {self.num_hidden_layers} times one of "
                f"{', '.join(LAYER_TYPES)}."
            )
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        for name in ("sliding_window", "query_pre_attn_scalar", *caps):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value!r}; it must be more than 0, or null for none.")
        inner = min(self.moe_intermediate_size, self.shared_expert_intermediate_size)
        if self.num_experts and not (0 < self.num_experts_per_tok <= self.num_experts and inner > 0):
            raise ConfigError(
                f"num_experts is {self.num_experts}, num_experts_per_tok {self.num_experts_per_tok}, with "
                f"{self.moe_intermediate_size} and {self.shared_expert_intermediate_size} inner channels; "
                "expected 1 to num_experts of them a token, and at least 1 channel in each."
            )
