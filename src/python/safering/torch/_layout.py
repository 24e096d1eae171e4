"""A rank's part of the layout of one save, as it travels in DCP's plans."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

from torch.distributed.checkpoint.planner import SavePlan

from .. import _native
from ._plans import item_columns

#: In `SavePlan.storage_data`.
LAYOUT_KEY = "safering"


@dataclasses.dataclass(frozen=True)
class RankLayout:
    target: str
    rank: int
    attempt: str  # begins with the time: later attempts compare greater
    packed: bytes

    def __reduce__(self) -> tuple:
        return _receive, dataclasses.astuple(self)

    def native_plan(self, plan: SavePlan) -> _native.SavePlan:
        native_plan = _native.SavePlan(self.rank, *item_columns(plan.items))
        native_plan.set_storage(self.packed)
        return native_plan


# What came to this process with a plan. With `enable_plan_caching` a rank's planner puts the plan of an
# earlier save in place of the one that the coordinator sent, and this save's layout would be lost with it.
_received: OrderedDict[tuple[str, int], RankLayout] = OrderedDict()
_MOST_RECEIVED = 64


def _receive(*fields: Any) -> RankLayout:
    layout = RankLayout(*fields)
    _received[layout.target, layout.rank] = layout
    _received.move_to_end((layout.target, layout.rank))
    while len(_received) > _MOST_RECEIVED:
        _received.popitem(last=False)
    return layout


def newest(given: RankLayout | None, prepared: list[RankLayout], target: str, rank: int) -> RankLayout | None:
    """The layout of the save to `target` that is under way: the one that came with the plan, an earlier one that came
    to this process, or one that it `prepared` itself. None: it was not planned."""
    if given is not None:
        rank = given.rank
    found = [given, _received.pop((target, rank), None)]
    found += [layout for layout in prepared if layout.rank == rank]
    found = [layout for layout in found if layout is not None and layout.target == target]
    if given is not None and not found:
        # Of this save or, with a cached plan, of an earlier one.
        planned = max((one for one in (given, *_received.values()) if one.rank == rank), key=_attempt).target
        check_target(rank, target, planned)
    return max(found, key=_attempt, default=None)


def check_target(rank: int, own: str, planned: str) -> None:
    """All ranks must write to the directory that the coordinator planned for."""
    if own != planned:
        raise ValueError(
            f"write_data: rank {rank} writes to {own}, but the coordinator planned a save to {planned}: "
            "all ranks must give the same path, and a relative one only in the same working directory"
        )


def entry(plan: SavePlan, key: str) -> Any:
    return plan.storage_data.get(key) if isinstance(plan.storage_data, dict) else None


def _attempt(layout: RankLayout) -> str:
    return layout.attempt
