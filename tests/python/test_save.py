"""save(): the same checkpoint, metadata and errors as dcp.save with the same writer, by its own short way."""

from __future__ import annotations

import copy
import os
import pathlib
import pickle
import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import outcomes, run
from states import LAYOUTS, SAFERING, TORCH, assert_same, bits, load, load_full, numbers, place, random_bits
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import Replicate, Shard, init_device_mesh

import safering.torch as st
from safering.torch import _save
from safering.torch._dtypes import DTYPES


def writer(path, **options) -> st.HuggingFaceStorageWriter:
    return st.HuggingFaceStorageWriter(str(path), **options)


def contents(path) -> dict[str, bytes]:
    """Of the data files; the manifest has the attempt's name."""
    return {file.name: file.read_bytes() for file in pathlib.Path(path).iterdir() if file.suffix == ".safetensors"}


@pytest.fixture
def no_handing_over(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("handed over to torch")

    monkeypatch.setattr(_save, "_torch_save", refuse)


def nested_state() -> dict:
    return {
        "model": {"a": numbers(3, 4), "b.c": torch.nn.Parameter(numbers(5)), "deep": {"x": torch.tensor(7)}},
        "list": [numbers(2), {"y": numbers(2, 2, start=9)}],
        "strided": numbers(6, 6).t()[1:5, ::2],
        "conj": torch.complex(numbers(4), numbers(4, start=3)).conj(),
        "negative": torch.complex(numbers(4), numbers(4)).conj().imag,
        "empty": torch.zeros(0, 3),
        3: numbers(1),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_makes_what_dcp_makes(tmp_path, layout, no_handing_over):
    state = nested_state() | {str(dtype): random_bits((2, 8), dtype) for dtype in DTYPES.values()}
    theirs = dcp.save(state, storage_writer=writer(tmp_path / "dcp", **LAYOUTS[layout]), no_dist=True)
    ours = st.save(state, storage_writer=writer(tmp_path / "own", **LAYOUTS[layout]), no_dist=True)
    assert contents(tmp_path / "own") == contents(tmp_path / "dcp")
    assert isinstance(ours, dcp.Metadata)
    assert ours == theirs
    assert type(ours) is dcp.Metadata


def test_metadata_can_be_used_before_it_is_looked_at(tmp_path):
    expected = dcp.save(nested_state(), storage_writer=writer(tmp_path / "c"), no_dist=True)
    made = lambda: st.save(nested_state(), storage_writer=writer(tmp_path / "c"), no_dist=True)  # noqa: E731
    assert made().planner_data == expected.planner_data
    assert repr(made()) == repr(expected)
    assert pickle.loads(pickle.dumps(made())) == expected
    assert copy.deepcopy(made()) == expected
    changed = made()
    changed.storage_meta = "new"
    assert changed.state_dict_metadata == expected.state_dict_metadata and changed.storage_meta == "new"


PLACEMENTS = (Shard(0), Shard(1), Replicate())


def sharded_state() -> dict:
    """Two dimensions, uneven, fewer rows than ranks; plain tensors on every rank; a ShardedTensor of two shards."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rank = dist.get_rank()
    state = {f"t{i}": place(numbers(1 + i, 6, start=i), mesh, [PLACEMENTS[i % 3]]) for i in range(9)}
    rows = [LocalShard.from_tensor_and_offsets(numbers(2, 3, start=b), [b, 0], rank) for b in (4 * rank, 4 * rank + 2)]
    learnt = [torch.nn.Parameter(place(numbers(4, 2), mesh, [Shard(0)])) for _ in range(2)]
    state |= {f"learnt{i}": tensor for i, tensor in enumerate(learnt)}
    return state | {"plain": numbers(7), "scalar": torch.tensor(0.5), "rows": init_from_local_shards(rows, 8, 3)}


def save_both_ways(path) -> None:
    state = sharded_state()
    mapping = {name: 1 + i % 2 for i, name in enumerate(state)}
    for layout, options in LAYOUTS.items():
        theirs = dcp.save(state, storage_writer=writer(path / "dcp" / layout, fqn_to_index_mapping=mapping, **options))
        ours = st.save({"x": state}, storage_writer=writer(path / "own" / layout, **options))
        ours = st.save(state, storage_writer=writer(path / "own" / layout, fqn_to_index_mapping=mapping, **options))
        assert ours.planner_data == theirs.planner_data
        for name, tensor in theirs.state_dict_metadata.items():
            mine = ours.state_dict_metadata[name]
            assert (mine.size, mine.properties) == (tensor.size, tensor.properties), name
            assert sorted(mine.chunks, key=lambda c: c.offsets) == sorted(tensor.chunks, key=lambda c: c.offsets), name
        assert ours.state_dict_metadata.keys() == theirs.state_dict_metadata.keys()


def test_ranks_make_what_they_make_with_dcp(tmp_path):
    run(2, save_both_ways, tmp_path)
    for layout in ("full", "consolidated"):
        assert contents(tmp_path / "own" / layout) == contents(tmp_path / "dcp" / layout)
    whole = load_full(tmp_path / "own" / "full")
    assert len(whole) == 14
    assert_same(load(tmp_path / "own" / "sharded", whole), whole)


def save_nothing(path) -> None:
    """The one rank has nothing, then both."""
    st.save({} if dist.get_rank() else {"a": numbers(3)}, storage_writer=writer(path / "one"))
    assert st.save({}, storage_writer=writer(path / "none")).state_dict_metadata == {}


def test_ranks_with_nothing_to_save(tmp_path):
    run(2, save_nothing, tmp_path)
    assert_same(load_full(tmp_path / "one"), {"a": numbers(3)})
    assert load_full(tmp_path / "none") == {}


def save_alone(path, layout: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    state = {"w": place(numbers(7, 3), mesh, [Shard(0)]), f"own.{dist.get_rank()}": numbers(4)}
    for planner in (None, st.DefaultSavePlanner()):
        saved = st.save(
            state, storage_writer=writer(path / "c", **LAYOUTS[layout]), planner=planner, use_collectives=False
        )
        assert len(saved.state_dict_metadata) == 2
    dcp.save(
        state, storage_writer=writer(path / "c", **LAYOUTS[layout]), planner=st.DefaultSavePlanner(),
        use_collectives=False,
    )


def test_ranks_that_plan_alone(tmp_path):
    run(2, save_alone, tmp_path, "sharded")
    state = {"w": numbers(7, 3), "own.0": numbers(4), "own.1": numbers(4)}
    assert_same(load(tmp_path / "c", state), state)


class Counter:
    def __init__(self) -> None:
        self.count = numbers(3)

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict) -> None:
        self.count = state_dict["count"]


def test_calls_state_dict_of_stateful_objects(tmp_path, no_handing_over):
    target = writer("elsewhere")
    st.save({"counter": Counter()}, checkpoint_id=tmp_path / "c", storage_writer=target, no_dist=True)
    assert_same(load_full(tmp_path / "c"), {"counter.count": numbers(3)})
    assert target.report["tensor_bytes"] == 12


@pytest.mark.parametrize(
    "options", [{}, {"flatten_state_dict": False}, {"flatten_sharded_tensors": False}], ids=lambda o: "".join(o)
)
def test_planners_that_are_given(tmp_path, options, no_handing_over):
    for planner in (dcp.DefaultSavePlanner(**options), st.DefaultSavePlanner(**options)):
        state = {"a": numbers(2)} if "flatten_state_dict" in options else {"n": {"a": numbers(2)}}
        metadata = st.save(state, storage_writer=writer(tmp_path / "c"), planner=planner, no_dist=True)
        theirs = dcp.save(state, storage_writer=writer(tmp_path / "c"), planner=type(planner)(**options), no_dist=True)
        assert planner.metadata is metadata
        assert list(planner.state_dict) == list(theirs.state_dict_metadata)
        assert metadata == theirs


class Doubling(dcp.DefaultSavePlanner):
    def transform_object(self, write_item, object):
        return super().transform_object(write_item, object) * 2


def test_hands_over_what_is_not_its_own(tmp_path):
    state = {"a": numbers(4)}
    st.save(state, checkpoint_id=tmp_path / "files", no_dist=True)
    assert (tmp_path / "files" / ".metadata").exists()
    st.save(state, storage_writer=TORCH.writer(str(tmp_path / "hf")), no_dist=True)
    assert_same(load_full(tmp_path / "hf"), state)
    st.save(state, storage_writer=writer(tmp_path / "c"), planner=Doubling(), no_dist=True)
    assert_same(load_full(tmp_path / "c"), {"a": numbers(4) * 2})
    planner = dcp.DefaultSavePlanner()
    planner.resolve_data = lambda item: numbers(4, start=5)
    st.save(state, storage_writer=writer(tmp_path / "c"), planner=planner, no_dist=True)
    assert_same(load_full(tmp_path / "c"), {"a": numbers(4, start=5)})
    with pytest.raises(RuntimeError, match="checkpoint_id"):
        st.save(state, no_dist=True)


def failures(error: BaseException) -> dict[int, str]:
    assert isinstance(error, CheckpointException), repr(error)
    return {rank: f"{type(failure[0]).__name__}: {failure[0]}" for rank, failure in error.failures.items()}


@pytest.mark.parametrize(
    "entries, reason",
    [
        ({"epoch": 7, "name": {"of": "x"}}, "TypeError: .*none: 'epoch', 'name.of'"),
        ({"c": torch.zeros(2, dtype=torch.complex128)}, "TypeError: .*complex128"),
        ({"s": torch.eye(2).to_sparse()}, "TypeError: .*strided.*'s .torch.sparse_coo"),
        ({"m": torch.zeros(2, device="meta")}, "TypeError: .*'m .on the meta device"),
        ({"m": {"a": numbers(2)}, "m.a": numbers(2)}, "ValueError: duplicated flatten key m.a"),
    ],
    ids=["objects", "dtype", "sparse", "meta", "names"],
)
def test_refuses_before_anything_is_written(tmp_path, entries, reason):
    st.save({"a": numbers(2)}, storage_writer=writer(tmp_path / "c"), no_dist=True)
    before = contents(tmp_path / "c")
    with pytest.raises(CheckpointException) as caught:
        st.save({"a": numbers(2)} | entries, storage_writer=writer(tmp_path / "c"), no_dist=True)
    [failure] = failures(caught.value).values()
    assert re.search(reason, failure), failure
    assert contents(tmp_path / "c") == before
    assert os.listdir(tmp_path) == ["c"]


def test_an_unmapped_name(tmp_path):
    with pytest.raises(CheckpointException, match="b"):
        st.save({"a": numbers(2), "b": numbers(2)}, storage_writer=writer(tmp_path / "c", fqn_to_index_mapping={"a": 1}))
    assert os.listdir(tmp_path) == []


def save_another_local_shape(path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    state = {name: place(numbers(4, 3), mesh, [Shard(0)]) for name in "abc"}
    state["b"]._local_tensor = numbers(1, 3)
    st.save(state, storage_writer=writer(path))


def test_a_local_tensor_that_is_not_its_place(tmp_path):
    with pytest.raises(CheckpointException) as raised:
        run(2, save_another_local_shape, tmp_path / "c")
    assert "'b'" in str(raised.value) and "(1, 3)" in str(raised.value)
    assert os.listdir(tmp_path) == []


def fail_in_plan(path) -> None:
    extra = {"object": "x"} if dist.get_rank() == 1 else {}
    st.save({"a": numbers(3)} | extra, storage_writer=writer(path))


def fail_in_write(path) -> None:
    saving = _save.Save({f"a{dist.get_rank()}": numbers(3)}, writer(path))
    saving.plan()
    if dist.get_rank() == 1:
        saving._part = _save._Part("/elsewhere", 1, saving._part.packed, None)
        with pytest.raises(ValueError):
            saving.write()
    saving.finish()


@pytest.mark.parametrize(
    "function, reason",
    [(fail_in_plan, "TypeError"), (fail_in_write, "ValueError: write_data: rank 1 writes to")],
    ids=["plan", "write"],
)
def test_a_rank_that_fails_fails_all(tmp_path, function, reason):
    for error in outcomes(2, function, tmp_path / "c"):
        [(rank, failure)] = failures(error).items()
        assert rank == 1 and failure.startswith(reason)
    assert not (tmp_path / "c").exists()


def save_in_phases(path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    own = numbers(64, 8)
    state = {"w": place(own, mesh, [Shard(0)]), "replica": numbers(5)}
    saving = _save.Save(state, writer(path))
    saving.plan()
    saving.tensors = [tensor.clone() for tensor in saving.tensors]
    for tensor in state.values():
        (tensor.to_local() if hasattr(tensor, "to_local") else tensor).zero_()  # a step of the training
    saving.write()
    saving.finish()


def test_phases_with_copies_between(tmp_path):
    run(2, save_in_phases, tmp_path / "c")
    assert_same(load_full(tmp_path / "c"), {"w": numbers(64, 8), "replica": numbers(5)})
    saving = _save.Save({"a": numbers(3)}, writer(tmp_path / "d"), no_dist=True)
    saving.plan()
    for wrong in ([numbers(4)], [numbers(3).double()], []):
        with pytest.raises(ValueError):
            saving.tensors = wrong
    del saving  # an attempt, which its writer removes
    assert os.listdir(tmp_path) == ["c"]


def test_saved_by_classes_of_both_loads_the_same(tmp_path):
    state = {"a": numbers(9, 3), "b": numbers(4)}
    st.save(state, storage_writer=writer(tmp_path / "c"), no_dist=True)
    for implementation in (SAFERING, TORCH):
        got = load(tmp_path / "c", state, implementation)
        assert [bits(got[name]) for name in state] == [bits(tensor) for tensor in state.values()]
