"""State dicts to save, ways to shard them, and how to compare them bit by bit."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import safering.torch

State = dict[str, torch.Tensor]


class Implementation(NamedTuple):
    """Which classes a test runs on."""

    writer: type
    reader: type


TORCH = Implementation(dcp.HuggingFaceStorageWriter, dcp.HuggingFaceStorageReader)
SAFERING = Implementation(safering.torch.HuggingFaceStorageWriter, safering.torch.HuggingFaceStorageReader)

#: Constructor arguments of each of the layouts.
LAYOUTS = {
    "full": {},
    "sharded": {"save_distributed": True},
    "consolidated": {"save_distributed": True, "enable_consolidation": True},
}


def random_bits(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Every bit random, NaNs and all; only bools are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    item = dtype.itemsize
    data = torch.randint(0, 256, (torch.Size(shape).numel() * item,), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        data &= 1
    return data.view(dtype).reshape(tuple(shape))


def zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """torch.zeros, for the dtypes too that cannot be filled."""
    return torch.zeros(torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def numbers(*shape: int, start: float = 0.0) -> torch.Tensor:
    """start, start + 1, ...: no two elements alike."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + start


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def assert_same(got: State, expected: State) -> None:
    assert sorted(got) == sorted(expected)
    for name, tensor in expected.items():
        assert (got[name].dtype, tuple(got[name].shape)) == (tensor.dtype, tuple(tensor.shape)), name
        assert bits(got[name]) == bits(tensor), f"{name} differs"


def place(full: torch.Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """This rank's part of `full`, without communication."""
    shape, offset = compute_local_shape_and_global_offset(full.shape, mesh, placements)
    local = full[tuple(slice(o, o + s) for o, s in zip(offset, shape))]
    return DTensor.from_local(
        local.clone(), mesh, placements, run_check=False, shape=full.shape, stride=full.contiguous().stride()
    )


def save(path, state: dict, implementation: Implementation = SAFERING, **options) -> None:
    """By this process alone."""
    dcp.save(state, storage_writer=implementation.writer(str(path), **options), no_dist=True)


def load(path, like: State, implementation: Implementation = SAFERING) -> State:
    """The tensors of `like`, loaded over zeros by this process alone."""
    state = {name: zeros(tensor.shape, tensor.dtype) for name, tensor in like.items()}
    dcp.load(state, storage_reader=implementation.reader(str(path)), no_dist=True)
    return state


def load_keys(path, keys: set[str], implementation: Implementation = SAFERING) -> State:
    """Without knowing shapes."""
    return _load_state_dict_from_keys(keys, storage_reader=implementation.reader(str(path)))


def files_in(path) -> list[str]:
    return sorted(file.name for file in pathlib.Path(path).glob("*.safetensors"))


def load_full(path) -> State:
    """Every tensor of every final file, read by safetensors."""
    state: State = {}
    for file in pathlib.Path(path).glob("*.safetensors"):
        part = safetensors.torch.load_file(file)
        assert not state.keys() & part.keys(), f"{file} repeats {state.keys() & part.keys()}"
        state |= part
    return state
