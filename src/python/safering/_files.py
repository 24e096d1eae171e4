"""One safetensors file, opened: `safe_open`, for any framework.

A framework comes in as an `Arrays` object; this module knows neither torch nor numpy.
"""

from __future__ import annotations

import errno
import math
import numbers
import os
import stat
from collections.abc import Sequence
from types import EllipsisType, TracebackType
from typing import Any, Protocol

from . import _native, _runtime
from ._errors import Error

# What is read at a time where a step skips part of it, bytes.
_WINDOW_BYTES = 256 << 20
# A gap that is cheaper to read than to skip, bytes; as native code has it.
_GAP_BYTES = 128 << 10

_F4 = _native.dtype_names.index("F4")
# What safetensors calls its own ways to read.
_BACKENDS = {"mmap": "automatic", "pread": "automatic"}


class Arrays(Protocol):
    """A framework's arrays in host memory. Shapes are the framework's (see `shape`); str() names it."""

    #: Bytes to read before `finish` is called, where it copies; None where it does not.
    window_bytes: int | None

    def shape(self, stored: Sequence[int], code: int) -> tuple[int, ...] | None:
        """What the framework makes of a stored shape; None where it has no such dtype."""

    def stored(self, numbers: Sequence[int], code: int) -> Sequence[int]:
        """Offsets or a shape of the framework, in elements of the format."""

    def itemsize(self, code: int) -> int:
        """Bytes of an element of the framework."""

    def empty(self, shape: Sequence[int], code: int) -> Any:
        """Contiguous memory that can be indexed and assigned to, of any dtype of the right size."""

    def address(self, array: Any) -> int: ...

    def strides(self, array: Any) -> Sequence[int]:
        """In elements."""

    def finish(self, arrays: list[Any], codes: list[int]) -> list[Any]:
        """What callers get, of the right dtype, on the right device; the data have arrived there."""

    def check(self, shape: Sequence[int], index: Any) -> None:
        """Raises what the framework raises where an array of that shape cannot be indexed so."""


class OpenFile:
    """A file's table of tensors, and its bytes on demand. Any thread may read, several at a time."""

    def __init__(self, filename: str | os.PathLike[str], backend: str) -> None:
        self.path = os.path.abspath(os.fspath(filename))
        self._backend = _BACKENDS.get(backend, backend)
        self._open()
        #: name -> (number of the dtype, stored shape), in the order of the file.
        self.tensors: dict[str, tuple[int, tuple[int, ...]]] = {
            name: (code, shape) for name, code, shape in self._native.tensors()
        }
        self.metadata: dict[str, str] = self._native.metadata()

    def _open(self) -> None:
        status = os.stat(self.path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "expected one safetensors file, found a directory", self.path)
        self._native = _native.StoredFile(os.fsencode(self.path), _runtime.reactor(self._backend, path=self.path))
        self._status = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        self._process = os.getpid()

    def entry(self, name: str) -> tuple[int, tuple[int, ...]]:
        if name not in self.tensors:
            raise self.error("no such tensor", name, f"it is not among the file's {len(self.tensors)}")
        return self.tensors[name]

    def shape(self, arrays: Arrays, name: str) -> tuple[int, ...]:
        code, stored = self.entry(name)
        shape = arrays.shape(stored, code)
        if shape is None:
            raise self.error(
                "no such dtype",
                name,
                f"{arrays} has none for {_native.dtype_names[code]} of shape {list(stored)}; "
                "the file's other tensors can be read by safe_open",
            )
        return shape

    def error(self, reason: str, name: str, detail: str) -> Error:
        message = f"read {self.path}, tensor {name!r}: {reason} ({detail})"
        return Error(message, reason, "read", self.path, name, detail=detail)

    def _open_in_child(self) -> None:
        # A worker of a data loader, say: the ring and the threads are its parent's, and it needs its own.
        status = self._status
        self._open()
        if self._status != status:
            self._process = -1
            message = f"read {self.path}: the file was replaced, and this process was forked since it had been opened"
            raise Error(f"{message}; open it again", "the file was replaced", "read", self.path)

    def read(self, arrays: Arrays, names: Sequence[str], offsets: Sequence[Sequence[int]], out: Sequence[Any]) -> None:
        """Fills `out`, boxes of the tensors that begin at `offsets`; those of F4 contiguous."""
        if self._process != os.getpid():
            self._open_in_child()
        codes = [self.tensors[name][0] for name in names]
        lengths = [arrays.stored(tuple(array.shape), code) for array, code in zip(out, codes)]
        table = _native.TensorColumns(
            [arrays.address(array) for array in out],
            codes,
            lengths,
            [() if code == _F4 else arrays.strides(array) for array, code in zip(out, codes)],
        )
        places = [arrays.stored(offset, code) for offset, code in zip(offsets, codes)]
        self._native.read(list(names), places, lengths, table)


class Slice:
    """A tensor of an open file; `[...]` reads a part of it. It keeps working when its `safe_open` has been closed."""

    def __init__(self, file: OpenFile, arrays: Arrays, name: str) -> None:
        self._file = file
        self._arrays = arrays
        self._name = name
        self._code, self._stored = file.entry(name)

    def get_shape(self) -> list[int]:
        """The shape that `[...]` indexes: of F4 its last dimension counts pairs, as torch has them."""
        shape = self._arrays.shape(self._stored, self._code)
        return list(self._stored if shape is None else shape)

    def get_dtype(self) -> str:
        """The format's name of it, such as "BF16"."""
        return _native.dtype_names[self._code]

    def __getitem__(self, index: Any) -> Any:
        """As the framework indexes. Ints, slices, `...` and None read just the bytes that they name, and where a step
        skips less than 128 KiB these too. For other indexes (lists, arrays, bools) the whole tensor is read."""
        shape = self._file.shape(self._arrays, self._name)
        entries = index if type(index) is tuple else (index,)
        if not all(_is_basic(entry) for entry in entries):
            return self._read([range(size) for size in shape])[index]
        self._arrays.check(shape, index)
        ranges, local = _split(shape, entries)
        return self._read(ranges)[local]

    def _read(self, ranges: list[range]) -> Any:
        """The elements that the ranges (of rising order) name, in every dimension."""
        file, arrays, code = self._file, self._arrays, self._code
        out = arrays.empty([len(one) for one in ranges], code)
        stepped = [d for d, one in enumerate(ranges) if len(one) > 1 and one.step > 1]
        if math.prod(out.shape) == 0 or not stepped:
            file.read(arrays, [self._name], [[one.start for one in ranges]], [out])
            return arrays.finish([out], [code])[0]
        first = stepped[0]
        step = ranges[first].step
        hulls = [range(one.start, one[-1] + 1) for one in ranges]
        outer, inner = (math.prod(len(one) for one in part) for part in (hulls[:first], hulls[first + 1 :]))
        row_bytes = inner * arrays.itemsize(code)

        def rows(begin: int, end: int) -> tuple[slice, ...]:
            return (slice(None),) * first + (slice(begin, end),)

        if len(stepped) == 1 and (step - 1) * row_bytes >= _GAP_BYTES and (first == 0 or code != _F4):
            starts = [[one.start for one in ranges[:first]] + [at] + [one.start for one in ranges[first + 1 :]]
                      for at in ranges[first]]
            file.read(arrays, [self._name] * len(starts), starts, [out[rows(i, i + 1)] for i in range(len(starts))])
            return arrays.finish([out], [code])[0]
        at_once = max(1, _WINDOW_BYTES // max(1, outer * step * row_bytes))
        thin = tuple(slice(None, None, one.step) for one in ranges)
        for begin in range(0, len(ranges[first]), at_once):
            part = ranges[first][begin : begin + at_once]
            hulls[first] = range(part[0], part[-1] + 1)
            hull = arrays.empty([len(one) for one in hulls], code)
            file.read(arrays, [self._name], [[one.start for one in hulls]], [hull])
            out[rows(begin, begin + len(part))] = hull[thin]
        return arrays.finish([out], [code])[0]


def _is_basic(entry: Any) -> bool:
    # numpy's ints are Integral, its bools and torch's tensors are not.
    return (
        entry is None
        or isinstance(entry, (slice, EllipsisType))
        or (isinstance(entry, numbers.Integral) and not isinstance(entry, bool))
    )


def _split(shape: Sequence[int], entries: Sequence[Any]) -> tuple[list[range], tuple]:
    """A valid index -> which elements of each dimension, and the index of an array of just these."""
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    ranges: list[range] = []
    local: list[Any] = []
    for entry in entries:
        if entry is None:
            local.append(None)
        elif entry is Ellipsis:
            # torch takes a second one for a full slice of no dimension.
            skipped = shape[len(ranges) : len(ranges) + len(shape) - taken]
            taken += len(skipped)
            ranges += [range(size) for size in skipped]
            local += [slice(None)] * len(skipped)
        elif isinstance(entry, slice):
            # An empty one may lie outside of the tensor.
            one = range(*entry.indices(shape[len(ranges)])) or range(0)
            local.append(slice(None) if one.step > 0 else slice(None, None, -1))
            ranges.append(one if one.step > 0 else one[::-1])
        else:
            at = int(entry)
            at += shape[len(ranges)] if at < 0 else 0
            ranges.append(range(at, at + 1))
            local.append(0)
    ranges += [range(size) for size in shape[len(ranges) :]]
    return ranges, tuple(local)


class safe_open:
    """Opens a safetensors file to read its tensors one by one, or parts of them, as `safetensors.safe_open` does.

        with safe_open("model.safetensors", framework="pt", device="cuda:0") as f:
            rows = f.get_slice("embedding")[1000:2000]

    The whole header is checked when it is opened. Tensor bytes are read on demand, past the page cache and without
    mmap: a file that is cut short meanwhile is an error, and one that is replaced is read on as it was. A shard of a
    distributed checkpoint is read as it stands. A forked child opens the file anew, which must be the same then.

    Args:
        filename: one file, of any name.
        framework: "pt" (or "torch", "pytorch") or "np" (or "numpy").
        device: for "pt", all that `torch.device` takes; else "cpu".

    Keyword Args:
        backend: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads"; safetensors'
            "mmap" and "pread" mean "automatic".

    Raises:
        FileNotFoundError, IsADirectoryError: no such file.
        ValueError: a framework, device or backend that it does not know.
        safering.Error: a corrupt header (file, tensor and the broken rule), an unknown tensor, a dtype that the
            framework lacks, a closed file; also a `safetensors.SafetensorError`.
        safering.StorageError: what the operating system refuses (also an OSError).

    Any thread may read, several at a time.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str,
        device: Any = "cpu",
        *,
        backend: str = "automatic",
    ) -> None:
        self._arrays = _arrays(framework, device)
        self._file: OpenFile | None = OpenFile(filename, backend)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file = None

    def keys(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._opened().tensors)

    def offset_keys(self) -> list[str]:
        """Names of the tensors in the order of their bytes."""
        return list(self._opened().tensors)

    def metadata(self) -> dict[str, str] | None:
        """`__metadata__` of the header; None where it has none."""
        return dict(self._opened().metadata) or None

    def get_tensor(self, name: str) -> Any:
        """A whole tensor, in memory of its own."""
        return _read_whole(self._opened(), self._arrays, [name])[0]

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, in the order of their bytes, read in one go."""
        file = self._opened()
        names = list(file.tensors)
        return dict(zip(names, _read_whole(file, self._arrays, names)))

    def get_slice(self, name: str) -> Slice:
        """An object whose `[...]` reads a part of the tensor."""
        return Slice(self._opened(), self._arrays, name)

    def _opened(self) -> OpenFile:
        if self._file is None:
            raise Error("the file is closed: read inside the `with` block", "closed", "read")
        return self._file


def check_metadata(metadata: dict[str, str] | None) -> None:
    """TypeError for what cannot be a header's `__metadata__`."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata: expected a dict of strings, found {type(metadata).__name__}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata: expected strings, found {key!r}: {value!r}")


def _read_whole(file: OpenFile, arrays: Arrays, names: list[str]) -> list[Any]:
    shapes = [file.shape(arrays, name) for name in names]
    codes = [file.tensors[name][0] for name in names]
    out: list[Any] = []
    for begin, end in _windows([math.prod(s) * arrays.itemsize(c) for s, c in zip(shapes, codes)], arrays.window_bytes):
        some = [arrays.empty(shape, code) for shape, code in zip(shapes[begin:end], codes[begin:end])]
        file.read(arrays, names[begin:end], [(0,) * len(shape) for shape in shapes[begin:end]], some)
        out += arrays.finish(some, codes[begin:end])
    return out


def _windows(sizes: list[int], limit: int | None) -> list[tuple[int, int]]:
    """Runs of the list that sum up to the limit at most, or are one entry."""
    out: list[tuple[int, int]] = []
    begin = total = 0
    for i, size in enumerate(sizes):
        if limit is not None and i > begin and total + size > limit:
            out.append((begin, i))
            begin, total = i, 0
        total += size
    if begin < len(sizes):
        out.append((begin, len(sizes)))
    return out


def _arrays(framework: str, device: Any) -> Arrays:
    if framework in ("pt", "torch", "pytorch"):
        from .torch._files import TorchArrays

        return TorchArrays(device)
    if framework in ("np", "numpy"):
        from .numpy import NumpyArrays

        if str(device) != "cpu":
            raise ValueError(f"numpy's arrays are on the cpu, not on {device!r}")
        return NumpyArrays()
    raise ValueError(f"framework must be 'pt' or 'np', not {framework!r}; for others open it with 'np' and convert")
