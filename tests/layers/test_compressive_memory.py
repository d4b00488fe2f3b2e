"""Infini-attention as a module: the definition, hand-computed numbers, causality, gradients, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from infinichat.attention import reference
from infinichat.layers import CompressiveMemory, RoPEEmbeddings
from infinichat.layers.segments import Rule, mix
from tests.layers.definition import F64, defined, make, variants


@variants
@pytest.mark.parametrize("length", [1, 5, 6, 18])
def test_every_variant_is_the_reference_s_mathematics(changed: dict[str, object], length: int) -> None:
    layer, x = make(**changed), torch.randn(1, length, 10, dtype=F64)
    torch.testing.assert_close(layer(x)[0], defined(layer, x[0]))


@pytest.mark.parametrize("rule", ["linear", "delta"])
@pytest.mark.parametrize("window", [5, 8])
def test_the_layer_is_the_reference_s_own_layer(rule: str, window: int) -> None:
    """``reference.paper_layer`` turns the pairs (i, i + D/2), the embedder (2i, 2i+1): the same dimensions in
    another order, which neither scores nor memory see."""
    layer = make(
        dim_value=4,
        num_kv_heads=2,
        update=rule,
        window_len=window,
        position_embedder=RoPEEmbeddings(4, 5, dim_embedding_pct=1.0),
    )
    layer.betas.data = torch.randn(1, 4, 1, 1, dtype=F64).expand(1, 4, 1, 4).clone()
    x = torch.randn(1, 19, 10, dtype=F64)
    q, k, v = (
        (x[0] @ proj.weight.T).unflatten(-1, (-1, 4)).transpose(0, 1)
        for proj in (layer.proj_q, layer.proj_k, layer.proj_v)
    )
    order = torch.tensor([0, 2, 1, 3])
    expected = reference.paper_layer(
        q[..., order],
        k[..., order],
        v,
        layer.betas[0, :, 0, 0],
        window=reference.Window(window, 5),
        rule=rule,  # type: ignore[arg-type]
    )
    out, state = layer(x, return_state=True)
    torch.testing.assert_close(out[0], expected.output.transpose(0, 1).flatten(1) @ layer.proj_out.weight.T)
    torch.testing.assert_close(state.memory.M[0][:, order], torch.stack(expected.M))
    assert state.memory.z is not None
    torch.testing.assert_close(state.memory.z[0][:, order], torch.stack(expected.z))


def one_head(update: str) -> CompressiveMemory:
    """One head of width 1 that takes q, k and v from its three inputs, segments of two, an even gate."""
    layer = CompressiveMemory(3, 1, 1, 1, 2, update=update, causal=True).to(F64)
    layer.proj_q.weight.data = torch.tensor([[1.0, 0, 0]], dtype=F64)
    layer.proj_k.weight.data = torch.tensor([[0, 1.0, 0]], dtype=F64)
    layer.proj_v.weight.data = torch.tensor([[0, 0, 1.0]], dtype=F64)
    layer.proj_out.weight.data = torch.ones(3, 1, dtype=F64)
    layer.betas.data.zero_()
    return layer


def test_numbers_worked_out_by_hand() -> None:
    """Tokens (q, k, v), sigma(k) = k + 1 for k >= 0:

    segment 1, memory empty, gate skipped:   (0, 0, 8) -> 8        (0, 0, 4) -> (8 + 4) / 2 = 6
        then M = 1 * 8 + 1 * 4 = 12, z = 2 (linear and delta alike)
    segment 2:  (0, 1, 2)   A_dot = 2, A_mem = 12 / 2 = 6 -> 4
                (0, 2, 10)  A_dot = (2 + 10) / 2 = 6, A_mem = 6 -> 6
        linear: M = 12 + 2 * 2 + 3 * 10 = 46          z = 2 + 2 + 3 = 7
        delta:  M = 12 + 2 * (2 - 6) + 3 * (10 - 6) = 16
    segment 3:  (0, 0, 1)   A_dot = 1, A_mem = 46 / 7 or 16 / 7
    """
    x = torch.tensor([[[0, 0, 8], [0, 0, 4], [0, 1, 2], [0, 2, 10], [0, 0, 1]]], dtype=F64)
    for update, M in (("linear", 46), ("delta", 16)):
        out, state = one_head(update)(x, return_state=True)
        expected = torch.tensor([8, 6, 4, 6, (1 + M / 7) / 2], dtype=F64)
        torch.testing.assert_close(out[0], expected[:, None].expand(-1, 3))
        assert state.memory.M.item() == pytest.approx(M)
        assert state.memory.z is not None
        assert state.memory.z.item() == pytest.approx(7)
        assert state.memory.written.tolist() == [4]


def test_the_scores_are_scaled_by_the_root_of_the_key_width() -> None:
    layer = CompressiveMemory(1, 4, 1, 1, 2, causal=True).to(F64)
    for proj in (layer.proj_q, layer.proj_k, layer.proj_v, layer.proj_out):
        proj.weight.data.fill_(1.0)
    # Second token: q.k = 4 * 1 * (0, 1), over 2: weights e^0 and e^2 over values 0 and 1.
    out = layer(torch.tensor([[[0.0], [1.0]]], dtype=F64))
    assert out[0, 1].item() == pytest.approx(math.exp(2) / (1 + math.exp(2)))


def reach(layer: CompressiveMemory, x: Tensor) -> Tensor:
    """[S, S], True where output t depends on input s, by the gradient."""
    whole = torch.autograd.functional.jacobian(lambda t: layer(t).sum(dim=(0, 2)), x)
    return whole[:, 0].abs().amax(dim=-1) > 0


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("embedder", [None, "rope"])
def test_causal_every_token_reaches_itself_and_all_later_ones_and_nothing_earlier(
    window: int | None, embedder: str | None
) -> None:
    layer = make(window_len=window, position_embedder=embedder, num_kv_heads=2)
    got = reach(layer, torch.randn(1, 17, 10, dtype=F64))
    assert torch.equal(got, torch.ones(17, 17, dtype=torch.bool).tril())


def test_causal_in_every_head() -> None:
    """A wrong split of the heads shows only with several of them: each alone is looked at."""
    layer, x = make(update="delta"), torch.randn(1, 13, 10, dtype=F64)
    for head in range(4):
        alone = make(update="delta")
        alone.load_state_dict(layer.state_dict())
        keep = torch.zeros(4, 6, dtype=F64)
        keep[head] = 1
        alone.proj_out.weight.data *= keep.flatten()
        assert torch.equal(reach(alone, x), torch.ones(13, 13, dtype=torch.bool).tril())


def test_a_changed_later_token_changes_no_earlier_output_at_all() -> None:
    layer, x = make(position_embedder="rope"), torch.randn(2, 17, 10, dtype=F64)
    before = layer(x)
    for changed in range(17):
        other = x.clone()
        other[:, changed] += 1
        assert torch.equal(layer(other)[:, :changed], before[:, :changed])


def test_how_long_the_input_becomes_changes_no_earlier_output() -> None:
    layer, x = make(position_embedder="rope"), torch.randn(1, 23, 10, dtype=F64)
    whole = layer(x)
    for length in range(1, 23):
        torch.testing.assert_close(layer(x[:, :length]), whole[:, :length])


def test_without_causal_a_token_sees_its_segment_and_nothing_after_it() -> None:
    got = reach(make(causal=False), torch.randn(1, 12, 10, dtype=F64))
    segment = torch.arange(12) // 5
    assert torch.equal(got, segment[:, None] >= segment[None, :])


@pytest.mark.parametrize(
    "changed",
    [
        {"update": "delta", "position_embedder": "rope", "num_kv_heads": 1},
        {"causal": False, "init_state_learnable": True},
        {"window_len": 4},
    ],
)
def test_gradients_are_right_for_inputs_and_all_parameters(changed: dict[str, object]) -> None:
    layer = make(dim_input=3, dim_key=4, dim_value=2, num_heads=2, segment_len=3, **changed)
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(1, 7, 3, dtype=F64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        out = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        assert isinstance(out, Tensor)
        return out

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


def test_the_last_segment_teaches_the_first_through_the_memory() -> None:
    layer, x = make(update="delta"), torch.randn(1, 20, 10, dtype=F64, requires_grad=True)
    layer(x)[:, -5:].sum().backward()
    assert x.grad is not None
    assert bool((x.grad[:, :5].abs().sum(dim=-1) > 1e-6).all())
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_the_memory_is_float32_under_half_precision_weights_and_float16_does_not_overflow() -> None:
    layer = CompressiveMemory(8, 4, 4, 2, 16, causal=True).to(torch.float16)
    layer.proj_k.weight.data.fill_(1.0)
    # sigma(k) = 801 a token: the sums pass float16's largest number after 82 of 512 tokens.
    with torch.no_grad():
        out, state = layer(torch.full((1, 512, 8), 100.0, dtype=torch.float16), return_state=True)
    assert out.dtype == torch.float16
    assert state.memory.z is not None
    assert state.memory.z.dtype == state.memory.M.dtype == torch.float32
    assert float(state.memory.z.max()) > torch.finfo(torch.float16).max
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_floating_type(dtype: torch.dtype) -> None:
    layer, x = make(position_embedder="rope", update="delta"), torch.randn(2, 13, 10, dtype=F64)
    with torch.no_grad():
        expected = layer(x)
        out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert float((out - expected).abs().max()) < 30 * torch.finfo(dtype).eps * float(expected.abs().max())


def test_under_autocast_the_memory_is_computed_in_float32() -> None:
    layer, x = make().float(), torch.randn(1, 40, 10)
    seen = []
    hook = torch.utils._python_dispatch.TorchDispatchMode

    class Watch(hook):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.bmm.default:
                seen.append(out.dtype)
            return out

    with torch.autocast("cpu", dtype=torch.bfloat16), Watch():
        out, state = layer(x, return_state=True)
    assert out.dtype == torch.bfloat16
    assert state.keys.dtype == torch.bfloat16
    assert state.memory.M.dtype == torch.float32
    assert seen
    assert set(seen) == {torch.float32}


def test_reads_of_half_precision_queries_are_those_of_the_same_numbers_in_float32() -> None:
    layer = make().float()
    _, state = layer(torch.randn(1, 40, 10), return_state=True)
    rule = Rule(5, 5, True, "linear", layer.betas, None, starts_empty=True)
    q, local = torch.randn(1, 4, 9, 4).bfloat16(), torch.randn(1, 4, 9, 6).bfloat16()
    expected = mix(local.float(), q.float(), state.memory, rule)
    assert torch.equal(mix(local, q, state.memory, rule), expected.bfloat16())


def test_nothing_is_made_on_another_device_than_the_input_s() -> None:
    layer = make(position_embedder="rope", update="delta", init_state_learnable=True).to("meta")
    out, state = layer(torch.empty(2, 13, 10, dtype=F64, device="meta"), return_state=True)
    assert out.device.type == "meta"
    assert {tensor.device.type for tensor in state.to_tensors().values()} == {"meta"}


def test_a_gate_that_is_closed_gives_plain_attention_and_an_open_one_the_memory() -> None:
    layer, x = make(update="delta"), torch.randn(1, 9, 10, dtype=F64)
    layer.betas.data.fill_(-torch.inf)
    local = layer(x)
    torch.testing.assert_close(local[:, 5:], layer(x[:, 5:]))
    layer.betas.data.fill_(torch.inf)
    memory_only = layer(x)
    assert torch.equal(memory_only[:, :5], local[:, :5])  # nothing written yet: the gate is skipped
    assert not torch.allclose(memory_only[:, 5:], local[:, 5:])


def test_the_learned_start_is_read_from_the_first_token_on() -> None:
    layer = make(init_state_learnable=True)
    x = torch.randn(1, 5, 10, dtype=F64)
    before = layer(x)
    assert layer.init_mem is not None
    layer.init_mem.data += 1
    assert bool((layer(x) != before).any(dim=-1).all())


def test_a_learned_mass_below_zero_keeps_its_denominators_positive() -> None:
    layer = make(init_state_learnable=True, segment_len=40).float()
    assert layer.init_z is not None
    layer.init_z.data.normal_()
    assert bool((layer(torch.randn(1, 40, 10)).abs() < 1e3).all())
