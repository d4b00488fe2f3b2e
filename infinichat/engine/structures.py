"""The structures of ``step.c`` and ``products.h`` as ctypes knows them.

The fields stand in the order of the C files', which say what they are.
"""

from __future__ import annotations

import ctypes

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
