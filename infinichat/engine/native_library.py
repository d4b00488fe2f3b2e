"""The compiled functions of ``step.c`` and the files beside it, and their structures as ctypes knows them.

The fields stand in the order of the C files', which say what they are.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from infinichat.engine.compiler import compiled

SOURCE = Path(__file__).with_name("step.c")
BESIDE = tuple(SOURCE.with_name(name) for name in ("tiles.c", "attend.c", "tiles.h", "products.h"))

_WHOLE, _LONG, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Matrix(ctypes.Structure):
    _fields_ = (
        ("kind", _WHOLE),
        ("rows", _WHOLE),
        ("columns", _WHOLE),
        ("data", _POINTER),
        ("bias", _POINTER),
    )


class Change(ctypes.Structure):
    _fields_ = (
        ("rank", _WHOLE),
        ("down_qkv", _POINTER),
        ("up_qkv", _POINTER),
        ("down_out", _POINTER),
        ("up_out", _POINTER),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("input_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("change", Change),
    )


class Model(ctypes.Structure):
    _fields_ = (
        ("layers", _WHOLE),
        ("hidden", _WHOLE),
        ("inner", _WHOLE),
        ("heads", _WHOLE),
        ("kv_heads", _WHOLE),
        ("dim", _WHOLE),
        ("eps", _FLOAT),
        ("layer", ctypes.POINTER(Layer)),
        ("norm", _POINTER),
        ("head", Matrix),
    )


class Rounded(ctypes.Structure):
    _fields_ = (("coarse", _POINTER), ("fine", _POINTER), ("scales", _POINTER), ("sums", _POINTER))


class Scratch(ctypes.Structure):
    _fields_ = (
        ("wide", _LONG),
        ("tall", _LONG),
        ("x", _POINTER),
        ("y", _POINTER),
        ("scores", _POINTER),
        ("rounded", ctypes.POINTER(Rounded)),
    )


class Window(ctypes.Structure):
    _fields_ = (("k", _POINTER), ("v", _POINTER), ("stride", _LONG))


class Row(ctypes.Structure):
    _fields_ = (
        ("h", _POINTER),
        ("normed", _POINTER),
        ("windows", ctypes.POINTER(Window)),
        ("cosine", _POINTER),
        ("sine", _POINTER),
        ("slots", _WHOLE),
        ("open", _FLOAT),
    )


def native_library(cache: Path) -> ctypes.CDLL | None:
    """The compiled ``step.c`` and what is beside it, or None where that cannot be compiled; ``cache`` is
    where such things are kept."""
    library = compiled(SOURCE, cache / "native", beside=BESIDE)
    if library is None:
        return None
    whole, pointer = ctypes.c_int, _POINTER
    library.infini_pack.argtypes = (whole, _LONG, _LONG, *(pointer,) * 3)
    library.infini_unpack.argtypes = (whole, _LONG, _LONG, pointer, pointer, whole)
    library.infini_rows.argtypes = (whole, _LONG, _LONG, *(pointer,) * 3, whole)
    library.infini_attend.argtypes = (*(pointer,) * 4, _LONG, *(whole,) * 4, _FLOAT, whole)
    library.infini_run.argtypes = (pointer, pointer, whole, whole, pointer, whole, whole)
    library.infini_norm.argtypes = (pointer, pointer, whole, pointer)
    library.infini_head.argtypes = (pointer, pointer, pointer, whole, pointer)
    for name in ("pack", "unpack", "rows", "run", "norm", "head"):
        getattr(library, f"infini_{name}").restype = None
    return library
