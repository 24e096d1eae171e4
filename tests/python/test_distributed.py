"""What ranks save in one layout and sharding is what ranks load in another, bit by bit."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import ShardedTensor, init_from_local_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh

from ranks import run
from safering.torch._dtypes import DTYPES
from states import (
    LAYOUTS,
    SAFERING,
    TORCH,
    Implementation,
    State,
    assert_same,
    bits,
    files_in,
    load,
    load_full,
    numbers,
    place,
    random_bits,
    save,
    zeros,
)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and how every tensor of two dimensions or more lies on it."""

    mesh: tuple[int, ...]
    placements: tuple

    @property
    def world(self) -> int:
        return torch.Size(self.mesh).numel()

    def __str__(self) -> str:
        return "x".join(map(str, self.mesh)) + "".join(str(one) for one in self.placements)


#: Sizes that no number of ranks divides, one with fewer rows than ranks, one without elements.
SHAPES = {"w": (13, 7, 6), "few": (3, 5, 2), "one": (1, 1, 1), "none": (0, 4, 3), "large": (37, 41, 29)}


def whole_state() -> State:
    state = {name: random_bits(shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    state |= {"vector": random_bits((11,), torch.bfloat16), "scalar": torch.tensor(0.25), "step": torch.tensor(7)}
    return state


def placed(full: State, sharding: Sharding) -> dict:
    """Of the vector and the scalars every rank has the whole."""
    mesh = init_device_mesh("cpu", sharding.mesh)
    return {
        name: place(tensor, mesh, sharding.placements) if tensor.dim() >= 2 else tensor for name, tensor in full.items()
    }


def local_bits(tensor: torch.Tensor) -> bytes:
    return bits(tensor.to_local() if isinstance(tensor, DTensor) else tensor)


def save_all(classes: Implementation, path, full: State, sharding: Sharding, layouts: list[str], mapping=None) -> None:
    state = placed(full, sharding)
    for layout in layouts:
        dcp.save(state, storage_writer=classes.writer(str(path / layout), mapping, **LAYOUTS[layout]))


def load_all(classes: Implementation, path, full: State, sharding: Sharding, layouts: list[str]) -> None:
    """Every rank's part must be as if it had been cut out of the whole."""
    expected = placed(full, sharding)
    for layout in layouts:
        state = placed({name: zeros(tensor.shape, tensor.dtype) for name, tensor in full.items()}, sharding)
        dcp.load(state, storage_reader=classes.reader(str(path / layout)))
        for name, tensor in expected.items():
            assert local_bits(state[name]) == local_bits(tensor), f"{layout}: {name}"


SHARDINGS = [
    (Sharding((2,), (Shard(0),)), Sharding((4,), (Shard(1),))),
    (Sharding((2,), (Shard(2),)), Sharding((1,), (Shard(0),))),
    (Sharding((2,), (Replicate(),)), Sharding((2,), (Shard(2),))),
    (Sharding((4,), (Shard(0),)), Sharding((2,), (Replicate(),))),
    (Sharding((4,), (Shard(1),)), Sharding((2, 2), (Shard(0), Replicate()))),
    (Sharding((2, 2), (Shard(0), Shard(1))), Sharding((4,), (Shard(0),))),
    (Sharding((2, 2), (Shard(2), Replicate())), Sharding((2, 2), (Shard(1), Shard(2)))),
    (Sharding((2, 2), (Shard(0), Shard(0))), Sharding((2,), (Shard(1),))),
]


@pytest.mark.parametrize("saved, loaded", SHARDINGS, ids=lambda sharding: str(sharding))
def test_any_sharding_loads_as_any_other(tmp_path, saved, loaded):
    full, layouts = whole_state(), list(LAYOUTS)
    mapping = {name: 1 + i % 2 for i, name in enumerate(full)}
    run(saved.world, save_all, SAFERING, tmp_path, full, saved, layouts, mapping)
    run(loaded.world, load_all, SAFERING, tmp_path, full, loaded, layouts)
    for layout in layouts:
        assert_same(load(tmp_path / layout, full), full)
        # torch's reader works on ours too.
        assert_same(load(tmp_path / layout, full, TORCH), full)
    for layout in ("full", "consolidated"):
        assert_same(load_full(tmp_path / layout), full)
        assert len(files_in(tmp_path / layout)) == 2


@pytest.mark.parametrize("saved, loaded", SHARDINGS[::3], ids=lambda sharding: str(sharding))
def test_shards_that_torch_wrote(tmp_path, saved, loaded):
    full = whole_state()
    run(saved.world, save_all, TORCH, tmp_path, full, saved, ["sharded"])
    run(loaded.world, load_all, SAFERING, tmp_path, full, loaded, ["sharded"])
    assert_same(load(tmp_path / "sharded", full), full)


def test_full_files_that_torch_wrote(tmp_path):
    full = whole_state()
    save(tmp_path / "full", full, TORCH, fqn_to_index_mapping={name: 1 + i % 3 for i, name in enumerate(full)})
    run(2, load_all, SAFERING, tmp_path, full, Sharding((2,), (Shard(1),)), ["full"])


@pytest.mark.parametrize("form", ["one", "indexed", "file"])
def test_plain_directories(tmp_path, form):
    full = whole_state()
    names = list(full)
    path = tmp_path
    if form == "indexed":
        parts = {"model-00001-of-00002.safetensors": names[:3], "model-00002-of-00002.safetensors": names[3:]}
        for file, part in parts.items():
            safetensors.torch.save_file({name: full[name] for name in part}, tmp_path / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        safetensors.torch.save_file(full, tmp_path / "model.safetensors")
    if form == "file":
        path = tmp_path / "model.safetensors"
    assert_same(load(path, full), full)


# dtypes


def dtype_state() -> State:
    return {
        f"{str(dtype).removeprefix('torch.')}.{'x'.join(map(str, shape)) or 'scalar'}": random_bits(shape, dtype, seed)
        for seed, dtype in enumerate(DTYPES.values())
        for shape in ((9, 6), (5,), (0, 2), ())
        # A scalar of two elements is none.
        if shape or dtype != torch.float4_e2m1fn_x2
    }


@pytest.mark.parametrize("world", [2, 4])
def test_every_dtype(tmp_path, world):
    full, layouts = dtype_state(), list(LAYOUTS)
    assert len({tensor.dtype for tensor in full.values()}) == len(DTYPES) == 20
    run(world, save_all, SAFERING, tmp_path, full, Sharding((world,), (Shard(0),)), layouts)
    run(2, load_all, SAFERING, tmp_path, full, Sharding((2,), (Shard(1),)), layouts)
    for layout in layouts:
        assert_same(load(tmp_path / layout, full), full)
    # safetensors itself counts a float4's shape in elements.
    other = {name: tensor for name, tensor in full.items() if tensor.dtype != torch.float4_e2m1fn_x2}
    whole = load_full(tmp_path / "consolidated")
    assert_same({name: whole[name] for name in other}, other)


def test_every_dtype_in_the_background(tmp_path):
    state = dtype_state()
    state |= {"strided": numbers(9, 8)[::2, 1::3], "conjugate": random_bits((4,), torch.complex64).conj()}
    expected = {name: tensor.resolve_conj().contiguous().clone() for name, tensor in state.items()}
    for step in range(2):
        future = dcp.async_save(dict(state), storage_writer=SAFERING.writer(str(tmp_path / f"{step}")))
        for tensor in state.values():
            tensor = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
            tensor.copy_(torch.ones(()))
        future.result()
        assert_same(load(tmp_path / f"{step}", expected), expected)
        expected = {name: tensor.resolve_conj().contiguous().clone() for name, tensor in state.items()}


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32], ids=str)
def test_dtype_that_the_format_lacks(tmp_path, dtype):
    with pytest.raises(CheckpointException) as caught:
        save(tmp_path / "c", {"fine": numbers(3), "odd": torch.zeros(3, dtype=dtype)})
    assert "TypeError" in str(caught.value) and "odd" in str(caught.value) and str(dtype) in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_loading_into_another_dtype(tmp_path):
    state = {"w": numbers(6, 5), "i": torch.arange(4)}
    save(tmp_path, state)
    loaded = {"w": torch.zeros(6, 5, dtype=torch.float64), "i": torch.zeros(4, dtype=torch.float16)}
    dcp.load(loaded, storage_reader=SAFERING.reader(str(tmp_path)))
    assert_same(loaded, {"w": state["w"].double(), "i": state["i"].half()})


# Memory


def test_tensors_that_are_not_contiguous(tmp_path):
    base = numbers(12, 10, 6)
    state = {
        "transposed": base.transpose(0, 2),
        "strided": base[::3, 1::2, ::2],
        "expanded": numbers(1, 5).expand(4, 5),
        "channels_last": numbers(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "tail": base.reshape(-1)[1:],
        "negative": torch._neg_view(numbers(3, 4)),
        "conjugate": random_bits((3, 4), torch.complex64).conj(),
        "parameter": torch.nn.Parameter(numbers(3, 2)),
    }
    expected = {name: tensor.detach().resolve_conj().resolve_neg().contiguous() for name, tensor in state.items()}
    save(tmp_path, state)
    assert_same(load_full(tmp_path), expected)
    loaded = {
        "transposed": torch.zeros(12, 10, 6).transpose(0, 2),
        "strided": torch.zeros(12, 10, 6)[::3, 1::2, ::2],
        "channels_last": torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "tail": torch.zeros(721)[2:],
        "negative": torch._neg_view(torch.zeros(3, 4)),
        "conjugate": torch.zeros(3, 4, dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.zeros(3, 2)),
    }
    loaded["tail"] = loaded["tail"][: expected["tail"].numel()]
    dcp.load(loaded, storage_reader=SAFERING.reader(str(tmp_path)))
    for name, tensor in loaded.items():
        assert bits(tensor) == bits(expected[name]), name


def test_loading_touches_nothing_around_its_target(tmp_path):
    save(tmp_path, {"w": numbers(4, 3)})
    around = torch.full((8, 7), -1.0)
    dcp.load({"w": around[2:6, 3:6]}, storage_reader=SAFERING.reader(str(tmp_path)))
    assert torch.equal(around[2:6, 3:6], numbers(4, 3))
    assert (around == -1).sum() == 8 * 7 - 4 * 3 + 0


def test_tied_tensors(tmp_path):
    shared = numbers(6, 4)
    state = {"embed": shared, "head": shared, "rows": shared[2:4]}
    save(tmp_path, state)
    assert_same(load_full(tmp_path), state)
    target = torch.zeros(6, 4)
    loaded = {"embed": target, "head": target, "rows": target[2:4]}
    dcp.load(loaded, storage_reader=SAFERING.reader(str(tmp_path)))
    assert_same(loaded, state)


def test_empty_state(tmp_path):
    save(tmp_path / "c", {})
    assert load(tmp_path / "c", {}) == {}


def save_some(path, options: dict) -> None:
    """Only the last rank has anything."""
    last = dist.get_rank() == dist.get_world_size() - 1
    dcp.save({"w": numbers(5)} if last else {}, storage_writer=SAFERING.writer(str(path), **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_without_items(tmp_path, layout):
    run(4, save_some, tmp_path / "c", LAYOUTS[layout])
    assert_same(load(tmp_path / "c", {"w": numbers(5)}), {"w": numbers(5)})


# ShardedTensor


def cut(rows: int, parts: int) -> list[tuple[int, int]]:
    """(begin, end) of parts that are not alike."""
    edges = [rows * i * (i + 1) // (parts * (parts + 1)) for i in range(parts + 1)]
    return list(zip(edges, edges[1:]))


def sharded(full: torch.Tensor, parts: int) -> ShardedTensor:
    """Of `parts` blocks of rows and columns every rank has each world-th."""
    rank, world = dist.get_rank(), dist.get_world_size()
    half = full.shape[1] // 2
    boxes = [(b, e, c, d) for b, e in cut(full.shape[0], parts) for c, d in ((0, half), (half, full.shape[1]))]
    mine = [
        LocalShard.from_tensor_and_offsets(full[b:e, c:d].clone(), [b, c], rank) for b, e, c, d in boxes[rank::world]
    ]
    return init_from_local_shards(mine, tuple(full.shape))


def save_sharded_tensors(path, full: torch.Tensor, parts: int, layouts: list[str]) -> None:
    for layout in layouts:
        dcp.save({"w": sharded(full, parts)}, storage_writer=SAFERING.writer(str(path / layout), **LAYOUTS[layout]))


def load_sharded_tensors(path, full: torch.Tensor, parts: int, layouts: list[str]) -> None:
    expected = sharded(full, parts)
    for layout in layouts:
        state = {"w": sharded(torch.zeros_like(full), parts)}
        dcp.load(state, storage_reader=SAFERING.reader(str(path / layout)))
        shards = list(zip(state["w"].local_shards(), expected.local_shards(), strict=True))
        assert shards and all(torch.equal(got.tensor, wanted.tensor) for got, wanted in shards)


@pytest.mark.parametrize("world", [2, 4])
def test_several_local_shards(tmp_path, world):
    full, layouts = numbers(50, 9), list(LAYOUTS)
    run(world, save_sharded_tensors, tmp_path, full, 5, layouts)
    run(2, load_sharded_tensors, tmp_path, full, 3, layouts)
    for layout in layouts:
        assert_same(load(tmp_path / layout, {"w": full}), {"w": full})
    assert_same(load_full(tmp_path / "consolidated"), {"w": full})
    assert pathlib.Path(tmp_path / "sharded").is_dir()


# Sizes


@pytest.mark.parametrize("backend", ["automatic", "threads"])
def test_more_than_the_buffers_hold(tmp_path, backend):
    state = {"large": random_bits((5_000_003,)), "rows": random_bits((3001, 777))}
    save(tmp_path, state, backend=backend, buffer_memory=1 << 20)
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    reader = SAFERING.reader(str(tmp_path), backend=backend, buffer_memory=1 << 20, verification="all")
    dcp.load(loaded, storage_reader=reader)
    assert_same(loaded, state)


def test_many_names(tmp_path):
    state = {f"layers.{i}.weight": torch.full((i % 5,), float(i)) for i in range(3000)}
    state |= {"": torch.ones(1), "ünï/../\x00": torch.ones(2), "x" * 4000: torch.ones(3)}
    save(tmp_path, state, fqn_to_index_mapping={name: 1 + i % 7 for i, name in enumerate(state)})
    assert_same(load(tmp_path, state), state)
    assert_same(load_full(tmp_path), state)
