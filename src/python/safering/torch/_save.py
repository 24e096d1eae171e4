"""save(): torch.distributed.checkpoint.save, without an object for every tensor.

DCP makes several Python objects of every tensor on its way into a checkpoint, and sends them from rank to rank one by
one. With this package's writer and a default planner nobody looks at them, so here they are columns and bytes: one look
at each tensor, one native call for all of them, and the collectives of DCP.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner as _TorchSavePlanner
from torch.distributed.checkpoint.logger import _dcp_method_logger
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as _torch_save
from torch.distributed.checkpoint.storage import StorageWriter
from torch.distributed.checkpoint.utils import _api_bc_check, _DistWrapper

from .. import _native
from ._layout import check_target
from ._metadata import RankPlan, SavedMetadata
from ._plans import WriteResults, no_collection
from ._planner import DefaultSavePlanner
from ._short_way import all_agree, is_alone, is_exactly
from ._state import LocalState, is_stateful
from ._writer import WRITER_HOOKS, HuggingFaceStorageWriter, in_windows

__all__ = ["Save", "save"]


@_dcp_method_logger(log_exceptions=True)
@_api_bc_check
def save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: str | os.PathLike | None = None,
    storage_writer: StorageWriter | None = None,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Metadata:
    """`torch.distributed.checkpoint.save`, with its arguments, result and errors, for state dicts of any number of
    tensors. All ranks of the group call it; the checkpoint exists, whole and durable, when it returns.

    With `safering.torch.HuggingFaceStorageWriter` and a default planner (none, torch's or safering's, without plan
    caching and without `dedup_save_to_lowest_rank`) ranks exchange a few bytes for each tensor instead of objects;
    what is on the disk is the same. If one rank has another writer or planner, all go DCP's way. Of a planner that is
    given only `state_dict`, `mappings`, `is_coordinator` and, on the coordinator, `metadata` are set. Everything else
    goes to torch's function as it is.

    `Save` has its phases one by one.

    Raises:
        CheckpointException: on all ranks, with the failure of each rank that has one: TypeError for entries that are
            no tensors or of a dtype that the format lacks, before anything is written; safering.Error for the rest.
            With `use_collectives=False` the failure itself.
    """
    short = _is_short(storage_writer, planner)
    if not (all_agree(short, process_group, no_dist) if use_collectives else short):
        return _torch_save(
            state_dict,
            checkpoint_id=checkpoint_id,
            storage_writer=storage_writer,
            planner=planner,
            process_group=process_group,
            no_dist=no_dist,
            use_collectives=use_collectives,
        )
    no_dist = is_alone(no_dist, "save")
    if checkpoint_id is not None:
        storage_writer.reset(checkpoint_id)
    with no_collection():
        entries = {key: value.state_dict() if is_stateful(value) else value for key, value in state_dict.items()}
    saving = Save(
        entries,
        storage_writer,
        planner=planner,
        process_group=process_group,
        no_dist=no_dist,
        use_collectives=use_collectives,
    )
    saving.plan()
    return saving.finish()


_WRITER_STEPS = frozenset(
    ("set_up_storage_writer", "storage_meta", "prepare_local_plan", "prepare_global_plan", "write_data", "finish",
     *WRITER_HOOKS)
)
_PLANNER_STEPS = frozenset(
    ("set_up_planner", "create_local_plan", "create_global_plan", "finish_plan", "resolve_data", "lookup_object",
     "transform_object")
)


def _is_short(writer: StorageWriter | None, planner: SavePlanner | None) -> bool:
    return is_exactly(writer, (HuggingFaceStorageWriter,), _WRITER_STEPS) and (
        planner is None
        or is_exactly(planner, (DefaultSavePlanner, _TorchSavePlanner), _PLANNER_STEPS)
        and not planner._enable_plan_caching
        and not planner.dedup_save_to_lowest_rank
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """A rank's part of a planned save."""

    target: str
    rank: int
    packed: bytes
    kept: list[int] | None  # positions in its plan; None: all


class Save:
    """One save by `writer`, in its phases:

        saving = Save(state_dict, writer)
        saving.plan()     # all ranks together: looks at the tensors, makes the files
        saving.tensors    # this rank's, which may now be replaced by copies
        saving.write()    # this rank alone, on any thread, without the GIL: writes and flushes
        saving.finish()   # all ranks together: the commit; writes first what write() did not

    Each phase once, in this order, one at a time; plan() and finish() use collectives of the group, on the thread that
    calls. Where plan() has raised, nothing is left to do. The save that is dropped before its finish() leaves an
    attempt, which the writer removes at its reset(), at its next save, and at its end.

    Args:
        state_dict: nested dicts and lists of tensors, of any sharding; no Stateful objects.
        writer: one that no other save uses meanwhile.
        planner, process_group, no_dist, use_collectives: as `save` has them.
    """

    def __init__(
        self,
        state_dict: Mapping[str, Any],
        writer: HuggingFaceStorageWriter,
        *,
        planner: SavePlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        use_collectives: bool = True,
    ) -> None:
        self._state_dict: Mapping[str, Any] | None = state_dict
        self._writer = writer
        self._planner = planner
        self._use_collectives = use_collectives
        self._group = _DistWrapper(process_group, not no_dist, 0)
        self._local: LocalState
        self._plan: _native.SavePlan
        self._part: _Part
        self._metadata: SavedMetadata
        self._outcome: bytes | BaseException | None = None

    def plan(self) -> None:
        """All ranks: CheckpointException on each where one fails."""
        if self._use_collectives:
            self._part = self._group.reduce_scatter("plan", self._plan_local, self._plan_global)
        else:
            [self._part] = self._plan_global([self._plan_local()])
        self._state_dict = None
        if self._part.kept is not None:
            self._plan = self._plan.keep(self._part.kept)
            self._local.keep(self._part.kept)
        self._plan.rank = self._part.rank

    @property
    def tensors(self) -> list[torch.Tensor]:
        """After plan(): the local tensors that this rank writes. They must not change until write() has returned."""
        return self._local.tensors

    @tensors.setter
    def tensors(self, copies: list[torch.Tensor]) -> None:
        """Of the same shapes and dtypes, in the same order."""
        for mine, copy in zip(self._local.tensors, copies, strict=True):
            if mine.shape != copy.shape or mine.dtype != copy.dtype:
                raise ValueError(f"{copy.dtype} {tuple(copy.shape)} in place of {mine.dtype} {tuple(mine.shape)}")
        self._local.tensors = copies

    def write(self) -> None:
        """This rank's bytes are on the disk when it returns. What it raises, finish() raises on all ranks."""
        try:
            self._outcome = self._write()
        except BaseException as error:
            self._outcome = error
            raise

    def finish(self) -> Metadata:
        """All ranks: CheckpointException on each where one fails, here or in write(). Else the checkpoint exists."""
        if self._use_collectives:
            return self._group.all_reduce("write", self._written, self._commit)
        metadata = self._commit([self._written()])
        self._group.barrier()
        return metadata

    @no_collection()
    def _plan_local(self) -> RankPlan:
        writer, planner, group = self._writer, self._planner, self._group
        flat = planner is None or planner.flatten_state_dict
        local = LocalState(self._state_dict, flat, planner is None or planner.flatten_sharded_tensors)
        if planner is not None:
            planner.state_dict = local.entries
            planner.is_coordinator = group.is_coordinator
            if flat:
                planner.mappings = {name: local.paths.get(name, (name,)) for name in local.entries}
        writer.set_up_storage_writer(group.is_coordinator, rank=group.rank, use_collectives=self._use_collectives)
        self._local = local
        self._plan = local.plan(group.rank)
        self._plan.endpoint = writer._endpoint()
        absent = list(local.entries.keys() - set(local.names)) if len(local.names) < len(local.entries) else []
        return RankPlan(self._plan, local.kinds.tobytes(), local.properties, absent, local.paths if flat else None)

    @no_collection()
    def _plan_global(self, plans: list[RankPlan]) -> list[_Part]:
        # A plan that is alone may have shards of tensors whose others nobody knows here.
        kept = _native.plan_globally([plan.plan for plan in plans]) if len(plans) > 1 else [None]
        plans = [plan.keep(positions) for plan, positions in zip(plans, kept)]
        storages = self._writer._begin([plan.plan for plan in plans])
        self._metadata = SavedMetadata(plans)
        if self._planner is not None:
            self._planner.metadata = self._metadata
        return [_Part(one.target, one.rank, one.packed, positions) for one, positions in zip(storages, kept)]

    def _write(self) -> bytes:
        part, writer = self._part, self._writer
        self._plan.set_storage(part.packed)
        try:
            check_target(part.rank, writer._target, part.target)
        except BaseException as error:
            writer._decline(self._plan, error)
            raise
        return writer._write_plan(self._plan, in_windows(self._local.tensors))

    def _written(self) -> bytes:
        if self._outcome is None:
            self.write()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _commit(self, results: list[bytes]) -> Metadata:
        self._writer.finish(self._metadata, [WriteResults(packed) for packed in results])
        return self._metadata
