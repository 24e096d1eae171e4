"""load(): what dcp.load with the same reader makes of a state dict, by its own short way."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import outcomes, run
from states import LAYOUTS, assert_same, bits, load_full, numbers, place, random_bits, save, zeros
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import Replicate, Shard, init_device_mesh

import safering.torch as st
from safering.torch import _load, _tensors
from safering.torch._dtypes import DTYPES


def reader(path, **options) -> st.HuggingFaceStorageReader:
    return st.HuggingFaceStorageReader(str(path), **options)


@pytest.fixture
def short_way(monkeypatch):
    """Fails where a load takes any other."""

    def refuse(*_, **__):
        raise AssertionError("not the short way")

    monkeypatch.setattr(_load, "_torch_load", refuse)
    monkeypatch.setattr(_load._Load, "_prepare_plan", refuse)


def test_fills_nested_state_dicts(tmp_path, short_way):
    saved = {"m": {"a": numbers(5, 3), "b": torch.tensor(7)}, "l": [numbers(4), {"x": numbers(2)}], "none": numbers(0, 3)}
    save(tmp_path / "c", saved)
    target = {"m": {"a": zeros((5, 3), torch.float32), "b": torch.tensor(0)}, "l": [numbers(4) * 0, {"x": numbers(2) * 0}]}
    kept = target["m"]["a"]
    target["none"] = zeros((0, 3), torch.float32)
    checkpoint = reader(tmp_path / "c")
    st.load(target, storage_reader=checkpoint, no_dist=True)
    assert target["m"]["a"] is kept and torch.equal(kept, saved["m"]["a"])
    assert target["m"]["b"] == 7
    assert torch.equal(target["l"][0], saved["l"][0]) and torch.equal(target["l"][1]["x"], saved["l"][1]["x"])
    assert checkpoint.report["tensor_bytes"] == checkpoint.report["verified_bytes"] == 60 + 8 + 16 + 8


def test_every_dtype(tmp_path, short_way):
    state = {str(dtype): random_bits((3, 8), dtype) for dtype in DTYPES.values() if dtype.itemsize and "float4" not in str(dtype)}
    save(tmp_path / "c", state)
    target = {name: zeros(tensor.shape, tensor.dtype) for name, tensor in state.items()}
    st.load(target, storage_reader=reader(tmp_path / "c"), no_dist=True)
    assert_same(target, state)


def odd_targets() -> dict:
    """Of other dtypes and strides; float32 each when they are saved, (6, 4)."""
    return {
        "half": torch.zeros(6, 4, dtype=torch.float16),
        "wide": torch.zeros(6, 4, dtype=torch.float64),
        "strided": torch.zeros(4, 12)[:, ::2].t(),
        "parameter": torch.nn.Parameter(torch.zeros(6, 4)),
        "cast": torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.bfloat16)),
        "plain": torch.zeros(6, 4),
    }


def test_converts_and_scatters(tmp_path, short_way, monkeypatch):
    monkeypatch.setattr(_tensors, "WINDOW_BYTES", 100)  # one tensor at a time
    save(tmp_path / "c", {name: numbers(6, 4, start=i) for i, name in enumerate(odd_targets())})
    target = odd_targets()
    checkpoint = reader(tmp_path / "c")
    st.load(target, storage_reader=checkpoint, no_dist=True)
    for i, (name, tensor) in enumerate(target.items()):
        assert torch.equal(tensor.detach().float(), numbers(6, 4, start=i)), name
    assert target["parameter"].requires_grad and target["parameter"].grad_fn is None
    assert checkpoint.report["tensor_bytes"] == 6 * 6 * 4 * 4


def test_copies_only(tmp_path, short_way):
    save(tmp_path / "c", {"a": numbers(4)})
    target = {"a": torch.zeros(4, dtype=torch.float64)}
    st.load(target, storage_reader=reader(tmp_path / "c"), no_dist=True)
    assert torch.equal(target["a"], numbers(4).double())


PLACEMENTS = (Shard(0), Shard(1), Replicate())


def place_all(full: dict, turn: int) -> dict:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: place(tensor, mesh, [PLACEMENTS[(i + turn) % 3]]) for i, (name, tensor) in enumerate(full.items())}


def whole() -> dict:
    return {f"t{i}": numbers(1 + i, 6, start=i) for i in range(9)}


def save_and_load_sharded(path) -> None:
    for layout, options in LAYOUTS.items():
        st.save(place_all(whole(), 0), storage_writer=st.HuggingFaceStorageWriter(str(path / layout), **options))
        for turn in range(3):
            expected = place_all(whole(), turn)
            target = place_all({name: torch.zeros_like(tensor) for name, tensor in whole().items()}, turn)
            st.load(target, storage_reader=reader(path / layout))
            for name, tensor in expected.items():
                assert bits(target[name].to_local()) == bits(tensor.to_local()), (layout, turn, name)


def test_loads_any_sharding_from_any_layout(tmp_path):
    run(2, save_and_load_sharded, tmp_path)


class Counter:
    def __init__(self) -> None:
        self.count = torch.zeros(3)
        self.loaded = False

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict) -> None:
        self.loaded = True


def test_calls_load_state_dict_of_stateful_objects(tmp_path, short_way):
    save(tmp_path / "c", {"counter.count": numbers(3)})
    counter = Counter()
    st.load({"counter": counter}, checkpoint_id=tmp_path / "c", storage_reader=reader("elsewhere"), no_dist=True)
    assert counter.loaded and torch.equal(counter.count, numbers(3))


@pytest.mark.parametrize("planner", [None, dcp.DefaultLoadPlanner(), st.DefaultLoadPlanner()], ids=["none", "torch", "own"])
def test_refuses_what_dcp_refuses(tmp_path, planner, short_way):
    save(tmp_path / "c", {"a": numbers(3)})
    for state, reason in (
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, r"RuntimeError: Missing key in checkpoint state_dict: b\."),
        ({"a": torch.zeros(4)}, r"ValueError: Size mismatch between saved torch.Size\(\[3\]\) and current: torch.Size\(\[4\]\) for a"),
    ):
        with pytest.raises(CheckpointException, match=reason):
            st.load(state, storage_reader=reader(tmp_path / "c"), planner=planner, no_dist=True)
    with pytest.raises(CheckpointException, match="nowhere"):
        st.load({"a": torch.zeros(3)}, storage_reader=reader(tmp_path / "nowhere"), no_dist=True)


def test_partial_loads(tmp_path, short_way):
    save(tmp_path / "c", {"a": numbers(3), "more": numbers(2)})
    for kind in (dcp.DefaultLoadPlanner, st.DefaultLoadPlanner):
        target = {"a": torch.zeros(3), "b": torch.ones(2)}
        st.load(target, storage_reader=reader(tmp_path / "c"), planner=kind(allow_partial_load=True), no_dist=True)
        assert_same(target, {"a": numbers(3), "b": torch.ones(2)})
    only_lacking = {"b": torch.ones(2)}
    planner = st.DefaultLoadPlanner(allow_partial_load=True)
    st.load(only_lacking, storage_reader=reader(tmp_path / "c"), planner=planner, no_dist=True)
    assert_same(only_lacking, {"b": torch.ones(2)})


class Negating(dcp.DefaultLoadPlanner):
    def commit_tensor(self, read_item, tensor):
        tensor.neg_()


def test_hands_over_what_is_not_its_own(tmp_path):
    save(tmp_path / "c", {"a": numbers(3), "n.b": numbers(2)})
    target = {"a": torch.zeros(3)}
    st.load(target, storage_reader=reader(tmp_path / "c"), planner=Negating(), no_dist=True)
    assert torch.equal(target["a"], -numbers(3))
    with pytest.raises(CheckpointException, match="'a' is a tensor in the checkpoint and str in the state dict"):
        st.load({"a": "text", "b": 7}, storage_reader=reader(tmp_path / "c"), no_dist=True)
    dcp.save({"a": numbers(3), "b": 7}, checkpoint_id=tmp_path / "files", no_dist=True)
    target = {"a": torch.zeros(3), "b": 0}
    st.load(target, checkpoint_id=tmp_path / "files", no_dist=True)
    assert torch.equal(target["a"], numbers(3)) and target["b"] == 7


def load_each_its_way(path) -> None:
    """One rank has a ShardedTensor, which is planned by DCP, the other does not."""
    rank = dist.get_rank()
    rows = [LocalShard.from_tensor_and_offsets(torch.zeros(4, 3), [4 * rank, 0], rank)]
    sharded = init_from_local_shards(rows, 8, 3)
    target = {"rows": sharded} if rank == 1 else {"rows": torch.zeros(8, 3)}
    st.load(target, storage_reader=reader(path))
    got = target["rows"].local_shards()[0].tensor if rank == 1 else target["rows"]
    assert torch.equal(got, numbers(8, 3)[4 * rank :])


def test_ranks_that_go_different_ways(tmp_path):
    save(tmp_path / "c", {"rows": numbers(8, 3)})
    run(2, load_each_its_way, tmp_path / "c")


def load_with_planner_on_one(path) -> None:
    """Of another kind on one rank: all must go DCP's way."""
    planner = Negating() if dist.get_rank() == 1 else None
    target = {"a": torch.zeros(3)}
    st.load(target, storage_reader=reader(path), planner=planner)
    assert torch.equal(target["a"], -numbers(3) if planner else numbers(3))
    target = {"a": torch.zeros(3, device="meta")}
    st.load(target, storage_reader=reader(path))
    assert torch.equal(target["a"].cpu(), numbers(3))
    st.save(target, storage_writer=st.HuggingFaceStorageWriter(f"{path}-2"), planner=dcp.DefaultSavePlanner(
        dedup_save_to_lowest_rank=dist.get_rank() == 0))


def test_ranks_with_other_planners(tmp_path):
    save(tmp_path / "c", {"a": numbers(3)})
    run(2, load_with_planner_on_one, tmp_path / "c")
    assert load_full(tmp_path / "c-2").keys() == {"a"}


def load_what_one_lacks(path) -> None:
    state = {"a": torch.zeros(3)} | ({"b": torch.zeros(1)} if dist.get_rank() == 1 else {})
    st.load(state, storage_reader=reader(path))


def test_a_rank_that_fails_fails_all(tmp_path):
    save(tmp_path / "c", {"a": numbers(3)})
    for error in outcomes(2, load_what_one_lacks, tmp_path / "c"):
        assert isinstance(error, CheckpointException)
        assert list(error.failures) == [1] and "Missing key" in str(error)
