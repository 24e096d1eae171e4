"""The shards of a distributed save -> whole files: torch's functions, on the native path."""

from __future__ import annotations

import logging
import os

import torch.distributed as dist
from torch.distributed.checkpoint.utils import _DistWrapper

from .. import _errors, _native, _runtime
from .._paths import make_directories

logger = logging.getLogger(__name__)

__all__ = ["consolidate_safetensors_files", "consolidate_safetensors_files_on_every_rank"]


def consolidate_safetensors_files(
    input_dir: str,
    output_dir: str,
    fqn_to_index_mapping: dict[str, int] | None = None,
    num_threads: int = 1,
) -> None:
    """Joins the shards of a checkpoint into `model-...` files, with an index, in one durable commit.

    The shards are read verified and in windows; memory is bounded, about 300 MiB whatever the model's size.
    Until the commit, what is in `output_dir` is as it was; then the new checkpoint replaces the old one there, and
    files that belong to no checkpoint are kept. `output_dir` may be `input_dir`: the shards go with the commit.
    It may be the directory that `input_dir` stands in, or a new one.

    Args:
        input_dir: directory of a checkpoint: DCP's `shard-...` files, or any that HuggingFaceStorageReader reads.
        output_dir: where the files go. Missing parents are made.
        fqn_to_index_mapping: tensor -> 1-based number of its file. A tensor of the checkpoint that it lacks is an
            error; a name that the checkpoint lacks is left out. None: one file.
        num_threads: accepted; native code reads and writes at the disk's speed by itself.

    Raises:
        safering.Error: a shard that is lost, damaged or left from another save; a tensor that is not mapped.
        safering.StorageError: what the operating system refuses.
    """
    conversion = _convert(input_dir, output_dir, fqn_to_index_mapping)
    conversion.open()
    _make_parent(output_dir)
    try:
        [part] = conversion.prepare(1)
        _log(conversion.finish(conversion.write(part, None)))
    except BaseException:
        conversion.abort()  # now: the traceback keeps it alive
        raise


def consolidate_safetensors_files_on_every_rank(
    input_dir: str,
    output_dir: str,
    fqn_to_index_mapping: dict[str, int] | None = None,
    num_threads: int = 1,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """As consolidate_safetensors_files, the work shared by all ranks of a group; without torch.distributed, alone.

    Every rank reads and writes an equal part of the bytes, whatever the number of files, so that none waits for
    another for long. All return when the checkpoint is committed. Called by all ranks of the group, with the
    same arguments; the mapping of the first one counts.

    Raises:
        CheckpointException: on all ranks, whichever failed; nothing has been changed then, or it says so.
        Otherwise as consolidate_safetensors_files.
    """
    if not (dist.is_available() and dist.is_initialized()):
        consolidate_safetensors_files(input_dir, output_dir, fqn_to_index_mapping, num_threads)
        return
    if dist.get_rank(process_group) < 0:
        return  # not of this group, as with torch's collectives
    group = _DistWrapper(process_group, True, 0)
    conversion: _native.Conversion | None = None

    def look() -> str:
        nonlocal conversion
        conversion = _convert(input_dir, output_dir, fqn_to_index_mapping)
        return conversion.open()

    def plan(attempts: list[str]) -> list[list[bytes]]:
        other = [rank for rank, attempt in enumerate(attempts) if attempt != attempts[0]]
        if other:
            raise _errors.Error(
                f"{input_dir}: ranks {other} see the save of another attempt than rank 0; wait until it has been "
                "saved, and see that all ranks have one file system there",
                reason="ranks see different checkpoints",
                operation="consolidate",
                file=os.fspath(input_dir),
            )
        _make_parent(output_dir)
        return conversion.prepare(len(attempts))

    def commit(results: list[list[bytes]]) -> None:
        _log(conversion.finish([window for rank in results for window in rank]))

    try:
        part = group.reduce_scatter("plan consolidation", look, plan)
        group.all_reduce("consolidate", lambda: conversion.write(part, None), commit)
    except BaseException:
        # No rank writes any more. An interrupt here, inside a collective, is the exception; their files are
        # unlinked under them then, and they get errors.
        if conversion is not None:
            conversion.abort()
        raise


def _convert(
    input_dir: str, output_dir: str, fqn_to_index_mapping: dict[str, int] | None
) -> _native.Conversion:
    mapping = fqn_to_index_mapping or {}
    for fqn, index in mapping.items():
        if index < 1:
            raise ValueError(f"fqn_to_index_mapping: {fqn!r} has file {index}, numbers begin at 1")
    return _native.Conversion(os.fsencode(os.path.abspath(input_dir)), os.fsencode(os.path.abspath(output_dir)), _runtime.reactor(path=output_dir), mapping)


def _make_parent(output_dir: str) -> None:
    make_directories(os.path.dirname(os.path.abspath(output_dir)))


def _log(report: dict) -> None:
    logger.info("consolidated %d bytes into %d files of %s", report["tensor_bytes"], report["files"], report["path"])
    for note in report["notes"]:
        logger.info("%s: %s", report["path"], note)
