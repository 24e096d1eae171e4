"""`save_file`, `load_file` and `safe_open`: in place of `safetensors.torch`'s."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .. import _native, _runtime
from .._files import check_metadata, safe_open
from ._dtypes import CODES, DTYPES, F4, stored_shape, torch_shape
from ._tensors import WINDOW_BYTES, columns, empty_plain, is_plain, nbytes, to_plain

__all__ = ["load_file", "safe_open", "save_file"]

# From here on memory comes fresh from the system, and to touch its pages of 4 KiB one by one takes longer than to
# read them (a load of 400 MB: 260 ms, with huge pages 165 ms). numpy does so by itself, from the same size on.
_HUGE_BYTES = 4 << 20


class TorchArrays:
    """Tensors, as safering._files asks for them."""

    def __init__(self, device: str | int | torch.device) -> None:
        self.device = torch.device(device)
        if self.device.type == "meta":
            raise ValueError("device: tensors on the meta device have no data")
        self.window_bytes = None if self.device.type == "cpu" else WINDOW_BYTES

    def __str__(self) -> str:
        return "torch"

    def shape(self, stored: Sequence[int], code: int) -> tuple[int, ...] | None:
        # Two elements of F4 are one of torch's: there is no scalar, and no half of one.
        if code not in DTYPES or (code == F4 and not stored):
            return None
        return torch_shape(tuple(stored), code)

    def stored(self, numbers: Sequence[int], code: int) -> Sequence[int]:
        return stored_shape(tuple(numbers), code)

    def itemsize(self, code: int) -> int:
        return DTYPES[code].itemsize

    def empty(self, shape: Sequence[int], code: int) -> torch.Tensor:
        # torch can copy no pairs of F4; finish() gives them their dtype.
        tensor = empty_plain(shape, torch.uint8 if code == F4 else DTYPES[code], self.device)
        if self.device.type == "cpu" and nbytes(tensor) >= _HUGE_BYTES:
            _native.advise_huge(tensor.data_ptr(), nbytes(tensor))
        return tensor

    def address(self, array: torch.Tensor) -> int:
        return array.data_ptr()

    def strides(self, array: torch.Tensor) -> Sequence[int]:
        return array.stride()

    def finish(self, arrays: list[torch.Tensor], codes: list[int]) -> list[torch.Tensor]:
        out = []
        for array, code in zip(arrays, codes):
            tensor = array.to(self.device, non_blocking=True)
            out.append(tensor.view(DTYPES[code]) if code == F4 else tensor)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return out

    def check(self, shape: Sequence[int], index: Any) -> None:
        torch.empty(shape, dtype=torch.uint8, device="meta")[index]


def save_file(
    tensors: dict[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes one safetensors file, whole and durable: it has been flushed to the disk and got its name by one rename
    when this returns. Until then a file that had the name is as it was, and who has it open reads on in it.

    Tensors may have any strides; they are written in C order from where they lie. Those on a device, and conjugate or
    negative views, are copied to host memory first, all at once. Nobody may change the tensors meanwhile.

    Args:
        tensors: on any device, of any dtype that the format has.
        filename: any name; its directory must exist. A symbolic link of the name is replaced, not its target.
        metadata: `__metadata__` of the header.

    Raises; in every case the file that was there is untouched:
        ValueError: no dict; an entry that is no dense tensor with data in one place.
        RuntimeError: tensors that share memory: they would be written twice, and come back as two.
        TypeError: a dtype that the format lacks; names or metadata that are no strings.
        safering.Error: what the format refuses, such as the name "__metadata__"; also a
            `safetensors.SafetensorError`.
        safering.StorageError: what the operating system refuses (also an OSError).
    """
    _check_tensors(tensors)
    check_metadata(metadata)
    detached = [tensor.detach() for tensor in tensors.values()]
    plain = [tensor if is_plain(tensor) else to_plain(tensor.to("cpu")) for tensor in detached]
    _native.save_file(
        os.fsencode(filename), list(tensors), columns(plain), list((metadata or {}).items()), _runtime.reactor(path=filename)
    )


def load_file(
    filename: str | os.PathLike[str], device: str | int | torch.device = "cpu", *, backend: str = "automatic"
) -> dict[str, torch.Tensor]:
    """All tensors of one safetensors file, in memory of their own, in the order of their bytes.

    Arguments and errors as `safe_open` has them. To a device they go through at most 256 MiB of host memory (or one
    tensor, where that is larger). A dtype that torch lacks is a safering.Error before anything is read.
    """
    with safe_open(filename, "pt", device, backend=backend) as file:
        return file.get_tensors()


def _check_tensors(tensors: dict[str, torch.Tensor]) -> None:
    if not isinstance(tensors, dict):
        raise ValueError(f"expected a dict of names and tensors, found {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"expected a string as the name of a tensor, found {name!r}")
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name!r}: expected a tensor, found {type(tensor).__name__}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name!r}: a tensor of layout {tensor.layout}; save its to_dense(), or its parts")
        if tensor.device.type == "meta":
            raise ValueError(f"{name!r}: a tensor on the meta device has no data")
        if is_traceable_wrapper_subclass(tensor):
            raise ValueError(
                f"{name!r}: a {type(tensor).__name__} keeps its data in other tensors; save these (of a DTensor "
                "to_local() or full_tensor()), or save with safering.torch.HuggingFaceStorageWriter"
            )
        if tensor.dtype not in CODES:
            raise TypeError(f"{name!r}: safetensors has no dtype for {tensor.dtype}; convert it before saving")
    shared = shared_names(tensors)
    if shared:
        raise RuntimeError(
            f"these tensors share memory, would be written once each and loaded as unrelated ones: {shared}; "
            "leave all but one out (save_model does so for a module), or clone() them"
        )


def shared_names(tensors: dict[str, torch.Tensor]) -> list[list[str]]:
    """Names of tensors of one storage whose bytes, from first to last, overlap."""
    spans = sorted(
        (*_storage(tensor), *span(tensor), name)
        for name, tensor in tensors.items()
        if tensor.numel() and tensor.untyped_storage().nbytes()
    )
    out: list[list[str]] = []
    for _, group in itertools.groupby(spans, key=lambda span: span[:3]):
        names: list[str] = []
        reached = 0
        for *_, begin, end, name in group:
            if names and begin >= reached:
                out.append(names)
                names = []
            names.append(name)
            reached = max(reached, end)
        out.append(names)
    return [sorted(names) for names in out if len(names) > 1]


def _storage(tensor: torch.Tensor) -> tuple[str, int, int]:
    storage = tensor.untyped_storage()
    return str(tensor.device), storage.data_ptr(), storage.nbytes()


def span(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
