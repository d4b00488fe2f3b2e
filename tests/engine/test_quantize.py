"""Weight formats: near enough, as small as promised, and int4 only where nothing is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infinichat.engine.quantize import GROUP, Product, WeightFormat, smallest_lossless, supported


def four_bit(rows: int, columns: int, *, levels: int = 15, seed: int = 0) -> Tensor:
    """A matrix as a GGUF file of 4-bit blocks gives it: 16 values in each group of 32."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, levels + 1, (rows, columns // GROUP, GROUP), generator=generator).float()
    # A file's groups use both ends of their range; scales are float16.
    steps[..., 0], steps[..., 1] = 0, levels
    scale = (torch.rand(rows, columns // GROUP, 1, generator=generator) * 0.01 + 1e-3).half().float()
    low = (-0.1 * torch.rand(rows, columns // GROUP, 1, generator=generator)).half().float()
    return (low + scale * steps).flatten(1)


def plain(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.mark.parametrize("levels", [15, 9, 3])
def test_four_bit_weights_are_recognised(levels: int) -> None:
    assert smallest_lossless(four_bit(128, 64, levels=levels)) == "int4"


def test_other_weights_are_not() -> None:
    assert smallest_lossless(plain(128, 64)) == "int8"
    almost = four_bit(128, 64)
    almost[100, 40] += 0.4 * (almost[100, 33:64].max() - almost[100, 33:64].min()) / 15
    assert smallest_lossless(almost) == "int8"
    # Shapes that the kernel does not take.
    assert smallest_lossless(four_bit(96, 64)) == "int8"


@pytest.mark.parametrize(
    ("format", "off"), [("float32", 1e-6), ("bfloat16", 0.01), ("int8", 0.02), ("int4", 0.01)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_near_the_exact_one(format: WeightFormat, off: float, bias: bool) -> None:
    if not supported(format):
        pytest.skip(f"this build of torch has no kernel for {format}")
    weight = four_bit(128, 64)
    added = plain(1, 128)[0] if bias else None
    product = Product(weight, added, format=format)
    assert product.format == format
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    exact = x @ weight.T + (0 if added is None else added)
    got = product(x.to(product.dtype)).float()
    assert float((got - exact).norm() / exact.norm()) < off


def test_int4_loses_no_more_than_bfloat16() -> None:
    if not supported("int4"):
        pytest.skip("this build of torch has no kernel for int4")
    weight = four_bit(512, 256)
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = x.double() @ weight.double().T
    errors = {
        format: float((Product(weight, format=format)(x).double() - exact).norm())
        for format in ("bfloat16", "int4", "int8")
    }
    assert errors["int4"] < 1.5 * errors["bfloat16"]


def test_each_format_is_as_small_as_it_says() -> None:
    weight = four_bit(512, 256)
    sizes = {format: Product(weight, format=format).nbytes for format in ("float32", "bfloat16", "int8")}
    assert sizes["float32"] == 4 * weight.numel()
    assert sizes["bfloat16"] == 2 * weight.numel()
    assert sizes["int8"] == weight.numel() + 2 * 512
    if supported("int4"):
        assert Product(weight, format="int4").nbytes == weight.numel() // 2 + 4 * weight.numel() // GROUP


def test_what_is_on_no_grid_is_kept_as_int8() -> None:
    assert Product(plain(128, 64), format="int4").format == "int8"


def test_a_row_of_zeros_stays_zero() -> None:
    weight = plain(64, 64)
    weight[3] = 0
    got = Product(weight, format="int8")(torch.ones(1, 64).bfloat16())
    assert float(got[0, 3]) == 0
    assert bool(torch.isfinite(got).all())
