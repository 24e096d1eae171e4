"""What a rank has of a state dict, for save(): one look at each tensor, and columns for native code."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint._sharded_tensor_utils import _flatten_sharded_tensors
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import TensorProperties
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.distributed.tensor import DTensor

from .. import _native
from ._dtypes import CODES, F4, stored_shape

PLAIN = (torch.Tensor, torch.nn.Parameter)
_TENSORS = frozenset((*PLAIN, DTensor))

#: Of a tensor that is a whole one.
_WHOLE = (None, None)


class _Box(NamedTuple):
    """A part of a global tensor of `size`: where it begins, and the shape of the local tensor that it is."""

    offsets: torch.Size
    size: torch.Size
    local: torch.Size


def is_stateful(value: Any) -> bool:
    """To ask a tensor takes 12 us: Stateful is a protocol, and its methods are looked for in every class."""
    return type(value) not in _TENSORS and isinstance(value, Stateful)


def flatten(state_dict: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple]]:
    """`state_dict` by DCP's names, and the path to an entry in it where that is not just (name,). As DCP's
    flatten_state_dict, which finds both for every entry.

    Raises ValueError where two entries come to one name.
    """
    flat: dict[str, Any] = {}
    paths: dict[str, tuple] = {}

    def add(name: str, path: tuple, value: Any) -> None:
        if name in flat:
            raise ValueError(f"duplicated flatten key {name}")
        flat[name] = value
        if len(path) > 1:
            paths[name] = path

    def walk(entries: Mapping[Any, Any], prefix: str, path: tuple) -> None:
        for key, value in entries.items():
            key = str(key)
            name = prefix + key
            if type(value) in _TENSORS:
                add(name, (*path, key), value)
            elif isinstance(value, Mapping):
                walk(value, f"{name}.", (*path, key))
            elif isinstance(value, list):
                inner, mappings = flatten_state_dict({key: value})
                for inner_name, inner_path in mappings.items():
                    add(prefix + inner_name, path + inner_path, inner[inner_name])
            else:
                add(name, (*path, key), value)

    walk(state_dict, "", ())
    return flat, paths


class LocalState:
    """This rank's part of a state dict, by column, in the order of the dict: what DefaultSavePlanner would make
    WriteItems of. Of many tensors, best made under no_collection.

    Args:
        state_dict: nested, of tensors, DTensors and ShardedTensors.
        flatten_state_dict, flatten_sharded_tensors: as DefaultSavePlanner has them.

    Raises:
        ValueError: two entries of one name.
        TypeError: entries that safetensors cannot hold.
    """

    def __init__(
        self, state_dict: Mapping[str, Any], flatten_state_dict: bool = True, flatten_sharded_tensors: bool = True
    ) -> None:
        #: Entry by name, and paths as flatten() gives them.
        self.entries: dict[str, Any] = {}
        self.paths: dict[str, tuple] = {}
        self.names: list[str] = []
        #: Local tensors, any strides, any device.
        self.tensors: list[torch.Tensor] = []
        #: Offsets in the global tensor and its size; twice None: the tensor is whole.
        self.offsets: list[torch.Size | None] = []
        self.sizes: list[torch.Size | None] = []
        #: Positions in `properties`.
        self.kinds = array("H")
        self.properties: list[TensorProperties] = []
        self._look(state_dict, flatten_state_dict, flatten_sharded_tensors)
        codes = [CODES.get(tensor.dtype, -1) for tensor in self.tensors]
        refuse(
            self._objects,
            [f"{self.names[i]} ({self.tensors[i].dtype})" for i, code in enumerate(codes) if code < 0],
            [
                f"{name} ({'on the meta device' if tensor.is_meta else tensor.layout})"
                for name, tensor in zip(self.names, self.tensors)
                if tensor.is_meta or tensor.layout is not torch.strided
            ],
        )
        #: Numbers of the format's dtypes.
        self.codes: list[int] = codes

    def plan(self, rank: int) -> _native.SavePlan:
        offsets, shapes = self.offsets, self.sizes
        sizes = [tensor.shape for tensor in self.tensors]
        if F4 in self.codes:
            offsets, shapes, sizes = (
                [shape if shape is None else stored_shape(shape, code) for shape, code in zip(column, self.codes)]
                for column in (offsets, shapes, sizes)
            )
        return _native.SavePlan(rank, self.names, self.codes, offsets, sizes, shapes)

    def keep(self, positions: list[int]) -> None:
        """Only the tensors at these positions from now on."""
        self.tensors = [self.tensors[i] for i in positions]
        self.codes = [self.codes[i] for i in positions]

    def _look(self, state_dict: Mapping[str, Any], flat: bool, flat_shards: bool) -> None:
        entries: Mapping[str, Any] = state_dict
        if flat:
            entries, self.paths = flatten(state_dict)
        if flat_shards and any(isinstance(value, ShardedTensor) for value in entries.values()):
            entries = _flatten_sharded_tensors(entries)
        self.entries = entries
        self._objects: list[str] = []
        self._known: dict[tuple, int] = {}
        self._pins = torch.accelerator.is_available()
        # Of DTensors: many have the same shape, mesh and placements, and so the same box.
        boxes: dict[tuple, _Box | None] = {}
        for name, value in entries.items():
            if type(value) in PLAIN:
                self._add(name, value, _WHOLE, value.requires_grad)
            elif type(value) is DTensor and type(value._local_tensor) in PLAIN:
                spec = value._spec
                key = (id(spec.mesh), spec.placements, spec.tensor_meta.shape)
                box = boxes.get(key)
                if box is not None and box.local == value._local_tensor.shape:
                    self._add(name, value._local_tensor, (box.offsets, box.size), value.requires_grad)
                else:
                    boxes[key] = self._add_items(name, value)
            else:
                self._add_items(name, value)

    def _add(self, name: str, tensor: torch.Tensor, box: tuple, requires_grad: bool) -> None:
        self.names.append(name)
        self.tensors.append(tensor)
        self.offsets.append(box[0])
        self.sizes.append(box[1])
        key = (tensor.dtype, tensor.layout, requires_grad, self._pins and tensor.is_pinned())
        kind = self._known.get(key)
        if kind is None:
            kind = self._known[key] = len(self.properties)
            properties = TensorProperties.create_from_tensor(tensor)
            self.properties.append(dataclasses.replace(properties, requires_grad=requires_grad))
        self.kinds.append(kind)

    def _add_items(self, name: str, value: Any) -> _Box | None:
        """By DCP's planner. The box, where there is exactly one."""
        items = create_default_local_save_plan({name: value}, True).items
        for item in items:
            if item.type is WriteItemType.BYTE_IO:
                self._objects.append(name)
                continue
            data = item.tensor_data
            tensor = find_state_dict_object({name: value}, item.index)
            if tensor.shape != data.chunk.sizes:
                raise ValueError(
                    f"{name!r}: the local tensor is {tuple(tensor.shape)}, its place {tuple(data.chunk.sizes)}"
                )
            self._add(name, tensor, (data.chunk.offsets, data.size), tensor.requires_grad)
        if len(items) != 1 or items[0].type is WriteItemType.BYTE_IO:
            return None
        data = items[0].tensor_data
        return _Box(data.chunk.offsets, data.size, data.chunk.sizes)


def refuse(objects: list[str], dtypes: list[str], forms: list[str]) -> None:
    """TypeError that names entries which are no tensors, of no dtype that the format has, or not in strided memory."""
    if objects:
        raise TypeError(
            f"safetensors holds tensors only, and these entries of the state dict are none: {listed(objects)}. "
            "Leave them out, or save them as tensors"
        )
    if dtypes:
        raise TypeError(f"safetensors has no such dtype: {listed(dtypes)}. Convert them before saving")
    if forms:
        raise TypeError(
            f"safetensors holds strided tensors only, and these have no such data: {listed(forms)}. Save what "
            "to_dense() makes of them, or leave them out"
        )


def listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
