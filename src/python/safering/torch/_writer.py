"""HuggingFaceStorageWriter: DCP's calls, handed to native code.

Plans and results are DCP's own objects. What safering adds to them travels inside them as bytes: a rank's part
of the layout in `SavePlan.storage_data`, digests in the list of `WriteResult`s.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter as _TorchWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import _native, _runtime
from .._arguments import check_exchange, check_mapping, check_progress, check_reactor
from .._paths import make_directories, sync_directory
from .._reports import SaveReport, WorkReport
from ._dtypes import CODES
from ._hooks import overrides
from ._layout import LAYOUT_KEY, RankLayout, entry, newest
from ._limits import SaveLimits, check_limits
from ._plans import PackedItems, WriteResults, item_columns, no_collection
from ._staging import stage
from ._state import refuse
from ._tensors import WINDOW_BYTES, all_plain, columns, is_plain, nbytes, synchronize, to_plain, windows

logger = logging.getLogger(__name__)

__all__ = ["HuggingFaceStorageWriter"]

_ENDPOINT_KEY = "safering.endpoint"

# What torch's write_data calls, of which ours calls nothing.
WRITER_HOOKS = ("_split_by_storage_plan", "_write_data")

# What a planner says of each tensor.
_PLANNER_STEPS = ("resolve_data", "lookup_object", "transform_object")

#: Positions in a plan, rising, and the tensors there. None: all of it, and none needs a copy.
_Part = tuple[list[int] | None, list[torch.Tensor]]


def check_items(items: list[WriteItem]) -> None:
    """TypeError for what the format cannot hold."""
    refuse(
        [item.index.fqn for item in items if item.type is WriteItemType.BYTE_IO],
        [
            f"{item.index.fqn} ({item.tensor_data.properties.dtype})"
            for item in items
            if item.tensor_data is not None and item.tensor_data.properties.dtype not in CODES
        ],
        [
            f"{item.index.fqn} ({item.tensor_data.properties.layout})"
            for item in items
            if item.tensor_data is not None and item.tensor_data.properties.layout is not torch.strided
        ],
    )


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
        exchange: how ranks of one host bring together what would reach a file as short runs (inner shards, many
            small tensors): "automatic" (where it is cheaper, from each other's memory or else through shared memory),
            "process_memory", "shared_memory", or "off". What lies on devices is not exchanged, unless `async_save`
            has copied it. The coordinator's counts.
        backend: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads".
        digests: whether to take XXH3 digests of all data and list them in `safering.manifest.json`.
        limits: what writing may take from the rest of the process, for `async_save`.
        buffer_memory: bytes of the buffer pool, shared by all writers and readers of this process that give
            the same number; the same on all ranks. None: as `safering probe --measure` chose for the file system of
            `path`, else 48 MiB.
        progress: called with (bytes done, bytes in all) of this rank, about 20 times a second, on the thread
            that saves.

    Raises (from `dcp.save`, as DCP's CheckpointException naming the rank where there are several):
        TypeError: an entry that is no tensor, or of a dtype that the format lacks; nothing has been written.
        safering.Error: anything else that native code refuses, with file, tensor and reason.
        safering.StorageError: what the operating system refuses (also an OSError).

    One thread at a time may use a writer. It can be pickled, sent to a process, and used from save to save.

    A derived class may override any step and call ours. One that overrides what torch's `write_data` calls
    (`_write_data`, `_split_by_storage_plan`) saves as torch's does, through that, with a warning; one whose `write_data`
    writes files of its own finds in the plan what torch puts there, and its results are finished as torch's are.
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
        exchange: str = "automatic",
        limits: SaveLimits = SaveLimits(),
        buffer_memory: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        check_mapping(fqn_to_index_mapping)
        check_reactor(backend, buffer_memory)
        check_exchange(exchange)
        check_limits(limits)
        check_progress(progress)
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
        self.exchange = exchange
        self.limits = limits
        self.buffer_memory = buffer_memory
        self.progress = progress
        #: How the last save that this process committed went: path, files, tensor_bytes, backend, notes, ...
        self.report: SaveReport | None = None
        #: What this rank wrote for the last save.
        self.work: WorkReport | None = None
        self._native: _native.Writer | None = None
        self._prepared: list[RankLayout] = []
        self._planner_key: str | None = None  # of its plan cache, known from the first save on
        self._warned = False

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
        return stage(state_dict, self.fqn_to_index_mapping, self._sharded)

    def lift_limits(self) -> None:
        """What is written now, and by this writer from now on, goes without limits. Any thread."""
        self.limits = SaveLimits()
        if (native := self._native) is not None:
            native.lift_limits()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuses what the format cannot hold, before anything is written."""
        if self._writes_as_torch():
            return super().prepare_local_plan(plan)
        check_items(plan.items)
        if overrides(self, ("write_data",)):
            make_directories(os.path.abspath(self.path))
        storage_data = {_ENDPOINT_KEY: self._endpoint()}
        return dataclasses.replace(plan, items=PackedItems(plan.items), storage_data=storage_data)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Coordinator: lays out the files, creates and preallocates them beside the target, writes the headers."""
        if self._writes_as_torch():
            return super().prepare_global_plan(plans)
        full = self._restore_cached(plans)
        native_plans = [
            _native.SavePlan(rank, *item_columns(plan.items)) for rank, plan in enumerate(full)
        ]
        for native_plan, plan in zip(native_plans, plans):
            native_plan.endpoint = entry(plan, _ENDPOINT_KEY) or ""
        others: list[dict[str, Any]] = [{}] * len(plans)
        if overrides(self, ("write_data",)):
            others = [plan.storage_data for plan in super().prepare_global_plan(plans)]
        return [
            dataclasses.replace(plan, items=PackedItems(plan.items), storage_data=other | {LAYOUT_KEY: layout})
            for plan, other, layout in zip(plans, others, self._begin(native_plans))
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes and fsyncs this rank's items; has done so when it returns. Ctrl-C ends it early and cleanly."""
        if self._writes_as_torch():
            return super().write_data(plan, planner)
        self._planner_key = getattr(planner, "_cached_plans_key", None)
        layout = entry(plan, LAYOUT_KEY)
        try:
            layout = newest(layout, self._prepared, self._target, self.rank or 0)
            if layout is None:  # called by hand, without a coordinator
                plan = self.prepare_global_plan([plan])[0]
                layout = self._prepared[0]
            native_plan = layout.native_plan(plan)
            # What a planner of somebody's own gives may be made for it, and is asked for when it is its turn.
            if overrides(planner, _PLANNER_STEPS):
                parts = _resolve_in_turn(plan.items, planner)
            else:
                parts = in_windows(_resolve(plan.items, planner))
        except BaseException as error:
            if layout is not None:
                self._decline(layout.native_plan(plan), error)
            raise
        packed = self._write_plan(native_plan, parts)
        future: Future[list[WriteResult]] = Future()
        future.set_result(WriteResults(packed))
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Coordinator: the metadata commit. The checkpoint exists, whole and durable, when this returns."""
        if self._writes_as_torch():
            return super().finish(metadata, results)
        packed = [getattr(result, "packed", None) for result in results]
        if self._native is None or not self._prepared:
            if results and not any(packed) and not self.save_distributed and os.path.isdir(self._target):
                return self._write_index(results)
            raise RuntimeError(
                f"finish: no save to {self._target} is under way in this writer; "
                "prepare_global_plan was not called, or failed"
            )
        if not any(packed) and overrides(self, ("write_data",)):
            self._native, self._prepared = None, []
            return super().finish(metadata, results)
        if None in packed:
            raise ValueError(
                f"finish: the results of rank {packed.index(None)} are not those that write_data gave; "
                "hand them on as they are"
            )
        native, self._native, self._prepared = self._native, None, []
        self.report = SaveReport.of(native.finish(packed))
        for note in self.report.notes:
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

    def _writes_as_torch(self) -> bool:
        hook = overrides(self, WRITER_HOOKS)
        if hook and not self._warned:
            self._warned = True
            logger.warning("%s: saved by torch's writer, neither at once nor durably, for %s", self._target, hook)
        return hook is not None

    def _endpoint(self) -> str:
        """Where other ranks of this host reach this one; empty where this save exchanges nothing."""
        if self._sharded or self.exchange == "off":
            return ""
        return _runtime.reactor(self.backend, self.buffer_memory, self._target).endpoint()

    def _restore_cached(self, plans: list[SavePlan]) -> list[SavePlan]:
        """With `enable_plan_caching`, ranks whose plan is as before send an empty one; DCP keeps theirs, for each
        class of planner. Which class this save has is not said, but shows: in what is sent anew, and in what an
        earlier save of it left."""
        if all(plan.usable for plan in plans):
            return plans

        def may_be(key: str, cached: list[SavePlan]) -> bool:
            last = SavePlanner._cached_final_save_plan.get(key)
            return (
                self._planner_key in (None, key)
                and len(cached) == len(plans)
                and last is not None
                and entry(last, LAYOUT_KEY) is not None
                and all(not plan.usable or plan.items == known.items for plan, known in zip(plans, cached))
            )

        found = {key: cached for key, cached in SavePlanner._cached_global_plan.items() if may_be(key, cached)}
        if len(found) == 1:
            [cached] = found.values()
            return [plan if plan.usable else known for plan, known in zip(plans, cached)]
        if not found:
            raise RuntimeError("prepare_global_plan: a plan is marked as cached, and the planner's cache does not hold it")
        raise RuntimeError(
            f"prepare_global_plan: a plan is marked as cached, and it may be that of any of {sorted(found)}, which all "
            "cache plans for this writer's class in this process: keep a writer for each of them from save to save, or "
            "leave enable_plan_caching to one"
        )

    def _begin(self, native_plans: list[_native.SavePlan]) -> list[RankLayout]:
        """Coordinator: makes the attempt. Each rank's part of the layout."""
        target = self._target
        make_directories(os.path.dirname(target))
        self._native = None  # its unfinished attempt goes first
        self._native = self._make_native(_alone() if self._sharded and len(native_plans) == 1 else None)
        storages = self._native.prepare_global_plan(native_plans)
        self._prepared = [
            RankLayout(target, rank, attempt, packed) for rank, (attempt, packed) in enumerate(storages)
        ]
        return self._prepared

    def _decline(self, native_plan: _native.SavePlan, error: BaseException) -> None:
        """Tells ranks that wait for this one in an exchange."""
        self._native_writer().decline(native_plan, f"{type(error).__name__}: {error}")

    @property
    def _sharded(self) -> bool:
        return self.save_distributed and not self.enable_consolidation

    def _make_native(self, alone: tuple[int, int] | None = None) -> _native.Writer:
        return _native.Writer(
            os.fsencode(self._target),
            _runtime.reactor(self.backend, self.buffer_memory, self._target),
            self.fqn_to_index_mapping or {},
            self._sharded,
            self.digests,
            alone,
            self.exchange,
            self.limits.native(),
        )

    def _native_writer(self) -> _native.Writer:
        if self._native is None:
            self._native = self._make_native()
        return self._native

    def _write_plan(self, native_plan: _native.SavePlan, parts: Iterator[_Part]) -> bytes:
        """The first part in exchange with the ranks of this host. Copies are made of one while the one before it is
        written."""
        running: list[torch.Tensor] | None = None  # borrowed by native code until wait() has returned
        native = self._native_writer()
        try:
            for positions, tensors in parts:
                window, devices = (tensors, set()) if positions is None else _to_plain(tensors)
                synchronize(devices)
                if running is not None:
                    native.wait(self.progress)
                native.start(native_plan, positions, columns(window))
                running = window
            native.wait(self.progress)
        except BaseException as error:
            native.cancel()  # waits: what runs still reads the tensors
            if running is None:
                self._decline(native_plan, error)
            raise
        self.work = WorkReport(**native.work())
        return native.results()


@no_collection()
def _resolve(items: list[WriteItem], planner: SavePlanner) -> list[torch.Tensor]:
    tensors = []
    for item in items:
        tensor = planner.resolve_data(item)
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{item.index.fqn!r}: expected a tensor of the planner, found {type(tensor).__name__}")
        tensors.append(tensor.detach())
    return tensors


def in_windows(tensors: list[torch.Tensor]) -> Iterator[_Part]:
    """What is written together: at first all that needs no copy, and in each window some of the rest."""
    if all_plain(tensors):
        yield None, tensors
        return

    def part(positions: list[int]) -> _Part:
        positions = sorted(positions)
        return positions, [tensors[i] for i in positions]

    copied = [i for i, tensor in enumerate(tensors) if not is_plain(tensor)]
    window = [i for i, tensor in enumerate(tensors) if is_plain(tensor)]
    size = 0
    for i in copied:
        window.append(i)
        size += nbytes(tensors[i])
        if size >= WINDOW_BYTES:
            yield part(window)
            window, size = [], 0
    if window:
        yield part(window)


def _resolve_in_turn(items: list[WriteItem], planner: SavePlanner) -> Iterator[_Part]:
    """As many together as fit a window by their plan."""
    if not items:
        yield None, []

    def planned_bytes(position: int) -> int:
        data = items[position].tensor_data
        return data.chunk.sizes.numel() * data.properties.dtype.itemsize

    for positions in windows(range(len(items)), planned_bytes):
        yield positions, _resolve([items[i] for i in positions], planner)


def _to_plain(tensors: list[torch.Tensor]) -> tuple[list[torch.Tensor], set[torch.device]]:
    """With copies of those that are not plain, and the devices that these come from."""
    devices = {tensor.device for tensor in tensors if not is_plain(tensor)}
    return [tensor if is_plain(tensor) else to_plain(tensor) for tensor in tensors], devices


def _alone() -> tuple[int, int] | None:
    """(rank, ranks) where there are several and the caller planned without the others (`no_dist`,
    `use_collectives=False`): their files go to the same directory and must not collide."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.get_rank(), dist.get_world_size()
    return None
