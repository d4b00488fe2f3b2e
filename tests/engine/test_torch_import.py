"""torch without what answering never looks at: less of it is executed, and everything is still there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from infinichat.engine.torch_import import DEFERRED, REGISTERS, TRIED

TRIED_HERE = pytest.mark.skipif(not version("torch").startswith(TRIED), reason="not tried with this torch")

BEGIN = "from infinichat.engine.torch_import import defer, deferred\ndefer()\nimport torch\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@TRIED_HERE
def test_the_modules_are_there_and_not_executed() -> None:
    code = "import sys; print(deferred() == sorted(deferred()), *deferred()); print(torch.rand(2).shape)"
    first, second = run(code).splitlines()
    assert first.split()[1:] == sorted(DEFERRED)
    assert second == "torch.Size([2])"


@TRIED_HERE
@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)", "torch.optim"),
        ("from torch.utils.data import DataLoader; list(DataLoader([1, 2]))", "torch.utils.data"),
        ("torch.distributions.Normal(0.0, 1.0).sample()", "torch.distributions"),
        ("import torch.export._draft_export", "torch.export"),
    ],
)
def test_what_is_asked_for_is_executed(use: str, name: str) -> None:
    assert name not in run(f"{use}\nprint(*deferred())").split()


@TRIED_HERE
@pytest.mark.parametrize("module", ["torch._dynamo", "transformers"])
def test_operations_on_tensors_without_numbers_are_registered_before_who_needs_them(module: str) -> None:
    code = f"import {module}\nprint(*deferred())\n"
    code += "print(*torch.nn.functional.one_hot(torch.zeros(2, dtype=torch.int64, device='meta'), 3).shape)"
    *names, shape = run(code).splitlines()
    assert REGISTERS not in " ".join(names).split()
    assert shape == "2 3"


@TRIED_HERE
def test_generators_and_meta_tensors_work_as_ever() -> None:
    code = (
        "g = torch.Generator().manual_seed(5)\n"
        "first = torch.multinomial(torch.ones(9), 4, generator=g).tolist()\n"
        "with torch.device('meta'): linear = torch.nn.Linear(3, 2)\n"
        "print(linear.to_empty(device='cpu').weight.shape == (2, 3), 'torch.optim' in deferred())\n"
        "import torch._dynamo\n"
        "g = torch.Generator().manual_seed(5)\n"
        "print(first == torch.multinomial(torch.ones(9), 4, generator=g).tolist())\n"
    )
    assert run(code).split() == ["True", "True", "True"]


def test_another_version_of_torch_is_imported_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from infinichat.engine import torch_import

    before = list(sys.meta_path)
    monkeypatch.setattr(torch_import, "version", lambda name: "2.6.0")
    monkeypatch.delitem(sys.modules, "torch")
    torch_import.defer()
    assert sys.meta_path == before


def test_it_is_too_late_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from infinichat.engine import torch_import

    before = list(sys.meta_path)
    monkeypatch.setattr(torch_import, "version", lambda name: TRIED[0])
    torch_import.defer()
    assert sys.meta_path == before
