"""What is chosen for a machine, what a setting overrides, and what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infinichat.config import EngineSettings
from infinichat.engine.device import (
    FILE,
    Plan,
    choose_device,
    machine_key,
    make_plan,
    remember_plan,
    remembered_plan,
)
from infinichat.errors import ConfigError

SAMPLE = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) * 0.05
PLAN = Plan("cpu", "bfloat16", "int8", 2)


def test_a_setting_decides_the_formats() -> None:
    cpu = EngineSettings(device="cpu")
    for dtype in ("float32", "bfloat16"):
        plan = make_plan(EngineSettings(device="cpu", dtype=dtype), SAMPLE)  # type: ignore[arg-type]
        assert (plan.dtype, plan.weights) == (dtype, dtype)
    assert make_plan(EngineSettings(device="cpu", dtype="int8"), SAMPLE).weights == "int8"
    assert make_plan(EngineSettings(device="cpu", threads=3), SAMPLE).threads == 3
    assert make_plan(cpu, SAMPLE).threads == 0


def test_auto_never_takes_int4_for_weights_that_are_not_four_bit() -> None:
    assert make_plan(EngineSettings(device="cpu"), SAMPLE).weights != "int4"


def test_a_device_that_is_not_there_is_named() -> None:
    assert choose_device("cpu") == "cpu"
    missing = next(
        (name for name, there in
         (("mps", torch.backends.mps.is_available()), ("cuda", torch.cuda.is_available())) if not there),
        None,
    )  # fmt: skip
    if missing is not None:
        with pytest.raises(ConfigError, match=missing):
            choose_device(missing)


def test_a_plan_is_remembered_by_machine_and_settings(tmp_path: Path) -> None:
    key, other = machine_key(EngineSettings(), (1, 2)), machine_key(EngineSettings(threads=1), (1, 2))
    assert key != other
    assert key != machine_key(EngineSettings(), (1, 3))
    assert key == machine_key(EngineSettings(), (1, 2))
    assert remembered_plan(tmp_path, key) is None
    remember_plan(tmp_path / "cache", key, PLAN)
    remember_plan(tmp_path / "cache", other, Plan("cpu", "float32", "float32", 1))
    assert remembered_plan(tmp_path / "cache", key) == PLAN
    assert remembered_plan(tmp_path / "cache", other) == Plan("cpu", "float32", "float32", 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"k": 3}',
        '{"k": {"device": "cpu"}}',
        '{"k": {"device": "cpu", "dtype": "x", "weights": "int8"}}',
    ],
)
def test_a_damaged_memory_of_plans_is_as_good_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    assert remembered_plan(tmp_path, "k") is None
    remember_plan(tmp_path, "k", PLAN)
    assert remembered_plan(tmp_path, "k") == PLAN


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remember_plan(tmp_path / "file" / "cache", "k", PLAN)
