"""`save_file`, `load_file` and `safe_open`: in place of `safetensors.numpy`'s.

bfloat16 and float8 need the package ml_dtypes, whose dtypes they are; float4 and float6 numpy does not have.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native, _runtime
from ._files import check_metadata, safe_open

__all__ = ["load_file", "safe_open", "save_file"]

# The format's name -> numpy's, and ml_dtypes'.
_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "I64": "int64",
    "U64": "uint64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
}
_CODES = {name: _native.dtype_names.index(stored) for stored, name in _NAMES.items()}


@functools.cache
def _dtype(code: int) -> np.dtype | None:
    name = _NAMES.get(_native.dtype_names[code])
    if name is None:
        return None
    if isinstance(getattr(np, name, None), type):
        return np.dtype(name)
    try:
        import ml_dtypes  # type: ignore[import-not-found]
    except ImportError:
        return None
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else None


class NumpyArrays:
    """ndarrays, as safering._files asks for them."""

    window_bytes: int | None = None

    def __str__(self) -> str:
        return "numpy (with ml_dtypes, where that is installed)"

    def shape(self, stored: Sequence[int], code: int) -> tuple[int, ...] | None:
        return None if _dtype(code) is None else tuple(stored)

    def stored(self, numbers: Sequence[int], code: int) -> Sequence[int]:
        return numbers

    def itemsize(self, code: int) -> int:
        dtype = _dtype(code)
        assert dtype is not None  # shape() was asked first
        return dtype.itemsize

    def empty(self, shape: Sequence[int], code: int) -> np.ndarray:
        return np.empty(shape, _dtype(code))

    def address(self, array: np.ndarray) -> int:
        return array.ctypes.data

    def strides(self, array: np.ndarray) -> Sequence[int]:
        return [stride // array.itemsize for stride in array.strides]

    def finish(self, arrays: list[np.ndarray], codes: list[int]) -> list[np.ndarray]:
        return arrays

    def check(self, shape: Sequence[int], index: Any) -> None:
        np.broadcast_to(np.empty((), np.uint8), shape)[index]


def save_file(
    tensor_dict: dict[str, np.ndarray],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes one safetensors file, whole and durable: it has been flushed to the disk and got its name by one rename
    when this returns. Until then a file that had the name is as it was, and who has it open reads on in it.

    Arrays may have any strides; they are written in C order from where they lie (of the other byte order: from a
    copy). Nobody may change them meanwhile.

    Args:
        tensor_dict: of dtypes that the format has, those of ml_dtypes included.
        filename: any name; its directory must exist. A symbolic link of the name is replaced, not its target.
        metadata: `__metadata__` of the header.

    Raises; in every case the file that was there is untouched:
        ValueError: no dict, or an entry that is no array.
        TypeError: a dtype that the format lacks; names or metadata that are no strings.
        safering.Error: what the format refuses, such as the name "__metadata__"; also a
            `safetensors.SafetensorError`.
        safering.StorageError: what the operating system refuses (also an OSError).
    """
    if not isinstance(tensor_dict, dict):
        raise ValueError(f"expected a dict of names and arrays, found {type(tensor_dict).__name__}")
    check_metadata(metadata)
    for name, array in tensor_dict.items():
        if not isinstance(name, str):
            raise TypeError(f"expected a string as the name of an array, found {name!r}")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name!r}: expected a numpy.ndarray, found {type(array).__name__}")
        if array.dtype.name not in _CODES:
            raise TypeError(f"{name!r}: safetensors has no dtype for {array.dtype}; convert it before saving")
    arrays = [_to_plain(array) for array in tensor_dict.values()]
    columns = _native.TensorColumns(
        [array.ctypes.data for array in arrays],
        [_CODES[array.dtype.name] for array in arrays],
        [array.shape for array in arrays],
        [[stride // array.itemsize for stride in array.strides] for array in arrays],
    )
    _native.save_file(
        os.fsencode(filename), list(tensor_dict), columns, list((metadata or {}).items()), _runtime.reactor(path=filename)
    )


def load_file(filename: str | os.PathLike[str], *, backend: str = "automatic") -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, in memory of their own, in the order of their bytes.

    Arguments and errors as `safe_open` has them. A dtype that numpy lacks is a safering.Error before anything is read.
    """
    with safe_open(filename, "np", backend=backend) as file:
        return file.get_tensors()


def _to_plain(array: np.ndarray) -> np.ndarray:
    """The array, or a copy where it is not in this host's byte order or has strides that are no whole elements."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.copy() if any(stride % array.itemsize for stride in array.strides) else array
