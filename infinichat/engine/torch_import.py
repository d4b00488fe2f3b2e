"""``import torch`` without the parts that answering never looks at: 26 MB and a quarter of a second less.

torch imports all of itself, its exporter and its optimizers too. ``defer`` has Python set the modules of
``DEFERRED`` aside at that moment: each is there, and is executed when somebody first takes a name out of it,
so nothing is missing. (``importlib.util.LazyLoader`` will not do: a second ``import`` executes its modules.)
One of them is not looked at but works by being executed: it registers what operations do to tensors without
numbers, for compiler and exporter. It is executed before any of ``NEEDS_ALL`` is imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

REGISTERS = "torch._meta_registrations"
DEFERRED = frozenset(
    {
        REGISTERS,
        "torch.distributions",
        "torch.export",
        "torch.masked",
        "torch.optim",
        "torch.profiler",
        "torch.utils.data",
    }
)
NEEDS_ALL = frozenset({"torch._dynamo", "torch._inductor", "transformers", "accelerate", "peft"})
"""What may count on the registrations. (The exporter imports torch._dynamo.)"""

TRIED = ("2.13.",)
"""Versions of torch that this was tried with; others are imported as they are."""

_executing = threading.RLock()


def defer() -> None:
    """Import torch in this way from now on, where that is known to work and torch is not there yet."""
    try:
        known = version("torch").startswith(TRIED)
    except PackageNotFoundError:
        known = False
    if known and "torch" not in sys.modules and not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def deferred() -> list[str]:
    """The modules that are there and were not executed yet."""
    return sorted(name for name, module in sys.modules.items() if type(module) is _Deferred)


class _Deferred(ModuleType):
    """A module that is executed when it is asked for a name; not for one of those that it has already, which
    ``import`` and ``inspect`` look at."""

    def __getattribute__(self, name: str) -> Any:
        if name not in ("__spec__", "__class__", "__dict__", "__name__", "__file__"):
            _execute(self)
        return ModuleType.__getattribute__(self, name)


def _execute(module: ModuleType) -> None:
    # Other threads wait until it is whole; this one may look at a part of it, as in any circle of imports.
    with _executing:
        if type(module) is not _Deferred:
            return  # another thread has done it
        spec = module.__spec__
        assert spec is not None
        assert isinstance(spec.loader, _Loader)
        if not spec.loader.begun:
            spec.loader.begun = True
            spec.loader.own.exec_module(module)
            spec.loader = spec.loader.own
            _become(module, ModuleType)


def _let_generators_be_made() -> None:
    """The one thing beside the registrations that comes from executing that module, by what it imports
    (torch._prims.rng_prims): the class of torch.Generator's class."""
    import torch
    from torch._opaque_base import OpaqueBaseMeta

    torch._C._set_generator_metaclass(OpaqueBaseMeta)


def _become(module: ModuleType, kind: type[ModuleType]) -> None:
    module.__class__ = kind


class _Loader(Loader):
    """Makes the module that ``own`` would load, and leaves executing it for later."""

    def __init__(self, own: Loader) -> None:
        self.own, self.begun = own, False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == REGISTERS:
            _let_generators_be_made()
        module.__loader__ = self.own
        _become(module, _Deferred)


class _Finder(MetaPathFinder):
    """Finds what the other finders find."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in NEEDS_ALL and REGISTERS in sys.modules:
            _execute(sys.modules[REGISTERS])
        if name not in DEFERRED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next((spec for each in others if (spec := each.find_spec(name, path, target))), None)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found
