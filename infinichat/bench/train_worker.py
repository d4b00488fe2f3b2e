"""One training step of one kind at one length, in a process of its own: prints its seconds and memory.

``python -m infinichat.bench.train_worker '{"way": "sdpa", "tokens": 2048, ...}'`` prints a JSON line. The
fields are those of ``train.Job``. Peak memory is the largest the process ever was (``resource``); ``step_mb``
is how much of that came with the measured step, over what was there after a step of a few tokens.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from infinichat.bench.train import SHAPE, Job

WARM_UP = 64
"""Tokens of the step before: kernels, threads and the optimizer's moments are there afterwards."""

Backward = Callable[[Tensor], float]


def main(argv: list[str]) -> int:
    """Measure the job that the one argument describes."""
    print(json.dumps(measure(Job(**json.loads(argv[0])))), flush=True)
    return 0


def measure(job: Job) -> dict[str, Any]:
    """Seconds, megabytes and the loss of one step: forward, backward, AdamW."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    model, backward = _prepared(job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, job.vocabulary, (1, job.tokens))
    _step(optimizer, backward, ids[:, :WARM_UP])
    before, started, busy = _resident_mb(), time.perf_counter(), time.process_time()
    loss = _step(optimizer, backward, ids)
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
    peak = _peak_mb()
    return {**times, "peak_mb": peak, "step_mb": max(0.0, peak - before), "loss": loss}


def _step(optimizer: torch.optim.Optimizer, backward: Backward, ids: Tensor) -> float:
    optimizer.zero_grad(set_to_none=False)
    loss = backward(ids)
    optimizer.step()
    return loss


def _prepared(job: Job) -> tuple[nn.Module, Backward]:
    if job.way == "sdpa":
        return _llama(job)
    from infinichat.model.configuration_infini import InfiniConfig
    from infinichat.model.modeling_infini import InfiniForCausalLM
    from infinichat.training.streamed import Streamed

    config = InfiniConfig(
        **_shape(job),
        window=job.segment,
        segment=job.segment,
        sinks=0,
        memory="delta",
        memory_layers=list(range(job.layers)),
        memory_trained=True,
    )
    model = InfiniForCausalLM(config).train()
    if job.way == "type1":
        return model, lambda ids: _one_forward(model, ids)
    streamed = Streamed(model, truncate=job.truncate if job.way == "type2" else None)

    def backward(ids: Tensor) -> float:
        counted, _ = streamed.backward(ids, ids)
        return counted.loss / counted.tokens

    return model, backward


def _llama(job: Job) -> tuple[nn.Module, Backward]:
    from transformers import LlamaConfig, LlamaForCausalLM

    chosen: dict[str, Any] = {"use_cache": False, "attn_implementation": "sdpa"}
    config = LlamaConfig(**_shape(job), max_position_embeddings=job.tokens, **chosen)
    model = LlamaForCausalLM(config).train()
    return model, lambda ids: _one_forward(model, ids)


def _one_forward(model: nn.Module, ids: Tensor) -> float:
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach())


def _shape(job: Job) -> dict[str, Any]:
    return {
        **SHAPE,
        "vocab_size": job.vocabulary,
        "hidden_size": job.hidden,
        "intermediate_size": 3 * job.hidden,
        "num_hidden_layers": job.layers,
    }


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss / 1e6)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
