"""Many tokens times tiles in whole numbers: exact for the rounded inputs, near for the others, and only where
a document is read."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from infinichat.engine import compiler, tiles
from infinichat.engine.library import native_library
from infinichat.engine.tiles import Q4, Tiles, q4_tiles, q8_tiles
from infinichat.model.reading import read_piece
from infinichat.model.stored import StoredLinear, rounded_inputs
from tests.engine.conftest import MakeModel, some_ids
from tests.engine.test_native import SIZES
from tests.engine.test_quantize import four_bit


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = native_library(tmp_path_factory.mktemp("native"))
    if found is None or not found.infini_can_multiply_many():
        pytest.skip("no compiler, or no products of eight bits in this processor")
    return found


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "has_matrix_unit", lambda: False)


def four_bit_tiles(rows: int, columns: int, library: ctypes.CDLL) -> tuple[Tiles, Tensor]:
    weight = four_bit(rows, columns)
    packed = q4_tiles(weight)
    assert packed is not None
    return Tiles(Q4, packed, library), weight


def rounded(x: Tensor) -> Tensor:
    """x [..., columns] as whole numbers times a scale for each 32."""
    groups = x.float().unflatten(-1, (-1, 32))
    scale = groups.abs().amax(dim=-1, keepdim=True) / 127
    return torch.where(scale > 0, (groups / scale).round() * scale, 0).flatten(-2)


@pytest.mark.parametrize("count", [16, 17, 24, 31, 48, 255])
@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (64, 96), (192, 64)])
@torch.inference_mode()
def test_products_are_those_of_the_rounded_inputs(
    count: int, rows: int, columns: int, threads: int, library: ctypes.CDLL
) -> None:
    assert torch.get_num_threads() == threads
    matrix, weight = four_bit_tiles(rows, columns, library)
    x = (torch.randn(1, count, columns) * torch.rand(1, count, 1) * 30).bfloat16()
    x[0, 3] = 0
    got = matrix.times(x)
    assert got is not None
    assert got.shape == (1, count, rows)
    expected = rounded(x) @ weight.T
    assert float((got.float() - expected).abs().max()) <= 0.005 * float(expected.abs().max())
    assert float((got.float() - expected).norm() / expected.norm()) < 0.003  # that of bfloat16
    exact = x.float() @ weight.T
    assert float((got.float() - exact).norm() / exact.norm()) < 0.02
    assert not bool(got[0, 3].any())


@torch.inference_mode()
def test_what_it_cannot_do_is_left_to_others(library: ctypes.CDLL) -> None:
    matrix, weight = four_bit_tiles(64, 96, library)
    x = torch.randn(2, 40, 96).bfloat16()
    assert matrix.times(x) is not None
    assert matrix.times(x.float()) is None
    assert matrix.times(x.transpose(0, 1)) is None
    assert matrix.times(x[:1, :15]) is None  # too few
    assert Tiles(2, q8_tiles(weight), library).times(x) is None
    with torch.inference_mode(False), torch.enable_grad():
        assert matrix.times(x.clone()) is None


@torch.inference_mode()
def test_a_processor_without_such_products_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "NATIVE", ("-O2",))
        plain = native_library(tmp_path_factory.mktemp("native"))
    if plain is None:
        pytest.skip("no C compiler on this machine")
    matrix, weight = four_bit_tiles(64, 96, plain)
    x = torch.randn(1, 40, 96).bfloat16()
    assert not plain.infini_can_multiply_many()
    assert matrix.times(x) is None
    linear = StoredLinear(matrix, None, torch.bfloat16)
    with rounded_inputs():
        assert torch.equal(linear(x), nn.functional.linear(x, weight.bfloat16()))


@torch.inference_mode()
def test_inputs_are_rounded_only_where_that_was_said(library: ctypes.CDLL) -> None:
    matrix, weight = four_bit_tiles(64, 96, library)
    x = torch.randn(1, 40, 96).bfloat16()
    linear = StoredLinear(matrix, None, torch.bfloat16)
    exact = nn.functional.linear(x, weight.bfloat16())
    assert torch.equal(linear(x), exact)
    with rounded_inputs():
        inside = linear(x)
        with rounded_inputs():
            assert torch.equal(linear(x), inside)
        assert torch.equal(linear(x), inside)
    assert torch.equal(inside, matrix.times(x))
    assert not torch.equal(inside, exact)
    assert torch.equal(linear(x), exact)
    biased = StoredLinear(matrix, nn.Parameter(torch.ones(64).bfloat16()), torch.bfloat16)
    with rounded_inputs():
        assert torch.equal(biased(x), nn.functional.linear(x, weight.bfloat16(), torch.ones(64).bfloat16()))


@torch.inference_mode()
def test_a_document_is_read_with_it_and_a_message_is_not(
    make_model: MakeModel, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine.native import NativeStep

    model = make_model(**SIZES, memory="bank", memory_slots=9, num_hidden_layers=4, window=64, segment=32)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[0] % 64 == 0:
            module.weight.data = four_bit(*module.weight.shape)
    step = NativeStep(model, library, format="int4")
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if ".memory." in name else parameter.data.bfloat16()
    model.requires_grad_(False)
    step.share(model, torch.bfloat16)
    used: list[int] = []
    real = Tiles.times

    def noted(self: Tiles, x: Tensor) -> Tensor | None:
        got = real(self, x)
        used.append(0 if got is None else x.shape[1])
        return got

    monkeypatch.setattr(Tiles, "times", noted)
    ids = torch.tensor([some_ids(128)])
    read, message = model.model.new_cache(), model.model.new_cache()
    for state in (read, message):
        model.model(input_ids=ids[:, :32], past_key_values=state)
    assert not used
    for at in (32, 64, 96):
        model.model(input_ids=ids[:, at : at + 32], past_key_values=message)
    assert not used
    for at in (32, 64, 96):
        read_piece(model.model, read, ids[:, at : at + 32])
    assert set(used) == {32}
    ours, theirs = (state.states[1].k.content.float() for state in (read, message))
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 0.05
    used.clear()
    monkeypatch.setattr(tiles, "FEWEST", 1000)
    read_piece(model.model, read, ids[:, :32])
    assert not any(used)


@torch.inference_mode()
def test_many_tokens_are_left_to_a_matrix_unit(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, weight = four_bit_tiles(64, 96, library)
    monkeypatch.setattr(tiles, "has_matrix_unit", lambda: True)
    linear = StoredLinear(matrix, None, torch.bfloat16)
    x = torch.randn(1, tiles.MOST, 96).bfloat16()
    assert matrix.times(x) is None
    assert matrix.times(x[:, 1:].contiguous()) is not None
    with rounded_inputs():
        assert torch.equal(linear(x), nn.functional.linear(x, weight.bfloat16()))
