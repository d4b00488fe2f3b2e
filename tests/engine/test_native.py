"""The compiled step is the model's forward, and its matrix products are exact where they promise to be."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infinichat.engine import compiler
from infinichat.engine.compiler import compiled
from infinichat.engine.kernels import ModuleStep, PlainStep
from infinichat.engine.library import SOURCE, begin_compiling, native_library
from infinichat.engine.native import NativeStep
from infinichat.engine.quantize import GROUP, WeightFormat
from infinichat.engine.tiles import ROWS, q4_tiles, q8_tiles
from tests.engine.conftest import MakeEngine, MakeModel, some_ids
from tests.engine.test_quantize import four_bit, plain

# Tiles need rows in sixteens and columns in thirty-twos.
SIZES: dict[str, Any] = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = native_library(tmp_path_factory.mktemp("native"))
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_layers": [0, 2]},
        {"memory": "bank", "memory_slots": 9},
        {"memory": "bank", "memory_slots": 9, "memory_rank": 2, "memory_layers": [0], "attention_bias": True},
        {"memory": "bank", "memory_slots": 9, "memory_rank": 3, "memory_layers": [1, 2], "memory_topics": 3},
        {"memory_trained": False},
        {"sinks": 0},
        {"window": 8, "segment": 8, "sinks": 0},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"head_dim": 64},
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_native_step_equals_the_models_forward(
    changes: dict[str, Any], make_model: MakeModel, library: ctypes.CDLL
) -> None:
    model = make_model(**{**SIZES, **changes})
    assert NativeStep.fits(model)
    native, module = NativeStep(model, library, format="float32"), ModuleStep(model)
    ours, theirs = model.model.new_cache(), model.model.new_cache()
    for place, token_id in enumerate(some_ids(60)):
        native.feed(ours, token_id)
        module.feed(theirs, token_id)
        assert ours.last_hidden is not None
        assert theirs.last_hidden is not None
        scores, expected = native.logits(ours.last_hidden), module.logits(theirs.last_hidden)
        torch.testing.assert_close(
            scores, expected, rtol=1e-4, atol=1e-4, msg=lambda text, at=place: f"token {at}: {text}"
        )
    named = theirs.to_tensors()
    assert ours.to_tensors().keys() == named.keys()
    for name, tensor in ours.to_tensors().items():
        torch.testing.assert_close(
            tensor, named[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_adapters_of_two_memories_are_left_to_torch(make_model: MakeModel) -> None:
    both = make_model(**SIZES, memory="bank", memory_rank=2, memory_layers=[0, 1], num_hidden_layers=4)
    assert not NativeStep.fits(both)
    assert NativeStep.fits(make_model(**SIZES, memory="bank", memory_rank=2, memory_layers=[0, 2]))


@pytest.mark.parametrize("head_dim", [16, 64])
@torch.inference_mode()
def test_a_bfloat16_window_is_written_and_read_as_torch_does(
    head_dim: int, make_model: MakeModel, library: ctypes.CDLL
) -> None:
    model = make_model(**SIZES, head_dim=head_dim)
    native, plain_step = NativeStep(model, library, format="float32"), PlainStep(model, format="float32")
    for name, parameter in model.named_parameters():
        if ".memory." not in name:
            parameter.data = parameter.data.bfloat16()
    plain_step.share_embedding()
    ours, theirs = model.model.new_cache(), model.model.new_cache()
    for token_id in some_ids(50):
        native.feed(ours, token_id)
        plain_step.feed(theirs, token_id)
    a, b = ours.to_tensors(), theirs.to_tensors()
    assert a["layers.0.k"].dtype == torch.bfloat16
    for name in ("layers.0.k", "layers.0.v"):
        # Equal but for values that float32 rounding put on the other side of a bfloat16 step.
        assert float((a[name] != b[name]).float().mean()) < 0.02
        torch.testing.assert_close(a[name], b[name], rtol=0.01, atol=0.01)
    assert ours.last_hidden is not None
    assert theirs.last_hidden is not None
    near = torch.nn.functional.cosine_similarity(ours.last_hidden.float(), theirs.last_hidden.float())
    assert float(near) > 0.999


def unpacked_q4(tiles: Tensor) -> Tensor:
    """Weights from tiles, byte by byte as the C file's comment says."""
    blocks, groups, _ = tiles.shape
    weight = torch.zeros(blocks * ROWS, groups * GROUP)
    for b in range(blocks):
        for g in range(groups):
            tile = tiles[b, g]
            scales, zeros = tile[256:288].view(torch.float16).float(), tile[288:].view(torch.float16).float()
            for c in range(4):
                for r in range(ROWS):
                    for i in range(4):
                        q = int(tile[64 * c + 4 * r + i])
                        row = weight[b * ROWS + r]
                        row[g * GROUP + 8 * c + i] = zeros[r] + scales[r] * (q & 15)
                        row[g * GROUP + 8 * c + 4 + i] = zeros[r] + scales[r] * (q >> 4)
    return weight


def test_q4_tiles_hold_the_very_weights_of_a_four_bit_file() -> None:
    weight = four_bit(64, 64)
    tiles = q4_tiles(weight)
    assert tiles is not None
    assert tiles.shape == (4, 2, 320)
    torch.testing.assert_close(unpacked_q4(tiles), weight, rtol=0, atol=2e-5)
    assert q4_tiles(plain(64, 64)) is None


def products(weight: Tensor, x: Tensor, library: ctypes.CDLL, model: Any, format: WeightFormat) -> Tensor:
    """weight @ x through the C code, as the head of a tiny model."""
    model.lm_head.weight = torch.nn.Parameter(weight)
    return NativeStep(model, library, format=format).logits(x[None])


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_products_are_exact_for_inputs_of_whole_steps(
    format: WeightFormat, make_model: MakeModel, library: ctypes.CDLL
) -> None:
    # Inputs that 8 bits hold exactly: then only the weights' format can be off, and it is not.
    x = torch.randint(-127, 128, (64,), generator=torch.Generator().manual_seed(0)).float()
    x[0] = x[32] = 127
    weight = four_bit(288 // 32 * 64, 64)[:320]
    if format == "int8":
        steps = torch.randint(-127, 128, (320, 64), generator=torch.Generator().manual_seed(1)).float()
        steps[:, 0] = steps[:, 32] = 127
        weight = steps * 2.0**-7
    got = products(weight, x, library, make_model(**{**SIZES, "tie_word_embeddings": False}), format)
    torch.testing.assert_close(got, weight @ x, rtol=1e-3, atol=5e-3 * float(weight.abs().max()))


@pytest.mark.parametrize(("format", "off"), [("float32", 1e-5), ("int4", 0.01), ("int8", 0.01)])
def test_products_are_near_for_any_input(
    format: WeightFormat, off: float, make_model: MakeModel, library: ctypes.CDLL
) -> None:
    weight = four_bit(320, 64)
    x = torch.randn(64, generator=torch.Generator().manual_seed(2))
    got = products(weight, x, library, make_model(**{**SIZES, "tie_word_embeddings": False}), format)
    assert float((got - weight @ x).norm() / (weight @ x).norm()) < off


def test_zeros_and_large_numbers_stay_finite(make_model: MakeModel, library: ctypes.CDLL) -> None:
    model = make_model(**{**SIZES, "tie_word_embeddings": False})
    for x in (torch.zeros(64), torch.full((64,), 1e30)):
        for format in ("int4", "int8"):
            got = products(four_bit(320, 64), x, library, model, format)  # type: ignore[arg-type]
            assert bool(torch.isfinite(got).all())


def test_q8_tiles_are_as_small_as_promised() -> None:
    assert q8_tiles(plain(64, 64)).numel() == 64 * 64 * 1.0625


@torch.inference_mode()
def test_a_loaded_state_and_a_cloned_one_go_on_as_the_first(
    make_model: MakeModel, library: ctypes.CDLL
) -> None:
    model = make_model(**SIZES)
    native = NativeStep(model, library, format="int8")
    first = model.model.new_cache()
    for token_id in some_ids(50):
        native.feed(first, token_id)
    second = first.clone()
    for token_id in some_ids(30, seed=1):
        native.feed(first, token_id)
    for token_id in some_ids(30, seed=1):
        native.feed(second, token_id)
    for name, tensor in first.to_tensors().items():
        assert torch.equal(tensor, second.to_tensors()[name]), name


@pytest.mark.parametrize(
    "changes", [{"memory": "linear"}, {"hidden_act": "gelu_pytorch_tanh"}, {"vocab_size": 277}]
)
def test_what_it_does_not_know_it_does_not_fit(changes: dict[str, Any], make_model: MakeModel) -> None:
    assert not NativeStep.fits(make_model(**{**SIZES, **changes}))
    assert not NativeStep.fits(make_model(**{**SIZES, "hidden_size": 48, "head_dim": 12}))


def test_engine_answers_alike_on_every_step(make_engine: MakeEngine, library: ctypes.CDLL) -> None:
    from infinichat.messages import SamplingOptions

    answers = []
    for native in (False, True):
        engine = make_engine("float32", **SIZES)
        if native:
            engine.step = NativeStep(engine.model, library, format="float32")
        state = engine.new_state()
        list(engine.feed(state, some_ids(40)))
        options = SamplingOptions(temperature=0, max_tokens=30)
        answers.append([item.token_id for item in engine.generate(state, options, end_ids=[])])
    assert answers[0] == answers[1]


def test_a_library_is_compiled_once(
    tmp_path: Path, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled(SOURCE, tmp_path) is not None
    (made,) = tmp_path.glob("*.so")
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiled(SOURCE, tmp_path) is not None
    assert list(tmp_path.iterdir()) == [made]


def test_what_was_begun_is_waited_for_and_not_compiled_again(
    tmp_path: Path, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinichat.engine import library as compiling

    threads = []
    real = compiling.compiled

    def noted(source: Path, folder: Path, *, beside: Any = ()) -> ctypes.CDLL | None:
        threads.append(threading.current_thread().name)
        return real(source, folder, beside=beside)

    monkeypatch.setattr(compiling, "compiled", noted)
    begin_compiling(tmp_path)
    begin_compiling(tmp_path)
    found = native_library(tmp_path)
    assert found is not None
    assert threads == ["compiling", threading.current_thread().name]
    assert len(list((tmp_path / "native").glob("*.so"))) == 1


def test_all_files_are_in_one_library_and_a_broken_one_leaves_nothing(tmp_path: Path) -> None:
    ours, other, header = (tmp_path / name for name in ("ours.c", "other.c", "shared.h"))
    header.write_text("int twice(int);")
    ours.write_text('#include "shared.h"\nint four(void) { return twice(2); }')
    other.write_text("int twice(int x) { return 2 * x; }")
    found = compiled(ours, tmp_path / "cache", beside=(other, header))
    if found is None:
        pytest.skip("no C compiler on this machine")
    assert found.four() == 4
    other.write_text("int twice(int x) { return 2 * x")
    assert compiled(ours, tmp_path / "empty", beside=(other, header)) is None
    assert not list((tmp_path / "empty").iterdir())


def test_without_a_compiler_or_with_a_broken_one_there_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "no-such-compiler", "false"):
        monkeypatch.setenv("INFINICHAT_CC", value)
        assert compiled(SOURCE, tmp_path / "cache") is None
    monkeypatch.delenv("INFINICHAT_CC")
    broken = tmp_path / "broken.c"
    broken.write_text("this is not C")
    assert compiled(broken, tmp_path / "cache") is None
    (tmp_path / "file").write_text("")
    assert compiled(SOURCE, tmp_path / "file" / "cache") is None
