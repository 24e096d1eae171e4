"""The checkpoints of a run, side by side in one directory: the newest, all, and those that may go.

A checkpoint of a run is a directory named `<prefix>-<digits>` or `<prefix>_<digits>` ("step-1000") with a manifest
of safering. In a job of several ranks one rank asks and tells the others: what is there may change in between.
"""

from __future__ import annotations

import dataclasses
import os

from . import _native
from ._runtime import reactor


@dataclasses.dataclass(frozen=True)
class StepCheckpoint:
    """Attributes:
    name, prefix, step, path: "step-1000", "step", 1000, and where it is.
    state: "whole"; "switching" (whole; opening it moves in the last files); "damaged"; "foreign" (the name fits,
        but no manifest of ours says what it is); "unreadable" (the system refused to say: it may be whole).
    reason: why it is not whole.
    attempt, saved_ms: the save that wrote it and its beginning, milliseconds since 1970.
    files, bytes: of its data files.
    others: names in it that the save did not write.
    """

    name: str
    prefix: str
    step: int
    path: str
    state: str
    attempt: str
    saved_ms: int
    files: int
    bytes: int
    reason: str
    others: list[str]


def list_checkpoints(directory: str | os.PathLike[str]) -> list[StepCheckpoint]:
    """By prefix, then by rising step. Reads names, manifests and sizes, and changes nothing."""
    return [StepCheckpoint(**found) for found in _native.list_checkpoints(os.fsencode(directory), reactor())]


def latest(directory: str | os.PathLike[str], prefix: str = "") -> StepCheckpoint | None:
    """The newest whole checkpoint, of one prefix if one is given: of the highest step, unless `set_latest` named a
    whole one, then that, or the highest step that was saved after it. `StorageError` where one that may be newer could
    not be looked at: it must not be passed over for an older one."""
    found = _native.latest(os.fsencode(directory), os.fsencode(prefix), reactor())
    return None if found is None else StepCheckpoint(**found)


def set_latest(checkpoint: str | os.PathLike[str]) -> None:
    """Writes the file `latest` beside a checkpoint, durably; after the save of it has returned. `Error` where the
    checkpoint is not whole, or where something else has that name."""
    _native.set_latest(os.fsencode(checkpoint), reactor())


def prune(
    directory: str | os.PathLike[str],
    keep_last: int,
    keep_every: int = 0,
    *,
    prefix: str = "",
    with_others: bool = False,
    dry_run: bool = False,
) -> list[StepCheckpoint]:
    """Removes old checkpoints, and says which (in a dry run: which would go).

    Of each prefix the newest `keep_last` whole ones stay (at least one), and the steps that `keep_every` divides.
    What `latest` gives always stays, and what is not known to be ours, could not be looked at, may be being saved, or
    holds files of others (config.json), unless `with_others`. Each goes at once, by a durable rename, or not at all. A
    `RuntimeError` names those that could not be removed, after the others have been.
    """
    if keep_last < 1 or keep_every < 0:
        raise ValueError(f"keep_last must be at least 1 and keep_every at least 0, not {keep_last} and {keep_every}")
    removed, failures = _native.prune(
        os.fsencode(directory), keep_last, keep_every, os.fsencode(prefix), with_others, dry_run, reactor()
    )
    if failures:
        raise RuntimeError("not all could be removed: " + "; ".join(failures))
    return [StepCheckpoint(**found) for found in removed]


def recover(checkpoint: str | os.PathLike[str], *, all_attempts: bool = False) -> dict[str, object]:
    """Ends what a save to `checkpoint` that was cut off has begun: moves in the files of a committed one, removes
    attempts that a later save has overtaken. Those that may still be written to go with `all_attempts`: only where
    no save to it is running. Returns switch_finished, and names: removed, left, failures."""
    return _native.recover(os.fsencode(checkpoint), all_attempts, reactor())
