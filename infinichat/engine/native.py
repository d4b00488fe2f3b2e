"""``NativeStep``: one token in compiled C, of one conversation or of each of several.

What PlainStep does in some six hundred calls of torch, ``step.c`` does in one. One conversation runs on a
single thread on purpose: a token's weights pass through one core at most of the memory's speed, and there is
nothing that other busy processes could delay but that one thread. Several share the threads, and the weights
(``native_rows``). Memories stay where they are: the C code runs up to a layer that has one, and goes on after
the layer's module has added its read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infinichat.engine.kernels import joined_bias
from infinichat.engine.native_rows import Places, Runner, Sizes
from infinichat.engine.quantize import WeightFormat
from infinichat.engine.structures import Change, Layer, Matrix, Model
from infinichat.engine.tiles import Q4, Q8, Tiles, fits_tiles, q4_tiles, q8_tiles, tiles_of_blocks
from infinichat.model.adapters import Adapters, Carried
from infinichat.model.bank_memory import BankMemory
from infinichat.model.bank_rows import one_token_each
from infinichat.model.blocks import Blocks
from infinichat.model.cache import InfiniCache
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.decoder_layer import InfiniDecoderLayer
from infinichat.model.decoder_parts import InfiniMLP
from infinichat.model.memories import PaperMemory, ResidualMemory
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.rope import rotations
from infinichat.model.stored import StoredLinear, put, stored

WIDEST_HEAD = 256
"""``step.c`` keeps a head's sum in an array of this size."""

_F32 = 0
_FORMATS: dict[int, WeightFormat] = {_F32: "float32", Q4: "int4", Q8: "int8"}

_Linear = nn.Linear | StoredLinear


class NativeStep:
    """A ``Step`` on the CPU, also for several caches of batch 1 at once; ``fits`` says for which models."""

    def __init__(self, model: InfiniForCausalLM, library: ctypes.CDLL, *, format: WeightFormat) -> None:
        """Packs copies of the model's weights: "float32" as they are; otherwise 4 bits where that is exact
        and 8 bits elsewhere ("int8": 8 bits everywhere). The model stays as it is until ``share``."""
        config = model.config
        self._model, self._library, self._format = model.model, library, format
        self._kept: list[Tensor] = []  # what C points to
        self._packed: list[tuple[Sequence[_Linear], Tiles]] = []
        self._inv_freq = rotations(config).full.inv_freq
        self._places = Places(config.sinks)
        layers = [self._layer(layer) for layer in model.model.layers]
        changes = [
            layer.memory.adapters for layer in model.model.layers if isinstance(layer.memory, BankMemory)
        ]
        for adapters in changes:
            if adapters is not None:
                for at in range(adapters.first, config.num_hidden_layers):
                    layers[at].change = self._change(adapters, at - adapters.first)
        self._weights = _FORMATS[layers[0].down.kind]
        self._memories = [
            (index, layer.memory)
            for index, layer in enumerate(model.model.layers)
            if isinstance(layer.memory, ResidualMemory)
        ]
        self._layers = (Layer * len(layers))(*layers)
        self._runner = Runner(library, self._assembled(model), self._sizes(config))

    @staticmethod
    def fits(model: InfiniForCausalLM) -> bool:
        """Whether ``step.c`` knows everything in ``model``."""
        config = model.config
        memories = [layer.memory for layer in model.model.layers]
        known = not any(isinstance(memory, PaperMemory) for memory in memories)
        # The adapters of one memory; a second one's would be open by the first one's reads.
        known = known and sum(getattr(memory, "adapters", None) is not None for memory in memories) <= 1
        known = known and _is_llama(config)
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        shapes = [tuple(linear.weight.shape) for linear in linears]
        shapes += [module.store.shape for module in stored(model).values()]
        tiled = all(fits_tiles(shape) for shape in shapes)
        return known and tiled and config.hidden_act == "silu" and config.head_dim <= WIDEST_HEAD

    @property
    def weights(self) -> str:
        return self._weights

    @property
    def library(self) -> ctypes.CDLL:
        """The compiled functions."""
        return self._library

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights: what one token reads."""
        if not self._packed:  # float32: copies among others that are small
            return sum(tensor.nbytes for tensor in self._kept)
        return sum(tiles.nbytes for _, tiles in self._packed)

    def feed(self, cache: InfiniCache, token_id: int) -> None:
        self.feed_each((cache,), (token_id,))

    def feed_each(self, caches: Sequence[InfiniCache], token_ids: Sequence[int]) -> None:
        """``feed`` one token to each of several caches of batch 1, all in one forward: every weight is read
        once for all of them. They may be as long as they are; none sees anything of another one."""
        for cache in caches:
            self._model.evict(cache)
        ids = torch.tensor(token_ids)[:, None]
        embedded = self._model.embed_tokens(ids)
        h = embedded.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        normed = torch.empty_like(h)
        seen = torch.tensor([cache.seen for cache in caches])
        angles = seen[:, None] * self._inv_freq  # float64, exact at any position
        cosine, sine = angles.cos().float(), angles.sin().float()
        rows = self._places.rows(caches, h, normed, cosine, sine)
        is_bf16 = caches[0].dtype == torch.bfloat16
        done = 0
        told: list[Carried] = []
        for index, memory in self._memories:
            states = [cache.states[index] for cache in caches]
            if states[0].memory is None:
                continue
            self._runner.run(rows, done, 2 * index + 1, is_bf16=is_bf16)
            done = 2 * index + 1
            read, carried = one_token_each(memory, h, normed, states, embeddings=embedded, ids=ids)
            h.copy_(read)
            if carried is not None:
                told.append(carried)
                opened = carried.opened.flatten().tolist() if carried.adapters else [0.0] * len(caches)
                for row, amount in zip(rows, opened, strict=True):
                    row.open = amount
        self._runner.run(rows, done, 2 * len(self._layers), is_bf16=is_bf16)
        hidden = self._runner.norm(h)
        for carried in told:
            hidden = carried.spoken(hidden[:, None])[:, 0]
        final = hidden.to(caches[0].dtype)
        for row, cache in enumerate(caches):
            self._count(cache, ids[row : row + 1])
            cache.last_hidden = final[row : row + 1].clone()

    def logits(self, hidden: Tensor) -> Tensor:
        return self._runner.head(hidden)[0]

    def logits_each(self, hidden: Tensor) -> Tensor:
        """Scores [B, V] of the next tokens for the ``last_hidden`` of B caches, [B, C]."""
        return self._runner.head(hidden)

    def _count(self, cache: InfiniCache, ids: Tensor) -> None:
        for state in cache.states:
            state.k.length += 1
            state.v.length += 1
        cache.ids.append(ids)
        cache.slots_fed += 1
        cache.seen += 1

    def _sizes(self, config: InfiniConfig) -> Sizes:
        attended = config.num_attention_heads * config.head_dim
        widest = max(config.hidden_size, attended, config.intermediate_size)
        tallest = max(max(layer.qkv.rows, layer.gate_up.rows, layer.out.rows) for layer in self._layers)
        return Sizes(widest, tallest, config.window + config.sinks)

    def _assembled(self, model: InfiniForCausalLM) -> Model:
        config = model.config
        return Model(
            layers=len(self._layers),
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            dim=config.head_dim,
            eps=config.rms_norm_eps,
            layer=self._layers,
            norm=self._pointer(model.model.norm.weight),
            head=self._fused(model.lm_head),
        )

    def _layer(self, layer: InfiniDecoderLayer) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        assert isinstance(mlp, InfiniMLP)
        return Layer(
            qkv=self._fused(attention.q_proj, attention.k_proj, attention.v_proj),
            out=self._fused(attention.o_proj),
            gate_up=self._fused(mlp.gate_proj, mlp.up_proj),
            down=self._fused(mlp.down_proj),
            input_norm=self._pointer(layer.input_layernorm.weight),
            mlp_norm=self._pointer(layer.post_attention_layernorm.weight),
        )

    def _change(self, adapters: Adapters, at: int) -> Change:
        ups = torch.cat((adapters.q_up[at], adapters.k_up[at], adapters.v_up[at]))
        return Change(
            rank=adapters.rank,
            down_qkv=self._pointer(adapters.qkv_down[at]),
            up_qkv=self._pointer(ups),
            down_out=self._pointer(adapters.o_down[at]),
            up_out=self._pointer(adapters.o_up[at]),
        )

    def _fused(self, *linears: _Linear) -> Matrix:
        """The outputs of several linears of one input below each other."""
        biases = joined_bias(linears)
        bias = None if biases is None else self._pointer(biases)
        tiles = self._tiles(linears)
        if tiles is None:
            weight = torch.cat([linear.weight for linear in linears])
            return Matrix(_F32, *weight.shape, self._pointer(weight), bias)
        self._packed.append((linears, tiles))
        return Matrix(tiles.kind, *tiles.shape, tiles.data.data_ptr(), bias)

    def _tiles(self, linears: Sequence[_Linear]) -> Tiles | None:
        if self._format == "float32":
            return None
        stores = [linear.store for linear in linears if isinstance(linear, StoredLinear)]
        blocks = [store for store in stores if isinstance(store, Blocks)]
        if self._format == "int4" and len(blocks) == len(linears):
            tiles = tiles_of_blocks(blocks, self._library)
            if tiles is not None:
                return tiles
        weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
        exact = q4_tiles(weight) if self._format == "int4" else None
        kind, data = (Q8, q8_tiles(weight)) if exact is None else (Q4, exact)
        return Tiles(kind, data, self._library)

    def share(self, model: InfiniForCausalLM, dtype: torch.dtype) -> None:
        """Have ``model``, whose weights are in ``dtype``, read from these tiles wherever they hold the very
        same numbers, and keep no copy of its own there."""
        names = {id(module): name for name, module in model.named_modules()}
        for linears, tiles in self._packed:
            first = 0
            for linear in linears:
                count = linear.weight.shape[0] if isinstance(linear, nn.Linear) else linear.store.shape[0]
                part = tiles.cut(first, count)
                first += count
                if isinstance(linear, StoredLinear) or torch.equal(part.weight(dtype), linear.weight):
                    put(model, names[id(linear)], part, dtype)
        of_head, of_embedding = (
            getattr(module, "store", None) for module in (model.lm_head, model.model.embed_tokens)
        )
        if not model.config.tie_word_embeddings:
            alone = [of_embedding] if isinstance(of_embedding, Blocks) else []
            of_head = tiles_of_blocks(alone, self._library) if alone else None
        if isinstance(of_head, Tiles):
            put(model, "model.embed_tokens", of_head, dtype)

    def _pointer(self, tensor: Tensor) -> int:
        """Address of a copy that lives as long as this object; floating point becomes float32."""
        copy = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        copy = copy.clone(memory_format=torch.contiguous_format)
        self._kept.append(copy)
        return copy.data_ptr()


def _is_llama(config: InfiniConfig) -> bool:
    """Whether a decoder computes what Llama's does, for a window of this size."""
    span = config.sliding_window
    never = (
        span is not None and span >= config.window + config.sinks and "local_theta" not in config.infini_rope
    )
    unused = {"sliding_window", "layer_types"} if never else set()
    return not set(config.features) - unused and rotations(config).full.scale == 1
