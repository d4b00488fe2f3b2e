"""Weights go from a file's blocks into tiles and back to floating point without losing a bit."""

from __future__ import annotations

import ctypes

import pytest
import torch

from infinichat.engine import compiler
from infinichat.engine.library import native_library
from infinichat.engine.tiles import Tiles, q4_tiles, tiles_of_blocks
from infinichat.model.blocks import Blocks
from infinichat.model.gguf_file import Q4_0, Q4_1, Q8_0, SIZES
from tests.engine.test_quantize import four_bit

kinds = pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q8_0], ids=["Q4_0", "Q4_1", "Q8_0"])


@pytest.fixture(scope="module", params=["this processor", "any processor"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compiled for this machine, and once more without what only some processors have."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "any processor":
            patch.setattr(compiler, "NATIVE", ("-O2",))
        found = native_library(tmp_path_factory.mktemp("native"))
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


def blocks(kind: int, rows: int = 48, groups: int = 3, seed: int = 0) -> Blocks:
    """Random steps, and scales of every size that a file may have; rows in another order than the file's."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, groups, SIZES[kind][1]), generator=generator, dtype=torch.uint8)
    halfs = 2 if kind == Q4_1 else 1
    scales = (torch.randn(rows, groups, halfs, generator=generator) * 0.1).half()
    scales[0, 0] = 0
    scales[1, 0] = 6e-8
    raw[..., : 2 * halfs] = scales.view(torch.uint8)
    return Blocks(kind, raw, torch.randperm(rows, generator=generator))


@kinds
def test_tiles_of_blocks_are_the_blocks_weights_to_the_last_bit(kind: int, library: ctypes.CDLL) -> None:
    parts = [blocks(kind), blocks(kind, rows=16, seed=1)]
    expected = torch.cat([part.weight(torch.float32) for part in parts])
    assert expected.unique().numel() > 1000
    tiles = tiles_of_blocks(parts, library)
    assert tiles is not None
    assert tiles.shape == (64, 96)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(tiles.weight(dtype), expected.to(dtype))
        assert torch.equal(tiles.weight(dtype, 16, 32), expected[16:48].to(dtype))
        assert torch.equal(tiles.cut(48, 16).weight(dtype), expected[48:].to(dtype))
        ids = torch.tensor([[63, 0, 17], [5, 5, 40]])
        assert torch.equal(tiles.rows(ids, dtype), expected[ids].to(dtype))


def test_tiles_of_blocks_are_those_that_are_found_from_the_weights(library: ctypes.CDLL) -> None:
    weight = four_bit(64, 96)
    found = q4_tiles(weight)
    assert found is not None
    assert torch.equal(Tiles(1, found, library).weight(torch.float32), weight)


def test_four_and_eight_bits_do_not_share_tiles(library: ctypes.CDLL) -> None:
    assert tiles_of_blocks([blocks(Q4_1), blocks(Q8_0)], library) is None
    assert tiles_of_blocks([blocks(Q4_1), blocks(Q4_0)], library) is not None


@kinds
def test_blocks_with_scales_that_are_no_numbers_are_told(kind: int) -> None:
    good = blocks(kind)
    assert good.finite()
    for bad in (float("inf"), float("nan"), 60_000.0):
        altered = good.raw.clone()
        altered[7, 1, :2] = torch.tensor([bad]).half().view(torch.uint8)
        assert not Blocks(kind, altered, good.order).finite()
