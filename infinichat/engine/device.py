"""Where and in which numbers the model runs: device, dtype for reading, weight format for answering, threads.

Chosen once by measurement on this machine and kept in the cache folder (``engine.json``); settings override
each part. Formats are compared on one thread, where a busy machine delays all of them alike; the number of
threads is only kept when the machine was quiet.

    auto on a CPU   reading: bfloat16 where its products are faster than float32's, else float32
                    answering: int4 where that loses nothing (4-bit files), else int8, if the kernels exist
    auto on a GPU   bfloat16 where it is supported, else float32, for both
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from infinichat.config import EngineSettings
from infinichat.engine.compiler import processor_name
from infinichat.engine.quantize import FORMATS, Product, WeightFormat, smallest_lossless, supported
from infinichat.engine.threads import available_cores
from infinichat.errors import ConfigError

StepName = Literal["", "native", "plain", "module"]

FILE = "engine.json"
"""Under ``paths.cache``: may be deleted at any time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``dtype`` is the model's and the window's; ``weights`` what single tokens are computed with;
    ``threads`` 0 and ``step`` "" mean: not measured yet."""

    device: str
    dtype: str
    weights: WeightFormat
    threads: int = 0
    step: StepName = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def choose_device(wanted: str) -> str:
    """The device for a setting; raises ``ConfigError`` when it is asked for and not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise ConfigError(
            f"engine.device is {wanted!r}, but torch finds only {found} here. Next: set it to 'auto'."
        )
    return wanted


def make_plan(settings: EngineSettings, sample: torch.Tensor) -> Plan:
    """Everything but the measured threads. ``sample`` [out, in] is a float32 weight matrix of the model, by
    which formats are compared."""
    device = choose_device(settings.device)
    threads = settings.threads or 0
    if device != "cpu":
        dtype = "float32" if settings.dtype == "float32" else _gpu_dtype(device)
        return Plan(device, dtype, "float32" if dtype == "float32" else "bfloat16", threads or 1)
    if settings.dtype == "float32":
        return Plan(device, "float32", "float32", threads)
    if settings.dtype == "bfloat16":
        return Plan(device, "bfloat16", "bfloat16", threads)
    dtype = "bfloat16" if _bfloat16_reads_faster(sample) else "float32"
    if settings.dtype == "int8":
        return Plan(device, dtype, "int8", threads)
    return Plan(device, dtype, _answering_format(sample), threads)


def machine_key(settings: EngineSettings, shape: tuple[int, ...]) -> str:
    """What a measurement depends on: processor, cores, torch, the settings, the model's shape."""
    facts = (
        platform.machine(),
        processor_name(),
        available_cores(),
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        os.environ.get("GOMP_SPINCOUNT"),
        asdict(settings),
        shape,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def remembered_plan(cache: Path, key: str) -> Plan | None:
    """The plan measured earlier for ``key``; None without one. A damaged file is as good as none."""
    try:
        found = json.loads((cache / FILE).read_text(encoding="utf-8"))[key]
        plan = Plan(**found)
        choose_device(plan.device)
        known = plan.dtype in ("bfloat16", "float32") and plan.weights in FORMATS
        return plan if known and plan.step in ("", "native", "plain", "module") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None


def remember_plan(cache: Path, key: str, plan: Plan) -> None:
    """Keep the plan for the next start. Not being able to write is no failure: the next start measures
    again."""
    try:
        file = cache / FILE
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        known = known if isinstance(known, dict) else {}
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**known, key: asdict(plan)}, indent=1), encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        return


def _gpu_dtype(device: str) -> str:
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _answering_format(sample: torch.Tensor) -> WeightFormat:
    """The fastest of the formats that keep the model's quality and work here."""
    small = smallest_lossless(sample)
    formats: list[WeightFormat] = [f for f in (small, "int8", "bfloat16") if supported(f)]
    return min([*formats, "float32"], key=lambda f: _one_row_seconds(sample, f))


@torch.inference_mode()
def _one_row_seconds(weight: torch.Tensor, format: WeightFormat) -> float:
    # Enough copies that they do not all stay in the nearest cache, as a model's weights do not.
    products = [Product(weight, format=format) for _ in range(8)]
    x = torch.ones(1, weight.shape[1], dtype=products[0].dtype)
    return _best_seconds(lambda: [product(x) for product in products])


@torch.inference_mode()
def _bfloat16_reads_faster(weight: torch.Tensor) -> bool:
    x = torch.randn(128, weight.shape[1])
    narrow_x, narrow = x.bfloat16(), weight.bfloat16()
    wide_s = _best_seconds(lambda: x @ weight.T)
    return _best_seconds(lambda: narrow_x @ narrow.T) < wide_s


def _best_seconds(work: Any, rounds: int = 5) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
