"""Low-rank changes of a base's attention, learned together with a memory and added to its weights on loading.

    W' = W + U D        U [out, rank], D [rank, in]        (LoRA, arXiv 2106.09685)

for the four projections of every layer from the memory's on. Layers below it stay the base's, so what a
memory is written with and asked by does not change. Stored beside the memory's parameters as
``model.layers.N.self_attn.q_proj.adapter_up`` and ``.adapter_down``; a model in use has W' and nothing else.
W' lies on no grid of 4 bits, so where single tokens are computed in the file's own 4 bits, these matrices are
kept in 8.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinichat.errors import ModelFileError
from infinichat.model.configuration_infini import InfiniConfig
from infinichat.model.modeling_infini import InfiniForCausalLM

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MARK = ".adapter_"
"""In the name of every stored tensor of an adapter."""


class Adapters(nn.Module):
    """U and D of rank ``rank`` for the layers ``first`` to the last; U starts at zero, so nothing changes."""

    def __init__(self, config: InfiniConfig, *, first: int, rank: int) -> None:
        super().__init__()
        self.pairs = nn.ParameterDict()
        width, own = config.hidden_size, config.head_dim
        sizes = {
            "q_proj": (config.num_attention_heads * own, width),
            "k_proj": (config.num_key_value_heads * own, width),
            "v_proj": (config.num_key_value_heads * own, width),
            "o_proj": (width, config.num_attention_heads * own),
        }
        for layer in range(first, config.num_hidden_layers):
            for name, (rows, columns) in sizes.items():
                down = torch.randn(rank, columns) * columns**-0.5
                self.pairs[f"{layer}_{name}_up"] = nn.Parameter(torch.zeros(rows, rank))
                self.pairs[f"{layer}_{name}_down"] = nn.Parameter(down)

    def added(self, layer: int, name: str, x: Tensor) -> Tensor:
        """U D x [..., out] for x [..., in], in x's type."""
        up, down = (self.pairs[f"{layer}_{name}_{part}"].to(x.dtype) for part in ("up", "down"))
        return F.linear(F.linear(x, down), up)

    def stored(self) -> dict[str, Tensor]:
        """The tensors under the names that they are stored by."""
        named = {}
        for key, value in self.pairs.items():
            layer, rest = key.split("_", 1)
            name, part = rest.rsplit("_", 1)
            named[f"model.layers.{layer}.self_attn.{name}{MARK}{part}"] = value.detach().float()
        return named

    @torch.no_grad()
    def take(self, stored: Mapping[str, Tensor]) -> None:
        """Put ``stored`` tensors in place. Raises ``ModelFileError`` naming one that does not fit."""
        for name, own in self.stored().items():
            given = stored.get(name)
            if given is None or given.shape != own.shape:
                shape = "missing" if given is None else list(given.shape)
                raise ModelFileError(f"{name} is {shape}, expected {list(own.shape)}. Get the model again.")
            parts = name.split(".")
            part = name.rsplit(MARK, 1)[1]
            self.pairs[f"{parts[2]}_{parts[4]}_{part}"].copy_(given)


@torch.no_grad()
def merge(model: InfiniForCausalLM, stored: Mapping[str, Tensor]) -> None:
    """Add U D to the weights of ``model`` in place. Raises ``ModelFileError`` naming a tensor that is alone,
    does not fit or belongs to no projection."""
    weights = dict(model.named_parameters())
    for name in stored:
        place, part = name.rsplit(MARK, 1)
        other = f"{place}{MARK}{'down' if part == 'up' else 'up'}"
        weight = weights.get(f"{place}.weight")
        if weight is None or part not in ("up", "down") or other not in stored:
            raise ModelFileError(
                f"{name} changes no weight of this model or is alone; expected adapter_up and adapter_down "
                "beside each other for a projection. Get the model again."
            )
        if part == "down":
            continue
        up, down = stored[name].float(), stored[other].float()
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise ModelFileError(
                f"{name} is {list(up.shape)} and {other} {list(down.shape)}; their product must be "
                f"{list(weight.shape)}. Get the model again."
            )
        weight.copy_((weight.float() + up @ down).to(weight.dtype))
