"""Parameters spread over processes (PyTorch's FSDP), for models that no single device can train.

Attention and MLP of each layer are units; what they do not hold is gathered right before they run and given
back afterwards. The memories stay whole in every process: they are small, have scalars, and are written
between two forwards. Layers themselves are no units: FSDP hands a unit copies of the dataclasses that it is
given, and a layer notes in its state what the next tokens need.

FSDP averages the gradients that it spreads; ``gathered`` and ``spread`` turn a parameter into the whole
tensor and back, in all processes at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from infinichat.model.modeling_infini import InfiniForCausalLM

MEMORY = ".memory."


def shard(model: InfiniForCausalLM, device: torch.device) -> None:
    """Spread ``model``, in place, over all processes of the default group."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    whole = {parameter for name, parameter in model.named_parameters() if MEMORY in name}
    for layer in model.model.layers:
        fully_shard(layer.self_attn, mesh=mesh)
        fully_shard(layer.mlp, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=whole)


def spread_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This process's part of the gradients of those parameters that are spread."""
    return [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of ``tensor``, which may be spread."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """``whole`` spread as ``like`` is."""
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole
