"""The reactors of this process: one for each way of asking for one, and one for each file system that was measured."""

from __future__ import annotations

import os
import threading

from . import _native

_lock = threading.Lock()
_reactors: dict[tuple[str, int | None], _native.Reactor] = {}
#: By backend and device. Looked up once, as ranks of an exchange are reached through the reactor that they told of.
_tuned: dict[tuple[str, int], _native.Reactor] = {}
_lost: list = []


def reactor(
    backend: str = "automatic", buffer_memory: int | None = None, path: str | os.PathLike[str] | None = None
) -> _native.Reactor:
    """`backend`: "automatic" (io_uring where the kernel grants it, else threads), "io_uring" or "threads".
    `buffer_memory`: bytes of the buffer pool; None: as `safering probe --measure` chose for the file system of
    `path`, else 48 MiB."""
    device = _device(path) if buffer_memory is None and path is not None else None
    with _lock:
        if device is None:
            return _usual(backend, buffer_memory)
        key = (backend, device)
        if key not in _tuned:
            made = _native.Reactor.tuned(os.fsencode(path), backend)
            # One pool of buffers for all file systems that nobody measured.
            _tuned[key] = made if made.info()["origin"] != "defaults" else _reactors.setdefault((backend, None), made)
        return _tuned[key]


def _usual(backend: str, buffer_memory: int | None) -> _native.Reactor:
    key = (backend, buffer_memory)
    if key not in _reactors:
        _reactors[key] = _native.Reactor(backend, buffer_memory)
    return _reactors[key]


def _device(path: str | os.PathLike[str]) -> int | None:
    """Of the path, or of the nearest directory above it that exists."""
    path = os.path.abspath(path)
    while True:
        try:
            return os.stat(path).st_dev
        except OSError:
            parent = os.path.dirname(path)
            if parent == path:
                return None
            path = parent


def info() -> dict:
    """The backend that saves and loads run on here, and why: the keys of `ReactorInfo` in the C++ headers."""
    return reactor().info()


def _after_fork() -> None:
    # The parent's rings and threads are not the child's: it makes its own. Theirs are kept, not closed.
    global _lock
    _lock = threading.Lock()
    _lost.append((dict(_reactors), dict(_tuned)))
    _reactors.clear()
    _tuned.clear()


os.register_at_fork(after_in_child=_after_fork)
