"""DCP's plans and results as they travel between ranks.

DCP pickles them object by object: for 20,000 small tensors that alone takes longer than writing them. These lists
pickle as a few columns. What arrives is made of DCP's own classes again.
"""

from __future__ import annotations

import contextlib
import gc
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from .. import _native
from ._dtypes import CODES, F4, stored_shape


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Python's cyclic collector runs again and again while objects by the ten thousand are made, and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class PackedItems(list):
    """A plan's `WriteItem`s, all of them of tensors."""

    def __reduce__(self) -> tuple:
        return _restore_items, pack_items(self)


@no_collection()
def item_columns(items: list[WriteItem]) -> tuple:
    """The columns of _native.SavePlan after the rank."""
    data = [item.tensor_data for item in items]
    codes = [CODES[one.properties.dtype] for one in data]
    shapes = ([one.chunk.offsets for one in data], [one.chunk.sizes for one in data], [one.size for one in data])
    if F4 in codes:
        shapes = tuple([stored_shape(shape, code) for shape, code in zip(column, codes)] for column in shapes)
    return [item.index.fqn for item in items], codes, *shapes


@no_collection()
def pack_items(items: Sequence[WriteItem]) -> tuple:
    properties: dict[TensorProperties | tuple, int] = {}
    table: list[TensorProperties] = []
    numbers = array("q")
    ranks, kinds, whole = bytearray(), array("H"), bytearray()
    for item in items:
        data = item.tensor_data
        p = data.properties
        key = (p.dtype, p.layout, p.requires_grad, p.memory_format, p.pin_memory)
        kind = properties.setdefault(key, len(table))
        if kind == len(table):
            table.append(p)
        kinds.append(kind)
        chunk, size = data.chunk, data.size
        ranks.append(len(size))
        numbers.extend(size)
        is_whole = chunk.sizes == size
        whole.append(is_whole)
        if not is_whole:
            numbers.extend(chunk.offsets)
            numbers.extend(chunk.sizes)
    return (
        [item.index.fqn for item in items],
        [item.index.index for item in items],
        bytes(item.type is WriteItemType.SHARD for item in items),
        table, kinds.tobytes(), bytes(ranks), bytes(whole), numbers.tobytes(),
    )


def _restore_items(
    fqns: list[str], hints: list[int | None], shards: bytes, table: list[TensorProperties], kinds: bytes, ranks: bytes,
    whole: bytes, numbers: bytes,
) -> PackedItems:
    flat = array("q", numbers).tolist()
    types = (WriteItemType.TENSOR, WriteItemType.SHARD)
    origins = [torch.Size([0] * rank) for rank in range(max(ranks, default=0) + 1)]
    at = 0
    out = PackedItems()
    with no_collection():
        for fqn, hint, shard, kind, rank, is_whole in zip(fqns, hints, shards, array("H", kinds), ranks, whole):
            size = torch.Size(flat[at : at + rank])
            at += rank
            if is_whole:
                offsets, sizes = origins[rank], size
            else:
                offsets, sizes = torch.Size(flat[at : at + rank]), torch.Size(flat[at + rank : at + 2 * rank])
                at += 2 * rank
            data = TensorWriteData(ChunkStorageMetadata(offsets, sizes), table[kind], size)
            out.append(WriteItem(MetadataIndex(fqn, offsets, hint), types[shard], None, data))
    return out


class WriteResults(Sequence):
    """One rank's `WriteResult`s in the order of its plan, with what the commit needs of them (digests, attempt).
    Made of bytes, which is what travels; the objects are made when they are looked at."""

    def __init__(self, packed: bytes) -> None:
        #: to_bytes(WriteResults) of the C++ library.
        self.packed = packed
        self._results: list[WriteResult] | None = None

    def __reduce__(self) -> tuple:
        return WriteResults, (self.packed,)

    def _all(self) -> list[WriteResult]:
        if self._results is None:
            with no_collection():
                self._results = [
                    WriteResult(MetadataIndex(fqn, offset), size, _StorageInfo(file, 0, size))
                    for fqn, offset, size, file in _native.describe_results(self.packed)
                ]
        return self._results

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, position: Any) -> Any:
        return self._all()[position]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == list(other)

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self._all())
