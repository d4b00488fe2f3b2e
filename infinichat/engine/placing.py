"""A loaded model comes to where it runs, and gets the fastest step for single tokens.

Three steps exist (``kernels.py``, ``native.py``). The first time on a machine those that can run the model
are timed against each other for a few tokens; after that the plan remembers which it was.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from infinichat.config import EngineSettings
from infinichat.engine.attend import use_native_attention
from infinichat.engine.device import Plan, StepName
from infinichat.engine.kernels import ModuleStep, PlainStep, Step
from infinichat.engine.library import native_library
from infinichat.engine.native import NativeStep
from infinichat.engine.quantize import WeightFormat
from infinichat.engine.threads import available_cores, candidates, fastest_threads
from infinichat.engine.tiles import Tiles
from infinichat.model.modeling_infini import InfiniForCausalLM
from infinichat.model.stored import dense, stored

TRIED_TOKENS = 6
READ_TOKENS = 128
"""Tokens that threads are compared by."""
READ_ROUNDS = 10
"""Of some milliseconds each."""


def placed(
    model: InfiniForCausalLM, plan: Plan, settings: EngineSettings, *, cache: Path
) -> tuple[Step, Plan]:
    """Bring a float32 ``model`` into the plan's dtype and onto its device; its step, and the plan with the
    name of that step. Steps are packed from the exact weights, before they are rounded."""
    steps = _steps(model, plan, settings, cache)
    for name, parameter in model.named_parameters():
        # Memories stay float32: bfloat16 sums are wrong after a million tokens. What their keys are projected
        # by adds up nothing over time, and is as large as all else of them.
        kept = ".memory." in name and not name.endswith(".memory.context")
        dtype = parameter.dtype if kept else plan.torch_dtype
        parameter.data = parameter.data.to(device=plan.device, dtype=dtype)
    for module in stored(model).values():
        module.dtype = plan.torch_dtype
    model.config.dtype = plan.torch_dtype
    model.requires_grad_(False)
    name = next(iter(steps))
    if len(steps) > 1:
        name = min(steps, key=lambda each: _token_seconds(model, steps[each]))
    step = steps[name]
    steps.clear()
    if isinstance(step, NativeStep):
        step.share(model, plan.torch_dtype)
        use_native_attention(model, step.library)
    dense(model, plan.torch_dtype, keep=Tiles if isinstance(step, NativeStep) else None)
    if plan.device != "cpu":
        model.to(plan.device)
    if isinstance(step, PlainStep):
        step.share_embedding()
    return step, replace(plan, step=name)


def measured_threads(model: InfiniForCausalLM, step: Step) -> int:
    """The thread count that is fastest here: at reading, by a part of one layer, when single tokens run on
    one thread anyway; otherwise at single tokens."""
    counts = candidates(available_cores())
    if not isinstance(step, NativeStep):
        return fastest_threads(lambda: _some_tokens(model, step, 3), counts)
    layer, h = model.model.layers[0], torch.ones(1, READ_TOKENS, model.config.hidden_size, dtype=model.dtype)

    @torch.inference_mode()
    def read() -> None:
        layer.after_mlp(h)

    return fastest_threads(read, counts, rounds=READ_ROUNDS)


def _steps(
    model: InfiniForCausalLM, plan: Plan, settings: EngineSettings, cache: Path
) -> dict[StepName, Step]:
    """What can run this model, or only what the plan names, if that still can."""
    steps: dict[StepName, Step] = {}
    if plan.device == "cpu" and settings.dtype in ("auto", "int8") and plan.step in ("", "native"):
        library = native_library(cache) if NativeStep.fits(model) else None
        if library is not None:
            format: WeightFormat = "int8" if settings.dtype == "int8" else "int4"
            steps["native"] = NativeStep(model, library, format=format)
            if library.infini_multiplies_in_fours():
                # Three times as fast as torch wherever that was measured: nothing to compare.
                return steps
    # Also where the plan says "native" and the compiler has gone since.
    wanted = plan.step != "native" or not steps
    if plan.device == "cpu" and wanted and PlainStep.fits(model):
        steps["plain"] = PlainStep(model, format=plan.weights)
    return steps or {"module": ModuleStep(model)}


def _token_seconds(model: InfiniForCausalLM, step: Step) -> float:
    _some_tokens(model, step, 2)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        _some_tokens(model, step, TRIED_TOKENS)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def _some_tokens(model: InfiniForCausalLM, step: Step, count: int) -> None:
    state = model.model.new_cache()
    for token_id in range(count):
        step.feed(state, token_id)
        assert state.last_hidden is not None
        step.logits(state.last_hidden)
