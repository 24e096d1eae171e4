"""HuggingFaceStorageReader: DCP's calls, handed to native code."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageReader as _TorchReader
from torch.distributed.checkpoint._hf_utils import _HFStorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from .. import _native, _runtime
from .._arguments import check_choice, check_exchange, check_progress, check_reactor
from .._reports import LoadReport
from ._dtypes import CODES, DTYPES, F4, stored_shape, torch_shape
from ._hooks import class_overrides, overrides
from ._plans import no_collection
from ._state import listed
from ._tensors import columns, empty_plain, is_plain, nbytes, synchronize, windows

logger = logging.getLogger(__name__)

__all__ = ["HuggingFaceStorageReader"]

_OFFER_KEY = "safering.offer"
_EXCHANGE_KEY = "safering.exchange"

# What a planner says of each tensor.
_PLANNER_STEPS = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


class _FlatPath(tuple):
    """A name's place in a state dict that is flat. Iterated it gives the parts of the name, for DCP adds those up to
    see whether one of `keys` is a prefix."""

    def __iter__(self) -> Iterator[str]:
        return iter(self[0].split("."))


class HuggingFaceStorageReader(_TorchReader):
    """Loads safetensors checkpoints with any sharding: safering's own (by their manifest, verified), a Hugging Face
    directory (by its index, else every *.safetensors), DCP's `shard-...` files, or a single file.

    Only the bytes that the plan needs are read, past the page cache, and put straight into the tensors of the
    planner; into other dtypes, other devices and memory that is not plain through a bounded copy.

    Args:
        path: directory of the checkpoint, or one *.safetensors file.
        thread_count: accepted; native code reads all files at once.

    Keyword Args:
        backend, buffer_memory, progress: as HuggingFaceStorageWriter has them.
        verification: "covered" (extents that are read whole are checked against the manifest's digests before
            their bytes count as loaded), "all" (reads are widened so that every byte is checked) or "off".
        strict: refuse symbolic links in place of files (the Hub's cache consists of them).
        exchange: how ranks of one host hand on what several of them would read (inner shards, replicas), so that it
            is read once: "automatic" (where it is cheaper, from each other's memory or else through shared memory),
            "process_memory", "shared_memory", or "off". What goes into other dtypes or devices each rank reads by
            itself. The coordinator's counts.

    Raises safering.Error, with file, tensor and reason, for a corrupt header, a lost or changed file, chunks that
    do not cover their tensor; safering.StorageError for what the operating system refuses.

    A tensor of a dtype that torch lacks is left out of the metadata, with a warning. One thread at a time may use
    a reader. A derived class that overrides what torch's `read_data` calls reads as torch's does, through that.
    """

    #: What torch's read_data calls, of which ours calls nothing.
    _hooks: tuple[str, ...] = ("_process_read_request", "_read_files_from_queue")

    def __init__(
        self,
        path: str,
        thread_count: int = 1,
        *,
        backend: str = "automatic",
        buffer_memory: int | None = None,
        verification: str = "covered",
        strict: bool = False,
        exchange: str = "automatic",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_reactor(backend, buffer_memory)
        check_choice("verification", verification, ("off", "covered", "all"))
        check_exchange(exchange)
        check_progress(progress)
        super().__init__(path=path, thread_count=thread_count)
        self.backend = backend
        self.buffer_memory = buffer_memory
        self.verification = verification
        self.strict = strict
        self.exchange = exchange
        self.progress = progress
        #: How the last load went: tensor_bytes, read_bytes, verified_bytes, process_memory_bytes and
        #: shared_memory_bytes (taken from other ranks), backend, notes, ...
        self.report: LoadReport | None = None
        self._native: _native.Reader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_native": None}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        self._native = None
        super().reset(checkpoint_id)

    def read_metadata(self) -> Metadata:
        """Opens the files, checks every header, finishes the switch of a save that was cut off after its commit."""
        files, tensors = self._open()
        return self._make_metadata([os.fspath(file) for file in files], tensors)

    @no_collection()
    def _make_metadata(self, paths: list[str], tensors: list[tuple]) -> Metadata:
        state_dict_metadata: dict[str, TensorStorageMetadata] = {}
        storage_data: dict[MetadataIndex, _HFStorageInfo] = {}
        for fqn, code, size, chunks in tensors:
            dtype = DTYPES.get(code)
            if code == F4:
                chunks = [(torch_shape(o, code), torch_shape(s, code), file) for o, s, file in chunks]
                size = torch_shape(size, code)
                if size is None or any(o is None or s is None for o, s, _ in chunks):
                    dtype = None
            if dtype is None:
                logger.warning(
                    "%s: %r is left out, torch has no dtype for %s", self.path, fqn, _native.dtype_names[code]
                )
                continue
            boxes = []
            for offsets, sizes, file in chunks:
                box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                boxes.append(box)
                storage_data[MetadataIndex(fqn, box.offsets)] = _HFStorageInfo(paths[file], box.sizes, dtype)
            state_dict_metadata[fqn] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(size), boxes)
        metadata = Metadata(
            state_dict_metadata=state_dict_metadata,
            # Where each entry stands in a nested state dict: names are flat here.
            planner_data={fqn: _FlatPath((fqn,)) for fqn in state_dict_metadata},
            storage_data=storage_data,
        )
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Adds what this rank would read, where there are others. TypeError for what a planner of somebody's own wants
        as bytes."""
        # One whose read_data is its own may show what no file has; and others would wait for it in an exchange.
        if overrides(self, self._hooks) or class_overrides(type(self), ("read_data",)):
            return super().prepare_local_plan(plan)
        objects = [item.dest_index.fqn for item in plan.items if item.type is LoadItemType.BYTE_IO]
        if objects:
            raise TypeError(f"safetensors holds tensors only, and these are to be loaded as objects: {listed(objects)}")
        plan = super().prepare_local_plan(plan)
        if not self._offers():
            return plan
        with no_collection():
            offer = self._native.prepare_local_plan(*_columns(plan.items, self._codes(plan.items)))
        return _with_entry(plan, _OFFER_KEY, offer)

    def _offers(self) -> bool:
        """Whether there may be ranks to exchange with."""
        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return many and self.exchange != "off" and self._native is not None

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Coordinator: who reads what for whom."""
        plans = super().prepare_global_plan(plans)
        exchanges = self._exchanges([offer_of(plan) for plan in plans])
        return [with_exchange(plan, exchange) for plan, exchange in zip(plans, exchanges)]

    def _exchanges(self, offers: list[bytes | None]) -> list[bytes | None]:
        """Coordinator: each rank's part, from what all would read."""
        if not any(offers) or self._native is None:
            return [None] * len(offers)
        return self._native.prepare_global_plan(offers)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fills the planner's tensors; has done so when it returns. On an error they hold an unknown mixture, and
        `commit_tensor` has not been called, but by a planner of somebody's own: that is asked for each tensor when its
        bytes are there, as torch's readers ask it, and gets them through a copy."""
        if hook := overrides(self, self._hooks):
            logger.info("%s: read by torch's read_data for %s, and not verified", self.path, hook)
            return _TorchReader.read_data(self, plan, planner)
        exchange = _entry(plan, _EXCHANGE_KEY)
        try:
            if self._native is None:
                self._open()
            return self._read_data(plan, planner, exchange)
        except BaseException as error:
            self._decline(exchange, error)
            raise

    def _decline(self, exchange: bytes | None, error: BaseException) -> None:
        """Tells ranks that wait for this one in an exchange."""
        if exchange is not None:
            (self._native or self._make_native()).decline(exchange, f"{type(error).__name__}: {error}")

    def _read_data(self, plan: LoadPlan, planner: LoadPlanner, exchange: bytes | None) -> Future[None]:
        items = plan.items
        report: dict[str, Any] = {}
        if overrides(planner, _PLANNER_STEPS):
            self._read_in_turn(items, planner, report, exchange)
        else:
            with no_collection():
                targets = [_resolve(item, planner) for item in items]
            self._fill(items, targets, report, exchange)
            for item, target in zip(items, targets):
                planner.commit_tensor(item, target)
        self.report = LoadReport(**report)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_in_turn(
        self, items: list[ReadItem], planner: LoadPlanner, report: dict[str, Any], exchange: bytes | None
    ) -> None:
        """resolve_tensor and commit_tensor of one item after those of another: a planner may give the same memory to
        each, or make it only then."""
        if exchange is not None or not items:
            self._read([], [], report, exchange)  # others want what this rank reads
        dtypes = [self._loaded_dtype(item) for item in items]
        order = range(len(items))
        for window in windows(order, lambda i: torch.Size(items[i].lengths).numel() * dtypes[i].itemsize):
            buffers = [empty_plain(tuple(items[i].lengths), dtypes[i], torch.device("cpu")) for i in window]
            self._fill([items[i] for i in window], buffers, report)
            for i, buffer in zip(window, buffers):
                target = _resolve(items[i], planner)
                self._check_target(items[i], target)
                target.copy_(buffer)
                planner.commit_tensor(items[i], target)

    def _loaded_dtype(self, item: ReadItem) -> torch.dtype:
        return self.storage_data[item.storage_index].dtype

    def _check_target(self, item: ReadItem, target: torch.Tensor) -> None:
        """Raises where what is loaded means nothing in the target's dtype."""

    def _fill(
        self, items: list[ReadItem], targets: list[torch.Tensor], report: dict[str, Any], exchange: bytes | None = None
    ) -> None:
        """What an item reads -> its target, of the same shape. Sums of bytes go into `report`."""
        infos = [self.storage_data[item.storage_index] for item in items]
        direct, copied = [], []
        for position, (target, info) in enumerate(zip(targets, infos)):
            fits = target.dtype == info.dtype and is_plain(target) and not overlaps(target)
            (direct if fits else copied).append(position)
        if direct or not copied or exchange is not None:
            self._read([items[i] for i in direct], [targets[i] for i in direct], report, exchange)
        for window in windows(copied, lambda i: torch.Size(items[i].lengths).numel() * infos[i].dtype.itemsize):
            buffers = [empty_plain(tuple(items[i].lengths), infos[i].dtype, targets[i].device) for i in window]
            self._read([items[i] for i in window], buffers, report)
            for i, buffer in zip(window, buffers):
                targets[i].copy_(buffer, non_blocking=True)
            synchronize({targets[i].device for i in window})

    def _open(self) -> tuple[list[str], list[tuple]]:
        self._native = self._make_native()
        return self._native.read_metadata()

    def _open_native(self) -> _native.Reader:
        """As read_metadata, for who asks native code what is there."""
        self._native = self._make_native()
        self._native.open()
        return self._native

    def _make_native(self) -> _native.Reader:
        return _native.Reader(
            os.fsencode(self.path),
            _runtime.reactor(self.backend, self.buffer_memory, self.path),
            self.verification,
            self.strict,
            self.exchange,
        )

    def _codes(self, items: list[ReadItem]) -> list[int]:
        return [CODES[self.storage_data[item.storage_index].dtype] for item in items]

    def _read(
        self,
        items: list[ReadItem],
        tensors: list[torch.Tensor],
        report: dict[str, Any],
        exchange: bytes | None = None,
    ) -> None:
        table = columns(tensors, [item.lengths for item in items])
        arguments = _columns(items, table.dtypes)
        self._run(lambda: self._native.start(*arguments, table, exchange), report)

    def _run(self, start: Callable[[], None], report: dict[str, Any]) -> None:
        """Starts a load of native code and waits for it; its sums of bytes go into `report`. Whatever is raised, and
        Ctrl-C may come between the two: nothing writes to the tensors any more."""
        try:
            start()
            LoadReport.add(self._native.wait(self.progress), report)
        except BaseException:
            self._native.cancel()
            raise


def _resolve(item: ReadItem, planner: LoadPlanner) -> torch.Tensor:
    target = planner.resolve_tensor(item).detach()
    if target.size() != torch.Size(item.lengths):
        raise ValueError(
            f"{item.storage_index.fqn!r}: the plan reads {tuple(item.lengths)}, "
            f"the tensor to fill is {tuple(target.size())}"
        )
    return target


def _columns(items: list[ReadItem], codes: list[int]) -> tuple:
    """Of _native.Reader: fqns, chunk_offsets, chunk_hints, storage_offsets, lengths."""
    sources = [item.storage_index for item in items]
    shapes = (
        [source.offset for source in sources],
        [item.storage_offsets for item in items],
        [item.lengths for item in items],
    )
    if F4 in codes:
        shapes = tuple([stored_shape(tuple(shape), code) for shape, code in zip(column, codes)] for column in shapes)
    places, offsets, lengths = shapes
    return [source.fqn for source in sources], places, [source.index for source in sources], offsets, lengths


def offer_of(plan: LoadPlan) -> bytes | None:
    return _entry(plan, _OFFER_KEY)


def with_exchange(plan: LoadPlan, exchange: bytes | None) -> LoadPlan:
    """In place of the offer."""
    return _with_entry(_with_entry(plan, _OFFER_KEY, None), _EXCHANGE_KEY, exchange)


def _entry(plan: LoadPlan, key: str) -> Any:
    return plan.storage_data.get(key) if isinstance(plan.storage_data, dict) else None


def _with_entry(plan: LoadPlan, key: str, value: Any) -> LoadPlan:
    """With the entry, or without it where the value is None; what others keep there is left alone."""
    if plan.storage_data is not None and not isinstance(plan.storage_data, dict):
        return plan
    entries = {name: entry for name, entry in (plan.storage_data or {}).items() if name != key}
    if value is not None:
        entries[key] = value
    return dataclasses.replace(plan, storage_data=entries or None)


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether two elements share memory, as those of an expanded tensor do; copy_ refuses such a target."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride()))
