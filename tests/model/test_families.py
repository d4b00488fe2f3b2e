"""Every family of the table: the retrofitted model is its base, streamed, generated with, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.model.loading import LoadedModel, load_model
from infinichat.model.registry import Registry
from infinichat.model.retrofit import retrofit
from infinichat.paths import Paths

from .tiny_families import VARIANTS, family_ids, save_family, tiny_family

variants = pytest.mark.parametrize("variant", VARIANTS)
WINDOW: dict[str, Any] = {"window": 64, "segment": 16, "sinks": 4}


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


def made(
    registry: Registry, folder: Path, variant: str, *, dtype: torch.dtype = torch.float32, **options: Any
) -> LoadedModel:
    """``variant`` saved, retrofitted and loaded."""
    base = save_family(tiny_family(variant), folder / variant)
    out = retrofit(base, folder / "out", registry=registry, **{**WINDOW, **options})
    return load_model(out, registry=registry, dtype=dtype)


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    out: Tensor = model(ids).logits
    return out


@variants
def test_over_its_window_a_retrofitted_model_is_its_base(
    registry: Registry, tmp_path: Path, variant: str
) -> None:
    loaded, ids = made(registry, tmp_path, variant), family_ids(64, rows=2)
    base = tiny_family(variant)
    torch.testing.assert_close(logits(loaded.model, ids), logits(base, ids), rtol=1e-5, atol=2e-5)
    for parameter in base.parameters():  # each of them counts
        assert bool((parameter != 0).any())
