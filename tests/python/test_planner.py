"""The planners for many tensors plan as torch's do; copies of tensors that are not plain are written in windows."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from safering.torch import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
    _writer,
)


def whole() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {f"t{i}": torch.randn(3 + i % 7, 4, generator=generator) for i in range(40)} | {
        "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "long": torch.arange(11)}


def sharded(full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    kinds = (Shard(0), Shard(1), Replicate())
    return {
        name: distribute_tensor(tensor, mesh, [kinds[i % 3]]) if tensor.dim() == 2 else tensor
        for i, (name, tensor) in enumerate(full.items())
    }


def plans_as_torch() -> None:
    state = sharded(whole())
    planners = [dcp.DefaultSavePlanner(), DefaultSavePlanner()]
    plans = []
    for planner in planners:
        planner.set_up_planner(state, is_coordinator=dist.get_rank() == 0)
        plans.append(planner.create_local_plan())
    assert plans[0] == plans[1]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, plans[0])
    (torchs, torchs_metadata), (ours, metadata) = (planner.create_global_plan(everyone) for planner in planners)
    # Who writes a replica may differ; what is written does not.
    items = [sorted(((item.index.fqn, item.index.offset) for plan in some for item in plan.items)) for some in (torchs, ours)]
    assert items[0] == items[1]
    assert metadata.planner_data == torchs_metadata.planner_data
    for fqn, tensor in torchs_metadata.state_dict_metadata.items():
        mine = metadata.state_dict_metadata[fqn]
        assert (mine.size, mine.properties) == (tensor.size, tensor.properties)
        assert sorted(mine.chunks, key=lambda c: c.offsets) == sorted(tensor.chunks, key=lambda c: c.offsets)


def test_plans_are_torchs():
    run(2, plans_as_torch)


def save_and_load(path) -> None:
    full = whole()
    dcp.save(sharded(full), storage_writer=HuggingFaceStorageWriter(str(path)), planner=DefaultSavePlanner())
    targets = {name: torch.zeros_like(tensor) for name, tensor in full.items()}
    dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(path)), planner=DefaultLoadPlanner())
    assert all(torch.equal(targets[name], tensor) for name, tensor in full.items())
    targets = sharded({name: torch.zeros_like(tensor) for name, tensor in full.items()})
    dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(path)), planner=DefaultLoadPlanner())
    for name, tensor in targets.items():
        assert torch.equal(tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor, full[name])


def test_round_trip(tmp_path):
    run(2, save_and_load, tmp_path / "c")


def test_refuses_what_torch_refuses(tmp_path):
    path = str(tmp_path / "c")
    dcp.save({"a": torch.zeros(3)}, storage_writer=HuggingFaceStorageWriter(path), no_dist=True)
    for planner in (dcp.DefaultLoadPlanner(), DefaultLoadPlanner()):
        for state, reason in (({"a": torch.zeros(3), "b": torch.zeros(2)}, "Missing key"), ({"a": torch.zeros(4)}, "Size mismatch")):
            try:
                dcp.load(state, storage_reader=HuggingFaceStorageReader(path), planner=planner, no_dist=True)
            except BaseException as error:  # CheckpointException is no Exception
                assert reason in str(error)
            else:
                raise AssertionError(f"{reason} was expected")


def test_copies_are_written_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "WINDOW_BYTES", 4096)
    generator = torch.Generator().manual_seed(6)
    state = {}
    for i in range(60):
        tensor = torch.randn(1 + i % 5, 33, dtype=torch.complex64, generator=generator)
        state[f"t{i:02}"] = tensor.conj() if i % 3 else tensor
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "c")), no_dist=True)
    targets = {name: torch.zeros_like(tensor.resolve_conj()) for name, tensor in state.items()}
    dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(tmp_path / "c"), verification="all"), no_dist=True)
    assert all(torch.equal(targets[name], tensor) for name, tensor in state.items())
