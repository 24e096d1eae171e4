"""Whether save() and load() may go without DCP's objects: only if nobody would look at them, on any rank."""

from __future__ import annotations

import warnings
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.utils import _DistWrapper


def is_exactly(value: Any, classes: tuple[type, ...], steps: frozenset[str]) -> bool:
    """Whether no step is another's: of a derived class, or set on the object itself."""
    return type(value) in classes and steps.isdisjoint(vars(value))


def all_agree(own: bool, process_group: dist.ProcessGroup | None, no_dist: bool) -> bool:
    """Whether `own` is true on all ranks of the group: a rank whose planner is another one's must not wait for
    messages of the one kind while the others send the other."""
    if no_dist or not (dist.is_available() and dist.is_initialized()):
        return own
    return all(_DistWrapper(process_group, True, 0).all_gather_object(own))


def is_alone(no_dist: bool, what: str) -> bool:
    """Whether there are no ranks to `what` with; with DCP's warning. For what its caller's caller calls."""
    alone = no_dist or not dist.is_available() or not dist.is_initialized()
    if alone:
        warnings.warn(
            f"torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to {what} in a single "
            "process.",
            stacklevel=3,
        )
    return alone
