"""The import table, as a test.

``ALLOWED`` says, for each part of the package, which other parts it may import and which third-party
packages; the standard library is always allowed, and so are names under ``if TYPE_CHECKING:`` because they
cost nothing at run time. ``LATE`` lists what a part may import inside a function only: commands and
``open_session()`` reach the engine that way, which keeps torch out of the first paint.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "infinichat"

FRONT = {"session", "store", "messages", "protocols", "errors", "config", "paths"}
MEASURES = FRONT | {"engine", "model", "attention", "chat_format"}
ANY_ENGINE = {"engine", "model"}

# part -> (parts it may import at module level, third-party packages it may import at module level)
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (set(), set()),
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "messages": (set(), set()),
    "protocols": ({"messages"}, set()),
    "text": ({"errors"}, set()),
    "paths": (set(), {"platformdirs"}),
    "config": ({"errors", "messages", "paths"}, {"platformdirs"}),
    "attention": (set(), {"torch"}),
    "layers": ({"attention"}, {"torch"}),
    "model": (
        {"attention", "errors", "messages", "protocols", "paths"},
        {"torch", "transformers", "safetensors", "gguf", "numpy", "tokenizers"},
    ),
    "chat_templates": (set(), set()),
    "chat_format": ({"chat_templates", "messages", "errors", "protocols"}, set()),
    "engine": (
        {"attention", "model", "messages", "protocols", "errors", "config", "paths"},
        {"torch", "numpy", "psutil"},
    ),
    "store": ({"messages", "protocols", "errors", "paths"}, {"safetensors"}),
    "session": ({"store", "chat_format", "messages", "protocols", "errors", "config", "paths"}, set()),
    "ui": (FRONT | {"ui", "text"}, {"textual", "rich", "psutil"}),
    "cli": (FRONT | {"cli", "text"}, {"rich"}),
    "server": (FRONT | {"server"}, {"starlette", "uvicorn"}),
    "corpus": ({"chat_format", "errors", "messages", "protocols"}, set()),
    "training": (
        MEASURES - {"engine", "session", "store"} | {"layers", "corpus"},
        {"torch", "transformers", "safetensors", "tokenizers", "numpy", "tomlkit"},
    ),
    "evals": (
        MEASURES | {"corpus"},
        {"torch", "numpy"},
    ),
    "bench": (
        MEASURES,
        {"torch", "numpy", "psutil"},
    ),
}  # fmt: skip

# part -> what it may import inside functions, on top of ALLOWED
LATE: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (set(ALLOWED) - {"__init__"}, set()),
    "session": (ANY_ENGINE, set()),
    "ui": (ANY_ENGINE, {"torch"}),
    "cli": (set(ALLOWED), {"torch", "transformers", "textual", "psutil", "matplotlib"}),
    "server": (ANY_ENGINE, set()),
    "model": (set(), {"matplotlib", "huggingface_hub"}),
    "training": ({"evals", "engine"}, {"accelerate", "matplotlib", "peft", "psutil", "pyarrow"}),
    "evals": (set(), {"matplotlib", "psutil"}),
    "bench": ({"training"}, {"matplotlib", "transformers"}),
}  # fmt: skip

# Files that must stay importable without torch although their part may use it.
NO_TORCH_FILES = (
    "engine/scripted.py",
    "engine/library.py",
    "engine/threads.py",
    "engine/__init__.py",
    "model/__init__.py",
)


@dataclass(frozen=True)
class Import:
    """One import statement's target: the file, the dotted name, whether it stands inside a function."""

    file: Path
    line: int
    name: str
    late: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _walk(nodes: list[ast.stmt], late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
            continue
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _walk(node.orelse, late)
            continue
        inner = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for field in ("body", "orelse", "finalbody"):
            yield from _walk(getattr(node, field, []), inner)
        for handler in getattr(node, "handlers", []):
            yield from _walk(handler.body, inner)
        for case in getattr(node, "cases", []):
            yield from _walk(case.body, inner)


def imports_of(file: Path) -> list[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node, late in _walk(tree.body, False):
        if isinstance(node, ast.Import):
            found += [Import(file, node.lineno, alias.name, late) for alias in node.names]
        elif node.level:
            package = file.relative_to(ROOT).with_suffix("").parts[: -node.level]
            found.append(Import(file, node.lineno, ".".join([*package, node.module or ""]).rstrip("."), late))
        elif node.module == "infinichat":
            found += [Import(file, node.lineno, f"infinichat.{alias.name}", late) for alias in node.names]
        else:
            found.append(Import(file, node.lineno, node.module or "", late))
    return found


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def breaks_the_table(item: Import) -> bool:
    part = part_of(item.file)
    ours, theirs = ALLOWED[part]
    if item.late:
        late_ours, late_theirs = LATE.get(part, (set(), set()))
        ours, theirs = ours | late_ours, theirs | late_theirs
    top, _, rest = item.name.partition(".")
    if top == "infinichat":
        target = rest.split(".")[0]
        return target not in ours | {part, "__version__", ""}
    return top not in sys.stdlib_module_names and top not in theirs and top != "__future__"


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_of_the_package_is_in_the_table() -> None:
    assert {part_of(file) for file in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_part_imports_only_what_its_row_allows(part: str) -> None:
    broken = [
        str(item) for f in FILES if part_of(f) == part for item in imports_of(f) if breaks_the_table(item)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", NO_TORCH_FILES)
def test_the_light_files_import_no_heavy_package_at_module_level(name: str) -> None:
    file = PACKAGE / name
    heavy = [
        str(i) for i in imports_of(file) if not i.late and i.name.split(".")[0] in {"torch", "transformers"}
    ]
    assert not heavy, "\n".join(heavy)


def test_the_checker_sees_a_forbidden_import(tmp_path: Path) -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\nelse:\n    import a\ndef f():\n    import torch\n")
    found = [(n.names[0].name, late) for n, late in _walk(tree.body, False)]
    assert found == [("a", False), ("torch", True)]
    assert breaks_the_table(Import(PACKAGE / "store" / "x.py", 1, "torch", False))
    assert breaks_the_table(Import(PACKAGE / "cli" / "x.py", 1, "infinichat.engine.load", False))
    assert not breaks_the_table(Import(PACKAGE / "cli" / "x.py", 1, "infinichat.engine.load", True))


def modules_after(code: str, home: Path) -> set[str]:
    """Names of the modules a fresh interpreter has imported after running ``code``."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('MODULES', *sys.modules)"
    env = {**os.environ, "INFINICHAT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("MODULES "))
    return set(line.split()[1:])


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["sessions", "list"],
        ["sessions", "list", "--json"],
        ["models", "list"],
        ["locate"],
        ["ask", "--help"],
        ["retrofit", "--help"],
        ["bench", "--help"],
        ["train", "lm", "--help"],
    ],
    ids=" ".join,
)
def test_light_commands_import_no_torch(argv: list[str], tmp_path: Path) -> None:
    modules = modules_after(f"from infinichat.cli.main import main; main({argv!r})", tmp_path)
    assert not modules & {"torch", "transformers", "gguf", "textual"}


@pytest.mark.parametrize(
    "module",
    [
        "infinichat",
        "infinichat.session",
        "infinichat.store",
        "infinichat.ui.app",
        "infinichat.engine.scripted",
    ],
)
def test_light_modules_import_no_torch(module: str, tmp_path: Path) -> None:
    assert not modules_after(f"import {module}", tmp_path) & {"torch", "transformers", "gguf"}


def test_answering_needs_no_transformers(tmp_path: Path) -> None:
    parts = ("engine.load", "engine.generate", "engine.placing", "model.loading")
    code = f"import {', '.join(f'infinichat.{part}' for part in parts)}"
    assert not modules_after(code, tmp_path) & {"transformers", "huggingface_hub", "sympy"}


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in FILES}
    assert not {str(f): n for f, n in lengths.items() if n > 400}


def test_every_file_opens_with_a_paragraph() -> None:
    assert not [str(f) for f in FILES if not ast.get_docstring(ast.parse(f.read_text(encoding="utf-8")))]
