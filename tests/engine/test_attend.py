"""Compiled attention is torch's, to bfloat16's rounding, and the model uses it only where it fits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.attention.window import blockwise_attention, causal_blocks
from infinichat.engine import attend as attend_module
from infinichat.engine.attend import NativeAttention, use_native_attention
from infinichat.engine.library import native_library
from infinichat.model.decoder_layer import InfiniAttention
from tests.engine.conftest import MakeModel, some_ids


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = native_library(tmp_path_factory.mktemp("native"))
    if found is None or not NativeAttention.usable(found):
        pytest.skip("no compiler, or no bfloat16 products in this processor")
    return found


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def window(count: int, keys: int, *, heads: int, kv_heads: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values as a part of a longer buffer."""
    generator = torch.Generator().manual_seed(count)
    q = torch.randn(1, count, heads, 64, generator=generator).transpose(1, 2) * size
    k, v = torch.randn(2, 1, kv_heads, keys + 30, 64, generator=generator)
    return q.bfloat16(), k.bfloat16()[:, :, 5 : 5 + keys], v.bfloat16()[:, :, 5 : 5 + keys]


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize(("count", "keys"), [(2, 2), (7, 20), (8, 16), (33, 100), (50, 50), (130, 400)])
@torch.inference_mode()
def test_it_is_torchs_attention(
    count: int, keys: int, heads: int, kv_heads: int, threads: int, library: ctypes.CDLL
) -> None:
    assert torch.get_num_threads() == threads
    for size in (1.0, 20.0):  # with scores in the hundreds, too
        q, k, v = window(count, keys, heads=heads, kv_heads=kv_heads, size=size)
        got = NativeAttention(library)(q, k, v, 0.125)
        assert got is not None
        blocks = causal_blocks(
            count, keys - count, group=heads // kv_heads, block=64, dtype=torch.float32, device=q.device
        )
        exact = blockwise_attention(q.float(), k.float(), v.float(), scale=0.125, blocks=blocks)
        assert bool(got.isfinite().all())
        assert float((got.float() - exact).norm() / exact.norm()) < 0.004


@torch.inference_mode()
def test_what_does_not_fit_is_left_to_torch(library: ctypes.CDLL) -> None:
    attend = NativeAttention(library)
    q, k, v = window(8, 16, heads=2, kv_heads=2, size=1.0)
    assert attend(q, k, v, 0.125) is not None
    assert attend(q.float(), k.float(), v.float(), 0.125) is None
    assert attend(q[..., :32], k[..., :32], v[..., :32], 0.125) is None
    assert attend(q[:, :, :1], k, v, 0.125) is None
    twice = [x.repeat(2, 1, 1, 1) for x in (q, k, v)]
    assert attend(*twice, 0.125) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert attend(q.clone(), k.clone(), v.clone(), 0.125) is None


@pytest.mark.parametrize("changes", [{}, {"memory": "bank", "memory_slots": 9}, {"sinks": 0}], ids=str)
@torch.inference_mode()
def test_a_model_reads_with_it_as_without(
    changes: dict[str, Any], make_model: MakeModel, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(head_dim=64, initializer_range=0.05, **changes)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if ".memory." in name else parameter.data.bfloat16()
    ids = torch.tensor([some_ids(90)])
    expected = model(ids).logits.float()
    calls: list[int] = []
    original = NativeAttention.__call__

    def counted(self: NativeAttention, *args: Any) -> Tensor | None:
        out = original(self, *args)
        calls.append(0 if out is None else out.shape[2])
        return out

    monkeypatch.setattr(NativeAttention, "__call__", counted)
    monkeypatch.setattr(attend_module, "has_matrix_unit", lambda: False)
    use_native_attention(model, library)
    assert all(module.kernel is not None for module in model.modules() if isinstance(module, InfiniAttention))
    got = model(ids).logits.float()
    assert sum(calls) == 3 * 90
    assert float((got - expected).norm() / expected.norm()) < 0.02
    calls.clear()
    model(ids.repeat(2, 1), attention_mask=torch.tensor([[0] * 5 + [1] * 85, [1] * 90]))
    assert not any(calls)


@pytest.mark.parametrize("unit", [False, True])
def test_where_torch_has_a_matrix_unit_a_model_attends_with_torch(
    unit: bool, make_model: MakeModel, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(head_dim=64)
    monkeypatch.setattr(attend_module, "has_matrix_unit", lambda: unit)
    use_native_attention(model, library)
    kernels = [module.kernel for module in model.modules() if isinstance(module, InfiniAttention)]
    assert kernels
    assert all((kernel is None) == unit for kernel in kernels)
