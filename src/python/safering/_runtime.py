"""The reactors of this process: one for each way of asking for one, made at first use."""

from __future__ import annotations

import os
import threading

from . import _native

#: Memory of a reactor's buffer pool, bytes.
BUFFER_MEMORY = 48 << 20

_lock = threading.Lock()
_reactors: dict[tuple[str, int], _native.Reactor] = {}
_lost: list = []


def reactor(backend: str = "automatic", buffer_memory: int = BUFFER_MEMORY) -> _native.Reactor:
    """`backend`: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads"."""
    with _lock:
        key = (backend, buffer_memory)
        if key not in _reactors:
            _reactors[key] = _native.Reactor(backend, buffer_memory)
        return _reactors[key]


def info() -> dict:
    """The backend that saves and loads run on here, and why: the keys of `ReactorInfo` in the C++ headers."""
    return reactor().info()


def _after_fork() -> None:
    # The parent's rings and threads are not the child's: it makes its own. Theirs are kept, not closed.
    global _lock
    _lock = threading.Lock()
    _lost.append(dict(_reactors))
    _reactors.clear()


os.register_at_fork(after_in_child=_after_fork)
