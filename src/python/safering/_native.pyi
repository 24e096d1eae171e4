"""The native module: C++ calls with as little between as can be.

Dtypes are positions in `dtype_names`. Tensors come as addresses, and whoever calls keeps them alive until what was
started has been waited for. All that blocks does so without the GIL. Failures are `safering.Error`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from typing_extensions import Buffer

_Shapes: TypeAlias = list[Any]  # of sequences of ints: torch.Size, tuples, lists
_Progress: TypeAlias = Callable[[int, int], object] | None

#: The format's names: "BOOL", "F4", ...
dtype_names: tuple[str, ...]

class Reactor:
    """The ring, or the pool of threads, and a pool of buffers. `backend`: "automatic", "io_uring" or "threads";
    `buffer_memory`: bytes, 8192 at least."""

    def __init__(self, backend: str, buffer_memory: int) -> None: ...
    def info(self) -> dict[str, Any]:
        """backend, reason, queue_depth, buffer_bytes, buffer_count, huge_pages."""

    def endpoint(self) -> str:
        """Where other ranks of this host reach this one; empty where the host grants no socket for it."""

class TensorColumns:
    """Tensors in memory, column by column. Shapes in elements of the format; strides in elements, empty where
    contiguous (as those of dtypes below a byte must be)."""

    def __init__(self, addresses: list[int], dtypes: list[int], shapes: _Shapes, strides: _Shapes) -> None: ...
    @property
    def dtypes(self) -> list[int]: ...

class SavePlan:
    """What one rank saves: boxes (offsets, sizes) of global tensors (shapes)."""

    def __init__(
        self,
        rank: int,
        fqns: list[str],
        dtypes: list[int],
        offsets: _Shapes,
        sizes: _Shapes,
        shapes: _Shapes,
    ) -> None: ...
    #: Of the rank's reactor; empty where it exchanges nothing.
    endpoint: str
    def __len__(self) -> int: ...
    def set_storage(self, storage: bytes, /) -> None:
        """The rank's part of the layout, from Writer.prepare_global_plan."""

class Writer:
    """One rank's writer; one thread at a time. `mapping`: fqn -> 1-based number of its file, empty for one file;
    `alone`: (rank, ranks) where this rank plans and commits by itself."""

    def __init__(
        self,
        path: str | bytes,
        reactor: Reactor,
        mapping: Mapping[str, int],
        sharded: bool,
        digests: bool,
        alone: tuple[int, int] | None,
        exchange: str,
    ) -> None: ...
    def prepare_global_plan(self, plans: Sequence[SavePlan]) -> list[tuple[str, bytes]]:
        """Coordinator: makes the attempt's files. Of each plan: the attempt, and the rank's part of the layout."""

    def start(self, plan: SavePlan, positions: Sequence[int], tensors: TensorColumns) -> None:
        """Writes the items at these positions of a plan that has its storage; `tensors` has just these. The first of
        a plan's starts takes part in its exchange between ranks."""

    def wait(self, progress: _Progress) -> None:
        """Until what was started has ended. `progress` is called here with (bytes done, bytes in all)."""

    def results(self) -> bytes:
        """The results of a whole plan, when all of it has been written."""

    def decline(self, plan: SavePlan, why: str) -> None:
        """Tells ranks that wait for this one in the plan's exchange that it will not write."""

    def finish(self, results: Sequence[bytes]) -> dict[str, Any]:
        """Coordinator: the commit, from every rank's results. path, attempt, files, tensor_bytes, replaced,
        process_memory_bytes, shared_memory_bytes, file_system, notes, and what Reactor.info says."""

    def cancel(self) -> None:
        """Ends what was started, and waits for the end."""

    def abort(self) -> None:
        """Removes the attempt."""

def plan_globally(plans: Sequence[SavePlan]) -> list[list[int]]:
    """Positions of each plan's items that are left when replicas are dropped; checks that the rest cover every tensor
    just once."""

def describe_results(results: bytes) -> list[tuple[str, tuple[int, ...], int, str]]:
    """(fqn, offset, bytes, file name) of each item."""

class Reader:
    """A checkpoint, opened to load boxes of its tensors; one thread at a time. `verification`: "off", "covered" or
    "all"; `strict`: refuse symbolic links; `exchange`: as Writer has it."""

    def __init__(
        self, path: str | bytes, reactor: Reactor, verification: str, strict: bool, exchange: str
    ) -> None: ...
    def read_metadata(
        self,
    ) -> tuple[list[str], list[tuple[str, int, tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...], int]]]]]:
        """Files, and (fqn, dtype, size, [(offsets, sizes, position of the file), ...]) of each tensor."""

    def file_metadata(self) -> dict[str, dict[str, str]]:
        """`__metadata__` by file name; after read_metadata."""

    def start(
        self,
        fqns: list[str],
        chunk_offsets: _Shapes,
        chunk_hints: list[int | None],
        storage_offsets: _Shapes,
        lengths: _Shapes,
        tensors: TensorColumns,
        exchange: bytes | None,
    ) -> None:
        """Loads boxes (storage_offsets in the chunk, lengths) of the chunks that begin at chunk_offsets; hints are
        their numbers in the metadata, where known. With its part in an exchange the rank takes part in that: just
        once, and of what was planned any items."""

    def prepare_local_plan(
        self,
        fqns: list[str],
        chunk_offsets: _Shapes,
        chunk_hints: list[int | None],
        storage_offsets: _Shapes,
        lengths: _Shapes,
    ) -> bytes:
        """What this rank would read, for prepare_global_plan."""

    def prepare_global_plan(self, offers: Sequence[bytes | None]) -> list[bytes | None]:
        """Coordinator: of each rank its part in the exchange, if it has one."""

    def decline(self, exchange: bytes, why: str) -> None:
        """Tells ranks that wait for this one that it will not load."""

    def wait(self, progress: _Progress) -> dict[str, Any]:
        """tensor_bytes, read_bytes, verified_bytes, process_memory_bytes and shared_memory_bytes (taken from other
        ranks), notes, and what Reactor.info says."""

class StoredFile:
    """One safetensors file, of any name, its tensors as they stand in it. Any thread, several at a time."""

    def __init__(self, path: str | bytes, reactor: Reactor) -> None: ...
    def tensors(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """(name, dtype, shape) in the order of the file."""

    def metadata(self) -> dict[str, str]:
        """`__metadata__`; empty where there is none."""

    def read(self, names: list[str], offsets: _Shapes, lengths: _Shapes, tensors: TensorColumns) -> None:
        """Fills `tensors` with boxes of the stored ones; has done so on return."""

def advise_huge(address: int, size: int) -> None:
    """Asks for huge pages in memory that has not been touched yet; a hint."""

def save_file(
    path: str | bytes,
    names: list[str],
    tensors: TensorColumns,
    metadata: Sequence[tuple[str, str]],
    reactor: Reactor,
) -> None:
    """One file, durable and under its name on return."""

def convert(
    source: str | bytes, destination: str | bytes, reactor: Reactor, files: int = 0, max_file_bytes: int = 0
) -> dict[str, Any]:
    """Any checkpoint -> final files at `destination`: path, files, tensor_bytes, notes. At most one of `files` and
    `max_file_bytes` may be given."""

class Conversion:
    """A checkpoint, rewritten by several ranks into the files of a mapping. Windows and results travel as bytes."""

    def __init__(
        self, source: str | bytes, destination: str | bytes, reactor: Reactor, mapping: Mapping[str, int]
    ) -> None: ...
    def open(self) -> str:
        """The attempt that wrote the source."""

    def prepare(self, ranks: int) -> list[list[bytes]]:
        """Coordinator: makes the attempt's files. Of each rank: its windows."""

    def write(self, windows: Sequence[bytes], progress: _Progress) -> list[bytes]:
        """A rank's windows -> its results."""

    def finish(self, results: Sequence[bytes]) -> dict[str, Any]:
        """Coordinator: the commit. path, files, tensor_bytes, notes."""

    def abort(self) -> None:
        """Removes the attempt."""

class StagingBuffer(Buffer):
    """Memory of `size` bytes, which goes back to a pool with its last user."""

    def __init__(self, size: int) -> None: ...
    def copy(self, offsets: list[int], addresses: list[int], sizes: list[int]) -> None:
        """Copies memory of the process into the buffer, piece by piece, on up to four threads."""

def release_staging_memory() -> None:
    """Frees the memory that waits for its next user."""
