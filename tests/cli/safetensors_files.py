"""Writes and reads safetensors files with nothing but the standard library, independent of safering."""

import json
import math
import struct

WIDTHS = {"U8": 1, "I8": 1, "BOOL": 1, "BF16": 2, "F16": 2, "F32": 4, "I64": 8, "F64": 8}


class Tensor:
    def __init__(self, dtype, shape, data=None):
        self.dtype, self.shape = dtype, list(shape)
        size = math.prod(shape) * WIDTHS[dtype]
        # Bytes that differ from place to place, so that a mix-up shows.
        self.data = bytes((7 * i + i // 251 + len(shape)) % 256 for i in range(size)) if data is None else data
        assert len(self.data) == size

    def __eq__(self, other):
        return (self.dtype, self.shape, self.data) == (other.dtype, other.shape, other.data)

    def slice(self, dimension, begin, end):
        """The box [begin, end) along one dimension."""
        outer = math.prod(self.shape[:dimension])
        inner = math.prod(self.shape[dimension + 1:]) * WIDTHS[self.dtype]
        row = self.shape[dimension] * inner
        data = b"".join(self.data[i * row + begin * inner:i * row + end * inner] for i in range(outer))
        shape = self.shape[:dimension] + [end - begin] + self.shape[dimension + 1:]
        return Tensor(self.dtype, shape, data)


def write_file(path, tensors, metadata=None):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape,
                        "data_offsets": [len(data), len(data) + len(tensor.data)]}
        data += tensor.data
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path, header, data):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def read_file(path):
    """{name: Tensor}"""
    content = path.read_bytes()
    length, = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length:]
    return {name: Tensor(entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def read_directory(directory):
    """{name: Tensor} by the index, as Hugging Face clients read."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = {name: read_file(directory / name) for name in set(index["weight_map"].values())}
    return {name: files[file][name] for name, file in index["weight_map"].items()}


def write_indexed(directory, files):
    """A Hugging Face directory: {file name: {name: Tensor}}."""
    directory.mkdir()
    for name, tensors in files.items():
        write_file(directory / name, tensors, {"format": "pt"})
    total = sum(len(tensor.data) for tensors in files.values() for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(json.dumps({
        "metadata": {"total_size": total},
        "weight_map": {tensor: file for file, tensors in files.items() for tensor in tensors},
    }))


def write_sharded(directory, tensors, dimension, ranks):
    """What torch.distributed.checkpoint's own writer leaves: a file a rank, each with DCP_SHARDING_INFO."""
    directory.mkdir()
    for rank in range(ranks):
        parts, offsets = {}, {}
        for name, tensor in tensors.items():
            if dimension >= len(tensor.shape) or tensor.shape[dimension] == 0:
                if rank == 0:
                    parts[name], offsets[name] = tensor, [0] * len(tensor.shape)
                continue
            each = -(-tensor.shape[dimension] // ranks)
            begin, end = (min(tensor.shape[dimension], each * r) for r in (rank, rank + 1))
            if begin < end:
                parts[name] = tensor.slice(dimension, begin, end)
                offsets[name] = [begin if d == dimension else 0 for d in range(len(tensor.shape))]
        info = {name: {"saved_offsets": place} for name, place in offsets.items()}
        write_file(directory / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors", parts,
                   {"DCP_SHARDING_INFO": json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"})
