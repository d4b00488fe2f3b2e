"""Reading GGUF: the container's checks, every tensor type, names, the order of rotary rows, the
configuration."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from infinichat.errors import ModelFileError, UnsupportedModelError
from infinichat.model.gguf import gguf_tensors, hf_name, read_tensor
from infinichat.model.gguf_config import gguf_config
from infinichat.model.gguf_file import GgufFile, GgufTensor, check_extents, read_gguf_header
from infinichat.model.gguf_tokenizer import gguf_tokenizer

from .conftest import WriteGguf, tiny_llama, weights_of

IDS = torch.arange(3, 40).unsqueeze(0)


def loaded(path: Path) -> LlamaForCausalLM:
    """transformers' own Llama with the file's configuration and weights."""
    file = read_gguf_header(path)
    config = {key: value for key, value in gguf_config(file).items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    missing, unexpected = model.load_state_dict(dict(gguf_tensors(file, dtype=torch.float32)), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_float32_gguf_gives_transformers_llama_its_weights_back_bit_for_bit(
    write_gguf: WriteGguf, tied: bool, bias: bool
) -> None:
    source = tiny_llama(tie_word_embeddings=tied, attention_bias=bias)
    read = dict(gguf_tensors(read_gguf_header(write_gguf(source)), dtype=torch.float32))
    expected = weights_of(source)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name


def test_logits_of_the_gguf_equal_those_of_the_model_it_was_made_from(write_gguf: WriteGguf) -> None:
    source = tiny_llama()
    with torch.no_grad():
        assert torch.equal(loaded(write_gguf(source))(IDS).logits, source(IDS).logits)


def test_without_undoing_the_interleaved_rows_the_logits_are_others(
    write_gguf: WriteGguf, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_llama()
    path = write_gguf(source)
    monkeypatch.setattr("infinichat.model.gguf._halves", lambda weights, *_: weights)
    with torch.no_grad():
        assert not torch.allclose(loaded(path)(IDS).logits, source(IDS).logits, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_in_the_wanted_dtype(write_gguf: WriteGguf, dtype: torch.dtype) -> None:
    for _, tensor in gguf_tensors(read_gguf_header(write_gguf()), dtype=dtype):
        assert tensor.dtype == dtype


@pytest.mark.parametrize(
    "kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.TQ2_0]
)
def test_every_type_is_what_gguf_itself_makes_of_it(write_gguf: WriteGguf, kind: Kind) -> None:
    wide = kind in (Kind.TQ2_0,)  # rows of 256 weights
    source = tiny_llama(hidden_size=256, intermediate_size=256) if wide else tiny_llama()
    read = dict(gguf_tensors(read_gguf_header(write_gguf(source, kind=kind)), dtype=torch.float32))
    for name, tensor in weights_of(source).items():
        actual = kind if tensor.ndim == 2 else Kind.F32
        expected = quants.dequantize(quants.quantize(tensor.numpy(), actual), actual)
        np.testing.assert_array_equal(read[name].numpy(), expected, err_msg=name)


READABLE = sorted(
    (kind for kind in Kind if kind in quants._type_traits or kind in (Kind.F32, Kind.F16)),
    key=lambda kind: kind.name,
)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_every_type_gguf_can_dequantize_is_read_alike_from_random_bytes(kind: Kind, tmp_path: Path) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    rows, per_row = 5, 6
    raw = np.random.default_rng(1).integers(0, 256, (rows, per_row * size), dtype=np.uint8)
    path = tmp_path / "raw.bin"
    path.write_bytes(b"\0" * 32 + raw.tobytes())
    tensor = GgufTensor("t", (rows, per_row * block), int(kind), 0)
    file = GgufFile(path, path.stat().st_size, 32, {}, {"t": tensor})
    with np.errstate(all="ignore"):  # random scales overflow
        expected = raw.view(np.float32) if kind == Kind.F32 else quants.dequantize(raw, kind)
        read = read_tensor(file, tensor)
    np.testing.assert_array_equal(read.numpy(), expected.astype(np.float32))


def test_a_type_without_dequantizer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "raw.bin"
    path.write_bytes(b"\0" * 1024)
    tensor = GgufTensor("blk.0.attn_q.weight", (1, 256), int(Kind.Q8_K), 0)
    with pytest.raises(UnsupportedModelError, match="blk.0.attn_q.weight.*Q8_K.*Q8_0"):
        read_tensor(GgufFile(path, 1024, 0, {}, {}), tensor)
    unknown = GgufTensor("t", (1, 256), 999, 0)
    with pytest.raises(UnsupportedModelError, match="type 999.*Upgrade"):
        read_tensor(GgufFile(path, 1024, 0, {}, {}), unknown)


def test_names_of_tensors_are_transformers_names() -> None:
    assert hf_name("blk.12.ffn_down.weight") == "model.layers.12.mlp.down_proj.weight"
    assert hf_name("output_norm.weight") == "model.norm.weight"
    assert hf_name("blk.0.ffn_gate_exps.weight") is None


def test_a_truncated_file_is_refused_wherever_it_is_cut(write_gguf: WriteGguf, tmp_path: Path) -> None:
    whole = write_gguf().read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(4, 4000, 37), len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match="cut.gguf is (truncated|altered)"):
            check_extents(read_gguf_header(cut))


def test_a_header_that_promises_too_much_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gguf"
    huge = 1 << 61
    for pairs in (
        struct.pack("<Q", huge),  # a key of 2 EiB
        struct.pack("<Q1sIIQ", 1, b"a", 9, 8, huge),  # so many strings
        struct.pack("<Q1sIIQ", 1, b"a", 9, 10, huge),  # so many numbers
        struct.pack("<Q1sI", 1, b"a", 77),  # no such type
    ):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pairs + b"\0" * 64)
        with pytest.raises(ModelFileError, match="bomb.gguf is"):
            read_gguf_header(path)


def test_overlapping_tensors_are_refused_by_name(write_gguf: WriteGguf) -> None:
    file = read_gguf_header(write_gguf())
    first, second, *_ = file.tensors.values()
    moved = GgufTensor(second.name, second.shape, second.type_id, first.offset + 32)
    with pytest.raises(ModelFileError, match="inside the tensor before it"):
        check_extents(GgufFile(file.path, file.size, file.data_start, {}, {"a": first, "b": moved}))


def test_what_is_not_a_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(UnsupportedModelError, match="not a GGUF"):
        read_gguf_header(path)
    path.write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="not a GGUF"):
        read_gguf_header(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(UnsupportedModelError, match="little-endian"):
        read_gguf_header(path)
    with pytest.raises(ModelFileError, match="Cannot read"):
        read_gguf_header(tmp_path / "absent.gguf")


def test_another_architecture_and_other_arithmetic_are_refused(write_gguf: WriteGguf) -> None:
    with pytest.raises(UnsupportedModelError, match="architecture 'mamba'"):
        gguf_config(read_gguf_header(write_gguf(architecture="mamba")))
    with pytest.raises(UnsupportedModelError, match="llama.residual_scale"):
        gguf_config(read_gguf_header(write_gguf(extra={"llama.residual_scale": 0.25})))
    with pytest.raises(UnsupportedModelError, match="one of 3.0 parts"):
        gguf_config(read_gguf_header(write_gguf(extra={"split.count": 3})))


def test_a_tensor_that_a_llama_does_not_have_is_refused_by_name(write_gguf: WriteGguf) -> None:
    path = write_gguf(tensors={"raw.extra": torch.zeros(2, 32)})
    with pytest.raises(UnsupportedModelError, match="raw.extra"):
        dict(gguf_tensors(read_gguf_header(path), dtype=torch.float32))


def test_llama_3_rotary_factors_become_their_configuration(write_gguf: WriteGguf) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = tiny_llama(head_dim=16, rope_parameters={"rope_theta": 10000.0, **scaling})
    plain = 1 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16)
    path = write_gguf(source)
    file = read_gguf_header(path)
    assert gguf_config(file)["rope_scaling"] is None
    factors = plain / source.model.rotary_emb.inv_freq
    path = write_gguf(source, tensors={"raw.rope": factors})
    file = read_gguf_header(path)
    file.tensors["rope_freqs.weight"] = file.tensors.pop("raw.rope")
    assert gguf_config(file)["rope_scaling"] == scaling
    wrong = write_gguf(source, tensors={"raw.rope": factors * torch.linspace(1, 2, 8)})
    file = read_gguf_header(wrong)
    file.tensors["rope_freqs.weight"] = file.tensors.pop("raw.rope")
    with pytest.raises(UnsupportedModelError, match="rotary factors"):
        gguf_config(file)


def test_the_header_is_read_without_torch() -> None:
    code = "import sys, infinichat.model.gguf_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real
def test_the_default_weights_answer_sensibly_in_transformers(base_weights: Path) -> None:
    file = read_gguf_header(base_weights)
    tokenizer = gguf_tokenizer(file)
    start, end, line = (
        tokenizer.control_id("<|im_start|>"),
        tokenizer.control_id("<|im_end|>"),
        tokenizer.encode("\n"),
    )
    ids = [start, *tokenizer.encode("user\nWhat is the capital of France?"), end, *line]
    ids += [start, *tokenizer.encode("assistant\n")]
    with torch.no_grad():
        made = loaded(base_weights).generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(made[0, len(ids) :].tolist())
    assert "Paris" in answer


@pytest.mark.real
def test_the_default_weights_are_read_in_under_three_seconds_on_one_core(base_weights: Path) -> None:
    began = time.perf_counter()
    file = read_gguf_header(base_weights)
    count = sum(tensor.numel() for _, tensor in gguf_tensors(file, dtype=torch.float32))
    assert time.perf_counter() - began < 3
    assert count == file.parameters == 134_515_008
