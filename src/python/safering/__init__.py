"""Durable, atomic, fast safetensors checkpoints on io_uring.

`safering.torch` is the drop-in for PyTorch's distributed checkpoint (`HuggingFaceStorageWriter`,
`HuggingFaceStorageReader`) and for `safetensors.torch`; `safering.numpy` is the one for
`safetensors.numpy`. This package itself needs neither torch nor numpy.
"""

from ._errors import Error, StorageError
from ._files import safe_open
from ._runtime import info

__all__ = ["Error", "StorageError", "info", "safe_open"]
