"""Copies of state dicts for asynchronous saves, in host memory that is used again by the next one."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.tensor import DTensor

from .. import _native
from ._tensors import is_plain, nbytes, synchronize

_ALIGNMENT = 64


def stage(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy of `state_dict` on the CPU: tensors, DTensors and ShardedTensors in nested dicts, lists and tuples; other
    values are deep copied. Blocks for the time of the copy, without the GIL. The memory goes back for the next copy
    when the last tensor of this one is gone, so copies that are alive at a time never share it."""
    sources: list[torch.Tensor] = []
    _walk(state_dict, sources.append)
    offsets: list[int] = []
    end = 0
    for source in sources:
        offsets.append(end)
        end += -(-nbytes(source) // _ALIGNMENT) * _ALIGNMENT
    buffer = _native.StagingBuffer(max(end, 1))

    def view(source: torch.Tensor, offset: int) -> torch.Tensor:
        if not source.numel():
            return torch.empty(source.shape, dtype=source.dtype)
        # Each with a storage of its own: torch sends tensors to another process by moving their storage to shared
        # memory, and DTensors that shared one crash there.
        data = torch.frombuffer(buffer, dtype=torch.uint8, count=nbytes(source), offset=offset)
        return data.view(source.dtype).view(source.shape)

    staged = [view(source, offset) for source, offset in zip(sources, offsets)]
    flat = [i for i, source in enumerate(sources) if is_plain(source) and source.is_contiguous() and source.numel()]
    devices = set()
    with torch.no_grad():
        for i in set(range(len(sources))).difference(flat):
            if sources[i].numel():
                devices.add(sources[i].device)
                staged[i].copy_(sources[i], non_blocking=True)
    buffer.copy(
        [offsets[i] for i in flat], [sources[i].data_ptr() for i in flat], [nbytes(sources[i]) for i in flat]
    )
    synchronize(devices)
    following = iter(staged)
    return _walk(state_dict, lambda _: next(following))


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
