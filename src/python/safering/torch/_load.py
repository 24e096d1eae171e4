"""load(): torch.distributed.checkpoint.load, without an object for every tensor. As save() does it."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner as _TorchLoadPlanner
from torch.distributed.checkpoint.logger import _dcp_method_logger
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as _torch_load
from torch.distributed.checkpoint.storage import StorageReader
from torch.distributed.checkpoint.utils import _api_bc_check, _DistWrapper
from torch.distributed.tensor import DTensor

from .._reports import LoadReport
from ._dtypes import CODES, DTYPES, F4
from ._plans import no_collection
from ._planner import DefaultLoadPlanner
from ._reader import HuggingFaceStorageReader, offer_of, overlaps, with_exchange
from ._short_way import all_agree, is_alone, is_exactly
from ._state import PLAIN, flatten, is_stateful
from ._tensors import all_plain, columns, empty_plain, is_plain, synchronize, windows

__all__ = ["load"]


@_dcp_method_logger(log_exceptions=True)
@_api_bc_check
def load(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_reader: StorageReader | None = None,
    planner: LoadPlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """`torch.distributed.checkpoint.load`, with its arguments and errors, for state dicts of any number of tensors. All
    ranks of the group call it; the tensors of `state_dict` are filled, and on an error hold an unknown mixture.

    With `safering.torch.HuggingFaceStorageReader` and a default planner (none, torch's or safering's) plans stay in
    native code, if on all ranks. Of a planner that is given nothing is set then, and the reader gets no
    `storage_data`. ShardedTensors, tensors on the meta device, and entries that are no tensors go DCP's way. Everything
    else (other readers and planners) goes to torch's function as it is.

    Raises:
        CheckpointException: on all ranks, with the failure of each rank that has one: RuntimeError for a tensor that
            the checkpoint lacks, ValueError for one of another size, safering.Error for the rest.
    """
    if not all_agree(_is_short(storage_reader, planner), process_group, no_dist):
        return _torch_load(
            state_dict,
            checkpoint_id=checkpoint_id,
            storage_reader=storage_reader,
            planner=planner,
            process_group=process_group,
            no_dist=no_dist,
        )
    no_dist = is_alone(no_dist, "load")
    if checkpoint_id is not None:
        storage_reader.reset(checkpoint_id)
    # All ranks in one order: what state_dict() does may be collective.
    with no_collection():
        found = {
            key: value.state_dict() if is_stateful(value) else value
            for key, value in ((key, state_dict[key]) for key in sorted(state_dict))
        }
    loading = _Load(found, storage_reader, planner, _DistWrapper(process_group, not no_dist, 0))
    loading.run()
    for key, value in found.items():
        if is_stateful(state_dict[key]):
            state_dict[key].load_state_dict(value)
        else:
            state_dict[key] = value


_READER_STEPS = frozenset(
    ("read_metadata", "set_up_storage_reader", "prepare_local_plan", "prepare_global_plan", "read_data",
     *HuggingFaceStorageReader._hooks)
)
_PLANNER_STEPS = frozenset(
    ("set_up_planner", "create_local_plan", "create_global_plan", "finish_plan", "load_bytes", "resolve_tensor",
     "commit_tensor", "lookup_tensor", "transform_tensor")
)


def _is_short(reader: StorageReader | None, planner: LoadPlanner | None) -> bool:
    return is_exactly(reader, (HuggingFaceStorageReader,), _READER_STEPS) and (
        planner is None or is_exactly(planner, (DefaultLoadPlanner, _TorchLoadPlanner), _PLANNER_STEPS)
    )


class _Targets:
    """Tensors to fill, by column."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tensors: list[torch.Tensor] = []
        #: Offsets in the global tensor and its size; None and the tensor's own size where it is whole.
        self.offsets: list[torch.Size | None] = []
        self.sizes: list[torch.Size] = []

    def add(self, name: str, tensor: torch.Tensor, offsets: torch.Size | None, size: torch.Size) -> None:
        self.names.append(name)
        self.tensors.append(tensor)
        self.offsets.append(offsets)
        self.sizes.append(size)

    def at(self, positions: list[int]) -> _Targets:
        out = _Targets()
        for i in positions:
            out.add(self.names[i], self.tensors[i], self.offsets[i], self.sizes[i])
        return out


class _Load:
    """One load. The collectives are DCP's, one to plan and one to read, so that each rank may go either way."""

    def __init__(
        self,
        state_dict: dict[str, Any],
        reader: HuggingFaceStorageReader,
        planner: LoadPlanner | None,
        group: _DistWrapper,
    ) -> None:
        self._state_dict = state_dict
        self._reader = reader
        self._planner = planner or DefaultLoadPlanner()
        self._group = group
        #: What is loaded without DCP's plans, and the stored dtype of each; None: see _plan.
        self._targets: _Targets | None = None
        self._codes: list[int] = []
        self._plan: LoadPlan | None = None
        #: This rank's part in what ranks of one host hand on.
        self._exchange: bytes | None = None

    def run(self) -> None:
        self._exchange = self._group.reduce_scatter("plan", self._prepare, self._reader._exchanges)
        self._group.all_gather("read", self._read)

    def _prepare(self) -> bytes | None:
        """What this rank would read, for the coordinator."""
        with no_collection():
            if not self._prepare_columns():
                self._prepare_plan()
                return offer_of(self._plan)
            if not self._reader._offers():
                return None
            targets = self._targets
            shapes = [tensor.shape for tensor in targets.tensors]
            return self._reader._native.offer_boxes(targets.names, targets.offsets, targets.sizes, shapes)

    def _prepare_plan(self) -> None:
        reader, planner, group = self._reader, self._planner, self._group
        metadata = reader.read_metadata()
        planner.set_up_planner(self._state_dict, metadata, group.is_coordinator)
        reader.set_up_storage_reader(metadata, group.is_coordinator)
        self._plan = reader.prepare_local_plan(planner.create_local_plan())

    def _prepare_columns(self) -> bool:
        """False: this state dict, or this checkpoint, has what only DCP's planner knows to deal with."""
        planner = self._planner
        entries, paths = flatten(self._state_dict) if planner.flatten_state_dict else (self._state_dict, {})
        native = self._reader._open_native()
        targets = _Targets()
        known: dict[tuple, tuple | None] = {}  # of DTensors, by shape, mesh and placements: offsets and local size
        for name, value in entries.items():
            if type(value) in PLAIN:
                tensor, offsets = value, None
            elif type(value) is DTensor and type(value._local_tensor) in PLAIN:
                tensor, spec = value._local_tensor, value._spec
                key = (id(spec.mesh), spec.placements, spec.tensor_meta.shape)
                if key not in known:
                    known[key] = _box(value)
                if known[key] is None or known[key][1] != tensor.shape:
                    return False
                offsets = known[key][0]
            else:
                return False
            if tensor.is_meta:
                return False
            targets.add(name, tensor, offsets, value.shape)
        codes, others = native.stored(targets.names, targets.sizes)
        lacking = [i for i, code in enumerate(codes) if code < 0]
        # Where the checkpoint has what this state dict lacks, it may be by names of older versions.
        if (paths and len(native) > len(codes) - len(lacking)) or any(
            code == F4 or code not in DTYPES for code in set(codes) - {-1}
        ):
            return False
        for name, code, size, other in zip(targets.names, codes, targets.sizes, others):
            if code < 0 and not planner.allow_partial_load:
                raise RuntimeError(f"Missing key in checkpoint state_dict: {name}.")
            if other is not None:
                raise ValueError(f"Size mismatch between saved {torch.Size(other)} and current: {size} for {name}")
        if lacking:
            present = [i for i, code in enumerate(codes) if code >= 0]
            targets, codes = targets.at(present), [codes[i] for i in present]
        self._targets, self._codes = targets, codes
        return True

    def _read(self) -> None:
        try:
            if self._targets is None:
                plan = self._planner.finish_plan(with_exchange(self._plan, self._exchange))
                self._reader.read_data(plan, self._planner).wait()
            else:
                self._read_columns()
        except BaseException as error:
            self._reader._decline(self._exchange, error)
            raise

    def _read_columns(self) -> None:
        report: dict[str, Any] = {}
        targets, codes = self._targets, self._codes
        copied = [] if self._fit(targets.tensors) else self._find_copied()
        if copied:
            left = set(range(len(codes))).difference(copied)
            targets = targets.at(sorted(left))
        if targets.names or not copied or self._exchange is not None:
            self._read_into(targets, targets.tensors, report, self._exchange)
        for window in windows(copied, self._stored_bytes):
            part = self._targets.at(window)
            buffers = [
                empty_plain(tensor.shape, DTYPES[codes[i]], tensor.device) for i, tensor in zip(window, part.tensors)
            ]
            self._read_into(part, buffers, report)
            with torch.no_grad():
                for tensor, buffer in zip(part.tensors, buffers):
                    tensor.detach().copy_(buffer, non_blocking=True)
            synchronize({tensor.device for tensor in part.tensors})
        self._reader.report = LoadReport(**report)

    def _fit(self, tensors: list[torch.Tensor]) -> bool:
        """Whether all can be read into as they are; one look at each."""
        return (
            [CODES.get(tensor.dtype) for tensor in tensors] == self._codes
            and all_plain(tensors)
            and all(tensor.is_contiguous() for tensor in tensors)
        )

    def _find_copied(self) -> list[int]:
        """Of other dtypes, on devices, or not plain memory."""
        return [
            i
            for i, (tensor, code) in enumerate(zip(self._targets.tensors, self._codes))
            if CODES.get(tensor.dtype) != code or not is_plain(tensor) or overlaps(tensor)
        ]

    def _stored_bytes(self, position: int) -> int:
        return self._targets.tensors[position].numel() * DTYPES[self._codes[position]].itemsize

    def _read_into(
        self, targets: _Targets, tensors: list[torch.Tensor], report: dict[str, Any], exchange: bytes | None = None
    ) -> None:
        boxes = targets.names, targets.offsets, targets.sizes, columns(tensors)
        self._reader._run(lambda: self._reader._native.start_boxes(*boxes, exchange), report)


def _box(value: DTensor) -> tuple[torch.Size, torch.Size] | None:
    """Where this rank's part lies; None where there is not exactly one."""
    if value.device_mesh.get_coordinate() is None:
        return None
    chunks = value.__create_chunk_list__()
    return (chunks[0].offsets, chunks[0].sizes) if len(chunks) == 1 else None
