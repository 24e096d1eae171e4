"""The native module: C++ calls with as little between as can be.

Dtypes are positions in `dtype_names`. Tensors come as addresses, and whoever calls keeps them alive until what was
started has been waited for. All that blocks does so without the GIL. Failures are `safering.Error`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from typing_extensions import Buffer

_Shapes: TypeAlias = list[Any]  # of sequences of ints: torch.Size, tuples, lists
_Progress: TypeAlias = Callable[[int, int], object] | None

#: The format's names: "BOOL", "F4", ...
dtype_names: tuple[str, ...]

def prometheus_text() -> str:
    """What all saves and loads of this process did since it began, in Prometheus' text format."""

class Reactor:
    """The ring, or the pool of threads, and a pool of buffers. `backend`: "automatic", "io_uring" or "threads";
    `buffer_memory`: bytes, 8192 at least; None: the defaults."""

    def __init__(self, backend: str, buffer_memory: int | None) -> None: ...
    @staticmethod
    def tuned(path: bytes, backend: str) -> Reactor:
        """As the file system of `path` was measured; `origin` is "defaults" where it was not."""

    def info(self) -> dict[str, Any]:
        """backend, reason, queue_depth, buffer_bytes, buffer_count, transfer_bytes, huge_pages, origin."""

    def endpoint(self) -> str:
        """Where other ranks of this host reach this one; empty where the host grants no socket for it."""

class TensorColumns:
    """Tensors in memory, column by column. Shapes in elements of the format; strides in elements, empty where
    contiguous (as those of dtypes below a byte must be)."""

    def __init__(self, addresses: list[int], dtypes: list[int], shapes: _Shapes, strides: _Shapes) -> None: ...
    @property
    def dtypes(self) -> list[int]: ...

class SavePlan:
    """What one rank saves: boxes (offsets, sizes) of global tensors (shapes). Where the offsets are None, `sizes` has
    a whole tensor. Can be pickled."""

    def __init__(
        self,
        rank: int,
        fqns: list[str],
        dtypes: list[int],
        offsets: _Shapes,
        sizes: _Shapes,
        shapes: _Shapes,
    ) -> None: ...
    rank: int
    #: Of the rank's reactor; empty where it exchanges nothing.
    endpoint: str
    def __len__(self) -> int: ...
    def set_storage(self, storage: bytes, /) -> None:
        """The rank's part of the layout, from Writer.prepare_global_plan."""

    def keep(self, positions: Sequence[int]) -> SavePlan:
        """The items at these positions, without a part of a layout."""

    def describe(self) -> list[tuple[str, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(fqn, dtype, offsets, sizes, shape) of each item."""

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
        limits: SaveLimits,
    ) -> None: ...
    def prepare_global_plan(self, plans: Sequence[SavePlan]) -> list[tuple[str, bytes]]:
        """Coordinator: makes the attempt's files. Of each plan: the attempt, and the rank's part of the layout."""

    def start(self, plan: SavePlan, positions: Sequence[int] | None, tensors: TensorColumns) -> None:
        """Writes the items at these positions of a plan that has its storage; `tensors` has just these. None:
        all items. The first of a plan's starts takes part in its exchange between ranks."""

    def wait(self, progress: _Progress) -> None:
        """Until what was started has ended. `progress` is called here with (bytes done, bytes in all)."""

    def results(self) -> bytes:
        """The results of a whole plan, when all of it has been written."""

    def work(self) -> dict[str, Any]:
        """The fields of a WorkReport: what was written for the last attempt."""

    def decline(self, plan: SavePlan, why: str) -> None:
        """Tells ranks that wait for this one in the plan's exchange that it will not write."""

    def finish(self, results: Sequence[bytes]) -> dict[str, Any]:
        """Coordinator: the commit, from every rank's results. The fields of a SaveReport, with dictionaries for its
        work, ranks and summary."""

    def cancel(self) -> None:
        """Ends what was started, and waits for the end."""

    def lift_limits(self) -> None:
        """Any thread."""

    def abort(self) -> None:
        """Removes the attempt."""

def plan_globally(plans: Sequence[SavePlan]) -> list[list[int] | None]:
    """Positions of each plan's items that are left when replicas are dropped, None where all are; checks that
    the rest cover every tensor just once."""

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

    def open(self) -> None:
        """As read_metadata, which tells what is there."""

    def __len__(self) -> int:
        """Tensors of a checkpoint that is open."""

    def stored(self, fqns: list[str], sizes: _Shapes) -> tuple[list[int], list[tuple[int, ...] | None]]:
        """Of an open checkpoint: the dtype of each, -1 where it lacks the tensor, and the size where it is another."""

    def start_boxes(
        self, fqns: list[str], offsets: _Shapes, sizes: _Shapes, tensors: TensorColumns, exchange: bytes | None
    ) -> None:
        """Loads boxes of tensors (sizes) from an open checkpoint, whatever its chunks; offsets of None: whole tensors.
        `tensors` are of the stored dtypes."""

    def offer_boxes(self, fqns: list[str], offsets: _Shapes, sizes: _Shapes, shapes: _Shapes) -> bytes:
        """prepare_local_plan of start_boxes into tensors of these shapes."""

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

    def cancel(self) -> None:
        """Ends the load under way, if there is one, and waits for its end."""

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

class FileWriter:
    """A file of any content, from first to last; one thread at a time. Under its name and durable when committed;
    nothing of it is left when abandoned or dropped."""

    def __init__(self, path: str | bytes, reactor: Reactor, expected_bytes: int = 0) -> None:
        """`expected_bytes` are allocated; 0: not known."""

    def write(self, data: Buffer) -> int:
        """Has copied all of it on return."""

    def commit(self) -> list[str]:
        """What could not be tidied up."""

    def abandon(self) -> None: ...
    def size(self) -> int: ...

class FileReader:
    """A file of any content, as it was when it was opened. Any thread, several at a time."""

    def __init__(self, path: str | bytes, reactor: Reactor) -> None: ...
    def size(self) -> int: ...
    def read_into(self, buffer: Buffer, offset: int) -> int:
        """Fills it as far as the file goes."""

    def read(self, offset: int, length: int) -> bytes: ...

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

def list_checkpoints(directory: str | bytes, reactor: Reactor) -> list[dict[str, Any]]:
    """The fields of StepCheckpoint."""

def latest(directory: str | bytes, prefix: str | bytes, reactor: Reactor) -> dict[str, Any] | None:
    """The fields of StepCheckpoint."""

def set_latest(checkpoint: str | bytes, reactor: Reactor) -> None: ...
def prune(
    directory: str | bytes,
    keep_last: int,
    keep_every: int,
    prefix: str | bytes,
    with_others: bool,
    dry_run: bool,
    reactor: Reactor,
) -> tuple[list[dict[str, Any]], list[str]]:
    """What was removed, and what went wrong."""

def recover(path: str | bytes, all_attempts: bool, reactor: Reactor) -> dict[str, Any]:
    """switch_finished, removed, left, failures."""

class StagingBuffer(Buffer):
    """Memory of `size` bytes, 2 MiB aligned, which goes back to a pool with its last user."""

    def __init__(self, size: int) -> None: ...
    @property
    def address(self) -> int: ...

def copy_tensors(places: list[int], tensors: TensorColumns) -> None:
    """To the addresses, dense and row-major, on up to four threads."""

def staging_layout(plan: SavePlan, mapping: dict[str, int], sharded: bool) -> tuple[list[int], int]:
    """Offsets of the plan's items in memory that lies as the files will, and its size, as far as one rank can tell."""

def reserve_staging_memory(bytes: int) -> None:
    """Makes memory for copies, touched."""

def release_staging_memory() -> None:
    """Frees the memory that waits for its next user."""

def staging_memory() -> int:
    """Bytes of staging memory, in use or waiting."""

def set_staging_hooks(made: Callable[[int, int], None], going: Callable[[int, int], None]) -> None:
    """Called with address and size of each segment of staging memory, on any thread."""

class SaveLimits:
    def __init__(self, bytes_per_second: int, processor_share: float) -> None: ...

class PendingSave:
    def wait(self, seconds: float | None) -> bool: ...
    def report(self) -> dict[str, Any]: ...

class _Collectives(Protocol):
    rank: int
    ranks: int

    def gather(self, own: bytes) -> list[bytes]: ...
    def scatter(self, parts: list[bytes]) -> bytes: ...

class AsyncSaver:
    """safering/async_saver.hpp."""

    def __init__(
        self, reactor: Reactor, mapping: dict[str, int], sharded: bool, digests: bool, exchange: str,
        bytes_per_second: int, processor_share: float, foreground: _Collectives | None, background: _Collectives | None,
    ) -> None: ...
    def save(self, path: str | bytes, plan: SavePlan | str, fill: Callable[[list[int], list[int]], None]) -> PendingSave:
        """`plan`: or why this rank has none. `fill(positions, addresses)`."""

    def cancel(self) -> None: ...
    def lift_limits(self) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def emergency_flush(self, seconds: float) -> tuple[list[str], list[str]]: ...
    def close(self) -> None: ...
