"""torch's dtypes and the format's."""

from __future__ import annotations

import torch

from .. import _native

_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
}
# Newer than the oldest torch that works.
for _attribute, _name in (("float8_e8m0fnu", "F8_E8M0"), ("float4_e2m1fn_x2", "F4")):
    if hasattr(torch, _attribute):
        _NAMES[getattr(torch, _attribute)] = _name

#: torch.dtype -> number of the format's dtype (position in _native.dtype_names).
CODES: dict[torch.dtype, int] = {dtype: _native.dtype_names.index(name) for dtype, name in _NAMES.items()}
#: The other way round; dtypes that torch lacks are not in it.
DTYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in CODES.items()}
#: Two elements of the format in one of torch's: its last dimension counts pairs.
F4: int = _native.dtype_names.index("F4")


def stored_shape(shape, code: int):
    """A torch shape, or offsets, in elements of the format."""
    return (*shape[:-1], shape[-1] * 2) if code == F4 and len(shape) else shape


def torch_shape(shape, code: int):
    """The inverse, or None where a pair would be cut."""
    if code != F4 or not len(shape):
        return shape
    return (*shape[:-1], shape[-1] // 2) if shape[-1] % 2 == 0 else None
