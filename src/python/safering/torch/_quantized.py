"""QuantizedHuggingFaceStorageReader: weights that are stored in blocks with scales, dequantised as they load.

A box of a weight needs the scales of the blocks that it touches and no others. Both are read as they are stored,
through the native reader, into a bounded window of memory; the arithmetic is torch's, on the target's device.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from .. import _errors, _runtime
from ._dequantize import Shape, expand_mxfp4, multiply_blocks
from ._hooks import overrides
from ._reader import HuggingFaceStorageReader
from ._tensors import WINDOW_BYTES, empty_plain, synchronize, windows

__all__ = ["QuantizedHuggingFaceStorageReader"]

# torch has its own since 2.9.
_TorchQuantized = getattr(dcp, "QuantizedHuggingFaceStorageReader", None)
_BASES = (HuggingFaceStorageReader,) + ((_TorchQuantized,) if _TorchQuantized is not None else ())

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclasses.dataclass(frozen=True)
class _Quantized:
    """A weight and its scales, both as they are stored."""

    stored: TensorStorageMetadata
    scales_fqn: str
    scales: TensorStorageMetadata
    #: MXFP4: `[..., G, B]` bytes of two values each, for a tensor `[..., G * B * 2]`; a scale for each group.
    packed: bool
    #: Why it cannot be dequantised.
    fault: str | None

    @property
    def group(self) -> int:
        """Values in a group of MXFP4."""
        return self.stored.size[-1] * 2


@dataclasses.dataclass(frozen=True)
class _Part:
    """A box of a weight, its scales and where it goes."""

    of: _Quantized
    #: As it is stored.
    weight: ReadItem
    scales: ChunkStorageMetadata
    #: Place of the box in the dequantised tensor.
    begin: Shape
    target: torch.Tensor

    @property
    def nbytes(self) -> int:
        weight = math.prod(self.weight.lengths) * self.of.stored.properties.dtype.itemsize
        return weight + math.prod(self.scales.sizes) * self.of.scales.properties.dtype.itemsize


class QuantizedHuggingFaceStorageReader(*_BASES):
    """HuggingFaceStorageReader for checkpoints with quantised weights, which arrive in the planner's tensors as the
    numbers that they stand for.

    Two forms are known by the names of their tensors, whatever files these are in:
      `NAME` and `NAME_scale_inv` (DeepSeek: FP8): every block of `block_size` x `block_size` elements of the last two
        dimensions has a scale that it is multiplied by. The metadata shows `target_dtype`.
      `NAME_blocks` and `NAME_scales` (gpt-oss: MXFP4): `[..., G, B]` bytes of two E2M1 values each, the lower four
        bits first, and a power of two `[..., G]` in E8M0. The metadata shows `NAME_blocks` as
        `[..., G * B * 2]` of `target_dtype`.
    Scales can be loaded as they are, under their own names. Any box of a weight may be asked for, and chunks of it may
    be in several files.

    Args:
        path: as HuggingFaceStorageReader has it.
        thread_count: threads that dequantise, where the planner's tensors are on the CPU.
        target_dtype: dtype that values are rounded to, from float32, before they go into the planner's tensor, which
            may have another.
        block_size: rows and columns of a block (`weight_block_size` of a model's config.json).

    Keyword Args: as HuggingFaceStorageReader has them.

    Raises safering.Error on loading a weight whose scales are missing or do not fit its shape, besides what
    HuggingFaceStorageReader raises.
    """

    _hooks = HuggingFaceStorageReader._hooks + tuple(
        name for name in vars(_TorchQuantized or object) if name.startswith("_") and not name.startswith("__")
    )

    def __init__(
        self,
        path: str,
        thread_count: int = 1,
        target_dtype: torch.dtype = torch.float32,
        block_size: int = 128,
        *,
        backend: str = "automatic",
        buffer_memory: int | None = None,
        verification: str = "covered",
        strict: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be 1 or more, not {block_size}")
        super().__init__(
            path,
            thread_count,
            backend=backend,
            buffer_memory=buffer_memory,
            verification=verification,
            strict=strict,
            exchange="off",  # what a plan's items read is not what they show
            progress=progress,
        )
        self.target_dtype = target_dtype
        self.block_size = block_size
        self._quantized: dict[str, _Quantized] | None = None

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        self._quantized = None
        super().reset(checkpoint_id)

    def read_metadata(self) -> Metadata:
        """As HuggingFaceStorageReader; quantised weights are shown as they will be loaded."""
        if overrides(self, self._hooks):
            return _TorchQuantized.read_metadata(self)  # with what torch's read_data goes by
        metadata = super().read_metadata()
        tensors = metadata.state_dict_metadata
        quantized: dict[str, _Quantized] = {}
        for scales_fqn, scales in tensors.items():
            packed = scales_fqn.endswith("_scales")
            if packed:
                fqn = scales_fqn.removesuffix("_scales") + "_blocks"
            elif scales_fqn.endswith("_scale_inv"):
                fqn = scales_fqn.removesuffix("_scale_inv")
            else:
                continue
            stored = tensors.get(fqn)
            if stored is None:
                continue
            dtype = stored.properties.dtype
            if packed and (dtype != torch.uint8 or len(stored.size) < 2):
                continue  # another format's names
            if not packed and dtype.itemsize != 1 and not fqn.endswith(".weight"):
                continue  # nor is this a quantised weight; torch's reader takes a `.weight` of any dtype for one
            fault = _packed_fault(stored, scales) if packed else self._block_fault(stored, scales_fqn, scales)
            quantized[fqn] = _Quantized(stored, scales_fqn, scales, packed, fault)
        for fqn, one in quantized.items():
            tensors[fqn] = self._show(fqn, one, metadata.storage_data)
        self._quantized = quantized
        return metadata

    def _show(
        self, fqn: str, one: _Quantized, storage_data: dict[MetadataIndex, _HFStorageInfo]
    ) -> TensorStorageMetadata:
        """The tensor as it will be loaded; `storage_data` is kept in step."""
        if one.fault is not None:
            return one.stored
        size, chunks = one.stored.size, one.stored.chunks
        if one.packed:
            size = torch.Size(_unpacked(size, one.group))
            chunks = [
                ChunkStorageMetadata(
                    torch.Size(_unpacked(chunk.offsets, one.group)), torch.Size(_unpacked(chunk.sizes, one.group))
                )
                for chunk in chunks
            ]
            infos = [storage_data.pop(MetadataIndex(fqn, chunk.offsets)) for chunk in one.stored.chunks]
            storage_data.update((MetadataIndex(fqn, chunk.offsets), info) for chunk, info in zip(chunks, infos))
        return TensorStorageMetadata(TensorProperties(dtype=self.target_dtype), size, chunks)

    def _block_fault(self, stored: TensorStorageMetadata, scales_fqn: str, scales: TensorStorageMetadata) -> str | None:
        if len(stored.size) < 2:
            return f"it has {len(stored.size)} dimensions, and blocks need two"
        expected = (*stored.size[:-2], *(-(-extent // self.block_size) for extent in stored.size[-2:]))
        if tuple(scales.size) == expected:
            return None
        return (
            f"{tuple(stored.size)} in blocks of {self.block_size} needs scales {expected}, and {scales_fqn!r} is "
            f"{tuple(scales.size)}; give the block_size of the checkpoint (weight_block_size in its config.json)"
        )

    def _fill(
        self, items: list[ReadItem], targets: list[torch.Tensor], report: dict, exchange: bytes | None = None
    ) -> None:
        if self._quantized is None:
            self.read_metadata()  # the plan came from elsewhere
        plain = []
        parts: list[_Part] = []
        for position, (item, target) in enumerate(zip(items, targets)):
            one = self._quantized.get(item.storage_index.fqn)
            if one is None:
                self._check_target(item, target)
                plain.append(position)
            else:
                parts += self._parts(item, one, target)
        super()._fill([items[i] for i in plain], [targets[i] for i in plain], report, exchange)
        for window in windows(parts, lambda part: part.nbytes):
            self._fill_window(window, report)

    def _loaded_dtype(self, item: ReadItem) -> torch.dtype:
        if self._quantized is None:
            self.read_metadata()
        return self.target_dtype if item.storage_index.fqn in self._quantized else super()._loaded_dtype(item)

    def _check_target(self, item: ReadItem, target: torch.Tensor) -> None:
        fqn = item.storage_index.fqn
        if fqn in self._quantized:
            return
        dtype = self.storage_data[item.storage_index].dtype
        if dtype in _FP8 and target.dtype != dtype:
            raise self._error(
                fqn,
                f"it is stored as {dtype}, and the checkpoint has no {fqn + '_scale_inv'!r}; "
                "load what is stored with HuggingFaceStorageReader, or into a tensor of that dtype",
            )

    def _parts(self, item: ReadItem, one: _Quantized, target: torch.Tensor) -> Iterator[_Part]:
        """An item, cut where it is larger than a window."""
        fqn = item.storage_index.fqn
        if one.fault is not None:
            raise self._error(fqn, one.fault)
        chunk = tuple(item.storage_index.offset or (0,) * len(item.lengths))
        most = WINDOW_BYTES * 2 if one.packed else WINDOW_BYTES // one.stored.properties.dtype.itemsize
        for place, lengths in _cut((0,) * len(chunk), tuple(item.lengths), most):
            offsets = _add(item.storage_offsets, place)
            begin = _add(chunk, offsets)
            weight = dataclasses.replace(item, storage_offsets=torch.Size(offsets), lengths=torch.Size(lengths))
            if one.packed:
                group = one.group
                first, end = begin[-1] // group, -(-(begin[-1] + lengths[-1]) // group)
                stored_chunk = (*chunk[:-1], chunk[-1] // group, 0)
                weight = dataclasses.replace(
                    item,
                    storage_index=MetadataIndex(fqn, torch.Size(stored_chunk), item.storage_index.index),
                    storage_offsets=torch.Size((*offsets[:-1], first - stored_chunk[-2], 0)),
                    lengths=torch.Size((*lengths[:-1], end - first, group // 2)),
                )
                box = (*begin[:-1], first), (*lengths[:-1], end - first)
            else:
                first = tuple(at // self.block_size for at in begin[-2:])
                end = tuple(-(-(at + n) // self.block_size) for at, n in zip(begin[-2:], lengths[-2:]))
                box = (*begin[:-2], *first), (*lengths[:-2], end[0] - first[0], end[1] - first[1])
            scales = ChunkStorageMetadata(*map(torch.Size, box))
            yield _Part(one, weight, scales, begin, target[_slices(place, lengths)])

    def _fill_window(self, parts: list[_Part], report: dict) -> None:
        parts = [part for part in parts if part.target.numel()]
        items: list[ReadItem] = []
        tensors: list[torch.Tensor] = []
        read: list[tuple[torch.Tensor, torch.Tensor]] = []
        for part in parts:
            one = part.of
            weight = empty_plain(tuple(part.weight.lengths), one.stored.properties.dtype, part.target.device)
            scales = empty_plain(tuple(part.scales.sizes), one.scales.properties.dtype, part.target.device)
            read.append((weight, scales))
            items.append(part.weight)
            tensors.append(weight)
            for item in create_read_items_for_chunk_list(one.scales_fqn, one.scales, [part.scales]):
                items.append(item)
                tensors.append(scales[_slices(item.dest_offsets, item.lengths)])
        self._read(items, tensors, report)

        inference = torch.is_inference_mode_enabled()  # of this thread, and to be so in the others

        @torch.inference_mode(inference)
        def dequantize(part: _Part, weight: torch.Tensor, scales: torch.Tensor) -> None:
            # Elsewhere FP8 may lack its conversions.
            device = part.target.device if part.target.device.type in ("cpu", "cuda") else torch.device("cpu")
            weight, scales = weight.to(device, non_blocking=True), scales.to(device, non_blocking=True)
            if part.of.packed:
                skip = part.begin[-1] % part.of.group
                expand_mxfp4(weight, scales, skip, self.target_dtype, part.target)
            else:
                multiply_blocks(weight, scales, part.begin[-2:], self.block_size, self.target_dtype, part.target)

        if self.thread_count > 1 and all(part.target.device.type == "cpu" for part in parts):
            with ThreadPoolExecutor(self.thread_count) as threads:
                for _ in threads.map(dequantize, parts, *zip(*read)):
                    pass  # raises what the thread raised
        else:
            for part, (weight, scales) in zip(parts, read):
                dequantize(part, weight, scales)
        synchronize({part.target.device for part in parts})

    def _error(self, fqn: str, detail: str) -> _errors.Error:
        return _errors.Error(
            f"{self.path}: {fqn!r} cannot be dequantised: {detail}",
            reason="cannot be dequantised",
            operation="read data",
            file=os.fspath(self.path),
            tensor=fqn,
            detail=detail,
        )


def _packed_fault(stored: TensorStorageMetadata, scales: TensorStorageMetadata) -> str | None:
    if scales.size != stored.size[:-1] or scales.properties.dtype.itemsize != 1:
        return (
            f"{tuple(stored.size)} of MXFP4 needs scales {tuple(stored.size[:-1])} of one byte, and they are "
            f"{tuple(scales.size)} of {scales.properties.dtype}"
        )
    if any(chunk.sizes[-1] != stored.size[-1] for chunk in stored.chunks):
        return "it is stored in chunks that cut its groups"
    return None


def _unpacked(shape: Shape, group: int) -> Shape:
    """`[..., G, B]` -> `[..., G * group]`; of offsets too."""
    return (*shape[:-2], shape[-2] * group)


def _cut(place: Shape, sizes: Shape, limit: int) -> Iterator[tuple[Shape, Shape]]:
    """A box, halved along its outermost dimension until it has at most `limit` elements."""
    if math.prod(sizes) <= limit:
        yield place, sizes
        return
    dim = next(d for d, size in enumerate(sizes) if size > 1)
    half = sizes[dim] // 2
    yield from _cut(place, (*sizes[:dim], half, *sizes[dim + 1 :]), limit)
    second = (*place[:dim], place[dim] + half, *place[dim + 1 :])
    yield from _cut(second, (*sizes[:dim], sizes[dim] - half, *sizes[dim + 1 :]), limit)


def _slices(offsets: Shape, sizes: Shape) -> tuple[slice, ...]:
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes))


def _add(a: Shape, b: Shape) -> Shape:
    return tuple(x + y for x, y in zip(a, b))
