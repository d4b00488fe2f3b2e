"""State in, state out: pieces give what the whole gives, and a state is a value."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from infinichat.layers import CompressiveMemory, InfiniState, InfiniTransformer
from tests.layers.definition import F64, VARIANTS, make

STREAMED = {name: changed for name, changed in VARIANTS.items() if changed.get("causal", True)}


def streamed(
    layer: CompressiveMemory, x: Tensor, cuts: list[int], state: InfiniState | None = None
) -> tuple[Tensor, InfiniState]:
    """x fed in pieces of these lengths."""
    parts = []
    for piece in x.split(cuts, dim=1):
        out, state = layer(piece, state=state, return_state=True)
        parts.append(out)
    assert state is not None
    return torch.cat(parts, dim=1), state


def assert_same_state(got: InfiniState, expected: InfiniState) -> None:
    """Equal tensors, but for rounding."""
    a, b = got.to_tensors(), expected.to_tensors()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("changed", STREAMED.values(), ids=STREAMED.keys())
@pytest.mark.parametrize(
    "cuts", [[1] * 23, [5, 5, 5, 5, 3], [4, 1, 6, 9, 3], [10, 13], [11, 12], [9, 14]], ids=str
)
def test_pieces_give_what_the_whole_gives(changed: dict[str, object], cuts: list[int]) -> None:
    layer, x = make(**changed), torch.randn(2, 23, 10, dtype=F64)
    with torch.no_grad():
        whole, after = layer(x, return_state=True)
        out, state = streamed(layer, x, cuts)
    torch.testing.assert_close(out, whole)
    assert_same_state(state, after)


def test_without_causal_whole_segments_can_be_streamed() -> None:
    layer, x = make(causal=False, position_embedder="rope"), torch.randn(2, 18, 10, dtype=F64)
    with torch.no_grad():
        torch.testing.assert_close(streamed(layer, x, [5, 10, 3])[0], layer(x))


def test_without_causal_a_state_inside_a_segment_is_refused() -> None:
    layer, x = make(causal=False), torch.randn(1, 8, 10, dtype=F64)
    _, state = layer(x, return_state=True)
    with pytest.raises(ValueError, match="ends 3 tokens into a segment of 5"):
        layer(x, state=state)


def test_a_state_saved_and_loaded_goes_on_as_if_it_had_never_stopped() -> None:
    layer, x = make(update="delta", position_embedder="rope"), torch.randn(2, 23, 10, dtype=F64)
    with torch.no_grad():
        _, state = layer(x[:, :13], return_state=True)
        file = io.BytesIO()
        torch.save(state.to_tensors(), file)
        file.seek(0)
        loaded = InfiniState.from_tensors(torch.load(file, weights_only=True))
        assert torch.equal(layer(x[:, 13:], state=loaded), layer(x[:, 13:], state=state))


def test_using_a_state_changes_nothing_in_it_and_branches_do_not_meet() -> None:
    layer, x = make(num_kv_heads=2), torch.randn(1, 30, 10, dtype=F64)
    with torch.no_grad():
        _, state = layer(x[:, :12], return_state=True)
        before = state.clone()
        first = layer(x[:, 12:], state=state)
        layer(-x[:, 12:], state=state)
        assert_same_state(state, before)
        assert torch.equal(layer(x[:, 12:], state=state), first)


def test_rows_of_a_state_can_be_chosen_for_beams() -> None:
    layer, x = make(update="delta"), torch.randn(3, 20, 10, dtype=F64)
    rows = torch.tensor([2, 0, 2])
    with torch.no_grad():
        _, state = layer(x[:, :13], return_state=True)
        got = layer(x[rows, 13:], state=state.select_rows(rows))
        torch.testing.assert_close(got, layer(x)[rows, 13:])


def test_the_state_does_not_grow_and_keeps_no_long_input_alive() -> None:
    layer, state, sizes = make(window_len=8), None, set()
    with torch.no_grad():
        for _ in range(12):
            _, state = layer(torch.randn(1, 20, 10, dtype=F64), state=state, return_state=True)
            sizes.add(state.nbytes)
            assert state.keys.untyped_storage().nbytes() == state.keys.nbytes
    assert len(sizes) == 1
    assert state is not None
    assert state.seen.tolist() == [240]
    assert int(state.memory.written) + state.keys.shape[2] == 240


def test_gradients_cross_calls_until_a_state_is_detached() -> None:
    layer = make(update="delta")
    for detach in (False, True):
        x = torch.randn(1, 10, 10, dtype=F64, requires_grad=True)
        _, state = layer(x, return_state=True)
        layer(torch.randn(1, 5, 10, dtype=F64), state=state.detach() if detach else state).sum().backward()
        assert (x.grad is None) == detach


def test_backpropagation_through_pieces_equals_that_through_the_whole() -> None:
    layer, x = make(update="delta", position_embedder="rope"), torch.randn(1, 17, 10, dtype=F64)
    layer(x).square().sum().backward()
    whole = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    streamed(layer, x, [5, 1, 7, 4])[0].square().sum().backward()
    for parameter, expected in zip(layer.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_the_initial_state_given_or_not_is_the_same() -> None:
    for changed in ({}, {"init_state_learnable": True}):
        layer, x = make(**changed), torch.randn(2, 13, 10, dtype=F64)
        assert torch.equal(layer(x, state=layer.initial_state(2)), layer(x))


def test_a_state_of_other_weights_precision_is_taken_over() -> None:
    """Say, read in float32 and answered in bfloat16: window and memory convert, the memory stays float32."""
    layer, x = make(position_embedder="rope").float(), torch.randn(1, 17, 10)
    with torch.no_grad():
        expected, (_, state) = layer(x), layer(x[:, :8], return_state=True)
        out, state = layer.bfloat16()(x[:, 8:].bfloat16(), state=state, return_state=True)
    assert state.keys.dtype == torch.bfloat16
    assert state.memory.M.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected[:, 8:], rtol=0, atol=0.05)


def test_a_transformer_layer_streams_too() -> None:
    layer = InfiniTransformer(6, 12, 4, 4, 2, "swiglu", 4, causal=True, position_embedder="rope").to(F64)
    x = torch.randn(2, 11, 6, dtype=F64)
    whole, after = layer(x, return_state=True)
    first, state = layer(x[:, :6], return_state=True)
    second, state = layer(x[:, 6:], state=state, return_state=True)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    assert_same_state(state, after)


def test_a_state_that_does_not_fit_is_refused_with_both_shapes() -> None:
    layer, x = make(), torch.randn(2, 8, 10, dtype=F64)
    _, state = layer(x, return_state=True)
    with pytest.raises(ValueError, match=r"M is \(2, 4, 4, 6\); expected \(3, 4, 4, 6\) for a batch of 3"):
        layer(torch.randn(3, 8, 10, dtype=F64), state=state)
    with pytest.raises(ValueError, match=r"M is \(2, 4, 4, 6\); expected \(2, 2, 4, 6\)"):
        make(num_kv_heads=2)(x, state=state)
    with pytest.raises(ValueError, match="a state with 3 tokens in the window; this layer's window is 2"):
        make(segment_len=2)(x, state=state)
    with pytest.raises(ValueError, match="a memory of type torch.float64; expected torch.float32"):
        make().float()(x.float(), state=state)
    with pytest.raises(ValueError, match="a state on cpu for x on meta"):
        make().to("meta")(x.to("meta"), state=state)
    with pytest.raises(TypeError, match="a state of type dict; expected an InfiniState"):
        layer(x, state=state.to_tensors())  # type: ignore[call-overload]


def test_tensors_that_are_no_state_are_refused_by_name() -> None:
    _, state = make()(torch.randn(1, 3, 10, dtype=F64), return_state=True)
    tensors = state.to_tensors()
    tensors["mem"] = tensors.pop("M")
    with pytest.raises(ValueError, match="missing: M, unknown: mem"):
        InfiniState.from_tensors(tensors)
