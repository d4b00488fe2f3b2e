"""What ``import infinichat`` promises: the names, and that asking for one imports only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import infinichat

PROMISED = [
    "ChatSession",
    "InfiniChatError",
    "Message",
    "SamplingOptions",
    "TextDelta",
    "TurnFinished",
    "__version__",
    "open_session",
]


def test_the_public_names_are_exactly_the_promised_ones() -> None:
    assert sorted(infinichat.__all__) == PROMISED
    assert dir(infinichat) == PROMISED


def test_every_public_name_resolves() -> None:
    assert all(getattr(infinichat, name) is not None for name in PROMISED)


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opensession'"):
        infinichat.opensession  # noqa: B018 -- the access is the test


def test_importing_the_package_imports_neither_torch_nor_textual() -> None:
    code = "import sys, infinichat; sys.exit(bool({'torch', 'textual', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_three_numbers() -> None:
    assert [part.isdigit() for part in infinichat.__version__.split(".")] == [True] * 3
