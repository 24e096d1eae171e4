"""DCP's default planners, for state dicts of many tensors.

The plans and their meaning are torch's; so is every case that is not plain. Opt in by
`dcp.save(..., planner=DefaultSavePlanner())`, or by install().
"""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner as _TorchLoadPlanner
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner as _TorchSavePlanner
from torch.distributed.checkpoint.default_planner import (
    create_default_local_load_plan,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.tensor import DTensor

from .. import _native
from ._dtypes import CODES
from ._hooks import overrides
from ._plans import item_columns, no_collection

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class DefaultSavePlanner(_TorchSavePlanner):
    """torch's DefaultSavePlanner, with the same arguments. Replicas are shared out by size as torch does it, the
    largest first; index hints are not set. With `enable_plan_caching`, `dedup_save_to_lowest_rank`, or entries that
    are no tensors, it is torch's own."""

    def create_local_plan(self) -> SavePlan:
        if self._enable_plan_caching:
            return super().create_local_plan()
        with no_collection():
            # Who derives from this may change what each of them says.
            plan = SavePlan(local_items(self.state_dict, shared=type(self) is DefaultSavePlanner))
        if self.flatten_state_dict:
            plan = dataclasses.replace(plan, planner_data=self.mappings)
        self.plan = plan
        return plan

    def _create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        data = [item.tensor_data for plan in all_plans for item in plan.items]
        if (
            self.dedup_save_to_lowest_rank
            or overrides(self, ("_dedup_save_plans",))
            or any(d is None or d.properties.dtype not in CODES for d in data)
        ):
            return super()._create_global_plan(all_plans)
        native = [_native.SavePlan(rank, *item_columns(plan.items)) for rank, plan in enumerate(all_plans)]
        # A plan that is alone may have shards of tensors whose others nobody knows here.
        kept = _native.plan_globally(native) if len(native) > 1 else [None]
        with no_collection():
            plans = [
                plan if positions is None
                else dataclasses.replace(plan, items=[plan.items[i] for i in positions])
                for plan, positions in zip(all_plans, kept)
            ]
            metadata = Metadata(_global_metadata(plans))
        if self.flatten_state_dict:
            metadata.planner_data = dict(ChainMap(*(plan.planner_data for plan in all_plans)))
        return plans, metadata


class DefaultLoadPlanner(_TorchLoadPlanner):
    """torch's DefaultLoadPlanner, with the same arguments."""

    def create_local_plan(self) -> LoadPlan:
        self._refuse_objects()
        if self.metadata is None or not self.state_dict.keys() >= self.metadata.state_dict_metadata.keys():
            return super().create_local_plan()  # where keys are missing, torch looks for those of older versions
        items: list[ReadItem] = []
        with no_collection():
            for fqn, value in self.state_dict.items():
                stored = self.metadata.state_dict_metadata.get(fqn)
                if (
                    type(value) in _PLAIN
                    and isinstance(stored, TensorStorageMetadata)
                    and len(stored.chunks) == 1
                    and stored.chunks[0].sizes == stored.size == value.size()
                ):
                    origin = _origin(value.dim())
                    index = MetadataIndex(fqn, origin, 0)
                    items.append(ReadItem(LoadItemType.TENSOR, index, origin, index, origin, value.size()))
                else:
                    items += create_default_local_load_plan(
                        {fqn: value}, self.metadata, not self.allow_partial_load
                    ).items
        return LoadPlan(items)

    def _refuse_objects(self) -> None:
        """What is a tensor in the checkpoint can be loaded into a tensor only."""
        stored = self.metadata.state_dict_metadata if self.metadata is not None else {}
        for fqn, value in self.state_dict.items():
            if not isinstance(value, (torch.Tensor, ShardedTensor)) and isinstance(stored.get(fqn), TensorStorageMetadata):
                raise TypeError(
                    f"{fqn!r} is a tensor in the checkpoint and {type(value).__name__} in the state dict; load it into a "
                    "tensor, or leave it out"
                )


def _origin(rank: int, _known: dict[int, torch.Size] = {}) -> torch.Size:
    if rank not in _known:
        _known[rank] = torch.Size([0] * rank)
    return _known[rank]


def local_items(state_dict: dict[str, Any], shared: bool = True) -> list[WriteItem]:
    """`shared`: items of the same properties have the same object of them."""
    items: list[WriteItem] = []
    known: dict[tuple, TensorProperties] = {}
    chunks: dict[tuple, ChunkStorageMetadata] = {}  # of DTensors: many have the same shape, mesh and placements

    def properties_of(tensor: torch.Tensor) -> TensorProperties:
        key = (tensor.dtype, tensor.layout, tensor.requires_grad, tensor.is_pinned())
        if key not in known:
            known[key] = TensorProperties.create_from_tensor(tensor)
        return known[key] if shared else dataclasses.replace(known[key])

    for fqn, value in state_dict.items():
        if type(value) in _PLAIN:
            size = value.size()
            origin = _origin(len(size))
            data = TensorWriteData(ChunkStorageMetadata(origin, size), properties_of(value), size)
            items.append(WriteItem(MetadataIndex(fqn, origin), WriteItemType.TENSOR, None, data))
            continue
        if type(value) is DTensor and type(value._local_tensor) in _PLAIN:
            key = (value.shape, value.device_mesh, value.placements)
            chunk = chunks.get(key)
            if chunk is not None:
                data = TensorWriteData(chunk, properties_of(value._local_tensor), value.shape)
                items.append(WriteItem(MetadataIndex(fqn, chunk.offsets), WriteItemType.SHARD, None, data))
                continue
            made = create_default_local_save_plan({fqn: value}, True).items
            if len(made) == 1:
                chunks[key] = made[0].tensor_data.chunk
            items += made
            continue
        items += create_default_local_save_plan({fqn: value}, True).items
    return items


def _global_metadata(plans: list[SavePlan]) -> dict[str, TensorStorageMetadata]:
    out: dict[str, TensorStorageMetadata] = {}
    for plan in plans:
        for item in plan.items:
            data = item.tensor_data
            known = out.get(item.index.fqn)
            if known is None:
                out[item.index.fqn] = TensorStorageMetadata(data.properties, data.size, [data.chunk])
            else:
                known.chunks.append(data.chunk)
    return out
