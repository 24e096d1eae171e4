"""HuggingFaceStorageWriter: DCP's calls, handed to native code.

Plans and results are DCP's own objects. What safering adds to them travels inside them as bytes: a rank's part
of the layout in `SavePlan.storage_data`, digests in the list of `WriteResult`s.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter as _TorchWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import _native, _runtime
from .._paths import make_directories, sync_directory
from ._dtypes import CODES
from ._plans import PackedItems, WriteResults, item_columns, no_collection
from ._staging import stage
from ._tensors import WINDOW_BYTES, columns, is_plain, nbytes, synchronize, to_plain

logger = logging.getLogger(__name__)

__all__ = ["HuggingFaceStorageWriter"]

_STORAGE_KEY = "safering"


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A rank's part of the layout of one save."""

    target: str
    rank: int
    attempt: str  # begins with the time: later attempts compare greater
    packed: bytes

    def __reduce__(self) -> tuple:
        return _receive, dataclasses.astuple(self)


# What came to this process with a plan. With `enable_plan_caching` a rank's planner puts the plan of an
# earlier save in place of the one that the coordinator sent, and this save's layout would be lost with it.
_received: OrderedDict[tuple[str, int], _Storage] = OrderedDict()
_MOST_RECEIVED = 64


def _receive(*fields: Any) -> _Storage:
    storage = _Storage(*fields)
    _received[storage.target, storage.rank] = storage
    _received.move_to_end((storage.target, storage.rank))
    while len(_received) > _MOST_RECEIVED:
        _received.popitem(last=False)
    return storage


def _check_items(items: list[WriteItem]) -> None:
    """TypeError for what the format cannot hold."""
    objects = [item.index.fqn for item in items if item.type == WriteItemType.BYTE_IO]
    if objects:
        raise TypeError(
            f"safetensors holds tensors only, and these entries of the state dict are none: {_listed(objects)}. "
            "Leave them out, or save them as tensors"
        )
    wrong = [
        f"{item.index.fqn} ({item.tensor_data.properties.dtype})"
        for item in items
        if item.tensor_data.properties.dtype not in CODES
    ]
    if wrong:
        raise TypeError(f"safetensors has no such dtype: {_listed(wrong)}. Convert them before saving")


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class HuggingFaceStorageWriter(_TorchWriter):
    """Saves a state dict as Hugging Face safetensors files, by all ranks at once, straight into the final files.

    The checkpoint appears in one durable rename when `finish` returns; until then an older one at the same path
    is as it was. The positional arguments are those of torch's class, with these meanings here:

    Args:
        path: directory of the checkpoint. Missing parents are made.
        fqn_to_index_mapping: fqn -> 1-based number of its file. None: one file. A tensor that it lacks is an error.
        thread_count: accepted; native code overlaps copying and writing by itself.
        save_distributed: with `enable_consolidation=False`, every rank writes its own `shard-...` files. Otherwise
            all ranks write the final `model-...` files together.
        enable_consolidation: final files in `path`; no `sharded` directory and no second pass.
        thread_count_consolidation: accepted; there is no consolidation.

    Keyword Args:
        backend: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads".
        digests: whether to take XXH3 digests of all data and list them in `safering.manifest.json`.
        buffer_memory: bytes of the buffer pool, shared by all writers and readers of this process that give
            the same number. The same on all ranks.
        progress: called with (bytes done, bytes in all) of this rank, about 20 times a second, on the thread
            that saves.

    Raises (from `dcp.save`, as DCP's CheckpointException naming the rank where there are several):
        TypeError: an entry that is no tensor, or of a dtype that the format lacks; nothing has been written.
        safering.Error: anything else that native code refuses, with file, tensor and reason.
        safering.StorageError: what the operating system refuses (also an OSError).

    One thread at a time may use a writer. It can be pickled, sent to a process, and used from save to save.
    """

    def __init__(
        self,
        path: str,
        fqn_to_index_mapping: dict[str, int] | None = None,
        thread_count: int = 1,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
        *,
        backend: str = "automatic",
        digests: bool = True,
        buffer_memory: int = _runtime.BUFFER_MEMORY,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            path=path,
            fqn_to_index_mapping=fqn_to_index_mapping,
            thread_count=thread_count,
            save_distributed=save_distributed,
            enable_consolidation=enable_consolidation,
            thread_count_consolidation=thread_count_consolidation,
        )
        self.backend = backend
        self.digests = digests
        self.buffer_memory = buffer_memory
        self.progress = progress
        #: How the last save that this process committed went: path, files, tensor_bytes, backend, notes, ...
        self.report: dict[str, Any] | None = None
        self._native: _native.Writer | None = None
        self._prepared: list[_Storage] = []

    def __getstate__(self) -> dict[str, Any]:
        # An attempt in progress stays with the process that began it.
        return self.__dict__ | {"_native": None, "_prepared": []}

    @property
    def _target(self) -> str:
        return os.path.abspath(self.consolidated_output_path if self.enable_consolidation else self.path)

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Forgets (and removes) an unfinished save. `checkpoint_id` becomes the path, of the final files too."""
        self._native = None
        self._prepared = []
        super().reset(checkpoint_id)
        if checkpoint_id and self.enable_consolidation:
            self.consolidated_output_path = str(self.path)
            self.path = self.fs.concat_path(self.path, "sharded")

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What `async_save` does before it returns: a copy on the CPU, in memory kept from save to save."""
        return stage(state_dict)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuses what the format cannot hold, before anything is written."""
        _check_items(plan.items)
        return dataclasses.replace(plan, items=PackedItems(plan.items))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Coordinator: lays out the files, creates and preallocates them beside the target, writes the headers."""
        full = _restore_cached(plans)
        native_plans = [
            _native.SavePlan(rank, *item_columns(plan.items)) for rank, plan in enumerate(full)
        ]
        target = self._target
        make_directories(os.path.dirname(target))
        self._native = None  # its unfinished attempt goes first
        self._native = self._make_native(_alone() if self._sharded and len(plans) == 1 else None)
        storages = self._native.prepare_global_plan(native_plans)
        self._prepared = [
            _Storage(target, rank, attempt, packed) for rank, (attempt, packed) in enumerate(storages)
        ]
        return [
            dataclasses.replace(plan, items=PackedItems(plan.items), storage_data={_STORAGE_KEY: storage})
            for plan, storage in zip(plans, self._prepared)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes and fsyncs this rank's items; has done so when it returns. Ctrl-C ends it early and cleanly."""
        storage = self._find_storage(plan)
        if storage is None:  # called by hand, without a coordinator
            plan = self.prepare_global_plan([plan])[0]
            storage = self._prepared[0]
        items = plan.items
        native_plan = _native.SavePlan(storage.rank, *item_columns(items))
        native_plan.set_storage(storage.packed)
        if self._native is None:
            self._native = self._make_native()
        packed = self._write_windows(native_plan, items, planner)
        future: Future[list[WriteResult]] = Future()
        future.set_result(WriteResults(packed))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Coordinator: the metadata commit. The checkpoint exists, whole and durable, when this returns."""
        packed = [getattr(result, "packed", None) for result in results]
        if self._native is None or not self._prepared:
            if results and not any(packed) and not self.save_distributed and os.path.isdir(self._target):
                return self._write_index(results)
            raise RuntimeError(
                f"finish: no save to {self._target} is under way in this writer; "
                "prepare_global_plan was not called, or failed"
            )
        if None in packed:
            raise ValueError(
                f"finish: the results of rank {packed.index(None)} are not those that write_data gave; "
                "hand them on as they are"
            )
        native, self._native, self._prepared = self._native, None, []
        self.report = native.finish(packed)
        for note in self.report["notes"]:
            logger.info("%s: %s", self._target, note)

    def _write_index(self, results: list[list[WriteResult]]) -> None:
        """What torch's class makes of results that are not this writer's: the index of files that somebody wrote."""
        written = [result for rank in results for result in rank]
        index = {
            "metadata": {"total_size": sum(result.storage_data.length for result in written)},
            "weight_map": {result.index.fqn: result.storage_data.relative_path for result in written},
        }
        path = os.path.join(self._target, self.metadata_path)
        temporary = f"{path}.{self.save_id}.tmp"
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(index, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(self._target)

    @property
    def _sharded(self) -> bool:
        return self.save_distributed and not self.enable_consolidation

    def _make_native(self, alone: tuple[int, int] | None = None) -> _native.Writer:
        return _native.Writer(
            self._target,
            _runtime.reactor(self.backend, self.buffer_memory),
            self.fqn_to_index_mapping or {},
            self._sharded,
            self.digests,
            alone,
        )

    def _find_storage(self, plan: SavePlan) -> _Storage | None:
        given = plan.storage_data.get(_STORAGE_KEY) if isinstance(plan.storage_data, dict) else None
        rank = given.rank if given is not None else (self.rank or 0)
        found = [given, _received.pop((self._target, rank), None)]
        found += [storage for storage in self._prepared if storage.rank == rank]
        found = [storage for storage in found if storage is not None and storage.target == self._target]
        if given is not None and not found:
            # Of this save or, with a cached plan, of an earlier one.
            planned = max((one for one in (given, *_received.values()) if one.rank == rank), key=_attempt).target
            raise ValueError(
                f"write_data: rank {rank} writes to {self._target}, but the coordinator planned a save to {planned}: "
                "all ranks must give the same path, and a relative one only in the same working directory"
            )
        return max(found, key=_attempt, default=None)

    def _write_windows(self, native_plan: _native.SavePlan, items: list[WriteItem], planner: SavePlanner) -> bytes:
        """Plain tensors all at once, from where they lie; the others in windows of copies, one being made
        while the one before it is written."""
        parts: list[bytes] = []
        begin = 0
        running: list[torch.Tensor] | None = None  # borrowed by native code until wait() has returned
        try:
            while True:
                tensors, devices = _resolve_window(items, begin, planner)
                synchronize(devices)
                if running is not None:
                    parts.append(self._native.wait(self.progress))
                self._native.start(native_plan, begin, begin + len(tensors), columns(tensors))
                running = tensors
                begin += len(tensors)
                if begin == len(items):
                    break
            parts.append(self._native.wait(self.progress))
        except BaseException:
            self._native.cancel()  # waits: what runs still reads the tensors
            raise
        return parts[0] if len(parts) == 1 else _native.concatenate_results(parts)


@no_collection()
def _resolve_window(
    items: list[WriteItem], begin: int, planner: SavePlanner
) -> tuple[list[torch.Tensor], set[torch.device]]:
    """The items from `begin` on, as plain tensors, until the copies among them have filled a window; and the devices
    that copies come from."""
    tensors: list[torch.Tensor] = []
    devices: set[torch.device] = set()
    copied = 0
    for position in range(begin, len(items)):
        tensor = planner.resolve_data(items[position])
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{items[position].index.fqn!r}: expected a tensor of the planner, found {type(tensor).__name__}"
            )
        tensor = tensor.detach()
        if not is_plain(tensor):
            copied += nbytes(tensor)
            devices.add(tensor.device)
            tensor = to_plain(tensor)
        tensors.append(tensor)
        if copied >= WINDOW_BYTES:
            break
    return tensors, devices


def _attempt(storage: _Storage) -> str:
    return storage.attempt


def _alone() -> tuple[int, int] | None:
    """(rank, ranks) where there are several and the caller planned without the others (`no_dist`,
    `use_collectives=False`): their files go to the same directory and must not collide."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.get_rank(), dist.get_world_size()
    return None


def _restore_cached(plans: list[SavePlan]) -> list[SavePlan]:
    """With `enable_plan_caching`, ranks whose plan is as before send an empty one; DCP keeps theirs."""
    if all(plan.usable for plan in plans):
        return plans
    for cached in SavePlanner._cached_global_plan.values():
        if len(cached) == len(plans):
            return [plan if plan.usable else known for plan, known in zip(plans, cached)]
    raise RuntimeError("prepare_global_plan: a plan is marked as cached, and the planner's cache does not hold it")
