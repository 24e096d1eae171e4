"""Copies of state dicts for asynchronous saves, in host memory that is used again by the next one."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.tensor import DTensor

from .. import _native
from ._dtypes import CODES
from ._plans import item_columns
from ._planner import local_items
from ._tensors import columns, is_plain, nbytes, synchronize

logger = logging.getLogger(__name__)

_ALIGNMENT = 64
#: Below this many bytes a tensor, on average, tensors reach a file together with others, and how they lie is no matter.
_LARGE = 64 << 10


def pin_staging_memory() -> None:
    """Page-locks staging memory while it exists, where there is a device that copies faster from such memory."""
    global _pinning
    if _pinning or not torch.cuda.is_available():
        return
    _pinning = True
    runtime = torch.cuda.cudart()

    def register(address: int, size: int) -> None:
        if error := int(runtime.cudaHostRegister(address, size, 0)):
            logger.info("staging memory of %d bytes is not page-locked: CUDA error %d", size, error)

    def unregister(address: int, size: int) -> None:
        runtime.cudaHostUnregister(address)  # fails where it was not registered, which is no matter

    _native.set_staging_hooks(register, unregister)


_pinning = False


def stage(
    state_dict: dict[str, Any], mapping: dict[str, int] | None = None, sharded: bool = False
) -> dict[str, Any]:
    """A copy of `state_dict` on the CPU: tensors, DTensors and ShardedTensors in nested dicts, lists and tuples; other
    values are deep copied. Blocks for the time of the copy, without the GIL. The memory goes back for the next copy
    when the last tensor of this one is gone, so copies that are alive at a time never share it. With the mapping and
    the layout of the save that follows, large tensors lie as they will in its files, and are written from there."""
    pin_staging_memory()
    sources: list[torch.Tensor] = []
    _walk(state_dict, sources.append)
    offsets, size = _expect_layout(state_dict, sources, mapping, sharded) or _one_after_the_other(sources)
    buffer = _native.StagingBuffer(max(size, 1))

    def view(source: torch.Tensor, offset: int) -> torch.Tensor:
        if not source.numel():
            return torch.empty(source.shape, dtype=source.dtype)
        # Each with a storage of its own: torch sends tensors to another process by moving their storage to shared
        # memory, and DTensors that shared one crash there.
        data = torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes(source), offset=offset)
        return data.view(source.dtype).view(source.shape)

    staged = [view(source, offset) for source, offset in zip(sources, offsets)]
    copy_to(sources, [buffer.address + offset for offset in offsets], staged.__getitem__)
    following = iter(staged)
    return _walk(state_dict, lambda _: next(following))


def copy_to(
    sources: list[torch.Tensor], places: list[int], view: Callable[[int], torch.Tensor]
) -> None:
    """Each tensor to its address, dense and row-major. `view(i)` is a tensor of that memory."""
    plain = [i for i, source in enumerate(sources) if _is_native(source)]
    devices = set()
    with torch.no_grad():
        for i in set(range(len(sources))).difference(plain):
            if sources[i].numel():
                devices.add(sources[i].device)
                view(i).copy_(sources[i], non_blocking=True)
    _native.copy_tensors([places[i] for i in plain], columns([sources[i] for i in plain]))
    synchronize(devices)


def _is_native(tensor: torch.Tensor) -> bool:
    return tensor.dtype in CODES and is_plain(tensor) and tensor.numel() > 0


def _one_after_the_other(sources: list[torch.Tensor]) -> tuple[list[int], int]:
    offsets: list[int] = []
    end = 0
    for source in sources:
        offsets.append(end)
        end += -(-nbytes(source) // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _expect_layout(
    state_dict: dict[str, Any], sources: list[torch.Tensor], mapping: dict[str, int] | None, sharded: bool
) -> tuple[list[int], int] | None:
    """As the files of the save will be, if they can be told: a guess, right where all ranks have the same names."""
    sizes = [nbytes(source) for source in sources]
    if not sources or sum(sizes) < len(sizes) * _LARGE:
        return None
    items = local_items(flatten_state_dict(state_dict)[0])
    items = [item for item in items if item.tensor_data is not None]
    if len(items) != len(sources) or any(item.tensor_data.properties.dtype not in CODES for item in items):
        return None
    if any(
        item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize != size
        for item, size in zip(items, sizes)
    ):
        return None  # not in the same order
    try:
        return _native.staging_layout(_native.SavePlan(0, *item_columns(items)), mapping or {}, sharded)
    except RuntimeError:
        return None  # the save will say what is wrong, on all ranks


def _walk(value: Any, local: Any) -> Any:
    """The same structure, with local(tensor) in place of each local tensor, in an order that is always the same."""
    if isinstance(value, ShardedTensor):
        shards = [local(shard.tensor.detach()) for shard in value.local_shards()]
        if shards and shards[0] is None:
            return None  # the first pass, which only looks
        out = copy.copy(value) if not shards else copy.deepcopy(value)
        for shard, tensor in zip(out.local_shards(), shards):
            shard.tensor = tensor
        return out
    if isinstance(value, DTensor):
        tensor = local(value.detach()._local_tensor)
        return None if tensor is None else DTensor(tensor, value._spec, requires_grad=False)
    if isinstance(value, torch.Tensor):
        return local(value.detach())
    if isinstance(value, dict):
        return {key: _walk(entry, local) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_walk(entry, local) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    if isinstance(value, io.BytesIO):
        return io.BytesIO(value.getvalue())
    return copy.deepcopy(value)
