"""What a state's memories look like from outside: numbers for ``memory show`` and the memory screen."""

from __future__ import annotations

import torch
from torch import Tensor

from infinichat.messages import LayerMemory
from infinichat.model.cache import InfiniCache
from infinichat.model.memories import PaperMemory
from infinichat.model.modeling_infini import InfiniForCausalLM


@torch.no_grad()
def layer_reports(model: InfiniForCausalLM, cache: InfiniCache) -> tuple[LayerMemory, ...]:
    """One ``LayerMemory`` for each layer that has a memory in ``cache``, lowest first. ``gate`` is the mean
    of the paper's sigmoid(beta), or the recall memory's token gate where nothing speaks for or against
    reading."""
    reports = []
    for index, memory in sorted(cache.memories.items()):
        module = model.model.layers[index].memory
        logits = module.beta if isinstance(module, PaperMemory) else module.read_bias
        reports.append(
            LayerMemory(
                layer=index,
                written=int(memory.written.sum()),
                norm=float(memory.M.norm()),
                saturation=saturation(memory.M),
                gate=float(torch.sigmoid(logits.float()).mean()),
            )
        )
    return tuple(reports)


def saturation(M: Tensor) -> float:
    """Effective rank of M [B, H, F, D] over its largest possible rank, averaged over heads, in 0..1. The
    effective rank is exp(entropy of the squared singular values, normalised); an empty head counts as 0."""
    wide = M.double()
    small = min(wide.shape[-2:])
    # The eigenvalues of the smaller Gram matrix are the squared singular values, at a tenth of an SVD's cost.
    gram = wide.transpose(-1, -2) @ wide if wide.shape[-1] == small else wide @ wide.transpose(-1, -2)
    energy = torch.linalg.eigvalsh(gram).clamp(min=0)  # [B, H, small]
    total = energy.sum(dim=-1, keepdim=True)
    shares = energy / total.clamp(min=1e-30)
    entropy = -(shares * shares.clamp(min=1e-30).log()).sum(dim=-1)
    ranks = torch.where(total[..., 0] > 0, entropy.exp(), torch.zeros_like(entropy))
    return float(ranks.mean()) / small
