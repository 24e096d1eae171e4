"""The checkpoints of a run: safering.latest, list_checkpoints, set_latest, prune, recover."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch
import torch.distributed.checkpoint as dcp

import safering
from safering.torch import HuggingFaceStorageWriter


def save(path: pathlib.Path, value: float = 1.0) -> None:
    dcp.save({"w": torch.full((8, 8), value)}, storage_writer=HuggingFaceStorageWriter(path), no_dist=True)


def test_a_run(tmp_path: pathlib.Path) -> None:
    assert safering.latest(tmp_path) is None
    assert safering.list_checkpoints(tmp_path) == []
    for step in [100, 200, 300, 400]:
        save(tmp_path / f"step-{step}", step)
        safering.set_latest(tmp_path / f"step-{step}")
        safering.prune(tmp_path, keep_last=2, keep_every=200)
    assert [c.step for c in safering.list_checkpoints(tmp_path)] == [200, 300, 400]
    newest = safering.latest(tmp_path)
    assert newest is not None
    assert (newest.name, newest.state, newest.path) == ("step-400", "whole", os.path.realpath(tmp_path / "step-400"))
    assert (tmp_path / "latest").read_text() == "step-400\n"
    assert safering.latest(str(tmp_path), prefix="other") is None


def test_prune(tmp_path: pathlib.Path) -> None:
    for step in [1, 2, 3]:
        save(tmp_path / f"step-{step}")
    (tmp_path / "step-1" / "config.json").write_text("{}")
    assert [c.step for c in safering.prune(tmp_path, 1, dry_run=True)] == [2]
    assert [c.step for c in safering.prune(tmp_path, 1)] == [2]
    assert safering.list_checkpoints(tmp_path)[0].others == ["config.json"]
    assert [c.step for c in safering.prune(tmp_path, 1, with_others=True)] == [1]
    for arguments in [(0,), (-1,), (1, -1)]:
        with pytest.raises(ValueError, match="keep_last must be at least 1"):
            safering.prune(tmp_path, *arguments)
    with pytest.raises(FileNotFoundError):
        safering.prune(tmp_path / "absent", 1)


def test_what_is_not_whole_is_not_the_latest(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "step-1")
    save(tmp_path / "step-2")
    file = next((tmp_path / "step-2").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    newest = safering.latest(tmp_path)
    assert newest is not None and newest.step == 1
    assert safering.list_checkpoints(tmp_path)[1].state == "damaged"
    with pytest.raises(safering.Error, match="bytes, saved were"):
        safering.set_latest(tmp_path / "step-2")


def test_recover(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "step-1")
    old, new = (tmp_path / f".step-1.{digit * 32}.tmp" for digit in "0f")
    old.mkdir()
    new.mkdir()
    report = safering.recover(tmp_path / "step-1")
    assert report == {"switch_finished": False, "removed": [old.name], "left": [new.name], "failures": []}
    assert safering.recover(tmp_path / "step-1", all_attempts=True)["removed"] == [new.name]
    assert os.listdir(tmp_path) == ["step-1"]


def test_names_that_are_not_utf8(tmp_path: pathlib.Path) -> None:
    name = os.fsdecode(b"st\xffep-1")
    save(tmp_path / "step-1")
    (tmp_path / "step-1").rename(tmp_path / name)
    assert [c.name for c in safering.list_checkpoints(tmp_path)] == [name]
