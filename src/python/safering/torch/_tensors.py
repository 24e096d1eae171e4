"""Tensors as native code wants them: addresses, shapes and strides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from .. import _native
from ._dtypes import CODES, DTYPES, F4, stored_shape
from ._plans import no_collection

#: Copies that are alive at a time, bytes: of tensors that are not plain memory of this host.
WINDOW_BYTES = 256 << 20

_T = TypeVar("_T")


def windows(things: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[list[_T]]:
    """In their order, as many at a time as fit WINDOW_BYTES, and one at least."""
    window: list[_T] = []
    size = 0
    for thing in things:
        wanted = size_of(thing)
        if window and size + wanted > WINDOW_BYTES:
            yield window
            window, size = [], 0
        window.append(thing)
        size += wanted
    if window:
        yield window


#: None: this torch has none.
F4_DTYPE = DTYPES.get(F4)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the elements lie in this host's memory just as the strides say."""
    return (
        (type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not (CODES.get(tensor.dtype) == F4 and not tensor.is_contiguous())
    )


def all_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether is_plain holds for each; one look at each, without a call."""
    strided, kinds = torch.strided, (torch.Tensor, torch.nn.Parameter)
    plain = all(
        type(t) in kinds and t.is_cpu and t.layout is strided and not t.is_neg() and not t.is_conj() for t in tensors
    )
    return plain and (F4_DTYPE is None or all(t.dtype is not F4_DTYPE or t.is_contiguous() for t in tensors))


def to_plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, or the tensor itself where it is plain already. From a device through pinned memory; the copy may
    be under way when this returns (see synchronize)."""
    if is_plain(tensor):
        return tensor
    if tensor.is_meta:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} on the meta device has no data to save")
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.resolve_conj().resolve_neg().contiguous()
    host = empty_plain(tensor.shape, tensor.dtype, tensor.device)
    return host.copy_(tensor.resolve_conj().resolve_neg(), non_blocking=True)


def empty_plain(shape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory for a tensor of `device`; pinned where that helps. torch keeps pinned blocks for the next one."""
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")


def synchronize(devices: set[torch.device]) -> None:
    """Waits for the copies that to_plain and copy_ began on these devices."""
    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


@no_collection()
def columns(tensors: list[torch.Tensor], shapes=None) -> _native.TensorColumns:
    """Plain tensors, which the caller keeps alive. `shapes`: where they are known already."""
    codes = [CODES[tensor.dtype] for tensor in tensors]
    if shapes is None:
        shapes = [tensor.shape for tensor in tensors]
    strides = [tensor.stride() for tensor in tensors]
    if F4 in codes:  # contiguous, see is_plain; native code works strides out of the shape then
        shapes = [stored_shape(shape, code) for shape, code in zip(shapes, codes)]
        strides = [() if code == F4 else stride for stride, code in zip(strides, codes)]
    return _native.TensorColumns([tensor.data_ptr() for tensor in tensors], codes, shapes, strides)


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
