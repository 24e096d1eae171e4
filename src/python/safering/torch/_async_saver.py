"""AsyncSaver: checkpoints in the background of a training loop.

What the ranks agree on, which save is written and which gives way, and everything that touches memory or disk is
native (safering/async_saver.hpp). Here: what is saved, and how bytes travel between ranks.
"""

from __future__ import annotations

import atexit
import ctypes
import numbers
import os
import weakref
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .. import _native, _runtime
from .._arguments import check_exchange, check_mapping, check_reactor
from .._paths import make_directories
from .._reports import SaveReport
from ._limits import SaveLimits, check_limits
from ._planner import DefaultSavePlanner
from ._plans import item_columns
from ._staging import copy_to, pin_staging_memory
from ._tensors import nbytes
from ._writer import check_items

__all__ = ["AsyncSaver", "Flushed", "PendingSave", "release_staging_memory", "reserve_staging_memory"]


def reserve_staging_memory(size: int) -> None:
    """Makes and touches `size` bytes for copies now, so that the first save finds them warm: fresh pages cost more
    than the copy itself. Blocks, without the GIL."""
    if not isinstance(size, numbers.Integral) or size < 0:
        raise ValueError(f"size must be a number of bytes, not {size!r}")
    pin_staging_memory()
    _native.reserve_staging_memory(size)


def release_staging_memory() -> None:
    """Gives back the memory that no copy uses."""
    _native.release_staging_memory()


class Flushed(NamedTuple):
    """What became of the saves that had not ended when `emergency_flush` was called: paths."""

    saved: list[str]
    abandoned: list[str]


class PendingSave:
    """A save that was asked for."""

    def __init__(self, native: _native.PendingSave, path: str) -> None:
        self._native = native
        #: directory of the checkpoint
        self.path = path

    def done(self) -> bool:
        return self._native.wait(0)

    def result(self, timeout: float | None = None) -> SaveReport:
        """How it went: what was saved on every rank, the rest on the first alone. Raises what the save ended with, with rank,
        file and reason, and TimeoutError where it has not ended within `timeout` seconds."""
        if not self._native.wait(timeout):
            raise TimeoutError(f"the save to {self.path} has not ended after {timeout} seconds")
        return SaveReport.of(self._native.report())


class AsyncSaver:
    """Saves state dicts while training goes on; one for the life of a process, used for all its checkpoints.

        saver = AsyncSaver(limits=SaveLimits(processor_share=0.1))
        for step in ...:
            ...
            if step % 100 == 0:
                saver.save({"model": model.state_dict()}, f"checkpoints/{step}")
        saver.wait()

    `save` copies the tensors and returns. One save is written at a time; one more may wait, and gives way to a newer
    one: its result is then a safering.Error that says so. At most two copies are in memory. All ranks construct it
    and call save and close at the same points; the rest any of them may call by itself.

    Keyword Args:
        process_group: whose ranks save; None: all. The saver makes two gloo groups of the same ranks for itself.
        limits: what writing may take from training. emergency_flush lifts them.
        fqn_to_index_mapping, save_distributed, enable_consolidation, backend, digests, exchange, buffer_memory: as
            those of HuggingFaceStorageWriter; buffer_memory None: 48 MiB, as a saver has no path of its own.
    """

    def __init__(
        self,
        *,
        process_group: dist.ProcessGroup | None = None,
        limits: SaveLimits = SaveLimits(),
        fqn_to_index_mapping: dict[str, int] | None = None,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        backend: str = "automatic",
        digests: bool = True,
        exchange: str = "automatic",
        buffer_memory: int | None = None,
    ) -> None:
        check_mapping(fqn_to_index_mapping)
        check_reactor(backend, buffer_memory)
        check_exchange(exchange)
        check_limits(limits)
        ranks = None
        if dist.is_available() and dist.is_initialized():
            ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
        several = ranks is not None and len(ranks) > 1
        pin_staging_memory()
        self._rank = ranks.index(dist.get_rank()) if several else 0
        self._native = _native.AsyncSaver(
            _runtime.reactor(backend, buffer_memory),
            fqn_to_index_mapping or {},
            save_distributed and not enable_consolidation,
            digests,
            exchange,
            limits.bytes_per_second,
            limits.processor_share,
            _Ranks(ranks) if several else None,
            _Ranks(ranks) if several else None,
        )
        # Before the interpreter goes, which the saver's thread may still need.
        own = weakref.ref(self)
        self._at_exit: Callable[[], None] = lambda: (saver := own()) and saver.close()
        atexit.register(self._at_exit)
        # A forked child of multiprocessing ends without atexit.
        self._at_child_exit = Finalize(None, self._at_exit, exitpriority=0)

    def save(self, state_dict: dict[str, Any], path: str | os.PathLike) -> PendingSave:
        """All ranks, in the same order. Copies this rank's tensors, which may change as soon as it returns. Missing
        parents of `path` are made. Raises at once, on all ranks, where the state dicts cannot be saved: TypeError for
        what is no tensor, safering.Error for plans that do not fit together or an attempt that cannot be begun.
        Ctrl-C is raised here when the other ranks know of it; theirs ends in an error that says so."""
        target = os.path.abspath(path)
        planner = DefaultSavePlanner()
        items: list = []
        tensors: list[torch.Tensor] = []
        failed: BaseException | None = None
        try:
            if not isinstance(state_dict, dict):
                raise TypeError(f"expected a dict of names and tensors, found {type(state_dict).__name__}")
            planner.set_up_planner(state_dict, is_coordinator=self._rank == 0)
            items = planner.create_local_plan().items
            check_items(items)
            tensors = [planner.resolve_data(item).detach() for item in items]
            plan: _native.SavePlan | str = _native.SavePlan(self._rank, *item_columns(items))
            if self._rank == 0:
                make_directories(os.path.dirname(target))
        except BaseException as error:  # the other ranks must hear of it
            failed = error
            plan = f"{type(error).__name__}: {error}"

        def fill(positions: list[int], addresses: list[int]) -> None:
            own = [tensors[i] for i in positions]
            copy_to(own, addresses, lambda i: _view(own[i], addresses[i]))

        try:
            return PendingSave(self._native.save(os.fsencode(target), plan, fill), target)
        except BaseException as error:
            if failed is not None:
                raise failed from error
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Until every save has ended, well or not, or for `timeout` seconds; whether all have."""
        waited = 0.0
        while not self._native.wait(step := 0.05 if timeout is None else max(0.0, min(0.05, timeout - waited))):
            waited += step
            if timeout is not None and waited >= timeout:
                return False
        return True

    def cancel(self) -> None:
        """Ends what is written and what waits, on all ranks, if its commit has not begun. Does not wait."""
        self._native.cancel()

    def lift_limits(self) -> None:
        """For good."""
        self._native.lift_limits()

    def emergency_flush(self, deadline: float) -> Flushed:
        """For SIGTERM, on every rank: lifts the limits, waits for what has been asked for, cancels what is left after
        `deadline` seconds, and returns by then. An older checkpoint is as it was where a save is abandoned."""
        return Flushed(*self._native.emergency_flush(deadline))

    def close(self) -> None:
        """Waits for every save. The saver cannot be used afterwards. Other threads and signal handlers may use it until
        then."""
        atexit.unregister(self._at_exit)
        self._at_child_exit.cancel()
        self.wait()
        self._native.close()

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _view(like: torch.Tensor, address: int) -> torch.Tensor:
    memory = (ctypes.c_uint8 * nbytes(like)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(like.dtype).view(like.shape)


class _Ranks:
    """Carries bytes between ranks, over a process group of its own. Used from native code, by one thread at a time."""

    def __init__(self, ranks: list[int]) -> None:
        # What waits here waits for a save: for as long as that takes. Ranks that do not save take no part in making
        # the group, nor in its name.
        self._group = dist.new_group(
            ranks, backend="gloo", timeout=timedelta(days=1), use_local_synchronization=True
        )
        self._first = ranks[0]
        self.rank = ranks.index(dist.get_rank())
        self.ranks = len(ranks)

    def gather(self, own: bytes) -> list[bytes]:
        parts: list[Any] | None = [None] * self.ranks if self.rank == 0 else None
        dist.gather_object(own, parts, self._first, self._group)
        return parts or []

    def scatter(self, parts: list[bytes]) -> bytes:
        out: list[Any] = [None]
        dist.scatter_object_list(out, parts if self.rank == 0 else None, self._first, self._group)
        return out[0]
