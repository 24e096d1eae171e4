"""Classes that others derive from ours: written for torch's, whose methods call each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_OWN = ("torch", "safering")


def overrides(value: Any, methods: Iterable[str]) -> str | None:
    """The first of these methods that is neither torch's nor ours, as "Class.method"; None where all are. Ours may
    not call what torch's do."""
    for method in methods:
        if method in vars(value):
            return f"{type(value).__name__}.{method}"
    return class_overrides(type(value), methods)


def class_overrides(kind: type, methods: Iterable[str]) -> str | None:
    """The same of a class: what is set on an object, around what the class has, does not count."""
    for method in methods:
        for base in kind.__mro__:
            if method in vars(base):
                if base.__module__.partition(".")[0] not in _OWN:
                    return f"{base.__name__}.{method}"
                break
    return None
