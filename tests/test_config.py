"""Settings: file, environment, mistakes, and writing one key without losing the rest."""

from __future__ import annotations

import stat

import pytest

from infinichat.config import (
    Settings,
    env_name,
    load_settings,
    parse_value,
    save_setting,
    setting_keys,
    setting_value,
)
from infinichat.errors import ConfigError, DiskError
from infinichat.paths import Paths


def write(paths: Paths, text: str) -> None:
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.settings.write_text(text, encoding="utf-8")


def test_without_file_or_environment_everything_is_the_default(paths: Paths) -> None:
    assert load_settings(paths, env={}) == Settings()
    assert not paths.config.exists()


def test_the_file_wins_over_the_defaults_and_the_environment_over_the_file(paths: Paths) -> None:
    write(paths, 'model = "a"\n[engine]\nthreads = 2\n[sampling]\ntemperature = 0\nstop = ["END"]\n')
    settings = load_settings(paths, env={"INFINICHAT_ENGINE_THREADS": "3", "INFINICHAT_UI_ENTER_SENDS": "no"})
    assert (settings.model, settings.engine.threads, settings.ui.enter_sends) == ("a", 3, False)
    assert settings.sampling.temperature == 0.0
    assert settings.sampling.stop == ("END",)


def test_none_in_the_environment_takes_a_value_away(paths: Paths) -> None:
    write(paths, "[engine]\nthreads = 2\n")
    assert load_settings(paths, env={"INFINICHAT_ENGINE_THREADS": "none"}).engine.threads is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[engine]\nthread = 2\n", r"unknown key 'engine\.thread'.*engine\.threads"),
        ("colour = 1\n", r"unknown key 'colour'. Valid keys: model"),
        ('[engine]\nthreads = "two"\n', r"engine\.threads is 'two'; expected a whole number or nothing"),
        ("[engine]\nthreads = true\n", r"engine\.threads is True"),
        ("[engine]\nthreads = 0\n", r"engine\.threads is 0; expected a number from 1"),
        ('[engine]\ndtype = "fp8"\n', r"engine\.dtype is 'fp8'; expected one of auto, float32"),
        ("[sampling]\ntop_p = 1.5\n", r"sampling\.top_p is 1\.5; expected a number from 0 to 1"),
        ("[sampling]\nstop = [1]\n", r"sampling\.stop is \(1,\); expected a list of texts"),
        ("model = \n", r"not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(paths: Paths, text: str, sentence: str) -> None:
    write(paths, text)
    with pytest.raises(ConfigError, match=sentence):
        load_settings(paths, env={})


def test_a_mistake_in_the_environment_names_the_variable(paths: Paths) -> None:
    with pytest.raises(ConfigError, match="INFINICHAT_SAMPLING_TOP_K.*'many'.*whole number"):
        load_settings(paths, env={"INFINICHAT_SAMPLING_TOP_K": "many"})


def test_every_key_can_be_saved_and_read_back(paths: Paths) -> None:
    samples = {"engine.dtype": "int8", "engine.device": "cpu", "sampling.stop": ("a\n\x7f", 'b"c')}
    for key in setting_keys():
        value = samples.get(key, 1)
        if key in {"model", "ui.theme"}:
            value = "näme\\"
        if key == "ui.enter_sends":
            value = False
        if key in {"engine.window", "engine.segment"}:
            value = 64
        save_setting(paths, key, value)
        assert setting_value(load_settings(paths, env={}), key) == value
    assert stat.S_IMODE(paths.settings.stat().st_mode) == 0o600


def test_saving_a_key_keeps_comments_and_other_keys(paths: Paths) -> None:
    write(paths, "# mine\n\n[engine] # fast\nthreads = 2 # two\n\n[ui]\ntheme = 'nord'\n")
    save_setting(paths, "model", "m")
    save_setting(paths, "engine.dtype", "int8")
    save_setting(paths, "engine.threads", 4)
    save_setting(paths, "sampling.seed", 7)
    assert paths.settings.read_text() == (
        '# mine\nmodel = "m"\n\n[engine] # fast\nthreads = 4\ndtype = "int8"\n\n'
        "[ui]\ntheme = 'nord'\n\n[sampling]\nseed = 7\n"
    )


def test_saving_nothing_removes_the_key(paths: Paths) -> None:
    write(paths, '[engine]\nthreads = 2\n[ui]\ntheme = "x"\n')
    save_setting(paths, "engine.threads", None)
    save_setting(paths, "model", None)
    assert paths.settings.read_text() == '[engine]\n[ui]\ntheme = "x"\n'


def test_a_broken_file_is_not_overwritten(paths: Paths) -> None:
    write(paths, "model = \n")
    with pytest.raises(ConfigError):
        save_setting(paths, "model", "m")
    assert paths.settings.read_text() == "model = \n"


@pytest.mark.parametrize(("key", "value"), [("engine.threads", 0), ("nope", 1), ("ui.theme", 3)])
def test_a_value_that_cannot_be_used_is_not_saved(paths: Paths, key: str, value: int) -> None:
    with pytest.raises(ConfigError):
        save_setting(paths, key, value)
    assert not paths.settings.exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(paths: Paths) -> None:
    paths.config.parent.mkdir()
    paths.config.write_text("a file")
    with pytest.raises(DiskError, match="cannot be written.*Next:"):
        save_setting(paths, "model", "m")


def test_values_from_text_have_the_key_s_type() -> None:
    assert parse_value("ui.enter_sends", "off") is False
    assert parse_value("sampling.stop", "a,b") == ("a", "b")
    assert parse_value("sampling.temperature", "1") == 1.0
    assert parse_value("engine.dtype", "int8") == "int8"
    with pytest.raises(ConfigError, match="expected true or false"):
        parse_value("ui.enter_sends", "maybe")


def test_variable_names_follow_the_keys() -> None:
    assert env_name("sampling.top_p") == "INFINICHAT_SAMPLING_TOP_P"
