"""Ranks of one host hand on what several of them would read: all get what was saved, from one reading, and the failure
or death of one is the others' error at once."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

import safering.torch as st
from ranks import RankDied, outcomes, run

SHAPES = {"wide": (96, 4096), "narrow": (4096, 24), "deep": (16, 12, 40, 8), "odd": (129, 515), "row": (1, 4100)}


def whole() -> dict[str, torch.Tensor]:
    return {
        name: torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) * (seed + 1)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "c"
    dcp.save(whole(), storage_writer=st.HuggingFaceStorageWriter(str(path), enable_consolidation=True))
    return path


def empty(placement) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in whole().items()}
    return {name: distribute_tensor(tensor, mesh, [placement]) for name, tensor in zeros.items()}


def differing(state) -> list[str]:
    expected = whole()
    return [
        name
        for name, value in state.items()
        if not torch.equal(
            (value.full_tensor() if isinstance(value, DTensor) else value).to(torch.float32), expected[name]
        )
    ]


def load(path, placement, options: dict, mixed: bool = False, function=dcp.load) -> tuple[list[str], dict]:
    state = empty(placement)
    if mixed:
        # Into another dtype, into memory that is no box, whole: what a trainer has besides.
        state["odd"] = torch.zeros(SHAPES["odd"], dtype=torch.float64)
        state["narrow"] = torch.zeros(SHAPES["narrow"][::-1]).t()
        state["row"] = torch.zeros(SHAPES["row"])
    reader = st.HuggingFaceStorageReader(str(path), **options)
    function(state, storage_reader=reader)
    return differing(state), reader.report


def total(reports: list[dict], key: str) -> int:
    return sum(report[key] for report in reports)


@pytest.mark.parametrize("way", ["process_memory", "shared_memory"])
@pytest.mark.parametrize("ranks, placement", [(2, Shard(1)), (4, Shard(1)), (3, Replicate())])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("function", [dcp.load, st.load], ids=["dcp", "safering"])
def test_everybody_gets_what_was_saved(saved, way, ranks, placement, mixed, function):
    found = run(ranks, load, saved, placement, {"exchange": way}, mixed, function)
    assert [wrong for wrong, _ in found] == [[]] * ranks
    reports = [report for _, report in found]
    used = total(reports, f"{way}_bytes")
    assert used > 0
    assert total(reports, "process_memory_bytes") + total(reports, "shared_memory_bytes") == used


@pytest.mark.parametrize("function", [dcp.load, st.load], ids=["dcp", "safering"])
def test_every_byte_is_read_once(saved, function):
    def bytes_read(way: str) -> int:
        found = run(2, load, saved, Replicate(), {"exchange": way}, False, function)
        return total([report for _, report in found], "read_bytes")

    assert bytes_read("off") == 2 * bytes_read("process_memory")


def test_rows_are_each_ranks_own(saved):
    for wrong, report in run(2, load, saved, Shard(0), {"exchange": "off"}):
        assert not wrong and report["process_memory_bytes"] == report["shared_memory_bytes"] == 0


def load_many(path) -> tuple[list[str], list[int]]:
    """One reader, again and again; then one that one rank keeps out of, and each rank by itself."""
    wrong, taken = [], []
    reader = st.HuggingFaceStorageReader(str(path), exchange="process_memory")
    for _ in range(3):
        state = empty(Shard(1))
        dcp.load(state, storage_reader=reader)
        wrong += differing(state)
        taken.append(reader.report["process_memory_bytes"])
    state = empty(Replicate())
    reader = st.HuggingFaceStorageReader(str(path), exchange="off" if dist.get_rank() == 1 else "process_memory")
    dcp.load(state, storage_reader=reader)
    taken.append(reader.report["process_memory_bytes"])
    alone = {name: torch.zeros_like(tensor) for name, tensor in whole().items()}
    dcp.load(alone, storage_reader=st.HuggingFaceStorageReader(str(path)), no_dist=True)
    return wrong + differing(state) + differing(alone), taken


def test_again_and_with_one_rank_off(saved):
    found = run(3, load_many, saved)
    assert [wrong for wrong, _ in found] == [[]] * 3
    for taken in zip(*(taken for _, taken in found)):
        assert sum(taken) > 0
    assert found[1][1][3] == 0


def test_unknown_way(saved):
    state = {name: torch.zeros_like(tensor) for name, tensor in whole().items()}
    with pytest.raises(ValueError, match="exchange must be"):
        dcp.load(state, storage_reader=st.HuggingFaceStorageReader(str(saved), exchange="by post"))


class Fails(dcp.DefaultLoadPlanner):
    """Lets the reader fail when it is planned that it takes part, and has not begun to."""

    def finish_plan(self, new_plan):
        self.reader._fill = self.fail
        return super().finish_plan(new_plan)


class Raises(Fails):
    def fail(self, *_):
        raise RuntimeError("this rank has no memory")


class Dies(Fails):
    def fail(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


def load_failing(path, report, planner: type) -> None:
    state = empty(Shard(1))
    reader = st.HuggingFaceStorageReader(str(path), exchange="process_memory")
    planner.reader = reader
    read = reader.read_data

    def told(plan, planner):
        try:
            return read(plan, planner)
        except BaseException as error:
            (report / str(dist.get_rank())).write_text(str(error))
            raise

    reader.read_data = told
    dcp.load(state, storage_reader=reader, planner=planner() if dist.get_rank() == 1 else None)


def test_rank_that_fails(saved, tmp_path):
    found = outcomes(2, load_failing, saved, tmp_path, Raises)
    assert all(isinstance(one, CheckpointException) for one in found)
    assert "this rank has no memory" in (tmp_path / "0").read_text()
    assert "exchange with rank 1" in (tmp_path / "0").read_text()


class LosesItsFiles(dcp.DefaultLoadPlanner):
    def finish_plan(self, new_plan):
        # As after pickling; and meanwhile the checkpoint has gone.
        self.reader._native, self.reader.path = None, "/absent"
        return super().finish_plan(new_plan)


def test_rank_that_cannot_open_its_files(saved, tmp_path):
    found = outcomes(2, load_failing, saved, tmp_path, LosesItsFiles)
    assert all(isinstance(one, CheckpointException) for one in found)
    assert "exchange with rank 1" in (tmp_path / "0").read_text()
    assert "/absent" in (tmp_path / "0").read_text()


def test_rank_that_is_killed(saved, tmp_path):
    found = outcomes(2, load_failing, saved, tmp_path, Dies)
    assert any(isinstance(one, RankDied) and one.rank == 1 for one in found)
    assert "exchange with rank 1" in (tmp_path / "0").read_text()
    assert load_fine(saved)


def load_fine(path) -> bool:
    return all(not wrong for wrong, _ in run(2, load, path, Shard(1), {"exchange": "process_memory"}))


def test_changed_byte_is_an_error_of_all(saved, tmp_path):
    import shutil

    path = tmp_path / "c"
    shutil.copytree(saved, path)
    file = path / "model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for error in outcomes(2, load, path, Replicate(), {"exchange": "process_memory"}):
        assert isinstance(error, CheckpointException)
        assert set(error.failures) == {0, 1}
