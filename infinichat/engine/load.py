"""A checkpoint's name becomes an engine that is ready to answer.

    engine = load_engine("smollm2-135m-infini", load_settings(default_paths()))

Device, number formats and threads are those of ``device.py``: the settings' where they say something,
otherwise what was measured on this machine. Everything heavy is imported inside the functions, because how
OpenMP's threads wait has to be set before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infinichat.config import Settings
from infinichat.engine.library import begin_compiling
from infinichat.engine.threads import (
    available_cores,
    machine_is_busy,
    prepare_environment,
    set_threads,
)
from infinichat.paths import default_paths
from infinichat.protocols import EngineInfo

if TYPE_CHECKING:
    from infinichat.engine.device import Plan
    from infinichat.engine.generate import InfiniEngine
    from infinichat.model.loading import LoadedModel

OnProgress = Callable[[int, int], None]
"""Gets tensors read and tensors in all."""


def load_engine(
    model: str | Path | None = None,
    settings: Settings | None = None,
    *,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> InfiniEngine:
    """Load a checkpoint by name or path; ``None`` is the settings' one, or the default one.

    ``cache`` is the folder for this machine's measurements (default: ``paths.cache``). Raises
    ``ModelNotFoundError``, ``ModelFileError``, ``UnsupportedModelError`` and ``ConfigError``, each with the
    next step.
    """
    settings, cache = settings or Settings(), cache or default_paths().cache
    if settings.engine.device in ("auto", "cpu") and settings.engine.dtype in ("auto", "int8"):
        begin_compiling(cache)
    prepare_environment()
    import torch

    from infinichat.model.loading import load_model

    # Float32 first, whatever runs later: 4-bit grids are found in exact numbers.
    loaded = load_model(
        model or settings.model,
        dtype=torch.float32,
        window=settings.engine.window,
        segment=settings.engine.segment,
        light=True,
        on_progress=on_progress,
    )
    return engine_of(loaded, settings, cache=cache)


def engine_of(loaded: LoadedModel, settings: Settings, *, cache: Path) -> InfiniEngine:
    """The engine over a float32 model on the CPU, which becomes the engine's: it is converted in place."""
    from infinichat.engine.device import machine_key, make_plan, remember_plan, remembered_plan
    from infinichat.engine.generate import InfiniEngine
    from infinichat.engine.heap import give_back_start
    from infinichat.engine.placing import measured_threads, placed

    model = loaded.model
    sample = model.model.layers[0].mlp.sample
    key = machine_key(settings.engine, (*sample.shape, len(model.model.layers)))
    plan = remembered_plan(cache, key)
    if plan is None:
        # One thread while formats are compared: beside other busy processes it is the only fair clock.
        set_threads(1)
        plan = make_plan(settings.engine, sample.detach())
    step, chosen = placed(model, plan, settings.engine, cache=cache)
    if chosen != plan:
        plan = chosen
        remember_plan(cache, key, plan)
    if plan.threads == 0:
        plan = replace(plan, threads=measured_threads(model, step))
        # Measured beside other busy processes, the count is right for now and not for the next start.
        if not machine_is_busy(available_cores()):
            remember_plan(cache, key, plan)
    set_threads(plan.threads)
    give_back_start()
    return InfiniEngine(model, loaded.tokenizer, info=_info(loaded, plan), step=step)


def _info(loaded: LoadedModel, plan: Plan) -> EngineInfo:
    config = loaded.model.config
    return EngineInfo(
        name=loaded.name,
        fingerprint=loaded.fingerprint,
        window=config.window,
        segment=config.segment,
        trained=loaded.trained,
        device=plan.device,
        dtype=plan.dtype,
        threads=plan.threads,
        chat_format=loaded.chat_format,
        parameters=loaded.parameters,
        memory_layers=tuple(config.memory_layers) if loaded.trained else (),
    )
