"""Ranks of one host write what would be short runs together: the files are those of any other save, and the failure or
death of one is the others' error at once."""

from __future__ import annotations

import os
import pathlib
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

import safering.torch as st
from ranks import RankDied, outcomes, run

SHAPES = {"wide": (96, 4096), "narrow": (4096, 24), "deep": (16, 12, 40, 8), "odd": (129, 515), "row": (1, 4100)}


def whole() -> dict[str, torch.Tensor]:
    return {
        name: torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) * (seed + 1)
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def sharded(dimension: int) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(tensor, mesh, [Shard(dimension)]) for name, tensor in whole().items()}


def save_sharded(path, dimension: int, options: dict) -> dict | None:
    writer = st.HuggingFaceStorageWriter(str(path), enable_consolidation=True, **options)
    dcp.save(sharded(dimension), storage_writer=writer)
    return writer.report


def data_of(path: pathlib.Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.safetensors")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("alone") / "c"
    dcp.save(whole(), storage_writer=st.HuggingFaceStorageWriter(str(path), enable_consolidation=True))
    return data_of(path)


@pytest.mark.parametrize("way", ["automatic", "process_memory", "shared_memory", "off"])
@pytest.mark.parametrize("ranks, dimension", [(2, 1), (3, 1), (4, 0)])
def test_files_are_those_of_one_rank(tmp_path, alone, way, ranks, dimension):
    path = tmp_path / "c"
    report = run(ranks, save_sharded, path, dimension, {"exchange": way})[0]
    assert data_of(path) == alone
    exchanged = report["process_memory_bytes"], report["shared_memory_bytes"]
    if way == "off":
        assert exchanged == (0, 0)
    elif way == "shared_memory":
        assert exchanged[0] == 0 and exchanged[1] > 0
    elif way == "process_memory" or dimension > 0:  # rows lie together: it depends
        assert exchanged[0] > 0
    state = {name: torch.zeros_like(tensor) for name, tensor in whole().items()}
    dcp.load(state, storage_reader=st.HuggingFaceStorageReader(str(path), verification="all"))
    assert all(torch.equal(state[name], tensor) for name, tensor in whole().items())


def test_unknown_way(tmp_path):
    with pytest.raises(ValueError, match="exchange must be"):
        dcp.save(whole(), storage_writer=st.HuggingFaceStorageWriter(str(tmp_path / "c"), exchange="by post"))


def save_strided(path, way: str) -> None:
    """Local tensors whose memory is transposed, and some that native code cannot read as they lie."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {}
    for name, tensor in whole().items():
        if tensor.dim() != 2:
            continue
        values = torch.complex(tensor, -tensor).conj() if name == "odd" else tensor
        local = distribute_tensor(values, mesh, [Shard(1)])
        if name != "odd":
            local = torch.distributed.tensor.DTensor.from_local(
                local.to_local().t().contiguous().t(), mesh, [Shard(1)], shape=local.shape, stride=local.stride()
            )
        state[name] = local
    dcp.save(state, storage_writer=st.HuggingFaceStorageWriter(str(path), enable_consolidation=True, exchange=way))


@pytest.mark.parametrize("way", ["process_memory", "shared_memory"])
def test_memory_that_is_strided_or_must_be_copied(tmp_path, way):
    path = tmp_path / "c"
    run(2, save_strided, path, way)
    found = st.load_file(str(path / "model-00001-of-00001.safetensors"))
    for name, tensor in whole().items():
        if name == "odd":
            assert torch.equal(found[name], torch.complex(tensor, tensor))
        elif tensor.dim() == 2:
            assert torch.equal(found[name], tensor)


class Dies(dcp.DefaultSavePlanner):
    def resolve_data(self, write_item):
        os.kill(os.getpid(), signal.SIGKILL)


def save_dying(path, death: type | None) -> tuple[str, float]:
    planner = death() if death is not None and dist.get_rank() == 1 else None
    begin = time.monotonic()
    state = sharded(1)
    writer = st.HuggingFaceStorageWriter(str(path), enable_consolidation=True)
    write = writer.write_data
    told = {}

    def timed(plan, planner):
        try:
            return write(plan, planner)
        except BaseException as error:
            told["error"], told["seconds"] = str(error), time.monotonic() - begin
            os.write(report, f"{told['seconds']:.1f} {error}".encode())
            raise

    report = os.open(str(path) + f".{dist.get_rank()}", os.O_CREAT | os.O_WRONLY)
    writer.write_data = timed
    dcp.save(state, storage_writer=writer, planner=planner)


def test_rank_that_is_killed(tmp_path):
    path = tmp_path / "c"
    run(2, save_sharded, path, 1, {})
    before = data_of(path)
    begin = time.monotonic()
    died = outcomes(2, save_dying, path, Dies, timeout=40)
    assert any(isinstance(one, RankDied) and one.rank == 1 for one in died)
    seconds, error = (tmp_path / "c.0").read_text().split(" ", 1)
    assert "exchange with rank 1" in error and float(seconds) < time.monotonic() - begin
    assert data_of(path) == before
    run(2, save_sharded, path, 1, {})
    assert data_of(path) == before
