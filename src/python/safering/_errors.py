"""What goes wrong in native code, as exceptions that travel from rank to rank."""

from __future__ import annotations

import errno as _errno

try:
    from safetensors import SafetensorError
except ImportError:
    SafetensorError = Exception  # type: ignore[assignment, misc]


class Error(RuntimeError, SafetensorError):
    """One failure: what, where, and what to do next; `str()` is one line for a person.

    Also a `safetensors.SafetensorError` where safetensors is installed, so that code which catches that one around
    `safe_open`, `load_file` or `save_file` works with safering's.

    Attributes:
        reason: what went wrong, in a few words.
        operation: what was being done ("write data of rank 1").
        file, tensor: where; empty where none applies.
        offset, length: bytes of the file; length 0 where no range applies.
        detail: what was expected and found, and what to do next.
    """

    def __init__(
        self,
        message: str,
        reason: str = "",
        operation: str = "",
        file: str = "",
        tensor: str = "",
        offset: int = 0,
        length: int = 0,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.operation = operation
        self.file = file
        self.tensor = tensor
        self.offset = offset
        self.length = length
        self.detail = detail

    def _fields(self) -> tuple:
        return (self.reason, self.operation, self.file, self.tensor, self.offset, self.length, self.detail)

    def __str__(self) -> str:
        return self.args[0]

    def __reduce__(self) -> tuple:
        return type(self), (self.args[0], *self._fields())


class StorageError(Error, OSError):
    """The operating system's refusal; `errno` and `filename` are set as for any OSError."""

    def __init__(self, message: str, errno: int = 0, *fields) -> None:
        Error.__init__(self, message, *fields)
        self.errno = errno
        self.strerror = self.reason
        self.filename = self.file or None

    def __reduce__(self) -> tuple:
        return type(self), (self.args[0], self.errno, *self._fields())


class _NotFound(StorageError, FileNotFoundError):
    pass


class _NotPermitted(StorageError, PermissionError):
    pass


# What Python makes of an OSError with such a number, for code that catches that.
_CLASSES = {_errno.ENOENT: _NotFound, _errno.EACCES: _NotPermitted, _errno.EPERM: _NotPermitted}


def make(
    message: str, errno: int, reason: str, operation: str, file: bytes, tensor: bytes, offset: int, length: int,
    detail: str,
) -> Error:
    """Called by native code. Names come as bytes, for they may be anything."""
    fields = (
        reason, operation, file.decode(errors="surrogateescape"), tensor.decode(errors="surrogateescape"),
        offset, length, detail,
    )
    return _CLASSES.get(errno, StorageError)(message, errno, *fields) if errno else Error(message, *fields)
