"""What torch tells of the processor, and that an older torch is not asked."""

from __future__ import annotations

import pytest
import torch

from infinichat.engine.matrix_unit import has_matrix_unit


@pytest.mark.parametrize(
    ("told", "has"), [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)]
)
def test_it_is_what_torch_says(told: dict[str, bool], has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert has_matrix_unit.__wrapped__() is has


def test_a_torch_that_does_not_tell_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_matrix_unit.__wrapped__() is False
