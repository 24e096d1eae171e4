"""What callers may pass, checked where they pass it: one line that says what to pass instead."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

_EXCHANGES = ("automatic", "process_memory", "shared_memory", "off")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        words = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])])
        raise ValueError(f"{name} must be {words}, not {value!r}")


def check_reactor(backend: Any, buffer_memory: Any) -> None:
    check_choice("backend", backend, ("automatic", "io_uring", "threads"))
    if buffer_memory is None:
        return
    if not isinstance(buffer_memory, numbers.Integral):
        raise TypeError(f"buffer_memory must be None or a number of bytes, not {buffer_memory!r}")
    if buffer_memory < 8192:
        raise ValueError(f"buffer_memory must be at least 8192 bytes, not {buffer_memory}")


def check_exchange(exchange: Any) -> None:
    check_choice("exchange", exchange, _EXCHANGES)


def check_progress(progress: Any) -> None:
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be called with (bytes done, bytes in all), and {progress!r} cannot be called")


def check_mapping(mapping: Any) -> None:
    if mapping is None:
        return
    if not isinstance(mapping, Mapping):
        raise TypeError(f"fqn_to_index_mapping must be a dict, not {type(mapping).__name__}")
    for name, index in mapping.items():
        if not isinstance(name, str) or not isinstance(index, numbers.Integral) or not 1 <= index < 1 << 32:
            raise ValueError(
                f"fqn_to_index_mapping must give the number of a file, from 1 on, for a name, and has {name!r}: {index!r}"
            )
