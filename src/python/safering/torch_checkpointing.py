"""Storage for PyTorch's `torch_checkpointing` (0.1.1): its checkpoints, written and read by safering's I/O.

    from safering.torch_checkpointing import SaferingStorageConfig

    manager = CheckpointManager(CheckpointManager.Config(storage_config=SaferingStorageConfig()))

The format stays that package's own. What is different is that each of its steps holds when it returns: a file that is
closed is whole, durable, and only then has its name; a directory that is renamed keeps its new name in a power cut; and
nothing that fails is passed over. Files go past the page cache, in a bounded amount of memory: four buffers of 4 MiB a
file that is being written.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig
from typing_extensions import Buffer

from . import _native, _runtime
from ._paths import make_directories, sync_directory

_logger = logging.getLogger("safering")
# What torch.save adds to the bytes of tensors, at least.
_SERIALISED_BYTES = 64 << 10


class WriteStream(io.RawIOBase):
    """A new file. It gets its name, over an older file if there is one, when it is closed, and is durable then. If the
    `with` block raises, if anything fails, or if the stream is dropped without `close()`, nothing of it stays.

    What fails in the background is raised by a later `write`, by `close` at the latest; `OSError`, most of them."""

    def __init__(self, path: str | os.PathLike[str], backend: str = "automatic", expected_bytes: int = 0) -> None:
        self._file: _native.FileWriter | None = None
        self._file = _native.FileWriter(os.fsencode(path), _runtime.reactor(backend, path=path), expected_bytes)

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        """All of `data`, which is copied."""
        if self._file is None:
            raise ValueError("write to a closed file")
        return self._file.write(data)

    def tell(self) -> int:
        if self._file is None:
            raise ValueError("tell of a closed file")
        return self._file.size()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            super().close()
            for note in file.commit():
                _logger.warning("%s", note)

    def abandon(self) -> None:
        """Ends it without a file."""
        file, self._file = self._file, None
        if file is not None:
            super().close()
            file.abandon()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        # IOBase would close it, and so make a file of what may be half of one. The native writer leaves none.
        self._file = None


class ReadStream(io.RawIOBase):
    """A file as it is when it is opened. Large reads go past the page cache, straight into the caller's memory where it
    lies as the file does, many blocks at a time."""

    def __init__(self, path: str | os.PathLike[str], backend: str = "automatic") -> None:
        self._file = _native.FileReader(os.fsencode(path), _runtime.reactor(backend, path=path))
        self._position = 0
        self.size = self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check()
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if start is None:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        self._check()
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fills it, unless the file ends before."""
        self._check()
        count = self._file.read_into(buffer, self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        data = self._file.read(self._position, self.size if size is None or size < 0 else size)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


@dataclass
class SaferingStorageConfig(StorageConfig):
    """`backend`: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads"."""

    backend: str = "automatic"

    def create_storage(self) -> SaferingStorage:
        return SaferingStorage(self)


class SaferingStorage(Storage):
    """Files of this machine, or of a file system that it shares with others. What returns is durable."""

    def __init__(self, config: SaferingStorageConfig | None = None) -> None:
        self._backend = (config or SaferingStorageConfig()).backend
        _runtime.reactor(self._backend)  # a backend that is refused is told here

    @property
    def mmap_fill_workers(self) -> int | None:
        return 1  # one read keeps the disk busy

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> ReadStream:
        """Of the arguments `known_size_bytes` counts; nothing is read ahead of its use."""
        stream = ReadStream(path, self._backend)
        known = None if read_args is None else read_args.known_size_bytes
        if known is not None and known != stream.size:
            raise OSError(errno.EIO, f"expected {known} bytes, found {stream.size}", os.fspath(path))
        return stream

    def stream_write(self, path: Path) -> WriteStream:
        return WriteStream(path, self._backend)

    def get_write_stream(self, path: Path, data: object) -> WriteStream:
        """Allocates what the tensors in `data` need, so that a full disk shows before the first byte."""
        return WriteStream(path, self._backend, _tensor_bytes(data))

    def write(self, path: Path, data: Buffer) -> None:
        with WriteStream(path, self._backend, memoryview(data).nbytes) as stream:
            stream.write(data)

    def delete(self, path: Path) -> None:
        os.remove(path)
        sync_directory(_parent(path))

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        if recursive:
            make_directories(os.path.abspath(path))
            os.listdir(path)  # a file of that name is an error
        else:
            os.mkdir(path)
            sync_directory(_parent(path))

    def rmdir(self, path: Path) -> None:
        """With all that is in it; at once, so that no half of a checkpoint is found under its name."""
        parent, name = os.path.split(os.path.abspath(path))
        if os.path.islink(path) or not os.path.isdir(path):
            os.rmdir(path)  # raises what is wrong
        os.rename(path, os.path.join(parent, f".{name}.{uuid.uuid4().hex}.rmdir"))
        sync_directory(parent)
        # And what a kill left of earlier ones.
        hidden = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{32}\.rmdir")
        for entry in os.listdir(parent):
            if hidden.fullmatch(entry):
                shutil.rmtree(os.path.join(parent, entry))

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Atomic, and durable when it returns. A directory comes in no other's place, but an empty one's."""
        if os.path.isdir(src_path):
            _rename(os.rename, src_path, dst_path)
        else:
            _rename(os.replace, src_path, dst_path)
        for parent in dict.fromkeys((_parent(src_path), _parent(dst_path))):
            sync_directory(parent)

    def ls(self, path: Path) -> list[str]:
        return os.listdir(path)

    def exists(self, path: Path) -> bool:
        return os.path.exists(path)

    def getsize(self, path: Path) -> int:
        return os.path.getsize(path)

    def isdir(self, path: Path) -> bool:
        return os.path.isdir(path)

    def remap_path(self, path: Path) -> str:
        return os.fspath(path)


def _parent(path: str | os.PathLike[str]) -> str:
    return os.path.dirname(os.path.abspath(path))


_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


def _rename(rename: Callable[[Any, Any], None], source: Path, target: Path) -> None:
    try:
        rename(source, target)
    except OSError as error:
        if error.errno in _OCCUPIED:
            raise FileExistsError(
                error.errno, f"rename {source}: {target} is there already; remove it first if it is to be replaced"
            ) from error
        if error.errno == errno.EXDEV:
            raise OSError(
                error.errno, f"rename {source} to {target}: they are on different file systems, and a copy is not atomic"
            ) from error
        raise


def _tensor_bytes(data: object) -> int:
    """Bytes of a file that torch.save makes of `data`, at least: those of the storages that it stores."""
    storages: dict[int, int] = {}
    for tensor in _tensors(data):
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
    total = sum(storages.values())
    return total + _SERIALISED_BYTES if total else 0


def _tensors(data: object) -> Iterator[torch.Tensor]:
    if isinstance(data, DTensor):
        yield from _tensors(data._local_tensor)
    elif type(data) in (torch.Tensor, torch.nn.Parameter):
        if data.layout == torch.strided:
            yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _tensors(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _tensors(value)
