"""The metadata that a save returns, made of bytes when somebody looks at it."""

from __future__ import annotations

import dataclasses
from array import array
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from .. import _native
from ._dtypes import F4, torch_shape
from ._plans import no_collection


@dataclasses.dataclass
class RankPlan:
    """What a rank tells the coordinator: its items, and what DCP's metadata says of them besides."""

    plan: _native.SavePlan
    kinds: bytes  # of each item, array("H"): its position in `properties`
    properties: list[TensorProperties]
    names: list[str]  # of entries without an item on this rank
    paths: dict[str, tuple] | None  # where not just (name,); None: the state dict was not flattened

    def keep(self, positions: list[int] | None) -> RankPlan:
        if positions is None:
            return self
        kinds = array("H", self.kinds)
        return dataclasses.replace(
            self, plan=self.plan.keep(positions), kinds=array("H", [kinds[i] for i in positions]).tobytes()
        )


class SavedMetadata(Metadata):
    """A `Metadata`. It becomes one in class too when anything of it is looked at: for a state dict of many tensors to
    make all its objects takes as long as to save them, and most callers drop them."""

    def __init__(self, plans: list[RankPlan]) -> None:
        object.__setattr__(self, "_plans", plans)

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS:
            _read(self)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _read(self)
        setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return _read(self) == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(_read(self))

    def __reduce__(self) -> tuple:
        return SavedMetadata, (object.__getattribute__(self, "_plans"),)


_FIELDS = frozenset((*(field.name for field in dataclasses.fields(Metadata)), "__dict__"))


def _read(metadata: SavedMetadata) -> Metadata:
    plans: list[RankPlan] = object.__getattribute__(metadata, "_plans")
    with no_collection():
        tensors = _tensors(plans)
        planner_data = None
        if all(plan.paths is not None for plan in plans):
            planner_data = {name: (name,) for plan in plans for name in plan.names}
            planner_data |= {name: (name,) for name in tensors}
            for plan in reversed(plans):  # the first rank's count, as in a ChainMap
                planner_data |= plan.paths
    object.__delattr__(metadata, "_plans")
    object.__setattr__(metadata, "__class__", Metadata)
    metadata.__init__(state_dict_metadata=tensors, planner_data=planner_data)
    return metadata


def _tensors(plans: list[RankPlan]) -> dict[str, TensorStorageMetadata]:
    out: dict[str, TensorStorageMetadata] = {}
    for plan in plans:
        for (name, code, *box), kind in zip(plan.plan.describe(), array("H", plan.kinds)):
            offsets, sizes, size = (torch.Size(torch_shape(shape, code) if code == F4 else shape) for shape in box)
            chunk = ChunkStorageMetadata(offsets, sizes)
            if (known := out.get(name)) is not None:
                known.chunks.append(chunk)
            else:
                out[name] = TensorStorageMetadata(plan.properties[kind], size, [chunk])
    return out
